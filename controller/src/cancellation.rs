//! Makes sure that tokens end: those a node plugin releases, while it waits; and those that nobody holds (the caller
//! went away, a later step failed), for as long as it takes. Never touches a token that was handed over.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::{
    audit::{Action, Audit, Record},
    cluster::{Authority, CallError},
    metrics::{Cancelled, Metrics},
};

/// Waits between attempts: the first, and the longest that it grows to.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Longest that a token nobody holds is chased. No token of Hadoop's defaults lives longer.
const LONGEST_CHASE: Duration = Duration::from_hours(8 * 24);

/// How long a token may outlive the date at which it would expire by itself, for clocks that differ.
const MARGIN: Duration = Duration::from_mins(5);

/// Cancels, and tries again after faults that may pass, but begins no attempt later than `patience` from now.
pub(crate) async fn cancel(
    authority: &dyn Authority,
    identifier: &[u8],
    context: &str,
    patience: Duration,
) -> Result<(), CallError> {
    let (end, mut wait) = (Instant::now() + patience, FIRST_WAIT);
    loop {
        match authority.cancel(identifier, context).await {
            Err(error) if error.retryable() && Instant::now() + wait < end => {
                warn!(%error, retry_in = ?wait, "Failed to cancel token");
                sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            }
            outcome => return outcome,
        }
    }
}

/// A token that exists at the NameNode and that nobody holds yet. Unless it is handed over, it is cancelled.
pub(crate) struct Unclaimed {
    token: Option<Pending>,
    tasks: TaskTracker,
}

/// What it takes to cancel a token, and to tell of it.
pub(crate) struct Pending {
    pub(crate) authority: Arc<dyn Authority>,
    pub(crate) identifier: Vec<u8>,
    /// When it dies by itself, in milliseconds since the epoch.
    pub(crate) expires: u64,
    pub(crate) cluster: String,
    /// What it was got for.
    pub(crate) record: Record,
    pub(crate) audit: Audit,
    pub(crate) metrics: Metrics,
}

impl Unclaimed {
    /// Takes charge of a token. Its cancellation, if it comes to that, runs in `tasks`.
    pub(crate) fn new(token: Pending, tasks: TaskTracker) -> Self {
        Self { token: Some(token), tasks }
    }

    /// Somebody holds the token now and is answerable for it.
    pub(crate) fn hand_over(mut self) {
        if let Some(token) = self.token.take() {
            token.metrics.issued(&token.cluster);
        }
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if let Some(token) = self.token.take() {
            self.tasks.spawn(abandon(token));
        }
    }
}

async fn abandon(token: Pending) {
    let left = Duration::from_millis(token.expires).saturating_sub(now()).saturating_add(MARGIN);
    let left = left.min(LONGEST_CHASE);
    let context = token.record.caller_context();
    let outcome = cancel(&*token.authority, &token.identifier, &context, left).await;
    let mut record = token.record.follow_up(Action::Cancel, Cancelled::NotHandedOver.name());
    match outcome {
        Ok(()) => {
            info!("Cancelled a token that could not be handed over");
            token.metrics.cancelled(Cancelled::NotHandedOver);
            record.granted();
        }
        Err(error) => {
            error!(%error, "A token that could not be handed over lives on until it expires");
            (record.reason, record.message) = (Some(error.reason), Some(error.message));
        }
    }
    if let Err(error) = token.audit.write(&record).await {
        // The audit log keeps the record, and writes it when it can.
        warn!(%error, "The cancellation of a token is not recorded yet");
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
