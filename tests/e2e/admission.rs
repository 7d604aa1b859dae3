//! What nobody may do, whatever Kubernetes lets him: submit what cannot work, change what was settled when a pod was
//! created, and reach into a pod that holds another's token. Everything is tried as people with certificates of their
//! own, by the programs that they use.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    harness::Test,
    host::NODE_NAME,
    image,
    pod::{Draft, Running, TOKEN_FOLDER},
    process::{Output, Program},
    users::{Bound, JOBS, TEAM, Users, service_account_token},
};
use identity::{GROUPS_ANNOTATION, INJECT_ANNOTATION, POD_AUDIENCE, SEAL_ANNOTATION, SUBMITTER_ANNOTATION};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api, Client,
    api::{EvictParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    time::timeout,
};

use crate::{GONE_LIMIT, attacks::stage::draft};

/// Whose members may reach into pods of others; see the webhook's configuration on the bed.
const ADMINISTRATORS: &str = "system:masters";
/// What whoever shares a namespace may do to pods besides what [`TEAM`] may.
const REACH: &str = "reach";
/// Longest that a connection through the API server may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![
        what_cannot_work_is_refused_with_what_to_change,
        annotations_stay_as_they_were_whoever_changes_them_and_however,
        a_binding_brings_no_annotations,
        only_the_submitter_and_allowed_groups_run_something_in_a_pod_with_a_token,
        only_the_submitter_attaches_and_forwards_ports,
        only_the_submitter_debugs_a_pod_with_a_token_and_changes_its_images,
        nobody_else_acts_for_a_sealed_pod,
        what_has_nothing_to_do_with_tokens_is_as_ever,
    ]
}

/// People with the rights to reach into pods, and a webhook that watches them.
pub(crate) struct Scene<'bed> {
    pub(crate) bed: &'bed Bed,
    pub(crate) users: Users,
}

impl<'bed> Scene<'bed> {
    pub(crate) async fn set(bed: &'bed Bed) -> Result<Self> {
        bed.product().await?;
        bed.webhook().await?;
        let users = Users::of(bed.kubernetes()).await?;
        let scene = Self { bed, users };
        scene.may_reach(JOBS).await?;
        Ok(scene)
    }

    /// Whoever is in the team may do in `namespace` all that the webhook has a say in.
    pub(crate) async fn may_reach(&self, namespace: &str) -> Result<()> {
        let pods = [
            "attach",
            "binding",
            "ephemeralcontainers",
            "eviction",
            "exec",
            "portforward",
            "proxy",
            "status",
        ]
        .map(|part| format!("pods/{part}"));
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "Role",
                "metadata": {"name": REACH, "namespace": namespace},
                "rules": [
                    {"apiGroups": [""], "resources": pods, "verbs": ["*"]},
                    {"apiGroups": [""], "resources": ["pods", "bindings"], "verbs": ["*"]},
                    {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["*"]},
                ],
            },
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": {"name": REACH, "namespace": namespace},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": REACH},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": TEAM}],
            },
        ]});
        self.bed.kubernetes().apply(&list.to_string()).await.map(drop)
    }

    /// kubectl as somebody of the team, in [`JOBS`].
    pub(crate) fn kubectl(&self, user: &str) -> Result<Program> {
        let kubeconfig = self.bed.kubernetes().kubeconfig_of(user, Some(TEAM))?;
        Ok(self.bed.kubernetes().kubectl().env("KUBECONFIG", kubeconfig).args(["--namespace", JOBS]))
    }

    /// A pod of etl's that holds a token and ticks.
    async fn ticking(&self, name: &str) -> Result<Running> {
        let script = "while true; do echo tick; sleep 0.2; done";
        self.run(draft(name).script(script)).await
    }

    async fn run(&self, draft: Draft) -> Result<Running> {
        let pod = self.bed.kubernetes().create_as(self.users.etl.clone(), &draft).await?;
        pod.until_running(GONE_LIMIT).await?;
        Ok(pod)
    }
}

/// A request was refused with this status, and with all these words.
pub(crate) fn refused<T>(answer: kube::Result<T>, what: &str, code: u16, words: &[&str]) -> Result<()> {
    match answer {
        Ok(_) => anyhow::bail!("{what} went through"),
        Err(kube::Error::Api(status)) => {
            ensure!(status.code == code, "{what}: {} {}", status.code, status.message);
            for word in words {
                ensure!(status.message.contains(word), "{what}: {word:?} is not in {:?}", status.message);
            }
            Ok(())
        }
        Err(error) => Err(error).with_context(|| format!("{what} failed otherwise")),
    }
}

/// A program was refused, and told so with all these words.
fn told(output: Output, words: &[&str]) -> Result<()> {
    let text = output.failure()?;
    for word in words {
        ensure!(text.contains(word), "{word:?} is not in {text:?}");
    }
    Ok(())
}

/// Creates as `client`, but only to see what the API server says.
async fn tried<K>(client: &Client, object: &Value) -> Result<kube::Result<K>>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
    K::DynamicType: Default,
{
    let api: Api<K> = Api::namespaced(client.clone(), JOBS);
    let object: K = serde_json::from_value(object.clone())?;
    Ok(api.create(&PostParams { dry_run: true, ..PostParams::default() }, &object).await)
}

/// A Deployment, in [`JOBS`], of pods like `draft`.
pub(crate) fn deployment(draft: &Draft) -> Value {
    let part = |pointer: &str| draft.json().pointer(pointer).cloned().unwrap_or_default();
    let (name, annotations, mut spec) =
        (part("/metadata/name"), part("/metadata/annotations"), part("/spec"));
    if let Some(spec) = spec.as_object_mut() {
        spec.insert("restartPolicy".to_owned(), json!("Always"));
    }
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": JOBS},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}, "annotations": annotations}, "spec": spec},
        },
    })
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
    let pod = scene.ticking("ticking").await?;
    let attach = ["attach", "ticking"];
    let forward = ["port-forward", "ticking", ":8080"];
    let proxied = |name: &str| format!("/api/v1/namespaces/{JOBS}/pods/{name}/proxy/");
    for user in ["ads", "intruder"] {
        let who = format!(", not {user}");
        let attached = scene.kubectl(user)?.args(attach).output().await?;
        told(attached, &["only etl, who submitted it, may attach to it", &who])?;
        let forwarded = scene.kubectl(user)?.args(forward).output().await?;
        told(forwarded, &["only etl, who submitted it, may forward ports of it", &who])?;
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
    let text = output.failure()?;
    ensure!(!text.contains("denied"), "{text}");
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
