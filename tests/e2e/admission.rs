//! What nobody may do, whatever Kubernetes lets him: submit what cannot work, change what was settled when a pod was
//! created, and reach into a pod that holds another's token. Everything is tried as people with certificates of their
//! own, by the programs that they use.

mod scene;

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    harness::Test,
    host::NODE_NAME,
    image,
    pod::{Draft, TOKEN_FOLDER},
    process::{Program, until},
    users::{Bound, JOBS, service_account_token},
};
use identity::{
    DRIVER_NAME, GROUPS_ANNOTATION, INJECT_ANNOTATION, POD_AUDIENCE, SEAL_ANNOTATION, SUBMITTER_ANNOTATION,
};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api,
    api::{DeleteParams, EvictParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    time::timeout,
};

pub(crate) use self::scene::{Scene, deployment, refused};
use self::scene::{told, tried};
use crate::{GONE_LIMIT, attacks::stage::draft};

/// Whose members may reach into pods of others; see the webhook's configuration on the bed.
const ADMINISTRATORS: &str = "system:masters";
/// The role by which the webhook reads pods.
const READING: &str = "hadoop-token-csi-webhook-base";
/// Longest until a right that was given or taken away counts.
const RIGHTS_LIMIT: Duration = Duration::from_secs(30);
/// Longest that a connection through the API server may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// From the API server's answer to what it writes of it.
const RECORD_LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![
        what_cannot_work_is_refused_with_what_to_change,
        annotations_stay_as_they_were_whoever_changes_them_and_however,
        a_binding_brings_no_annotations,
        only_the_submitter_and_allowed_groups_run_something_in_a_pod_with_a_token,
        only_the_submitter_attaches_and_forwards_ports,
        only_the_submitter_debugs_a_pod_with_a_token_and_changes_its_images,
        nobody_else_acts_for_a_sealed_pod,
        the_api_servers_audit_log_has_who_submitted_and_who_reached,
        what_cannot_be_read_is_refused_and_may_be_tried_again,
        what_has_nothing_to_do_with_tokens_is_as_ever,
    ]
}

async fn what_cannot_work_is_refused_with_what_to_change(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let csi = "/spec/volumes/0/csi";
    let mount = "/spec/containers/0/volumeMounts/0";
    for (pointer, value, [wrong, change]) in [
        (format!("{csi}/readOnly"), json!(false), ["is writable", "set csi.readOnly: true"]),
        (
            format!("{csi}/volumeAttributes"),
            json!({"clustre": "main"}),
            ["unknown attribute \"clustre\"", "may have cluster, doAs, scope"],
        ),
        (
            format!("{csi}/volumeAttributes"),
            json!({"scope": "all"}),
            ["the scope \"all\"", "\"pod\" or \"job\""],
        ),
        (
            format!("{csi}/nodePublishSecretRef"),
            json!({"name": "secret"}),
            ["names a Secret", "remove csi.nodePublishSecretRef"],
        ),
        (format!("{csi}/fsType"), json!("ext4"), ["has a file system type", "remove csi.fsType"]),
        (format!("{mount}/subPath"), json!("token"), ["never shows a new token", "remove subPath"]),
        (format!("{mount}/subPathExpr"), json!("token"), ["never shows a new token", "remove subPathExpr"]),
    ] {
        let draft = draft("wrong").set(&pointer, value);
        let pod = tried::<Pod>(&scene.users.etl, draft.json()).await?;
        refused(pod, &pointer, 422, &[wrong, change, " in spec."])?;
        let workload = tried::<Deployment>(&scene.users.etl, &deployment(&draft)).await?;
        refused(workload, &pointer, 422, &[wrong, change, " in spec.template.spec."])?;
    }
    let propagated = draft("wrong")
        .set("/spec/containers/0/securityContext", json!({"privileged": true}))
        .set(&format!("{mount}/mountPropagation"), json!("Bidirectional"));
    let pod = tried::<Pod>(&scene.users.etl, propagated.json()).await?;
    refused(pod, "propagation", 422, &["let it out of the pod", "remove mountPropagation"])?;
    let odd = draft("wrong").annotation(INJECT_ANNOTATION, "yes");
    let pod = tried::<Pod>(&scene.users.etl, odd.json()).await?;
    refused(pod, "another word", 422, &["\"yes\"", "may be \"true\" or \"false\""])?;
    // And what is right is not.
    tried::<Pod>(&scene.users.etl, draft("right").json()).await??;
    tried::<Deployment>(&scene.users.etl, &deployment(&draft("right"))).await??;
    Ok(())
}

