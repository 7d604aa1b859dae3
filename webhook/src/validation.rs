//! What must not become so, whoever wants it: volumes that could not work, annotations changed behind the seal, and
//! hands of others in a pod that holds a token. Decides on the objects as they come out of all mutation. Reads nothing:
//! the pod of an exec is handed in.

mod annotations;
mod reach;
mod volumes;

use std::collections::BTreeSet;

use identity::INJECT_ANNOTATION;
use json_patch::jsonptr::Pointer;
use kube::core::admission::Operation;
use serde::Deserialize;
use serde_json::Value;

use self::reach::Deed;
use crate::{
    admission::{Allowed, Denial, Question, Verdict},
    injection::{self, Request},
    kinds::{Kind, Kinds},
    origin::bound_pod,
    own_seal::Verifier,
};

/// The group of all nodes.
const NODES: &str = "system:nodes";

/// Who else may reach into pods that hold a token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Interactive {
    /// Kubernetes groups whose members may what the submitter may. The group `system:authenticated` is everybody.
    pub(crate) groups: BTreeSet<String>,
}

/// What validation goes by.
#[derive(Clone, Copy)]
pub(crate) struct Validation<'a> {
    pub(crate) kinds: &'a Kinds,
    pub(crate) interactive: &'a Interactive,
    pub(crate) injection: &'a injection::Config,
    pub(crate) verifier: Verifier<'a>,
}

/// The pod, namespace and name, that has to be read before this can be decided.
pub(crate) fn pod_to_read(question: &Question) -> Option<(&str, &str)> {
    let request = &question.request;
    let name = match reached(question)? {
        // Here the request says how the pod is to be spoken to as well, like "https:NAME:8443" or "NAME:80".
        Deed::Proxy => match request.name.split(':').collect::<Vec<_>>().as_slice() {
            [_, name, _] | [name, _] => *name,
            _ => &request.name,
        },
        Deed::AccountToken => question.object.pointer("/spec/boundObjectRef/name")?.as_str()?,
        _ => &request.name,
    };
    Some((request.namespace.as_deref().unwrap_or_default(), name))
}

/// The pod that reaches into another of its namespace, when it is one that asks: name and UID.
pub(crate) fn calling_pod(question: &Question) -> Option<(String, String)> {
    reached(question)?;
    bound_pod(&question.request.user_info, question.request.namespace.as_deref().unwrap_or_default())
}

