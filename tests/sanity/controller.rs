//! A token service in memory that gives every volume a token, and knows which of them it has back.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Result, ensure};
use bed::pki::Authority;
use futures_util::{Stream, StreamExt, stream};
use proto::token::v1::{
    AddressVerification, CheckRequest, CheckResponse, IssueRequest, IssueResponse, IssuedToken, Kept,
    ReleaseRequest, ReleaseResponse, RenewRequest, RenewResponse, Token, WatchEvent, WatchRequest,
    check_response::Outcome,
    token_service_server::{TokenService, TokenServiceServer},
};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::{Request, Response, Status, transport::Server};

/// Until then nothing is to be renewed here.
const DAY: u64 = 86_400_000;

/// The token service, which serves until the program ends.
pub(crate) struct Controller {
    address: String,
    authority: Authority,
    tokens: Tokens,
}

#[derive(Clone, Default)]
struct Tokens(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    issued: u32,
    live: BTreeSet<Vec<u8>>,
}

impl Controller {
    /// Starts it on a free port, with files in `folder`.
    pub(crate) async fn start(folder: &Path) -> Result<Self> {
        let authority = Authority::new(&folder.join("pki"))?;
        let identity = authority.server("controller", &["127.0.0.1"])?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&identity.certificate)?.collect();
        let key = PrivateKeyDer::from_pem_file(&identity.key)?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(certificates?, key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let tokens = Tokens::default();
        let server = Server::builder().add_service(TokenServiceServer::new(tokens.clone()));
        tokio::spawn(server.serve_with_incoming(connections(listener, TlsAcceptor::from(Arc::new(config)))));
        Ok(Self { address, authority, tokens })
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The file with the certificate to be trusted.
    pub(crate) fn authority(&self) -> PathBuf {
        self.authority.file()
    }

    /// Every token that was issued was released.
    pub(crate) fn all_released(&self) -> Result<()> {
        let state = self.tokens.lock();
        ensure!(state.issued > 0, "no token was issued");
        ensure!(state.live.is_empty(), "{} of {} tokens are not released", state.live.len(), state.issued);
        Ok(())
    }
}

fn connections(
    listener: TcpListener,
    acceptor: TlsAcceptor,
) -> impl Stream<Item = io::Result<TlsStream<TcpStream>>> {
    let accept = |(listener, acceptor): (TcpListener, TlsAcceptor)| async move {
        let connection = async { acceptor.accept(listener.accept().await?.0).await };
        Some((connection.await, (listener, acceptor)))
    };
    stream::unfold((listener, acceptor), accept)
}

impl Tokens {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl TokenService for Tokens {
    async fn issue(&self, _: Request<IssueRequest>) -> Result<Response<IssueResponse>, Status> {
        let now = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default();
        let mut state = self.lock();
        state.issued += 1;
        let identifier = state.issued.to_be_bytes().to_vec();
        state.live.insert(identifier.clone());
        let token = Token {
            identifier,
            password: b"password".to_vec(),
            kind: "HDFS_DELEGATION_TOKEN".to_owned(),
            services: vec!["127.0.0.1:8020".to_owned()],
        };
        let issued = IssuedToken {
            token: Some(token),
            issue_date: now,
            renew_date: now + DAY,
            max_date: now + 7 * DAY,
            sequence_number: i32::try_from(state.issued).unwrap_or(i32::MAX),
            server_date: now,
        };
        Ok(Response::new(IssueResponse {
            user: "etl".to_owned(),
            cluster: "main".to_owned(),
            tokens: vec![issued],
            address_verification: AddressVerification::Off.into(),
            check_after_seconds: 900,
            unsealed: false,
        }))
    }

    async fn renew(&self, _: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        Err(Status::unimplemented("nothing is due here"))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        let mut state = self.lock();
        for token in request.into_inner().tokens {
            state.live.remove(&token.identifier);
        }
        Ok(Response::new(ReleaseResponse {}))
    }

    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let kept = Kept { check_after_seconds: 900, addresses_verified: false };
        Ok(Response::new(CheckResponse { outcome: Some(Outcome::Kept(kept)) }))
    }

    type WatchStream = stream::BoxStream<'static, Result<WatchEvent, Status>>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(stream::pending().boxed()))
    }
}
