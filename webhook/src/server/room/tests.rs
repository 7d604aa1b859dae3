//! Bodies that come in parts, and time that stands still until nothing else can happen.

use std::{io, time::Duration};

use axum::body::Bytes;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::*;

const LIMIT: Duration = Duration::from_secs(4);

fn room(body_bytes: usize, bodies_bytes: usize) -> Arc<Room> {
    Arc::new(Room::new(&Limits { body_bytes, bodies_bytes, ..Limits::default() }))
}

/// Somebody who sends a body.
struct Sender {
    parts: mpsc::UnboundedSender<io::Result<Bytes>>,
    reading: JoinHandle<Result<Whole, Failure>>,
}

impl Sender {
    fn of(room: &Arc<Room>) -> Self {
        Self::who_announces(None, room)
    }

    fn who_announces(length: Option<usize>, room: &Arc<Room>) -> Self {
        let (parts, body) = mpsc::unbounded_channel();
        let body = Body::from_stream(UnboundedReceiverStream::new(body));
        let (room, deadline) = (room.clone(), Instant::now() + LIMIT);
        Self { parts, reading: tokio::spawn(async move { room.read(length, body, deadline).await }) }
    }

    /// Sends, and lets it arrive.
    async fn send(&self, length: usize) {
        self.parts.send(Ok(Bytes::from(vec![b'x'; length]))).unwrap();
        settle().await;
    }

    /// What became of it, once it has sent everything.
    async fn end(self) -> Result<Whole, Failure> {
        drop(self.parts);
        self.reading.await.unwrap()
    }
}

async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_only_announced_takes_no_room() {
    let room = room(8 * UNIT, 8 * UNIT);
    let strangers: Vec<_> = (0..100).map(|_| Sender::who_announces(Some(8 * UNIT), &room)).collect();
    settle().await;
    let started = Instant::now();
    let sender = Sender::of(&room);
    sender.send(8 * UNIT).await;
    assert_eq!(sender.end().await.unwrap().bytes.len(), 8 * UNIT);
    assert_eq!(Instant::now(), started, "had to wait");
    for stranger in strangers {
        let Sender { parts: _still_open, reading } = stranger;
        assert_eq!(reading.await.unwrap().err(), Some(Failure::BrokenOff));
    }
}

#[tokio::test(start_paused = true)]
async fn many_that_have_come_in_part_do_not_wait_for_each_other() {
    let room = room(8 * UNIT, 8 * UNIT);
    let senders: Vec<_> = (0..4).map(|_| Sender::of(&room)).collect();
    for sender in &senders {
        sender.send(2 * UNIT).await;
    }
    let started = Instant::now();
    for sender in &senders {
        sender.send(4 * UNIT).await;
    }
    for sender in senders {
        assert_eq!(sender.end().await.unwrap().bytes.len(), 6 * UNIT);
    }
    assert_eq!(Instant::now(), started, "waited until some of them gave up");
}

#[tokio::test(start_paused = true)]
async fn what_has_come_takes_room_until_it_is_whole_or_gives_up() {
    let room = room(4 * UNIT, 8 * UNIT);
    let early = Sender::of(&room);
    tokio::time::advance(LIMIT / 4).await;
    let strangers: Vec<_> = (0..3).map(|_| Sender::of(&room)).collect();
    for stranger in &strangers {
        stranger.send(3 * UNIT + 1).await;
    }
    tokio::time::advance(LIMIT / 4).await;
    let late = Sender::of(&room);
    // Two strangers have all the room, and the third is the one more.
    for sender in [&early, &late] {
        sender.send(1).await;
    }
    assert_eq!(early.end().await.err(), Some(Failure::Busy));
    assert_eq!(late.end().await.unwrap().bytes, b"x", "the strangers have given up");
}

#[tokio::test(start_paused = true)]
async fn what_is_decided_takes_room_until_it_ends() {
    let room = room(4 * UNIT, 4 * UNIT);
    let whole = async || {
        let sender = Sender::of(&room);
        sender.send(3 * UNIT).await;
        sender.end().await
    };
    let first = whole().await.unwrap();
    assert_eq!(whole().await.err(), Some(Failure::Busy), "there is room for one");
    drop(first);
    assert!(whole().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_is_too_large_is_refused_as_soon_as_that_is_known() {
    let room = room(4 * UNIT, 8 * UNIT);
    let announced = Sender::who_announces(Some(4 * UNIT + 1), &room);
    settle().await;
    assert!(announced.reading.is_finished());
    assert_eq!(announced.end().await.err(), Some(Failure::TooLarge));
    let unsaid = Sender::of(&room);
    unsaid.send(4 * UNIT).await;
    unsaid.send(1).await;
    assert!(unsaid.reading.is_finished());
    assert_eq!(unsaid.end().await.err(), Some(Failure::TooLarge));
}

#[tokio::test(start_paused = true)]
async fn what_breaks_off_is_no_body() {
    let room = room(4 * UNIT, 8 * UNIT);
    let sender = Sender::of(&room);
    sender.send(1).await;
    sender.parts.send(Err(io::ErrorKind::UnexpectedEof.into())).unwrap();
    assert_eq!(sender.end().await.err(), Some(Failure::BrokenOff));
}

#[tokio::test(start_paused = true)]
async fn maps_and_lists_take_more_room_than_their_text() {
    assert_eq!(weight(br#"[{"a":[]},{},{"b":{"c":1}}]"#), 27 + 4 * NESTED);
    let room = room(4 * UNIT, 4 * UNIT);
    for (text, fits) in [("\"\",", true), ("{},", true), ("{\"\":0},", false), ("[0],", false)] {
        let body = Body::from(text.repeat(3 * UNIT / text.len()));
        assert_eq!(room.read(None, body, Instant::now() + LIMIT).await.is_ok(), fits, "{text}");
    }
}
