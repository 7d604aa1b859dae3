//! The words that all programs share: names in manifests, pods and requests, volume ids, and the seal by which a pod
//! proves who submitted it. No I/O, no gRPC.

#[cfg(feature = "seal")]
pub mod seal;
mod volume_id;
mod words;

pub use volume_id::{InvalidVolumeId, VolumeId};
pub use words::{
    CLUSTER_ATTRIBUTE, CONTROLLER_AUDIENCE, DO_AS_ATTRIBUTE, DRIVER_NAME, ERROR_DOMAIN, GROUPS_ANNOTATION,
    POD_AUDIENCE, SEAL_ANNOTATION, SUBMITTER_ANNOTATION, VOLUME_ATTRIBUTES,
};
