//! Who submitted an object: whoever asks for it, unless it is somebody who is known to hand another's submission on. Then
//! the seal says who that was, and has to be the one of the object above. Decides on what was read; reads nothing.

use std::collections::{BTreeMap, BTreeSet};

use identity::{
    GROUPS_ANNOTATION, SEAL_ANNOTATION, SUBMITTER_ANNOTATION, WORKLOAD_SEAL_ANNOTATION,
    owners::{Owner, OwnerChain, OwnerReference, controller_of},
    seal::{KeySet, ObjectName, WorkloadSeal, groups_digest},
};
use k8s_openapi::api::authentication::v1::UserInfo;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    controllers::NamedControllers,
    own_seal::{Verifier, lives},
    refusal::Refusal,
};

/// What the API server says of who shows a token that is bound to a pod.
const BOUND_POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const BOUND_POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// What every service account's user begins with.
const ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// An entry of `inherit` in the configuration: pods whose submitter is that of what they make, as Spark's drivers make
/// their executors.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Inherit {
    /// Their namespace.
    pub(crate) namespace: String,
    /// Their service accounts; all when none is named.
    #[serde(default)]
    pub(crate) service_accounts: BTreeSet<String>,
}

/// By whom an object is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// By its submitter.
    Directly,
    /// By a named controller, for this owner.
    ByController(Owner),
    /// By a pod that may hand its submitter on.
    ByPod {
        /// Name of the pod, in the object's own namespace.
        name: String,
        /// UID of the pod.
        uid: String,
    },
}

/// The submitter of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) submitter: String,
    pub(crate) groups: Vec<String>,
    /// Headless accounts that may be asked for; none if any may, because it is not decided here who may use which.
    pub(crate) do_as: Option<BTreeSet<String>>,
    /// The workload's seal that says so, if it was handed on.
    pub(crate) handed_on: Option<String>,
    /// For the audit log.
    pub(crate) how: How,
}

/// How a submitter is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Authenticated,
    PassedOn,
    Inherited,
}

impl How {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Authenticated => "authenticated",
            Self::PassedOn => "passed-on",
            Self::Inherited => "inherited",
        }
    }
}

/// By whom `object` of `namespace` is asked for, `user` being who asks.
pub(crate) fn asked(
    user: &UserInfo,
    namespace: &str,
    object: &Value,
    controllers: &NamedControllers,
    inherit: &[Inherit],
) -> Asked {
    let name = user.username.as_deref().unwrap_or_default();
    if let Some(owner) = made_for(name, object, controllers) {
        return Asked::ByController(owner);
    }
    let is_allowed = |entry: &Inherit| {
        let any = entry.service_accounts.is_empty();
        let named =
            || account_of(user, namespace).is_some_and(|account| entry.service_accounts.contains(account));
        entry.namespace == namespace && (any || named())
    };
    match bound_pod(user, namespace) {
        Some((name, uid)) if inherit.iter().any(is_allowed) => Asked::ByPod { name, uid },
        _ => Asked::Directly,
    }
}

/// For whom a named controller makes `object`: its controller. Where nobody is called that, because the operator does not
/// write it down, it is the only one of the owners whose kind this one works for; among two nobody is guessed.
fn made_for(user: &str, object: &Value, controllers: &NamedControllers) -> Option<Owner> {
    if let Some(owner) = controller(object) {
        return controllers.makes_for(user, &owner).then_some(owner);
    }
    let mut its = owners(object).filter(|owner| controllers.makes_for(user, owner));
    its.next().filter(|_| its.next().is_none())
}

/// Everything that owns an object, as it says itself.
fn owners(object: &Value) -> impl Iterator<Item = Owner> {
    references(object).map(|OwnerReference { api_version, kind, name, uid, .. }| Owner {
        api_version,
        kind,
        name,
        uid,
    })
}

/// Whether `user`, a named controller, made `pod` of a workload in `namespace` whose seal it carries, and left it to
/// another webhook to write down who owns it, as Spark's operator does.
pub(crate) fn awaits_its_owner(
    user: &UserInfo,
    namespace: &str,
    pod: &Value,
    controllers: &NamedControllers,
    keys: &KeySet,
) -> bool {
    let user = user.username.as_deref().unwrap_or_default();
    let annotations = pod.pointer("/metadata/annotations");
    let seal = annotations.and_then(|map| map.get(SEAL_ANNOTATION)?.as_str());
    let is_of_its_kinds = |seal: WorkloadSeal| {
        seal.namespace == namespace && controllers.works_for(user, &seal.workload.group, &seal.workload.kind)
    };
    controller(pod).is_none()
        && !owners(pod).any(|owner| controllers.makes_for(user, &owner))
        && seal.and_then(|seal| keys.verify_workload(seal).ok()).is_some_and(is_of_its_kinds)
}

/// The service account of `namespace` that a user is.
fn account_of<'a>(user: &'a UserInfo, namespace: &str) -> Option<&'a str> {
    let (home, account) = user.username.as_deref()?.strip_prefix(ACCOUNT_PREFIX)?.split_once(':')?;
    (home == namespace).then_some(account)
}

/// The pod of `namespace` to which the token is bound that a user shows: name and UID.
pub(crate) fn bound_pod(user: &UserInfo, namespace: &str) -> Option<(String, String)> {
    account_of(user, namespace)?;
    let bound = |key: &str| match user.extra.as_ref()?.get(key)?.as_slice() {
        [value] => Some(value.clone()),
        _ => None,
    };
    Some((bound(BOUND_POD_NAME)?, bound(BOUND_POD_UID)?))
}

/// The controller of an object, as it says itself.
pub(crate) fn controller(object: &Value) -> Option<Owner> {
    controller_of(references(object).collect())
}

