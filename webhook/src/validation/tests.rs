use std::sync::LazyLock;

use identity::seal::{JwkSet, KeySet, Owner, Seal, SealingKey, Submission};
use kube::core::{DynamicObject, admission::AdmissionRequest};
use serde_json::{Value, json};

use super::{Interactive, Validation, calling_pod, pod_to_read};
use crate::{
    admission::{Allowed, Denial, Question, Verdict},
    injection,
    kinds::Kinds,
    own_seal::Verifier,
};

static KINDS: LazyLock<Kinds> = LazyLock::new(Kinds::default);
static KEY: LazyLock<SealingKey> = LazyLock::new(SealingKey::generate);

/// A request of `user` in namespace `jobs`, to `RESOURCE` or `RESOURCE/SUBRESOURCE`, of the group before a dot.
fn question(
    user: &str,
    groups: &[&str],
    operation: &str,
    resource: &str,
    old: &Value,
    new: &Value,
) -> Question {
    let (resource, sub) = resource.split_once('/').unwrap_or((resource, ""));
    let (group, resource) = resource.rsplit_once('.').unwrap_or(("", resource));
    let request: AdmissionRequest<DynamicObject> = serde_json::from_value(json!({
        "uid": "1",
        "kind": {"group": group, "version": "v1", "kind": "Whatever"},
        "resource": {"group": group, "version": "v1", "resource": resource},
        "subResource": Some(sub).filter(|sub| !sub.is_empty()),
        "name": "etl-0",
        "namespace": "jobs",
        "operation": operation,
        "userInfo": {"username": user, "groups": groups},
    }))
    .unwrap();
    Question { request, object: new.clone(), old_object: old.clone() }
}

fn decided(question: &Question, pod: Option<&Value>) -> Verdict {
    decided_for(question, pod, None)
}

fn decided_for(question: &Question, pod: Option<&Value>, caller: Option<&Value>) -> Verdict {
    let interactive = Interactive { groups: ["admins".to_owned()].into() };
    let keys = KeySet::from_jwk_set(JwkSet { keys: vec![KEY.public_jwk()] }.to_json().as_bytes()).unwrap();
    let injection = injection::Config::default();
    let verifier = Verifier { keys: &keys, tolerance: 120 };
    let validation = Validation { kinds: &KINDS, interactive: &interactive, injection: &injection, verifier };
    validation.decide(question, pod, caller)
}

fn allowed(verdict: Verdict) -> Allowed {
    match verdict {
        Verdict::Allowed(allowed) => allowed,
        Verdict::Denied(denial) => panic!("{denial:?}"),
    }
}

fn denied(verdict: Verdict) -> Denial {
    match verdict {
        Verdict::Denied(denial) => denial,
        Verdict::Allowed(allowed) => panic!("{allowed:?}"),
    }
}

fn create(resource: &str, object: &Value) -> Verdict {
    decided(&question("etl", &[], "CREATE", resource, &json!(null), object), None)
}

fn update(user: &str, resource: &str, old: &Value, new: &Value) -> Verdict {
    decided(&question(user, &["admirers"], "UPDATE", resource, old, new), None)
}

fn connect(user: &str, groups: &[&str], deed: &str, pod: Option<&Value>) -> Verdict {
    let question = question(user, groups, "CONNECT", &format!("pods/{deed}"), &json!(null), &json!({}));
    assert_eq!(pod_to_read(&question), Some(("jobs", "etl-0")));
    decided(&question, pod)
}

/// A pod with the volume, not sealed.
fn bare_pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "etl-0", "namespace": "jobs", "annotations": {"other": "1"}},
        "spec": {
            "containers": [{
                "name": "main",
                "image": "tools:1",
                "volumeMounts": [{"name": "hadoop-token", "mountPath": "/etc/hadoop-token"}],
            }],
            "volumes": [{"name": "hadoop-token", "csi": {"driver": "hadoop-token.csi", "readOnly": true}}],
        },
    })
}

