//! The machine as the bed sees it: mounts of its own over what must not be touched, a bridge for pods, and names for
//! addresses. All of it lives in the bed's namespaces and is gone with them.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    unistd::sethostname,
};

/// Everything the bed writes, in memory.
pub const STATE: &str = "/run/bed";
/// For temporary files of all programs in the bed.
pub const TEMPORARY: &str = "/run/bed/tmp";
/// kubelet's own folder, where it usually is; also in memory.
pub const KUBELET: &str = "/var/lib/kubelet";
/// The node: the pods' bridge, and where every connection of the node's own programs comes from.
pub const NODE_IP: &str = "10.244.0.1";
/// Name of the Kubernetes node.
pub const NODE_NAME: &str = "bed";
/// What pods get their addresses from.
pub const POD_SUBNET: &str = "10.244.0.0/24";
/// The last one that a pod gets.
pub const LAST_POD_IP: &str = "10.244.0.239";
/// A second controller, in a network of its own.
pub const SECOND_CONTROLLER_IP: &str = "10.244.0.250";
/// The API server, for programs in pods.
pub const API_IP: &str = "10.96.0.1";
/// Services get their addresses from here.
pub const SERVICE_SUBNET: &str = "10.96.0.0/16";
/// The KDC.
pub const KDC_IP: &str = "10.245.0.10";
/// The directory, by name.
pub const LDAP_NAME: &str = "ldap.bed.test";

/// Addresses of the bed with their names; the first is what the address is called when asked back.
const HOSTS: [(&str, &str); 6] = [
    ("127.0.0.1", "localhost"),
    (NODE_IP, "bed.bed.test bed controller.bed.test dn1.bed.test dn2.bed.test"),
    (KDC_IP, "kdc.bed.test"),
    ("10.245.0.11", "nn1.bed.test"),
    ("10.245.0.12", "nn2.bed.test"),
    ("10.245.0.13", LDAP_NAME),
];
/// Addresses that need no interface: whatever is in here is the bed itself.
const SERVERS: &str = "10.245.0.0/24";

/// What kubelet would set for the whole machine. It finds these files with its values instead, and leaves be.
const KERNEL_SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Sets up mounts, network and names. For the bed's process 1, before anything else runs there.
pub(crate) fn set_up() -> Result<()> {
    for folder in ["/run", "/var/log"] {
        tmpfs(folder)?;
    }
    for folder in ["bed", "bed/logs", "bed/tmp", "netns", "lock"] {
        fs::create_dir(Path::new("/run").join(folder))?;
    }
    for folder in ["/etc", "/var/lib"] {
        overlay(folder)?;
    }
    fs::create_dir_all(KUBELET)?;
    // What the node plugin mounts in its container must arrive here, and from here in other containers.
    shared_tmpfs(KUBELET)?;
    // `ip netns` would mount it over itself, and containerd could not unmount pods' namespaces from below any more.
    shared_tmpfs("/run/netns")?;
    kernel_settings()?;
    network()?;
    names()
}

fn tmpfs(folder: &str) -> Result<()> {
    mount(Some("bed"), folder, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
        .with_context(|| format!("failed to mount a tmpfs at {folder}"))
}

fn shared_tmpfs(folder: &str) -> Result<()> {
    tmpfs(folder)?;
    mount(None::<&str>, folder, None::<&str>, MsFlags::MS_SHARED, None::<&str>)
        .with_context(|| format!("failed to share {folder}"))
}

/// Lets `folder` be written to, but keeps the writes in the bed.
fn overlay(folder: &str) -> Result<()> {
    let layers = Path::new("/run/overlay").join(folder.trim_start_matches('/').replace('/', "-"));
    let (upper, work) = (layers.join("upper"), layers.join("work"));
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(&work)?;
    let options = format!("lowerdir={folder},upperdir={},workdir={}", upper.display(), work.display());
    mount(Some("bed"), folder, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .with_context(|| format!("failed to mount an overlay over {folder}"))
}

fn kernel_settings() -> Result<()> {
    for (name, value) in KERNEL_SETTINGS {
        let own = Path::new("/run/overlay").join(name.replace('/', "."));
        let real = Path::new("/proc/sys").join(name);
        fs::write(&own, format!("{value}\n"))?;
        mount(Some(&own), &real, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("failed to cover {}", real.display()))?;
    }
    Ok(())
}

fn network() -> Result<()> {
    let node = format!("{NODE_IP}/24");
    let api = format!("{API_IP}/32");
    for words in [
        "link set lo up",
        // An address of its own: otherwise it takes its ports', which come and go with pods, and those that stay send
        // to the old one until they ask again.
        "link add bed0 address 02:00:0a:f4:00:01 type bridge",
        &format!("address add {node} dev bed0"),
        "link set bed0 up",
        // Without `src`, the node's programs would talk to a server from that server's own address.
        &format!("route add local {SERVERS} dev lo src {NODE_IP}"),
        &format!("route add local {api} dev lo src {NODE_IP}"),
    ] {
        let output = Command::new("ip").args(words.split(' ')).output().context("failed to run ip")?;
        ensure!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    }
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("failed to let pods reach the bed's servers")
}

fn names() -> Result<()> {
    sethostname("bed.bed.test").context("failed to set the host name")?;
    let hosts: String = HOSTS.iter().map(|(address, names)| format!("{address} {names}\n")).collect();
    for (file, content) in [
        ("/etc/hosts", hosts),
        ("/etc/resolv.conf", format!("nameserver {NODE_IP}\n")),
        ("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n".to_owned()),
    ] {
        // It may be a link to somewhere outside /etc.
        if fs::symlink_metadata(file).is_ok() {
            fs::remove_file(file)?;
        }
        fs::write(file, content).with_context(|| format!("failed to write {file}"))?;
    }
    Ok(())
}
