//! The ledger: an object in the Kubernetes API for every token, written before the token leaves the controller, so that
//! it is found and cancelled whatever becomes of pod, node, node plugin or controller. It holds identifiers and no secret.
//! Never asks Hadoop.

#[cfg(test)]
mod definition;
mod entry;
mod follow;
mod following;
mod resource;
mod store;
mod writing;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
    core::{Request, Resource},
};
use process::fault;
use serde_json::Value;
use tokio::{
    sync::{broadcast, mpsc},
    time::{Instant, sleep, timeout},
};
use tokio_util::task::TaskTracker;
use tracing::warn;

pub(crate) use self::{
    entry::{Entry, KnownToken, Object},
    resource::{Phase, Scope},
    store::Change,
    writing::Intent,
};
use self::{following::Following, store::Store, writing::TOKEN_LABEL};
use crate::{
    failure::chain,
    turns::{self, Turns},
};

/// Longest wait for one answer of the API server.
const DEADLINE: Duration = Duration::from_secs(5);

/// How long an issued token waits to be recorded. It is cancelled then, and the caller asks again.
const RECORD_PATIENCE: Duration = Duration::from_secs(10);

/// How long the new date of a renewed token is to be written. Until then it looks as if it ended earlier.
const NOTE_PATIENCE: Duration = Duration::from_secs(60);

/// How long an intent of which nothing came is to be removed. What is left then is the reaper's.
const DISCARD_PATIENCE: Duration = Duration::from_secs(60);

/// An object that is not there may still be created by a request that nobody waits for any more: it is looked for again
/// after this time.
const LATE_CREATION: Duration = Duration::from_secs(5);

/// Waits between attempts: the first, and the longest that it grows to.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The ledger. Clones share it.
#[derive(Clone)]
pub(crate) struct Ledger(Arc<Shared>);

struct Shared {
    client: Client,
    state: Mutex<State>,
    turns: Turns,
    /// Intents that are being removed.
    work: TaskTracker,
}

#[derive(Default)]
struct State {
    store: Store,
    following: Following,
}

/// Why the ledger could not be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LedgerError {
    #[error("cannot {doing} the ledger, at the Kubernetes API server: {why}")]
    Unwritable {
        doing: &'static str,
        why: String,
        /// HTTP status of the answer, if there was one.
        status: Option<u16>,
    },
    #[error("the ledger, at the Kubernetes API server, has no such object: {0}")]
    Gone(String),
    #[error("cannot read the ledger, at the Kubernetes API server: {0}")]
    Unreadable(String),
}

impl LedgerError {
    /// As [`crate::failure::Failure::reason`].
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Unwritable { .. } | Self::Gone(_) => "LEDGER_UNWRITABLE",
            Self::Unreadable(_) => "LEDGER_UNREADABLE",
        }
    }
}

impl Ledger {
    /// The ledger at the API server behind `client`, empty until [`Ledger::run`]. What is cleaned up in the background
    /// is in `work`.
    pub(crate) fn new(client: Client, work: TaskTracker) -> Self {
        Self(Arc::new(Shared { client, state: Mutex::default(), turns: Turns::default(), work }))
    }

    /// Writes that a token is about to be asked for. On failure nothing may be asked for.
    pub(crate) async fn open(&self, intent: &Intent) -> Result<Arc<Entry>, LedgerError> {
        self.create(intent, None).await
    }

    /// Writes that the volume of `intent` has `token` too, which is another's already.
    pub(crate) async fn share(
        &self,
        intent: &Intent,
        token: &KnownToken,
        renew_date: u64,
    ) -> Result<Arc<Entry>, LedgerError> {
        self.create(intent, Some((token, renew_date))).await
    }

