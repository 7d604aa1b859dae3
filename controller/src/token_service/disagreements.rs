//! Pods of which API server and node see different addresses, and since when. When a pod's network namespace is made
//! anew, its node knows the new addresses seconds before the API server does; only what lasts longer is a contradiction.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Longer than kubelet takes to tell the API server of new addresses.
const SETTLING: Duration = Duration::from_secs(10);

/// For how long a first sight counts. A node plugin asks again sooner, however often it was put off.
const MEMORY: Duration = Duration::from_hours(1);

/// Most pods remembered. Where there are more, the network is broken, and all of them wait.
const CAPACITY: usize = 10_000;

/// When each pod was first seen so.
#[derive(Debug, Default)]
pub(crate) struct Disagreements(Mutex<HashMap<String, Instant>>);

impl Disagreements {
    /// Notes whether the two disagree about the pod with UID `uid`; whether they have done so for too long.
    pub(super) fn lasts(&self, uid: &str, disagree: bool, now: Instant) -> bool {
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !disagree {
            first.remove(uid);
            return false;
        }
        first.retain(|_, seen| now.saturating_duration_since(*seen) < MEMORY);
        if let Some(seen) = first.get(uid) {
            return now.saturating_duration_since(*seen) >= SETTLING;
        }
        if first.len() < CAPACITY {
            first.insert(uid.to_owned(), now);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_whose_addresses_are_being_made_anew_has_time_to_settle() {
        let (disagreements, now) = (Disagreements::default(), Instant::now());
        assert!(!disagreements.lasts("u-1", true, now));
        assert!(!disagreements.lasts("u-1", true, now + SETTLING / 2));
        assert!(!disagreements.lasts("u-1", false, now + SETTLING));
        assert!(!disagreements.lasts("u-1", true, now + 2 * SETTLING), "a new one");
    }

    #[test]
    fn what_lasts_is_a_contradiction() {
        let (disagreements, now) = (Disagreements::default(), Instant::now());
        assert!(!disagreements.lasts("u-1", true, now));
        assert!(disagreements.lasts("u-1", true, now + SETTLING));
        assert!(!disagreements.lasts("u-2", true, now + SETTLING), "each pod for itself");
    }

    #[test]
    fn what_was_long_ago_does_not_count() {
        let (disagreements, now) = (Disagreements::default(), Instant::now());
        assert!(!disagreements.lasts("u-1", true, now));
        assert!(!disagreements.lasts("u-1", true, now + MEMORY));
    }
}
