//! The words that all programs share: names in manifests, pods and requests, volume ids, and the seal by which a pod
//! proves who submitted it. No I/O, no gRPC.

#[cfg(feature = "seal")]
pub mod seal;
mod volume_id;
mod words;

pub use volume_id::{InvalidVolumeId, VolumeId};
pub use words::{
    CANCEL_FINALIZER, CLUSTER_ATTRIBUTE, CONTROLLER_AUDIENCE, DO_AS_ATTRIBUTE, DRIVER_NAME, ERROR_DOMAIN,
    GROUPS_ANNOTATION, JOB_SCOPE, LEDGER_GROUP, POD_AUDIENCE, POD_SCOPE, RELEASE_ANNOTATION,
    ROTATE_ANNOTATION, SCOPE_ATTRIBUTE, SEAL_ANNOTATION, SUBMITTER_ANNOTATION, VOLUME_ATTRIBUTES,
};
