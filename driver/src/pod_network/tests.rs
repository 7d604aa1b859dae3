//! Mount tables in every form, and real processes in namespaces of their own. To be run as root.

use std::process::{Child, Command};

use nix::{
    mount::{MsFlags, mount},
    sched::unshare,
};
use proptest::prelude::*;

use super::*;
use crate::{
    mount::{
        Mounter,
        tests::{in_private_mounts, tmpfs},
    },
    publish_request::tests::UID,
};

const TABLE: &[u8] = b"\
    22 27 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:5 - proc proc rw\n\
    1201 1100 0:312 / /etc/hadoop-token ro,nosuid,nodev,noexec,relatime - tmpfs hadoop-token.csi rw,size=1024k\n\
    36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n";

#[test]
fn a_mount_table_tells_device_and_mount_point() {
    let found: Vec<_> = mounts(TABLE).map(|(device, point)| (device.major, device.minor, point)).collect();
    let expected: [(u32, u32, &[u8]); 3] =
        [(0, 21, b"/proc"), (0, 312, b"/etc/hadoop-token"), (98, 0, b"/mnt\\0402")];
    assert_eq!(found, expected);
}

#[test]
fn kubelets_own_mount_points_are_known_below_any_root() {
    let check = |point: &str, expected| {
        assert_eq!(is_kubelets_view(point.as_bytes(), "uid-1", "hadoop"), expected, "{point}");
    };
    check("/var/lib/kubelet/pods/uid-1/volumes/kubernetes.io~csi/hadoop/mount", true);
    check("/host/kubelet/pods/uid-1/volumes/kubernetes.io~csi/hadoop/mount", true);
    check("/uid-1/volumes/kubernetes.io~csi/hadoop/mount", true);
    check("/var/lib/kubelet/pods/uid-1/volume-subpaths/hadoop/main/0", true);
    check("/var/lib/kubelet/pods/uid-2/volumes/kubernetes.io~csi/hadoop/mount", false);
    check("/volumes/kubernetes.io~csi/hadoop/mount", false);
    check("/etc/hadoop-token", false);
    check("", false);
}

proptest! {
    #[test]
    fn any_mount_is_read_whatever_stands_around_it(
        before in proptest::collection::vec(any::<u8>(), 0..200),
        major: u32, minor: u32,
        point in "/[ -~&&[^ \\\\]]{0,60}",
        options in "[a-z,=0-9]{1,20}( (shared|master):[0-9]{1,4})? - tmpfs x rw",
    ) {
        let mut table = before;
        table.extend_from_slice(format!("\n12 11 {major}:{minor} / {point} {options}\n").as_bytes());
        let last = mounts(&table).last();
        prop_assert_eq!(last, Some((Device { major, minor }, point.as_bytes())));
    }

    #[test]
    fn no_bytes_make_it_fail(table: Vec<u8>, uid in "[a-z0-9-]{1,36}", volume in "[a-z0-9-]{1,63}") {
        for (_, point) in mounts(&table) {
            is_kubelets_view(point, &uid, &volume);
        }
    }
}

/// Two processes of one container, killed when dropped.
pub(super) struct Pod(pub(super) [Child; 2]);

impl Drop for Pod {
    fn drop(&mut self) {
        for process in &mut self.0 {
            let _ = process.kill().and_then(|()| process.wait()); // it may have ended
        }
    }
}

/// Where a pod's network is.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Net {
    Own,
    Host,
}

