//! Attackers who may edit YAML: pods, workloads and annotations in a namespace that they share, and one they should
//! not be in.

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    pod::{Draft, Running},
    process::until,
    users::{Bound, EXEMPT, JOBS, ROBOT, TEAM, service_account_token},
};
use identity::{
    GROUPS_ANNOTATION, SEAL_ANNOTATION, SUBMITTER_ANNOTATION,
    seal::{ObjectName, Owner},
};
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::Pod,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::stage::{
    Lair, Prey, Stage, acting, carrying, draft, refused, seal_of, sealed, stolen_driver_token,
};
use crate::GONE_LIMIT;

const GATE: &str = "bed.test/attack";
/// The audience of the API server.
const API_SERVER: &str = "https://kubernetes.default.svc";

async fn merge<K>(api: &Api<K>, name: &str, patch: Value) -> Result<K>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let patched = api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
    patched.with_context(|| format!("failed to patch {name}"))
}

pub(super) async fn a1_patching_the_submitter_after_creation_gains_nothing(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let (kubernetes, key) = (bed.kubernetes(), bed.kubernetes().sealing_key());
    let intruder = stage.users.intruder.clone();
    let pods: Api<Pod> = Api::namespaced(intruder.clone(), JOBS);

    // Held back until it is patched.
    let gated = draft("patched").set("/spec/schedulingGates", json!([{"name": GATE}]));
    let pod = kubernetes.create_as(intruder.clone(), &sealed(key, gated, "intruder")?).await?;
    let patch = json!({
        "metadata": {"annotations": {SUBMITTER_ANNOTATION: "etl"}},
        "spec": {"schedulingGates": null},
    });
    merge(&pods, pod.name(), patch).await?;
    stage.pod_refused(&pod, "SUBMITTER_CHANGED", 0).await?;
    pod.delete(GONE_LIMIT).await?;

    // A running pod of his neighbour, which has a token, asks again after it was patched.
    let running =
        kubernetes.create_as(stage.users.ads.clone(), &sealed(key, draft("running"), "ads")?).await?;
    running.until_running(GONE_LIMIT).await?;
    let driver = stage.service.with(&stolen_driver_token(bed).await?)?;
    let prey = Prey::of(&kubernetes.client(), &running).await?;
    for (what, annotations, reason) in [
        ("the name alone", json!({SUBMITTER_ANNOTATION: "etl"}), "SUBMITTER_CHANGED"),
        ("no seal", json!({SUBMITTER_ANNOTATION: "etl", SEAL_ANNOTATION: null}), "SEAL_MISSING"),
    ] {
        merge(&pods, running.name(), json!({"metadata": {"annotations": annotations}})).await?;
        refused(&driver, prey.issue(), what, reason).await?;
    }
    ensure!(stage.issued()? == 1, "a token was issued all the same");
    running.delete(GONE_LIMIT).await?;
    stage.ends().await
}

pub(super) async fn a2_an_exempt_namespace_gets_nothing_whatever_its_pods_say(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let kubernetes = bed.kubernetes();
    let intruder = stage.users.intruder.clone();
    let said = draft("said").namespace(EXEMPT).annotation(SUBMITTER_ANNOTATION, "etl");
    // Nobody seals there, but he may find somebody who does.
    let genuine = sealed(kubernetes.sealing_key(), draft("sealed").namespace(EXEMPT), "etl")?;
    for draft in [said, genuine] {
        let pod = kubernetes.create_as(intruder.clone(), &draft).await?;
        stage.pod_refused(&pod, "NAMESPACE_EXEMPT", 0).await?;
        pod.delete(GONE_LIMIT).await?;
    }
    stage.ends().await
}

pub(super) async fn a3_a_service_account_is_itself_and_nobody_else(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let kubernetes = bed.kubernetes();
    let token = service_account_token(&stage.users.intruder, JOBS, ROBOT, API_SERVER, Bound::Nothing).await?;
    let robot = kubernetes.client_with_token(&token).await?;
    let said = draft("robot-says").annotation(SUBMITTER_ANNOTATION, "etl");
    let name = format!("system:serviceaccount:{JOBS}:{ROBOT}");
    let genuine = sealed(kubernetes.sealing_key(), draft("robot-does"), &name)?;
    for (draft, reason) in [(said, "SEAL_MISSING"), (genuine, "SERVICE_ACCOUNT_NOT_MAPPED")] {
        let pod = kubernetes.create_as(robot.clone(), &draft).await?;
        let event = stage.pod_refused(&pod, reason, 0).await?;
        ensure!(reason == "SEAL_MISSING" || event.contains(&name), "{event}");
        pod.delete(GONE_LIMIT).await?;
    }
    stage.ends().await
}

