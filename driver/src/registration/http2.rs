//! The server side of one HTTP/2 connection (RFC 9113) as a value, as far as unary gRPC calls need it: bytes in,
//! calls out, replies in, bytes out. It exists because kubelet dials the registration socket with the percent-encoded
//! socket path as `:authority`, which h2 refuses; nothing here reads that header.
//!
//! Whatever the peer sends, it never panics, and never holds more than [`MAX_STREAMS`] bodies of [`MAX_BODY`], one
//! header block of [`MAX_HEADER_BLOCK`] and HPACK's dynamic table. No sockets, no clock.

use std::collections::BTreeMap;

use loona_hpack::{Decoder, Encoder};

use super::frame::{ConnectionError, ErrorCode, Frame, MAX_31_BITS, MAX_PAYLOAD, Setting, WriteFrame};

/// What a client sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Calls that may be under way at once.
pub(crate) const MAX_STREAMS: u16 = 8;

/// Calls that one connection may make in its life: kubelet makes two.
const MAX_CALLS: usize = 1_000;

/// Greatest header block, encoded.
pub(crate) const MAX_HEADER_BLOCK: u16 = 8_192;

/// Greatest body of a call. Below the flow-control window, so that no stream's window ever needs to be widened.
pub(crate) const MAX_BODY: usize = 32_768;

/// Greatest dynamic table of HPACK, the protocol's default.
const HEADER_TABLE: usize = 4_096;

/// Longest path that can be one of ours.
const MAX_PATH: usize = 128;

/// Flow-control window that everything starts with.
const INITIAL_WINDOW: i64 = 65_535;

/// Numbers of the settings we send.
const MAX_CONCURRENT_STREAMS: u16 = 0x3;
const MAX_HEADER_LIST_SIZE: u16 = 0x6;

/// A call that has arrived whole.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// What to name in [`Connection::reply`].
    pub(crate) stream: u32,
    /// `/package.Service/Method`.
    pub(crate) path: String,
    /// The encoded message.
    pub(crate) message: Vec<u8>,
}

/// A gRPC failure. The sentence is plain ASCII without a percent sign, so that it needs no encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    pub(crate) sentence: &'static str,
}

impl Failure {
    pub(crate) const UNKNOWN_METHOD: Self = Self { code: 12, sentence: "unknown method" };
    pub(crate) const INVALID_MESSAGE: Self = Self { code: 3, sentence: "the message cannot be decoded" };
    const COMPRESSED: Self = Self { code: 12, sentence: "compressed messages are not understood" };
    const NOT_ONE_MESSAGE: Self = Self { code: 3, sentence: "the call must hold exactly one message" };
}

/// One connection.
pub(crate) struct Connection {
    preface_seen: bool,
    settings_seen: bool,
    input: Vec<u8>,
    output: Vec<u8>,
    hpack: Decoder<'static>,
    /// A header block whose CONTINUATION is awaited.
    block: Option<HeaderBlock>,
    streams: BTreeMap<u32, Stream>,
    /// The greatest stream that the peer has opened.
    last_stream: u32,
    calls: usize,
    /// How much DATA the peer still takes on the whole connection, and at first on each stream.
    window: i64,
    initial_window: i64,
}

struct HeaderBlock {
    stream: u32,
    end_stream: bool,
    bytes: Vec<u8>,
}

struct Stream {
    path: String,
    body: Vec<u8>,
    /// What the peer has used of the window it has on this stream.
    received: usize,
    /// The peer has said all it has to say.
    ended: bool,
    window: i64,
    /// DATA of the reply that did not fit the windows yet.
    unsent: Option<Vec<u8>>,
}

impl Connection {
    /// A connection on which nothing has arrived. Has our SETTINGS to send.
    pub(crate) fn new() -> Self {
        let mut hpack = Decoder::new();
        hpack.set_max_allowed_table_size(HEADER_TABLE);
        let mut output = Vec::new();
        output.settings(&[
            (MAX_CONCURRENT_STREAMS, MAX_STREAMS.into()),
            (MAX_HEADER_LIST_SIZE, MAX_HEADER_BLOCK.into()),
        ]);
        Self {
            preface_seen: false,
            settings_seen: false,
            input: Vec::new(),
            output,
            hpack,
            block: None,
            streams: BTreeMap::new(),
            last_stream: 0,
            calls: 0,
            window: INITIAL_WINDOW,
            initial_window: INITIAL_WINDOW,
        }
    }

