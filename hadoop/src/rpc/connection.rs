//! An authenticated connection: one task that owns the socket, the security layer and every call that waits for its
//! reply. Calls go out in order, replies come back in any. Whatever ends the connection fails all its calls, each
//! told what became of it at the server.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::debug;
use zeroize::Zeroizing;

use crate::codec::Sink;
use crate::error::Failure;
use crate::protobuf::put_varint;
use crate::rpc::frame::{Buffer, Encode, Frames, frame};
use crate::rpc::message::{
    CONTEXT_CALL, ConnectionContext, Method, Outcome, Protocol, RequestHeader, Response,
};
use crate::rpc::security::{Mechanism, Protection, SecurityLayer};

/// Calls that may wait to be sent; more wait in their callers.
const QUEUE: usize = 64;

/// Calls that may wait for their reply; more wait to be sent.
const MAX_OUTSTANDING: usize = 256;

/// Bytes read at once. A reply fits.
const READ_SIZE: usize = 4096;

/// One call.
#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) method: &'static str,
    /// Encoded, may hold a password.
    pub(crate) message: Zeroizing<Vec<u8>>,
    pub(crate) caller_context: Option<String>,
}

/// Why a call has no reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CallFailure {
    pub(crate) failure: Failure,
    pub(crate) fate: Fate,
}

/// What became of a call that has no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The server has never seen it.
    NotSent,
    /// The server refused it.
    Refused,
    /// The server may have done what it was asked, and nobody heard of it.
    Unknown,
}

type Reply = Result<Zeroizing<Vec<u8>>, CallFailure>;

struct Call {
    request: Request,
    reply: oneshot::Sender<Reply>,
}

/// Handle of a connection. The connection closes when the last one is dropped, or after a while without calls.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    calls: mpsc::Sender<Call>,
    refusal: Arc<OnceLock<Failure>>,
}

impl Connection {
    /// Takes over a stream whose handshake is done. `received` is what came after it.
    pub(crate) fn start<S, M>(
        stream: S,
        layer: SecurityLayer<M>,
        received: Frames,
        context: &ConnectionContext<'_>,
        idle_limit: Duration,
    ) -> Result<Self, Failure>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
        M: Mechanism,
    {
        let client_id = unique_id();
        let (sender, calls) = mpsc::channel(QUEUE);
        let refusal = Arc::new(OnceLock::new());
        let (reader, writer) = tokio::io::split(stream);
        let mut task = Task {
            reader,
            writer,
            layer,
            received,
            unwrapped: Frames::default(),
            out: Buffer::default(),
            client_id,
            protocol: context.protocol,
            calls,
            outstanding: HashMap::new(),
            next_call_id: 0,
            refused: None,
            idle_limit,
            refusal: refusal.clone(),
        };
        // Not answered when it is fine, so it travels with the first call.
        let context = frame(&RequestHeader::context(&client_id), |sink| context.encode_delimited(sink));
        task.layer.seal(&context, &mut task.out)?;
        tokio::spawn(task.run());
        Ok(Self { calls: sender, refusal })
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.calls.is_closed()
    }

    /// Sends a call and waits for its reply, without a limit of its own.
    pub(crate) async fn call(&self, request: Request) -> Reply {
        // The server may have refused who we say we are before there was a call.
        let closed = || {
            let lost = || Failure::ConnectionLost("it was already closed".to_owned());
            CallFailure { failure: self.refusal.get().cloned().unwrap_or_else(lost), fate: Fate::NotSent }
        };
        let (reply, replied) = oneshot::channel();
        self.calls.send(Call { request, reply }).await.map_err(|_| closed())?;
        // The task answers every call that it took; one that it did not take was not sent.
        replied.await.unwrap_or_else(|_| Err(closed()))
    }
}

/// Unique, not secret: the randomness that hash maps are keyed with.
fn unique_id() -> [u8; 16] {
    let half = || RandomState::new().hash_one(0).to_be_bytes();
    let (mut id, (first, second)) = ([0; 16], (half(), half()));
    let (left, right) = id.split_at_mut(8);
    left.copy_from_slice(&first);
    right.copy_from_slice(&second);
    id
}