    async fn create(
        &self,
        intent: &Intent,
        token: Option<(&KnownToken, u64)>,
    ) -> Result<Arc<Entry>, LedgerError> {
        fault::point("ledger.open:before");
        let object = writing::object(intent, token);
        let namespace = &intent.volume.pod.namespace;
        let created = self.created(namespace, &object).await;
        match &created {
            Ok(entry) => self.state().store.apply(entry.clone()),
            Err(error) if error.is_ambiguous() => self.forget(namespace, &object),
            Err(_) => {}
        }
        fault::point("ledger.open:after");
        created
    }

    async fn created(
        &self,
        namespace: &str,
        object: &resource::DelegationToken,
    ) -> Result<Arc<Entry>, LedgerError> {
        let request = async {
            let body = serde_json::to_vec(object).map_err(kube::Error::SerdeError)?;
            let request = Request::new(Object::url_path(&(), Some(namespace)));
            let request = request.create(&PostParams::default(), body).map_err(kube::Error::BuildRequest)?;
            self.0.client.request::<Object>(request).await
        };
        Ok(self.written("write into", request).await?.entry)
    }

    /// Removes an object of which nobody knows whether it was created.
    fn forget(&self, namespace: &str, object: &resource::DelegationToken) {
        let (ledger, namespace) = (self.clone(), namespace.to_owned());
        let name = object.metadata.name.clone().unwrap_or_default();
        self.0.work.spawn(async move {
            let remove = async || {
                insist(DISCARD_PATIENCE, || async {
                    let released = serde_json::json!({"metadata": {"finalizers": null}});
                    ledger.patch(&namespace, &name, "remove from", &released).await?;
                    ledger.delete_named(&namespace, &name, None).await
                })
                .await
            };
            let mut removed = remove().await;
            if let Err(LedgerError::Gone(_)) = removed {
                sleep(LATE_CREATION).await;
                removed = remove().await;
            }
            match removed {
                Ok(()) | Err(LedgerError::Gone(_)) => {}
                Err(error) => warn!(%error, token.object = name, "The reaper has to remove an intent"),
            }
        });
    }

    /// Writes what came of the request behind `entry`. On failure the token has to be cancelled.
    pub(crate) async fn record(
        &self,
        entry: &Entry,
        token: &KnownToken,
        renew_date: u64,
    ) -> Result<Arc<Entry>, LedgerError> {
        fault::point("ledger.record:before");
        let patch = writing::recorded(entry, token, renew_date);
        let recorded = insist(RECORD_PATIENCE, || self.patched(entry, "write into", &patch)).await;
        fault::point("ledger.record:after");
        recorded
    }

    /// Removes an intent of which nothing came, and nothing can come. If that fails, the reaper will.
    pub(crate) async fn discard(&self, entry: &Entry) {
        if let Err(error) = insist(DISCARD_PATIENCE, || self.remove(entry)).await {
            warn!(%error, token.object = %entry, "The reaper has to remove an intent");
        }
    }

    /// Writes that the token of `entry` was renewed. While the API server is busy or away that is tried again, unless a
    /// later renewal has been written meanwhile.
    pub(crate) async fn renewed(&self, entry: &Entry, renew_date: u64) -> Result<Arc<Entry>, LedgerError> {
        insist(NOTE_PATIENCE, || async {
            let known = self.of_pod(&entry.pod_uid).into_iter().find(|known| known.uid == entry.uid);
            match known {
                Some(known) if known.renew_date > Some(renew_date) => Ok(known),
                _ => self.patched(entry, "write into", &writing::renewed(entry, renew_date)).await,
            }
        })
        .await
    }

    /// Writes what hinders the token of `entry`, if anything does, and how far it has come, if the caller knows.
    pub(crate) async fn failed(
        &self,
        entry: &Entry,
        phase: impl Into<Option<Phase>>,
        error: Option<&str>,
    ) -> Result<Arc<Entry>, LedgerError> {
        self.patched(entry, "write into", &writing::failed(entry, phase.into(), error)).await
    }

