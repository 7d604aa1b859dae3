//! The one place that reads the wall clock. Tests put another in its place, one that stands still with tokio's.

use std::{fmt, sync::Arc};

use jiff::Timestamp;
use tokio::time::{Duration, Instant};

/// Tells the time. Clones tell the same.
#[derive(Clone)]
pub(crate) struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// The system's clock.
    pub(crate) fn system() -> Self {
        Self(Arc::new(Timestamp::now))
    }

    /// The present time.
    pub(crate) fn now(&self) -> Timestamp {
        (self.0)()
    }

    /// When a timer must go off to meet `at`; at once, if that is past.
    pub(crate) fn instant(&self, at: Timestamp) -> Instant {
        let wait = Duration::try_from(at.duration_since(self.now())).unwrap_or(Duration::ZERO);
        // Beyond what an instant can hold is beyond the life of this process.
        let far = Duration::from_secs(100 * 365 * 86_400);
        Instant::now() + wait.min(far)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

#[cfg(test)]
impl Clock {
    /// A clock that begins at `start` and goes as tokio's.
    pub(crate) fn paused(start: Timestamp) -> Self {
        let origin = Instant::now();
        Self(Arc::new(move || start + origin.elapsed()))
    }
}