async fn annotations_stay_as_they_were_whoever_changes_them_and_however(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let pod = scene.run(draft("settled")).await?;
    let before = pod.get().await?.metadata.annotations.context("the pod has no annotations")?;
    for name in [SUBMITTER_ANNOTATION, GROUPS_ANNOTATION, SEAL_ANNOTATION] {
        ensure!(before.contains_key(name), "the webhook wrote no {name}");
    }
    let admin = bed.kubernetes().client();
    for (who, client) in [("etl", &scene.users.etl), ("intruder", &scene.users.intruder), ("admin", &admin)] {
        let pods: Api<Pod> = Api::namespaced(client.clone(), JOBS);
        for (annotation, value) in [
            (SUBMITTER_ANNOTATION, json!("intruder")),
            (SEAL_ANNOTATION, json!(null)),
            (INJECT_ANNOTATION, json!("true")),
        ] {
            let patch = Patch::Merge(json!({"metadata": {"annotations": {annotation: value}}}));
            let words = [annotation, "create a new pod"];
            let what = format!("{who} changing {annotation}");
            let parameters = PatchParams::default();
            refused(pods.patch(pod.name(), &parameters, &patch).await, &what, 403, &words)?;
            let what = format!("{what} through the status");
            refused(pods.patch_status(pod.name(), &parameters, &patch).await, &what, 403, &words)?;
            let dry = PatchParams { dry_run: true, ..parameters };
            let what = format!("{what} on trial");
            refused(pods.patch(pod.name(), &dry, &patch).await, &what, 403, &words)?;
        }
    }
    let annotate = ["annotate", "--overwrite", "pod", "settled"];
    let renamed = format!("{SUBMITTER_ANNOTATION}=intruder");
    let output = scene.kubectl("intruder")?.args(annotate).arg(&renamed).output().await?;
    told(output, &["admission webhook", "denied the request", "create a new pod"])?;
    let applied = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "settled", "annotations": {SUBMITTER_ANNOTATION: "intruder"}},
    });
    let pods: Api<Pod> = Api::namespaced(scene.users.intruder.clone(), JOBS);
    let force = PatchParams::apply("intruder").force();
    let answer = pods.patch("settled", &force, &Patch::Apply(applied)).await;
    refused(answer, "server-side apply", 403, &[SUBMITTER_ANNOTATION])?;
    ensure!(pod.get().await?.metadata.annotations == Some(before), "the annotations have changed");

    // What everybody may, somebody else may here too.
    for change in
        [["label", "pod", "settled", "by=ads"], ["annotate", "pod", "settled", "example.com/by=ads"]]
    {
        scene.kubectl("ads")?.args(change).succeed().await?;
    }
    pod.delete(GONE_LIMIT).await
}

async fn a_binding_brings_no_annotations(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    // One that no scheduler takes.
    let waiting = draft("unbound").set("/spec/schedulerName", json!("nobody"));
    let pod = bed.kubernetes().create_as(scene.users.etl.clone(), &waiting).await?;
    let bind = async |path: &str, annotations: Value| {
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": "unbound", "namespace": JOBS, "annotations": annotations},
            "target": {"apiVersion": "v1", "kind": "Node", "name": NODE_NAME},
        });
        let request = http::Request::post(format!("/api/v1/namespaces/{JOBS}/{path}"))
            .header("content-type", "application/json")
            .body(binding.to_string().into_bytes())?;
        anyhow::Ok(scene.users.intruder.request::<Value>(request).await)
    };
    let forged = json!({SUBMITTER_ANNOTATION: "intruder", "example.com/a": "b"});
    for path in ["pods/unbound/binding", "bindings"] {
        let answer = bind(path, forged.clone()).await?;
        refused(answer, path, 403, &[SUBMITTER_ANNOTATION, "remove it from the binding"])?;
    }
    bind("pods/unbound/binding", json!({"example.com/a": "b"})).await??;
    pod.until_running(GONE_LIMIT).await?;
    let annotations = pod.get().await?.metadata.annotations.unwrap_or_default();
    ensure!(annotations.get(SUBMITTER_ANNOTATION).is_some_and(|name| name == "etl"), "{annotations:?}");
    ensure!(annotations.contains_key("example.com/a"), "the binding brought nothing: {annotations:?}");
    pod.delete(GONE_LIMIT).await
}

