//! An API server in memory, for answers that a real one does not give when told to.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::ApiServer;

/// What it answers.
#[derive(Default)]
pub(crate) struct Answers {
    /// Status of the review of each token.
    pub(crate) reviews: BTreeMap<String, Value>,
    /// Pods by namespace and name.
    pub(crate) pods: BTreeMap<String, Value>,
    /// Whatever else there is, by path.
    pub(crate) objects: BTreeMap<String, Value>,
    /// Those that were written.
    pub(crate) events: Vec<Value>,
    /// When set, every answer is this.
    pub(crate) always: Option<(StatusCode, String)>,
    pub(crate) requests: usize,
}

#[derive(Clone, Default)]
pub(crate) struct FakeApiServer(Arc<Mutex<Answers>>);

impl FakeApiServer {
    pub(crate) fn answers(&self) -> MutexGuard<'_, Answers> {
        self.0.lock().unwrap()
    }

    /// Serves on a port of its own for the rest of the test.
    pub(crate) async fn serve(&self) -> ApiServer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new()
            .route("/apis/authentication.k8s.io/v1/tokenreviews", post(review))
            .route("/api/v1/namespaces/{namespace}/pods/{name}", get(pod))
            .route("/apis/events.k8s.io/v1/namespaces/{namespace}/events", post(event))
            .fallback(get(object))
            .with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        api_server(&url)
    }
}

/// The API server at `url`, whoever is there.
pub(crate) fn api_server(url: &str) -> ApiServer {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    ApiServer::new(kube::Config::new(url.parse().unwrap())).unwrap()
}

async fn review(State(fake): State<FakeApiServer>, Json(review): Json<Value>) -> Response {
    let mut answers = fake.answers();
    answers.requests += 1;
    if let Some(answer) = answers.always.clone() {
        return answer.into_response();
    }
    let token = review["spec"]["token"].as_str().unwrap();
    let status = answers.reviews.get(token).cloned().unwrap_or_else(|| json!({"error": "unknown token"}));
    let mut review = review.clone();
    review["status"] = status;
    (StatusCode::CREATED, Json(review)).into_response()
}

async fn pod(State(fake): State<FakeApiServer>, Path((namespace, name)): Path<(String, String)>) -> Response {
    fake.found(&format!("pod {name:?}"), |answers| answers.pods.get(&format!("{namespace}/{name}")))
}

async fn event(State(fake): State<FakeApiServer>, Json(event): Json<Value>) -> Response {
    let mut answers = fake.answers();
    if let Some(answer) = answers.always.clone() {
        return answer.into_response();
    }
    answers.events.push(event.clone());
    (StatusCode::CREATED, Json(event)).into_response()
}

async fn object(State(fake): State<FakeApiServer>, uri: Uri) -> Response {
    fake.found(uri.path(), |answers| answers.objects.get(uri.path()))
}

impl FakeApiServer {
    fn found(&self, what: &str, find: impl FnOnce(&Answers) -> Option<&Value>) -> Response {
        let mut answers = self.answers();
        answers.requests += 1;
        if let Some(answer) = answers.always.clone() {
            return answer.into_response();
        }
        match find(&answers) {
            Some(object) => Json(object).into_response(),
            None => {
                let status = json!({
                    "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound",
                    "message": format!("{what} not found"), "code": 404,
                });
                (StatusCode::NOT_FOUND, Json(status)).into_response()
            }
        }
    }
}
