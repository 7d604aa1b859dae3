//! The pods that have addresses or a volume of ours, and who wants to hear of them. No I/O; whoever does not keep up with the changes is
//! cut off, so that memory is bounded.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use tokio::sync::{
    broadcast,
    mpsc::{Receiver, Sender, channel},
};

use super::pod::SeenPod;
use crate::request::PodReference;

/// Changes that may wait for one subscriber.
const BUFFER: usize = 256;
/// Ended pods that may wait for whoever hears of them.
const ENDS_BUFFER: usize = 4096;
/// Most pods that are named for one address question: each of them is read. All pods in a node's own network have its
/// address.
const MAX_SHARERS: usize = 16;
/// Most subscribers.
const MAX_SUBSCRIBERS: usize = 8192;

/// A pod's addresses. None: it has lost them, or ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodAddresses {
    pub(crate) uid: Arc<str>,
    pub(crate) addresses: Arc<[IpAddr]>,
}

/// What happened to pods with a volume of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PodChange {
    /// The one with this UID finished, or is gone.
    Ended(Arc<str>),
    /// All were listed anew.
    Listed,
}

/// What a subscriber gets.
#[derive(Debug)]
pub(crate) struct Subscription {
    /// As it is now.
    pub(crate) snapshot: Vec<PodAddresses>,
    /// All that comes after. Ends when the subscriber is too slow, or another takes its place.
    pub(crate) changes: Receiver<PodAddresses>,
}

/// Pods without addresses and without a volume of ours are not in it.
#[derive(Debug)]
pub(super) struct Store {
    pods: HashMap<Arc<str>, Entry>,
    by_address: BTreeSet<(IpAddr, Arc<str>)>,
    /// Number of the present list. What an older one had and this one has not is gone.
    list: u32,
    /// By node.
    subscribers: HashMap<Box<str>, Sender<PodAddresses>>,
    closed: bool,
    changes: broadcast::Sender<PodChange>,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            pods: HashMap::new(),
            by_address: BTreeSet::new(),
            list: 0,
            subscribers: HashMap::new(),
            closed: false,
            changes: broadcast::Sender::new(ENDS_BUFFER),
        }
    }
}

#[derive(Debug)]
struct Entry {
    pod: SeenPod,
    list: u32,
}

impl Store {
    pub(super) fn len(&self) -> usize {
        self.pods.len()
    }

    pub(super) fn begin_list(&mut self) {
        self.list = self.list.wrapping_add(1);
    }

    pub(super) fn end_list(&mut self) {
        let gone = |entry: &&Entry| entry.list != self.list;
        let gone: Vec<_> = self.pods.values().filter(gone).map(|entry| entry.pod.uid.clone()).collect();
        for uid in gone {
            self.remove(&uid);
        }
        self.tell_of(PodChange::Listed);
    }

    pub(super) fn apply(&mut self, pod: SeenPod) {
        if pod.addresses.is_empty() && pod.node.is_none() {
            return self.remove(&pod.uid);
        }
        let known = self.pods.get(&pod.uid).map(|entry| entry.pod.addresses.clone()).unwrap_or_default();
        if known != pod.addresses {
            for address in known.iter() {
                self.by_address.remove(&(*address, pod.uid.clone()));
            }
            self.by_address.extend(pod.addresses.iter().map(|address| (*address, pod.uid.clone())));
            self.tell(&pod, pod.addresses.clone());
        }
        self.pods.insert(pod.uid.clone(), Entry { pod, list: self.list });
    }

    pub(super) fn remove(&mut self, uid: &str) {
        let Some(Entry { pod, .. }) = self.pods.remove(uid) else { return };
        for address in pod.addresses.iter() {
            self.by_address.remove(&(*address, pod.uid.clone()));
        }
        if !pod.addresses.is_empty() {
            self.tell(&pod, Arc::default());
        }
        if pod.node.is_some() {
            self.tell_of(PodChange::Ended(pod.uid));
        }
    }

    /// Whether the pod is there, on a node, not finished, and has a volume of ours.
    pub(super) fn uses_us(&self, uid: &str) -> bool {
        self.pods.get(uid).is_some_and(|entry| entry.pod.node.is_some())
    }

    /// The same, and that it is called so and on `node`.
    pub(super) fn uses_us_on(&self, pod: &PodReference, node: &str) -> bool {
        let is_it = |entry: &Entry| entry.pod.node.as_deref() == Some(node) && entry.pod.reference() == *pod;
        self.pods.get(pod.uid.as_str()).is_some_and(is_it)
    }

    /// Pods with a volume of ours and an address: the volume is mounted before there is one.
    pub(super) fn running(&self) -> Vec<PodReference> {
        let runs = |pod: &&SeenPod| pod.node.is_some() && !pod.addresses.is_empty();
        self.pods.values().map(|entry| &entry.pod).filter(runs).map(SeenPod::reference).collect()
    }

    pub(super) fn changes(&self) -> broadcast::Receiver<PodChange> {
        self.changes.subscribe()
    }

    pub(super) fn sharing(&self, addresses: &[IpAddr], but_uid: &str) -> Vec<PodReference> {
        let mut found = BTreeSet::new();
        for address in addresses {
            let with_it = self.by_address.range((*address, Arc::default())..);
            let with_it = with_it.take_while(|(other, _)| other == address).map(|(_, uid)| uid);
            found.extend(with_it.filter(|uid| ***uid != *but_uid).take(MAX_SHARERS));
        }
        let reference = |uid: &Arc<str>| Some(self.pods.get(uid)?.pod.reference());
        found.into_iter().filter_map(reference).take(MAX_SHARERS).collect()
    }

    pub(super) fn subscribe(&mut self, node: &str) -> Option<Subscription> {
        if self.subscribers.len() >= MAX_SUBSCRIBERS {
            self.subscribers.retain(|_, subscriber| !subscriber.is_closed());
        }
        let room = self.subscribers.len() < MAX_SUBSCRIBERS || self.subscribers.contains_key(node);
        if self.closed || !room {
            return None;
        }
        let (sender, changes) = channel(BUFFER);
        self.subscribers.insert(node.into(), sender);
        let here = self.pods.values().filter(|entry| entry.pod.node.as_deref() == Some(node));
        let here = here.filter(|entry| !entry.pod.addresses.is_empty());
        let snapshot = here
            .map(|entry| PodAddresses { uid: entry.pod.uid.clone(), addresses: entry.pod.addresses.clone() });
        Some(Subscription { snapshot: snapshot.collect(), changes })
    }

    /// Ends all subscriptions, for good.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.subscribers.clear();
    }

    fn tell(&mut self, pod: &SeenPod, addresses: Arc<[IpAddr]>) {
        let Some(node) = &pod.node else { return };
        let Some(subscriber) = self.subscribers.get(node) else { return };
        // A full buffer or a subscriber that is gone: either way it has to begin anew.
        if subscriber.try_send(PodAddresses { uid: pod.uid.clone(), addresses }).is_err() {
            self.subscribers.remove(node);
        }
    }

    /// Nobody may be listening, which is no fault.
    fn tell_of(&self, change: PodChange) {
        drop(self.changes.send(change));
    }
}

impl SeenPod {
    fn reference(&self) -> PodReference {
        let [namespace, name, uid] = [&*self.namespace, &*self.name, &*self.uid].map(str::to_owned);
        PodReference { namespace, name, uid }
    }
}
