//! Has the tokens of released volumes cancelled, each until it is, or until it must be dead: nobody renews it any
//! more. Works from the records alone, so that it goes on where an earlier run ended.

use std::{collections::HashMap, io};

use jiff::SignedDuration;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{AT_ONCE, queue::backoff};
use crate::{
    controller_client::CallError,
    volume::{
        Phase,
        lifecycle::{Volumes, blocking},
        store::ReleaseId,
    },
};

/// How much longer than its renew date a token may live, for clocks that differ.
const MARGIN: SignedDuration = SignedDuration::from_hours(1);

/// Releases what is due until `stop`.
pub(crate) async fn run(volumes: Volumes, stop: CancellationToken) {
    let mut attempts: HashMap<ReleaseId, u32> = HashMap::new();
    let mut releasing = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            release = volumes.releases.due(), if releasing.len() < AT_ONCE => {
                let volumes = volumes.clone();
                releasing.spawn(async move {
                    let released = cancel(&volumes, &release).await;
                    (release, released)
                });
            }
            Some(ended) = releasing.join_next() => match ended {
                Ok((release, Ok(()))) => {
                    attempts.remove(&release);
                }
                Ok((release, Err(error))) => {
                    let attempt = attempts.entry(release.clone()).or_default();
                    let retry_in = backoff(*attempt, fastrand::f64());
                    *attempt = attempt.saturating_add(1);
                    warn!(?release, %error, attempt, ?retry_in, "Failed to have tokens cancelled");
                    volumes.releases.insert(release, Instant::now() + retry_in);
                }
                // It is still on disk, for the next start.
                Err(error) => warn!(%error, "A release ended in a way it must not"),
            },
        }
    }
}

async fn cancel(volumes: &Volumes, release: &ReleaseId) -> Result<(), ReleaseError> {
    let record = blocking({
        let (volumes, release) = (volumes.clone(), release.clone());
        move || volumes.released(&release)
    });
    let Some(record) = record.await.map_err(ReleaseError::Record)? else { return Ok(()) };
    let (id, pod, tokens) = (&record.volume.id, &record.volume.pod, record.sequence_numbers());
    // A release ends all tokens of the volume, so that none must come meanwhile, nor have come since.
    let locked = volumes.lock_volume(id).await;
    let current = blocking({
        let (volumes, id) = (volumes.clone(), id.clone());
        move || volumes.store.get(&id)
    });
    let released = match current.await.map_err(ReleaseError::Record)?.map(|record| record.phase) {
        Some(Phase::Published) => {
            // When it was published again, the controller was told that it had no other.
            info!(volume.id = %id, %pod, ?tokens, "Left the tokens of a volume that was published again to the controller");
            None
        }
        Some(Phase::Issued | Phase::Waiting | Phase::Stopped) | None => {
            Some(volumes.controller.release(&record).await)
        }
    };
    drop(locked);
    match released {
        None => {}
        Some(Ok(())) => info!(volume.id = %id, %pod, ?tokens, "Cancelled tokens"),
        Some(Err(error)) => {
            let dead = record.dead_at().is_some_and(|at| volumes.clock.now().duration_since(at) > MARGIN);
            if !dead {
                return Err(error.into());
            }
            warn!(volume.id = %id, %pod, ?tokens, %error, "Tokens expired before they could be cancelled");
        }
    }
    let forgotten = blocking({
        let (volumes, release) = (volumes.clone(), release.clone());
        move || volumes.forget_released(&release)
    });
    forgotten.await.map_err(ReleaseError::Record)
}

/// Why tokens are not cancelled yet.
#[derive(Debug, thiserror::Error)]
enum ReleaseError {
    #[error(transparent)]
    Controller(#[from] CallError),
    #[error("the record cannot be read or removed: {0}")]
    Record(io::Error),
}
