//! The way to the controller: real TLS over TCP. What is said on it is tested with the volumes.

use std::{
    fs, io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use nix::sched::{CloneFlags, unshare};
use process::health::Health;
use proto::token::v1::{
    CheckRequest, CheckResponse, ReleaseResponse, RenewResponse, RenewalOutcome, WatchEvent, WatchRequest,
    token_service_server::{TokenService, TokenServiceServer},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, ServerName},
    server::WebPkiClientVerifier,
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, transport::Server};

use super::*;
use crate::config::ClientCertificate;
use crate::volume::tests::{record, volume};

/// Answers Release, and remembers as whom it was asked.
#[derive(Clone, Default)]
struct Remembering(Arc<Mutex<Vec<String>>>);

#[tonic::async_trait]
impl TokenService for Remembering {
    async fn issue(&self, _: Request<IssueRequest>) -> Result<Response<IssueResponse>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn renew(&self, _: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        Ok(Response::new(RenewResponse {
            outcomes: vec![RenewalOutcome {
                outcome: Some(RenewalResult::Renewed(wire::Renewed::default())),
            }],
        }))
    }

    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    type WatchStream = tokio_stream::Empty<Result<WatchEvent, Status>>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        let shown = request.metadata().get("authorization").unwrap().to_str().unwrap().to_owned();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(shown);
        Ok(Response::new(ReleaseResponse {}))
    }
}

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn server(&self, name: &str) -> ServerConfig {
        self.server_for(name, None)
    }

    /// Writes a client certificate of this authority's into `folder`.
    fn client(&self, folder: &Path) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.0).unwrap();
        fs::write(folder.join("tls.crt"), certificate.pem()).unwrap();
        fs::write(folder.join("tls.key"), key.serialize_pem()).unwrap();
    }

    fn server_for(&self, name: &str, clients: Option<&Authority>) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = match clients {
            None => WebPkiClientVerifier::no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots.add(clients.0.der().clone()).unwrap();
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                    .build()
                    .unwrap()
            }
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }
}

fn config(folder: &Path, address: SocketAddr, name: &str) -> ControllerConfig {
    ControllerConfig {
        address: address.to_string().parse().unwrap(),
        server_name: ServerName::try_from(name.to_owned()).unwrap(),
        ca: folder.join("ca.crt"),
        token_file: folder.join("token"),
        certificate: None,
    }
}

/// A client, its files, and how its controller is shown.
struct Bed {
    dir: tempfile::TempDir,
    health: Health,
    client: ControllerClient,
}

impl Bed {
    fn new(address: SocketAddr, name: &str, ca: &Authority) -> Self {
        Self::showing(None, address, name, ca)
    }

    fn showing(
        certificate: Option<ClientCertificate>,
        address: SocketAddr,
        name: &str,
        ca: &Authority,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = ControllerConfig { certificate, ..config(dir.path(), address, name) };
        fs::write(&config.ca, ca.0.pem()).unwrap();
        fs::write(&config.token_file, "first\n").unwrap();
        let health = Health::default();
        let client =
            ControllerClient::new(&config, Clock::paused(Timestamp::UNIX_EPOCH), health.shows("controller"))
                .unwrap();
        Self { dir, health, client }
    }

    async fn release(&self) -> Result<(), CallError> {
        self.client.release(&record("uid", Timestamp::UNIX_EPOCH)).await
    }
}

async fn serve(config: ServerConfig) -> (SocketAddr, Remembering) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = Remembering::default();
    let (connections, incoming) = mpsc::channel(1);
    let server = Server::builder()
        .add_service(TokenServiceServer::new(service.clone()))
        .serve_with_incoming(ReceiverStream::new(incoming));
    tokio::spawn(async { server.await.unwrap() });
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        while let Ok((tcp, _)) = listener.accept().await {
            if let Ok(tls) = acceptor.accept(tcp).await {
                connections.send(Ok::<_, io::Error>(tls)).await.unwrap();
            }
        }
    });
    (address, service)
}

