//! Renewals of tokens that one or many hold.

use std::sync::atomic::Ordering::SeqCst;

use futures_util::future::join_all;
use tokio::task::yield_now;

use super::*;

/// The volume of another pod.
fn volume(number: usize) -> VolumeReference {
    let mut volume = purpose().volume;
    volume.pod.uid = format!("uid-{number}");
    volume.pod.name = format!("etl-{number}");
    volume
}

impl Bed {
    async fn renew(&self, token: &Token, volume: &VolumeReference) -> Result<u64, Failure> {
        self.issuer.renew(token, volume, &Record::new(Action::Renew, RequestId::random())).await
    }

    /// A token that volume 0 got, and all up to `count` share.
    async fn shared(&self, count: usize) -> Issued {
        let purpose = |number| Purpose { volume: volume(number), scope: Scope::Job, ..purpose() };
        let record = Record::new(Action::Issue, RequestId::random());
        let issued = self.issuer.issue("etl".parse().unwrap(), purpose(0), record).await.unwrap();
        let (user, known) = ("etl".parse().unwrap(), issued.entry.token.as_ref().unwrap());
        for number in 1..count {
            let intent = self.issuer.intent(&user, purpose(number));
            self.issuer.ledger.share(&intent, known, issued.renew_date).await.unwrap();
        }
        issued
    }

    async fn noted(&self) {
        while !self.tasks.is_empty() {
            yield_now().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn many_holders_of_a_token_cost_one_renewal() {
    let bed = bed(Scripted { runs_since: Some(Instant::now()), ..Scripted::default() });
    let issued = bed.shared(100).await;
    assert_eq!(bed.name_node.renewals.load(SeqCst), 1, "the interval was learnt");
    tokio::time::advance(Duration::from_millis(INTERVAL / 10 * 7)).await;
    let volumes: Vec<_> = (0..100).map(volume).collect();
    let renewed = join_all(volumes.iter().map(|volume| bed.renew(&issued.token, volume))).await;
    assert!(renewed.iter().all(|date| matches!(date, Ok(date) if *date == ISSUED + INTERVAL / 10 * 17)));
    assert_eq!(bed.name_node.renewals.load(SeqCst), 2);
    bed.noted().await;
    let objects = bed.objects.all();
    assert!(objects.iter().all(|object| object["status"]["renewDate"] == ISSUED + INTERVAL / 10 * 17));
    // Soon after, the ledger answers; a new replica's as well.
    tokio::time::advance(Duration::from_millis(INTERVAL / 10 * 3)).await;
    assert_eq!(bed.renew(&issued.token, &volumes[3]).await.unwrap(), ISSUED + INTERVAL / 10 * 17);
    assert_eq!(bed.name_node.renewals.load(SeqCst), 2);
    // Later it does not.
    tokio::time::advance(Duration::from_millis(INTERVAL / 5)).await;
    assert!(bed.renew(&issued.token, &volumes[3]).await.unwrap() > ISSUED + INTERVAL / 10 * 17);
    assert_eq!(bed.name_node.renewals.load(SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn a_failed_renewal_is_everybodys_and_the_next_one_is_tried_again() {
    let bed = bed(Scripted { renew_after: Duration::from_millis(10), ..Scripted::default() });
    let issued = bed.shared(3).await;
    *bed.name_node.renew_error.lock().unwrap() = Some(down());
    let volumes: Vec<_> = (0..3).map(volume).collect();
    let renewed = join_all(volumes.iter().map(|volume| bed.renew(&issued.token, volume))).await;
    let reasons: Vec<_> = renewed.into_iter().map(|outcome| outcome.unwrap_err().reason()).collect();
    assert_eq!(reasons, ["NAMENODE_UNREACHABLE"; 3]);
    bed.noted().await;
    let errors: Vec<_> =
        bed.objects.all().iter().map(|object| object["status"]["lastError"].clone()).collect();
    assert!(errors.iter().all(|error| error.as_str().unwrap().starts_with("NAMENODE_UNREACHABLE: ")));
    bed.renew(&issued.token, &volumes[0]).await.unwrap();
    bed.noted().await;
    let healed =
        bed.objects.all().iter().filter(|object| object["status"].get("lastError").is_none()).count();
    assert_eq!(healed, 1);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_tells_what_the_namenodes_clock_shows() {
    let bed = bed(Scripted { renew_after: Duration::from_secs(7), ..Scripted::default() });
    let issued = bed.shared(1).await;
    tokio::time::advance(Duration::from_mins(10)).await;
    let renewed = bed.renew(&issued.token, &volume(0)).await.unwrap();
    let interval = bed.issuer.renew_interval().await.unwrap();
    let now = bed.issuer.server_date().unwrap();
    assert!(now >= renewed - interval, "{now} is before the renewal");
}
