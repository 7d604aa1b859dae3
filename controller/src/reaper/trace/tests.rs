//! Tokens that were lost at a service that counts and dates as a NameNode does.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
};

use hadoop::{Token, namenode::Cancelled as Was, token::HDFS_DELEGATION_TOKEN};
use prometheus_client::registry::Registry;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;

use super::*;
use crate::{
    audit::recorded::Recorded,
    caller::fake::FakeApiServer,
    cluster::{Authority, CallError, NotGot, scripted::down},
    issuance::{Bounds, tests::objects::Objects},
    ledger::{Intent, Ledger},
    metrics::Metrics,
    pod_watch::tests::{pod, watch_of},
};

const START: u64 = 1_800_000_000_000;
const LIFETIME: u64 = 604_800_000;
const DAY: u64 = 86_400_000;

/// A service with a clock of its own, that others use as well.
struct Service {
    begun: Instant,
    issued: AtomicU32,
    living: Mutex<BTreeSet<Vec<u8>>>,
    attempts: AtomicU32,
    down: AtomicBool,
}

impl Service {
    fn date(&self) -> u64 {
        START + u64::try_from(self.begun.elapsed().as_millis()).unwrap()
    }

    fn issue(&self, owner: &str) -> TokenIdentifier {
        let identifier = TokenIdentifier {
            owner: owner.to_owned(),
            renewer: "csi".to_owned(),
            real_user: "csi/h@R".to_owned(),
            issue_date: self.date(),
            max_date: self.date() + LIFETIME,
            sequence_number: 1 + i32::try_from(self.issued.fetch_add(1, SeqCst)).unwrap(),
            master_key_id: 7,
        };
        self.living.lock().unwrap().insert(identifier.encode());
        identifier
    }

    fn living(&self) -> usize {
        self.living.lock().unwrap().len()
    }
}

#[tonic::async_trait]
impl Authority for Service {
    async fn get(&self, user: &HadoopUser, _: &str, _: &str) -> Result<Token, NotGot> {
        if self.down.load(SeqCst) {
            return Err(NotGot { error: down(), may_exist: false });
        }
        sleep(Duration::from_millis(5)).await;
        let identifier = self.issue(user.as_str()).encode();
        Ok(Token::new(identifier, b"password".to_vec(), HDFS_DELEGATION_TOKEN, ""))
    }

    async fn renew(&self, _: &Token, _: &str) -> Result<u64, CallError> {
        Ok(self.date() + DAY)
    }

    async fn cancel(&self, identifier: &[u8], _: &str) -> Result<Was, CallError> {
        self.attempts.fetch_add(1, SeqCst);
        let lived = self.living.lock().unwrap().remove(identifier);
        Ok(if lived { Was::Now } else { Was::Before })
    }

    async fn services(&self) -> Result<Vec<String>, CallError> {
        Ok(vec!["nn1:8020".to_owned()])
    }
}

struct Bed {
    service: Arc<Service>,
    objects: Objects,
    ledger: Ledger,
    reaper: Reaper,
    recorded: Recorded,
}

impl Bed {
    async fn new(attempts: u32) -> Self {
        let service = Arc::new(Service {
            begun: Instant::now(),
            issued: AtomicU32::new(40),
            living: Mutex::default(),
            attempts: AtomicU32::default(),
            down: AtomicBool::default(),
        });
        let (objects, tasks) = (Objects::default(), TaskTracker::new());
        let ledger = objects.followed(tasks.clone()).await;
        let (audit, recorded) = Recorded::audit();
        let metrics = Metrics::register(&mut Registry::default(), ["main"]);
        let issuer = Issuer::new(
            "main".to_owned(),
            service.clone(),
            "csi".to_owned(),
            Bounds { calls: 4, queue: 100 },
            ledger.clone(),
            tasks,
            audit.clone(),
            metrics.clone(),
        );
        let reaper = Reaper {
            ledger: ledger.clone(),
            pods: watch_of([]),
            api_server: FakeApiServer::default().serve().await,
            issuers: [("main".to_owned(), Arc::new(issuer))].into(),
            audit,
            metrics,
            grace: Duration::ZERO,
            share: 4,
            tracer: Arc::new(Tracer::new(attempts, "system".to_owned())),
        };
        Self { service, objects, ledger, reaper, recorded }
    }

