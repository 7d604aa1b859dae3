//! What a node hears, and when its stream ends.

use futures_util::StreamExt;
use tokio::time::Instant;

use super::*;
use crate::pod_watch::tests::{pod, watch_of};

async fn next(stream: &mut NodeStream) -> Option<(String, Vec<String>)> {
    let event = stream.next().await?.unwrap().event.unwrap();
    let wire::watch_event::Event::PodAddresses(pod) = event else { panic!("{event:?}") };
    Some((pod.pod_uid, pod.addresses))
}

#[tokio::test(start_paused = true)]
async fn a_node_hears_what_is_known_then_each_change() {
    let watch = watch_of([pod("u-1").ours_on("n-1").with("10.0.0.1")]);
    let mut stream = NodeStream::open(&watch, "n-1").unwrap();
    assert_eq!(next(&mut stream).await, Some(("u-1".to_owned(), vec!["10.0.0.1".to_owned()])));
    watch.put(pod("u-2").ours_on("n-1").with("10.0.0.2").with("fd00::2"));
    let both = vec!["10.0.0.2".to_owned(), "fd00::2".to_owned()];
    assert_eq!(next(&mut stream).await, Some(("u-2".to_owned(), both)));
    watch.delete(pod("u-1").ours_on("n-1"));
    assert_eq!(next(&mut stream).await, Some(("u-1".to_owned(), Vec::new())));
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_by_itself_after_about_ten_minutes() {
    let watch = watch_of([]);
    let (start, mut stream) = (Instant::now(), NodeStream::open(&watch, "n-1").unwrap());
    assert_eq!(next(&mut stream).await, None);
    assert!((480..=720).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}