/// The pods of a workload: its own template's, with a label.
async fn pods_of(client: &Client, workload: &str, count: usize) -> Result<Vec<String>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), JOBS);
    until(&format!("there: {count} pods of {workload}"), GONE_LIMIT, async || {
        let found = pods.list(&ListParams::default().labels(&format!("app={workload}"))).await?;
        let alive = found.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        let names: Vec<_> = alive.filter_map(|pod| pod.metadata.name).collect();
        ensure!(names.len() == count, "there are {names:?}");
        Ok(names)
    })
    .await
}

/// A workload whose pods are as the draft. A workload's pods restart always.
fn workload(kind: &str, name: &str, replicas: u32, draft: &Draft) -> Value {
    let draft = draft.clone().set("/spec/restartPolicy", json!("Always"));
    let spec = draft.json().get("spec").cloned();
    let annotations = draft.json().pointer("/metadata/annotations").cloned().unwrap_or_default();
    json!({
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": JOBS},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}, "annotations": annotations}, "spec": spec},
        },
    })
}

pub(super) async fn a4_what_a_workload_hands_on_to_its_pods_unsealed_is_worth_nothing(
    bed: &Bed,
) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let kubernetes = bed.kubernetes();
    let intruder = stage.users.intruder.clone();
    // What an operator, too, would copy from somewhere that nobody looks at.
    let said = draft("unused").annotation(SUBMITTER_ANNOTATION, "etl").annotation(GROUPS_ANNOTATION, "[]");
    let deployments: Api<Deployment> = Api::namespaced(intruder.clone(), JOBS);
    let deployment = serde_json::from_value(workload("Deployment", "operator", 1, &said))?;
    deployments.create(&PostParams::default(), &deployment).await?;
    for name in pods_of(&intruder, "operator", 1).await? {
        stage.pod_refused(&kubernetes.pod(JOBS, &name), "SEAL_MISSING", 0).await?;
    }
    deployments.delete("operator", &DeleteParams::default()).await?;
    pods_of(&intruder, "operator", 0).await?;
    stage.ends().await
}

pub(super) async fn a5_changing_somebodys_workload_makes_no_pod_of_his(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let (kubernetes, key) = (bed.kubernetes(), bed.kubernetes().sealing_key());
    let (etl, intruder) = (stage.users.etl.clone(), stage.users.intruder.clone());
    let sets: Api<ReplicaSet> = Api::namespaced(etl.clone(), JOBS);
    let set = serde_json::from_value(workload("ReplicaSet", "batch", 0, &draft("unused")))?;
    let set = sets.create(&PostParams::default(), &set).await?;
    let owner = Owner {
        api_version: "apps/v1".to_owned(),
        kind: "ReplicaSet".to_owned(),
        name: "batch".to_owned(),
        uid: set.metadata.uid.context("no UID")?,
    };
    // As whoever seals the pods of workloads does it, for one pod.
    let mut seal = seal_of(&draft("unused"), "etl")?;
    (seal.name, seal.root_owner) = (ObjectName::GenerateName("batch-".to_owned()), Some(owner));
    let sealed = carrying(key, draft("unused"), &seal)?;
    let annotations = sealed.json().pointer("/metadata/annotations").cloned();
    let patch = json!({"spec": {"replicas": 1, "template": {"metadata": {"annotations": annotations}}}});
    merge(&sets, "batch", patch).await?;
    let names = pods_of(&etl, "batch", 1).await?;
    let first = kubernetes.pod(JOBS, names.first().context("no pod")?);
    first.until_running(GONE_LIMIT).await?;
    ensure!(stage.issued()? == 1, "{} tokens were issued", stage.issued()?);

    // He may patch it, as everybody in the namespace.
    let sets: Api<ReplicaSet> = Api::namespaced(intruder.clone(), JOBS);
    let container = json!([{"name": "main", "image": bed::image::TOOLS, "imagePullPolicy": "Never",
        "command": ["sh", "-c", "cat /etc/hadoop-token/token; sleep 2147483647"],
        "volumeMounts": [{"name": "hadoop-token", "mountPath": "/etc/hadoop-token", "readOnly": true}]}]);
    merge(&sets, "batch", json!({"spec": {"replicas": 2, "template": {"spec": {"containers": container}}}}))
        .await?;
    let names = pods_of(&intruder, "batch", 2).await?;
    let second = names.iter().find(|name| *name != first.name()).context("no second pod")?;
    stage.pod_refused(&kubernetes.pod(JOBS, second), "SEAL_REUSED", 1).await?;
    // Nor does the first one's end set the seal free.
    merge(&sets, "batch", json!({"spec": {"replicas": 1}})).await?;
    pods_of(&intruder, "batch", 1).await?;
    first.delete(GONE_LIMIT).await?;
    let names = pods_of(&intruder, "batch", 1).await?;
    stage.pod_refused(&kubernetes.pod(JOBS, names.first().context("no pod")?), "SEAL_REUSED", 1).await?;
    sets.delete("batch", &DeleteParams::default()).await?;
    pods_of(&intruder, "batch", 0).await?;
    stage.ends().await
}