async fn only_the_submitter_and_allowed_groups_run_something_in_a_pod_with_a_token(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let pod = scene.run(draft("private")).await?;
    let said = format!("{TOKEN_FOLDER}/token.json");
    let exec = ["exec", "private", "--", "cat", &said];
    let read = scene.kubectl("etl")?.args(exec).succeed().await?;
    ensure!(read.contains("\"etl\""), "{read}");
    for user in ["ads", "intruder"] {
        let output = scene.kubectl(user)?.args(exec).output().await?;
        let whose = format!("only etl, who submitted it, may run commands in it, not {user}");
        told(
            output,
            &["the pod holds a Hadoop token", &whose, &format!("members of {ADMINISTRATORS} may too")],
        )?;
        // Where nothing is protected, everybody may, as ever.
        let gone = scene.kubectl(user)?.args(["exec", "nobody", "--", "true"]).output().await?;
        told(gone, &["pods \"nobody\" not found"])?;
    }
    bed.kubernetes().kubectl().args(["--namespace", JOBS]).args(exec).succeed().await?;

    let tokenless = scene.run(Draft::new("open").namespace(JOBS)).await?;
    scene.kubectl("ads")?.args(["exec", "open", "--", "true"]).succeed().await?;
    tokenless.delete(GONE_LIMIT).await?;
    pod.delete(GONE_LIMIT).await
}

/// The first line that a program writes, which is ended then.
async fn first_line(program: Program) -> Result<String> {
    let mut child = program
        .command()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let output = child.stdout.take().context("there is no output")?;
    let line = timeout(CONNECT_LIMIT, BufReader::new(output).lines().next_line()).await;
    child.kill().await?;
    line.context("nothing was written in time")??.context("nothing was written")
}

async fn only_the_submitter_attaches_and_forwards_ports(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let pod = scene.run(draft("ticking").script("while true; do echo tick; sleep 0.2; done")).await?;
    let attach = ["attach", "ticking"];
    let forward = ["port-forward", "ticking", ":8080"];
    let proxied = |name: &str| format!("/api/v1/namespaces/{JOBS}/pods/{name}/proxy/");
    for user in ["ads", "intruder"] {
        let who = format!(", not {user}");
        let attached = scene.kubectl(user)?.args(attach).output().await?;
        told(attached, &["only etl, who submitted it, may attach to it", &who])?;
        for sockets in ["true", "false"] {
            let kubectl = scene.kubectl(user)?.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", sockets);
            let forwarded = kubectl.args(forward).output().await?;
            told(forwarded, &["only etl, who submitted it, may forward ports of it", &who])?;
        }
        for name in ["ticking", "ticking:8080", "http:ticking:8080", "https:ticking:"] {
            let output = scene.kubectl(user)?.args(["get", "--raw", &proxied(name)]).output().await?;
            told(output, &["only etl, who submitted it, may reach it through the API server's proxy", &who])?;
        }
    }
    let line = first_line(scene.kubectl("etl")?.args(attach)).await?;
    ensure!(line.contains("tick"), "{line:?}");
    let line = first_line(scene.kubectl("etl")?.args(forward)).await?;
    ensure!(line.starts_with("Forwarding from 127.0.0.1:"), "{line:?}");
    // Nobody listens there, but not for want of a right.
    let output = scene.kubectl("etl")?.args(["get", "--raw", &proxied("ticking:8080")]).output().await?;
    told(output, &["error trying to reach service", "connection refused"])?;
    pod.delete(GONE_LIMIT).await
}

