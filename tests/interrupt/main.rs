//! A bed leaves nothing behind, however it ends: no process, mount, control group, interface, port, file or kernel
//! setting. Each test runs the program `bed` itself, with a pod in it, and ends it in another way.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // all of it is test

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);
/// Runs a pod, says so, and waits for the end.
const WITH_A_POD: &str = "
    kubectl run one --image=bed/tools:1 --image-pull-policy=Never --command -- sleep 3600 >/dev/null &&
    kubectl wait --for=condition=Ready pod/one --timeout=60s >/dev/null && echo up && exec sleep 3600";

#[test]
fn the_command_ends_the_bed_and_gives_its_exit_code() {
    let _turn = turn();
    let machine = Machine::observe();
    let mut bed = Bed::start("echo up; exit 7");
    bed.wait_for_command();
    let status = bed.outer.wait().unwrap();
    assert_eq!(status.code(), Some(7));
    bed.assert_gone();
    machine.assert_unchanged();
}

#[test]
fn an_interrupt_at_the_terminal_leaves_nothing() {
    let _turn = turn();
    let machine = Machine::observe();
    let mut bed = Bed::start(WITH_A_POD);
    bed.wait_for_command();
    // The terminal signals everybody in the foreground.
    killpg(bed.pid(), Signal::SIGINT).unwrap();
    let status = bed.outer.wait().unwrap();
    assert!(!status.success(), "{status}");
    bed.assert_gone();
    machine.assert_unchanged();
}

#[test]
fn a_request_to_end_leaves_nothing() {
    let _turn = turn();
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let machine = Machine::observe();
        let mut bed = Bed::start(WITH_A_POD);
        bed.wait_for_processes(6);
        kill(bed.pid(), signal).unwrap();
        let status = bed.outer.wait().unwrap();
        assert_eq!(status.code(), Some(128 + signal as i32));
        bed.assert_gone();
        machine.assert_unchanged();
    }
}

#[test]
fn a_kill_that_nobody_can_catch_leaves_nothing() {
    let _turn = turn();
    let machine = Machine::observe();
    let mut bed = Bed::start(WITH_A_POD);
    bed.wait_for_command();
    kill(bed.pid(), Signal::SIGKILL).unwrap();
    let status = bed.outer.wait().unwrap();
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
    until("everything of the bed is gone", || bed.left().is_empty());
    machine.assert_unchanged();
}

/// Beds one after the other: several would fit beside each other, but not start quickly on a small machine.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn a_bed_dies_even_when_its_guardian_is_killed_too_and_the_next_one_cleans_up() {
    let _turn = turn();
    let machine = Machine::observe();
    let mut bed = Bed::start(WITH_A_POD);
    bed.wait_for_command();
    let in_the_bed = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/cgroup"))
            .is_ok_and(|text| text.contains("hadoop-token-csi-bed"))
    };
    let guardian = children(bed.pid()).into_iter().find(|pid| !in_the_bed(pid)).unwrap();
    kill(Pid::from_raw(guardian), Signal::SIGKILL).unwrap();
    kill(bed.pid(), Signal::SIGKILL).unwrap();
    bed.outer.wait().unwrap();
    until("every process of the bed is gone", || bed.left().iter().all(|left| !left.starts_with("process")));
    let mut next = Bed::start("true");
    assert!(next.outer.wait().unwrap().success());
    bed.assert_gone();
    machine.assert_unchanged();
}

struct Bed {
    outer: Child,
    output: BufReader<Box<dyn Read>>,
    /// Everybody seen in the bed so far, by process id and start time.
    seen: BTreeSet<(i32, u64)>,
}

impl Bed {
    fn start(script: &str) -> Self {
        let mut outer = Command::new(env!("CARGO_BIN_EXE_bed"))
            .args(["run", "--bare", "--", "sh", "-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let output: Box<dyn Read> = Box::new(outer.stdout.take().unwrap());
        Self { outer, output: BufReader::new(output), seen: BTreeSet::new() }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.outer.id()).unwrap())
    }

    /// Waits until the command in the bed says that it is up.
    fn wait_for_command(&mut self) {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert_eq!(line, "up\n");
        self.look();
        assert!(!self.seen.is_empty());
    }

