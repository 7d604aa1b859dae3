//! What is the same content, and what is not.

use super::*;

fn same(old: Value, new: Value) -> bool {
    let kinds = kinds();
    let kind = kinds.of_kind("apps", "Deployment").unwrap();
    let of = |template: Value| json!({"spec": {"template": template}});
    let (old, new) = (of(old), of(new));
    assert_eq!(kind.same_content(&old, &new), kind.same_content(&new, &old), "{old} {new}");
    kind.same_content(&old, &new)
}

fn spec(spec: Value) -> Value {
    json!({"metadata": {"labels": {"a": "b"}}, "spec": spec})
}

#[test]
fn what_typed_clients_leave_behind_or_drop_is_no_change() {
    let bare = spec(json!({"containers": [{"name": "a"}]}));
    for other in [
        json!({"metadata": {"labels": {"a": "b"}, "creationTimestamp": null, "annotations": {}},
               "spec": {"containers": [{"name": "a"}]}}),
        spec(json!({"containers": [{"name": "a", "resources": {}}], "securityContext": {}})),
        spec(
            json!({"containers": [{"name": "a", "env": []}], "tolerations": null, "volumes": [], "affinity": {"x": {}}}),
        ),
    ] {
        assert!(same(bare.clone(), other.clone()), "{other}");
    }
}