fn sealed(pod: Value, submitter: &str) -> Value {
    sealed_under(None, pod, submitter)
}

/// A pod of the job with this UID.
fn sealed_under(job: Option<&str>, mut pod: Value, submitter: &str) -> Value {
    let root_owner =
        job.map(|uid| Owner { uid: uid.to_owned(), kind: "MPIJob".to_owned(), ..Owner::default() });
    let submission = Submission { submitter: submitter.to_owned(), groups: Vec::new(), root_owner, time: 1 };
    let seal = Seal::of_pod(&submission, "jobs", &pod).unwrap();
    for (key, value) in KEY.annotations(&seal, &[]).unwrap() {
        pod["metadata"]["annotations"][key] = json!(value);
    }
    pod
}

/// The pod of etl.
fn pod() -> Value {
    sealed(bare_pod(), "etl")
}

/// `object` with a value elsewhere: at a pointer whose parent is there.
fn with(object: &Value, pointer: &str, value: Value) -> Value {
    let mut object = object.clone();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    match object.pointer_mut(parent).unwrap() {
        Value::Array(list) => list.push(value),
        parent => parent[key.replace("~1", "/")] = value,
    }
    object
}

fn without(object: &Value, pointer: &str) -> Value {
    let mut object = object.clone();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    object.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(&key.replace("~1", "/")).unwrap();
    object
}

/// Refused at a pod and in a template alike, with these words.
#[track_caller]
fn check_manifest(pointer: &str, value: Value, reason: &str, words: &[&str]) {
    let spec = &with(&bare_pod(), pointer, value)["spec"];
    let pod = json!({"metadata": {"name": "etl-0"}, "spec": spec});
    let deployment =
        json!({"metadata": {"name": "etl"}, "spec": {"template": {"metadata": {}, "spec": spec}}});
    for (resource, object, place) in
        [("pods", pod, " in spec."), ("apps.deployments", deployment, " in spec.template.spec.")]
    {
        let denial = denied(create(resource, &object));
        assert_eq!((denial.reason, denial.code), (reason, 422), "{denial:?}");
        for word in words.iter().chain([&place]) {
            assert!(denial.message.contains(word), "{word:?} is not in {:?}", denial.message);
        }
    }
}

#[test]
fn a_volume_that_cannot_work_is_refused_with_what_to_change() {
    let csi = "/spec/volumes/0/csi";
    let check = |field: &str, value, reason, words: &[&str]| {
        check_manifest(&format!("{csi}/{field}"), value, reason, words);
    };
    check("readOnly", json!(false), "VOLUME_NOT_READ_ONLY", &["\"hadoop-token\"", "set csi.readOnly: true"]);
    check("readOnly", json!(null), "VOLUME_NOT_READ_ONLY", &[]);
    let known = "may have cluster, doAs, scope";
    check("volumeAttributes", json!({"clustre": "a"}), "UNKNOWN_ATTRIBUTE", &["\"clustre\"", known]);
    check("volumeAttributes", json!({"scope": "Job"}), "SCOPE_UNKNOWN", &["\"Job\"", "\"pod\" or \"job\""]);
    check(
        "nodePublishSecretRef",
        json!({"name": "s"}),
        "SECRET_REFERENCE_REFUSED",
        &["nodePublishSecretRef"],
    );
    check("fsType", json!("ext4"), "UNSUPPORTED_FS_TYPE", &["remove csi.fsType"]);
}