    /// Takes what was read. Every call in the result must get its [`Connection::reply`].
    ///
    /// # Errors
    /// When the peer breaks the protocol or a bound. The GOAWAY that says so is then the last thing to send.
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> Result<Vec<Call>, ConnectionError> {
        let mut input = std::mem::take(&mut self.input);
        input.extend_from_slice(bytes);
        let mut calls = Vec::new();
        match self.take_frames(&input, &mut calls) {
            Ok(taken) => {
                input.drain(..taken);
                self.input = input;
                Ok(calls)
            }
            Err(error) => {
                self.output.go_away(self.last_stream, error);
                Err(error)
            }
        }
    }

    /// Answers a call. A call whose stream the peer has given up is skipped.
    pub(crate) fn reply(&mut self, stream: u32, reply: Result<Vec<u8>, Failure>) {
        match reply {
            Ok(message) => {
                let Some(state) = self.streams.get_mut(&stream) else { return };
                let head = block(&[(":status", "200"), ("content-type", "application/grpc")]);
                self.output.headers(stream, &head, false);
                let length = u32::try_from(message.len()).unwrap_or(MAX_31_BITS);
                let data = [&[0], length.to_be_bytes().as_slice(), &message].concat();
                state.unsent = Some(data);
                self.flush(stream);
            }
            Err(failure) => {
                if self.streams.remove(&stream).is_none() {
                    return;
                }
                let code = failure.code.to_string();
                let head = block(&[
                    (":status", "200"),
                    ("content-type", "application/grpc"),
                    ("grpc-status", &code),
                    ("grpc-message", failure.sentence),
                ]);
                self.output.headers(stream, &head, true);
            }
        }
    }

    /// Tells the peer that no further call will be answered.
    pub(crate) fn go_away(&mut self) {
        self.output.go_away(self.last_stream, ConnectionError::new(ErrorCode::NoError, "stopping"));
    }

    /// What is to be sent, leaving nothing.
    pub(crate) fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Handles every whole frame of `input` and says how many bytes they were.
    fn take_frames(&mut self, input: &[u8], calls: &mut Vec<Call>) -> Result<usize, ConnectionError> {
        let mut rest = input;
        if !self.preface_seen {
            let known = rest.len().min(PREFACE.len());
            if rest.get(..known) != PREFACE.get(..known) {
                return Err(protocol("the connection does not begin with HTTP/2's preface"));
            }
            let Some(after) = rest.strip_prefix(PREFACE) else { return Ok(0) };
            (rest, self.preface_seen) = (after, true);
        }
        while let Some((frame, taken)) = Frame::decode(rest)? {
            self.handle(frame, calls)?;
            rest = rest.get(taken..).unwrap_or_default();
        }
        Ok(input.len() - rest.len())
    }

    fn handle(&mut self, frame: Frame<'_>, calls: &mut Vec<Call>) -> Result<(), ConnectionError> {
        if !self.settings_seen && !matches!(frame, Frame::Settings(_)) {
            return Err(protocol("the first frame is not SETTINGS"));
        }
        if self.block.is_some() && !matches!(frame, Frame::Continuation { .. }) {
            return Err(protocol("a header block was interrupted"));
        }
        match frame {
            Frame::Headers { stream, fragment, end_stream, end_headers } => {
                let block = HeaderBlock { stream, end_stream, bytes: Vec::new() };
                self.continue_block(block, fragment, end_headers, calls)
            }
            Frame::Continuation { stream, fragment, end_headers } => match self.block.take() {
                // One without content would cost nothing and could go on for ever.
                Some(block) if block.stream == stream && (end_headers || !fragment.is_empty()) => {
                    self.continue_block(block, fragment, end_headers, calls)
                }
                _ => Err(protocol("a CONTINUATION continues nothing")),
            },
            Frame::Data { stream, data, flow, end_stream } => {
                self.data(stream, data, flow, end_stream, calls)
            }
            Frame::Reset { stream } => {
                self.not_idle(stream)?;
                self.streams.remove(&stream);
                Ok(())
            }
            Frame::Settings(settings) => {
                self.settings_seen = true;
                settings.into_iter().try_for_each(|setting| self.setting(setting))?;
                self.output.settings_ack();
                self.flush_all();
                Ok(())
            }
            Frame::Ping { opaque } => {
                self.output.ping_ack(opaque);
                Ok(())
            }
            Frame::WindowUpdate { stream, increment } => self.window_update(stream, increment),
            Frame::PushPromise => Err(protocol("a client cannot push")),
            Frame::SettingsAck | Frame::PingAck | Frame::GoAway | Frame::Ignored => Ok(()),
        }
    }

