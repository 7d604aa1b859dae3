//! The life of a volume, from publish to unpublish. Every step leaves the disk so that, wherever the process is
//! killed, the next start finds each token and has it cancelled or goes on with it. A call that kubelet gives up goes
//! on to its end here, under the volume's lock, so that nothing is ever half done and forgotten.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs, io,
    panic::resume_unwind,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hadoop::token_file::TokenFile;
use proto::VolumeId;
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;
use tracing::{Instrument, error, info, info_span, warn};

use super::{
    AddressVerification, Phase, Record, Target, Version, Volume,
    error::VolumeError,
    exchange::Rotating,
    pods::Pods,
    recovery::adopt,
    store::{ReleaseId, Store},
};
use crate::{
    clock::Clock,
    controller_client::{ControllerClient, Issued},
    mount::Mounter,
    pod_network::PodNetworks,
    publish_request::{PodToken, PublishRequest, UnpublishRequest},
    refresh::queue::Agenda,
    token_dir::{Summary, TokenDir, UNSEALED},
};

/// How long a call of kubelet's waits for others that are at work on its volume, before it is told to try again.
const PATIENCE: Duration = Duration::from_secs(2);

/// All volumes of the node. Clones are the same.
#[derive(Clone)]
pub(crate) struct Volumes(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) controller: ControllerClient,
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    /// When to renew which volume's tokens.
    pub(crate) renewals: Agenda<VolumeId>,
    /// When to replace which volume's tokens by others.
    pub(crate) rotations: Agenda<VolumeId>,
    /// The volumes for which others are being asked.
    pub(crate) rotating: Rotating,
    /// When to ask the controller whether which volume may keep its tokens.
    pub(crate) checks: Agenda<VolumeId>,
    /// When to look for the addresses of which volume's pod.
    pub(crate) looks: Agenda<VolumeId>,
    /// The pods of all volumes.
    pub(crate) pods: Pods,
    pub(crate) networks: Box<dyn PodNetworks>,
    /// When to have the tokens of which released volume cancelled.
    pub(crate) releases: Agenda<ReleaseId>,
    /// Released records that the disk did not take.
    unstored: Mutex<HashMap<ReleaseId, Record>>,
    unstored_count: AtomicUsize,
    pub(super) mounter: Box<dyn Mounter>,
    /// The last service-account token that kubelet brought for each volume.
    pod_tokens: Mutex<HashMap<VolumeId, PodToken>>,
    in_use: Mutex<HashSet<VolumeId>>,
    freed: Notify,
    tasks: TaskTracker,
}

impl std::ops::Deref for Volumes {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Volumes {
    /// The volumes that `store` has records of, once [`Volumes::recover`]ed.
    pub(crate) fn new(
        store: Store,
        mounter: Box<dyn Mounter>,
        networks: Box<dyn PodNetworks>,
        controller: ControllerClient,
        clock: Clock,
    ) -> Self {
        Self(Arc::new(Inner {
            controller,
            store,
            clock,
            renewals: Agenda::new(),
            rotations: Agenda::new(),
            rotating: Rotating::default(),
            checks: Agenda::new(),
            looks: Agenda::new(),
            pods: Pods::new(),
            networks,
            releases: Agenda::new(),
            unstored: Mutex::default(),
            unstored_count: AtomicUsize::new(0),
            mounter,
            pod_tokens: Mutex::default(),
            in_use: Mutex::default(),
            freed: Notify::new(),
            tasks: TaskTracker::new(),
        }))
    }

    /// Publishes a volume: tokens, mount and files are there when this returns, or none of them. A volume that has
    /// them already is left alone.
    ///
    /// # Errors
    /// Says what failed, and by its code whether kubelet is to try again.
    pub(crate) async fn publish(&self, request: PublishRequest) -> Result<(), VolumeError> {
        let span = info_span!("publish", volume.id = %request.volume.id, pod = %request.volume.pod);
        let locked = self.lock_soon(&request.volume.id).await?;
        let this = self.clone();
        let work = async move {
            let published = this.publish_locked(request).await;
            drop(locked);
            published
        };
        joined(self.tasks.spawn(work.instrument(span)).await)
    }

    /// Unpublishes a volume: neither mount nor directory is there when this returns, and its tokens will be
    /// cancelled. A volume that is not there is none the less unpublished.
    ///
    /// # Errors
    /// Says what failed. kubelet tries again whatever it is.
    pub(crate) async fn unpublish(&self, request: UnpublishRequest) -> Result<(), VolumeError> {
        let span = info_span!("unpublish", volume.id = %request.id);
        let locked = self.lock_soon(&request.id).await?;
        let this = self.clone();
        let work = async move {
            let unpublished = blocking(move || this.unpublish_locked(&request)).await;
            drop(locked);
            unpublished
        };
        joined(self.tasks.spawn(work.instrument(span)).await)
    }