#[test]
fn a_mount_that_would_never_show_a_new_token_or_lets_it_out_is_refused() {
    let mount = "/spec/containers/0/volumeMounts/0";
    let check = |field: &str, value, reason, words: &[&str]| {
        check_manifest(&format!("{mount}/{field}"), value, reason, words);
    };
    check("subPath", json!("token"), "TOKEN_SUB_PATH", &["container \"main\"", "remove subPath and mount"]);
    check("subPathExpr", json!("$(A)"), "TOKEN_SUB_PATH", &["remove subPathExpr"]);
    check("mountPropagation", json!("Bidirectional"), "TOKEN_MOUNT_PROPAGATED", &["remove mountPropagation"]);
    for list in ["initContainers", "ephemeralContainers"] {
        let part = json!({"name": "hadoop-token", "mountPath": "/t", "subPath": "token"});
        let containers = json!([{"name": "first", "volumeMounts": [part]}]);
        check_manifest(&format!("/spec/{list}"), containers, "TOKEN_SUB_PATH", &["\"first\"", list]);
    }
}

#[test]
fn volumes_of_others_and_what_works_are_let_through() {
    let other = with(&bare_pod(), "/spec/volumes/0/csi", json!({"driver": "other.csi", "fsType": "ext4"}));
    allowed(create("pods", &with(&other, "/spec/containers/0/volumeMounts/0/subPath", json!("a"))));
    let attributes = json!({"cluster": "main", "scope": "job"});
    let good = with(&bare_pod(), "/spec/volumes/0/csi/volumeAttributes", attributes);
    let good = with(&good, "/spec/containers/0/volumeMounts/0/mountPropagation", json!("None"));
    allowed(create("pods", &sealed(good, "etl")));
    allowed(create("apps.deployments", &json!({})));
    allowed(create("pods", &json!({"spec": {"volumes": {}, "containers": "x"}})));
}

#[test]
fn a_request_that_is_not_understood_is_refused_in_a_template_already() {
    let metadata = json!({"annotations": {"hadoop-token.csi/inject": "yes"}});
    let job = json!({"metadata": {"name": "etl"}, "spec": {"template": {"metadata": metadata, "spec": {}}}});
    assert_eq!(denied(create("batch.jobs", &job)).reason, "REQUEST_NOT_UNDERSTOOD");
    let metadata = json!({"annotations": {"hadoop-token.csi/do_as": "batch"}});
    let job = json!({"metadata": {"name": "etl"}, "spec": {"template": {"metadata": metadata, "spec": {}}}});
    let warnings = allowed(create("batch.jobs", &job)).warnings;
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0]
            .starts_with("annotation hadoop-token.csi/do_as in spec.template.metadata.annotations means"),
        "{warnings:?}"
    );
}

#[test]
fn who_asks_for_details_of_nothing_is_told_so() {
    let asks = |annotations: Value, volumes: Value| {
        let spec = json!({"containers": [], "volumes": volumes});
        let metadata = json!({"name": "etl-0", "namespace": "jobs", "annotations": annotations});
        allowed(create("pods", &sealed(json!({"metadata": metadata, "spec": spec}), "etl"))).warnings
    };
    let details = json!({"hadoop-token.csi/cluster": "main", "hadoop-token.csi/scope": ""});
    assert_eq!(
        asks(details.clone(), json!([])),
        [
            r#"annotation hadoop-token.csi/cluster comes to nothing, because hadoop-token.csi/inject: "true" is not there"#
        ]
    );
    assert!(asks(details, bare_pod()["spec"]["volumes"].clone()).is_empty());
    assert!(asks(json!({"hadoop-token.csi/inject": "false"}), json!([])).is_empty());
}

#[test]
fn a_headless_account_must_be_in_the_pods_seal() {
    let asks =
        |account: &str| with(&bare_pod(), "/spec/volumes/0/csi/volumeAttributes", json!({"doAs": account}));
    allowed(create("pods", &sealed(asks("batch"), "etl")));
    let mut changed = sealed(asks("batch"), "etl");
    changed["spec"]["volumes"][0]["csi"]["volumeAttributes"]["doAs"] = json!("payroll");
    let denial = denied(create("pods", &changed));
    assert_eq!((denial.reason, denial.code), ("DO_AS_NOT_SEALED", 403));
    let words = "\"payroll\", which came to the pod after it was sealed";
    assert!(denial.message.contains(words), "{}", denial.message);
}

