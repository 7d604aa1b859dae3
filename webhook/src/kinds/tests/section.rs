//! Kinds by configuration.

use super::*;

fn read(yaml: &str) -> Result<Kinds, Vec<String>> {
    Kinds::new(serde_saphyr::from_str(yaml).unwrap())
}

#[test]
fn a_kind_of_configuration_is_treated_like_a_built_in_one() {
    let kinds = read(
        r#"
- group: example.org
  kind: Training
  resource: trainings
  templates: ["spec.workers.*.template"]
  carriers:
    - at: spec.driver
      annotations: pod.annotations
      labels: pod.labels
      pod: pod["the.spec"]
      volumes: ["spec.shared[*].volumes"]
  scaling: ["spec.workers.*.replicas"]
"#,
    )
    .unwrap();
    let kind = kinds.of_resource("example.org", "trainings").unwrap();
    assert_eq!(kinds.of_kind("example.org", "Training"), Some(kind));
    let token = json!([{"name": "t", "csi": {"driver": "hadoop-token.csi"}}]);
    let object = json!({"spec": {
        "workers": {"a": {"replicas": 1, "template": {}}},
        "driver": {"pod": {"the.spec": {"volumes": [{"name": "v"}]}}},
        "shared": [{"volumes": token}],
    }});
    let found = kind.carriers(&object);
    let at: Vec<_> = found.iter().map(|found| found.annotations.as_str()).collect();
    assert_eq!(at, ["/spec/workers/a/template/metadata/annotations", "/spec/driver/pod/annotations"]);
    assert_eq!(found[1].volumes.len(), 2);
    assert!(kind.involves_token(&object));
    let mut scaled = object.clone();
    scaled["spec"]["workers"]["a"]["replicas"] = json!(5);
    assert!(kind.same_content(&object, &scaled));
    scaled["spec"]["workers"]["a"]["image"] = json!("x");
    assert!(!kind.same_content(&object, &scaled));
}

#[test]
fn labels_and_annotations_of_a_carrier_are_content_wherever_they_are() {
    let kinds = read(
        r#"
- group: example.org
  kind: Training
  resource: trainings
  carriers:
    - {annotations: metadata.annotations, labels: metadata.labels, pod: spec.pod}
    - {at: "extra[*]", annotations: podAnnotations}
  scaling: ['metadata.annotations["example.org/paused"]']
"#,
    )
    .unwrap();
    let kind = kinds.of_kind("example.org", "Training").unwrap();
    let of = |metadata: Value, extra: &str| json!({"metadata": metadata, "spec": {"pod": {}}, "extra": [{"podAnnotations": {"a": extra}, "size": extra}]});
    let old = of(json!({"annotations": {"a": "b"}}), "x");
    for (same, annotations) in
        [(true, json!({"a": "b", "example.org/paused": "true"})), (false, json!({"a": "c"}))]
    {
        assert_eq!(
            kind.same_content(&old, &of(json!({"annotations": annotations}), "x")),
            same,
            "{annotations}"
        );
    }
    let labelled = json!({"annotations": {"a": "b"}, "labels": {"a": "b"}});
    assert!(!kind.same_content(&old, &of(labelled, "x")));
    let mut extra = old.clone();
    extra["extra"][0]["size"] = json!("y");
    assert!(kind.same_content(&old, &extra));
    assert!(!kind.same_content(&old, &of(json!({"annotations": {"a": "b"}}), "y")));
}

#[test]
fn every_mistake_is_told_at_once_with_the_number_of_its_entry() {
    let mistakes = read(
        r#"
- {group: example, kind: training, resource: Trainings}
- group: example.org
  kind: Training
  resource: trainings
  templates: ["spec..template", "spec.tasks[0]"]
  carriers:
    - {annotations: "spec.*.annotations", labels: "", pod: "a[*]"}
  scaling: [status.replicas, spec, "spec.tasks[*]", "spec.tasks[*].replicas"]
- {group: batch, kind: Job, resource: jobs, templates: [spec.template]}
- {group: batch.volcano.sh, kind: Job, resource: vcjobs, templates: [spec.template]}
- {group: a.example.org, kind: A, resource: as, templates: [spec.template]}
- {group: a.example.org, kind: B, resource: as, templates: [spec.template]}
"#,
    )
    .unwrap_err();
    let expected = [
        ("entry 1", "group \"example\", kind \"training\" and resource \"Trainings\" are not like"),
        ("entry 1", "neither templates nor carriers"),
        ("entry 2", "\"spec..template\" is no path"),
        ("entry 2", "\"spec.tasks[0]\" is no path"),
        ("entry 2", "\"spec.*.annotations\" has to be keys only"),
        ("entry 2", "\"\" has to be keys only"),
        ("entry 2", "\"a[*]\" has to be keys only"),
        ("entry 2", "\"status.replicas\" is inside no content"),
        ("entry 2", "\"spec\" is inside no content"),
        ("entry 2", "\"spec.tasks[*]\" has to end with a key"),
        ("entry 3", "group \"batch\""),
        ("entry 4", "Job of \"batch.volcano.sh\" is there already"),
        ("entry 6", "a.example.org/as is there already"),
    ];
    assert_eq!(mistakes.len(), expected.len(), "{mistakes:#?}");
    for (mistake, (entry, problem)) in mistakes.iter().zip(expected) {
        assert!(mistake.starts_with(entry) && mistake.contains(problem), "{mistake}");
    }
}

#[test]
fn an_unknown_key_is_a_mistake() {
    let unknown = "[{group: e.org, kind: A, resource: as, template: [spec]}]";
    assert!(
        serde_saphyr::from_str::<Vec<KindSection>>(unknown).unwrap_err().to_string().contains("template")
    );
}

const DOCUMENT: &str = include_str!("../../../../docs/workloads.md");

#[test]
fn the_documents_example_is_one() {
    let (_, example) = DOCUMENT.split_once("```workloads\n").unwrap();
    let (example, _) = example.split_once("```").unwrap();
    let kinds = read(example).unwrap();
    let kind = kinds.of_kind("example.org", "Training").unwrap();
    let object = json!({"spec": {
        "paused": false,
        "workers": {"a": {"template": {}}},
        "stages": [{"template": {}}],
        "driver": {"podAnnotations": {"hadoop-token.csi/inject": "true"}},
    }});
    assert_eq!(kind.carriers(&object).len(), 3);
    assert!(kind.involves_token(&object));
    let mut paused = object.clone();
    paused["spec"]["paused"] = json!(true);
    assert!(kind.same_content(&object, &paused));
}

#[test]
fn the_document_names_every_kind() {
    let rows: Vec<_> = DOCUMENT.lines().filter(|line| line.starts_with("| ")).collect();
    for kind in kinds().iter() {
        let name = if kind.group == "batch.volcano.sh" { "Volcano Job" } else { &kind.kind };
        let named = |row: &&str| {
            let cell = row.split('|').nth(1).unwrap_or_default();
            cell.split(',').any(|word| word.trim().split(" (").next() == Some(name))
        };
        assert!(rows.iter().any(named), "{name} is in no row");
    }
}