    /// Does work that must not end half done when the program is asked to stop.
    pub(crate) async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        match self.tasks.spawn(work.in_current_span()).await {
            Ok(done) => done,
            Err(error) => resume_unwind(error.into_panic()), // nobody cancels it
        }
    }

    /// Does work on a volume, under its lock, for which nobody waits. It must not end half done either.
    pub(crate) fn in_background(
        &self,
        id: VolumeId,
        work: impl FnOnce(&Volumes, &VolumeId) -> io::Result<()> + Send + 'static,
    ) {
        let this = self.clone();
        let work = async move {
            let locked = this.lock_volume(&id).await;
            let done = blocking(move || {
                work(&this, &id).unwrap_or_else(|error| {
                    warn!(volume.id = %id, %error, "Failed to read or write the volume's record");
                });
            });
            done.await;
            drop(locked);
        };
        self.tasks.spawn(work.in_current_span());
    }

    /// Waits until no call is at work.
    pub(crate) async fn drained(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Locks a volume, waiting for whoever has it.
    pub(crate) async fn lock_volume(&self, id: &VolumeId) -> Locked {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if let Ok(locked) = self.try_lock(id) {
                return locked;
            }
            freed.await;
        }
    }

    /// Locks a volume for a call of kubelet's. Mostly somebody has it for a moment only, to have earlier tokens cancelled.
    async fn lock_soon(&self, id: &VolumeId) -> Result<Locked, VolumeError> {
        let locked = timeout(PATIENCE, self.lock_volume(id)).await;
        locked.map_err(|_| VolumeError::Busy { id: id.clone() })
    }

    /// The service-account token of the pod, unless this process has not seen one yet.
    pub(crate) fn pod_token(&self, id: &VolumeId) -> Option<PodToken> {
        lock(&self.pod_tokens).get(id).cloned()
    }

