//! Pods that ask by one word for a token, and get all that they need to read HDFS; and what they do not get.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    harness::Test,
    image,
    namenode::{Cluster, private_content},
    pod::{Draft, Running, TOKEN_FILE, TOKEN_FOLDER},
    process::until,
    users::JOBS,
};
use identity::{
    CLIENT_CONFIGURATION_ANNOTATION, CLUSTER_ANNOTATION, DO_AS_ANNOTATION, INJECT_ANNOTATION,
    SEAL_ANNOTATION, SUBMITTER_ANNOTATION, WAIT_ANNOTATION,
};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Container, Namespace, Pod, ServiceAccount},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    GONE_LIMIT,
    admission::{Scene, deployment, refused},
};

/// A namespace whose pods get tokens unless they do not want them.
const INJECTED: &str = "injected";
/// Where HDFS clients find their files.
const CONFIGURATION_FOLDER: &str = "/etc/hadoop-conf";
/// Adds a sidecar to pods that have been injected.
const INTERFERENCE: &str = "interference.bed.test";

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![
        one_annotation_is_enough_to_read_hdfs_from_every_container,
        a_deployment_stays_as_it_was_written_and_its_pods_are_injected,
        what_a_pod_has_is_left_alone,
        attributes_and_client_configuration_come_from_annotations,
        a_headless_account_that_a_template_asks_for_is_sealed_with_it,
        a_container_that_waits_ends_when_the_token_is_there,
        a_sidecar_that_comes_later_gets_the_token_too,
        a_namespace_asks_for_its_pods_and_each_may_say_no,
    ]
}

/// A pod in [`JOBS`] that has nothing and asks.
fn asking(name: &str) -> Draft {
    Draft::new(name).namespace(JOBS).annotation(INJECT_ANNOTATION, "true")
}

/// A script that reads what only `etl` may read.
fn reading() -> String {
    format!("{} --url {} cat /user/etl/private.txt", image::HDFS_CLIENT, Cluster::Main.url())
}

/// Containers that live with the pod, init containers first.
fn containers(pod: &Pod) -> Vec<&Container> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers)).collect()
}

/// Whether a container has the volume at its place, and is told so.
fn is_served(container: &Container) -> bool {
    let mounted = container.volume_mounts.iter().flatten().any(|mount| {
        mount.name == "hadoop-token" && mount.mount_path == TOKEN_FOLDER && mount.read_only == Some(true)
    });
    variable(container, "HADOOP_TOKEN_FILE_LOCATION") == Some(TOKEN_FILE) && mounted
}

fn variable<'a>(container: &'a Container, name: &str) -> Option<&'a str> {
    container.env.iter().flatten().find(|variable| variable.name == name)?.value.as_deref()
}

/// The attributes of each volume of ours.
fn attributes(pod: &Pod) -> Vec<BTreeMap<String, String>> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let csi = volumes.filter_map(|volume| volume.csi.as_ref()).filter(|csi| csi.driver == "hadoop-token.csi");
    csi.map(|csi| csi.volume_attributes.clone().unwrap_or_default()).collect()
}

/// The pod as it would be, had it been created.
async fn tried(client: &Client, namespace: &str, pod: &Value) -> Result<kube::Result<Pod>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pod: Pod = serde_json::from_value(pod.clone())?;
    Ok(pods.create(&PostParams { dry_run: true, ..PostParams::default() }, &pod).await)
}

/// The one pod of a Deployment, as soon as there is one that `is_it`.
async fn pod_of(bed: &Bed, namespace: &str, app: &str, is_it: impl Fn(&Pod) -> bool) -> Result<Running> {
    let pods: Api<Pod> = Api::namespaced(bed.kubernetes().client(), namespace);
    let name = until(&format!("there: a pod of {app}"), GONE_LIMIT, async || {
        let all = pods.list(&ListParams::default().labels(&format!("app={app}"))).await?.items;
        let found = all.into_iter().find(|pod| is_it(pod)).context("there is none")?;
        found.metadata.name.context("a pod without a name")
    })
    .await?;
    Ok(bed.kubernetes().pod(namespace, &name))
}

