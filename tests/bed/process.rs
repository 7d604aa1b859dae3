//! Programs of the bed: started with their output in a log file, waited for, stopped and started again. Each daemon is
//! the head of its own process group, so that an interrupt at the terminal does not reach it before the bed ends it.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt, fs,
    io::ErrorKind,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    sync::Mutex,
    time::{Instant, sleep, timeout},
};

const PROBE_PAUSE: Duration = Duration::from_millis(50);
const STOP_GRACE: Duration = Duration::from_secs(20);
const TAIL_LINES: usize = 12;
const TAIL_COLUMNS: usize = 300;

/// A program with its arguments and environment: what [`Daemon`] starts, as often as wanted.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    args: Vec<OsString>,
    environment: BTreeMap<OsString, OsString>,
}

impl Program {
    /// The program at `path`, or on `PATH`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), args: Vec::new(), environment: BTreeMap::new() }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: Into<OsString>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.insert(name.into(), value.into());
        self
    }

    /// A command that can be changed further before it is run.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.args).envs(&self.environment);
        command
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// When it cannot be started; not when it fails.
    pub async fn output(&self) -> Result<Output> {
        let mut command = self.command();
        run(&mut command, None).await
    }

    /// Runs it to its end, which must be a good one, and gives what it wrote to its standard output.
    ///
    /// # Errors
    /// When it cannot be started or fails, with what it wrote.
    pub async fn succeed(&self) -> Result<String> {
        self.output().await?.success()
    }

    /// The same, with `input` on its standard input.
    ///
    /// # Errors
    /// When it cannot be started or fails, with what it wrote.
    pub async fn succeed_with(&self, input: &str) -> Result<String> {
        let mut command = self.command();
        run(&mut command, Some(input)).await?.success()
    }
}

/// How a command ended and what it wrote.
#[derive(Clone, Debug)]
pub struct Output {
    command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// What it wrote to its standard output, if it ended well.
    ///
    /// # Errors
    /// When it did not, with all that it wrote.
    pub fn success(self) -> Result<String> {
        ensure!(
            self.status.success(),
            "{} failed ({}):\n{}{}",
            self.command,
            self.status,
            self.stdout,
            self.stderr
        );
        Ok(self.stdout)
    }

    /// All that it wrote, if it failed by itself (and was not killed).
    ///
    /// # Errors
    /// When it ended well, or by a signal.
    pub fn failure(self) -> Result<String> {
        ensure!(
            !self.status.success() && self.status.signal().is_none(),
            "{} should have failed, but ended with {}:\n{}{}",
            self.command,
            self.status,
            self.stdout,
            self.stderr
        );
        Ok(self.stdout + &self.stderr)
    }
}