fn references(object: &Value) -> impl Iterator<Item = OwnerReference> {
    let references = object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    references.into_iter().flatten().filter_map(|entry| OwnerReference::deserialize(entry).ok())
}

impl Origin {
    /// Of whoever asks.
    pub(crate) fn authenticated(user: &UserInfo) -> Self {
        Self {
            submitter: user.username.clone().unwrap_or_default(),
            groups: user.groups.clone().unwrap_or_default(),
            do_as: None,
            handed_on: None,
            how: How::Authenticated,
        }
    }

    /// Of what a controller hands on: `carried` are the annotations that the object came with, `above` is its owner, with
    /// the seals that this carries, and `chain` the owners from there upwards.
    pub(crate) fn passed_on(
        controller: &str,
        carried: Option<&Map<String, Value>>,
        (above, seals): (&Owner, &BTreeSet<String>),
        chain: &OwnerChain,
        namespace: &str,
        keys: &KeySet,
    ) -> Result<Self, Refusal> {
        let text = |key: &str| carried?.get(key)?.as_str();
        let (owner, controller) = (above.clone(), controller.to_owned());
        // A pod that is looked at once more, because another webhook changed it, has a seal of its own by now. That one is
        // nobody's word: whoever has the webhook's ear could have had it made.
        let brought = text(SEAL_ANNOTATION).filter(|seal| keys.verify(seal).is_err());
        let Some(brought) = brought.or_else(|| text(WORKLOAD_SEAL_ANNOTATION)) else {
            return Err(Refusal::SealMissing { controller, owner });
        };
        if !seals.contains(brought) {
            return Err(Refusal::SealNotOfOwner { controller, owner });
        }
        let seal = keys
            .verify_workload(brought)
            .map_err(|error| Refusal::SealInvalid { owner: owner.clone(), error })?;
        if seal.namespace != namespace || !chain.links.iter().any(|link| is_of(&seal, link)) {
            let WorkloadSeal { namespace, workload, .. } = &seal;
            let name = match &workload.name {
                ObjectName::Name(name) => name.clone(),
                ObjectName::GenerateName(prefix) => format!("{prefix}…"),
            };
            let sealed = format!("{} {namespace}/{name}", workload.kind);
            return Err(Refusal::SealOfAnotherWorkload { owner, sealed });
        }
        if text(SUBMITTER_ANNOTATION) != Some(&*seal.submitter) {
            return Err(Refusal::SubmitterChanged(SUBMITTER_ANNOTATION));
        }
        let groups = groups(carried, &seal.groups_digest)?;
        let handed_on = Some(brought.to_owned());
        Ok(Self { submitter: seal.submitter, groups, do_as: Some(seal.do_as), handed_on, how: How::PassedOn })
    }

    /// Of the pod that asks, which was found to be `pod`.
    pub(crate) fn inherited(
        (name, uid): (&str, &str),
        namespace: &str,
        pod: Option<&Value>,
        verifier: Verifier<'_>,
    ) -> Result<Self, Refusal> {
        let unproven =
            |problem: String| Refusal::ParentPodUnproven { pod: format!("{namespace}/{name}"), problem };
        let pod = pod.ok_or_else(|| unproven("does not exist".to_owned()))?;
        if pod.pointer("/metadata/uid").and_then(Value::as_str) != Some(uid) {
            return Err(unproven("is another one by now".to_owned()));
        }
        if !lives(pod) {
            return Err(unproven("has ended, or ends".to_owned()));
        }
        let seal =
            verifier.own_seal(pod).map_err(|problem| unproven(format!("cannot be believed: {problem}")))?;
        let annotations = pod.pointer("/metadata/annotations").and_then(Value::as_object);
        let text = |key: &str| annotations?.get(key)?.as_str();
        if text(SUBMITTER_ANNOTATION) != Some(&*seal.submitter) {
            return Err(Refusal::SubmitterChanged(SUBMITTER_ANNOTATION));
        }
        let groups = groups(annotations, &seal.groups_digest)?;
        Ok(Self {
            submitter: seal.submitter,
            groups,
            do_as: Some(seal.do_as),
            handed_on: None,
            how: How::Inherited,
        })
    }

    /// Whether all of `accounts` may be asked for.
    pub(crate) fn may_ask_for(&self, accounts: &BTreeSet<String>) -> Result<(), Refusal> {
        let Some(sealed) = &self.do_as else { return Ok(()) };
        accounts
            .difference(sealed)
            .next()
            .map_or(Ok(()), |account| Err(Refusal::DoAsNotSealed(account.clone())))
    }

    /// What the API server is to write into its audit log.
    pub(crate) fn audit(&self) -> BTreeMap<&'static str, String> {
        BTreeMap::from([("submitter", self.submitter.clone()), ("origin", self.how.name().to_owned())])
    }
}

/// Whether a seal is that of `link`, or of what it was made from under a generated name.
fn is_of(seal: &WorkloadSeal, link: &Owner) -> bool {
    let workload = &seal.workload;
    let fits = match &workload.name {
        ObjectName::Name(name) => *name == link.name,
        ObjectName::GenerateName(prefix) => workload.name.fits(&link.name, Some(prefix)),
    };
    fits && workload.group == link.group() && workload.kind == link.kind
}

fn groups(annotations: Option<&Map<String, Value>>, digest: &str) -> Result<Vec<String>, Refusal> {
    let shown = annotations.and_then(|map| map.get(GROUPS_ANNOTATION)?.as_str());
    let groups: Option<Vec<String>> = shown.and_then(|text| serde_json::from_str(text).ok());
    groups
        .filter(|groups| groups_digest(groups) == digest)
        .ok_or(Refusal::SubmitterChanged(GROUPS_ANNOTATION))
}
