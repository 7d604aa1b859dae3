//! The life of a volume, from publish to unpublish. Every step leaves the disk so that, wherever the process is
//! killed, the next start finds each token and has it cancelled or goes on with it. A call that kubelet gives up goes
//! on to its end here, under the volume's lock, so that nothing is ever half done and forgotten.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    panic::resume_unwind,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use hadoop::token_file::TokenFile;
use jiff::SignedDuration;
use proto::{ERROR_DOMAIN, VolumeId};
use tokio::{sync::Notify, time::Instant};
use tokio_util::task::TaskTracker;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use tracing::{Instrument, error, info, info_span, warn};

use super::{
    IssuedToken, Phase, Record, Target, Version, Volume,
    store::{ReleaseId, Store},
};
use crate::{
    clock::Clock,
    controller_client::{CallError, ControllerClient, Issued},
    mount::Mounter,
    publish_request::{InvalidRequest, PodToken, PublishRequest, UnpublishRequest},
    refresh::queue::{Agenda, next_renewal},
    token_dir::{Summary, TokenDir},
};

/// After a restart, what is overdue comes due within this time, not all at once.
const SPREAD: SignedDuration = SignedDuration::from_secs(10);

/// All volumes of the node. Clones are the same.
#[derive(Clone)]
pub(crate) struct Volumes(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) controller: ControllerClient,
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    /// When to renew which volume's tokens.
    pub(crate) renewals: Agenda<VolumeId>,
    /// When to have the tokens of which released volume cancelled.
    pub(crate) releases: Agenda<ReleaseId>,
    /// Released records that the disk did not take.
    unstored: Mutex<HashMap<ReleaseId, Record>>,
    unstored_count: AtomicUsize,
    mounter: Box<dyn Mounter>,
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
        controller: ControllerClient,
        clock: Clock,
    ) -> Self {
        Self(Arc::new(Inner {
            controller,
            store,
            clock,
            renewals: Agenda::new(),
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

    /// Finds out what became of every volume while nobody looked: goes on with those that are mounted, and has the
    /// tokens of all others cancelled. To be done once, before kubelet can call.
    ///
    /// # Errors
    /// When the records cannot be listed.
    pub(crate) fn recover(&self) -> io::Result<()> {
        let now = self.clock.now();
        let (mut kept, mut released) = (0, 0);
        for record in self.store.all()? {
            let id = &record.volume.id;
            let mounted = self.mounter.is_mounted(&record.target).unwrap_or_else(|error| {
                warn!(volume.id = %id, %error, "Cannot tell whether the volume is mounted: taking it as such");
                true
            });
            match (record.phase, mounted) {
                (Phase::Published, true) => {
                    kept += 1;
                    if let Some(at) = record.next_renewal {
                        let earliest = now + SPREAD.mul_f64(fastrand::f64());
                        self.renewals.insert(id.clone(), self.clock.instant(at.max(earliest)));
                    }
                }
                (Phase::Published | Phase::Issued, _) => {
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

    /// Publishes a volume: tokens, mount and files are there when this returns, or none of them. A volume that has
    /// them already is left alone.
    ///
    /// # Errors
    /// Says what failed, and by its code whether kubelet is to try again.
    pub(crate) async fn publish(&self, request: PublishRequest) -> Result<(), VolumeError> {
        let span = info_span!("publish", volume.id = %request.volume.id, pod = %request.volume.pod);
        let locked = self.try_lock(&request.volume.id)?;
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
        let locked = self.try_lock(&request.id)?;
        let this = self.clone();
        let work = async move {
            let unpublished = blocking(move || this.unpublish_locked(&request)).await;
            drop(locked);
            unpublished
        };
        joined(self.tasks.spawn(work.instrument(span)).await)
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
            match pod_token {
                Ok(pod_token) => self.keep(&record, pod_token),
                Err(error) => {
                    warn!(%error, "A mounted volume was published again without what renewal needs")
                }
            }
            return Ok(());
        }
        let pod_token = pod_token?;
        let issued = self.controller.issue(&volume, &pod_token).await?;
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
            "Published"
        );
        self.keep(&record, pod_token);
        Ok(())
    }

    /// Keeps what a publish brought for a volume that has its tokens.
    fn keep(&self, record: &Record, pod_token: PodToken) {
        let id = &record.volume.id;
        lock(&self.pod_tokens).insert(id.clone(), pod_token);
        if let (Some(at), false) = (record.next_renewal, self.renewals.contains(id)) {
            self.renewals.insert(id.clone(), self.clock.instant(at));
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
            (Some(record), true) if record.phase == Phase::Published => return Ok(Some(record)),
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
        let missing = issued.missing();
        let Issued { user, cluster, tokens, file } = issued;
        let next_renewal = self.next_renewal(&tokens);
        let mut record = Record {
            version: Version::V1,
            phase: Phase::Issued,
            volume,
            target: target.path.clone(),
            fs_group,
            user,
            cluster,
            tokens,
            next_renewal,
        };
        let installed = match missing {
            Some(missing) => Err(self.controller.malformed(missing).into()),
            None => self.install_steps(&mut record, target, &file),
        };
        match installed {
            Ok(()) => Ok(record),
            Err(failure) => {
                self.clear(&target.path, fs_group).unwrap_or_else(|error| {
                    error!(%error, "Failed to clear a volume that could not be published");
                });
                if !record.tokens.is_empty() {
                    self.release(record);
                }
                Err(failure)
            }
        }
    }

    fn install_steps(
        &self,
        record: &mut Record,
        target: &Target,
        file: &TokenFile,
    ) -> Result<(), VolumeError> {
        let mount_failed = |error| VolumeError::mount(target, error);
        self.store.put(record).map_err(VolumeError::Record)?;
        make_directory(&target.path).map_err(mount_failed)?;
        self.mounter.mount(&target.path, record.fs_group).map_err(mount_failed)?;
        TokenDir::new(&target.path, record.fs_group)
            .write(file, &Summary::of(record))
            .map_err(mount_failed)?;
        record.phase = Phase::Published;
        self.store.put(record).map_err(VolumeError::Record)
    }

    fn unpublish_locked(&self, request: &UnpublishRequest) -> Result<(), VolumeError> {
        let UnpublishRequest { id, target } = request;
        self.renewals.remove(id);
        lock(&self.pod_tokens).remove(id);
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

    /// Notes durably that a volume's tokens are to be cancelled. A record that the disk does not take is kept in
    /// memory: cancelling must not wait for a disk to be mended.
    fn release(&self, record: Record) {
        let id = record.volume.id.clone();
        self.renewals.remove(&id);
        let stored = match self.store.release(&id) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.store.put_released(&record),
            stored => stored,
        };
        let release = stored.unwrap_or_else(|error| {
            warn!(%error, volume.id = %id, tokens = ?record.sequence_numbers(), "Failed to record that tokens are to be cancelled: they are cancelled if this process lives on");
            let number = self.unstored_count.fetch_add(1, Ordering::Relaxed);
            let release = ReleaseId::unstored(&id, number);
            lock(&self.unstored).insert(release.clone(), record);
            release
        });
        self.releases.insert(release, Instant::now());
    }

    /// Takes files, mounts and directory away, as many as there are of each.
    fn clear(&self, target: &Path, fs_group: Option<u32>) -> io::Result<()> {
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

    /// When to renew the first of these tokens.
    pub(crate) fn next_renewal(&self, tokens: &[IssuedToken]) -> Option<jiff::Timestamp> {
        let now = self.clock.now();
        let next = |token: &IssuedToken| {
            next_renewal(now, token.about.renew_date, token.about.max_date, fastrand::f64())
        };
        tokens.iter().filter_map(next).min()
    }

    fn try_lock(&self, id: &VolumeId) -> Result<Locked, VolumeError> {
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

/// The record of a mounted volume, put together from its files. Nothing if they do not tell.
fn adopt(id: &VolumeId, name: &str, target: &Target, fs_group: Option<u32>) -> Option<Record> {
    let files = TokenDir::new(&target.path, fs_group);
    let (file, summary) = (files.read().ok()?, files.read_summary().ok()?);
    if summary.pod.uid != target.pod_uid {
        return None;
    }
    let tokens: Option<Vec<IssuedToken>> = summary
        .tokens
        .into_iter()
        .map(|about| {
            let service = about.services.first()?;
            let (_, token) = file
                .tokens
                .iter()
                .find(|(_, token)| token.kind == about.kind && token.service == *service)?;
            Some(IssuedToken { identifier: token.identifier.clone(), about })
        })
        .collect();
    Some(Record {
        version: Version::V1,
        phase: Phase::Published,
        volume: Volume { id: id.clone(), name: name.to_owned(), pod: summary.pod },
        target: target.path.clone(),
        fs_group,
        user: summary.user,
        cluster: summary.cluster,
        tokens: tokens.filter(|tokens| !tokens.is_empty())?,
        next_renewal: summary.next_renewal,
    })
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

/// Why a volume could not be published or unpublished.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    #[error("another call for volume {id} is under way")]
    Busy { id: VolumeId },
    #[error(transparent)]
    Controller(#[from] CallError),
    #[error(
        "the volume's record cannot be kept on the node's disk (stateDir in the driver's configuration): {0}"
    )]
    Record(io::Error),
    #[error("the volume cannot be mounted on {target}: {source}", target = target.display())]
    Mount { target: std::path::PathBuf, source: io::Error },
    #[error("the volume cannot be unmounted from {target}: {source}", target = target.display())]
    Unmount { target: std::path::PathBuf, source: io::Error },
    #[error("the driver has a bug: see its log")]
    Bug,
}

impl VolumeError {
    fn mount(target: &Target, source: io::Error) -> Self {
        Self::Mount { target: target.path.clone(), source }
    }

    /// How kubelet is to take it. After Unavailable and Aborted it will unpublish what may be left; all others are
    /// final for the one call, and nothing may be left when they are answered.
    fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::Busy { .. } => Code::Aborted,
            Self::Controller(CallError::Refused(status)) => status.code(),
            Self::Controller(
                CallError::Unreachable { .. }
                | CallError::TooLate { .. }
                | CallError::Malformed { .. }
                | CallError::OwnToken { .. },
            )
            | Self::Record(_)
            | Self::Mount { .. }
            | Self::Unmount { .. }
            | Self::Bug => Code::Unavailable,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(invalid) => invalid.reason(),
            Self::Busy { .. } => "VOLUME_BUSY",
            Self::Controller(CallError::Refused(_)) => "REFUSED",
            Self::Controller(CallError::Unreachable { .. }) => "CONTROLLER_UNREACHABLE",
            Self::Controller(CallError::TooLate { .. }) => "CONTROLLER_TOO_LATE",
            Self::Controller(CallError::Malformed { .. }) => "CONTROLLER_ANSWER_MALFORMED",
            Self::Controller(CallError::OwnToken { .. }) => "OWN_TOKEN_UNREADABLE",
            Self::Record(_) => "RECORD_FAILED",
            Self::Mount { .. } => "MOUNT_FAILED",
            Self::Unmount { .. } => "UNMOUNT_FAILED",
            Self::Bug => "BUG",
        }
    }
}

impl From<VolumeError> for Status {
    fn from(error: VolumeError) -> Self {
        match error {
            // With the controller's details, its reason among them.
            VolumeError::Controller(CallError::Refused(status)) => {
                Self::with_details(status.code(), status.message(), status.details().to_vec().into())
            }
            error => {
                let details = ErrorDetails::with_error_info(error.reason(), ERROR_DOMAIN, HashMap::new());
                Self::with_error_details(error.code(), error.to_string(), details)
            }
        }
    }
}

#[cfg(test)]
mod tests;
