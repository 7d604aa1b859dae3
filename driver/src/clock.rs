//! The one place that reads a clock. Shows the wall clock's time as it was when the node plugin first started since the
//! node booted, and goes on from there evenly, whatever becomes of the wall clock: what is due is due after a while, not
//! when somebody has set a clock. Tests put another in its place, one that stands still with tokio's.

use std::{fmt, fs, io, path::Path, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::time::{Duration, Instant};
use tracing::warn;

/// Tells the time. Clones tell the same.
#[derive(Clone)]
pub(crate) struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

/// What the wall clock showed when the node booted, as we saw it first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Boot {
    /// Linux's name of this very boot.
    id: String,
    at: Timestamp,
}

const FOLDER: &str = "clock";
const FILE: &str = "boot.json";
const NEW: &str = "boot.json.new";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl Clock {
    /// The clock of this node, which keeps in a folder of `state` what it needs to show the same after a restart.
    pub(crate) fn steady(state: &Path) -> Self {
        let folder = state.join(FOLDER);
        let seen = Boot { id: boot_id(), at: before(Timestamp::now(), uptime()) };
        let boot = match kept(&folder) {
            Some(boot) if boot.id == seen.id && !seen.id.is_empty() => boot,
            _ => {
                if let Err(error) = keep(&folder, &seen) {
                    warn!(%error, folder = %folder.display(), "Failed to note when the node booted: after a restart, a wall clock that is set meanwhile moves what is due");
                }
                seen
            }
        };
        Self(Arc::new(move || after(boot.at, uptime())))
    }

    /// Removes what was kept in `state`.
    ///
    /// # Errors
    /// When the disk fails; not when nothing was kept.
    pub(crate) fn forget(state: &Path) -> io::Result<()> {
        match fs::remove_dir_all(state.join(FOLDER)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The present time.
    pub(crate) fn now(&self) -> Timestamp {
        (self.0)()
    }

    /// When a timer must go off to meet `at`; at once, if that is past.
    pub(crate) fn instant(&self, at: Timestamp) -> Instant {
        let wait = Duration::try_from(at.duration_since(self.now())).unwrap_or(Duration::ZERO);
        // Beyond what an instant can hold is beyond the life of this process.
        let far = Duration::from_secs(100 * 365 * 86_400);
        Instant::now() + wait.min(far)
    }
}

/// How long the node has been up, with the time that it was suspended.
fn uptime() -> SignedDuration {
    let since = clock_gettime(ClockId::Boottime);
    SignedDuration::new(since.tv_sec, i32::try_from(since.tv_nsec).unwrap_or_default())
}

fn before(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.saturating_sub(by).unwrap_or(Timestamp::MIN)
}

fn after(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.saturating_add(by).unwrap_or(Timestamp::MAX)
}

/// Empty if the system does not tell.
fn boot_id() -> String {
    let id = fs::read_to_string(BOOT_ID).unwrap_or_else(|error| {
        warn!(%error, "Failed to read which boot of the node this is");
        String::new()
    });
    id.trim().to_owned()
}

/// What an earlier run noted. What cannot be read is noted anew.
fn kept(folder: &Path) -> Option<Boot> {
    let bytes = fs::read(folder.join(FILE)).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn keep(folder: &Path, boot: &Boot) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let new = folder.join(NEW);
    fs::write(&new, serde_json::to_vec(boot)?)?;
    fs::File::open(&new)?.sync_all()?;
    fs::rename(new, folder.join(FILE))
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

#[cfg(test)]
impl Clock {
    /// A clock that begins at `start` and goes as tokio's.
    pub(crate) fn paused(start: Timestamp) -> Self {
        let origin = Instant::now();
        Self(Arc::new(move || start + origin.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: SignedDuration = SignedDuration::from_mins(1);

    fn off(clock: &Clock, from: Timestamp) -> SignedDuration {
        clock.now().duration_since(from).abs()
    }

    #[test]
    fn shows_the_wall_clocks_time_at_first() {
        let dir = tempfile::tempdir().unwrap();
        assert!(off(&Clock::steady(dir.path()), Timestamp::now()) < MINUTE);
    }

    #[test]
    fn a_wall_clock_that_was_set_since_moves_nothing_in_the_same_boot() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join(FOLDER);
        // An earlier run saw it a day behind, or ten years ahead.
        for ahead in [SignedDuration::from_hours(-24), SignedDuration::from_hours(87_600)] {
            let seen = Boot { id: boot_id(), at: before(after(Timestamp::now(), ahead), uptime()) };
            keep(&folder, &seen).unwrap();
            let clock = Clock::steady(dir.path());
            assert!(off(&clock, after(Timestamp::now(), ahead)) < MINUTE, "{ahead}");
            assert_eq!(kept(&folder), Some(seen));
        }
    }

    #[test]
    fn another_boot_and_what_cannot_be_read_count_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join(FOLDER);
        keep(&folder, &Boot { id: "another".to_owned(), at: Timestamp::UNIX_EPOCH }).unwrap();
        assert!(off(&Clock::steady(dir.path()), Timestamp::now()) < MINUTE);
        assert_eq!(kept(&folder).unwrap().id, boot_id());
        fs::write(folder.join(FILE), "{\"id\":").unwrap();
        assert!(off(&Clock::steady(dir.path()), Timestamp::now()) < MINUTE);
        assert_eq!(kept(&folder).unwrap().id, boot_id());
    }

    #[test]
    fn a_disk_that_takes_nothing_does_not_stop_it() {
        let clock = Clock::steady(Path::new("/proc/none"));
        let first = clock.now();
        assert!(off(&clock, Timestamp::now()) < MINUTE && clock.now() >= first);
    }
}
