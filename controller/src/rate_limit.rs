//! How often one node, one namespace and one user may ask: so that one of them, broken or hostile, leaves room for
//! the others. Counts only what was proven, never a name that a caller made up.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::NoOpMiddleware,
    state::keyed::DefaultKeyedStateStore,
};
use serde::Deserialize;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Between removals of keys that have not been seen for so long that they are as good as new.
const SWEEP: Duration = Duration::from_mins(1);

/// Keys of one kind that are remembered. A cluster has far fewer; with so many, everybody waits for the next removal.
const MAX_KEYS: usize = 100_000;

/// The configuration's key `limits.rates`.
///
/// The defaults let 4,000 pods start at once, all of one user in one namespace, with two volumes each (8,000 calls),
/// and let a node plugin that restarts on a node of 250 such pods renew and check everything at once (1,000 calls).
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(crate) struct Section {
    /// All calls of one node, each counted as often as it has tokens: 50 a second, 1,000 at once.
    node: Rate,
    /// Calls for new tokens in one namespace: 200 a second, 10,000 at once.
    namespace: Rate,
    /// Calls for new tokens of one Hadoop user: as for a namespace.
    user: Rate,
}

/// So many a second in the long run, and so many at once.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Rate {
    per_second: NonZeroU32,
    burst: NonZeroU32,
}

impl Rate {
    fn new(per_second: u32, burst: u32) -> Self {
        let positive = |number| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
        Self { per_second: positive(per_second), burst: positive(burst) }
    }
}

impl Default for Section {
    fn default() -> Self {
        Self { node: Rate::new(50, 1_000), namespace: Rate::new(200, 10_000), user: Rate::new(200, 10_000) }
    }
}

/// Too many calls.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many calls of {scope} {key:?}")]
pub(crate) struct Exceeded {
    /// `node`, `namespace` or `user`.
    pub(crate) scope: &'static str,
    pub(crate) key: String,
    /// When a further call can be let through.
    pub(crate) retry_after: Duration,
}

/// Counts calls.
pub(crate) struct RateLimits<C: Clock = DefaultClock> {
    nodes: Keyed<C>,
    namespaces: Keyed<C>,
    users: Keyed<C>,
    metrics: Metrics,
}

impl RateLimits {
    /// Has counted nothing yet.
    pub(crate) fn new(section: &Section, metrics: Metrics) -> Self {
        Self::with_clock(section, metrics, &DefaultClock::default())
    }
}

impl<C: Clock + Clone> RateLimits<C> {
    fn with_clock(section: &Section, metrics: Metrics, clock: &C) -> Self {
        Self {
            nodes: Keyed::new("node", section.node, clock),
            namespaces: Keyed::new("namespace", section.namespace, clock),
            users: Keyed::new("user", section.user, clock),
            metrics,
        }
    }

    /// Lets a call of a node with so many tokens through, whatever it is for, or says when the next will be.
    pub(crate) fn admit_node(&self, node: &str, tokens: usize) -> Result<(), Exceeded> {
        self.counted(self.nodes.admit(node, tokens))
    }

    /// Lets a call for new tokens through. A user who asks too often uses up nothing of the namespace's share.
    pub(crate) fn admit(&self, namespace: &str, user: &str) -> Result<(), Exceeded> {
        self.counted(self.users.admit(user, 1).and_then(|()| self.namespaces.admit(namespace, 1)))
    }

    fn counted(&self, outcome: Result<(), Exceeded>) -> Result<(), Exceeded> {
        outcome.inspect_err(|exceeded| self.metrics.rate_limited(exceeded.scope))
    }

    /// Forgets, until `stop`, whoever has not asked for long.
    pub(crate) async fn keep_small(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = interval(SWEEP);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            for keyed in [&self.nodes, &self.namespaces, &self.users] {
                keyed.sweep();
            }
        }
    }
}

/// The limits of one kind of keys.
struct Keyed<C: Clock> {
    scope: &'static str,
    limiter: RateLimiter<String, DefaultKeyedStateStore<String>, C, NoOpMiddleware<C::Instant>>,
    clock: C,
    burst: NonZeroU32,
}

impl<C: Clock + Clone> Keyed<C> {
    fn new(scope: &'static str, rate: Rate, clock: &C) -> Self {
        let quota = Quota::per_second(rate.per_second).allow_burst(rate.burst);
        let limiter = RateLimiter::new(quota, DefaultKeyedStateStore::default(), clock.clone());
        Self { scope, limiter, clock: clock.clone(), burst: rate.burst }
    }

