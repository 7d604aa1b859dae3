//! Replicas at one API server that answers, refuses, or is silent: work begins and ends with the lease.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

use axum::body::{Body, to_bytes};
use http::{Method, Request, Response, StatusCode};
use process::health::Health;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;

const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/system/leases";

/// One Lease, and how the API server is.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    object: Option<Value>,
    version: u64,
    /// Replicas whose requests get no answer.
    cut_off: Vec<&'static str>,
    forbids: bool,
    writes: usize,
}

impl Fake {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn holder(&self) -> String {
        self.state().object.as_ref().unwrap()["spec"]["holderIdentity"].as_str().unwrap().to_owned()
    }

    async fn answer(self, who: &'static str, request: Request<kube::client::Body>) -> Response<Body> {
        if self.state().cut_off.contains(&who) {
            return std::future::pending().await;
        }
        let (parts, body) = request.into_parts();
        let body = to_bytes(Body::new(body), usize::MAX).await.unwrap();
        let mut state = self.state();
        let (mut code, mut answer) = (StatusCode::OK, Value::Null);
        let store = |state: &mut State| {
            let mut object: Value = serde_json::from_slice(&body).unwrap();
            state.version += 1;
            state.writes += 1;
            object["metadata"]["resourceVersion"] = json!(state.version.to_string());
            state.object = Some(object.clone());
            object
        };
        let there = state.object.as_ref().map(|object| object["metadata"]["resourceVersion"].clone());
        match (parts.method, parts.uri.path() == PATH, there) {
            _ if state.forbids => code = StatusCode::FORBIDDEN,
            (Method::GET, false, Some(_)) => answer = state.object.clone().unwrap(),
            (Method::POST, true, None) => answer = store(&mut state),
            (Method::PUT, false, Some(there)) => {
                let sent: Value = serde_json::from_slice(&body).unwrap();
                match sent["metadata"]["resourceVersion"] == there {
                    true => answer = store(&mut state),
                    false => code = StatusCode::CONFLICT,
                }
            }
            (Method::POST, ..) => code = StatusCode::CONFLICT,
            _ => code = StatusCode::NOT_FOUND,
        }
        if code != StatusCode::OK {
            let message = format!("leases: {code}");
            let reason = code.canonical_reason().unwrap().replace(' ', "");
            answer = json!({
                "kind": "Status", "status": "Failure", "reason": reason, "message": message, "code": code.as_u16(),
            });
        }
        Response::builder().status(code).body(answer.to_string().into()).unwrap()
    }
}

