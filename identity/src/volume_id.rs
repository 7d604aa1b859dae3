//! The CSI volume id of an inline volume.

use std::fmt;

use sha2::{Digest, Sha256};

/// Id that kubelet gives an inline volume: `csi-` and the hexadecimal SHA-256 of the pod's UID followed by the
/// volume's name (Kubernetes `makeVolumeHandle`). It can therefore be checked, and is safe as a file name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeId(String);

impl VolumeId {
    /// The id of volume `volume` of the pod with UID `pod_uid`.
    #[must_use]
    pub fn of(pod_uid: &str, volume: &str) -> Self {
        let digest = Sha256::new().chain_update(pod_uid).chain_update(volume).finalize();
        Self(digest.iter().fold(String::from("csi-"), |id, byte| id + &format!("{byte:02x}")))
    }

    /// The id as kubelet writes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for VolumeId {
    type Err = InvalidVolumeId;

    fn from_str(id: &str) -> Result<Self, InvalidVolumeId> {
        let hexadecimal = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        match id.strip_prefix("csi-") {
            Some(digest) if digest.len() == 64 && digest.chars().all(hexadecimal) => Ok(Self(id.to_owned())),
            _ => Err(InvalidVolumeId(id.chars().take(80).collect())),
        }
    }
}

/// Text that is not the id of an inline volume.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the id of an inline volume (csi- and 64 hexadecimal digits)")]
pub struct InvalidVolumeId(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_csi_and_the_digest_of_uid_and_name() {
        // printf 'd1etokens' | sha256sum
        assert_eq!(
            VolumeId::of("d1e", "tokens").as_str(),
            "csi-51d5db08be423f4ee7ec34a5526bd9a1b771ae44b31df2a356230c39d58fcb93"
        );
    }

    #[test]
    fn reads_back_what_it_writes() {
        let id = VolumeId::of("8d5d92a4-3a2a-4c4c-8d2f-3b1f6f3ad6a0", "hadoop");
        assert_eq!(id.as_str().parse(), Ok(id.clone()));
    }

    #[test]
    fn refuses_a_path() {
        assert!("csi-../../etc/passwd".parse::<VolumeId>().is_err());
        assert!("csi-".parse::<VolumeId>().is_err());
        assert!("".parse::<VolumeId>().is_err());
    }
}
