//! The service as the node plugin sees it: over TLS, with an API server and a NameNode that do as they are told.

mod abuse;
mod issues;
mod releases;
mod renewals;
mod revocations;
mod streams;

use std::{fs, net::SocketAddr, sync::atomic::Ordering::SeqCst};

use hadoop::auth_to_local::Rules;
use hyper_util::rt::TokioIo;
use identity::{
    owners::OwnerKinds,
    seal::{JwkSet, Seal, SealingKey, Submission},
};
use process::tls::{self, Tls};
use prometheus_client::registry::Registry;
use proto::{
    CONTROLLER_AUDIENCE, DRIVER_NAME, ERROR_DOMAIN, POD_AUDIENCE, VolumeId,
    token::v1::{
        token_service_client::TokenServiceClient,
        token_service_server::{TokenService as _, TokenServiceServer},
    },
};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Code,
    transport::{Channel, Endpoint, Server, Uri},
};
use tonic_types::StatusExt;

use super::*;
use crate::{
    audit::recorded::Recorded,
    authorization::{
        ACCOUNT, NameRules, Namespaces, OnLostRight, Policy, ServiceAccount, Trust, UserRules, Verification,
    },
    caller::fake::FakeApiServer,
    cluster::Authority as _,
    cluster::scripted::{INTERVAL, ISSUED, Scripted},
    directory::Directory,
    issuance::{Bounds, tests::objects::Objects},
    pod_watch::tests::{pod as watched, watch_of},
    rate_limit::{self, RateLimits},
    seal::SealKeys,
};

/// When the pod was created.
const CREATED: i64 = 1_800_000_000;

/// Who is in which group.
const USERS: &str = "
users:
  etl: {groups: [staff, svc]}
  ads: {groups: [staff]}
  svc: {groups: [services]}
";