    /// Somebody asks, and is gone before the answer is.
    async fn intend(&self, pod: &str, after: Option<i32>) -> Arc<Entry> {
        self.intend_as("etl", pod, after).await
    }

    async fn intend_as(&self, user: &str, pod: &str, after: Option<i32>) -> Arc<Entry> {
        let [namespace, name, uid] = ["jobs".to_owned(), pod.to_owned(), format!("uid-of-{pod}")];
        let id = VolumeId::of(&uid, "token");
        let volume =
            VolumeReference { id, name: "token".to_owned(), pod: PodReference { namespace, name, uid } };
        let [node, submitter, user, cluster] = ["n-1", "ann", user, "main"].map(str::to_owned);
        let (requested_at, scope) = (self.service.date(), Scope::Pod);
        let intent = Intent { volume, node, submitter, user, cluster, scope, requested_at, after };
        self.ledger.open(&intent).await.unwrap()
    }

    /// One turn, with the object as it is now.
    async fn trace(&self, entry: &Arc<Entry>) -> Outcome {
        let now = self.ledger.of_pod(&entry.pod_uid).into_iter().find(|now| now.uid == entry.uid);
        let now = now.unwrap_or_else(|| entry.clone());
        self.reaper.trace(&now, &self.reaper.issuers["main"], &Term::endless()).await
    }

    /// As many turns as there are, of all at the same time.
    async fn trace_all(&self, entries: &[Arc<Entry>]) -> Vec<Outcome> {
        let turns = entries.iter().map(|entry| async {
            loop {
                match self.trace(entry).await {
                    Outcome::Again(NEXT_TURN) => sleep(NEXT_TURN).await,
                    outcome => return outcome,
                }
            }
        });
        futures_util::future::join_all(turns).await
    }

    /// The answer of `entry` comes, and is written down.
    async fn record(&self, entry: &Entry, identifier: &TokenIdentifier, renew_date: u64) -> Arc<Entry> {
        let token = KnownToken {
            identifier: identifier.encode().into(),
            kind: HDFS_DELEGATION_TOKEN.into(),
            services: Box::default(),
            sequence_number: identifier.sequence_number,
            issue_date: identifier.issue_date,
            max_date: identifier.max_date,
        };
        self.ledger.record(entry, &token, renew_date).await.unwrap()
    }

    /// What was asked of the service so far.
    fn asked(&self) -> (u32, u32) {
        (self.service.issued.load(SeqCst), self.service.attempts.load(SeqCst))
    }

    /// The names of the objects, and what they say of their trouble.
    fn objects(&self) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let all = self.objects.all();
        all.iter().map(|it| (text(&it["spec"]["pod"]), text(&it["status"]["lastError"]))).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_token_is_found_and_cancelled() {
    let bed = Bed::new(5_000).await;
    let entry = bed.intend("etl-0", Some(40)).await;
    sleep(Duration::from_millis(37)).await;
    bed.service.issue("etl");
    sleep(Duration::from_mins(1)).await;
    assert!(matches!(bed.trace(&entry).await, Outcome::Removed { .. }));
    assert_eq!((bed.service.living(), bed.objects()), (0, Vec::new()));
    assert!(bed.service.attempts.load(SeqCst) < 150, "{:?}", bed.service.attempts);
    let [record] = bed.recorded.records().try_into().unwrap();
    assert_eq!(
        (&record["action"], &record["decision"], &record["why"], &record["pod"]),
        (&"cancel".into(), &"granted".into(), &"LOST".into(), &"etl-0".into())
    );
    assert_eq!(record["tokens"][0]["sequenceNumber"], 41);
}

#[tokio::test(start_paused = true)]
async fn many_that_were_lost_together_are_all_found() {
    let bed = Bed::new(5_000).await;
    let mut entries = Vec::new();
    for number in 0..16 {
        entries.push(bed.intend(&format!("etl-{number}"), Some(40)).await);
        sleep(Duration::from_millis(3)).await;
    }
    sleep(Duration::from_millis(30)).await;
    for _ in 0..16 {
        bed.service.issue("etl");
        sleep(Duration::from_millis(4)).await;
    }
    // Others use the service too.
    (0..5).for_each(|_| drop(bed.service.issue("ads")));
    sleep(Duration::from_mins(1)).await;
    let outcomes = bed.trace_all(&entries).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Removed { .. })), "{outcomes:?}");
    assert_eq!((bed.service.living(), bed.objects()), (5, Vec::new()));
}

