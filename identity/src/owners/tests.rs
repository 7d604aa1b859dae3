//! Which references count, and which kinds are read where. That chains are followed is tested where they are read.

use serde_json::json;

use super::*;

#[test]
fn an_owner_that_is_no_controller_is_not_followed() {
    let references = |controller: serde_json::Value| {
        let reference = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "u-1", "controller": controller});
        controller_of(vec![serde_json::from_value(reference).unwrap()])
    };
    assert_eq!(references(json!(false)), None);
    assert_eq!(references(json!(null)), None);
    assert_eq!(references(json!(true)).unwrap().to_string(), "ConfigMap c (u-1)");
    assert_eq!(controller_of(Vec::new()), None);
}

#[test]
fn kinds_of_operators_are_read_in_the_version_that_is_named() {
    let owner = |api_version: &str, kind: &str| Owner {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        name: "x".to_owned(),
        uid: "u-1".to_owned(),
    };
    let path = |kinds: &OwnerKinds, owner: &Owner| kinds.path("jobs", owner).unwrap();
    let kinds = OwnerKinds::default();
    for version in ["v1", "v2beta1"] {
        assert_eq!(
            path(&kinds, &owner(&format!("kubeflow.org/{version}"), "MPIJob")),
            format!("/apis/kubeflow.org/{version}/namespaces/jobs/mpijobs/x")
        );
    }
    // Kubernetes' own in the version that there is.
    assert_eq!(path(&kinds, &owner("batch/v1beta1", "CronJob")), "/apis/batch/v1/namespaces/jobs/cronjobs/x");
    assert_eq!(path(&kinds, &owner("v1", "Pod")), "/api/v1/namespaces/jobs/pods/x");
    assert_eq!(kinds.path("jobs", &owner("example.com/v1", "MPIJob")), None);
    assert!(kinds.reads("kubeflow.org", "MPIJob") && kinds.reads("", "Pod"));
    assert!(!kinds.reads("example.com", "MPIJob") && !kinds.reads("kubeflow.org", "Pod"));
    let fixed = OwnerKind {
        api_version: "kubeflow.org/v2beta1".to_owned(),
        kind: "MPIJob".to_owned(),
        resource: "mpijobs".to_owned(),
    };
    assert_eq!(
        path(&OwnerKinds::new(vec![fixed]).unwrap(), &owner("kubeflow.org/v1", "MPIJob")),
        "/apis/kubeflow.org/v2beta1/namespaces/jobs/mpijobs/x"
    );
}

#[test]
fn a_kind_that_cannot_stand_in_a_path_or_is_there_already_is_a_mistake() {
    let mistakes = |api_version: &str, kind: &str, resource: &str| {
        let [api_version, kind, resource] = [api_version, kind, resource].map(str::to_owned);
        OwnerKinds::new(vec![OwnerKind { api_version, kind, resource }]).map(drop).unwrap_err().join("\n")
    };
    assert!(mistakes("a/b/c", "Kind", "kinds").contains("a/b/c"));
    assert!(mistakes("a/v1", "Kind", "kinds/../x").contains("kinds/../x"));
    assert!(mistakes("a/v1", "../x", "kinds").contains("../x"));
    assert!(mistakes("", "Kind", "kinds").contains("apiVersion \"\""));
    assert!(mistakes("batch/v1", "Job", "jobs").contains("batch/v1 Job is there already"));
}
