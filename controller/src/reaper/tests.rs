//! A reaper with a ledger, pods and a NameNode, in the moments that a real cluster comes to only by accident.

mod sharing;

use std::sync::atomic::Ordering::SeqCst;

use axum::http::StatusCode;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::task::TaskTracker;

use super::*;
use crate::{
    audit::recorded::Recorded,
    caller::fake::FakeApiServer,
    cluster::scripted::{ISSUED, LIFETIME, Scripted, denied, down},
    issuance::{Bounds, tests::objects::Objects},
    pod_watch::tests::{pod, watch_of},
};

struct Bed {
    objects: Objects,
    pods: PodWatch,
    kubernetes: FakeApiServer,
    name_node: Arc<Scripted>,
    recorded: Recorded,
    metrics: Metrics,
    reaper: Arc<Reaper>,
    working: Option<JoinHandle<()>>,
}

impl Bed {
    /// With pods `living` and `objects` in the ledger; at work.
    async fn new(
        living: &[&str],
        objects: impl IntoIterator<Item = Value>,
        name_node: Scripted,
        grace: Duration,
    ) -> Self {
        let (ledger_objects, kubernetes, tasks) =
            (Objects::default(), FakeApiServer::default(), TaskTracker::new());
        for object in objects {
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            ledger_objects.kept().by_name.insert(name, object);
        }
        ledger_objects.kept().writes = 100;
        let ledger = ledger_objects.followed(tasks.clone()).await;
        let pods = watch_of(living.iter().map(|uid| pod(uid).ours_on("n-1")));
        for uid in living {
            let phase = json!({"metadata": {"uid": uid}, "status": {"phase": "Running"}});
            kubernetes.answers().pods.insert(format!("jobs/pod-{uid}"), phase);
        }
        let (audit, recorded) = Recorded::audit();
        let metrics = Metrics::register(&mut Registry::default(), ["main"]);
        let name_node = Arc::new(name_node);
        let issuer = Issuer::new(
            "main".to_owned(),
            name_node.clone(),
            "csi".to_owned(),
            Bounds { calls: 4, queue: 100 },
            ledger.clone(),
            tasks,
            audit.clone(),
            metrics.clone(),
        );
        let reaper = Reaper {
            ledger,
            pods: pods.clone(),
            api_server: kubernetes.serve().await,
            issuers: [("main".to_owned(), Arc::new(issuer))].into(),
            audit,
            metrics: metrics.clone(),
            grace,
            share: 4,
            tracer: Arc::new(Tracer::new(0, "system".to_owned())),
        };
        let reaper = Arc::new(reaper);
        let mut bed = Self {
            objects: ledger_objects,
            pods,
            kubernetes,
            name_node,
            recorded,
            metrics,
            reaper,
            working: None,
        };
        bed.work(Term::endless());
        bed
    }

    fn work(&mut self, term: Term) {
        let reaper = self.reaper.clone();
        self.working = Some(tokio::spawn(async move { reaper.work(term).await }));
    }

    fn ends(&self, uid: &str) {
        self.kubernetes.answers().pods.remove(&format!("jobs/pod-{uid}"));
        self.pods.delete(pod(uid).ours_on("n-1"));
    }

    /// Changes an object as somebody at the API server does.
    async fn change(&self, name: &str, patch: Value) {
        let path = format!("/apis/hadoop-token.csi/v1alpha1/namespaces/jobs/delegationtokens/{name}");
        let request = http::Request::patch(path).header("content-type", "application/json");
        let request = request.body(serde_json::to_vec(&patch).unwrap()).unwrap();
        let _: Value = self.objects.client().request(request).await.unwrap();
    }

    async fn delete(&self, name: &str) {
        let path = format!("/apis/hadoop-token.csi/v1alpha1/namespaces/jobs/delegationtokens/{name}");
        let request = http::Request::delete(path).body(Vec::new()).unwrap();
        let _: Value = self.objects.client().request(request).await.unwrap();
    }

    fn names(&self) -> Vec<String> {
        self.objects.kept().by_name.keys().cloned().collect()
    }

    fn object(&self, name: &str) -> Value {
        self.objects.kept().by_name[name].clone()
    }

