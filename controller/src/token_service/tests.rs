//! The service as the node plugin sees it: over TLS, with an API server and a NameNode that do as they are told.

use std::{fs, net::SocketAddr, sync::atomic::Ordering::SeqCst};

use hyper_util::rt::TokioIo;
use proto::{
    CONTROLLER_AUDIENCE, DRIVER_NAME, ERROR_DOMAIN, POD_AUDIENCE, USER_ANNOTATION, VolumeId,
    token::v1::{
        token_service_client::TokenServiceClient,
        token_service_server::{TokenService as _, TokenServiceServer},
    },
};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Code,
    transport::{Channel, Endpoint, Server, Uri},
};
use tonic_types::StatusExt;

use super::*;
use crate::{
    authorization::ServiceAccount,
    caller::fake::FakeApiServer,
    cluster::scripted::{INTERVAL, ISSUED, Scripted},
    tls::{self, Certificate},
};

struct Bed {
    api_server: FakeApiServer,
    name_node: Arc<Scripted>,
    service: Arc<TokenService>,
    work: TaskTracker,
}

fn review(audience: &str, account: &str, pod: &str, uid: &str) -> Value {
    json!({
        "authenticated": true,
        "audiences": [audience],
        "user": {
            "username": format!("system:serviceaccount:{account}"),
            "extra": {
                "authentication.kubernetes.io/pod-name": [pod],
                "authentication.kubernetes.io/pod-uid": [uid],
                "authentication.kubernetes.io/node-name": ["n-1"],
            },
        },
    })
}

fn pod() -> Value {
    json!({
        "metadata": {"uid": "u-1", "annotations": {USER_ANNOTATION: "etl"}},
        "spec": {
            "nodeName": "n-1",
            "serviceAccountName": "runner",
            "containers": [],
            "volumes": [{"name": "token", "csi": {"driver": DRIVER_NAME, "readOnly": true}}],
        },
        "status": {"phase": "Pending"},
    })
}

fn volume() -> wire::Volume {
    wire::Volume {
        id: VolumeId::of("u-1", "token").to_string(),
        name: "token".to_owned(),
        pod: Some(wire::Pod {
            namespace: "jobs".to_owned(),
            name: "etl-0".to_owned(),
            uid: "u-1".to_owned(),
        }),
    }
}

impl Bed {
    /// Pod jobs/etl-0 may have a token of etl, and the node plugin is who it should be.
    async fn new() -> Self {
        let (api_server, name_node, work) =
            (FakeApiServer::default(), Arc::new(Scripted::default()), TaskTracker::new());
        {
            let mut answers = api_server.answers();
            answers.reviews = [
                ("driver-jwt".to_owned(), review(CONTROLLER_AUDIENCE, "system:driver", "driver-x", "u-d")),
                ("pod-jwt".to_owned(), review(POD_AUDIENCE, "jobs:runner", "etl-0", "u-1")),
            ]
            .into();
            answers.pods = [("jobs/etl-0".to_owned(), pod())].into();
        }
        let permits = Arc::new(Semaphore::new(4));
        let issuer =
            Issuer::new("main".to_owned(), name_node.clone(), "csi".to_owned(), permits, work.clone());
        let service = TokenService {
            api_server: api_server.serve().await,
            policy: Policy {
                driver: ServiceAccount { namespace: "system".to_owned(), name: "driver".to_owned() },
                clusters: ["main".to_owned()].into(),
                default_cluster: Some("main".to_owned()),
                denied_users: ["hdfs".to_owned()].into(),
            },
            issuers: [("main".to_owned(), Arc::new(issuer))].into(),
        };
        Self { api_server, name_node, service: Arc::new(service), work }
    }

