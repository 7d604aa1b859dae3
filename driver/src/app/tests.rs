//! The whole program in one process: what is there when, and how it ends.

use std::{fs, path::Path, sync::Arc};

use proto::{
    csi::v1::node_client::NodeClient,
    registration::v1::{RegistrationStatus, RegistrationStatusResponse},
};
use rcgen::generate_simple_self_signed;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;
use tonic::{client::Grpc, codegen::http::uri::PathAndQuery, transport::Endpoint as Client};

use super::*;
use crate::publish_request::tests::valid;

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
    config_with(dir, "controller.example:9443").await
}

async fn config_with(dir: &Path, controller: &str) -> Config {
    for folder in ["csi", "registration"] {
        fs::create_dir_all(dir.join(folder)).unwrap();
    }
    let certified = generate_simple_self_signed(vec!["controller.example".to_owned()]).unwrap();
    fs::write(dir.join("ca.crt"), certified.cert.pem()).unwrap();
    fs::write(dir.join("ca.key"), certified.signing_key.serialize_pem()).unwrap();
    let shown = dir.display();
    let yaml = format!(
        "nodeName: node-1
kubeletDir: {shown}/kubelet
csiSocket: {shown}/csi/csi.sock
registrationDir: {shown}/registration
stateDir: {shown}/csi/volumes
healthAddress: {}
controller: {{address: '{controller}', serverName: controller.example, ca: {shown}/ca.crt, tokenFile: {shown}/token}}",
        free_port().await
    );
    fs::write(dir.join("driver.yaml"), yaml).unwrap();
    Config::load(&dir.join("driver.yaml")).unwrap()
}

impl Running {
    async fn start() -> Self {
        Self::start_with("controller.example:9443").await
    }

    async fn start_with(controller: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = config_with(dir.path(), controller).await;
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

/// What a controller proves itself with.
fn acceptor(dir: &Path) -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_file(dir.join("ca.crt")).unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.join("ca.key")).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

#[tokio::test(start_paused = true)]
async fn stops_in_time_although_the_controller_is_silent_and_leaves_nothing_of_the_call() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut running = Running::start_with(&silent.local_addr().unwrap().to_string()).await;
    fs::write(running.dir.path().join("token"), "jwt-of-the-driver").unwrap();
    let socket = format!("unix://{}", running.dir.path().join("csi/csi.sock").display());
    let mut kubelet = NodeClient::new(Client::from_shared(socket).unwrap().connect().await.unwrap());
    let request = valid(&running.dir.path().join("kubelet/pods"));
    let target = std::path::PathBuf::from(&request.target_path);
    fs::create_dir_all(target.parent().unwrap()).unwrap();
    let call = tokio::spawn(async move { kubelet.node_publish_volume(request).await });
    let accepted = silent.accept().await.unwrap().0;
    let asked = acceptor(running.dir.path()).accept(accepted).await.unwrap();
    let start = Instant::now();
    running.stop.take().unwrap().send(()).unwrap();
    running.ended.await.unwrap().unwrap();
    assert!(start.elapsed() < GRACE, "{:?}", start.elapsed());
    drop(asked);
    assert!(!target.exists());
    let released = fs::read_dir(running.dir.path().join("csi/volumes/released"));
    assert_eq!(released.into_iter().flatten().count(), 0);
    call.abort();
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
