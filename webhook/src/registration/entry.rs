//! An entry of a webhook configuration: of what the API server asks us, and what it does when we cannot be asked.
//! Every field is written that the API server would fill in, so that what is there can be compared with what should be.

use std::collections::BTreeSet;

use base64::{Engine, engine::general_purpose::STANDARD};
use identity::is_object_name;
use serde_json::{Value, json};

use crate::metrics::Webhook;

/// Of what we are asked by one of our webhooks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// A domain name of at least three parts, such as `pods.hadoop-token.csi`; no two of a webhook have the same.
    pub(crate) name: String,
    /// By which of them.
    pub(crate) webhook: Webhook,
    pub(crate) rules: Vec<Rule>,
    /// Names and expressions in CEL that all have to be true, at most 64.
    pub(crate) match_conditions: Vec<(String, String)>,
    /// What namespaces have to be like, besides not being exempt.
    pub(crate) namespaces: Vec<Requirement>,
    pub(crate) failure_policy: FailurePolicy,
    /// Whether it is for namespaces only in which pods may hold tokens.
    pub(crate) where_tokens_are: bool,
}

/// Operations on resources. All in namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) operations: Vec<&'static str>,
    pub(crate) groups: Vec<String>,
    pub(crate) versions: Vec<String>,
    /// With subresources, as in `pods/exec`.
    pub(crate) resources: Vec<String>,
}

/// On a namespace's labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Requirement {
    pub(crate) key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub(crate) operator: &'static str,
    /// None for the last two.
    pub(crate) values: Vec<String>,
}

/// What becomes of a request when we cannot be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailurePolicy {
    /// It is refused.
    Fail,
    /// It goes on.
    Ignore,
}

/// The namespace's own name, which nobody can change.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// What all entries have in common.
#[derive(Clone, Debug)]
pub(crate) struct Common {
    pub(crate) address: Address,
    /// Namespaces of which we are asked nothing.
    pub(crate) exempt_namespaces: Vec<String>,
    /// How long the API server waits for an answer.
    pub(crate) timeout_seconds: u8,
}

/// Where the API server finds us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Service {
        namespace: String,
        name: String,
        port: u16,
    },
    /// Without a path.
    Url(String),
}

impl Address {
    /// The name that our certificate has to be for.
    pub(crate) fn host(&self) -> String {
        match self {
            Self::Service { namespace, name, .. } => format!("{name}.{namespace}.svc"),
            Self::Url(url) => {
                let rest = url.strip_prefix("https://").unwrap_or(url);
                let authority = rest.split('/').next().unwrap_or_default();
                let host = match authority.strip_prefix('[') {
                    Some(address) => address.split(']').next(),
                    None => authority.split(':').next(),
                };
                host.unwrap_or_default().to_owned()
            }
        }
    }

    fn client(&self, webhook: Webhook) -> Value {
        let path = format!("/{}", webhook.name());
        match self {
            Self::Service { namespace, name, port } => {
                json!({"service": {"namespace": namespace, "name": name, "port": port, "path": path}})
            }
            Self::Url(url) => json!({"url": format!("{}{path}", url.trim_end_matches('/'))}),
        }
    }
}

impl Entry {
    /// As the API server has it. Without `authorities`, in PEM, whoever looks after them writes them. `namespaces` are
    /// those in which pods may hold tokens.
    pub(crate) fn rendered(
        &self,
        common: &Common,
        authorities: Option<&str>,
        namespaces: &BTreeSet<String>,
    ) -> Value {
        let mut client = common.address.client(self.webhook);
        if let Some(authorities) = authorities.filter(|authorities| !authorities.is_empty()) {
            set(&mut client, "caBundle", json!(STANDARD.encode(authorities)));
        }
        let exempt = common.exempt_namespaces.clone();
        let exempt = Requirement { key: NAME_LABEL.to_owned(), operator: "NotIn", values: exempt };
        let exempt = Some(&exempt).filter(|exempt| !exempt.values.is_empty());
        let with_tokens = self.where_tokens_are.then(|| Requirement {
            key: NAME_LABEL.to_owned(),
            operator: "In",
            // A list has to have an item; no namespace has no name.
            values: if namespaces.is_empty() {
                vec![String::new()]
            } else {
                namespaces.iter().cloned().collect()
            },
        });
        let requirements = exempt.into_iter().chain(&with_tokens).chain(&self.namespaces);
        let namespaces: Vec<Value> = requirements.map(Requirement::rendered).collect();
        let rules: Vec<Value> = self.rules.iter().map(Rule::rendered).collect();
        let mut entry = json!({
            "name": self.name,
            "admissionReviewVersions": ["v1"],
            "clientConfig": client,
            "failurePolicy": match self.failure_policy {
                FailurePolicy::Fail => "Fail",
                FailurePolicy::Ignore => "Ignore",
            },
            "matchPolicy": "Equivalent",
            "namespaceSelector": if namespaces.is_empty() { json!({}) } else { json!({"matchExpressions": namespaces}) },
            "objectSelector": {},
            "rules": rules,
            "sideEffects": "None",
            "timeoutSeconds": common.timeout_seconds,
        });
        if !self.match_conditions.is_empty() {
            let conditions = self.match_conditions.iter();
            let conditions =
                conditions.map(|(name, expression)| json!({"name": name, "expression": expression}));
            set(&mut entry, "matchConditions", conditions.collect());
        }
        if self.webhook == Webhook::Mutate {
            set(&mut entry, "reinvocationPolicy", json!("IfNeeded"));
        }
        entry
    }

    /// The namespaces with tokens in an entry of this name as the API server has it; nothing where it does not say.
    pub(crate) fn namespaces_in(&self, entries: &[Value]) -> Option<BTreeSet<String>> {
        let same = entries.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some(&self.name));
        let requirements =
            same.and_then(|entry| entry.pointer("/namespaceSelector/matchExpressions")?.as_array());
        let is = |requirement: &Value, key: &str, text: &str| {
            requirement.get(key).and_then(Value::as_str) == Some(text)
        };
        let mut lists = requirements
            .into_iter()
            .flatten()
            .filter(|requirement| is(requirement, "key", NAME_LABEL) && is(requirement, "operator", "In"))
            .filter_map(|requirement| requirement.get("values")?.as_array());
        let names = lists.next()?.iter().filter_map(Value::as_str);
        Some(names.filter(|name| is_object_name(name)).map(str::to_owned).collect())
    }
}

impl Rule {
    fn rendered(&self) -> Value {
        json!({
            "operations": self.operations,
            "apiGroups": self.groups,
            "apiVersions": self.versions,
            "resources": self.resources,
            "scope": "Namespaced",
        })
    }
}

impl Requirement {
    fn rendered(&self) -> Value {
        let mut requirement = json!({"key": self.key, "operator": self.operator});
        if !self.values.is_empty() {
            set(&mut requirement, "values", json!(self.values));
        }
        requirement
    }
}

fn set(object: &mut Value, key: &str, value: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert(key.to_owned(), value);
    }
}
