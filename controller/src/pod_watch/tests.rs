//! Pods that share addresses, come, go and finish; nodes that listen, or do not; an API server that goes away.

use std::collections::BTreeSet;

use axum::{
    Router,
    body::Body,
    http::{StatusCode, Uri},
};
use proto::DRIVER_NAME;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;
use crate::caller::fake::api_server;

/// A pod, to be written down piece by piece.
#[derive(Clone)]
pub(crate) struct Draft(Value);

pub(crate) fn pod(uid: &str) -> Draft {
    Draft(json!({
        "metadata": {"namespace": "jobs", "name": format!("pod-{uid}"), "uid": uid, "resourceVersion": "1"},
        "spec": {"nodeName": "n-0", "containers": []},
        "status": {"phase": "Running"},
    }))
}

impl Draft {
    pub(crate) fn ours_on(mut self, node: &str) -> Self {
        self.0["spec"]["nodeName"] = json!(node);
        self.0["spec"]["volumes"] = json!([{"name": "token", "csi": {"driver": DRIVER_NAME}}]);
        self
    }

    pub(crate) fn with(mut self, address: &str) -> Self {
        let status = &mut self.0["status"];
        let mut addresses = status["podIPs"].as_array().cloned().unwrap_or_default();
        addresses.push(json!({"ip": address}));
        status["podIPs"] = json!(addresses);
        self
    }

    fn set(mut self, pointer: &str, key: &str, value: Value) -> Self {
        self.0.pointer_mut(pointer).unwrap()[key] = value;
        self
    }

    fn read(self) -> WatchedPod {
        serde_json::from_value(self.0).unwrap()
    }
}

impl PodWatch {
    pub(crate) fn put(&self, pod: Draft) {
        self.take(Event::Apply(pod.read()));
    }

    pub(crate) fn delete(&self, pod: Draft) {
        self.take(Event::Delete(pod.read()));
    }

    fn list(&self, pods: impl IntoIterator<Item = Draft>) {
        self.take(Event::Init);
        for pod in pods {
            self.take(Event::InitApply(pod.read()));
        }
        self.take(Event::InitDone);
    }

    fn names_sharing(&self, address: &str) -> BTreeSet<String> {
        let sharers = self.sharing(&[address.parse().unwrap()], "u-me").unwrap();
        sharers.into_iter().map(|sharer| sharer.uid).collect()
    }
}

/// A watch that has seen `pods`.
pub(crate) fn watch_of(pods: impl IntoIterator<Item = Draft>) -> PodWatch {
    let watch = PodWatch::default();
    watch.list(pods);
    watch
}

fn uids<const N: usize>(uids: [&str; N]) -> BTreeSet<String> {
    uids.map(str::to_owned).into()
}

#[test]
fn finds_every_other_pod_with_one_of_the_addresses() {
    let watch = watch_of([
        pod("u-me").with("10.0.0.1"),
        pod("u-1").with("10.0.0.1"),
        pod("u-2").with("10.0.0.2").with("fd00::1"),
        pod("u-3").with("10.0.0.3"),
    ]);
    let addresses = ["10.0.0.1", "fd00::1", "fd00:0::0:1"].map(|address| address.parse().unwrap());
    let found: Vec<_> = watch.sharing(&addresses, "u-me").unwrap();
    let expected = |uid: &str| PodReference {
        namespace: "jobs".to_owned(),
        name: format!("pod-{uid}"),
        uid: uid.to_owned(),
    };
    assert_eq!(found, [expected("u-1"), expected("u-2")]);
}

#[test]
fn finished_pods_share_nothing_and_those_that_are_about_to_end_still_do() {
    let watch = watch_of([
        pod("u-1").with("10.0.0.1").set("/status", "phase", json!("Succeeded")),
        pod("u-2").with("10.0.0.1").set("/status", "phase", json!("Failed")),
        pod("u-3").with("10.0.0.1").set("/metadata", "deletionTimestamp", json!("2026-01-01T00:00:00Z")),
        pod("u-4").with("10.0.0.1").set("/spec", "hostNetwork", json!(true)),
    ]);
    assert_eq!(watch.names_sharing("10.0.0.1"), uids(["u-3", "u-4"]));
}

#[test]
fn of_many_pods_with_one_address_a_few_are_named() {
    let watch = watch_of((0..200).map(|number| pod(&format!("u-{number}")).with("10.0.0.1").with("fd00::1")));
    let addresses = ["10.0.0.1", "fd00::1"].map(|address| address.parse().unwrap());
    assert_eq!(watch.sharing(&addresses, "u-7").unwrap().len(), 16);
}