    /// A node plugin's connection, TLS and all.
    async fn client(&self) -> TokenServiceClient<Channel> {
        let generated = rcgen::generate_simple_self_signed(["controller.test".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (chain, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
        fs::write(&chain, generated.cert.pem()).unwrap();
        fs::write(&key, generated.signing_key.serialize_pem()).unwrap();
        let certificate = Arc::new(Certificate::load(chain, key).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections =
            tls::connections(listener, certificate.server_config(), 8, CancellationToken::new());
        let server = TokenServiceServer::from_arc(self.service.clone());
        tokio::spawn(Server::builder().add_service(server).serve_with_incoming(connections));

        let mut roots = RootCertStore::empty();
        roots.add(generated.cert.der().clone()).unwrap();
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        TokenServiceClient::new(connect(address, TlsConnector::from(Arc::new(config))).await)
    }
}

async fn connect(address: SocketAddr, tls: TlsConnector) -> Channel {
    let connector = tower::service_fn(move |_: Uri| {
        let tls = tls.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::try_from("controller.test").unwrap();
            std::io::Result::Ok(TokioIo::new(tls.connect(name, stream).await?))
        }
    });
    Endpoint::from_static("http://controller.test").connect_with_connector(connector).await.unwrap()
}

fn from_driver<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", "Bearer driver-jwt".parse().unwrap());
    request
}

fn issue() -> Request<wire::IssueRequest> {
    from_driver(wire::IssueRequest {
        volume: Some(volume()),
        pod_token: "pod-jwt".to_owned(),
        ..Default::default()
    })
}

fn reason(status: &Status) -> String {
    let info = status.get_details_error_info().expect("no ErrorInfo");
    assert_eq!(info.domain, ERROR_DOMAIN);
    info.reason
}

#[tokio::test]
async fn a_volume_gets_renews_and_releases_its_token() {
    let bed = Bed::new().await;
    let mut client = bed.client().await;
    let answer = client.issue(issue()).await.unwrap().into_inner();
    assert_eq!((answer.user.as_str(), answer.cluster.as_str()), ("etl", "main"));
    let issued = answer.tokens[0].clone();
    assert_eq!((issued.issue_date, issued.renew_date), (ISSUED, ISSUED + INTERVAL));
    let token = issued.token.unwrap();
    assert_eq!(token.services, ["10.0.0.1:8020", "nn1:8020"]);
    assert_eq!(token.password, b"password");
    assert_eq!(bed.api_server.answers().requests, 3, "requests to the API server for one volume");

    let renew = wire::RenewRequest {
        volume: Some(volume()),
        pod_token: "pod-jwt".to_owned(),
        cluster: answer.cluster.clone(),
        tokens: vec![token.clone()],
    };
    let renewed = client.renew(from_driver(renew)).await.unwrap().into_inner();
    assert_eq!(renewed.renew_dates, [ISSUED + INTERVAL]);
    assert_eq!(bed.name_node.cancelled(), 0);

    let release = wire::ReleaseRequest {
        volume: Some(volume()),
        cluster: answer.cluster,
        tokens: vec![wire::TokenIdentifier { identifier: token.identifier.clone(), kind: token.kind }],
    };
    client.release(from_driver(release)).await.unwrap();
    assert_eq!(*bed.name_node.cancelled.lock().unwrap(), [token.identifier]);
}

#[tokio::test]
async fn nobody_but_the_node_plugin_can_cause_work() {
    let bed = Bed::new().await;
    let mut client = bed.client().await;
    let anonymous = client
        .issue(wire::IssueRequest {
            volume: Some(volume()),
            pod_token: "pod-jwt".to_owned(),
            ..Default::default()
        })
        .await;
    let status = anonymous.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unauthenticated, "DRIVER_TOKEN_MISSING"));
    assert_eq!(bed.api_server.answers().requests, 0);

    let mut request = issue();
    request.metadata_mut().insert("authorization", "Bearer pod-jwt".parse().unwrap());
    let status = client.issue(request).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unauthenticated, "DRIVER_TOKEN_REJECTED"));
    assert_eq!(bed.api_server.answers().requests, 1);

    let release =
        wire::ReleaseRequest { volume: Some(volume()), cluster: "main".to_owned(), tokens: Vec::new() };
    let status = client.release(release).await.unwrap_err();
    assert_eq!(reason(&status), "DRIVER_TOKEN_MISSING");
    assert_eq!(bed.name_node.gets.load(SeqCst), 0);
}

#[tokio::test]
async fn the_drivers_token_is_no_pods_token() {
    let bed = Bed::new().await;
    let mut client = bed.client().await;
    let request = wire::IssueRequest {
        volume: Some(volume()),
        pod_token: "driver-jwt".to_owned(),
        ..Default::default()
    };
    let status = client.issue(from_driver(request)).await.unwrap_err();
    assert_eq!(reason(&status), "POD_TOKEN_REJECTED");
    let request =
        wire::IssueRequest { volume: Some(volume()), pod_token: String::new(), ..Default::default() };
    let status = client.issue(from_driver(request)).await.unwrap_err();
    assert_eq!(reason(&status), "POD_TOKEN_MISSING");
    assert_eq!(bed.name_node.gets.load(SeqCst), 0);
}

#[tokio::test]
async fn a_refused_pod_gets_no_token() {
    let bed = Bed::new().await;
    bed.api_server.answers().pods.clear();
    let status = bed.client().await.issue(issue()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "POD_NOT_FOUND"));
    assert_eq!(bed.name_node.gets.load(SeqCst), 0);
}

#[tokio::test]
async fn a_call_that_is_dropped_half_way_leaves_no_token() {
    let delivery = Arc::new(tokio::sync::Notify::new());
    let mut bed = Bed::new().await;
    let name_node = Arc::new(Scripted { delivery: Some(delivery.clone()), ..Scripted::default() });
    let permits = Arc::new(Semaphore::new(4));
    let issuer =
        Issuer::new("main".to_owned(), name_node.clone(), "csi".to_owned(), permits, bed.work.clone());
    let service = Arc::get_mut(&mut bed.service).unwrap();
    service.issuers.insert("main".to_owned(), Arc::new(issuer));

    let service = bed.service.clone();
    let call = tokio::spawn(async move { service.issue(issue()).await });
    while name_node.gets.load(SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    delivery.notify_one();
    name_node.cancellation().await;
}