#[tokio::test(start_paused = true)]
async fn what_was_never_issued_is_forgotten() {
    let bed = Bed::new(5_000).await;
    let entry = bed.intend("etl-0", Some(40)).await;
    sleep(Duration::from_mins(1)).await;
    assert!(matches!(bed.trace(&entry).await, Outcome::Removed { .. }));
    assert_eq!((bed.service.living(), bed.objects()), (0, Vec::new()));
    assert_eq!(bed.service.attempts.load(SeqCst), 1, "more than the probe was cancelled");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_found_is_kept_and_not_looked_for_again() {
    let bed = Bed::new(50).await;
    let entry = bed.intend("etl-0", Some(40)).await;
    sleep(Duration::from_secs(20)).await;
    bed.service.issue("etl");
    sleep(Duration::from_mins(1)).await;
    assert_eq!(bed.trace(&entry).await, Outcome::Again(LONGEST_WAIT));
    let [(pod, trouble)] = bed.objects().try_into().unwrap();
    assert!(pod == "etl-0" && trouble.starts_with(GIVEN_UP), "{pod} {trouble}");
    let attempts = bed.service.attempts.load(SeqCst);
    assert_eq!(attempts, 51, "the probe, and what is allowed");
    let [entry] = bed.ledger.of_pod("uid-of-etl-0").try_into().unwrap();
    assert_eq!(bed.trace(&entry).await, Outcome::Again(LONGEST_WAIT));
    assert_eq!(bed.service.attempts.load(SeqCst), attempts);
}

#[tokio::test(start_paused = true)]
async fn where_no_attempt_is_allowed_nothing_is_asked_of_the_service() {
    let bed = Bed::new(0).await;
    let entry = bed.intend("etl-0", Some(40)).await;
    assert_eq!(bed.trace(&entry).await, Outcome::Again(LONGEST_WAIT));
    assert_eq!(bed.service.issued.load(SeqCst), 40);
    assert_eq!(bed.objects().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_down_is_asked_again() {
    let bed = Bed::new(5_000).await;
    let entry = bed.intend("etl-0", Some(40)).await;
    bed.service.issue("etl");
    bed.service.down.store(true, SeqCst);
    sleep(Duration::from_mins(1)).await;
    assert_eq!(bed.trace(&entry).await, Outcome::Failed { passes: true, cancelled: false });
    bed.service.down.store(false, SeqCst);
    let [entry] = bed.ledger.of_pod("uid-of-etl-0").try_into().unwrap();
    assert_eq!(bed.trace(&entry).await, Outcome::Again(Duration::from_secs(1)));
    sleep(Duration::from_secs(1)).await;
    assert!(matches!(bed.trace(&entry).await, Outcome::Removed { .. }));
    assert_eq!(bed.service.living(), 0);
}

#[tokio::test(start_paused = true)]
async fn many_lost_tokens_of_a_service_that_is_down_ask_it_no_more_often_than_one() {
    let bed = Bed::new(5_000).await;
    let mut entries = Vec::new();
    for number in 0..100 {
        entries.push(bed.intend(&format!("etl-{number}"), Some(40)).await);
    }
    bed.service.down.store(true, SeqCst);
    sleep(Duration::from_mins(1)).await;
    let mut asked = 0;
    for _ in 0..60 {
        for entry in &entries {
            let outcome = bed.trace(entry).await;
            asked += u32::from(matches!(outcome, Outcome::Failed { .. }));
        }
        sleep(Duration::from_secs(1)).await;
    }
    assert!((3..10).contains(&asked), "{asked} probes in a minute");
}

#[tokio::test(start_paused = true)]
async fn who_leads_no_more_looks_for_nothing() {
    let bed = Bed::new(5_000).await;
    let entry = bed.intend("etl-0", Some(40)).await;
    bed.service.issue("etl");
    sleep(Duration::from_mins(1)).await;
    let outcome = bed.reaper.trace(&entry, &bed.reaper.issuers["main"], &Term::over()).await;
    assert_eq!(outcome, Outcome::Failed { passes: true, cancelled: false });
    assert_eq!((bed.service.living(), bed.objects().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn tokens_that_came_and_went_meanwhile_leave_no_doubt() {
    let bed = Bed::new(5_000).await;
    let (stop, tracer) = (CancellationToken::new(), bed.reaper.tracer.clone());
    let listening = tokio::spawn(tracer.listen(bed.ledger.clone(), stop.clone()));
    tokio::task::yield_now().await;
    let entry = bed.intend("etl-0", Some(40)).await;
    // Another token is issued, and released before anybody looks.
    let other = bed.intend("etl-1", Some(40)).await;
    let identifier = bed.service.issue("etl");
    let other = bed.record(&other, &identifier, identifier.max_date).await;
    bed.service.cancel(&identifier.encode(), "").await.unwrap();
    bed.ledger.remove(&other).await.unwrap();
    sleep(Duration::from_mins(1)).await;
    assert_eq!(bed.trace(&entry).await, Outcome::Removed { cancelled: false });
    assert_eq!((bed.service.living(), bed.objects()), (0, Vec::new()));
    assert_eq!(bed.service.attempts.load(SeqCst), 2, "the release, and the probe");
    stop.cancel();
    listening.await.unwrap();
}

/// Killed before it asked, before that once more, and then when it had the answer.
#[tokio::test(start_paused = true)]
async fn what_was_never_issued_is_forgotten_as_soon_as_its_neighbours_are_found() {
    let bed = Bed::new(5_000).await;
    let mut entries = Vec::new();
    for (pod, issues) in [("before", false), ("again", false), ("after", true), ("later", true)] {
        entries.push(bed.intend(pod, Some(40)).await);
        sleep(Duration::from_millis(7)).await;
        if issues {
            bed.service.issue("etl");
        }
        sleep(Duration::from_secs(8)).await;
    }
    sleep(Duration::from_mins(1)).await;
    let outcomes = bed.trace_all(&entries).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Removed { .. })), "{outcomes:?}");
    assert_eq!((bed.service.living(), bed.objects()), (0, Vec::new()));
    let (issued, attempts) = bed.asked();
    assert!(issued == 46 && attempts < 4_000, "{issued} {attempts}");
}

#[tokio::test(start_paused = true)]
async fn what_was_looked_for_in_vain_is_looked_for_again_when_there_is_news_and_not_before() {
    let bed = Bed::new(700).await;
    let (stop, tracer) = (CancellationToken::new(), bed.reaper.tracer.clone());
    let listening = tokio::spawn(tracer.clone().listen(bed.ledger.clone(), stop.clone()));
    tokio::task::yield_now().await;
    let lost = bed.intend("lost", Some(40)).await;
    sleep(Duration::from_secs(20)).await;
    // Another replica waits for its answer for long.
    let neighbour = bed.intend("neighbour", Some(40)).await;
    let identifier = bed.service.issue("etl");
    sleep(Duration::from_secs(40)).await;
    assert_eq!(bed.trace_all(std::slice::from_ref(&lost)).await, [Outcome::Again(LONGEST_WAIT)]);
    assert_eq!(bed.asked(), (42, 701), "the probe, and what is allowed");
    // Neither time nor what came later is news.
    let later = bed.intend("later", Some(42)).await;
    bed.record(&later, &bed.service.issue("etl"), START).await;
    for _ in 0..50 {
        sleep(LONGEST_WAIT / 10).await;
        assert_eq!(bed.trace(&lost).await, Outcome::Again(LONGEST_WAIT));
    }
    assert_eq!(bed.asked(), (43, 701));
    assert!(timeout(LONGEST_WAIT, tracer.news()).await.is_err());
    bed.record(&neighbour, &identifier, identifier.max_date).await;
    assert_eq!(tracer.news().await, [lost.uid.clone()].into());
    assert_eq!(bed.trace(&lost).await, Outcome::Removed { cancelled: false });
    assert_eq!((bed.asked(), bed.objects().len()), ((43, 701), 2));
    stop.cancel();
    listening.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_makes_one_turn_for_what_another_gave_up() {
    let bed = Bed::new(2_000).await;
    let lost = bed.intend("lost", Some(40)).await;
    sleep(Duration::from_secs(20)).await;
    bed.service.issue("ads");
    sleep(Duration::from_mins(1)).await;
    let given_up = [Outcome::Again(LONGEST_WAIT)];
    assert_eq!(bed.trace_all(std::slice::from_ref(&lost)).await, given_up);
    let (issued, attempts) = bed.asked();
    let bed = Bed {
        reaper: Reaper { tracer: Arc::new(Tracer::new(2_000, "system".to_owned())), ..bed.reaper },
        ..bed
    };
    for _ in 0..3 {
        assert_eq!(bed.trace_all(std::slice::from_ref(&lost)).await, given_up);
    }
    assert_eq!(bed.asked(), (issued + 1, attempts + 1 + TURN));
}

#[tokio::test(start_paused = true)]
async fn a_lost_token_lives_as_long_as_the_others_of_its_cluster_show() {
    const HOUR: u64 = 3_600_000;
    let bed = Bed::new(0).await;
    let lost = bed.intend("lost", Some(40)).await;
    assert_eq!(bed.trace(&lost).await, Outcome::Again(LONGEST_WAIT));
    let said = |bed: &Bed| bed.objects().into_iter().find(|(pod, _)| pod == "lost").unwrap().1;
    assert!(said(&bed).ends_with(" 10080 minutes"), "{}", said(&bed));
    // One that is good until its end shows nothing.
    for (pod, life) in [("probe", LIFETIME), ("other", HOUR)] {
        let other = bed.intend(pod, Some(40)).await;
        let identifier = bed.service.issue("etl");
        bed.record(&other, &identifier, identifier.issue_date + life).await;
    }
    assert_eq!(bed.trace(&lost).await, Outcome::Again(LONGEST_WAIT));
    assert!(said(&bed).ends_with(" 60 minutes"), "{}", said(&bed));
    assert_eq!(bed.asked(), (42, 0));
}

#[tokio::test(start_paused = true)]
async fn a_lost_token_that_must_have_ended_is_forgotten() {
    let bed = Bed::new(50).await;
    let lost = bed.intend("lost", Some(40)).await;
    sleep(Duration::from_secs(20)).await;
    bed.service.issue("ads");
    sleep(Duration::from_mins(1)).await;
    assert_eq!(bed.trace(&lost).await, Outcome::Again(LONGEST_WAIT));
    // The probe was renewed, and showed for how long.
    let said = bed.objects().into_iter().map(|(_, said)| said).collect::<String>();
    assert!(said.ends_with(" 1440 minutes"), "{said}");
    sleep(Duration::from_millis(DAY + MARGIN - 120_000)).await;
    let Outcome::Again(wait) = bed.trace(&lost).await else { panic!("it is forgotten too early") };
    assert!((39..=40).contains(&wait.as_secs()), "{wait:?}");
    sleep(wait).await;
    assert_eq!(bed.trace(&lost).await, Outcome::Removed { cancelled: false });
    assert_eq!(bed.asked(), (42, 51));
}

#[tokio::test(start_paused = true)]
async fn the_life_that_a_token_showed_is_remembered_when_it_is_gone() {
    let bed = Bed::new(0).await;
    let (stop, tracer) = (CancellationToken::new(), bed.reaper.tracer.clone());
    let listening = tokio::spawn(tracer.listen(bed.ledger.clone(), stop.clone()));
    tokio::task::yield_now().await;
    let other = bed.intend("other", Some(40)).await;
    let identifier = bed.service.issue("etl");
    let other = bed.record(&other, &identifier, identifier.issue_date + 120_000).await;
    bed.ledger.remove(&other).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let lost = bed.intend("lost", Some(40)).await;
    assert_eq!(bed.trace(&lost).await, Outcome::Again(LONGEST_WAIT));
    let [(_, said)] = bed.objects().try_into().unwrap();
    assert!(said.ends_with(" 2 minutes"), "{said}");
    stop.cancel();
    listening.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_was_given_up_goes_as_soon_as_the_token_near_it_is_found() {
    let mut bed = Bed::new(300).await;
    bed.reaper.pods =
        watch_of(["lost", "neighbour"].map(|name| pod(&format!("uid-of-{name}")).ours_on("n-1")));
    let Bed { service, objects, ledger, reaper, .. } = &bed;
    let (stop, tracer) = (CancellationToken::new(), reaper.tracer.clone());
    let listening = tokio::spawn(tracer.listen(ledger.clone(), stop.clone()));
    let test = async {
        bed.intend("lost", Some(40)).await;
        sleep(Duration::from_secs(20)).await;
        bed.intend_as("ads", "neighbour", Some(40)).await;
        sleep(Duration::from_millis(30)).await;
        service.issue("ads");
        sleep(ISSUE_TIME - Duration::from_secs(15)).await;
        let [(_, said), _] = bed.objects().try_into().unwrap();
        assert!(said.starts_with(GIVEN_UP), "{said}");
        let found = async {
            while !objects.all().is_empty() {
                sleep(Duration::from_millis(100)).await;
            }
        };
        assert!(timeout(Duration::from_secs(20), found).await.is_ok(), "{:?}", bed.objects());
    };
    tokio::select! {
        () = reaper.work(Term::endless()) => panic!("the reaper has ended"),
        () = test => {}
    }
    assert_eq!(service.living(), 0);
    stop.cancel();
    listening.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_token_of_the_same_user_that_is_on_its_way_is_not_taken_for_a_lost_one() {
    for comes in [true, false] {
        let bed = Bed::new(5_000).await;
        let lost = bed.intend("lost", Some(40)).await;
        sleep(Duration::from_secs(50)).await;
        let other = bed.intend("other", Some(40)).await;
        let identifier = bed.service.issue("etl");
        for _ in 0..20 {
            assert_eq!(bed.trace(&lost).await, Outcome::Again(NEXT_TURN));
            sleep(NEXT_TURN).await;
        }
        assert_eq!((bed.service.living(), bed.asked()), (1, (42, 1)));
        if comes {
            bed.record(&other, &identifier, identifier.max_date).await;
            assert_eq!(bed.trace(&lost).await, Outcome::Removed { cancelled: false });
            assert_eq!((bed.service.living(), bed.asked()), (1, (42, 1)));
        } else {
            // Nobody waits for it any more, or for longer than anybody does.
            sleep(ISSUE_TIME).await;
            let outcomes = bed.trace_all(&[lost, other]).await;
            assert!(
                matches!(outcomes[..], [Outcome::Removed { .. }, Outcome::Removed { .. }]),
                "{outcomes:?}"
            );
            assert_eq!(bed.service.living(), 0);
        }
    }
}
