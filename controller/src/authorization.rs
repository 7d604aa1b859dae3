//! Who may have which token: facts in, a user and a cluster or a refusal out. Never does I/O, never guesses.

use std::collections::{BTreeMap, BTreeSet};

use hadoop::{HadoopUser, InvalidUser};
use proto::{CLUSTER_ATTRIBUTE, DRIVER_NAME, POD_AUDIENCE, USER_ANNOTATION, VOLUME_ATTRIBUTES, VolumeId};

use crate::request::VolumeReference;

/// What the API server says of a service-account token that it has found valid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    /// `system:serviceaccount:NAMESPACE:NAME`.
    pub(crate) username: String,
    /// The pod that the token is bound to, if to any.
    pub(crate) pod_name: Option<String>,
    pub(crate) pod_uid: Option<String>,
    /// Node of that pod.
    pub(crate) node_name: Option<String>,
}

/// What the API server says of a pod, this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LivePod {
    pub(crate) uid: String,
    pub(crate) node_name: Option<String>,
    pub(crate) service_account: String,
    pub(crate) terminating: bool,
    pub(crate) phase: String,
    pub(crate) annotations: BTreeMap<String, String>,
    /// CSI volumes in its spec, by name.
    pub(crate) volumes: BTreeMap<String, CsiVolume>,
}

/// An inline CSI volume in a pod's spec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CsiVolume {
    pub(crate) driver: String,
    pub(crate) read_only: bool,
    pub(crate) attributes: BTreeMap<String, String>,
}

/// Everything known of one request, proven by the API server.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) driver: Identity,
    pub(crate) pod_token: Identity,
    pub(crate) pod: Option<LivePod>,
}

/// What a volume's facts are gathered for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// New tokens.
    Issue,
    /// More time for those it has. A terminating pod may still have a day of work to write out.
    Renew,
}

/// What the operator allows.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    /// The node plugin's service account.
    pub(crate) driver: ServiceAccount,
    /// Names of the clusters.
    pub(crate) clusters: BTreeSet<String>,
    /// The cluster of a volume that names none.
    pub(crate) default_cluster: Option<String>,
    /// Hadoop users that nobody becomes.
    pub(crate) denied_users: BTreeSet<String>,
}

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceAccount {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl ServiceAccount {
    fn username(&self) -> String {
        username(&self.namespace, &self.name)
    }
}

fn username(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

/// What a volume is entitled to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) user: HadoopUser,
    /// The cluster that the volume names, if it names one.
    pub(crate) cluster: Option<String>,
}

/// Why somebody gets nothing. The text says what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "the caller shows no service-account token: only the node plugin may call, with `authorization: Bearer` \
         metadata"
    )]
    DriverTokenMissing,
    #[error(
        "the API server rejects the node plugin's own service-account token ({0}): check the audience of the \
         projected token in the node plugin's pod"
    )]
    DriverTokenRejected(String),
    #[error(
        "the caller is {found}, not {expected}: name the node plugin's service account under `driver` in the \
         controller's configuration"
    )]
    CallerNotDriver { found: String, expected: String },
    #[error(
        "the node plugin's service-account token is not bound to a pod and its node: use a projected token of a \
         running pod, Kubernetes 1.30 or later"
    )]
    DriverTokenUnbound,
    #[error(
        "the pod's service-account token is missing: the CSIDriver object must list an audience under tokenRequests"
    )]
    PodTokenMissing,
    #[error(
        "the API server rejects the pod's service-account token ({0}): the CSIDriver object must request audience \
         {POD_AUDIENCE:?}"
    )]
    PodTokenRejected(String),
    #[error(
        "the pod's service-account token is not bound to a pod: it must come from kubelet's tokenRequests"
    )]
    PodTokenUnbound,
    #[error("the service-account token belongs to {0}, not to the pod that asks")]
    PodTokenOfAnotherPod(String),
    #[error("the pod's token was made for node {pod:?}, the node plugin runs on {driver:?}")]
    NodeMismatch { pod: String, driver: String },
    #[error("there is no pod {0}")]
    PodNotFound(String),
    #[error("pod {0} was replaced by another of the same name")]
    PodReplaced(String),
    #[error("pod {0} is terminating")]
    PodTerminating(String),
    #[error("pod {0} has finished")]
    PodFinished(String),
    #[error("pod {pod} is on node {found:?}, the node plugin runs on {driver:?}")]
    PodOnAnotherNode { pod: String, found: String, driver: String },
    #[error("the pod has no CSI volume {0:?} in its spec")]
    VolumeNotInPod(String),
    #[error("volume {volume:?} is of driver {driver:?}, not {DRIVER_NAME:?}")]
    VolumeOfAnotherDriver { volume: String, driver: String },
    #[error("volume {0:?} is writable: set csi.readOnly to true")]
    VolumeNotReadOnly(String),
    #[error("{found} is not the id of volume {volume:?} of this pod, which is {expected}")]
    VolumeIdMismatch { volume: String, found: VolumeId, expected: VolumeId },
    #[error(
        "unknown attribute {attribute:?} in csi.volumeAttributes of volume {volume:?}: known is {}",
        VOLUME_ATTRIBUTES.join(", ")
    )]
    UnknownAttribute { volume: String, attribute: String },
    #[error("the pod does not say which Hadoop user it is for: set the annotation {USER_ANNOTATION}")]
    UserMissing,
    #[error("annotation {USER_ANNOTATION}: {0}")]
    UserInvalid(InvalidUser),
    #[error(
        "no pod may be the Hadoop user {0:?}: put a user without special rights in annotation {USER_ANNOTATION}"
    )]
    UserDenied(String),
    #[error("there is no cluster {name:?}: set attribute {CLUSTER_ATTRIBUTE:?} to one of {known}")]
    ClusterUnknown { name: String, known: String },
    #[error(
        "the volume names no cluster and there is no default: set attribute {CLUSTER_ATTRIBUTE:?} to one of {0}"
    )]
    ClusterMissing(String),
    #[error("the tokens are of cluster {tokens:?}, but the volume's is {volume:?}")]
    TokenOfAnotherCluster { tokens: String, volume: String },
    #[error(
        "token {number} belongs to {owner:?}, the pod is for {user:?}: recreate the pod to change its user"
    )]
    TokenOfAnotherUser { number: usize, owner: String, user: HadoopUser },
    #[error("token {number} has renewer {renewer:?}, we are {ours:?}")]
    TokenOfAnotherRenewer { number: usize, renewer: String, ours: String },
    #[error("token {number} cannot be read: {error}")]
    TokenUnreadable { number: usize, error: String },
}

