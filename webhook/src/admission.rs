//! What the API server asks and what it is told: the words of admission.k8s.io/v1 that every part here speaks. Objects
//! stay the JSON they came as, so that nothing this build does not know of is ever lost.

use std::collections::BTreeMap;

use identity::{GROUPS_ANNOTATION, SEAL_ANNOTATION, SUBMITTER_ANNOTATION, WORKLOAD_SEAL_ANNOTATION};
use json_patch::PatchOperation;
use kube::core::{DynamicObject, admission::AdmissionRequest};
use serde_json::Value;

/// Annotations that say who submitted an object. They are written over whatever was there.
pub(crate) const STAMPS: [&str; 4] =
    [SUBMITTER_ANNOTATION, GROUPS_ANNOTATION, SEAL_ANNOTATION, WORKLOAD_SEAL_ANNOTATION];

/// A question of the API server.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    /// All but the objects, which it has none of.
    pub(crate) request: AdmissionRequest<DynamicObject>,
    /// The object as it is to be; null when there is none.
    pub(crate) object: Value,
    /// The object as it was; null when there is none.
    pub(crate) old_object: Value,
}

/// What is decided.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Verdict {
    Allowed(Allowed),
    Denied(Denial),
}

/// A request that goes on, perhaps changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Allowed {
    /// What is changed, in order. Empty when nothing is.
    pub(crate) patch: Vec<PatchOperation>,
    /// For the API server's audit log, which puts the webhook's name before each key.
    pub(crate) audit: BTreeMap<&'static str, String>,
    /// Shown to whoever asked.
    pub(crate) warnings: Vec<String>,
}

/// A request that does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Denial {
    /// Stable, one of those in docs/errors.md.
    pub(crate) reason: &'static str,
    /// What is wrong and what to change, for whoever asked.
    pub(crate) message: String,
    /// HTTP status: 403 for what may not be, 422 for what is wrong in the manifest, 503 for what may be tried again.
    pub(crate) code: u16,
}
