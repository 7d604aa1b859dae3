//! The control groups of one bed: one in every hierarchy of the machine (version 1, 2 or both), beneath the one we
//! are in. What is in them is in the bed, whoever its parent has become; so they also are how a bed is ended.

use std::{
    fs,
    path::{Path, PathBuf},
    process::id,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Where hierarchies are mounted, in version 2 the one itself.
const ROOT: &str = "/sys/fs/cgroup";
const PREFIX: &str = "hadoop-token-csi-bed.";
const REMOVAL_LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);

/// One hierarchy, as this process sees it.
#[derive(Debug, Clone)]
struct Hierarchy {
    /// Where it is mounted.
    mount: PathBuf,
    /// Options to mount it with; `None` for version 2.
    options: Option<String>,
    /// The group that this process is in.
    own: PathBuf,
}

/// The groups of one bed.
#[derive(Debug)]
pub(crate) struct Groups(Vec<PathBuf>);

impl Groups {
    /// Makes the groups of a new bed, and removes those of beds that ended without anybody to clean up.
    pub(crate) fn make() -> Result<Self> {
        let mut groups = Vec::new();
        for hierarchy in hierarchies()? {
            sweep(&hierarchy.mount);
            let group = hierarchy.own.join(format!("{PREFIX}{}", id()));
            fs::create_dir(&group).with_context(|| format!("failed to make {}", group.display()))?;
            // A version 1 cpuset takes no process before it has processors and memory.
            for setting in ["cpuset.cpus", "cpuset.mems"] {
                let (from, to) = (hierarchy.own.join(setting), group.join(setting));
                if hierarchy.options.is_some() && from.exists() {
                    let value = fs::read(&from)?;
                    fs::write(&to, value).with_context(|| format!("failed to write {}", to.display()))?;
                }
            }
            groups.push(group);
        }
        Ok(Self(groups))
    }

    /// From the words that [`Groups::words`] gave.
    pub(crate) fn from_words<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        Self(words.into_iter().map(PathBuf::from).collect())
    }

    /// The groups as words for a command line.
    pub(crate) fn words(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(PathBuf::as_path)
    }

    /// Moves this process into them.
    pub(crate) fn enter(&self) -> Result<()> {
        for group in &self.0 {
            let file = group.join("cgroup.procs");
            fs::write(&file, id().to_string())
                .with_context(|| format!("failed to write {}", file.display()))?;
        }
        Ok(())
    }

    /// Kills everything in them, and removes them.
    pub(crate) fn remove(&self) -> Result<()> {
        let deadline = Instant::now() + REMOVAL_LIMIT;
        let mut left = String::new();
        while Instant::now() < deadline {
            left.clear();
            for group in self.0.iter().filter(|group| group.exists()) {
                if let Err(error) = remove_tree(group) {
                    left = format!("{}: {error}", group.display());
                }
            }
            if left.is_empty() {
                return Ok(());
            }
            pause();
        }
        bail!("failed to remove a control group of the bed: {left}")
    }
}

/// Kills what is in `group` and beneath, then removes it. Fails as long as something has not died yet.
fn remove_tree(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    for pid in fs::read_to_string(group.join("cgroup.procs"))?.lines().filter_map(|line| line.parse().ok()) {
        match kill(Pid::from_raw(pid), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    fs::remove_dir(group)
}

/// Removes groups of beds whose outer process is gone.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let name = entry.file_name();
        match name.to_str().and_then(|name| name.strip_prefix(PREFIX)) {
            None => sweep(&entry.path()),
            Some(owner) if Path::new("/proc").join(owner).exists() => {}
            Some(_) => {
                // Its own guardian may be at it just now; then there is nothing for us to do.
                let _ = remove_tree(&entry.path());
            }
        }
    }
}

#[allow(clippy::disallowed_methods)] // the guardian has no executor that could be blocked
fn pause() {
    thread::sleep(PAUSE);
}

