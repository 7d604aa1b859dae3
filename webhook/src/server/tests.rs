//! Real requests over TLS on the loopback interface, in both versions of HTTP.

use std::{collections::BTreeMap, net::SocketAddr, sync::Mutex};

use arc_swap::ArcSwap;
use axum::http::Request as HttpRequest;
use base64::{Engine, engine::general_purpose::STANDARD};
use hyper_util::rt::{TokioExecutor, TokioIo};
use json_patch::{AddOperation, PatchOperation, jsonptr::PointerBuf};
use prometheus_client::{encoding::text::encode, registry::Registry};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{PrivateKeyDer, ServerName},
};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client};

use super::*;
use crate::admission::Allowed;

const TIME_LIMIT: Duration = Duration::from_secs(2);

/// Decides as a test says, and remembers what it was asked.
struct Scripted<F> {
    decide: F,
    asked: Mutex<Vec<Question>>,
}

impl<F, R> Reviewer for Scripted<F>
where
    F: Fn(Question) -> R + Send + Sync + 'static,
    R: Future<Output = Verdict> + Send + 'static,
{
    fn review(&self, question: Question) -> Review<'_> {
        self.asked.lock().unwrap().push(question.clone());
        Box::pin((self.decide)(question))
    }
}

fn scripted<F, R>(decide: F) -> Arc<Scripted<F>>
where
    F: Fn(Question) -> R + Send + Sync + 'static,
    R: Future<Output = Verdict> + Send + 'static,
{
    Arc::new(Scripted { decide, asked: Mutex::default() })
}

fn allow() -> Verdict {
    Verdict::Allowed(Allowed::default())
}

struct Door {
    address: SocketAddr,
    trusted: RootCertStore,
    registry: Registry,
    leaving: CancellationToken,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Door {
    async fn open(mutate: Arc<dyn Reviewer>, limits: Limits) -> Self {
        let generated = rcgen::generate_simple_self_signed(["webhook.test".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(generated.signing_key.serialize_der()).unwrap();
        let config =
            process::tls::server(vec![generated.cert.der().clone()], key, None, process::tls::HTTP).unwrap();
        let identity: Arc<ArcSwap<ServerConfig>> = Arc::new(ArcSwap::from_pointee(config));
        let mut trusted = RootCertStore::empty();
        trusted.add(generated.cert.der().clone()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let connections = process::tls::connections(listener, identity, limits.connections, stop.clone());
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let validate = scripted(|_| async {
            Verdict::Denied(Denial { reason: "VALIDATED", message: "not this".to_owned(), code: 403 })
        });
        let server = Server::new(mutate, validate, &limits, TIME_LIMIT, metrics);
        let leaving = CancellationToken::new();
        let serving = tokio::spawn(server.serve(connections, leaving.clone(), stop.clone()));
        Self { address, trusted, registry, leaving, stop, serving }
    }

    async fn stream(&self, alpn: &[u8]) -> client::TlsStream<TcpStream> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.trusted.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("webhook.test").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    /// Posts over HTTP/1.1.
    async fn post(&self, path: &str, body: impl Into<Vec<u8>>) -> (StatusCode, Value) {
        self.post_as("application/json", path, body.into()).await
    }

    async fn post_as(&self, kind: &str, path: &str, body: Vec<u8>) -> (StatusCode, Value) {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(self.stream(b"http/1.1").await))
                .await
                .unwrap();
        tokio::spawn(connection);
        read(sender.send_request(request(kind, path, body)).await.unwrap()).await
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        text
    }
}

fn request(kind: &str, path: &str, body: Vec<u8>) -> HttpRequest<axum::body::Body> {
    HttpRequest::post(path)
        .header("content-type", kind)
        .header("host", "webhook.test")
        .body(body.into())
        .unwrap()
}

async fn read(response: axum::http::Response<hyper::body::Incoming>) -> (StatusCode, Value) {
    let (head, body) = response.into_parts();
    let body = axum::body::to_bytes(axum::body::Body::new(body), 1 << 20).await.unwrap();
    let body = serde_json::from_slice(&body).unwrap_or_else(|_| json!(String::from_utf8_lossy(&body)));
    (head.status, body)
}

fn question(object: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "6c1e",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "name": "reader",
            "namespace": "team",
            "operation": "CREATE",
            "userInfo": {"username": "etl", "groups": ["system:authenticated"]},
            "object": object,
            "oldObject": null,
            "dryRun": false,
        },
    })
}

fn pod() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "reader"}, "ofTomorrow": [1, {"deep": null}]})
}

