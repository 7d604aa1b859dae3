//! Makes sure that tokens end: those a node plugin releases, while it waits; and those that nobody holds (the caller
//! went away, a later step failed), for as long as it takes. Never touches a token that was handed over.

use std::{sync::Arc, time::Duration};

use process::fault;
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::{
    audit::{Action, Audit, Record},
    cluster::{Authority, CallError},
    ledger::{Entry, KnownToken, Ledger, LedgerError, Scope},
    metrics::{Cancelled, Metrics},
};

/// Waits between attempts: the first, and the longest that it grows to.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// How long a token that nobody holds is tried to be cancelled before the ledger has it cancelled.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a token may outlive the date at which it would expire by itself.
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
        fault::point("hadoop.cancel:before");
        let cancelled = authority.cancel(identifier, context).await;
        fault::point("hadoop.cancel:after");
        match cancelled {
            Err(error) if error.retryable() && Instant::now() + wait < end => {
                warn!(%error, retry_in = ?wait, "Failed to cancel token");
                sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            }
            outcome => return outcome.map(drop),
        }
    }
}

/// A token that exists at the NameNode and that nobody holds yet. Unless it is handed over, it is cancelled.
pub(crate) struct Unclaimed {
    token: Option<Pending>,
    tasks: TaskTracker,
}

/// What it takes to have a token cancelled, and to tell of it.
pub(crate) struct Pending {
    pub(crate) authority: Arc<dyn Authority>,
    pub(crate) ledger: Ledger,
    /// Where the ledger has it.
    pub(crate) entry: Arc<Entry>,
    pub(crate) token: KnownToken,
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

    /// The ledger has the token now, in `entry`.
    pub(crate) fn recorded(&mut self, entry: Arc<Entry>) {
        if let Some(token) = &mut self.token {
            token.entry = entry;
        }
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

/// Cancels a token, or has the reaper do it. In vain only when neither Hadoop nor the API server is there for as long as
/// it lives.
async fn abandon(token: Pending) {
    let Pending { authority, ledger, entry, record, .. } = &token;
    let context = record.caller_context();
    let mut follow_up = record.follow_up(Action::Cancel, Cancelled::NotHandedOver.name());
    let KnownToken { identifier, issue_date, max_date, .. } = &token.token;
    let life = Duration::from_millis(max_date.saturating_sub(*issue_date)).saturating_add(MARGIN);
    let (begun, mut wait) = (Instant::now(), FIRST_WAIT);
    // It may be others' as well, which the reaper knows.
    let shared = entry.scope == Scope::Job && entry.token.is_some();
    loop {
        if !shared {
            match cancel(&**authority, identifier, &context, PATIENCE).await {
                Ok(()) => {
                    info!("Cancelled a token that could not be handed over");
                    token.metrics.cancelled(Cancelled::NotHandedOver);
                    ledger.discard(entry).await;
                    follow_up.granted();
                    break;
                }
                Err(error) => {
                    (follow_up.reason, follow_up.message) = (Some(error.reason), Some(error.message));
                }
            }
        }
        match left_to_the_reaper(ledger, entry, &token.token).await {
            Ok(()) if shared => return, // nothing was cancelled here
            Ok(()) => {
                info!(reason = follow_up.reason, "Left a token to the reaper");
                break;
            }
            Err(error) if begun.elapsed() + wait < life => {
                warn!(%error, retry_in = ?wait, "Failed to leave a token to the reaper");
                sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            }
            Err(error) => {
                error!(%error, "A token that could not be handed over lives on until it expires");
                (follow_up.reason, follow_up.message) = (Some(error.reason()), Some(error.to_string()));
                break;
            }
        }
    }
    if let Err(error) = token.audit.write(&follow_up).await {
        // The audit log keeps the record, and writes it when it can.
        warn!(%error, "The cancellation of a token is not recorded yet");
    }
}

/// Deletes the token's object, which says all that is needed to cancel it.
async fn left_to_the_reaper(ledger: &Ledger, entry: &Entry, token: &KnownToken) -> Result<(), LedgerError> {
    if entry.token.is_none() {
        // Nobody renews it, so it will not live as long as that. When the intent is gone, it is known only here.
        ledger.record(entry, token, token.max_date).await?;
    }
    ledger.delete(entry).await
}
