//! Which pod showed which seal first: one seal, one pod. A seal is made before the pod has a UID, so its nonce becomes
//! the pod's own when that shows it for the first time.
//!
//! A second line of defence. The first are admission, which overwrites whatever seal a new pod carries, and the time in
//! the seal, which lets only pods created about then use it. The register is in memory and bounded: after a restart, a
//! seal belongs to the first of those pods that asks again.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Most nonces remembered, some 20 MB. The one not shown for the longest time makes room.
const CAPACITY: usize = 100_000;
/// Clocks and calls take their time.
const MARGIN: Duration = Duration::from_mins(1);

/// Nonces and the UIDs of the pods that showed them first.
pub(crate) struct NonceRegister {
    remembered_for: Duration,
    capacity: usize,
    shown: Mutex<Shown>,
}

#[derive(Default)]
struct Shown {
    by_nonce: HashMap<Arc<str>, Entry>,
    /// The same nonces by the time at which they were last shown.
    by_time: BTreeSet<(Instant, Arc<str>)>,
}

struct Entry {
    pod_uid: String,
    last: Instant,
}

impl NonceRegister {
    /// A register that forgets a nonce only when no pod can live by it any more: pods that use a seal were created
    /// within twice `tolerance`, and while one of them has tokens it shows the seal at every check, each `recheck`; two
    /// missed checks are allowed for.
    pub(crate) fn new(tolerance: Duration, recheck: Duration) -> Self {
        Self::with(2 * tolerance + 3 * recheck + MARGIN, CAPACITY)
    }

    fn with(remembered_for: Duration, capacity: usize) -> Self {
        Self { remembered_for, capacity, shown: Mutex::default() }
    }

    /// Notes that the pod with UID `pod_uid` shows the nonce of a genuine seal. Refused, with the UID of the first pod,
    /// when another pod showed it first.
    pub(crate) fn bind(&self, nonce: &str, pod_uid: &str, now: Instant) -> Result<(), String> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = &mut *shown;
        shown.forget(|last, _| now.saturating_duration_since(last) > self.remembered_for);
        if let Some((nonce, entry)) = shown.by_nonce.get_key_value(nonce) {
            if entry.pod_uid != pod_uid {
                return Err(entry.pod_uid.clone());
            }
            let (nonce, before) = (nonce.clone(), entry.last);
            shown.by_time.remove(&(before, nonce.clone()));
            shown.note(nonce, pod_uid, now.max(before));
        } else {
            shown.forget(|_, held| held >= self.capacity);
            shown.note(nonce.into(), pod_uid, now);
        }
        Ok(())
    }
}

impl Shown {
    fn note(&mut self, nonce: Arc<str>, pod_uid: &str, last: Instant) {
        self.by_time.insert((last, nonce.clone()));
        self.by_nonce.insert(nonce, Entry { pod_uid: pod_uid.to_owned(), last });
    }

    /// Drops nonces, the one not shown for the longest time first, while `due` says so of that time and of how many
    /// there are.
    fn forget(&mut self, due: impl Fn(Instant, usize) -> bool) {
        while let Some((last, nonce)) = self.by_time.first() {
            if !due(*last, self.by_nonce.len()) {
                break;
            }
            self.by_nonce.remove(nonce);
            self.by_time.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    fn register(capacity: usize) -> NonceRegister {
        NonceRegister::with(10 * MINUTE, capacity)
    }

    #[test]
    fn a_seal_belongs_to_the_first_pod_that_shows_it() {
        let (register, now) = (register(8), Instant::now());
        assert_eq!(register.bind("n1", "first", now), Ok(()));
        assert_eq!(register.bind("n1", "second", now), Err("first".to_owned()));
        assert_eq!(register.bind("n1", "first", now + MINUTE), Ok(()));
        assert_eq!(register.bind("n2", "second", now + MINUTE), Ok(()));
    }

    #[test]
    fn a_pod_that_keeps_showing_its_seal_keeps_it() {
        let (register, start) = (register(8), Instant::now());
        for minute in (0..100).step_by(9) {
            assert_eq!(register.bind("n1", "first", start + minute * MINUTE), Ok(()));
        }
        assert_eq!(register.bind("n1", "second", start + 105 * MINUTE), Err("first".to_owned()));
        assert_eq!(register.bind("n1", "second", start + 200 * MINUTE), Ok(()));
    }

    #[test]
    fn a_refused_pod_does_not_prolong_the_memory() {
        let (register, start) = (register(8), Instant::now());
        assert_eq!(register.bind("n1", "first", start), Ok(()));
        assert!(register.bind("n1", "second", start + 9 * MINUTE).is_err());
        assert_eq!(register.bind("n1", "third", start + 11 * MINUTE), Ok(()));
    }

    #[test]
    fn a_full_register_forgets_the_longest_unseen() {
        let (register, start) = (register(2), Instant::now());
        assert_eq!(register.bind("n1", "first", start), Ok(()));
        assert_eq!(register.bind("n2", "second", start + MINUTE), Ok(()));
        assert_eq!(register.bind("n1", "first", start + 2 * MINUTE), Ok(()));
        assert_eq!(register.bind("n3", "third", start + 3 * MINUTE), Ok(()));
        assert_eq!(register.bind("n1", "other", start + 4 * MINUTE), Err("first".to_owned()));
        assert_eq!(register.bind("n2", "other", start + 4 * MINUTE), Ok(()));
    }

    #[test]
    fn remembers_a_seal_over_the_checks_of_the_pods_that_can_use_it() {
        let register = NonceRegister::new(Duration::from_secs(120), 15 * MINUTE);
        let start = Instant::now();
        assert_eq!(register.bind("n1", "first", start), Ok(()));
        assert_eq!(register.bind("n1", "second", start + 45 * MINUTE), Err("first".to_owned()));
    }

    proptest! {
        /// Against the plainest model: a list of what was shown when. Never two pods within the memory, never more
        /// than fit, and both indexes say the same.
        #[test]
        fn no_two_pods_share_a_seal_while_it_is_remembered(
            steps in proptest::collection::vec((0_u64..20, 0_u8..6, 0_u8..4), 1..200),
        ) {
            let (register, mut now) = (register(100), Instant::now());
            let mut model: HashMap<u8, (u8, Instant)> = HashMap::new();
            for (minutes, nonce, pod) in steps {
                now += u32::try_from(minutes).unwrap() * MINUTE / 4;
                model.retain(|_, (_, last)| now.duration_since(*last) <= 10 * MINUTE);
                let expected = match model.get(&nonce) {
                    Some((first, _)) if *first != pod => Err(first.to_string()),
                    _ => {
                        model.insert(nonce, (pod, now));
                        Ok(())
                    }
                };
                prop_assert_eq!(register.bind(&nonce.to_string(), &pod.to_string(), now), expected);
                let shown = register.shown.lock().unwrap();
                prop_assert_eq!(shown.by_nonce.len(), model.len());
                prop_assert_eq!(shown.by_time.len(), model.len());
            }
        }

        #[test]
        fn never_holds_more_than_its_capacity(nonces in proptest::collection::vec(any::<u16>(), 1..300)) {
            let (register, start) = (register(10), Instant::now());
            for (second, nonce) in (0..).zip(nonces) {
                let now = start + Duration::from_secs(second);
                let _ = register.bind(&nonce.to_string(), "pod", now);
                let shown = register.shown.lock().unwrap();
                prop_assert!(shown.by_nonce.len() <= 10);
                prop_assert_eq!(shown.by_nonce.len(), shown.by_time.len());
                prop_assert!(shown.by_nonce.contains_key(nonce.to_string().as_str()));
            }
        }
    }
}
