use json_patch::PatchOperation;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Asked, Config, Injected, Request, inject};

fn pod(annotations: &Value, spec: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "job", "namespace": "jobs", "annotations": annotations},
        "spec": spec,
    })
}

fn config() -> Config {
    Config { wait_image: Some("registry.example/driver:1".to_owned()) }
}

/// Injects, and shows that the patch makes the pod what it is said to be, as the API server would apply it.
fn injected(pod: &Value) -> Injected {
    let injected = inject(&config(), pod).unwrap();
    let sent = serde_json::to_string(&injected.patch).unwrap();
    let received: Vec<PatchOperation> = serde_json::from_str(&sent).unwrap();
    let mut patched = pod.clone();
    json_patch::patch(&mut patched, &received).unwrap();
    assert_eq!(patched, injected.pod);
    injected
}

fn asked(annotations: &Value, labels: &Value, namespace: bool) -> Asked {
    Request::of(&json!({"metadata": {"annotations": annotations, "labels": labels}})).asked(namespace)
}

fn refused(annotations: &Value, config: &Config) -> (&'static str, String, u16) {
    let denial = inject(config, &pod(annotations, &json!({"containers": [{"name": "main"}]}))).unwrap_err();
    (denial.reason, denial.message, denial.code)
}

#[test]
fn a_pod_asks_by_annotation_or_label_or_by_its_namespace_and_its_no_is_the_last_word() {
    let (yes, no) = (json!({"hadoop-token.csi/inject": "true"}), json!({"hadoop-token.csi/inject": "false"}));
    let nothing = json!({"app": "true"});
    assert_eq!(asked(&nothing, &nothing, false), Asked::No);
    assert_eq!(asked(&yes, &nothing, false), Asked::ByPod);
    assert_eq!(asked(&nothing, &yes, false), Asked::ByPod);
    assert_eq!(asked(&yes, &yes, true), Asked::ByPod);
    assert_eq!(asked(&nothing, &nothing, true), Asked::ByNamespace);
    assert_eq!(asked(&no, &nothing, true), Asked::No);
    assert_eq!(asked(&nothing, &no, true), Asked::No);
    assert_eq!(asked(&yes, &no, true), Asked::No);
    assert_eq!(asked(&no, &yes, false), Asked::No);
    assert_eq!(Request::of(&json!({"kind": "Pod"})).asked(true), Asked::ByNamespace);
    let written_by_node = json!({"kubernetes.io/config.mirror": "1", "hadoop-token.csi/inject": "true"});
    assert_eq!(asked(&written_by_node, &yes, true), Asked::No);
}

#[test]
fn every_container_that_lives_with_the_pod_gets_the_volume_and_the_variable() {
    let spec = json!({
        "initContainers": [{"name": "prepare"}, {"name": "proxy", "restartPolicy": "Always"}],
        "containers": [{"name": "main", "env": [{"name": "A", "value": "b"}]}],
    });
    let mounts = json!([{"name": "hadoop-token", "mountPath": "/etc/hadoop-token", "readOnly": true}]);
    let variable = json!({"name": "HADOOP_TOKEN_FILE_LOCATION", "value": "/etc/hadoop-token/token"});
    assert_eq!(
        injected(&pod(&json!({}), &spec)).pod["spec"],
        json!({
            "initContainers": [
                {"name": "prepare", "volumeMounts": mounts, "env": [variable]},
                {"name": "proxy", "restartPolicy": "Always", "volumeMounts": mounts, "env": [variable]},
            ],
            "containers": [
                {"name": "main", "volumeMounts": mounts, "env": [{"name": "A", "value": "b"}, variable]},
            ],
            "volumes": [{"name": "hadoop-token", "csi": {"driver": "hadoop-token.csi", "readOnly": true}}],
        })
    );
}

#[test]
fn annotations_become_attributes_and_empty_ones_do_not() {
    let annotations = json!({
        "hadoop-token.csi/cluster": "spare",
        "hadoop-token.csi/do-as": "batch",
        "hadoop-token.csi/scope": "",
    });
    let pod = pod(&annotations, &json!({"containers": []}));
    assert_eq!(Request::of(&pod).do_as(), Some("batch"));
    assert_eq!(
        injected(&pod).pod["spec"]["volumes"],
        json!([{"name": "hadoop-token", "csi": {
            "driver": "hadoop-token.csi",
            "readOnly": true,
            "volumeAttributes": {"cluster": "spare", "doAs": "batch"},
        }}])
    );
}

