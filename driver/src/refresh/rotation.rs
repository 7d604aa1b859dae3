//! Replaces the tokens of mounted volumes before they end for good, or when the controller wants it. All is decided
//! anew, as for a volume's first tokens; those that it has stay until the others are in their place, and whatever fails
//! is tried again.

use std::{
    collections::{HashMap, HashSet},
    io,
};

use proto::{VolumeId, token::v1::ObservedAddresses};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info_span, warn};

use super::{AT_ONCE, queue::backoff};
use crate::{
    controller_client::CallError,
    pod_network::{PodAddresses, Sight, Wanted},
    volume::{
        AddressVerification, Record,
        error::VolumeError,
        lifecycle::{Volumes, blocking},
    },
};

/// Replaces what is due until `stop`.
pub(super) async fn run(volumes: Volumes, stop: CancellationToken) {
    let mut failures: HashMap<VolumeId, u32> = HashMap::new();
    let mut under_way: HashSet<VolumeId> = HashSet::new();
    let mut rotating = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            id = volumes.rotations.due(), if rotating.len() < AT_ONCE => {
                if !under_way.insert(id.clone()) {
                    continue; // its end says when to replace them next
                }
                let volumes = volumes.clone();
                rotating.spawn(async move {
                    let span = info_span!("rotate", volume.id = %id);
                    let (asking, asked) = (volumes.clone(), id.clone());
                    // To its end: tokens that were asked for are to be taken, or given back.
                    let work = volumes.to_its_end(async move { rotate(&asking, &asked).await });
                    (id, work.instrument(span).await)
                });
            }
            Some(ended) = rotating.join_next() => match ended {
                Ok((id, Ok(()))) => {
                    under_way.remove(&id);
                    failures.remove(&id);
                }
                Ok((id, Err(error))) => {
                    under_way.remove(&id);
                    let count = failures.entry(id.clone()).or_default();
                    let retry_in = backoff(*count, fastrand::f64());
                    *count = count.saturating_add(1);
                    warn!(volume.id = %id, %error, ?retry_in, "Failed to replace tokens");
                    volumes.rotations.insert(id.clone(), Instant::now() + retry_in);
                    if error.calls_for_a_check() {
                        volumes.checks.insert(id, Instant::now());
                    }
                    // Others were unpublished.
                    failures.retain(|id, _| under_way.contains(id) || volumes.rotations.contains(id));
                }
                // The volume's turn comes again with kubelet's next publish.
                Err(error) => {
                    warn!(%error, "A rotation ended in a way it must not");
                    under_way.clear();
                }
            },
        }
    }
}

async fn rotate(volumes: &Volumes, id: &VolumeId) -> Result<(), RotationError> {
    let Some(rotation) = volumes.begin_rotation(id) else { return Ok(()) };
    let locked = volumes.lock_volume(id).await;
    let record = blocking({
        let (volumes, id) = (volumes.clone(), id.clone());
        move || volumes.to_be_rotated(&id)
    });
    let record = record.await;
    drop(locked); // it may be unpublished while others are asked
    let Some(record) = record.map_err(RotationError::Record)? else { return Ok(()) };
    let Some(pod_token) = volumes.pod_token(id) else {
        debug!("Tokens are to be replaced: waiting for kubelet to bring the pod's service-account token");
        return Ok(());
    };
    let addresses = match record.address_verification {
        AddressVerification::Strict => Some(addresses(volumes, &record).await?),
        AddressVerification::Eventual | AddressVerification::Off => None,
    };
    let issued = volumes.controller.issue(&record.volume, &pod_token, addresses, &record.tokens).await?;
    if issued.waits() {
        return Err(RotationError::Unverified);
    }

    let locked = volumes.lock_volume(id).await;
    let exchanged = blocking({
        let volumes = volumes.clone();
        move || volumes.exchange(&rotation, &record, issued)
    });
    let exchanged = exchanged.await;
    drop(locked);
    exchanged.map_err(RotationError::Volume)
}

/// What is to be seen of a pod whose addresses are to be verified before it gets any token.
async fn addresses(volumes: &Volumes, record: &Record) -> Result<ObservedAddresses, RotationError> {
    let wanted = Wanted {
        target: record.target.clone(),
        pod_uid: record.volume.pod.uid.clone(),
        volume: record.volume.name.clone(),
    };
    let looked = blocking({
        let volumes = volumes.clone();
        move || volumes.networks.look(&[wanted])
    });
    match looked.await.map_err(RotationError::Look)?.pop() {
        Some(Sight::Pod(PodAddresses { host_network, addresses })) => Ok(ObservedAddresses {
            host_network,
            addresses: addresses.iter().map(ToString::to_string).collect(),
            unclear: String::new(),
        }),
        Some(Sight::Unclear(why)) => Err(RotationError::Unclear(why)),
        Some(Sight::Nobody) | None => Err(RotationError::Nobody),
    }
}

/// Why tokens were not replaced.
#[derive(Debug, thiserror::Error)]
enum RotationError {
    #[error(transparent)]
    Controller(#[from] CallError),
    #[error(transparent)]
    Volume(VolumeError),
    #[error("the volume's record cannot be read or written: {0}")]
    Record(io::Error),
    #[error("the pod's addresses cannot be looked for: {0}")]
    Look(io::Error),
    #[error("the pod's addresses are unclear: {0}")]
    Unclear(String),
    #[error("no process of the pod is to be seen")]
    Nobody,
    #[error("the pod's addresses are not verified")]
    Unverified,
}

impl RotationError {
    fn calls_for_a_check(&self) -> bool {
        matches!(self, Self::Controller(error) if error.calls_for_a_check())
    }
}

#[cfg(test)]
mod tests;