    /// Removes the object of a token that is no more. One that is gone already counts as removed.
    pub(crate) async fn remove(&self, entry: &Entry) -> Result<(), LedgerError> {
        fault::point("ledger.remove:before");
        let removed = match self.patched(entry, "remove from", &writing::let_go(entry)).await {
            // That was all it waited for.
            Ok(_) if entry.deleting && entry.finalizers.others.is_empty() => Ok(()),
            Ok(_) => self.delete(entry).await,
            Err(LedgerError::Gone(_)) => Ok(()),
            Err(error) => Err(error),
        };
        fault::point("ledger.remove:after");
        removed
    }

    /// Deletes the object, which stays until somebody cancels the token and removes it.
    pub(crate) async fn delete(&self, entry: &Entry) -> Result<(), LedgerError> {
        match self.delete_named(&entry.namespace, &entry.name, Some(&entry.uid)).await {
            Err(LedgerError::Gone(_)) => {
                self.state().store.remove(&entry.uid);
                Ok(())
            }
            deleted => deleted,
        }
    }

    async fn delete_named(&self, namespace: &str, name: &str, uid: Option<&str>) -> Result<(), LedgerError> {
        let objects: Api<Object> = Api::namespaced(self.0.client.clone(), namespace);
        let uid = uid.map(|uid| Preconditions { uid: Some(uid.to_owned()), ..Preconditions::default() });
        let parameters = DeleteParams { preconditions: uid, ..DeleteParams::background() };
        // The answer does not tell whether it is still there. The watch does.
        self.written("delete from", objects.delete(name, &parameters)).await.map(drop)
    }

    async fn patched(
        &self,
        entry: &Entry,
        doing: &'static str,
        patch: &Value,
    ) -> Result<Arc<Entry>, LedgerError> {
        let patched = self.patch(&entry.namespace, &entry.name, doing, patch).await;
        match &patched {
            Ok(entry) => self.state().store.update(entry.clone()),
            Err(LedgerError::Gone(_)) => self.state().store.remove(&entry.uid),
            Err(_) => {}
        }
        patched
    }

    async fn patch(
        &self,
        namespace: &str,
        name: &str,
        doing: &'static str,
        patch: &Value,
    ) -> Result<Arc<Entry>, LedgerError> {
        let objects: Api<Object> = Api::namespaced(self.0.client.clone(), namespace);
        let (parameters, patch) = (PatchParams::default(), Patch::Merge(patch));
        let object: Object = self.written(doing, objects.patch(name, &parameters, &patch)).await?;
        Ok(object.entry)
    }

    /// The entry as the API server has it now; None when it is gone.
    pub(crate) async fn reread(&self, entry: &Entry) -> Result<Option<Arc<Entry>>, LedgerError> {
        let objects: Api<Object> = Api::namespaced(self.0.client.clone(), &entry.namespace);
        let found = self.read(objects.get_opt(&entry.name)).await?;
        Ok(found.map(|object| object.entry).filter(|found| found.uid == entry.uid))
    }

    /// Objects of the token with `identifier` in `namespace`, as the API server has them now.
    pub(crate) async fn confirm_live(
        &self,
        namespace: &str,
        identifier: &[u8],
    ) -> Result<Vec<Arc<Entry>>, LedgerError> {
        let objects: Api<Object> = Api::namespaced(self.0.client.clone(), namespace);
        let label = format!("{TOKEN_LABEL}={}", writing::label(identifier));
        let parameters = ListParams::default().labels(&label);
        let listed = self.read(objects.list(&parameters)).await?;
        let entries = listed.items.into_iter().map(|object| object.entry);
        Ok(entries.filter(|entry| entry.identifier() == Some(identifier)).collect())
    }

    /// Whether all tokens have been seen at least once: whether one that is not here did not exist then.
    pub(crate) fn is_complete(&self) -> bool {
        self.state().following.is_complete()
    }

    /// All entries.
    pub(crate) fn all(&self) -> Vec<Arc<Entry>> {
        self.state().store.all()
    }

