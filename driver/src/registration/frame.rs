//! HTTP/2 frames (RFC 9113, sections 4 and 6) as values: bytes to frame and back. Checks what a frame says about
//! itself; what it means on its connection is decided in `http2`. Never allocates for what it reads, except for the
//! few settings of one frame.

use std::fmt;

/// Length of the header before every frame's payload.
const HEADER: usize = 9;

/// Greatest payload of a frame in either direction: what every peer starts with, and we never raise it.
pub(crate) const MAX_PAYLOAD: usize = 16_384;

/// Greatest size of a flow-control window, and greatest stream number.
pub(crate) const MAX_31_BITS: u32 = 0x7fff_ffff;

const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// Error codes of RFC 9113, section 7, that we send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorCode {
    NoError = 0x0,
    Protocol = 0x1,
    FlowControl = 0x3,
    StreamClosed = 0x5,
    FrameSize = 0x6,
    RefusedStream = 0x7,
    Compression = 0x9,
    EnhanceYourCalm = 0xb,
}

impl ErrorCode {
    fn bytes(self) -> [u8; 4] {
        (self as u32).to_be_bytes()
    }
}

/// Why a connection cannot go on: the code for its GOAWAY, and what the peer did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionError {
    pub(crate) code: ErrorCode,
    pub(crate) what: &'static str,
}

impl ConnectionError {
    pub(crate) fn new(code: ErrorCode, what: &'static str) -> Self {
        Self { code, what }
    }
}

impl fmt::Display for ConnectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.what, self.code)
    }
}

impl std::error::Error for ConnectionError {}

/// A frame from the peer, borrowed from what was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    /// `flow` counts for flow control: the data with their padding.
    Data {
        stream: u32,
        data: &'a [u8],
        flow: u32,
        end_stream: bool,
    },
    Headers {
        stream: u32,
        fragment: &'a [u8],
        end_stream: bool,
        end_headers: bool,
    },
    Continuation {
        stream: u32,
        fragment: &'a [u8],
        end_headers: bool,
    },
    Reset {
        stream: u32,
    },
    Settings(Vec<Setting>),
    SettingsAck,
    Ping {
        opaque: [u8; 8],
    },
    PingAck,
    GoAway,
    /// `increment` may be 0, which is an error of the stream or the connection.
    WindowUpdate {
        stream: u32,
        increment: u32,
    },
    PushPromise,
    /// Priorities, which nobody heeds any more, and types we do not know.
    Ignored,
}

/// A setting we heed. Others are skipped, as the RFC demands of unknown ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setting {
    InitialWindowSize(u32),
    MaxFrameSize(u32),
    EnablePush(u32),
}

