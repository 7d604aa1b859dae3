//! What a node's volumes cost in memory: the real program, with a controller that only counts, and 110 volumes, as
//! many as kubelet lets pods onto a node.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::process::CommandExt,
    path::Path,
    pin::Pin,
    process::{Child, Command},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use proto::{
    POD_AUDIENCE, VolumeId,
    csi::v1::{
        NodePublishVolumeRequest, VolumeCapability,
        node_client::NodeClient,
        volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
    },
    token::v1::{
        AddressVerification, CheckRequest, CheckResponse, IssueRequest, IssueResponse, IssuedToken, Kept,
        PodAddresses, ReleaseRequest, ReleaseResponse, RenewRequest, RenewResponse, Token, WatchEvent,
        WatchRequest,
        check_response::Outcome,
        token_service_server::{TokenService, TokenServiceServer},
        watch_event::Event,
    },
};
use rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{
    Request, Response, Status,
    transport::{Endpoint, Server},
};

const VOLUMES: usize = 110;

/// Goal for the whole program, of which the dev profile's code alone would take more.
const MOST_RSS_KIB: u64 = 10 * 1024;
/// Bound for what it has allocated, in any profile.
const MOST_ANONYMOUS_KIB: u64 = 5 * 1024;

/// As long as kubelet's are.
const JWT_LENGTH: usize = 1_300;

struct Issuing;

#[tonic::async_trait]
impl TokenService for Issuing {
    async fn issue(&self, _: Request<IssueRequest>) -> Result<Response<IssueResponse>, Status> {
        let token = Token {
            identifier: vec![7; 90],
            password: vec![7; 20],
            kind: "HDFS_DELEGATION_TOKEN".to_owned(),
            services: vec!["10.0.0.1:8020".to_owned(), "nn1.example:8020".to_owned()],
        };
        let (now, day) = (1_800_000_000_000, 86_400_000);
        let issued = IssuedToken {
            token: Some(token),
            issue_date: now,
            renew_date: now + 36_500 * day,
            max_date: now + 73_000 * day,
            sequence_number: 7,
            server_date: now,
        };
        Ok(Response::new(IssueResponse {
            user: "etl".to_owned(),
            cluster: "main".to_owned(),
            tokens: vec![issued],
            address_verification: AddressVerification::Eventual.into(),
            check_after_seconds: 900,
            unsealed: false,
        }))
    }

    async fn renew(&self, _: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        Err(Status::unimplemented("nothing is due here"))
    }

    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let addresses_verified = request.get_ref().addresses.is_some();
        let kept = Kept { check_after_seconds: 900, addresses_verified };
        Ok(Response::new(CheckResponse { outcome: Some(Outcome::Kept(kept)) }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchEvent, Status>> + Send>>;

    /// Tells an address of each pod, and stays open.
    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let event = |number| {
            let addresses = vec![format!("10.1.2.{number}")];
            let addresses = PodAddresses { pod_uid: uid(number), addresses };
            Ok(WatchEvent { event: Some(Event::PodAddresses(addresses)) })
        };
        let told = tokio_stream::iter((0..VOLUMES).map(event));
        Ok(Response::new(Box::pin(told.chain(tokio_stream::pending()))))
    }

    async fn release(&self, _: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        Err(Status::unimplemented("nothing ends here"))
    }
}

/// The program, killed when dropped.
struct Driver(Child);

impl Driver {
    fn start(dir: &Path) -> Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hadoop-token-csi-driver"));
        command.arg("--config").arg(dir.join("driver.yaml")).args(["--log-level", "warn"]).process_group(0);
        Ok(Self(command.spawn()?))
    }

    /// A line of its status, in KiB.
    fn memory(&self, line: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let value =
            status.lines().find_map(|l| l.strip_prefix(line)?.strip_suffix("kB")).context("no such line")?;
        Ok(value.trim_start_matches(':').trim().parse()?)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait()); // it may have ended
    }
}

