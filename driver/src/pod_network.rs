//! The addresses a pod really has, seen from the node: those in the network namespace of the processes that see the
//! very file system we mounted for its volume. Found from /proc alone, without cgroups or the container runtime,
//! whatever those call things. Only reads; what cannot be told for certain is said to be unclear, never guessed.

mod views;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
};

use nix::{
    ifaddrs::getifaddrs,
    sched::{CloneFlags, setns},
};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags, openat, statx};
use tracing::warn;

use self::views::{Bounds, Views};

/// Who looks into pods' network namespaces. A trait so that tests can do without processes.
pub(crate) trait PodNetworks: Send + Sync + 'static {
    /// What can be seen of the pods of these volumes, in their order. One look at all processes serves all volumes.
    ///
    /// # Errors
    /// When processes cannot be looked at. It says nothing about the pods.
    fn look(&self, wanted: &[Wanted]) -> io::Result<Vec<Sight>>;
}

/// A mounted volume whose pod is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Where it is mounted for kubelet.
    pub(crate) target: PathBuf,
    pub(crate) pod_uid: String,
    /// Name of the volume in the pod's spec.
    pub(crate) volume: String,
}

/// What can be seen of a volume's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    /// No process of a pod has the volume: no container runs yet.
    Nobody,
    Pod(PodAddresses),
    /// Why it cannot be told, in words.
    Unclear(String),
}

/// The addresses in a pod's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodAddresses {
    /// It is the node's own namespace.
    pub(crate) host_network: bool,
    /// All but loopback and link-local ones.
    pub(crate) addresses: BTreeSet<IpAddr>,
}

/// The real one: this node's processes.
#[derive(Debug)]
pub(crate) struct Processes;

const PROC: &str = "/proc";

impl PodNetworks for Processes {
    fn look(&self, wanted: &[Wanted]) -> io::Result<Vec<Sight>> {
        if std::process::id() == 1 {
            return Err(io::Error::other(
                "the processes of pods cannot be seen: the node plugin's pod must have hostPID: true",
            ));
        }
        look_on(&Path::new(PROC).join("1"), wanted, Bounds::OF_A_LOOK)
    }
}

/// Looks at all processes; `host` is one of the node's own, in its network and mounts.
fn look_on(host: &Path, wanted: &[Wanted], bounds: Bounds) -> io::Result<Vec<Sight>> {
    let host = Namespaces::of(host)?;
    let own = Namespaces::of(&Path::new(PROC).join("self"))?;
    let mut searches = wanted.iter().map(Search::new).collect::<Vec<_>>();
    let mut views = Views::new(bounds);
    for entry in fs::read_dir(PROC)? {
        let entry = entry?;
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        let Some(pid) = pid else { continue };
        // A process that ended meanwhile, or is ending, has no say.
        let Ok(process) = Process::open(pid, &entry.path()) else { continue };
        let Ok((_, mounts)) = process.mounts() else { continue };
        if mounts == host.mounts || mounts == own.mounts {
            continue;
        }
        for number in views.of(&process, &searches)? {
            if let Some(search) = searches.get_mut(number) {
                search.found_by(&process);
            }
        }
    }
    Ok(searches.into_iter().map(|search| search.conclude(&host)).collect())
}

/// A namespace's identity: device and inode of its file.
type Namespace = (u64, u64);

struct Namespaces {
    mounts: Namespace,
    network: Namespace,
}

impl Namespaces {
    fn of(process: &Path) -> io::Result<Self> {
        let namespace = |name| fs::metadata(process.join("ns").join(name)).map(|m| (m.dev(), m.ino()));
        Ok(Self { mounts: namespace("mnt")?, network: namespace("net")? })
    }
}

/// A process, by an open handle of its directory: when it ends, nothing more can be opened there, and never will its
/// number lead to another one.
struct Process {
    pid: u32,
    directory: File,
}

impl Process {
    fn open(pid: u32, path: &Path) -> io::Result<Self> {
        Ok(Self { pid, directory: File::open(path)? })
    }

