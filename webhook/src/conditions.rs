//! Of what the API server asks us: pods, and what makes pods, where a token is involved, and no other request. Says it as
//! rules and expressions in CEL that are made from the same table by which objects are read afterwards, so that nothing
//! is asked for that is not looked at, and nothing looked at that is not asked for. docs/workloads.md tells users.

mod expression;

use std::collections::{BTreeMap, BTreeSet};

use identity::INJECT_ANNOTATION;

use self::expression::{
    account_token_speaks_for_pod, any_of, binding_is_annotated, has_changed, involves_more_than_stamps,
    involves_token, not,
};
use crate::{
    decoration::Scope,
    kinds::{Kind, Kinds},
    metrics::Webhook,
    registration::{Entry, FailurePolicy, Requirement, Rule},
};

/// What every entry's name ends with.
const DOMAIN: &str = "hadoop-token.csi";
/// Groups of Kubernetes itself, whose kinds are asked for by one entry.
const KUBERNETES: [&str; 3] = ["", "apps", "batch"];

const CREATE: &str = "CREATE";
const UPDATE: &str = "UPDATE";
const CONNECT: &str = "CONNECT";

/// Everything that we are to be asked.
pub(crate) fn entries(kinds: &Kinds, scope: Scope) -> Vec<Entry> {
    let groups = groups(kinds);
    let mutating = groups.iter().flat_map(|group| group.mutating(scope));
    let validating = groups.iter().flat_map(|group| group.validating(scope));
    mutating.chain(validating).chain([reach(), bindings(), account_tokens()]).collect()
}

/// Kinds that are asked for together.
struct Group<'a> {
    /// What their entry is called, without [`DOMAIN`].
    name: String,
    kinds: Vec<&'a Kind>,
}

/// Pods; the rest of Kubernetes; each further API group.
fn groups(kinds: &Kinds) -> Vec<Group<'_>> {
    let mut groups: BTreeMap<&str, Vec<&Kind>> = BTreeMap::new();
    for kind in kinds.iter() {
        let name = match kind.group.as_str() {
            _ if kind.is_pod() => "pods",
            group if KUBERNETES.contains(&group) => "workloads",
            group => group,
        };
        groups.entry(name).or_default().push(kind);
    }
    groups.into_iter().map(|(name, kinds)| Group { name: name.to_owned(), kinds }).collect()
}