async fn only_the_submitter_debugs_a_pod_with_a_token_and_changes_its_images(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let pod = scene.run(draft("debugged")).await?;
    let image = format!("--image={}", image::TOOLS);
    let stolen = format!("/proc/1/root{TOKEN_FOLDER}/token.json");
    let debug =
        ["debug", "debugged", &image, "--image-pull-policy=Never", "--target=main", "--", "cat", &stolen];
    let other = format!("main={}", image::PAUSE);
    let set = ["set", "image", "pod/debugged", &other];
    for user in ["ads", "intruder"] {
        let who = format!(", not {user}");
        let debugged = scene.kubectl(user)?.args(debug).output().await?;
        told(debugged, &["only etl, who submitted it, may add ephemeral containers to it", &who])?;
        let changed = scene.kubectl(user)?.args(set).output().await?;
        told(changed, &["only etl, who submitted it, may change the images of its containers", &who])?;
    }
    scene.kubectl("etl")?.args(debug).succeed().await?;
    let started = |pod: &Pod| {
        let status = pod.status.as_ref();
        let debuggers = status.and_then(|status| status.ephemeral_container_statuses.as_ref());
        debuggers.is_some_and(|all| {
            all.iter().any(|one| one.state.as_ref().is_some_and(|state| state.terminated.is_some()))
        })
    };
    pod.until("debugged", GONE_LIMIT, started).await?;
    let images =
        |pod: &Pod| pod.spec.as_ref().map(|spec| spec.containers.iter().map(|c| c.image.clone()).collect());
    let before: Option<Vec<Option<String>>> = images(&pod.get().await?);
    ensure!(before == Some(vec![Some(image::TOOLS.to_owned())]), "{before:?}");
    scene.kubectl("etl")?.args(set).arg("--dry-run=server").succeed().await?;
    pod.delete(GONE_LIMIT).await
}

async fn nobody_else_acts_for_a_sealed_pod(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let pod = scene.run(draft("spoken-for")).await?;
    let uid = pod.uid().await?;
    let bound = Bound::Pod { name: "spoken-for", uid: &uid };
    for (who, client) in [("ads", &scene.users.ads), ("intruder", &scene.users.intruder)] {
        let token = service_account_token(client, JOBS, "default", POD_AUDIENCE, bound).await;
        let refusal = format!("{:#}", token.err().context("a token was made for another's pod")?);
        let whose =
            format!("only etl, who submitted it, may have a service account's token bound to it, not {who}");
        ensure!(refusal.contains(&whose), "{refusal}");
        // One that speaks for no pod is nobody's business here.
        service_account_token(client, JOBS, "default", POD_AUDIENCE, Bound::Nothing).await?;
    }
    service_account_token(&scene.users.etl, JOBS, "default", POD_AUDIENCE, bound).await?;
    // A name alone is whoever's who has it when the token is made; nor is a pod waited for.
    let by_name = ["create", "token", "default", "--bound-object-kind=Pod", "--bound-object-name"];
    for (name, uid, words) in [
        ("spoken-for", None, "set spec.boundObjectRef.uid"),
        ("not-yet", Some(&uid), "there is no pod not-yet with UID"),
    ] {
        let uid = uid.map(|uid| format!("--bound-object-uid={uid}"));
        let output = scene.kubectl("etl")?.args(by_name).arg(name).args(uid).output().await?;
        told(output, &[words])?;
    }

    // One without a token of its own, that may reach into those that have one.
    let launcher = draft("launches").set("/spec/automountServiceAccountToken", json!(true));
    let launcher = launcher.set("/spec/volumes", json!([])).set("/spec/containers/0/volumeMounts", json!([]));
    let launcher = scene.run(launcher.annotation(SUBMITTER_ANNOTATION, "whoever")).await?;
    let output = scene.kubectl("intruder")?.args(["exec", "launches", "--", "true"]).output().await?;
    told(output, &["the pod can act for its submitter, and only etl"])?;
    scene.kubectl("etl")?.args(["exec", "launches", "--", "true"]).succeed().await?;
    launcher.delete(GONE_LIMIT).await?;
    pod.delete(GONE_LIMIT).await
}

