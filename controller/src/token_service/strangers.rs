//! How much is said of callers that are not known to be node plugins, or ask too often: so much that a mistake is seen
//! in log and audit log, and so little that nobody can fill the disk with them. What is beyond is only counted.

use std::num::NonZeroU32;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Audit records of strangers under way, so that none of them can fill the log's queue.
const AT_ONCE: usize = 16;

/// Calls of strangers that are told of each second in the long run, and at once.
const RATE: (u32, u32) = (10, 100);

/// Room for what is said of strangers.
pub(crate) struct Strangers {
    records: Semaphore,
    rate: DefaultDirectRateLimiter,
}

impl Default for Strangers {
    fn default() -> Self {
        let [rate, burst] = [RATE.0, RATE.1].map(|n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN));
        let rate = RateLimiter::direct(Quota::per_second(rate).allow_burst(burst));
        Self { records: Semaphore::new(AT_ONCE), rate }
    }
}

impl Strangers {
    /// Room for one more, until it is dropped.
    pub(super) fn room(&self) -> Option<SemaphorePermit<'_>> {
        let room = self.records.try_acquire().ok()?;
        self.rate.check().ok()?;
        Some(room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_told_of_so_often_and_so_many_at_once() {
        let strangers = Strangers::default();
        let rooms: Vec<_> = std::iter::from_fn(|| strangers.room()).collect();
        assert_eq!(rooms.len(), AT_ONCE);
        drop(rooms);
        let told = (0..10_000).filter(|_| strangers.room().is_some()).count();
        assert!((84..200).contains(&told), "{told}");
    }
}