impl Group<'_> {
    /// Where a token is involved we have to be asked; in a namespace that asks for injection, of everything. Of the rest
    /// we may like to know, and nothing waits for us.
    fn mutating(&self, scope: Scope) -> Vec<Entry> {
        let entry = |name: &str, token: Option<String>, operator, failure_policy| Entry {
            name: format!("{}{name}.{DOMAIN}", self.name),
            webhook: Webhook::Mutate,
            rules: self.rules(if self.is_pods() { &[CREATE] } else { &[CREATE, UPDATE] }),
            match_conditions: token
                .map(named("token"))
                .into_iter()
                .chain([named("change")(self.changed())])
                .collect(),
            namespaces: vec![Requirement {
                key: INJECT_ANNOTATION.to_owned(),
                operator,
                values: vec!["true".to_owned()],
            }],
            failure_policy,
            where_tokens_are: false,
        };
        let involved = self.must_be_asked(scope);
        let others = not(&involved);
        let mut entries = vec![
            entry("", Some(involved), "NotIn", FailurePolicy::Fail),
            entry(".injected", None, "In", FailurePolicy::Fail),
        ];
        if scope == Scope::All {
            entries.push(entry(".others", Some(others), "NotIn", FailurePolicy::Ignore));
        }
        entries
    }

    /// By then, all that is injected is there. What a pod says of its submitter is kept as well as can be where nothing
    /// may wait for us.
    fn validating(&self, scope: Scope) -> Vec<Entry> {
        let mut rules = self.rules(&[CREATE, UPDATE]);
        if self.is_pods() {
            // A status may carry annotations. `pods/resize` changes neither annotations nor what is run.
            rules.push(rule(&[UPDATE], "", &["pods/ephemeralcontainers", "pods/status"]));
        }
        let entry = |name: &str, involved: Vec<(String, String)>, failure_policy| Entry {
            name: format!("{}{name}.{DOMAIN}", self.name),
            webhook: Webhook::Validate,
            rules: rules.clone(),
            match_conditions: involved.into_iter().chain([named("change")(self.changed())]).collect(),
            namespaces: Vec::new(),
            failure_policy,
            where_tokens_are: false,
        };
        let involved = self.must_be_asked(scope);
        let others = vec![named("token")(not(&involved)), named("stamps")(self.involved(involves_token))];
        let mut entries = vec![entry("", vec![named("token")(involved)], FailurePolicy::Fail)];
        if scope == Scope::All && self.is_pods() {
            entries.push(entry(".others", others, FailurePolicy::Ignore));
        }
        entries
    }

    fn is_pods(&self) -> bool {
        self.kinds.iter().all(|kind| kind.is_pod())
    }

    /// One for each API group.
    fn rules(&self, operations: &[&'static str]) -> Vec<Rule> {
        let mut resources: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for kind in &self.kinds {
            resources.entry(&kind.group).or_default().push(&kind.resource);
        }
        resources.into_iter().map(|(group, resources)| rule(operations, group, &resources)).collect()
    }

    /// True where nothing may happen without us. A launcher may carry stamps alone; but where everything is stamped,
    /// these say nothing of a token, and we ourselves are made of what carries them.
    fn must_be_asked(&self, scope: Scope) -> String {
        match scope {
            Scope::Tokens => self.involved(involves_token),
            Scope::All => self.involved(involves_more_than_stamps),
        }
    }

    /// True when what `says` says holds for the object as it is to be. For a pod, which may have a token already, what it
    /// was counts as well.
    fn involved(&self, says: fn(&Kind, &str) -> String) -> String {
        self.each(|kind| {
            if kind.is_pod() {
                format!("[object, oldObject].exists(o, {})", says(kind, "o"))
            } else {
                says(kind, "object")
            }
        })
    }

    /// False when an update touches nothing that we look at: a status, labels, a finalizer.
    fn changed(&self) -> String {
        format!("request.operation != '{UPDATE}' || {}", self.each(has_changed))
    }

    /// An expression that says for each kind what `say` says.
    fn each(&self, say: impl Fn(&Kind) -> String) -> String {
        let mut resources: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for kind in &self.kinds {
            resources.entry(say(kind)).or_default().insert(format!("'{}'", kind.resource));
        }
        let several = resources.len() > 1;
        let of = |(said, resources): (String, BTreeSet<String>)| {
            let resources: Vec<_> = resources.into_iter().collect();
            let list = resources.join(", ");
            if several { format!("request.resource.resource in [{list}] && {said}") } else { said }
        };
        any_of(resources.into_iter().map(of))
    }
}

/// Hands in others' pods. An expression sees what is to be run and not the pod, so that we have to be asked of all pods
/// of a namespace that has some with tokens.
fn reach() -> Entry {
    let deeds = ["pods/attach", "pods/exec", "pods/portforward", "pods/proxy"];
    Entry {
        name: format!("reach.{DOMAIN}"),
        webhook: Webhook::Validate,
        rules: vec![rule(&[CONNECT], "", &deeds)],
        match_conditions: Vec::new(),
        namespaces: Vec::new(),
        failure_policy: FailurePolicy::Fail,
        where_tokens_are: true,
    }
}

/// What binds a pod to a node writes its own annotations into the pod.
fn bindings() -> Entry {
    Entry {
        name: format!("bindings.{DOMAIN}"),
        webhook: Webhook::Validate,
        rules: vec![rule(&[CREATE], "", &["bindings", "pods/binding"])],
        match_conditions: vec![named("token")(binding_is_annotated())],
        namespaces: Vec::new(),
        failure_policy: FailurePolicy::Fail,
        where_tokens_are: false,
    }
}

/// A service account's token that is bound to a pod speaks for it, for as long as whoever had it made wanted: so also
/// where no token is yet. Nodes have them made all the time, and must never depend on us.
fn account_tokens() -> Entry {
    Entry {
        name: format!("account-tokens.{DOMAIN}"),
        webhook: Webhook::Validate,
        rules: vec![rule(&[CREATE], "", &["serviceaccounts/token"])],
        match_conditions: vec![named("pod")(account_token_speaks_for_pod())],
        namespaces: Vec::new(),
        failure_policy: FailurePolicy::Fail,
        where_tokens_are: false,
    }
}

fn named(name: &str) -> impl Fn(String) -> (String, String) {
    move |expression| (name.to_owned(), expression)
}

/// Of all versions: what a kind looks like differs in none of those we know.
fn rule(operations: &[&'static str], group: &str, resources: &[&str]) -> Rule {
    Rule {
        operations: operations.to_vec(),
        groups: vec![group.to_owned()],
        versions: vec!["*".to_owned()],
        resources: resources.iter().copied().map(str::to_owned).collect(),
    }
}

#[cfg(test)]
mod tests;
