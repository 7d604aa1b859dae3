//! Publish, unpublish and restarts, as kubelet calls and survives them.

use std::os::unix::fs::symlink;

use proto::{
    ERROR_DOMAIN,
    csi::v1::{
        GetPluginCapabilitiesRequest, GetPluginInfoRequest, NodeGetCapabilitiesRequest, NodeGetInfoRequest,
        NodePublishVolumeRequest, ProbeRequest,
    },
    token::v1::IssueResponse,
};
use tokio::time::Duration;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::*;
use crate::{
    bed::{Bed, JWT, PASSWORD, on_a_bed},
    publish_request::tests::UID,
};

#[track_caller]
fn refused(result: Result<(), Status>, code: Code, sentence: &str) {
    let status = result.expect_err(sentence);
    assert_eq!(status.code(), code, "{}", status.message());
    assert!(status.message().contains(sentence), "{} does not say {sentence}", status.message());
}

#[test]
fn a_published_volume_is_mounted_and_holds_its_tokens() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        assert_eq!(bed.mounts(), 1);
        let file = TokenFile::decode(&fs::read(bed.target().join("token")).unwrap()).unwrap();
        let aliases: Vec<&str> = file.tokens.iter().map(|(alias, _)| alias.as_str()).collect();
        assert_eq!(aliases, ["10.0.0.1:8020", "nn1.example:8020"]);
        for (alias, token) in &file.tokens {
            assert_eq!((&token.service, token.kind.as_str()), (alias, "HDFS_DELEGATION_TOKEN"));
            assert_eq!(token.password.expose(), format!("{PASSWORD}-1").as_bytes());
        }
        let json = fs::read_to_string(bed.target().join("token.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["user"], "etl");
        assert_eq!(json["tokens"][0]["renewDate"], "2026-11-24T00:00:00Z");
        let record = bed.record().unwrap();
        assert_eq!(
            (record.phase, record.fs_group, record.target),
            (Phase::Published, Some(2000), bed.target())
        );
        let shown = ("Bearer jwt-of-the-driver".to_owned(), JWT.to_owned());
        assert_eq!(bed.controller.lock().shown, [shown]);
    });
}

#[test]
fn ten_publishes_change_nothing() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        let before = bed.snapshot();
        for _ in 0..9 {
            bed.publish().await.unwrap();
        }
        assert_eq!(bed.snapshot(), before);
        assert_eq!(bed.controller.lock().tokens.len(), 1);
    });
}

#[test]
fn publishing_what_is_mounted_needs_no_controller() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        let before = bed.snapshot();
        bed.controller.stop();
        bed.publish().await.unwrap();
        assert_eq!(bed.snapshot(), before);
    });
}

#[test]
fn publishing_what_is_mounted_without_the_pods_token_changes_nothing() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        let before = bed.snapshot();
        for tokens in [None, Some("rubbish")] {
            let mut request = bed.request();
            request.secrets = tokens
                .map(|tokens| ("csi.storage.k8s.io/serviceAccount.tokens".to_owned(), tokens.to_owned()))
                .into_iter()
                .collect();
            bed.node().node_publish_volume(request).await.unwrap();
        }
        assert_eq!(bed.snapshot(), before);
    });
}

#[test]
fn kubelet_is_not_refused_while_somebody_is_at_work_on_a_volume_for_a_moment() {
    on_a_bed(async |bed| {
        let id = VolumeId::of(UID, "hadoop");
        for _ in 0..2 {
            let locked = bed.volumes().lock_volume(&id).await;
            tokio::spawn(async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                drop(locked);
            });
            bed.publish().await.unwrap();
            bed.unpublish().await.unwrap();
        }
        bed.assert_nothing_left().await;
    });
}

