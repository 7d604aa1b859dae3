//! Keeps mounted tokens valid: renews each when it is due, replaces it before it ends for good, and has those of released volumes cancelled until each of
//! them is. A token to renew is read back from its volume, so that this process holds none; a failure is a warning
//! and another attempt, never an unmount.

pub(crate) mod queue;
pub(crate) mod release;
mod rotation;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, io};

use jiff::Timestamp;
use proto::{VolumeId, token::v1 as wire};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    controller_client::CallError,
    token_dir::{Summary, TokenDir},
    volume::{
        Phase, Record,
        lifecycle::{Volumes, blocking},
    },
};
use queue::backoff;

/// Calls that may be under way at once, so that the controller is not flooded after it was down.
pub(crate) const AT_ONCE: usize = 4;

/// Renews and replaces what is due until `stop`.
pub(crate) async fn run(volumes: Volumes, stop: CancellationToken) {
    tokio::join!(renew_due(volumes.clone(), stop.clone()), rotation::run(volumes, stop));
}

async fn renew_due(volumes: Volumes, stop: CancellationToken) {
    let mut attempts: HashMap<VolumeId, u32> = HashMap::new();
    let mut renewing = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            id = volumes.renewals.due(), if renewing.len() < AT_ONCE => {
                let volumes = volumes.clone();
                renewing.spawn(async move {
                    let renewed = renew(&volumes, &id).await;
                    (id, renewed)
                });
            }
            Some(ended) = renewing.join_next() => match ended {
                Ok((id, Ok(next))) => {
                    attempts.remove(&id);
                    if let Some(next) = next {
                        volumes.renewals.insert(id, volumes.clock.instant(next));
                    }
                }
                Ok((id, Err(error))) => {
                    let attempt = attempts.entry(id.clone()).or_default();
                    let retry_in = backoff(*attempt, fastrand::f64());
                    *attempt = attempt.saturating_add(1);
                    warn!(volume.id = %id, %error, attempt, ?retry_in, "Failed to renew tokens");
                    volumes.renewals.insert(id.clone(), Instant::now() + retry_in);
                    if let RenewError::Controller(error) = &error && error.calls_for_a_check() {
                        // It takes away what the controller does not renew, and need not wait for its turn.
                        volumes.checks.insert(id, Instant::now());
                    }
                    attempts.retain(|id, _| volumes.renewals.contains(id)); // others were unpublished
                }
                // The volume's turn comes again with kubelet's next publish.
                Err(error) => warn!(%error, "A renewal ended in a way it must not"),
            },
        }
    }
}

/// Renews a volume's tokens and says when to do so again; nothing if there is no need, or no way yet.
async fn renew(volumes: &Volumes, id: &VolumeId) -> Result<Option<Timestamp>, RenewError> {
    let Some((record, tokens)) = blocking({
        let (volumes, id) = (volumes.clone(), id.clone());
        move || mounted_tokens(&volumes, &id)
    })
    .await?
    else {
        return Ok(None);
    };
    let Some(pod_token) = volumes.pod_token(id) else {
        debug!(volume.id = %id, "Tokens are due: waiting for kubelet to bring the pod's service-account token");
        return Ok(None);
    };
    let dates = volumes.controller.renew(&record, &pod_token, tokens).await?;

    let locked = volumes.lock_volume(id).await;
    let next = blocking({
        let volumes = volumes.clone();
        move || note_renewal(&volumes, &record, &dates)
    })
    .await;
    drop(locked);
    Ok(next)
}

/// The record of a volume and its tokens, as they are mounted. Nothing for a volume that is gone meanwhile.
fn mounted_tokens(
    volumes: &Volumes,
    id: &VolumeId,
) -> Result<Option<(Record, Vec<wire::Token>)>, RenewError> {
    let Some(record) = volumes.store.get(id).map_err(RenewError::Record)? else { return Ok(None) };
    if record.phase != Phase::Published {
        return Ok(None);
    }
    let file = TokenDir::new(&record.target, record.fs_group).read().map_err(RenewError::Files)?;
    let mut tokens = Vec::with_capacity(record.tokens.len());
    for issued in &record.tokens {
        let mounted = file.tokens.iter().find(|(_, token)| token.identifier == issued.identifier);
        let (_, token) = mounted.ok_or(RenewError::Missing(issued.about.sequence_number))?;
        tokens.push(wire::Token {
            identifier: token.identifier.clone(),
            password: token.password.expose().to_vec(),
            kind: token.kind.clone(),
            services: issued.about.services.clone(),
        });
    }
    Ok(Some((record, tokens)))
}

/// Notes the new dates of tokens that are renewed, on disk and in the volume, and says when to renew them again. The
/// caller has the volume's lock. What cannot be noted is only worth a warning: the tokens are renewed all the same.
fn note_renewal(volumes: &Volumes, renewed: &Record, dates: &[Timestamp]) -> Option<Timestamp> {
    let mut record = match volumes.store.get(&renewed.volume.id) {
        Ok(Some(record)) if record.tokens == renewed.tokens && record.phase == Phase::Published => record,
        Ok(_) => return None, // unpublished meanwhile
        Err(error) => {
            warn!(volume.id = %renewed.volume.id, %error, "Failed to read the volume's record");
            renewed.clone()
        }
    };
    for (token, date) in record.tokens.iter_mut().zip(dates) {
        token.about.renew_date = *date;
    }
    record.next_renewal = volumes.next_renewal(&record.tokens);
    let id = &record.volume.id;
    if let Err(error) = volumes.store.put(&record) {
        warn!(volume.id = %id, %error, "Failed to record new dates of tokens");
    }
    let files = TokenDir::new(&record.target, record.fs_group);
    if let Err(error) = files.write_summary(&Summary::of(&record)) {
        warn!(volume.id = %id, %error, "Failed to write new dates of tokens into the volume");
    }
    info!(
        volume.id = %id,
        pod = %record.volume.pod,
        tokens = ?record.sequence_numbers(),
        renew_date = dates.iter().min().map(tracing::field::display),
        next_renewal = record.next_renewal.map(tracing::field::display),
        "Renewed"
    );
    record.next_renewal
}

/// Why tokens were not renewed.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error(transparent)]
    Controller(#[from] CallError),
    #[error("the volume's record cannot be read: {0}")]
    Record(io::Error),
    #[error("the token file cannot be read back: {0}")]
    Files(io::Error),
    #[error("token {0} is not in the token file")]
    Missing(i32),
}
