//! What the tests of volumes stand on: the driver's services on a real Unix socket, real mounts in a namespace of the
//! test's own, records in a temporary directory, and a controller in memory that issues tokens and remembers what
//! became of them. Time stands still unless everybody waits for it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use jiff::Timestamp;
use process::health::Health;
use proto::{
    VolumeId,
    csi::v1::{
        NodePublishVolumeRequest, NodeUnpublishVolumeRequest, identity_client::IdentityClient,
        node_client::NodeClient,
    },
    token::v1::{
        AddressVerification, CheckRequest, CheckResponse, IssueRequest, IssueResponse, IssuedToken, Kept,
        ObservedAddresses, PodAddresses, ReleaseRequest, ReleaseResponse, RenewRequest, RenewResponse, Token,
        WatchEvent, WatchRequest, check_response::Outcome, token_service_server::TokenService,
        token_service_server::TokenServiceServer, watch_event::Event,
    },
};
use tokio::{
    io::DuplexStream,
    sync::{Semaphore, mpsc},
    task::JoinHandle,
    time::Duration,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint, Server},
};

use crate::{
    clock::Clock,
    controller_client::{ControllerClient, endpoint},
    csi,
    mount::{
        Mounter,
        tests::{in_private_mounts, tmpfs},
    },
    pod_network::{PodNetworks, Sight, Wanted},
    publish_request::tests::{UID, valid},
    refresh,
    socket::Socket,
    verification,
    volume::{Record, lifecycle::Volumes, store::Store},
    watch,
};

pub(crate) const HOUR: u64 = 3_600_000;
pub(crate) const DAY: u64 = 24 * HOUR;

/// Bytes that must be in no record.
pub(crate) const PASSWORD: &str = "p4ssw0rd";
pub(crate) const JWT: &str = "jwt-of-the-pod";

/// Runs a test on a bed of its own.
pub(crate) fn on_a_bed(test: impl AsyncFnOnce(Bed) + Send) {
    in_private_mounts(|| {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let bed = Bed::start().await;
            test(bed).await;
        });
    });
}

pub(crate) struct Bed {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) controller: Arc<Controller>,
    pub(crate) mounter: Arc<Faulty>,
    pub(crate) networks: Arc<Sights>,
    pub(crate) clock: Clock,
    driver: Option<Driver>,
}

/// One run of the driver.
struct Driver {
    volumes: Volumes,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    channel: Channel,
}