struct Replica {
    working: Arc<AtomicUsize>,
    leader: Gauge,
    health: Health,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl Replica {
    /// A replica whose work never ends.
    fn start(fake: &Fake, me: &'static str) -> Self {
        let fake = fake.clone();
        let service = tower::service_fn(move |request| {
            let fake = fake.clone();
            async move { Ok::<_, Infallible>(fake.answer(me, request).await) }
        });
        let (working, leader) = (Arc::<AtomicUsize>::default(), Gauge::default());
        let (health, stop) = (Health::default(), CancellationToken::new());
        let lease =
            Lease::new(Client::new(service, "default"), "system", "reaper", me.to_owned(), leader.clone());
        let counter = working.clone();
        let work = move |term: Term| {
            let working = counter.clone();
            async move {
                working.fetch_add(1, SeqCst);
                let _working = at_the_end(move || {
                    working.fetch_sub(1, SeqCst);
                });
                loop {
                    assert!(term.lasts(), "works on after its term");
                    sleep(Duration::from_millis(20)).await;
                }
            }
        };
        let running = tokio::spawn(lease.run(work, health.shows("lease"), stop.clone()));
        Self { working, leader, health, stop, running }
    }

    fn works(&self) -> bool {
        let works = self.working.load(SeqCst) == 1;
        assert_eq!(works, self.leader.get() == 1);
        works
    }
}

/// Calls at the end of a scope.
fn at_the_end<F: FnMut()>(end: F) -> impl Drop {
    struct Guard<F: FnMut()>(F);
    impl<F: FnMut()> Drop for Guard<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    Guard(end)
}

async fn within(limit: u64, what: &str, holds: impl Fn() -> bool) {
    let wait = timeout(Duration::from_secs(limit), async {
        while !holds() {
            sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(wait.await.is_ok(), "{what}");
}

#[tokio::test(start_paused = true)]
async fn one_replica_works_and_another_takes_over_when_it_stops() {
    let fake = Fake::default();
    let one = Replica::start(&fake, "one");
    within(1, "nobody leads", || one.works()).await;
    let other = Replica::start(&fake, "other");
    sleep(Duration::from_secs(60)).await;
    assert!(one.works() && !other.works());
    assert_eq!(fake.holder(), "one");
    one.stop.cancel();
    one.running.await.unwrap();
    assert_eq!(one.working.load(SeqCst), 0);
    // It said so: nobody waits for the end of its time.
    within(5, "the other does not follow", || other.works()).await;
    assert_eq!(fake.state().object.as_ref().unwrap()["spec"]["leaseTransitions"], 1);
    other.stop.cancel();
    other.running.await.unwrap();
    assert_eq!(fake.holder(), "");
}

#[tokio::test(start_paused = true)]
async fn who_cannot_reach_the_api_server_stops_before_another_begins() {
    let fake = Fake::default();
    let one = Replica::start(&fake, "one");
    within(1, "nobody leads", || one.works()).await;
    let other = Replica::start(&fake, "other");
    sleep(Duration::from_secs(10)).await;
    for (cut_off, follows) in [(&one, &other), (&other, &one)] {
        let name = if fake.holder() == "one" { "one" } else { "other" };
        fake.state().cut_off.push(name);
        let begun = Instant::now();
        within(11, "works on without a lease", || !cut_off.works()).await;
        assert!(!follows.works(), "two lead");
        within(12, "nobody follows", || follows.works()).await;
        assert!(begun.elapsed() > election::RENEW_DEADLINE);
        let report = cut_off.health.report().1;
        assert!(report.contains("did not answer within 4 seconds"), "{report}");
        fake.state().cut_off.clear();
        sleep(Duration::from_secs(30)).await;
        assert!(!cut_off.works() && follows.works(), "comes back and takes the lease");
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_right_is_shown_and_work_begins_when_it_is_granted() {
    let fake = Fake::default();
    fake.state().forbids = true;
    let one = Replica::start(&fake, "one");
    sleep(Duration::from_secs(20)).await;
    let report = one.health.report().1;
    assert!(!one.works() && report.contains("leases: 403 Forbidden"), "{report}");
    fake.state().forbids = false;
    within(5, "does not begin", || one.works()).await;
    assert_eq!(one.health.report().1, "[+] lease: ok\n");
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_never_says_a_word_again_is_followed_after_its_time() {
    let fake = Fake::default();
    let spec = json!({"holderIdentity": "dead", "leaseDurationSeconds": 15, "renewTime": "2999-01-01T00:00:00.000000Z"});
    fake.state().object = Some(json!({"metadata": {"name": "reaper", "resourceVersion": "0"}, "spec": spec}));
    let one = Replica::start(&fake, "one");
    sleep(Duration::from_secs(14)).await;
    assert!(!one.works(), "takes what another has");
    within(6, "does not follow", || one.works()).await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_lease_is_written_again_and_its_leader_stays() {
    let fake = Fake::default();
    let one = Replica::start(&fake, "one");
    within(1, "nobody leads", || one.works()).await;
    let other = Replica::start(&fake, "other");
    sleep(Duration::from_secs(10)).await;
    fake.state().object = None;
    within(10, "is not written again", || fake.state().object.is_some()).await;
    assert_eq!(fake.holder(), "one");
    sleep(Duration::from_secs(20)).await;
    assert!(one.works() && !other.works());
}

#[tokio::test(start_paused = true)]
async fn a_leader_writes_every_two_seconds_and_no_more() {
    let fake = Fake::default();
    let one = Replica::start(&fake, "one");
    within(1, "nobody leads", || one.works()).await;
    let before = fake.state().writes;
    sleep(Duration::from_secs(60)).await;
    let writes = fake.state().writes - before;
    assert!((25..=31).contains(&writes), "{writes}");
    drop(one);
}