#[test]
fn a_pod_that_ends_or_moves_or_is_replaced_leaves_its_address() {
    let watch = watch_of([pod("u-1").with("10.0.0.1"), pod("u-2").with("10.0.0.2")]);
    watch.put(pod("u-1").with("10.0.0.1").set("/status", "phase", json!("Succeeded")));
    assert_eq!(watch.names_sharing("10.0.0.1"), uids([]));
    watch.put(pod("u-2").with("10.0.0.3"));
    assert_eq!(watch.names_sharing("10.0.0.2"), uids([]));
    assert_eq!(watch.names_sharing("10.0.0.3"), uids(["u-2"]));
    watch.put(pod("u-2"));
    assert_eq!(watch.names_sharing("10.0.0.3"), uids([]));
    // A new pod of the same name is another pod.
    watch.put(pod("u-4").with("10.0.0.4").set("/metadata", "name", json!("same")));
    watch.put(pod("u-5").with("10.0.0.5").set("/metadata", "name", json!("same")));
    watch.delete(pod("u-4").set("/metadata", "name", json!("same")));
    assert_eq!(watch.names_sharing("10.0.0.5"), uids(["u-5"]));
}

#[test]
fn a_new_list_forgets_what_went_unseen_and_keeps_the_rest_meanwhile() {
    let watch = watch_of([pod("u-1").with("10.0.0.1"), pod("u-2").with("10.0.0.2")]);
    watch.take(Event::Init);
    watch.take(Event::InitApply(pod("u-2").with("10.0.0.2").read()));
    assert_eq!(watch.names_sharing("10.0.0.1"), uids(["u-1"]));
    // This list came to nothing, the next one does not.
    watch.list([pod("u-2").with("10.0.0.2")]);
    assert_eq!(watch.names_sharing("10.0.0.1"), uids([]));
    assert_eq!(watch.names_sharing("10.0.0.2"), uids(["u-2"]));
}

#[test]
fn nobody_is_said_to_be_alone_before_all_pods_have_been_seen() {
    let watch = PodWatch::default();
    assert!(watch.sharing(&[], "u-me").is_err());
    watch.take(Event::Init);
    watch.take(Event::InitApply(pod("u-1").with("10.0.0.1").read()));
    assert!(watch.sharing(&[], "u-me").is_err());
    watch.take(Event::InitDone);
    assert!(watch.sharing(&[], "u-me").is_ok());
}

fn failure() -> watcher::Error {
    watcher::Error::NoResourceVersion
}

