//! Which entries are to be looked at, and when: pure. Each is looked at by one at a time, and no cluster takes more than
//! its share: a cluster that does not answer holds up nobody else's tokens.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use crate::ledger::Entry;

/// Waits between attempts: the first, and the longest that it grows to, for what may pass and for what somebody has to
/// mend.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
const LONGEST_WAIT_FOR_PEOPLE: Duration = Duration::from_mins(5);

/// The entries that are dying, or may be, and when each is due.
#[derive(Debug)]
pub(super) struct Schedule {
    /// By UID.
    tasks: HashMap<Arc<str>, Task>,
    /// UIDs of entries that were removed, and that the ledger may show for a while.
    removed: HashSet<Arc<str>>,
    /// UIDs of entries that are looked at before others of the same token.
    first: HashSet<Arc<str>>,
    due: BTreeSet<(Instant, Arc<str>)>,
    clusters: HashMap<Box<str>, Cluster>,
    /// Looks at entries of one cluster at once.
    share: usize,
}

/// What is known of an entry that is looked at.
#[derive(Debug)]
struct Task {
    entry: Arc<Entry>,
    known_since: Instant,
    dying_since: Option<Instant>,
    failures: u32,
    cancelled: bool,
    /// Its pod was found to have ended, or somebody deleted it.
    ended: bool,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In `due`.
    Due(Instant),
    /// In its cluster's queue.
    Waiting,
    /// Being looked at. When this is over, it is looked at again if somebody wants that.
    Busy { again: bool },
}

#[derive(Debug, Default)]
struct Cluster {
    busy: usize,
    waiting: VecDeque<Arc<str>>,
}

/// One look at an entry that is due.
#[derive(Clone, Debug)]
pub(super) struct Look {
    pub(super) entry: Arc<Entry>,
    pub(super) known_for: Duration,
    pub(super) dying_for: Duration,
    pub(super) cancelled: bool,
    /// The look before failed.
    pub(super) failed: bool,
    /// As in [`super::fate::Facts`]; not known here, as the next one.
    pub(super) shared: bool,
    /// The other entries of the same token, by UID; not those of an entry that is held up.
    pub(super) sharers: HashSet<Arc<str>>,
    /// Another entry of the same token has to be looked at before; this one again after this time.
    pub(super) held_up: Option<Duration>,
}

/// What came of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It needs no further look as it is.
    Done,
    /// It is no more, whatever is still seen of it.
    Removed {
        /// And its token was cancelled.
        cancelled: bool,
    },
    /// It needs one after this time.
    Again(Duration),
    /// What had to be done failed.
    Failed {
        /// The same may succeed later without anybody's help.
        passes: bool,
        /// The token was cancelled, and the entry could not be removed.
        cancelled: bool,
    },
}

impl Schedule {
    /// Nothing to do yet; `share` looks at once for each cluster.
    pub(super) fn new(share: usize) -> Self {
        Self {
            tasks: HashMap::new(),
            removed: HashSet::new(),
            first: HashSet::new(),
            due: BTreeSet::new(),
            clusters: HashMap::new(),
            share: share.max(1),
        }
    }

    /// Entries that are looked at again and again.
    pub(super) fn len(&self) -> usize {
        self.tasks.len()
    }

    /// UIDs of those entries, and of those that were removed.
    pub(super) fn uids(&self) -> HashSet<Arc<str>> {
        self.tasks.keys().chain(&self.removed).cloned().collect()
    }

    /// How long an entry is known to be dying.
    pub(super) fn dying_for(&self, uid: &str, now: Instant) -> Duration {
        let since = self.tasks.get(uid).and_then(|task| task.dying_since);
        since.map(|since| now - since).unwrap_or_default()
    }

    /// Whether an entry's look has shown that it ends.
    pub(super) fn ended(&self, uid: &str) -> bool {
        self.removed.contains(uid) || self.tasks.get(uid).is_some_and(|task| task.ended)
    }

    /// Whether the token of an entry was cancelled, and it is to be removed.
    pub(super) fn is_cancelled(&self, uid: &str) -> bool {
        self.tasks.get(uid).is_some_and(|task| task.cancelled)
    }

