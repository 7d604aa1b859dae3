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

/// Volume attribute that picks one of the controller's clusters.
pub const CLUSTER_ATTRIBUTE: &str = "cluster";

/// Volume attribute that names a headless account to be used instead of the submitter's own.
pub const DO_AS_ATTRIBUTE: &str = "doAs";

/// Every attribute a pod may write under `csi.volumeAttributes`.
pub const VOLUME_ATTRIBUTES: [&str; 2] = [CLUSTER_ATTRIBUTE, DO_AS_ATTRIBUTE];

/// `domain` of every `google.rpc.ErrorInfo` we send.
pub const ERROR_DOMAIN: &str = "hadoop-token.csi";
