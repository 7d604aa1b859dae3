//! The keys of the webhook: the private one that seals, and the public ones by which seals that come back are known. Both
//! are read again when their files change, so that keys are exchanged without a restart.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use identity::seal::{InvalidKey, InvalidKeySet, JwkSet, KeySet, SealingKey};
use serde::Deserialize;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::own_seal::Verifier;

const RELOAD_INTERVAL: Duration = Duration::from_secs(10);

/// The configuration's key `seal`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Section {
    /// The private key: PKCS#8 in PEM, as `openssl genpkey -algorithm ed25519` writes it.
    key: PathBuf,
    /// A JWK Set with the public keys of seals that are still in workloads. The own one need not be in it.
    keys: Option<PathBuf>,
    /// Most between sealing and a pod's creation, for clocks that differ.
    #[serde(default = "tolerance")]
    tolerance_seconds: u32,
}

fn tolerance() -> u32 {
    120
}

/// What seals, and what is believed.
pub(crate) struct Keys {
    pub(crate) sealing: SealingKey,
    pub(crate) known: KeySet,
    tolerance: u64,
}

impl Keys {
    /// What pods' seals are verified with.
    pub(crate) fn verifier(&self) -> Verifier<'_> {
        Verifier { keys: &self.known, tolerance: self.tolerance }
    }
}

/// The keys as they are now.
pub(crate) struct Sealing {
    files: Section,
    current: ArcSwap<Loaded>,
}

struct Loaded {
    keys: Arc<Keys>,
    /// The files' bytes, to see when they change.
    bytes: Zeroizing<Vec<u8>>,
}

/// Why keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SealingError {
    #[error("cannot read {file}: {error}", file = file.display())]
    Unreadable { file: PathBuf, error: io::Error },
    #[error("{file} holds no key that seals: {error}", file = file.display())]
    Private { file: PathBuf, error: InvalidKey },
    #[error("{file} cannot be used: {error}", file = file.display())]
    Public { file: PathBuf, error: InvalidKeySet },
}

impl Sealing {
    /// Reads the files.
    pub(crate) fn load(files: Section) -> Result<Self, SealingError> {
        let current = ArcSwap::from_pointee(Loaded::read(&files)?);
        Ok(Self { files, current })
    }

    /// The keys as they are now. A decision takes them once.
    pub(crate) fn now(&self) -> Arc<Keys> {
        self.current.load().keys.clone()
    }

    /// Looks for changed keys until `stop`. Files that cannot be used, perhaps half written, change nothing.
    pub(crate) async fn keep_fresh(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = interval(RELOAD_INTERVAL);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            match self.reload() {
                Ok(true) => {
                    let keys = self.now();
                    let known: Vec<_> = keys.known.ids().collect();
                    info!(
                        sealing = keys.sealing.public_jwk().id(),
                        known = known.join(" "),
                        "Took up new keys"
                    );
                }
                Ok(false) => {}
                Err(error) => warn!(%error, "Failed to reload the keys of seals; those read before stay"),
            }
        }
    }

    fn reload(&self) -> Result<bool, SealingError> {
        let loaded = Loaded::read(&self.files)?;
        let changed = *loaded.bytes != *self.current.load().bytes;
        if changed {
            self.current.store(Arc::new(loaded));
        }
        Ok(changed)
    }
}

impl Loaded {
    fn read(files: &Section) -> Result<Self, SealingError> {
        let mut bytes = Zeroizing::new(read(&files.key)?);
        let private = |error| SealingError::Private { file: files.key.clone(), error };
        let pem = std::str::from_utf8(&bytes).map_err(|_| private(InvalidKey::NotPem))?;
        let sealing = SealingKey::from_pem(pem).map_err(private)?;
        let own = sealing.public_jwk();
        let mut set = JwkSet { keys: Vec::new() };
        let mut file = &files.key;
        if let Some(keys) = &files.keys {
            file = keys;
            let json = read(keys)?;
            let public = |error| SealingError::Public { file: keys.clone(), error };
            set = serde_json::from_slice(&json).map_err(|error| public(InvalidKeySet::NotAJwkSet(error)))?;
            bytes.push(0);
            bytes.extend(json);
        }
        if !set.keys.iter().any(|key| key.id() == own.id()) {
            set.keys.push(own);
        }
        let known = KeySet::from_jwk_set(set.to_json().as_bytes())
            .map_err(|error| SealingError::Public { file: file.clone(), error })?;
        let tolerance = files.tolerance_seconds.into();
        Ok(Self { keys: Arc::new(Keys { sealing, known, tolerance }), bytes })
    }
}

fn read(file: &Path) -> Result<Vec<u8>, SealingError> {
    fs::read(file).map_err(|error| SealingError::Unreadable { file: file.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use identity::seal::{Seal, Submission};
    use serde_json::json;

    use super::*;

    /// Two keys of nobody, as `openssl genpkey -algorithm ed25519` wrote them.
    const PEMS: [&str; 2] = [
        "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n\
         -----END PRIVATE KEY-----\n",
        "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n\
         -----END PRIVATE KEY-----\n",
    ];

    fn sealed(keys: &Keys) -> String {
        let submission = Submission {
            submitter: "etl".to_owned(),
            groups: Vec::new(),
            root_owner: None,
            time: 1_800_000_000,
        };
        let seal = Seal::of_pod(&submission, "jobs", &json!({"metadata": {"name": "etl-0"}})).unwrap();
        keys.sealing.sign(&seal).unwrap()
    }

    #[test]
    fn keys_are_exchanged_with_overlap_and_without_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let files = Section {
            key: folder.path().join("seal.pem"),
            keys: Some(folder.path().join("keys.json")),
            tolerance_seconds: tolerance(),
        };
        let public = |pem: &str| SealingKey::from_pem(pem).unwrap().public_jwk();
        let publish = |keys: &[&str]| {
            let set = JwkSet { keys: keys.iter().map(|pem| public(pem)).collect() };
            fs::write(folder.path().join("keys.json"), set.to_json()).unwrap();
        };
        fs::write(&files.key, PEMS[0]).unwrap();
        publish(&[]);
        let sealing = Sealing::load(files.clone()).unwrap();
        let old = sealed(&sealing.now());
        assert!(sealing.now().known.verify(&old).is_ok(), "the own key is known without being listed");
        assert!(!sealing.reload().unwrap());

        fs::write(&files.key, PEMS[1]).unwrap();
        publish(&[PEMS[0]]);
        assert!(sealing.reload().unwrap());
        let new = sealed(&sealing.now());
        assert!(sealing.now().known.verify(&old).is_ok() && sealing.now().known.verify(&new).is_ok());

        publish(&[]);
        assert!(sealing.reload().unwrap());
        assert!(sealing.now().known.verify(&old).is_err() && sealing.now().known.verify(&new).is_ok());

        fs::write(&files.key, "half wri").unwrap();
        assert!(sealing.reload().unwrap_err().to_string().contains("seal.pem"));
        assert!(sealing.now().known.verify(&new).is_ok());
    }
}