    /// Of entries that share a token, one goes first: whether the one with `uid` does, now that `others` have it too.
    /// It does until its look is over.
    pub(super) fn goes_first<'a>(
        &mut self,
        uid: &Arc<str>,
        others: impl IntoIterator<Item = &'a Arc<str>>,
    ) -> bool {
        let first = !others.into_iter().any(|other| self.first.contains(other));
        if first {
            self.first.insert(uid.clone());
        }
        first
    }

    /// The token of an entry was cancelled by way of another one: what is left is to remove it.
    pub(super) fn cancelled(&mut self, uid: &str, now: Instant) {
        if let Some(task) = self.tasks.get_mut(uid).filter(|task| !task.cancelled) {
            task.cancelled = true;
            self.hurry(uid, now);
        }
    }

    /// There is news that concerns an entry: it is looked at again at once.
    pub(super) fn hurry(&mut self, uid: &str, now: Instant) {
        let Some(task) = self.tasks.get_mut(uid) else { return };
        match &mut task.state {
            State::Due(due) => {
                self.due.remove(&(*due, Arc::from(uid)));
                self.due.insert((now, Arc::from(uid)));
                *due = now;
            }
            State::Busy { again } => *again = true,
            State::Waiting => {}
        }
    }

    /// `entry` has to be looked at no later than after `wait`. One that is in back-off stays in it unless there is
    /// something new about it.
    pub(super) fn want(&mut self, entry: &Arc<Entry>, dying: bool, wait: Duration, now: Instant) {
        if self.removed.contains(&entry.uid) {
            return;
        }
        let at = now + wait;
        let Some(task) = self.tasks.get_mut(&entry.uid) else {
            self.due.insert((at, entry.uid.clone()));
            let task = Task {
                entry: entry.clone(),
                known_since: now,
                dying_since: dying.then_some(now),
                failures: 0,
                cancelled: false,
                ended: false,
                state: State::Due(at),
            };
            self.tasks.insert(entry.uid.clone(), task);
            return;
        };
        let was = std::mem::replace(&mut task.entry, entry.clone());
        let begins_to_die = dying && task.dying_since.is_none();
        if begins_to_die {
            task.dying_since = Some(now);
        }
        let news = begins_to_die
            || (was.deleting, was.let_go, was.token.is_some())
                != (entry.deleting, entry.let_go, entry.token.is_some());
        if news {
            task.failures = 0;
        } else if task.failures > 0 {
            return;
        }
        match &mut task.state {
            State::Due(due) if at < *due => {
                self.due.remove(&(*due, entry.uid.clone()));
                self.due.insert((at, entry.uid.clone()));
                *due = at;
            }
            State::Busy { again } => *again |= news,
            State::Due(_) | State::Waiting => {}
        }
    }

    /// `entry` needs no look of its own. One that it has been promised is at what it is now.
    pub(super) fn refresh(&mut self, entry: &Arc<Entry>) {
        if let Some(task) = self.tasks.get_mut(&entry.uid) {
            task.entry = entry.clone();
        }
    }

    /// The entry is gone.
    pub(super) fn forget(&mut self, uid: &str) {
        self.removed.remove(uid);
        // A look that is under way goes on, and its place is given back when it ends.
        match self.tasks.get(uid).map(|task| task.state) {
            Some(State::Due(at)) => {
                self.due.remove(&(at, Arc::from(uid)));
                self.tasks.remove(uid);
            }
            Some(State::Waiting) => {
                let task = self.tasks.remove(uid);
                if let Some(cluster) = task.and_then(|task| self.clusters.get_mut(&task.entry.cluster)) {
                    cluster.waiting.retain(|waiting| **waiting != *uid);
                }
            }
            Some(State::Busy { .. }) | None => {}
        }
    }

    /// When the next look is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// The looks that are due and have a place. Each has to be told what came of it by [`Schedule::looked`].
    pub(super) fn take(&mut self, now: Instant) -> Vec<Look> {
        let mut looks = Vec::new();
        while self.due.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, uid)) = self.due.pop_first() else { break };
            let Some(task) = self.tasks.get_mut(&uid) else { continue };
            let cluster = self.clusters.entry(task.entry.cluster.clone()).or_default();
            if cluster.busy < self.share {
                cluster.busy += 1;
                looks.push(task.look(now));
            } else {
                task.state = State::Waiting;
                cluster.waiting.push_back(uid);
            }
        }
        looks
    }

    /// What came of a look. Returns the one that takes its place, if one waits. `chance` is from 0 to 1.
    pub(super) fn looked(
        &mut self,
        uid: &Arc<str>,
        outcome: Outcome,
        now: Instant,
        chance: f64,
    ) -> Option<Look> {
        self.first.remove(uid);
        let task = self.tasks.get_mut(uid)?;
        let again = matches!(task.state, State::Busy { again: true });
        let removed = matches!(outcome, Outcome::Removed { .. });
        let cluster = task.entry.cluster.clone();
        let wait = match outcome {
            Outcome::Done | Outcome::Removed { .. } => None,
            Outcome::Again(wait) => {
                task.failures = 0;
                task.ended = task.dying_since.is_some() && task.entry.token.is_some();
                Some(wait)
            }
            Outcome::Failed { passes, cancelled } => {
                task.cancelled |= cancelled;
                task.failures = task.failures.saturating_add(1);
                Some(wait_after(task.failures, passes, chance))
            }
        };
        match wait.or((again && !removed).then_some(Duration::ZERO)) {
            Some(wait) => {
                let at = now + if again { Duration::ZERO } else { wait };
                task.state = State::Due(at);
                self.due.insert((at, uid.clone()));
            }
            None => {
                self.tasks.remove(uid);
                if removed {
                    self.removed.insert(uid.clone());
                }
            }
        }
        self.place_free(&cluster, now)
    }

    fn place_free(&mut self, name: &str, now: Instant) -> Option<Look> {
        let cluster = self.clusters.get_mut(name)?;
        cluster.busy = cluster.busy.saturating_sub(1);
        while let Some(uid) = cluster.waiting.pop_front() {
            if let Some(task) = self.tasks.get_mut(&uid) {
                cluster.busy += 1;
                return Some(task.look(now));
            }
        }
        if cluster.busy == 0 {
            self.clusters.remove(name);
        }
        None
    }
}

impl Task {
    fn look(&mut self, now: Instant) -> Look {
        self.state = State::Busy { again: false };
        Look {
            entry: self.entry.clone(),
            known_for: now - self.known_since,
            dying_for: self.dying_since.map(|since| now - since).unwrap_or_default(),
            cancelled: self.cancelled,
            failed: self.failures > 0,
            shared: false,
            sharers: HashSet::new(),
            held_up: None,
        }
    }
}

/// How long to wait after so many failures in a row: more each time, and no two alike.
fn wait_after(failures: u32, passes: bool, chance: f64) -> Duration {
    let longest = if passes { LONGEST_WAIT } else { LONGEST_WAIT_FOR_PEOPLE };
    let wait = FIRST_WAIT.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(longest);
    wait.mul_f64(0.5 + chance / 2.0)
}

#[cfg(test)]
mod tests;