impl Policy {
    /// The node plugin's node, when the caller is the node plugin.
    pub(crate) fn admit_driver<'a>(&self, driver: &'a Identity) -> Result<&'a str, Refusal> {
        let expected = self.driver.username();
        if driver.username != expected {
            return Err(Refusal::CallerNotDriver { found: driver.username.clone(), expected });
        }
        match (&driver.pod_uid, &driver.node_name) {
            (Some(_), Some(node)) => Ok(node),
            _ => Err(Refusal::DriverTokenUnbound),
        }
    }

    /// What the volume is entitled to, when every fact fits.
    pub(crate) fn decide(
        &self,
        purpose: Purpose,
        volume: &VolumeReference,
        facts: &Facts,
    ) -> Result<Grant, Refusal> {
        let node = self.admit_driver(&facts.driver)?;
        bound_to(&facts.pod_token, volume, node)?;
        let pod = alive(facts.pod.as_ref(), purpose, volume, &facts.pod_token, node)?;
        let csi = ours(pod, volume)?;
        Ok(Grant { user: self.user(pod)?, cluster: self.attribute(csi)? })
    }

    /// The cluster to get tokens from.
    pub(crate) fn cluster(&self, grant: &Grant) -> Result<String, Refusal> {
        grant
            .cluster
            .clone()
            .or_else(|| self.default_cluster.clone())
            .ok_or_else(|| Refusal::ClusterMissing(self.known_clusters()))
    }

    /// The cluster `name` of tokens that exist; a volume that names its cluster can have no others.
    pub(crate) fn cluster_of_tokens(&self, grant: &Grant, name: &str) -> Result<(), Refusal> {
        match &grant.cluster {
            Some(volume) if volume != name => {
                Err(Refusal::TokenOfAnotherCluster { tokens: name.to_owned(), volume: volume.clone() })
            }
            _ => self.known(name),
        }
    }

    /// Whether there is a cluster `name`.
    pub(crate) fn known(&self, name: &str) -> Result<(), Refusal> {
        if self.clusters.contains(name) {
            return Ok(());
        }
        Err(Refusal::ClusterUnknown { name: name.to_owned(), known: self.known_clusters() })
    }

    fn known_clusters(&self) -> String {
        self.clusters.iter().cloned().collect::<Vec<_>>().join(", ")
    }

    fn user(&self, pod: &LivePod) -> Result<HadoopUser, Refusal> {
        let name = pod.annotations.get(USER_ANNOTATION).ok_or(Refusal::UserMissing)?;
        let user: HadoopUser = name.parse().map_err(Refusal::UserInvalid)?;
        if self.denied_users.contains(user.as_str()) {
            return Err(Refusal::UserDenied(name.clone()));
        }
        Ok(user)
    }

    fn attribute(&self, volume: &CsiVolume) -> Result<Option<String>, Refusal> {
        let Some(name) = volume.attributes.get(CLUSTER_ATTRIBUTE) else { return Ok(None) };
        self.known(name)?;
        Ok(Some(name.clone()))
    }
}

