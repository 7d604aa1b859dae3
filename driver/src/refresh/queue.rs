//! What is due when, and the rule that says when to renew. The queue costs nothing while nothing is due, however much
//! is in it; the rule is a function of its arguments alone.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::{sync::Notify, time::Instant};

/// The least time between two attempts that are no retries.
const LEAST: SignedDuration = SignedDuration::from_secs(1);

/// How long before its end a token is replaced at the latest. Some clients do not use one that ends within a minute
/// (hdfs-native 0.14: it then looks for Kerberos, and finds none), and one attempt may fail.
const RESERVE: SignedDuration = SignedDuration::from_mins(2);

/// When to renew a token that is refused from `renew_date` on unless renewed, and from `max_date` on whatever is done:
/// after about 70 % of what is left, earlier or later by `chance` (0 to 1). Nothing when renewing would not move the
/// date.
pub(crate) fn next_renewal(
    now: Timestamp,
    renew_date: Timestamp,
    max_date: Timestamp,
    chance: f64,
) -> Option<Timestamp> {
    if renew_date >= max_date {
        return None;
    }
    let left = renew_date.duration_since(now).max(SignedDuration::ZERO);
    let wait = left.mul_f64(0.65 + 0.1 * chance.clamp(0.0, 1.0));
    Some(now.saturating_add(wait.max(LEAST)).unwrap_or(Timestamp::MAX))
}

/// When to ask for another token in place of one that was issued at `issue_date` and ends at `max_date` whatever is
/// done: after 75 to 80 % of its life, by `chance` (0 to 1), or two minutes before its end, if that is earlier, but not
/// before a fifth of its life, and not at once.
pub(crate) fn next_rotation(
    now: Timestamp,
    issue_date: Timestamp,
    max_date: Timestamp,
    chance: f64,
) -> Timestamp {
    let life = max_date.duration_since(issue_date).max(SignedDuration::ZERO);
    let late = 0.05 * chance.clamp(0.0, 1.0);
    let after = life.mul_f64(0.75 + late).min((life - RESERVE).max(life.mul_f64(0.2 + late)));
    let due = issue_date.saturating_add(after);
    let least = now.saturating_add(LEAST);
    due.unwrap_or(Timestamp::MAX).max(least.unwrap_or(Timestamp::MAX))
}

/// How long to wait after the `attempt`th failure in a row: doubling from a second to five minutes, shortened by up
/// to half by `chance` (0 to 1), so that what failed together does not come back together.
pub(crate) fn backoff(attempt: u32, chance: f64) -> Duration {
    let longest = Duration::from_secs(1 << attempt.min(9)).min(Duration::from_secs(300));
    longest.mul_f64(1.0 - 0.5 * chance.clamp(0.0, 1.0))
}

/// Things that are due at some time, each once. A tree and not a heap: things are moved and removed as often as they
/// come due, and a heap would keep the old entries.
#[derive(Debug)]
pub(crate) struct Queue<K> {
    order: BTreeSet<(Instant, K)>,
    due: HashMap<K, Instant>,
}

impl<K: Clone + Ord + Hash> Queue<K> {
    fn new() -> Self {
        Self { order: BTreeSet::new(), due: HashMap::new() }
    }

    fn insert(&mut self, key: K, due: Instant) {
        self.remove(&key);
        self.order.insert((due, key.clone()));
        self.due.insert(key, due);
    }

    fn remove(&mut self, key: &K) {
        if let Some((key, due)) = self.due.remove_entry(key) {
            self.order.remove(&(due, key));
        }
    }

    fn next(&self) -> Option<Instant> {
        self.order.first().map(|(due, _)| *due)
    }

    fn pop_due(&mut self, now: Instant) -> Option<K> {
        if self.next()? > now {
            return None;
        }
        let (_, key) = self.order.pop_first()?;
        self.due.remove(&key);
        Some(key)
    }
}

/// A queue that can be waited on.
#[derive(Debug)]
pub(crate) struct Agenda<K> {
    queue: Mutex<Queue<K>>,
    changed: Notify,
}

impl<K: Clone + Ord + Hash> Agenda<K> {
    pub(crate) fn new() -> Self {
        Self { queue: Mutex::new(Queue::new()), changed: Notify::new() }
    }

    /// Makes `key` due at `due`, and at no other time.
    pub(crate) fn insert(&self, key: K, due: Instant) {
        self.lock().insert(key, due);
        self.changed.notify_one();
    }

    /// Makes `key` due at no time.
    pub(crate) fn remove(&self, key: &K) {
        self.lock().remove(key);
    }

    /// Whether `key` is due at some time.
    pub(crate) fn contains(&self, key: &K) -> bool {
        self.lock().due.contains_key(key)
    }

    /// Takes out all that is due now.
    pub(crate) fn all_due(&self) -> Vec<K> {
        let (mut queue, now) = (self.lock(), Instant::now());
        std::iter::from_fn(|| queue.pop_due(now)).collect()
    }

    /// Takes out what is due by `until`, the first of it first, and at most so many.
    pub(crate) fn take(&self, until: Instant, most: usize) -> Vec<K> {
        let mut queue = self.lock();
        std::iter::from_fn(|| queue.pop_due(until)).take(most).collect()
    }

