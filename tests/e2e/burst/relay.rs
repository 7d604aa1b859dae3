//! A relay between the controller and a NameNode that counts what goes through: connections, and calls about tokens
//! that are under way, from the request that the controller sends to the answer that it gets. It can keep answers back,
//! as a NameNode does that stands still for a moment. It reads Hadoop's frames and changes nothing in them, so it is of
//! use only where these are not encrypted.

use std::{
    collections::HashSet,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// What a client says before its first frame: `hrpc`, version, class and way of authentication.
const PREFACE: usize = 7;
/// The calls that are counted have names that end so.
const COUNTED: &[u8] = b"DelegationToken";
/// Larger frames than any here.
const MAX_FRAME: usize = 1 << 20;

/// Calls of one connection that are under way.
type UnderWay = Mutex<HashSet<u64>>;

/// What went through so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    /// Calls about tokens.
    pub(super) calls: usize,
    /// Those that are under way.
    pub(super) under_way: usize,
    /// Most that ever were.
    pub(super) most_under_way: usize,
    /// Connections that were made.
    pub(super) connections: usize,
    /// Most that were open at once.
    pub(super) most_open: usize,
}

/// The relay, as long as it lives.
pub(super) struct Relay {
    shared: Arc<Shared>,
    _task: JoinSet<()>,
}

struct Shared {
    state: Mutex<State>,
    kept_back: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    counts: Counts,
    open: usize,
}

impl Relay {
    /// Listens at one address for what is meant for another.
    pub(super) async fn between(listen: SocketAddr, server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(listen).await.with_context(|| format!("failed to bind {listen}"))?;
        let shared = Arc::new(Shared { state: Mutex::default(), kept_back: watch::Sender::new(false) });
        let mut task = JoinSet::new();
        task.spawn(accept(listener, server, shared.clone()));
        Ok(Self { shared, _task: task })
    }

    /// What went through until now.
    pub(super) fn counts(&self) -> Counts {
        self.shared.state().counts
    }

    /// From now on, or no longer, answers to calls about tokens are kept back.
    pub(super) fn keep_back(&self, whether: bool) {
        self.shared.kept_back.send_replace(whether);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sent(&self) {
        let counts = &mut self.state().counts;
        counts.calls += 1;
        counts.under_way += 1;
        counts.most_under_way = counts.most_under_way.max(counts.under_way);
    }

    /// So many calls have an answer, or will never have one.
    fn ended(&self, calls: usize) {
        let counts = &mut self.state().counts;
        counts.under_way = counts.under_way.saturating_sub(calls);
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        {
            let mut state = shared.state();
            state.open += 1;
            state.counts.connections += 1;
            state.counts.most_open = state.counts.most_open.max(state.open);
        }
        connections.spawn(connection(client, server, shared.clone()));
    }
}

async fn connection(client: TcpStream, server: SocketAddr, shared: Arc<Shared>) {
    let under_way = UnderWay::default();
    // Whatever ends it, both sides see it end.
    let _ = relayed(client, server, &shared, &under_way).await;
    let left = under_way.into_inner().unwrap_or_else(PoisonError::into_inner).len();
    shared.ended(left);
    shared.state().open -= 1;
}

/// Until one side closes.
async fn relayed(
    client: TcpStream,
    server: SocketAddr,
    shared: &Shared,
    under_way: &UnderWay,
) -> io::Result<()> {
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let requests = requests(from_client, to_server, shared, under_way);
    tokio::try_join!(requests, answers(from_server, to_client, shared, under_way)).map(drop)
}

/// Only ever ends with an error, as the other direction.
async fn requests(
    mut client: OwnedReadHalf,
    mut server: OwnedWriteHalf,
    shared: &Shared,
    under_way: &UnderWay,
) -> io::Result<()> {
    let mut preface = [0; PREFACE];
    client.read_exact(&mut preface).await?;
    server.write_all(&preface).await?;
    loop {
        let frame = frame(&mut client).await?;
        if frame.windows(COUNTED.len()).any(|part| part == COUNTED) {
            // RpcRequestHeaderProto.callId, a sint32.
            let zigzag = field(&frame, 3)?;
            under_way.lock().unwrap_or_else(PoisonError::into_inner).insert(zigzag >> 1);
            shared.sent();
        }
        server.write_all(&frame).await?;
    }
}

async fn answers(
    mut server: OwnedReadHalf,
    mut client: OwnedWriteHalf,
    shared: &Shared,
    under_way: &UnderWay,
) -> io::Result<()> {
    let calls = || under_way.lock().unwrap_or_else(PoisonError::into_inner);
    let mut kept_back = shared.kept_back.subscribe();
    loop {
        let frame = frame(&mut server).await?;
        // RpcResponseHeaderProto.callId, a uint32.
        let call = field(&frame, 1)?;
        if calls().contains(&call) {
            kept_back.wait_for(|kept_back| !kept_back).await.map_err(io::Error::other)?;
            // Before the controller can hear of it and send another one.
            if calls().remove(&call) {
                shared.ended(1);
            }
        }
        client.write_all(&frame).await?;
    }
}

/// A frame with its length before it.
async fn frame(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = from.read_u32().await?;
    let size = usize::try_from(length).unwrap_or(usize::MAX);
    if size > MAX_FRAME {
        return Err(io::Error::other(format!("a frame of {size} bytes")));
    }
    let mut frame = vec![0; 4 + size];
    let (head, body) = frame.split_at_mut(4);
    head.copy_from_slice(&length.to_be_bytes());
    from.read_exact(body).await?;
    Ok(frame)
}

/// The number of this field in the header that the frame begins with.
fn field(frame: &[u8], wanted: u64) -> io::Result<u64> {
    let mut rest = frame.get(4..).unwrap_or_default();
    let broken = || io::Error::other("a frame that is not understood");
    let length = usize::try_from(varint(&mut rest).ok_or_else(broken)?).map_err(io::Error::other)?;
    let mut header = rest.get(..length).ok_or_else(broken)?;
    while !header.is_empty() {
        let key = varint(&mut header).ok_or_else(broken)?;
        match key & 7 {
            0 => {
                let number = varint(&mut header).ok_or_else(broken)?;
                if key >> 3 == wanted {
                    return Ok(number);
                }
            }
            2 => {
                let length = usize::try_from(varint(&mut header).ok_or_else(broken)?);
                header = header.get(length.map_err(io::Error::other)?..).ok_or_else(broken)?;
            }
            _ => return Err(broken()),
        }
    }
    Err(broken())
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}