#[test]
fn a_second_call_for_the_volume_meanwhile_is_aborted() {
    on_a_bed(async |bed| {
        bed.controller.gate.forget_permits(usize::MAX);
        let (mut node, request) = (bed.node(), bed.request());
        let first = tokio::spawn(async move { node.node_publish_volume(request).await });
        bed.settle().await;
        refused(bed.publish().await, Code::Aborted, "another call for volume csi-");
        refused(bed.unpublish().await, Code::Aborted, "another call for volume csi-");
        bed.controller.gate.add_permits(1);
        first.await.unwrap().unwrap();
        bed.publish().await.unwrap();
        assert_eq!(bed.mounts(), 1);
    });
}

#[test]
fn a_publish_that_kubelet_gives_up_is_done_all_the_same() {
    on_a_bed(async |bed| {
        bed.controller.gate.forget_permits(usize::MAX);
        let given_up = tokio::time::timeout(Duration::from_secs(1), bed.publish()).await;
        assert!(given_up.is_err());
        bed.controller.gate.add_permits(1);
        bed.settle().await;
        assert_eq!(bed.mounts(), 1);
        bed.publish().await.unwrap();
        assert_eq!(bed.controller.lock().tokens.len(), 1);
    });
}

#[test]
fn a_driver_that_is_to_stop_ends_a_publish_under_way_first() {
    on_a_bed(async |mut bed| {
        bed.controller.gate.forget_permits(usize::MAX);
        let (mut node, request) = (bed.node(), bed.request());
        let call = tokio::spawn(async move { node.node_publish_volume(request).await });
        bed.settle().await;
        let controller = bed.controller.clone();
        let answer = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(5)).await;
            controller.gate.add_permits(1);
        });
        bed.stop_driver().await;
        answer.await.unwrap();
        call.await.unwrap().unwrap();
        assert_eq!(
            (bed.mounts(), bed.controller.live(), bed.record().unwrap().phase),
            (1, vec![1], Phase::Published)
        );
    });
}

#[test]
fn a_refusal_of_the_controller_reaches_kubelet_whole() {
    on_a_bed(async |bed| {
        let details = ErrorDetails::with_error_info("USER_DENIED", ERROR_DOMAIN, HashMap::new());
        let sentence = "user hdfs may not be used: name another";
        let refusal = Status::with_error_details(Code::PermissionDenied, sentence, details);
        bed.controller.lock().refuse = Some(refusal);
        let status = bed.publish().await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert_eq!(status.message(), format!("{sentence} [USER_DENIED]"));
        assert_eq!(status.get_details_error_info().unwrap().reason, "USER_DENIED");
        bed.assert_nothing_left().await;
    });
}

#[test]
fn a_controller_that_is_down_is_named() {
    on_a_bed(async |bed| {
        bed.controller.stop();
        refused(
            bed.publish().await,
            Code::Unavailable,
            "controller at controller.example:9443 cannot be reached: connection refused",
        );
        bed.assert_nothing_left().await;
        bed.controller.start();
        bed.publish().await.unwrap();
    });
}

#[test]
fn a_controller_that_does_not_answer_is_named_before_kubelet_gives_up() {
    on_a_bed(async |bed| {
        bed.controller.gate.forget_permits(usize::MAX);
        let start = tokio::time::Instant::now();
        refused(bed.publish().await, Code::Unavailable, "did not answer within 45 s");
        assert!(start.elapsed() < Duration::from_secs(60));
        bed.assert_nothing_left().await;
    });
}

#[test]
fn a_driver_without_its_own_token_says_so() {
    on_a_bed(async |bed| {
        fs::remove_file(bed.dir.path().join("own-token")).unwrap();
        refused(bed.publish().await, Code::Unavailable, "the driver's own service-account token");
        bed.assert_nothing_left().await;
    });
}

