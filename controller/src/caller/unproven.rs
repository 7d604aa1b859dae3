//! What callers may cost who are not known to be node plugins: every token that they show is a question to the API
//! server, of which we may ask only so many. A token that is good costs its caller nothing.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout},
};

use crate::{authorization::Refusal, failure::Failure};

/// Reviews of callers' own tokens under way, and the longest wait for one's turn.
const REVIEWS: usize = 64;
const PATIENCE: Duration = Duration::from_secs(10);

/// Rejected tokens that one address may show in this time. Beyond them, nobody is asked any more until it is over.
const REJECTIONS: u32 = 100;
const WINDOW: Duration = Duration::from_mins(1);

/// Addresses remembered. Those beyond have only the bound on reviews under way.
const MAX_PEERS: usize = 10_000;

/// Who showed tokens that were rejected, and since when.
pub(super) struct Unproven {
    reviews: Semaphore,
    rejected: Mutex<HashMap<IpAddr, Rejections>>,
}

struct Rejections {
    first: Instant,
    number: u32,
}

impl Default for Unproven {
    fn default() -> Self {
        Self { reviews: Semaphore::new(REVIEWS), rejected: Mutex::default() }
    }
}

impl Unproven {
    /// The turn of a caller at `peer`, unless it has shown too much that was rejected.
    pub(super) async fn turn(&self, peer: Option<IpAddr>) -> Result<SemaphorePermit<'_>, Failure> {
        self.admit(peer)?;
        let turn = match timeout(PATIENCE, self.reviews.acquire()).await {
            Ok(turn) => turn.map_err(|_| Failure::Stopping)?,
            Err(_) => return Err(Failure::ManyCallers),
        };
        // It may have been rejected often enough while this one waited.
        self.admit(peer)?;
        Ok(turn)
    }

    fn admit(&self, peer: Option<IpAddr>) -> Result<(), Refusal> {
        let Some(peer) = peer else { return Ok(()) };
        let rejected = self.rejected.lock().unwrap_or_else(PoisonError::into_inner);
        match rejected.get(&peer) {
            Some(one) if one.number >= REJECTIONS && one.first.elapsed() < WINDOW => {
                Err(Refusal::ManyRejected(peer))
            }
            _ => Ok(()),
        }
    }

    /// A caller at `peer` is no node plugin of ours.
    pub(super) fn rejected(&self, peer: Option<IpAddr>) {
        let Some(peer) = peer else { return };
        let mut rejected = self.rejected.lock().unwrap_or_else(PoisonError::into_inner);
        if rejected.len() >= MAX_PEERS {
            rejected.retain(|_, one| one.first.elapsed() < WINDOW);
        }
        if rejected.len() >= MAX_PEERS && !rejected.contains_key(&peer) {
            return;
        }
        let one = rejected.entry(peer).or_insert_with(|| Rejections { first: Instant::now(), number: 0 });
        if one.first.elapsed() >= WINDOW {
            *one = Rejections { first: Instant::now(), number: 0 };
        }
        one.number = one.number.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u32) -> Option<IpAddr> {
        Some(IpAddr::from((0x0a00_0000 + number).to_be_bytes()))
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_shows_rejected_tokens_has_to_wait_and_no_other() {
        let unproven = Unproven::default();
        for _ in 0..REJECTIONS {
            drop(unproven.turn(peer(1)).await.unwrap());
            unproven.rejected(peer(1));
        }
        let refused = unproven.turn(peer(1)).await;
        assert!(matches!(refused, Err(Failure::Refused(Refusal::ManyRejected(_)))));
        assert!(unproven.turn(peer(2)).await.is_ok());
        tokio::time::advance(WINDOW).await;
        assert!(unproven.turn(peer(1)).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_are_reviewed_at_once_and_the_others_do_not_wait_for_ever() {
        let unproven = Unproven::default();
        let mut turns = Vec::new();
        for number in 0..REVIEWS {
            turns.push(unproven.turn(peer(u32::try_from(number).unwrap())).await.unwrap());
        }
        let begun = Instant::now();
        assert!(matches!(unproven.turn(None).await, Err(Failure::ManyCallers)));
        assert_eq!(begun.elapsed(), PATIENCE);
        turns.pop();
        assert!(unproven.turn(None).await.is_ok());
    }

    #[test]
    fn a_flood_from_many_addresses_fills_no_memory() {
        let unproven = Unproven::default();
        for number in 0..20_000 {
            unproven.rejected(peer(number));
        }
        assert_eq!(unproven.rejected.lock().unwrap().len(), MAX_PEERS);
    }
}