#[tokio::test(start_paused = true)]
async fn what_was_seen_long_ago_is_good_for_nothing() {
    let watch = watch_of([]);
    watch.fails(&failure());
    assert!(watch.sharing(&[], "u-me").is_ok());
    tokio::time::advance(LONGEST_LAG / 2).await;
    watch.fails(&failure());
    // The beginning of an attempt proves nothing, nor does its first page.
    watch.take(Event::Init);
    watch.take(Event::InitApply(pod("u-1").with("10.0.0.1").read()));
    watch.fails(&failure());
    watch.take(Event::Init);
    watch.take(Event::InitApply(pod("u-1").with("10.0.0.1").read()));
    tokio::time::advance(LONGEST_LAG / 2 + Duration::from_secs(1)).await;
    let error = watch.sharing(&[], "u-me").unwrap_err();
    assert!(error.to_string().contains("resourceVersion"), "{error}");
    assert!(watch.health().is_err());
    watch.list([]);
    assert!(watch.sharing(&[], "u-me").is_ok());
    assert_eq!(watch.health(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn silence_after_a_failure_means_that_the_watch_has_resumed() {
    let watch = watch_of([]);
    assert_eq!(watch.resumes_at(), None);
    watch.fails(&failure());
    assert_eq!(watch.resumes_at(), Some(Instant::now() + RESUMED));
    // While a list is under way silence means nothing.
    watch.take(Event::Init);
    assert_eq!(watch.resumes_at(), None);
    watch.list([]);
    assert_eq!((watch.resumes_at(), watch.health()), (None, Ok(())));
}

/// UIDs of the ended ones since the last call; "all" for a new list.
fn ended(changes: &mut broadcast::Receiver<PodChange>) -> Vec<String> {
    let changes = std::iter::from_fn(|| changes.try_recv().ok());
    let name = |change| match change {
        PodChange::Ended(uid) => uid.to_string(),
        PodChange::Listed => "all".to_owned(),
    };
    changes.map(name).collect()
}

#[test]
fn the_end_of_a_pod_of_ours_is_told_however_it_comes() {
    let of_ours = ["u-1", "u-2", "u-3", "u-4"].map(|uid| pod(uid).ours_on("n-1"));
    let watch = PodWatch::default();
    let mut changes = watch.changes();
    assert!(!watch.is_complete());
    watch.list(of_ours.clone());
    assert!(watch.is_complete() && ended(&mut changes) == ["all"]);
    assert!(watch.uses_us("u-1") && !watch.uses_us("u-9"));
    let named = |name: &str| PodReference {
        namespace: "jobs".to_owned(),
        name: name.to_owned(),
        uid: "u-1".to_owned(),
    };
    let on = |name, node| watch.uses_us_on(&named(name), node);
    assert!(on("pod-u-1", "n-1") && !on("pod-u-1", "n-2") && !on("pod-u-2", "n-1"));
    let [finished, failed, deleted, unseen] = of_ours;
    watch.put(finished.set("/status", "phase", json!("Succeeded")));
    watch.put(failed.with("10.0.0.2"));
    watch.put(pod("u-2").ours_on("n-1").with("10.0.0.2").set("/status", "phase", json!("Failed")));
    watch.delete(deleted);
    assert_eq!(ended(&mut changes), ["u-1", "u-2", "u-3"]);
    // Its deletion was not seen, a list without it was.
    drop(unseen);
    watch.list([]);
    assert_eq!(ended(&mut changes), ["u-4", "all"]);
    assert!(!["u-1", "u-2", "u-3", "u-4"].iter().any(|uid| watch.uses_us(uid)));
}

#[test]
fn a_pod_that_has_no_address_no_volume_of_ours_or_no_node_yet_does_not_run_with_our_volume() {
    let terminating = json!("2026-01-01T00:00:00Z");
    let watch = watch_of([
        pod("u-1").ours_on("n-1"),
        pod("u-2").with("10.0.0.2"),
        pod("u-3").ours_on("n-1").set("/spec", "nodeName", Value::Null),
        pod("u-4").ours_on("n-1").with("10.0.0.4").set("/metadata", "deletionTimestamp", terminating),
    ]);
    let mut changes = watch.changes();
    assert_eq!(watch.running().into_iter().map(|pod| pod.uid).collect::<Vec<_>>(), ["u-4"]);
    let of_us = |uid: &&str| watch.uses_us(uid);
    assert_eq!(
        ["u-1", "u-2", "u-3", "u-4"].iter().copied().filter(of_us).collect::<Vec<_>>(),
        ["u-1", "u-4"]
    );
    // Losing its addresses is no end.
    watch.put(pod("u-4").ours_on("n-1"));
    assert!(watch.uses_us("u-4") && watch.running().is_empty() && ended(&mut changes).is_empty());
}

fn told(changes: &mut Subscription) -> Option<(String, usize)> {
    let change = changes.changes.try_recv().ok()?;
    Some((change.uid.to_string(), change.addresses.len()))
}

#[test]
fn a_node_hears_of_its_own_pods_with_our_volume_only() {
    let watch = watch_of([
        pod("u-1").ours_on("n-1").with("10.0.0.1"),
        pod("u-2").ours_on("n-2").with("10.0.0.2"),
        pod("u-3").with("10.0.0.3"),
        pod("u-4").ours_on("n-1"),
    ]);
    let mut node = watch.subscribe("n-1").unwrap();
    assert_eq!(node.snapshot.iter().map(|pod| &*pod.uid).collect::<Vec<_>>(), ["u-1"]);
    watch.put(pod("u-4").ours_on("n-1").with("10.0.0.4"));
    // Nothing new about its addresses.
    watch.put(pod("u-4").ours_on("n-1").with("10.0.0.4").set("/metadata", "labels", json!({"a": "b"})));
    watch.put(pod("u-2").ours_on("n-2").with("10.0.0.5"));
    watch.put(pod("u-3").with("10.0.0.6"));
    watch.put(pod("u-1").ours_on("n-1").with("10.0.0.1").set("/status", "phase", json!("Failed")));
    assert_eq!(told(&mut node), Some(("u-4".to_owned(), 1)));
    assert_eq!(told(&mut node), Some(("u-1".to_owned(), 0)));
    assert_eq!(told(&mut node), None);
    // What a new list does not have any more is gone too.
    watch.list([]);
    assert_eq!(told(&mut node), Some(("u-4".to_owned(), 0)));
}

#[test]
fn a_node_that_does_not_read_is_cut_off_and_begins_anew() {
    let watch = watch_of([]);
    let mut node = watch.subscribe("n-1").unwrap();
    for number in 0..10_000 {
        watch.put(pod(&format!("u-{}", number % 7)).ours_on("n-1").with(&format!("10.0.{}.1", number % 250)));
    }
    let mut read = 0;
    while told(&mut node).is_some() {
        read += 1;
    }
    assert!(node.changes.is_closed() && read < 1000, "{read}");
    assert_eq!(watch.subscribe("n-1").unwrap().snapshot.len(), 7);
}

#[test]
fn a_nodes_second_subscription_ends_its_first_and_all_end_with_the_process() {
    let watch = watch_of([]);
    let (mut first, mut second) = (watch.subscribe("n-1").unwrap(), watch.subscribe("n-1").unwrap());
    watch.put(pod("u-1").ours_on("n-1").with("10.0.0.1"));
    assert!(first.changes.is_closed() && told(&mut first).is_none());
    assert!(told(&mut second).is_some());
    watch.state().store.close();
    assert!(second.changes.is_closed());
    assert!(watch.subscribe("n-1").is_none());
}

#[test]
fn a_null_where_a_list_could_be_is_no_mistake() {
    let empty = pod("u-1").set("/spec", "volumes", Value::Null).set("/status", "podIPs", Value::Null).set(
        "/metadata",
        "deletionTimestamp",
        Value::Null,
    );
    watch_of([empty.clone(), empty.set("/status", "phase", Value::Null)]);
    let bare: WatchedPod =
        serde_json::from_value(json!({"metadata": {"namespace": "a", "name": "b", "uid": "c"}})).unwrap();
    assert_eq!(bare.uid(), "c");
}

/// As large as real ones are, with all that is not needed.
fn large_pod(number: usize) -> Draft {
    let uid = format!("{number:08x}-1111-4222-8333-444455556666");
    let name = format!("spark-executor-{number:06}-exec-17");
    let noise: Value =
        (0..40).map(|n| json!({"name": format!("VARIABLE_{n}"), "value": "x".repeat(60)})).collect();
    let [a, b, c] = [number / 65536, number / 256 % 256, number % 256];
    pod(&uid)
        .ours_on(&format!("node-{:04}.example.com", number / 100))
        .with(&format!("10.{a}.{b}.{c}"))
        .with(&format!("fd00::{number:x}"))
        .set("/metadata", "name", json!(name))
        .set("/metadata", "annotations", json!({"long": "x".repeat(1000)}))
        .set("/spec", "containers", json!([{"name": "main", "env": noise}]))
}

fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Four times as many as promised, so that other tests' memory matters little.
#[test]
fn ten_thousand_pods_cost_a_few_megabytes() {
    let watch = watch_of([]);
    let before = resident_bytes();
    watch.list((0..40_000).map(large_pod));
    let cost = resident_bytes().saturating_sub(before) / 4;
    println!("10,000 pods of ours: {} KiB", cost / 1024);
    assert_eq!(watch.state().store.len(), 40_000);
    assert!(cost < 8 << 20, "{cost} bytes");
}

/// Serves one list, then one watch that stays open, as told.
struct Served {
    watch: PodWatch,
    health: process::health::Health,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
    requests: Arc<Mutex<Vec<String>>>,
    answers: tokio::sync::mpsc::UnboundedSender<(StatusCode, Body)>,
}

impl Served {
    /// Each request takes the next answer, or waits for one.
    async fn new() -> Self {
        let (answers, waiting) = tokio::sync::mpsc::unbounded_channel::<(StatusCode, Body)>();
        let (waiting, requests) =
            (Arc::new(tokio::sync::Mutex::new(waiting)), Arc::<Mutex<Vec<_>>>::default());
        let seen = requests.clone();
        let router = Router::new().fallback(move |uri: Uri| {
            let waiting = waiting.clone();
            seen.lock().unwrap().push(uri.to_string());
            async move { waiting.lock().await.recv().await.unwrap() }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let (watch, health, stop) =
            (PodWatch::default(), process::health::Health::default(), CancellationToken::new());
        let pods = Api::all(api_server(&url).client());
        let running = tokio::spawn(watch.clone().run(pods, health.shows("pod-watch"), stop.clone()));
        Self { watch, health, stop, running, requests, answers }
    }

    fn lists(&self, pods: impl IntoIterator<Item = Draft>) {
        let items: Vec<_> = pods.into_iter().map(|pod| pod.0).collect();
        let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "7"}, "items": items});
        self.answers.send((StatusCode::OK, list.to_string().into())).unwrap();
    }

    /// A watch, open until the sender goes.
    fn watches(&self) -> tokio::sync::mpsc::UnboundedSender<String> {
        let (lines, mut read) = tokio::sync::mpsc::unbounded_channel::<String>();
        let stream = futures_util::stream::poll_fn(move |context| {
            read.poll_recv(context).map(|line| line.map(Ok::<_, std::convert::Infallible>))
        });
        self.answers.send((StatusCode::OK, Body::from_stream(stream))).unwrap();
        lines
    }

    fn refuses(&self, code: u16, message: &str) {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code});
        self.answers.send((StatusCode::from_u16(code).unwrap(), status.to_string().into())).unwrap();
    }

    async fn until(&self, what: &str, holds: impl Fn(&PodWatch) -> bool) {
        let wait = tokio::time::timeout(Duration::from_secs(20), async {
            while !holds(&self.watch) {
                tokio::task::yield_now().await;
            }
        });
        assert!(
            wait.await.is_ok(),
            "{what}; {:?}; {}",
            self.requests.lock().unwrap(),
            self.health.report().1
        );
    }
}