#[test]
fn answers_that_are_of_no_use_are_refused_and_their_tokens_cancelled() {
    type Mangle = fn(&mut IssueResponse);
    let cases: [(Mangle, &str); 7] = [
        (|a| a.tokens[0].token.as_mut().unwrap().services.clear(), "without a service for each token"),
        (|a| a.tokens[0].token.as_mut().unwrap().password.clear(), "without a password in each token"),
        (|a| a.tokens[0].token.as_mut().unwrap().kind.clear(), "without an identifier and a kind"),
        (|a| a.user.clear(), "without user and cluster"),
        (|a| a.cluster.clear(), "without user and cluster"),
        (|a| a.tokens.push(a.tokens[0].clone()), ""),
        (|a| a.tokens[0].max_date = u64::MAX, ""),
    ];
    for (mangle, sentence) in cases {
        on_a_bed(async |bed| {
            bed.controller.lock().mangle = Some(mangle);
            let published = bed.publish().await;
            if sentence.is_empty() {
                published.unwrap();
            } else {
                refused(published, Code::Unavailable, sentence);
                bed.assert_nothing_left().await;
            }
        });
    }
    on_a_bed(async |bed| {
        bed.controller.lock().mangle = Some(|answer| answer.tokens.clear());
        refused(bed.publish().await, Code::Unavailable, "without a token");
        assert_eq!((bed.mounts(), bed.target().exists()), (0, false));
    });
}

#[test]
fn a_failure_of_any_step_leaves_nothing_and_is_over_when_it_is() {
    on_a_bed(async |bed| {
        // The directory cannot be made.
        let request = bed.request();
        fs::write(&request.target_path, "in the way").unwrap();
        refused(bed.publish().await, Code::Unavailable, "cannot be mounted on");
        fs::remove_file(&request.target_path).unwrap();
        bed.assert_nothing_left().await;
        // Mounting fails.
        bed.mounter.after_mount(|_| Err(io::ErrorKind::OutOfMemory.into()));
        refused(bed.publish().await, Code::Unavailable, "cannot be mounted on");
        bed.assert_nothing_left().await;
        // The files cannot be written.
        bed.mounter.after_mount(|target| fs::write(target.join("full"), vec![0; 1024 * 1024]));
        refused(bed.publish().await, Code::Unavailable, "cannot be mounted on");
        bed.assert_nothing_left().await;
        // The volume cannot be recorded as published.
        let (state, away) = (bed.state(), bed.dir.path().join("away"));
        bed.mounter.after_mount(move |_| fs::rename(&state, &away));
        refused(bed.publish().await, Code::Unavailable, "stateDir");
        fs::rename(bed.dir.path().join("away"), bed.state()).unwrap();
        bed.settle().await;
        assert_eq!((bed.mounts(), bed.target().exists(), bed.controller.live()), (0, false, vec![]));
        // The tokens cannot be recorded at all.
        bed.mounter.mend();
        fs::rename(bed.state(), bed.dir.path().join("away")).unwrap();
        refused(bed.publish().await, Code::Unavailable, "stateDir");
        fs::rename(bed.dir.path().join("away"), bed.state()).unwrap();
        bed.settle().await;
        assert_eq!((bed.mounts(), bed.target().exists(), bed.controller.live()), (0, false, vec![]));

        bed.publish().await.unwrap();
        assert_eq!((bed.mounts(), bed.controller.live().len()), (1, 1));
    });
}

#[test]
fn a_mount_that_cannot_be_undone_holds_no_token_and_is_not_taken_for_a_volume() {
    on_a_bed(async |bed| {
        let (state, away) = (bed.state(), bed.dir.path().join("away"));
        bed.mounter.after_mount(move |_| fs::rename(&state, &away));
        bed.mounter.refuse_unmount(Some(io::ErrorKind::ResourceBusy));
        refused(bed.publish().await, Code::Unavailable, "stateDir");
        fs::rename(bed.dir.path().join("away"), bed.state()).unwrap();
        bed.settle().await;
        assert_eq!((bed.mounts(), bed.controller.live()), (1, vec![]));
        assert!(!bed.target().join("token").exists());
        bed.mounter.mend();
        bed.publish().await.unwrap();
        assert_eq!((bed.mounts(), bed.controller.live()), (1, vec![2]));
    });
}

#[test]
fn unpublishing_takes_mount_directory_and_token_away() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        bed.unpublish().await.unwrap();
        bed.assert_nothing_left().await;
        assert_eq!(bed.controller.lock().tokens.len(), 1);
    });
}

