//! The pods whose volumes we have, and the addresses that the API server has of each, as the controller told. In
//! memory only: the controller tells all of it again with each new stream. A pod's addresses may be told before its
//! volume is there, and then not again, so that those of some others are remembered for as long as the stream lasts.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use proto::VolumeId;
use tokio::sync::watch;

/// Of so many pods without volumes are addresses remembered: more than any node runs.
const MOST_OTHERS: usize = 1_000;

#[derive(Debug)]
pub(crate) struct Pods {
    known: Mutex<Known>,
    /// Whether there is any pod with a volume.
    any: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Known {
    /// Pods with volumes, by UID.
    ours: HashMap<String, Ours>,
    /// UID and addresses of other pods, the last one told at the end.
    others: VecDeque<(String, BTreeSet<IpAddr>)>,
}

#[derive(Debug, Default)]
struct Ours {
    volumes: BTreeSet<VolumeId>,
    addresses: BTreeSet<IpAddr>,
}

impl Known {
    /// Remembers the addresses of a pod without volumes, or that it has none.
    fn remember(&mut self, uid: &str, addresses: BTreeSet<IpAddr>) {
        self.take_other(uid);
        if addresses.is_empty() {
            return;
        }
        if self.others.len() >= MOST_OTHERS {
            self.others.pop_front();
        }
        self.others.push_back((uid.to_owned(), addresses));
    }

    fn take_other(&mut self, uid: &str) -> Option<BTreeSet<IpAddr>> {
        let at = self.others.iter().position(|(other, _)| other == uid)?;
        self.others.remove(at).map(|(_, addresses)| addresses)
    }
}

impl Pods {
    pub(crate) fn new() -> Self {
        Self { known: Mutex::default(), any: watch::Sender::new(false) }
    }

    /// A pod has this volume.
    pub(crate) fn add(&self, uid: &str, volume: &VolumeId) {
        let mut known = self.lock();
        let told = known.take_other(uid);
        let pod = known.ours.entry(uid.to_owned()).or_default();
        pod.volumes.insert(volume.clone());
        if let Some(addresses) = told {
            pod.addresses = addresses;
        }
        self.any.send_if_modified(|any| !std::mem::replace(any, true));
    }

    /// No pod has this volume any more.
    pub(crate) fn remove(&self, volume: &VolumeId) {
        let mut known = self.lock();
        let gone = known.ours.extract_if(|_, pod| {
            pod.volumes.remove(volume);
            pod.volumes.is_empty()
        });
        // Its volume may come again.
        for (uid, pod) in gone.collect::<Vec<_>>() {
            known.remember(&uid, pod.addresses);
        }
        if known.ours.is_empty() {
            self.any.send_if_modified(|any| std::mem::replace(any, false));
        }
    }

    /// The API server has these addresses of a pod. Names the pod's volumes if that is news.
    pub(crate) fn tell(&self, uid: &str, addresses: BTreeSet<IpAddr>) -> Vec<VolumeId> {
        let mut known = self.lock();
        match known.ours.get_mut(uid) {
            Some(pod) if pod.addresses != addresses => {
                pod.addresses = addresses;
                pod.volumes.iter().cloned().collect()
            }
            Some(_) => Vec::new(),
            None => {
                known.remember(uid, addresses);
                Vec::new()
            }
        }
    }

    /// A new stream tells all anew: what is remembered of pods without volumes is of an older one.
    pub(crate) fn forget_others(&self) {
        self.lock().others.clear();
    }

    /// The addresses that the API server has of a pod with volumes. None: not known, or it has none.
    pub(crate) fn addresses(&self, uid: &str) -> BTreeSet<IpAddr> {
        self.lock().ours.get(uid).map(|pod| pod.addresses.clone()).unwrap_or_default()
    }

    /// Waits until there is any pod with a volume, or until there is none.
    pub(crate) async fn until(&self, any: bool) {
        // The sender is here, so that it does not end.
        let _ = self.any.subscribe().wait_for(|now| *now == any).await;
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
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
    fn what_was_told_before_the_volume_came_is_remembered() {
        let (pods, id) = (Pods::new(), VolumeId::of("a", "one"));
        assert_eq!(pods.tell("a", ips(&["10.1.2.2"])), []);
        assert_eq!(pods.tell("a", ips(&["10.1.2.3"])), []);
        assert_eq!(pods.addresses("a"), ips(&[]), "it is not ours yet");
        pods.add("a", &id);
        assert_eq!(pods.addresses("a"), ips(&["10.1.2.3"]));
        pods.remove(&id);
        assert!(pods.lock().ours.is_empty());
        pods.add("a", &id);
        assert_eq!(pods.addresses("a"), ips(&["10.1.2.3"]));
    }

    #[test]
    fn pods_without_volumes_are_forgotten_when_they_have_no_address_and_with_a_new_stream() {
        let pods = Pods::new();
        for uid in ["a", "b"] {
            pods.tell(uid, ips(&["10.1.2.3"]));
        }
        pods.add("c", &VolumeId::of("c", "one"));
        pods.tell("c", ips(&["10.1.2.4"]));
        pods.tell("a", ips(&[]));
        assert_eq!(pods.lock().others.len(), 1);
        pods.forget_others();
        for uid in ["a", "b"] {
            pods.add(uid, &VolumeId::of(uid, "one"));
            assert_eq!(pods.addresses(uid), ips(&[]), "{uid}");
        }
        assert_eq!(pods.addresses("c"), ips(&["10.1.2.4"]), "it has a volume");
    }

    #[test]
    fn no_more_than_so_many_pods_without_volumes_are_remembered() {
        let pods = Pods::new();
        for number in 0..=MOST_OTHERS {
            pods.tell(&format!("pod-{number}"), ips(&["10.1.2.3"]));
        }
        assert_eq!(pods.lock().others.len(), MOST_OTHERS);
        for (uid, addresses) in [("pod-0", ips(&[])), ("pod-1", ips(&["10.1.2.3"]))] {
            pods.add(uid, &VolumeId::of(uid, "one"));
            assert_eq!(pods.addresses(uid), addresses, "{uid}: the oldest is dropped");
        }
    }

    #[tokio::test]
    async fn pods_without_volumes_need_no_stream() {
        let (pods, id) = (Pods::new(), VolumeId::of("a", "one"));
        pods.tell("b", ips(&["10.1.2.3"]));
        pods.until(false).await;
        pods.add("a", &id);
        pods.until(true).await;
        pods.remove(&id);
        pods.until(false).await;
    }

    #[tokio::test]
    async fn who_waits_for_the_first_or_the_last_pod_is_woken() {
        let (pods, id) = (Pods::new(), VolumeId::of("a", "one"));
        tokio::join!(pods.until(true), async { pods.add("a", &id) });
        pods.until(true).await;
        tokio::join!(pods.until(false), async { pods.remove(&id) });
    }
}
