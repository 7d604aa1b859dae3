//! The controller's token service, called directly and with whatever one likes: what an attacker can do who has
//! stolen tokens, or owns a node, and so is bound to no manners of the node plugin.

use std::{error::Error, path::Path, sync::Arc};

use anyhow::{Context, Result, ensure};
use hyper_util::rt::TokioIo;
use proto::{
    VolumeId,
    token::v1::{self as wire, token_service_client::TokenServiceClient},
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;

use crate::{Bed, pki::Identity, product::CONTROLLER};

/// A connection to the controller; see [`TokenService::with`].
#[derive(Clone)]
pub struct TokenService {
    channel: Channel,
}

/// The token service, shown one service-account token with every call.
pub type Caller = TokenServiceClient<InterceptedService<Channel, Shown>>;

/// Adds a token to each call.
#[derive(Clone)]
pub struct Shown(Option<MetadataValue<Ascii>>);

impl Interceptor for Shown {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

impl TokenService {
    /// A client of the bed's controller, which is called when it is needed, and trusts the bed's authority.
    ///
    /// # Errors
    /// When the authority's certificate cannot be used.
    pub fn of(bed: &Bed) -> Result<Self> {
        Self::showing(&bed.kubernetes().authority().file(), None)
    }

    /// The same, with another authority to be trusted, and a certificate to be shown.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub fn showing(authority: &Path, client: Option<&Identity>) -> Result<Self> {
        let tls = tls(authority, client)?;
        let connector = tower::service_fn(move |_: http::Uri| {
            let tls = TlsConnector::from(tls.clone());
            async move { connect(tls).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_shared(format!("https://{CONTROLLER}"))?;
        Ok(Self { channel: endpoint.connect_with_connector_lazy(connector) })
    }

    /// The service, with `jwt` as the node plugin's own token.
    ///
    /// # Errors
    /// When it can be in no header.
    pub fn with(&self, jwt: &str) -> Result<Caller> {
        let mut value: MetadataValue<Ascii> =
            format!("Bearer {jwt}").parse().context("not to be shown in a header")?;
        value.set_sensitive(true);
        Ok(TokenServiceClient::with_interceptor(self.channel.clone(), Shown(Some(value))))
    }

    /// The service, without any token.
    #[must_use]
    pub fn with_nothing(&self) -> Caller {
        TokenServiceClient::with_interceptor(self.channel.clone(), Shown(None))
    }
}

async fn connect(tls: TlsConnector) -> Result<TlsStream<TcpStream>, Box<dyn Error + Send + Sync>> {
    let (host, _) = CONTROLLER.split_once(':').ok_or("the controller's address has no port")?;
    let tcp = TcpStream::connect(CONTROLLER).await?;
    Ok(tls.connect(ServerName::try_from(host)?, tcp).await?)
}

fn tls(authority: &Path, client: Option<&Identity>) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority)?)?;
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let mut config = match client {
        None => config.with_no_client_auth(),
        Some(Identity { certificate, key }) => config.with_client_auth_cert(
            vec![CertificateDer::from_pem_file(certificate)?],
            PrivateKeyDer::from_pem_file(key)?,
        )?,
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// A volume as the node plugin names it, true or not.
#[must_use]
pub fn volume(namespace: &str, pod: &str, uid: &str, name: &str) -> wire::Volume {
    wire::Volume {
        id: VolumeId::of(uid, name).to_string(),
        name: name.to_owned(),
        pod: Some(wire::Pod { namespace: namespace.to_owned(), name: pod.to_owned(), uid: uid.to_owned() }),
    }
}

/// The stable reason of a refusal.
///
/// # Errors
/// When it has none.
pub fn reason(status: &Status) -> Result<String> {
    let info = status.get_details_error_info().with_context(|| format!("no reason in {status:?}"))?;
    ensure!(info.domain == proto::ERROR_DOMAIN, "a reason of {}", info.domain);
    Ok(info.reason)
}