    /// A released record, from wherever it is.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn released(&self, release: &ReleaseId) -> io::Result<Option<Record>> {
        match lock(&self.unstored).get(release) {
            Some(record) => Ok(Some(record.clone())),
            None => self.store.get_released(release),
        }
    }

    /// Forgets a released record.
    ///
    /// # Errors
    /// When the disk fails; it will then be found again after a restart.
    pub(crate) fn forget_released(&self, release: &ReleaseId) -> io::Result<()> {
        if lock(&self.unstored).remove(release).is_some() {
            return Ok(());
        }
        self.store.remove_released(release)
    }

    async fn publish_locked(&self, request: PublishRequest) -> Result<(), VolumeError> {
        let PublishRequest { volume, target, fs_group, pod_token } = request;
        let found = blocking({
            let (this, volume, target) = (self.clone(), volume.clone(), target.clone());
            move || this.find_or_clear(&volume, &target, fs_group)
        });
        if let Some(record) = found.await? {
            warn_if_unsealed(&record);
            match pod_token {
                Ok(pod_token) => self.keep(&record, pod_token),
                Err(error) => {
                    warn!(%error, "A mounted volume was published again without what renewal needs")
                }
            }
            return Ok(());
        }
        let pod_token = pod_token?;
        let issued = self.controller.issue(&volume, &pod_token, None, &[]).await?;
        let record = blocking({
            let this = self.clone();
            move || this.install(volume, &target, fs_group, issued)
        });
        let record = record.await?;
        info!(
            user = record.user,
            cluster = record.cluster,
            tokens = ?record.sequence_numbers(),
            next_renewal = record.next_renewal.map(tracing::field::display),
            phase = ?record.phase,
            address_verification = ?record.address_verification,
            "Published"
        );
        warn_if_unsealed(&record);
        self.keep(&record, pod_token);
        Ok(())
    }

    /// Keeps what a publish brought for a volume that has its tokens.
    fn keep(&self, record: &Record, pod_token: PodToken) {
        let id = &record.volume.id;
        if record.phase == Phase::Stopped {
            return;
        }
        lock(&self.pod_tokens).insert(id.clone(), pod_token);
        self.pods.add(&record.volume.pod.uid, id);
        if let (Some(at), false) = (record.next_renewal, self.renewals.contains(id)) {
            self.renewals.insert(id.clone(), self.clock.instant(at));
        }
        if let (Some(at), false) = (self.rotates_at(record), self.rotations.contains(id)) {
            self.rotations.insert(id.clone(), self.clock.instant(at));
        }
        if let (Some(at), false) = (record.next_check, self.checks.contains(id)) {
            self.checks.insert(id.clone(), self.clock.instant(at));
        }
        let addresses = self.pods.addresses(&record.volume.pod.uid);
        if record.is_to_be_verified(&addresses) && !self.looks.contains(id) {
            self.looks.insert(id.clone(), Instant::now());
        }
    }

    /// The record of a volume that is published. Of one that is not, clears whatever is left.
    fn find_or_clear(
        &self,
        volume: &Volume,
        target: &Target,
        fs_group: Option<u32>,
    ) -> Result<Option<Record>, VolumeError> {
        let record = self.store.get(&volume.id).map_err(VolumeError::Record)?;
        let mounted = self.mounter.is_mounted(&target.path).map_err(|e| VolumeError::mount(target, e))?;
        let record = match (record, mounted) {
            (Some(record), true) if record.phase.is_settled() => return Ok(Some(record)),
            (None, true) => {
                if let Some(record) = adopt(&volume.id, &volume.name, target, fs_group) {
                    self.store.put(&record).map_err(VolumeError::Record)?;
                    warn!(tokens = ?record.sequence_numbers(), "Adopted a mounted volume that had no record");
                    return Ok(Some(record));
                }
                None
            }
            (record, _) => record,
        };
        if let Some(record) = record {
            info!(tokens = ?record.sequence_numbers(), mounted, "Releasing tokens that are not mounted any more");
            self.release(record);
        }
        self.clear(&target.path, fs_group).map_err(|e| VolumeError::mount(target, e))?;
        Ok(None)
    }

    /// Records the tokens, mounts the volume and writes its files; or leaves nothing, and has the tokens cancelled.
    fn install(
        &self,
        volume: Volume,
        target: &Target,
        fs_group: Option<u32>,
        issued: Issued,
    ) -> Result<Record, VolumeError> {
        let waits = issued.waits();
        let missing = issued.missing().filter(|_| !waits);
        let mut record = Record {
            version: Version::V1,
            phase: Phase::Issued,
            volume,
            target: target.path.clone(),
            fs_group,
            user: String::new(),
            cluster: String::new(),
            tokens: Vec::new(),
            next_renewal: None,
            next_rotation: None,
            successor: None,
            address_verification: AddressVerification::Off,
            verified_addresses: BTreeSet::new(),
            next_check: None,
            unsealed: false,
            stopped: None,
        };
        let file = self.note_issued(&mut record, issued);
        let installed = match missing {
            Some(missing) => Err(self.controller.malformed(missing).into()),
            None if waits => self.install_steps(&mut record, target, None),
            None => self.install_steps(&mut record, target, Some(&file)),
        };
        match installed {
            Ok(()) => Ok(record),
            Err(failure) => {
                self.clear(&target.path, fs_group).unwrap_or_else(|error| {
                    error!(%error, "Failed to clear a volume that could not be published");
                });
                self.release(record);
                Err(failure)
            }
        }
    }

    fn install_steps(
        &self,
        record: &mut Record,
        target: &Target,
        file: Option<&TokenFile>,
    ) -> Result<(), VolumeError> {
        let mount_failed = |error| VolumeError::mount(target, error);
        self.store.put(record).map_err(VolumeError::Record)?;
        make_directory(&target.path).map_err(mount_failed)?;
        self.mounter.mount(&target.path, record.fs_group).map_err(mount_failed)?;
        let files = TokenDir::new(&target.path, record.fs_group);
        match file {
            Some(file) => {
                record.phase = Phase::Published;
                files.write(file, &Summary::of(record))
            }
            None => {
                record.phase = Phase::Waiting;
                files.write_without_token(&Summary::of(record))
            }
        }
        .map_err(mount_failed)?;
        self.store.put(record).map_err(VolumeError::Record)
    }

    fn unpublish_locked(&self, request: &UnpublishRequest) -> Result<(), VolumeError> {
        let UnpublishRequest { id, target } = request;
        self.forget(id);
        let failed = |error| VolumeError::Unmount { target: target.path.clone(), source: error };
        let record = self.store.get(id).unwrap_or_else(|error| {
            // The tokens can still be told from the files.
            warn!(%error, "Failed to read the volume's record");
            None
        });
        let mounted = self.mounter.is_mounted(&target.path).map_err(failed)?;
        let record = match record {
            None if mounted => adopt(id, &target.volume, target, None),
            record => record,
        };
        if let Some(record) = record {
            info!(pod = %record.volume.pod, tokens = ?record.sequence_numbers(), mounted, "Releasing");
            self.release(record);
        }
        self.clear(&target.path, None).map_err(failed)
    }

    /// Notes durably that a volume's tokens are to be cancelled, if it has any. A record that the disk does not take
    /// is kept in memory: cancelling must not wait for a disk to be mended.
    pub(super) fn release(&self, record: Record) {
        let id = record.volume.id.clone();
        self.forget(&id);
        if record.tokens.is_empty() {
            self.store.remove(&id).unwrap_or_else(|error| {
                warn!(%error, volume.id = %id, "Failed to remove the record of a volume without tokens");
            });
            return;
        }
        let stored = match self.store.release(&id) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.store.put_released(&record),
            stored => stored,
        };
        self.cancel(record, stored);
    }

    /// Notes durably that these tokens are to be cancelled, and leaves the volume's own record alone. Whether the disk
    /// took it; they are cancelled all the same.
    pub(super) fn release_apart(&self, record: Record) -> bool {
        let stored = self.store.put_released(&record);
        let durable = stored.is_ok();
        self.cancel(record, stored);
        durable
    }

    fn cancel(&self, record: Record, stored: io::Result<ReleaseId>) {
        let release = stored.unwrap_or_else(|error| {
            let id = &record.volume.id;
            warn!(%error, volume.id = %id, tokens = ?record.sequence_numbers(), "Failed to record that tokens are to be cancelled: they are cancelled if this process lives on");
            let number = self.unstored_count.fetch_add(1, Ordering::Relaxed);
            let release = ReleaseId::unstored(id, number);
            lock(&self.unstored).insert(release.clone(), record);
            release
        });
        self.releases.insert(release, Instant::now());
    }

    /// Has nothing more to do for a volume.
    pub(super) fn forget(&self, id: &VolumeId) {
        self.renewals.remove(id);
        self.rotations.remove(id);
        self.checks.remove(id);
        self.looks.remove(id);
        self.pods.remove(id);
        lock(&self.pod_tokens).remove(id);
    }

    /// Takes files, mounts and directory away, as many as there are of each.
    pub(super) fn clear(&self, target: &Path, fs_group: Option<u32>) -> io::Result<()> {
        while self.mounter.is_mounted(target)? {
            // So that a mount that cannot be taken away holds nothing.
            TokenDir::new(target, fs_group).wipe().unwrap_or_else(|error| {
                warn!(%error, target = %target.display(), "Failed to wipe the volume");
            });
            self.mounter.unmount(target)?;
        }
        match fs::remove_dir(target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Err(io::Error::new(
                error.kind(),
                "nothing is mounted there, yet it holds files that are not ours: remove them by hand",
            )),
            removed => removed,
        }
    }

    /// Locks a volume.
    ///
    /// # Errors
    /// When somebody has it.
    pub(crate) fn try_lock(&self, id: &VolumeId) -> Result<Locked, VolumeError> {
        if lock(&self.in_use).insert(id.clone()) {
            Ok(Locked { volumes: self.clone(), id: id.clone() })
        } else {
            Err(VolumeError::Busy { id: id.clone() })
        }
    }
}

