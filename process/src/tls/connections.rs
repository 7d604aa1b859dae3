//! Connections: accepted, with the handshake done outside the accept loop, bounded in time and number.

#[cfg(feature = "tls-tonic")]
use std::net::IpAddr;
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
#[cfg(feature = "tls-tonic")]
use tonic::{
    Extensions,
    transport::server::{Connected, TcpConnectInfo},
};
use tracing::{debug, warn};

use super::Identity;

pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that may wait between handshake and service.
const BACKLOG: usize = 64;

/// Connections whose handshake is done, until `stop`. At most `most` are open at once, whatever their state;
/// further callers wait in the kernel's queue.
pub fn connections(
    listener: TcpListener,
    identity: Arc<impl Identity>,
    most: usize,
    stop: CancellationToken,
) -> ReceiverStream<io::Result<TlsStream<Connection>>> {
    let (ready, connections) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        stop.run_until_cancelled(accept(listener, identity, Arc::new(Semaphore::new(most)), ready)).await;
    });
    ReceiverStream::new(connections)
}

/// From which address a request came, by the connection that it came on.
#[cfg(feature = "tls-tonic")]
#[must_use]
pub fn peer(request: &Extensions) -> Option<IpAddr> {
    let connection = request.get::<<TlsStream<Connection> as Connected>::ConnectInfo>()?;
    // An IPv4 address in IPv6's clothes is the same address.
    Some(connection.get_ref().remote_addr()?.ip().to_canonical())
}

async fn accept(
    listener: TcpListener,
    identity: Arc<impl Identity>,
    permits: Arc<Semaphore>,
    ready: mpsc::Sender<io::Result<TlsStream<Connection>>>,
) {
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: give the open connections time to end.
                warn!(%error, "Failed to accept a connection");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, ready) = (TlsAcceptor::from(identity.current()), ready.clone());
        tokio::spawn(async move {
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%error, %peer, "Failed to switch off Nagle's algorithm");
            }
            let connection = Connection { stream, peer, _permit: permit };
            match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(connection)).await {
                // A closed channel means that we are stopping: the connection ends with it.
                Ok(Ok(stream)) => drop(ready.send(Ok(stream)).await),
                Ok(Err(error)) => debug!(%error, %peer, "Failed TLS handshake"),
                Err(_) => debug!(%peer, "TLS handshake took too long"),
            }
        });
    }
}

/// A connection that counts among those that may be open at once.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }
}

#[cfg(feature = "tls-tonic")]
impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
