//! Points at which a test can have a program killed: between any two steps that outlive it. Only in builds for
//! development; in a release a point is nothing.
//!
//! The environment variable `HADOOP_TOKEN_CSI_FAULTS` names a folder. A program that comes to a point whose name is a
//! file there removes the file, and is gone by SIGKILL: so each file kills one program, once. If the file says `hold`,
//! the program stops there instead, until it is sent SIGCONT: so another program can be killed at this very point.

/// Ends the program at once if a test wants it to end here. `name` is "what:before" or "what:after".
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    use std::{env, fs, path::PathBuf, sync::LazyLock};

    static FOLDER: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| env::var_os("HADOOP_TOKEN_CSI_FAULTS").map(PathBuf::from));

    let Some(folder) = &*FOLDER else { return };
    let file = folder.join(name);
    let Ok(wish) = fs::read(&file) else { return }; // nobody wants it
    if fs::remove_file(&file).is_err() {
        return; // another program was first
    }
    if wish == b"hold" {
        tracing::warn!(point = name, "Held by a test");
        let held = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGSTOP);
        tracing::warn!(?held, "Goes on");
        return;
    }
    tracing::warn!(point = name, "Ended by a test");
    let killed = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    tracing::error!(?killed, "Failed to end");
    std::process::abort();
}

/// Nothing: points are for tests.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_name: &str) {}