#[test]
fn unpublishing_what_is_not_there_is_fine() {
    on_a_bed(async |bed| {
        bed.unpublish().await.unwrap(); // nor its parents
        bed.publish().await.unwrap();
        bed.unpublish().await.unwrap();
        bed.unpublish().await.unwrap();
        // A plain directory, as after a reboot.
        fs::create_dir(bed.target()).unwrap();
        bed.unpublish().await.unwrap();
        bed.assert_nothing_left().await;
    });
}

#[test]
fn stacked_mounts_are_all_taken_away() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        for _ in 0..3 {
            bed.mounter.mount(&bed.target(), None).unwrap();
        }
        assert_eq!(bed.mounts(), 4);
        bed.unpublish().await.unwrap();
        bed.assert_nothing_left().await;
    });
}

#[test]
fn files_of_others_are_never_deleted() {
    on_a_bed(async |bed| {
        fs::create_dir_all(bed.target()).unwrap();
        fs::write(bed.target().join("precious"), "").unwrap();
        refused(bed.unpublish().await, Code::Unavailable, "remove them by hand");
        assert!(bed.target().join("precious").exists());
    });
}

#[test]
fn a_volume_that_cannot_be_unmounted_is_wiped_and_tried_again() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        bed.mounter.refuse_unmount(Some(io::ErrorKind::PermissionDenied));
        refused(bed.unpublish().await, Code::Unavailable, "cannot be unmounted");
        bed.settle().await;
        assert!(!bed.target().join("token").exists());
        assert_eq!(bed.controller.live(), [0u8; 0]);
        bed.mounter.mend();
        bed.unpublish().await.unwrap();
        bed.assert_nothing_left().await;
    });
}

#[test]
fn unpublishing_does_not_wait_for_the_controller_which_cancels_when_it_is_back() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        bed.controller.stop();
        bed.unpublish().await.unwrap();
        assert_eq!((bed.mounts(), bed.controller.live()), (0, vec![1]));
        tokio::time::sleep(Duration::from_secs(1_000)).await;
        assert_eq!(bed.controller.live(), [1]);
        bed.controller.start();
        tokio::time::sleep(Duration::from_secs(301)).await;
        bed.assert_nothing_left().await;
    });
}

#[test]
fn a_release_survives_a_restart() {
    on_a_bed(async |mut bed| {
        bed.publish().await.unwrap();
        bed.controller.stop();
        bed.unpublish().await.unwrap();
        bed.stop_driver().await;
        bed.controller.start();
        bed.restart_driver().await;
        tokio::time::sleep(Duration::from_secs(11)).await;
        bed.assert_nothing_left().await;
    });
}

#[test]
fn a_release_that_nobody_takes_ends_with_the_tokens_life() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        bed.unpublish().await.unwrap();
        bed.assert_nothing_left().await;
        bed.controller.lock().refuse = Some(Status::internal("broken"));
        bed.publish().await.unwrap_err();
        bed.controller.lock().refuse = None;
        bed.publish().await.unwrap();
        bed.controller.lock().refuse = Some(Status::internal("broken"));
        bed.unpublish().await.unwrap();
        let records = || fs::read_dir(bed.state().join("released")).unwrap().count();
        tokio::time::sleep(Duration::from_hours(24)).await;
        assert_eq!(records(), 1);
        tokio::time::sleep(Duration::from_hours(2)).await;
        assert_eq!(records(), 0);
    });
}

#[test]
fn a_restart_changes_nothing() {
    on_a_bed(async |mut bed| {
        bed.publish().await.unwrap();
        let before = bed.snapshot();
        for _ in 0..3 {
            bed.restart_driver().await;
            tokio::time::sleep(Duration::from_secs(60)).await;
            bed.publish().await.unwrap();
        }
        assert_eq!(bed.snapshot(), before);
        bed.stop_driver().await;
        assert_eq!(bed.mounts(), 1, "mounts stay while no driver runs");
    });
}