/// In new cgroup and mount namespaces: mounts every hierarchy anew, so that the bed's group is the root of all that can
/// be seen, and all that anybody makes is beneath it.
pub(crate) fn mount_own() -> Result<()> {
    let hierarchies = hierarchies()?;
    umount2(ROOT, MntFlags::MNT_DETACH).with_context(|| format!("failed to unmount {ROOT}"))?;
    mount(Some("bed"), ROOT, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
        .with_context(|| format!("failed to mount a tmpfs at {ROOT}"))?;
    for Hierarchy { mount: at, options, .. } in &hierarchies {
        let kind = if options.is_some() { "cgroup" } else { "cgroup2" };
        fs::create_dir_all(at)?;
        mount(Some(kind), at, Some(kind), MsFlags::empty(), options.as_deref())
            .with_context(|| format!("failed to mount {kind} at {}", at.display()))?;
    }
    if let [Hierarchy { mount: root, options: None, .. }] = hierarchies.as_slice() {
        // Version 2 alone: a group with processes cannot hand controllers to its children, so we move aside.
        let aside = root.join("bed");
        fs::create_dir(&aside)?;
        for pid in fs::read_to_string(root.join("cgroup.procs"))?.lines() {
            fs::write(aside.join("cgroup.procs"), pid)?;
        }
        let controllers = fs::read_to_string(root.join("cgroup.controllers"))?;
        let enable: Vec<String> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
        fs::write(root.join("cgroup.subtree_control"), enable.join(" "))
            .context("failed to enable the controllers of the bed's control group")?;
    }
    Ok(())
}

fn hierarchies() -> Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let own = fs::read_to_string("/proc/self/cgroup")?;
    Ok(parse(&mounts, &own))
}

fn parse(mounts: &str, own: &str) -> Vec<Hierarchy> {
    // ID:CONTROLLERS:PATH, where version 2 has no controllers and version 1 without any has name=….
    let groups: Vec<(&str, &str)> =
        own.lines().filter_map(|line| line.split_once(':')?.1.split_once(':')).collect();
    let mut found = Vec::new();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let (&[_, _, _, root, at, ..], &[kind, _, options]) = (left.as_slice(), right.as_slice()) else {
            continue;
        };
        let (controllers, options) = match kind {
            "cgroup2" => (String::new(), None),
            "cgroup" => {
                let names: Vec<&str> = options.split(',').filter(|o| !["rw", "ro"].contains(o)).collect();
                (names.join(","), Some(names.join(",")))
            }
            _ => continue,
        };
        let mine = groups.iter().find(|(names, _)| {
            controllers == *names
                || !names.is_empty() && controllers.split(',').any(|c| names.split(',').any(|n| n == c))
        });
        let Some((_, path)) = mine else { continue };
        let below = path.strip_prefix(root).unwrap_or(path).trim_start_matches('/');
        let mount = PathBuf::from(at);
        let own = if below.is_empty() { mount.clone() } else { mount.join(below) };
        found.push(Hierarchy { mount, options, own });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_own_group_of_every_hierarchy() {
        let mounts = "\
30 1 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
33 30 0:29 /outer /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
34 30 0:30 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
        let own = "4:memory:/outer/inner\n3:cpu,cpuacct:/\n1:name=systemd:/user\n0::/all\n";
        let found: Vec<(String, Option<String>)> = parse(mounts, own)
            .into_iter()
            .map(|hierarchy| (hierarchy.own.display().to_string(), hierarchy.options))
            .collect();
        let expected = [
            ("/sys/fs/cgroup/cpu", Some("cpu,cpuacct")),
            ("/sys/fs/cgroup/systemd/user", Some("name=systemd")),
            ("/sys/fs/cgroup/memory/inner", Some("memory")),
            ("/sys/fs/cgroup/unified/all", None),
        ];
        let expected = expected.map(|(own, options)| (own.to_owned(), options.map(str::to_owned)));
        assert_eq!(found, expected);
    }
}
