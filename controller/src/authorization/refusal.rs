//! Every reason for which somebody gets nothing, with a sentence that says what to change and for whom; and which of
//! them take back tokens that exist. Codes and reasons for programs are in `failure`.

use std::net::IpAddr;

use hadoop::{HadoopUser, InvalidUser};
use identity::{
    CLUSTER_ATTRIBUTE, DO_AS_ATTRIBUTE, DRIVER_NAME, JOB_SCOPE, POD_AUDIENCE, POD_SCOPE, SCOPE_ATTRIBUTE,
    SEAL_ANNOTATION, SUBMITTER_ANNOTATION, VOLUME_ATTRIBUTES, VolumeId, seal::SealError,
};

/// Why somebody gets nothing. The text says what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    // Who calls.
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

    // For which pod.
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
    #[error(
        "pod {0} is a static pod, which the node wrote by itself and nobody submitted: create it at the API server"
    )]
    StaticPod(String),

    // For which volume.
    #[error("the pod has no CSI volume {0:?} in its spec")]
    VolumeNotInPod(String),
    #[error("volume {volume:?} is of driver {driver:?}, not {DRIVER_NAME:?}")]
    VolumeOfAnotherDriver { volume: String, driver: String },
    #[error("volume {0:?} is writable: set csi.readOnly to true")]
    VolumeNotReadOnly(String),
    #[error("{found} is not the id of volume {volume:?} of this pod, which is {expected}")]
    VolumeIdMismatch { volume: String, found: VolumeId, expected: VolumeId },
    #[error(
        "unknown attribute {attribute:?} in csi.volumeAttributes of volume {volume:?}: known are {}",
        VOLUME_ATTRIBUTES.join(", ")
    )]
    UnknownAttribute { volume: String, attribute: String },
    #[error("there is no scope {0:?}: set attribute {SCOPE_ATTRIBUTE:?} to {POD_SCOPE:?} or {JOB_SCOPE:?}")]
    ScopeUnknown(String),
    #[error("there is no cluster {name:?}: set attribute {CLUSTER_ATTRIBUTE:?} to one of {known}")]
    ClusterUnknown { name: String, known: String },
    #[error(
        "the volume names no cluster and there is no default: set attribute {CLUSTER_ATTRIBUTE:?} to one of {0}"
    )]
    ClusterMissing(String),

    // Who submitted it.
    #[error(
        "the pod has no seal (annotation {SEAL_ANNOTATION}), so nothing proves who submitted it: recreate it; if that \
         does not help, the administrator has to see why pods are not sealed when they are created"
    )]
    SealMissing,
    #[error(
        "the pod's seal cannot be trusted, {0}: recreate the pod; if that does not help, the administrator has to give \
         the controller the public key that pods are sealed with (seal.keys in its configuration)"
    )]
    SealInvalid(SealError),
    #[error(
        "the pod's seal was made for another pod, with {what} {sealed} where this one has {found}: recreate the pod, \
         and copy no annotations of {DRIVER_NAME} from another"
    )]
    SealOfAnotherPod { what: &'static str, sealed: String, found: String },
    #[error(
        "the pod was sealed {apart} seconds away from its creation, more than {tolerance}: recreate the pod; if that \
         does not help, the administrator has to set the clocks of API server and webhook"
    )]
    SealOutOfTime { apart: u64, tolerance: u64 },
    #[error(
        "the pod's seal was already shown by the pod with UID {0}, and serves one pod only: recreate the pod, and copy \
         no annotations of {DRIVER_NAME} from another"
    )]
    SealReused(String),
    #[error(
        "annotation {0} was changed after the pod was sealed: recreate the pod, and leave that annotation alone"
    )]
    SubmitterChanged(&'static str),
    #[error("the pod does not say who submitted it: set the annotation {SUBMITTER_ANNOTATION}")]
    SubmitterMissing,
    #[error("the owner {owner} of the pod {problem}: recreate the pod by its workload")]
    OwnerNotFound { owner: String, problem: &'static str },
    #[error(
        "the pod has more than {limit} owners, one above the other: whoever wrote its workload has to nest less deep"
    )]
    OwnerChainTooLong { limit: usize },

    // Which Hadoop user.
    #[error(
        "Kubernetes user {submitter:?}, who submitted the pod, is no Hadoop user: {why}; the administrator has to map \
         it (users.authToLocal in the controller's configuration)"
    )]
    SubmitterNotMapped { submitter: String, why: String },
    #[error(
        "service account {0:?}, which submitted the pod, is no Hadoop user: submit the pod yourself, or have the \
         administrator map it (users.serviceAccounts in the controller's configuration)"
    )]
    ServiceAccountNotMapped(String),
    #[error("attribute {DO_AS_ATTRIBUTE:?} of the volume: {0}")]
    UserInvalid(InvalidUser),
    #[error(
        "the volume asks for {DO_AS_ATTRIBUTE} {0}, which was not sealed when the pod was created: recreate the pod \
         with it"
    )]
    DoAsNotSealed(HadoopUser),
    #[error(
        "{user} may not act as {account}: he is no member of group {group:?}, or that group does not exist; the owner \
         of the account has to add him"
    )]
    DoAsNotMember { user: HadoopUser, account: HadoopUser, group: String },
    #[error(
        "the volume asks for {DO_AS_ATTRIBUTE} {0}, but nothing tells who may: remove it, or have the administrator \
         configure a directory"
    )]
    DoAsWithoutDirectory(HadoopUser),
    #[error("the directory knows no user {0}: the administrator of the directory has to add it")]
    UserUnknown(HadoopUser),
    #[error(
        "no pod may be the Hadoop user {0}: submit it as a user without special rights, or set {DO_AS_ATTRIBUTE} to \
         another account"
    )]
    UserDenied(HadoopUser),
    #[error(
        "no pod may be the Hadoop user {user}, who is in group {group:?}: submit it as a user without special rights"
    )]
    GroupDenied { user: HadoopUser, group: String },
    #[error(
        "the Hadoop user {0} is not among those that pods may be: the administrator has to add the user or one of \
         its groups (users.allowed or users.allowedGroups in the controller's configuration)"
    )]
    UserNotAllowed(HadoopUser),

    // What the namespace may ask for.
    #[error("pods in namespace {0:?} get no tokens: create the pod in another namespace")]
    NamespaceExempt(String),
    #[error(
        "namespace {0:?} may not ask for tokens: the administrator has to add a rule for it (namespaces.rules in the \
         controller's configuration)"
    )]
    NamespaceNotEnrolled(String),
    #[error(
        "namespace {namespace:?} may not ask for tokens of the Hadoop user {user}: use another namespace, or have \
         the administrator add the user to its rule"
    )]
    NamespaceUserNotAllowed { namespace: String, user: HadoopUser },
    #[error(
        "namespace {namespace:?} may not ask for tokens of cluster {cluster:?}: use another namespace, or have the \
         administrator add the cluster to its rule"
    )]
    NamespaceClusterNotAllowed { namespace: String, cluster: String },
    #[error(
        "namespace {namespace:?} may not ask for tokens of service {service:?}: use another namespace, or have the \
         administrator add the service to its rule"
    )]
    NamespaceServiceNotAllowed { namespace: String, service: &'static str },
    #[error(
        "pods with host network may not have tokens in namespace {0:?}: set hostNetwork to false, or have the \
         administrator allow it (hostNetwork in the namespace's rule)"
    )]
    HostNetworkNotAllowed(String),

    // Where the pod is.
    #[error("the pod has no address yet")]
    AddressUnknown,
    #[error("the pod's addresses are changing: {0}")]
    AddressChanging(String),
    #[error(
        "the API server has address {expected} for the pod, which is not among those that its node sees in its \
         network namespace ({found}): somebody has to look at that node; then recreate the pod"
    )]
    AddressMismatch { expected: String, found: String },
    #[error(
        "pod {pod} has the address {address} too: the administrator has to look at the cluster's network; then \
         recreate the pod"
    )]
    AddressOfAnotherPod { pod: String, address: String },
    #[error(
        "the node cannot tell the pod's addresses for certain, {0}: let the pod's processes stay in one network \
         namespace, and recreate the pod"
    )]
    AddressUnclear(String),
    #[error(
        "the pod's spec says hostNetwork: {spec}, and its node sees the contrary: somebody has to look at that node; \
         then recreate the pod"
    )]
    HostNetworkMismatch { spec: bool },

    // Tokens that exist.
    #[error("the tokens are of cluster {tokens:?}, but the volume's is {volume:?}")]
    TokenOfAnotherCluster { tokens: String, volume: String },
    #[error(
        "token {number} belongs to {owner:?}, the pod is for {user}: recreate the pod to change its user"
    )]
    TokenOfAnotherUser { number: usize, owner: String, user: HadoopUser },
    #[error(
        "the pod's token was revoked: the DelegationToken that stood for it was deleted; recreate the pod to have \
         another"
    )]
    TokenRevoked,
    #[error("token {number} is the ledger's for another volume: the record on the node is not its own")]
    TokenOfAnotherVolume { number: usize },
    #[error("token {number} has renewer {renewer:?}, we are {ours:?}")]
    TokenOfAnotherRenewer { number: usize, renewer: String, ours: String },
    #[error("token {number} cannot be read: {error}")]
    TokenUnreadable { number: usize, error: String },

    // How much at once.
    #[error("too many requests of {0}: it is tried again; the administrator may raise limits.rates")]
    RateLimited(String),
    #[error("too many tokens were rejected that callers at {0} showed: look at who calls from there")]
    ManyRejected(IpAddr),
}

