//! Volumes that the records do not tell of at a start: mounted, with a record that is lost or was put aside, or covered by
//! what somebody else mounted over them. What they hold is found in the mounts themselves.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use proto::VolumeId;
use tracing::{info, warn};

use super::{Target, lifecycle::Volumes, recovery::adopt};

/// What is mounted below kubelet's directory of pods: for each place, whether a volume of ours is.
pub(super) struct Stock(HashMap<PathBuf, bool>);

impl Volumes {
    /// Takes stock of what is mounted below `pods`, and takes away what others mounted over our volumes.
    pub(super) fn take_stock(&self, pods: &Path) -> Stock {
        let mounts = self.mounter.mounts().unwrap_or_else(|error| {
            warn!(%error, "Failed to list what is mounted: volumes without records are found when kubelet calls");
            Vec::new()
        });
        // The kernel knows no path with links in it.
        let real = fs::canonicalize(pods).unwrap_or_else(|_| pods.to_owned());
        let mut places: HashMap<PathBuf, Vec<bool>> = HashMap::new();
        for mounted in mounts {
            if let Ok(below) = mounted.on.strip_prefix(&real) {
                places.entry(pods.join(below)).or_default().push(mounted.ours);
            }
        }
        let stock = places.into_iter().map(|(place, ours)| {
            let lowest = ours.iter().position(|ours| *ours);
            let over = ours.iter().rev().take_while(|ours| !**ours).count();
            for _ in (0..over).filter(|_| lowest.is_some()) {
                warn!(target = %place.display(), "Somebody mounted over a volume: uncovering it");
                self.mounter.unmount(&place).unwrap_or_else(|error| {
                    warn!(target = %place.display(), %error, "Failed to uncover a volume");
                });
            }
            (place, lowest.is_some())
        });
        Stock(stock.collect())
    }

    /// Whether a volume is mounted on `target`.
    pub(super) fn is_in_stock(&self, target: &Path, stock: &Stock) -> io::Result<bool> {
        match stock.0.get(target) {
            Some(ours) => Ok(*ours),
            // Only what is known to be something else is not taken for a volume.
            None => self.mounter.is_mounted(target),
        }
    }

    /// Makes records for volumes that are mounted and have none, and ends those whose unpublish was cut short. One whose
    /// files do not tell what it is stays as it is until kubelet says what is to become of it.
    pub(super) fn find_lost(&self, pods: &Path, stock: &Stock) -> io::Result<()> {
        let released = self.released_identifiers()?;
        for path in stock.0.iter().filter(|(_, ours)| **ours).map(|(path, _)| path) {
            let Some(target) = path.to_str().and_then(|path| Target::parse(path, pods).ok()) else {
                warn!(path = %path.display(), "Something like a volume is mounted where kubelet has none");
                continue;
            };
            let id = VolumeId::of(&target.pod_uid, &target.volume);
            if self.store.get(&id)?.is_some() {
                continue;
            }
            let Some(record) = adopt(&id, &target.volume, &target, group_of(path)) else {
                warn!(volume.id = %id, path = %path.display(), "A mounted volume has no record, and its files do not tell what it holds");
                continue;
            };
            if record.tokens.iter().any(|token| released.contains(&token.identifier)) {
                info!(volume.id = %id, pod = %record.volume.pod, "Ending what an earlier run began to unpublish");
                self.clear(path, record.fs_group).unwrap_or_else(|error| {
                    warn!(volume.id = %id, %error, "Failed to clear the volume");
                });
                continue;
            }
            warn!(volume.id = %id, pod = %record.volume.pod, tokens = ?record.sequence_numbers(), "Adopted a mounted volume that had no record");
            self.store.put(&record).unwrap_or_else(|error| {
                warn!(volume.id = %id, %error, "Failed to record an adopted volume");
            });
        }
        Ok(())
    }

    fn released_identifiers(&self) -> io::Result<HashSet<Vec<u8>>> {
        let mut identifiers = HashSet::new();
        for release in self.store.all_released()? {
            if let Some(record) = self.store.get_released(&release)? {
                identifiers.extend(record.all_tokens().map(|token| token.identifier.clone()));
            }
        }
        Ok(identifiers)
    }
}

/// The group for which a volume was mounted: it alone may then read.
fn group_of(target: &Path) -> Option<u32> {
    let root = fs::metadata(target).ok()?;
    (root.mode() & 0o007 == 0).then_some(root.gid())
}