    /// Counts `weight`, at least 1. A call that outweighs the whole burst uses it up: it would never be let through.
    fn admit(&self, key: &str, weight: usize) -> Result<(), Exceeded> {
        let exceeded = |retry_after| Exceeded { scope: self.scope, key: key.to_owned(), retry_after };
        if self.limiter.len() >= MAX_KEYS {
            return Err(exceeded(SWEEP));
        }
        let weight = u32::try_from(weight).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
        match self.limiter.check_key_n(&key.to_owned(), weight.min(self.burst)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(until)) => Err(exceeded(until.wait_time_from(self.clock.now()))),
            Err(_) => Err(exceeded(SWEEP)), // never: it is within the burst
        }
    }

    fn sweep(&self) {
        self.limiter.retain_recent();
        self.limiter.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;
    use prometheus_client::registry::Registry;

    use super::*;

    fn limits(clock: &FakeRelativeClock) -> RateLimits<FakeRelativeClock> {
        let section = Section { node: Rate::new(1, 3), namespace: Rate::new(1, 4), user: Rate::new(1, 2) };
        RateLimits::with_clock(&section, Metrics::register(&mut Registry::default(), []), clock)
    }

    #[test]
    fn one_user_s_excess_is_refused_and_stops_nobody_else() {
        let clock = FakeRelativeClock::default();
        let limits = limits(&clock);
        assert_eq!(limits.admit("jobs", "etl"), Ok(()));
        assert_eq!(limits.admit("jobs", "etl"), Ok(()));
        for _ in 0..100 {
            let exceeded = limits.admit("jobs", "etl").unwrap_err();
            assert_eq!((exceeded.scope, exceeded.key.as_str()), ("user", "etl"));
            assert_eq!(exceeded.retry_after, Duration::from_secs(1));
        }
        assert_eq!(limits.admit("jobs", "ads"), Ok(()), "the namespace's share was used up");
        clock.advance(Duration::from_secs(1));
        assert_eq!(limits.admit("jobs", "etl"), Ok(()));
        assert!(limits.admit("jobs", "etl").is_err());
    }

    #[test]
    fn a_namespace_and_a_node_have_shares_of_their_own() {
        let limits = limits(&FakeRelativeClock::default());
        for user in ["a", "b", "c", "d"] {
            assert_eq!(limits.admit("jobs", user), Ok(()));
        }
        assert_eq!(limits.admit("jobs", "e").unwrap_err().scope, "namespace");
        assert_eq!(limits.admit("other", "e"), Ok(()));
        for _ in 0..3 {
            assert_eq!(limits.admit_node("node-1", 1), Ok(()));
        }
        assert_eq!(limits.admit_node("node-1", 1).unwrap_err().scope, "node");
        assert_eq!(limits.admit_node("node-2", 1), Ok(()));
    }

    #[test]
    fn four_thousand_pods_of_one_user_in_one_namespace_start_at_once() {
        let metrics = Metrics::register(&mut Registry::default(), []);
        let limits = RateLimits::with_clock(&Section::default(), metrics, &FakeRelativeClock::default());
        for pod in 0..4_000 {
            for _volume in 0..2 {
                assert_eq!(limits.admit_node(&format!("node-{}", pod / 250), 1), Ok(()));
                assert_eq!(limits.admit("jobs", "etl"), Ok(()));
            }
        }
    }

    #[test]
    fn who_has_not_asked_for_long_is_forgotten_and_nobody_else() {
        let clock = FakeRelativeClock::default();
        let limits = limits(&clock);
        for number in 0..1000 {
            assert_eq!(limits.admit_node(&format!("node-{number}"), 1), Ok(()));
        }
        clock.advance(Duration::from_secs(10));
        for _ in 0..3 {
            assert_eq!(limits.admit_node("busy", 1), Ok(()));
        }
        limits.nodes.sweep();
        assert_eq!(limits.nodes.limiter.len(), 1);
        assert!(limits.admit_node("busy", 1).is_err());
    }

    #[test]
    fn invented_names_fill_no_memory() {
        let limits = limits(&FakeRelativeClock::default());
        for number in 0..MAX_KEYS + 10 {
            let _ = limits.admit_node(&number.to_string(), 1);
        }
        assert_eq!(limits.nodes.limiter.len(), MAX_KEYS);
    }

    #[test]
    fn a_node_s_call_counts_as_often_as_it_has_tokens() {
        let limits = limits(&FakeRelativeClock::default());
        assert_eq!(limits.admit_node("node-1", 2), Ok(()));
        assert!(limits.admit_node("node-1", 2).is_err());
        assert_eq!(limits.admit_node("node-1", 0), Ok(()));
        assert!(limits.admit_node("node-1", 0).is_err());
        assert_eq!(limits.admit_node("node-2", 64), Ok(()), "more than the burst, and never let through");
        assert!(limits.admit_node("node-2", 1).is_err());
    }

    #[test]
    fn a_rate_of_nothing_is_a_mistake() {
        assert!(serde_json::from_str::<Section>(r#"{"node":{"perSecond":0,"burst":1}}"#).is_err());
        assert!(serde_json::from_str::<Section>(r#"{"nodes":{"perSecond":1,"burst":1}}"#).is_err());
        assert!(serde_json::from_str::<Section>(r#"{"user":{"perSecond":7,"burst":1}}"#).is_ok());
    }
}
