//! Connections to one server. A connection has one effective user for its whole life, so there is one for each user,
//! kept warm for a short while, and one for ourselves. Callers who want the same connection share one attempt to make
//! it. How many handshakes run at once, and how many connections are kept, is bounded.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tracing::debug;
use zeroize::Zeroizing;

use crate::error::{Failure, Refusal};
use crate::kerberos::{GssContext, Login};
use crate::principal::ServerIdentity;
use crate::rpc::Protection;
use crate::rpc::connection::Connection;
use crate::rpc::frame::Frames;
use crate::rpc::handshake::{Negotiated, Step, opening};
use crate::rpc::message::{ConnectionContext, Protocol};
use crate::rpc::security::SecurityLayer;
use crate::user::HadoopUser;

/// From the first look-up of the name to a TCP connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// For each answer of the server during the handshake.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// For one's turn, when many handshakes are wanted.
const TURN_LIMIT: Duration = Duration::from_secs(10);

/// Handshakes with one server at a time: each costs it some milliseconds of CPU.
const MAX_HANDSHAKES: usize = 8;

/// Connections kept for later use.
const MAX_KEPT: usize = 64;

/// A user's connection is kept for as long as a burst of calls may have gaps; our own longer.
const USER_IDLE_LIMIT: Duration = Duration::from_secs(10);
const OWN_IDLE_LIMIT: Duration = Duration::from_secs(60);

/// Where a server is, and what it must be.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) identity: ServerIdentity,
    pub(crate) protection: Protection,
    pub(crate) protocol: Protocol,
}

/// The connections to one server.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    slots: Mutex<Slots>,
}

#[derive(Debug)]
struct Shared {
    server: Server,
    login: Arc<Login>,
    handshakes: Semaphore,
}

/// `None` until the attempt has ended.
type Attempt = watch::Receiver<Option<Result<Connection, Failure>>>;

#[derive(Debug, Default)]
struct Slots {
    /// By effective user; `None` is ourselves.
    by_user: HashMap<Option<HadoopUser>, Slot>,
    uses: u64,
}

#[derive(Debug)]
struct Slot {
    attempt: Attempt,
    last_use: u64,
}

impl Slot {
    /// Connected, or about to be.
    fn is_alive(&self) -> bool {
        match &*self.attempt.borrow() {
            Some(Ok(connection)) => !connection.is_closed(),
            Some(Err(_)) => false,
            // An attempt that vanished without a result leaves a closed channel.
            None => self.attempt.has_changed().is_ok(),
        }
    }
}

/// A connection from the pool.
pub(crate) struct Pooled {
    pub(crate) connection: Connection,
    /// Whether it was there before, and so may have been closed by the server meanwhile.
    pub(crate) reused: bool,
}

impl Pool {
    pub(crate) fn new(server: Server, login: Arc<Login>) -> Self {
        let shared = Shared { server, login, handshakes: Semaphore::new(MAX_HANDSHAKES) };
        Self { shared: Arc::new(shared), slots: Mutex::default() }
    }

    /// A connection that acts as `user`, or as ourselves.
    pub(crate) async fn get(&self, user: Option<&HadoopUser>) -> Result<Pooled, Failure> {
        let (mut attempt, reused) = self.attempt(user);
        let ended = attempt
            .wait_for(Option::is_some)
            .await
            .map_err(|_| Failure::ConnectionLost("the attempt to connect was abandoned".to_owned()))?
            .clone();
        match ended {
            Some(Ok(connection)) => Ok(Pooled { connection, reused }),
            Some(Err(failure)) => Err(failure),
            None => Err(Failure::ConnectionLost("the attempt to connect had no end".to_owned())),
        }
    }

    /// Forgets the connection of `user`, which does not answer. Calls on it may still end.
    pub(crate) fn discard(&self, user: Option<&HadoopUser>) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.by_user.remove(&user.cloned());
    }

    fn attempt(&self, user: Option<&HadoopUser>) -> (Attempt, bool) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.uses += 1;
        let last_use = slots.uses;
        let key = user.cloned();
        if let Some(slot) = slots.by_user.get_mut(&key).filter(|slot| slot.is_alive()) {
            slot.last_use = last_use;
            let connected = slot.attempt.borrow().is_some();
            return (slot.attempt.clone(), connected);
        }
        if slots.by_user.len() >= MAX_KEPT {
            slots.by_user.retain(|_, slot| slot.is_alive());
        }
        if slots.by_user.len() >= MAX_KEPT {
            // Whoever still uses it keeps it open; it is only not found any more.
            let oldest =
                slots.by_user.iter().min_by_key(|(_, slot)| slot.last_use).map(|(user, _)| user.clone());
            oldest.and_then(|oldest| slots.by_user.remove(&oldest));
        }
        let (result, attempt) = watch::channel(None);
        let (shared, effective_user) = (self.shared.clone(), key.clone());
        // On its own, so that the caller who came first may leave and the others still get it.
        tokio::spawn(async move {
            let ended = shared.connect(effective_user.as_ref()).await;
            let _ = result.send(Some(ended));
        });
        slots.by_user.insert(key, Slot { attempt: attempt.clone(), last_use });
        (attempt, false)
    }
}