#[tokio::test]
async fn shows_its_own_token_as_it_is_at_the_time() {
    let authority = Authority::new();
    let (address, service) = serve(authority.server("controller.example")).await;
    let bed = Bed::new(address, "controller.example", &authority);
    bed.release().await.unwrap();
    fs::write(bed.dir.path().join("token"), "second").unwrap();
    bed.release().await.unwrap();
    assert_eq!(*service.0.lock().unwrap(), ["Bearer first", "Bearer second"]);
    assert_eq!(bed.health.report().1, "[+] controller: ok\n");
}

#[tokio::test]
async fn a_controller_of_another_name_is_not_spoken_to() {
    let authority = Authority::new();
    let (address, service) = serve(authority.server("other.example")).await;
    let bed = Bed::new(address, "controller.example", &authority);
    let error = bed.release().await.unwrap_err().to_string();
    let expected = format!("controller at {address} cannot be reached: invalid peer certificate");
    assert!(error.starts_with(&expected), "{error}");
    assert!(service.0.lock().unwrap().is_empty());
    assert!(bed.health.report().1.contains("[~] controller: controller at"), "{}", bed.health.report().1);
}

#[tokio::test]
async fn a_controller_that_somebody_else_signed_is_not_spoken_to_until_the_file_says_so() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (address, _) = serve(theirs.server("controller.example")).await;
    let bed = Bed::new(address, "controller.example", &ours);
    let error = bed.release().await.unwrap_err().to_string();
    assert!(error.contains("invalid peer certificate"), "{error}");
    fs::write(bed.dir.path().join("ca.crt"), theirs.0.pem()).unwrap();
    bed.release().await.unwrap();
}

#[tokio::test]
async fn a_controller_that_is_not_there_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let bed = Bed::new(address, "controller.example", &Authority::new());
    let error = bed.release().await.unwrap_err().to_string();
    assert_eq!(
        error,
        format!("controller at {address} cannot be reached: Connection refused (os error 111)")
    );
}

