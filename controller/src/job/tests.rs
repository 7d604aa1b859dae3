//! Sharing, against a NameNode and API servers that do as they are told.

use std::{collections::VecDeque, sync::atomic::Ordering::SeqCst};

use futures_util::future::join_all;
use identity::VolumeId;
use serde_json::json;

use super::*;
use crate::{
    audit::{Action, RequestId},
    caller::fake::FakeApiServer,
    cluster::{
        NotGot,
        scripted::{ISSUED, LIFETIME, Scripted, down},
    },
    issuance::{
        self,
        tests::{bed, purpose},
    },
    ledger::Scope,
    request::{PodReference, VolumeReference},
};

struct Bed {
    hadoop: issuance::tests::Bed,
    pods: FakeApiServer,
    jobs: Arc<Jobs>,
    key: JobKey,
}

impl Bed {
    /// Pods 0 to 99 of one job are there.
    async fn new(name_node: Scripted) -> Self {
        let (hadoop, pods) = (bed(name_node), FakeApiServer::default());
        let live = |number: usize| {
            let metadata = json!({"name": format!("etl-{number}"), "uid": format!("uid-{number}")});
            (format!("jobs/etl-{number}"), json!({"metadata": metadata, "status": {"phase": "Running"}}))
        };
        pods.answers().pods = (0..100).map(live).collect();
        let jobs = Arc::new(Jobs::new(hadoop.ledger.clone(), pods.serve().await));
        let user = "etl".parse().unwrap();
        let key = JobKey {
            namespace: "jobs".to_owned(),
            owner: "job-1".to_owned(),
            user,
            cluster: "main".to_owned(),
        };
        Self { hadoop, pods, jobs, key }
    }

    async fn token(&self, number: usize, held: &[ReleasedToken]) -> Result<Issued, Failure> {
        let (name, uid) = (format!("etl-{number}"), format!("uid-{number}"));
        let (id, name_of_volume) = (VolumeId::of(&uid, "token"), "token".to_owned());
        let pod = PodReference { namespace: "jobs".to_owned(), name, uid };
        let volume = VolumeReference { id, name: name_of_volume, pod };
        let purpose = Purpose { volume, scope: Scope::Job, ..purpose() };
        let record = Record::new(Action::Issue, RequestId::random());
        self.jobs.token(&self.key, &self.hadoop.issuer, purpose, held, &record).await
    }

    async fn number(&self, number: usize) -> i32 {
        let issued = self.token(number, &[]).await.unwrap();
        let number = issued.identifier.sequence_number;
        issued.unclaimed.hand_over();
        number
    }

    fn gets(&self) -> u64 {
        self.hadoop.name_node.gets.load(SeqCst)
    }
}

#[tokio::test]
async fn many_pods_at_once_cost_one_token_and_one_write_each() {
    let bed = Bed::new(Scripted::default()).await;
    let tokens = join_all((0..100).map(|number| bed.token(number, &[]))).await;
    let tokens: Vec<_> = tokens.into_iter().map(Result::unwrap).collect();
    assert_eq!(bed.gets(), 1);
    let objects = bed.hadoop.objects.all();
    assert_eq!(objects.len(), 100);
    assert!(objects.iter().all(|object| object["spec"]["token"]["sequenceNumber"] == 0));
    assert!(objects.iter().all(|object| object["spec"]["scope"] == "job"));
    assert_eq!(
        bed.hadoop.objects.kept().writes,
        101,
        "an intent, what came of it, and one for each other pod"
    );
    assert!(bed.pods.answers().requests < 20, "{} looks at pods", bed.pods.answers().requests);
    for issued in tokens {
        issued.unclaimed.hand_over();
    }
}

#[tokio::test]
async fn another_user_or_job_has_another_token() {
    let bed = Bed::new(Scripted::default()).await;
    assert_eq!(bed.number(0).await, 0);
    let other = Bed { key: JobKey { owner: "job-2".to_owned(), ..bed.key.clone() }, ..bed };
    assert_eq!(other.number(1).await, 1);
    let user = "ads".parse().unwrap();
    let other = Bed { key: JobKey { user, ..other.key.clone() }, ..other };
    assert_eq!(other.number(2).await, 2);
}

#[tokio::test]
async fn a_token_that_did_not_reach_its_first_pod_is_nobody_elses() {
    let bed = Bed::new(Scripted::default()).await;
    drop(bed.token(0, &[]).await.unwrap());
    bed.hadoop.settled().await;
    assert_eq!(bed.hadoop.name_node.cancelled(), 0, "cancelled, although others may have it");
    assert_eq!(bed.number(1).await, 1);
    bed.hadoop.settled().await;
    let left = bed.hadoop.objects.all();
    let alive = |object: &&serde_json::Value| object["metadata"].get("deletionTimestamp").is_none();
    assert_eq!(left.iter().filter(alive).count(), 1, "{left:?}");
}

/// What the ledger's objects become.
fn all(bed: &Bed, change: impl Fn(&mut serde_json::Value)) {
    bed.hadoop.objects.kept().by_name.values_mut().for_each(change);
}

fn deleted(object: &mut serde_json::Value) {
    object["metadata"]["deletionTimestamp"] = json!("2027-01-15T09:00:00Z");
}

