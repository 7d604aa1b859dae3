//! Namespaces of the bed's own, and their certain end.
//!
//! A program that wants a bed calls [`enter`] first thing in `main`. It then runs several times, each time in another
//! role that the environment names:
//!
//! - **outside**, as the user started it: prepares what needs the network, waits, passes signals on as the end of all.
//! - **guardian**: in a session of its own, reads a pipe that only the outside process holds open. However that one
//!   ends, SIGKILL included, the guardian kills all that is in the bed's control groups and removes them.
//! - **enter**: moves into those groups and becomes `unshare`, which makes the namespaces. It dies with the outside
//!   process, and the next role with it, even where nobody is left to clean up; what then remains are empty control
//!   groups, which the next bed removes.
//! - **init**: process 1 of the bed; sets up mounts and network, starts the worker, reaps orphans. When it ends, the
//!   kernel ends everybody else in the bed, and mounts and interfaces go with the last of them.
//! - **worker**: the program itself, inside. Standard streams and terminal are those of the outside process.

use std::{
    convert::Infallible,
    env,
    ffi::OsString,
    fs::File,
    io::{Read, pipe, stdin},
    os::{
        fd::{AsRawFd, RawFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    process::{Command, ExitCode, ExitStatus, Stdio},
};

use anyhow::{Context, Result, bail};
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::{
        prctl::set_pdeathsig,
        signal::Signal,
        wait::{WaitStatus, waitpid},
    },
    unistd::{Pid, Uid, close, setsid},
};
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};

use crate::{cgroup, cgroup::Groups, host, progress::say};

/// Names the role; not for users.
pub const ROLE: &str = "HADOOP_TOKEN_CSI_BED_ROLE";
const GROUPS: &str = "HADOOP_TOKEN_CSI_BED_GROUPS";
const EXECUTABLE: &str = "HADOOP_TOKEN_CSI_BED_EXECUTABLE";
/// The program that reads this.
const THIS: &str = "/proc/self/exe";
const INTERRUPTED: u8 = 128;

/// Where [`enter`] found itself.
#[derive(Debug)]
pub enum Side {
    /// Inside the bed's namespaces: start the bed and use it.
    Inside,
    /// Outside, and all is over: return this from `main`.
    Outside(ExitCode),
}

/// Continues the program inside new namespaces. `prepare` runs outside before, where there is a network.
///
/// # Errors
/// When the namespaces cannot be made, and those of `prepare`.
pub fn enter(prepare: impl AsyncFnOnce() -> Result<()>) -> Result<Side> {
    let Some(role) = env::var_os(ROLE) else {
        return outside(prepare).map(Side::Outside);
    };
    match role.to_str() {
        Some("guardian") => guard().map(|()| Side::Outside(ExitCode::SUCCESS)),
        Some("enter") => match become_unshare()? {},
        Some("init") => init().map(Side::Outside),
        Some("worker") => Ok(Side::Inside),
        _ => bail!("{ROLE} must not be set"),
    }
}

/// Does `work` outside of any bed, and drops it when a signal asks for the end.
///
/// # Errors
/// Those of `work`.
pub fn stay_outside(work: impl AsyncFnOnce() -> Result<()>) -> Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut end = End::listen()?;
        tokio::select! {
            done = work() => done.map(|()| ExitCode::SUCCESS),
            code = end.asked() => Ok(code),
        }
    })
}

fn outside(prepare: impl AsyncFnOnce() -> Result<()>) -> Result<ExitCode> {
    if !Uid::effective().is_root() {
        bail!("the test bed needs root: it makes namespaces, mounts and control groups of its own");
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut end = End::listen()?;
        tokio::select! {
            prepared = prepare() => prepared?,
            code = end.asked() => return Ok(code),
        }
        let groups = Groups::make()?;
        let (lifeline, held) = pipe()?;
        let mut guardian = role("guardian", &groups)?
            .stdin(lifeline)
            .stdout(Stdio::null())
            .spawn()
            .context("failed to start the guardian")?;
        let code = inside(&groups, &mut end).await;
        drop(held);
        let status = guardian.wait()?;
        if !status.success() {
            bail!("the guardian could not clean up: {status}");
        }
        code
    })
}

