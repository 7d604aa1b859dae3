//! The log as calls use it: in order, in bursts, and when there is no room.

use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Instant,
};

use futures_util::future::join_all;
use prometheus_client::registry::Registry;

use super::{recorded::Recorded, sink::Partial, *};

fn record(pod: impl ToString) -> Record {
    let mut record = Record::new(Action::Issue, RequestId::random());
    record.pod = pod.to_string();
    record.granted();
    record
}

fn pods(recorded: &Recorded) -> Vec<String> {
    recorded.records().iter().map(|record| record["pod"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn records_are_there_in_order_when_the_call_goes_on() {
    let (audit, recorded) = Recorded::audit();
    for pod in 0..10 {
        audit.write(&record(pod)).await.unwrap();
        assert_eq!(recorded.records().len(), pod + 1);
    }
    assert_eq!(pods(&recorded), (0..10).map(|pod| pod.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn while_there_is_no_room_nothing_is_ready_and_nothing_is_lost() {
    let (audit, recorded) = Recorded::audit();
    audit.ready().await.unwrap();
    recorded.fill(true);
    let error = audit.write(&record("one")).await.unwrap_err();
    assert!(error.to_string().starts_with("the audit log cannot be written: "), "{error}");
    assert_eq!(audit.ready().await, Err(error));
    assert!(audit.write(&record("two")).await.is_err());
    recorded.fill(false);
    audit.ready().await.unwrap();
    audit.write(&record("three")).await.unwrap();
    assert_eq!(pods(&recorded), ["one", "two", "three"]);
}

#[tokio::test]
async fn what_was_not_written_is_written_without_being_asked_for() {
    let (audit, recorded) = Recorded::audit();
    recorded.fill(true);
    assert!(audit.write(&record("late")).await.is_err());
    recorded.fill(false);
    let begun = Instant::now();
    while recorded.records().is_empty() {
        assert!(begun.elapsed() < DEADLINE, "never written");
        tokio::task::yield_now().await;
    }
    assert_eq!(audit.state.failure(), None);
}

/// A disk that takes its time for each batch.
struct Slow {
    inner: LogFile,
    batches: Arc<AtomicUsize>,
    time: Duration,
}

impl Sink for Slow {
    #[allow(clippy::disallowed_methods)] // a thread of its own
    fn append(&mut self, lines: &[u8]) -> Result<(), Partial> {
        self.batches.fetch_add(1, SeqCst);
        thread::sleep(self.time);
        self.inner.append(lines)
    }
}

#[tokio::test]
async fn a_burst_shares_few_flushes_of_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let batches = Arc::new(AtomicUsize::new(0));
    let inner = LogFile::open(&path).unwrap();
    let slow = Slow { inner, batches: batches.clone(), time: Duration::from_millis(20) };
    let audit = Audit::start(slow, Metrics::register(&mut Registry::default(), [])).unwrap();
    let records: Vec<_> = (0..4000).map(record).collect();
    let outcomes = join_all(records.iter().map(|record| audit.write(record))).await;
    assert!(outcomes.iter().all(Result::is_ok));
    let text = std::fs::read_to_string(&path).unwrap();
    let pods: Vec<usize> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|record| record["pod"].as_str().unwrap().parse().unwrap())
        .collect();
    assert_eq!(pods, (0..4000).collect::<Vec<_>>());
    assert!(batches.load(SeqCst) < 20, "{batches:?} flushes");
}

#[tokio::test]
async fn more_than_can_wait_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let inner = LogFile::open(&folder.path().join("audit.log")).unwrap();
    let slow = Slow { inner, batches: Arc::default(), time: Duration::from_secs(1) };
    let audit = Audit::start(slow, Metrics::register(&mut Registry::default(), [])).unwrap();
    let records: Vec<_> = (0..3 * QUEUE).map(record).collect();
    let outcomes = join_all(records.iter().map(|record| audit.write(record))).await;
    let refused = outcomes.iter().filter(|outcome| **outcome == Err(AuditError::Full)).count();
    assert!((QUEUE..2 * QUEUE + 1).contains(&refused), "{refused} refused");
    assert_eq!(audit.state.queued.load(SeqCst), 0);
}

#[tokio::test]
async fn the_log_ends_with_its_last_user_having_written_everything() {
    let (audit, recorded) = Recorded::audit();
    drop(audit.send(Entry { line: record("last").line().unwrap(), answer: None }));
    drop(audit);
    let begun = Instant::now();
    while recorded.records().is_empty() {
        assert!(begun.elapsed() < DEADLINE, "never written");
        tokio::task::yield_now().await;
    }
}

#[test]
fn the_configuration_names_one_destination() {
    let destination = |json: &str| serde_json::from_str::<Section>(json).unwrap().destination();
    assert_eq!(destination("{}"), Ok(Destination::Stdout));
    assert_eq!(destination(r#"{"stdout":true}"#), Ok(Destination::Stdout));
    assert_eq!(destination(r#"{"file":"/a"}"#), Ok(Destination::File("/a".into())));
    for wrong in [r#"{"file":"/a","stdout":true}"#, r#"{"stdout":false}"#, r#"{"file":"a"}"#] {
        assert!(destination(wrong).is_err(), "{wrong}");
    }
}
