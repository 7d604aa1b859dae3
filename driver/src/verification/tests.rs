//! Checks and the verification of addresses over hours of the bed's time, with every end they may have.

use std::fs;

use proto::token::v1::{AddressVerification, Revoked, check_response::Outcome};
use serde_json::{Value, json};
use tokio::time::Duration;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::*;
use crate::{
    bed::{Bed, DAY, HOUR, on_a_bed, pass},
    pod_network::PodAddresses,
    publish_request::tests::UID,
};

const ADDRESS: &str = "10.1.2.3";

fn pod(addresses: &[&str]) -> Sight {
    let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
    Sight::Pod(PodAddresses { host_network: false, addresses })
}

fn observed(addresses: &[&str]) -> ObservedAddresses {
    let addresses = addresses.iter().map(|text| (*text).to_owned()).collect();
    ObservedAddresses { addresses, ..ObservedAddresses::default() }
}

fn revoked(reason: &str, message: &str) -> Outcome {
    Outcome::Revoked(Revoked { reason: reason.to_owned(), message: message.to_owned() })
}

fn refusal(code: Code, reason: &str, sentence: &str) -> Status {
    let details = ErrorDetails::with_error_info(reason, proto::ERROR_DOMAIN, HashMap::new());
    Status::with_error_details(code, sentence, details)
}

/// What `token.json` says.
fn said(bed: &Bed) -> Value {
    serde_json::from_slice(&fs::read(bed.target().join("token.json")).unwrap()).unwrap()
}

fn verify(bed: &Bed, verification: AddressVerification) {
    bed.controller.lock().verification = verification;
}

fn shown(bed: &Bed) -> Vec<Option<ObservedAddresses>> {
    bed.controller.lock().shown_addresses.clone()
}

fn has_token(bed: &Bed) -> bool {
    bed.target().join("token").exists()
}