async fn one_annotation_is_enough_to_read_hdfs_from_every_container(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let read = reading();
    let first = json!({
        "name": "first", "image": image::TOOLS, "imagePullPolicy": "Never", "command": ["sh", "-c", read],
    });
    let draft = asking("one-word").script(&read).set("/spec/initContainers", json!([first]));
    let pod = bed.kubernetes().create_as(scene.users.etl.clone(), &draft).await?;
    let log = pod.until_succeeded(GONE_LIMIT).await?;
    ensure!(log == private_content(Cluster::Main, "etl"), "{log:?}");
    let live = pod.get().await?;
    ensure!(containers(&live).len() == 2 && containers(&live).into_iter().all(is_served), "{live:?}");
    // The label does the same, and whoever submits the same pod is somebody else to HDFS.
    let labelled = Draft::new("labelled")
        .namespace(JOBS)
        .set("/metadata/labels", json!({INJECT_ANNOTATION: "true"}))
        .script(&format!("{read} 2>/dev/null && exit 1; {}", reading().replace("etl", "ads")));
    let other = bed.kubernetes().create_as(scene.users.ads.clone(), &labelled).await?;
    let log = other.until_succeeded(GONE_LIMIT).await?;
    ensure!(log == private_content(Cluster::Main, "ads"), "{log:?}");
    other.delete(GONE_LIMIT).await?;
    pod.delete(GONE_LIMIT).await
}

async fn a_deployment_stays_as_it_was_written_and_its_pods_are_injected(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let written = deployment(&asking("rolled"));
    let deployments: Api<Deployment> = Api::namespaced(scene.users.etl.clone(), JOBS);
    deployments.create(&PostParams::default(), &serde_json::from_value(written.clone())?).await?;
    let pod = pod_of(bed, JOBS, "rolled", |_| true).await?;
    pod.until_running(GONE_LIMIT).await?;
    ensure!(containers(&pod.get().await?).into_iter().all(is_served), "the pod was not injected");
    let read = ["exec", pod.name(), "--", "sh", "-c"];
    let content = scene.kubectl("etl")?.args(read).arg(reading()).succeed().await?;
    ensure!(content == private_content(Cluster::Main, "etl"), "{content:?}");

    let live = deployments.get("rolled").await?;
    let template = live.spec.context("no spec")?.template;
    let annotations = template.metadata.and_then(|metadata| metadata.annotations).unwrap_or_default();
    ensure!(annotations.contains_key(SEAL_ANNOTATION), "the template carries no seal: {annotations:?}");
    let spec = template.spec.context("no pod spec")?;
    let mounts = spec.containers.iter().flat_map(|one| one.volume_mounts.iter().flatten()).count();
    ensure!(spec.volumes.unwrap_or_default().is_empty() && mounts == 0, "the template was changed");
    deployments.delete("rolled", &DeleteParams::default()).await?;
    pod.until_gone(GONE_LIMIT).await
}

async fn what_a_pod_has_is_left_alone(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let taken = asking("taken")
        .push("/spec/volumes", json!({"name": "hadoop-token", "emptyDir": {}}))
        .push("/spec/containers/0/volumeMounts", json!({"name": "hadoop-token", "mountPath": TOKEN_FOLDER}))
        .env("HADOOP_TOKEN_FILE_LOCATION", "/elsewhere");
    let pod = tried(&scene.users.etl, JOBS, taken.json()).await??;
    let main = *containers(&pod).first().context("a pod without containers")?;
    ensure!(variable(main, "HADOOP_TOKEN_FILE_LOCATION") == Some("/elsewhere"), "{main:?}");
    ensure!(attributes(&pod).len() == 1, "{:?}", pod.spec);
    let at_place: Vec<_> =
        main.volume_mounts.iter().flatten().filter(|mount| mount.mount_path == TOKEN_FOLDER).collect();
    ensure!(matches!(at_place.as_slice(), [one] if one.name == "hadoop-token"), "{at_place:?}");
    let warned = async |draft: &Draft| {
        let file = bed.state().join("warned.json");
        std::fs::write(&file, draft.json().to_string())?;
        let create = scene.kubectl("etl")?.args(["create", "--dry-run=server", "-f"]).arg(file);
        let output = create.output().await?;
        ensure!(output.status.success(), "{output:?}");
        Ok(output.stderr)
    };
    let warning = warned(&taken).await?;
    ensure!(warning.contains("Warning: container main has something else at /etc/hadoop-token"), "{warning}");
    let idle = Draft::new("idle").namespace(JOBS).annotation(CLUSTER_ANNOTATION, Cluster::Main.name());
    let warning = warned(&idle).await?;
    ensure!(
        warning.contains(&format!("Warning: annotation {CLUSTER_ANNOTATION} comes to nothing")),
        "{warning}"
    );

    let no = asking("no").set("/metadata/labels", json!({INJECT_ANNOTATION: "false"}));
    let pod = tried(&scene.users.etl, JOBS, no.json()).await??;
    ensure!(attributes(&pod).is_empty(), "a no was not heard");
    Ok(())
}

