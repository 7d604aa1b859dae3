//! Rotation over weeks of the bed's time.

use std::{collections::HashMap, fs};

use hadoop::token_file::TokenFile;
use nix::mount::{MsFlags, mount, umount};
use proto::token::v1::{AddressVerification, Revoked, check_response::Outcome};
use tokio::{sync::Semaphore, time::Instant};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    bed::{Bed, DAY, HOUR, after, on_a_bed, pass},
    pod_network::{PodAddresses, Sight},
    publish_request::tests::UID,
    token_dir::TokenDir,
    volume::{Phase, Record},
};

/// Number of the token that a reader of the volume finds.
fn mounted(bed: &Bed) -> u8 {
    let file = TokenFile::decode(&fs::read(bed.target().join("token")).unwrap()).unwrap();
    let numbers: Vec<_> = file.tokens.iter().map(|(_, token)| *token.identifier.last().unwrap()).collect();
    assert!(numbers.iter().all(|number| number == &numbers[0]), "{numbers:?}");
    numbers[0]
}

fn said(bed: &Bed) -> serde_json::Value {
    serde_json::from_slice(&fs::read(bed.target().join("token.json")).unwrap()).unwrap()
}

#[test]
fn a_token_is_replaced_before_it_ends_and_its_predecessor_stays() {
    on_a_bed(async |bed| {
        let start = bed.clock.now();
        bed.publish().await.unwrap();
        let due = bed.record().unwrap().next_rotation.unwrap();
        assert!(due >= after(start, 5 * DAY + 6 * HOUR) && due <= after(start, 5 * DAY + 15 * HOUR), "{due}");
        assert_eq!(said(&bed)["nextRotation"], due.to_string());
        pass(5 * DAY + 5 * HOUR).await;
        assert_eq!(mounted(&bed), 1);
        pass(11 * HOUR).await;
        assert_eq!(mounted(&bed), 2);
        assert_eq!(bed.controller.live(), [1, 2], "whoever still has the old one may go on");
        assert_eq!(bed.controller.lock().held, [vec![], vec![1]]);
        let record = bed.record().unwrap();
        assert_eq!((record.sequence_numbers(), &record.successor), (vec![2], &None));
        assert_eq!(said(&bed)["tokens"][0]["sequenceNumber"], 2);
        assert_eq!(said(&bed)["nextRotation"], record.next_rotation.unwrap().to_string());
        pass(25 * DAY).await;
        assert_eq!(mounted(&bed), 6, "again and again");
        assert!(bed.controller.renewals(6) > 0);
        bed.unpublish().await.unwrap();
    });
}

#[test]
fn a_refused_rotation_leaves_the_token_and_is_tried_again() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        bed.controller.lock().refuse_rotation = Some(Status::unavailable("not now"));
        pass(6 * DAY).await;
        assert_eq!((mounted(&bed), bed.controller.live()), (1, vec![1]));
        bed.controller.lock().refuse_rotation = None;
        pass(301_000).await;
        assert_eq!(mounted(&bed), 2);
    });
}

#[test]
fn rotations_that_fail_one_after_the_other_do_not_make_each_other_hurry() {
    on_a_bed(async |bed| {
        let others = ["a", "b", "c"].map(|last| format!("{}{last}", &UID[..UID.len() - 1]));
        bed.publish().await.unwrap();
        for uid in &others {
            bed.publish_for(uid).await.unwrap();
        }
        bed.controller.lock().refuse_rotation = Some(Status::unavailable("not now"));
        // Each answer takes a second, so that others are always under way.
        bed.controller.gate.forget_permits(Semaphore::MAX_PERMITS);
        let controller = bed.controller.clone();
        let answers = tokio::spawn(async move {
            loop {
                pass(1_000).await;
                controller.gate.add_permits(1);
                tokio::task::yield_now().await;
                controller.gate.forget_permits(1);
            }
        });
        for uid in others.iter().map(String::as_str).chain([UID]) {
            bed.controller.rotate(uid);
        }
        pass(HOUR).await;
        answers.abort();
        let asked = bed.controller.lock().shown.len();
        assert!((50..200).contains(&asked), "{asked} calls");
    });
}

