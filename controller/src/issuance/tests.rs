//! Issuing against a NameNode that fails at chosen moments. What a real one does is tested on a real one.

pub(crate) mod objects;
mod renewals;

use std::{
    collections::VecDeque,
    sync::{Mutex as SyncMutex, atomic::Ordering::SeqCst},
};

use axum::http::StatusCode;
use identity::VolumeId;
use prometheus_client::{encoding::text::encode, registry::Registry};
use serde_json::Value;
use tokio::sync::Notify;
use tonic::Code;

use self::objects::Objects;
use super::*;
use crate::{
    audit::{Action, RequestId, recorded::Recorded},
    cluster::scripted::{INTERVAL, ISSUED, LIFETIME, Scripted, denied, down},
    request::PodReference,
};

pub(crate) struct Bed {
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) name_node: Arc<Scripted>,
    pub(crate) objects: Objects,
    pub(crate) ledger: Ledger,
    pub(crate) tasks: TaskTracker,
    pub(crate) recorded: Recorded,
    pub(crate) registry: Registry,
}

pub(crate) fn bed(name_node: Scripted) -> Bed {
    let (name_node, tasks) = (Arc::new(name_node), TaskTracker::new());
    let bounds = Bounds { calls: 1, queue: 2 };
    let ((audit, recorded), mut registry) = (Recorded::audit(), Registry::default());
    let metrics = Metrics::register(&mut registry, ["main"]);
    let authority = name_node.clone();
    let (cluster, renewer) = ("main".to_owned(), "csi".to_owned());
    let objects = Objects::default();
    let ledger = Ledger::new(objects.client(), tasks.clone());
    let issuer =
        Issuer::new(cluster, authority, renewer, bounds, ledger.clone(), tasks.clone(), audit, metrics);
    Bed { issuer: Arc::new(issuer), name_node, objects, ledger, tasks, recorded, registry }
}

impl Bed {
    async fn issue(&self) -> Result<Issued, Failure> {
        let mut record = Record::new(Action::Issue, RequestId::random());
        record.pod = "etl-0".to_owned();
        self.issuer.issue("etl".parse().unwrap(), purpose(), record).await
    }

    async fn cancel(&self) -> Result<(), Failure> {
        let record = Record::new(Action::Release, RequestId::random());
        self.issuer.cancel(b"identifier", Cancelled::Released, &record).await
    }

    /// What there is, is deleted, and tells all that it takes to cancel it.
    #[track_caller]
    fn is_left_to_the_reaper(&self) {
        let [object] = self.objects.all().try_into().unwrap();
        assert!(object["metadata"].get("deletionTimestamp").is_some(), "{object}");
        assert_eq!(object["spec"]["token"]["maxDate"], ISSUED + LIFETIME, "{object}");
    }

    #[track_caller]
    fn counted(&self, line: &str) {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        assert!(text.lines().any(|there| there == line), "{line} is not in {text}");
    }