/// Starts processes as a container runtime does: in mounts of its own, with the volume at a mount point of its own,
/// and once `ip` has given its network the `addresses`.
pub(super) fn start_pod(target: &Path, own: &Path, net: Net, addresses: &[&str]) -> Pod {
    thread::scope(|scope| {
        let starting = scope.spawn(|| {
            let network = if net == Net::Own { CloneFlags::CLONE_NEWNET } else { CloneFlags::empty() };
            unshare(CloneFlags::CLONE_NEWNS | network).unwrap();
            if target != own {
                fs::create_dir_all(own).unwrap();
                mount(Some(target), own, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
            }
            let ip = |args: &str| {
                assert!(Command::new("ip").args(args.split(' ')).status().unwrap().success(), "ip {args}");
            };
            if net == Net::Own {
                ip("link set lo up");
                ip("link add eth0 type bridge");
                ip("link set eth0 up");
            }
            addresses.iter().for_each(|address| ip(&format!("address add {address} dev eth0")));
            Pod([(); 2].map(|()| Command::new("sleep").arg("600").spawn().unwrap()))
        });
        starting.join().unwrap()
    })
}

/// A volume, mounted for kubelet, and a directory for mount points.
pub(super) fn with_a_volume(test: impl FnOnce(&Wanted, &Path) + Send) {
    in_private_mounts(|| {
        let dir = tempfile::tempdir().unwrap();
        mount(Some("test"), dir.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let target = dir.path().join(format!("pods/{UID}/volumes/kubernetes.io~csi/hadoop/mount"));
        fs::create_dir_all(&target).unwrap();
        tmpfs().mount(&target, None).unwrap();
        let wanted = Wanted { target, pod_uid: UID.to_owned(), volume: "hadoop".to_owned() };
        test(&wanted, dir.path());
    });
}

/// With ourselves as a process of the node: the first one may be out of reach where tests run.
fn look_all(wanted: &[Wanted]) -> Vec<Sight> {
    look_on(Path::new("/proc/self"), wanted, Bounds::OF_A_LOOK).unwrap()
}

fn look(wanted: &Wanted) -> Sight {
    look_all(std::slice::from_ref(wanted)).remove(0)
}

fn seen(addresses: &[&str]) -> Sight {
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    Sight::Pod(PodAddresses { host_network: false, addresses })
}

#[test]
fn the_addresses_of_a_pod_are_those_in_its_network_namespace() {
    with_a_volume(|wanted, dir| {
        assert_eq!(look(wanted), Sight::Nobody);
        let pod = start_pod(&wanted.target, &dir.join("token"), Net::Own, &["10.9.8.7/24", "fd00::7/64"]);
        assert_eq!(look(wanted), seen(&["10.9.8.7", "fd00::7"]));
        drop(pod);
        assert_eq!(look(wanted), Sight::Nobody);
    });
}

#[test]
fn a_pod_without_addresses_has_none() {
    with_a_volume(|wanted, dir| {
        let _pod = start_pod(&wanted.target, &dir.join("token"), Net::Own, &[]);
        assert_eq!(look(wanted), seen(&[]));
    });
}

#[test]
fn a_pod_in_the_nodes_network_is_told_as_such() {
    with_a_volume(|wanted, dir| {
        let _pod = start_pod(&wanted.target, &dir.join("token"), Net::Host, &[]);
        let Sight::Pod(found) = look(wanted) else { panic!("{:?}", look(wanted)) };
        assert!(found.host_network);
    });
}

#[test]
fn who_sees_the_volume_through_kubelets_directory_does_not_count() {
    with_a_volume(|wanted, dir| {
        let _agent = start_pod(&wanted.target, &wanted.target, Net::Own, &["10.1.1.1/24"]);
        assert_eq!(look(wanted), Sight::Nobody);
        let _pod = start_pod(&wanted.target, &dir.join("token"), Net::Own, &["10.9.8.7/24"]);
        // The pod itself still has kubelet's mount as well.
        assert_eq!(look(wanted), seen(&["10.9.8.7"]));
    });
}

#[test]
fn containers_of_one_pod_agree() {
    with_a_volume(|wanted, dir| {
        let first = start_pod(&wanted.target, &dir.join("one"), Net::Own, &["10.9.8.7/24"]);
        let network = File::open(format!("/proc/{}/ns/net", first.0[0].id())).unwrap();
        let _second = thread::scope(|scope| {
            let join = || {
                setns(network, CloneFlags::CLONE_NEWNET).unwrap();
                start_pod(&wanted.target, &dir.join("two"), Net::Host, &[])
            };
            scope.spawn(join).join().unwrap()
        });
        assert_eq!(look(wanted), seen(&["10.9.8.7"]));
    });
}

#[test]
fn a_volume_seen_from_two_networks_is_unclear() {
    with_a_volume(|wanted, dir| {
        let _pod = start_pod(&wanted.target, &dir.join("one"), Net::Own, &["10.9.8.7/24"]);
        let thief = start_pod(&wanted.target, &dir.join("two"), Net::Own, &["10.9.8.8/24"]);
        let Sight::Unclear(why) = look(wanted) else { panic!("{:?}", look(wanted)) };
        assert!(why.contains("different network namespaces"), "{why}");
        drop(thief);
        assert_eq!(look(wanted), seen(&["10.9.8.7"]));
    });
}

#[test]
fn volumes_of_different_pods_are_told_apart_in_one_look() {
    with_a_volume(|first, dir| {
        let target = dir.join("pods/other/volumes/kubernetes.io~csi/hadoop/mount");
        fs::create_dir_all(&target).unwrap();
        tmpfs().mount(&target, None).unwrap();
        let second = Wanted { target, pod_uid: "other".to_owned(), volume: "hadoop".to_owned() };
        let _pods = [
            start_pod(&first.target, &dir.join("one"), Net::Own, &["10.9.8.7/24"]),
            start_pod(&second.target, &dir.join("two"), Net::Own, &["10.9.8.8/24"]),
        ];
        assert_eq!(look_all(&[second, first.clone()]), [seen(&["10.9.8.8"]), seen(&["10.9.8.7"])]);
    });
}

#[test]
fn a_volume_that_is_not_mounted_any_more_is_seen_by_nobody() {
    with_a_volume(|wanted, dir| {
        // A pod that sees the file system which the volume's directory is in, as all do that have files of the node.
        let _pod = start_pod(dir, Path::new("/mnt"), Net::Own, &["10.9.8.7/24"]);
        tmpfs().unmount(&wanted.target).unwrap();
        assert_eq!(look(wanted), Sight::Nobody);
        fs::remove_dir(&wanted.target).unwrap();
        assert_eq!(look(wanted), Sight::Nobody);
    });
}