#[test]
fn a_token_is_replaced_in_time_although_its_record_does_not_say_when() {
    for restarted in [false, true] {
        on_a_bed(async |mut bed| {
            bed.publish().await.unwrap();
            bed.stop_driver().await;
            let mut record: serde_json::Value =
                serde_json::from_slice(&fs::read(bed.record_file()).unwrap()).unwrap();
            record.as_object_mut().unwrap().remove("nextRotation").unwrap();
            fs::write(bed.record_file(), record.to_string()).unwrap();
            bed.restart_driver().await;
            bed.publish().await.unwrap();
            pass(3 * DAY).await;
            assert!(bed.controller.renewals(1) > 0, "a renewal does not forget it");
            if restarted {
                bed.restart_driver().await;
                bed.publish().await.unwrap();
            }
            pass(3 * DAY).await;
            assert_eq!(mounted(&bed), 2);
            assert!(bed.record().unwrap().next_rotation.is_some());
        });
    }
}

#[test]
fn who_lost_his_right_gets_no_other_token_and_is_checked_at_once() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        let details = ErrorDetails::with_error_info("DO_AS_NOT_MEMBER", proto::ERROR_DOMAIN, HashMap::new());
        let refusal = Status::with_error_details(Code::PermissionDenied, "not any more", details);
        bed.controller.lock().refuse_rotation = Some(refusal);
        let revoked = Revoked { reason: "DO_AS_NOT_MEMBER".to_owned(), message: "not any more".to_owned() };
        bed.controller.lock().outcome = Some(Outcome::Revoked(revoked));
        pass(5 * DAY).await;
        assert_eq!(mounted(&bed), 1);
        pass(DAY).await;
        assert_eq!(bed.record().unwrap().phase, Phase::Stopped);
        assert!(!bed.target().join("token").exists());
        assert_eq!(bed.controller.live(), [0u8; 0]);
    });
}

#[test]
fn a_check_that_takes_tokens_away_while_they_are_replaced_takes_the_others_too() {
    for _ in 0..10 {
        on_a_bed(async |bed| {
            bed.publish().await.unwrap();
            bed.settle().await;
            bed.controller.gate.forget_permits(Semaphore::MAX_PERMITS);
            bed.controller.rotate(UID);
            bed.settle().await;
            let id = bed.record().unwrap().volume.id;
            let locked = bed.volumes().lock_volume(&id).await;
            let revoked = Revoked { reason: "USER_DENIED".to_owned(), message: "not any more".to_owned() };
            bed.controller.lock().outcome = Some(Outcome::Revoked(revoked));
            bed.volumes().checks.insert(id, Instant::now());
            bed.settle().await;
            bed.controller.gate.add_permits(1);
            bed.settle().await;
            assert_eq!(bed.controller.live(), [2], "both answers wait for the volume");
            drop(locked);
            pass(1_000).await;
            assert_eq!(bed.record().unwrap().phase, Phase::Stopped);
            assert!(!bed.target().join("token").exists());
            assert_eq!(bed.controller.live(), [0u8; 0]);
        });
    }
}

#[test]
fn a_pod_that_ends_while_others_are_asked_gets_none() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        bed.settle().await;
        bed.controller.gate.forget_permits(Semaphore::MAX_PERMITS);
        bed.controller.rotate(UID);
        bed.settle().await;
        bed.unpublish().await.unwrap();
        bed.controller.gate.add_permits(1);
        bed.settle().await;
        assert_eq!(bed.controller.lock().tokens.len(), 2);
        bed.assert_nothing_left().await;
    });
}

#[test]
fn the_controller_can_have_a_token_replaced_now_also_over_a_restart() {
    on_a_bed(async |mut bed| {
        bed.publish().await.unwrap();
        bed.settle().await;
        bed.controller.rotate(UID);
        pass(1_000).await;
        assert_eq!((mounted(&bed), bed.controller.live()), (2, vec![1, 2]));
        bed.restart_driver().await;
        bed.settle().await;
        bed.controller.rotate(UID);
        pass(60_000).await;
        assert_eq!(mounted(&bed), 2, "kubelet has not brought the pod's own token yet");
        bed.restart_driver().await;
        bed.publish().await.unwrap();
        pass(11_000).await;
        assert_eq!(mounted(&bed), 3);
        pass(2 * DAY).await;
        assert_eq!(mounted(&bed), 3, "once is enough");
    });
}

