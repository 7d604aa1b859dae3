//! A file system in memory for each volume: the only privileged code. Unmounting never follows a symbolic link, and
//! nothing here looks at what is in a volume.

use std::{
    ffi::OsString,
    fmt::Write,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};
use process::fault;
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statvfs, statx};
use tracing::warn;

use crate::config::TmpfsConfig;

/// Mounts and unmounts volumes. A trait so that tests can make each step fail.
pub(crate) trait Mounter: Send + Sync + 'static {
    /// Mounts an empty file system on the directory `target`. Its root belongs to `group`, if there is one, and only
    /// that may then read it.
    ///
    /// # Errors
    /// When the system refuses.
    fn mount(&self, target: &Path, group: Option<u32>) -> io::Result<()>;

    /// Unmounts what was mounted last on `target`.
    ///
    /// # Errors
    /// When the system refuses.
    fn unmount(&self, target: &Path) -> io::Result<()>;

    /// Whether something is mounted on `target`. Nothing is on what does not exist.
    ///
    /// # Errors
    /// When the system refuses.
    fn is_mounted(&self, target: &Path) -> io::Result<bool>;

    /// Everything that is mounted anywhere, in the order in which it was.
    ///
    /// # Errors
    /// When the system refuses.
    fn mounts(&self) -> io::Result<Vec<Mounted>>;
}

/// A file system that is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mounted {
    pub(crate) on: PathBuf,
    /// One of our volumes.
    pub(crate) ours: bool,
}

/// The real one: tmpfs without set-user-id, devices or programs, never swapped out where the kernel can.
#[derive(Debug)]
pub(crate) struct Tmpfs {
    size: u64,
    context: Option<String>,
}

/// Files, directories and links that a volume may have. Ours has about ten, and twice that while they are replaced.
const INODES: u32 = 256;

/// Source that the mount table shows.
const SOURCE: &str = proto::DRIVER_NAME;

impl Tmpfs {
    /// File systems of this configuration, labelled if SELinux is on here.
    pub(crate) fn new(config: &TmpfsConfig) -> Self {
        let context = selinux_is_on().then(|| config.selinux_context.clone());
        Self { size: config.size, context }
    }

    fn options(&self, group: Option<u32>) -> String {
        let mode = directory_mode(group);
        let mut options = format!("size={},nr_inodes={INODES},mode={mode:04o}", self.size);
        if let Some(group) = group {
            let _ = write!(options, ",gid={group}"); // writing to a string cannot fail
        }
        if let Some(context) = &self.context {
            let _ = write!(options, ",context=\"{context}\"");
        }
        options
    }
}

impl Mounter for Tmpfs {
    fn mount(&self, target: &Path, group: Option<u32>) -> io::Result<()> {
        let options = self.options(group);
        let mount = |options: &str| {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some(SOURCE), target, Some("tmpfs"), flags, Some(options))
        };
        fault::point("mount:before");
        // Linux before 6.4 does not know noswap.
        match mount(&format!("{options},noswap")) {
            Err(Errno::EINVAL) => mount(&options)?,
            mounted => mounted?,
        }
        fault::point("mount:after");
        Ok(())
    }

    fn unmount(&self, target: &Path) -> io::Result<()> {
        fault::point("unmount:before");
        match umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
            Err(Errno::EBUSY) => {
                warn!(target = %target.display(), "Volume is in use on the host: detaching it");
                umount2(target, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH)?;
            }
            unmounted => unmounted?,
        }
        fault::point("unmount:after");
        Ok(())
    }

    fn is_mounted(&self, target: &Path) -> io::Result<bool> {
        let status = match statx(CWD, target, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty()) {
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(false),
            status => status?,
        };
        // Linux before 5.8 does not say; 5.8 is older than every Kubernetes we support needs.
        if !status.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel cannot tell a mount point"));
        }
        Ok(status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
    }

    fn mounts(&self) -> io::Result<Vec<Mounted>> {
        let table = fs::read("/proc/thread-self/mountinfo")?;
        Ok(table.split(|byte| *byte == b'\n').filter_map(mounted).collect())
    }
}