    /// Those of one pod.
    pub(crate) fn of_pod(&self, pod_uid: &str) -> Vec<Arc<Entry>> {
        self.state().store.of_pod(pod_uid)
    }

    /// Those of one volume of a pod in `namespace`. What is written elsewhere says nothing of it.
    pub(crate) fn of_volume(&self, namespace: &str, pod_uid: &str, volume: &str) -> Vec<Arc<Entry>> {
        let mut entries = self.of_pod(pod_uid);
        entries.retain(|entry| *entry.namespace == *namespace && *entry.volume == *volume);
        entries
    }

    /// Those that are on one node.
    pub(crate) fn of_node(&self, node: &str) -> Vec<Arc<Entry>> {
        self.state().store.of_node(node)
    }

    /// Those of the token with `identifier`: one, unless it is shared.
    pub(crate) fn by_identifier(&self, identifier: &[u8]) -> Vec<Arc<Entry>> {
        self.state().store.by_identifier(identifier)
    }

    /// Those of them in `namespace`, to which alone the pods there are bound.
    pub(crate) fn by_identifier_in(&self, namespace: &str, identifier: &[u8]) -> Vec<Arc<Entry>> {
        let mut entries = self.by_identifier(identifier);
        entries.retain(|entry| *entry.namespace == *namespace);
        entries
    }

    /// Every change from now on. Who falls behind is told so, and begins anew with [`Ledger::all`].
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.state().store.subscribe()
    }

    /// Every change from now on of entries that are on `node`. Ends an older subscription of the same node; ends when
    /// the subscriber falls behind. None while there are too many, or at the end of the process.
    pub(crate) fn subscribe_to(&self, node: &str) -> Option<mpsc::Receiver<Change>> {
        self.state().store.subscribe_to(node)
    }

    /// The answer to a request that writes.
    async fn written<T>(
        &self,
        doing: &'static str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, LedgerError> {
        let Some(_turn) = self.0.turns.take().await else {
            // Nothing was asked for.
            return Err(LedgerError::Unwritable { doing, why: turns::NONE.to_owned(), status: Some(429) });
        };
        match timeout(DEADLINE, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(LedgerError::Gone(status.message)),
            Ok(Err(error)) => {
                let status = if let kube::Error::Api(status) = &error { Some(status.code) } else { None };
                Err(LedgerError::Unwritable { doing, why: chain(&error), status })
            }
            Err(_) => Err(LedgerError::Unwritable { doing, why: late(), status: None }),
        }
    }

    /// The answer to a request that reads.
    async fn read<T>(&self, request: impl Future<Output = kube::Result<T>>) -> Result<T, LedgerError> {
        let Some(_turn) = self.0.turns.take().await else {
            return Err(LedgerError::Unreadable(turns::NONE.to_owned()));
        };
        match timeout(DEADLINE, request).await {
            Ok(answer) => answer.map_err(|error| LedgerError::Unreadable(chain(&error))),
            Err(_) => Err(LedgerError::Unreadable(late())),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LedgerError {
    /// Whether the API server may have done it all the same.
    fn is_ambiguous(&self) -> bool {
        matches!(self, Self::Unwritable { status: None | Some(500..), .. })
    }

    /// Whether the same may succeed a moment later: somebody else wrote at the same time, or the API server is busy.
    fn passes(&self) -> bool {
        self.is_ambiguous() || matches!(self, Self::Unwritable { status: Some(409 | 429), .. })
    }
}

fn late() -> String {
    format!("no answer within {} seconds", DEADLINE.as_secs())
}

/// Attempts again what may pass, but begins no attempt later than `patience` from now.
async fn insist<T, F: Future<Output = Result<T, LedgerError>>>(
    patience: Duration,
    attempt: impl Fn() -> F,
) -> Result<T, LedgerError> {
    let (end, mut wait) = (Instant::now() + patience, FIRST_WAIT);
    loop {
        match attempt().await {
            Err(error) if error.passes() && Instant::now() + wait < end => {
                sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            }
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests;
