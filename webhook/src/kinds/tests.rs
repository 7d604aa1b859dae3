mod content;
mod section;
mod snapshots;

use serde_json::json;

use super::*;
use crate::admission::STAMPS;

fn kinds() -> Kinds {
    Kinds::default()
}

#[test]
fn a_kind_is_known_by_its_group_and_not_by_its_name_alone() {
    let kinds = kinds();
    let found = |group, resource| kinds.of_resource(group, resource).map(|kind| kind.kind.clone());
    assert_eq!(found("batch", "jobs").as_deref(), Some("Job"));
    assert_eq!(found("batch.volcano.sh", "jobs").as_deref(), Some("Job"));
    assert_eq!(found("example.org", "jobs"), None);
    assert_eq!(kinds.of_kind("", "Pod").map(Kind::is_pod), Some(true));
    assert_eq!(kinds.of_kind("metrics.k8s.io", "Pod"), None);
    assert_eq!(kinds.iter().filter(|kind| kind.is_pod()).count(), 1);
}

#[test]
fn owners_of_all_built_in_kinds_are_read() {
    let owners = identity::owners::OwnerKinds::default();
    for kind in kinds().iter().filter(|kind| kind.kind != "ControllerRevision") {
        let owner = identity::owners::Owner {
            api_version: format!("{}/v1", kind.group).trim_start_matches('/').to_owned(),
            kind: kind.kind.clone(),
            name: "x".to_owned(),
            uid: String::new(),
        };
        let path = owners.path("jobs", &owner).unwrap_or_else(|| panic!("{} is not read", kind.kind));
        assert!(path.ends_with(&format!("/namespaces/jobs/{}/x", kind.resource)), "{path}");
    }
}

#[test]
fn no_resource_is_there_twice() {
    let kinds = kinds();
    for kind in kinds.iter() {
        assert_eq!(kinds.of_resource(&kind.group, &kind.resource), Some(kind));
    }
}

#[test]
fn a_carrier_is_where_its_parent_is_though_it_has_no_annotations() {
    let kinds = kinds();
    let spark = kinds.of_kind("sparkoperator.k8s.io", "SparkApplication").unwrap();
    let volumes =
        json!([{"name": "t", "csi": {"driver": "hadoop-token.csi", "volumeAttributes": {"doAs": "x"}}}]);
    let object = json!({"spec": {
        "volumes": volumes,
        "driver": {"annotations": null},
        "executor": {"template": {"metadata": {"annotations": {"a": "b"}}, "spec": {"volumes": volumes}}},
    }});
    let found = spark.carriers(&object);
    let at: Vec<_> = found.iter().map(|found| found.annotations.as_str()).collect();
    let template = "/spec/executor/template/metadata/annotations";
    assert_eq!(at, ["/spec/driver/annotations", "/spec/executor/annotations", template]);
    let [driver, _, template] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((driver.current, &driver.pod), (None, &None));
    assert_eq!(driver.volumes.iter().map(|(at, _)| at.as_str()).collect::<Vec<_>>(), ["/spec/volumes"]);
    assert_eq!(driver.token_volumes().count(), 1);
    assert_eq!(template.annotation("a"), Some("b"));
    assert_eq!(template.pod.as_ref().map(|(at, _)| at.as_str()), Some("/spec/executor/template/spec"));
    assert_eq!(
        template.volumes.iter().map(|(at, _)| at.as_str()).collect::<Vec<_>>(),
        ["/spec/executor/template/spec/volumes"]
    );
}

#[test]
fn a_token_is_involved_by_volume_annotation_or_label_and_by_nothing_else() {
    let kinds = kinds();
    let pod = kinds.of_kind("", "Pod").unwrap();
    let csi = |csi: Value| json!({"spec": {"volumes": [null, 7, {"name": "a"}, {"csi": csi}]}});
    let metadata = |key: &str, map: Value| json!({"metadata": {key: map}});
    for (involved, object) in [
        (true, csi(json!({"driver": "hadoop-token.csi"}))),
        (false, csi(json!({"driver": "secrets.csi"}))),
        (false, csi(json!({"driver": ["hadoop-token.csi"]}))),
        (false, csi(json!("hadoop-token.csi"))),
        (false, json!({"spec": {"volumes": {"csi": {"driver": "hadoop-token.csi"}}}})),
        (true, metadata("annotations", json!({"hadoop-token.csi/inject": "false"}))),
        (true, metadata("annotations", json!({"hadoop-token.csi/x": null}))),
        (false, metadata("annotations", json!({"hadoop-token.csi": "x", "x.hadoop-token.csi/y": "z"}))),
        (false, metadata("annotations", json!(["hadoop-token.csi/inject"]))),
        (true, metadata("labels", json!({"hadoop-token.csi/inject": "true"}))),
        (false, metadata("labels", json!({"hadoop-token.csi/inject": "false"}))),
        (false, metadata("labels", json!({"hadoop-token.csi/inject": true}))),
        (false, metadata("labels", json!({"hadoop-token.csi/x": "true"}))),
        (false, json!(null)),
        (false, json!("text")),
        (false, json!({"metadata": null, "spec": []})),
    ] {
        assert_eq!(pod.involves_token(&object), involved, "{object}");
    }
}

#[test]
fn stamps_involve_a_token_and_nothing_more() {
    let kinds = kinds();
    let pod = kinds.of_kind("", "Pod").unwrap();
    let annotated = |keys: &[&str]| {
        let map: serde_json::Map<_, _> = keys.iter().map(|key| ((*key).to_owned(), json!("x"))).collect();
        json!({"metadata": {"annotations": map}})
    };
    let stamped = annotated(&STAMPS);
    assert!(pod.involves_token(&stamped) && !pod.involves_more_than_stamps(&stamped));
    for key in
        identity::REQUEST_ANNOTATIONS.into_iter().chain(["hadoop-token.csi/x", "hadoop-token.csi/seals"])
    {
        assert!(pod.involves_more_than_stamps(&annotated(&[&STAMPS[..], &[key]].concat())), "{key}");
    }
    let mut with_volume = stamped.clone();
    with_volume["spec"] = json!({"volumes": [{"csi": {"driver": "hadoop-token.csi"}}]});
    assert!(pod.involves_more_than_stamps(&with_volume));
    let mut labelled = stamped;
    labelled["metadata"]["labels"] = json!({"hadoop-token.csi/inject": "true"});
    assert!(pod.involves_more_than_stamps(&labelled));
}

#[test]
fn what_pods_get_of_a_sealed_carrier_is_content() {
    for kind in kinds().iter().filter(|kind| !kind.is_pod()) {
        assert_eq!(handed_down(&kind.carriers, &kind.content), BTreeSet::new(), "{}", kind.kind);
    }
}