/// Reads a line of the kernel's table of mounts: the place is the fifth field, and after the field `-` come type and
/// source.
fn mounted(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|byte| *byte == b' ');
    let on = PathBuf::from(OsString::from_vec(unescaped(fields.nth(4)?)));
    let mut end = fields.skip_while(|field| *field != b"-").skip(1);
    let ours = end.next()? == b"tmpfs" && end.next()? == SOURCE.as_bytes();
    Some(Mounted { on, ours })
}

/// The kernel writes what would be mistaken for the end of a field as a backslash and three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let code = after.first_chunk::<3>().filter(|_| first == b'\\');
        let byte = code.and_then(|code| u8::from_str_radix(str::from_utf8(code).ok()?, 8).ok());
        text.push(byte.unwrap_or(first));
        rest = if byte.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    text
}

/// How full a file system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) bytes: Amount,
    pub(crate) inodes: Amount,
}

/// How much there is of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) total: u64,
    pub(crate) available: u64,
}

/// How full the file system is that is mounted on `target`.
///
/// # Errors
/// When the system refuses.
pub(crate) fn usage(target: &Path) -> io::Result<Usage> {
    let status = statvfs(target)?;
    let bytes = |blocks: u64| blocks.saturating_mul(status.f_frsize);
    Ok(Usage {
        bytes: Amount { total: bytes(status.f_blocks), available: bytes(status.f_bavail) },
        inodes: Amount { total: status.f_files, available: status.f_favail },
    })
}

/// Mode of the directories of a volume with or without a group.
pub(crate) fn directory_mode(group: Option<u32>) -> u32 {
    if group.is_some() { 0o550 } else { 0o555 }
}

