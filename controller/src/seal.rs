//! What the token service keeps to judge seals: the public keys, always the newest that could be read, and which pod
//! showed which seal first. Whether a seal fits a pod is decided in `authorization`.

mod nonce_register;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use identity::seal::{InvalidKeySet, KeySet};
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub(crate) use nonce_register::NonceRegister;

const RELOAD_INTERVAL: Duration = Duration::from_secs(10);

/// The file of public keys.
pub(crate) struct SealKeys {
    file: PathBuf,
    current: ArcSwap<Loaded>,
}

struct Loaded {
    keys: Arc<KeySet>,
    /// The file's bytes, to see when they change.
    json: Vec<u8>,
}

/// Why a file of keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SealKeysError {
    #[error("cannot read {file}: {error}", file = file.display())]
    Unreadable { file: PathBuf, error: io::Error },
    #[error("{file} cannot be used, {error}", file = file.display())]
    Unusable { file: PathBuf, error: InvalidKeySet },
}

impl SealKeys {
    /// Reads the file.
    pub(crate) fn load(file: PathBuf) -> Result<Self, SealKeysError> {
        let current = ArcSwap::from_pointee(read(&file)?);
        Ok(Self { file, current })
    }

    /// The keys as they are now. A decision takes them once.
    pub(crate) fn now(&self) -> Arc<KeySet> {
        self.current.load().keys.clone()
    }

    /// Looks for changed keys until `stop`. A file that cannot be read, perhaps half written, changes nothing: the keys
    /// read before stay.
    pub(crate) async fn keep_fresh(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = interval(RELOAD_INTERVAL);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            match self.reload() {
                Ok(true) => info!(file = %self.file.display(), keys = self.ids(), "Took up new seal keys"),
                Ok(false) => {}
                Err(error) => warn!(%error, kept = self.ids(), "Failed to reload the seal keys"),
            }
        }
    }

    fn ids(&self) -> String {
        self.current.load().keys.ids().collect::<Vec<_>>().join(" ")
    }

    fn reload(&self) -> Result<bool, SealKeysError> {
        if slurp(&self.file)? == self.current.load().json {
            return Ok(false);
        }
        self.current.store(Arc::new(read(&self.file)?));
        Ok(true)
    }
}

impl fmt::Debug for SealKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealKeys").field("file", &self.file).field("keys", &self.ids()).finish()
    }
}

fn read(file: &Path) -> Result<Loaded, SealKeysError> {
    let json = slurp(file)?;
    let keys = KeySet::from_jwk_set(&json)
        .map_err(|error| SealKeysError::Unusable { file: file.to_owned(), error })?;
    Ok(Loaded { keys: Arc::new(keys), json })
}

fn slurp(file: &Path) -> Result<Vec<u8>, SealKeysError> {
    fs::read(file).map_err(|error| SealKeysError::Unreadable { file: file.to_owned(), error })
}

#[cfg(test)]
mod tests;
