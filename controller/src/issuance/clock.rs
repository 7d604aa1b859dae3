//! The clock of a Hadoop service, as far as its answers tell it: its dates are never compared with any other clock. What
//! passes since is told by our monotonic one, so that stepping ours moves nothing.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// What a service's clock shows now.
#[derive(Debug, Default)]
pub(crate) struct ServerClock(Mutex<Option<Reading>>);

/// The service's clock showed `date` not later than `at`.
#[derive(Clone, Copy, Debug)]
struct Reading {
    date: u64,
    at: Instant,
    /// How much earlier that may have been.
    doubt: Duration,
}

/// A reading that is less exact than the one before replaces it after this: clocks drift, and are set.
const READING_LIFETIME: Duration = Duration::from_mins(5);

/// Doubt that does not matter.
const EXACT: Duration = Duration::from_millis(500);

impl ServerClock {
    /// The service's clock showed `date`, in milliseconds since the epoch, at some moment since `asked`.
    pub(crate) fn heard(&self, date: u64, asked: Instant) {
        let doubt = asked.elapsed();
        let mut reading = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let better =
            |known: &Reading| doubt <= known.doubt.max(EXACT) || known.at.elapsed() > READING_LIFETIME;
        if reading.as_ref().is_none_or(better) {
            // As if it had answered at once: rather take its tokens for older than they are.
            *reading = Some(Reading { date, at: asked, doubt });
        }
    }

    /// What it shows now, in milliseconds since the epoch. None as long as it has told nothing.
    pub(crate) fn now(&self) -> Option<u64> {
        let reading = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reading.map(|Reading { date, at, .. }| date.saturating_add(millis(at.elapsed())))
    }
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const DATE: u64 = 1_800_000_000_000;

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_told_nothing_is_not_guessed() {
        assert_eq!(ServerClock::default().now(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_was_heard_goes_on() {
        let clock = ServerClock::default();
        let asked = Instant::now();
        advance(Duration::from_millis(20)).await;
        clock.heard(DATE, asked);
        advance(Duration::from_secs(100)).await;
        assert_eq!(clock.now(), Some(DATE + 100_020), "a token is taken for younger than it may be");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_answer_spoils_no_exact_reading_and_the_last_exact_one_counts() {
        let clock = ServerClock::default();
        clock.heard(DATE, Instant::now());
        let asked = Instant::now();
        advance(Duration::from_secs(10)).await;
        clock.heard(DATE + 9_999, asked); // it may have been made at any time
        assert_eq!(clock.now(), Some(DATE + 10_000));
        clock.heard(DATE + 600_000, Instant::now()); // another NameNode, with another clock
        assert_eq!(clock.now(), Some(DATE + 600_000));
        advance(READING_LIFETIME).await;
        let asked = Instant::now();
        advance(Duration::from_secs(1)).await;
        clock.heard(DATE, asked);
        assert_eq!(clock.now(), Some(DATE + 1_000), "an old reading is believed for ever");
    }
}
