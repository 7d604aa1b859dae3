//! Pods that have run with a volume of ours for minutes and are not in the ledger: somebody removed objects by force, or
//! a token was given out past the ledger. Only told; a node plugin's next check takes such tokens away.

use std::collections::HashSet;

use tracing::warn;

use super::Reaper;

/// Most pods that one log line names.
const NAMED: usize = 10;

/// What was seen last time: a pod is told of when it is seen twice.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    without: HashSet<String>,
}

impl Reaper {
    /// Tells of the pods without tokens that were there the last time too.
    pub(super) fn pods_without_tokens(&self, sweep: &mut Sweep) {
        let mut without = self.pods.running();
        without.retain(|pod| {
            self.ledger.of_pod(&pod.uid).iter().all(|entry| *entry.namespace != *pod.namespace)
        });
        let now = without.iter().map(|pod| pod.uid.clone()).collect();
        let before = std::mem::replace(&mut sweep.without, now);
        without.retain(|pod| before.contains(&pod.uid));
        self.metrics.pods_without_tokens.set(i64::try_from(without.len()).unwrap_or(i64::MAX));
        if !without.is_empty() {
            let names = without.iter().take(NAMED).map(|pod| format!("{}/{}", pod.namespace, pod.name));
            let names = names.collect::<Vec<_>>().join(" ");
            warn!(
                count = without.len(),
                pods = names,
                "Pods have run with a token volume and are not in the ledger"
            );
        }
    }
}