async fn attributes_and_client_configuration_come_from_annotations(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let clients = bed.client_configurations().join("pods/main");
    let file = |name: &str| std::fs::read_to_string(clients.join(name)).with_context(|| format!("no {name}"));
    let map = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "hadoop-client", "namespace": JOBS},
        "data": {"core-site.xml": file("core-site.xml")?, "hdfs-site.xml": file("hdfs-site.xml")?},
    });
    bed.kubernetes().apply(&map.to_string()).await?;
    let script = "cat $HADOOP_CONF_DIR/core-site.xml";
    let draft = asking("configured")
        .annotation(CLUSTER_ANNOTATION, Cluster::Main.name())
        .annotation(DO_AS_ANNOTATION, "")
        .annotation(CLIENT_CONFIGURATION_ANNOTATION, "hadoop-client")
        .script(script);
    let pod = bed.kubernetes().create_as(scene.users.etl.clone(), &draft).await?;
    ensure!(pod.until_succeeded(GONE_LIMIT).await? == file("core-site.xml")?, "another file was mounted");
    let live = pod.get().await?;
    let told = |container| variable(container, "HADOOP_CONF_DIR") == Some(CONFIGURATION_FOLDER);
    ensure!(containers(&live).into_iter().all(told), "{live:?}");
    let asked = BTreeMap::from([("cluster".to_owned(), Cluster::Main.name().to_owned())]);
    ensure!(attributes(&live) == [asked], "{:?}", attributes(&live));
    pod.delete(GONE_LIMIT).await?;

    let unknown = asking("unknown").annotation(CLIENT_CONFIGURATION_ANNOTATION, "No Such");
    let answer = tried(&scene.users.etl, JOBS, unknown.json()).await?;
    refused(answer, "no name", 422, &["\"No Such\"", "has to be that of a ConfigMap"])
}

async fn a_headless_account_that_a_template_asks_for_is_sealed_with_it(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let written = deployment(&asking("headless").annotation(DO_AS_ANNOTATION, "batch"));
    let deployments: Api<Deployment> = Api::namespaced(scene.users.etl.clone(), JOBS);
    deployments.create(&PostParams::default(), &serde_json::from_value(written)?).await?;
    let asked = |account: &str| vec![BTreeMap::from([("doAs".to_owned(), account.to_owned())])];
    let pod = pod_of(bed, JOBS, "headless", |pod| attributes(pod) == asked("batch")).await?;
    ensure!(submitter(&pod.get().await?) == Some("etl"), "the pod is another's");

    // Whoever asks for another one in the same template is the submitter from then on.
    let more = json!({"spec": {"template": {"metadata": {"annotations": {DO_AS_ANNOTATION: "payroll"}}}}});
    let intruder: Api<Deployment> = Api::namespaced(scene.users.intruder.clone(), JOBS);
    intruder.patch("headless", &PatchParams::default(), &Patch::Merge(more)).await?;
    let his = pod_of(bed, JOBS, "headless", |pod| attributes(pod) == asked("payroll")).await?;
    ensure!(submitter(&his.get().await?) == Some("intruder"), "the pod is etl's still");
    deployments.delete("headless", &DeleteParams::default()).await?;
    pod.until_gone(GONE_LIMIT).await?;
    his.until_gone(GONE_LIMIT).await
}

