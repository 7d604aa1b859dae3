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
    let kind = kinds.of_kind("kubeflow.org", "Notebook").unwrap();
    let of =
        |metadata: Value| json!({"metadata": metadata, "spec": {"template": {"spec": {"hostname": "x"}}}});
    let old = of(json!({"annotations": {"hadoop-token.csi/seal": "s"}}));
    let stopped = json!({"annotations": {"kubeflow-resource-stopped": "2030-01-01"}, "labels": {"a": "b"}});
    assert!(kind.same_content(&old, &of(stopped)));
    assert!(!kind.same_content(&old, &of(json!({"annotations": {"hadoop-token.csi/do-as": "x"}}))));
    assert!(!kind.same_content(&old, &of(json!({"labels": {"hadoop-token.csi/inject": "true"}}))));
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