impl Bed {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("own-token"), "jwt-of-the-driver\n").unwrap();
        let clock = Clock::paused("2026-11-23T00:00:00Z".parse().unwrap());
        let controller = Arc::new(Controller::new(clock.clone()));
        controller.start();
        let (mounter, networks) = Default::default();
        let mut bed = Self { dir, controller, mounter, networks, clock, driver: None };
        bed.start_driver().await;
        bed
    }

    async fn start_driver(&mut self) {
        let store = Store::open(&self.state()).unwrap();
        let channel = self.controller.clone().channel();
        let own_token = self.dir.path().join("own-token");
        let reachable = Health::default().shows("controller");
        let client =
            ControllerClient::over(channel, "controller.example:9443".to_owned(), own_token, reachable);
        let volumes = Volumes::new(
            store,
            Box::new(self.mounter.clone()),
            Box::new(self.networks.clone()),
            client,
            self.clock.clone(),
        );
        volumes.recover().unwrap();
        let stop = CancellationToken::new();
        let path = self.dir.path().join("csi.sock");
        let socket = Socket::bind(&path).unwrap();
        let serving = csi::serve(socket, volumes.clone(), "node-1".to_owned(), self.pods(), stop.clone());
        let tasks = vec![
            tokio::spawn(async { serving.await.unwrap() }),
            tokio::spawn(refresh::run(volumes.clone(), stop.clone())),
            tokio::spawn(refresh::release::run(volumes.clone(), stop.clone())),
            tokio::spawn(verification::run(volumes.clone(), stop.clone())),
            tokio::spawn(watch::run(volumes.clone(), stop.clone())),
        ];
        tokio::task::yield_now().await;
        let endpoint = Endpoint::from_shared(format!("unix://{}", path.display())).unwrap();
        let channel = endpoint.connect_lazy();
        self.driver = Some(Driver { volumes, stop, tasks, channel });
    }

    /// Ends the driver as SIGTERM does.
    pub(crate) async fn stop_driver(&mut self) {
        let Some(Driver { volumes, stop, tasks, channel }) = self.driver.take() else { return };
        drop(channel);
        stop.cancel();
        for task in tasks {
            task.await.unwrap();
        }
        volumes.drained().await;
    }

    pub(crate) async fn restart_driver(&mut self) {
        self.stop_driver().await;
        self.start_driver().await;
    }

    fn driver(&self) -> &Driver {
        self.driver.as_ref().unwrap()
    }

    pub(crate) fn volumes(&self) -> &Volumes {
        &self.driver().volumes
    }

    pub(crate) fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.driver().channel.clone())
    }

    pub(crate) fn identity(&self) -> IdentityClient<Channel> {
        IdentityClient::new(self.driver().channel.clone())
    }

    pub(crate) fn pods(&self) -> PathBuf {
        self.dir.path().join("pods")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.request().target_path.into()
    }

    /// What kubelet asks for, having made the parent of the target.
    pub(crate) fn request(&self) -> NodePublishVolumeRequest {
        let request = valid(&self.pods());
        fs::create_dir_all(Path::new(&request.target_path).parent().unwrap()).unwrap();
        request
    }

    pub(crate) async fn publish(&self) -> Result<(), Status> {
        self.node().node_publish_volume(self.request()).await.map(|_| ())
    }

    pub(crate) async fn unpublish(&self) -> Result<(), Status> {
        let NodePublishVolumeRequest { volume_id, target_path, .. } = valid(&self.pods());
        let request = NodeUnpublishVolumeRequest { volume_id, target_path };
        self.node().node_unpublish_volume(request).await.map(|_| ())
    }

    pub(crate) fn record(&self) -> Option<Record> {
        Store::open(&self.state()).unwrap().get(&VolumeId::of(UID, "hadoop")).unwrap()
    }

    pub(crate) fn record_file(&self) -> PathBuf {
        self.state().join(format!("{}.json", VolumeId::of(UID, "hadoop")))
    }

    /// How many file systems are mounted on the target.
    pub(crate) fn mounts(&self) -> usize {
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let target = self.target().display().to_string();
        table.lines().filter(|line| line.split(' ').nth(4) == Some(&target)).count()
    }

    /// Everything that a repeated call must not change.
    pub(crate) fn snapshot(&self) -> impl PartialEq + std::fmt::Debug + use<> {
        use std::os::unix::fs::MetadataExt;
        let inode =
            |name| fs::metadata(self.target().join(name)).map(|m| (m.dev(), m.ino(), m.ctime_nsec())).ok();
        (
            self.mounts(),
            inode("token"),
            inode("token.json"),
            fs::read(self.record_file()).ok(),
            self.controller.lock().tokens.clone(),
        )
    }

    /// Asserts that a volume that could not be published left nothing: no mount, no directory, no record, no token.
    pub(crate) async fn assert_nothing_left(&self) {
        self.settle().await;
        assert_eq!(self.mounts(), 0, "mounts");
        assert!(!self.target().exists(), "target directory");
        assert_eq!(self.controller.live(), [0u8; 0], "live tokens");
        for dir in [self.state(), self.state().join("released")] {
            let left =
                fs::read_dir(dir).into_iter().flatten().filter(|e| e.as_ref().unwrap().path().is_file());
            assert_eq!(left.count(), 0, "records");
        }
    }

    /// Lets what is due at once be done.
    pub(crate) async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        while self.mounts() > 0 {
            tmpfs().unmount(&self.target()).unwrap();
        }
    }
}

