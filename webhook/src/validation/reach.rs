//! Who may reach into a pod that holds a token: whoever runs something in it reads the token, and is its submitter to
//! Hadoop. So only its submitter may, and the groups that the administrator names.
//!
//! A sealed pod without a token, such as a launcher, is as good as one if it can call the API server: pods of one job may
//! reach into each other, and where it is configured a pod hands its submitter on to those that it makes. What they show
//! then is a service account's token that is bound to the pod, so that nobody else may have one made either.

use identity::seal::Seal;
use serde_json::{Map, Value};

use super::{Interactive, volumes::token_volume};
use crate::{
    admission::{Denial, Question},
    own_seal::{Verifier, lives},
};

/// What somebody does to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    Exec,
    Attach,
    PortForward,
    Proxy,
    Debug,
    ChangeContainers,
    AccountToken,
}

/// Lists of containers, which an update leaves alone but for images and what they may use.
const CONTAINERS: [&str; 2] = ["containers", "initContainers"];
/// What of a container only says how much it may use, and that an autoscaler changes.
const SIZES: [&str; 2] = ["resources", "resizePolicy"];

impl Deed {
    /// What an update of a pod does to it, if anything of this kind. Compares all of a container but its size, so that
    /// whatever else a later Kubernetes lets people change is held back too.
    pub(super) fn between(old: &Value, new: &Value) -> Option<Self> {
        let containers = |pod: &Value| CONTAINERS.map(|list| bare(pod, list));
        if containers(old) != containers(new) {
            Some(Self::ChangeContainers)
        } else if bare(old, "ephemeralContainers") != bare(new, "ephemeralContainers") {
            Some(Self::Debug)
        } else {
            None
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Exec => "run commands in it",
            Self::Attach => "attach to it",
            Self::PortForward => "forward ports of it",
            Self::Proxy => "reach it through the API server's proxy",
            Self::Debug => "add ephemeral containers to it",
            Self::ChangeContainers => "change the images of its containers",
            Self::AccountToken => "have a service account's token bound to it",
        }
    }
}

/// Whether the asking user may do this to `pod`. What is said goes into the API server's audit log, if a token is
/// involved.
pub(super) fn judge(
    interactive: &Interactive,
    verifier: Verifier<'_>,
    question: &Question,
    pod: &Value,
    caller: Option<&Value>,
    deed: Deed,
) -> Result<Option<(&'static str, String)>, Denial> {
    let seal = verifier.own_seal(pod);
    let what = if volumes(pod).any(|volume| token_volume(volume).is_some()) {
        "holds a Hadoop token"
    } else if seal.is_ok() && (deed == Deed::AccountToken || calls_api_server(pod)) {
        "can act for its submitter"
    } else {
        return Ok(None);
    };
    let user = question.request.user_info.username.as_deref().unwrap_or_default();
    let submitter = seal.as_ref().map(|seal| &*seal.submitter);
    if !user.is_empty() && submitter == Ok(user) {
        return Ok(Some(("reached-by", "submitter".to_owned())));
    }
    let mut groups = question.request.user_info.groups.iter().flatten();
    if let Some(group) = groups.find(|group| interactive.groups.contains(*group)) {
        return Ok(Some(("reached-by", format!("group {group}"))));
    }
    if let (Ok(seal), Some(caller)) = (&seal, caller)
        && is_colleague(verifier, seal, caller)
    {
        return Ok(Some(("reached-by", "pod of the same owner".to_owned())));
    }
    let who = match submitter {
        Ok(submitter) => format!("{submitter}, who submitted it, "),
        Err(problem) => format!("nobody ({problem}) "),
    };
    let others: Vec<&str> = interactive.groups.iter().map(String::as_str).collect();
    let others = match others.as_slice() {
        [] => "the administrator can name groups in interactive.groups".to_owned(),
        groups => format!("members of {} may too", groups.join(", ")),
    };
    Err(Denial {
        reason: "NOT_THE_SUBMITTER",
        message: format!("the pod {what}, and only {who}may {}, not {user}; {others}", deed.text()),
        code: 403,
    })
}

/// Whether a service account's token is wanted for `pod` by its UID. By its name alone it would be bound to whichever pod
/// has that name when it is made, which may be another than was looked at.
pub(super) fn binds_this_pod(question: &Question, pod: Option<&Value>) -> Result<(), Denial> {
    let reference = |key: &str| {
        let text = question
            .object
            .pointer("/spec/boundObjectRef")
            .and_then(|reference| reference.get(key)?.as_str());
        text.unwrap_or_default()
    };
    let (name, uid) = (reference("name"), reference("uid"));
    if uid.is_empty() {
        return Err(Denial {
            reason: "POD_UID_MISSING",
            message: format!(
                "a token that is bound to pod {name} has to name its UID, too, so that it is not another's who comes to have \
                 that name: set spec.boundObjectRef.uid (kubectl create token: --bound-object-uid)"
            ),
            code: 422,
        });
    }
    if pod.and_then(|pod| pod.pointer("/metadata/uid")?.as_str()) != Some(uid) {
        return Err(Denial {
            reason: "POD_NOT_FOUND",
            message: format!("there is no pod {name} with UID {uid} to bind a token to"),
            code: 404,
        });
    }
    Ok(())
}

/// Whether `caller` is a pod of the same submitter and the same owner, as the launcher of an MPIJob is, which starts its
/// workers' programs by exec.
fn is_colleague(verifier: Verifier<'_>, seal: &Seal, caller: &Value) -> bool {
    let its = verifier.own_seal(caller);
    lives(caller)
        && its.is_ok_and(|its| {
            its.submitter == seal.submitter && its.root_owner.is_some() && its.root_owner == seal.root_owner
        })
}

/// Whether a service account's token is mounted in the pod, for whatever audience.
fn calls_api_server(pod: &Value) -> bool {
    let projected = volumes(pod).filter_map(|volume| volume.pointer("/projected/sources")?.as_array());
    projected.flatten().any(|source| source.get("serviceAccountToken").is_some_and(|token| !token.is_null()))
}

fn volumes(pod: &Value) -> impl Iterator<Item = &Value> {
    pod.pointer("/spec/volumes").and_then(Value::as_array).into_iter().flatten()
}

/// Containers without their sizes.
fn bare(pod: &Value, list: &str) -> Vec<Map<String, Value>> {
    let containers = pod.pointer("/spec").and_then(|spec| spec.get(list)?.as_array()).into_iter().flatten();
    containers
        .filter_map(|container| {
            let mut container = container.as_object()?.clone();
            container.retain(|key, _| !SIZES.contains(&key.as_str()));
            Some(container)
        })
        .collect()
}
