//! What is wrong with a volume that is mounted, if anything: what kubelet asks for now and then, to tell those who own
//! the pod. Decided from the record and what is in the volume; changes nothing.

use jiff::{SignedDuration, Timestamp};
use proto::VolumeId;

use super::{IssuedToken, Phase, Record, Target, error::VolumeError, lifecycle::Volumes};
use crate::{
    mount::{Usage, usage},
    token_dir::TokenDir,
};

/// Something that is wrong with a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) severity: Severity,
    /// For programs, as `CSI` writes reasons.
    pub(crate) reason: &'static str,
    /// For people.
    pub(crate) message: String,
}

/// Whether a pod can still use the volume's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    /// It can, but not for ever.
    Degraded,
    Unusable,
}

/// Renewals and rotations are late from here on, but not before a quarter of what is left has passed.
const LATE: SignedDuration = SignedDuration::from_mins(2);

/// What there is to say of a volume that is mounted.
#[derive(Debug)]
pub(crate) struct Stats {
    pub(crate) usage: Usage,
    pub(crate) trouble: Option<Trouble>,
}

impl Volumes {
    /// How full a volume is, and what is wrong with it.
    ///
    /// # Errors
    /// When it is not mounted there, and when the disk fails.
    pub(crate) fn stats(&self, id: &VolumeId, target: &Target) -> Result<Stats, VolumeError> {
        let failed = |source| VolumeError::Look { target: target.path.clone(), source };
        if !self.mounter.is_mounted(&target.path).map_err(failed)? {
            return Err(VolumeError::NotFound { id: id.to_string() });
        }
        let usage = usage(&target.path).map_err(failed)?;
        let record = self.store.get(id).map_err(VolumeError::Record)?;
        let trouble = record.map_or_else(|| Some(no_record()), |record| self.trouble(&record, true));
        Ok(Stats { usage, trouble })
    }

    /// What is wrong with a volume, if anything.
    ///
    /// # Errors
    /// When there is no such volume, and when the disk fails.
    pub(crate) fn health(&self, id: &VolumeId) -> Result<Option<Trouble>, VolumeError> {
        let record = self.store.get(id).map_err(VolumeError::Record)?;
        let record = record.ok_or_else(|| VolumeError::NotFound { id: id.to_string() })?;
        let mounted = self.mounter.is_mounted(&record.target);
        let mounted =
            mounted.map_err(|source| VolumeError::Look { target: record.target.clone(), source })?;
        Ok(self.trouble(&record, mounted))
    }

    fn trouble(&self, record: &Record, mounted: bool) -> Option<Trouble> {
        let has_token = TokenDir::new(&record.target, record.fs_group).has_token();
        trouble(record, mounted, has_token, self.clock.now())
    }
}

fn no_record() -> Trouble {
    unusable("RecordMissing", "nothing is known of the volume's tokens until kubelet publishes it again")
}

/// What is wrong with a volume that has this record.
fn trouble(record: &Record, mounted: bool, has_token: bool, now: Timestamp) -> Option<Trouble> {
    match record.phase {
        _ if !mounted => Some(unusable("NotMounted", "nothing is mounted where the volume should be")),
        Phase::Issued => Some(unusable("BeingPublished", "the volume is being published")),
        Phase::Waiting => Some(Trouble {
            severity: Severity::Degraded,
            reason: "WaitingForToken",
            message:
                "the pod has no token before its addresses are verified: token.json says what is missing"
                    .to_owned(),
        }),
        Phase::Stopped => {
            let why = record.stopped.as_ref().map(|stop| format!("{} [{}]", stop.message, stop.reason));
            Some(unusable(
                "TokenTakenAway",
                why.unwrap_or_else(|| "the pod has no token any more".to_owned()),
            ))
        }
        Phase::Published if !has_token => {
            Some(unusable("TokenFileMissing", "the token file is not in the volume"))
        }
        Phase::Published => trouble_with_dates(record, now),
    }
}

fn trouble_with_dates(record: &Record, now: Timestamp) -> Option<Trouble> {
    let renewable_until = record.tokens.iter().map(IssuedToken::ends).min()?;
    if renewable_until <= now {
        let message = format!("the token expired at {renewable_until} because it was not renewed");
        return Some(unusable("TokenExpired", message));
    }
    let lasts_until = record.tokens.iter().map(|token| token.here(token.about.max_date)).min()?;
    let late = |due: Option<Timestamp>, end: Timestamp, reason, what| {
        let due = due?;
        let patience = (end.duration_since(due) / 4).max(LATE);
        (now > due.saturating_add(patience).ok()?).then(|| Trouble {
            severity: Severity::Degraded,
            reason,
            message: format!(
                "the token {what} since {due}, and ends at {end}: the node plugin's log says why"
            ),
        })
    };
    late(record.next_renewal, renewable_until, "RenewalFailing", "could not be renewed")
        .or_else(|| late(record.next_rotation, lasts_until, "RotationFailing", "could not be replaced"))
}

fn unusable(reason: &'static str, message: impl Into<String>) -> Trouble {
    Trouble { severity: Severity::Unusable, reason, message: message.into() }
}

#[cfg(test)]
mod tests;