/// Real mounts, with faults.
#[derive(Default)]
pub(crate) struct Faulty {
    faults: Mutex<Faults>,
}

#[derive(Default)]
struct Faults {
    mount: Option<Fault>,
    unmount: Option<io::ErrorKind>,
}

type Fault = Box<dyn Fn(&Path) -> io::Result<()> + Send>;

impl Faulty {
    /// Also after a fault that panicked.
    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does this after each mount, and fails if it does.
    pub(crate) fn after_mount(&self, fault: impl Fn(&Path) -> io::Result<()> + Send + 'static) {
        self.faults().mount = Some(Box::new(fault));
    }

    pub(crate) fn refuse_unmount(&self, error: Option<io::ErrorKind>) {
        self.faults().unmount = error;
    }

    pub(crate) fn mend(&self) {
        *self.faults() = Faults::default();
    }
}

impl Mounter for Arc<Faulty> {
    fn mount(&self, target: &Path, group: Option<u32>) -> io::Result<()> {
        tmpfs().mount(target, group)?;
        match &self.faults().mount {
            Some(fault) => fault(target),
            None => Ok(()),
        }
    }

    fn unmount(&self, target: &Path) -> io::Result<()> {
        match self.faults().unmount {
            Some(error) => Err(error.into()),
            None => tmpfs().unmount(target),
        }
    }

    fn is_mounted(&self, target: &Path) -> io::Result<bool> {
        tmpfs().is_mounted(target)
    }
}

/// What can be seen of every pod.
#[derive(Default)]
pub(crate) struct Sights {
    sight: Mutex<Option<Sight>>,
    pub(crate) looks: AtomicUsize,
}

impl Sights {
    pub(crate) fn set(&self, sight: Sight) {
        *self.sight.lock().unwrap() = Some(sight);
    }
}

impl PodNetworks for Arc<Sights> {
    /// Fails until it is said what can be seen.
    fn look(&self, wanted: &[Wanted]) -> io::Result<Vec<Sight>> {
        self.looks.fetch_add(1, SeqCst);
        let sight = self.sight.lock().unwrap().clone().ok_or(io::ErrorKind::PermissionDenied)?;
        Ok(wanted.iter().map(|_| sight.clone()).collect())
    }
}

/// The controller, and the Hadoop behind it.
pub(crate) struct Controller {
    state: Mutex<State>,
    clock: Clock,
    /// Issue waits for a permit.
    pub(crate) gate: Semaphore,
}

#[derive(Default)]
pub(crate) struct State {
    connections: Option<mpsc::Sender<io::Result<DuplexStream>>>,
    /// Breaks every connection.
    broken: CancellationToken,
    /// By their number, which is also their identifier.
    pub(crate) tokens: BTreeMap<u8, Fate>,
    /// What Issue, Renew and Release answer instead of doing what they should.
    pub(crate) refuse: Option<Status>,
    /// Changes what Issue answers.
    pub(crate) mangle: Option<fn(&mut IssueResponse)>,
    /// What Check answers: by default that all is well.
    pub(crate) outcome: Option<Outcome>,
    /// What Check and Issue were shown of pods' addresses, and that Check was called without.
    pub(crate) shown_addresses: Vec<Option<ObservedAddresses>>,
    /// What Issue answers besides tokens.
    pub(crate) verification: AddressVerification,
    pub(crate) check_after_seconds: u32,
    pub(crate) unsealed: bool,
    /// Where Watch tells what happens, and what it tells first.
    pub(crate) opened_streams: usize,
    watchers: Vec<mpsc::Sender<Result<WatchEvent, Status>>>,
    addresses: BTreeMap<String, Vec<String>>,
    /// How long a token lives without being renewed.
    pub(crate) interval: u64,
    pub(crate) max_life: u64,
    /// Service-account tokens that were shown, the driver's and the pod's.
    pub(crate) shown: Vec<(String, String)>,
}

