//! TLS to the controller: whom it may be signed by, and with what we show who we are, read from files each time a
//! connection is made. Decides nothing by the certificate's content but its name.

use std::{error::Error, io, path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use zeroize::Zeroizing;

use crate::config::ControllerConfig;

pub(super) async fn connect(
    config: ControllerConfig,
) -> Result<TlsStream<TcpStream>, Box<dyn Error + Send + Sync>> {
    let tls = TlsConnector::from(client_config(&config)?);
    let tcp = TcpStream::connect(config.address.as_str()).await?;
    tcp.set_nodelay(true)?;
    Ok(tls.connect(config.server_name, tcp).await?)
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