pub(super) async fn a8_nobody_acts_as_a_superuser_and_no_request_says_as_whom(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let (kubernetes, key) = (bed.kubernetes(), bed.kubernetes().sealing_key());
    let etl = stage.users.etl.clone();
    let sealed_for_it = sealed(key, acting(draft("acting"), "hdfs"), "etl")?;
    let added = acting(sealed(key, draft("acting"), "etl")?, "hdfs");
    for (draft, reason) in [(sealed_for_it, "USER_DENIED"), (added, "DO_AS_NOT_SEALED")] {
        let pod = kubernetes.create_as(etl.clone(), &draft).await?;
        stage.pod_refused(&pod, reason, 0).await?;
        // What a pod asks for stays what it was created with.
        let pods: Api<Pod> = Api::namespaced(etl.clone(), JOBS);
        let volumes =
            json!([{"name": "hadoop-token", "csi": {"driver": "hadoop-token.csi", "readOnly": true}}]);
        let patch = Patch::Merge(json!({"spec": {"volumes": volumes}}));
        let changed = pods.patch(pod.name(), &PatchParams::default(), &patch).await;
        ensure!(changed.is_err(), "the volumes of a pod were changed");
        pod.delete(GONE_LIMIT).await?;
    }
    stage.ends().await
}

pub(super) async fn a9_annotations_named_like_fields_of_a_request_change_nothing(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let (kubernetes, key) = (bed.kubernetes(), bed.kubernetes().sealing_key());
    let victim = kubernetes.create_as(stage.users.etl.clone(), &sealed(key, draft("victim"), "etl")?).await?;
    victim.until_running(GONE_LIMIT).await?;
    let uid = victim.uid().await?;
    let overwriting = [
        ("namespace", "jobs"),
        ("pod-name", "victim"),
        ("pod-uid", uid.as_str()),
        ("token-kinds", "*"),
        ("doAs", "etl"),
        ("user", "etl"),
        ("submitter", "etl"),
        ("cluster", "private"),
        ("srcIP", "10.244.0.1"),
        ("hadoop-token.csi/user", "etl"),
        ("hadoop-token.csi/doAs", "etl"),
        ("hadoop-token.csi/cluster", "private"),
        ("iddecorator.username", "etl"),
        ("csi.storage.k8s.io.pod.name", "victim"),
    ];
    let plain = sealed(key, draft("overwriting"), "ads")?;
    let draft = overwriting.iter().fold(plain, |draft, (name, value)| draft.annotation(name, value));
    let pod = kubernetes.create_as(stage.users.ads.clone(), &draft).await?;
    pod.until_running(GONE_LIMIT).await?;
    let owners = stage.owners()?;
    ensure!(owners == ["etl", "ads"], "tokens of {owners:?} were issued");
    victim.delete(GONE_LIMIT).await?;
    pod.delete(GONE_LIMIT).await?;
    stage.ends().await
}

pub(super) async fn a10_a_certificate_that_hadoop_would_take_for_hdfs_gets_nothing(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let (kubernetes, key) = (bed.kubernetes(), bed.kubernetes().sealing_key());
    for (number, (user, reason)) in [
        ("hdfs/x@BED.TEST", "USER_DENIED"),
        ("hdfs", "USER_DENIED"),
        ("hdfs@ELSEWHERE.TEST", "SUBMITTER_NOT_MAPPED"),
    ]
    .into_iter()
    .enumerate()
    {
        let client = kubernetes.client_as(user, Some(TEAM)).await?;
        let draft = sealed(key, draft(&format!("titled-{number}")), user)?;
        let pod = kubernetes.create_as(client, &draft).await?;
        stage.pod_refused(&pod, reason, 0).await?;
        pod.delete(GONE_LIMIT).await?;
    }
    stage.ends().await
}

pub(super) async fn a12_a_pod_that_nobody_decorated_gets_nothing(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let kubernetes = bed.kubernetes();
    for (name, annotations, reason) in [
        ("bare", vec![], "SEAL_MISSING"),
        ("half", vec![(SUBMITTER_ANNOTATION, "etl"), (GROUPS_ANNOTATION, "[]")], "SEAL_MISSING"),
        ("null", vec![(SUBMITTER_ANNOTATION, "etl"), (SEAL_ANNOTATION, "null")], "SEAL_INVALID"),
    ] {
        let draft =
            annotations.into_iter().fold(draft(name), |draft, (key, text)| draft.annotation(key, text));
        let pod = kubernetes.create_as(stage.users.intruder.clone(), &draft).await?;
        stage.pod_refused(&pod, reason, 0).await?;
        pod.delete(GONE_LIMIT).await?;
    }
    stage.ends().await
}