#[tokio::test]
async fn replicas_that_are_away_or_say_nothing_do_not_keep_us_from_the_one_that_serves() {
    let authority = Authority::new();
    let (address, _) = serve(authority.server("controller.example")).await;
    let bed = Bed::new(address, "controller.example", &authority);
    let config = config(bed.dir.path(), address, "controller.example");
    let reach = async |addresses: &[SocketAddr]| {
        let tls = tls::client_config(&config).unwrap().into();
        tls::first_to_answer(addresses.iter().copied(), tls, config.server_name.clone()).await
    };
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = [silent.local_addr().unwrap(); 3];
    let away = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let [one, two, three] = silent;
    let reached = timeout(CONNECT, reach(&[one, away, two, three, address])).await.unwrap().unwrap();
    assert_eq!(reached.get_ref().0.peer_addr().unwrap(), address);
    assert_eq!(reach(&[away, away]).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(reach(&[]).await.unwrap_err().to_string(), "its name has no address");
}

#[test]
fn a_call_on_a_connection_that_was_cut_fails_within_seconds() {
    let test = async || {
        let authority = Authority::new();
        let (address, _) = serve(authority.server("controller.example")).await;
        let bed = Bed::new(address, "controller.example", &authority);
        bed.release().await.unwrap();
        loopback("down");
        let error = timeout(tls::ARRIVAL + Duration::from_secs(2), bed.release()).await.unwrap().unwrap_err();
        assert!(matches!(error, CallError::Unreachable { .. }), "{error}");
        loopback("up");
        bed.release().await.unwrap();
    };
    let in_own_network = move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("the tests must run as root");
        loopback("up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    };
    std::thread::spawn(in_own_network).join().unwrap();
}

/// In the network of this thread.
fn loopback(state: &str) {
    let set = std::process::Command::new("ip").args(["link", "set", "lo", state]).status().unwrap();
    assert!(set.success());
}

#[tokio::test]
async fn fewer_outcomes_than_volumes_or_renew_dates_than_tokens_are_no_answer() {
    let authority = Authority::new();
    let (address, _) = serve(authority.server("controller.example")).await;
    let bed = Bed::new(address, "controller.example", &authority);
    let token = wire::Token { identifier: vec![1], ..wire::Token::default() };
    let renewal = || Renewal { tokens: vec![token.clone()], ..Renewal::default() };
    let outcomes = bed.client.renew(vec![renewal()]).await.unwrap();
    let error = outcomes.into_iter().next().unwrap().unwrap_err().to_string();
    assert!(error.ends_with("gave an answer without as many renew dates as there are tokens"), "{error}");
    let error = bed.client.renew(vec![renewal(), renewal()]).await.unwrap_err().to_string();
    assert!(error.ends_with("gave an answer without as many outcomes as there are volumes"), "{error}");
}

#[tokio::test]
async fn what_the_controller_refuses_is_in_its_own_words() {
    let authority = Authority::new();
    let (address, _) = serve(authority.server("controller.example")).await;
    let bed = Bed::new(address, "controller.example", &authority);
    let error =
        bed.client.issue(&volume("uid"), &PodToken("jwt".to_owned().into()), None, &[]).await.unwrap_err();
    assert_eq!(error.to_string(), "not asked here");
    assert_eq!(bed.health.report().1, "[+] controller: ok\n", "it was reached");
}

#[tokio::test]
async fn shows_the_client_certificate_as_it_is_when_it_connects() {
    let (authority, clients, others) = (Authority::new(), Authority::new(), Authority::new());
    let (address, _) = serve(authority.server_for("controller.example", Some(&clients))).await;
    let dir = tempfile::tempdir().unwrap();
    let certificate =
        Some(ClientCertificate { certificate: dir.path().join("tls.crt"), key: dir.path().join("tls.key") });
    others.client(dir.path());
    let bed = Bed::showing(certificate, address, "controller.example", &authority);
    let error = bed.release().await.unwrap_err().to_string();
    assert!(error.contains("cannot be reached"), "{error}");
    clients.client(dir.path());
    bed.release().await.unwrap();
    let without = Bed::new(address, "controller.example", &authority);
    assert!(without.release().await.is_err(), "got in without a certificate");
}

#[test]
fn files_without_certificates_or_keys_are_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let address = "127.0.0.1:1".parse().unwrap();
    let mut config = config(dir.path(), address, "controller.example");
    let refused = |config: &ControllerConfig| tls::client_config(config).unwrap_err().to_string();
    assert!(refused(&config).contains("cannot be used"));
    fs::write(&config.ca, "no PEM at all").unwrap();
    assert!(refused(&config).contains("it holds no certificate"));
    fs::write(&config.ca, authority.0.pem()).unwrap();
    assert!(tls::client_config(&config).is_ok());
    let files =
        ClientCertificate { certificate: dir.path().join("tls.crt"), key: dir.path().join("tls.key") };
    config.certificate = Some(files.clone());
    assert!(refused(&config).starts_with("file of the client certificate"));
    authority.client(dir.path());
    assert!(tls::client_config(&config).is_ok());
    fs::write(&files.key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(refused(&config).starts_with("file of the client key"), "it is another's");
}

#[test]
fn debug_output_holds_no_password() {
    let token = wire::Token {
        identifier: vec![1],
        password: b"s3cret".to_vec(),
        kind: "kind".to_owned(),
        services: vec!["a:1".to_owned()],
    };
    let issued = wire::IssuedToken { token: Some(token), ..wire::IssuedToken::default() };
    let issued = Issued::parse(
        IssueResponse { tokens: vec![issued], ..IssueResponse::default() },
        Timestamp::UNIX_EPOCH,
    );
    assert_eq!(issued.file.tokens.len(), 1);
    assert!(!format!("{issued:?}").contains("s3cret"));
}
