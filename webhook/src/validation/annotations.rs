//! Annotations of ours on a pod: what its submitter asked for and what was proven then. They are for ever.

use std::collections::BTreeSet;

use identity::{ANNOTATION_PREFIX, REQUEST_ANNOTATIONS};
use json_patch::jsonptr::Pointer;
use serde_json::{Map, Value};

use super::place;
use crate::admission::{Allowed, Denial, STAMPS};

/// Whether a pod keeps its annotations of ours.
pub(super) fn unchanged(old: &Value, new: &Value) -> Result<(), Denial> {
    let (old, new) = (annotations(old), annotations(new));
    let keys: BTreeSet<&str> = old.into_iter().chain(new).flat_map(Map::keys).map(String::as_str).collect();
    let changed = keys.into_iter().filter(|key| key.starts_with(ANNOTATION_PREFIX)).find(|key| {
        let of = |map: Option<&Map<String, Value>>| map.and_then(|map| map.get(*key)).cloned();
        of(old) != of(new)
    });
    let Some(key) = changed else { return Ok(()) };
    Err(Denial {
        reason: "ANNOTATION_CHANGED",
        message: format!(
            "annotation {key} of a pod can be neither added nor changed nor removed: what it says was settled when the \
             pod was created; create a new pod"
        ),
        code: 403,
    })
}

/// Whether a binding, whose annotations the API server writes into the pod, has none of ours.
pub(super) fn binding(binding: &Value) -> Result<Allowed, Denial> {
    match ours(annotations(binding)).next() {
        None => Ok(Allowed::default()),
        Some(key) => Err(Denial {
            reason: "ANNOTATION_CHANGED",
            message: format!(
                "a binding would write annotation {key} into the pod, where it was settled when the pod was created: \
                 remove it from the binding"
            ),
            code: 403,
        }),
    }
}

/// Warnings about annotations that begin like ours and mean nothing.
pub(super) fn unknown(at: &Pointer, annotations: Option<&Map<String, Value>>) -> Vec<String> {
    let known = |key: &str| STAMPS.contains(&key) || REQUEST_ANNOTATIONS.contains(&key);
    let unknown = ours(annotations).filter(|key| !known(key));
    unknown
        .map(|key| {
            format!(
                "annotation {key} in {} means nothing: there are {}",
                place(at),
                REQUEST_ANNOTATIONS.join(", ")
            )
        })
        .collect()
}

fn ours(annotations: Option<&Map<String, Value>>) -> impl Iterator<Item = &str> {
    let keys = annotations.into_iter().flat_map(Map::keys).map(String::as_str);
    keys.filter(|key| key.starts_with(ANNOTATION_PREFIX))
}

fn annotations(object: &Value) -> Option<&Map<String, Value>> {
    object.pointer("/metadata/annotations").and_then(Value::as_object)
}
