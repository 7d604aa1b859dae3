//! An API server in memory that knows of the two objects, their versions, and who wrote what.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use arc_swap::ArcSwap;
use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use process::health::Health;
use prometheus_client::registry::Registry;
use tokio::{
    net::TcpListener,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::certificate::{Identity, Rotation};

const DATE: i64 = 1_800_000_000;
const LIFETIME: Duration = Duration::from_hours(48);
const MUTATING: &str = "mutatingwebhookconfigurations";
const VALIDATING: &str = "validatingwebhookconfigurations";

#[derive(Default)]
struct Kept {
    version: u64,
    webhooks: Vec<Value>,
    /// Names of the entries that were applied last.
    applied: Vec<Value>,
}

/// What the objects are, by resource.
#[derive(Clone, Default)]
struct Server {
    objects: Arc<Mutex<BTreeMap<String, Kept>>>,
    writes: Arc<Mutex<Vec<String>>>,
    /// Somebody else writes between our reading and writing, once.
    rival: Arc<Mutex<bool>>,
    /// It fills in a field that this build does not know of.
    newer: Arc<Mutex<bool>>,
}

impl Server {
    fn with_both() -> Self {
        let server = Self::default();
        for resource in [MUTATING, VALIDATING] {
            server.objects().insert(resource.to_owned(), Kept { version: 1, ..Kept::default() });
        }
        server
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Kept>> {
        self.objects.lock().unwrap()
    }

    fn webhooks(&self, resource: &str) -> Vec<Value> {
        self.objects()[resource].webhooks.clone()
    }

    /// As `kubectl edit` does.
    fn edit(&self, resource: &str, change: impl FnOnce(&mut Vec<Value>)) {
        let mut objects = self.objects();
        let kept = objects.get_mut(resource).unwrap();
        change(&mut kept.webhooks);
        kept.version += 1;
    }

    /// Kinds of the writes since the last call.
    fn writes(&self) -> Vec<String> {
        std::mem::take(&mut *self.writes.lock().unwrap())
    }

    async fn serve(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let path = "/apis/admissionregistration.k8s.io/v1/{resource}/hadoop-token-csi";
        let router = Router::new().route(path, get(read).patch(write)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    async fn registrar(&self) -> Registrar {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let url = format!("http://{}", self.serve().await);
        let client = Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
        let metrics = Metrics::register(&mut Registry::default());
        let section = Section { interval_seconds: 1, ..Section::default() };
        let reach = Entry { where_tokens_are: true, ..entry("reach", Webhook::Validate) };
        let entries = vec![entry("pods", Webhook::Mutate), entry("pods", Webhook::Validate), reach];
        let namespaces = Arc::new(TokenNamespaces::new(BTreeSet::new()));
        Registrar::new(client, section, vec!["kube-system".to_owned()], entries, namespaces, metrics)
    }
}

async fn read(State(server): State<Server>, Path(resource): Path<String>) -> Response {
    match server.objects().get(&resource) {
        Some(kept) => Json(shown(kept)).into_response(),
        None => refused(StatusCode::NOT_FOUND, "NotFound"),
    }
}

async fn write(
    State(server): State<Server>,
    Path(resource): Path<String>,
    headers: HeaderMap,
    body: String,
) -> Response {
    let body: Value = serde_json::from_str(&body).unwrap();
    let how = headers[CONTENT_TYPE].to_str().unwrap();
    if std::mem::take(&mut *server.rival.lock().unwrap()) {
        server.edit(&resource, |_| {});
    }
    let mut objects = server.objects();
    let Some(kept) = objects.get_mut(&resource) else { return refused(StatusCode::NOT_FOUND, "NotFound") };
    if body["metadata"]["resourceVersion"] != json!(kept.version.to_string()) {
        return refused(StatusCode::CONFLICT, "Conflict");
    }
    server.writes.lock().unwrap().push(format!("{how} {resource}"));
    let wanted = body["webhooks"].as_array().unwrap();
    if how == "application/apply-patch+yaml" {
        let of_others = kept.webhooks.iter().filter(|entry| !kept.applied.contains(&entry["name"]));
        let of_others: Vec<Value> = of_others.cloned().collect();
        let merged = wanted.iter().map(|entry| {
            let present = kept.webhooks.iter().find(|there| there["name"] == entry["name"]);
            merged(present.unwrap_or(&Value::Null), entry)
        });
        kept.webhooks = merged.chain(of_others).collect();
        kept.applied = wanted.iter().map(|entry| entry["name"].clone()).collect();
    } else {
        kept.webhooks = wanted.clone();
    }
    if *server.newer.lock().unwrap() {
        for entry in &mut kept.webhooks {
            entry.as_object_mut().unwrap().entry("ofTomorrow").or_insert_with(|| json!("Default"));
        }
    }
    kept.version += 1;
    Json(shown(kept)).into_response()
}

/// Fields of others stay; so do their conditions, and their selectors' parts.
fn merged(present: &Value, applied: &Value) -> Value {
    match (present, applied) {
        (Value::Object(present), Value::Object(applied)) => {
            let mut object = present.clone();
            for (key, value) in applied {
                let before = present.get(key).unwrap_or(&Value::Null);
                object.insert(key.clone(), merged(before, value));
            }
            Value::Object(object)
        }
        _ => applied.clone(),
    }
}

fn shown(kept: &Kept) -> Value {
    let metadata = json!({"name": "hadoop-token-csi", "resourceVersion": kept.version.to_string()});
    let mut object = json!({"metadata": metadata});
    if !kept.webhooks.is_empty() {
        object["webhooks"] = json!(kept.webhooks);
    }
    object
}

fn refused(status: StatusCode, reason: &str) -> Response {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": reason,
        "code": status.as_u16(),
    });
    (status, Json(body)).into_response()
}

fn entry(name: &str, webhook: Webhook) -> Entry {
    Entry {
        name: format!("{name}.hadoop-token.csi"),
        webhook,
        rules: vec![Rule {
            operations: vec!["CREATE", "UPDATE"],
            groups: vec![String::new()],
            versions: vec!["*".to_owned()],
            resources: vec!["pods".to_owned()],
        }],
        match_conditions: vec![("ours".to_owned(), "has(object.spec)".to_owned())],
        namespaces: Vec::new(),
        failure_policy: FailurePolicy::Fail,
        where_tokens_are: false,
    }
}

fn make() -> Identity {
    Identity::make("hadoop-token-csi-webhook.hadoop-token-csi.svc", DATE, LIFETIME).unwrap()
}

fn set<'a>(identities: impl IntoIterator<Item = &'a Identity>) -> BTreeSet<Authority> {
    identities.into_iter().map(|identity| identity.authority.clone()).collect()
}

async fn pass(registrar: &Registrar, own: &Identity) -> Result<BTreeSet<Authority>, RegistrationError> {
    let nobody = BTreeSet::new();
    registrar.pass(Bundle::Shared { own: set([own]), retired: &nobody }, DATE).await
}

#[test]
fn an_entry_has_every_field_that_the_api_server_would_fill_in() {
    let common = Common {
        address: Section::default().address(),
        exempt_namespaces: vec!["kube-system".to_owned()],
        timeout_seconds: 5,
    };
    let mut entry = entry("pods", Webhook::Mutate);
    entry.namespaces = vec![Requirement { key: "team".to_owned(), operator: "Exists", values: Vec::new() }];
    let rendered = entry.rendered(&common, Some("PEM"), &BTreeSet::new());
    assert_eq!(
        rendered,
        json!({
            "name": "pods.hadoop-token.csi",
            "admissionReviewVersions": ["v1"],
            "clientConfig": {
                "service": {
                    "namespace": "hadoop-token-csi", "name": "hadoop-token-csi-webhook", "port": 443, "path": "/mutate",
                },
                "caBundle": "UEVN",
            },
            "failurePolicy": "Fail",
            "matchConditions": [{"name": "ours", "expression": "has(object.spec)"}],
            "matchPolicy": "Equivalent",
            "namespaceSelector": {"matchExpressions": [
                {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system"]},
                {"key": "team", "operator": "Exists"},
            ]},
            "objectSelector": {},
            "reinvocationPolicy": "IfNeeded",
            "rules": [{
                "operations": ["CREATE", "UPDATE"], "apiGroups": [""], "apiVersions": ["*"], "resources": ["pods"],
                "scope": "Namespaced",
            }],
            "sideEffects": "None",
            "timeoutSeconds": 5,
        })
    );
    entry.webhook = Webhook::Validate;
    let rendered = entry.rendered(&common, None, &BTreeSet::new());
    assert!(
        rendered.get("reinvocationPolicy").is_none() && rendered["clientConfig"].get("caBundle").is_none()
    );
    let typed: k8s_openapi::api::admissionregistration::v1::ValidatingWebhook =
        serde_json::from_value(rendered.clone()).unwrap();
    assert_eq!(serde_json::to_value(typed).unwrap(), rendered);
}

#[test]
fn the_certificate_is_for_the_name_that_api_servers_dial() {
    assert_eq!(Section::default().address().host(), "hadoop-token-csi-webhook.hadoop-token-csi.svc");
    for (url, host) in [
        ("https://webhook.example.com", "webhook.example.com"),
        ("https://webhook.example.com:9444/", "webhook.example.com"),
        ("https://10.0.0.7:9444", "10.0.0.7"),
        ("https://[2001:db8::7]:9444", "2001:db8::7"),
    ] {
        let section = Section { url: Some(url.to_owned()), ..Section::default() };
        assert_eq!((section.address().host().as_str(), section.mistakes().len()), (host, 0), "{url}");
    }
    for url in ["http://webhook.example.com", "https://", "webhook"] {
        let section = Section { url: Some(url.to_owned()), ..Section::default() };
        assert_eq!(section.mistakes().len(), 1, "{url}");
    }
}

#[tokio::test]
async fn both_objects_are_filled_once() {
    let server = Server::with_both();
    let (registrar, own) = (server.registrar().await, make());
    assert_eq!(pass(&registrar, &own).await.unwrap(), set([&own]));
    assert_eq!(server.writes().len(), 2);
    for (resource, count) in [(MUTATING, 1), (VALIDATING, 2)] {
        let webhooks = server.webhooks(resource);
        assert_eq!(webhooks.len(), count);
        assert!(webhooks.iter().all(|entry| certificate::read(&bundle_of(entry)) == set([&own])));
    }
    assert_eq!(pass(&registrar, &own).await.unwrap(), set([&own]));
    assert_eq!(server.writes(), Vec::<String>::new(), "nothing has changed");
}

#[tokio::test]
async fn replicas_add_their_authorities_to_each_others() {
    let server = Server::with_both();
    let (registrar, [one, other]) = (server.registrar().await, [make(), make()]);
    pass(&registrar, &one).await.unwrap();
    assert_eq!(pass(&registrar, &other).await.unwrap(), set([&one, &other]));
    assert_eq!(pass(&registrar, &one).await.unwrap(), set([&one, &other]));
}

#[tokio::test]
async fn whoever_fills_emptied_objects_does_so_for_all_replicas() {
    let server = Server::with_both();
    let (registrar, [one, other]) = (server.registrar().await, [make(), make()]);
    pass(&registrar, &other).await.unwrap();
    pass(&registrar, &one).await.unwrap();
    server.edit(MUTATING, Vec::clear);
    server.edit(VALIDATING, Vec::clear);
    assert_eq!(pass(&registrar, &one).await.unwrap(), set([&one, &other]));
    for resource in [MUTATING, VALIDATING] {
        assert_eq!(certificate::read(&bundle_of(&server.webhooks(resource)[0])), set([&one, &other]));
    }
}

#[tokio::test]
async fn a_replica_that_leaves_takes_its_authority_along_and_nothing_else() {
    let server = Server::with_both();
    let (registrar, [one, other]) = (server.registrar().await, [make(), make()]);
    pass(&registrar, &one).await.unwrap();
    pass(&registrar, &other).await.unwrap();
    // The other one is of a newer version.
    server.edit(MUTATING, |webhooks| webhooks[0]["timeoutSeconds"] = json!(7));
    server.writes();
    registrar.withdraw(&set([&one])).await.unwrap();
    for resource in [MUTATING, VALIDATING] {
        assert_eq!(certificate::read(&bundle_of(&server.webhooks(resource)[0])), set([&other]));
    }
    assert_eq!(server.webhooks(MUTATING)[0]["timeoutSeconds"], 7);
    server.writes();

    // Somebody else looks after the bundle now.
    server.edit(MUTATING, |webhooks| webhooks[0]["clientConfig"]["caBundle"] = json!("UEVN"));
    registrar.withdraw(&set([&one])).await.unwrap();
    assert_eq!(server.writes(), Vec::<String>::new());
}

type Change = fn(&mut Vec<Value>);

#[tokio::test]
async fn whatever_somebody_makes_of_the_entries_is_put_right() {
    let server = Server::with_both();
    let (registrar, own) = (server.registrar().await, make());
    pass(&registrar, &own).await.unwrap();
    let right = server.webhooks(MUTATING);
    server.writes();
    let changes: [(&str, Change); 8] = [
        ("policy", |webhooks| webhooks[0]["failurePolicy"] = json!("Ignore")),
        ("condition", |webhooks| {
            let never = json!({"name": "never", "expression": "false"});
            webhooks[0]["matchConditions"].as_array_mut().unwrap().push(never);
        }),
        ("objects", |webhooks| webhooks[0]["objectSelector"] = json!({"matchLabels": {"no": "such"}})),
        ("namespaces", |webhooks| webhooks[0]["namespaceSelector"]["matchLabels"] = json!({"no": "such"})),
        ("of tomorrow", |webhooks| webhooks[0]["exceptions"] = json!(["everything"])),
        ("bundle", |webhooks| webhooks[0]["clientConfig"]["caBundle"] = json!("bm90aGluZw==")),
        ("another entry", |webhooks| {
            let mut other = webhooks[0].clone();
            other["name"] = json!("other.example.com");
            webhooks.push(other);
        }),
        ("emptied", Vec::clear),
    ];
    for (what, change) in changes {
        server.edit(MUTATING, change);
        assert_ne!(server.webhooks(MUTATING), right, "{what}");
        pass(&registrar, &own).await.unwrap();
        assert_eq!(server.webhooks(MUTATING), right, "{what}");
        assert!(server.writes().iter().all(|write| write.ends_with(MUTATING)), "{what}");
    }
}

#[tokio::test]
async fn a_field_that_a_newer_api_server_fills_in_is_not_written_over_for_ever() {
    let server = Server::with_both();
    let (one, other, own) = (server.registrar().await, server.registrar().await, make());
    *server.newer.lock().unwrap() = true;
    for registrar in [&one, &other] {
        pass(registrar, &own).await.unwrap();
    }
    let right = server.webhooks(MUTATING);
    assert_eq!(right[0]["ofTomorrow"], "Default");
    server.writes();
    for registrar in [&one, &other, &one] {
        pass(registrar, &own).await.unwrap();
        assert_eq!(server.writes(), Vec::<String>::new());
    }
    // What others make of it is put right as ever, be it in that very field.
    for (key, value) in [("ofTomorrow", "Never"), ("failurePolicy", "Ignore"), ("unknown", "else")] {
        server.edit(MUTATING, |webhooks| webhooks[0][key] = json!(value));
        pass(&one, &own).await.unwrap();
        assert_eq!(server.webhooks(MUTATING), right, "{key}");
        server.writes();
        pass(&one, &own).await.unwrap();
        assert_eq!(server.writes(), Vec::<String>::new(), "{key}");
    }
    // Other entries are wanted, and become something else.
    let successor = make();
    for _ in 0..2 {
        server.writes();
        pass(&one, &successor).await.unwrap();
    }
    assert_eq!(server.writes(), Vec::<String>::new());
    assert_eq!(certificate::read(&bundle_of(&server.webhooks(MUTATING)[0])), set([&own, &successor]));
}

#[tokio::test]
async fn what_a_newer_api_server_fills_in_stays_where_bundles_are_of_others() {
    let server = Server::with_both();
    let registrar = server.registrar().await;
    *server.newer.lock().unwrap() = true;
    registrar.pass(Bundle::OfOthers, DATE).await.unwrap();
    server.edit(MUTATING, |webhooks| webhooks[0]["clientConfig"]["caBundle"] = json!("UEVN"));
    server.writes();
    registrar.pass(Bundle::OfOthers, DATE).await.unwrap();
    assert_eq!(server.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn what_another_replica_has_just_written_is_not_overwritten() {
    let server = Server::with_both();
    let (registrar, own) = (server.registrar().await, make());
    *server.rival.lock().unwrap() = true;
    let error = pass(&registrar, &own).await.unwrap_err();
    assert!(error.is_conflict(), "{error}");
    assert!(server.webhooks(MUTATING).is_empty());
    assert!(pass(&registrar, &own).await.is_ok());
}

#[tokio::test]
async fn an_object_that_is_not_there_is_named_and_not_made() {
    let server = Server::with_both();
    server.objects().remove(VALIDATING);
    let error = pass(&server.registrar().await, &make()).await.unwrap_err();
    assert!(!error.is_conflict());
    assert!(
        error.to_string().contains(r#"there is no ValidatingWebhookConfiguration "hadoop-token-csi""#),
        "{error}"
    );
    assert!(!server.objects().contains_key(VALIDATING));
}

#[tokio::test]
async fn bundles_of_others_are_left_alone() {
    let server = Server::with_both();
    let registrar = server.registrar().await;
    registrar.pass(Bundle::OfOthers, DATE).await.unwrap();
    let inject = |webhooks: &mut Vec<Value>| webhooks[0]["clientConfig"]["caBundle"] = json!("UEVN");
    server.edit(MUTATING, inject);
    server.writes();
    registrar.pass(Bundle::OfOthers, DATE).await.unwrap();
    assert_eq!(server.writes(), Vec::<String>::new());
    for spoilt in [json!("Ignore"), json!("Fail")] {
        server.edit(MUTATING, |webhooks| {
            webhooks[0]["failurePolicy"] = spoilt;
            webhooks[0]["unknown"] = json!(true);
        });
        registrar.pass(Bundle::OfOthers, DATE).await.unwrap();
        let webhooks = server.webhooks(MUTATING);
        assert_eq!(webhooks[0]["failurePolicy"], "Fail");
        assert!(webhooks[0].get("unknown").is_none());
        assert_eq!(webhooks[0]["clientConfig"]["caBundle"], "UEVN");
    }
}

#[tokio::test]
async fn a_replica_is_ready_once_api_servers_have_had_time_to_learn_of_its_certificate() {
    let server = Server::with_both();
    server.objects().remove(MUTATING);
    let registrar = server.registrar().await;
    let settling = Duration::from_secs(1);
    let identity = Identity::make("webhook.test", upkeep::now().date, LIFETIME).unwrap();
    let shown = Arc::new(ArcSwap::new(identity.server(None).unwrap()));
    let (own, rotation) = (set([&identity]), Rotation::new(identity, settling));
    let ours = certificate::Own { lifetime: LIFETIME, settling, clients: None };
    let host = "webhook.test".to_owned();
    let showing = Showing::OurOwn(Box::new(OurOwn { rotation, host, own: ours, shown }));
    let (health, stop) = (Health::default(), CancellationToken::new());
    let metrics = Metrics::register(&mut Registry::default());
    let upkeep = Upkeep::new(registrar, showing, health.needs("registration"), metrics);
    let running = tokio::spawn(upkeep.run(stop.clone()));
    let until = async |there: &dyn Fn(&str) -> bool| {
        let limit = Instant::now() + Duration::from_secs(10);
        while !there(&health.report().1) {
            assert!(Instant::now() < limit, "{}", health.report().1);
            sleep(Duration::from_millis(10)).await;
        }
    };
    until(&|report| report.contains("there is no MutatingWebhookConfiguration")).await;

    server.objects().insert(MUTATING.to_owned(), Kept { version: 1, ..Kept::default() });
    until(&|_| !server.webhooks(VALIDATING).is_empty()).await;
    let written = Instant::now();
    until(&|_| health.report().0).await;
    assert!(written.elapsed() > settling * 3 / 4, "too early: {:?}", written.elapsed());
    assert_eq!(certificate::read(&bundle_of(&server.webhooks(MUTATING)[0])), own);

    stop.cancel();
    running.await.unwrap().leave().await;
    assert!(bundle_of(&server.webhooks(MUTATING)[0]).is_empty(), "nobody shows it any more");
}

/// Values of the requirement that an entry makes of namespaces' names.
fn reached(server: &Server) -> Value {
    let entries = server.webhooks(VALIDATING);
    let entry = entries.iter().find(|entry| entry["name"] == "reach.hadoop-token.csi").unwrap();
    entry["namespaceSelector"]["matchExpressions"][1]["values"].clone()
}

#[tokio::test]
async fn namespaces_with_tokens_are_registered_and_those_of_other_replicas_stay() {
    let server = Server::with_both();
    let (one, other) = (server.registrar().await, server.registrar().await);
    let pass = async |registrar: &Registrar| registrar.pass(Bundle::OfOthers, DATE).await.unwrap();
    pass(&one).await;
    assert_eq!(reached(&server), json!([""]));
    for (registrar, namespace, expected) in
        [(&one, "jobs", json!(["jobs"])), (&other, "team", json!(["jobs", "team"]))]
    {
        let entering = registrar.namespaces.clone();
        let entered = tokio::spawn(async move { entering.enter(namespace).await });
        registrar.namespaces.woken().await;
        pass(registrar).await;
        assert_eq!(entered.await.unwrap(), Ok(()));
        assert_eq!(reached(&server), expected);
    }
    // Somebody takes one out.
    server.edit(VALIDATING, |entries| {
        let entry = entries.iter_mut().find(|entry| entry["name"] == "reach.hadoop-token.csi").unwrap();
        entry["namespaceSelector"]["matchExpressions"][1]["values"] = json!(["team"]);
    });
    pass(&one).await;
    assert_eq!(reached(&server), json!(["jobs", "team"]));
    // Somebody takes out all, which only the other was asked about in part.
    server.edit(VALIDATING, Vec::clear);
    pass(&one).await;
    assert_eq!(reached(&server), json!(["jobs", "team"]));
}
