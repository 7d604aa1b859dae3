//! Events that are repeated, too many, too long, or not taken.

use axum::http::StatusCode;
use tokio::time::{advance, sleep};

use super::*;
use crate::caller::fake::FakeApiServer;

fn pod(number: usize) -> PodReference {
    PodReference { namespace: "jobs".to_owned(), name: format!("etl-{number}"), uid: format!("u-{number}") }
}

struct Bed {
    fake: FakeApiServer,
    events: Events,
    stop: CancellationToken,
}

impl Bed {
    async fn new() -> Self {
        let (fake, stop) = (FakeApiServer::default(), CancellationToken::new());
        let (events, writer) = Events::new(fake.serve().await.client(), "replica-1".to_owned());
        tokio::spawn(writer.run(stop.clone()));
        Self { fake, events, stop }
    }

    async fn until(&self, what: &str, holds: impl Fn(&EventCounters) -> bool) {
        let counters = self.events.counters();
        let wait = timeout(Duration::from_secs(10), async {
            while !holds(&counters) {
                tokio::task::yield_now().await;
            }
        });
        assert!(wait.await.is_ok(), "{what}: {counters:?}");
    }
}

#[tokio::test]
async fn an_event_is_on_its_pod_and_says_what_to_change() {
    let bed = Bed::new().await;
    bed.events.publish(&pod(0), Severity::Warning, "USER_DENIED", "ask for another user");
    bed.until("written", |counters| counters.written.get() == 1).await;
    let event = bed.fake.answers().events.pop().unwrap();
    assert_eq!(event["metadata"]["namespace"], "jobs");
    assert_eq!(event["metadata"]["generateName"], "etl-0-");
    assert_eq!(event["regarding"]["kind"], "Pod");
    assert_eq!(event["regarding"]["name"], "etl-0");
    assert_eq!(event["regarding"]["uid"], "u-0");
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["reason"], "USER_DENIED");
    assert_eq!(event["note"], "ask for another user");
    assert_eq!(event["reportingController"], "hadoop-token.csi/controller");
    assert_eq!(event["reportingInstance"], "replica-1");
    assert!(event["action"].is_string() && event["eventTime"].is_string());
    bed.stop.cancel();
}

#[tokio::test]
async fn the_same_is_said_once_in_a_while_and_something_else_at_once() {
    let bed = Bed::new().await;
    for _ in 0..10 {
        bed.events.publish(&pod(0), Severity::Warning, "USER_DENIED", "first");
    }
    bed.events.publish(&pod(0), Severity::Warning, "SEAL_MISSING", "other reason");
    bed.events.publish(&pod(1), Severity::Warning, "USER_DENIED", "other pod");
    bed.until("three events", |counters| counters.written.get() == 3).await;
    let notes: Vec<_> =
        bed.fake.answers().events.iter().map(|event| event["note"].as_str().unwrap().to_owned()).collect();
    assert_eq!(notes, ["first", "other reason", "other pod"]);
    tokio::time::pause();
    advance(QUIET + Duration::from_secs(1)).await;
    tokio::time::resume();
    bed.events.publish(&pod(0), Severity::Warning, "USER_DENIED", "again");
    bed.until("a fourth", |counters| counters.written.get() == 4).await;
    assert_eq!(bed.events.counters().dropped.get(), 0);
}

#[tokio::test]
async fn a_flood_of_events_is_counted_and_not_written() {
    let (fake, flood) = (FakeApiServer::default(), 1000);
    // Nobody writes them.
    let (events, _writer) = Events::new(fake.serve().await.client(), String::new());
    for number in 0..flood {
        events.publish(&pod(number), Severity::Warning, "USER_DENIED", "no");
    }
    let dropped = events.counters().dropped.get();
    assert!(dropped >= (flood - BUFFER) as u64, "{dropped}");
    assert!(events.0.said().len() <= BUFFER);
}

#[tokio::test]
async fn an_event_that_is_not_taken_is_counted_and_may_be_said_again_at_once() {
    let bed = Bed::new().await;
    let status = r#"{"kind":"Status","status":"Failure","message":"events is forbidden","code":403}"#;
    bed.fake.answers().always = Some((StatusCode::FORBIDDEN, status.to_owned()));
    bed.events.publish(&pod(0), Severity::Warning, "USER_DENIED", "no");
    bed.until("failed", |counters| counters.failed.get() == 1).await;
    bed.fake.answers().always = None;
    while !bed.events.0.said().is_empty() {
        sleep(Duration::from_millis(1)).await;
    }
    bed.events.publish(&pod(0), Severity::Warning, "USER_DENIED", "no");
    bed.until("written", |counters| counters.written.get() == 1).await;
}

#[test]
fn an_event_of_a_pod_with_a_long_name_has_a_name_that_the_api_server_takes() {
    assert_eq!(name_prefix("etl-0"), "etl-0-");
    let long = format!("{}.{}", "a".repeat(MAX_NAME_PREFIX - 1), "b".repeat(190));
    assert_eq!(name_prefix(&long), format!("{}-", "a".repeat(MAX_NAME_PREFIX - 1)));
}

#[test]
fn a_long_text_is_cut_between_letters() {
    for letter in ["a", "ä", "€", "𝄞"] {
        let mut text = letter.repeat(2000);
        shorten(&mut text, MAX_NOTE);
        assert!(text.len() <= MAX_NOTE && text.len() > MAX_NOTE - 8 && text.ends_with('…'), "{}", text.len());
    }
    let mut text = "a".repeat(MAX_NOTE);
    shorten(&mut text, MAX_NOTE);
    assert_eq!(text.len(), MAX_NOTE);
}
