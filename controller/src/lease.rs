//! One of the replicas leads: the one that holds the Lease object. Asks the API server as `election` says, and runs the
//! leader's work exactly as long as the term lasts: when it is over the work is dropped where it stands.

mod election;

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease as Object, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use process::health::Check;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::{Instant, error::Elapsed, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::election::{Claim, Election, RETRY, Record};
use crate::failure::chain;

/// Longest wait for one answer of the API server: a leader can ask twice before its time is up.
const DEADLINE: Duration = Duration::from_secs(4);
/// Longest that a leader that stops tries to say so. Others wait the longer if it cannot.
const RESIGNATION: Duration = Duration::from_secs(2);
/// Candidates ask after [`RETRY`] and up to so much of it more, so that they do not ask together.
const JITTER: f64 = 1.2;

/// A place among those who may lead.
pub(crate) struct Lease {
    objects: Api<Object>,
    namespace: String,
    name: String,
    election: Election,
    /// 1 at the leader.
    leader: Gauge,
}

/// The time for which a replica leads. Work that is not stopped in time, because the whole process was not running,
/// finds out by this before its next step.
#[derive(Clone, Debug)]
pub(crate) struct Term(Arc<Mutex<Instant>>);

impl Term {
    fn until(end: Instant) -> Self {
        Self(Arc::new(Mutex::new(end)))
    }

    /// Whether it lasts. To be asked before each step that only a leader may take.
    pub(crate) fn lasts(&self) -> bool {
        Instant::now() < self.end()
    }

    fn end(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn extend(&self, end: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = end;
    }

    /// One that lasts for the whole test.
    #[cfg(test)]
    pub(crate) fn endless() -> Self {
        Self::until(Instant::now() + Duration::from_hours(24 * 365))
    }

    /// One that is over.
    #[cfg(test)]
    pub(crate) fn over() -> Self {
        Self::until(Instant::now())
    }
}

/// Why the Lease was neither got nor kept.
#[derive(Debug, thiserror::Error)]
enum LeaseError {
    #[error("the API server refuses: {0}")]
    Refused(String),
    #[error(transparent)]
    Api(kube::Error),
    #[error("the API server did not answer within {} seconds", DEADLINE.as_secs())]
    Late(#[from] Elapsed),
    #[error("the API server answered without a resourceVersion")]
    Unversioned,
}

impl From<kube::Error> for LeaseError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused(status.message),
            error => Self::Api(error),
        }
    }
}

impl Lease {
    /// The Lease `namespace/name`. `me` has to be nobody else's name, ever.
    pub(crate) fn new(client: Client, namespace: &str, name: &str, me: String, leader: Gauge) -> Self {
        let [namespace, name] = [namespace, name].map(str::to_owned);
        let objects = Api::namespaced(client, &namespace);
        Self { objects, namespace, name, election: Election::new(me), leader }
    }