pub(super) async fn a13_pods_that_were_given_each_others_seals_get_nothing(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let (kubernetes, key) = (bed.kubernetes(), bed.kubernetes().sealing_key());
    let swapped = |name: &str, other: &str, submitter: &str| {
        carrying(key, draft(name), &seal_of(&draft(other), submitter)?)
    };
    let one = swapped("one", "other", "etl")?;
    let other = swapped("other", "one", "intruder")?;
    let one = kubernetes.create_as(stage.users.intruder.clone(), &one).await?;
    let other = kubernetes.create_as(stage.users.etl.clone(), &other).await?;
    for pod in [one, other] {
        stage.pod_refused(&pod, "SEAL_OF_ANOTHER_POD", 0).await?;
        pod.delete(GONE_LIMIT).await?;
    }
    stage.ends().await
}

pub(super) async fn a_pod_that_claims_or_is_given_an_owner_gains_nothing(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let lair = Lair::of(&stage).await?;
    let (kubernetes, key) = (bed.kubernetes(), bed.kubernetes().sealing_key());
    let deployments: Api<Deployment> = Api::namespaced(stage.users.etl.clone(), JOBS);
    let deployment = serde_json::from_value(workload("Deployment", "service", 0, &draft("unused")))?;
    let deployment = deployments.create(&PostParams::default(), &deployment).await?;
    let uid = deployment.metadata.uid.context("no UID")?;
    let owner = |uid: &str| Owner {
        api_version: "apps/v1".to_owned(),
        kind: "Deployment".to_owned(),
        name: "service".to_owned(),
        uid: uid.to_owned(),
    };
    let owned = |draft: Draft, uid: &str| {
        draft.set("/metadata/ownerReferences", json!([{
            "apiVersion": "apps/v1", "kind": "Deployment", "name": "service", "uid": uid, "controller": true,
        }]))
    };
    // What a pod of the deployment was sealed with, and has shown.
    let seal = |name: ObjectName, root: Option<Owner>| {
        let mut seal = seal_of(&draft("unused"), "etl")?;
        (seal.name, seal.root_owner) = (name, root);
        anyhow::Ok(seal)
    };
    let generated = seal(ObjectName::GenerateName("service-".to_owned()), Some(owner(&uid)))?;
    let pod = |name: &str| {
        let draft = draft(name).set("/metadata/generateName", json!("service-"));
        anyhow::Ok(owned(carrying(key, draft, &generated)?, &uid))
    };
    lair.granted("the deployment's own pod", &pod("service-a")?, "etl").await?;

    let named = |name: &str, root: Option<Owner>| seal(ObjectName::Name(name.to_owned()), root);
    let unowned = carrying(key, draft("claims"), &named("claims", None)?)?;
    let mistaken = carrying(key, draft("mistakes"), &named("mistakes", Some(owner(&uid)))?)?;
    lair.all_refused(vec![
        ("an owner claimed, and the seal of its pod copied", pod("service-b")?, "SEAL_REUSED"),
        ("an owner claimed that was not sealed", owned(unowned, &uid), "SEAL_OF_ANOTHER_POD"),
        ("no owner where one was sealed", mistaken, "SEAL_OF_ANOTHER_POD"),
    ])
    .await?;

    // A pod that a workload takes for its own, because its labels fit, is not the one that was sealed.
    let orphan = sealed(key, draft("orphan").set("/metadata/labels", json!({"app": "family"})), "intruder")?;
    let orphan = lair.create(&orphan).await?;
    let sets: Api<ReplicaSet> = Api::namespaced(stage.users.etl.clone(), JOBS);
    let set = serde_json::from_value(workload("ReplicaSet", "family", 1, &draft("unused")))?;
    sets.create(&PostParams::default(), &set).await?;
    let adopted: Running = kubernetes.pod(JOBS, "orphan");
    adopted
        .until("adopted", GONE_LIMIT, |pod| {
            pod.metadata.owner_references.as_ref().is_some_and(|owners| !owners.is_empty())
        })
        .await?;
    refused(lair.caller(), orphan.issue(), "an adopted orphan", "SEAL_OF_ANOTHER_POD").await?;
    sets.delete("family", &DeleteParams::default()).await?;
    lair.forget(&orphan).await?;
    deployments.delete("service", &DeleteParams::default()).await?;
    lair.leave().await
}
