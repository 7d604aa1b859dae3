//! What the bed says while one waits: each phase with its seconds, and a line every quarter of a minute in long ones.
//! Everything goes to standard error; results belong to standard output.

use std::{
    fmt::Display,
    io::{Write, stderr},
    time::{Duration, Instant},
};

use anyhow::Result;

const REMINDER: Duration = Duration::from_secs(15);

/// Says one line.
pub fn say(line: impl Display) {
    // Nobody left to read it is no reason to stop.
    let _ = writeln!(stderr(), "bed: {line}");
}

/// Does `work` and says how long it took; while it lasts, says so now and then.
///
/// # Errors
/// Those of `work`.
pub async fn phase<T>(name: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let started = Instant::now();
    tokio::pin!(work);
    let mut reminder = tokio::time::interval_at(tokio::time::Instant::now() + REMINDER, REMINDER);
    loop {
        tokio::select! {
            result = &mut work => {
                let seconds = started.elapsed().as_secs_f64();
                match &result {
                    Ok(_) => say(format_args!("{name}: {seconds:.1} s")),
                    Err(_) => say(format_args!("{name}: failed after {seconds:.1} s")),
                }
                return result;
            }
            _ = reminder.tick() => say(format_args!("{name} … {} s", started.elapsed().as_secs())),
        }
    }
}
