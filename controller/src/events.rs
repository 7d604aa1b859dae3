//! Tells a pod's owner, by a Kubernetes event on the pod, why it has no token and what to change. An event is a
//! courtesy: it is written beside the call, seldom, and when it cannot be written, only the log and a counter say so.
//!
//! Whoever publishes knows the pod from the API server. A pod that a node plugin only names gets no events: a stolen
//! node could write them everywhere.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use prometheus_client::metrics::counter::Counter;
use proto::DRIVER_NAME;
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{failure::chain, request::PodReference};

/// The same is said once in this time.
const QUIET: Duration = Duration::from_secs(300);
/// Most that is remembered as said.
const MAX_SAID: usize = 4096;
/// Events that may wait to be written.
const BUFFER: usize = 128;
/// Over time the API server gets no more than this each second, and this many at once.
const RATE: (u32, u32) = (5, 50);
/// Longest wait for the API server.
const DEADLINE: Duration = Duration::from_secs(5);
/// The API server takes no longer ones, in bytes.
const MAX_NOTE: usize = 1024;
const MAX_INSTANCE: usize = 128;
const MAX_NAME_PREFIX: usize = 57;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    Normal,
    Warning,
}

/// How many events there were. Clones share the numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct EventCounters {
    pub(crate) written: Counter,
    /// The API server did not take them.
    pub(crate) failed: Counter,
    /// There were too many.
    pub(crate) dropped: Counter,
}

/// Where events are handed in.
#[derive(Clone)]
pub(crate) struct Events(Arc<Shared>);

struct Shared {
    queue: mpsc::Sender<Said>,
    said: Mutex<HashMap<Key, Instant>>,
    rate: DefaultDirectRateLimiter,
    counters: EventCounters,
}

/// A pod's UID and a reason.
type Key = (String, &'static str);

struct Said {
    pod: PodReference,
    severity: Severity,
    reason: &'static str,
    message: String,
}

/// Writes the events.
pub(crate) struct Writer {
    client: Client,
    instance: String,
    queue: mpsc::Receiver<Said>,
    shared: Arc<Shared>,
}

impl Events {
    /// `instance` tells this controller from its replicas.
    pub(crate) fn new(client: Client, mut instance: String) -> (Self, Writer) {
        shorten(&mut instance, MAX_INSTANCE);
        let (sender, queue) = mpsc::channel(BUFFER);
        let [rate, burst] = [RATE.0, RATE.1].map(|n| n.try_into().unwrap_or(std::num::NonZeroU32::MIN));
        let shared = Arc::new(Shared {
            queue: sender,
            said: Mutex::default(),
            rate: RateLimiter::direct(Quota::per_second(rate).allow_burst(burst)),
            counters: EventCounters::default(),
        });
        (Self(shared.clone()), Writer { client, instance, queue, shared })
    }

    /// Says `message` on `pod`, unless the same reason was given a short while ago. Never waits.
    pub(crate) fn publish(
        &self,
        pod: &PodReference,
        severity: Severity,
        reason: &'static str,
        message: &str,
    ) {
        let Shared { queue, rate, counters, .. } = &*self.0;
        let key = (pod.uid.clone(), reason);
        let mut said = self.0.said();
        said.retain(|_, at| at.elapsed() < QUIET);
        if said.contains_key(&key) {
            return;
        }
        if said.len() >= MAX_SAID || rate.check().is_err() {
            counters.dropped.inc();
            return;
        }
        let mut message = message.to_owned();
        shorten(&mut message, MAX_NOTE);
        match queue.try_send(Said { pod: pod.clone(), severity, reason, message }) {
            Ok(()) => drop(said.insert(key, Instant::now())),
            Err(TrySendError::Full(_) | TrySendError::Closed(_)) => drop(counters.dropped.inc()),
        }
    }

    /// How many there were.
    pub(crate) fn counters(&self) -> EventCounters {
        self.0.counters.clone()
    }
}

impl Shared {
    fn said(&self) -> MutexGuard<'_, HashMap<Key, Instant>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    /// Writes one after another, until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        while let Some(Some(said)) = stop.run_until_cancelled(self.queue.recv()).await {
            let events: Api<Event> = Api::namespaced(self.client.clone(), &said.pod.namespace);
            let (parameters, event) = (PostParams::default(), self.event(&said));
            let written = match timeout(DEADLINE, events.create(&parameters, &event)).await {
                Ok(written) => written.map(drop).map_err(|error| chain(&error)),
                Err(_) => Err(format!("no answer within {} seconds", DEADLINE.as_secs())),
            };
            let Err(error) = written else {
                self.shared.counters.written.inc();
                continue;
            };
            self.shared.counters.failed.inc();
            warn!(
                error,
                event.reason = said.reason,
                pod.namespace = said.pod.namespace,
                pod.name = said.pod.name,
                pod.uid = said.pod.uid,
                "Failed to write an event"
            );
            // Nobody has read it, so it may be said again at once.
            self.shared.said().remove(&(said.pod.uid, said.reason));
        }
    }

    fn event(&self, said: &Said) -> Event {
        let Said { pod, severity, reason, message } = said;
        Event {
            metadata: ObjectMeta {
                generate_name: Some(name_prefix(&pod.name)),
                namespace: Some(pod.namespace.clone()),
                ..ObjectMeta::default()
            },
            regarding: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                namespace: Some(pod.namespace.clone()),
                name: Some(pod.name.clone()),
                uid: Some(pod.uid.clone()),
                ..ObjectReference::default()
            }),
            type_: Some(format!("{severity:?}")),
            reason: Some((*reason).to_owned()),
            action: Some("HadoopToken".to_owned()),
            note: Some(message.clone()),
            event_time: Some(MicroTime(Timestamp::now())),
            reporting_controller: Some(format!("{DRIVER_NAME}/controller")),
            reporting_instance: Some(self.instance.clone()),
            ..Event::default()
        }
    }
}

/// The API server appends a few letters. It would cut a longer one by itself, but where no name may end.
fn name_prefix(pod: &str) -> String {
    let start: String = pod.chars().take(MAX_NAME_PREFIX).collect();
    format!("{}-", start.trim_end_matches(['-', '.']))
}

/// Cuts `text` to at most `limit` bytes, visibly.
fn shorten(text: &mut String, limit: usize) {
    const CUT: &str = "…";
    if text.len() > limit {
        let end = (0..=limit - CUT.len()).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push_str(CUT);
    }
}

#[cfg(test)]
mod tests;
