//! The API server's part in the ledger, in memory and without sockets, so that it works while the clock is paused.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::{get, patch, post},
};
use futures_util::stream;
use kube::Client;
use process::health::Health;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::ledger::Ledger;

const ALL: &str = "/apis/hadoop-token.csi/v1alpha1/delegationtokens";
const COLLECTION: &str = "/apis/hadoop-token.csi/v1alpha1/namespaces/{namespace}/delegationtokens";

#[derive(Clone, Default)]
pub(crate) struct Objects(Arc<Mutex<Kept>>);

pub(crate) struct Kept {
    pub(crate) by_name: BTreeMap<String, Value>,
    /// The resource version of the last.
    pub(crate) writes: u64,
    /// What creations, and patches, are answered with.
    pub(crate) refuse_creation: Option<StatusCode>,
    pub(crate) refuse_patch: Option<StatusCode>,
    /// Creations are done, and nobody is told so.
    pub(crate) lose_creation: bool,
    /// They are done so long after that was said of them.
    pub(crate) late_creation: Duration,
    /// What lists, but not watches, are answered with.
    pub(crate) refuse_list: Option<StatusCode>,
    events: broadcast::Sender<Value>,
}

impl Default for Kept {
    fn default() -> Self {
        let events = broadcast::Sender::new(256);
        Self {
            by_name: BTreeMap::new(),
            writes: 0,
            refuse_creation: None,
            refuse_patch: None,
            lose_creation: false,
            late_creation: Duration::ZERO,
            refuse_list: None,
            events,
        }
    }
}

impl Objects {
    pub(crate) fn client(&self) -> Client {
        let router = Router::new()
            .route(ALL, get(list))
            .route(COLLECTION, post(create).get(list))
            .route(&format!("{COLLECTION}/{{name}}"), patch(change).delete(delete).get(read))
            .with_state(self.clone());
        Client::new(router, "default")
    }

    /// A ledger that follows the objects for the rest of the test, and knows those that there are.
    pub(crate) async fn followed(&self, work: TaskTracker) -> Ledger {
        let ledger = Ledger::new(self.client(), work);
        let mut changes = ledger.subscribe();
        tokio::spawn(ledger.clone().run(Health::default().needs("ledger"), CancellationToken::new()));
        while !ledger.is_complete() {
            changes.recv().await.unwrap();
        }
        ledger
    }

    pub(crate) fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap()
    }

    pub(crate) fn all(&self) -> Vec<Value> {
        self.kept().by_name.values().cloned().collect()
    }
}

fn failed(status: StatusCode) -> Response {
    let reason = if status == StatusCode::NOT_FOUND { "NotFound" } else { "" };
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": "told to",
        "code": status.as_u16(),
    });
    (status, Json(body)).into_response()
}

async fn list(State(objects): State<Objects>, uri: Uri) -> Response {
    let kept = objects.kept();
    if uri.query().is_some_and(|query| query.contains("watch=true")) {
        // What changed between list and watch would be missed, which no test provokes.
        let events = stream::try_unfold(kept.events.subscribe(), async |mut events| {
            let event: Value = events.recv().await?;
            Ok::<_, broadcast::error::RecvError>(Some((format!("{event}\n"), events)))
        });
        return Body::from_stream(events).into_response();
    }
    if let Some(status) = kept.refuse_list {
        return failed(status);
    }
    let listed = |object: &&Value| {
        let namespace = object["metadata"]["namespace"].as_str().unwrap();
        uri.path() == ALL || uri.path().contains(&format!("/namespaces/{namespace}/"))
    };
    let items: Vec<_> = kept.by_name.values().filter(listed).cloned().collect();
    let metadata = json!({"resourceVersion": kept.writes.to_string()});
    Json(json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items})).into_response()
}

async fn read(State(objects): State<Objects>, Path((_, name)): Path<(String, String)>) -> Response {
    match objects.kept().by_name.get(&name) {
        Some(object) => Json(object).into_response(),
        None => failed(StatusCode::NOT_FOUND),
    }
}

async fn create(
    State(objects): State<Objects>,
    Path(namespace): Path<String>,
    Json(mut object): Json<Value>,
) -> Response {
    let mut kept = objects.kept();
    if let Some(status) = kept.refuse_creation {
        return failed(status);
    }
    object["metadata"]["namespace"] = namespace.into();
    if !kept.late_creation.is_zero() {
        let (late, objects) = (kept.late_creation, objects.clone());
        tokio::spawn(async move {
            tokio::time::sleep(late).await;
            objects.kept().add(object);
        });
        return failed(StatusCode::GATEWAY_TIMEOUT);
    }
    let object = kept.add(object);
    if kept.lose_creation {
        return failed(StatusCode::GATEWAY_TIMEOUT);
    }
    (StatusCode::CREATED, Json(object)).into_response()
}

async fn change(
    State(objects): State<Objects>,
    Path((_, name)): Path<(String, String)>,
    Json(patch): Json<Value>,
) -> Response {
    let mut kept = objects.kept();
    if let Some(status) = kept.refuse_patch {
        return failed(status);
    }
    kept.writes += 1;
    let number = kept.writes.to_string();
    let Some(object) = kept.by_name.get_mut(&name) else { return failed(StatusCode::NOT_FOUND) };
    merge(object, &patch);
    object["metadata"]["resourceVersion"] = number.into();
    let object = object.clone();
    kept.changed(&name, &object);
    Json(object).into_response()
}

async fn delete(State(objects): State<Objects>, Path((_, name)): Path<(String, String)>) -> Response {
    let mut kept = objects.kept();
    kept.writes += 1;
    let number = kept.writes.to_string();
    let Some(object) = kept.by_name.get_mut(&name) else { return failed(StatusCode::NOT_FOUND) };
    object["metadata"]["deletionTimestamp"] = "2027-01-15T09:00:00Z".into();
    object["metadata"]["resourceVersion"] = number.into();
    let object = object.clone();
    kept.changed(&name, &object);
    Json(object).into_response()
}

impl Kept {
    fn add(&mut self, mut object: Value) -> Value {
        self.writes += 1;
        let number = self.writes.to_string();
        object["metadata"]["uid"] = format!("uid-{number}").into();
        object["metadata"]["resourceVersion"] = number.into();
        object["metadata"]["creationTimestamp"] = "2027-01-15T08:00:00Z".into();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        self.by_name.insert(name, object.clone());
        self.tell("ADDED", &object);
        object
    }

    fn changed(&mut self, name: &str, object: &Value) {
        if object["metadata"].get("deletionTimestamp").is_some() && !is_held(object) {
            self.by_name.remove(name);
            self.tell("DELETED", object);
        } else {
            self.tell("MODIFIED", object);
        }
    }

    fn tell(&self, what: &str, object: &Value) {
        drop(self.events.send(json!({"type": what, "object": object})));
    }
}

/// Whether a finalizer keeps it from vanishing.
fn is_held(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty())
}

fn merge(to: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *to = patch.clone();
        return;
    };
    if !to.is_object() {
        *to = json!({});
    }
    for (name, value) in fields {
        if value.is_null() {
            to.as_object_mut().unwrap().remove(name);
        } else {
            merge(&mut to[name.as_str()], value);
        }
    }
}
