//! What is remembered of one cluster while its lost tokens are looked for: whatever is learnt of one makes the others
//! easier to find, and nothing is tried twice. Asks nobody. It goes with the process: another leader begins anew.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use hadoop::TokenIdentifier;
use tokio::time::Instant;

use crate::issuance::Marks;

/// Most tokens that are remembered when they are gone.
const MOST_GONE: usize = 4096;

/// Most identifiers that are remembered as tried. More are forgotten, and tried again as far as attempts are left.
const MOST_TRIED: usize = 1 << 16;

/// Waits between probes that fail: the first, and the longest that it grows to.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Tokens that are gone: what they had, a lost one has not.
    gone: VecDeque<Marks>,
    /// For how long tokens were renewed at their issue, in milliseconds, as they showed it last.
    interval: Option<u64>,
    /// By the UID of the lost token's object.
    searches: BTreeMap<Arc<str>, Search>,
    /// What is no token of these users, and never will be: its date is past.
    tried: HashMap<Box<str>, HashSet<Marks>>,
    /// Searches that were in vain, and may not be any more.
    stirred: BTreeSet<Arc<str>>,
    /// Probes that failed in a row, and when the next may be made.
    failed: u32,
    next_probe: Option<Instant>,
    /// Objects whose answer is too late, by UID.
    late: HashSet<Arc<str>>,
    /// Held while a lost token is looked for.
    busy: Arc<tokio::sync::Mutex<()>>,
}

/// How far the search for one token has come.
#[derive(Clone, Debug)]
pub(super) struct Search {
    /// A token of the same user that was issued when the lost one could not be any more.
    pub(super) probe: TokenIdentifier,
    /// When the probe was there.
    pub(super) since: Instant,
    /// Other tokens of the user that were being asked for then: each may still come to its pod, by the UID of its object.
    pub(super) awaited: HashSet<Arc<str>>,
    /// Attempts that are left.
    pub(super) left: u32,
    /// By these facts nothing was found: others have to come before it is looked for again.
    pub(super) vain: Option<u64>,
}

impl Memory {
    pub(super) fn busy(&self) -> Arc<tokio::sync::Mutex<()>> {
        self.busy.clone()
    }

    /// How long no probe may be made. Each that fails may be one more token to look for: those of all searches together
    /// must not become more and more.
    pub(super) fn pause(&self, now: Instant) -> Option<Duration> {
        self.next_probe?.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    /// A probe was made, or failed as that of any other user would have.
    pub(super) fn probed(&mut self, made: bool, now: Instant) {
        if made {
            (self.failed, self.next_probe) = (0, None);
            return;
        }
        let pause = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(self.failed)).min(LONGEST_PAUSE);
        (self.failed, self.next_probe) = (self.failed.saturating_add(1), Some(now + pause));
    }

    /// The tokens that are gone.
    pub(super) fn gone(&self) -> Vec<Marks> {
        self.gone.iter().copied().collect()
    }

    pub(super) fn interval(&self) -> Option<u64> {
        self.interval
    }

    /// A token showed how long it was renewed for.
    pub(super) fn shown(&mut self, interval: u64) {
        self.interval = Some(interval);
    }

    /// A token is gone.
    pub(super) fn forget(&mut self, marks: Marks) {
        self.gone.push_back(marks);
        if self.gone.len() > MOST_GONE {
            self.gone.pop_front();
        }
    }

    /// The answer for this object is too late.
    pub(super) fn late(&mut self, uid: &Arc<str>) {
        self.late.insert(uid.clone());
    }

    pub(super) fn is_late(&self, uid: &str) -> bool {
        self.late.contains(uid)
    }

    /// None of those that were being asked for comes any more, or all are known.
    pub(super) fn settled(&mut self, uid: &str) {
        if let Some(search) = self.searches.get_mut(uid) {
            search.awaited.clear();
        }
    }

    pub(super) fn search(&self, uid: &str) -> Option<Search> {
        self.searches.get(uid).cloned()
    }

    pub(super) fn begin(&mut self, uid: &Arc<str>, search: Search) {
        self.searches.insert(uid.clone(), search);
    }

    /// It is not looked for any more. Says whether it was.
    pub(super) fn end(&mut self, uid: &str) -> bool {
        let was = self.searches.remove(uid).is_some();
        self.stirred.remove(uid);
        self.late.remove(uid);
        if self.searches.is_empty() {
            self.tried.clear();
        }
        was
    }

    /// Only those of `uids` are looked for.
    pub(super) fn retain(&mut self, uids: &HashSet<Arc<str>>) {
        let gone: Vec<_> = self.searches.keys().filter(|uid| !uids.contains(*uid)).cloned().collect();
        for uid in gone {
            self.end(&uid);
        }
        self.late.retain(|uid| uids.contains(uid));
    }

    /// The first `most` of `candidates` that were not tried for `user`, and whether these are all.
    pub(super) fn untried(
        &self,
        user: &str,
        candidates: impl Iterator<Item = Marks>,
        most: usize,
    ) -> (Vec<Marks>, bool) {
        let tried = self.tried.get(user);
        let mut untried = candidates.filter(|marks| !tried.is_some_and(|tried| tried.contains(marks)));
        let next = untried.by_ref().take(most).collect();
        (next, untried.next().is_none())
    }

    /// These were tried for `user`, and were none; it took so many attempts of the search for `uid`.
    pub(super) fn tried(&mut self, uid: &str, user: &str, marks: &[Marks], attempts: u32) {
        if let Some(search) = self.searches.get_mut(uid) {
            search.left = search.left.saturating_sub(attempts);
        }
        if self.tried.values().map(HashSet::len).sum::<usize>() + marks.len() > MOST_TRIED {
            self.tried.clear();
        }
        self.tried.entry(user.into()).or_default().extend(marks);
    }

    pub(super) fn vain(&mut self, uid: &str, facts: u64) {
        if let Some(search) = self.searches.get_mut(uid) {
            search.vain = Some(facts);
        }
    }

    /// There is news of the token with `number`, or of one that has none: whether anybody waits for it.
    pub(super) fn stir(&mut self, number: Option<i32>) -> bool {
        let waits = |search: &Search| {
            search.vain.is_some() && number.is_none_or(|number| number < search.probe.sequence_number)
        };
        let stirred = self.searches.iter().filter(|(_, search)| waits(search)).map(|(uid, _)| uid.clone());
        self.stirred.extend(stirred);
        !self.stirred.is_empty()
    }

    /// The searches that there was news for.
    pub(super) fn stirred(&mut self) -> BTreeSet<Arc<str>> {
        std::mem::take(&mut self.stirred)
    }
}

#[cfg(test)]
mod tests;