impl Validation<'_> {
    /// Decides. `pod` is the one that [`pod_to_read`] names, as it is now, if it exists; `caller` the one of
    /// [`calling_pod`].
    pub(crate) fn decide(&self, question: &Question, pod: Option<&Value>, caller: Option<&Value>) -> Verdict {
        let decided = match reached(question) {
            Some(deed) => self.reach(question, pod, caller, deed),
            None => self.change(question),
        };
        decided.map_or_else(Verdict::Denied, Verdict::Allowed)
    }

    /// Somebody reaches into a running pod. There is nothing to protect in one that does not exist; the API server
    /// says that it does not. A service account's token is another matter: that may be made a moment later.
    fn reach(
        &self,
        question: &Question,
        pod: Option<&Value>,
        caller: Option<&Value>,
        deed: Deed,
    ) -> Result<Allowed, Denial> {
        if deed == Deed::AccountToken {
            reach::binds_this_pod(question, pod)?;
        }
        let judge = |pod| reach::judge(self.interactive, self.verifier, question, pod, caller, deed);
        let reach = pod.map(judge).transpose()?;
        Ok(Allowed { audit: reach.flatten().into_iter().collect(), ..Allowed::default() })
    }

    fn change(&self, question: &Question) -> Result<Allowed, Denial> {
        let Question { request, object, old_object } = question;
        let resource = request.resource.resource.as_str();
        let Some(kind) = self.kinds.of_resource(&request.resource.group, resource) else {
            let binding = request.resource.group.is_empty() && resource == "bindings";
            return if binding { annotations::binding(object) } else { Ok(Allowed::default()) };
        };
        match (&request.operation, request.sub_resource.as_deref().unwrap_or_default()) {
            (Operation::Create, "binding") if kind.is_pod() => annotations::binding(object),
            (Operation::Create, "") => {
                let allowed = self.pods_that_come(kind, object, None)?;
                if kind.is_pod() {
                    volumes::sealed(object, self.verifier)?;
                }
                Ok(allowed)
            }
            // Any subresource whose object is the pod itself: a status too may carry other annotations.
            (Operation::Update, _) if kind.is_pod() => {
                annotations::unchanged(old_object, object)?;
                let audit = match Deed::between(old_object, object) {
                    Some(deed) => {
                        reach::judge(self.interactive, self.verifier, question, old_object, None, deed)?
                    }
                    None => None,
                };
                let allowed = self.pods_that_come(kind, object, Some(old_object))?;
                Ok(Allowed { audit: audit.into_iter().collect(), ..allowed })
            }
            (Operation::Update, "") => self.pods_that_come(kind, object, Some(old_object)),
            _ => Ok(Allowed::default()),
        }
    }

    /// Whether pods that come from `object` can work. What was wrong before is not refused again: an object that is
    /// older than this webhook must still be scaled, finished and deleted.
    fn pods_that_come(&self, kind: &Kind, object: &Value, old: Option<&Value>) -> Result<Allowed, Denial> {
        let before = old.map(|old| self.problems(kind, old)).unwrap_or_default();
        if let Some(problem) = self.problems(kind, object).into_iter().find(|found| !before.contains(found)) {
            return Err(problem);
        }
        // Once is enough.
        let warnings = if old.is_none() { Self::warnings(kind, object) } else { Vec::new() };
        Ok(Allowed { warnings, ..Allowed::default() })
    }

    /// What is written and comes to nothing.
    fn warnings(kind: &Kind, object: &Value) -> Vec<String> {
        let carriers = kind.carriers(object);
        let unknown =
            carriers.iter().flat_map(|carrier| annotations::unknown(&carrier.annotations, carrier.current));
        let mut warnings: Vec<String> = unknown.collect();
        // Only of a pod is it known by now whether its namespace asks for it.
        let for_nothing =
            carriers.iter().filter(|found| kind.is_pod() && found.token_volumes().next().is_none());
        warnings
            .extend(for_nothing.flat_map(|found| Request::in_carrier(found).details()).map(|annotation| {
            format!(
                "annotation {annotation} comes to nothing, because {INJECT_ANNOTATION}: \"true\" is not there"
            )
        }));
        warnings.dedup();
        warnings
    }

    fn problems(&self, kind: &Kind, object: &Value) -> Vec<Denial> {
        let mut problems = Vec::new();
        for carrier in kind.carriers(object) {
            problems.extend(Request::in_carrier(&carrier).check(self.injection).err());
            problems.extend(volumes::problems(&carrier));
        }
        problems
    }
}

/// How somebody reaches into a running pod without changing it.
fn reached(question: &Question) -> Option<Deed> {
    let request = &question.request;
    let sub = request.sub_resource.as_deref().filter(|_| request.resource.group.is_empty())?;
    match (&request.operation, request.resource.resource.as_str(), sub) {
        (Operation::Connect, "pods", "exec") => Some(Deed::Exec),
        (Operation::Connect, "pods", "attach") => Some(Deed::Attach),
        (Operation::Connect, "pods", "portforward") => Some(Deed::PortForward),
        (Operation::Connect, "pods", "proxy") => Some(Deed::Proxy),
        (Operation::Create, "serviceaccounts", "token") => {
            is_bound_to_a_pod(question).then_some(Deed::AccountToken)
        }
        _ => None,
    }
}

/// Whether somebody wants a service account's token that speaks for a pod. A node's kubelet does so all the time, and
/// the API server gives it those of its own pods only.
fn is_bound_to_a_pod(question: &Question) -> bool {
    let bound = question.object.pointer("/spec/boundObjectRef/kind").and_then(Value::as_str);
    let is_node = question.request.user_info.groups.iter().flatten().any(|group| group == NODES);
    bound == Some("Pod") && !is_node
}

/// A place as people write it: `spec.tasks[0].template`.
fn place(at: &Pointer) -> String {
    at.tokens().fold(String::new(), |text, token| {
        let token = token.decoded();
        match token.parse::<usize>() {
            Ok(index) => format!("{text}[{index}]"),
            Err(_) if text.is_empty() => token.into_owned(),
            Err(_) => format!("{text}.{token}"),
        }
    })
}

#[cfg(test)]
mod tests;
