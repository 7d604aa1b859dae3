//! Registration as kubelet does it, by a real gRPC client over the real socket.

use std::path::{Path, PathBuf};

use process::health::Health;
use tokio::task::JoinHandle;
use tonic::{
    Code, Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::*;

struct Bed {
    dir: tempfile::TempDir,
    health: Health,
    stop: CancellationToken,
    serving: JoinHandle<Result<(), RegistrationError>>,
}

impl Bed {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (health, stop) = (Health::default(), CancellationToken::new());
        let endpoint = Path::new("/var/lib/kubelet/plugins/hadoop-token.csi/csi.sock");
        let registration = Registration::bind(dir.path(), endpoint, health.needs("registration")).unwrap();
        let serving = tokio::spawn(registration.serve(stop.clone()));
        tokio::task::yield_now().await;
        Self { dir, health, stop, serving }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("hadoop-token.csi-reg.sock")
    }

    async fn client(&self) -> Grpc<Channel> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", self.socket().display())).unwrap();
        let mut client = Grpc::new(endpoint.connect().await.unwrap());
        client.ready().await.unwrap();
        client
    }
}

async fn call<Q, A>(client: &mut Grpc<Channel>, path: &'static str, request: Q) -> Result<A, Status>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    client.ready().await.unwrap();
    let codec = ProstCodec::<Q, A>::default();
    let path = PathAndQuery::from_static(path);
    client.unary(tonic::Request::new(request), path, codec).await.map(tonic::Response::into_inner)
}

fn status(plugin_registered: bool, error: &str) -> RegistrationStatus {
    RegistrationStatus { plugin_registered, error: error.to_owned() }
}

#[tokio::test]
async fn kubelet_learns_who_we_are_and_registers_us() {
    let bed = Bed::start().await;
    let mut client = bed.client().await;
    let info: PluginInfo = call(&mut client, GET_INFO, InfoRequest {}).await.unwrap();
    assert_eq!(
        info,
        PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: "hadoop-token.csi".to_owned(),
            endpoint: "/var/lib/kubelet/plugins/hadoop-token.csi/csi.sock".to_owned(),
            supported_versions: vec!["1.0.0".to_owned()],
        }
    );
    assert!(!bed.health.report().0);
    let _: RegistrationStatusResponse = call(&mut client, NOTIFY, status(true, "")).await.unwrap();
    // The verdict travels through a channel.
    while !bed.health.report().0 {
        tokio::task::yield_now().await;
    }
    bed.stop.cancel();
    bed.serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_thousand_calls_by_many_clients_are_all_answered() {
    let bed = Bed::start().await;
    for _ in 0..50 {
        let mut clients = JoinSet::new();
        for _ in 0..4 {
            let mut client = bed.client().await;
            clients.spawn(async move {
                for _ in 0..5 {
                    let _: PluginInfo = call(&mut client, GET_INFO, InfoRequest {}).await.unwrap();
                }
            });
        }
        while let Some(ended) = clients.join_next().await {
            ended.unwrap();
        }
    }
}

#[tokio::test]
async fn a_refusal_is_answered_and_ends_registration() {
    let bed = Bed::start().await;
    let mut client = bed.client().await;
    let _: RegistrationStatusResponse =
        call(&mut client, NOTIFY, status(false, "no such node")).await.unwrap();
    let error = bed.serving.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "kubelet refused the driver: no such node");
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented() {
    let bed = Bed::start().await;
    let mut client = bed.client().await;
    let path = "/pluginregistration.Registration/Other";
    let status = call::<_, PluginInfo>(&mut client, path, InfoRequest {}).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unimplemented, "unknown method"));
}

#[tokio::test]
async fn a_message_that_cannot_be_decoded_is_refused_and_tells_nothing() {
    let info = PluginInfo::default();
    assert_eq!(answer(&info, NOTIFY, b"\xff"), (Err(Failure::INVALID_MESSAGE), None));
    assert_eq!(answer(&info, GET_INFO, b"\xff"), (Err(Failure::INVALID_MESSAGE), None));
}

#[tokio::test]
async fn the_socket_is_there_while_we_serve_and_not_longer() {
    let bed = Bed::start().await;
    assert!(bed.socket().exists());
    bed.stop.cancel();
    bed.serving.await.unwrap().unwrap();
    assert_eq!(std::fs::read_dir(bed.dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn rubbish_ends_its_own_connection_only() {
    let bed = Bed::start().await;
    let mut rubbish = UnixStream::connect(bed.socket()).await.unwrap();
    rubbish.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    rubbish.read_to_end(&mut answer).await.unwrap();
    assert!(answer.windows(7).any(|part| part == b"preface"), "GOAWAY says what was wrong");
    let _: PluginInfo = call(&mut bed.client().await, GET_INFO, InfoRequest {}).await.unwrap();
}
