//! Turns at the API server: so many requests under way at once, however many calls there are. Whoever waits for a turn
//! too long goes without. Watches, of which there are a few for ever, need none.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// Requests under way. The API server is asked over HTTP/1.1, so each takes a connection: at times two, because the client
/// may open one while another is about to become free.
pub(crate) const AT_ONCE: usize = 32;

/// Longest wait for a turn.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there was no turn.
pub(crate) const NONE: &str = "too many other requests of the controller's own are under way";

/// Turns, in the order in which they are asked for. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

impl Turns {
    /// The right to have a request under way, as long as it is held. None when it does not come in time.
    pub(crate) async fn take(&self) -> Option<OwnedSemaphorePermit> {
        timeout(PATIENCE, self.0.clone().acquire_owned()).await.ok()?.ok() // never closed
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn so_many_have_a_turn_and_the_others_do_not_wait_for_ever() {
        let turns = Turns::default();
        let held = join_all((0..AT_ONCE).map(|_| turns.take())).await;
        assert!(held.iter().all(Option::is_some));
        let begun = Instant::now();
        assert!(turns.take().await.is_none());
        assert_eq!(begun.elapsed(), PATIENCE);
        let (_, next) = tokio::join!(
            async {
                sleep(PATIENCE / 2).await;
                drop(held);
            },
            turns.take()
        );
        assert!(next.is_some(), "it does not get the turn of one who has left");
    }
}
