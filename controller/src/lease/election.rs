//! Who leads: client-go's rules as values, without I/O. A holder's time is up when its record has not changed for long
//! enough on our own monotonic clock, never by the dates that are written in it: clocks of others may be anywhere. A
//! leader counts its own time from before it asked, and gives up well before anybody may follow.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// For how long a record that does not change keeps others away. All replicas have to agree, so none can be configured.
pub(super) const LEASE: Duration = Duration::from_secs(15);
/// For how long a leader goes on that cannot renew. What is left of [`LEASE`] is for clocks that run at different speeds.
pub(super) const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Between looks, and between renewals.
pub(super) const RETRY: Duration = Duration::from_secs(2);

/// What the Lease object says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// None: it was released.
    pub(super) holder: Option<String>,
    /// For how long it is held from each renewal.
    pub(super) lease: Duration,
    /// For people to read only, as `renewed`.
    pub(super) acquired: Option<Timestamp>,
    pub(super) renewed: Option<Timestamp>,
    /// How often it changed hands.
    pub(super) transitions: i32,
}

/// What is to be written, if nobody has written meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) record: Record,
    /// Of the object that is replaced. None: there is none, and it is created.
    pub(super) version: Option<String>,
}

/// One candidate's knowledge.
#[derive(Debug)]
pub(super) struct Election {
    me: String,
    seen: Option<Seen>,
    /// The object may not be any more as it was seen.
    stale: bool,
    leads_until: Option<Instant>,
}

/// The object as it was seen last.
#[derive(Debug)]
struct Seen {
    record: Record,
    /// None: it has been deleted since.
    version: Option<String>,
    /// When it was first seen like this: it became so before.
    since: Instant,
}

impl Election {
    /// `me` is nobody else's name, ever.
    pub(super) fn new(me: String) -> Self {
        Self { me, seen: None, stale: true, leads_until: None }
    }

    /// Until when it leads, unless it hears otherwise.
    pub(super) fn leads_until(&self) -> Option<Instant> {
        self.leads_until
    }

    /// Whether it leads.
    pub(super) fn leads(&self, now: Instant) -> bool {
        self.leads_until.is_some_and(|until| now < until)
    }

    /// Whether the object has to be read before anything can be claimed.
    pub(super) fn has_to_read(&self, now: Instant) -> bool {
        self.stale || !self.leads(now)
    }

    /// Who has it, as far as is known.
    pub(super) fn holder(&self) -> Option<&str> {
        self.seen.as_ref().filter(|seen| seen.version.is_some())?.record.holder.as_deref()
    }

    /// The object was read: it is so, with its version, or it is not there. `now` is after the answer.
    pub(super) fn read(&mut self, object: Option<(Record, String)>, now: Instant) {
        self.stale = false;
        let Some((record, version)) = object else {
            // Whoever held it leads on until it finds out. What was seen counts as if it were there.
            if let Some(seen) = &mut self.seen {
                seen.version = None;
            }
            return;
        };
        if record.holder.as_ref() != Some(&self.me) {
            self.leads_until = None;
        }
        if self.seen.as_ref().is_none_or(|seen| seen.version.as_ref() != Some(&version)) {
            self.seen = Some(Seen { record, version: Some(version), since: now });
        }
    }

    /// What to write in order to lead, or to go on leading. None: somebody else has it. `date` is for people.
    pub(super) fn claim(&self, now: Instant, date: Timestamp) -> Option<Claim> {
        let mut record = Record {
            holder: Some(self.me.clone()),
            lease: LEASE,
            acquired: Some(date),
            renewed: Some(date),
            transitions: 0,
        };
        let Some(seen) = &self.seen else { return Some(Claim { record, version: None }) };
        match &seen.record.holder {
            Some(holder) if *holder == self.me => {
                (record.acquired, record.transitions) = (seen.record.acquired, seen.record.transitions);
            }
            // A replica of another version may promise itself more time than we would.
            Some(_) if now < seen.since + seen.record.lease.max(LEASE) => return None,
            _ => record.transitions = seen.record.transitions.saturating_add(1),
        }
        Some(Claim { record, version: seen.version.clone() })
    }

    /// `claim` was written, and the object has `version` now. It was sent at `sent`.
    pub(super) fn wrote(&mut self, claim: Claim, version: String, sent: Instant) {
        self.leads_until = claim.record.holder.is_some().then(|| sent + RENEW_DEADLINE);
        self.seen = Some(Seen { record: claim.record, version: Some(version), since: sent });
        self.stale = false;
    }

    /// A claim was not written, or nobody knows whether it was.
    pub(super) fn failed(&mut self) {
        self.stale = true;
    }

    /// Leads no more. What to write so that another need not wait, if the object is still as it was seen.
    pub(super) fn resign(&mut self, date: Timestamp) -> Option<Claim> {
        self.leads_until = None;
        let seen = self.seen.as_ref().filter(|_| !self.stale)?;
        let (holder, version) = (seen.record.holder.as_ref()?, seen.version.clone()?);
        // As short as can be written down, for candidates who do not know what no holder means.
        let lease = Duration::from_secs(1);
        let record = Record { holder: None, lease, renewed: Some(date), ..seen.record.clone() };
        (*holder == self.me).then_some(Claim { record, version: Some(version) })
    }
}

#[cfg(test)]
mod tests;