    fn cancelled(&self) -> Vec<Vec<u8>> {
        self.name_node.cancelled.lock().unwrap().clone()
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let wait = timeout(Duration::from_secs(20), async {
            while !holds(self) {
                sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(wait.await.is_ok(), "{what}: {:?}, cancelled {:?}", self.objects.all(), self.cancelled());
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(working) = self.working.take() {
            working.abort();
        }
    }
}

/// The object of a token of pod `uid`, whose identifier is `token`.
fn object(name: &str, uid: &str, token: Option<&str>) -> Value {
    let facts = token.map(|token| {
        json!({
            "identifier": token, "kind": "HDFS_DELEGATION_TOKEN", "services": [], "sequenceNumber": 7,
            "issueDate": ISSUED, "maxDate": ISSUED + LIFETIME,
        })
    });
    json!({
        "metadata": {
            "namespace": "jobs", "name": name, "uid": format!("uid-{name}"), "resourceVersion": "1",
            "finalizers": ["hadoop-token.csi/cancel"],
        },
        "spec": {
            "pod": format!("pod-{uid}"), "podUid": uid, "volume": "token", "node": "n-1", "submitter": "ann",
            "user": "etl", "cluster": "main", "scope": "pod", "requestedAt": ISSUED, "token": facts,
        },
        // Far from now, whatever the clock says.
        "status": {"phase": "Active", "renewDate": ISSUED * 2},
    })
}

fn of_job(mut object: Value) -> Value {
    object["spec"]["scope"] = json!("job");
    object
}

const ONE: &[u8] = &[0, 0, 0];

#[tokio::test]
async fn a_pods_token_is_cancelled_when_it_ends_and_no_other() {
    let objects = [object("a", "u-1", Some("AAAA")), object("b", "u-2", Some("BBBB"))];
    let bed = Bed::new(&["u-1", "u-2"], objects, Scripted::default(), Duration::ZERO).await;
    bed.ends("u-1");
    bed.until("not removed", |bed| bed.names() == ["b"]).await;
    assert_eq!(bed.cancelled(), [ONE]);
    let [record] = bed.recorded.records().try_into().unwrap();
    let record: Value = record;
    for (field, value) in
        [("action", "cancel"), ("decision", "granted"), ("why", "POD_ENDED"), ("user", "etl")]
    {
        assert_eq!(record[field], value, "{record}");
    }
    assert_eq!(record["tokens"][0]["sequenceNumber"], 7);
}

#[tokio::test]
async fn what_ended_while_nobody_led_is_found() {
    let objects = ["a", "b", "c"].map(|name| object(name, "u-9", Some("AAAA")));
    let bed = Bed::new(&["u-1"], objects, Scripted::default(), Duration::ZERO).await;
    bed.until("not removed", |bed| bed.names().is_empty()).await;
    assert!(bed.cancelled().contains(&ONE.to_vec()));
}

#[tokio::test]
async fn a_deleted_object_ends_its_token_although_the_pod_lives() {
    let bed =
        Bed::new(&["u-1"], [object("a", "u-1", Some("AAAA"))], Scripted::default(), Duration::ZERO).await;
    bed.delete("a").await;
    bed.until("not removed", |bed| bed.names().is_empty()).await;
    assert_eq!(
        (bed.cancelled(), bed.recorded.records()[0]["why"].as_str()),
        (vec![ONE.to_vec()], Some("DELETED"))
    );
}

#[tokio::test]
async fn a_pod_that_the_watch_has_not_seen_yet_keeps_its_token() {
    let bed = Bed::new(&[], [object("a", "u-1", Some("AAAA"))], Scripted::default(), Duration::ZERO).await;
    let running = json!({"metadata": {"uid": "u-1"}, "status": {"phase": "Running"}});
    bed.kubernetes.answers().pods.insert("jobs/pod-u-1".to_owned(), running);
    bed.until("not asked for", |bed| bed.kubernetes.answers().requests > 0).await;
    sleep(Duration::from_millis(200)).await;
    assert!(bed.names() == ["a"] && bed.cancelled().is_empty());
    // Another pod of that name is another pod.
    let other = json!({"metadata": {"uid": "u-2"}, "status": {"phase": "Running"}});
    bed.kubernetes.answers().pods.insert("jobs/pod-u-1".to_owned(), other);
    bed.change("a", json!({"metadata": {"labels": {"a": "b"}}})).await;
    bed.until("not removed", |bed| bed.names().is_empty()).await;
}

#[tokio::test]
async fn a_pod_of_which_nothing_can_be_learnt_keeps_its_token_until_something_can() {
    let bed = Bed::new(&[], [object("a", "u-1", Some("AAAA"))], Scripted::default(), Duration::ZERO).await;
    bed.kubernetes.answers().always = Some((StatusCode::SERVICE_UNAVAILABLE, "{}".to_owned()));
    bed.until("not asked for", |bed| bed.kubernetes.answers().requests > 1).await;
    assert!(bed.cancelled().is_empty());
    bed.kubernetes.answers().always = None;
    bed.until("not removed", |bed| bed.names().is_empty()).await;
}

#[tokio::test]
async fn a_name_node_that_is_away_or_refuses_is_shown_and_asked_until_it_cancels() {
    let name_node = Scripted::default();
    name_node.cancel_errors.lock().unwrap().extend([denied(), denied()]);
    let bed = Bed::new(&[], [object("a", "u-1", Some("AAAA"))], name_node, Duration::ZERO).await;
    bed.until("not told", |bed| bed.object("a")["status"].get("lastError").is_some()).await;
    let status = bed.object("a")["status"].clone();
    assert_eq!(status["phase"], "Cancelling", "{status}");
    assert!(status["lastError"].as_str().unwrap().starts_with("CANCEL_DENIED: "), "{status}");
    bed.until("not removed", |bed| bed.names().is_empty()).await;
    assert_eq!(bed.name_node.cancel_attempts.load(SeqCst), 3);
}

#[tokio::test]
async fn an_api_server_that_does_not_remove_an_object_is_asked_until_it_does_and_the_name_node_once() {
    let objects = [object("a", "u-1", Some("AAAA"))];
    let bed = Bed::new(&["u-1"], objects, Scripted::default(), Duration::ZERO).await;
    bed.objects.kept().refuse_patch = Some(StatusCode::INTERNAL_SERVER_ERROR);
    bed.ends("u-1");
    bed.until("not cancelled", |bed| !bed.cancelled().is_empty()).await;
    sleep(Duration::from_millis(500)).await;
    bed.objects.kept().refuse_patch = None;
    bed.until("not removed", |bed| bed.names().is_empty()).await;
    assert_eq!(bed.name_node.cancel_attempts.load(SeqCst), 1);
}

#[tokio::test]
async fn the_token_of_a_cluster_that_is_not_configured_says_so_until_an_operator_lets_it_go() {
    let mut lost = object("a", "u-1", Some("AAAA"));
    lost["spec"]["cluster"] = json!("old");
    let bed = Bed::new(&[], [lost], Scripted::default(), Duration::ZERO).await;
    bed.until("not told", |bed| bed.object("a")["status"].get("lastError").is_some()).await;
    let error = bed.object("a")["status"]["lastError"].as_str().unwrap().to_owned();
    assert!(error.contains("\"old\"") && error.contains("hadoop-token.csi/release"), "{error}");
    bed.change("a", json!({"metadata": {"annotations": {"hadoop-token.csi/release": "true"}}})).await;
    bed.until("not removed", |bed| bed.names().is_empty()).await;
    bed.until("not recorded", |bed| !bed.recorded.records().is_empty()).await;
    let record = bed.recorded.records()[0].clone();
    assert_eq!(
        (record["decision"].as_str(), record["reason"].as_str()),
        (Some("failed"), Some("TOKENS_NOT_CANCELLED"))
    );
    assert!(bed.cancelled().is_empty());
}

#[tokio::test]
async fn an_operator_lets_go_of_a_token_that_its_name_node_does_not_cancel() {
    let name_node = Scripted::default();
    name_node.cancel_errors.lock().unwrap().extend(std::iter::repeat_n(denied(), 1000));
    let bed = Bed::new(&[], [object("a", "u-1", Some("AAAA"))], name_node, Duration::ZERO).await;
    bed.until("not told", |bed| bed.object("a")["status"].get("lastError").is_some()).await;
    bed.change("a", json!({"metadata": {"annotations": {"hadoop-token.csi/release": "true"}}})).await;
    bed.until("not removed", |bed| bed.names().is_empty()).await;
}

#[tokio::test]
async fn a_shared_token_lives_as_long_as_one_of_its_pods_and_is_cancelled_once() {
    let uids: Vec<_> = (0..20).map(|number| format!("u-{number}")).collect();
    let objects = uids.iter().map(|uid| of_job(object(&format!("o-{uid}"), uid, Some("AAAA"))));
    let living: Vec<_> = uids.iter().map(String::as_str).collect();
    let grace = Duration::from_secs(2);
    let bed = Bed::new(&living, objects.collect::<Vec<_>>(), Scripted::default(), grace).await;
    let (last, others) = uids.split_last().unwrap();
    others.iter().for_each(|uid| bed.ends(uid));
    bed.until("not removed", |bed| bed.names() == [format!("o-{last}")]).await;
    assert!(bed.cancelled().is_empty());
    bed.ends(last);
    sleep(grace / 2).await;
    assert!(bed.cancelled().is_empty() && bed.names().len() == 1, "does not wait for another pod");
    bed.until("not removed", |bed| bed.names().is_empty()).await;
    assert_eq!(bed.cancelled(), [ONE]);
}

#[tokio::test]
async fn pods_that_share_a_token_and_end_together_cost_one_cancellation_after_the_last_ones_grace() {
    let uids: Vec<_> = (0..20).map(|number| format!("u-{number}")).collect();
    let objects = uids.iter().map(|uid| of_job(object(&format!("o-{uid}"), uid, Some("AAAA"))));
    let living: Vec<_> = uids.iter().map(String::as_str).collect();
    let grace = Duration::from_secs(2);
    let bed = Bed::new(&living, objects.collect::<Vec<_>>(), Scripted::default(), grace).await;
    uids.iter().for_each(|uid| bed.ends(uid));
    let begun = Instant::now();
    bed.until("not removed", |bed| bed.names().is_empty()).await;
    assert!(begun.elapsed() >= grace);
    assert_eq!(bed.cancelled(), [ONE]);
}

#[tokio::test]
async fn a_shared_token_is_kept_for_a_pod_that_the_ledgers_watch_has_not_shown_yet() {
    let bed =
        Bed::new(&[], [of_job(object("a", "u-1", Some("AAAA")))], Scripted::default(), Duration::ZERO).await;
    // Written past the watch.
    let unseen = of_job(object("b", "u-2", Some("AAAA")));
    bed.objects.kept().by_name.insert("b".to_owned(), unseen);
    bed.pods.put(pod("u-2").ours_on("n-1"));
    sleep(Duration::from_secs(2)).await;
    assert!(bed.cancelled().is_empty());
}

#[tokio::test]
async fn whose_term_is_over_begins_nothing_more() {
    let name_node = Scripted::default();
    name_node.cancel_errors.lock().unwrap().extend(std::iter::repeat_n(down(), 1000));
    let mut bed = Bed::new(&[], [object("a", "u-1", Some("AAAA"))], name_node, Duration::ZERO).await;
    bed.until("not asked", |bed| bed.name_node.cancel_attempts.load(SeqCst) > 0).await;
    let working = bed.working.take().unwrap();
    working.abort();
    assert!(working.await.unwrap_err().is_cancelled());
    assert_eq!(bed.metrics.reaping.get(), 0);
    let attempts = bed.name_node.cancel_attempts.load(SeqCst);
    // The process stood still, and its timers have not noticed.
    bed.work(Term::over());
    bed.name_node.cancel_errors.lock().unwrap().clear();
    sleep(Duration::from_secs(3)).await;
    assert_eq!(bed.name_node.cancel_attempts.load(SeqCst), attempts);
    assert_eq!(bed.names(), ["a"]);
}

#[tokio::test]
async fn nothing_is_taken_for_ended_before_all_pods_have_been_seen() {
    let bed =
        Bed::new(&["u-1"], [object("a", "u-1", Some("AAAA"))], Scripted::default(), Duration::ZERO).await;
    let reaper = Reaper { pods: PodWatch::default(), ..rebuilt(&bed).await };
    let working = tokio::spawn(async move { reaper.work(Term::endless()).await });
    bed.delete("a").await;
    bed.until("not removed by the other", |bed| bed.names().is_empty()).await;
    working.abort();
    assert_eq!(bed.cancelled().len(), 1);
}

/// Another reaper of the same parts.
async fn rebuilt(bed: &Bed) -> Reaper {
    let Reaper { ledger, pods, issuers, audit, metrics, grace, share, tracer, .. } = &*bed.reaper;
    Reaper {
        ledger: ledger.clone(),
        pods: pods.clone(),
        api_server: bed.kubernetes.serve().await,
        issuers: issuers.clone(),
        audit: audit.clone(),
        metrics: metrics.clone(),
        grace: *grace,
        share: *share,
        tracer: tracer.clone(),
    }
}

#[tokio::test]
async fn the_ledgers_tokens_are_counted_by_how_far_they_have_come() {
    let mut objects = ["a", "b", "c"].map(|name| object(name, "u-1", Some("AAAA")));
    objects[2]["status"]["phase"] = json!("Cancelling");
    let bed = Bed::new(&["u-1"], objects, Scripted::default(), Duration::ZERO).await;
    let (mut registry, mut text) = (Registry::default(), String::new());
    Metrics::register_ledger(&mut registry, bed.reaper.ledger.clone());
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for (phase, count) in [("requested", 0), ("active", 2), ("cancelling", 1)] {
        let line = format!("hadoop_token_csi_ledger_tokens{{phase=\"{phase}\"}} {count}\n");
        assert!(text.contains(&line), "{line} is not in {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_has_run_without_a_token_since_the_last_sweep_is_counted() {
    let bed = Bed::new(&["u-1"], [], Scripted::default(), Duration::ZERO).await;
    let mut sweep = Sweep::default();
    bed.pods.put(pod("u-1").ours_on("n-1").with("10.0.0.1"));
    bed.reaper.pods_without_tokens(&mut sweep);
    assert_eq!(bed.metrics.pods_without_tokens.get(), 0);
    bed.pods.put(pod("u-2").ours_on("n-1").with("10.0.0.2"));
    bed.reaper.pods_without_tokens(&mut sweep);
    assert_eq!(bed.metrics.pods_without_tokens.get(), 1);
    bed.pods.delete(pod("u-1").ours_on("n-1"));
    bed.reaper.pods_without_tokens(&mut sweep);
    assert_eq!(bed.metrics.pods_without_tokens.get(), 1);
}