fn body(question: &Value) -> Vec<u8> {
    serde_json::to_vec(question).unwrap()
}

#[tokio::test]
async fn a_patch_reaches_the_api_server_with_all_that_belongs_to_it() {
    let patch = vec![PatchOperation::Add(AddOperation {
        path: PointerBuf::from_tokens(["metadata", "annotations"]),
        value: json!({"a/b": "c"}),
    })];
    let reviewer = scripted(move |_| {
        let verdict = Verdict::Allowed(Allowed {
            patch: patch.clone(),
            audit: BTreeMap::from([("submitter", "etl".to_owned())]),
            warnings: vec!["careful".to_owned()],
        });
        async { verdict }
    });
    let door = Door::open(reviewer.clone(), Limits::default()).await;
    let (status, answer) = door.post("/mutate", body(&question(&pod()))).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        (&answer["apiVersion"], &answer["kind"]),
        (&json!("admission.k8s.io/v1"), &json!("AdmissionReview"))
    );
    let response = &answer["response"];
    assert_eq!(response["uid"], "6c1e");
    assert_eq!(response["allowed"], true);
    assert_eq!(response["patchType"], "JSONPatch");
    let patch = STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
    let patch: Value = serde_json::from_slice(&patch).unwrap();
    assert_eq!(patch, json!([{"op": "add", "path": "/metadata/annotations", "value": {"a/b": "c"}}]));
    assert_eq!(response["auditAnnotations"], json!({"submitter": "etl"}));
    assert_eq!(response["warnings"], json!(["careful"]));

    let asked = reviewer.asked.lock().unwrap();
    let [question] = asked.as_slice() else { panic!("asked {} times", asked.len()) };
    assert_eq!(question.object, pod(), "what this build does not know of was lost");
    assert_eq!(question.old_object, Value::Null);
    assert_eq!(question.request.user_info.username.as_deref(), Some("etl"));
    assert!(question.request.object.is_none());
    let counted = r#"reviews_total{webhook="mutate",operation="CREATE",decision="patched",reason=""} 1"#;
    assert!(door.metrics().contains(counted), "{}", door.metrics());
}

#[tokio::test]
async fn a_denial_says_why() {
    let door = Door::open(scripted(|_| async { allow() }), Limits::default()).await;
    let (status, answer) = door.post("/validate", body(&question(&pod()))).await;
    assert_eq!(status, StatusCode::OK, "the API server takes any other status for a failure of ours");
    assert_eq!(answer["response"]["allowed"], false);
    assert_eq!(
        answer["response"]["status"],
        json!({"status": "Failure", "code": 403, "reason": "VALIDATED", "message": "not this"})
    );
    let counted =
        r#"reviews_total{webhook="validate",operation="CREATE",decision="denied",reason="VALIDATED"} 1"#;
    assert!(door.metrics().contains(counted), "{}", door.metrics());
}

#[tokio::test]
async fn many_reviews_share_a_connection_of_http_2() {
    let door = Door::open(scripted(|_| async { allow() }), Limits::default()).await;
    let stream = door.stream(b"h2").await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut answers = JoinSet::new();
    for _ in 0..100 {
        let mut sender = sender.clone();
        let mut request = request("application/json", "/mutate", body(&question(&pod())));
        *request.uri_mut() = "https://webhook.test/mutate".parse().unwrap();
        request.headers_mut().remove("host");
        answers.spawn(async move { read(sender.send_request(request).await.unwrap()).await });
    }
    for (status, answer) in answers.join_all().await {
        assert_eq!((status, &answer["response"]["allowed"]), (StatusCode::OK, &json!(true)));
    }
    assert!(door.metrics().contains("in_flight 0"), "{}", door.metrics());
}

