//! TLS to the controller, at whichever of its addresses answers: whom it may be signed by, and with what we show who we
//! are, read from files each time a connection is made. Decides nothing by the certificate's content but its name.

use std::{error::Error, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use rustix::net::sockopt::set_tcp_user_timeout;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    net::{TcpStream, lookup_host},
    task::JoinSet,
    time::{error::Elapsed, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use zeroize::Zeroizing;

use crate::config::ControllerConfig;

/// How long a replica of the controller may keep us waiting before the next is tried as well.
const HEAD_START: Duration = Duration::from_secs(1);

/// What we sent arrives so soon, or the way to the controller is cut. A controller that is merely slow takes it all the
/// same: its kernel does.
pub(super) const ARRIVAL: Duration = Duration::from_secs(5);

/// Connects to whichever replica of the controller answers first, of all whose addresses the name has. One that is away
/// may be one that swallows packets.
pub(super) async fn connect(
    config: ControllerConfig,
) -> Result<TlsStream<TcpStream>, Box<dyn Error + Send + Sync>> {
    let tls = TlsConnector::from(client_config(&config)?);
    let addresses = lookup_host(config.address.as_str()).await?;
    Ok(first_to_answer(addresses, tls, config.server_name).await?)
}

pub(super) async fn first_to_answer(
    mut addresses: impl Iterator<Item = SocketAddr>,
    tls: TlsConnector,
    name: ServerName<'static>,
) -> io::Result<TlsStream<TcpStream>> {
    let mut attempts = JoinSet::new();
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    loop {
        if let Some(address) = addresses.next() {
            attempts.spawn(open(address, tls.clone(), name.clone()));
        }
        match timeout(HEAD_START, attempts.join_next()).await {
            Ok(Some(Ok(Ok(stream)))) => return Ok(stream),
            Ok(Some(Ok(Err(error)))) => failure = error,
            Ok(Some(Err(error))) => failure = error.into(),
            Ok(None) => return Err(failure),
            Err(Elapsed { .. }) => {}
        }
    }
}

async fn open(
    address: SocketAddr,
    tls: TlsConnector,
    name: ServerName<'static>,
) -> io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    set_tcp_user_timeout(&tcp, u32::try_from(ARRIVAL.as_millis()).unwrap_or(u32::MAX))?;
    tls.connect(name, tcp).await
}

/// TLS as the controller speaks it: its certificate signed by one of the authorities, ours shown if there is one, and
/// HTTP/2.
pub(super) fn client_config(config: &ControllerConfig) -> Result<Arc<ClientConfig>, UnusableFile> {
    let unusable = |why: rustls::Error| UnusableFile {
        what: "certificate authorities",
        path: config.ca.clone(),
        why: why.to_string(),
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates("certificate authorities", &config.ca)? {
        roots.add(certificate).map_err(unusable)?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_root_certificates(roots);
    let mut tls = match &config.certificate {
        None => builder.with_no_client_auth(),
        Some(files) => {
            let chain = certificates("the client certificate", &files.certificate)?;
            let error = |why: String| UnusableFile { what: "the client key", path: files.key.clone(), why };
            let key = Zeroizing::new(std::fs::read(&files.key).map_err(|e| error(e.to_string()))?);
            let key = PrivateKeyDer::from_pem_slice(&key).map_err(|e| error(e.to_string()))?;
            builder.with_client_auth_cert(chain, key).map_err(|e| error(e.to_string()))?
        }
    };
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(tls))
}

fn certificates(what: &'static str, path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, UnusableFile> {
    let error = |why: String| UnusableFile { what, path: path.clone(), why };
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| error(e.to_string()))?;
    if certificates.is_empty() {
        return Err(error("it holds no certificate".to_owned()));
    }
    Ok(certificates)
}

/// A file of certificates or with a key that is of no use.
#[derive(Debug, thiserror::Error)]
#[error("file of {what} {path} cannot be used: {why}", path = path.display())]
pub(crate) struct UnusableFile {
    what: &'static str,
    path: PathBuf,
    why: String,
}

impl From<UnusableFile> for io::Error {
    fn from(error: UnusableFile) -> Self {
        Self::other(error)
    }
}
