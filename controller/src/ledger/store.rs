//! The entries, by what they are asked for, and who wants to hear of them. No I/O; whoever does not keep up with the
//! changes is cut off, so that memory is bounded.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use tokio::sync::{broadcast, mpsc, watch};

use super::entry::{Digest, Entry};

/// Changes that may wait for whoever hears of all entries, and for whoever hears of one node's.
const ALL_BUFFER: usize = 4096;
const NODE_BUFFER: usize = 256;
/// Most nodes that are listened for.
const MAX_NODES: usize = 8192;

/// What happened to the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// There is a new entry, or an old one looks like this now.
    Written(Arc<Entry>),
    /// It is gone, and looked like this when it was seen last.
    Gone(Arc<Entry>),
    /// All were listed anew.
    Listed,
}

#[derive(Debug)]
pub(super) struct Store {
    /// By UID.
    entries: HashMap<Arc<str>, Kept>,
    by_pod: BTreeSet<(Arc<str>, Arc<str>)>,
    by_node: BTreeSet<(Arc<str>, Arc<str>)>,
    by_token: BTreeSet<(Digest, Arc<str>)>,
    /// Number of the present list. What an older one had and this one has not is gone.
    list: u32,
    /// The greatest version in it.
    listed: u64,
    /// All that was written up to this version is here.
    followed: watch::Sender<u64>,
    all: broadcast::Sender<Change>,
    /// By node.
    nodes: HashMap<Box<str>, mpsc::Sender<Change>>,
    closed: bool,
}

#[derive(Debug)]
struct Kept {
    entry: Arc<Entry>,
    list: u32,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            by_pod: BTreeSet::new(),
            by_node: BTreeSet::new(),
            by_token: BTreeSet::new(),
            list: 0,
            listed: 0,
            followed: watch::Sender::new(0),
            all: broadcast::Sender::new(ALL_BUFFER),
            nodes: HashMap::new(),
            closed: false,
        }
    }
}

impl Store {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn all(&self) -> Vec<Arc<Entry>> {
        self.entries.values().map(|kept| kept.entry.clone()).collect()
    }

    pub(super) fn of_pod(&self, uid: &str) -> Vec<Arc<Entry>> {
        self.found(&self.by_pod, Arc::from(uid)).collect()
    }

    pub(super) fn of_node(&self, node: &str) -> Vec<Arc<Entry>> {
        self.found(&self.by_node, Arc::from(node)).collect()
    }

    pub(super) fn by_identifier(&self, identifier: &[u8]) -> Vec<Arc<Entry>> {
        let found = self.found(&self.by_token, Digest::of(identifier));
        found.filter(|entry| entry.identifier() == Some(identifier)).collect()
    }

    fn found<K: Ord + Clone>(
        &self,
        index: &BTreeSet<(K, Arc<str>)>,
        key: K,
    ) -> impl Iterator<Item = Arc<Entry>> {
        let from = (key.clone(), Arc::default());
        let uids = index.range(from..).take_while(move |(other, _)| *other == key);
        uids.filter_map(|(_, uid)| Some(self.entries.get(uid)?.entry.clone()))
    }

    pub(super) fn begin_list(&mut self) {
        self.list = self.list.wrapping_add(1);
        self.listed = 0;
    }

    /// An entry as a list has it: the truth, whatever was seen before.
    pub(super) fn list(&mut self, entry: Arc<Entry>) {
        self.listed = self.listed.max(entry.version);
        self.put(entry);
    }

    pub(super) fn end_list(&mut self) {
        let gone = self.entries.values().filter(|kept| kept.list != self.list);
        let gone: Vec<_> = gone.map(|kept| kept.entry.uid.clone()).collect();
        for uid in gone {
            self.remove(&uid);
        }
        self.tell_all(Change::Listed);
        self.follow(self.listed);
    }

    /// All that was written up to `version` has been seen.
    pub(super) fn follow(&mut self, version: u64) {
        self.followed.send_if_modified(|followed| {
            let newer = version > *followed;
            *followed = version.max(*followed);
            newer
        });
    }

    /// Up to which version all has been seen.
    pub(super) fn followed(&self) -> watch::Receiver<u64> {
        self.followed.subscribe()
    }

    /// An entry as the answer to a change of ours has it. One that is not here was removed meanwhile, or an event will
    /// tell of it.
    pub(super) fn update(&mut self, entry: Arc<Entry>) {
        if self.entries.contains_key(&entry.uid) {
            self.apply(entry);
        }
    }

    /// An entry as an event or the answer to its creation has it, whichever comes first.
    pub(super) fn apply(&mut self, entry: Arc<Entry>) {
        let newer = |kept: &Kept| kept.entry.version > entry.version;
        if !self.entries.get(&entry.uid).is_some_and(newer) {
            self.put(entry);
        }
    }

    fn put(&mut self, entry: Arc<Entry>) {
        let kept = Kept { entry: entry.clone(), list: self.list };
        let before = self.entries.insert(entry.uid.clone(), kept).map(|kept| kept.entry);
        if before.as_ref() == Some(&entry) {
            return;
        }
        if let Some(before) = before {
            self.unlink(&before);
        }
        self.by_pod.insert((entry.pod_uid.clone(), entry.uid.clone()));
        self.by_node.insert((entry.node.clone(), entry.uid.clone()));
        if let Some(identifier) = entry.identifier() {
            self.by_token.insert((Digest::of(identifier), entry.uid.clone()));
        }
        self.tell(&entry.node, Change::Written(entry.clone()));
    }

    fn unlink(&mut self, entry: &Entry) {
        self.by_pod.remove(&(entry.pod_uid.clone(), entry.uid.clone()));
        self.by_node.remove(&(entry.node.clone(), entry.uid.clone()));
        if let Some(identifier) = entry.identifier() {
            self.by_token.remove(&(Digest::of(identifier), entry.uid.clone()));
        }
    }

    pub(super) fn remove(&mut self, uid: &str) {
        let Some(Kept { entry, .. }) = self.entries.remove(uid) else { return };
        self.unlink(&entry);
        self.tell(&entry.node, Change::Gone(entry.clone()));
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.all.subscribe()
    }

    pub(super) fn subscribe_to(&mut self, node: &str) -> Option<mpsc::Receiver<Change>> {
        if self.nodes.len() >= MAX_NODES {
            self.nodes.retain(|_, subscriber| !subscriber.is_closed());
        }
        let room = self.nodes.len() < MAX_NODES || self.nodes.contains_key(node);
        if self.closed || !room {
            return None;
        }
        let (sender, changes) = mpsc::channel(NODE_BUFFER);
        self.nodes.insert(node.into(), sender);
        Some(changes)
    }

    /// Ends the subscriptions of all nodes, for good.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.nodes.clear();
    }

    fn tell(&mut self, node: &str, change: Change) {
        if let Some(subscriber) = self.nodes.get(node)
            && subscriber.try_send(change.clone()).is_err()
        {
            // A full buffer or a subscriber that is gone: either way it has to begin anew.
            self.nodes.remove(node);
        }
        self.tell_all(change);
    }

    /// Nobody may be listening, which is no fault.
    fn tell_all(&self, change: Change) {
        drop(self.all.send(change));
    }
}

#[cfg(test)]
mod tests;