    fn continue_block(
        &mut self,
        mut block: HeaderBlock,
        fragment: &[u8],
        end_headers: bool,
        calls: &mut Vec<Call>,
    ) -> Result<(), ConnectionError> {
        if block.bytes.len() + fragment.len() > usize::from(MAX_HEADER_BLOCK) {
            return Err(ConnectionError::new(ErrorCode::EnhanceYourCalm, "a header block is too long"));
        }
        block.bytes.extend_from_slice(fragment);
        if end_headers {
            return self.headers(block, calls);
        }
        self.block = Some(block);
        Ok(())
    }

    fn headers(&mut self, block: HeaderBlock, calls: &mut Vec<Call>) -> Result<(), ConnectionError> {
        let HeaderBlock { stream, end_stream, bytes } = block;
        // Always decoded, whatever becomes of the stream: the table is the connection's.
        let mut head = Head::default();
        let decoded = self.hpack.decode_with_cb(&bytes, |name, value| head.take(&name, &value));
        decoded
            .map_err(|_| ConnectionError::new(ErrorCode::Compression, "a header block cannot be decoded"))?;

        if let Some(state) = self.streams.get_mut(&stream) {
            return match (state.ended, end_stream) {
                (false, true) => {
                    state.ended = true; // trailers, of which none matters here
                    self.ended(stream, calls);
                    Ok(())
                }
                (false, false) => Err(protocol("trailers do not end their stream")),
                (true, _) => {
                    self.reset(stream, ErrorCode::StreamClosed);
                    Ok(())
                }
            };
        }
        if stream <= self.last_stream || stream.is_multiple_of(2) {
            return Err(protocol("a stream was opened with a number that is not its turn"));
        }
        self.last_stream = stream;
        self.calls += 1;
        if self.calls > MAX_CALLS {
            return Err(ConnectionError::new(ErrorCode::EnhanceYourCalm, "too many calls on one connection"));
        }
        if self.streams.len() >= usize::from(MAX_STREAMS) {
            self.output.reset(stream, ErrorCode::RefusedStream);
            return Ok(());
        }
        let Head { method: Some(method), path: Some(path), content_type } = head else {
            self.output.reset(stream, ErrorCode::Protocol);
            return Ok(());
        };
        if method != b"POST" || !content_type.is_some_and(|kind| kind.starts_with(b"application/grpc")) {
            self.output.headers(stream, &self::block(&[(":status", "415")]), true);
            if !end_stream {
                self.output.reset(stream, ErrorCode::NoError);
            }
            return Ok(());
        }
        let path = String::from_utf8(path).unwrap_or_default();
        let state = Stream {
            path,
            body: Vec::new(),
            received: 0,
            ended: end_stream,
            window: self.initial_window,
            unsent: None,
        };
        self.streams.insert(stream, state);
        if end_stream {
            self.ended(stream, calls);
        }
        Ok(())
    }

    fn data(
        &mut self,
        stream: u32,
        data: &[u8],
        flow: u32,
        end_stream: bool,
        calls: &mut Vec<Call>,
    ) -> Result<(), ConnectionError> {
        self.not_idle(stream)?;
        if flow > 0 {
            // What arrived is taken off at once, so the connection's window is always whole.
            self.output.window_update(0, flow);
        }
        // A stream we have reset may have had DATA under way.
        let Some(state) = self.streams.get_mut(&stream) else { return Ok(()) };
        if state.ended {
            self.reset(stream, ErrorCode::StreamClosed);
            return Ok(());
        }
        state.received += flow as usize;
        if state.received > MAX_BODY {
            self.reset(stream, ErrorCode::EnhanceYourCalm);
            return Ok(());
        }
        state.body.extend_from_slice(data);
        state.ended = end_stream;
        if end_stream {
            self.ended(stream, calls);
        }
        Ok(())
    }

