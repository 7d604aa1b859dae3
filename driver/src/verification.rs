//! Has the controller check volumes: now and then whether the tokens may stay, and, whenever the API server has other
//! addresses of a pod than were verified last, whether they are those in the pod's network namespace. A volume that
//! waits for its first token gets it in the same way. A failure to check is a warning and another attempt; the
//! controller's word alone takes a token away.

mod looking;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::IpAddr,
    sync::Arc,
};

use proto::{VolumeId, token::v1::ObservedAddresses};
use tokio::{
    sync::Semaphore,
    task::{Id, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span, warn};

use crate::{
    controller_client::{CallError, Checked},
    pod_network::{Sight, Wanted},
    refresh::{AT_ONCE, queue::backoff},
    volume::{
        Phase, Record,
        error::VolumeError,
        lifecycle::{Volumes, blocking},
    },
};
use looking::{Looking, Step};

/// What a waiting volume waits for once the API server has its pod's addresses.
const FOR_A_PROCESS: &str = "for the node plugin to see a process of the pod";

/// A look that comes due while the volume is being asked about is put off by this.
const PUT_OFF: std::time::Duration = std::time::Duration::from_secs(1);

/// Addresses of a pod, as both sides see them.
struct Addresses {
    observed: ObservedAddresses,
    /// Those that the API server had when we looked.
    of_api_server: BTreeSet<IpAddr>,
}

/// Checks what is due until `stop`.
pub(crate) async fn run(volumes: Volumes, stop: CancellationToken) {
    let mut work = Work {
        volumes,
        looking: HashMap::new(),
        failed_checks: HashMap::new(),
        calls: JoinSet::new(),
        called: HashMap::new(),
        permits: Arc::new(Semaphore::new(AT_ONCE)),
    };
    let volumes = work.volumes.clone();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            id = volumes.looks.due() => {
                let mut due = volumes.looks.all_due();
                due.push(id);
                work.look(due).await;
            }
            id = volumes.checks.due() => work.call(id, None),
            Some(ended) = work.calls.join_next_with_id() => match ended {
                Ok((task, result)) => work.ended(task, result),
                Err(error) => {
                    // The volume's turn comes again with kubelet's next publish.
                    warn!(%error, "A check ended in a way it must not");
                    work.called.remove(&error.id());
                }
            },
        }
    }
}

struct Work {
    volumes: Volumes,
    /// Volumes whose pods' addresses are being verified.
    looking: HashMap<VolumeId, Looking>,
    /// Failures in a row of checks that are not about addresses.
    failed_checks: HashMap<VolumeId, u32>,
    calls: JoinSet<Result<bool, AskError>>,
    /// The volumes about which the controller is being asked, and whether that is about addresses.
    called: HashMap<Id, (VolumeId, bool)>,
    permits: Arc<Semaphore>,
}

impl Work {
    /// Looks once at all processes, for all of these volumes.
    async fn look(&mut self, mut due: Vec<VolumeId>) {
        due.retain(|id| {
            let busy = self.is_called(id);
            if busy {
                self.volumes.looks.insert(id.clone(), Instant::now() + PUT_OFF);
            }
            !busy
        });
        let looked = blocking({
            let (volumes, due) = (self.volumes.clone(), due.clone());
            move || look(&volumes, &due)
        });
        let mut seen = match looked.await {
            Ok(seen) => seen,
            Err(error) => {
                warn!(%error, "Failed to look for the addresses of pods");
                for id in due {
                    self.failed_to_look(id, &error.to_string()).await;
                }
                return;
            }
        };
        for id in due {
            let Some((sight, of_api_server)) = seen.remove(&id) else {
                self.looking.remove(&id); // no need any more, or no way yet
                continue;
            };
            let now = Instant::now();
            let looking = self.looking.entry(id.clone()).or_insert_with(|| Looking::since(now));
            match looking.step(sight, now) {
                Step::LookAgain(wait) => {
                    self.volumes.looks.insert(id.clone(), now + wait);
                    self.say_waiting(&id, FOR_A_PROCESS).await;
                }
                Step::Tell(observed) => self.call(id, Some(Addresses { observed, of_api_server })),
            }
        }
    }