    fn mount_table(&self) -> io::Result<File> {
        let file = openat(&self.directory, "mountinfo", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(file.into())
    }

    fn mounts(&self) -> io::Result<(File, Namespace)> {
        open_namespace(&self.directory, "ns/mnt")
    }

    fn network(&self) -> io::Result<(File, Namespace)> {
        open_namespace(&self.directory, "ns/net")
    }
}

fn open_namespace(process: &File, name: &str) -> io::Result<(File, Namespace)> {
    let file = File::from(openat(process, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
    let status = file.metadata()?;
    Ok((file, (status.dev(), status.ino())))
}

/// The search for the network namespace of one volume's pod.
struct Search<'a> {
    wanted: &'a Wanted,
    /// Number of the volume's file system; nothing when it is not mounted any more.
    device: Option<Device>,
    found: Option<Found>,
    /// A second network namespace in which the volume is seen.
    unclear: Option<String>,
}

struct Found {
    pid: u32,
    file: File,
    namespace: Namespace,
}

impl<'a> Search<'a> {
    fn new(wanted: &'a Wanted) -> Self {
        let device = Device::mounted_on(&wanted.target).unwrap_or_else(|error| {
            warn!(target = %wanted.target.display(), %error, "Failed to look at a mounted volume");
            None
        });
        Self { wanted, device, found: None, unclear: None }
    }

    /// Whether a mount table has the volume at a mount point that is not kubelet's.
    fn is_seen_in(&self, table: &[u8]) -> bool {
        let (Some(wanted_device), Wanted { pod_uid, volume, .. }) = (self.device, self.wanted) else {
            return false;
        };
        mounts(table).any(|(device, mount_point)| {
            device == wanted_device && !is_kubelets_view(mount_point, pod_uid, volume)
        })
    }

    /// A process sees the volume.
    fn found_by(&mut self, process: &Process) {
        let Ok((file, namespace)) = process.network() else { return };
        match &self.found {
            None => self.found = Some(Found { pid: process.pid, file, namespace }),
            Some(found) if found.namespace == namespace => {}
            Some(found) => {
                self.unclear = Some(format!(
                    "processes {} and {} of the node both see the volume, from different network namespaces",
                    found.pid, process.pid
                ));
            }
        }
    }

    fn conclude(self, host: &Namespaces) -> Sight {
        let found = match (self.unclear, self.found) {
            (Some(why), _) => return Sight::Unclear(why),
            (None, None) => return Sight::Nobody,
            (None, Some(found)) => found,
        };
        let host_network = found.namespace == host.network;
        match addresses_in(found.file) {
            Ok(addresses) => Sight::Pod(PodAddresses { host_network, addresses }),
            Err(error) => Sight::Unclear(format!(
                "the network namespace of process {} cannot be looked into: {error}",
                found.pid
            )),
        }
    }
}

/// The addresses in a network namespace. A thread enters it and never comes back.
fn addresses_in(namespace: File) -> io::Result<BTreeSet<IpAddr>> {
    let looking = thread::Builder::new().name("pod-network".to_owned()).spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        let mut addresses = BTreeSet::new();
        for address in getifaddrs()?.filter_map(|interface| interface.address) {
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            let v6 = address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()));
            addresses.extend(v4.or(v6).filter(|address| !is_local(address)));
        }
        Ok::<_, nix::Error>(addresses)
    })?;
    let looked = looking.join().map_err(|_| io::Error::other("the look ended in a way it must not"))?;
    Ok(looked?)
}

/// Whether an address means nothing outside its interface.
fn is_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local() || v4.is_unspecified(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified(),
    }
}

/// Number of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Device {
    major: u32,
    minor: u32,
}

impl Device {
    /// The file system that is mounted on `target`: not the one that the directory is in, which every pod sees.
    fn mounted_on(target: &Path) -> io::Result<Option<Self>> {
        let status = match statx(CWD, target, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty()) {
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
            status => status?,
        };
        let device = Self { major: status.stx_dev_major, minor: status.stx_dev_minor };
        Ok(status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT).then_some(device))
    }
}

/// File system and mount point of each line of a mount table, as the kernel writes it (proc_pid_mountinfo(5)). Lines
/// that are none are left out.
fn mounts(table: &[u8]) -> impl Iterator<Item = (Device, &[u8])> {
    table.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ').skip(2);
        let device = std::str::from_utf8(fields.next()?).ok()?;
        let (major, minor) = device.split_once(':')?;
        let device = Device { major: major.parse().ok()?, minor: minor.parse().ok()? };
        let _root = fields.next()?;
        Some((device, fields.next()?))
    })
}

/// Whether a mount point is where kubelet has the volume, however far below a root of its own: node agents see the
/// whole directory of pods. The pod's UID is not known before the pod is, so that no manifest can look like it. The
/// names need no unescaping, they are plain.
fn is_kubelets_view(mount_point: &[u8], pod_uid: &str, volume: &str) -> bool {
    let own = format!("/{pod_uid}/volumes/kubernetes.io~csi/{volume}/mount");
    let sub_path = format!("/{pod_uid}/volume-subpaths/{volume}/");
    mount_point.ends_with(own.as_bytes())
        || mount_point.windows(sub_path.len()).any(|window| window == sub_path.as_bytes())
}

#[cfg(test)]
mod tests;