fn line(kind: &str, pod: Draft, version: u32) -> String {
    let pod = pod.set("/metadata", "resourceVersion", json!(version.to_string()));
    format!("{}\n", json!({"type": kind, "object": pod.0}))
}

#[tokio::test]
async fn follows_the_api_server_through_changes_lost_connections_and_lost_history() {
    let served = Served::new().await;
    served.lists([pod("u-1").with("10.0.0.1")]);
    let lines = served.watches();
    served.until("listed", |watch| watch.sharing(&[], "").is_ok()).await;
    assert_eq!(served.watch.names_sharing("10.0.0.1"), uids(["u-1"]));
    lines.send(line("ADDED", pod("u-2").with("10.0.0.2"), 8)).unwrap();
    lines.send(line("DELETED", pod("u-1").with("10.0.0.1"), 9)).unwrap();
    served.until("changed", |watch| watch.names_sharing("10.0.0.1").is_empty()).await;
    assert_eq!(served.watch.names_sharing("10.0.0.2"), uids(["u-2"]));
    // The connection ends: it goes on where it was.
    let lines = {
        drop(lines);
        served.watches()
    };
    lines.send(line("ADDED", pod("u-3").with("10.0.0.3"), 10)).unwrap();
    served.until("resumed", |watch| !watch.names_sharing("10.0.0.3").is_empty()).await;
    assert!(served.requests.lock().unwrap().last().unwrap().contains("resourceVersion=9"));
    // The API server does not remember so far back: all is listed anew.
    let gone = json!({"type": "ERROR", "object": {"kind": "Status", "status": "Failure", "message": "too old", "reason": "Expired", "code": 410}});
    lines.send(format!("{gone}\n")).unwrap();
    served.until("failing", |watch| watch.health().is_err()).await;
    assert!(served.health.report().1.contains("too old"), "{}", served.health.report().1);
    served.lists([pod("u-4").with("10.0.0.4")]);
    served.until("listed anew", |watch| !watch.names_sharing("10.0.0.4").is_empty()).await;
    served.until("forgotten", |watch| watch.names_sharing("10.0.0.3").is_empty()).await;
    assert_eq!(served.health.report().1, "[+] pod-watch: ok\n");
}

#[tokio::test]
async fn a_missing_right_is_shown_and_the_watch_begins_when_it_is_granted() {
    let served = Served::new().await;
    served.until("shown", |_| served.health.report().1.contains("not all pods")).await;
    served.refuses(403, "pods is forbidden");
    served.until("shown", |_| served.health.report().1.contains("pods is forbidden")).await;
    served.lists([]);
    served.until("listed", |watch| watch.sharing(&[], "").is_ok()).await;
    let mut node = served.watch.subscribe("n-1").unwrap();
    served.stop.cancel();
    served.running.await.unwrap();
    assert!(node.changes.recv().await.is_none());
}