#[tokio::test]
async fn a_token_whose_pods_have_all_ended_is_shared_until_the_reaper_begins_to_cancel_it() {
    let bed = Bed::new(Scripted::default()).await;
    assert_eq!(bed.number(0).await, 0);
    bed.pods.answers().pods.get_mut("jobs/etl-0").unwrap()["status"]["phase"] = json!("Succeeded");
    assert_eq!(bed.number(1).await, 0);
    bed.pods.answers().pods.retain(|name, _| name == "jobs/etl-2");
    all(&bed, deleted);
    assert_eq!(bed.number(2).await, 0);
    bed.pods.answers().pods.clear();
    all(&bed, |object| object["status"]["phase"] = json!("Cancelling"));
    assert_eq!(bed.number(3).await, 1);
}

#[tokio::test]
async fn a_token_that_somebody_took_from_a_pod_is_shared_no_more() {
    let bed = Bed::new(Scripted::default()).await;
    assert_eq!(bed.number(0).await, 0);
    all(&bed, deleted);
    assert_eq!(bed.number(1).await, 1);
}

#[tokio::test]
async fn who_got_it_long_ago_vouches_for_a_token_when_those_who_got_it_last_have_ended() {
    let bed = Bed::new(Scripted::default()).await;
    for number in 0..10 {
        assert_eq!(bed.number(number).await, 0);
    }
    bed.pods.answers().pods.retain(|name, _| name == "jobs/etl-0" || name == "jobs/etl-10");
    assert_eq!(bed.number(10).await, 0);
}

#[tokio::test]
async fn pods_that_replace_their_token_share_the_next_one() {
    let bed = Bed::new(Scripted::default()).await;
    let first = bed.token(0, &[]).await.unwrap();
    let (identifier, kind) = (first.token.identifier.clone(), first.token.kind.clone());
    first.unclaimed.hand_over();
    let held = [ReleasedToken { identifier, kind }];
    for number in [0, 1, 2] {
        let next = bed.token(number, &held).await.unwrap();
        assert_eq!(next.identifier.sequence_number, 1);
        next.unclaimed.hand_over();
    }
    assert_eq!(bed.gets(), 2);
}

#[tokio::test]
async fn a_volume_that_asks_again_keeps_what_it_gets_when_the_call_before_comes_to_nothing() {
    let bed = Bed::new(Scripted::default()).await;
    assert_eq!(bed.number(0).await, 0);
    let before = bed.token(1, &[]).await.unwrap();
    let again = bed.token(1, &[]).await.unwrap();
    let name = again.entry.name.to_string();
    again.unclaimed.hand_over();
    drop(before);
    bed.hadoop.settled().await;
    let left = bed.hadoop.objects.kept();
    let alive = |object: &serde_json::Value| object["metadata"].get("deletionTimestamp").is_none();
    assert_eq!(left.by_name.values().filter(|object| alive(object)).count(), 2);
    assert!(alive(&left.by_name[&name]), "the token that the volume has was taken from it");
}

#[tokio::test]
async fn a_failure_is_told_to_all_who_waited_and_the_next_one_tries_again() {
    let errors = VecDeque::from([NotGot { error: down(), may_exist: false }]);
    let name_node = Scripted { get_errors: errors.into(), ..Scripted::default() };
    let bed = Bed::new(name_node).await;
    let failed = join_all((0..10).map(|number| bed.token(number, &[]))).await;
    assert!(failed.iter().all(|outcome| {
        outcome.as_ref().is_err_and(|failure| failure.reason() == "NAMENODE_UNREACHABLE")
    }));
    assert_eq!(bed.gets(), 1);
    assert_eq!(bed.number(0).await, 1);
}

#[tokio::test]
async fn an_old_token_and_one_that_nobody_renewed_are_not_shared() {
    let bed = Bed::new(Scripted::default()).await;
    let issued = bed.token(0, &[]).await.unwrap();
    let shared = Shared::of(&issued).unwrap();
    issued.unclaimed.hand_over();
    assert!(shared.is_for(&[], ISSUED));
    assert!(!shared.is_for(&[], shared.renew_date()));
    shared.renew_date.store(ISSUED + LIFETIME, Relaxed);
    assert!(shared.is_for(&[], ISSUED + LIFETIME / 100 * 69));
    assert!(!shared.is_for(&[], ISSUED + LIFETIME / 100 * 71));
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_is_bounded_and_forgotten_when_nobody_asks() {
    let bed = Bed::new(Scripted::default()).await;
    for number in 0..2 * MAX_TOKENS {
        bed.jobs.slot(&JobKey { owner: number.to_string(), ..bed.key.clone() });
    }
    assert_eq!(bed.jobs.slots().len(), MAX_TOKENS);
    let stop = CancellationToken::new();
    let upkeep = tokio::spawn(bed.jobs.clone().keep_small(stop.clone()));
    tokio::time::sleep(IDLE_LIMIT / 2).await;
    assert_eq!(bed.jobs.slots().len(), MAX_TOKENS);
    tokio::time::sleep(IDLE_LIMIT).await;
    assert_eq!(bed.jobs.slots().len(), 0);
    bed.jobs.slot(&bed.key);
    stop.cancel();
    upkeep.await.unwrap();
    assert_eq!(bed.jobs.slots().len(), 0);
}
