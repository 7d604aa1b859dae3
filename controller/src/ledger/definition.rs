//! The CustomResourceDefinition of `DelegationToken`: derived from the type, with what cannot be said there, and proved
//! to be the manifest that is installed.

use std::{env, fs};

use kube::CustomResourceExt;
use serde_json::{Value, json};

use super::resource::DelegationToken;

const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kubernetes/delegationtoken.yaml");

const HEADER: &str = "\
# The ledger: one object for each Hadoop token, in its pod's namespace. Deleting one revokes the token.
# Made from controller/src/ledger/resource.rs: WRITE_MANIFEST=1 cargo test manifest
";

fn definition() -> Value {
    let mut definition = serde_json::to_value(DelegationToken::crd()).unwrap();
    let version = &mut definition["spec"]["versions"][0];
    // One write sets token and status, so that neither is seen without the other.
    version.as_object_mut().unwrap().remove("subresources");
    let schema = &mut version["schema"]["openAPIV3Schema"];
    schema["description"] = schema["properties"]["spec"]["description"].clone();
    let spec = &mut schema["properties"]["spec"];
    let required = spec["required"].as_array().unwrap().clone();
    let mut once = Vec::new();
    for (name, property) in spec["properties"].as_object_mut().unwrap() {
        let rule = json!([{"rule": "self == oldSelf", "message": format!("{name} cannot change")}]);
        property["x-kubernetes-validations"] = rule;
        if !required.contains(&json!(name)) {
            let rule = format!("!has(oldSelf.{name}) || has(self.{name})");
            once.push(json!({"rule": rule, "message": format!("{name} cannot be taken back")}));
        }
    }
    spec["x-kubernetes-validations"] = once.into();
    bound(schema);
    definition
}

/// Bounds what is not, and says widths in the words that Kubernetes knows.
fn bound(schema: &mut Value) {
    match schema["format"].as_str() {
        Some("uint64") => schema["format"] = json!("int64"),
        Some("uint32") => schema["format"] = json!("int32"),
        _ => {}
    }
    match schema["type"].as_str() {
        Some("string") if schema.get("maxLength").is_none() && schema.get("enum").is_none() => {
            schema["maxLength"] = json!(2048);
        }
        Some("array") => schema["maxItems"] = json!(64),
        _ => {}
    }
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(bound);
    }
    if let Some(items) = schema.get_mut("items") {
        bound(items);
    }
}

#[test]
fn the_manifest_of_the_ledger_is_what_the_code_says() {
    let expected = HEADER.to_owned() + &serde_saphyr::to_string(&definition()).unwrap();
    if env::var_os("WRITE_MANIFEST").is_some() {
        fs::write(MANIFEST, &expected).unwrap();
    }
    let manifest = fs::read_to_string(MANIFEST).unwrap_or_default();
    assert!(manifest == expected, "make it anew: WRITE_MANIFEST=1 cargo test manifest");
    // What is written is what was meant.
    assert_eq!(serde_saphyr::from_str::<Value>(&manifest).unwrap(), definition());
}
