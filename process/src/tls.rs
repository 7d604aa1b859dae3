//! The door: TLS 1.2 and 1.3, with certificate, key and the authority of client certificates taken up anew without a
//! restart. Who may call is not decided here: a client certificate, where one is asked for, only keeps strangers from
//! getting that far.

mod connections;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use serde::Deserialize;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use zeroize::Zeroizing;

#[cfg(feature = "tls-tonic")]
pub use connections::peer;
pub use connections::{Connection, connections};

/// What is spoken inside, most liked first, as ALPN names it.
pub type Protocols = &'static [&'static [u8]];

/// gRPC.
pub const HTTP_2: Protocols = &[b"h2"];
/// Whatever a client of HTTP likes.
pub const HTTP: Protocols = &[b"h2", b"http/1.1"];

const RELOAD_INTERVAL: Duration = Duration::from_secs(10);

/// The configuration's key `tls`: PEM files.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Section {
    /// Shown to callers, with whatever leads from it to its authority.
    pub certificate: PathBuf,
    /// The certificate's.
    pub key: PathBuf,
    /// Who must have signed the certificate that a caller has to show. Without it callers need none.
    pub client_authority: Option<PathBuf>,
}

/// As whom we meet callers, which may change while we run.
pub trait Identity: Send + Sync + 'static {
    /// How the next connection is spoken on.
    fn current(&self) -> Arc<ServerConfig>;
}

impl Identity for ArcSwap<ServerConfig> {
    fn current(&self) -> Arc<ServerConfig> {
        self.load_full()
    }
}

/// TLS by files: always by the newest ones that could be used.
pub struct Tls {
    files: Section,
    protocols: Protocols,
    current: ArcSwap<Loaded>,
}

struct Loaded {
    config: Arc<ServerConfig>,
    /// The file's bytes, to see when they change; a new key comes with a new certificate.
    certificate: Vec<u8>,
    clients: Option<ClientAuthority>,
}

/// Who must have signed the certificate that a caller has to show, by a file.
pub struct ClientAuthority {
    path: PathBuf,
    pem: Vec<u8>,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl ClientAuthority {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read, or nobody can be authenticated by what is in it.
    pub fn load(path: &Path) -> Result<Self, TlsError> {
        Self::of(path, slurp(path)?)
    }

    /// As the file is now; none when it has not changed.
    ///
    /// # Errors
    /// As for [`ClientAuthority::load`]. What was read before can be used on.
    pub fn reload(&self) -> Result<Option<Self>, TlsError> {
        let pem = slurp(&self.path)?;
        if pem == self.pem { Ok(None) } else { Self::of(&self.path, pem).map(Some) }
    }

    fn of(path: &Path, pem: Vec<u8>) -> Result<Self, TlsError> {
        let unusable = |error: String| TlsError::ClientAuthority { path: path.to_owned(), error };
        let mut roots = RootCertStore::empty();
        for authority in certificates(path, &pem)? {
            roots.add(authority).map_err(|error| unusable(error.to_string()))?;
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        let verifier = verifier.map_err(|error| unusable(error.to_string()))?;
        Ok(Self { path: path.to_owned(), pem, verifier })
    }
}

/// Why there can be no TLS by these files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {error}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// A file holds something else.
    #[error("{path} holds no {what} in PEM", path = path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// What was expected.
        what: &'static str,
    },
    /// The certificate is no good, or the key is not its key.
    #[error("the certificate {path} and its key cannot be used: {error}", path = path.display())]
    Certificate {
        /// The certificate's file.
        path: PathBuf,
        /// What is wrong.
        error: rustls::Error,
    },
    /// Nobody can be authenticated by this authority.
    #[error("the client authority {path} cannot be used: {error}", path = path.display())]
    ClientAuthority {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        error: String,
    },
}

impl Identity for Tls {
    fn current(&self) -> Arc<ServerConfig> {
        self.current.load().config.clone()
    }
}

impl Tls {
    /// Reads the files, and checks that they belong together.
    ///
    /// # Errors
    /// When one cannot be read or used, or the key is of another certificate.
    pub fn load(files: Section, protocols: Protocols) -> Result<Self, TlsError> {
        let current = ArcSwap::from_pointee(Loaded::read(&files, protocols)?);
        Ok(Self { files, protocols, current })
    }

    /// The certificate that callers are shown now, and what leads from it to its authority, in PEM.
    #[must_use]
    pub fn certificate(&self) -> Vec<u8> {
        self.current.load().certificate.clone()
    }

    /// Looks for changed files until `stop`. What cannot be used, perhaps half written, is left alone. Connections that
    /// are open go on as they began, for as long as connections may live.
    pub async fn keep_fresh(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = interval(RELOAD_INTERVAL);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            match self.reload() {
                Ok(true) => info!(path = %self.files.certificate.display(), "Took up new certificates"),
                Ok(false) => {}
                Err(error) => warn!(%error, "Failed to reload the certificates"),
            }
        }
    }

    fn reload(&self) -> Result<bool, TlsError> {
        let certificate = slurp(&self.files.certificate)?;
        let current = self.current.load();
        let clients = current.clients.as_ref().map(ClientAuthority::reload).transpose()?.flatten();
        if certificate == current.certificate && clients.is_none() {
            return Ok(false);
        }
        self.current.store(Arc::new(Loaded::read(&self.files, self.protocols)?));
        Ok(true)
    }
}

impl Loaded {
    fn read(files: &Section, protocols: Protocols) -> Result<Self, TlsError> {
        let certificate = slurp(&files.certificate)?;
        let clients = files.client_authority.as_deref().map(ClientAuthority::load).transpose()?;
        let chain = certificates(&files.certificate, &certificate)?;
        let config = server(chain, key(&files.key)?, clients.as_ref(), protocols)
            .map_err(|error| TlsError::Certificate { path: files.certificate.clone(), error })?;
        Ok(Self { config: Arc::new(config), certificate, clients })
    }
}

/// TLS by this certificate. Without `clients` callers need none.
///
/// # Errors
/// When the key is of another certificate, or not of a kind that TLS knows.
pub fn server(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    clients: Option<&ClientAuthority>,
    protocols: Protocols,
) -> Result<ServerConfig, rustls::Error> {
    let verifier =
        clients.map_or_else(WebPkiClientVerifier::no_client_auth, |clients| clients.verifier.clone());
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().unwrap_or_default();
    if certificates.is_empty() {
        return Err(TlsError::Empty { path: path.to_owned(), what: "certificate" });
    }
    Ok(certificates)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = Zeroizing::new(slurp(path)?);
    PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| TlsError::Empty { path: path.to_owned(), what: "private key" })
}

fn slurp(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error| TlsError::Unreadable { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests;
