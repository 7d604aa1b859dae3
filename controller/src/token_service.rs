//! The gRPC service: parse, gather facts, decide, act, record, answer. Each of these is somebody else's; here is only
//! in which order, and that no answer goes out before its audit record is safe.

mod check;
mod disagreements;
mod issue;
mod judge;
mod release;
mod renew;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use proto::token::v1::{self as wire, token_service_server};
use secrecy::SecretString;
use tokio::{sync::Semaphore, time::Instant};
use tonic::{Request, Response, Status};
use tracing::warn;

pub(crate) use self::{disagreements::Disagreements, judge::Judge};
use crate::{
    audit::{Action, Audit, Decision, Record, RequestId},
    events::{Events, Severity},
    failure::Failure,
    issuance::Issuer,
    metrics::Metrics,
    node_stream::NodeStream,
    request::{Check, Issue, Release, Renew, VolumeReference, driver_token},
};

/// Audit records under way for callers that are not known to be node plugins, or ask too often. More are only counted,
/// so that none of them can fill the log's queue.
const STRANGERS: usize = 16;

/// What stands behind the service.
pub(crate) struct TokenService {
    pub(crate) judge: Judge,
    /// One for each of the policy's clusters.
    pub(crate) issuers: BTreeMap<String, Arc<Issuer>>,
    pub(crate) audit: Audit,
    pub(crate) metrics: Metrics,
    pub(crate) events: Events,
    /// How long a volume keeps its tokens without a check.
    pub(crate) recheck: Duration,
    pub(crate) strangers: Strangers,
}

/// Room for the audit records of strangers.
pub(crate) struct Strangers(Semaphore);

impl Default for Strangers {
    fn default() -> Self {
        Self(Semaphore::new(STRANGERS))
    }
}

#[tonic::async_trait]
impl token_service_server::TokenService for TokenService {
    async fn issue(
        &self,
        request: Request<wire::IssueRequest>,
    ) -> Result<Response<wire::IssueResponse>, Status> {
        let (driver, message) = taken_apart(request);
        let request = Issue::try_from(message).map_err(|invalid| self.invalid(Action::Issue, invalid))?;
        let mut call = Call::new(Action::Issue, &request.volume);
        let outcome = self.issue_tokens(driver, &request, &mut call).await;
        let prepared = self.recorded(call, &request.volume, outcome).await?;
        // Nothing is awaited from here on: either the answer goes out or the tokens are cancelled.
        Ok(Response::new(prepared.hand_over()))
    }

    async fn renew(
        &self,
        request: Request<wire::RenewRequest>,
    ) -> Result<Response<wire::RenewResponse>, Status> {
        let (driver, message) = taken_apart(request);
        let request = Renew::try_from(message).map_err(|invalid| self.invalid(Action::Renew, invalid))?;
        let mut call = Call::new(Action::Renew, &request.volume);
        let outcome = self.renew_tokens(driver, &request, &mut call).await;
        self.recorded(call, &request.volume, outcome).await.map(Response::new).map_err(Status::from)
    }

    async fn check(
        &self,
        request: Request<wire::CheckRequest>,
    ) -> Result<Response<wire::CheckResponse>, Status> {
        let (driver, message) = taken_apart(request);
        let request = Check::try_from(message).map_err(|invalid| self.invalid(Action::Check, invalid))?;
        let action = if request.addresses.is_some() { Action::Verify } else { Action::Check };
        let mut call = Call::new(action, &request.volume);
        let outcome = self.check_tokens(driver, &request, &mut call).await;
        self.recorded(call, &request.volume, outcome).await.map(Response::new).map_err(Status::from)
    }

    async fn release(
        &self,
        request: Request<wire::ReleaseRequest>,
    ) -> Result<Response<wire::ReleaseResponse>, Status> {
        let (driver, message) = taken_apart(request);
        let request = Release::try_from(message).map_err(|invalid| self.invalid(Action::Release, invalid))?;
        let mut call = Call::new(Action::Release, &request.volume);
        let outcome = self.release_tokens(driver, &request, &mut call).await;
        self.recorded(call, &request.volume, outcome).await.map(Response::new).map_err(Status::from)
    }

    type WatchStream = NodeStream;

