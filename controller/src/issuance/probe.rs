//! What it takes to find a token that was lost: the number of the last one before it, a token that shows how the service
//! counts now, and the attempt to cancel what the lost one may be. Which those are is the reaper's business.

use std::sync::PoisonError;

use hadoop::{HadoopUser, TokenIdentifier, namenode::Cancelled as Was};
use tokio::time::{Duration, Instant, MissedTickBehavior, interval};
use tracing::warn;

use super::{Issuer, Purpose, known};
use crate::{audit::Record, cluster::NotGot, failure::Failure, ledger::LedgerError};

/// Between two attempts: a service has better to do.
const PAUSE: Duration = Duration::from_millis(2);

/// Most tokens that are remembered as got.
const MOST_GOT: usize = 1024;

/// What a service chose of a token's identifier; the rest is known to whoever asked for the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Marks {
    pub(crate) sequence_number: i32,
    /// Milliseconds since the epoch on the service's clock.
    pub(crate) issue_date: u64,
    /// From issue date to max date, in milliseconds.
    pub(crate) lifetime: u64,
    pub(crate) master_key_id: i32,
}

impl Marks {
    /// Those of a token; None of one that ends before it begins.
    pub(crate) fn of(identifier: &TokenIdentifier) -> Option<Self> {
        let TokenIdentifier { issue_date, max_date, sequence_number, master_key_id, .. } = *identifier;
        let lifetime = max_date.checked_sub(issue_date)?;
        Some(Self { sequence_number, issue_date, lifetime, master_key_id })
    }
}

impl Issuer {
    /// A token was got: its number is nobody else's.
    pub(super) fn counted(&self, identifier: &TokenIdentifier) {
        let mut got = self.got.lock().unwrap_or_else(PoisonError::into_inner);
        got.extend(Marks::of(identifier));
        if got.len() > MOST_GOT {
            got.pop_front();
        }
    }

    /// Those that this process got lately, whatever became of them.
    pub(crate) fn got(&self) -> Vec<Marks> {
        self.got.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    /// The number of the last token of the cluster that is known; whoever asks now gets a greater one.
    pub(super) fn last_number(&self) -> Option<i32> {
        let last = self.got.lock().unwrap_or_else(PoisonError::into_inner).back().copied();
        last.map(|marks| marks.sequence_number).or_else(|| {
            // Only a process that has just started knows none itself.
            let entries = self.ledger.all();
            let ours = entries.iter().filter(|entry| *entry.cluster == *self.cluster);
            ours.filter_map(|entry| entry.token.as_ref()).map(|token| token.sequence_number).max()
        })
    }

    /// For how long a token is renewed, in milliseconds; None as long as no renewal has shown it.
    pub(crate) async fn renew_interval(&self) -> Option<u64> {
        self.interval.lock().await.map(|learnt| learnt.interval)
    }

    /// Gets a token of `user`, and cancels it: how the service counts now. It is in the ledger as long as it lives, as
    /// any is, so that it is not lost itself. When it is told, the ledger shows all tokens that were written down before.
    pub(crate) async fn probe(
        &self,
        user: &HadoopUser,
        purpose: Purpose,
        record: &Record,
    ) -> Result<TokenIdentifier, Failure> {
        let _turn = self.place()?.turn().await.ok_or(Failure::Stopping)?;
        let entry = self.ledger.open(&self.intent(user, purpose)).await?;
        let (asked, context) = (Instant::now(), record.caller_context());
        let token = match self.timed("get", self.authority.get(user, &self.renewer, &context)).await {
            Ok(token) => token,
            Err(NotGot { error, may_exist }) => {
                if !may_exist {
                    self.discard(entry);
                }
                return Err(self.failure("get a token", error));
            }
        };
        let decoded = token.decode_identifier();
        let facts = known(&token, decoded.as_ref().ok());
        // Nobody renews it, but to learn for how long a token is.
        let recorded = self.ledger.record(&entry, &facts, facts.max_date).await;
        if let Ok(identifier) = &decoded
            && self.renew_interval().await.is_none()
            && let Err(error) = self.renew_date(&token, identifier, &context, asked).await
        {
            warn!(%error, token.object = %entry, "Failed to learn for how long a token is renewed");
        }
        match self.timed("cancel", self.authority.cancel(&token.identifier, &context)).await {
            Ok(_) => match self.ledger.remove(&entry).await {
                Ok(()) | Err(LedgerError::Gone(_)) => {}
                Err(error) => warn!(%error, token.object = %entry, "The reaper has to remove a probe"),
            },
            // What the ledger knows, it has cancelled.
            Err(error) => warn!(%error, token.object = %entry, "The reaper has to cancel a probe"),
        }
        // Who looks for a lost token has to know each that was handed out before.
        self.ledger.shows(&*recorded?).await?;
        let wrong = |what: String| Failure::WrongToken { cluster: self.cluster.clone(), what };
        let identifier = decoded.map_err(|error| wrong(error.to_string()))?;
        self.clock.heard(identifier.issue_date, asked);
        self.counted(&identifier);
        Ok(identifier)
    }

    /// Cancels the first of `candidates` that is a token, one attempt after the other as long as `lasts`, and says how
    /// many there were.
    pub(crate) async fn cancel_first(
        &self,
        candidates: impl Iterator<Item = TokenIdentifier>,
        lasts: impl Fn() -> bool,
        record: &Record,
    ) -> Result<(Option<TokenIdentifier>, u32), Failure> {
        let _turn = self.place()?.turn().await.ok_or(Failure::Stopping)?;
        let (mut pace, mut attempts) = (interval(PAUSE), 0);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let context = record.caller_context();
        for identifier in candidates {
            pace.tick().await;
            if !lasts() {
                return Err(Failure::Stopping);
            }
            attempts += 1;
            let cancelled = self.authority.cancel(&identifier.encode(), &context).await;
            if cancelled.map_err(|error| self.failure("cancel a token", error))? == Was::Now {
                return Ok((Some(identifier), attempts));
            }
        }
        Ok((None, attempts))
    }
}
