//! Renews the tokens of mounted volumes, many with one call. A token is read back from its volume, so that this process
//! holds none between calls; a failure is a warning and another attempt, or a reason to ask for another token, never an
//! unmount.

mod plan;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use proto::{
    VolumeId,
    token::v1::{self as wire, RenewalAdvice},
};
use secrecy::ExposeSecret;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use self::plan::{Advice, Plan, plan};
use super::{AT_ONCE, queue::backoff};
use crate::{
    controller_client::{CallError, Renewed},
    token_dir::{Summary, TokenDir},
    volume::{
        IssuedToken, Phase, Record,
        lifecycle::{Volumes, blocking},
    },
};

/// What comes due so soon after something that is due goes with it.
const TOGETHER: Duration = Duration::from_secs(5);

/// Most volumes whose tokens are read at once.
const MOST: usize = 64;

/// What cannot be noted is renewed again after as long as after so many failures: half a minute or so.
const UNREAD: u32 = 5;

/// Renews what is due until `stop`.
pub(super) async fn run(volumes: Volumes, stop: CancellationToken) {
    let mut failures: HashMap<VolumeId, u32> = HashMap::new();
    let mut under_way: HashSet<VolumeId> = HashSet::new();
    let mut batches = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            id = volumes.renewals.due(), if batches.len() < AT_ONCE => {
                let mut batch = vec![id];
                batch.extend(volumes.renewals.take(Instant::now() + TOGETHER, MOST - 1));
                batch.retain(|id| under_way.insert(id.clone()));
                let volumes = volumes.clone();
                batches.spawn(async move {
                    let failed = renew(&volumes, &batch).await;
                    (batch, failed)
                });
            }
            Some(ended) = batches.join_next() => match ended {
                Ok((batch, failed)) => {
                    for id in &batch {
                        under_way.remove(id);
                    }
                    let mut before: HashMap<_, _> = batch.iter().filter_map(|id| failures.remove_entry(id)).collect();
                    for (id, failure) in failed {
                        let count = before.remove(&id).unwrap_or_default();
                        follow_up(&volumes, &id, &failure, count);
                        failures.insert(id, count.saturating_add(1));
                    }
                    // Others were unpublished.
                    failures.retain(|id, _| under_way.contains(id) || volumes.renewals.contains(id));
                }
                // The volumes' turn comes again with kubelet's next publish.
                Err(error) => {
                    error!(%error, "Renewals ended in a way they must not");
                    under_way.clear();
                }
            },
        }
    }
}

/// Tokens of a volume that were not renewed.
struct Failure {
    why: RenewError,
    /// When the first of them ends, if that is known.
    ends: Option<Timestamp>,
}

/// Does what is to be done about tokens that were not renewed, after so many failures in a row.
fn follow_up(volumes: &Volumes, id: &VolumeId, failure: &Failure, before: u32) {
    let Failure { why, ends } = failure;
    let left = ends.map(|ends| ends.duration_since(volumes.clock.now()));
    let Plan { retry_in, check, rotate, alert } = why.plan(before, left, fastrand::f64());
    if alert {
        error!(volume.id = %id, error = %why, ?retry_in, "Tokens cannot be renewed before somebody mends this");
    } else {
        warn!(volume.id = %id, error = %why, before, ?retry_in, rotate, "Failed to renew tokens");
    }
    volumes.renewals.insert(id.clone(), Instant::now() + retry_in);
    if check {
        // It takes away what the controller does not renew, and need not wait for its turn.
        volumes.checks.insert(id.clone(), Instant::now());
    }
    if rotate {
        volumes.in_background(id.clone(), Volumes::rotate_now);
    }
}

/// Renews the tokens of these volumes, and says which were not. Those for which there is no need, or no way yet, are
/// left alone.
async fn renew(volumes: &Volumes, ids: &[VolumeId]) -> Vec<(VolumeId, Failure)> {
    let read = blocking({
        let (volumes, ids) = (volumes.clone(), ids.to_vec());
        move || ids.into_iter().map(|id| (mounted_tokens(&volumes, &id), id)).collect::<Vec<_>>()
    });
    let mut failed = Vec::new();
    // One call for each cluster, so that one that is away holds up none that is not.
    let mut due: BTreeMap<String, Vec<(Record, wire::Renewal)>> = BTreeMap::new();
    for (tokens, id) in read.await {
        match (tokens, volumes.pod_token(&id)) {
            (Ok(Some((record, tokens))), Some(pod_token)) => {
                let renewal = wire::Renewal {
                    volume: Some((&record.volume).into()),
                    pod_token: pod_token.0.expose_secret().to_owned(),
                    cluster: record.cluster.clone(),
                    tokens,
                };
                due.entry(record.cluster.clone()).or_default().push((record, renewal));
            }
            (Ok(Some(_)), None) => {
                debug!(volume.id = %id, "Tokens are due: waiting for kubelet to bring the pod's service-account token");
            }
            (Ok(None), _) => {} // unpublished meanwhile
            (Err(failure), _) => failed.push((id, failure)),
        }
    }
    let mut calls = JoinSet::new();
    for due in due.into_values() {
        calls.spawn(call(volumes.clone(), due));
    }
    failed.extend(calls.join_all().await.into_iter().flatten());
    failed
}

