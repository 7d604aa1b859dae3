//! The gRPC service: parse, gather facts, decide, act, record, answer. Each of these is somebody else's; here is only
//! in which order, and that no answer goes out before its audit record is safe.

mod check;
mod disagreements;
mod issue;
mod judge;
mod release;
mod renew;
mod strangers;

use std::{collections::BTreeMap, net::IpAddr, panic::resume_unwind, sync::Arc, time::Duration};

use process::tls::peer;
use proto::token::v1::{self as wire, token_service_server};
use secrecy::SecretString;
use tokio::{sync::oneshot, time::Instant};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};
use tracing::warn;

use self::issue::Prepared;
pub(crate) use self::{disagreements::Disagreements, judge::Judge, strangers::Strangers};
use crate::{
    audit::{Action, Audit, Decision, Record, RequestId},
    authorization::Identity,
    events::{Events, Severity},
    failure::Failure,
    issuance::Issuer,
    job::Jobs,
    ledger::Ledger,
    metrics::Metrics,
    node_stream::{NodeStream, Sources},
    request::{
        Check, InvalidRequest, Issue, PodReference, Release, Renew, VolumeReference, driver_token, held,
        renewals,
    },
};

/// What stands behind the service.
pub(crate) struct TokenService {
    pub(crate) judge: Judge,
    /// One for each of the policy's clusters.
    pub(crate) issuers: BTreeMap<String, Arc<Issuer>>,
    pub(crate) ledger: Ledger,
    /// Tokens that several pods have.
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) audit: Audit,
    pub(crate) metrics: Metrics,
    pub(crate) events: Events,
    /// How long a volume keeps its tokens without a check.
    pub(crate) recheck: Duration,
    pub(crate) strangers: Strangers,
    /// Calls of node plugins, which end with their record.
    pub(crate) work: TaskTracker,
}

/// The service as node plugins see it.
pub(crate) struct Calls(pub(crate) Arc<TokenService>);

#[tonic::async_trait]
impl token_service_server::TokenService for Calls {
    async fn issue(
        &self,
        request: Request<wire::IssueRequest>,
    ) -> Result<Response<wire::IssueResponse>, Status> {
        let (caller, message) = taken_apart(request);
        let request = Issue::try_from(message).map_err(|invalid| self.0.invalid(Action::Issue, invalid))?;
        let call = Call::new(Action::Issue, &request.volume);
        // Without addresses kubelet waits for the answer, and tells of it itself.
        let call = Call { unseen: request.addresses.is_some(), ..call };
        let (driver, call) = self.0.proven(caller, 1, call).await?;
        let prepared = self.0.issued(driver, request, call).await?;
        // Nothing is awaited from here on: either the answer goes out or the tokens are cancelled.
        Ok(Response::new(prepared.hand_over()))
    }

    async fn renew(
        &self,
        request: Request<wire::RenewRequest>,
    ) -> Result<Response<wire::RenewResponse>, Status> {
        let (caller, message) = taken_apart(request);
        let requests = renewals(message).map_err(|invalid| self.0.invalid(Action::Renew, invalid))?;
        let tokens = requests.iter().map(|request| request.tokens.len()).sum();
        let (first, mut calls) = calls(&requests);
        let (driver, first) = self.0.proven(caller, tokens, first).await?;
        for call in &mut calls {
            call.record.node.clone_from(&first.record.node);
        }
        let calls = std::iter::once(first).chain(calls);
        let outcomes = self.0.renew_all(driver, requests.into_iter().zip(calls)).await;
        Ok(Response::new(wire::RenewResponse { outcomes }))
    }