#[test]
fn a_volume_that_came_after_the_seal_is_not_let_in_to_wait_for_ever() {
    allowed(create("pods", &pod()));
    allowed(create("apps.deployments", &json!({"spec": {"template": {"spec": bare_pod()["spec"]}}})));
    for (pod, words) in [
        (bare_pod(), "it has a token volume, and it has no seal"),
        (with(&pod(), "/metadata/name", json!("etl-1")), "its seal is that of another pod"),
        (
            with(&bare_pod(), "/metadata/annotations/hadoop-token.csi~1seal", json!("x")),
            "its seal cannot be trusted",
        ),
    ] {
        let denial = denied(create("pods", &pod));
        assert_eq!((denial.reason, denial.code), ("SEAL_MISSING", 403));
        assert!(denial.message.contains(words), "{}", denial.message);
        assert!(denial.message.contains("which webhook changes pods after this one"), "{}", denial.message);
    }
}

#[test]
fn an_older_object_with_mistakes_can_still_be_scaled_and_deleted_but_gets_no_new_ones() {
    let spec = with(&bare_pod(), "/spec/volumes/0/csi/readOnly", json!(false))["spec"].clone();
    let old = json!({
        "metadata": {"name": "etl", "finalizers": ["foregroundDeletion"]},
        "spec": {"replicas": 1, "template": {"metadata": {}, "spec": spec}},
    });
    allowed(update("etl", "apps.deployments", &old, &with(&old, "/spec/replicas", json!(2))));
    allowed(update("etl", "apps.deployments", &old, &with(&old, "/metadata/finalizers", json!([]))));
    let worse = with(&old, "/spec/template/spec/volumes/0/csi/fsType", json!("ext4"));
    assert_eq!(denied(update("etl", "apps.deployments", &old, &worse)).reason, "UNSUPPORTED_FS_TYPE");
}

#[test]
fn nobody_changes_annotations_of_ours_on_a_pod_not_even_through_its_status() {
    let at = "/metadata/annotations/hadoop-token.csi~1";
    let old = pod();
    let changed = [
        with(&old, &format!("{at}submitter"), json!("intruder")),
        with(&old, &format!("{at}inject"), json!("true")),
        without(&old, &format!("{at}seal")),
        with(&old, "/metadata/annotations", json!(null)),
    ];
    for new in &changed {
        for user in ["etl", "intruder", "system:apiserver", "kubernetes-admin"] {
            for resource in ["pods", "pods/status", "pods/ephemeralcontainers", "pods/resize"] {
                let denial = denied(update(user, resource, &old, new));
                assert_eq!((denial.reason, denial.code), ("ANNOTATION_CHANGED", 403));
                assert!(denial.message.contains("annotation hadoop-token.csi/"), "{}", denial.message);
            }
        }
    }
    let unmarked = json!({"metadata": {"name": "etl-0"}, "spec": {"containers": []}});
    let marked = with(&unmarked, "/metadata/annotations", json!({"hadoop-token.csi/submitter": "etl"}));
    assert_eq!(denied(update("etl", "pods", &unmarked, &marked)).reason, "ANNOTATION_CHANGED");
}

#[test]
fn what_kubelet_and_controllers_write_goes_through() {
    let old = pod();
    for (pointer, value) in [
        ("/status", json!({"phase": "Running"})),
        ("/metadata/finalizers", json!([])),
        ("/metadata/labels", json!({"a": "b"})),
        ("/metadata/annotations/other", json!("2")),
        ("/metadata/ownerReferences", json!([{"kind": "ReplicaSet", "controller": true}])),
        ("/spec/tolerations", json!([{"operator": "Exists"}])),
        ("/spec/containers/0/resources", json!({"limits": {"cpu": "1"}})),
        ("/spec/activeDeadlineSeconds", json!(5)),
    ] {
        let new = with(&old, pointer, value);
        for resource in ["pods", "pods/status", "pods/resize"] {
            let allowed = allowed(update("system:node:a", resource, &old, &new));
            assert_eq!(allowed, Allowed::default(), "{pointer}");
        }
    }
}

