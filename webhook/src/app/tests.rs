//! The manifests give the programs the rights that they need, and no more.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::kinds::Kinds;

const WEBHOOK: &str = include_str!("../../../deploy/kubernetes/webhook/webhook.yaml");
const CONTROLLER: &str = include_str!("../../../deploy/kubernetes/controller.yaml");

/// The rules of all ClusterRoles that have this label.
fn rules(manifest: &str, label: &str) -> Vec<Value> {
    let objects: Vec<Value> = serde_saphyr::from_multiple(manifest).unwrap();
    let roles = objects.into_iter().filter(|object| object["metadata"]["labels"][label] == json!("true"));
    let rules: Vec<Value> = roles.flat_map(|role| role["rules"].as_array().cloned().unwrap()).collect();
    assert!(rules.len() > 5, "{rules:?}");
    rules
}

fn has(list: &Value, word: &str) -> bool {
    list.as_array().is_some_and(|list| list.contains(&json!(word)))
}

fn check_reads(rules: &[Value], never: &[&str]) {
    for kind in Kinds::new(Vec::new()).unwrap().iter().filter(|kind| !never.contains(&kind.kind.as_str())) {
        let reads = rules.iter().any(|rule| {
            has(&rule["apiGroups"], &kind.group)
                && has(&rule["resources"], &kind.resource)
                && has(&rule["verbs"], "get")
        });
        assert!(reads, "{} of {:?} cannot be read", kind.resource, kind.group);
    }
}

#[test]
fn both_programs_may_read_every_kind_from_which_pods_come() {
    check_reads(&rules(WEBHOOK, "hadoop-token.csi/aggregate-to-webhook"), &[]);
    // Nothing is owned by a revision.
    check_reads(&rules(CONTROLLER, "hadoop-token.csi/aggregate-to-controller"), &["ControllerRevision"]);
}

#[test]
fn the_webhook_may_write_nothing_but_its_registrations() {
    let mut written = BTreeSet::new();
    for rule in rules(WEBHOOK, "hadoop-token.csi/aggregate-to-webhook") {
        let verbs = rule["verbs"].as_array().unwrap().clone();
        if verbs.iter().any(|verb| !["get", "list"].contains(&verb.as_str().unwrap())) {
            assert_eq!(verbs, [json!("get"), json!("patch")]);
            assert_eq!(rule["resourceNames"], json!(["hadoop-token-csi"]));
            written.extend(rule["resources"].as_array().unwrap().iter().map(Value::to_string));
        }
    }
    let registrations = [r#""mutatingwebhookconfigurations""#, r#""validatingwebhookconfigurations""#];
    assert_eq!(written, registrations.map(str::to_owned).into());
}