#[tokio::test]
async fn a_crash_is_a_denial_and_the_next_review_is_answered() {
    let reviewer = scripted(|question: Question| async move {
        assert_ne!(question.request.name, "reader", "wanted");
        allow()
    });
    let door = Door::open(reviewer, Limits::default()).await;
    let (status, answer) = door.post("/mutate", body(&question(&pod()))).await;
    assert_eq!(status, StatusCode::OK);
    let told = &answer["response"]["status"];
    assert_eq!((&told["reason"], &told["code"]), (&json!("REVIEW_CRASHED"), &json!(500)), "{answer}");
    let mut other = question(&pod());
    other["request"]["name"] = json!("other");
    assert_eq!(door.post("/mutate", body(&other)).await.1["response"]["allowed"], true);
    assert!(door.metrics().contains(r#"decision="denied",reason="REVIEW_CRASHED"} 1"#), "{}", door.metrics());
}

#[tokio::test]
async fn a_decision_that_does_not_come_in_time_is_a_denial() {
    let door = Door::open(scripted(|_| std::future::pending()), Limits::default()).await;
    let answer = timeout(TIME_LIMIT * 2, door.post("/mutate", body(&question(&pod())))).await.unwrap().1;
    let told = &answer["response"]["status"];
    assert_eq!((&told["reason"], &told["code"]), (&json!("REVIEW_TOO_SLOW"), &json!(504)), "{answer}");
}

#[tokio::test]
async fn what_is_no_review_is_turned_away() {
    let door = Door::open(scripted(|_| async { allow() }), Limits::default()).await;
    let mut another_version = question(&pod());
    another_version["apiVersion"] = json!("admission.k8s.io/v1beta1");
    let mut nameless = question(&pod());
    nameless["request"]["uid"] = json!("");
    let nested = "[".repeat(100_000);
    for nonsense in [
        b"".to_vec(),
        b"null".to_vec(),
        b"{\"apiVersion\"".to_vec(),
        b"\xff\xfe".to_vec(),
        body(&json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"})),
        body(&another_version),
        body(&nameless),
        nested.into_bytes(),
    ] {
        let (status, told) = door.post("/mutate", nonsense.clone()).await;
        let nonsense = String::from_utf8_lossy(&nonsense).chars().take(200).collect::<String>();
        assert_eq!(status, StatusCode::BAD_REQUEST, "{nonsense}: {told}");
    }
    let (status, _) = door.post_as("text/plain", "/mutate", body(&question(&pod()))).await;
    assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(door.post("/other", body(&question(&pod()))).await.0, StatusCode::NOT_FOUND);
    assert_eq!(door.post("/mutate", body(&question(&pod()))).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_review_with_a_number_that_cannot_be_read_is_denied_under_it() {
    let door = Door::open(scripted(|_| async { allow() }), Limits::default()).await;
    for (key, value) in [("operation", json!("PATCH")), ("object", json!([1])), ("userInfo", json!("etl"))] {
        let mut odd = question(&pod());
        odd["request"][key] = value;
        let (status, answer) = door.post("/mutate", body(&odd)).await;
        assert_eq!(status, StatusCode::OK, "{key}: {answer}");
        assert_eq!(answer["response"]["uid"], "6c1e");
        assert_eq!(answer["response"]["allowed"], false);
        assert_eq!(answer["response"]["status"]["reason"], "REVIEW_UNREADABLE");
    }
}

#[tokio::test]
async fn a_review_that_is_too_large_is_refused_whether_it_says_so_or_not() {
    let limits = Limits { body_bytes: 4096, bodies_bytes: 8192, ..Limits::default() };
    let door = Door::open(scripted(|_| async { allow() }), limits).await;
    let large = body(&question(&json!({"padding": "x".repeat(5000)})));
    assert_eq!(door.post("/mutate", large.clone()).await.0, StatusCode::PAYLOAD_TOO_LARGE);

    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(door.stream(b"http/1.1").await)).await.unwrap();
    tokio::spawn(connection);
    let chunks = tokio_stream::iter(
        large.chunks(1000).map(|chunk| Ok::<_, io::Error>(chunk.to_vec())).collect::<Vec<_>>(),
    );
    let mut unsaid = request("application/json", "/mutate", Vec::new());
    *unsaid.body_mut() = axum::body::Body::from_stream(chunks);
    let (status, _) = read(sender.send_request(unsaid).await.unwrap()).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(door.post("/mutate", body(&question(&pod()))).await.0, StatusCode::OK);
}

#[tokio::test]
async fn strangers_who_announce_much_and_send_little_keep_nobody_from_being_answered() {
    use tokio::io::AsyncWriteExt;
    let limits = Limits { body_bytes: 4096, bodies_bytes: 4096, ..Limits::default() };
    let door = Door::open(scripted(|_| async { allow() }), limits).await;
    let mut strangers = Vec::new();
    for sent in ["", "{", "", "{"] {
        let mut stranger = door.stream(b"http/1.1").await;
        let head = "POST /mutate HTTP/1.1\r\nhost: webhook.test\r\ncontent-type: application/json\r\n\
                    content-length: 4096\r\n\r\n";
        stranger.write_all(format!("{head}{sent}").as_bytes()).await.unwrap();
        strangers.push(stranger);
    }
    while !door.metrics().contains("in_flight 4") {
        tokio::task::yield_now().await;
    }
    let answer = timeout(TIME_LIMIT / 2, door.post("/mutate", body(&question(&pod())))).await;
    let (status, answer) = answer.expect("has to wait for strangers");
    assert_eq!((status, &answer["response"]["allowed"]), (StatusCode::OK, &json!(true)));
}

#[tokio::test]
async fn reviews_wait_when_those_under_way_are_too_much_together() {
    let gate = Arc::new(Notify::new());
    let waiting = gate.clone();
    let reviewer = scripted(move |_| {
        let gate = waiting.clone();
        async move {
            gate.notified().await;
            allow()
        }
    });
    let limits = Limits { body_bytes: 4096, bodies_bytes: 4096, ..Limits::default() };
    let door = Door::open(reviewer.clone(), limits).await;
    let asked = || reviewer.asked.lock().unwrap().len();
    let large = body(&question(&json!({"padding": "x".repeat(3000)})));
    let both =
        async { tokio::join!(door.post("/mutate", large.clone()), door.post("/mutate", large.clone())) };
    tokio::pin!(both);
    assert!(timeout(TIME_LIMIT / 4, &mut both).await.is_err(), "the gate is closed");
    assert_eq!(asked(), 1, "there is room for one");
    gate.notify_one();
    assert!(timeout(TIME_LIMIT / 4, &mut both).await.is_err(), "the gate was open for one");
    assert_eq!(asked(), 2, "the other one still waits");
    gate.notify_one();
    let (first, second) = both.await;
    for (status, answer) in [first, second] {
        assert_eq!((status, &answer["response"]["allowed"]), (StatusCode::OK, &json!(true)));
    }
}

#[tokio::test]
async fn reviews_under_way_are_answered_before_it_stops() {
    let gate = Arc::new(Notify::new());
    let waiting = gate.clone();
    let reviewer = scripted(move |_| {
        let gate = waiting.clone();
        async move {
            gate.notified().await;
            allow()
        }
    });
    let door = Door::open(reviewer.clone(), Limits::default()).await;
    let question = body(&question(&pod()));
    let (answer, ()) = tokio::join!(door.post("/mutate", question), async {
        while reviewer.asked.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        door.stop.cancel();
        gate.notify_one();
    });
    assert_eq!(answer.1["response"]["allowed"], true);
    timeout(Duration::from_secs(5), door.serving).await.expect("does not stop").unwrap();
}

#[tokio::test]
async fn connections_end_with_an_answer_that_says_so_once_it_is_about_to_leave() {
    let door = Door::open(scripted(|_| async { allow() }), Limits::default()).await;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(door.stream(b"http/1.1").await)).await.unwrap();
    let mut connection = tokio::spawn(connection);
    let ask = || request("application/json", "/mutate", body(&question(&pod())));
    let answer = sender.send_request(ask()).await.unwrap();
    assert_eq!(answer.headers().get("connection"), None);
    read(answer).await;
    door.leaving.cancel();
    // It may be that a request is on its way.
    assert!(timeout(Duration::from_millis(200), &mut connection).await.is_err());
    sender.ready().await.unwrap();
    let answer = sender.send_request(ask()).await.unwrap();
    assert_eq!(answer.headers().get("connection").unwrap(), "close");
    assert_eq!(read(answer).await.0, StatusCode::OK);
    timeout(Duration::from_secs(5), connection).await.unwrap().unwrap().unwrap();
    // Who asks it all the same is answered.
    assert_eq!(door.post("/mutate", body(&question(&pod()))).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_caller_that_asks_nothing_is_cut_off() {
    use tokio::io::AsyncReadExt;
    let door = Door::open(scripted(|_| async { allow() }), Limits::default()).await;
    let cut_off = async |alpn: &[u8]| {
        let mut stream = door.stream(alpn).await;
        let mut rest = Vec::new();
        let ends = timeout(connection::HEADER_LIMIT * 2, stream.read_to_end(&mut rest)).await;
        assert!(ends.is_ok(), "still open after {:?}", connection::HEADER_LIMIT * 2);
    };
    tokio::join!(cut_off(b"http/1.1"), cut_off(b"h2"));
}

#[test]
fn limits_that_cannot_be_are_told() {
    assert!(Limits::default().mistakes().is_empty());
    let none = Limits { connections: 0, body_bytes: 10, bodies_bytes: 5, ..Limits::default() };
    assert_eq!(none.mistakes().len(), 3, "{:?}", none.mistakes());
}