#[test]
fn what_means_something_is_a_change() {
    let bare = spec(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
    for other in [
        spec(json!({"containers": [{"name": "b"}, {"name": "a"}]})),
        spec(json!({"containers": [{"name": "a"}]})),
        spec(json!({"containers": [{"name": "a"}, {"name": "b"}, {}]})),
        spec(json!({"containers": [{"name": "a"}, {"name": "b", "image": "x"}]})),
        spec(json!({"containers": [{"name": "a"}, {"name": "b"}], "automountServiceAccountToken": false})),
        spec(json!({"containers": [{"name": "a"}, {"name": "b"}], "terminationGracePeriodSeconds": 0})),
        spec(json!({"containers": [{"name": "a"}, {"name": "b"}], "hostname": ""})),
        json!({"metadata": {"labels": {"a": "c"}}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
        json!({"metadata": {"labels": {"a": "b"}, "annotations": {"x": "y"}},
               "spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
        json!({"metadata": {"labels": {"a": "b"}}}),
        json!(null),
    ] {
        assert!(!same(bare.clone(), other.clone()), "{other}");
    }
}

#[test]
fn what_was_proven_is_no_content_and_what_is_asked_for_is() {
    let with =
        |annotations: Value| json!({"metadata": {"annotations": annotations}, "spec": {"hostname": "x"}});
    let plain = with(json!({"x": "y"}));
    let proven = json!({"x": "y", "hadoop-token.csi/submitter": "etl", "hadoop-token.csi/groups": "[]",
                        "hadoop-token.csi/seal": "s"});
    assert!(same(plain.clone(), with(proven)));
    for key in identity::REQUEST_ANNOTATIONS {
        assert!(!same(plain.clone(), with(json!({"x": "y", key: "true"}))), "{key}");
    }
    let labelled =
        json!({"metadata": {"labels": {"hadoop-token.csi/inject": "true"}}, "spec": {"hostname": "x"}});
    assert!(!same(json!({"spec": {"hostname": "x"}}), labelled));
}

#[test]
fn what_asks_counts_where_annotations_are_in_no_content() {
    let kinds = kinds();
    let kind = kinds.of_kind("trainer.kubeflow.org", "TrainJob").unwrap();
    let of = |metadata: Value| json!({"metadata": metadata, "spec": {"trainer": {"image": "x"}}});
    let old = of(json!({"annotations": {"hadoop-token.csi/seal": "s"}}));
    assert!(
        kind.same_content(&old, &of(json!({"annotations": {"example.org/a": "b"}, "labels": {"a": "b"}})))
    );
    assert!(!kind.same_content(&old, &of(json!({"annotations": {"hadoop-token.csi/do-as": "x"}}))));
    assert!(!kind.same_content(&old, &of(json!({"labels": {"hadoop-token.csi/inject": "true"}}))));
}

#[test]
fn a_notebooks_labels_and_annotations_are_content_but_for_those_that_stop_it_and_tell_its_time() {
    let kinds = kinds();
    let kind = kinds.of_kind("kubeflow.org", "Notebook").unwrap();
    let of =
        |metadata: Value| json!({"metadata": metadata, "spec": {"template": {"spec": {"hostname": "x"}}}});
    let labels = json!({"app": "n"});
    let old = of(json!({"annotations": {"hadoop-token.csi/seal": "s", "a": "b"}, "labels": labels}));
    let annotated = |key: &str| of(json!({"annotations": {"a": "b", key: "new"}, "labels": labels}));
    for key in [
        "kubeflow-resource-stopped",
        "notebooks.kubeflow.org/last-activity",
        "notebooks.kubeflow.org/last_activity_check_timestamp",
        "kubectl.kubernetes.io/last-applied-configuration",
        "hadoop-token.csi/submitter",
    ] {
        assert!(kind.same_content(&old, &annotated(key)), "{key}");
    }
    for key in ["sidecar.istio.io/proxyImage", "notebooks.kubeflow.org/http-rewrite-uri", "a"] {
        assert!(!kind.same_content(&old, &annotated(key)), "{key}");
    }
    let selected = of(json!({"annotations": {"a": "b"}, "labels": {"app": "n", "pod-default": "true"}}));
    assert!(!kind.same_content(&old, &selected));
    // What is no label and no annotation is no matter.
    let mut other = old.clone();
    other["metadata"]["finalizers"] = json!(["example.org/a"]);
    other["metadata"]["resourceVersion"] = json!("7");
    assert!(kind.same_content(&old, &other));
}

#[test]
fn what_a_workflow_runs_from_its_status_is_content_and_stamped_at_once() {
    let kinds = kinds();
    let kind = kinds.of_kind("argoproj.io", "Workflow").unwrap();
    let template =
        |image: &str| json!({"container": {"image": image}, "metadata": {"annotations": {"a": "b"}}});
    let stored = json!({"podMetadata": {"annotations": {"hadoop-token.csi/seal": "hers"}}, "templates": [template("x")]});
    let old = json!({
        "spec": {"workflowTemplateRef": {"name": "t"}, "podMetadata": {"annotations": {"hadoop-token.csi/seal": "hers"}}},
        "status": {
            "nodes": {"a": {"phase": "Running"}},
            "storedTemplates": {"namespaced/t/main": template("x")},
            "storedWorkflowTemplateSpec": stored,
        },
    });
    let changed = |at: &str, value: Value| {
        let mut new = old.clone();
        *new.pointer_mut(at).unwrap() = value;
        new
    };
    assert!(kind.same_content(&old, &changed("/status/nodes/a/phase", json!("Failed"))));
    let mut stopped = old.clone();
    stopped["status"]["storedWorkflowTemplateSpec"]["shutdown"] = json!("Stop");
    assert!(kind.same_content(&old, &stopped));
    let spec = "/status/storedWorkflowTemplateSpec";
    let templates = "/status/storedTemplates/namespaced~1t~1main";
    let annotations = format!("{templates}/metadata/annotations");
    for new in [
        changed(&format!("{spec}/templates/0"), template("y")),
        changed(templates, template("y")),
        changed(spec, json!(null)),
        // A seal of hers would go on with his program.
        changed(&annotations, json!({"hadoop-token.csi/seal": "hers"})),
        changed(&format!("{spec}/podMetadata/annotations"), json!({"hadoop-token.csi/seal": "other"})),
    ] {
        assert!(!kind.same_content(&old, &new), "{new}");
    }

    let mut edit =
        crate::patch::Edit::new(changed(&annotations, json!({"hadoop-token.csi/seal": "hers", "a": "b"})));
    kind.stamp(&mut edit, &BTreeMap::from([("hadoop-token.csi/seal", "his".to_owned())])).unwrap();
    let at = |at: &str| edit.object().pointer(at).cloned();
    let sealed = Some(json!({"hadoop-token.csi/seal": "his"}));
    assert_eq!(at("/spec/podMetadata/annotations"), sealed);
    assert_eq!(at(&format!("{spec}/podMetadata/annotations")), sealed);
    assert_eq!(at(&annotations), Some(json!({"a": "b"})));
    // What is not there is not made, and who made it is told by the workflow alone.
    let plain = json!({"spec": {"templates": [template("x")]}});
    let mut edit = crate::patch::Edit::new(plain.clone());
    kind.stamp(&mut edit, &BTreeMap::from([("hadoop-token.csi/seal", "his".to_owned())])).unwrap();
    assert_eq!(edit.object().get("status"), None);
    assert_eq!(kind.carriers(&old).len(), 1);
}

#[test]
fn scaling_away_and_back_is_no_change_and_a_further_template_is_one() {
    let kinds = kinds();
    let kind = kinds.of_kind("ray.io", "RayCluster").unwrap();
    let of = |groups: Value| json!({"spec": {"workerGroupSpecs": groups}});
    let group = |replicas: Value, image: &str| json!({"groupName": "g", "replicas": replicas, "template": {"spec": {"i": image}}});
    let old = of(json!([group(json!(1), "a")]));
    assert!(kind.same_content(&old, &of(json!([group(json!(null), "a")]))));
    assert!(!kind.same_content(&old, &of(json!([group(json!(1), "a"), group(json!(1), "b")]))));
    assert!(!kind.same_content(&old, &of(json!([]))));
}