impl<'a> Frame<'a> {
    /// The first frame in `input` and how many bytes it takes, or nothing when `input` ends before the frame does.
    pub(crate) fn decode(input: &'a [u8]) -> Result<Option<(Self, usize)>, ConnectionError> {
        let Some((header, rest)) = input.split_first_chunk::<HEADER>() else { return Ok(None) };
        let [l1, l2, l3, kind, flags, s1, s2, s3, s4] = *header;
        let length = u32::from_be_bytes([0, l1, l2, l3]) as usize;
        if length > MAX_PAYLOAD {
            return Err(size("a frame is longer than allowed"));
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let stream = u32::from_be_bytes([s1, s2, s3, s4]) & MAX_31_BITS;
        Ok(Some((Self::of(kind, flags, stream, payload)?, HEADER + length)))
    }

    fn of(kind: u8, flags: u8, stream: u32, payload: &'a [u8]) -> Result<Self, ConnectionError> {
        let end_stream = flags & END_STREAM != 0;
        let end_headers = flags & END_HEADERS != 0;
        match kind {
            0x0 => {
                on_stream(stream)?;
                let flow = u32::try_from(payload.len()).unwrap_or(MAX_31_BITS);
                Ok(Self::Data { stream, data: unpadded(flags, payload)?, flow, end_stream })
            }
            0x1 => {
                on_stream(stream)?;
                let mut fragment = unpadded(flags, payload)?;
                if flags & PRIORITY != 0 {
                    fragment = fragment.get(5..).ok_or(size("HEADERS are shorter than their priority"))?;
                }
                Ok(Self::Headers { stream, fragment, end_stream, end_headers })
            }
            0x2 => {
                on_stream(stream)?;
                // A wrong length would be an error of the stream alone; nobody sends it by accident.
                exactly(payload, 5).map(|()| Self::Ignored)
            }
            0x3 => {
                on_stream(stream)?;
                exactly(payload, 4).map(|()| Self::Reset { stream })
            }
            0x4 => {
                on_connection(stream)?;
                if flags & ACK != 0 {
                    return exactly(payload, 0).map(|()| Self::SettingsAck);
                }
                settings(payload).map(Self::Settings)
            }
            0x5 => Ok(Self::PushPromise),
            0x6 => {
                on_connection(stream)?;
                let opaque = payload.try_into().map_err(|_| size("a PING is not 8 bytes long"))?;
                Ok(if flags & ACK != 0 { Self::PingAck } else { Self::Ping { opaque } })
            }
            0x7 => {
                on_connection(stream)?;
                if payload.len() < 8 {
                    return Err(size("a GOAWAY is shorter than 8 bytes"));
                }
                Ok(Self::GoAway)
            }
            0x8 => {
                let increment =
                    payload.try_into().map_err(|_| size("a WINDOW_UPDATE is not 4 bytes long"))?;
                Ok(Self::WindowUpdate { stream, increment: u32::from_be_bytes(increment) & MAX_31_BITS })
            }
            0x9 => {
                on_stream(stream)?;
                Ok(Self::Continuation { stream, fragment: payload, end_headers })
            }
            _ => Ok(Self::Ignored),
        }
    }
}

fn size(what: &'static str) -> ConnectionError {
    ConnectionError::new(ErrorCode::FrameSize, what)
}

fn protocol(what: &'static str) -> ConnectionError {
    ConnectionError::new(ErrorCode::Protocol, what)
}

fn on_stream(stream: u32) -> Result<(), ConnectionError> {
    if stream == 0 { Err(protocol("a stream's frame came on stream 0")) } else { Ok(()) }
}

fn on_connection(stream: u32) -> Result<(), ConnectionError> {
    if stream == 0 { Ok(()) } else { Err(protocol("a connection's frame came on a stream")) }
}

fn exactly(payload: &[u8], length: usize) -> Result<(), ConnectionError> {
    if payload.len() == length { Ok(()) } else { Err(size("a frame has not the length of its type")) }
}

fn unpadded(flags: u8, payload: &[u8]) -> Result<&[u8], ConnectionError> {
    if flags & PADDED == 0 {
        return Ok(payload);
    }
    let (padding, rest) = payload.split_first().ok_or(size("a padded frame is empty"))?;
    let kept = rest.len().checked_sub(usize::from(*padding));
    kept.and_then(|kept| rest.get(..kept)).ok_or(protocol("padding is longer than its frame"))
}

fn settings(payload: &[u8]) -> Result<Vec<Setting>, ConnectionError> {
    let (settings, rest) = payload.as_chunks::<6>();
    if !rest.is_empty() {
        return Err(size("SETTINGS are not a multiple of 6 bytes long"));
    }
    let heeded = settings.iter().filter_map(|&[i1, i2, v1, v2, v3, v4]| {
        let value = u32::from_be_bytes([v1, v2, v3, v4]);
        match u16::from_be_bytes([i1, i2]) {
            0x2 => Some(Setting::EnablePush(value)),
            0x4 => Some(Setting::InitialWindowSize(value)),
            0x5 => Some(Setting::MaxFrameSize(value)),
            _ => None,
        }
    });
    Ok(heeded.collect())
}

/// Frames of ours, appended to what is to be sent. Payloads are at most [`MAX_PAYLOAD`] long.
pub(crate) trait WriteFrame {
    /// SETTINGS of these numbers and values.
    fn settings(&mut self, settings: &[(u16, u32)]);
    /// The acknowledgement of the peer's SETTINGS.
    fn settings_ack(&mut self);
    /// The answer to a PING.
    fn ping_ack(&mut self, opaque: [u8; 8]);
    /// HEADERS that are whole in this one frame.
    fn headers(&mut self, stream: u32, block: &[u8], end_stream: bool);
    /// DATA, the stream going on.
    fn data(&mut self, stream: u32, data: &[u8]);
    /// RST_STREAM.
    fn reset(&mut self, stream: u32, code: ErrorCode);
    /// WINDOW_UPDATE.
    fn window_update(&mut self, stream: u32, increment: u32);
    /// GOAWAY after `last_stream`.
    fn go_away(&mut self, last_stream: u32, error: ConnectionError);
}

impl WriteFrame for Vec<u8> {
    fn settings(&mut self, settings: &[(u16, u32)]) {
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(setting, value)| setting.to_be_bytes().into_iter().chain(value.to_be_bytes()))
            .collect();
        frame(self, 0x4, 0, 0, &[&payload]);
    }

    fn settings_ack(&mut self) {
        frame(self, 0x4, ACK, 0, &[]);
    }

    fn ping_ack(&mut self, opaque: [u8; 8]) {
        frame(self, 0x6, ACK, 0, &[&opaque]);
    }

    fn headers(&mut self, stream: u32, block: &[u8], end_stream: bool) {
        let flags = END_HEADERS | if end_stream { END_STREAM } else { 0 };
        frame(self, 0x1, flags, stream, &[block]);
    }

    fn data(&mut self, stream: u32, data: &[u8]) {
        frame(self, 0x0, 0, stream, &[data]);
    }

    fn reset(&mut self, stream: u32, code: ErrorCode) {
        frame(self, 0x3, 0, stream, &[&code.bytes()]);
    }

    fn window_update(&mut self, stream: u32, increment: u32) {
        frame(self, 0x8, 0, stream, &[&increment.to_be_bytes()]);
    }