/// The kernel registers this file system only when SELinux is on.
fn selinux_is_on() -> bool {
    fs::read_to_string("/proc/filesystems")
        .is_ok_and(|list| list.lines().any(|line| line.ends_with("\tselinuxfs")))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        os::unix::fs::MetadataExt,
        panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    };

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// Runs a test as root in a mount namespace of its own, which ends with it. Threads that it starts are in it too.
    pub(crate) fn in_private_mounts<T: Send>(test: impl FnOnce() -> T + Send) -> T {
        let ended = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNS).expect("the tests must run as root");
                let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
                mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
                catch_unwind(AssertUnwindSafe(test))
            });
            thread.join()
        });
        ended.flatten().unwrap_or_else(|panic| resume_unwind(panic))
    }

    pub(crate) fn tmpfs() -> Tmpfs {
        Tmpfs { size: 1024 * 1024, context: None }
    }

    fn mounts_on(target: &Path) -> Vec<String> {
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let target = target.display().to_string();
        table.lines().filter(|line| line.split(' ').nth(4) == Some(&target)).map(str::to_owned).collect()
    }

    #[test]
    fn mounts_what_nobody_can_run_or_swap_and_only_the_group_can_read() {
        in_private_mounts(|| {
            let dir = tempfile::tempdir().unwrap();
            let target = dir.path().join("mount");
            fs::create_dir(&target).unwrap();
            assert!(!tmpfs().is_mounted(&target).unwrap());
            tmpfs().mount(&target, Some(2000)).unwrap();
            assert!(tmpfs().is_mounted(&target).unwrap());
            let shown = mounts_on(&target).pop().unwrap();
            for part in ["nosuid", "nodev", "noexec", "hadoop-token.csi", "size=1024k", "nr_inodes=256"] {
                assert!(shown.contains(part), "{part} in {shown}");
            }
            let root = fs::metadata(&target).unwrap();
            assert_eq!((root.mode() & 0o7777, root.uid(), root.gid()), (0o550, 0, 2000));
            tmpfs().unmount(&target).unwrap();
            assert!(!tmpfs().is_mounted(&target).unwrap());
        });
    }

    #[test]
    fn without_a_group_everybody_in_the_pod_can_read() {
        in_private_mounts(|| {
            let dir = tempfile::tempdir().unwrap();
            tmpfs().mount(dir.path(), None).unwrap();
            let root = fs::metadata(dir.path()).unwrap();
            assert_eq!((root.mode() & 0o7777, root.gid()), (0o555, 0));
            tmpfs().unmount(dir.path()).unwrap();
        });
    }

    #[test]
    fn the_size_is_bounded() {
        in_private_mounts(|| {
            let dir = tempfile::tempdir().unwrap();
            tmpfs().mount(dir.path(), None).unwrap();
            let error = fs::write(dir.path().join("big"), vec![0; 2 * 1024 * 1024]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            let full = usage(dir.path()).unwrap();
            assert_eq!(full.bytes, Amount { total: 1024 * 1024, available: 0 });
            assert_eq!((full.inodes.total, full.inodes.available), (256, 254));
            tmpfs().unmount(dir.path()).unwrap();
        });
    }

    #[test]
    fn a_volume_in_use_is_detached() {
        in_private_mounts(|| {
            let dir = tempfile::tempdir().unwrap();
            tmpfs().mount(dir.path(), None).unwrap();
            let held = fs::File::create(dir.path().join("file")).unwrap();
            tmpfs().unmount(dir.path()).unwrap();
            assert!(!tmpfs().is_mounted(dir.path()).unwrap());
            drop(held);
        });
    }

    #[test]
    fn neither_links_nor_missing_paths_nor_directories_in_a_mount_are_mount_points() {
        in_private_mounts(|| {
            let dir = tempfile::tempdir().unwrap();
            let (target, link) = (dir.path().join("mount"), dir.path().join("link"));
            fs::create_dir(&target).unwrap();
            std::os::unix::fs::symlink(&target, &link).unwrap();
            tmpfs().mount(&target, None).unwrap();
            fs::create_dir(target.join("sub")).unwrap();
            fs::write(target.join("file"), "").unwrap();
            for other in [link.clone(), target.join("sub"), target.join("gone"), target.join("file/below")] {
                assert!(!tmpfs().is_mounted(&other).unwrap(), "{}", other.display());
            }
            assert!(tmpfs().unmount(&link).is_err());
            assert!(tmpfs().is_mounted(&target).unwrap());
            tmpfs().unmount(&target).unwrap();
        });
    }

    #[test]
    fn all_mounts_are_listed_in_order_and_ours_are_told_from_others() {
        in_private_mounts(|| {
            let dir = tempfile::tempdir().unwrap();
            let target = dir.path().join("with space\\and more");
            fs::create_dir(&target).unwrap();
            tmpfs().mount(&target, None).unwrap();
            mount(Some("another"), &target, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            let here: Vec<_> = tmpfs().mounts().unwrap().into_iter().filter(|m| m.on == target).collect();
            assert_eq!(here.iter().map(|mounted| mounted.ours).collect::<Vec<_>>(), [true, false]);
            tmpfs().unmount(&target).unwrap();
            tmpfs().unmount(&target).unwrap();
            assert!(tmpfs().mounts().unwrap().iter().all(|mounted| mounted.on != target));
        });
    }

    #[test]
    fn lines_of_the_mount_table_are_read_whatever_optional_fields_they_have() {
        let on = |path: &str, ours| Some(Mounted { on: path.into(), ours });
        let line = |text: &str| mounted(text.as_bytes());
        assert_eq!(line("36 35 0:9 / /a rw - tmpfs hadoop-token.csi rw"), on("/a", true));
        assert_eq!(
            line("36 35 0:9 / /a\\040b rw shared:1 master:2 - ext4 hadoop-token.csi rw"),
            on("/a b", false)
        );
        assert_eq!(line("36 35 0:9 / /a\\9\\04 rw - tmpfs tmpfs rw"), on("/a\\9\\04", false));
        assert_eq!(
            (line(""), line("36 35 0:9 / /a rw tmpfs"), line("36 35 0:9 / /a rw -")),
            (None, None, None)
        );
    }

    #[test]
    fn the_label_is_quoted() {
        let context = Some("system_u:object_r:container_file_t:s0:c1,c2".to_owned());
        let options = Tmpfs { size: 131_072, context }.options(None);
        assert_eq!(
            options,
            "size=131072,nr_inodes=256,mode=0555,context=\"system_u:object_r:container_file_t:s0:c1,c2\""
        );
    }
}