struct Task<R, W, M> {
    reader: R,
    writer: W,
    layer: SecurityLayer<M>,
    /// What came over the socket.
    received: Frames,
    /// What was inside it, when frames are protected.
    unwrapped: Frames,
    out: Buffer,
    client_id: [u8; 16],
    protocol: Protocol,
    calls: mpsc::Receiver<Call>,
    outstanding: HashMap<i32, oneshot::Sender<Reply>>,
    next_call_id: i32,
    /// The message that made the server give the connection up.
    refused: Option<i32>,
    idle_limit: Duration,
    /// Why the server refused who we said we are, if it did.
    refusal: Arc<OnceLock<Failure>>,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin, M: Mechanism> Task<R, W, M> {
    async fn run(mut self) {
        let end = self.serve().await;
        debug!(end = ?end, outstanding = self.outstanding.len(), "Connection ended");
        let failure = match end {
            Ok(()) => Failure::ConnectionLost("it was closed after being idle".to_owned()),
            Err(failure) => failure,
        };
        // It is as true of calls that come later.
        if self.refused == Some(CONTEXT_CALL) {
            let _ = self.refusal.set(failure.clone());
        }
        for (call_id, reply) in self.outstanding.drain() {
            let fate = match self.refused {
                // It comes before all calls, so none was looked at.
                Some(CONTEXT_CALL) => Fate::Refused,
                Some(refused) if refused == call_id => Fate::Refused,
                _ => Fate::Unknown,
            };
            let _ = reply.send(Err(CallFailure { failure: failure.clone(), fate }));
        }
        self.calls.close();
        while let Ok(call) = self.calls.try_recv() {
            let _ = call.reply.send(Err(CallFailure { failure: failure.clone(), fate: Fate::NotSent }));
        }
    }

    /// Moves bytes until the connection ends; fine if nobody needs it any more.
    async fn serve(&mut self) -> Result<(), Failure> {
        let lost = |error: std::io::Error| Failure::ConnectionLost(error.to_string());
        let mut chunk = Zeroizing::new([0; READ_SIZE]);
        let mut idle_since = Instant::now();
        // The handshake may already have read beyond its end.
        self.dispatch()?;
        loop {
            let busy = !self.outstanding.is_empty();
            tokio::select! {
                // Reading first: what the server said last explains why writing fails.
                biased;
                read = self.reader.read(&mut *chunk) => {
                    let length = read.map_err(lost)?;
                    let received = chunk.get(..length).unwrap_or_default();
                    if received.is_empty() {
                        return Err(Failure::ConnectionLost("closed by the server".to_owned()));
                    }
                    self.received.push(received);
                    self.dispatch()?;
                    idle_since = Instant::now();
                }
                written = self.writer.write(self.out.unread()), if !self.out.is_empty() => {
                    match written.map_err(lost)? {
                        0 => return Err(Failure::ConnectionLost("closed by the server".to_owned())),
                        length => self.out.consume(length),
                    }
                }
                call = self.calls.recv(), if self.outstanding.len() < MAX_OUTSTANDING => {
                    let Some(call) = call else { return Ok(()) };
                    self.send(call)?;
                    while self.outstanding.len() < MAX_OUTSTANDING && let Ok(call) = self.calls.try_recv() {
                        self.send(call)?;
                    }
                    idle_since = Instant::now();
                }
                () = sleep_until(idle_since + self.idle_limit), if !busy => return Ok(()),
            }
        }
    }

    fn send(&mut self, call: Call) -> Result<(), Failure> {
        if call.reply.is_closed() {
            return Ok(());
        }
        let call_id = self.next_call_id;
        self.next_call_id = call_id.checked_add(1).unwrap_or(0);
        self.outstanding.insert(call_id, call.reply);
        let Request { method, message, caller_context } = call.request;
        let header = RequestHeader {
            call_id,
            client_id: &self.client_id,
            retry_count: 0,
            caller_context: caller_context.as_deref(),
        };
        let method = Method { name: method, protocol: self.protocol };
        let request = frame(&header, |sink| {
            method.encode_delimited(sink);
            put_varint(message.len() as u64, sink);
            sink.put(&message);
        });
        self.layer.seal(&request, &mut self.out)
    }

    /// Handles every frame that is complete.
    fn dispatch(&mut self) -> Result<(), Failure> {
        while let Some(frame) = self.received.next()? {
            if self.layer.protection == Protection::Authentication {
                self.answer(&frame)?;
                continue;
            }
            self.layer.open(&frame, &mut self.unwrapped)?;
            while let Some(frame) = self.unwrapped.next()? {
                self.answer(&frame)?;
            }
        }
        Ok(())
    }

    fn answer(&mut self, frame: &[u8]) -> Result<(), Failure> {
        let response = Response::decode(frame)?;
        let outcome = match response.outcome {
            Outcome::Fatal(exception) => {
                self.refused = Some(response.call_id);
                return Err(Failure::refused(exception));
            }
            Outcome::Success(body) => Ok(Zeroizing::new(body.to_vec())),
            Outcome::Error(exception) => {
                Err(CallFailure { failure: Failure::refused(exception), fate: Fate::Refused })
            }
        };
        let Some(reply) = self.outstanding.remove(&response.call_id) else {
            return Err(Failure::Protocol(format!("a reply to call {}, which is none", response.call_id)));
        };
        // Fails when the caller has gone.
        let _ = reply.send(outcome);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