/// Renews tokens with one call.
async fn call(volumes: Volumes, due: Vec<(Record, wire::Renewal)>) -> Vec<(VolumeId, Failure)> {
    let (records, renewals): (Vec<_>, Vec<_>) = due.into_iter().unzip();
    let outcomes = match volumes.controller.renew(renewals).await {
        Ok(outcomes) => outcomes.into_iter().map(|outcome| outcome.map_err(Arc::new)).collect::<Vec<_>>(),
        Err(error) => {
            let error = Arc::new(error);
            records.iter().map(|_| Err(Arc::clone(&error))).collect()
        }
    };
    let mut failed = Vec::new();
    for (record, outcome) in records.into_iter().zip(outcomes) {
        let id = record.volume.id.clone();
        match outcome {
            // Apart, so that a volume on which somebody works holds up no other.
            Ok(renewed) => volumes.in_background(id, move |volumes, _| {
                note_renewal(volumes, &record, &renewed);
                Ok(())
            }),
            Err(error) => {
                failed.push((id, Failure { why: RenewError::Controller(error), ends: record.ends() }))
            }
        }
    }
    failed
}

/// The record of a volume and its tokens, as they are mounted. Nothing for a volume that is gone meanwhile.
fn mounted_tokens(volumes: &Volumes, id: &VolumeId) -> Result<Option<(Record, Vec<wire::Token>)>, Failure> {
    let record = volumes.store.get(id);
    let record = record.map_err(|error| Failure { why: RenewError::Record(error), ends: None })?;
    let Some(record) = record.filter(|record| record.phase == Phase::Published) else { return Ok(None) };
    match tokens_of(&record) {
        Ok(tokens) => Ok(Some((record, tokens))),
        Err(why) => Err(Failure { why, ends: record.ends() }),
    }
}

fn tokens_of(record: &Record) -> Result<Vec<wire::Token>, RenewError> {
    let file = TokenDir::new(&record.target, record.fs_group).read().map_err(RenewError::Files)?;
    let mounted = |issued: &IssuedToken| {
        let (_, token) = file.tokens.iter().find(|(_, token)| token.identifier == issued.identifier)?;
        Some(wire::Token {
            identifier: token.identifier.clone(),
            password: token.password.expose().to_vec(),
            kind: token.kind.clone(),
            services: issued.about.services.clone(),
        })
    };
    let found = |issued| mounted(issued).ok_or(RenewError::Missing(issued.about.sequence_number));
    record.tokens.iter().map(found).collect()
}

/// Notes the new dates of tokens that are renewed, on disk and in the volume, and when to renew them again. The caller
/// has the volume's lock. What cannot be noted is only worth a warning: the tokens are renewed all the same.
fn note_renewal(volumes: &Volumes, before: &Record, renewed: &Renewed) {
    let id = &before.volume.id;
    let mut record = match volumes.unchanged(id, &before.tokens) {
        Ok(Some(record)) => record,
        Ok(None) => return, // unpublished meanwhile, or it has others
        Err(error) => {
            // It may be stopped, or have others: what it was before must not come back.
            let retry_in = backoff(UNREAD, fastrand::f64());
            warn!(volume.id = %id, %error, ?retry_in, "Failed to read the record of a volume whose tokens are renewed");
            volumes.renewals.insert(id.clone(), Instant::now() + retry_in);
            return;
        }
    };
    for (token, date) in record.tokens.iter_mut().zip(&renewed.dates) {
        token.about.renew_date = *date;
    }
    if let Some(lead) = renewed.clock_lead {
        volumes.note_clock_lead(&mut record, lead);
    }
    record.next_renewal = volumes.next_renewal(&record.tokens);
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
        renew_date = renewed.dates.iter().min().map(tracing::field::display),
        next_renewal = record.next_renewal.map(tracing::field::display),
        "Renewed"
    );
    volumes.arm(&record);
}

/// Why tokens were not renewed.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error("{0}")]
    Controller(Arc<CallError>),
    #[error("the volume's record cannot be read: {0}")]
    Record(io::Error),
    #[error("the token file cannot be read back: {0}")]
    Files(io::Error),
    #[error("token {0} is not in the token file")]
    Missing(i32),
}

impl RenewError {
    /// What to do about it, as [`plan()`] says.
    fn plan(&self, before: u32, left: Option<SignedDuration>, chance: f64) -> Plan {
        let advice = match self {
            Self::Controller(error) => match &**error {
                CallError::NotRenewed(not) if error.calls_for_a_check() => match not.advice() {
                    RenewalAdvice::Unspecified | RenewalAdvice::Retry => Advice::Check,
                    advice => advice.into(),
                },
                CallError::NotRenewed(not) => not.advice().into(),
                error if error.calls_for_a_check() => Advice::Check,
                CallError::Refused(_) => Advice::Retry,
                CallError::Unreachable { .. }
                | CallError::TooLate { .. }
                | CallError::Malformed { .. }
                | CallError::OwnToken { .. } => Advice::NothingHeard,
            },
            Self::Record(_) => Advice::NothingHeard,
            // What is mounted is not what was issued: others will be.
            Self::Files(_) | Self::Missing(_) => Advice::Rotate,
        };
        plan(advice, before, left, chance)
    }
}

#[cfg(test)]
mod tests;
