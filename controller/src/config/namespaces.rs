//! The configuration's `namespaces`: what the pods of which ones may ask for.

use std::collections::{BTreeMap, BTreeSet};

use identity::is_object_name;
use process::config::Mistakes;
use serde::Deserialize;

use super::VerificationName;
use crate::authorization::{Namespaces, Pattern, Rule};

/// Namespaces of Kubernetes itself.
const EXEMPT: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

/// `namespaces`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Section {
    exempt: Option<Vec<String>>,
    rules: Option<Vec<RuleSection>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RuleSection {
    names: Option<Vec<String>>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    users: Option<Vec<String>>,
    clusters: Option<Vec<String>>,
    services: Option<Vec<String>>,
    #[serde(default)]
    host_network: bool,
    address_verification: Option<VerificationName>,
}

impl Section {
    /// The rules that it means.
    pub(super) fn check(self, clusters: &BTreeSet<String>, mistakes: &mut Mistakes) -> Namespaces {
        let exempt = self.exempt.unwrap_or_else(|| EXEMPT.map(str::to_owned).to_vec());
        let exempt = mistakes.not_empty("namespaces.exempt", Some(exempt)).unwrap_or_default();
        for name in &exempt {
            mistakes.require("namespaces.exempt", is_object_name(name), &format!("{name:?} is not a name"));
        }
        let rules = mistakes.not_empty("namespaces.rules", self.rules).unwrap_or_default();
        let rules = (1..).zip(rules).map(|(number, rule)| rule.check(number, clusters, mistakes)).collect();
        Namespaces { exempt: exempt.into_iter().collect(), rules }
    }
}

impl RuleSection {
    fn check(self, number: usize, clusters: &BTreeSet<String>, mistakes: &mut Mistakes) -> Rule {
        let key = |name: &str| format!("namespaces.rules[{number}].{name}");
        mistakes.require(
            &key("names"),
            self.names.is_some() || !self.labels.is_empty(),
            "say which namespaces are meant, by names or labels",
        );
        let names = mistakes.not_empty(&key("names"), self.names);
        for name in names.iter().flatten() {
            // What a star may stand for, put in its place, must leave a name.
            let fits = is_object_name(&name.replace('*', "a"));
            mistakes.require(&key("names"), fits, &format!("{name:?} is not a name with or without *"));
        }
        let users = mistakes.not_empty(&key("users"), self.users);
        let users = users.map(|users| {
            users.into_iter().filter_map(|user| mistakes.take(&key("users"), user.parse())).collect()
        });
        let named = mistakes.not_empty(&key("clusters"), self.clusters);
        for cluster in named.iter().flatten() {
            let known = clusters.contains(cluster);
            mistakes.require(&key("clusters"), known, &format!("{cluster:?} is not among clusters"));
        }
        let services = mistakes.not_empty(&key("services"), self.services);
        Rule {
            names: names.map(|names| names.into_iter().map(Pattern::new).collect()),
            labels: self.labels,
            users,
            clusters: named.map(|clusters| clusters.into_iter().collect()),
            services: services.map(|services| services.into_iter().collect()),
            host_network: self.host_network,
            verification: self.address_verification.map(Into::into),
        }
    }
}
