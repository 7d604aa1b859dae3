//! Frames: four bytes of length, then that many bytes. Everything that goes over the wire, in either direction, may
//! hold a token's password, so every buffer here is wiped, also when it grows.

use std::ops::RangeFrom;

use zeroize::{Zeroize, Zeroizing};

use crate::codec::{Counter, Sink};
use crate::error::Failure;
use crate::protobuf::put_varint;

/// Greatest frame that is accepted. Replies to our calls are some hundred bytes; Java stack traces some thousand.
pub(crate) const MAX_FRAME: usize = 4 << 20;

/// Bytes that are appended at the end and consumed from the front.
#[derive(Default)]
pub(crate) struct Buffer {
    bytes: Zeroizing<Vec<u8>>,
    consumed: usize,
}

impl Buffer {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let unread = self.range();
        if self.bytes.capacity() - self.bytes.len() < bytes.len() {
            // Growing in place would free the old bytes unwiped.
            let old = self.bytes.get(unread).unwrap_or_default();
            let mut larger =
                Zeroizing::new(Vec::with_capacity((old.len() + bytes.len()).next_power_of_two().max(1024)));
            larger.extend_from_slice(old);
            self.bytes = larger;
            self.consumed = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn unread(&self) -> &[u8] {
        self.bytes.get(self.range()).unwrap_or_default()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.unread().is_empty()
    }

    pub(crate) fn consume(&mut self, length: usize) {
        self.consumed = usize::min(self.consumed + length, self.bytes.len());
        if self.consumed == self.bytes.len() {
            // Wipes, and keeps the allocation.
            self.bytes.as_mut_slice().zeroize();
            self.bytes.clear();
            self.consumed = 0;
        }
    }

    fn range(&self) -> RangeFrom<usize> {
        self.consumed..
    }
}

/// Cuts a stream of bytes into frames.
#[derive(Default)]
pub(crate) struct Frames(Buffer);

impl Frames {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.push(bytes);
    }

    /// The next whole frame, without its length.
    pub(crate) fn next(&mut self) -> Result<Option<Zeroizing<Vec<u8>>>, Failure> {
        let Some((length, rest)) = self.0.unread().split_first_chunk::<4>() else {
            return Ok(None);
        };
        if length == b"HTTP" {
            return Err(Failure::NotHadoop("it answers in HTTP".to_owned()));
        }
        let length = u32::from_be_bytes(*length) as usize;
        if length > MAX_FRAME {
            return Err(Failure::NotHadoop(format!("it announces a message of {length} bytes")));
        }
        let Some(frame) = rest.get(..length) else {
            return Ok(None);
        };
        let frame = Zeroizing::new(frame.to_vec());
        self.0.consume(4 + length);
        Ok(Some(frame))
    }
}

/// A message that can be encoded.
pub(crate) trait Encode {
    fn encode(&self, sink: &mut impl Sink);

    fn encoded_length(&self) -> usize {
        let mut counter = Counter::default();
        self.encode(&mut counter);
        counter.0
    }

    /// The message with its length before it.
    fn encode_delimited(&self, sink: &mut impl Sink) {
        put_varint(self.encoded_length() as u64, sink);
        self.encode(sink);
    }
}

/// A whole frame: length, header and what follows it, both with their lengths.
pub(crate) fn frame(header: &impl Encode, body: impl Fn(&mut Adapter<'_>)) -> Zeroizing<Vec<u8>> {
    let mut length = Counter::default();
    header.encode_delimited(&mut length);
    body(&mut Adapter::Counter(&mut length));
    let mut bytes = Zeroizing::new(Vec::with_capacity(4 + length.0));
    bytes.put(&u32::try_from(length.0).unwrap_or(u32::MAX).to_be_bytes());
    header.encode_delimited(&mut *bytes);
    body(&mut Adapter::Bytes(&mut bytes));
    bytes
}

/// Either sink, for a body that is encoded twice: once to count, once to keep.
pub(crate) enum Adapter<'a> {
    Counter(&'a mut Counter),
    Bytes(&'a mut Vec<u8>),
}

impl Sink for Adapter<'_> {
    fn put(&mut self, bytes: &[u8]) {
        match self {
            Self::Counter(counter) => counter.put(bytes),
            Self::Bytes(kept) => kept.put(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refuses_http_and_frames_beyond_the_limit() {
        let mut frames = Frames::default();
        frames.push(b"HTTP/1.1 404 Not Found\r\n");
        assert!(matches!(frames.next(), Err(Failure::NotHadoop(_))));
        let mut frames = Frames::default();
        frames.push(&0x0040_0001u32.to_be_bytes());
        assert!(matches!(frames.next(), Err(Failure::NotHadoop(_))));
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut_of_the_stream(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..8),
            cuts in prop::collection::vec(1..2000usize, 1..20),
        ) {
            let stream: Vec<u8> = bodies
                .iter()
                .flat_map(|body| [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], body].concat())
                .collect();
            let (mut frames, mut received) = (Frames::default(), Vec::new());
            let mut rest = &stream[..];
            for cut in cuts.into_iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at(cut.min(rest.len()));
                frames.push(now);
                rest = later;
                while let Some(frame) = frames.next().unwrap() {
                    received.push(frame.to_vec());
                }
            }
            prop_assert_eq!(received, bodies);
        }
    }
}
