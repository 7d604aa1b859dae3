//! Whether the pod is where its tokens go: the addresses that the API server has for it, those that its node sees in
//! the network namespace of the process that has the tokens, and those of all other pods must fit together.

use std::{collections::BTreeSet, net::IpAddr};

use super::{LivePod, Refusal};

/// When addresses are verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Verification {
    Off,
    /// After the pod has its tokens.
    #[default]
    Eventual,
    /// Before.
    Strict,
}

/// What the node plugin sees of a pod's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Observed {
    /// It cannot tell, and says why.
    Unclear(String),
    /// The node's own network namespace, or one of the pod's own, and the addresses in it.
    Seen { host_network: bool, addresses: BTreeSet<IpAddr> },
}

/// A pod that has one of the addresses too, read live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OtherPod {
    pub(crate) name: String,
    pub(crate) pod: LivePod,
}

/// Everything that is known of a pod's addresses, besides what the API server says of the pod itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AddressFacts {
    pub(crate) observed: Observed,
    /// Those that may share an address.
    pub(crate) others: Vec<OtherPod>,
    /// Whether API server and node have disagreed for longer than it takes the API server to hear of a pod's new
    /// network namespace.
    pub(crate) disagreement_lasts: bool,
}

/// Whether the API server has addresses for the pod, and the node sees others.
pub(crate) fn disagree(pod: &LivePod, observed: &Observed) -> bool {
    match observed {
        Observed::Unclear(_) => false,
        Observed::Seen { host_network, addresses } => {
            *host_network != pod.host_network
                || pod.addresses.iter().any(|address| !addresses.contains(address))
        }
    }
}

/// Whether `pod` has its addresses to itself, and its node sees it there.
pub(super) fn verify(pod: &LivePod, facts: &AddressFacts) -> Result<(), Refusal> {
    let (host_network, seen) = match &facts.observed {
        Observed::Unclear(why) => return Err(Refusal::AddressUnclear(why.clone())),
        Observed::Seen { host_network, addresses } => (*host_network, addresses),
    };
    if pod.addresses.is_empty() {
        return Err(Refusal::AddressUnknown);
    }
    if disagree(pod, &facts.observed) {
        if !facts.disagreement_lasts {
            let what =
                format!("the API server has {}, its node sees {}", listed(&pod.addresses), listed(seen));
            return Err(Refusal::AddressChanging(what));
        }
        if host_network != pod.host_network {
            return Err(Refusal::HostNetworkMismatch { spec: pod.host_network });
        }
        return Err(Refusal::AddressMismatch { expected: listed(&pod.addresses), found: listed(seen) });
    }
    if pod.host_network {
        return Ok(()); // all such pods of a node have the node's addresses
    }
    let own: BTreeSet<_> = pod.addresses.union(seen).collect();
    for other in &facts.others {
        let shared = other.pod.addresses.iter().find(|address| own.contains(address));
        // A static pod was submitted by nobody: a node that makes them up must not take tokens away by them.
        let counts = other.pod.uid != pod.uid && !other.pod.has_finished() && !other.pod.is_static;
        let Some(address) = shared.filter(|_| counts) else { continue };
        if other.pod.terminating {
            return Err(Refusal::AddressChanging(format!(
                "{address} is still with {}, which ends",
                other.name
            )));
        }
        return Err(Refusal::AddressOfAnotherPod { pod: other.name.clone(), address: address.to_string() });
    }
    Ok(())
}