async fn run(command: &mut Command, input: Option<&str>) -> Result<Output> {
    use tokio::io::AsyncWriteExt;

    let name = described(command);
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("failed to start {name}"))?;
    let stdin = child.stdin.take();
    let feed = async {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // A program that has read enough may close its input; its exit status says whether that was right.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), feed);
    let output = output.with_context(|| format!("failed to wait for {name}"))?;
    Ok(Output {
        command: name,
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn described(command: &Command) -> String {
    let command = command.as_std();
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

/// A program that runs until it is stopped.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    program: Program,
    log: PathBuf,
    child: Mutex<Option<Child>>,
}

impl Daemon {
    /// A daemon that is not started yet, and will log to `NAME.log` in `logs`.
    #[must_use]
    pub fn new(name: &str, program: Program, logs: &Path) -> Self {
        let log = logs.join(format!("{name}.log"));
        Self { name: name.to_owned(), program, log, child: Mutex::new(None) }
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its output goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its process, while it is started.
    pub async fn pid(&self) -> Option<u32> {
        self.child.lock().await.as_ref().and_then(Child::id)
    }

    /// Starts it, without waiting for it to be ready. Its log goes on where it ended.
    ///
    /// # Errors
    /// When it runs already, or cannot be started.
    pub async fn start(&self) -> Result<()> {
        let mut child = self.child.lock().await;
        ensure!(child.is_none(), "{} is started already", self.name);
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("failed to open {}", self.log.display()))?;
        let mut command = self.program.command();
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let started = command.spawn().with_context(|| format!("failed to start {}", described(&command)))?;
        *child = Some(started);
        Ok(())
    }

    /// Asks it to end, waits, and kills it if it does not.
    ///
    /// # Errors
    /// When it is not started, or cannot be signalled.
    pub async fn stop(&self) -> Result<()> {
        self.end(Signal::SIGTERM).await
    }

    /// Ends it at once, as a power cut would.
    ///
    /// # Errors
    /// When it is not started, or cannot be signalled.
    pub async fn kill(&self) -> Result<()> {
        self.end(Signal::SIGKILL).await
    }

    async fn end(&self, signal: Signal) -> Result<()> {
        let mut slot = self.child.lock().await;
        let mut child = slot.take().with_context(|| format!("{} is not started", self.name))?;
        if let Some(id) = child.id() {
            match kill(Pid::from_raw(i32::try_from(id)?), signal) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(error) => bail!("failed to end {}: {error}", self.name),
            }
        }
        if timeout(STOP_GRACE, child.wait()).await.is_err() {
            child.kill().await.with_context(|| format!("failed to kill {}", self.name))?;
        }
        Ok(())
    }

    /// Waits until `probe` gives something, at most for `limit`. Ends early, with the tail of its log, when the
    /// daemon itself ends.
    ///
    /// # Errors
    /// When the daemon ended, or the time is up: with the last words of the probe and the tail of the log.
    pub async fn until<T>(
        &self,
        what: &str,
        limit: Duration,
        probe: impl AsyncFn() -> Result<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            let error = match probe().await {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            if let Some(child) = self.child.lock().await.as_mut()
                && let Some(status) = child.try_wait()?
            {
                bail!("{} ended ({status}) before {what}:\n{}", self.name, tail(&self.log));
            }
            if Instant::now() > deadline {
                bail!(
                    "{}: not {what} after {} s: {error:#}\n{}",
                    self.name,
                    limit.as_secs(),
                    tail(&self.log)
                );
            }
            sleep(PROBE_PAUSE).await;
        }
    }

    /// Waits until its log holds `text`.
    ///
    /// # Errors
    /// As [`Daemon::until`].
    pub async fn until_logged(&self, text: &str, limit: Duration) -> Result<()> {
        self.until(&format!("logging {text:?}"), limit, async || {
            let log = fs::read_to_string(&self.log)?;
            ensure!(log.contains(text), "not logged yet");
            Ok(())
        })
        .await
    }
}

/// Waits until `probe` gives something, at most for `limit`.
///
/// # Errors
/// When the time is up, with the last words of the probe.
pub async fn until<T>(what: &str, limit: Duration, probe: impl AsyncFn() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match probe().await {
            Ok(found) => return Ok(found),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("not {what} after {} s", limit.as_secs())));
            }
            Err(_) => sleep(PROBE_PAUSE).await,
        }
    }
}

/// The processes of the bed that run a program of this name.
///
/// # Errors
/// When processes cannot be listed.
pub fn processes_of(program: &str) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        // A process may end meanwhile.
        if fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe.ends_with(program)) {
            found.push(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

/// What a process holds.
#[derive(Debug, Clone, Copy)]
pub struct Footprint {
    /// Memory, in KiB.
    pub resident_kib: u64,
    /// Open files.
    pub files: usize,
    /// Threads.
    pub threads: usize,
}

impl Footprint {
    /// At this moment.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(pid: Pid) -> Result<Self> {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let status = fs::read_to_string(folder.join("status"))?;
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let number = value.and_then(|value| value.split_whitespace().next());
            number.with_context(|| format!("process {pid} has no {name}"))
        };
        Ok(Self {
            resident_kib: field("VmRSS")?.parse()?,
            files: fs::read_dir(folder.join("fd"))?.count(),
            threads: field("Threads")?.parse()?,
        })
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { resident_kib, files, threads } = self;
        write!(f, "{resident_kib} KiB, {files} files, {threads} threads")
    }
}

/// The last lines of a log, under its name.
#[must_use]
pub fn tail(log: &Path) -> String {
    let text = match fs::read(log) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => "(nothing)\n".to_owned(),
        Err(error) => format!("({error})\n"),
    };
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default();
    let last: String =
        last.iter().map(|line| line.chars().take(TAIL_COLUMNS).chain(['\n']).collect::<String>()).collect();
    format!("--- {} ---\n{last}", log.display())
}
