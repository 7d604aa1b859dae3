//! What the pods of a namespace may ask for. Rules are tried in their order, and the first that fits counts.

use std::collections::{BTreeMap, BTreeSet};

use hadoop::HadoopUser;

use super::{LivePod, Refusal, Verification};

/// The service whose tokens there are.
const SERVICE: &str = "hdfs";

/// The operator's rules for namespaces.
#[derive(Clone, Debug, Default)]
pub(crate) struct Namespaces {
    /// Those whose pods get nothing.
    pub(crate) exempt: BTreeSet<String>,
    /// None: every other namespace may ask for everything.
    pub(crate) rules: Vec<Rule>,
}

/// What the pods of some namespaces may ask for. A list that is not there restricts nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rule {
    /// Fits any of these, if there are any ...
    pub(crate) names: Option<Vec<Pattern>>,
    /// ... and has all of these.
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) users: Option<BTreeSet<HadoopUser>>,
    pub(crate) clusters: Option<BTreeSet<String>>,
    pub(crate) services: Option<BTreeSet<String>>,
    /// Whether pods may have host network.
    pub(crate) host_network: bool,
    pub(crate) verification: Option<Verification>,
}

/// A name in which each `*` stands for any letters or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern(String);

impl Pattern {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    fn fits(&self, name: &str) -> bool {
        let Some((start, rest)) = self.0.split_once('*') else { return self.0 == name };
        let (middle, end) = rest.rsplit_once('*').map_or(("", rest), |(middle, end)| (middle, end));
        let Some(inner) = name.strip_prefix(start).and_then(|name| name.strip_suffix(end)) else {
            return false;
        };
        // Each part at its first place leaves the most to those that follow.
        let mut left = inner;
        middle.split('*').all(|part| {
            left.find(part).and_then(|at| left.get(at + part.len()..)).map(|after| left = after).is_some()
        })
    }
}

impl Namespaces {
    /// Whether the rules cannot be told apart for namespace `name` without its labels.
    pub(crate) fn ask_for_labels(&self, name: &str) -> bool {
        !self.exempt.contains(name)
            && self.rules.iter().any(|rule| rule.fits_name(name) && !rule.labels.is_empty())
    }