/// No byte of a token anywhere in the volume.
fn is_wiped(bed: &Bed) -> bool {
    let names: Vec<_> = fs::read_dir(bed.target()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let generations = names.iter().filter(|path| path.display().to_string().contains("..files-"));
    let tokens = generations.clone().filter(|generation| generation.join("token").exists()).count();
    !has_token(bed) && tokens == 0 && generations.count() == 1
}

#[test]
fn the_addresses_of_a_pod_are_verified_once_it_has_some_and_is_seen() {
    on_a_bed(async |bed| {
        verify(&bed, AddressVerification::Eventual);
        bed.networks.set(Sight::Nobody);
        bed.publish().await.unwrap();
        assert!(has_token(&bed));
        bed.settle().await;
        assert_eq!(bed.networks.looks.load(std::sync::atomic::Ordering::SeqCst), 0, "nothing to compare yet");
        bed.controller.tell(UID, &[ADDRESS]);
        pass(5 * 60_000).await; // it pulls its image
        let looks = bed.networks.looks.load(std::sync::atomic::Ordering::SeqCst);
        assert!((15..60).contains(&looks), "{looks} looks");
        assert_eq!(shown(&bed), []);
        bed.networks.set(pod(&[ADDRESS]));
        pass(16_000).await;
        assert_eq!(shown(&bed), [Some(observed(&[ADDRESS]))]);
        let verified = bed.record().unwrap().verified_addresses;
        assert_eq!(verified, BTreeSet::from([ADDRESS.parse().unwrap()]));
        let looks = bed.networks.looks.load(std::sync::atomic::Ordering::SeqCst);
        pass(DAY).await;
        bed.publish().await.unwrap();
        pass(60_000).await;
        assert_eq!(bed.networks.looks.load(std::sync::atomic::Ordering::SeqCst), looks, "once is enough");
    });
}

#[test]
fn other_addresses_are_verified_anew_and_the_same_are_not() {
    on_a_bed(async |mut bed| {
        verify(&bed, AddressVerification::Eventual);
        bed.networks.set(pod(&[ADDRESS]));
        bed.controller.tell(UID, &[ADDRESS]);
        bed.publish().await.unwrap();
        pass(2_000).await;
        assert_eq!(shown(&bed).len(), 1);
        bed.controller.end_streams();
        bed.restart_driver().await;
        bed.publish().await.unwrap();
        pass(60_000).await;
        bed.controller.tell(UID, &[ADDRESS]);
        pass(60_000).await;
        assert_eq!(shown(&bed).len(), 1, "a restart forgets nothing");
        bed.networks.set(pod(&["10.1.2.4"]));
        bed.controller.tell(UID, &["10.1.2.4"]);
        pass(2_000).await;
        assert_eq!(shown(&bed)[1..], [Some(observed(&["10.1.2.4"]))]);
    });
}

#[test]
fn what_is_unclear_is_told_so() {
    on_a_bed(async |bed| {
        verify(&bed, AddressVerification::Eventual);
        bed.networks.set(Sight::Unclear("two networks".to_owned()));
        bed.controller.tell(UID, &[ADDRESS]);
        bed.controller.lock().outcome = Some(revoked("ADDRESS_UNCLEAR", "mend it"));
        bed.publish().await.unwrap();
        pass(3_000).await;
        let told = ObservedAddresses { unclear: "two networks".to_owned(), ..Default::default() };
        assert_eq!(shown(&bed), [Some(told)]);
        assert!(is_wiped(&bed));
    });
}

#[test]
fn addresses_are_not_verified_where_that_is_off() {
    on_a_bed(async |bed| {
        verify(&bed, AddressVerification::Off);
        bed.networks.set(pod(&["10.9.9.9"]));
        bed.controller.tell(UID, &[ADDRESS]);
        bed.publish().await.unwrap();
        pass(DAY / 2).await;
        assert_eq!(shown(&bed), []);
    });
}

#[test]
fn a_revoked_token_is_wiped_at_once_and_the_volume_says_why() {
    on_a_bed(async |mut bed| {
        verify(&bed, AddressVerification::Eventual);
        bed.publish().await.unwrap();
        bed.networks.set(pod(&["10.9.9.9"]));
        bed.controller.lock().outcome = Some(revoked("ADDRESS_MISMATCH", "the pod is elsewhere"));
        bed.controller.tell(UID, &[ADDRESS]);
        bed.settle().await;
        assert!(is_wiped(&bed));
        let stopped = json!({"reason": "ADDRESS_MISMATCH", "message": "the pod is elsewhere"});
        assert_eq!((&said(&bed)["stopped"], &said(&bed)["tokens"]), (&stopped, &json!([])));
        // Nothing brings it back, and nothing is done for it.
        let calls = bed.controller.lock().shown.len();
        for _ in 0..2 {
            bed.publish().await.unwrap();
            pass(DAY).await;
            assert!(is_wiped(&bed));
            assert_eq!(bed.record().unwrap().phase, Phase::Stopped);
            bed.restart_driver().await;
        }
        assert_eq!(bed.controller.lock().shown.len(), calls);
        assert_eq!(bed.controller.live(), [0u8; 0]);
        assert_eq!(said(&bed)["stopped"], stopped);
        bed.unpublish().await.unwrap();
        bed.assert_nothing_left().await;
    });
}

#[test]
fn the_tokens_of_a_revoked_volume_are_released_whatever_the_controller_could_cancel() {
    on_a_bed(async |mut bed| {
        verify(&bed, AddressVerification::Eventual);
        bed.publish().await.unwrap();
        bed.networks.set(pod(&["10.9.9.9"]));
        bed.controller.lock().outcome = Some(revoked("USER_UNKNOWN", "the user is gone"));
        bed.controller.lock().ties_nothing = true;
        bed.controller.tell(UID, &[ADDRESS]);
        bed.settle().await;
        assert!(is_wiped(&bed));
        assert_eq!(bed.controller.live(), [0u8; 0]);
        let record = bed.record().unwrap();
        assert_eq!((record.phase, record.tokens.len()), (Phase::Stopped, 0));
        bed.restart_driver().await;
        bed.publish().await.unwrap();
        assert!(is_wiped(&bed));
        bed.unpublish().await.unwrap();
        bed.unpublish().await.unwrap();
        bed.assert_nothing_left().await;
    });
}

#[test]
fn a_stopped_volume_whose_tokens_were_not_released_yet_releases_them_at_the_next_start() {
    on_a_bed(async |mut bed| {
        verify(&bed, AddressVerification::Eventual);
        bed.publish().await.unwrap();
        let tokens = bed.record().unwrap().tokens;
        bed.settle().await;
        bed.networks.set(pod(&["10.9.9.9"]));
        bed.controller.lock().outcome = Some(revoked("USER_UNKNOWN", "the user is gone"));
        bed.controller.lock().ties_nothing = true;
        // A disk without room for the released record.
        let released = bed.state().join("released");
        fs::rename(&released, bed.state().join("away")).unwrap();
        bed.controller.tell(UID, &[ADDRESS]);
        bed.settle().await;
        assert_eq!(bed.controller.live(), [0u8; 0], "cancelled from memory");
        assert_eq!(bed.record().unwrap().tokens, tokens, "not forgotten");
        // As if the process had ended before it could.
        bed.stop_driver().await;
        bed.controller.lock().tokens.get_mut(&1).unwrap().cancelled = false;
        bed.restart_driver().await;
        pass(11_000).await;
        assert_eq!(bed.controller.live(), [0u8; 0]);
        assert_eq!((bed.record().unwrap().phase, bed.record().unwrap().tokens.len()), (Phase::Stopped, 0));
        assert!(is_wiped(&bed));
        bed.unpublish().await.unwrap();
        bed.assert_nothing_left().await;
    });
}

#[test]
fn a_crash_before_the_wipe_is_made_up_for() {
    on_a_bed(async |mut bed| {
        bed.publish().await.unwrap();
        bed.stop_driver().await;
        let mut record = bed.record().unwrap();
        record.phase = Phase::Stopped;
        let store = crate::volume::store::Store::open(&bed.state()).unwrap();
        store.put(&record).unwrap();
        assert!(has_token(&bed));
        bed.restart_driver().await;
        assert!(is_wiped(&bed));
    });
}

#[test]
fn a_stopped_volume_without_a_record_stays_stopped() {
    on_a_bed(async |mut bed| {
        verify(&bed, AddressVerification::Eventual);
        bed.publish().await.unwrap();
        bed.networks.set(pod(&[]));
        bed.controller.lock().outcome = Some(revoked("ADDRESS_MISMATCH", "the pod is elsewhere"));
        bed.controller.tell(UID, &[ADDRESS]);
        bed.settle().await;
        fs::remove_file(bed.record_file()).unwrap();
        bed.restart_driver().await;
        bed.publish().await.unwrap();
        assert!(is_wiped(&bed));
        assert_eq!(bed.record().unwrap().phase, Phase::Stopped);
        bed.unpublish().await.unwrap();
        bed.assert_nothing_left().await;
    });
}

#[test]
fn a_full_disk_does_not_save_a_revoked_token() {
    on_a_bed(async |bed| {
        bed.controller.lock().check_after_seconds = 900;
        bed.publish().await.unwrap();
        bed.controller.lock().outcome = Some(revoked("DO_AS_NOT_MEMBER", "join the group"));
        // The volume has no room for another file.
        fs::write(bed.target().join("full"), vec![0; 1024 * 1024]).unwrap_err();
        pass(HOUR).await;
        assert!(!has_token(&bed));
        assert_eq!(bed.controller.live(), [0u8; 0]);
        fs::remove_file(bed.target().join("full")).unwrap();
    });
}

#[test]
fn volumes_are_checked_as_often_as_the_controller_says() {
    on_a_bed(async |mut bed| {
        bed.controller.lock().check_after_seconds = 900;
        bed.publish().await.unwrap();
        pass(HOUR * 10).await;
        let checks = shown(&bed).len();
        assert!((40..=45).contains(&checks), "{checks} in ten hours");
        assert!(shown(&bed).iter().all(Option::is_none));
        bed.restart_driver().await;
        bed.publish().await.unwrap();
        pass(HOUR).await;
        let more = shown(&bed).len() - checks;
        assert!((3..=6).contains(&more), "{more} in an hour after a restart");
        bed.controller.lock().outcome = Some(revoked("DO_AS_NOT_MEMBER", "join the group"));
        pass(900_000).await;
        assert!(is_wiped(&bed));
        assert_eq!(said(&bed)["stopped"]["reason"], "DO_AS_NOT_MEMBER");
    });
}

#[test]
fn a_check_that_fails_takes_nothing_away_and_is_tried_again() {
    on_a_bed(async |bed| {
        verify(&bed, AddressVerification::Eventual);
        bed.controller.lock().check_after_seconds = 900;
        bed.publish().await.unwrap();
        bed.settle().await;
        bed.networks.set(pod(&[ADDRESS]));
        let down = refusal(Code::Unavailable, "DIRECTORY_UNREACHABLE", "the directory is down");
        bed.controller.lock().refuse = Some(down);
        bed.controller.tell(UID, &[ADDRESS]);
        pass(HOUR).await;
        assert!(has_token(&bed));
        let calls = bed.controller.lock().shown.len();
        assert!((20..80).contains(&calls), "{calls} calls");
        bed.controller.lock().refuse = None;
        pass(310_000).await;
        assert!(shown(&bed).contains(&Some(observed(&[ADDRESS]))), "{:?}", shown(&bed));
        assert!(has_token(&bed) && !bed.record().unwrap().verified_addresses.is_empty());
    });
}

#[test]
fn a_node_that_cannot_look_takes_nothing_away_and_looks_again() {
    on_a_bed(async |bed| {
        verify(&bed, AddressVerification::Eventual);
        bed.controller.tell(UID, &[ADDRESS]);
        bed.publish().await.unwrap();
        pass(HOUR).await;
        assert!(has_token(&bed) && shown(&bed).is_empty());
        bed.networks.set(pod(&[ADDRESS]));
        pass(301_000).await;
        assert_eq!(shown(&bed).len(), 1);
    });
}

#[test]
fn strict_volumes_get_their_token_when_the_addresses_are_verified() {
    on_a_bed(async |bed| {
        verify(&bed, AddressVerification::Strict);
        bed.networks.set(Sight::Nobody);
        bed.publish().await.unwrap();
        assert_eq!((bed.mounts(), has_token(&bed), bed.controller.live()), (1, false, vec![]));
        assert_eq!(said(&bed)["waiting"], "for the API server to know the pod's addresses");
        assert_eq!(bed.record().unwrap().phase, Phase::Waiting);
        bed.publish().await.unwrap();
        pass(60_000).await;
        assert!(!has_token(&bed));
        bed.controller.tell(UID, &[ADDRESS]);
        bed.settle().await;
        assert_eq!(said(&bed)["waiting"], FOR_A_PROCESS);
        bed.publish().await.unwrap();
        bed.networks.set(pod(&[ADDRESS]));
        pass(1_000).await;
        assert_eq!(shown(&bed), [Some(observed(&[ADDRESS]))]);
        assert!(has_token(&bed));
        assert_eq!((&said(&bed)["user"], said(&bed).get("waiting")), (&json!("etl"), None));
        let record = bed.record().unwrap();
        assert_eq!((record.phase, record.verified_addresses.len()), (Phase::Published, 1));
        let before = bed.snapshot();
        bed.publish().await.unwrap();
        assert_eq!(bed.snapshot(), before);
        pass(DAY).await;
        assert_eq!(bed.controller.renewals(1), 1, "it is renewed like any other");
        bed.unpublish().await.unwrap();
        bed.assert_nothing_left().await;
    });
}

#[test]
fn a_strict_pod_whose_addresses_were_known_before_its_mount_has_its_token_at_once() {
    on_a_bed(async |bed| {
        verify(&bed, AddressVerification::Strict);
        bed.networks.set(pod(&[ADDRESS]));
        // Another pod's volume, for which the stream is open.
        bed.volumes().pods.add("another-pod", &VolumeId::of("another-pod", "hadoop"));
        bed.settle().await;
        bed.controller.tell(UID, &[ADDRESS]);
        bed.settle().await;
        bed.publish().await.unwrap();
        bed.settle().await;
        assert!(has_token(&bed));
        assert_eq!(bed.controller.lock().opened_streams, 1);
    });
}

#[test]
fn a_strict_volume_that_is_refused_says_why_and_stays_empty() {
    on_a_bed(async |bed| {
        verify(&bed, AddressVerification::Strict);
        bed.publish().await.unwrap();
        bed.settle().await; // the stream is open
        bed.networks.set(pod(&["10.9.9.9"]));
        let refused = refusal(Code::PermissionDenied, "ADDRESS_MISMATCH", "the pod is elsewhere");
        bed.controller.lock().refuse = Some(refused);
        bed.controller.tell(UID, &[ADDRESS]);
        pass(10_000).await;
        assert_eq!(
            said(&bed)["stopped"],
            json!({"reason": "ADDRESS_MISMATCH", "message": "the pod is elsewhere"})
        );
        bed.controller.lock().refuse = None;
        bed.publish().await.unwrap();
        pass(HOUR).await;
        assert_eq!((has_token(&bed), bed.controller.live()), (false, vec![]));
        bed.unpublish().await.unwrap();
        bed.assert_nothing_left().await;
    });
}

#[test]
fn a_strict_volume_waits_on_while_somebody_mends_what_is_not_about_its_pod() {
    on_a_bed(async |bed| {
        verify(&bed, AddressVerification::Strict);
        bed.networks.set(pod(&[ADDRESS]));
        bed.publish().await.unwrap();
        bed.settle().await;
        let denied = refusal(Code::PermissionDenied, "IMPERSONATION_DENIED", "the NameNode does not let us");
        bed.controller.lock().refuse = Some(denied);
        bed.controller.tell(UID, &[ADDRESS]);
        bed.settle().await;
        assert_eq!(bed.record().unwrap().phase, Phase::Waiting);
        assert_eq!(said(&bed)["waiting"], "until this is over: the NameNode does not let us");
        let outdated = refusal(Code::FailedPrecondition, "KEYTAB_OUTDATED", "export a new keytab");
        bed.controller.lock().refuse = Some(outdated);
        pass(HOUR).await;
        bed.controller.lock().refuse = None;
        pass(301_000).await;
        assert!(has_token(&bed));
    });
}

#[test]
fn a_strict_volume_says_what_fails_and_waits_on() {
    on_a_bed(async |bed| {
        verify(&bed, AddressVerification::Strict);
        bed.publish().await.unwrap();
        bed.settle().await;
        bed.networks.set(pod(&[ADDRESS]));
        let changing = refusal(Code::Unavailable, "ADDRESS_CHANGING", "the addresses are changing");
        bed.controller.lock().refuse = Some(changing);
        bed.controller.tell(UID, &[ADDRESS]);
        bed.settle().await;
        assert_eq!(said(&bed)["waiting"], "until this is over: the addresses are changing");
        bed.controller.lock().refuse = None;
        pass(5_000).await;
        assert!(has_token(&bed));
    });
}

#[test]
fn a_volume_on_which_somebody_works_for_long_holds_up_no_other() {
    on_a_bed(async |bed| {
        verify(&bed, AddressVerification::Strict);
        bed.networks.set(Sight::Nobody);
        bed.publish().await.unwrap();
        bed.settle().await;
        let looks = || bed.networks.looks.load(std::sync::atomic::Ordering::SeqCst);
        let working = bed.volumes().lock_volume(&bed.record().unwrap().volume.id).await;
        bed.controller.tell(UID, &[ADDRESS]);
        pass(10_000).await;
        assert!(looks() > 5, "{} looks", looks());
        bed.networks.set(pod(&[ADDRESS]));
        pass(60_000).await;
        assert_eq!((bed.controller.lock().tokens.len(), has_token(&bed)), (0, false));
        drop(working);
        pass(60_000).await;
        assert!(has_token(&bed));
    });
}

#[test]
fn a_strict_volume_waits_on_after_a_restart() {
    on_a_bed(async |mut bed| {
        verify(&bed, AddressVerification::Strict);
        bed.networks.set(pod(&[ADDRESS]));
        bed.publish().await.unwrap();
        bed.restart_driver().await;
        bed.controller.tell(UID, &[ADDRESS]);
        pass(10_000).await;
        assert!(!has_token(&bed), "nobody may ask without the pod's own token");
        bed.publish().await.unwrap();
        bed.settle().await;
        assert!(has_token(&bed));
    });
}

#[test]
fn a_crash_between_issue_and_file_cancels_the_token_and_waits_on() {
    on_a_bed(async |mut bed| {
        verify(&bed, AddressVerification::Strict);
        bed.networks.set(pod(&[ADDRESS]));
        bed.controller.tell(UID, &[ADDRESS]);
        bed.publish().await.unwrap();
        bed.settle().await;
        assert_eq!(bed.controller.live(), [1]);
        bed.stop_driver().await;
        // As it is recorded before the file is written.
        let mut record = bed.record().unwrap();
        record.phase = Phase::Waiting;
        crate::volume::store::Store::open(&bed.state()).unwrap().put(&record).unwrap();
        bed.restart_driver().await;
        bed.publish().await.unwrap();
        pass(11_000).await;
        assert_eq!((bed.controller.live(), has_token(&bed)), (vec![2], true));
        bed.unpublish().await.unwrap();
        bed.assert_nothing_left().await;
    });
}

#[test]
fn a_token_that_cannot_be_written_into_a_strict_volume_is_cancelled_and_got_again() {
    on_a_bed(async |bed| {
        verify(&bed, AddressVerification::Strict);
        bed.networks.set(pod(&[ADDRESS]));
        bed.publish().await.unwrap();
        let full = bed.target().join("full");
        fs::write(&full, vec![0; 1024 * 1024]).unwrap_err();
        bed.controller.tell(UID, &[ADDRESS]);
        pass(2_000).await;
        assert!(!has_token(&bed));
        assert_eq!(bed.controller.live(), [0u8; 0]);
        fs::remove_file(full).unwrap();
        pass(60_000).await;
        assert!(has_token(&bed));
        assert_eq!(bed.controller.live().len(), 1);
    });
}

#[test]
fn a_strict_pod_that_ends_while_it_waits_leaves_nothing() {
    on_a_bed(async |bed| {
        verify(&bed, AddressVerification::Strict);
        bed.publish().await.unwrap();
        bed.unpublish().await.unwrap();
        bed.controller.tell(UID, &[ADDRESS]);
        bed.networks.set(pod(&[ADDRESS]));
        pass(HOUR).await;
        assert_eq!(bed.controller.lock().tokens.len(), 0);
        bed.assert_nothing_left().await;
    });
}

#[test]
fn a_development_installation_is_told_in_the_volume() {
    on_a_bed(async |bed| {
        bed.controller.lock().unsealed = true;
        bed.publish().await.unwrap();
        let warning = said(&bed)["warning"].as_str().unwrap().to_owned();
        assert!(warning.contains("annotations that nobody sealed"), "{warning}");
        assert!(bed.record().unwrap().unsealed);
    });
}

#[tokio::test(start_paused = true)]
async fn all_that_is_due_is_taken_at_once() {
    let agenda = crate::refresh::queue::Agenda::new();
    for (key, seconds) in [("a", 1), ("b", 1), ("c", 9)] {
        agenda.insert(key, Instant::now() + Duration::from_secs(seconds));
    }
    assert_eq!(agenda.all_due(), [""; 0]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(agenda.all_due(), ["a", "b"]);
    assert!(agenda.contains(&"c"));
}
