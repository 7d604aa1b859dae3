//! The door: accepts connections, does the TLS handshake outside the accept loop, bounded in time and number, and
//! picks up a renewed certificate without a restart. Who may call is not decided here: callers show a token, not a
//! certificate.

use std::{
    fs, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    task::{Context, Poll},
    time::Duration,
};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{interval, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, TcpConnectInfo};
use tracing::{debug, info, warn};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const RELOAD_INTERVAL: Duration = Duration::from_secs(10);
/// Connections that may wait between handshake and service.
const BACKLOG: usize = 64;

/// The certificate that callers are shown: always the newest that could be read.
#[derive(Debug)]
pub(crate) struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    current: RwLock<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    certified: Arc<CertifiedKey>,
    /// The chain's bytes, to see when they change.
    pem: Vec<u8>,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error("cannot read {path}: {error}", path = path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("{path} holds no {what} in PEM", path = path.display())]
    Empty { path: PathBuf, what: &'static str },
    #[error("the certificate {path} and its key cannot be used: {error}", path = path.display())]
    Unusable { path: PathBuf, error: rustls::Error },
}

impl Certificate {
    /// Reads certificate chain and key, and checks that they belong together.
    pub(crate) fn load(chain: PathBuf, key: PathBuf) -> Result<Self, CertificateError> {
        let current = RwLock::new(read(&chain, &key)?);
        Ok(Self { chain, key, current })
    }

    /// What a TLS server needs: TLS 1.2 and 1.3, HTTP/2 only.
    pub(crate) fn server_config(self: &Arc<Self>) -> ServerConfig {
        let mut config = ServerConfig::builder().with_no_client_auth().with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    /// Looks for a renewed certificate until `stop`. One that cannot be read, perhaps half written, is left alone.
    pub(crate) async fn keep_fresh(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = interval(RELOAD_INTERVAL);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            match self.reload() {
                Ok(true) => info!(path = %self.chain.display(), "Took up a new certificate"),
                Ok(false) => {}
                Err(error) => warn!(%error, "Failed to reload the certificate"),
            }
        }
    }

    fn reload(&self) -> Result<bool, CertificateError> {
        let pem = slurp(&self.chain)?;
        if pem == self.current.read().unwrap_or_else(PoisonError::into_inner).pem {
            return Ok(false);
        }
        let loaded = read(&self.chain, &self.key)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        Ok(true)
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).certified.clone())
    }
}

fn read(chain: &Path, key: &Path) -> Result<Loaded, CertificateError> {
    let empty = |path: &Path, what| CertificateError::Empty { path: path.to_owned(), what };
    let pem = slurp(chain)?;
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|_| empty(chain, "certificate"))?;
    if certificates.is_empty() {
        return Err(empty(chain, "certificate"));
    }
    let key_pem = zeroize::Zeroizing::new(slurp(key)?);
    let key = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|_| empty(key, "private key"))?;
    let certified = CertifiedKey::from_der(certificates, key, &rustls::crypto::aws_lc_rs::default_provider())
        .map_err(|error| CertificateError::Unusable { path: chain.to_owned(), error })?;
    Ok(Loaded { certified: Arc::new(certified), pem })
}

fn slurp(path: &Path) -> Result<Vec<u8>, CertificateError> {
    fs::read(path).map_err(|error| CertificateError::Unreadable { path: path.to_owned(), error })
}

/// Connections whose handshake is done, until `stop`. At most `most` are open at once, whatever their state;
/// further callers wait in the kernel's queue.
pub(crate) fn connections(
    listener: TcpListener,
    config: ServerConfig,
    most: usize,
    stop: CancellationToken,
) -> ReceiverStream<io::Result<TlsStream<Connection>>> {
    let (ready, connections) = mpsc::channel(BACKLOG);
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        stop.run_until_cancelled(accept(listener, acceptor, Arc::new(Semaphore::new(most)), ready)).await;
    });
    ReceiverStream::new(connections)
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
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
        let (acceptor, ready) = (acceptor.clone(), ready.clone());
        tokio::spawn(async move {
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%error, %peer, "Failed to switch off Nagle's algorithm");
            }
            let connection = Connection { stream, _permit: permit };
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
pub(crate) struct Connection {
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
}

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

#[cfg(test)]
mod tests;