    /// The rule for namespace `name`; none when there are no rules at all.
    pub(super) fn rule(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<Option<&Rule>, Refusal> {
        if self.exempt.contains(name) {
            return Err(Refusal::NamespaceExempt(name.to_owned()));
        }
        if self.rules.is_empty() {
            return Ok(None);
        }
        let fits = |rule: &&Rule| {
            rule.fits_name(name) && rule.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
        };
        let rule =
            self.rules.iter().find(fits).ok_or_else(|| Refusal::NamespaceNotEnrolled(name.to_owned()))?;
        Ok(Some(rule))
    }
}

impl Rule {
    fn fits_name(&self, name: &str) -> bool {
        self.names.as_ref().is_none_or(|names| names.iter().any(|pattern| pattern.fits(name)))
    }
}

/// Whether pods of `namespace`, for which there is `rule`, may have tokens of `user` at `cluster`.
pub(super) fn admit(
    rule: Option<&Rule>,
    namespace: &str,
    user: &HadoopUser,
    cluster: &str,
) -> Result<(), Refusal> {
    let Some(rule) = rule else { return Ok(()) };
    let namespace = || namespace.to_owned();
    if rule.users.as_ref().is_some_and(|users| !users.contains(user)) {
        return Err(Refusal::NamespaceUserNotAllowed { namespace: namespace(), user: user.clone() });
    }
    if rule.clusters.as_ref().is_some_and(|clusters| !clusters.contains(cluster)) {
        return Err(Refusal::NamespaceClusterNotAllowed {
            namespace: namespace(),
            cluster: cluster.to_owned(),
        });
    }
    if rule.services.as_ref().is_some_and(|services| !services.contains(SERVICE)) {
        return Err(Refusal::NamespaceServiceNotAllowed { namespace: namespace(), service: SERVICE });
    }
    Ok(())
}

/// Whether pods of `namespace`, for which there is `rule`, may be where `pod` is.
pub(super) fn admit_network(rule: Option<&Rule>, namespace: &str, pod: &LivePod) -> Result<(), Refusal> {
    if pod.host_network && !rule.is_some_and(|rule| rule.host_network) {
        return Err(Refusal::HostNetworkNotAllowed(namespace.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authorization::example::{Case, check, decided, granted, user};

    fn fits(pattern: &str, name: &str) -> bool {
        Pattern::new(pattern.to_owned()).fits(name)
    }

    #[test]
    fn a_star_stands_for_any_letters_or_none() {
        for (pattern, name) in [
            ("jobs", "jobs"),
            ("team-*", "team-a"),
            ("team-*", "team-"),
            ("*", "x"),
            ("*-dev", "a-dev"),
            ("a*b*c", "abc"),
            ("a*b*c", "a-b-b-c"),
            ("**", "x"),
            ("a*a", "aa"),
            ("a*b*a", "abba"),
        ] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("jobs", "jobs2"),
            ("team-*", "team"),
            ("*-dev", "dev"),
            ("a*a", "a"),
            ("a*b*c", "acb"),
            ("", "x"),
            ("a*bc*c", "abc"),
        ] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
    }

    fn rule(case: &mut Case) -> &mut Rule {
        if case.policy.namespaces.rules.is_empty() {
            case.policy
                .namespaces
                .rules
                .push(Rule { names: Some(vec![Pattern::new("jobs".to_owned())]), ..Rule::default() });
        }
        case.policy.namespaces.rules.first_mut().unwrap()
    }

    #[test]
    fn exempt_namespaces_get_nothing() {
        check(|case| case.policy.namespaces.exempt.extend(["jobs".to_owned()]), "NAMESPACE_EXEMPT", "jobs");
    }

    #[test]
    fn where_there_are_rules_one_has_to_fit() {
        assert_eq!(decided(|case| rule(case).labels.clear()), granted("etl", "main"));
        check(
            |case| rule(case).names = Some(vec![Pattern::new("team-*".to_owned())]),
            "NAMESPACE_NOT_ENROLLED",
            "namespaces.rules",
        );
    }

    #[test]
    fn a_rule_may_ask_for_labels_and_only_then_are_they_needed() {
        let labelled = |case: &mut Case| {
            rule(case).labels = [("team".to_owned(), "data".to_owned())].into();
            case.facts.namespace_labels = [("team".to_owned(), "data".to_owned())].into();
        };
        assert_eq!(decided(labelled), granted("etl", "main"));
        check(
            |case| {
                labelled(case);
                case.facts.namespace_labels.clear();
            },
            "NAMESPACE_NOT_ENROLLED",
            "jobs",
        );
        let mut case = Case::granted();
        assert!(!case.policy.namespaces.ask_for_labels("jobs"));
        labelled(&mut case);
        assert!(case.policy.namespaces.ask_for_labels("jobs"));
        assert!(!case.policy.namespaces.ask_for_labels("other"));
    }

    #[test]
    fn the_first_rule_that_fits_counts() {
        check(
            |case| {
                rule(case).users = Some([user("ads")].into());
                case.policy.namespaces.rules.push(Rule::default());
            },
            "NAMESPACE_USER_NOT_ALLOWED",
            "etl",
        );
    }

    #[test]
    fn a_rule_restricts_users_clusters_and_services() {
        check(|case| rule(case).users = Some([user("ads")].into()), "NAMESPACE_USER_NOT_ALLOWED", "etl");
        check(
            |case| rule(case).clusters = Some(["spare".to_owned()].into()),
            "NAMESPACE_CLUSTER_NOT_ALLOWED",
            "main",
        );
        check(
            |case| rule(case).services = Some(["yarn".to_owned()].into()),
            "NAMESPACE_SERVICE_NOT_ALLOWED",
            "hdfs",
        );
        let allowed = |case: &mut Case| {
            rule(case).users = Some([user("etl")].into());
            rule(case).clusters = Some(["main".to_owned()].into());
            rule(case).services = Some(["hdfs".to_owned()].into());
        };
        assert_eq!(decided(allowed), granted("etl", "main"));
    }

    #[test]
    fn pods_with_host_network_need_a_rule_that_allows_it() {
        check(|case| case.pod().host_network = true, "HOST_NETWORK_NOT_ALLOWED", "hostNetwork");
        check(
            |case| {
                case.pod().host_network = true;
                rule(case).labels.clear();
            },
            "HOST_NETWORK_NOT_ALLOWED",
            "jobs",
        );
        let allowed = |case: &mut Case| {
            case.pod().host_network = true;
            rule(case).host_network = true;
        };
        assert_eq!(decided(allowed), granted("etl", "main"));
    }
}