#[test]
fn images_of_a_pod_with_a_token_are_changed_by_its_submitter_only() {
    let old = pod();
    let init = with(&old, "/spec/initContainers", json!([{"name": "first", "image": "tools:1"}]));
    for (old, pointer) in [(&old, "/spec/containers/0/image"), (&init, "/spec/initContainers/0/image")] {
        let new = with(old, pointer, json!("thief:1"));
        let denial = denied(update("intruder", "pods", old, &new));
        assert_eq!((denial.reason, denial.code), ("NOT_THE_SUBMITTER", 403));
        assert_eq!(
            denial.message,
            "the pod holds a Hadoop token, and only etl, who submitted it, may change the images of its containers, \
             not intruder; members of admins may too"
        );
        assert_eq!(allowed(update("etl", "pods", old, &new)).audit["reached-by"], "submitter");
    }
    let tokenless = with(&old, "/spec/volumes", json!([]));
    allowed(update(
        "intruder",
        "pods",
        &tokenless,
        &with(&tokenless, "/spec/containers/0/image", json!("b")),
    ));
}

#[test]
fn only_the_submitter_and_allowed_groups_reach_into_a_pod_with_a_token() {
    for (deed, text) in [
        ("exec", "run commands in it"),
        ("attach", "attach to it"),
        ("portforward", "forward ports of it"),
        ("proxy", "reach it through the API server's proxy"),
    ] {
        assert_eq!(allowed(connect("etl", &[], deed, Some(&pod()))).audit["reached-by"], "submitter");
        let by_group = allowed(connect("ops", &["a", "admins"], deed, Some(&pod())));
        assert_eq!(by_group.audit["reached-by"], "group admins");
        for user in ["intruder", "", "Etl", "kubernetes-admin"] {
            let denial = denied(connect(user, &["system:masters"], deed, Some(&pod())));
            assert_eq!((denial.reason, denial.code), ("NOT_THE_SUBMITTER", 403));
            assert!(denial.message.contains("only etl, who submitted it"), "{}", denial.message);
            assert!(denial.message.contains(text), "{}", denial.message);
        }
    }
}

#[test]
fn the_pods_of_one_job_reach_into_each_other() {
    let launcher = |job, submitter| {
        let mut pod = with(&bare_pod(), "/metadata/name", json!("launcher"));
        pod["spec"]["volumes"] = json!([]);
        sealed_under(job, pod, submitter)
    };
    let worker = sealed_under(Some("u-1"), bare_pod(), "etl");
    let account = "system:serviceaccount:jobs:launcher";
    let mut question = question(account, &[], "CONNECT", "pods/exec", &json!(null), &json!({}));
    assert_eq!(calling_pod(&question), None);
    let extra = json!({
        "authentication.kubernetes.io/pod-name": ["launcher"],
        "authentication.kubernetes.io/pod-uid": ["u-launcher"],
    });
    question.request.user_info.extra = serde_json::from_value(extra).unwrap();
    assert_eq!(calling_pod(&question), Some(("launcher".to_owned(), "u-launcher".to_owned())));
    let by = |caller: &Value| decided_for(&question, Some(&worker), Some(caller));
    assert_eq!(allowed(by(&launcher(Some("u-1"), "etl"))).audit["reached-by"], "pod of the same owner");
    for (job, submitter) in [(Some("u-2"), "etl"), (Some("u-1"), "ads"), (None, "etl")] {
        assert_eq!(denied(by(&launcher(job, submitter))).reason, "NOT_THE_SUBMITTER");
    }
    let mut copied = launcher(Some("u-1"), "etl");
    copied["metadata"]["name"] = json!("copy");
    assert_eq!(denied(by(&copied)).reason, "NOT_THE_SUBMITTER");
    // Two pods that nobody owns have nothing in common.
    let alone = decided_for(&question, Some(&pod()), Some(&launcher(None, "etl")));
    assert_eq!(denied(alone).reason, "NOT_THE_SUBMITTER");
    question.request.user_info.username = Some("system:serviceaccount:other:launcher".to_owned());
    assert_eq!(calling_pod(&question), None);
}