#[test]
fn a_pod_whose_addresses_come_first_shows_them_again() {
    on_a_bed(async |bed| {
        bed.controller.lock().verification = AddressVerification::Strict;
        bed.controller.tell(UID, &["10.1.2.3"]);
        let addresses = ["10.1.2.3".parse().unwrap()].into();
        bed.networks.set(Sight::Pod(PodAddresses { host_network: false, addresses }));
        bed.publish().await.unwrap();
        pass(2_000).await;
        assert_eq!(mounted(&bed), 1);
        bed.networks.set(Sight::Nobody);
        pass(6 * DAY).await;
        assert_eq!(mounted(&bed), 1, "there is nobody to give one to");
        let addresses = ["10.1.2.3".parse().unwrap()].into();
        bed.networks.set(Sight::Pod(PodAddresses { host_network: false, addresses }));
        pass(301_000).await;
        assert_eq!(mounted(&bed), 2);
        let shown = bed.controller.lock().shown_addresses.pop().unwrap().unwrap();
        assert_eq!(shown.addresses, ["10.1.2.3"]);
    });
}

#[test]
fn an_answer_that_is_of_no_use_changes_nothing() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        bed.settle().await;
        bed.controller.lock().mangle = Some(|answer| {
            for issued in &mut answer.tokens {
                issued.token.as_mut().unwrap().password.clear();
            }
        });
        bed.controller.rotate(UID);
        pass(500).await;
        assert_eq!(mounted(&bed), 1);
        bed.controller.lock().mangle = None;
        pass(301_000).await;
        assert!(mounted(&bed) > 1);
        assert_eq!(bed.controller.live(), [1, mounted(&bed)], "what was of no use is cancelled");
    });
}

#[test]
fn a_crash_between_record_and_files_leaves_one_of_both_and_no_other() {
    for swapped in [false, true] {
        on_a_bed(async |mut bed| {
            bed.publish().await.unwrap();
            bed.settle().await;
            let old = bed.record().unwrap();
            let (token, summary) = (fs::read(bed.target().join("token")).unwrap(), said(&bed));
            bed.controller.rotate(UID);
            pass(1_000).await;
            // As it was after the record was written, and before or after the files were.
            let successor = Some(Box::new(bed.record().unwrap()));
            bed.volumes().store.put(&Record { successor, ..old }).unwrap();
            if !swapped {
                let files = TokenDir::new(&bed.target(), Some(2000));
                let file = TokenFile::decode(&token).unwrap();
                files.write(&file, &serde_json::from_value(summary).unwrap()).unwrap();
            }
            bed.restart_driver().await;
            pass(11_000).await;
            let number = if swapped { 2 } else { 1 };
            assert_eq!(
                (mounted(&bed), bed.record().unwrap().sequence_numbers()),
                (number, vec![number.into()])
            );
            assert_eq!(bed.record().unwrap().successor, None);
            assert_eq!(bed.controller.live(), [1, 2], "what is mounted lives on");
            bed.publish().await.unwrap();
            bed.settle().await;
            bed.controller.rotate(UID);
            pass(11_000).await;
            assert_eq!(bed.controller.live(), if swapped { [1, 2, 3].to_vec() } else { [1, 3].to_vec() });
        });
    }
}

#[test]
fn a_disk_that_takes_nothing_leaves_the_token_and_the_other_is_cancelled_in_the_end() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        bed.settle().await;
        let state = bed.state();
        let remount = |flags| mount(None::<&str>, &state, None::<&str>, flags, None::<&str>).unwrap();
        mount(Some(&state), &state, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        bed.controller.gate.forget_permits(Semaphore::MAX_PERMITS);
        bed.controller.rotate(UID);
        bed.settle().await;
        remount(MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY);
        bed.controller.gate.add_permits(1);
        bed.settle().await;
        assert_eq!((mounted(&bed), bed.controller.live()), (1, vec![1, 2]));
        remount(MsFlags::MS_REMOUNT | MsFlags::MS_BIND);
        bed.controller.gate.add_permits(1);
        pass(2_000).await;
        assert_eq!((mounted(&bed), bed.controller.live()), (3, vec![1, 3]));
        umount(&state).unwrap();
    });
}

#[test]
fn a_token_that_is_revoked_while_it_is_on_its_way_is_never_seen() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        bed.settle().await;
        bed.controller.gate.forget_permits(Semaphore::MAX_PERMITS);
        bed.controller.rotate(UID);
        bed.settle().await;
        bed.controller.revoke(UID, 2);
        bed.settle().await;
        assert_eq!(mounted(&bed), 1);
        bed.controller.gate.add_permits(1);
        bed.settle().await;
        let record = bed.record().unwrap();
        assert_eq!(
            (record.phase, record.stopped.unwrap().reason.as_str()),
            (Phase::Stopped, "TOKEN_REVOKED")
        );
        assert!(!bed.target().join("token").exists());
        assert_eq!(bed.controller.live(), [0u8; 0]);
    });
}