#[test]
fn after_a_reboot_the_old_token_is_cancelled_and_the_pod_gets_a_new_one() {
    on_a_bed(async |mut bed| {
        bed.publish().await.unwrap();
        bed.stop_driver().await;
        bed.mounter.unmount(&bed.target()).unwrap();
        bed.restart_driver().await;
        bed.publish().await.unwrap();
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!((bed.mounts(), bed.controller.live()), (1, vec![2]));
    });
}

#[test]
fn a_mount_that_somebody_took_away_is_published_anew() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        bed.mounter.unmount(&bed.target()).unwrap();
        bed.publish().await.unwrap();
        bed.settle().await;
        assert_eq!((bed.mounts(), bed.controller.live()), (1, vec![2]));
    });
}

#[test]
fn a_publish_that_a_crash_cut_short_is_undone() {
    on_a_bed(async |mut bed| {
        bed.publish().await.unwrap();
        bed.stop_driver().await;
        let record = Record { phase: Phase::Issued, ..bed.record().unwrap() };
        Store::open(&bed.state()).unwrap().put(&record).unwrap();
        // With its files, and with none.
        for tokens in 1..=2 {
            bed.restart_driver().await;
            assert_eq!((bed.mounts(), bed.target().exists()), (0, false));
            tokio::time::sleep(Duration::from_secs(11)).await;
            assert_eq!(bed.controller.lock().tokens.len(), tokens);
            bed.assert_nothing_left().await;
            bed.publish().await.unwrap();
            bed.stop_driver().await;
            let record = Record { phase: Phase::Issued, ..bed.record().unwrap() };
            Store::open(&bed.state()).unwrap().put(&record).unwrap();
            bed.mounter.unmount(&bed.target()).unwrap();
        }
    });
}

#[test]
fn a_mounted_volume_without_a_readable_record_is_adopted() {
    on_a_bed(async |mut bed| {
        bed.publish().await.unwrap();
        let record = bed.record();
        bed.stop_driver().await;
        fs::write(bed.record_file(), "{ corrupt").unwrap();
        bed.restart_driver().await;
        bed.publish().await.unwrap();
        // It may have been due to be checked, and so it is.
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!(bed.controller.lock().shown_addresses, [None]);
        assert_eq!(bed.record(), record);
        assert_eq!((bed.mounts(), bed.controller.live()), (1, vec![1]));
        // Also when it is to go.
        bed.stop_driver().await;
        fs::remove_file(bed.record_file()).unwrap();
        bed.restart_driver().await;
        bed.unpublish().await.unwrap();
        bed.assert_nothing_left().await;
    });
}

#[test]
fn what_else_is_mounted_there_is_replaced() {
    on_a_bed(async |bed| {
        bed.request();
        fs::create_dir(bed.target()).unwrap();
        bed.mounter.mount(&bed.target(), None).unwrap();
        bed.publish().await.unwrap();
        assert_eq!((bed.mounts(), bed.controller.live()), (1, vec![1]));
    });
}

#[test]
fn a_link_in_place_of_the_target_is_not_followed() {
    on_a_bed(async |bed| {
        let elsewhere = bed.dir.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        bed.request();
        symlink(&elsewhere, bed.target()).unwrap();
        refused(bed.publish().await, Code::Unavailable, "cannot be mounted on");
        assert!(fs::read_dir(&elsewhere).unwrap().next().is_none());
        fs::remove_file(bed.target()).unwrap();
    });
}

#[test]
fn records_hold_no_secret() {
    on_a_bed(async |mut bed| {
        bed.publish().await.unwrap();
        let holds_secret = |dir: &Path| {
            let files: Vec<_> =
                fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file()).collect();
            assert!(!files.is_empty());
            files.iter().any(|file| {
                let text = fs::read_to_string(file).unwrap();
                [PASSWORD, "cDRzc3cwcmQ", "jwt-of"].iter().any(|secret| text.contains(secret))
            })
        };
        assert!(!holds_secret(&bed.state()));
        bed.controller.stop();
        bed.unpublish().await.unwrap();
        assert!(!holds_secret(&bed.state().join("released")));
        bed.stop_driver().await;
    });
}