struct Bed {
    api_server: FakeApiServer,
    objects: Objects,
    name_node: Arc<Scripted>,
    service: Arc<TokenService>,
    recorded: Recorded,
    metrics: Metrics,
    work: TaskTracker,
    key: SealingKey,
    /// With the seal's public key, and the directory.
    folder: TempDir,
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

/// A pod as its submitter writes it.
fn pod() -> Value {
    json!({
        "metadata": {
            "name": "etl-0",
            "uid": "u-1",
            "creationTimestamp": "2027-01-15T08:00:00Z",
            "annotations": {},
        },
        "spec": {
            "nodeName": "n-1",
            "serviceAccountName": "runner",
            "containers": [],
            "volumes": [{"name": "token", "csi": {"driver": DRIVER_NAME, "readOnly": true}}],
        },
        "status": {"phase": "Pending"},
    })
}

fn sealed(key: &SealingKey, submitter: &str, mut pod: Value) -> Value {
    let submission = Submission {
        submitter: submitter.to_owned(),
        groups: vec!["staff".to_owned()],
        root_owner: None,
        time: CREATED,
    };
    let seal = Seal::of_pod(&submission, "jobs", &pod).unwrap();
    for (name, value) in key.annotations(&seal, &submission.groups).unwrap() {
        pod["metadata"]["annotations"][name] = json!(value);
    }
    pod
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
        let (api_server, key) = (FakeApiServer::default(), SealingKey::generate());
        {
            let mut answers = api_server.answers();
            answers.reviews = [
                ("driver-jwt".to_owned(), review(CONTROLLER_AUDIENCE, "system:driver", "driver-x", "u-d")),
                ("pod-jwt".to_owned(), review(POD_AUDIENCE, "jobs:runner", "etl-0", "u-1")),
            ]
            .into();
            answers.pods = [("jobs/etl-0".to_owned(), sealed(&key, "etl", pod()))].into();
        }
        let folder = TempDir::new().unwrap();
        let (keys, users) = (folder.path().join("keys.json"), folder.path().join("users.yaml"));
        fs::write(&keys, JwkSet { keys: vec![key.public_jwk()] }.to_json()).unwrap();
        fs::write(&users, USERS).unwrap();
        let directory = serde_json::from_value(json!({"file": users})).unwrap();
        let policy = Policy {
            driver: ServiceAccount { namespace: "system".to_owned(), name: "driver".to_owned() },
            clusters: ["main".to_owned()].into(),
            default_cluster: Some("main".to_owned()),
            trust: Trust::Seals { tolerance: 120 },
            names: NameRules::new(Rules::parse("DEFAULT", Some("R")).unwrap(), BTreeMap::new()),
            users: UserRules {
                allowed: None,
                allowed_groups: None,
                denied: ["hdfs".parse().unwrap()].into(),
                denied_groups: ["hdfs".to_owned()].into(),
                headless_group: ACCOUNT.to_owned(),
                on_lost_right: OnLostRight::Cancel,
            },
            namespaces: Namespaces::default(),
            verification: Verification::Eventual,
        };
        let (audit, recorded) = Recorded::audit();
        let metrics = Metrics::register(&mut Registry::default(), ["main"]);
        let recheck = Duration::from_secs(900);
        let live = api_server.serve().await;
        let judge = Judge {
            owners: OwnerKinds::default(),
            seal_keys: Some(Arc::new(SealKeys::load(keys).unwrap())),
            nonces: Judge::nonces(policy.trust, recheck),
            directory: Some(Directory::open(directory).unwrap()),
            pods: watch_of([]),
            disagreements: Disagreements::default(),
            limits: Arc::new(RateLimits::new(&rate_limit::Section::default(), metrics.clone())),
            policy,
            api_server: live.clone(),
        };
        let (work, objects) = (TaskTracker::new(), Objects::default());
        let ledger = objects.followed(work.clone()).await;
        let jobs = Arc::new(Jobs::new(ledger.clone(), live.clone()));
        let service = TokenService {
            judge,
            issuers: BTreeMap::new(),
            ledger,
            jobs,
            audit,
            metrics: metrics.clone(),
            events: Events::new(live.client(), "test".to_owned()).0,
            recheck,
            strangers: Strangers::default(),
            work: work.clone(),
        };
        let (name_node, service) = (Arc::default(), Arc::new(service));
        let mut bed = Self { api_server, objects, name_node, service, recorded, metrics, work, key, folder };
        bed.name_node(Scripted::default());
        bed
    }

    fn name_node(&mut self, scripted: Scripted) {
        self.name_node = Arc::new(scripted);
        let audit = self.service.audit.clone();
        let issuer = Issuer::new(
            "main".to_owned(),
            self.name_node.clone(),
            "csi".to_owned(),
            Bounds { calls: 4, queue: 4 },
            self.service.ledger.clone(),
            self.work.clone(),
            audit,
            self.metrics.clone(),
        );
        self.change(|service| service.issuers = [("main".to_owned(), Arc::new(issuer))].into());
    }

    fn change(&mut self, change: impl FnOnce(&mut TokenService)) {
        change(Arc::get_mut(&mut self.service).unwrap());
    }

    /// The pod as the API server has it.
    fn pod(&self, change: impl FnOnce(&mut Value)) {
        change(self.api_server.answers().pods.get_mut("jobs/etl-0").unwrap());
    }

    /// The pod as somebody submitted and nobody changed it.
    fn submitted(&self, submitter: &str, change: impl FnOnce(&mut Value)) {
        let mut pod = pod();
        change(&mut pod);
        self.pod(|live| *live = sealed(&self.key, submitter, pod));
    }

    /// Action, decision and reason of each audit record.
    fn decisions(&self) -> Vec<[String; 3]> {
        let text = |record: &Value, key: &str| record[key].as_str().unwrap_or_default().to_owned();
        let records = self.recorded.records();
        records.iter().map(|record| ["action", "decision", "reason"].map(|key| text(record, key))).collect()
    }