/// A volume's lock, given back when dropped.
pub(crate) struct Locked {
    volumes: Volumes,
    id: VolumeId,
}

impl Drop for Locked {
    fn drop(&mut self) {
        lock(&self.volumes.in_use).remove(&self.id);
        self.volumes.freed.notify_waiters();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes the directory to mount on. kubelet has made the one above it.
fn make_directory(target: &Path) -> io::Result<()> {
    match fs::create_dir(target) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if fs::symlink_metadata(target)?.is_dir() {
                return Ok(());
            }
            Err(io::Error::new(error.kind(), "something that is no directory is there"))
        }
        made => made,
    }
}

fn warn_if_unsealed(record: &Record) {
    if record.unsealed {
        warn!(pod = %record.volume.pod, user = record.user, "{UNSEALED}");
    }
}

/// Runs what waits for the disk where it holds up nobody.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let span = tracing::Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
        Ok(done) => done,
        // It is not cancelled, so it panicked: go on as if it had been called here.
        Err(error) => resume_unwind(error.into_panic()),
    }
}

fn joined(ended: Result<Result<(), VolumeError>, tokio::task::JoinError>) -> Result<(), VolumeError> {
    ended.unwrap_or_else(|error| {
        error!(%error, "A call ended in a way it must not");
        Err(VolumeError::Bug)
    })
}

#[cfg(test)]
mod tests;