async fn inside(groups: &Groups, end: &mut End) -> Result<ExitCode> {
    let mut command = tokio::process::Command::from(role("enter", groups)?);
    let mut child = command.kill_on_drop(true).spawn().context("failed to enter the namespaces")?;
    tokio::select! {
        status = child.wait() => Ok(exit_code(status?)),
        code = end.asked() => {
            child.kill().await.context("failed to end the bed")?;
            Ok(code)
        }
    }
}

/// The signals that ask for the end.
struct End {
    interrupt: Signals,
    terminate: Signals,
    hang_up: Signals,
}

impl End {
    fn listen() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for one, and gives the exit code that says which it was.
    async fn asked(&mut self) -> ExitCode {
        let signal = tokio::select! {
            _ = self.interrupt.recv() => Signal::SIGINT,
            _ = self.terminate.recv() => Signal::SIGTERM,
            _ = self.hang_up.recv() => Signal::SIGHUP,
        };
        ended_by(signal)
    }
}

fn ended_by(signal: Signal) -> ExitCode {
    ExitCode::from(INTERRUPTED.saturating_add(u8::try_from(signal as i32).unwrap_or_default()))
}

/// This program in another role, with the same arguments: it reads them before it asks for its role.
fn role(role: &str, groups: &Groups) -> Result<Command> {
    let mut command = Command::new(THIS);
    let words: Vec<OsString> = groups.words().map(|group| group.as_os_str().to_owned()).collect();
    command.args(env::args_os().skip(1)).env(ROLE, role).env(GROUPS, words.join(&OsString::from(":")));
    Ok(command)
}

fn given_groups() -> Result<Groups> {
    let words = env::var(GROUPS).with_context(|| format!("{GROUPS} is not set"))?;
    Ok(Groups::from_words(words.split(':').filter(|word| !word.is_empty())))
}

fn guard() -> Result<()> {
    setsid().context("failed to make a session")?;
    let groups = given_groups()?;
    // Nothing is ever written; the read ends when the outside process does.
    stdin().read_to_end(&mut Vec::new())?;
    groups.remove()
}

fn become_unshare() -> Result<Infallible> {
    // The guardian may be killed together with the outside process; the kernel is not.
    set_pdeathsig(Signal::SIGKILL)?;
    given_groups()?.enter()?;
    // Once unshare runs, it is the one that THIS names; and a path may have been given to a newer build meanwhile.
    let this = File::open(THIS)?;
    fcntl(&this, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let error = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--ipc", "--uts", "--cgroup"])
        .args(["--fork", "--kill-child", "--mount-proc", "--"])
        .arg(format!("/proc/self/fd/{}", this.as_raw_fd()))
        .args(env::args_os().skip(1))
        .env(ROLE, "init")
        .env(EXECUTABLE, this.as_raw_fd().to_string())
        .exec();
    Err(error).context("failed to run unshare")
}

fn init() -> Result<ExitCode> {
    // Nobody else in the bed needs it.
    close(env::var(EXECUTABLE)?.parse::<RawFd>()?)?;
    cgroup::mount_own()?;
    host::set_up()?;
    let worker = Command::new(THIS)
        .args(env::args_os().skip(1))
        .env(ROLE, "worker")
        .env("TMPDIR", host::TEMPORARY)
        .env_remove(GROUPS)
        .env_remove(EXECUTABLE)
        .spawn()
        .context("failed to start the worker")?;
    let worker = Pid::from_raw(i32::try_from(worker.id())?);
    loop {
        match waitpid(None, None)? {
            WaitStatus::Exited(pid, code) if pid == worker => {
                return Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)));
            }
            WaitStatus::Signaled(pid, signal, _) if pid == worker => {
                say(format_args!("the worker was ended by {signal}"));
                return Ok(ended_by(signal));
            }
            _ => {}
        }
    }
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, Some(signal)) => INTERRUPTED.saturating_add(u8::try_from(signal).unwrap_or_default()),
        (None, None) => u8::MAX,
    };
    ExitCode::from(code)
}