    async fn failed_to_look(&mut self, id: VolumeId, error: &str) {
        let now = Instant::now();
        let looking = self.looking.entry(id.clone()).or_insert_with(|| Looking::since(now));
        self.volumes.looks.insert(id.clone(), now + looking.failed(fastrand::f64()));
        self.say_waiting(&id, error).await;
    }

    /// Asks the controller about a volume, not more than a few at once.
    fn call(&mut self, id: VolumeId, addresses: Option<Addresses>) {
        let about_addresses = addresses.is_some();
        if self.is_called(&id) {
            let agenda = if about_addresses { &self.volumes.looks } else { &self.volumes.checks };
            agenda.insert(id, Instant::now() + PUT_OFF);
            return;
        }
        let (volumes, permits) = (self.volumes.clone(), self.permits.clone());
        let call = self.calls.spawn({
            let id = id.clone();
            async move {
                let _permit = permits.acquire().await; // it is never closed
                let span = info_span!("check", volume.id = %id);
                let asking = volumes.clone();
                volumes.to_its_end(async move { ask(&asking, &id, addresses).await }.instrument(span)).await
            }
        });
        self.called.insert(call.id(), (id, about_addresses));
    }

    fn is_called(&self, id: &VolumeId) -> bool {
        self.called.values().any(|(called, _)| called == id)
    }

    fn ended(&mut self, task: Id, result: Result<bool, AskError>) {
        let Some((id, about_addresses)) = self.called.remove(&task) else { return };
        let now = Instant::now();
        match (result, about_addresses) {
            (Ok(true), true) => drop(self.looking.remove(&id)),
            (Ok(_), false) => drop(self.failed_checks.remove(&id)),
            (Ok(false), true) => {
                let looking = self.looking.entry(id.clone()).or_insert_with(|| Looking::since(now));
                self.volumes.looks.insert(id, now + looking.again(now));
            }
            (Err(error), true) => {
                let looking = self.looking.entry(id.clone()).or_insert_with(|| Looking::since(now));
                let retry_in = looking.failed(fastrand::f64());
                warn!(volume.id = %id, %error, ?retry_in, "Failed to have a pod's addresses verified");
                self.volumes.looks.insert(id, now + retry_in);
            }
            (Err(error), false) => {
                let failures = self.failed_checks.entry(id.clone()).or_default();
                let retry_in = backoff(*failures, fastrand::f64());
                *failures = failures.saturating_add(1);
                warn!(volume.id = %id, %error, ?retry_in, "Failed to have a volume checked");
                self.volumes.checks.insert(id, now + retry_in);
                let (checks, called) = (&self.volumes.checks, &self.called);
                let is_called = |id: &VolumeId| called.values().any(|(called, _)| called == id);
                // Others were unpublished.
                self.failed_checks.retain(|id, _| checks.contains(id) || is_called(id));
            }
        }
    }

    async fn say_waiting(&self, id: &VolumeId, what: &str) {
        say_waiting(&self.volumes, id, what).await;
    }
}

/// Looks for the pods of those volumes whose addresses are to be verified. With each sight come the addresses that the
/// API server has.
fn look(volumes: &Volumes, due: &[VolumeId]) -> io::Result<HashMap<VolumeId, (Sight, BTreeSet<IpAddr>)>> {
    let (mut ids, mut wanted) = (Vec::new(), Vec::new());
    for id in due {
        let Some(record) = volumes.store.get(id)? else { continue };
        let addresses = volumes.pods.addresses(&record.volume.pod.uid);
        // Without the pod's service-account token nobody can be asked: kubelet will bring it.
        if record.is_to_be_verified(&addresses) && volumes.pod_token(id).is_some() {
            ids.push((id.clone(), addresses));
            wanted.push(Wanted {
                target: record.target,
                pod_uid: record.volume.pod.uid,
                volume: record.volume.name,
            });
        }
    }
    if wanted.is_empty() {
        return Ok(HashMap::new());
    }
    let sights = volumes.networks.look(&wanted)?;
    Ok(ids.into_iter().zip(sights).map(|((id, addresses), sight)| (id, (sight, addresses))).collect())
}