fn submitter(pod: &Pod) -> Option<&str> {
    pod.metadata.annotations.as_ref()?.get(SUBMITTER_ANNOTATION).map(String::as_str)
}

async fn a_container_that_waits_ends_when_the_token_is_there(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let driver = bed.product().await?.driver().await?.get().await?;
    let image = driver.spec.and_then(|spec| spec.containers.into_iter().next()?.image);
    let image = image.context("the node plugin has no image")?;
    // As long as there is none, nobody can ask for it.
    let answer =
        tried(&scene.users.etl, JOBS, asking("hasty").annotation(WAIT_ANNOTATION, "true").json()).await?;
    refused(answer, "no image", 422, &["no image is configured", "injection.waitImage"])?;
    let configure = |configuration: &mut Value| {
        if let Some(sections) = configuration.as_object_mut() {
            sections.insert("injection".to_owned(), json!({"waitImage": image}));
        }
    };
    bed.webhook().await?.with_configuration(configure, async || waits(&scene).await).await
}

async fn waits(scene: &Scene<'_>) -> Result<()> {
    let bed = scene.bed;
    let draft =
        asking("patient").annotation(WAIT_ANNOTATION, "true").run_as(1000, Some(1000)).script(&reading());
    let pod = bed.kubernetes().create_as(scene.users.etl.clone(), &draft).await?;
    let log = pod.until_succeeded(GONE_LIMIT).await?;
    ensure!(log.ends_with(&private_content(Cluster::Main, "etl")), "{log:?}");
    let waited = ["logs", "patient", "--container=wait-for-hadoop-token"];
    let said = scene.kubectl("etl")?.args(waited).succeed().await?;
    ensure!(said.contains("The token is there"), "{said:?}");
    pod.delete(GONE_LIMIT).await?;

    // It is what the strictest of the standards wants, where the pod's own container is.
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
        "name": "restricted",
        "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
    }});
    bed.kubernetes().apply(&namespace.to_string()).await?;
    let strict = asking("strict")
        .namespace("restricted")
        .annotation(WAIT_ANNOTATION, "true")
        .set(
            "/spec/securityContext",
            json!({"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}),
        )
        .set(
            "/spec/containers/0/securityContext",
            json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}),
        );
    let admin = bed.kubernetes().client();
    let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), "restricted");
    until("there: service account default", GONE_LIMIT, async || Ok(accounts.get("default").await?)).await?;
    let pod = tried(&admin, "restricted", strict.json()).await??;
    ensure!(containers(&pod).len() == 2, "{:?}", pod.spec);
    bed.kubernetes().kubectl().args(["delete", "namespace", "restricted", "--wait=false"]).succeed().await?;
    Ok(())
}

async fn a_sidecar_that_comes_later_gets_the_token_too(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    // Somebody else's part of admission, which adds to what it sees only once the pod has been injected.
    let sidecar = format!(
        "Object.spec.containers{{name: 'later', image: '{}', command: ['sleep', '2147483647']}}",
        image::TOOLS
    );
    let seen = "has(object.spec.volumes) && object.spec.volumes.exists(v, v.name == 'hadoop-token') && \
                !object.spec.containers.exists(c, c.name == 'later')";
    let add = format!("{seen} ? [JSONPatch{{op: 'add', path: '/spec/containers/-', value: {sidecar}}}] : []");
    let policy = json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingAdmissionPolicy",
            "metadata": {"name": INTERFERENCE},
            "spec": {
                "failurePolicy": "Fail",
                "reinvocationPolicy": "IfNeeded",
                "matchConstraints": {"resourceRules": [{
                    "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"],
                }]},
                "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": add}}],
            },
        },
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingAdmissionPolicyBinding",
            "metadata": {"name": INTERFERENCE},
            "spec": {
                "policyName": INTERFERENCE,
                "matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": JOBS}}},
            },
        },
    ]});
    bed.kubernetes().apply(&policy.to_string()).await?;
    let draft = asking("accompanied");
    let outcome = until("accompanied: the pod", GONE_LIMIT, async || {
        let pod = tried(&scene.users.etl, JOBS, draft.json()).await??;
        ensure!(containers(&pod).len() == 2, "the policy is not in force yet");
        Ok(pod)
    })
    .await;
    let policies = "mutatingadmissionpolicy,mutatingadmissionpolicybinding";
    bed.kubernetes().kubectl().args(["delete", policies, INTERFERENCE]).succeed().await?;
    let pod = outcome?;
    ensure!(containers(&pod).into_iter().all(is_served), "{:?}", pod.spec);
    ensure!(attributes(&pod).len() == 1, "{:?}", pod.spec);
    Ok(())
}

