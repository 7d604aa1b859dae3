//! A mounted volume's tokens are exchanged for others while its pod lives. Both stand in the record before the files
//! are exchanged, so that after a crash the files say which the volume has. Those that it has not are lost ones for the
//! controller, which cancels them when it is asked again, or when the pod ends: to release anything would end all tokens
//! of the volume. Those that were exchanged stay good until then: a reader may have them still.

use std::{
    collections::HashMap,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use process::fault::point;
use proto::VolumeId;
use tracing::{info, warn};

use super::{IssuedToken, Phase, Record, Stop, error::VolumeError, lifecycle::Volumes};
use crate::{
    controller_client::Issued,
    token_dir::{Summary, TokenDir},
};

/// The volumes for which other tokens are being asked, each with what was revoked meanwhile: word that a token is taken
/// away may come before the token.
#[derive(Debug, Default)]
pub(crate) struct Rotating(Mutex<HashMap<VolumeId, Vec<Revocation>>>);

/// The controller's word that these tokens are taken away.
#[derive(Clone, Debug)]
pub(crate) struct Revocation {
    pub(crate) identifiers: Vec<Vec<u8>>,
    pub(crate) stop: Stop,
}

impl Revocation {
    fn names_any<'a>(&self, tokens: impl IntoIterator<Item = &'a IssuedToken>) -> bool {
        tokens.into_iter().any(|token| self.identifiers.contains(&token.identifier))
    }
}

impl Rotating {
    fn lock(&self) -> MutexGuard<'_, HashMap<VolumeId, Vec<Revocation>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Other tokens are being asked for a volume; not any more when dropped.
pub(crate) struct Rotation {
    volumes: Volumes,
    id: VolumeId,
}

impl Drop for Rotation {
    fn drop(&mut self) {
        self.volumes.rotating.lock().remove(&self.id);
    }
}

impl Volumes {
    /// Begins to ask for other tokens for a volume; nothing if somebody does so already.
    pub(crate) fn begin_rotation(&self, id: &VolumeId) -> Option<Rotation> {
        let mut rotating = self.rotating.lock();
        if rotating.contains_key(id) {
            return None;
        }
        rotating.insert(id.clone(), Vec::new());
        Some(Rotation { volumes: self.clone(), id: id.clone() })
    }

    /// Gives a volume, which has the tokens of `held`, others in their place. The caller has the volume's lock.
    ///
    /// # Errors
    /// Says what failed. The volume then has its tokens as before, or both the disk and a later call know better.
    pub(crate) fn exchange(
        &self,
        rotation: &Rotation,
        held: &Record,
        issued: Issued,
    ) -> Result<(), VolumeError> {
        let id = &rotation.id;
        let missing = issued.missing();
        let current = self.unchanged(id, &held.tokens);
        let mut successor = match &current {
            Ok(Some(record)) => record.clone(),
            Ok(None) | Err(_) => held.clone(),
        };
        let file = self.note_issued(&mut successor, issued);
        let current = match missing {
            Some(missing) => Err(self.controller.malformed(missing).into()),
            None => current.map_err(VolumeError::Record),
        };
        let mut record = match current {
            Ok(Some(record)) => record,
            Ok(None) => return self.end_unwanted(successor).map_err(VolumeError::Record),
            Err(error) => return Err(error),
        };
        if let Some(stop) = self.revoked_meanwhile(id, &successor) {
            self.stop(id, &record.tokens, stop).map_err(VolumeError::Record)?;
            return self.end_unwanted(successor).map_err(VolumeError::Record);
        }

        record.successor = Some(Box::new(successor.clone()));
        self.store.put(&record).map_err(VolumeError::Record)?;
        point("files.swap:before");
        let files = TokenDir::new(&record.target, record.fs_group);
        let written = files.write(&file, &Summary::of(&successor));
        point("files.swap:after");
        // A failure may have come after the exchange: the files know.
        let settled = self.settle(&mut record);
        let exchanged = record.tokens == successor.tokens;
        if exchanged {
            info!(
                volume.id = %id,
                pod = %record.volume.pod,
                user = record.user,
                tokens = ?record.sequence_numbers(),
                before = ?held.sequence_numbers(),
                next_renewal = record.next_renewal.map(tracing::field::display),
                next_rotation = record.next_rotation.map(tracing::field::display),
                "Replaced tokens"
            );
            self.arm(&record);
        }
        match (written, exchanged) {
            (Err(source), false) => Err(VolumeError::Mount { target: record.target, source }),
            (Err(error), true) => {
                warn!(volume.id = %id, %error, "Failed to tidy up after tokens were replaced");
                settled.map_err(VolumeError::Record)
            }
            (Ok(()), _) => settled.map_err(VolumeError::Record),
        }
    }

