//! Ends the product's programs at named points, by SIGKILL: between any two steps that outlive them. The programs must
//! be built for development, as they are for tests; which points there are is theirs to say (`process::fault`).

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::process::until;

/// Where programs look for the points at which to end; the same for them as for us.
pub(crate) const FOLDER: &str = "/run/bed/faults";

/// Makes the folder. Everybody may remove what is in it, since the controller is nobody special.
pub(crate) fn set_up() -> Result<()> {
    fs::create_dir(FOLDER).with_context(|| format!("failed to make {FOLDER}"))?;
    Ok(fs::set_permissions(FOLDER, fs::Permissions::from_mode(0o777))?)
}

/// A point at which the next program to come there ends. Dropped, it lets programs pass again.
#[derive(Debug)]
#[must_use = "without it, programs pass"]
pub struct Armed(PathBuf);

/// Has the next program that comes to a point end there.
///
/// # Errors
/// When the folder cannot be written.
pub fn arm(point: &str) -> Result<Armed> {
    place(point, "")
}

/// Has the next program that comes to a point stop there, until it is sent SIGCONT.
///
/// # Errors
/// When the folder cannot be written.
pub fn hold(point: &str) -> Result<Armed> {
    place(point, "hold")
}

fn place(point: &str, wish: &str) -> Result<Armed> {
    let path = Path::new(FOLDER).join(point);
    // A program must not find the file before it says what is wanted; and it must be everybody's to read.
    let draft = Path::new(FOLDER).join(".draft");
    fs::write(&draft, wish)
        .and_then(|()| fs::rename(&draft, &path))
        .with_context(|| format!("failed to arm {point}"))?;
    Ok(Armed(path))
}

impl Armed {
    /// Whether a program has come there, and is gone.
    #[must_use]
    pub fn has_struck(&self) -> bool {
        !self.0.exists()
    }

    /// Waits until a program has come there.
    ///
    /// # Errors
    /// When none does.
    pub async fn until_struck(&self, limit: Duration) -> Result<()> {
        let point = self.0.file_name().unwrap_or_default().to_string_lossy();
        until(&format!("ended at {point}: a program"), limit, async || {
            ensure!(self.has_struck(), "nobody came there");
            Ok(())
        })
        .await
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        match fs::remove_file(&self.0) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                crate::progress::say(format_args!("failed to disarm {}: {error}", self.0.display()))
            }
        }
    }
}