impl Refusal {
    /// Whether a volume that has tokens loses them when a check ends so: exactly when it is proven which pod asks, and
    /// that this pod is entitled to nothing any more. Whoever only fails to prove who he is must not be able to take
    /// another's tokens away, and what may pass by itself takes nobody's.
    pub(crate) fn revokes(&self) -> bool {
        match self {
            Self::DriverTokenMissing
            | Self::DriverTokenRejected(_)
            | Self::CallerNotDriver { .. }
            | Self::DriverTokenUnbound
            | Self::PodTokenMissing
            | Self::PodTokenRejected(_)
            | Self::PodTokenUnbound
            | Self::PodTokenOfAnotherPod(_)
            | Self::NodeMismatch { .. }
            | Self::PodTerminating(_)
            | Self::PodOnAnotherNode { .. }
            | Self::VolumeNotInPod(_)
            | Self::VolumeOfAnotherDriver { .. }
            | Self::VolumeNotReadOnly(_)
            | Self::VolumeIdMismatch { .. }
            | Self::UnknownAttribute { .. }
            | Self::ScopeUnknown(_)
            | Self::ClusterUnknown { .. }
            | Self::ClusterMissing(_)
            // Owners are followed when tokens are issued, never when they are checked.
            | Self::OwnerNotFound { .. }
            | Self::OwnerChainTooLong { .. }
            | Self::AddressUnknown
            | Self::AddressChanging(_)
            | Self::TokenOfAnotherCluster { .. }
            | Self::TokenOfAnotherVolume { .. }
            | Self::TokenOfAnotherRenewer { .. }
            | Self::TokenUnreadable { .. }
            | Self::RateLimited(_)
            | Self::ManyRejected(_) => false,
            Self::PodNotFound(_)
            | Self::PodReplaced(_)
            | Self::PodFinished(_)
            | Self::StaticPod(_)
            | Self::SealMissing
            | Self::SealInvalid(_)
            | Self::SealOfAnotherPod { .. }
            | Self::SealOutOfTime { .. }
            | Self::SealReused(_)
            | Self::SubmitterChanged(_)
            | Self::SubmitterMissing
            | Self::SubmitterNotMapped { .. }
            | Self::ServiceAccountNotMapped(_)
            | Self::UserInvalid(_)
            | Self::DoAsNotSealed(_)
            | Self::DoAsNotMember { .. }
            | Self::DoAsWithoutDirectory(_)
            | Self::UserUnknown(_)
            | Self::UserDenied(_)
            | Self::GroupDenied { .. }
            | Self::UserNotAllowed(_)
            | Self::NamespaceExempt(_)
            | Self::NamespaceNotEnrolled(_)
            | Self::NamespaceUserNotAllowed { .. }
            | Self::NamespaceClusterNotAllowed { .. }
            | Self::NamespaceServiceNotAllowed { .. }
            | Self::HostNetworkNotAllowed(_)
            | Self::AddressMismatch { .. }
            | Self::AddressOfAnotherPod { .. }
            | Self::AddressUnclear(_)
            | Self::HostNetworkMismatch { .. }
            | Self::TokenOfAnotherUser { .. }
            | Self::TokenRevoked => true,
        }
    }
    /// Of those that revoke: whether a right was withdrawn, of the user or of the namespace, and neither the pod's end nor
    /// anything that was forged.
    pub(crate) fn is_of_withdrawn_right(&self) -> bool {
        matches!(
            self,
            Self::SubmitterNotMapped { .. }
                | Self::ServiceAccountNotMapped(_)
                | Self::DoAsNotMember { .. }
                | Self::DoAsWithoutDirectory(_)
                | Self::UserUnknown(_)
                | Self::UserDenied(_)
                | Self::GroupDenied { .. }
                | Self::UserNotAllowed(_)
                | Self::NamespaceExempt(_)
                | Self::NamespaceNotEnrolled(_)
                | Self::NamespaceUserNotAllowed { .. }
                | Self::NamespaceClusterNotAllowed { .. }
                | Self::NamespaceServiceNotAllowed { .. }
        )
    }
}
