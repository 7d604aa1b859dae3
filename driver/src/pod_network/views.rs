//! Who sees which volume. Processes in the same mounts, with the same root, have the same mount table, which is then
//! read once for all of them. What is read in one look is bounded: a pod makes as many processes and mounts as it
//! likes, and must not hold up the looks for all others.

use std::{
    collections::HashMap,
    io::{self, Read},
};

use rustix::fs::{AtFlags, StatxFlags, statx};

use super::{Namespace, Process, Search};

/// How much is read in one look. Beyond that there is no look: who was not looked at may be the one that matters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Processes outside the node's own mounts.
    pub(super) processes: usize,
    /// One mount table. It is held in memory.
    pub(super) table: u64,
    /// All mount tables together.
    pub(super) tables: u64,
}

impl Bounds {
    /// A node with a thousand containers has mount tables of some 10 MiB; one with ten thousand mounts has 2 MiB.
    pub(super) const OF_A_LOOK: Self =
        Self { processes: 100_000, table: 8 * 1024 * 1024, tables: 128 * 1024 * 1024 };
}

/// What decides how a mount table looks: the mounts, and the root below which they are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct View {
    mounts: Namespace,
    /// Mount and file number of the root.
    root: (u64, u64),
}

impl View {
    /// The view of a process; nothing if the system does not tell (Linux before 5.8).
    fn of(process: &Process) -> io::Result<Option<Self>> {
        let (_, mounts) = process.mounts()?;
        let status =
            statx(&process.directory, "root", AtFlags::empty(), StatxFlags::INO | StatxFlags::MNT_ID)?;
        let told = StatxFlags::from_bits_retain(status.stx_mask);
        let root = (status.stx_mnt_id, status.stx_ino);
        Ok(told.contains(StatxFlags::INO | StatxFlags::MNT_ID).then_some(Self { mounts, root }))
    }
}

/// What the processes of one look see.
pub(super) struct Views {
    left: Bounds,
    /// Of each view, the searches whose volumes are seen.
    seen: HashMap<View, Vec<usize>>,
    table: Vec<u8>,
}

impl Views {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { left: bounds, seen: HashMap::new(), table: Vec::new() }
    }

    /// The searches whose volumes a process sees at mount points of its own: none if it has ended meanwhile.
    ///
    /// # Errors
    /// When it would be too much to read.
    pub(super) fn of(&mut self, process: &Process, searches: &[Search]) -> io::Result<Vec<usize>> {
        self.left.processes = self.left.processes.checked_sub(1).ok_or_else(|| too_much("processes"))?;
        let before = View::of(process).ok().flatten();
        if let Some(seen) = before.and_then(|view| self.seen.get(&view)) {
            return Ok(seen.clone());
        }
        let Ok(table) = process.mount_table() else { return Ok(Vec::new()) };
        let most = self.left.table.min(self.left.tables);
        self.table.clear();
        if table.take(most.saturating_add(1)).read_to_end(&mut self.table).is_err() {
            return Ok(Vec::new());
        }
        let read = u64::try_from(self.table.len()).unwrap_or(u64::MAX);
        if read > most {
            return Err(too_much("mounts"));
        }
        self.left.tables = self.left.tables.saturating_sub(read);
        let seeing = |(number, search): (usize, &Search)| search.is_seen_in(&self.table).then_some(number);
        let seen: Vec<usize> = searches.iter().enumerate().filter_map(seeing).collect();
        // One that went elsewhere meanwhile says nothing about others.
        let after = View::of(process).ok().flatten();
        if let Some(view) = after.filter(|_| before == after) {
            self.seen.insert(view, seen.clone());
        }
        Ok(seen)
    }
}

fn too_much(what: &str) -> io::Error {
    io::Error::other(format!("the pods of the node have more {what} than are looked at at once"))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::chroot, path::Path, thread};

    use nix::{
        mount::{MsFlags, mount},
        sched::{CloneFlags, unshare},
    };

    use super::*;
    use crate::pod_network::{
        PROC, look_on,
        tests::{Net, Pod, start_pod, with_a_volume},
    };

    fn process(pod: &Pod, number: usize) -> Process {
        let pid = pod.0[number].id();
        Process::open(pid, &Path::new(PROC).join(pid.to_string())).unwrap()
    }

    const WIDE: Bounds = Bounds { processes: 100, table: 1 << 20, tables: 1 << 20 };

    #[test]
    fn processes_in_the_same_mounts_cost_one_read() {
        with_a_volume(|wanted, dir| {
            let pod = start_pod(&wanted.target, &dir.join("token"), Net::Own, &[]);
            let other = start_pod(dir, &dir.join("elsewhere"), Net::Own, &[]);
            let searches = [Search::new(wanted)];
            let mut views = Views::new(WIDE);
            assert_eq!(views.of(&process(&pod, 0), &searches).unwrap(), [0]);
            let left = views.left.tables;
            assert!(left < WIDE.tables);
            assert_eq!(views.of(&process(&pod, 1), &searches).unwrap(), [0]);
            assert_eq!(views.left.tables, left, "it is read once");
            views.of(&process(&other, 0), &searches).unwrap();
            assert!(views.left.tables < left, "other mounts are read");
        });
    }

    #[test]
    fn who_has_another_root_is_read_for_himself() {
        with_a_volume(|wanted, dir| {
            let (own, jail) = (dir.join("token"), dir.join("jail"));
            fs::create_dir_all(&own).unwrap();
            fs::create_dir_all(&jail).unwrap();
            mount(Some(&wanted.target), &own, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
            let here = || Process::open(0, Path::new("/proc/thread-self")).unwrap();
            let (searches, free) = ([Search::new(wanted)], here());
            thread::scope(|scope| {
                let jailed = || {
                    // A thread in the same mounts.
                    let jailed = here();
                    unshare(CloneFlags::CLONE_FS).unwrap();
                    chroot(&jail).unwrap();
                    let mut views = Views::new(WIDE);
                    assert_eq!(views.of(&jailed, &searches).unwrap(), [0; 0]);
                    assert_eq!(views.of(&free, &searches).unwrap(), [0]);
                    assert_eq!(views.seen.len(), 2);
                };
                scope.spawn(jailed).join().unwrap();
            });
        });
    }

    #[test]
    fn what_is_too_much_is_no_answer() {
        with_a_volume(|wanted, dir| {
            let pod = start_pod(&wanted.target, &dir.join("token"), Net::Own, &[]);
            let searches = [Search::new(wanted)];
            for (bounds, what) in [
                (Bounds { table: 100, ..WIDE }, "mounts"),
                (Bounds { tables: 100, ..WIDE }, "mounts"),
                (Bounds { processes: 0, ..WIDE }, "processes"),
            ] {
                let error = Views::new(bounds).of(&process(&pod, 0), &searches).unwrap_err();
                assert!(error.to_string().contains(what), "{error}");
                let looked = look_on(Path::new("/proc/self"), std::slice::from_ref(wanted), bounds);
                assert!(looked.is_err(), "{looked:?}");
            }
        });
    }
}
