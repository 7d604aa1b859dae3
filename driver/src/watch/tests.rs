//! The stream over hours of the bed's time.

use tonic::Status;

use crate::{
    bed::{HOUR, on_a_bed, pass},
    publish_request::tests::UID,
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
        pass(2_000).await;
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