    /// Has tokens cancelled that came for a volume that was unpublished or stopped meanwhile.
    fn end_unwanted(&self, unwanted: Record) -> io::Result<()> {
        match self.store.get(&unwanted.volume.id)?.map(|record| record.phase) {
            // It was published again, for which all earlier ones are lost ones.
            Some(Phase::Published) => {}
            Some(Phase::Issued | Phase::Waiting | Phase::Stopped) | None => {
                self.release_apart(unwanted);
            }
        }
        Ok(())
    }

    /// Makes up its mind, by the files, about a mounted volume whose tokens were being exchanged. The caller has the
    /// volume's lock, or is the only one at work.
    ///
    /// # Errors
    /// When that cannot be told, or the disk does not take it. It is then to be done again.
    pub(super) fn settle(&self, record: &mut Record) -> io::Result<()> {
        let Some(successor) = record.successor.clone() else { return Ok(()) };
        let has = match TokenDir::new(&record.target, record.fs_group).read() {
            Ok(file) => successor
                .tokens
                .iter()
                .all(|issued| file.tokens.iter().any(|(_, token)| token.identifier == issued.identifier)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        if has {
            *record = *successor;
        } else {
            record.successor = None;
        }
        self.store.put(record)
    }

    /// The record of a volume whose tokens are to be replaced. One whose last exchange the disk did not take is settled
    /// instead. The caller has the volume's lock.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn to_be_rotated(&self, id: &VolumeId) -> io::Result<Option<Record>> {
        let published = |record: &Record| record.phase == Phase::Published;
        let Some(mut record) = self.store.get(id)?.filter(published) else { return Ok(None) };
        if record.successor.is_none() {
            return Ok(Some(record));
        }
        self.settle(&mut record)?;
        self.arm(&record);
        Ok(None)
    }

    /// Has the tokens of a volume replaced now, or as soon as kubelet brings what that needs. The caller has the volume's
    /// lock.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn rotate_now(&self, id: &VolumeId) -> io::Result<()> {
        let published = |record: &Record| record.phase == Phase::Published;
        let Some(mut record) = self.store.get(id)?.filter(published) else { return Ok(()) };
        let now = self.clock.now();
        record.next_rotation = Some(now);
        self.store.put(&record)?;
        self.rotations.insert(id.clone(), self.clock.instant(now));
        Ok(())
    }

    /// The records of all volumes that have tokens. What cannot be read is left out: checks will tell of it.
    pub(crate) fn held(&self) -> Vec<Record> {
        let mut records = self.store.all().unwrap_or_else(|error| {
            warn!(%error, "Failed to read the records of volumes");
            Vec::new()
        });
        records.retain(|record| record.phase == Phase::Published);
        records
    }

    /// Notes a revocation for whoever is asking for tokens of this volume, which may be the revoked ones.
    pub(crate) fn note_revocation(&self, id: &VolumeId, revocation: &Revocation) {
        if let Some(noted) = self.rotating.lock().get_mut(id) {
            noted.push(revocation.clone());
        }
    }

    /// Takes the token away from a volume if it has one of those that are revoked. The caller has the volume's lock.
    ///
    /// # Errors
    /// When the volume's record cannot be read: nothing is done then.
    pub(crate) fn revoke(&self, id: &VolumeId, revocation: Revocation) -> io::Result<()> {
        match self.store.get(id)?.filter(|record| revocation.names_any(record.all_tokens())) {
            Some(record) => self.stop(id, &record.tokens, revocation.stop).map(drop),
            None => Ok(()),
        }
    }

    fn revoked_meanwhile(&self, id: &VolumeId, successor: &Record) -> Option<Stop> {
        let rotating = self.rotating.lock();
        let named = rotating.get(id)?.iter().find(|revocation| revocation.names_any(&successor.tokens))?;
        Some(named.stop.clone())
    }
}