/// What became of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fate {
    pub(crate) renewals: usize,
    pub(crate) max_date: u64,
    pub(crate) cancelled: bool,
}

impl Controller {
    fn new(clock: Clock) -> Self {
        let state = State { interval: DAY, max_life: 7 * DAY, ..State::default() };
        Self { state: Mutex::new(state), clock, gate: Semaphore::new(Semaphore::MAX_PERMITS) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn start(self: &Arc<Self>) {
        let (connections, incoming) = mpsc::channel(1);
        let server = Server::builder()
            .add_service(TokenServiceServer::from_arc(self.clone()))
            .serve_with_incoming(ReceiverStream::new(incoming));
        tokio::spawn(async { server.await.unwrap() });
        let mut state = self.lock();
        (state.connections, state.broken) = (Some(connections), CancellationToken::new());
    }

    /// Goes down, and breaks its connections.
    pub(crate) fn stop(&self) {
        let mut state = self.lock();
        state.connections = None;
        state.broken.cancel();
    }

    fn channel(self: Arc<Self>) -> Channel {
        let connector = tower::service_fn(move |_| {
            let state = self.lock();
            let (connections, broken) = (state.connections.clone(), state.broken.clone());
            async move {
                let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
                let (ours, mut near) = tokio::io::duplex(65_536);
                let (mut far, theirs) = tokio::io::duplex(65_536);
                connections.ok_or_else(refused)?.send(Ok(theirs)).await.map_err(|_| refused())?;
                tokio::spawn(broken.run_until_cancelled_owned(async move {
                    tokio::io::copy_bidirectional(&mut near, &mut far).await
                }));
                Ok::<_, io::Error>(hyper_util::rt::TokioIo::new(ours))
            }
        });
        endpoint(&"controller.example:9443".parse().unwrap()).connect_with_connector_lazy(connector)
    }

    /// Numbers of the tokens that are not cancelled.
    pub(crate) fn live(&self) -> Vec<u8> {
        self.lock().tokens.iter().filter(|(_, fate)| !fate.cancelled).map(|(number, _)| *number).collect()
    }

    pub(crate) fn renewals(&self, number: u8) -> usize {
        self.lock().tokens[&number].renewals
    }

    /// The API server has these addresses of a pod from now on.
    pub(crate) fn tell(&self, uid: &str, addresses: &[&str]) {
        let addresses: Vec<String> = addresses.iter().map(|address| (*address).to_owned()).collect();
        let mut state = self.lock();
        state.addresses.insert(uid.to_owned(), addresses.clone());
        state.watchers.retain(|watcher| watcher.try_send(Ok(event(uid, &addresses))).is_ok());
    }

    /// Streams that are open.
    pub(crate) fn watchers(&self) -> usize {
        let mut state = self.lock();
        state.watchers.retain(|watcher| !watcher.is_closed());
        state.watchers.len()
    }

    /// Ends all streams, as the controller does now and then.
    pub(crate) fn end_streams(&self) {
        self.lock().watchers.clear();
    }

    fn now(&self) -> u64 {
        u64::try_from(self.clock.now().as_millisecond()).unwrap()
    }

    /// Remembers who called, and refuses if that is to be.
    fn enter<T>(&self, request: &Request<T>, pod_token: &str) -> Result<(), Status> {
        let mut state = self.lock();
        let driver = request.metadata().get("authorization").unwrap().to_str().unwrap().to_owned();
        state.shown.push((driver, pod_token.to_owned()));
        state.refuse.clone().map_or(Ok(()), Err)
    }
}

fn event(uid: &str, addresses: &[String]) -> WatchEvent {
    let addresses = PodAddresses { pod_uid: uid.to_owned(), addresses: addresses.to_vec() };
    WatchEvent { event: Some(Event::PodAddresses(addresses)) }
}

fn identifier(number: u8) -> Vec<u8> {
    vec![0, 200, number]
}

#[tonic::async_trait]
impl TokenService for Controller {
    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<IssueResponse>, Status> {
        self.enter(&request, &request.get_ref().pod_token)?;
        self.gate.acquire().await.unwrap().forget();
        let (now, mut state) = (self.now(), self.lock());
        let addresses = request.into_inner().addresses;
        let mut answer = IssueResponse {
            user: "etl".to_owned(),
            cluster: "main".to_owned(),
            address_verification: state.verification.into(),
            unsealed: state.unsealed,
            ..IssueResponse::default()
        };
        if state.verification == AddressVerification::Strict && addresses.is_none() {
            return Ok(Response::new(answer));
        }
        state.shown_addresses.extend(addresses.map(Some));
        let number = u8::try_from(state.tokens.len() + 1).unwrap();
        let max_date = now + state.max_life;
        state.tokens.insert(number, Fate { renewals: 0, max_date, cancelled: false });
        answer.check_after_seconds = state.check_after_seconds;
        answer.tokens = vec![IssuedToken {
            token: Some(Token {
                identifier: identifier(number),
                password: format!("{PASSWORD}-{number}").into(),
                kind: "HDFS_DELEGATION_TOKEN".to_owned(),
                services: vec!["10.0.0.1:8020".to_owned(), "nn1.example:8020".to_owned()],
            }),
            issue_date: now,
            renew_date: (now + state.interval).min(max_date),
            max_date,
            sequence_number: number.into(),
        }];
        if let Some(mangle) = state.mangle {
            mangle(&mut answer);
        }
        Ok(Response::new(answer))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        self.enter(&request, &request.get_ref().pod_token)?;
        let (now, mut state) = (self.now(), self.lock());
        let interval = state.interval;
        let renewed = request.into_inner().tokens.into_iter().map(|token| {
            let number = *token.identifier.last().unwrap();
            assert_eq!(token.password, format!("{PASSWORD}-{number}").as_bytes());
            let fate = state.tokens.get_mut(&number).unwrap();
            assert!(!fate.cancelled, "a cancelled token is renewed");
            fate.renewals += 1;
            (now + interval).min(fate.max_date)
        });
        Ok(Response::new(RenewResponse { renew_dates: renewed.collect() }))
    }

    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        self.enter(&request, &request.get_ref().pod_token)?;
        let mut state = self.lock();
        let CheckRequest { addresses, tokens, .. } = request.into_inner();
        let addresses_verified = addresses.is_some();
        state.shown_addresses.push(addresses);
        let kept = Kept { check_after_seconds: state.check_after_seconds, addresses_verified };
        let outcome = state.outcome.clone().unwrap_or(Outcome::Kept(kept));
        if let Outcome::Revoked(_) = outcome {
            for token in tokens {
                state.tokens.get_mut(token.identifier.last().unwrap()).unwrap().cancelled = true;
            }
        }
        Ok(Response::new(CheckResponse { outcome: Some(outcome) }))
    }

    type WatchStream = ReceiverStream<Result<WatchEvent, Status>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        assert!(request.metadata().get("grpc-timeout").is_none(), "a stream has no end of its own");
        let (events, stream) = mpsc::channel(100);
        let mut state = self.lock();
        state.opened_streams += 1;
        if let Some(refusal) = state.refuse.clone() {
            return Err(refusal);
        }
        for (uid, addresses) in &state.addresses {
            events.try_send(Ok(event(uid, addresses))).unwrap();
        }
        state.watchers.push(events);
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        self.enter(&request, "")?;
        let mut state = self.lock();
        for token in request.into_inner().tokens {
            state.tokens.get_mut(token.identifier.last().unwrap()).unwrap().cancelled = true;
        }
        Ok(Response::new(ReleaseResponse {}))
    }
}

/// So many milliseconds of the bed's time.
pub(crate) async fn pass(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

/// A time of the bed.
pub(crate) fn after(start: Timestamp, milliseconds: u64) -> Timestamp {
    start + Duration::from_millis(milliseconds)
}
