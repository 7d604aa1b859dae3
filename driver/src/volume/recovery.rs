//! What becomes of volumes that an earlier run of this program left: from their records, and without a record from
//! what is mounted.

use std::{collections::BTreeSet, io, path::Path};

use hadoop::token_file::TokenFile;
use jiff::{SignedDuration, Timestamp};
use proto::VolumeId;
use tracing::{info, warn};

use super::{IssuedToken, Phase, Record, Target, Version, Volume, lifecycle::Volumes};
use crate::token_dir::TokenDir;

/// After a restart, what is overdue comes due within this time, not all at once.
const SPREAD: SignedDuration = SignedDuration::from_secs(10);

impl Volumes {
    /// Finds out what became of every volume while nobody looked: goes on with those that are mounted, and has the
    /// tokens of all others cancelled. To be done once, before kubelet can call; `pods` is its directory of pods.
    ///
    /// # Errors
    /// When the records cannot be listed.
    pub(crate) fn recover(&self, pods: &Path) -> io::Result<()> {
        let stock = self.take_stock(pods);
        self.find_lost(pods, &stock)?;
        let now = self.clock.now();
        let (mut kept, mut released) = (0, 0);
        for mut record in self.store.all()? {
            let id = &record.volume.id;
            let mounted = self.is_in_stock(&record.target, &stock).unwrap_or_else(|error| {
                warn!(volume.id = %id, %error, "Cannot tell whether the volume is mounted: taking it as such");
                true
            });
            if mounted {
                self.settle(&mut record).unwrap_or_else(|error| {
                    warn!(volume.id = %record.volume.id, %error, "Failed to record which tokens a volume has");
                });
            }
            let id = &record.volume.id;
            match (record.phase, mounted) {
                (Phase::Published, true) => {
                    kept += 1;
                    self.pods.add(&record.volume.pod.uid, id);
                    let spread =
                        |at: Timestamp| self.clock.instant(at.max(now + SPREAD.mul_f64(fastrand::f64())));
                    if let Some(at) = record.next_renewal {
                        self.renewals.insert(id.clone(), spread(at));
                    }
                    if let Some(at) = self.rotates_at(&record) {
                        self.rotations.insert(id.clone(), spread(at));
                    }
                    if let Some(at) = record.next_check {
                        self.checks.insert(id.clone(), spread(at));
                    }
                }
                (Phase::Waiting, true) => {
                    kept += 1;
                    self.pods.add(&record.volume.pod.uid, id);
                    if !record.tokens.is_empty() {
                        self.empty(record);
                    }
                }
                (Phase::Stopped, true) => {
                    kept += 1;
                    self.write_without_token(&record);
                    self.release_stopped(record);
                }
                (Phase::Published | Phase::Issued | Phase::Waiting | Phase::Stopped, false)
                | (Phase::Issued, true) => {
                    released += 1;
                    info!(volume.id = %id, pod = %record.volume.pod, phase = ?record.phase, mounted, "Releasing what an earlier run left");
                    self.clear(&record.target, record.fs_group).unwrap_or_else(|error| {
                        warn!(volume.id = %id, %error, "Failed to clear the volume");
                    });
                    self.release(record);
                }
            }
        }
        for release in self.store.all_released()? {
            let due = now + SPREAD.mul_f64(fastrand::f64());
            self.releases.insert(release, self.clock.instant(due));
            released += 1;
        }
        info!(kept, released, "Recovered volumes");
        Ok(())
    }
}

/// The record of a mounted volume, put together from its files. Nothing if they do not tell.
pub(super) fn adopt(id: &VolumeId, name: &str, target: &Target, fs_group: Option<u32>) -> Option<Record> {
    let files = TokenDir::new(&target.path, fs_group);
    let summary = files.read_summary().ok().filter(|summary| summary.pod.uid == target.pod_uid)?;
    let phase = match (&summary.stopped, &summary.waiting) {
        (Some(_), _) => Phase::Stopped,
        (None, Some(_)) => Phase::Waiting,
        (None, None) => Phase::Published,
    };
    let file = if phase == Phase::Published { files.read().ok()? } else { TokenFile::default() };
    let about = if phase == Phase::Published { summary.tokens } else { Vec::new() };
    let tokens: Option<Vec<IssuedToken>> = about
        .into_iter()
        .map(|about| {
            let service = about.services.first()?;
            let (_, token) = file
                .tokens
                .iter()
                .find(|(_, token)| token.kind == about.kind && token.service == *service)?;
            Some(IssuedToken { identifier: token.identifier.clone(), clock_lead: 0, about })
        })
        .collect();
    Some(Record {
        version: Version::V1,
        phase,
        volume: Volume { id: id.clone(), name: name.to_owned(), pod: summary.pod },
        target: target.path.clone(),
        fs_group,
        user: summary.user,
        cluster: summary.cluster,
        tokens: tokens.filter(|tokens| (phase == Phase::Published) != tokens.is_empty())?,
        next_renewal: summary.next_renewal,
        next_rotation: summary.next_rotation,
        successor: None,
        address_verification: summary.address_verification,
        verified_addresses: BTreeSet::new(),
        next_check: (phase == Phase::Published).then_some(Timestamp::UNIX_EPOCH),
        unsealed: summary.warning.is_some(),
        stopped: summary.stopped,
    })
}

#[cfg(test)]
mod kills;
#[cfg(test)]
mod tests;