async fn the_api_servers_audit_log_has_who_submitted_and_who_reached(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let log = bed.kubernetes().audit_log();
    let before = log.end()?;
    let pod = scene.run(draft("on-record")).await?;
    let workload: Deployment = serde_json::from_value(deployment(&draft("recorded")))?;
    let deployments: Api<Deployment> = Api::namespaced(scene.users.etl.clone(), JOBS);
    deployments.create(&PostParams::default(), &workload).await?;
    let exec = ["exec", "on-record", "--", "true"];
    scene.kubectl("etl")?.args(exec).succeed().await?;
    bed.kubernetes().kubectl().args(["--namespace", JOBS]).args(exec).succeed().await?;
    told(scene.kubectl("intruder")?.args(exec).output().await?, &["only etl"])?;
    let annotate = ["annotate", "--overwrite", "pod", "on-record"];
    let renamed = format!("{SUBMITTER_ANNOTATION}=ads");
    told(scene.kubectl("ads")?.args(annotate).arg(renamed).output().await?, &["create a new pod"])?;

    let replica_sets = "system:serviceaccount:kube-system:replicaset-controller";
    let passed_on: &[_] = &[("pods", "submitter", "etl"), ("pods", "origin", "passed-on")];
    for (user, resource, expected) in [
        ("etl", "pods", &[("pods", "submitter", "etl"), ("pods", "origin", "authenticated")][..]),
        (
            "etl",
            "deployments",
            &[("workloads", "submitter", "etl"), ("workloads", "origin", "authenticated")],
        ),
        (replica_sets, "pods", passed_on),
        ("etl", "pods/exec", &[("reach", "reached-by", "submitter")]),
        ("admin", "pods/exec", &[("reach", "reached-by", "group system:masters")]),
        ("intruder", "pods/exec", &[("reach", "reason", "NOT_THE_SUBMITTER")]),
        ("ads", "pods", &[("pods", "reason", "ANNOTATION_CHANGED")]),
    ] {
        let what = format!("{expected:?} of {user}'s request for {resource}");
        until(&format!("recorded: {what}"), RECORD_LIMIT, async || {
            let of = |event: &Value| recorded(event, user, resource);
            let found: Vec<_> = log.since(before)?.iter().filter_map(of).collect();
            let fits = |annotations: &Value| {
                let says = |(entry, key, value): &(&str, &str, &str)| {
                    annotations[format!("{entry}.{DRIVER_NAME}/{key}")] == *value
                };
                expected.iter().all(says)
            };
            ensure!(found.iter().any(fits), "{found:?}");
            Ok(())
        })
        .await?;
    }
    deployments.delete("recorded", &DeleteParams::foreground()).await?;
    until("gone: a Deployment", GONE_LIMIT, async || {
        ensure!(deployments.get_opt("recorded").await?.is_none(), "it is still there");
        Ok(())
    })
    .await?;
    pod.delete(GONE_LIMIT).await
}

/// What an event in the audit log was annotated with, if it is of a user's request for a resource.
fn recorded(event: &Value, user: &str, resource: &str) -> Option<Value> {
    let part = |key: &str| event.pointer("/objectRef")?.get(key)?.as_str();
    let subresource = part("subresource").map(|name| format!("/{name}")).unwrap_or_default();
    let asked = format!("{}{subresource}", part("resource")?);
    let by = event.pointer("/user/username")?.as_str()?;
    (asked == resource && by == user).then(|| event.get("annotations").cloned().unwrap_or_default())
}

async fn what_cannot_be_read_is_refused_and_may_be_tried_again(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let pod = scene.run(draft("unread")).await?;
    let exec = ["exec", "unread", "--", "true"];
    bed.kubernetes().kubectl().args(["delete", "clusterrole", READING]).succeed().await?;
    let refused = until("refused: what cannot be read", RIGHTS_LIMIT, async || {
        let output = scene.kubectl("etl")?.args(exec).output().await?;
        told(output, &["cannot be asked for /api/v1/namespaces/jobs/pods/unread", "forbidden", "try again"])
    })
    .await;
    refused.and(bed.webhook().await?.apply().await)?;
    until("allowed: what can be read again", RIGHTS_LIMIT, async || {
        scene.kubectl("etl")?.args(exec).succeed().await
    })
    .await?;
    pod.delete(GONE_LIMIT).await
}

async fn what_has_nothing_to_do_with_tokens_is_as_ever(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let pod = scene.run(draft("evicted")).await?;
    let pods: Api<Pod> = Api::namespaced(scene.users.ads.clone(), JOBS);
    // Finalizers and labels are everybody's who may change pods.
    let patch = |finalizers: Value| Patch::Merge(json!({"metadata": {"finalizers": finalizers}}));
    for finalizers in [json!(["example.com/wait"]), json!(null)] {
        pods.patch("evicted", &PatchParams::default(), &patch(finalizers)).await?;
    }
    let trial = EvictParams {
        post_options: PostParams { dry_run: true, ..PostParams::default() },
        ..EvictParams::default()
    };
    pods.evict("evicted", &trial).await?;
    pods.evict("evicted", &EvictParams::default()).await?;
    pod.until_gone(GONE_LIMIT).await
}
