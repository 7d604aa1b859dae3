//! Room in memory for reviews. As a body arrives, room is taken for what has come, so that who announces much and sends
//! nothing takes none away. Once it is whole, it gets room for being decided, all at once: what is taken apart is a
//! multiple of it.

use std::sync::Arc;

use axum::body::{Body, BodyDataStream};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};
use tokio_stream::StreamExt;

use super::{Limits, failure::Failure};

/// Bytes are counted in these.
pub(super) const UNIT: usize = 1024;
/// What a map or list takes is that of as many bytes more of a text.
const NESTED: usize = 64;

/// What is left.
pub(super) struct Room {
    body_limit: usize,
    /// For bodies on their way.
    arriving: Arc<Semaphore>,
    /// For one more that found none. Without it, many that have come in part could wait for each other.
    one_more: Arc<Semaphore>,
    /// For what is decided.
    deciding: Arc<Semaphore>,
    /// All that is decided together.
    most: usize,
}

/// A body that has come whole, and its room for as long as it is worked at.
pub(super) struct Whole {
    pub(super) bytes: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

impl Room {
    pub(super) fn new(limits: &Limits) -> Self {
        let units = limits.bodies_bytes.div_ceil(UNIT);
        Self {
            body_limit: limits.body_bytes,
            arriving: Arc::new(Semaphore::new(units)),
            one_more: Arc::new(Semaphore::new(1)),
            deciding: Arc::new(Semaphore::new(units)),
            most: limits.bodies_bytes,
        }
    }

    /// Takes the whole body, as fast as there is room for it.
    pub(super) async fn read(
        &self,
        announced: Option<usize>,
        body: Body,
        deadline: Instant,
    ) -> Result<Whole, Failure> {
        if announced.is_some_and(|length| length > self.body_limit) {
            return Err(Failure::TooLarge);
        }
        let mut arrival = Arrival::new(self);
        let mut frames = body.into_data_stream();
        while let Some(frame) = next(&mut frames, deadline).await? {
            let length = arrival.bytes.len().saturating_add(frame.len());
            if length > self.body_limit {
                return Err(Failure::TooLarge);
            }
            within(deadline, arrival.make_room(length)).await?;
            arrival.bytes.extend_from_slice(&frame);
        }
        let weight = weight(&arrival.bytes);
        if weight > self.most {
            return Err(Failure::TooLarge);
        }
        let deciding = self.deciding.clone().acquire_many_owned(units(weight)?);
        let room = within(deadline, async { deciding.await.map_err(|_| Failure::Busy) }).await?;
        Ok(Whole { bytes: arrival.bytes, _room: room })
    }
}

/// A body on its way.
struct Arrival<'a> {
    room: &'a Room,
    bytes: Vec<u8>,
    /// For what has come.
    held: Option<OwnedSemaphorePermit>,
    /// It is the one more, and needs no room.
    is_one_more: Option<OwnedSemaphorePermit>,
}

impl<'a> Arrival<'a> {
    fn new(room: &'a Room) -> Self {
        Self { room, bytes: Vec::new(), held: None, is_one_more: None }
    }

    /// Takes what is missing for `length` bytes.
    async fn make_room(&mut self, length: usize) -> Result<(), Failure> {
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let missing = units(length)?.saturating_sub(u32::try_from(held).unwrap_or(u32::MAX));
        if missing == 0 || self.is_one_more.is_some() {
            return Ok(());
        }
        let Room { arriving, one_more, .. } = self.room;
        tokio::select! {
            biased;
            more = arriving.clone().acquire_many_owned(missing) => {
                let more = more.map_err(|_| Failure::Busy)?;
                match &mut self.held {
                    Some(held) => held.merge(more),
                    None => self.held = Some(more),
                }
            }
            turn = one_more.clone().acquire_owned() => {
                self.is_one_more = Some(turn.map_err(|_| Failure::Busy)?);
            }
        }
        Ok(())
    }
}

/// What comes next, if it does in time.
async fn next(frames: &mut BodyDataStream, deadline: Instant) -> Result<Option<axum::body::Bytes>, Failure> {
    match timeout_at(deadline, frames.next()).await {
        Ok(frame) => frame.transpose().map_err(|_| Failure::BrokenOff),
        Err(_) => Err(Failure::BrokenOff),
    }
}

/// Room that is there by the deadline.
async fn within<T>(deadline: Instant, room: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    timeout_at(deadline, room).await.unwrap_or(Err(Failure::Busy))
}

fn units(bytes: usize) -> Result<u32, Failure> {
    u32::try_from(bytes.div_ceil(UNIT)).map_err(|_| Failure::TooLarge)
}

/// How much `body` counts for: its length, and something for each map or list in it that is not empty.
fn weight(body: &[u8]) -> usize {
    let opens = |pair: &&[u8]| {
        matches!(pair, [b'{', next] if *next != b'}') || matches!(pair, [b'[', next] if *next != b']')
    };
    let nested = body.windows(2).filter(opens).count();
    body.len().saturating_add(nested.saturating_mul(NESTED))
}

#[cfg(test)]
mod tests;