/// The pod's token proves this pod on this node.
fn bound_to(token: &Identity, volume: &VolumeReference, node: &str) -> Result<(), Refusal> {
    let (Some(name), Some(uid)) = (&token.pod_name, &token.pod_uid) else {
        return Err(Refusal::PodTokenUnbound);
    };
    let account_prefix = username(&volume.pod.namespace, "");
    if name != &volume.pod.name || uid != &volume.pod.uid || !token.username.starts_with(&account_prefix) {
        return Err(Refusal::PodTokenOfAnotherPod(format!("pod {name} of {}", token.username)));
    }
    match &token.node_name {
        Some(found) if found == node => Ok(()),
        Some(found) => Err(Refusal::NodeMismatch { pod: found.clone(), driver: node.to_owned() }),
        None => Err(Refusal::PodTokenUnbound),
    }
}

/// The pod exists, is the one that was meant, runs on this node and is not about to end.
fn alive<'a>(
    pod: Option<&'a LivePod>,
    purpose: Purpose,
    volume: &VolumeReference,
    token: &Identity,
    node: &str,
) -> Result<&'a LivePod, Refusal> {
    let shown = || format!("{}/{}", volume.pod.namespace, volume.pod.name);
    let pod = pod.ok_or_else(|| Refusal::PodNotFound(shown()))?;
    if pod.uid != volume.pod.uid {
        return Err(Refusal::PodReplaced(shown()));
    }
    if pod.terminating && purpose == Purpose::Issue {
        return Err(Refusal::PodTerminating(shown()));
    }
    if pod.phase == "Succeeded" || pod.phase == "Failed" {
        return Err(Refusal::PodFinished(shown()));
    }
    if pod.node_name.as_deref() != Some(node) {
        return Err(Refusal::PodOnAnotherNode {
            pod: shown(),
            found: pod.node_name.clone().unwrap_or_default(),
            driver: node.to_owned(),
        });
    }
    if token.username != username(&volume.pod.namespace, &pod.service_account) {
        return Err(Refusal::PodTokenOfAnotherPod(token.username.clone()));
    }
    Ok(pod)
}

/// The volume is in the pod's spec, is ours, and asks for nothing unknown.
fn ours<'a>(pod: &'a LivePod, volume: &VolumeReference) -> Result<&'a CsiVolume, Refusal> {
    let name = || volume.name.clone();
    let csi = pod.volumes.get(&volume.name).ok_or_else(|| Refusal::VolumeNotInPod(name()))?;
    if csi.driver != DRIVER_NAME {
        return Err(Refusal::VolumeOfAnotherDriver { volume: name(), driver: csi.driver.clone() });
    }
    if !csi.read_only {
        return Err(Refusal::VolumeNotReadOnly(name()));
    }
    let expected = VolumeId::of(&pod.uid, &volume.name);
    if volume.id != expected {
        return Err(Refusal::VolumeIdMismatch { volume: name(), found: volume.id.clone(), expected });
    }
    match csi.attributes.keys().find(|attribute| !VOLUME_ATTRIBUTES.contains(&attribute.as_str())) {
        Some(attribute) => Err(Refusal::UnknownAttribute { volume: name(), attribute: attribute.clone() }),
        None => Ok(csi),
    }
}

/// A token that is to be renewed is the pod's own, and ours to renew.
pub(crate) fn renewable(
    number: usize,
    token: &hadoop::Token,
    user: &HadoopUser,
    ours: &str,
) -> Result<(), Refusal> {
    let identifier = token
        .decode_identifier()
        .map_err(|error| Refusal::TokenUnreadable { number, error: error.to_string() })?;
    if identifier.owner != user.as_str() {
        return Err(Refusal::TokenOfAnotherUser { number, owner: identifier.owner, user: user.clone() });
    }
    renewer_is(number, identifier.renewer, ours)
}

/// A token that is to be cancelled is one that we may cancel.
pub(crate) fn cancellable(number: usize, kind: &str, identifier: &[u8], ours: &str) -> Result<(), Refusal> {
    let identifier = hadoop::TokenIdentifier::decode(kind, identifier)
        .map_err(|error| Refusal::TokenUnreadable { number, error: error.to_string() })?;
    renewer_is(number, identifier.renewer, ours)
}

fn renewer_is(number: usize, renewer: String, ours: &str) -> Result<(), Refusal> {
    if renewer == ours {
        Ok(())
    } else {
        Err(Refusal::TokenOfAnotherRenewer { number, renewer, ours: ours.to_owned() })
    }
}

#[cfg(test)]
mod tests;