#[test]
fn a_volume_of_the_pods_own_is_used_and_stays_as_it_is() {
    let own = json!({"name": "mine", "csi": {"driver": "hadoop-token.csi", "readOnly": true, "volumeAttributes": {"cluster": "spare"}}});
    let spec = json!({
        "volumes": [{"name": "hadoop-token", "emptyDir": {}}, own],
        "containers": [
            {"name": "main", "volumeMounts": [{"name": "mine", "mountPath": "/tokens/"}]},
            {"name": "side", "env": [{"name": "HADOOP_TOKEN_FILE_LOCATION", "value": "/elsewhere"}]},
        ],
    });
    let plain = injected(&pod(&json!({}), &spec)).pod;
    assert_eq!(plain["spec"]["volumes"], spec["volumes"]);
    assert_eq!(
        plain["spec"]["containers"],
        json!([
            {
                "name": "main",
                "volumeMounts": [{"name": "mine", "mountPath": "/tokens/"}],
                "env": [{"name": "HADOOP_TOKEN_FILE_LOCATION", "value": "/tokens/token"}],
            },
            {
                "name": "side",
                "volumeMounts": [{"name": "mine", "mountPath": "/etc/hadoop-token", "readOnly": true}],
                "env": [{"name": "HADOOP_TOKEN_FILE_LOCATION", "value": "/elsewhere"}],
            },
        ])
    );
    let other = injected(&pod(&json!({"hadoop-token.csi/cluster": "main"}), &spec)).pod;
    assert_eq!(other["spec"]["volumes"][1], own);
    assert_eq!(other["spec"]["volumes"][2]["name"], "hadoop-token-2");
    let same = injected(&pod(&json!({"hadoop-token.csi/cluster": "spare"}), &spec)).pod;
    assert_eq!(same["spec"]["volumes"], spec["volumes"]);
}

#[test]
fn a_place_that_is_taken_is_left_alone_with_a_warning() {
    for taken in ["/etc/hadoop-token", "/etc/hadoop-token/", "/etc/hadoop-token/extra"] {
        let spec = json!({
            "volumes": [{"name": "old", "emptyDir": {}}],
            "containers": [{"name": "main", "volumeMounts": [{"name": "old", "mountPath": taken}]}],
        });
        let injected = injected(&pod(&json!({}), &spec));
        assert_eq!(injected.pod["spec"]["containers"], spec["containers"]);
        assert_eq!(
            injected.warnings,
            ["container main has something else at /etc/hadoop-token, so hadoop-token is not mounted there"]
        );
    }
    let spec =
        json!({"containers": [{"name": "main", "volumeMounts": [{"name": "v", "mountPath": "/etc"}]}]});
    assert_eq!(injected(&pod(&json!({}), &spec)).warnings, [""; 0]);
}

#[test]
fn the_client_configuration_comes_from_the_named_config_map() {
    let annotations = json!({"hadoop-token.csi/client-configuration": "hadoop-client"});
    let spec = json!({"containers": [{"name": "main"}]});
    let with = injected(&pod(&annotations, &spec)).pod;
    let volume = json!({"name": "hadoop-conf", "configMap": {"name": "hadoop-client"}});
    assert_eq!(with["spec"]["volumes"][1], volume);
    let main = &with["spec"]["containers"][0];
    assert_eq!(
        main["volumeMounts"][1],
        json!({"name": "hadoop-conf", "mountPath": "/etc/hadoop-conf", "readOnly": true})
    );
    assert_eq!(main["env"][1], json!({"name": "HADOOP_CONF_DIR", "value": "/etc/hadoop-conf"}));
    // A volume of the same map, but not of all of it, is something else.
    let part =
        json!({"volumes": [{"name": "hadoop-conf", "configMap": {"name": "hadoop-client", "items": []}}]});
    let with = injected(&pod(&annotations, &part)).pod;
    assert_eq!(with["spec"]["volumes"][2]["name"], "hadoop-conf-2");
}

#[test]
fn who_asks_to_wait_gets_a_container_before_all_others() {
    let annotations = json!({"hadoop-token.csi/wait": "true"});
    let spec = json!({"containers": [{"name": "main"}], "initContainers": [{"name": "prepare"}]});
    let first = injected(&pod(&annotations, &spec)).pod;
    let waiting = &first["spec"]["initContainers"][0];
    assert_eq!(waiting["image"], "registry.example/driver:1");
    assert_eq!(waiting["args"], json!(["wait", "--volume=/etc/hadoop-token", "--timeout=5m"]));
    assert_eq!(waiting["volumeMounts"][0]["mountPath"], "/etc/hadoop-token");
    assert_eq!(waiting["resources"]["limits"], waiting["resources"]["requests"]);
    assert_eq!(first["spec"]["initContainers"][1]["name"], "prepare");
    let alone = injected(&pod(&annotations, &json!({"containers": [{"name": "main"}]}))).pod;
    assert_eq!(alone["spec"]["initContainers"].as_array().unwrap().len(), 1);
    let not = injected(&pod(&json!({"hadoop-token.csi/wait": "false"}), &spec)).pod;
    assert_eq!(not["spec"]["initContainers"].as_array().unwrap().len(), 1);
}

