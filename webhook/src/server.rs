//! What the API server meets: two URLs to which it posts reviews, over TLS. Bounds time, size and number of what is
//! under way, and makes of whatever goes wrong in a decision a denial that says so. Decides nothing.

mod connection;
mod failure;
mod review;
mod room;

use std::{io, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use kube::core::admission::Operation;
use process::tls::Connection;
use serde::Deserialize;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tokio_rustls::server::TlsStream;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, error, info, warn};

use self::{
    failure::Failure,
    room::{Room, UNIT, Whole},
};
use crate::{
    admission::{Denial, Question, Verdict},
    metrics::{Counted, Decision, Metrics, Webhook},
};

/// Whoever decides. A decision that takes too long is dropped where it waits.
pub(crate) trait Reviewer: Send + Sync + 'static {
    /// Decides.
    fn review(&self, question: Question) -> Review<'_>;
}

/// A decision under way.
pub(crate) type Review<'a> = std::pin::Pin<Box<dyn Future<Output = Verdict> + Send + 'a>>;

/// Bounds on what is done at once; the configuration's key `limits`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(crate) struct Limits {
    /// Connections, of API servers and of whoever else comes.
    pub(crate) connections: usize,
    /// The largest review.
    pub(crate) body_bytes: usize,
    /// All reviews that are decided together, and once more all that are on their way. What a review takes in memory
    /// while it is decided is a multiple, for which the manifest has a limit: it goes with this default.
    pub(crate) bodies_bytes: usize,
    /// How long the API server goes on sending reviews to a replica that is about to stop.
    pub(crate) linger_seconds: u64,
    /// How long reviews under way may take to end after that.
    pub(crate) drain_seconds: u64,
}

const MEBIBYTE: usize = 1024 * 1024;

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            body_bytes: 8 * MEBIBYTE,
            bodies_bytes: 8 * MEBIBYTE,
            linger_seconds: 5,
            drain_seconds: 15,
        }
    }
}

impl Limits {
    /// What is wrong with it, each with the key.
    pub(crate) fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if self.connections == 0 {
            mistakes.push("limits.connections: must be at least 1".to_owned());
        }
        if self.body_bytes < UNIT {
            mistakes.push(format!("limits.bodyBytes: must be at least {UNIT}"));
        }
        if self.bodies_bytes < self.body_bytes {
            mistakes.push("limits.bodiesBytes: must be at least limits.bodyBytes".to_owned());
        }
        if u32::try_from(self.bodies_bytes / UNIT).is_err() {
            mistakes.push("limits.bodiesBytes: is too much".to_owned());
        }
        mistakes
    }
}

/// The two webhooks.
pub(crate) struct Server {
    mutate: Arc<dyn Reviewer>,
    validate: Arc<dyn Reviewer>,
    metrics: Metrics,
    /// From the first byte of a review to its answer.
    time_limit: Duration,
    room: Room,
}

impl Server {
    pub(crate) fn new(
        mutate: Arc<dyn Reviewer>,
        validate: Arc<dyn Reviewer>,
        limits: &Limits,
        time_limit: Duration,
        metrics: Metrics,
    ) -> Self {
        Self { mutate, validate, metrics, time_limit, room: Room::new(limits) }
    }

    /// Serves `connections` until `stop`, and then until the reviews that are under way are answered. From `leaving` on,
    /// each answer is the last one on its connection.
    pub(crate) async fn serve(
        self,
        mut connections: ReceiverStream<io::Result<TlsStream<Connection>>>,
        leaving: CancellationToken,
        stop: CancellationToken,
    ) {
        let (router, open) = (self.router(), TaskTracker::new());
        while let Some(Some(connection)) = stop.run_until_cancelled(connections.next()).await {
            match connection {
                Ok(connection) => {
                    let serving =
                        connection::serve(connection, router.clone(), leaving.clone(), stop.clone());
                    open.spawn(serving);
                }
                Err(error) => debug!(%error, "Failed to accept a connection"),
            }
        }
        open.close();
        open.wait().await;
    }

    fn router(self) -> Router {
        let mutate = |State(server): State<Arc<Self>>, request| async move {
            server.handle(Webhook::Mutate, request).await
        };
        let validate = |State(server): State<Arc<Self>>, request| async move {
            server.handle(Webhook::Validate, request).await
        };
        Router::new()
            .route("/mutate", post(mutate))
            .route("/validate", post(validate))
            .with_state(Arc::new(self))
    }

    async fn handle(&self, webhook: Webhook, request: Request) -> Response {
        let _counted = Counted::new(&self.metrics.in_flight);
        let started = Instant::now();
        let deadline = started + self.time_limit;
        match self.read(request, deadline).await {
            Ok(whole) => self.review(webhook, &whole.bytes, started).await,
            Err(failure) => self.turn_away(webhook, failure),
        }
    }

