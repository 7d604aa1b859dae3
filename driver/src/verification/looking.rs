//! When to look for a pod's addresses, when to look again, and what to tell the controller. No I/O.

use std::time::Duration;

use proto::token::v1::ObservedAddresses;
use tokio::time::Instant;

use crate::{
    pod_network::{PodAddresses, Sight},
    refresh::queue::backoff,
};

/// Shortest and longest wait between two looks for the first process of a pod. A container may pull its image for
/// minutes; a look costs milliseconds.
const SOON: Duration = Duration::from_millis(250);
const LATE: Duration = Duration::from_secs(15);

/// Until what was unclear is looked at once more: processes come and go.
const ONCE_MORE: Duration = Duration::from_secs(1);

/// The search for the addresses of one volume's pod.
#[derive(Debug)]
pub(super) struct Looking {
    since: Instant,
    /// The last look was unclear.
    unclear: bool,
    /// Times in a row that the controller could not be asked, or did not agree.
    failures: u32,
}

/// What to do after a look.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    LookAgain(Duration),
    Tell(ObservedAddresses),
}

impl Looking {
    pub(super) fn since(now: Instant) -> Self {
        Self { since: now, unclear: false, failures: 0 }
    }

    pub(super) fn step(&mut self, sight: Sight, now: Instant) -> Step {
        let unclear_before = std::mem::replace(&mut self.unclear, matches!(sight, Sight::Unclear(_)));
        match sight {
            Sight::Nobody => Step::LookAgain(self.again(now)),
            Sight::Unclear(_) if !unclear_before => Step::LookAgain(ONCE_MORE),
            Sight::Unclear(why) => {
                Step::Tell(ObservedAddresses { unclear: why, ..ObservedAddresses::default() })
            }
            Sight::Pod(PodAddresses { host_network, addresses }) => Step::Tell(ObservedAddresses {
                host_network,
                addresses: addresses.iter().map(ToString::to_string).collect(),
                unclear: String::new(),
            }),
        }
    }

    /// How long to wait when nothing has failed, and nothing is settled.
    pub(super) fn again(&self, now: Instant) -> Duration {
        (now.saturating_duration_since(self.since) / 4).clamp(SOON, LATE)
    }

    /// How long to wait after a failure; `chance` is between 0 and 1.
    pub(super) fn failed(&mut self, chance: f64) -> Duration {
        let wait = backoff(self.failures, chance);
        self.failures = self.failures.saturating_add(1);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_pod_without_a_process_is_looked_at_ever_less_often() {
        let start = Instant::now();
        let mut looking = Looking::since(start);
        let mut waits = Vec::new();
        for seconds in [0, 4, 20, 60, 600] {
            waits.push(looking.step(Sight::Nobody, after(start, seconds)));
        }
        let expected = [250, 1_000, 5_000, 15_000, 15_000];
        assert_eq!(waits, expected.map(|wait| Step::LookAgain(Duration::from_millis(wait))));
    }

    #[test]
    fn what_is_unclear_once_is_looked_at_once_more() {
        let start = Instant::now();
        let unclear = || Sight::Unclear("two networks".to_owned());
        let mut looking = Looking::since(start);
        assert_eq!(looking.step(unclear(), start), Step::LookAgain(ONCE_MORE));
        let told = ObservedAddresses { unclear: "two networks".to_owned(), ..Default::default() };
        assert_eq!(looking.step(unclear(), after(start, 1)), Step::Tell(told));

        let mut looking = Looking::since(start);
        looking.step(unclear(), start);
        looking.step(Sight::Nobody, after(start, 1));
        assert_eq!(looking.step(unclear(), after(start, 2)), Step::LookAgain(ONCE_MORE));
    }

    #[test]
    fn what_is_seen_is_told_at_once() {
        let start = Instant::now();
        let addresses = ["10.1.2.3", "fd00::1"].map(|text| text.parse().unwrap()).into();
        let sight = Sight::Pod(PodAddresses { host_network: true, addresses });
        let told = ObservedAddresses {
            host_network: true,
            addresses: vec!["10.1.2.3".to_owned(), "fd00::1".to_owned()],
            unclear: String::new(),
        };
        assert_eq!(Looking::since(start).step(sight, start), Step::Tell(told));
    }

    #[test]
    fn failures_are_tried_again_ever_less_often() {
        let mut looking = Looking::since(Instant::now());
        let waits = [(); 4].map(|()| looking.failed(0.0).as_secs());
        assert_eq!(waits, [1, 2, 4, 8]);
    }
}
