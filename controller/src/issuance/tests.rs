//! Issuing against a NameNode that fails at chosen moments. What a real one does is tested on a real one.

use std::{
    collections::VecDeque,
    sync::{Mutex as SyncMutex, atomic::Ordering::SeqCst},
};

use tokio::sync::Notify;
use tonic::Code;

use super::*;
use crate::cluster::scripted::{INTERVAL, ISSUED, Scripted, denied, down};

struct Bed {
    issuer: Arc<Issuer>,
    name_node: Arc<Scripted>,
    tasks: TaskTracker,
}

fn bed(name_node: Scripted) -> Bed {
    let (name_node, tasks) = (Arc::new(name_node), TaskTracker::new());
    let permits = Arc::new(Semaphore::new(4));
    let issuer = Issuer::new("main".to_owned(), name_node.clone(), "csi".to_owned(), permits, tasks.clone());
    Bed { issuer: Arc::new(issuer), name_node, tasks }
}

impl Bed {
    async fn issue(&self) -> Result<Issued, Failure> {
        self.issuer.issue("etl".parse().unwrap(), "test".to_owned()).await
    }

    async fn settled(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_handed_over_is_left_alone() {
    let bed = bed(Scripted::default());
    let issued = bed.issue().await.unwrap();
    assert_eq!(issued.services, ["10.0.0.1:8020", "nn1:8020"]);
    issued.unclaimed.hand_over();
    bed.settled().await;
    assert_eq!(bed.name_node.cancelled(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_not_handed_over_is_cancelled() {
    let bed = bed(Scripted::default());
    let issued = bed.issue().await.unwrap();
    let identifier = issued.token.identifier.clone();
    drop(issued);
    bed.settled().await;
    assert_eq!(*bed.name_node.cancelled.lock().unwrap(), [identifier]);
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
    let permits = bed.issuer.permits.clone();
    let all = permits.acquire_many(4).await.unwrap();
    assert!(timeout(Duration::from_secs(1), bed.issue()).await.is_err());
    drop(all);
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
async fn an_abandoned_token_is_chased_until_the_namenode_is_back() {
    let errors: VecDeque<_> = (0..100).map(|_| down()).collect();
    let bed = bed(Scripted { cancel_errors: SyncMutex::new(errors), ..Scripted::default() });
    drop(bed.issue().await.unwrap());
    bed.name_node.cancellation().await;
    assert_eq!(bed.name_node.cancel_attempts.load(SeqCst), 101);
}

#[tokio::test(start_paused = true)]
async fn a_release_gives_up_soon_so_that_the_node_plugin_can_ask_again() {
    let errors: VecDeque<_> = (0..100).map(|_| down()).collect();
    let bed = bed(Scripted { cancel_errors: SyncMutex::new(errors), ..Scripted::default() });
    let begun = tokio::time::Instant::now();
    let failure = bed.issuer.cancel(b"identifier").await.err().unwrap();
    assert_eq!((failure.code(), failure.reason()), (Code::Unavailable, "NAMENODE_UNREACHABLE"));
    assert!(begun.elapsed() <= PATIENCE);
    assert!(bed.name_node.cancel_attempts.load(SeqCst) > 2);
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_that_is_refused_is_not_repeated() {
    let errors = VecDeque::from([denied()]);
    let bed = bed(Scripted { cancel_errors: SyncMutex::new(errors), ..Scripted::default() });
    let failure = bed.issuer.cancel(b"identifier").await.err().unwrap();
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
