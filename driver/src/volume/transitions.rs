//! What becomes of a mounted volume while its pod lives: it gets its first token when the pod's addresses are
//! verified, it is checked, it is stopped. The caller has the volume's lock. As in `lifecycle`, every step leaves the
//! disk so that the next start goes on from there.

use std::{collections::BTreeSet, io, net::IpAddr, time::Duration};

use hadoop::token_file::TokenFile;
use jiff::{SignedDuration, Timestamp};
use proto::VolumeId;
use tracing::{info, warn};

use super::{AboutToken, IssuedToken, Phase, Record, Stop, error::VolumeError, lifecycle::Volumes};
use crate::{
    controller_client::Issued,
    refresh::queue::{Agenda, next_renewal, next_rotation},
    token_dir::{Summary, TokenDir},
};

impl Volumes {
    /// Notes in a record what was issued, and hands out what is for the pod.
    pub(super) fn note_issued(&self, record: &mut Record, issued: Issued) -> TokenFile {
        record.next_renewal = self.next_renewal(&issued.tokens);
        record.next_rotation = self.next_rotation(&issued.tokens);
        record.next_check = issued.check_after.and_then(|after| self.next_check(after));
        record.user = issued.user;
        record.cluster = issued.cluster;
        record.tokens = issued.tokens;
        record.address_verification = issued.verification;
        record.unsealed = issued.unsealed;
        issued.file
    }

    /// Writes the first token into a volume that waits for it; `verified` are the addresses for which it was issued.
    ///
    /// # Errors
    /// Says what failed. The tokens will then be cancelled, and the volume waits as before.
    pub(crate) fn fill(
        &self,
        waiting: Record,
        issued: Issued,
        verified: BTreeSet<IpAddr>,
    ) -> Result<(), VolumeError> {
        let missing = issued.missing();
        let mut record = Record { verified_addresses: verified, ..waiting };
        let file = self.note_issued(&mut record, issued);
        let filled = match missing {
            Some(missing) => Err(self.controller.malformed(missing).into()),
            None => self.fill_steps(&mut record, &file),
        };
        if let Err(failure) = filled {
            self.empty(record);
            return Err(failure);
        }
        info!(
            user = record.user,
            cluster = record.cluster,
            tokens = ?record.sequence_numbers(),
            addresses = ?record.verified_addresses,
            next_renewal = record.next_renewal.map(tracing::field::display),
            "Gave a volume its token, now that its pod's addresses are verified"
        );
        self.arm(&record);
        Ok(())
    }

    /// Notes by how many milliseconds the clock of the tokens' service is ahead of ours now: one of them may have been set
    /// since, and what is to be done in time moves with it.
    pub(crate) fn note_clock_lead(&self, record: &mut Record, lead: i64) {
        let now = self.clock.now();
        let moved = |at: Timestamp, by| at.saturating_sub(SignedDuration::from_millis(by)).unwrap_or(at);
        let by = record.tokens.first().map_or(0, |token| lead.saturating_sub(token.clock_lead));
        record.next_rotation = record.next_rotation.map(|at| if at > now { moved(at, by) } else { at });
        for token in &mut record.tokens {
            token.clock_lead = lead;
        }
    }

    /// Sets the timers of a volume whose tokens, or their dates, are new.
    pub(crate) fn arm(&self, record: &Record) {
        let id = &record.volume.id;
        let set = |agenda: &Agenda<VolumeId>, at: Option<Timestamp>| match at {
            Some(at) => agenda.insert(id.clone(), self.clock.instant(at)),
            None => agenda.remove(id),
        };
        set(&self.renewals, record.next_renewal);
        set(&self.rotations, self.rotates_at(record));
        set(&self.checks, record.next_check);
    }

    /// When to replace a volume's tokens. A record from before tokens were replaced does not say.
    pub(super) fn rotates_at(&self, record: &Record) -> Option<Timestamp> {
        let computed = || self.next_rotation(&record.tokens).filter(|_| record.phase == Phase::Published);
        record.next_rotation.or_else(computed)
    }

    /// When to renew the first of these tokens.
    pub(crate) fn next_renewal(&self, tokens: &[IssuedToken]) -> Option<Timestamp> {
        let now = self.clock.now();
        let next = |token: &IssuedToken| {
            let AboutToken { renew_date, max_date, .. } = token.about;
            next_renewal(token.at_service(now), renew_date, max_date, fastrand::f64())
                .map(|at| token.here(at))
        };
        tokens.iter().filter_map(next).min()
    }

    /// When to replace the first of these tokens.
    fn next_rotation(&self, tokens: &[IssuedToken]) -> Option<Timestamp> {
        let now = self.clock.now();
        let next = |token: &IssuedToken| {
            let AboutToken { issue_date, max_date, .. } = token.about;
            token.here(next_rotation(token.at_service(now), issue_date, max_date, fastrand::f64()))
        };
        tokens.iter().map(next).min()
    }

    fn fill_steps(&self, record: &mut Record, file: &TokenFile) -> Result<(), VolumeError> {
        // As one that waits: what a crash leaves here is emptied at the next start.
        self.store.put(record).map_err(VolumeError::Record)?;
        record.phase = Phase::Published;
        TokenDir::new(&record.target, record.fs_group)
            .write(file, &Summary::of(record))
            .map_err(|source| VolumeError::Mount { target: record.target.clone(), source })?;
        self.store.put(record).map_err(VolumeError::Record)
    }