    /// Until `stop`: waits for its turn, does `work` as long as it leads, and waits again. Says in `check` whether the
    /// API server lets it.
    pub(crate) async fn run<W>(mut self, work: impl Fn(Term) -> W, check: Check, stop: CancellationToken)
    where
        W: Future<Output = ()>,
    {
        while stop.run_until_cancelled(self.acquire(&check)).await.is_some() {
            let Some(end) = self.election.leads_until() else { continue };
            let term = Term::until(end);
            info!(lease.namespace = self.namespace, lease.name = self.name, "Leads");
            self.leader.set(1);
            // In this order: work whose term is over must not be polled once more. What ends a branch drops the others.
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = self.keep(&term, &check) => warn!(lease.name = self.name, "Leads no more"),
                () = work(term.clone()) => warn!(lease.name = self.name, "The leader's work ended by itself"),
            }
            self.leader.set(0);
            if timeout(RESIGNATION, self.resign()).await.is_err() {
                info!(lease.name = self.name, "Could not release the lease in time");
            }
        }
    }

    /// Returns when it leads.
    async fn acquire(&mut self, check: &Check) {
        let mut last_holder = None;
        loop {
            self.attempt(check).await;
            if self.election.leads(Instant::now()) {
                return;
            }
            let holder = self.election.holder().map(str::to_owned);
            if holder != last_holder {
                info!(holder, lease.name = self.name, "Another replica leads");
                last_holder = holder;
            }
            sleep(RETRY.mul_f64(1.0 + fastrand::f64() * JITTER)).await;
        }
    }

    /// Renews, and returns when the term is over.
    async fn keep(&mut self, term: &Term, check: &Check) {
        loop {
            // Each wait ends with the term, an answer that does not come included.
            let end = term.end();
            let renewal = async {
                sleep(RETRY).await;
                self.attempt(check).await;
            };
            tokio::select! {
                biased;
                () = sleep_until(end) => return,
                () = renewal => {}
            }
            match self.election.leads_until() {
                Some(end) if self.election.leads(Instant::now()) => term.extend(end),
                _ => return,
            }
        }
    }

    /// One look, and one claim if there is something to claim. May be abandoned at any point.
    async fn attempt(&mut self, check: &Check) {
        let outcome = self.try_to_lead().await;
        check.set(outcome.map_err(|error| {
            let error = chain(&error);
            warn!(
                error,
                lease.namespace = self.namespace,
                lease.name = self.name,
                "Failed to get or keep the lease"
            );
            error
        }));
    }

    async fn try_to_lead(&mut self) -> Result<(), LeaseError> {
        if self.election.has_to_read(Instant::now()) {
            self.read().await?;
        }
        let Some(claim) = self.election.claim(Instant::now(), Timestamp::now()) else { return Ok(()) };
        self.write(claim).await
    }

    async fn read(&mut self) -> Result<(), LeaseError> {
        let object = timeout(DEADLINE, self.objects.get_opt(&self.name)).await??;
        let read = match object {
            Some(Object { metadata, spec }) => {
                let version = metadata.resource_version.ok_or(LeaseError::Unversioned)?;
                Some((record(spec.unwrap_or_default()), version))
            }
            None => None,
        };
        self.election.read(read, Instant::now());
        Ok(())
    }

    async fn write(&mut self, claim: Claim) -> Result<(), LeaseError> {
        let (object, sent) = (self.object(&claim), Instant::now());
        self.election.failed(); // until the answer says otherwise: it may never come, or nobody may wait for it
        let parameters = PostParams::default();
        let written = async {
            match claim.version {
                None => self.objects.create(&parameters, &object).await,
                Some(_) => self.objects.replace(&self.name, &parameters, &object).await,
            }
        };
        match timeout(DEADLINE, written).await? {
            Ok(Object { metadata, .. }) => {
                let version = metadata.resource_version.ok_or(LeaseError::Unversioned)?;
                self.election.wrote(claim, version, sent);
                Ok(())
            }
            // Another was first: the next look tells who.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets another lead at once. Whoever does not hear of it waits a little longer.
    async fn resign(&mut self) {
        let outcome = async {
            if self.election.has_to_read(Instant::now()) {
                self.read().await?;
            }
            match self.election.resign(Timestamp::now()) {
                Some(claim) => self.write(claim).await,
                None => Ok(()),
            }
        };
        let outcome: Result<(), LeaseError> = outcome.await;
        if let Err(error) = outcome {
            info!(%error, lease.name = self.name, "Could not release the lease");
        }
    }

    fn object(&self, Claim { record, version }: &Claim) -> Object {
        let seconds = i32::try_from(record.lease.as_secs()).unwrap_or(i32::MAX);
        let metadata = ObjectMeta {
            namespace: Some(self.namespace.clone()),
            name: Some(self.name.clone()),
            resource_version: version.clone(),
            ..ObjectMeta::default()
        };
        let spec = LeaseSpec {
            holder_identity: Some(record.holder.clone().unwrap_or_default()),
            lease_duration_seconds: Some(seconds),
            acquire_time: record.acquired.map(MicroTime),
            renew_time: record.renewed.map(MicroTime),
            lease_transitions: Some(record.transitions),
            ..LeaseSpec::default()
        };
        Object { metadata, spec: Some(spec) }
    }
}

fn record(spec: LeaseSpec) -> Record {
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    Record {
        holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
        lease: Duration::from_secs(seconds.unwrap_or_default()),
        acquired: spec.acquire_time.map(|time| time.0),
        renewed: spec.renew_time.map(|time| time.0),
        transitions: spec.lease_transitions.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;
