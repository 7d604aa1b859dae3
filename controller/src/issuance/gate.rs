//! Turns at one cluster: so many calls at once, so many more that wait, and no others. Who may call at all was
//! decided before.

use std::sync::Arc;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics::Counted;

/// Lets calls through in the order in which they came.
pub(crate) struct Gate {
    turns: Arc<Semaphore>,
    /// For those who have a turn and those who wait for one.
    places: Arc<Semaphore>,
    waiting: Gauge,
}

/// A place in the queue.
pub(crate) struct Place {
    place: OwnedSemaphorePermit,
    turns: Arc<Semaphore>,
    waiting: Counted,
}

/// The right to call, as long as it is held.
pub(crate) struct Turn {
    _turn: OwnedSemaphorePermit,
    _place: OwnedSemaphorePermit,
}

impl Gate {
    /// `turns` calls at once, and `queue` more that wait. `waiting` shows how many there are of the latter.
    pub(crate) fn new(turns: usize, queue: usize, waiting: Gauge) -> Self {
        let places = turns.saturating_add(queue).min(Semaphore::MAX_PERMITS);
        let turns = turns.min(Semaphore::MAX_PERMITS);
        Self { turns: Arc::new(Semaphore::new(turns)), places: Arc::new(Semaphore::new(places)), waiting }
    }

    /// A place, if there is one left.
    pub(crate) fn place(&self) -> Option<Place> {
        let place = self.places.clone().try_acquire_owned().ok()?;
        Some(Place { place, turns: self.turns.clone(), waiting: Counted::new(&self.waiting) })
    }
}

impl Place {
    /// Waits for the turn. May be abandoned.
    pub(crate) async fn turn(self) -> Option<Turn> {
        let Self { place, turns, waiting } = self;
        let turn = turns.acquire_owned().await.ok()?; // never closed
        drop(waiting);
        Some(Turn { _turn: turn, _place: place })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_few_wait_and_no_more() {
        let waiting = Gauge::default();
        let gate = Gate::new(1, 2, waiting.clone());
        let first = gate.place().unwrap().turn().await.unwrap();
        let (second, third) = (gate.place().unwrap(), gate.place().unwrap());
        assert_eq!(waiting.get(), 2);
        assert!(gate.place().is_none(), "a third one waits");
        assert!(timeout(Duration::from_secs(1), third.turn()).await.is_err());
        assert_eq!(waiting.get(), 1, "who went away waits on");
        drop(first);
        let second = timeout(Duration::from_secs(1), second.turn()).await.unwrap();
        assert_eq!(waiting.get(), 0);
        assert!(gate.place().is_some());
        drop(second);
    }
}