    fn go_away(&mut self, last_stream: u32, error: ConnectionError) {
        let last_stream = last_stream.to_be_bytes();
        frame(self, 0x7, 0, 0, &[&last_stream, &error.code.bytes(), error.what.as_bytes()]);
    }
}

fn frame(output: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[&[u8]]) {
    let length: usize = payload.iter().map(|part| part.len()).sum();
    debug_assert!(length <= MAX_PAYLOAD, "payloads are bounded by their callers");
    let [_, l1, l2, l3] = u32::try_from(length).unwrap_or(MAX_31_BITS).to_be_bytes();
    output.extend_from_slice(&[l1, l2, l3, kind, flags]);
    output.extend_from_slice(&stream.to_be_bytes());
    payload.iter().for_each(|part| output.extend_from_slice(part));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn raw(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame(&mut bytes, kind, flags, stream, &[payload]);
        bytes
    }

    #[track_caller]
    fn check(bytes: &[u8], expected: Result<Frame<'_>, ErrorCode>) {
        let decoded = Frame::decode(bytes).map(|frame| frame.expect("whole").0).map_err(|error| error.code);
        assert_eq!(decoded, expected);
    }

    #[test]
    fn waits_for_the_rest_of_a_frame() {
        let ping = raw(0x6, 0, 0, b"01234567");
        for length in 0..ping.len() {
            assert_eq!(Frame::decode(&ping[..length]), Ok(None));
        }
        check(&ping, Ok(Frame::Ping { opaque: *b"01234567" }));
    }

    #[test]
    fn takes_padding_and_priority_off() {
        let data = raw(0x0, PADDED | END_STREAM, 1, b"\x02body..");
        check(&data, Ok(Frame::Data { stream: 1, data: b"body", flow: 7, end_stream: true }));
        let headers = raw(0x1, PADDED | PRIORITY | END_HEADERS, 3, b"\x01-----block.");
        let expected = Frame::Headers { stream: 3, fragment: b"block", end_stream: false, end_headers: true };
        check(&headers, Ok(expected));
    }

    #[test]
    fn ignores_the_reserved_bit_of_a_stream() {
        check(&raw(0x3, 0, 0x8000_0005, &[0; 4]), Ok(Frame::Reset { stream: 5 }));
    }

    #[test]
    fn ignores_types_and_settings_it_does_not_know() {
        check(&raw(0x77, 0xff, 9, b"whatever"), Ok(Frame::Ignored));
        let settings = [0, 0x4, 0, 0, 1, 0, 0, 0x99, 0, 0, 0, 1];
        check(&raw(0x4, 0, 0, &settings), Ok(Frame::Settings(vec![Setting::InitialWindowSize(256)])));
    }

    #[test]
    fn refuses_frames_that_contradict_themselves() {
        use ErrorCode::{FrameSize, Protocol};
        check(&raw(0x0, PADDED, 1, b""), Err(FrameSize));
        check(&raw(0x0, PADDED, 1, b"\x02x"), Err(Protocol));
        check(&raw(0x1, PRIORITY, 1, b"1234"), Err(FrameSize));
        check(&raw(0x0, 0, 0, b""), Err(Protocol));
        check(&raw(0x1, 0, 0, b""), Err(Protocol));
        check(&raw(0x9, 0, 0, b""), Err(Protocol));
        check(&raw(0x3, 0, 0, &[0; 4]), Err(Protocol));
        check(&raw(0x3, 0, 1, &[0; 3]), Err(FrameSize));
        check(&raw(0x2, 0, 1, &[0; 4]), Err(FrameSize));
        check(&raw(0x4, 0, 1, b""), Err(Protocol));
        check(&raw(0x4, ACK, 0, &[0; 6]), Err(FrameSize));
        check(&raw(0x4, 0, 0, &[0; 7]), Err(FrameSize));
        check(&raw(0x6, 0, 1, &[0; 8]), Err(Protocol));
        check(&raw(0x6, 0, 0, &[0; 7]), Err(FrameSize));
        check(&raw(0x7, 0, 0, &[0; 7]), Err(FrameSize));
        check(&raw(0x8, 0, 0, &[0; 5]), Err(FrameSize));
        assert_eq!(
            Frame::decode(&[0, 0x40, 1, 0, 0, 0, 0, 0, 1]).map_err(|error| error.code),
            Err(FrameSize)
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_never_take_more_than_there_is(bytes: Vec<u8>) {
            if let Ok(Some((_, taken))) = Frame::decode(&bytes) {
                prop_assert!(taken <= bytes.len() && taken >= HEADER);
            }
        }

        #[test]
        fn arbitrary_payloads_of_every_type_never_panic(kind in 0u8..12, flags: u8, stream: u32, payload: Vec<u8>) {
            let bytes = raw(kind, flags, stream, &payload);
            if let Ok(decoded) = Frame::decode(&bytes) {
                prop_assert_eq!(decoded.map(|(_, taken)| taken), Some(bytes.len()));
            }
        }
    }
}