#[test]
fn what_is_wrong_with_a_request_is_said_and_nothing_is_issued() {
    fn check(change: fn(&mut NodePublishVolumeRequest), reason: &str, sentence: &str) {
        on_a_bed(async |bed| {
            let mut request = bed.request();
            change(&mut request);
            let status = bed.node().node_publish_volume(request).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument);
            assert!(status.message().contains(sentence), "{}", status.message());
            assert!(status.message().ends_with(&format!(" [{reason}]")), "{}", status.message());
            let info = status.get_details_error_info().unwrap();
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason, ERROR_DOMAIN));
            assert_eq!(bed.controller.lock().tokens.len(), 0);
            bed.assert_nothing_left().await;
        });
    }
    check(|r| r.readonly = false, "VOLUME_NOT_READ_ONLY", "set csi.readOnly: true");
    check(|r| r.secrets.clear(), "POD_TOKEN_MISSING", "set tokenRequests");
    check(|r| r.volume_id = VolumeId::of(UID, "x").to_string(), "VOLUME_ID_MISMATCH", "does not belong");
    check(
        |r| drop(r.volume_context.insert("queue".to_owned(), "a".to_owned())),
        "UNKNOWN_ATTRIBUTE",
        "unknown volume attribute \"queue\"",
    );
}

#[test]
fn kubelet_is_told_who_we_are_and_what_we_can() {
    on_a_bed(async |bed| {
        let info = bed.identity().get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner();
        assert_eq!(
            (info.name.as_str(), info.vendor_version.as_str()),
            ("hadoop-token.csi", env!("CARGO_PKG_VERSION"))
        );
        bed.identity().get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await.unwrap();
        let probe = bed.identity().probe(ProbeRequest {}).await.unwrap().into_inner();
        assert!(probe.ready.unwrap().value);
        let info = bed.node().node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
        assert_eq!(info.node_id, "node-1");
        let can = bed.node().node_get_capabilities(NodeGetCapabilitiesRequest {}).await.unwrap().into_inner();
        assert!(format!("{can:?}").contains("VolumeMountGroup"), "{can:?}");
    });
}

#[test]
fn after_a_bug_kubelet_is_told_to_unpublish() {
    on_a_bed(async |bed| {
        bed.mounter.after_mount(|_| panic!("a bug"));
        refused(bed.publish().await, Code::Unavailable, "the driver has a bug");
        assert_eq!(bed.mounts(), 1);
        bed.mounter.mend();
        bed.unpublish().await.unwrap();
        bed.assert_nothing_left().await;
    });
}

/// So that the bed itself is known to be a bed.
#[test]
fn volumes_of_one_pod_are_apart() {
    on_a_bed(async |bed: Bed| {
        bed.publish().await.unwrap();
        let mut other = bed.request();
        other.volume_id = VolumeId::of(UID, "other").to_string();
        other.target_path = other.target_path.replace("/hadoop/", "/other/");
        let target = std::path::PathBuf::from(&other.target_path);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        bed.node().node_publish_volume(other).await.unwrap();
        assert_eq!(bed.controller.live(), [1, 2]);
        bed.unpublish().await.unwrap();
        bed.settle().await;
        assert_eq!(bed.controller.live(), [2]);
        assert!(target.join("token").exists());
        bed.mounter.unmount(&target).unwrap();
    });
}

#[test]
fn a_release_that_comes_late_spares_what_a_volume_got_since() {
    on_a_bed(async |mut bed| {
        bed.publish().await.unwrap();
        bed.settle().await;
        bed.controller.stop();
        bed.unpublish().await.unwrap();
        crate::bed::pass(crate::bed::HOUR).await;
        // It is published again before the release is tried again.
        bed.controller.start();
        bed.publish().await.unwrap();
        crate::bed::pass(301_000).await;
        assert_eq!(bed.controller.live(), [2], "the controller was told that the volume holds no other");
        assert_eq!(fs::read_dir(bed.state().join("released")).unwrap().count(), 0);
        bed.restart_driver().await;
        crate::bed::pass(11_000).await;
        assert_eq!(bed.controller.live(), [2]);
    });
}
