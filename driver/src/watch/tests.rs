//! The stream over hours of the bed's time.

use std::fs;

use tonic::Status;

use super::*;
use crate::{
    bed::{Bed, DAY, HOUR, on_a_bed, pass},
    publish_request::tests::UID,
    volume::Phase,
};

#[test]
fn a_node_without_volumes_has_no_stream() {
    on_a_bed(async |bed| {
        pass(HOUR).await;
        assert_eq!((bed.controller.watchers(), bed.controller.lock().opened_streams), (0, 0));
        bed.publish().await.unwrap();
        bed.settle().await;
        assert_eq!(bed.controller.watchers(), 1);
        bed.unpublish().await.unwrap();
        bed.settle().await;
        assert_eq!(bed.controller.watchers(), 0);
    });
}

#[test]
fn a_stream_that_ends_is_opened_again_and_tells_what_was_missed() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        bed.settle().await;
        bed.controller.end_streams();
        bed.controller.tell(UID, &["10.1.2.3"]);
        pass(11_000).await;
        assert_eq!(bed.controller.watchers(), 1);
        assert_eq!(bed.volumes().pods.addresses(UID), ["10.1.2.3".parse().unwrap()].into());
    });
}

#[test]
fn a_controller_that_is_down_is_tried_again_ever_less_often() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        bed.settle().await;
        bed.controller.stop();
        pass(HOUR).await;
        bed.controller.start();
        bed.controller.lock().refuse = Some(Status::unimplemented("an older controller"));
        let before = bed.controller.lock().opened_streams;
        pass(HOUR).await;
        let tried = bed.controller.lock().opened_streams - before;
        assert!((10..=30).contains(&tried), "{tried} times in an hour");
        bed.controller.lock().refuse = None;
        pass(301_000).await;
        assert_eq!(bed.controller.watchers(), 1);
    });
}

/// No byte of a token anywhere in the volume.
fn is_wiped(bed: &Bed) -> bool {
    let files = fs::read_dir(bed.target()).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.join("token").exists()).count() == 0 && !bed.target().join("token").exists()
}

#[test]
fn a_revoked_token_is_wiped_at_once_and_the_volume_gets_no_other() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        bed.publish_for("another-pod").await.unwrap();
        bed.settle().await;
        bed.controller.revoke(UID, 1);
        pass(100).await;
        assert!(is_wiped(&bed));
        let record = bed.record().unwrap();
        assert_eq!(
            (record.phase, record.stopped.unwrap().reason.as_str()),
            (Phase::Stopped, "TOKEN_REVOKED")
        );
        assert_eq!(bed.controller.live(), [2]);
        bed.publish().await.unwrap();
        bed.controller.rotate(UID);
        pass(DAY).await;
        assert_eq!((bed.mounts(), bed.controller.live()), (1, vec![2]), "kubelet keeps an empty volume");
        bed.unpublish().await.unwrap();
    });
}

#[test]
fn what_a_volume_does_not_hold_is_not_taken_from_it() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        bed.settle().await;
        bed.controller.rotate(UID);
        pass(1_000).await;
        bed.controller.revoke(UID, 1); // its predecessor
        bed.controller.revoke("another-pod", 2);
        let nonsense = Revoke { volume_id: "nonsense".to_owned(), ..Revoke::default() };
        bed.controller.say(Event::Revoke(nonsense));
        pass(1_000).await;
        assert!(bed.target().join("token").exists());
        assert_eq!(bed.record().unwrap().sequence_numbers(), [2]);
    });
}

#[test]
fn each_stream_begins_with_what_the_node_holds() {
    on_a_bed(async |mut bed| {
        bed.publish().await.unwrap();
        bed.settle().await;
        bed.controller.rotate(UID);
        pass(1_000).await;
        bed.publish_for("another-pod").await.unwrap();
        bed.restart_driver().await;
        bed.settle().await;
        let mut held = bed.controller.lock().held_by_node.clone();
        let mut last = held.pop().unwrap();
        last.sort_unstable();
        assert_eq!((&held[0], last), (&vec![1], vec![2, 3]));
    });
}

#[test]
fn a_stream_is_renewed_before_the_controller_ends_it_and_nobody_is_deaf_meanwhile() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        for _ in 0..60 {
            pass(60_000).await;
            assert_eq!(bed.controller.watchers(), 1);
        }
        let opened = bed.controller.lock().opened_streams;
        assert!((8..=13).contains(&opened), "{opened} in an hour");
    });
}

#[test]
fn thousands_of_streams_that_broke_at_once_do_not_come_back_at_once() {
    let unreachable = || CallError::Unreachable { address: String::new(), why: String::new() };
    // A controller is down for half a minute. When each node tries, and when it succeeds:
    let (mut attempts, mut back) = (Vec::new(), Vec::new());
    for _ in 0..4_000 {
        let (mut now, mut failures) = (Ended::Broken(None).wait(0, fastrand::f64()), 1);
        while now.as_secs() < 30 {
            attempts.push(now.as_secs());
            now += Ended::NotOpened(unreachable()).wait(failures, fastrand::f64());
            failures += 1;
        }
        back.push(now.as_secs());
    }
    let busiest =
        |seconds: &[u64]| (0..60).map(|at| seconds.iter().filter(|second| **second == at).count()).max();
    assert!(busiest(&attempts) < Some(1_000), "{:?} in a second", busiest(&attempts));
    assert!(busiest(&back) < Some(500), "{:?} in a second", busiest(&back));
    assert!(back.iter().all(|second| *second < 60), "nobody is deaf for more than half a minute longer");
}

#[test]
fn who_is_refused_waits_longer_than_who_hears_nothing() {
    let unreachable = CallError::Unreachable { address: String::new(), why: String::new() };
    let longest = |ended: Ended| ended.wait(100, 0.0).as_secs();
    assert_eq!(longest(Ended::NotOpened(unreachable)), 30);
    assert_eq!(longest(Ended::NotOpened(CallError::Refused(Status::unavailable("too many")))), 300);
    assert_eq!(longest(Ended::Broken(None)), 30);
    assert_eq!(Ended::InTime.wait(100, 0.5), Duration::ZERO);
}

#[test]
fn nothing_that_is_no_address_is_believed() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        bed.settle().await;
        bed.controller.tell(UID, &["10.1.2.3", "nonsense"]);
        bed.controller.tell("another-pod", &["10.1.2.4"]);
        bed.settle().await;
        assert_eq!(bed.volumes().pods.addresses(UID), [].into());
        assert_eq!(bed.volumes().pods.addresses("another-pod"), [].into());
    });
}
