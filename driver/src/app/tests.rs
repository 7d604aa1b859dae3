//! The whole program in one process: what is there when, and how it ends.

use std::{fs, path::Path};

use proto::registration::v1::{RegistrationStatus, RegistrationStatusResponse};
use rcgen::generate_simple_self_signed;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
};
use tonic::{client::Grpc, codegen::http::uri::PathAndQuery, transport::Endpoint as Client};

use super::*;

struct Running {
    dir: tempfile::TempDir,
    health: std::net::SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    ended: JoinHandle<anyhow::Result<()>>,
}

/// A free port: the health endpoint says in its configuration where it listens.
async fn free_port() -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

async fn config(dir: &Path) -> Config {
    for folder in ["csi", "registration"] {
        fs::create_dir_all(dir.join(folder)).unwrap();
    }
    let certified = generate_simple_self_signed(vec!["controller.example".to_owned()]).unwrap();
    fs::write(dir.join("ca.crt"), certified.cert.pem()).unwrap();
    let shown = dir.display();
    let yaml = format!(
        "nodeName: node-1
kubeletDir: {shown}/kubelet
csiSocket: {shown}/csi/csi.sock
registrationDir: {shown}/registration
stateDir: {shown}/csi/volumes
healthAddress: {}
controller: {{address: 'controller.example:9443', ca: {shown}/ca.crt, tokenFile: {shown}/token}}",
        free_port().await
    );
    fs::write(dir.join("driver.yaml"), yaml).unwrap();
    Config::load(&dir.join("driver.yaml")).unwrap()
}

impl Running {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path()).await;
        let health = config.health_address;
        let app = App::bind(config).await.unwrap();
        assert!(!dir.path().join("csi/csi.sock").exists(), "nothing is shown before it is served");
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(app.run(async { stopped.await.map_err(io::Error::other) }));
        let running = Self { dir, health, stop: Some(stop), ended };
        while !running.registration_socket().exists() {
            tokio::task::yield_now().await;
        }
        running
    }

    fn registration_socket(&self) -> std::path::PathBuf {
        self.dir.path().join("registration/hadoop-token.csi-reg.sock")
    }

    async fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.health).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn notify(&self, plugin_registered: bool, error: &str) {
        let socket = format!("unix://{}", self.registration_socket().display());
        let mut kubelet = Grpc::new(Client::from_shared(socket).unwrap().connect().await.unwrap());
        kubelet.ready().await.unwrap();
        let path = PathAndQuery::from_static("/pluginregistration.Registration/NotifyRegistrationStatus");
        let codec = tonic_prost::ProstCodec::<RegistrationStatus, RegistrationStatusResponse>::default();
        let status = RegistrationStatus { plugin_registered, error: error.to_owned() };
        kubelet.unary(tonic::Request::new(status), path, codec).await.unwrap();
    }
}

#[tokio::test]
async fn is_ready_once_kubelet_has_registered_it_and_stops_when_asked() {
    let mut running = Running::start().await;
    assert!(running.dir.path().join("csi/csi.sock").exists(), "served before it is registered");
    assert!(running.get("/livez").await.starts_with("HTTP/1.0 200"));
    let answer = running.get("/readyz").await;
    assert!(
        answer.starts_with("HTTP/1.0 503") && answer.contains("[-] registration: kubelet has not"),
        "{answer}"
    );
    running.notify(true, "").await;
    let mut answer = running.get("/readyz").await;
    while answer.starts_with("HTTP/1.0 503") {
        answer = running.get("/readyz").await;
    }
    assert!(answer.contains("[+] controller: ok") && answer.contains("[+] registration: ok"), "{answer}");
    running.stop.take().unwrap().send(()).unwrap();
    running.ended.await.unwrap().unwrap();
    for left in ["csi/csi.sock", "registration/hadoop-token.csi-reg.sock"] {
        assert!(!running.dir.path().join(left).exists(), "{left}");
    }
}

#[tokio::test]
async fn ends_with_an_error_when_kubelet_refuses_it() {
    let running = Running::start().await;
    running.notify(false, "no such node").await;
    let error = running.ended.await.unwrap().unwrap_err();
    assert_eq!(format!("{error:#}"), "the registration failed: kubelet refused the driver: no such node");
    assert!(!running.dir.path().join("registration/hadoop-token.csi-reg.sock").exists());
}

#[tokio::test]
async fn a_second_one_does_not_start_and_leaves_the_first_alone() {
    let running = Running::start().await;
    let mut second = Config::load(&running.dir.path().join("driver.yaml")).unwrap();
    second.health_address = free_port().await;
    let error = App::bind(second).await.err().unwrap();
    assert!(format!("{error:#}").contains("another process serves it"), "{error:#}");
    assert!(running.get("/livez").await.starts_with("HTTP/1.0 200"));
    running.notify(true, "").await;
}

#[tokio::test]
async fn says_what_cannot_be_opened() {
    let dir = tempfile::tempdir().unwrap();
    let good = config(dir.path()).await;
    let mut bad = good.clone();
    bad.paths.state = dir.path().join("ca.crt");
    let error = format!("{:#}", App::bind(bad).await.err().unwrap());
    assert!(error.contains("cannot open the state directory"), "{error}");
    let mut bad = good.clone();
    bad.controller.ca = dir.path().join("none.crt");
    let error = format!("{:#}", App::bind(bad).await.err().unwrap());
    assert!(error.contains("none.crt"), "{error}");
    let mut bad = good;
    bad.paths.registration = dir.path().join("none");
    let error = format!("{:#}", App::bind(bad).await.err().unwrap());
    assert!(error.contains("hadoop-token.csi-reg.sock"), "{error}");
}