#[test]
fn a_request_that_is_not_understood_or_cannot_be_had_is_refused_with_what_to_change() {
    let (reason, message, code) = refused(&json!({"hadoop-token.csi/inject": "yes"}), &config());
    assert_eq!((reason, code), ("REQUEST_NOT_UNDERSTOOD", 422));
    assert_eq!(message, r#"hadoop-token.csi/inject is "yes": it may be "true" or "false""#);
    assert_eq!(refused(&json!({"hadoop-token.csi/wait": "5m"}), &config()).0, "REQUEST_NOT_UNDERSTOOD");
    let name = json!({"hadoop-token.csi/client-configuration": "../secret"});
    assert_eq!(refused(&name, &config()).0, "CLIENT_CONFIGURATION_INVALID");
    let (reason, message, _) = refused(&json!({"hadoop-token.csi/wait": "true"}), &Config::default());
    assert_eq!(reason, "WAIT_IMAGE_MISSING");
    assert!(message.contains("injection.waitImage"), "{message}");
}

#[test]
fn a_second_run_gives_a_new_sidecar_what_it_misses_and_touches_nothing_else() {
    let annotations =
        json!({"hadoop-token.csi/wait": "true", "hadoop-token.csi/client-configuration": "hadoop"});
    let mut pod = injected(&pod(&annotations, &json!({"containers": [{"name": "main"}]}))).pod;
    // As another webhook would, at both ends.
    let containers = pod["spec"]["containers"].as_array_mut().unwrap();
    containers.insert(0, json!({"name": "proxy"}));
    pod["spec"]["initContainers"].as_array_mut().unwrap().insert(0, json!({"name": "route"}));
    let again = injected(&pod);
    let paths: Vec<String> = again.patch.iter().map(|operation| operation.path().to_string()).collect();
    assert_eq!(paths.len(), 12, "{paths:?}");
    assert!(
        paths.iter().all(
            |path| path.starts_with("/spec/initContainers/0/") || path.starts_with("/spec/containers/0/")
        ),
        "{paths:?}"
    );
    assert_eq!(
        again.pod["spec"]["containers"][0]["volumeMounts"],
        pod["spec"]["containers"][1]["volumeMounts"]
    );
}

#[test]
fn what_is_no_pod_is_left_to_the_api_server() {
    for odd in
        [json!(null), json!({}), json!({"spec": []}), json!({"spec": {"volumes": {}, "containers": "x"}})]
    {
        injected(&odd);
    }
}

#[test]
fn volumes_of_one_name_are_left_to_the_api_server() {
    let mut twice = pod(&json!({"hadoop-token.csi/client-configuration": "hadoop-client"}), &json!({}));
    twice["spec"]["volumes"] = json!([
        {"name": "data", "configMap": {"name": "hadoop-client"}},
        {"name": "data", "csi": {"driver": "hadoop-token.csi", "readOnly": true}},
    ]);
    twice["spec"]["containers"] = json!([{"name": "main"}]);
    assert_eq!(injected(&twice).patch, []);
}

fn word(words: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
    proptest::sample::select(words)
}

fn any_volume() -> impl Strategy<Value = Value> {
    let name = || word(&["hadoop-token", "hadoop-token-2", "hadoop-conf", "data", "mine"]);
    let ours = (name(), word(&["main", "spare"]), any::<bool>()).prop_map(|(name, cluster, read_only)| {
        json!({"name": name, "csi": {"driver": "hadoop-token.csi", "readOnly": read_only, "volumeAttributes": {"cluster": cluster}}})
    });
    let map = (name(), word(&["hadoop-client", "other"]))
        .prop_map(|(name, map)| json!({"name": name, "configMap": {"name": map, "unheardOf": 1}}));
    prop_oneof![ours, map, name().prop_map(|name| json!({"name": name, "emptyDir": {}}))]
}

fn any_container() -> impl Strategy<Value = Value> {
    let mount = (
        word(&["hadoop-token", "hadoop-conf", "data", "mine"]),
        word(&["/etc/hadoop-token", "/etc/hadoop-conf/", "/etc/hadoop-conf/x", "/etc", "/data"]),
        proptest::option::of(word(&["", "part"])),
    );
    let mounts = proptest::collection::vec(mount, 0..3).prop_map(|mounts| {
        let mount = |(name, path, part)| json!({"name": name, "mountPath": path, "subPath": part});
        mounts.into_iter().map(mount).collect::<Vec<Value>>()
    });
    let variable = word(&["HADOOP_CONF_DIR", "HADOOP_TOKEN_FILE_LOCATION", "PATH"]);
    let variables = proptest::collection::vec(
        variable.prop_map(|name| json!({"name": name, "valueFrom": {"unheardOf": {}}})),
        0..3,
    );
    let name = word(&["main", "side", "wait-for-hadoop-token"]);
    let present = (proptest::option::of(mounts), proptest::option::of(variables));
    (name, present).prop_map(|(name, (mounts, variables))| {
        let mut container = json!({"name": name, "unheardOf": {"a": [1]}, "volumeMounts": mounts});
        if let Some(variables) = variables {
            container["env"] = json!(variables);
        }
        container
    })
}

fn any_pod() -> impl Strategy<Value = Value> {
    let annotation = |words: &'static [&'static str]| proptest::option::of(word(words));
    let annotations = (
        annotation(&["", "main", "spare"]),
        annotation(&["", "batch"]),
        annotation(&["hadoop-client"]),
        annotation(&["true", "false", ""]),
    )
        .prop_map(|(cluster, do_as, configuration, wait)| {
            let mut annotations = serde_json::Map::new();
            for (key, value) in [
                ("hadoop-token.csi/cluster", cluster),
                ("hadoop-token.csi/do-as", do_as),
                ("hadoop-token.csi/client-configuration", configuration),
                ("hadoop-token.csi/wait", wait),
            ] {
                annotations.extend(value.map(|value| (key.to_owned(), json!(value))));
            }
            Value::Object(annotations)
        });
    let containers = || proptest::option::of(proptest::collection::vec(any_container(), 0..4));
    // Two of one name the API server refuses, whatever is added to them.
    let volumes = proptest::collection::vec(any_volume(), 0..4).prop_map(|mut volumes| {
        volumes.sort_by_key(|volume| volume["name"].to_string());
        volumes.dedup_by_key(|volume| volume["name"].clone());
        volumes
    });
    let volumes = proptest::option::of(volumes.prop_shuffle());
    (annotations, volumes, containers(), containers()).prop_map(|(annotations, volumes, init, containers)| {
        let mut spec = json!({"unheardOf": {"b": null}, "volumes": volumes, "containers": containers});
        if let Some(init) = init {
            spec["initContainers"] = json!(init);
        }
        pod(&annotations, &spec)
    })
}

