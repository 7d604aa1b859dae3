//! The door: TLS 1.2 and 1.3, with certificate, key and the authority of client certificates taken up anew without a
//! restart. Who may call is not decided here: callers show a token. A client certificate, where one is asked for, only
//! keeps strangers from getting that far.

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
    server::WebPkiClientVerifier,
};
use serde::Deserialize;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use zeroize::Zeroizing;

pub(crate) use connections::{connections, peer};

const RELOAD_INTERVAL: Duration = Duration::from_secs(10);

/// The configuration's key `tls`: PEM files.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Section {
    /// Shown to callers, with whatever leads from it to its authority.
    certificate: PathBuf,
    key: PathBuf,
    /// Who must have signed the certificate that a caller has to show. Without it callers need none.
    client_authority: Option<PathBuf>,
}

/// TLS as callers meet it: always by the newest files that could be used.
pub(crate) struct Tls {
    files: Section,
    current: ArcSwap<Loaded>,
}

struct Loaded {
    config: Arc<ServerConfig>,
    /// The files' bytes, to see when they change; a new key comes with a new certificate.
    certificate: Vec<u8>,
    client_authority: Option<Vec<u8>>,
}

/// Why there can be no TLS by these files.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("cannot read {path}: {error}", path = path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("{path} holds no {what} in PEM", path = path.display())]
    Empty { path: PathBuf, what: &'static str },
    #[error("the certificate {path} and its key cannot be used: {error}", path = path.display())]
    Certificate { path: PathBuf, error: rustls::Error },
    #[error("the client authority {path} cannot be used: {error}", path = path.display())]
    ClientAuthority { path: PathBuf, error: String },
}

impl Tls {
    /// Reads the files, and checks that they belong together.
    pub(crate) fn load(files: Section) -> Result<Self, TlsError> {
        let current = ArcSwap::from_pointee(Loaded::read(&files)?);
        Ok(Self { files, current })
    }

    /// How the next connection is spoken on.
    fn current(&self) -> Arc<ServerConfig> {
        self.current.load().config.clone()
    }

    /// Looks for changed files until `stop`. What cannot be used, perhaps half written, is left alone. Connections that
    /// are open go on as they began, for as long as connections may live.
    pub(crate) async fn keep_fresh(self: Arc<Self>, stop: CancellationToken) {
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
        let client_authority = self.files.client_authority.as_deref().map(slurp).transpose()?;
        let current = self.current.load();
        if certificate == current.certificate && client_authority == current.client_authority {
            return Ok(false);
        }
        self.current.store(Arc::new(Loaded::read(&self.files)?));
        Ok(true)
    }
}

impl Loaded {
    fn read(files: &Section) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let certificate = slurp(&files.certificate)?;
        let client_authority = files.client_authority.as_deref().map(slurp).transpose()?;
        let verifier = match files.client_authority.as_deref().zip(client_authority.as_deref()) {
            None => WebPkiClientVerifier::no_client_auth(),
            Some((path, pem)) => {
                let unusable = |error: String| TlsError::ClientAuthority { path: path.to_owned(), error };
                let mut roots = RootCertStore::empty();
                for authority in certificates(path, pem)? {
                    roots.add(authority).map_err(|error| unusable(error.to_string()))?;
                }
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                    .build()
                    .map_err(|error| unusable(error.to_string()))?
            }
        };
        let unusable = |error| TlsError::Certificate { path: files.certificate.clone(), error };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates(&files.certificate, &certificate)?, key(&files.key)?)
            .map_err(unusable)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { config: Arc::new(config), certificate, client_authority })
    }
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
