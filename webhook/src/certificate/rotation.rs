//! When a certificate of ours gets a successor, and when that is shown. Decided by the clocks that are passed in: dates
//! by the one that can be set, waits by the one that cannot.

use std::{collections::BTreeSet, mem, time::Duration};

use tokio::time::Instant;

use super::{Authority, Identity};

/// A moment, by both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// In seconds since the epoch.
    pub(crate) date: i64,
    pub(crate) at: Instant,
}

/// What has to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Nothing,
    /// Make an identity, for [`Rotation::succeed_by`].
    Make,
    /// Show the successor: [`Rotation::show_next`].
    Show,
}

/// The identity that is shown, the one that will be, and those that were.
pub(crate) struct Rotation {
    current: Held,
    next: Option<Held>,
    retired: BTreeSet<Authority>,
    /// How long the API servers get to believe what is written.
    settling: Duration,
}

struct Held {
    identity: Identity,
    /// Since when its authority is written wherever it has to be.
    believed: Option<Instant>,
}

impl Held {
    fn new(identity: Identity) -> Self {
        Self { identity, believed: None }
    }

    /// Half of its life is over, or it is of a time that has not come.
    fn is_old(&self, date: i64) -> bool {
        let Identity { made, end, .. } = self.identity;
        date < made || date.saturating_sub(made) >= end.saturating_sub(made) / 2
    }

    fn is_believed(&self, now: Now, settling: Duration) -> bool {
        self.believed.is_some_and(|since| now.at.saturating_duration_since(since) >= settling)
    }
}

impl Rotation {
    pub(crate) fn new(first: Identity, settling: Duration) -> Self {
        Self { current: Held::new(first), next: None, retired: BTreeSet::new(), settling }
    }

    /// What has to be done now. To be asked again once it is done.
    pub(crate) fn step(&self, now: Now) -> Step {
        match &self.next {
            // Nobody could be told of it for so long that it is of no use any more.
            Some(next) if next.is_old(now.date) => Step::Make,
            Some(next) if next.is_believed(now, self.settling) => Step::Show,
            Some(_) => Step::Nothing,
            None if self.current.is_old(now.date) => Step::Make,
            None => Step::Nothing,
        }
    }

    /// Has `identity` shown once it is believed.
    pub(crate) fn succeed_by(&mut self, identity: Identity) {
        if let Some(useless) = self.next.replace(Held::new(identity)) {
            self.retired.insert(useless.identity.authority);
        }
    }

    /// The successor is what is shown from now on.
    pub(crate) fn show_next(&mut self) {
        if let Some(next) = self.next.take() {
            let former = mem::replace(&mut self.current, next);
            self.retired.insert(former.identity.authority);
        }
    }

    /// What is to be shown.
    pub(crate) fn current(&self) -> &Identity {
        &self.current.identity
    }

    /// Authorities that have to be believed.
    pub(crate) fn own(&self) -> BTreeSet<Authority> {
        let held = [Some(&self.current), self.next.as_ref()];
        held.into_iter().flatten().map(|held| held.identity.authority.clone()).collect()
    }

    /// Authorities that nobody needs to believe any more.
    pub(crate) fn retired(&self) -> &BTreeSet<Authority> {
        &self.retired
    }

    /// These authorities are written wherever they have to be, and no others.
    pub(crate) fn written(&mut self, authorities: &BTreeSet<Authority>, now: Now) {
        for held in [Some(&mut self.current), self.next.as_mut()].into_iter().flatten() {
            held.believed = match authorities.contains(&held.identity.authority) {
                true => held.believed.or(Some(now.at)),
                false => None,
            };
        }
        self.retired.retain(|authority| authorities.contains(authority));
    }

    /// Whether nothing waits for API servers to learn of it.
    pub(crate) fn is_settled(&self, now: Now) -> bool {
        self.next.is_none() && self.is_believed(now)
    }

    /// Whether API servers believe what is shown.
    pub(crate) fn is_believed(&self, now: Now) -> bool {
        self.current.is_believed(now, self.settling)
    }
}