    async fn watch(&self, request: Request<wire::WatchRequest>) -> Result<Response<NodeStream>, Status> {
        let (driver, _) = taken_apart(request);
        // Not recorded: nothing is decided, and what is told is no secret to the node.
        let driver = self.judge.driver(driver, &mut Record::new(Action::Check, RequestId::random())).await?;
        let node = driver.node_name.unwrap_or_default();
        let stream = NodeStream::open(&self.judge.pods, &node).ok_or(Failure::TooManyWatches)?;
        Ok(Response::new(stream.counted(&self.metrics.open_watches)))
    }
}

fn taken_apart<T>(request: Request<T>) -> (Option<SecretString>, T) {
    let (metadata, _, message) = request.into_parts();
    (driver_token(&metadata), message)
}

/// One call on its way through the service.
struct Call {
    record: Record,
    /// What was done in its course, besides what it asked for.
    follow_ups: Vec<Record>,
    /// The node plugin proved that it asks for this pod: events may be written about it.
    pod_proven: bool,
    begun: Instant,
}

impl Call {
    fn new(action: Action, volume: &VolumeReference) -> Self {
        let mut record = Record::new(action, RequestId::random());
        record.namespace.clone_from(&volume.pod.namespace);
        record.pod.clone_from(&volume.pod.name);
        record.uid.clone_from(&volume.pod.uid);
        record.volume.clone_from(&volume.name);
        Self { record, follow_ups: Vec::new(), pod_proven: false, begun: Instant::now() }
    }
}

impl TokenService {
    /// The outcome, once it is safe in the audit log. What was to be handed over is dropped when it cannot be recorded.
    async fn recorded<T>(
        &self,
        mut call: Call,
        volume: &VolumeReference,
        outcome: Result<T, Failure>,
    ) -> Result<T, Failure> {
        let action = call.record.action;
        match &outcome {
            // A check that ends with a revocation has said so itself.
            Ok(_) if call.record.reason.is_some() => {}
            Ok(_) => call.record.granted(),
            Err(failure) => {
                let refused = matches!(failure, Failure::Refused(_) | Failure::Invalid(_));
                call.record.decision = if refused { Decision::Refused } else { Decision::Failed };
                call.record.reason = Some(failure.reason());
                call.record.message = Some(failure.to_string());
                self.tell(&call, volume, failure);
            }
        }
        self.metrics.took(action, call.begun.elapsed());
        let written = self.write(&call).await;
        match (outcome, written) {
            (Ok(_), Err(failure)) => {
                self.tell(&call, volume, &failure);
                Err(failure)
            }
            (outcome, _) => outcome,
        }
    }

    async fn write(&self, call: &Call) -> Result<(), Failure> {
        let _room = if call.record.node.is_some() {
            None
        } else {
            match self.strangers.0.try_acquire() {
                Ok(room) => Some(room),
                Err(_) => {
                    let Record { action, decision, reason, .. } = call.record;
                    self.metrics.decided(action, decision, reason);
                    return Ok(());
                }
            }
        };
        for record in call.follow_ups.iter().chain([&call.record]) {
            self.audit
                .write(record)
                .await
                .inspect_err(|error| warn!(%error, "Failed to write audit record"))?;
        }
        Ok(())
    }

    /// Says in our log and, when it is that pod's, in the pod's events why a call failed.
    fn tell(&self, call: &Call, volume: &VolumeReference, failure: &Failure) {
        warn!(
            call = call.record.action.name(),
            reason = failure.reason(),
            error = %failure,
            pod.namespace = volume.pod.namespace,
            pod.name = volume.pod.name,
            pod.uid = volume.pod.uid,
            volume.name = volume.name,
            "Call failed"
        );
        if call.pod_proven && matches!(failure, Failure::Refused(_)) {
            self.events.publish(&volume.pod, Severity::Warning, failure.reason(), &failure.to_string());
        }
    }

    /// A request that no node plugin of ours sends: of nobody that is known, about no pod that is known.
    fn invalid(&self, action: Action, invalid: crate::request::InvalidRequest) -> Failure {
        let failure = Failure::from(invalid);
        warn!(call = action.name(), reason = failure.reason(), error = %failure, "Call failed");
        self.metrics.decided(action, Decision::Refused, Some(failure.reason()));
        failure
    }

    fn issuer(&self, cluster: &str) -> Result<&Arc<Issuer>, Failure> {
        self.judge.policy.known(cluster)?;
        // The policy's clusters are the keys of the map: both come from one list.
        self.issuers.get(cluster).ok_or(Failure::Stopping)
    }

    fn recheck_seconds(&self) -> u32 {
        u32::try_from(self.recheck.as_secs()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests;