fn listed(addresses: &BTreeSet<IpAddr>) -> String {
    if addresses.is_empty() {
        return "none".to_owned();
    }
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authorization::{
        Purpose, Refusal,
        example::{Case, check, granted},
        namespaces::Rule,
    };

    fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// The pod has 10.0.0.7 and fd00::7, and its node sees just these.
    fn agreeing(case: &mut Case) {
        case.pod().addresses = addresses(&["10.0.0.7", "fd00::7"]);
        case.facts.addresses = Some(AddressFacts {
            observed: Observed::Seen {
                host_network: false,
                addresses: addresses(&["10.0.0.7", "fd00::7", "192.168.9.1"]),
            },
            others: Vec::new(),
            disagreement_lasts: true,
        });
    }

    fn facts(case: &mut Case) -> &mut AddressFacts {
        case.facts.addresses.as_mut().unwrap()
    }

    fn other(case: &mut Case) -> &mut LivePod {
        agreeing(case);
        let mut pod = case.pod().clone();
        pod.uid = "u-9".to_owned();
        pod.addresses = addresses(&["10.0.0.7"]);
        facts(case).others.push(OtherPod { name: "other/x".to_owned(), pod });
        &mut facts(case).others[0].pod
    }

    #[track_caller]
    fn verified(change: impl FnOnce(&mut Case)) {
        let mut case = Case::granted();
        agreeing(&mut case);
        change(&mut case);
        let claim = case.policy.claim(Purpose::Issue, &case.volume, &case.facts).unwrap();
        assert!(claim.addresses_verified);
    }

    #[test]
    fn addresses_that_agree_are_verified() {
        verified(|_| {});
    }

    #[test]
    fn nothing_is_verified_that_nobody_has_seen() {
        let case = Case::granted();
        let claim = case.policy.claim(Purpose::Issue, &case.volume, &case.facts).unwrap();
        assert!(!claim.addresses_verified);
        assert_eq!(claim.verification, Verification::Eventual);
    }

    #[test]
    fn waits_for_a_pod_that_has_no_address_yet() {
        check(
            |case| {
                agreeing(case);
                case.pod().addresses.clear();
            },
            "ADDRESS_UNKNOWN",
            "no address yet",
        );
    }

    #[test]
    fn refuses_addresses_that_the_node_does_not_see() {
        let elsewhere = |case: &mut Case| {
            agreeing(case);
            case.pod().addresses = addresses(&["10.0.0.8"]);
        };
        check(elsewhere, "ADDRESS_MISMATCH", "10.0.0.8");
        check(
            |case| {
                elsewhere(case);
                facts(case).disagreement_lasts = false;
            },
            "ADDRESS_CHANGING",
            "10.0.0.8",
        );
    }

    #[test]
    fn refuses_a_network_namespace_that_is_not_what_the_spec_says() {
        let seen_at_host = |case: &mut Case| {
            agreeing(case);
            facts(case).observed =
                Observed::Seen { host_network: true, addresses: addresses(&["10.0.0.7", "fd00::7"]) };
        };
        check(seen_at_host, "HOST_NETWORK_MISMATCH", "hostNetwork: false");
        check(
            |case| {
                agreeing(case);
                case.policy.namespaces.rules.push(Rule { host_network: true, ..Rule::default() });
                case.pod().host_network = true;
            },
            "HOST_NETWORK_MISMATCH",
            "hostNetwork: true",
        );
    }

    #[test]
    fn refuses_what_the_node_cannot_tell() {
        check(
            |case| {
                agreeing(case);
                facts(case).observed = Observed::Unclear("two network namespaces".to_owned());
            },
            "ADDRESS_UNCLEAR",
            "two network namespaces",
        );
    }

    #[test]
    fn refuses_an_address_that_another_living_pod_has() {
        check(|case| other(case).phase = "Running".to_owned(), "ADDRESS_OF_ANOTHER_POD", "other/x");
        // One that only the node sees is as bad.
        check(
            |case| other(case).addresses = addresses(&["192.168.9.1"]),
            "ADDRESS_OF_ANOTHER_POD",
            "192.168.9.1",
        );
        check(|case| other(case).terminating = true, "ADDRESS_CHANGING", "other/x");
        verified(|case| other(case).phase = "Succeeded".to_owned());
        verified(|case| other(case).addresses = addresses(&["10.0.0.9"]));
        verified(|case| other(case).uid = "u-1".to_owned());
        verified(|case| other(case).is_static = true);
    }

    #[test]
    fn pods_with_host_network_share_the_nodes_addresses() {
        verified(|case| {
            other(case).phase = "Running".to_owned();
            case.policy.namespaces.rules.push(Rule { host_network: true, ..Rule::default() });
            case.pod().host_network = true;
            facts(case).observed =
                Observed::Seen { host_network: true, addresses: addresses(&["10.0.0.7", "fd00::7"]) };
        });
    }

    #[test]
    fn a_rule_may_have_addresses_verified_otherwise() {
        let mut case = Case::granted();
        case.policy.namespaces.rules.push(Rule { verification: Some(Verification::Off), ..Rule::default() });
        agreeing(&mut case);
        case.pod().addresses = addresses(&["10.0.0.8"]);
        let claim = case.policy.claim(Purpose::Check("main"), &case.volume, &case.facts).unwrap();
        assert!(!claim.addresses_verified, "off is never verified");
        assert_eq!(case.decide(Purpose::Check("main")), granted("etl", "main"));
        case.policy.namespaces.rules.clear();
        assert!(matches!(case.decide(Purpose::Check("main")), Err(Refusal::AddressMismatch { .. })));
    }
}
