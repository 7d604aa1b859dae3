//! Follows all pods, for questions that no single read can answer: which other pods have this address, when does that
//! pod get one, and when does a pod with a volume of ours end. What is seen here is never enough for a grant, nor to
//! take a token away: whoever asks reads the pods in question live.

mod pod;
mod store;

use std::{
    net::IpAddr,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use kube::{
    Api,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use process::health::Check;
use tokio::{
    sync::broadcast,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{failure::chain, request::PodReference};
pub(crate) use pod::WatchedPod;
use store::Store;
pub(crate) use store::{PodAddresses, PodChange, Subscription};

/// A watch is opened anew after this many seconds: the longest that a connection may be dead unnoticed.
const WATCH_SECONDS: u32 = 60;
/// Longest silence on a connection that watches: the API server says something each minute.
pub(crate) const LONGEST_SILENCE: Duration = Duration::from_secs(75);
/// A watch that failed and is silent since then has resumed: it would have failed again by now.
const RESUMED: Duration = Duration::from_secs(90);
/// For how long what was seen last is good enough while the API server cannot be followed.
const LONGEST_LAG: Duration = Duration::from_secs(120);
/// Pods in one page of the list, which is the most that is in memory as text.
const PAGE: u32 = 250;

/// The pods. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct PodWatch(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    store: Store,
    /// All pods have been seen at least once.
    complete: bool,
    /// A list is under way.
    listing: bool,
    failing: Option<Failing>,
}

#[derive(Clone, Debug)]
struct Failing {
    first: Instant,
    last: Instant,
    why: String,
}

/// The pods are not known well enough.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the addresses of other pods are not known now: {0}")]
pub(crate) struct NotFollowing(String);

impl PodWatch {
    /// Pods other than `but_uid` that have one of `addresses`, a few at most. Finished pods have none, whatever their
    /// status says.
    pub(crate) fn sharing(
        &self,
        addresses: &[IpAddr],
        but_uid: &str,
    ) -> Result<Vec<PodReference>, NotFollowing> {
        let state = self.state();
        if !state.complete {
            return Err(NotFollowing("not all pods have been listed yet".to_owned()));
        }
        match &state.failing {
            Some(failing) if failing.first.elapsed() > LONGEST_LAG => Err(NotFollowing(failing.why.clone())),
            _ => Ok(state.store.sharing(addresses, but_uid)),
        }
    }

    /// The addresses of `node`'s pods that use our driver, and every change from now on. Ends an older subscription
    /// of the same node. None while there are too many, or at the end of the process.
    pub(crate) fn subscribe(&self, node: &str) -> Option<Subscription> {
        self.state().store.subscribe(node)
    }

    /// Whether all pods have been seen at least once: whether one that is not here did not exist then.
    pub(crate) fn is_complete(&self) -> bool {
        self.state().complete
    }

    /// Whether the pod was there, on a node, not finished, and with a volume of ours, when it was seen last.
    pub(crate) fn uses_us(&self, uid: &str) -> bool {
        self.state().store.uses_us(uid)
    }

    /// The same, and that the pod is called so and on `node`.
    pub(crate) fn uses_us_on(&self, pod: &PodReference, node: &str) -> bool {
        self.state().store.uses_us_on(pod, node)
    }

    /// Pods with a volume of ours that have got an address: their volumes are mounted.
    pub(crate) fn running(&self) -> Vec<PodReference> {
        self.state().store.running()
    }

    /// What happens to pods with a volume of ours from now on.
    pub(crate) fn changes(&self) -> broadcast::Receiver<PodChange> {
        self.state().store.changes()
    }

    /// Follows `pods` until `stop`, then ends all subscriptions. Says in `check` how it goes.
    pub(crate) async fn run(self, pods: Api<WatchedPod>, check: Check, stop: CancellationToken) {
        let config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
        let mut events = pin!(watcher(pods, config).default_backoff());
        let health = || check.set(self.health());
        health();
        loop {
            let resumed = self.resumes_at();
            let resumed = async {
                match resumed {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = resumed => self.follows_again(),
                event = events.next() => match event {
                    Some(Ok(event)) => self.take(event),
                    Some(Err(error)) => self.fails(&error),
                    None => break,
                },
            }
            health();
        }
        self.state().store.close();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, event: Event<WatchedPod>) {
        let mut state = self.state();
        match event {
            // Only the beginning of an attempt, which may fail.
            Event::Init => {
                state.listing = true;
                state.store.begin_list();
                return;
            }
            // Nor does one page of the list prove that there will be a next one.
            Event::InitApply(pod) => return state.store.apply(pod.into()),
            Event::Apply(pod) => state.store.apply(pod.into()),
            Event::Delete(pod) => state.store.remove(pod.uid()),
            Event::InitDone => {
                state.store.end_list();
                state.listing = false;
                if !std::mem::replace(&mut state.complete, true) {
                    info!(pods = state.store.len(), "Follows pods");
                }
            }
        }
        drop(state);
        self.follows_again();
    }

    fn follows_again(&self) {
        if self.state().failing.take().is_some() {
            info!("Follows pods again");
        }
    }

    fn fails(&self, error: &watcher::Error) {
        let (why, now) = (chain(error), Instant::now());
        let mut state = self.state();
        match &mut state.failing {
            Some(failing) => (failing.last, failing.why) = (now, why),
            None => {
                warn!(error = why, "Cannot follow pods");
                state.failing = Some(Failing { first: now, last: now, why });
            }
        }
    }

    /// When silence means that all is well again.
    fn resumes_at(&self) -> Option<Instant> {
        let state = self.state();
        let failing = state.failing.as_ref().filter(|_| !state.listing)?;
        Some(failing.last + RESUMED)
    }

    fn health(&self) -> Result<(), String> {
        let state = self.state();
        match &state.failing {
            Some(failing) => Err(failing.why.clone()),
            None if !state.complete => Err("not all pods have been listed yet".to_owned()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
