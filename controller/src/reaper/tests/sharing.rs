//! A reaper that ends shared tokens, and pods that come at that very moment to share them.

use futures_util::future::join_all;
use identity::VolumeId;

use super::*;
use crate::{
    audit::{Action, Record, RequestId},
    issuance::{Issued, Purpose},
    job::{JobKey, Jobs},
    request::{PodReference, VolumeReference},
};

impl Bed {
    fn begins(&self, uid: &str) {
        let phase = json!({"metadata": {"uid": uid}, "status": {"phase": "Running"}});
        self.kubernetes.answers().pods.insert(format!("jobs/pod-{uid}"), phase);
        self.pods.put(pod(uid).ours_on("n-1"));
    }

    async fn token(&self, jobs: &Jobs, owner: &str, uid: &str) -> Issued {
        let user = "etl".parse().unwrap();
        let (namespace, cluster) = ("jobs".to_owned(), "main".to_owned());
        let key = JobKey { namespace: namespace.clone(), owner: owner.to_owned(), user, cluster };
        let pod = PodReference { namespace, name: format!("pod-{uid}"), uid: uid.to_owned() };
        let volume = VolumeReference { id: VolumeId::of(uid, "token"), name: "token".to_owned(), pod };
        let (node, submitter) = ("n-1".to_owned(), "ann".to_owned());
        let purpose = Purpose { volume, node, submitter, scope: Scope::Job };
        let record = Record::new(Action::Issue, RequestId::random());
        jobs.token(&key, &self.reaper.issuers["main"], purpose, &[], &record).await.unwrap()
    }
}

#[tokio::test]
async fn no_pod_is_handed_a_shared_token_that_is_being_cancelled() {
    let name_node = Scripted { cancel_after: Duration::from_millis(200), ..Scripted::default() };
    let bed = Bed::new(&[], [], name_node, Duration::ZERO).await;
    let jobs = Jobs::new(bed.reaper.ledger.clone(), bed.reaper.api_server.clone());
    // The reaper settles for a quarter to three quarters of a second, so these come before, while and after it cancels.
    let job = async |number: u64| {
        let (owner, first, next) = (format!("job-{number}"), format!("a-{number}"), format!("b-{number}"));
        bed.begins(&first);
        let issued = bed.token(&jobs, &owner, &first).await;
        let old = issued.token.identifier.clone();
        issued.unclaimed.hand_over();
        bed.ends(&first);
        sleep(Duration::from_millis(40 * number)).await;
        bed.begins(&next);
        let issued = bed.token(&jobs, &owner, &next).await;
        let new = issued.token.identifier.clone();
        issued.unclaimed.hand_over();
        (old, new)
    };
    let tokens = join_all((0..50).map(job)).await;
    let replaced = tokens.iter().filter(|(old, new)| old != new).count();
    assert!(
        (1..50).contains(&replaced),
        "{replaced} of 50 tokens were cancelled in time, which shows nothing"
    );
    bed.until("not removed", |bed| bed.names().len() == 50).await;
    // What was begun is done.
    sleep(Duration::from_secs(2)).await;
    let cancelled = bed.cancelled();
    let dead = tokens.iter().filter(|(_, new)| cancelled.contains(new)).count();
    assert_eq!(dead, 0, "pods were handed tokens that are cancelled");
}

#[tokio::test]
async fn a_shared_token_is_not_taken_from_a_pod_that_the_watch_does_not_show() {
    let objects = [of_job(object("a", "u-1", Some("AAAA"))), of_job(object("b", "u-2", Some("AAAA")))];
    let bed = Bed::new(&["u-1", "u-2"], objects, Scripted::default(), Duration::ZERO).await;
    bed.pods.delete(pod("u-2").ours_on("n-1")); // it lives
    bed.delete("a").await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!((bed.cancelled().len(), bed.names().len()), (0, 2));
    bed.pods.put(pod("u-2").ours_on("n-1"));
    bed.until("not removed", |bed| bed.names() == ["b"]).await;
    bed.ends("u-2");
    bed.until("not removed", |bed| bed.names().is_empty()).await;
    assert_eq!(bed.cancelled(), [ONE]);
}

#[tokio::test]
async fn the_many_pods_of_a_job_that_ended_ask_little_while_their_token_is_being_cancelled() {
    let token = |number| of_job(object(&format!("t-{number}"), &format!("u-{number}"), Some("AAAA")));
    let name_node = Scripted { cancel_after: Duration::from_mins(1), ..Scripted::default() };
    let bed = Bed::new(&[], (0..300).map(token), name_node, Duration::ZERO).await;
    let (mut schedule, now) = (Schedule::new(300), Instant::now());
    for entry in bed.reaper.ledger.all() {
        schedule.want(&entry, true, Duration::ZERO, now);
    }
    let looks = schedule.take(now).into_iter().map(|look| bed.reaper.with_sharers(look, &mut schedule));
    let waits: Vec<_> = looks.map(|look| look.held_up).collect();
    // The first one, until the others are known to have ended.
    assert_eq!(waits.iter().filter(|wait| **wait == Some(CATCH_UP)).count(), 1);
    assert_eq!(waits.iter().filter(|wait| **wait == Some(TURN * 299)).count(), 299);
}