    /// Waits until something is due and takes it out. Safe to drop: what is not returned is still there.
    pub(crate) async fn due(&self) -> K {
        loop {
            let next = {
                let mut queue = self.lock();
                if let Some(key) = queue.pop_due(Instant::now()) {
                    return key;
                }
                queue.next()
            };
            match next {
                Some(next) => tokio::select! {
                    () = tokio::time::sleep_until(next) => {}
                    () = self.changed.notified() => {}
                },
                None => self.changed.notified().await,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue<K>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn a_daily_token_is_renewed_after_about_seventeen_hours() {
        let next = |chance| next_renewal(at(0), at(86_400), at(604_800), chance).unwrap().as_second();
        assert_eq!((next(0.0), next(0.5), next(1.0)), (56_160, 60_480, 64_800));
    }

    #[test]
    fn a_token_is_replaced_long_enough_before_its_end_for_clients_to_use_it() {
        let due = |life, chance| next_rotation(at(0), at(0), at(life), chance).as_second();
        assert_eq!((due(604_800, 0.0), due(604_800, 1.0)), (453_600, 483_840));
        assert_eq!((due(300, 0.0), due(300, 1.0)), (180, 180));
        assert_eq!((due(90, 0.0), due(90, 1.0)), (18, 22));
        assert_eq!(next_rotation(at(80), at(0), at(90), 0.5), at(81));
    }

    #[test]
    fn a_token_at_the_end_of_its_life_is_not_renewed() {
        assert_eq!(next_renewal(at(0), at(100), at(100), 0.5), None);
        assert!(next_renewal(at(0), at(99), at(100), 0.5).is_some());
    }

    #[test]
    fn a_token_past_its_date_is_tried_soon() {
        assert_eq!(next_renewal(at(500), at(100), at(1_000), 0.5), Some(at(501)));
    }

    proptest! {
        #[test]
        fn renewal_leaves_a_quarter_of_the_time_for_retries(
            now in -1_000_000i64..1_000_000, left in 8i64..100_000_000, chance in 0.0f64..1.0,
        ) {
            let next = next_renewal(at(now), at(now + left), Timestamp::MAX, chance).unwrap();
            let wait = next.as_second() - now;
            prop_assert!(wait >= left * 6 / 10 && wait * 4 <= left * 3, "{wait} of {left}");
        }

        #[test]
        fn no_date_makes_it_fail(now: i64, renew: i64, max: i64, chance: f64) {
            let time = |n: i64| Timestamp::from_millisecond(n % 100_000_000_000_000).unwrap();
            prop_assert!(next_rotation(time(now), time(renew), time(max), chance) > time(now));
            if let Some(next) = next_renewal(time(now), time(renew), time(max), chance) {
                prop_assert!(next > time(now));
            }
        }

        #[test]
        fn retries_are_spread_and_bounded(attempt: u32, chance in 0.0f64..1.0) {
            let wait = backoff(attempt, chance);
            prop_assert!(wait >= Duration::from_millis(500) && wait <= Duration::from_secs(300));
        }
    }

    #[test]
    fn retries_grow_to_five_minutes() {
        let waits = [0, 1, 2, 8, 9, 100].map(|attempt| backoff(attempt, 0.0).as_secs());
        assert_eq!(waits, [1, 2, 4, 256, 300, 300]);
    }

    #[tokio::test(start_paused = true)]
    async fn things_come_in_their_order_each_once() {
        let (agenda, start) = (Agenda::new(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        for (key, seconds) in [("c", 30), ("a", 10), ("b", 20), ("moved", 5), ("removed", 1)] {
            agenda.insert(key, after(seconds));
        }
        agenda.insert("moved", after(40));
        agenda.remove(&"removed");
        for (key, seconds) in [("a", 10), ("b", 20), ("c", 30), ("moved", 40)] {
            assert_eq!((agenda.due().await, start.elapsed().as_secs()), (key, seconds));
        }
        assert!(!agenda.contains(&"a"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_due_soon_can_be_taken_along_and_no_more_than_is_wanted() {
        let (agenda, start) = (Agenda::new(), Instant::now());
        for seconds in [40, 10, 30, 20] {
            agenda.insert(seconds, start + Duration::from_secs(seconds));
        }
        assert_eq!(agenda.take(start + Duration::from_secs(30), 2), [10, 20]);
        assert_eq!(agenda.take(start + Duration::from_secs(30), 2), [30]);
        assert!(agenda.contains(&40));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_added_while_waiting_is_not_overslept() {
        let agenda = std::sync::Arc::new(Agenda::new());
        let start = Instant::now();
        agenda.insert("late", start + Duration::from_secs(100));
        let waiting = tokio::spawn({
            let agenda = agenda.clone();
            async move { (agenda.due().await, start.elapsed().as_secs()) }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        agenda.insert("soon", start + Duration::from_secs(2));
        assert_eq!(waiting.await.unwrap(), ("soon", 2));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_woken_while_nothing_is_due() {
        let agenda: Agenda<u32> = Agenda::new();
        let waited = tokio::time::timeout(Duration::from_secs(1_000_000), agenda.due()).await;
        assert!(waited.is_err());
    }
}