/// A pod of etl's without the volume, which can call the API server.
fn launcher() -> Value {
    let account =
        json!({"name": "api", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}});
    sealed(with(&bare_pod(), "/spec/volumes", json!([account])), "etl")
}

#[test]
fn a_sealed_pod_that_can_call_the_api_server_is_its_submitters_though_it_holds_no_token() {
    for deed in ["exec", "attach", "portforward"] {
        let denial = denied(connect("intruder", &[], deed, Some(&launcher())));
        assert_eq!(denial.reason, "NOT_THE_SUBMITTER");
        assert!(denial.message.starts_with("the pod can act for its submitter, and only etl"), "{denial:?}");
        allowed(connect("etl", &[], deed, Some(&launcher())));
    }
    let unsealed = with(&launcher(), "/metadata/annotations", json!({}));
    allowed(connect("intruder", &[], "exec", Some(&unsealed)));
}

#[test]
fn nobody_but_its_node_has_a_token_bound_to_anothers_pod() {
    let wanted = |user: &str, group: &str, reference: Value| {
        let request = json!({"spec": {"audiences": [], "boundObjectRef": reference}});
        question(user, &[group], "CREATE", "serviceaccounts/token", &json!(null), &request)
    };
    let reference = json!({"kind": "Pod", "apiVersion": "v1", "name": "etl-0", "uid": "u-1"});
    let uid = |pod: &Value| with(pod, "/metadata/uid", json!("u-1"));
    let tokenless = with(&pod(), "/spec/volumes", json!([]));
    for pod in [pod(), tokenless, launcher()].iter().map(uid) {
        let question = wanted("intruder", "team", reference.clone());
        assert_eq!(pod_to_read(&question), Some(("jobs", "etl-0")));
        let denial = denied(decided(&question, Some(&pod)));
        assert_eq!(denial.reason, "NOT_THE_SUBMITTER");
        assert!(denial.message.contains("may have a service account's token bound to it"), "{denial:?}");
        allowed(decided(&wanted("etl", "team", reference.clone()), Some(&pod)));
        allowed(decided(&wanted("ops", "admins", reference.clone()), Some(&pod)));
    }
    let unsealed = with(&with(&pod(), "/spec/volumes", json!([])), "/metadata/annotations", json!({}));
    allowed(decided(&wanted("intruder", "team", reference.clone()), Some(&uid(&unsealed))));
    // Whoever has none yet, or another's by the time that the token is made.
    for (pod, reference, reason) in [
        (None, reference.clone(), "POD_NOT_FOUND"),
        (Some(unsealed.clone()), reference.clone(), "POD_NOT_FOUND"),
        (Some(with(&unsealed, "/metadata/uid", json!("u-2"))), reference.clone(), "POD_NOT_FOUND"),
        (Some(uid(&unsealed)), without(&reference, "/uid"), "POD_UID_MISSING"),
        (Some(uid(&unsealed)), with(&reference, "/uid", json!("")), "POD_UID_MISSING"),
    ] {
        for (user, group) in [("intruder", "team"), ("ops", "admins")] {
            let denial = denied(decided(&wanted(user, group, reference.clone()), pod.as_ref()));
            assert_eq!(denial.reason, reason);
        }
    }
    let of_node = wanted("system:node:a", "system:nodes", reference);
    assert_eq!(pod_to_read(&of_node), None);
    allowed(decided(&of_node, None));
    for other in [json!(null), json!({"kind": "Secret", "name": "s"}), json!({"kind": "Node", "name": "a"})] {
        assert_eq!(pod_to_read(&wanted("intruder", "team", other)), None);
    }
}

