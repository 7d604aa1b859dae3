//! What is to become of one entry of the ledger: pure. Only an entry whose pod has ended, or that somebody deleted, ever
//! loses its token. Nothing here trusts a clock of ours: how long something is so was measured by whoever asks, and dates
//! are compared with the Hadoop service's own.

use std::time::Duration;

use crate::{
    ledger::{Entry, Scope},
    metrics::{Cancelled, LetGo},
};

/// How long a request for a token can still come to something, whoever waits for it or not: the login may take 15 seconds
/// and each call of the NameNode the rest of a minute, so that no get is under way any more after this.
pub(super) const ISSUE_TIME: Duration = Duration::from_secs(90);

/// How long a token counts as alive after the date at which it ends, for what dates do not tell: a renewal that was not
/// written down in time, and the wrong clock where the service's own is not known.
const MARGIN: u64 = 15 * 60 * 1000;

/// What is known of an entry besides what it says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub(super) pod: Pod,
    /// How long the entry is known to be there.
    pub(super) known_for: Duration,
    /// How long it is known to be dying; nothing when that is new.
    pub(super) dying_for: Duration,
    /// Another entry has the same token, and its pod lives.
    pub(super) shared: bool,
    /// It was tried to end it, and that failed.
    pub(super) failed: bool,
    /// The token was cancelled, and the entry is all that is left.
    pub(super) cancelled: bool,
    /// Its cluster is in our configuration.
    pub(super) configured: bool,
    /// The Hadoop service's clock, or the next best, in milliseconds since the epoch.
    pub(super) date: u64,
    /// How long the last entry of a shared token waits for another pod.
    pub(super) grace: Duration,
}

/// What an entry's pod is, as it was confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pod {
    Alive,
    /// Finished, gone, or another one has its name.
    Ended,
}

/// What is to become of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing.
    Keep,
    /// Nothing yet: look again after this time.
    Wait(Duration),
    /// Somebody may have a token of which only this is known: find it.
    Trace,
    /// Cancel the token, then remove the entry.
    Cancel(Cancelled),
    /// Remove the entry: there is no token to cancel any more, or nobody can.
    Remove(Option<LetGo>),
    /// Only an operator can help: the entry's cluster is not in the configuration.
    Strand,
}

/// What is to become of `entry`.
pub(super) fn fate(entry: &Entry, facts: Facts) -> Fate {
    let dying = entry.deleting || facts.pod == Pod::Ended;
    if facts.cancelled {
        return Fate::Remove(None);
    }
    if dying && entry.let_go && (entry.token.is_none() || !facts.configured) {
        return Fate::Remove(Some(LetGo::Released));
    }
    let Some(token) = &entry.token else {
        return match ISSUE_TIME.checked_sub(facts.known_for) {
            Some(left) if !left.is_zero() => Fate::Wait(left),
            _ if facts.configured => Fate::Trace,
            _ => Fate::Strand,
        };
    };
    if !dying {
        return Fate::Keep;
    }
    // The last renewal may not be written down, and without the service's answer its clock is not known: who can, asks.
    let ends = entry.renew_date.unwrap_or(token.max_date).min(token.max_date);
    if ends.saturating_add(MARGIN) < facts.date && (facts.failed || !facts.configured) {
        return Fate::Remove(Some(LetGo::Expired));
    }
    if entry.scope == Scope::Job {
        if facts.shared {
            return Fate::Remove(Some(LetGo::Shared));
        }
        let left = facts.grace.saturating_sub(facts.dying_for);
        // Where the pod lives, somebody wanted the token gone.
        if facts.pod == Pod::Ended && !left.is_zero() {
            return Fate::Wait(left);
        }
    }
    match facts.pod {
        _ if !facts.configured => Fate::Strand,
        Pod::Ended => Fate::Cancel(Cancelled::Ended),
        Pod::Alive => Fate::Cancel(Cancelled::Deleted),
    }
}

#[cfg(test)]
mod tests;
