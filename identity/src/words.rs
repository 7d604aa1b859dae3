//! Names that are spelled the same in manifests, pods, requests and code.

/// Name of the CSI driver: of the `CSIDriver` object, and what a pod's volume names.
pub const DRIVER_NAME: &str = "hadoop-token.csi";

/// Audience of the pod's service-account JWT that kubelet hands to the node plugin (`CSIDriver.spec.tokenRequests`).
pub const POD_AUDIENCE: &str = "hadoop-token.csi";

/// Audience of the node plugin's own JWT. Another than the pods', so that neither can be used as the other.
pub const CONTROLLER_AUDIENCE: &str = "controller.hadoop-token.csi";

/// Pod annotation with the name of the Kubernetes user who submitted the pod. Worth nothing without the seal.
pub const SUBMITTER_ANNOTATION: &str = "hadoop-token.csi/submitter";

/// Pod annotation with the submitter's Kubernetes groups, a JSON list of strings. Kept for audit; sealed by its digest.
pub const GROUPS_ANNOTATION: &str = "hadoop-token.csi/groups";

/// Pod annotation with the seal over all that was proven when the pod was admitted.
pub const SEAL_ANNOTATION: &str = "hadoop-token.csi/seal";

/// What all annotations and labels of ours begin with.
pub const ANNOTATION_PREFIX: &str = "hadoop-token.csi/";

/// Annotation or label of a pod or of a template, or label of a namespace: `"true"` asks that pods be given the volume,
/// its mounts and the environment; `"false"` on a pod refuses what its namespace asks for.
pub const INJECT_ANNOTATION: &str = "hadoop-token.csi/inject";

/// Annotation that sets [`CLUSTER_ATTRIBUTE`] of an injected volume.
pub const CLUSTER_ANNOTATION: &str = "hadoop-token.csi/cluster";

/// Annotation that sets [`DO_AS_ATTRIBUTE`] of an injected volume.
pub const DO_AS_ANNOTATION: &str = "hadoop-token.csi/do-as";

/// Annotation that sets [`SCOPE_ATTRIBUTE`] of an injected volume.
pub const SCOPE_ANNOTATION: &str = "hadoop-token.csi/scope";

/// Annotation that names a ConfigMap of the pod's namespace with Hadoop's client configuration, to be injected too.
pub const CLIENT_CONFIGURATION_ANNOTATION: &str = "hadoop-token.csi/client-configuration";

/// Annotation that asks, by `"true"`, for an injected init container that waits until the token is there.
pub const WAIT_ANNOTATION: &str = "hadoop-token.csi/wait";

/// The annotations by which somebody asks for something, as opposed to those that say what was proven. They belong to
/// what was submitted: whoever changes them in a template changes the template.
pub const REQUEST_ANNOTATIONS: [&str; 6] = [
    INJECT_ANNOTATION,
    CLUSTER_ANNOTATION,
    DO_AS_ANNOTATION,
    SCOPE_ANNOTATION,
    CLIENT_CONFIGURATION_ANNOTATION,
    WAIT_ANNOTATION,
];

/// Pod annotation with the seal of the workload that the pod was made of, as the pod brought it along. It has its own
/// under [`SEAL_ANNOTATION`].
pub const WORKLOAD_SEAL_ANNOTATION: &str = "hadoop-token.csi/workload-seal";

/// Volume attribute that picks one of the controller's clusters.
pub const CLUSTER_ATTRIBUTE: &str = "cluster";

/// Volume attribute that names a headless account to be used instead of the submitter's own.
pub const DO_AS_ATTRIBUTE: &str = "doAs";

/// Volume attribute that says who shares a token: [`POD_SCOPE`], the default, or [`JOB_SCOPE`].
pub const SCOPE_ATTRIBUTE: &str = "scope";

/// Scope of a token that one volume of one pod has for itself.
pub const POD_SCOPE: &str = "pod";

/// Scope of a token that the pods of one root owner share, for as long as one of them lives.
pub const JOB_SCOPE: &str = "job";

/// Every attribute a pod may write under `csi.volumeAttributes`.
pub const VOLUME_ATTRIBUTES: [&str; 3] = [CLUSTER_ATTRIBUTE, DO_AS_ATTRIBUTE, SCOPE_ATTRIBUTE];

/// API group of `DelegationToken`, whose objects are the ledger.
pub const LEDGER_GROUP: &str = "hadoop-token.csi";

/// Finalizer of a `DelegationToken`: the token may still be good at its Hadoop service.
pub const CANCEL_FINALIZER: &str = "hadoop-token.csi/cancel";

/// Annotation by which an operator lets go of a `DelegationToken` whose token cannot be cancelled: `"true"`.
pub const RELEASE_ANNOTATION: &str = "hadoop-token.csi/release";

/// Annotation by which an operator has the token of a `DelegationToken` replaced now. Each new value counts once.
pub const ROTATE_ANNOTATION: &str = "hadoop-token.csi/rotate";

/// `domain` of every `google.rpc.ErrorInfo` we send.
pub const ERROR_DOMAIN: &str = "hadoop-token.csi";