impl Shared {
    async fn connect(&self, user: Option<&HadoopUser>) -> Result<Connection, Failure> {
        let timed_out = |waiting_for, limit| move |_| Failure::TimedOut { waiting_for, limit };
        let _turn = timeout(TURN_LIMIT, self.handshakes.acquire())
            .await
            .map_err(timed_out("its turn among many handshakes", TURN_LIMIT))?;
        let Server { host, port, protocol, .. } = &self.server;
        let first = self.authenticated().await;
        let (stream, received, layer) = match first {
            // Its key may be newer than our ticket: once more with a new one.
            Err(Failure::Refused(Refusal::TicketRejected, _)) if self.login.forget_tickets() => {
                self.authenticated().await?
            }
            first => first?,
        };
        debug!(namenode.host = host, namenode.port = port, user = ?user, protection = %layer.protection, "Connected");
        let context = ConnectionContext { effective_user: user.map(HadoopUser::as_str), protocol: *protocol };
        let idle_limit = if user.is_some() { USER_IDLE_LIMIT } else { OWN_IDLE_LIMIT };
        Connection::start(stream, layer, received, &context, idle_limit)
    }

    /// A TCP connection with its handshake done.
    async fn authenticated(&self) -> Result<(TcpStream, Frames, SecurityLayer<GssContext>), Failure> {
        let Server { host, port, .. } = &self.server;
        let mut stream = timeout(CONNECT_LIMIT, open(host, *port)).await.unwrap_or_else(|_| {
            Err(Failure::Unreachable(format!("no connection within {CONNECT_LIMIT:?}")))
        })?;
        let mut received = Frames::default();
        let layer = self.handshake(&mut stream, &mut received).await?;
        Ok((stream, received, layer))
    }

    async fn handshake(
        &self,
        stream: &mut TcpStream,
        received: &mut Frames,
    ) -> Result<SecurityLayer<GssContext>, Failure> {
        let answer = exchange(stream, received, &opening()).await?;
        let negotiated = Negotiated::receive(&answer, &self.server.identity)?;
        let (context, token) = self.login.initiate(&negotiated.target).await.map_err(Failure::Kerberos)?;
        let (mut handshake, mut frame) = negotiated.initiate(context, &token);
        loop {
            let answer = exchange(stream, received, &frame).await?;
            match handshake.receive(&answer, self.server.protection)? {
                Step::Send(next, to_send) => (handshake, frame) = (next, to_send),
                Step::Done(layer) => return Ok(layer),
            }
        }
    }
}

/// Sends a frame and waits for the next one.
async fn exchange(
    stream: &mut TcpStream,
    received: &mut Frames,
    frame: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let lost = |error: std::io::Error| Failure::ConnectionLost(format!("{error} (during the handshake)"));
    let answered = async {
        stream.write_all(frame).await.map_err(lost)?;
        let mut chunk = [0; 2048];
        loop {
            if let Some(frame) = received.next()? {
                return Ok(frame);
            }
            let length = stream.read(&mut chunk).await.map_err(lost)?;
            if length == 0 {
                return Err(Failure::ConnectionLost("closed by the server during the handshake".to_owned()));
            }
            received.push(chunk.get(..length).unwrap_or_default());
        }
    };
    let timed_out = Failure::TimedOut { waiting_for: "the handshake", limit: ANSWER_LIMIT };
    timeout(ANSWER_LIMIT, answered).await.unwrap_or(Err(timed_out))
}

/// Resolves the name anew, since servers move, and tries its addresses in turn.
async fn open(host: &str, port: u16) -> Result<TcpStream, Failure> {
    let addresses = resolve(host, port).await?;
    let share = CONNECT_LIMIT / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    let mut failures = Vec::new();
    for address in addresses {
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Small messages that wait for each other's answers.
                stream.set_nodelay(true).map_err(|error| Failure::Unreachable(error.to_string()))?;
                return Ok(stream);
            }
            Ok(Err(error)) => failures.push(format!("{address}: {error}")),
            Err(_) => failures.push(format!("{address}: no connection within {share:?}")),
        }
    }
    Err(Failure::Unreachable(failures.join(", ")))
}

/// The addresses of a host now.
pub(crate) async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
    const MAX_ADDRESSES: usize = 8;
    let unresolved = |why: String| Failure::Unreachable(format!("its name does not resolve: {why}"));
    let found = tokio::net::lookup_host((host, port)).await.map_err(|error| unresolved(error.to_string()))?;
    let mut addresses = Vec::new();
    for address in found {
        if !addresses.contains(&address) && addresses.len() < MAX_ADDRESSES {
            addresses.push(address);
        }
    }
    if addresses.is_empty() { Err(unresolved("it has no address".to_owned())) } else { Ok(addresses) }
}
