//! What a node hears, and when its stream ends.

use std::sync::Arc;

use futures_util::StreamExt;
use hadoop::{TokenIdentifier, token::HDFS_DELEGATION_TOKEN};
use identity::{LEDGER_GROUP, ROTATE_ANNOTATION, VolumeId};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;

use super::*;
use crate::{
    issuance::tests::objects::Objects,
    ledger::{Entry, Intent, KnownToken, Scope},
    pod_watch::tests::{pod, watch_of},
    request::{PodReference, ReleasedToken, VolumeReference},
};

const ISSUED: u64 = 1_800_000_000_000;

/// Node n-1 has pod u-1 with one volume.
struct Bed {
    objects: Objects,
    sources: Sources,
}

/// What a node is told, as short as can be.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Addresses(String, Vec<String>),
    Revoke(Vec<u8>),
    Rotate,
}

fn volume() -> VolumeReference {
    let [namespace, name, uid] = ["jobs", "pod-u-1", "u-1"].map(str::to_owned);
    let pod = PodReference { namespace, name, uid };
    VolumeReference { id: VolumeId::of("u-1", "token"), name: "token".to_owned(), pod }
}

fn identifier(number: i32) -> Vec<u8> {
    let [owner, renewer, real_user] = ["etl", "csi", "csi/h@R"].map(str::to_owned);
    let (issue_date, max_date) = (ISSUED, ISSUED + 1);
    TokenIdentifier {
        owner,
        renewer,
        real_user,
        issue_date,
        max_date,
        sequence_number: number,
        master_key_id: 1,
    }
    .encode()
}

fn holds(number: i32) -> Vec<Held> {
    let token = ReleasedToken { identifier: identifier(number), kind: HDFS_DELEGATION_TOKEN.to_owned() };
    vec![Held { volume: volume(), tokens: vec![token] }]
}

impl Bed {
    async fn new() -> Self {
        let objects = Objects::default();
        let ledger = objects.followed(TaskTracker::new()).await;
        let events = Events::new(objects.client(), "test".to_owned()).0;
        let metrics = Metrics::register(&mut Registry::default(), ["main"]);
        let pods = watch_of([pod("u-1").ours_on("n-1")]);
        Self { objects, sources: Sources { pods, ledger, events, metrics } }
    }

    fn open(&self, held: &[Held]) -> NodeStream {
        NodeStream::open(self.sources.clone(), "n-1", held).unwrap()
    }

    /// The volume has a token.
    async fn issue(&self, number: i32) -> Arc<Entry> {
        let [submitter, user, cluster] = ["ann", "etl", "main"].map(str::to_owned);
        let (node, scope) = ("n-1".to_owned(), Scope::Pod);
        let intent = Intent {
            volume: volume(),
            node,
            submitter,
            user,
            cluster,
            scope,
            requested_at: ISSUED,
            after: None,
        };
        let entry = self.sources.ledger.open(&intent).await.unwrap();
        let token = KnownToken {
            identifier: identifier(number).into(),
            kind: HDFS_DELEGATION_TOKEN.into(),
            services: Box::default(),
            sequence_number: number,
            issue_date: ISSUED,
            max_date: ISSUED + 1,
        };
        self.sources.ledger.record(&entry, &token, ISSUED).await.unwrap()
    }

    /// An operator wants the token replaced.
    async fn rotate(&self, entry: &Entry, value: &str) {
        let kind = kube::api::GroupVersionKind::gvk(LEDGER_GROUP, "v1alpha1", "DelegationToken");
        let resource = ApiResource::from_gvk_with_plural(&kind, "delegationtokens");
        let objects: Api<DynamicObject> = Api::namespaced_with(self.objects.client(), "jobs", &resource);
        let patch = Patch::Merge(json!({"metadata": {"annotations": {ROTATE_ANNOTATION: value}}}));
        objects.patch(&entry.name, &PatchParams::default(), &patch).await.unwrap();
    }
}

async fn next(stream: &mut NodeStream) -> Option<Heard> {
    use wire::watch_event::Event;

    Some(match stream.next().await?.unwrap().event.unwrap() {
        Event::PodAddresses(pod) => Heard::Addresses(pod.pod_uid, pod.addresses),
        Event::Revoke(revoke) => {
            assert_eq!((&*revoke.volume_id, &*revoke.reason), (&*volume().id.to_string(), "TOKEN_REVOKED"));
            Heard::Revoke(revoke.identifiers.into_iter().next().unwrap())
        }
        Event::Rotate(rotate) => {
            assert_eq!(rotate.volume_id, volume().id.to_string());
            Heard::Rotate
        }
    })
}