    /// A node plugin's connection, TLS and all.
    async fn client(&self) -> TokenServiceClient<Channel> {
        let generated = rcgen::generate_simple_self_signed(["controller.test".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (chain, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
        fs::write(&chain, generated.cert.pem()).unwrap();
        fs::write(&key, generated.signing_key.serialize_pem()).unwrap();
        let files = serde_json::from_value(json!({"certificate": chain, "key": key})).unwrap();
        let certificate = Arc::new(Tls::load(files, tls::HTTP_2).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = tls::connections(listener, certificate, 8, CancellationToken::new());
        let server = TokenServiceServer::new(Calls(self.service.clone()));
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

/// The outcome of a request for one renewal.
fn renewal(mut answer: wire::RenewResponse) -> Result<wire::Renewed, wire::NotRenewed> {
    match answer.outcomes.pop().and_then(|outcome| outcome.outcome) {
        Some(wire::renewal_outcome::Outcome::Renewed(renewed)) => Ok(renewed),
        Some(wire::renewal_outcome::Outcome::NotRenewed(not_renewed)) => Err(not_renewed),
        None => panic!("no outcome"),
    }
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
    assert_eq!((answer.check_after_seconds, answer.unsealed), (900, false));
    assert_eq!(bed.api_server.answers().requests, 3, "requests to the API server for one volume");

    let renew = wire::Renewal {
        volume: Some(volume()),
        pod_token: "pod-jwt".to_owned(),
        cluster: answer.cluster.clone(),
        tokens: vec![token.clone()],
    };
    let renewed =
        client.renew(from_driver(wire::RenewRequest { renewals: vec![renew] })).await.unwrap().into_inner();
    assert_eq!(renewal(renewed).unwrap().renew_dates, [ISSUED + INTERVAL]);
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
    bed.name_node(Scripted { delivery: Some(delivery.clone()), ..Scripted::default() });
    let calls = Calls(bed.service.clone());
    let call = tokio::spawn(async move { calls.issue(issue()).await });
    while bed.name_node.gets.load(SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    delivery.notify_one();
    bed.name_node.cancellation().await;
    for expected in [record_of("issue", "failed", "CALLER_GONE"), record_of("cancel", "granted", "")] {
        while !bed.decisions().contains(&expected) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn check(token: &wire::Token, addresses: Option<wire::ObservedAddresses>) -> Request<wire::CheckRequest> {
    from_driver(wire::CheckRequest {
        volume: Some(volume()),
        pod_token: "pod-jwt".to_owned(),
        cluster: "main".to_owned(),
        tokens: vec![wire::TokenIdentifier {
            identifier: token.identifier.clone(),
            kind: token.kind.clone(),
        }],
        addresses,
    })
}

fn seen(address: &str) -> Option<wire::ObservedAddresses> {
    let addresses = vec![address.to_owned()];
    Some(wire::ObservedAddresses { host_network: false, addresses, unclear: String::new() })
}

/// The token that the pod gets.
async fn token_of(client: &mut TokenServiceClient<Channel>) -> wire::Token {
    client.issue(issue()).await.unwrap().into_inner().tokens[0].token.clone().unwrap()
}

#[track_caller]
fn kept(answer: Response<wire::CheckResponse>) -> wire::Kept {
    match answer.into_inner().outcome.unwrap() {
        wire::check_response::Outcome::Kept(kept) => kept,
        wire::check_response::Outcome::Revoked(revoked) => panic!("{revoked:?}"),
    }
}

#[track_caller]
fn revoked(answer: Response<wire::CheckResponse>) -> String {
    match answer.into_inner().outcome.unwrap() {
        wire::check_response::Outcome::Revoked(revoked) => revoked.reason,
        wire::check_response::Outcome::Kept(kept) => panic!("{kept:?}"),
    }
}

fn record_of(action: &str, decision: &str, reason: &str) -> [String; 3] {
    [action, decision, reason].map(str::to_owned)
}

#[tokio::test]
async fn a_pod_that_is_still_entitled_keeps_its_tokens() {
    let bed = Bed::new().await;
    let mut client = bed.client().await;
    let token = token_of(&mut client).await;
    let kept = kept(client.check(check(&token, None)).await.unwrap());
    assert_eq!(kept, wire::Kept { check_after_seconds: 900, addresses_verified: false });
    assert_eq!(bed.decisions(), [record_of("issue", "granted", ""), record_of("check", "granted", "")]);
    assert_eq!(bed.name_node.cancelled(), 0);
}

#[tokio::test]
async fn whoever_leaves_the_group_of_a_headless_account_loses_its_token() {
    let bed = Bed::new().await;
    let mut client = bed.client().await;
    bed.submitted("etl", |pod| {
        pod["spec"]["volumes"][0]["csi"]["volumeAttributes"] = json!({"doAs": "svc"});
    });
    let answer = client.issue(issue()).await.unwrap().into_inner();
    assert_eq!(answer.user, "svc");
    let token = answer.tokens[0].token.clone().unwrap();
    kept(client.check(check(&token, None)).await.unwrap());

    fs::write(bed.folder.path().join("users.yaml"), "users: {etl: {groups: [staff]}, svc: {}}").unwrap();
    tokio::time::sleep(Duration::from_millis(1_100)).await; // the file counts a second later
    assert_eq!(revoked(client.check(check(&token, None)).await.unwrap()), "DO_AS_NOT_MEMBER");
    assert_eq!(*bed.name_node.cancelled.lock().unwrap(), [token.identifier]);
    let decisions = bed.decisions();
    assert_eq!(
        decisions[2..],
        [record_of("revoke", "granted", ""), record_of("check", "refused", "DO_AS_NOT_MEMBER")]
    );
    let record = bed.recorded.records().pop().unwrap();
    assert_eq!(
        (&record["submitter"], &record["mappedUser"], &record["user"]),
        (&json!("etl"), &json!("etl"), &json!("svc"))
    );
}

#[tokio::test]
async fn tokens_of_others_are_not_taken_away_together_with_a_pods_own() {
    let bed = Bed::new().await;
    let foreign = bed.name_node.get(&"ads".parse().unwrap(), "csi", "").await.unwrap();
    let foreign = wire::Token { identifier: foreign.identifier, kind: foreign.kind, ..Default::default() };
    let mut client = bed.client().await;
    let own = bed.name_node.get(&"etl".parse().unwrap(), "csi", "").await.unwrap();
    let both = |foreign: &wire::Token| {
        let mut request = check(foreign, None);
        let own = wire::TokenIdentifier { identifier: own.identifier.clone(), kind: own.kind.clone() };
        request.get_mut().tokens.push(own);
        request
    };
    bed.pod(|pod| pod["metadata"]["annotations"]["hadoop-token.csi/submitter"] = json!("hdfs"));
    assert_eq!(revoked(client.check(both(&foreign)).await.unwrap()), "SUBMITTER_CHANGED");
    let cancelled = bed.name_node.cancelled.lock().unwrap().clone();
    assert_eq!(cancelled, std::slice::from_ref(&own.identifier));
    assert_eq!(
        bed.decisions(),
        [
            record_of("revoke", "refused", "TOKEN_OF_ANOTHER_USER"),
            record_of("revoke", "granted", ""),
            record_of("check", "refused", "SUBMITTER_CHANGED"),
        ]
    );
    let numbers: Vec<_> = bed.recorded.records().iter().map(|record| record["tokens"].clone()).collect();
    assert_eq!(
        (numbers[0][0]["sequenceNumber"].as_u64(), numbers[0].as_array().map(Vec::len)),
        (Some(0), Some(1))
    );
    assert_eq!(
        (numbers[1][0]["sequenceNumber"].as_u64(), numbers[1].as_array().map(Vec::len)),
        (Some(1), Some(1))
    );
}

#[tokio::test]
async fn a_pod_whose_user_is_another_today_loses_the_token_of_the_former() {
    let bed = Bed::new().await;
    let mut client = bed.client().await;
    let token = token_of(&mut client).await;
    bed.submitted("ads", |_| {});
    assert_eq!(revoked(client.check(check(&token, None)).await.unwrap()), "TOKEN_OF_ANOTHER_USER");
    // The node plugin wipes it, and gives it back: the controller cannot tell whose it is.
    assert_eq!(bed.name_node.cancelled(), 0);
    let decisions = bed.decisions();
    assert_eq!(
        decisions[1..],
        [
            record_of("revoke", "refused", "TOKEN_OF_ANOTHER_USER"),
            record_of("check", "refused", "TOKEN_OF_ANOTHER_USER")
        ]
    );
}

#[tokio::test]
async fn a_check_that_cannot_be_decided_takes_nothing_away() {
    let bed = Bed::new().await;
    let mut client = bed.client().await;
    let token = token_of(&mut client).await;
    bed.api_server.answers().reviews.remove("pod-jwt");
    let status = client.check(check(&token, None)).await.unwrap_err();
    assert_eq!(reason(&status), "POD_TOKEN_REJECTED");
    assert_eq!(bed.name_node.cancelled(), 0);
}

#[tokio::test]
async fn a_revocation_is_answered_only_when_the_tokens_are_cancelled() {
    let bed = Bed::new().await;
    let mut client = bed.client().await;
    let token = token_of(&mut client).await;
    bed.pod(|pod| pod["status"]["phase"] = json!("Failed"));
    bed.name_node.cancel_errors.lock().unwrap().push_back(crate::cluster::scripted::denied());
    let status = client.check(check(&token, None)).await.unwrap_err();
    assert_eq!(reason(&status), "TOKENS_NOT_CANCELLED");
    assert_eq!(revoked(client.check(check(&token, None)).await.unwrap()), "POD_FINISHED");
    assert_eq!(*bed.name_node.cancelled.lock().unwrap(), [token.identifier]);
}

#[tokio::test]
async fn addresses_are_compared_with_what_the_api_server_has() {
    let bed = Bed::new().await;
    let mut client = bed.client().await;
    let token = token_of(&mut client).await;
    let status = client.check(check(&token, seen("10.0.0.7"))).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "ADDRESS_UNKNOWN"));
    bed.pod(|pod| pod["status"]["podIPs"] = json!([{"ip": "10.0.0.7"}]));
    assert!(kept(client.check(check(&token, seen("10.0.0.7"))).await.unwrap()).addresses_verified);
    let status = client.check(check(&token, seen("10.0.0.8"))).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "ADDRESS_CHANGING"));
    assert_eq!(bed.name_node.cancelled(), 0);
}

#[tokio::test]
async fn a_pod_whose_address_another_living_pod_has_loses_its_tokens() {
    let mut bed = Bed::new().await;
    bed.change(|service| service.judge.pods = watch_of([watched("u-2").with("10.0.0.7")]));
    let mut client = bed.client().await;
    let token = token_of(&mut client).await;
    bed.pod(|pod| pod["status"]["podIPs"] = json!([{"ip": "10.0.0.7"}]));
    // The watch is late: that pod is gone.
    assert!(kept(client.check(check(&token, seen("10.0.0.7"))).await.unwrap()).addresses_verified);
    let mut other = pod();
    (other["metadata"]["uid"], other["status"]["podIPs"]) = (json!("u-2"), json!([{"ip": "10.0.0.7"}]));
    bed.api_server.answers().pods.insert("jobs/pod-u-2".to_owned(), other);
    let answer = client.check(check(&token, seen("10.0.0.7"))).await.unwrap();
    assert_eq!(revoked(answer), "ADDRESS_OF_ANOTHER_POD");
    assert_eq!(bed.name_node.cancelled(), 1);
    assert!(bed.decisions().contains(&record_of("verify", "refused", "ADDRESS_OF_ANOTHER_POD")));
}

#[tokio::test]
async fn where_it_is_strict_there_is_no_token_before_the_addresses_are_verified() {
    let mut bed = Bed::new().await;
    bed.change(|service| service.judge.policy.verification = Verification::Strict);
    let mut client = bed.client().await;
    let answer = client.issue(issue()).await.unwrap().into_inner();
    assert_eq!((answer.user.as_str(), answer.tokens.len()), ("etl", 0));
    assert_eq!(answer.address_verification(), wire::AddressVerification::Strict);
    assert_eq!(bed.name_node.gets.load(SeqCst), 0);

    bed.pod(|pod| pod["status"]["podIPs"] = json!([{"ip": "10.0.0.7"}]));
    let again = || {
        let mut request = issue();
        request.get_mut().addresses = seen("10.0.0.7");
        request
    };
    assert_eq!(client.issue(again()).await.unwrap().into_inner().tokens.len(), 1);
    bed.pod(|pod| pod["metadata"]["annotations"] = json!({}));
    assert_eq!(reason(&client.issue(again()).await.unwrap_err()), "SEAL_MISSING");
}

#[tokio::test]
async fn a_seal_serves_one_pod_only() {
    let bed = Bed::new().await;
    let mut client = bed.client().await;
    token_of(&mut client).await;
    // Another pod of the same name, with the annotations of the first, created soon after.
    bed.pod(|pod| pod["metadata"]["uid"] = json!("u-2"));
    bed.api_server
        .answers()
        .reviews
        .insert("pod-jwt".to_owned(), review(POD_AUDIENCE, "jobs:runner", "etl-0", "u-2"));
    let mut request = issue();
    let volume = request.get_mut().volume.as_mut().unwrap();
    volume.id = VolumeId::of("u-2", "token").to_string();
    volume.pod.as_mut().unwrap().uid = "u-2".to_owned();
    assert_eq!(reason(&client.issue(request).await.unwrap_err()), "SEAL_REUSED");
}

#[tokio::test]
async fn a_token_that_cannot_be_recorded_is_not_handed_over() {
    let bed = Bed::new().await;
    let mut client = bed.client().await;
    bed.recorded.fill(true);
    let status = client.issue(issue()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "AUDIT_UNWRITABLE"));
    bed.name_node.cancellation().await;
    let gets = bed.name_node.gets.load(SeqCst);
    assert_eq!(reason(&client.issue(issue()).await.unwrap_err()), "AUDIT_UNWRITABLE");
    assert_eq!(bed.name_node.gets.load(SeqCst), gets, "asked of Hadoop while nothing could be recorded");
}

#[tokio::test]
async fn every_call_is_recorded_with_all_that_is_known() {
    let bed = Bed::new().await;
    let mut client = bed.client().await;
    token_of(&mut client).await;
    let record = bed.recorded.records().pop().unwrap();
    for (key, value) in [
        ("submitter", json!("etl")),
        ("groups", json!(["staff"])),
        ("mappedUser", json!("etl")),
        ("user", json!("etl")),
        ("namespace", json!("jobs")),
        ("pod", json!("etl-0")),
        ("uid", json!("u-1")),
        ("volume", json!("token")),
        ("node", json!("n-1")),
        ("cluster", json!("main")),
        ("tokens", json!([{"sequenceNumber": 0, "maxDate": ISSUED + crate::cluster::scripted::LIFETIME}])),
    ] {
        assert_eq!(record[key], value, "{key}");
    }
    client.issue(wire::IssueRequest { volume: Some(volume()), ..Default::default() }).await.unwrap_err();
    assert_eq!(bed.decisions()[1], record_of("issue", "refused", "DRIVER_TOKEN_MISSING"));
}

#[tokio::test]
async fn one_who_asks_too_often_is_told_to_wait() {
    let mut bed = Bed::new().await;
    let rates = json!({"user": {"perSecond": 1, "burst": 1}});
    let limits = RateLimits::new(&serde_json::from_value(rates).unwrap(), bed.metrics.clone());
    bed.change(|service| service.judge.limits = Arc::new(limits));
    let mut client = bed.client().await;
    token_of(&mut client).await;
    let status = client.issue(issue()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "RATE_LIMITED"));
    assert_eq!(bed.name_node.gets.load(SeqCst), 1);
}