async fn serve_controller(dir: &Path) -> Result<String> {
    let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
    fs::write(dir.join("ca.crt"), certified.cert.pem())?;
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).map_err(io::Error::other)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let (connections, incoming) = tokio::sync::mpsc::channel(1);
    let server = Server::builder().add_service(TokenServiceServer::new(Issuing));
    tokio::spawn(server.serve_with_incoming(ReceiverStream::new(incoming)));
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        while let Ok((tcp, _)) = listener.accept().await {
            if let Ok(tls) = acceptor.accept(tcp).await {
                let _ = connections.send(Ok::<_, io::Error>(tls)).await; // the test is over
            }
        }
    });
    Ok(address)
}

fn uid(number: usize) -> String {
    format!("8d5d92a4-3a2a-4c4c-8d2f-{number:012}")
}

fn request(dir: &Path, number: usize) -> Result<NodePublishVolumeRequest> {
    let uid = uid(number);
    let target = dir.join("kubelet/pods").join(&uid).join("volumes/kubernetes.io~csi/hadoop/mount");
    fs::create_dir_all(target.parent().context("a target has a parent")?)?;
    let tokens = serde_json::json!({POD_AUDIENCE: {"token": "x".repeat(JWT_LENGTH)}}).to_string();
    let context = [
        ("csi.storage.k8s.io/ephemeral", "true"),
        ("csi.storage.k8s.io/pod.name", "pod"),
        ("csi.storage.k8s.io/pod.namespace", "default"),
        ("csi.storage.k8s.io/pod.uid", &uid),
    ];
    Ok(NodePublishVolumeRequest {
        volume_id: VolumeId::of(&uid, "hadoop").to_string(),
        target_path: target.display().to_string(),
        volume_capability: Some(VolumeCapability {
            access_type: Some(AccessType::Mount(MountVolume::default())),
            access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        }),
        readonly: true,
        secrets: HashMap::from([("csi.storage.k8s.io/serviceAccount.tokens".to_owned(), tokens)]),
        volume_context: context.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        ..NodePublishVolumeRequest::default()
    })
}

async fn measure(dir: &Path) -> Result<String> {
    for folder in ["csi", "registration"] {
        fs::create_dir(dir.join(folder))?;
    }
    let address = serve_controller(dir).await?;
    fs::write(dir.join("token"), "y".repeat(JWT_LENGTH))?;
    let shown = dir.display();
    let config = format!(
        "{{nodeName: n, kubeletDir: {shown}/kubelet, csiSocket: {shown}/csi/csi.sock,
         registrationDir: {shown}/registration, stateDir: {shown}/state, healthAddress: '127.0.0.1:0',
         controller: {{address: '{address}', ca: {shown}/ca.crt, tokenFile: {shown}/token}}}}"
    );
    fs::write(dir.join("driver.yaml"), config)?;
    let driver = Driver::start(dir)?;
    let socket = dir.join("csi/csi.sock");
    tokio::time::timeout(Duration::from_secs(30), async {
        while !socket.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .context("the driver does not come up")?;
    let idle = driver.memory("RssAnon")?;
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
    // kubelet comes by again and again, each time on a new connection, several at a time.
    for _ in 0..3 {
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..VOLUMES {
            if calls.len() == 8 {
                calls.join_next().await.context("no call")???;
            }
            let (endpoint, request) = (endpoint.clone(), request(dir, number)?);
            calls.spawn(async move {
                NodeClient::new(endpoint.connect().await?).node_publish_volume(request).await?;
                anyhow::Ok(())
            });
        }
        while let Some(ended) = calls.join_next().await {
            ended??;
        }
    }
    let (anonymous, resident) = (driver.memory("RssAnon")?, driver.memory("VmRSS")?);
    ensure!(anonymous <= MOST_ANONYMOUS_KIB, "{anonymous} KiB are allocated");
    ensure!(cfg!(debug_assertions) || resident <= MOST_RSS_KIB, "{resident} KiB are resident");
    Ok(format!(
        "{VOLUMES} volumes: {resident} KiB resident, {anonymous} KiB of it allocated ({idle} when idle)"
    ))
}

#[test]
fn a_full_node_takes_no_more_than_ten_mebibytes() {
    let dir = tempfile::tempdir().unwrap();
    // In mounts of its own, which end with this thread and the driver.
    let measured = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).context("the tests must run as root")?;
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
            mount(Some("test"), dir.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(measure(dir.path()))
        });
        thread.join()
    });
    println!("{}", measured.unwrap().unwrap());
}
