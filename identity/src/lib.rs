//! The words that all programs share: names in manifests, pods and requests, volume ids, owners of pods, and the seal
//! by which a pod proves who submitted it. No I/O, no gRPC.

mod names;
pub mod owners;
#[cfg(feature = "seal")]
pub mod seal;
mod volume_id;
mod words;

pub use names::is_object_name;
pub use volume_id::{InvalidVolumeId, VolumeId};
pub use words::{
    ANNOTATION_PREFIX, CANCEL_FINALIZER, CLIENT_CONFIGURATION_ANNOTATION, CLUSTER_ANNOTATION,
    CLUSTER_ATTRIBUTE, CONTROLLER_AUDIENCE, DO_AS_ANNOTATION, DO_AS_ATTRIBUTE, DRIVER_NAME, ERROR_DOMAIN,
    GROUPS_ANNOTATION, INJECT_ANNOTATION, JOB_SCOPE, LEDGER_GROUP, POD_AUDIENCE, POD_SCOPE,
    RELEASE_ANNOTATION, REQUEST_ANNOTATIONS, ROTATE_ANNOTATION, SCOPE_ANNOTATION, SCOPE_ATTRIBUTE,
    SEAL_ANNOTATION, SUBMITTER_ANNOTATION, VOLUME_ATTRIBUTES, WAIT_ANNOTATION, WORKLOAD_SEAL_ANNOTATION,
};
