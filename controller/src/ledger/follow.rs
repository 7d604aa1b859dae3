//! Follows all `DelegationToken`s, so that questions about them cost no request.

use std::pin::pin;

use futures_util::StreamExt;
use kube::{
    Api,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use process::health::Check;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    DEADLINE, Ledger, LedgerError,
    entry::{Entry, Object},
};
use crate::failure::chain;

/// A watch is opened anew after this many seconds: the longest that a connection may be dead unnoticed.
const WATCH_SECONDS: u32 = 60;
/// Objects in one page of the list, which is the most that is in memory as text.
const PAGE: u32 = 250;

impl Ledger {
    /// Follows the ledger until `stop`, then ends the subscriptions. Says in `check` how it goes.
    pub(crate) async fn run(self, check: Check, stop: CancellationToken) {
        let config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
        let objects: Api<Object> = Api::all(self.0.client.clone());
        let mut events = pin!(watcher(objects, config).default_backoff());
        let health = || check.set(self.state().following.health());
        health();
        loop {
            let resumes_at = self.state().following.resumes_at();
            tokio::select! {
                () = stop.cancelled() => break,
                () = until(resumes_at) => self.follows(),
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

    /// Waits until all is here that anybody wrote before `entry` became what it is. The watch may be late, and silent for
    /// a minute.
    pub(crate) async fn shows(&self, entry: &Entry) -> Result<(), LedgerError> {
        let mut followed = self.state().store.followed();
        match timeout(DEADLINE, followed.wait_for(|followed| *followed >= entry.version)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(LedgerError::Unreadable("what is followed is late".to_owned())),
        }
    }

    pub(super) fn take(&self, event: Event<Object>) {
        let mut state = self.state();
        match event {
            Event::Init => {
                state.following.begins_list();
                state.store.begin_list();
                return;
            }
            // One page of the list does not prove that there will be a next one.
            Event::InitApply(object) => return state.store.list(object.entry),
            Event::Apply(Object { entry, .. }) => {
                let version = entry.version;
                state.store.apply(entry);
                state.store.follow(version);
            }
            Event::Delete(Object { entry, .. }) => {
                state.store.remove(&entry.uid);
                state.store.follow(entry.version);
            }
            Event::InitDone => {
                let first = state.following.ends_list();
                state.store.end_list();
                if first {
                    info!(tokens = state.store.len(), "Follows the ledger");
                }
            }
        }
        drop(state);
        self.follows();
    }

    fn follows(&self) {
        if self.state().following.follows() {
            info!("Follows the ledger again");
        }
    }

    fn fails(&self, error: &watcher::Error) {
        let why = chain(error);
        if self.state().following.fails(why.clone()) {
            warn!(error = why, "Cannot follow the ledger");
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