#[test]
fn a_pod_behind_the_proxy_is_found_however_it_is_to_be_spoken_to() {
    for name in ["etl-0", "etl-0:80", "https:etl-0:8443", "http:etl-0:", ":etl-0:80"] {
        let mut question = question("intruder", &[], "CONNECT", "pods/proxy", &json!(null), &json!({}));
        question.request.name = name.to_owned();
        assert_eq!(pod_to_read(&question), Some(("jobs", "etl-0")), "{name}");
    }
}

#[test]
fn ephemeral_containers_are_added_by_the_submitter_only() {
    let old = pod();
    let new = with(&old, "/spec/ephemeralContainers", json!([{"name": "debugger", "image": "shell:1"}]));
    let denial = denied(update("intruder", "pods/ephemeralcontainers", &old, &new));
    assert_eq!(denial.reason, "NOT_THE_SUBMITTER");
    assert!(denial.message.contains("add ephemeral containers to it"), "{}", denial.message);
    allowed(update("etl", "pods/ephemeralcontainers", &old, &new));
}

#[test]
fn what_holds_no_token_or_is_not_there_is_open_to_whom_kubernetes_lets_in() {
    let tokenless = with(&pod(), "/spec/volumes", json!([{"name": "a", "csi": {"driver": "other.csi"}}]));
    assert_eq!(allowed(connect("intruder", &[], "exec", Some(&tokenless))), Allowed::default());
    assert_eq!(allowed(connect("intruder", &[], "exec", None)), Allowed::default());
    let new = with(&tokenless, "/spec/ephemeralContainers", json!([{"name": "debugger"}]));
    allowed(update("intruder", "pods/ephemeralcontainers", &tokenless, &new));
}

#[test]
fn a_pod_whose_seal_is_not_its_own_has_no_submitter() {
    let unsealed = bare_pod();
    let renamed = with(&pod(), "/metadata/name", json!("etl-1"));
    let moved = with(&pod(), "/metadata/namespace", json!("other"));
    let forged = with(&pod(), "/metadata/annotations/hadoop-token.csi~1seal", json!("e30.e30.e30"));
    for (pod, words) in [
        (unsealed, "nobody (it has no seal that says who submitted it)"),
        (renamed, "nobody (its seal is that of another pod)"),
        (moved, "nobody (its seal is that of another pod)"),
        (forged, "nobody (its seal cannot be trusted"),
    ] {
        let denial = denied(connect("etl", &[], "exec", Some(&pod)));
        assert!(denial.message.contains(words), "{}", denial.message);
        allowed(connect("ops", &["admins"], "exec", Some(&pod)));
    }
}

#[test]
fn a_binding_brings_no_annotation_of_ours() {
    let plain = json!({"metadata": {"name": "etl-0", "annotations": {"a": "b"}}, "target": {"name": "node"}});
    let ours = with(&plain, "/metadata/annotations/hadoop-token.csi~1seal", json!("x"));
    for resource in ["pods/binding", "bindings"] {
        allowed(create(resource, &plain));
        allowed(create(resource, &without(&plain, "/metadata/annotations")));
        let denial = denied(create(resource, &ours));
        assert_eq!((denial.reason, denial.code), ("ANNOTATION_CHANGED", 403));
        assert!(denial.message.contains("remove it from the binding"), "{}", denial.message);
    }
}

#[test]
fn nothing_else_is_anything_to_us() {
    for resource in ["pods/eviction", "services", "example.com.pods", "apps.deployments/scale"] {
        assert_eq!(allowed(create(resource, &pod())), Allowed::default(), "{resource}");
    }
    let question = question("etl", &[], "CONNECT", "services/proxy", &json!(null), &json!({}));
    assert_eq!(pod_to_read(&question), None);
    allowed(decided(&question, None));
}