    /// Takes the whole body, as there is room for it.
    async fn read(&self, request: Request, deadline: Instant) -> Result<Whole, Failure> {
        if !is_json(request.headers()) {
            return Err(Failure::NotJson);
        }
        let announced = announced(request.headers());
        let whole = self.room.read(announced, request.into_body(), deadline).await?;
        self.metrics.request_bytes.observe(f64::from(u32::try_from(whole.bytes.len()).unwrap_or(u32::MAX)));
        Ok(whole)
    }

    async fn review(&self, webhook: Webhook, body: &[u8], started: Instant) -> Response {
        let question = match review::read(body) {
            Ok(question) => question,
            Err(review::Unreadable { uid: Some(uid), why }) => {
                warn!(webhook = webhook.name(), why, "Failed to read a review");
                let failure = Failure::Unreadable(why);
                self.metrics.turned_away(webhook, failure.reason());
                return answer(&uid, &Verdict::Denied(failure.into()));
            }
            Err(review::Unreadable { uid: None, why }) => {
                return self.turn_away(webhook, Failure::Unreadable(why));
            }
        };
        let asked = Asked::of(webhook, &question);
        let verdict = self.decide(webhook, question, started + self.time_limit).await;
        self.record(&asked, &verdict, started.elapsed());
        answer(&asked.uid, &verdict)
    }

    /// Has the question decided; a decision that crashes or does not come in time is a denial.
    async fn decide(&self, webhook: Webhook, question: Question, deadline: Instant) -> Verdict {
        let reviewer = match webhook {
            Webhook::Mutate => self.mutate.clone(),
            Webhook::Validate => self.validate.clone(),
        };
        // A task of its own, because a crash ends no more than that; dropped with this future.
        let mut task = JoinSet::new();
        task.spawn(async move { reviewer.review(question).await });
        match timeout_at(deadline, task.join_next()).await {
            Ok(Some(Ok(verdict))) => verdict,
            Ok(Some(Err(crash))) => {
                error!(webhook = webhook.name(), error = %crash, "A review crashed");
                Verdict::Denied(Failure::Crashed.into())
            }
            Ok(None) => Verdict::Denied(Failure::Crashed.into()),
            Err(_) => Verdict::Denied(Failure::TooSlow.into()),
        }
    }

    fn record(&self, asked: &Asked, verdict: &Verdict, time: Duration) {
        let Asked { webhook, operation, resource, namespace, name, user, uid, dry_run } = asked;
        let (webhook_name, milliseconds) = (webhook.name(), time.as_millis());
        let (decision, reason) = match verdict {
            Verdict::Allowed(allowed) => {
                let decision = if allowed.patch.is_empty() { Decision::Allowed } else { Decision::Patched };
                debug!(
                    webhook = webhook_name,
                    ?operation,
                    resource,
                    namespace,
                    name,
                    user,
                    uid,
                    dry_run,
                    milliseconds,
                    decision = decision.name(),
                    "Reviewed"
                );
                (decision, None)
            }
            Verdict::Denied(Denial { reason, message, code }) => {
                info!(
                    webhook = webhook_name,
                    ?operation,
                    resource,
                    namespace,
                    name,
                    user,
                    uid,
                    dry_run,
                    milliseconds,
                    reason,
                    code,
                    message,
                    "Denied"
                );
                (Decision::Denied, Some(*reason))
            }
        };
        self.metrics.reviewed(*webhook, operation, decision, reason, time);
    }

    fn turn_away(&self, webhook: Webhook, failure: Failure) -> Response {
        let (reason, message) = (failure.reason(), failure.message());
        debug!(webhook = webhook.name(), reason, message, "Turned a request away");
        self.metrics.turned_away(webhook, reason);
        let status = StatusCode::from_u16(failure.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, message + "\n").into_response()
    }
}

/// Of what was asked, what log and metrics say.
struct Asked {
    webhook: Webhook,
    operation: Operation,
    resource: String,
    namespace: String,
    name: String,
    user: String,
    uid: String,
    dry_run: bool,
}

impl Asked {
    fn of(webhook: Webhook, question: &Question) -> Self {
        let request = &question.request;
        let mut resource = request.resource.resource.clone();
        for (sign, part) in [('.', Some(&request.resource.group)), ('/', request.sub_resource.as_ref())] {
            if let Some(part) = part.filter(|part| !part.is_empty()) {
                resource.push(sign);
                resource.push_str(part);
            }
        }
        Self {
            webhook,
            operation: request.operation.clone(),
            resource,
            namespace: request.namespace.clone().unwrap_or_default(),
            name: request.name.clone(),
            user: request.user_info.username.clone().unwrap_or_default(),
            uid: request.uid.clone(),
            dry_run: request.dry_run,
        }
    }
}

fn answer(uid: &str, verdict: &Verdict) -> Response {
    match review::answer(uid, verdict) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => {
            error!(%error, uid, "Failed to write an answer");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default();
    kind.trim().eq_ignore_ascii_case("application/json")
}

/// The length that the body has by its headers.
fn announced(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