/// Nothing is told for so long that it will not be.
async fn hears_nothing(stream: &mut NodeStream) {
    let heard = timeout(Duration::from_secs(60), next(stream)).await;
    assert!(heard.is_err(), "{heard:?}");
}

fn addresses<const N: usize>(uid: &str, addresses: [&str; N]) -> Option<Heard> {
    Some(Heard::Addresses(uid.to_owned(), addresses.map(str::to_owned).to_vec()))
}

#[tokio::test(start_paused = true)]
async fn a_node_hears_what_is_known_then_each_change() {
    let bed = Bed::new().await;
    let watch = &bed.sources.pods;
    watch.put(pod("u-1").ours_on("n-1").with("10.0.0.1"));
    let mut stream = bed.open(&[]);
    assert_eq!(next(&mut stream).await, addresses("u-1", ["10.0.0.1"]));
    watch.put(pod("u-2").ours_on("n-1").with("10.0.0.2").with("fd00::2"));
    assert_eq!(next(&mut stream).await, addresses("u-2", ["10.0.0.2", "fd00::2"]));
    watch.delete(pod("u-1").ours_on("n-1"));
    assert_eq!(next(&mut stream).await, addresses("u-1", []));
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_by_itself_after_about_ten_minutes() {
    let bed = Bed::new().await;
    let (start, mut stream) = (Instant::now(), bed.open(&[]));
    assert_eq!(next(&mut stream).await, None);
    assert!((480..=720).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_token_whose_object_is_deleted_is_revoked() {
    let bed = Bed::new().await;
    let entry = bed.issue(1).await;
    let mut stream = bed.open(&holds(1));
    hears_nothing(&mut stream).await;
    bed.sources.ledger.delete(&entry).await.unwrap();
    assert_eq!(next(&mut stream).await, Some(Heard::Revoke(identifier(1))));
}

#[tokio::test(start_paused = true)]
async fn nobody_is_told_of_objects_that_the_garbage_collector_deletes_after_their_pod() {
    let bed = Bed::new().await;
    let entry = bed.issue(1).await;
    let mut stream = bed.open(&holds(1));
    bed.sources.pods.delete(pod("u-1").ours_on("n-1"));
    bed.sources.ledger.delete(&entry).await.unwrap();
    hears_nothing(&mut stream).await;
}

#[tokio::test(start_paused = true)]
async fn a_token_that_was_revoked_while_nobody_listened_is_told_first() {
    let bed = Bed::new().await;
    let entry = bed.issue(1).await;
    bed.sources.ledger.delete(&entry).await.unwrap();
    assert_eq!(next(&mut bed.open(&holds(1))).await, Some(Heard::Revoke(identifier(1))));
}

#[tokio::test(start_paused = true)]
async fn a_token_that_the_ledger_does_not_have_is_looked_for_before_it_is_revoked() {
    let bed = Bed::new().await;
    assert_eq!(next(&mut bed.open(&holds(1))).await, Some(Heard::Revoke(identifier(1))));
    let entry = bed.issue(1).await;
    // It has come to the API server, and not to this controller yet.
    let find = |_: &[u8]| Vec::new();
    let [unknown] = tokens::unknown(&holds(1), find).try_into().unwrap();
    assert_eq!(unknown.verdict(&[entry]), None);
}

#[tokio::test(start_paused = true)]
async fn a_token_of_another_volume_is_none_of_this_one() {
    let bed = Bed::new().await;
    bed.issue(1).await;
    let mut held = holds(1);
    held[0].volume.pod.uid = "u-2".to_owned();
    held[0].volume.id = volume().id;
    assert_eq!(next(&mut bed.open(&held)).await, Some(Heard::Revoke(identifier(1))));
}

#[tokio::test(start_paused = true)]
async fn a_look_that_fails_revokes_nothing_and_ends_the_stream() {
    let bed = Bed::new().await;
    bed.objects.kept().refuse_list = Some(axum::http::StatusCode::SERVICE_UNAVAILABLE);
    let status = bed.open(&holds(1)).next().await.unwrap().unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
}

#[tokio::test(start_paused = true)]
async fn nobody_is_told_anything_by_a_ledger_that_was_not_read_yet() {
    let bed = Bed::new().await;
    let ledger = Ledger::new(bed.objects.client(), TaskTracker::new());
    let opened = NodeStream::open(Sources { ledger, ..bed.sources }, "n-1", &holds(1));
    assert_eq!(opened.err().unwrap().reason(), "LEDGER_UNREADABLE");
}

#[tokio::test(start_paused = true)]
async fn each_new_value_of_the_annotation_replaces_the_token_once() {
    let bed = Bed::new().await;
    let entry = bed.issue(1).await;
    let mut stream = bed.open(&holds(1));
    bed.rotate(&entry, "1").await;
    assert_eq!(next(&mut stream).await, Some(Heard::Rotate));
    // Other changes of the object ask for nothing.
    bed.sources.ledger.renewed(&entry, ISSUED).await.unwrap();
    hears_nothing(&mut stream).await;
    bed.rotate(&entry, "2").await;
    assert_eq!(next(&mut stream).await, Some(Heard::Rotate));
}

#[tokio::test(start_paused = true)]
async fn a_rotation_that_was_asked_for_while_nobody_listened_is_told_until_it_is_done() {
    let bed = Bed::new().await;
    let entry = bed.issue(1).await;
    bed.rotate(&entry, "1").await;
    assert_eq!(next(&mut bed.open(&holds(1))).await, Some(Heard::Rotate));
    assert_eq!(next(&mut bed.open(&holds(1))).await, Some(Heard::Rotate));
    bed.issue(2).await;
    hears_nothing(&mut bed.open(&holds(2))).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_told_of_its_revoked_token_and_of_no_other_that_a_node_names() {
    let bed = Bed::new().await;
    // Nobody writes them here.
    let told = |bed: &Bed| bed.sources.events.counters().dropped.get();
    let mut others = holds(7);
    others[0].volume.pod.name = "of-another-node".to_owned();
    assert_eq!(next(&mut bed.open(&others)).await, Some(Heard::Revoke(identifier(7))));
    assert_eq!(told(&bed), 0);
    assert_eq!(next(&mut bed.open(&holds(7))).await, Some(Heard::Revoke(identifier(7))));
    assert_eq!(told(&bed), 1);
    let entry = bed.issue(1).await;
    bed.sources.ledger.delete(&entry).await.unwrap();
    assert_eq!(next(&mut bed.open(&holds(1))).await, Some(Heard::Revoke(identifier(1))));
    assert_eq!(told(&bed), 2);
}

#[tokio::test(start_paused = true)]
async fn the_pod_is_not_told_of_a_token_in_whose_place_it_has_another() {
    let bed = Bed::new().await;
    let lost = bed.issue(1).await;
    bed.issue(2).await;
    bed.sources.ledger.delete(&lost).await.unwrap();
    assert_eq!(next(&mut bed.open(&holds(2))).await, Some(Heard::Revoke(identifier(1))));
    assert_eq!(bed.sources.events.counters().dropped.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_pod_is_not_told_of_a_lost_token_that_is_forgotten_before_its_node_hears_of_it() {
    let bed = Bed::new().await;
    let (lost, ledger) = (bed.issue(1).await, &bed.sources.ledger);
    bed.issue(2).await;
    let mut stream = bed.open(&holds(2));
    // Deleted, cancelled and removed while nobody reads the stream.
    ledger.delete(&lost).await.unwrap();
    sleep(Duration::from_millis(100)).await;
    let [deleted] = ledger.by_identifier(&identifier(1)).try_into().unwrap();
    ledger.remove(&deleted).await.unwrap();
    sleep(Duration::from_millis(100)).await;
    assert_eq!(ledger.by_identifier(&identifier(1)), []);
    assert_eq!(next(&mut stream).await, Some(Heard::Revoke(identifier(1))));
    assert_eq!(bed.sources.events.counters().dropped.get(), 0);
    // A node that was away names what it lost itself.
    let mut held = holds(1);
    held.extend(holds(2));
    assert_eq!(next(&mut bed.open(&held)).await, Some(Heard::Revoke(identifier(1))));
    assert_eq!(bed.sources.events.counters().dropped.get(), 0);
    // What the volume uses is another matter, also when it is forgotten at once.
    let [used] = ledger.by_identifier(&identifier(2)).try_into().unwrap();
    let mut stream = bed.open(&holds(2));
    ledger.delete(&used).await.unwrap();
    sleep(Duration::from_millis(100)).await;
    let [deleted] = ledger.by_identifier(&identifier(2)).try_into().unwrap();
    ledger.remove(&deleted).await.unwrap();
    sleep(Duration::from_millis(100)).await;
    assert_eq!(next(&mut stream).await, Some(Heard::Revoke(identifier(2))));
    assert_eq!(bed.sources.events.counters().dropped.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_shared_token_that_the_volume_has_by_another_object_as_well_stays_with_it() {
    let bed = Bed::new().await;
    let [first, second] = [bed.issue(1).await, bed.issue(1).await];
    let ledger = &bed.sources.ledger;
    let mut stream = bed.open(&holds(1));
    ledger.delete(&first).await.unwrap();
    hears_nothing(&mut stream).await;
    hears_nothing(&mut bed.open(&holds(1))).await;
    let mut stream = bed.open(&holds(1));
    ledger.delete(&second).await.unwrap();
    assert_eq!(next(&mut stream).await, Some(Heard::Revoke(identifier(1))));
}
