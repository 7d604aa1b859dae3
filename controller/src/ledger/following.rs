//! How well a watch follows: whether everything has been seen once, and since when and why it fails. No I/O.

use std::time::Duration;

use tokio::time::Instant;

/// A watch that failed and is silent since then has resumed: it would have failed again by now.
const RESUMED: Duration = Duration::from_secs(90);

/// The state of a watch.
#[derive(Debug, Default)]
pub(super) struct Following {
    complete: bool,
    listing: bool,
    failing: Option<Failing>,
}

#[derive(Debug)]
struct Failing {
    last: Instant,
    why: String,
}

impl Following {
    /// A list begins: only an attempt, which may fail.
    pub(super) fn begins_list(&mut self) {
        self.listing = true;
    }

    /// Whether it is the first.
    pub(super) fn ends_list(&mut self) -> bool {
        self.listing = false;
        !std::mem::replace(&mut self.complete, true)
    }

    /// Whether everything has been seen at least once.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether it followed until now.
    pub(super) fn fails(&mut self, why: String) -> bool {
        self.failing.replace(Failing { last: Instant::now(), why }).is_none()
    }

    /// Whether it failed until now.
    pub(super) fn follows(&mut self) -> bool {
        self.failing.take().is_some()
    }

    /// When silence means that all is well again.
    pub(super) fn resumes_at(&self) -> Option<Instant> {
        let failing = self.failing.as_ref().filter(|_| !self.listing)?;
        Some(failing.last + RESUMED)
    }

    pub(super) fn health(&self) -> Result<(), String> {
        match &self.failing {
            Some(failing) => Err(failing.why.clone()),
            None if !self.complete => Err("not all objects have been listed yet".to_owned()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_after_a_failure_means_that_the_watch_has_resumed() {
        let mut following = Following::default();
        assert!(following.health().is_err(), "nothing was listed");
        following.begins_list();
        assert!(!following.is_complete());
        assert!(following.ends_list(), "the first");
        assert_eq!((following.is_complete(), following.health()), (true, Ok(())));
        assert!(following.fails("gone".to_owned()));
        assert!(!following.fails("refused".to_owned()), "it failed already");
        assert_eq!(following.health(), Err("refused".to_owned()));
        assert_eq!(following.resumes_at(), Some(Instant::now() + RESUMED));
        // While a list is under way silence means nothing.
        following.begins_list();
        assert_eq!(following.resumes_at(), None);
        assert!(!following.ends_list() && following.follows());
        assert_eq!((following.resumes_at(), following.health()), (None, Ok(())));
    }
}