async fn a_namespace_asks_for_its_pods_and_each_may_say_no(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let kubernetes = bed.kubernetes();
    let namespace = |labels: Value| {
        let metadata = json!({"name": INJECTED, "labels": labels});
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}).to_string()
    };
    kubernetes.apply(&namespace(json!({}))).await?;
    scene.may_reach(INJECTED).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(kubernetes.client(), INJECTED);
    until("there: service account default", GONE_LIMIT, async || Ok(accounts.get("default").await?)).await?;
    let deployments: Api<Deployment> = Api::namespaced(scene.users.etl.clone(), INJECTED);
    let mut older: Deployment = serde_json::from_value(deployment(&Draft::new("older")))?;
    older.metadata.namespace = None;
    deployments.create(&PostParams::default(), &older).await?;
    let before = pod_of(bed, INJECTED, "older", |_| true).await?;
    before.until_running(GONE_LIMIT).await?;

    // Only who may change namespaces may ask for all.
    let asked = json!({"metadata": {"labels": {INJECT_ANNOTATION: "true"}}});
    let namespaces: Api<Namespace> = Api::all(scene.users.intruder.clone());
    let labelled = namespaces.patch(INJECTED, &PatchParams::default(), &Patch::Merge(&asked)).await;
    refused(labelled, "labelling a namespace", 403, &["User \"intruder\" cannot patch"])?;
    kubernetes.apply(&namespace(json!({INJECT_ANNOTATION: "true"}))).await?;

    let plain = Draft::new("plain").namespace(INJECTED).script(&reading());
    let etl = &scene.users.etl;
    until("in force: the label", GONE_LIMIT, async || {
        let pod = tried(etl, INJECTED, plain.json()).await??;
        ensure!(attributes(&pod).len() == 1, "nothing was injected");
        Ok(())
    })
    .await?;
    let pod = kubernetes.create_as(etl.clone(), &plain).await?;
    let log = pod.until_succeeded(GONE_LIMIT).await?;
    ensure!(log == private_content(Cluster::Main, "etl"), "{log:?}");
    pod.delete(GONE_LIMIT).await?;
    let no = Draft::new("no").namespace(INJECTED).annotation(INJECT_ANNOTATION, "false");
    ensure!(attributes(&tried(etl, INJECTED, no.json()).await??).is_empty(), "a no was not heard");

    // Of what is older than the label nobody knows who asks: its pods start as ever, without a token.
    before.delete(GONE_LIMIT).await?;
    let again = pod_of(bed, INJECTED, "older", |pod| pod.metadata.deletion_timestamp.is_none()).await?;
    again.until_running(GONE_LIMIT).await?;
    ensure!(attributes(&again.get().await?).is_empty(), "a token for nobody");
    let restart = ["rollout", "restart", "deployment/older", "--namespace", INJECTED];
    scene.kubectl("etl")?.args(restart).succeed().await?;
    let restarted = pod_of(bed, INJECTED, "older", |pod| attributes(pod).len() == 1).await?;
    restarted.until_running(GONE_LIMIT).await?;
    ensure!(submitter(&restarted.get().await?) == Some("etl"), "another submitted it");
    deployments.delete("older", &DeleteParams::default()).await?;
    restarted.until_gone(GONE_LIMIT).await?;
    kubernetes.kubectl().args(["delete", "namespace", INJECTED, "--wait=false"]).succeed().await.map(drop)
}