    async fn check(
        &self,
        request: Request<wire::CheckRequest>,
    ) -> Result<Response<wire::CheckResponse>, Status> {
        let (caller, message) = taken_apart(request);
        let request = Check::try_from(message).map_err(|invalid| self.0.invalid(Action::Check, invalid))?;
        let action = if request.addresses.is_some() { Action::Verify } else { Action::Check };
        let call = Call { unseen: true, ..Call::new(action, &request.volume) };
        let (driver, mut call) = self.0.proven(caller, request.tokens.len(), call).await?;
        let service = Arc::clone(&self.0);
        let work = async move {
            let outcome = service.check_tokens(driver, &request, &mut call).await;
            service.recorded(call, outcome).await
        };
        Ok(Response::new(self.0.to_its_end(work).await?))
    }

    async fn release(
        &self,
        request: Request<wire::ReleaseRequest>,
    ) -> Result<Response<wire::ReleaseResponse>, Status> {
        let (caller, message) = taken_apart(request);
        let request =
            Release::try_from(message).map_err(|invalid| self.0.invalid(Action::Release, invalid))?;
        let call = Call::new(Action::Release, &request.volume);
        let (_, mut call) = self.0.proven(caller, request.tokens.len(), call).await?;
        let service = Arc::clone(&self.0);
        let work = async move {
            let outcome = service.release_tokens(&request, &mut call).await;
            service.recorded(call, outcome).await
        };
        Ok(Response::new(self.0.to_its_end(work).await?))
    }

    type WatchStream = NodeStream;

    async fn watch(&self, request: Request<wire::WatchRequest>) -> Result<Response<NodeStream>, Status> {
        let (caller, message) = taken_apart(request);
        let service = &self.0;
        let held = held(message).map_err(|invalid| service.invalid(Action::Watch, invalid))?;
        let (driver, call) = service.proven(caller, 1, Call::of_nobody(Action::Watch)).await?;
        let sources = Sources {
            pods: service.judge.pods.clone(),
            ledger: service.ledger.clone(),
            events: service.events.clone(),
            metrics: service.metrics.clone(),
        };
        match NodeStream::open(sources, &driver.node_name.unwrap_or_default(), &held) {
            // Not recorded: nothing is decided, and what is told is no secret to the node.
            Ok(stream) => Ok(Response::new(stream)),
            Err(failure) => Ok(service.recorded(call, Err(failure)).await?),
        }
    }
}

/// The calls that a request for renewals is made of: one for each volume.
fn calls(requests: &[Renew]) -> (Call, Vec<Call>) {
    let mut calls = requests.iter().map(|request| Call::new(Action::Renew, &request.volume));
    let first = calls.next().unwrap_or_else(|| Call::of_nobody(Action::Renew)); // there is one
    (first, calls.collect())
}

/// What a request says of its caller: a token, if any, and the address.
struct Caller {
    token: Option<SecretString>,
    peer: Option<IpAddr>,
}

fn taken_apart<T>(request: Request<T>) -> (Caller, T) {
    let (metadata, extensions, message) = request.into_parts();
    (Caller { token: driver_token(&metadata), peer: peer(&extensions) }, message)
}

/// One call on its way through the service.
struct Call {
    record: Record,
    /// What was done in its course, besides what it asked for.
    follow_ups: Vec<Record>,
    /// The node plugin proved that it asks for this pod: events may be written about it.
    pod_proven: bool,
    /// kubelet does not wait for the answer, so nobody but us tells the pod's owner.
    unseen: bool,
    begun: Instant,
}

impl Call {
    fn new(action: Action, volume: &VolumeReference) -> Self {
        let mut call = Self::of_nobody(action);
        call.record.namespace.clone_from(&volume.pod.namespace);
        call.record.pod.clone_from(&volume.pod.name);
        call.record.uid.clone_from(&volume.pod.uid);
        call.record.volume.clone_from(&volume.name);
        call
    }

    /// A call for no volume.
    fn of_nobody(action: Action) -> Self {
        let record = Record::new(action, RequestId::random());
        Self { record, follow_ups: Vec::new(), pod_proven: false, unseen: false, begun: Instant::now() }
    }

    /// Whether the pod's owner is to hear of `failure` by an event.
    fn tells_owner(&self, failure: &Failure) -> bool {
        let of_others = matches!(
            failure,
            Failure::Hadoop { .. } | Failure::Late { .. } | Failure::ApiServer(_) | Failure::Directory(_)
        );
        self.pod_proven && (matches!(failure, Failure::Refused(_)) || self.unseen && of_others)
    }
}

