//! The pods whose volumes we have, and the addresses that the API server has of each, as the controller told. In
//! memory only: the controller tells all of it again with each new stream. Pods of others are not remembered, so that
//! it never holds more than our volumes need.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use proto::VolumeId;
use tokio::sync::watch;

/// By UID.
#[derive(Debug)]
pub(crate) struct Pods {
    known: Mutex<HashMap<String, Known>>,
    /// Whether there is any.
    any: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Known {
    volumes: BTreeSet<VolumeId>,
    addresses: BTreeSet<IpAddr>,
}

impl Pods {
    pub(crate) fn new() -> Self {
        Self { known: Mutex::default(), any: watch::Sender::new(false) }
    }

    /// A pod has this volume.
    pub(crate) fn add(&self, uid: &str, volume: &VolumeId) {
        let mut known = self.lock();
        known.entry(uid.to_owned()).or_default().volumes.insert(volume.clone());
        self.any.send_if_modified(|any| !std::mem::replace(any, true));
    }

    /// No pod has this volume any more.
    pub(crate) fn remove(&self, volume: &VolumeId) {
        let mut known = self.lock();
        known.retain(|_, pod| {
            pod.volumes.remove(volume);
            !pod.volumes.is_empty()
        });
        if known.is_empty() {
            self.any.send_if_modified(|any| std::mem::replace(any, false));
        }
    }

    /// The API server has these addresses of a pod. Names the pod's volumes if that is news.
    pub(crate) fn tell(&self, uid: &str, addresses: BTreeSet<IpAddr>) -> Vec<VolumeId> {
        match self.lock().get_mut(uid) {
            Some(pod) if pod.addresses != addresses => {
                pod.addresses = addresses;
                pod.volumes.iter().cloned().collect()
            }
            _ => Vec::new(),
        }
    }

    /// The addresses that the API server has of a pod. None: not known, or it has none.
    pub(crate) fn addresses(&self, uid: &str) -> BTreeSet<IpAddr> {
        self.lock().get(uid).map(|pod| pod.addresses.clone()).unwrap_or_default()
    }

    /// Waits until there is any pod, or until there is none.
    pub(crate) async fn until(&self, any: bool) {
        // The sender is here, so that it does not end.
        let _ = self.any.subscribe().wait_for(|now| *now == any).await;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn news_concern_the_volumes_of_the_pod_once() {
        let pods = Pods::new();
        let (one, two, other) =
            (VolumeId::of("a", "one"), VolumeId::of("a", "two"), VolumeId::of("b", "one"));
        pods.add("a", &one);
        pods.add("a", &two);
        pods.add("b", &other);
        let mut told = pods.tell("a", ips(&["10.1.2.3"]));
        told.sort();
        let mut expected = [one, two];
        expected.sort();
        assert_eq!(told, expected);
        assert_eq!(pods.tell("a", ips(&["10.1.2.3"])), []);
        assert_eq!((pods.addresses("a"), pods.addresses("b")), (ips(&["10.1.2.3"]), ips(&[])));
    }

    #[test]
    fn nothing_is_remembered_of_pods_without_volumes() {
        let pods = Pods::new();
        assert_eq!(pods.tell("a", ips(&["10.1.2.3"])), []);
        assert_eq!(pods.addresses("a"), ips(&[]));
        let id = VolumeId::of("a", "one");
        pods.add("a", &id);
        pods.tell("a", ips(&["10.1.2.3"]));
        pods.remove(&id);
        assert_eq!(pods.addresses("a"), ips(&[]));
        assert!(pods.lock().is_empty());
    }

    #[tokio::test]
    async fn who_waits_for_the_first_or_the_last_pod_is_woken() {
        let (pods, id) = (Pods::new(), VolumeId::of("a", "one"));
        tokio::join!(pods.until(true), async { pods.add("a", &id) });
        pods.until(true).await;
        tokio::join!(pods.until(false), async { pods.remove(&id) });
    }
}
