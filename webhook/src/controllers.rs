//! Named controllers: the accounts that may hand a submitter on, each from objects of certain kinds. Everybody else who
//! makes an object is its submitter. An account is here because an administrator, or Kubernetes itself, says so; that it
//! is some service account is never enough.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use identity::{
    is_object_name,
    owners::{Owner, OwnerKinds},
};
use serde::Deserialize;

use crate::kinds::Kinds;

/// All controllers of Kubernetes itself, without `--use-service-account-credentials`.
const CONTROLLER_MANAGER: &str = "system:kube-controller-manager";

/// A kind as `Deployment.apps`; the core group has no name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct KindName {
    group: String,
    kind: String,
}

impl FromStr for KindName {
    type Err = InvalidKindName;

    fn from_str(text: &str) -> Result<Self, InvalidKindName> {
        let (kind, group) = text.split_once('.').unwrap_or((text, ""));
        let fit = kind.starts_with(|c: char| c.is_ascii_uppercase())
            && kind.chars().all(|c| c.is_ascii_alphanumeric())
            && (group.is_empty() != text.contains('.'))
            && (group.is_empty() || is_object_name(group));
        if !fit {
            return Err(InvalidKindName(text.chars().take(80).collect()));
        }
        Ok(Self { group: group.to_owned(), kind: kind.to_owned() })
    }
}

impl TryFrom<String> for KindName {
    type Error = InvalidKindName;

    fn try_from(text: String) -> Result<Self, InvalidKindName> {
        text.parse()
    }
}

impl fmt::Display for KindName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, kind } = self;
        if group.is_empty() { f.write_str(kind) } else { write!(f, "{kind}.{group}") }
    }
}

/// A text that names no kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no kind like Deployment.apps, TFJob.kubeflow.org or, of the core group, ReplicationController"
)]
pub(crate) struct InvalidKindName(String);

/// An entry of `controllers` in the configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct NamedController {
    /// Kubernetes user, such as `system:serviceaccount:kubeflow:training-operator`.
    pub(crate) user: String,
    /// Kinds whose objects it works for.
    pub(crate) kinds: Vec<KindName>,
}

/// Kinds of `named` whose objects are not read, entry by entry: no seal could be held against those of such an owner.
pub(crate) fn unread(named: &[NamedController], owners: &OwnerKinds) -> Vec<String> {
    let numbered =
        (1..).zip(named).flat_map(|(number, named)| named.kinds.iter().map(move |kind| (number, kind)));
    let unread = numbered.filter(|(_, kind)| !owners.reads(&kind.group, &kind.kind));
    let mistake = |(number, kind): (u32, &KindName)| {
        format!("entry {number}: {kind} is read by nobody: add it under owners, at the controller too")
    };
    unread.map(mistake).collect()
}

/// All named controllers.
#[derive(Clone, Debug)]
pub(crate) struct NamedControllers(BTreeMap<String, BTreeSet<KindName>>);

impl NamedControllers {
    /// Those of Kubernetes and `more`; or everything that is wrong with `more`, entry by entry.
    pub(crate) fn new(kinds: &Kinds, more: Vec<NamedController>) -> Result<Self, Vec<String>> {
        let mut named = Self(BTreeMap::new());
        for kind in kinds.iter() {
            let managed = (!kind.controllers.is_empty()).then(|| CONTROLLER_MANAGER.to_owned());
            for user in kind.controllers.iter().cloned().chain(managed) {
                let name = KindName { group: kind.group.clone(), kind: kind.kind.clone() };
                named.0.entry(user).or_default().insert(name);
            }
        }
        let mut mistakes = Vec::new();
        for (number, NamedController { user, kinds: its_kinds }) in (1..).zip(more) {
            if user.is_empty() {
                mistakes.push(format!("entry {number}: the user has no name"));
            }
            if its_kinds.is_empty() {
                mistakes.push(format!("entry {number}: {user} has no kinds to work for"));
            }
            for kind in its_kinds {
                if kinds.of_kind(&kind.group, &kind.kind).is_some() {
                    named.0.entry(user.clone()).or_default().insert(kind);
                } else {
                    mistakes.push(format!(
                        "entry {number}: {kind} is not known to carry seals; describe it under workloads first"
                    ));
                }
            }
        }
        if mistakes.is_empty() { Ok(named) } else { Err(mistakes) }
    }

    /// Whether `user` works for objects of this kind.
    pub(crate) fn works_for(&self, user: &str, group: &str, kind: &str) -> bool {
        let of = |name: &KindName| name.group == group && name.kind == kind;
        self.0.get(user).is_some_and(|kinds| kinds.iter().any(of))
    }

    /// Whether `user` makes objects for `owner`.
    pub(crate) fn makes_for(&self, user: &str, owner: &Owner) -> bool {
        self.works_for(user, owner.group(), &owner.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPERATOR: &str = "system:serviceaccount:kubeflow:training-operator";

    fn named(user: &str, kinds: &[&str]) -> NamedController {
        NamedController {
            user: user.to_owned(),
            kinds: kinds.iter().map(|kind| kind.parse().unwrap()).collect(),
        }
    }

    fn controllers(more: Vec<NamedController>) -> Result<NamedControllers, Vec<String>> {
        NamedControllers::new(&Kinds::default(), more)
    }

    #[test]
    fn kubernetes_own_controllers_work_for_their_own_kinds_only() {
        let controllers = controllers(Vec::new()).unwrap();
        let account = |name: &str| format!("system:serviceaccount:kube-system:{name}");
        assert!(controllers.works_for(&account("replicaset-controller"), "apps", "ReplicaSet"));
        assert!(!controllers.works_for(&account("replicaset-controller"), "apps", "Deployment"));
        assert!(!controllers.works_for(&account("replicaset-controller"), "extensions", "ReplicaSet"));
        assert!(!controllers.works_for(&account("default"), "apps", "ReplicaSet"));
        assert!(controllers.works_for(CONTROLLER_MANAGER, "apps", "DaemonSet"));
        assert!(controllers.works_for(CONTROLLER_MANAGER, "batch", "CronJob"));
        assert!(!controllers.works_for(CONTROLLER_MANAGER, "", "Pod"));
        assert!(!controllers.works_for(
            "system:serviceaccount:jobs:replicaset-controller",
            "apps",
            "ReplicaSet"
        ));
    }

    #[test]
    fn an_operator_is_named_with_its_kinds() {
        let controllers = controllers(vec![named(OPERATOR, &["Job.batch"])]).unwrap();
        assert!(controllers.works_for(OPERATOR, "batch", "Job"));
        assert!(!controllers.works_for(OPERATOR, "batch", "CronJob"));
    }

    #[test]
    fn every_mistake_is_told() {
        let more =
            vec![named("", &["Job.batch"]), named(OPERATOR, &[]), named(OPERATOR, &["Job.example.com"])];
        let mistakes = controllers(more).unwrap_err();
        assert_eq!(mistakes.len(), 3, "{mistakes:?}");
        assert!(mistakes[2].contains("Job.example.com"), "{mistakes:?}");
        for text in ["", "deployment.apps", "Deployment.", ".apps", "Job.batch/v1", "Jo b"] {
            assert!(text.parse::<KindName>().is_err(), "{text:?}");
        }
        assert_eq!("TFJob.kubeflow.org".parse::<KindName>().unwrap().to_string(), "TFJob.kubeflow.org");
    }
}
