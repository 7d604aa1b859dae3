//! What of an object somebody submitted, in a form in which equal means the same.

use std::collections::BTreeMap;

use identity::{ANNOTATION_PREFIX, INJECT_ANNOTATION, REQUEST_ANNOTATIONS};
use json_patch::jsonptr::{Pointer, PointerBuf};
use serde_json::{Map, Value};

use super::Kind;

/// The content of `object`, by place.
pub(super) fn of(kind: &Kind, object: &Value) -> BTreeMap<PointerBuf, Value> {
    let mut bare = object.clone();
    let mut places: Vec<PointerBuf> = Vec::new();
    let mut asked = BTreeMap::new();
    for found in kind.carriers(object) {
        places.extend(found.pod.iter().chain(&found.volumes).map(|(at, _)| at.clone()));
        // What is asked for by annotations and labels counts even where these are in no content.
        let requests = pick(found.current, &REQUEST_ANNOTATIONS);
        let labels = pick(found.labels, &[INJECT_ANNOTATION]);
        asked.insert(
            found.annotations.with_trailing_token(ANNOTATION_PREFIX),
            Value::Array(vec![requests, labels]),
        );
        if let Some(map) = map_mut(&mut bare, &found.annotations) {
            map.retain(|key, _| !key.starts_with(ANNOTATION_PREFIX));
        }
    }
    for (at, _) in kind.scaling.iter().flat_map(|path| path.find(object)) {
        if let (Some(above), Some(last)) = (at.parent(), at.last())
            && let Some(map) = map_mut(&mut bare, above)
        {
            map.remove(last.decoded().as_ref());
        }
    }
    places.extend(kind.content.iter().flat_map(|path| path.find(object)).map(|(at, _)| at));
    let content = places.into_iter().filter_map(|at| {
        let value = at.resolve(&bare).ok().cloned().and_then(meaning)?;
        Some((at, value))
    });
    content.chain(asked).collect()
}

fn map_mut<'a>(object: &'a mut Value, at: &Pointer) -> Option<&'a mut Map<String, Value>> {
    at.resolve_mut(object).ok()?.as_object_mut()
}

/// Those of `keys` that are in `map`.
fn pick(map: Option<&Map<String, Value>>, keys: &[&str]) -> Value {
    let of = |key: &str| Some((key.to_owned(), map?.get(key)?.clone()));
    Value::Object(keys.iter().filter_map(|key| of(key)).collect())
}

/// `value` without what means nothing; nothing if nothing is left. Controllers that write a typed object back leave
/// `resources: {}` and `creationTimestamp: null` behind, or drop an empty list. Items of lists stay where they are.
fn meaning(value: Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Object(map) => {
            let map: Map<_, _> =
                map.into_iter().filter_map(|(key, value)| Some((key, meaning(value)?))).collect();
            (!map.is_empty()).then_some(Value::Object(map))
        }
        Value::Array(items) => {
            let items: Vec<_> = items.into_iter().map(|item| meaning(item).unwrap_or(Value::Null)).collect();
            (!items.is_empty()).then_some(Value::Array(items))
        }
        other => Some(other),
    }
}