    /// Waits until so many processes are in the bed.
    fn wait_for_processes(&mut self, count: usize) {
        until("the bed has started processes", || {
            self.look();
            self.seen.len() >= count
        });
    }

    fn look(&mut self) {
        for group in self.groups() {
            members(&group, &mut self.seen);
        }
        // The guardian is in none of them.
        if !self.seen.is_empty() {
            self.seen
                .extend(children(self.pid()).into_iter().filter_map(|pid| Some((pid, start_time(pid)?))));
        }
    }

    fn groups(&self) -> Vec<PathBuf> {
        let name = format!("hadoop-token-csi-bed.{}", self.outer.id());
        let mut found = Vec::new();
        find(Path::new("/sys/fs/cgroup"), &name, &mut found);
        found
    }

    /// What is still there of the bed.
    fn left(&self) -> Vec<String> {
        let groups = self.groups().into_iter().map(|group| group.display().to_string());
        let alive = self.seen.iter().filter(|(pid, time)| start_time(*pid) == Some(*time));
        groups.chain(alive.map(|(pid, _)| format!("process {pid}"))).collect()
    }

    fn assert_gone(&self) {
        assert_eq!(self.left(), Vec::<String>::new());
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // After a failed test only; its guardian does the rest.
        let _ = self.outer.kill();
        let _ = self.outer.wait();
    }
}

/// What a bed must not change.
#[derive(Debug, PartialEq, Eq)]
struct Machine {
    mounts: String,
    links: Vec<String>,
    listening: BTreeSet<String>,
    files: Vec<(String, Option<Vec<u8>>)>,
    folders: Vec<(String, BTreeSet<String>)>,
}

impl Machine {
    fn observe() -> Self {
        let mut listening = BTreeSet::new();
        for table in ["tcp", "tcp6", "udp", "udp6"] {
            let text = fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
            // Address and state; 0A listens, 07 is bound without a peer.
            let sockets = text.lines().filter_map(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                ["0A", "07"].contains(fields.get(3)?).then(|| format!("{table} {}", fields[1]))
            });
            listening.extend(sockets);
        }
        let settings =
            ["vm/overcommit_memory", "kernel/panic", "kernel/keys/root_maxkeys", "net/ipv4/ip_forward"];
        let settings = settings.map(|name| format!("/proc/sys/{name}"));
        let files = ["/etc/hosts", "/etc/resolv.conf", "/etc/krb5.conf", "/proc/sys/kernel/hostname"];
        let files = files.map(str::to_owned).into_iter().chain(settings);
        let home = std::env::var("HOME").unwrap();
        let folders = ["/run", "/var/lib", "/var/log", "/var/tmp", "/sys/class/net", &home];
        Self {
            mounts: fs::read_to_string("/proc/self/mountinfo").unwrap(),
            links: names("/sys/class/net").into_iter().collect(),
            listening,
            files: files.map(|path| (path.clone(), fs::read(&path).ok())).collect(),
            folders: folders.map(|path| (path.to_owned(), names(path))).into(),
        }
    }

    fn assert_unchanged(&self) {
        let now = Self::observe();
        assert_eq!(self.mounts, now.mounts);
        assert_eq!(self, &now);
    }
}

fn names(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// Folders called `name` beneath `folder`, control groups of others' beds aside.
fn find(folder: &Path, name: &str, found: &mut Vec<PathBuf>) {
    // A group may go while we look; then it is not there.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name().to_str() == Some(name) {
                found.push(entry.path());
            } else {
                find(&entry.path(), name, found);
            }
        }
    }
}

fn members(group: &Path, found: &mut BTreeSet<(i32, u64)>) {
    let pids = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for pid in pids.lines().filter_map(|line| line.parse().ok()) {
        found.extend(start_time(pid).map(|time| (pid, time)));
    }
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            members(&entry.path(), found);
        }
    }
}

fn children(parent: Pid) -> Vec<i32> {
    let list = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// When a process started, in clock ticks; none when there is no such process, or only its exit status.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; after it come state and, twentieth, the start time.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if fields.first() == Some(&"Z") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

#[allow(clippy::disallowed_methods)] // a test without an executor
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(PAUSE);
    }
}
