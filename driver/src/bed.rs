//! What the tests of volumes stand on: the driver's services on a real Unix socket, real mounts in a namespace of the
//! test's own, records in a temporary directory, and a controller in memory that issues tokens and remembers what
//! became of them. Time stands still unless everybody waits for it.

mod controller;

use std::{
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
};
use tokio::{task::JoinHandle, time::Duration};
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::{
    clock::Clock,
    controller_client::ControllerClient,
    csi,
    mount::{
        Mounted, Mounter,
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
pub(crate) use controller::Controller;

pub(crate) const HOUR: u64 = 3_600_000;
pub(crate) const DAY: u64 = 24 * HOUR;

/// Bytes that must be in no record.
pub(crate) const PASSWORD: &str = "p4ssw0rd";
pub(crate) const JWT: &str = "jwt-of-the-pod";

/// Runs a test on a bed of its own.
pub(crate) fn on_a_bed(test: impl AsyncFnOnce(Bed) + Send) {
    in_private_mounts(|| {
        let dir = tempfile::tempdir().unwrap();
        on_a_bed_in(dir.path(), test);
    });
}

/// Runs a test on the bed that is in `dir`, in whose namespace of mounts this thread is already.
pub(crate) fn on_a_bed_in(dir: &Path, test: impl AsyncFnOnce(Bed)) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let bed = Bed::start(Folder(dir.to_owned())).await;
        test(bed).await;
    });
}

/// Where a bed has its files.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

pub(crate) struct Bed {
    pub(crate) dir: Folder,
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
    async fn start(dir: Folder) -> Self {
        fs::write(dir.path().join("own-token"), "jwt-of-the-driver\n").unwrap();
        let clock = Clock::paused("2026-11-23T00:00:00Z".parse().unwrap());
        let controller = Arc::new(Controller::new(clock.clone(), dir.path().join("tokens.json")));
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
        let address = "controller.example:9443".to_owned();
        let client = ControllerClient::over(channel, address, own_token, self.clock.clone(), reachable);
        let volumes = Volumes::new(
            store,
            Box::new(self.mounter.clone()),
            Box::new(self.networks.clone()),
            client,
            self.clock.clone(),
        );
        volumes.recover(&self.pods()).unwrap();
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

    /// Publishes the volume of another pod.
    pub(crate) async fn publish_for(&self, uid: &str) -> Result<(), Status> {
        let mut request = self.request();
        request.volume_id = VolumeId::of(uid, "hadoop").to_string();
        request.target_path = self.target_of(uid).display().to_string();
        let pod_uid = request.volume_context.values_mut().find(|value| *value == UID).unwrap();
        *pod_uid = uid.to_owned();
        fs::create_dir_all(self.target_of(uid).parent().unwrap()).unwrap();
        self.node().node_publish_volume(request).await.map(|_| ())
    }

    pub(crate) fn target_of(&self, uid: &str) -> PathBuf {
        self.target().display().to_string().replace(UID, uid).into()
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
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let pods = self.pods();
        let ours = table.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
        for target in ours.filter(|target| target.starts_with(&pods)).collect::<Vec<_>>().into_iter().rev() {
            tmpfs().unmount(target).unwrap();
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

    fn mounts(&self) -> io::Result<Vec<Mounted>> {
        tmpfs().mounts()
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

/// So many milliseconds of the bed's time.
pub(crate) async fn pass(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

/// A time of the bed.
pub(crate) fn after(start: Timestamp, milliseconds: u64) -> Timestamp {
    start + Duration::from_millis(milliseconds)
}