impl TokenService {
    /// The node plugin that calls, for so many tokens. A call of somebody else ends here, recorded.
    async fn proven(
        &self,
        caller: Caller,
        tokens: usize,
        mut call: Call,
    ) -> Result<(Identity, Call), Failure> {
        match self.judge.driver(caller.token, caller.peer, tokens, &mut call.record).await {
            Ok(driver) => Ok((driver, call)),
            Err(failure) => self.recorded(call, Err(failure)).await,
        }
    }

    /// Sees `work` through, and its record, even when the caller goes away meanwhile.
    async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<T, Failure> {
        match self.work.spawn(work).await {
            Ok(outcome) => outcome,
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                Err(_) => Err(Failure::Stopping),
            },
        }
    }

    /// New tokens, recorded. When the caller goes away, the rest is not asked for, and what there is is cancelled.
    async fn issued(
        self: &Arc<Self>,
        driver: Identity,
        request: Issue,
        mut call: Call,
    ) -> Result<Prepared, Failure> {
        let (gone, waiting) = oneshot::channel::<()>();
        let service = Arc::clone(self);
        let prepared = self
            .to_its_end(async move {
                let outcome = tokio::select! {
                    outcome = service.issue_tokens(driver, &request, &mut call) => outcome,
                    _ = waiting => Err(Failure::CallerGone),
                };
                service.recorded(call, outcome).await
            })
            .await;
        drop(gone);
        prepared
    }

    /// The outcome, once it is safe in the audit log. What was to be handed over is dropped when it cannot be recorded.
    async fn recorded<T>(&self, mut call: Call, outcome: Result<T, Failure>) -> Result<T, Failure> {
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
            }
        }
        self.metrics.took(action, call.begun.elapsed());
        let _room = if call.record.node.is_some() {
            None
        } else if let Some(room) = self.strangers.room() {
            Some(room)
        } else {
            let Record { decision, reason, .. } = call.record;
            self.metrics.decided(action, decision, reason);
            self.metrics.unrecorded.inc();
            return outcome;
        };
        if let Err(failure) = &outcome {
            self.tell(&call, failure);
        }
        match (outcome, self.write(&call).await) {
            (Ok(_), Err(failure)) => {
                self.tell(&call, &failure);
                Err(failure)
            }
            (outcome, _) => outcome,
        }
    }

    async fn write(&self, call: &Call) -> Result<(), Failure> {
        for record in call.follow_ups.iter().chain([&call.record]) {
            self.audit
                .write(record)
                .await
                .inspect_err(|error| warn!(%error, "Failed to write audit record"))?;
        }
        Ok(())
    }

    /// Says in our log and, when it is that pod's, in the pod's events why a call failed.
    fn tell(&self, call: &Call, failure: &Failure) {
        let Record { action, namespace, pod, uid, volume, .. } = &call.record;
        warn!(
            call = action.name(),
            reason = failure.reason(),
            error = %failure,
            pod.namespace = namespace,
            pod.name = pod,
            pod.uid = uid,
            volume.name = volume,
            "Call failed"
        );
        if call.tells_owner(failure) {
            let pod = PodReference { namespace: namespace.clone(), name: pod.clone(), uid: uid.clone() };
            self.events.publish(&pod, Severity::Warning, failure.reason(), &failure.to_string());
        }
    }

    /// A request that no node plugin of ours sends: of nobody that is known, about no pod that is known.
    fn invalid(&self, action: Action, invalid: InvalidRequest) -> Failure {
        let failure = Failure::from(invalid);
        self.metrics.decided(action, Decision::Refused, Some(failure.reason()));
        if self.strangers.room().is_some() {
            warn!(call = action.name(), reason = failure.reason(), error = %failure, "Call failed");
        } else {
            self.metrics.unrecorded.inc();
        }
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
