//! Namespaces in which pods may hold tokens: only there has the API server to ask who reaches into a pod, and only there
//! does it refuse that while nobody answers. A namespace is registered before its first pod with a token is let in, stays
//! so for as long as the ledger has tokens of it, and an hour more; one in which pods hand their submitter on is always.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use identity::LEDGER_GROUP;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams},
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::refusal::Refusal;

/// How long a pod waits for its namespace to be registered.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often the ledger is looked at.
const LOOK_INTERVAL: Duration = Duration::from_mins(5);
/// How long a namespace is kept in which nobody has a token or has asked for one.
const IDLE_LIMIT: Duration = Duration::from_hours(1);
/// Objects of the ledger that are listed at once, of each its metadata.
const PAGE: u32 = 500;

/// Which namespaces there are, and which are registered.
pub(crate) struct TokenNamespaces {
    /// Those that are registered whatever is in them.
    always: BTreeSet<String>,
    state: Mutex<State>,
    registered: watch::Sender<BTreeSet<String>>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    /// When somebody last asked for a pod with a token.
    asked: BTreeMap<String, Instant>,
    /// Those of which the ledger has tokens, as far as it was looked at.
    in_ledger: Option<BTreeSet<String>>,
    /// Since when registered ones are idle.
    idle: BTreeMap<String, Instant>,
}

impl TokenNamespaces {
    /// `always` are registered whatever is in them.
    pub(crate) fn new(always: BTreeSet<String>) -> Self {
        let (registered, _) = watch::channel(BTreeSet::new());
        Self { always, state: Mutex::default(), registered, wake: Notify::new() }
    }

    /// Waits until `namespace`, in which a pod with a token is about to be, is registered.
    pub(crate) async fn enter(&self, namespace: &str) -> Result<(), Refusal> {
        self.state().asked.insert(namespace.to_owned(), Instant::now());
        let mut registered = self.registered.subscribe();
        let is_registered = |known: &BTreeSet<String>| known.contains(namespace);
        if is_registered(&registered.borrow()) {
            return Ok(());
        }
        self.wake.notify_one();
        match timeout(PATIENCE, registered.wait_for(is_registered)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Refusal::ApiServer {
                what: format!("the registration of namespace {namespace}"),
                error: format!("it was not written within {} s", PATIENCE.as_secs()),
            }),
        }
    }

    /// Until one is asked for that is not registered.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Those that are to be registered, where `present` are.
    pub(crate) fn wanted(&self, present: &BTreeSet<String>) -> BTreeSet<String> {
        let (mut state, now) = (self.state(), Instant::now());
        state.asked.retain(|_, at| now.duration_since(*at) < IDLE_LIMIT);
        let State { asked, in_ledger, idle } = &mut *state;
        let known = self.always.iter().chain(asked.keys()).chain(in_ledger.iter().flatten());
        let mut wanted: BTreeSet<String> = known.cloned().collect();
        idle.retain(|namespace, _| present.contains(namespace) && !wanted.contains(namespace));
        for namespace in present.difference(&wanted.clone()) {
            // Another replica may have been asked, and the ledger may not have been looked at yet.
            let since = *idle.entry(namespace.clone()).or_insert(now);
            if in_ledger.is_none() || now.duration_since(since) < IDLE_LIMIT {
                wanted.insert(namespace.clone());
            }
        }
        wanted
    }

    /// Those that were registered when it was last looked.
    pub(crate) fn known(&self) -> BTreeSet<String> {
        self.registered.borrow().clone()
    }

    /// These are registered now.
    pub(crate) fn registered(&self, namespaces: BTreeSet<String>) {
        self.registered.send_if_modified(|known| {
            let changed = *known != namespaces;
            *known = namespaces;
            changed
        });
    }

    /// Looks at the ledger now and then until `stop`.
    pub(crate) async fn look(&self, client: Client, stop: CancellationToken) {
        let mut ticks = interval(LOOK_INTERVAL);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            match stop.run_until_cancelled(in_ledger(&client)).await {
                Some(Ok(found)) => {
                    let new = self.state().in_ledger.replace(found.clone()).as_ref() != Some(&found);
                    if new {
                        info!(namespaces = found.len(), "Found namespaces with tokens");
                        self.wake.notify_one();
                    }
                }
                Some(Err(error)) => warn!(%error, "Failed to look which namespaces have tokens"),
                None => return,
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Namespaces of which the ledger has tokens. Where there is no ledger there are no tokens.
async fn in_ledger(client: &Client) -> Result<BTreeSet<String>, kube::Error> {
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(LEDGER_GROUP, "v1alpha1", "DelegationToken"));
    let ledger: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
    let (mut found, mut page) = (BTreeSet::new(), ListParams::default().limit(PAGE));
    loop {
        let objects = match ledger.list_metadata(&page).await {
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(BTreeSet::new()),
            objects => objects?,
        };
        found.extend(objects.items.into_iter().filter_map(|object| object.metadata.namespace));
        match objects.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::{advance, pause};

    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[tokio::test]
    async fn a_pod_waits_until_its_namespace_is_registered() {
        pause();
        let namespaces = Arc::new(TokenNamespaces::new(BTreeSet::new()));
        let entering = tokio::spawn({
            let namespaces = namespaces.clone();
            async move { namespaces.enter("jobs").await }
        });
        namespaces.woken().await;
        assert_eq!(namespaces.wanted(&set(&["other"])), set(&["jobs", "other"]));
        assert!(!entering.is_finished());
        namespaces.registered(set(&["jobs", "other"]));
        assert_eq!(entering.await.unwrap(), Ok(()));
        // The next one does not wait.
        assert_eq!(namespaces.enter("jobs").await, Ok(()));
        assert!(matches!(namespaces.enter("elsewhere").await, Err(Refusal::ApiServer { .. })));
    }

    #[tokio::test]
    async fn what_is_registered_stays_until_it_is_known_to_be_idle() {
        pause();
        let namespaces = TokenNamespaces::new(BTreeSet::new());
        assert_eq!(namespaces.wanted(&set(&["a", "b"])), set(&["a", "b"]));
        advance(IDLE_LIMIT * 2).await;
        assert_eq!(namespaces.wanted(&set(&["a", "b"])), set(&["a", "b"]), "nobody has looked yet");
        namespaces.state().in_ledger = Some(set(&["b", "c"]));
        assert_eq!(namespaces.wanted(&set(&["a", "b"])), set(&["b", "c"]));
        // Idle from now on, and not before.
        assert_eq!(namespaces.wanted(&set(&["d"])), set(&["b", "c", "d"]));
        advance(IDLE_LIMIT - Duration::from_secs(1)).await;
        assert_eq!(namespaces.wanted(&set(&["d"])), set(&["b", "c", "d"]));
        advance(Duration::from_secs(1)).await;
        assert_eq!(namespaces.wanted(&set(&["d"])), set(&["b", "c"]));
    }

    #[tokio::test]
    async fn where_pods_hand_their_submitter_on_it_is_registered_always() {
        pause();
        let namespaces = TokenNamespaces::new(set(&["spark"]));
        namespaces.state().in_ledger = Some(BTreeSet::new());
        assert_eq!(namespaces.wanted(&set(&[])), set(&["spark"]));
        advance(IDLE_LIMIT * 2).await;
        assert_eq!(namespaces.wanted(&set(&["spark"])), set(&["spark"]));
    }
}
