//! What is registered, held against what is to be: entries as they are, and the bundles in them.

use std::collections::BTreeSet;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::certificate::{self, Authority};

/// Whether the entries are these and no others. Bundles are compared only where they are ours.
pub(super) fn is_as_wanted(present: &[Value], wanted: &[Value], bundles_are_ours: bool) -> bool {
    if bundles_are_ours {
        return present == wanted;
    }
    let without_bundle = |entry: &Value| {
        let mut entry = entry.clone();
        if let Some(client) = entry.get_mut("clientConfig").and_then(Value::as_object_mut) {
            client.remove("caBundle");
        }
        entry
    };
    present.iter().map(without_bundle).eq(wanted.iter().map(without_bundle))
}

/// The wanted entries with the bundles that those of the same name have.
pub(super) fn with_bundles_of(present: &[Value], mut wanted: Vec<Value>) -> Vec<Value> {
    for entry in &mut wanted {
        let same = present.iter().find(|there| there.get("name") == entry.get("name"));
        let bundle = same.and_then(|there| there.pointer("/clientConfig/caBundle")).cloned();
        let client = entry.get_mut("clientConfig").and_then(Value::as_object_mut);
        if let (Some(client), Some(bundle)) = (client, bundle) {
            client.insert("caBundle".to_owned(), bundle);
        }
    }
    wanted
}

/// Takes authorities out of a bundle, if any of them is in it.
pub(super) fn without(client: &mut Value, retired: &BTreeSet<Authority>) -> bool {
    let present = certificate::read(&bundle_in(client));
    if present.is_disjoint(retired) {
        return false;
    }
    let left = certificate::bundle(&present.difference(retired).cloned().collect());
    if let Some(client) = client.as_object_mut() {
        client.remove("caBundle");
        if !left.is_empty() {
            client.insert("caBundle".to_owned(), json!(STANDARD.encode(left)));
        }
    }
    true
}

/// An entry's bundle, in PEM; empty when it has none that can be read.
pub(super) fn bundle_of(entry: &Value) -> Vec<u8> {
    entry.get("clientConfig").map(bundle_in).unwrap_or_default()
}

fn bundle_in(client: &Value) -> Vec<u8> {
    let bundle = client.get("caBundle").and_then(Value::as_str).unwrap_or_default();
    STANDARD.decode(bundle).unwrap_or_default()
}