/// Whether all of `before` is in `after`, in its order.
fn keeps(before: &Value, after: &Value) -> bool {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            before.iter().all(|(key, value)| after.get(key).is_some_and(|after| keeps(value, after)))
        }
        (Value::Array(before), Value::Array(after)) => {
            let mut rest = after.iter();
            before.iter().all(|item| rest.any(|after| keeps(item, after)))
        }
        // What is null is not there.
        (Value::Null, _) => true,
        (before, after) => before == after,
    }
}

proptest! {
    #[test]
    fn nothing_that_a_pod_has_is_ever_changed(pod in any_pod()) {
        let injected = injected(&pod);
        prop_assert!(keeps(&pod, &injected.pod), "{pod} became {}", injected.pod);
        prop_assert!(injected.patch.iter().all(|operation| matches!(operation, PatchOperation::Add(_))));
    }

    #[test]
    fn a_second_run_changes_nothing(pod in any_pod()) {
        let once = injected(&pod);
        let twice = injected(&once.pod);
        prop_assert_eq!(twice.patch, vec![], "{}", once.pod);
        prop_assert_eq!(twice.warnings, once.warnings);
    }

    #[test]
    fn every_container_has_the_token_or_a_warning_says_why_not(pod in any_pod()) {
        let injected = injected(&pod);
        let spec = &injected.pod["spec"];
        let ours = |name: &Value| {
            let volumes = spec["volumes"].as_array().unwrap();
            volumes.iter().any(|volume| volume["name"] == *name && volume["csi"]["driver"] == "hadoop-token.csi")
        };
        let containers = ["containers", "initContainers"].map(|list| spec[list].as_array());
        for container in containers.into_iter().flatten().flatten() {
            let mounts = container["volumeMounts"].as_array();
            let mounted = mounts.into_iter().flatten().any(|mount| ours(&mount["name"]));
            let warned = injected.warnings.iter().any(|warning| warning.contains("/etc/hadoop-token,"));
            prop_assert!(mounted || warned, "{container}");
        }
    }
}