    pub(crate) async fn settled(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

pub(crate) fn purpose() -> Purpose {
    let (namespace, name, uid) = ("jobs".to_owned(), "etl-0".to_owned(), "uid".to_owned());
    let id = VolumeId::of(&uid, "token");
    let pod = PodReference { namespace, name, uid };
    let volume = VolumeReference { id, name: "token".to_owned(), pod };
    Purpose { volume, node: "node-1".to_owned(), submitter: "ann".to_owned(), scope: Scope::Pod }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_handed_over_is_left_alone() {
    let bed = bed(Scripted::default());
    let issued = bed.issue().await.unwrap();
    assert_eq!(issued.services, ["10.0.0.1:8020", "nn1:8020"]);
    issued.unclaimed.hand_over();
    bed.settled().await;
    assert_eq!(bed.name_node.cancelled(), 0);
    assert_eq!(bed.recorded.records().len(), 0);
    let [object] = bed.objects.all().try_into().unwrap();
    assert_eq!(
        (&object["spec"]["user"], &object["spec"]["cluster"], &object["spec"]["token"]["sequenceNumber"]),
        (&"etl".into(), &"main".into(), &0.into())
    );
    assert_eq!(object["status"]["renewDate"], ISSUED + INTERVAL);
    let text = object.to_string();
    assert!(!text.contains("password") && !text.contains("cGFzc3dvcmQ"), "a secret is in the ledger: {text}");
    bed.counted(r#"hadoop_token_csi_tokens_issued_total{cluster="main"} 1"#);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_not_handed_over_is_cancelled() {
    let bed = bed(Scripted::default());
    let issued = bed.issue().await.unwrap();
    let identifier = issued.token.identifier.clone();
    drop(issued);
    bed.settled().await;
    assert_eq!(*bed.name_node.cancelled.lock().unwrap(), [identifier]);
    assert_eq!(bed.objects.all(), Vec::<Value>::new());
    let [record] = bed.recorded.records().try_into().unwrap();
    assert_eq!(
        (&record["action"], &record["decision"], &record["why"]),
        (&"cancel".into(), &"granted".into(), &"NOT_HANDED_OVER".into())
    );
    assert_eq!(
        (&record["pod"], &record["user"], &record["cluster"]),
        (&"etl-0".into(), &"etl".into(), &"main".into())
    );
    assert_eq!(record["tokens"][0]["sequenceNumber"], 0);
    bed.counted(r#"hadoop_token_csi_tokens_cancelled_total{why="NOT_HANDED_OVER"} 1"#);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_cannot_be_cancelled_is_left_to_the_reaper_and_recorded_as_one_that_lives_on() {
    let errors = VecDeque::from([denied()]);
    let bed = bed(Scripted { cancel_errors: SyncMutex::new(errors), ..Scripted::default() });
    drop(bed.issue().await.unwrap());
    bed.settled().await;
    let [record] = bed.recorded.records().try_into().unwrap();
    assert_eq!((&record["decision"], &record["reason"]), (&"failed".into(), &"CANCEL_DENIED".into()));
    bed.is_left_to_the_reaper();
}

#[tokio::test(start_paused = true)]
async fn more_calls_than_may_wait_are_turned_away_before_anything_is_asked_for() {
    let bed = bed(Scripted::default());
    let busy = bed.issuer.gate.place().unwrap().turn().await;
    let waiting = [bed.issuer.place().unwrap(), bed.issuer.place().unwrap()];
    let failure = bed.issue().await.err().unwrap();
    assert_eq!((failure.code(), failure.reason()), (Code::Unavailable, "CONTROLLER_BUSY"));
    let failure = bed.cancel().await.err().unwrap();
    assert_eq!(failure.reason(), "CONTROLLER_BUSY");
    bed.counted(r#"hadoop_token_csi_hadoop_waiting{cluster="main"} 2"#);
    assert_eq!(bed.name_node.gets.load(SeqCst), 0);
    drop((busy, waiting));
    assert!(bed.issue().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_token_whose_caller_has_gone_away_is_cancelled() {
    let delivery = Arc::new(Notify::new());
    let bed = bed(Scripted { delivery: Some(delivery.clone()), ..Scripted::default() });
    let call = bed.issue();
    // The NameNode makes the token; before it arrives, the caller gives up.
    assert!(timeout(Duration::from_secs(1), call).await.is_err());
    assert_eq!(bed.name_node.gets.load(SeqCst), 1);
    delivery.notify_one();
    bed.settled().await;
    assert_eq!(bed.name_node.cancelled(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_namenode_that_is_late_is_named_and_its_token_cancelled() {
    let delivery = Arc::new(Notify::new());
    let bed = bed(Scripted { delivery: Some(delivery.clone()), ..Scripted::default() });
    let failure = bed.issue().await.err().unwrap();
    assert_eq!((failure.code(), failure.reason()), (Code::Unavailable, "HADOOP_LATE"));
    delivery.notify_one();
    bed.settled().await;
    assert_eq!(bed.name_node.cancelled(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_nobody_waits_for_asks_for_no_token() {
    let bed = bed(Scripted::default());
    let busy = bed.issuer.gate.place().unwrap().turn().await;
    assert!(timeout(Duration::from_secs(1), bed.issue()).await.is_err());
    drop(busy);
    bed.settled().await;
    assert_eq!(bed.name_node.gets.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_failure_after_the_token_was_got_cancels_it() {
    let name_node = Scripted { renew_error: SyncMutex::new(Some(down())), ..Scripted::default() };
    let bed = bed(name_node);
    let failure = bed.issue().await.err().unwrap();
    assert_eq!((failure.code(), failure.reason()), (Code::Unavailable, "NAMENODE_UNREACHABLE"));
    bed.settled().await;
    assert_eq!(bed.name_node.cancelled(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_token_of_another_user_is_cancelled_and_not_handed_out() {
    let bed = bed(Scripted { owner: Some("hdfs"), ..Scripted::default() });
    let failure = bed.issue().await.err().unwrap();
    assert_eq!(failure.reason(), "WRONG_TOKEN");
    bed.settled().await;
    assert_eq!(bed.name_node.cancelled(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_token_is_chased_until_the_namenode_or_the_api_server_is_back() {
    for api_server_is_back_first in [false, true] {
        let errors: VecDeque<_> = (0..100).map(|_| down()).collect();
        let bed = bed(Scripted { cancel_errors: SyncMutex::new(errors), ..Scripted::default() });
        bed.objects.kept().refuse_patch = Some(StatusCode::SERVICE_UNAVAILABLE);
        let failure = bed.issue().await.err().unwrap();
        assert_eq!((failure.code(), failure.reason()), (Code::Unavailable, "LEDGER_UNWRITABLE"));
        if api_server_is_back_first {
            bed.objects.kept().refuse_patch = None;
            bed.settled().await;
            assert_eq!(bed.name_node.cancelled(), 0);
            bed.is_left_to_the_reaper();
        } else {
            bed.name_node.cancellation().await;
            assert_eq!(bed.name_node.cancel_attempts.load(SeqCst), 101);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_for_that_the_ledger_does_not_know_of() {
    let bed = bed(Scripted::default());
    bed.objects.kept().refuse_creation = Some(StatusCode::FORBIDDEN);
    let failure = bed.issue().await.err().unwrap();
    assert_eq!((failure.code(), failure.reason()), (Code::Unavailable, "LEDGER_UNWRITABLE"));
    bed.settled().await;
    assert_eq!(bed.name_node.gets.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_the_ledger_cannot_take_is_cancelled_and_not_handed_out() {
    let bed = bed(Scripted::default());
    bed.objects.kept().refuse_patch = Some(StatusCode::FORBIDDEN);
    let failure = bed.issue().await.err().unwrap();
    assert_eq!(failure.reason(), "LEDGER_UNWRITABLE");
    bed.settled().await;
    assert_eq!(bed.name_node.cancelled(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_intent_lasts_exactly_as_long_as_there_may_be_a_token() {
    for (may_exist, left) in [(false, 0), (true, 1)] {
        let errors = VecDeque::from([NotGot { error: down(), may_exist }]);
        let bed = bed(Scripted { get_errors: SyncMutex::new(errors), ..Scripted::default() });
        let failure = bed.issue().await.err().unwrap();
        assert_eq!(failure.reason(), "NAMENODE_UNREACHABLE");
        bed.settled().await;
        let objects = bed.objects.all();
        assert_eq!(objects.len(), left, "may exist: {may_exist}");
        assert!(objects.iter().all(|object| object["spec"].get("token").is_none()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_whose_object_somebody_deleted_meanwhile_is_cancelled() {
    let delivery = Arc::new(Notify::new());
    let bed = bed(Scripted { delivery: Some(delivery.clone()), ..Scripted::default() });
    let meanwhile = async {
        while bed.name_node.gets.load(SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        for object in bed.objects.kept().by_name.values_mut() {
            object["metadata"]["deletionTimestamp"] = "2027-01-15T09:00:00Z".into();
        }
        delivery.notify_one();
    };
    let (issued, ()) = tokio::join!(bed.issue(), meanwhile);
    assert_eq!(issued.err().unwrap().reason(), "LEDGER_UNWRITABLE");
    bed.settled().await;
    assert_eq!((bed.name_node.cancelled(), bed.objects.all()), (1, Vec::new()));
}

#[tokio::test(start_paused = true)]
async fn an_intent_is_dated_by_the_namenodes_clock_once_that_is_known() {
    let bed = bed(Scripted::default());
    let first = bed.issue().await.unwrap();
    assert_eq!(first.server_date, Some(ISSUED));
    tokio::time::advance(Duration::from_secs(50)).await;
    let second = bed.issue().await.unwrap();
    assert_eq!(second.entry.requested_at, ISSUED + 50_000);
}

#[tokio::test(start_paused = true)]
async fn a_release_gives_up_soon_so_that_the_node_plugin_can_ask_again() {
    let errors: VecDeque<_> = (0..100).map(|_| down()).collect();
    let bed = bed(Scripted { cancel_errors: SyncMutex::new(errors), ..Scripted::default() });
    let begun = tokio::time::Instant::now();
    let failure = bed.cancel().await.err().unwrap();
    assert_eq!((failure.code(), failure.reason()), (Code::Unavailable, "NAMENODE_UNREACHABLE"));
    assert!(begun.elapsed() <= PATIENCE);
    assert!(bed.name_node.cancel_attempts.load(SeqCst) > 2);
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_that_is_refused_is_not_repeated() {
    let errors = VecDeque::from([denied()]);
    let bed = bed(Scripted { cancel_errors: SyncMutex::new(errors), ..Scripted::default() });
    let failure = bed.cancel().await.err().unwrap();
    assert_eq!((failure.code(), failure.reason()), (Code::FailedPrecondition, "CANCEL_DENIED"));
    assert_eq!(bed.name_node.cancel_attempts.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn the_renew_interval_is_learnt_once_in_a_while() {
    let bed = bed(Scripted::default());
    let first = bed.issue().await.unwrap();
    assert_eq!(first.renew_date, ISSUED + INTERVAL);
    assert_eq!(bed.issue().await.unwrap().renew_date, ISSUED + INTERVAL);
    assert_eq!(bed.name_node.renewals.load(SeqCst), 1);
    tokio::time::advance(INTERVAL_LIFETIME).await;
    assert_eq!(bed.issue().await.unwrap().renew_date, ISSUED + INTERVAL);
    assert_eq!(bed.name_node.renewals.load(SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn time_spent_on_learning_makes_no_later_date_too_late() {
    let bed = bed(Scripted { renew_after: Duration::from_secs(3), ..Scripted::default() });
    // The renewal was counted from three seconds after the issue.
    assert_eq!(bed.issue().await.unwrap().renew_date, ISSUED + 3_000 + INTERVAL);
    assert_eq!(bed.issue().await.unwrap().renew_date, ISSUED + INTERVAL);
}