    /// The peer has sent all of a call: hands it out, or refuses it.
    fn ended(&mut self, stream: u32, calls: &mut Vec<Call>) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        let body = std::mem::take(&mut state.body);
        let path = std::mem::take(&mut state.path);
        match message(&body) {
            Ok(message) => calls.push(Call { stream, path, message: message.to_vec() }),
            Err(failure) => self.reply(stream, Err(failure)),
        }
    }

    fn setting(&mut self, setting: Setting) -> Result<(), ConnectionError> {
        match setting {
            Setting::InitialWindowSize(size) if size > MAX_31_BITS => {
                return Err(ConnectionError::new(ErrorCode::FlowControl, "the initial window is too great"));
            }
            Setting::InitialWindowSize(size) => {
                let change = i64::from(size) - self.initial_window;
                self.initial_window = i64::from(size);
                for stream in self.streams.values_mut() {
                    stream.window += change;
                    if stream.window > i64::from(MAX_31_BITS) {
                        let what = "the initial window makes a stream's too great";
                        return Err(ConnectionError::new(ErrorCode::FlowControl, what));
                    }
                }
            }
            // We send frames of the least maximum only.
            Setting::MaxFrameSize(size) if !(MAX_PAYLOAD..1 << 24).contains(&(size as usize)) => {
                return Err(protocol("the maximal frame size is out of range"));
            }
            Setting::EnablePush(push) if push > 1 => return Err(protocol("push is neither on nor off")),
            Setting::MaxFrameSize(_) | Setting::EnablePush(_) => {}
        }
        Ok(())
    }

    fn window_update(&mut self, stream: u32, increment: u32) -> Result<(), ConnectionError> {
        let great = i64::from(MAX_31_BITS);
        if stream == 0 {
            if increment == 0 {
                return Err(protocol("the connection's window was widened by nothing"));
            }
            self.window += i64::from(increment);
            if self.window > great {
                return Err(ConnectionError::new(
                    ErrorCode::FlowControl,
                    "the connection's window is too great",
                ));
            }
            self.flush_all();
            return Ok(());
        }
        self.not_idle(stream)?;
        let Some(state) = self.streams.get_mut(&stream) else { return Ok(()) };
        state.window += i64::from(increment);
        if increment == 0 {
            self.reset(stream, ErrorCode::Protocol);
        } else if state.window > great {
            self.reset(stream, ErrorCode::FlowControl);
        } else {
            self.flush(stream);
        }
        Ok(())
    }

    fn not_idle(&self, stream: u32) -> Result<(), ConnectionError> {
        if stream > self.last_stream || stream.is_multiple_of(2) {
            return Err(protocol("a frame came on a stream that was never opened"));
        }
        Ok(())
    }

    fn reset(&mut self, stream: u32, code: ErrorCode) {
        self.streams.remove(&stream);
        self.output.reset(stream, code);
    }

    fn flush_all(&mut self) {
        let streams: Vec<u32> = self.streams.keys().copied().collect();
        streams.into_iter().for_each(|stream| self.flush(stream));
    }

    /// Sends what the windows let of a reply, and after its end the trailers.
    fn flush(&mut self, stream: u32) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        let Some(unsent) = &mut state.unsent else { return };
        while !unsent.is_empty() {
            let window = usize::try_from(state.window.min(self.window)).unwrap_or(0);
            let length = unsent.len().min(window).min(MAX_PAYLOAD);
            if length == 0 {
                return;
            }
            let part: Vec<u8> = unsent.drain(..length).collect();
            let taken = i64::try_from(length).unwrap_or(i64::MAX);
            state.window -= taken;
            self.window -= taken;
            self.output.data(stream, &part);
        }
        self.streams.remove(&stream);
        self.output.headers(stream, &block(&[("grpc-status", "0")]), true);
    }
}

fn protocol(what: &'static str) -> ConnectionError {
    ConnectionError::new(ErrorCode::Protocol, what)
}

/// The headers that matter. The last of a name counts.
#[derive(Default)]
struct Head {
    method: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    content_type: Option<Vec<u8>>,
}

impl Head {
    fn take(&mut self, name: &[u8], value: &[u8]) {
        let place = match name {
            b":method" => &mut self.method,
            b":path" => &mut self.path,
            b"content-type" => &mut self.content_type,
            _ => return,
        };
        *place = Some(value.get(..MAX_PATH).unwrap_or(value).to_vec());
    }
}

/// A header block. The table of the encoder is empty, so that it never depends on the peer's settings.
fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut encoder = Encoder::new();
    encoder.set_max_table_size(0);
    encoder.encode(headers.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())))
}

/// The one message of a call's body.
fn message(body: &[u8]) -> Result<&[u8], Failure> {
    let Some((&[compressed, l1, l2, l3, l4], message)) = body.split_first_chunk::<5>() else {
        return Err(Failure::NOT_ONE_MESSAGE);
    };
    if compressed != 0 {
        return Err(Failure::COMPRESSED);
    }
    if u32::from_be_bytes([l1, l2, l3, l4]) as usize != message.len() {
        return Err(Failure::NOT_ONE_MESSAGE);
    }
    Ok(message)
}

#[cfg(test)]
mod tests;