    /// Has the tokens cancelled that a waiting volume did not get, and lets it wait on.
    pub(super) fn empty(&self, mut record: Record) {
        record.phase = Phase::Waiting;
        if !record.tokens.is_empty() {
            self.release_apart(record.clone());
        }
        record.tokens.clear();
        record.verified_addresses.clear();
        (record.next_renewal, record.next_rotation, record.next_check) = (None, None, None);
        let id = &record.volume.id;
        if let Err(error) = self.store.put(&record) {
            warn!(volume.id = %id, %error, "Failed to record that a volume waits for its token");
        }
        self.write_without_token(&record);
    }

    /// Says in a waiting volume what it waits for, if that has changed.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn say_waiting(&self, id: &VolumeId, what: &str) -> io::Result<()> {
        let Some(record) = self.store.get(id)?.filter(|record| record.phase == Phase::Waiting) else {
            return Ok(());
        };
        let files = TokenDir::new(&record.target, record.fs_group);
        let said = files.read_summary().ok().and_then(|summary| summary.waiting);
        if said.as_deref() == Some(what) {
            return Ok(());
        }
        info!(volume.id = %id, pod = %record.volume.pod, what, "A volume waits for its token");
        let summary = Summary { waiting: Some(what.to_owned()), ..Summary::of(&record) };
        files.write_without_token(&summary)
    }

    /// Notes that the controller lets these tokens of a volume stay, and, if it said so, for which addresses of the
    /// pod. Nothing to note for a volume that is gone, or has others, meanwhile.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn note_check(
        &self,
        checked: &Record,
        check_after: Option<Duration>,
        verified: Option<BTreeSet<IpAddr>>,
    ) -> io::Result<()> {
        let id = &checked.volume.id;
        let Some(mut record) = self.unchanged(id, &checked.tokens)? else { return Ok(()) };
        record.next_check = check_after.and_then(|after| self.next_check(after));
        if let Some(verified) = verified {
            info!(volume.id = %id, pod = %record.volume.pod, addresses = ?verified, "Verified the pod's addresses");
            record.verified_addresses = verified;
        }
        match record.next_check {
            Some(at) => self.checks.insert(id.clone(), self.clock.instant(at)),
            None => self.checks.remove(id),
        }
        self.store.put(&record)
    }

    /// Takes the token away from a volume for good, on the controller's word; `tokens` are those it has, if any. The
    /// volume stays mounted, and says why it is empty. The tokens are released: the controller, which has cancelled
    /// those that it could tie to the pod, does it for all that we recorded. Says whether it still has these tokens;
    /// nothing is done to a volume that is gone, or has others, meanwhile.
    ///
    /// # Errors
    /// When the volume's record cannot be read: nothing is done then.
    pub(crate) fn stop(&self, id: &VolumeId, tokens: &[IssuedToken], stop: Stop) -> io::Result<bool> {
        let Some(mut record) = self.unchanged(id, tokens)? else { return Ok(false) };
        warn!(
            volume.id = %id,
            pod = %record.volume.pod,
            user = record.user,
            tokens = ?record.sequence_numbers(),
            reason = stop.reason,
            message = stop.message,
            "The pod has no token any more"
        );
        record.phase = Phase::Stopped;
        (record.next_renewal, record.next_rotation, record.next_check) = (None, None, None);
        record.stopped = Some(stop);
        self.forget(id);
        // First, so that a start after a crash takes away what is left. Nor must a full disk save a token.
        if let Err(error) = self.store.put(&record) {
            warn!(volume.id = %id, %error, "Failed to record that a volume is stopped");
        }
        self.write_without_token(&record);
        self.release_stopped(record);
        Ok(true)
    }

    /// Has the tokens cancelled that a stopped volume still has in its record. It has none there once they are
    /// recorded as released; a crash in between releases them twice, which does no harm.
    pub(super) fn release_stopped(&self, mut record: Record) {
        if record.all_tokens().next().is_none() || !self.release_apart(record.clone()) {
            return;
        }
        record.tokens.clear();
        record.successor = None;
        if let Err(error) = self.store.put(&record) {
            let id = &record.volume.id;
            warn!(volume.id = %id, %error, "Failed to record that a stopped volume's tokens are released");
        }
    }

    /// Leaves `token.json` alone in a volume.
    pub(super) fn write_without_token(&self, record: &Record) {
        let files = TokenDir::new(&record.target, record.fs_group);
        if let Err(error) = files.write_without_token(&Summary::of(record)) {
            let id = &record.volume.id;
            warn!(volume.id = %id, %error, "Failed to say in the volume why it has no token: wiping it");
            files.wipe().unwrap_or_else(|error| {
                warn!(volume.id = %id, %error, "Failed to wipe the volume");
            });
        }
    }

    /// The record of a volume, if it still has these tokens, or still waits for some.
    pub(crate) fn unchanged(&self, id: &VolumeId, tokens: &[IssuedToken]) -> io::Result<Option<Record>> {
        let unchanged = |record: &Record| match record.phase {
            Phase::Published | Phase::Waiting => {
                let numbers = |tokens: &[IssuedToken]| {
                    tokens.iter().map(|token| token.identifier.clone()).collect::<Vec<_>>()
                };
                numbers(&record.tokens) == numbers(tokens)
            }
            Phase::Issued | Phase::Stopped => false,
        };
        Ok(self.store.get(id)?.filter(unchanged))
    }

    /// A time a little before `after` is over, so that what was issued together is not checked together.
    fn next_check(&self, after: Duration) -> Option<Timestamp> {
        let after = after.mul_f64(0.9 + 0.1 * fastrand::f64());
        self.clock.now().checked_add(after).ok()
    }
}