/// Asks the controller about a volume, and does what it says. Whether that settles it.
async fn ask(volumes: &Volumes, id: &VolumeId, addresses: Option<Addresses>) -> Result<bool, AskError> {
    let record = blocking({
        let (volumes, id) = (volumes.clone(), id.clone());
        move || volumes.store.get(&id)
    });
    let Some(record) = record.await.map_err(AskError::Record)? else { return Ok(true) };
    match (record.phase, addresses) {
        (Phase::Published, addresses) => check(volumes, record, addresses).await,
        (Phase::Waiting, Some(addresses)) => issue(volumes, id, addresses).await,
        (Phase::Waiting, None) | (Phase::Issued | Phase::Stopped, _) => Ok(true),
    }
}

async fn check(volumes: &Volumes, record: Record, addresses: Option<Addresses>) -> Result<bool, AskError> {
    let id = record.volume.id.clone();
    let Some(pod_token) = volumes.pod_token(&id) else { return Ok(true) }; // comes again with it
    let (observed, of_api_server) = match addresses {
        Some(Addresses { observed, of_api_server }) => (Some(observed), Some(of_api_server)),
        None => (None, None),
    };
    let checked = volumes.controller.check(&record, &pod_token, observed).await?;
    let locked = volumes.lock_volume(&id).await;
    let settled = blocking({
        let volumes = volumes.clone();
        move || match checked {
            Checked::Kept { check_after, addresses_verified } => {
                let settled = of_api_server.is_none() || addresses_verified;
                let verified = of_api_server.filter(|_| addresses_verified);
                volumes.note_check(&record, check_after, verified).map(|()| settled)
            }
            Checked::Revoked(stop) => {
                let id = &record.volume.id;
                if !volumes.stop(id, &record.tokens, stop)? {
                    volumes.checks.insert(id.clone(), Instant::now()); // of others that it has by now
                }
                Ok(true)
            }
        }
    });
    let settled = settled.await.map_err(AskError::Record);
    drop(locked);
    settled
}

/// Gets its first token for a volume that waits for it. Under the volume's lock, so that no token comes for a volume
/// that is gone.
async fn issue(volumes: &Volumes, id: &VolumeId, addresses: Addresses) -> Result<bool, AskError> {
    // Whoever is at work on it may be so for long, and few are asked about at once.
    let Ok(locked) = volumes.try_lock(id) else { return Ok(false) };
    let waiting = blocking({
        let (volumes, id) = (volumes.clone(), id.clone());
        move || volumes.store.get(&id)
    });
    let waiting = waiting.await.map_err(AskError::Record)?.filter(|record| record.phase == Phase::Waiting);
    let (Some(record), Some(pod_token)) = (waiting, volumes.pod_token(id)) else { return Ok(true) };
    let Addresses { observed, of_api_server } = addresses;
    let issued = volumes.controller.issue(&record.volume, &pod_token, Some(observed), &[]).await;
    let settled = match issued {
        Ok(issued) if issued.waits() => Ok(false),
        Ok(issued) => {
            let volumes = volumes.clone();
            let filled = blocking(move || volumes.fill(record, issued, of_api_server));
            filled.await.map(|()| true).map_err(AskError::Volume)
        }
        Err(error) => match error.final_refusal() {
            Some(stop) => {
                let volumes = volumes.clone();
                let stopped = blocking(move || volumes.stop(&record.volume.id, &[], stop));
                stopped.await.map(|_| true).map_err(AskError::Record)
            }
            None => Err(error.into()),
        },
    };
    drop(locked);
    if let Err(error) = &settled {
        say_waiting(volumes, id, &format!("until this is over: {error}")).await;
    }
    settled
}

/// Says it unless somebody is at work on the volume: the one loop of all checks must not wait for an unmount that hangs,
/// and the next look says it again.
async fn say_waiting(volumes: &Volumes, id: &VolumeId, what: &str) {
    let Ok(locked) = volumes.try_lock(id) else { return };
    let said = blocking({
        let (volumes, id, what) = (volumes.clone(), id.clone(), what.to_owned());
        move || volumes.say_waiting(&id, &what)
    });
    if let Err(error) = said.await {
        warn!(volume.id = %id, %error, "Failed to say in a volume what it waits for");
    }
    drop(locked);
}

/// Why a volume was not checked.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Controller(#[from] CallError),
    #[error(transparent)]
    Volume(VolumeError),
    #[error("the volume's record cannot be read or written: {0}")]
    Record(io::Error),
}
