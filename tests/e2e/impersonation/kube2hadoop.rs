//! What could be done to Kube2Hadoop, by the numbers of docs/threat-model.md, with the webhook in the way.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bed::{
    Bed,
    image::{PAUSE, TOOLS},
    pod::TOKEN_FILE,
    process::{Program, until},
    users::{EXEMPT, JOBS, TEAM},
};
use futures_util::future::try_join_all;
use identity::{SEAL_ANNOTATION, SUBMITTER_ANNOTATION};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::{Api, ResourceExt, api::PostParams};
use serde_json::{Map, Value, json};
use tokio::{net::TcpStream, time::timeout};

use super::scene::{LIMIT, RIGHTS, Scene, at, is_of, plain, put_at, stamps, wearing};
use crate::{
    GONE_LIMIT,
    attacks::stage::{acting, draft},
};

/// A namespace that nobody has told us of.
const FRESH: &str = "fresh";
const PORT: u16 = 9444;
/// How many connections it takes at once, where nobody configures it.
const CONNECTIONS: usize = 512;

pub(super) async fn a2_a_namespace_that_nobody_enrolled_is_watched_and_an_exempt_one_gets_nothing(
    bed: &Bed,
) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let kubernetes = bed.kubernetes();
    let metadata = json!({"name": RIGHTS, "namespace": FRESH});
    let items = json!([
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": FRESH}},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": TEAM}],
        },
    ]);
    kubernetes.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(kubernetes.client(), FRESH);
    until("there: service account default", LIMIT, async || Ok(accounts.get("default").await?)).await?;
    let stolen = scene.stamps_of("etl", &draft("stolen")).await?;
    let pod = wearing(draft("unwatched").namespace(FRESH), &stolen);
    let pod = kubernetes.create_as(scene.client("ads"), &pod).await?;
    scene.runs_as(&pod, "ads").await?;
    pod.delete(GONE_LIMIT).await?;
    kubernetes.kubectl().args(["delete", "namespace", FRESH, "--wait=false"]).succeed().await?;

    // Nobody is asked there; and what he brings is genuine.
    let pod = wearing(draft("stolen").namespace(EXEMPT), &stolen);
    let pod = kubernetes.create_as(scene.client("ads"), &pod).await?;
    let kept = stamps(pod.get().await?.annotations().clone());
    ensure!(kept == stolen, "somebody was asked in an exempt namespace");
    scene.stage.pod_refused(&pod, "NAMESPACE_EXEMPT", 1).await?;
    pod.delete(GONE_LIMIT).await?;
    scene.ends(&["ads"]).await
}

pub(super) async fn a5_nobody_elses_hands_reach_a_token_and_what_he_changes_is_his(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    scene.submit("etl", &plain("Deployment", "touched")).await?;
    let pod = scene.pod("touched").await?;
    scene.runs_as(&pod, "etl").await?;
    let (tools, other) = (format!("--image={TOOLS}"), format!("main={PAUSE}"));
    let debugs = ["debug", pod.name(), &tools, "--image-pull-policy=Never", "--target=main", "--", "true"];
    let pod_path = format!("pod/{}", pod.name());
    for words in [
        &["exec", pod.name(), "--", "cat", TOKEN_FILE][..],
        &["cp", &format!("{}:{TOKEN_FILE}", pod.name()), "/dev/null"],
        &debugs,
        &["set", "image", &pod_path, &other],
    ] {
        let told = scene.kubectl("ads")?.args(words.iter().copied()).output().await?.failure()?;
        ensure!(told.contains("only etl, who submitted it, may"), "{words:?}: {told}");
    }
    // He may change the workload, and that is his then.
    let container = json!([{"name": "main", "command": ["sh", "-c", format!("cat {TOKEN_FILE} > /dev/null; sleep 365d")]}]);
    let change = json!({"spec": {"template": {"spec": {"containers": container}}}});
    let patch = ["patch", "deployment/touched", "--type=strategic", "--patch", &change.to_string()]
        .map(str::to_owned);
    scene.kubectl("ads")?.args(patch).succeed().await?;
    is_of(&scene.stored("Deployment", "touched").await?, "ads")?;
    pod.until_gone(LIMIT).await?;
    scene.runs_as(&scene.pod("touched").await?, "ads").await?;
    scene.remove("Deployment", "touched").await?;
    scene.ends(&["etl", "ads"]).await
}

pub(super) async fn a6_a_name_used_again_is_its_new_submitters(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let pod = bed.kubernetes().create_as(scene.client("etl"), &draft("again")).await?;
    scene.runs_as(&pod, "etl").await?;
    let stolen = stamps(pod.get().await?.annotations().clone());
    pod.delete(GONE_LIMIT).await?;
    let pod = bed.kubernetes().create_as(scene.client("ads"), &wearing(draft("again"), &stolen)).await?;
    scene.runs_as(&pod, "ads").await?;
    pod.delete(GONE_LIMIT).await?;
    scene.ends(&["etl", "ads"]).await
}

pub(super) async fn a7_a_sealed_pod_in_the_nodes_network_gets_nothing(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let on_node = draft("on-the-node").set("/spec/hostNetwork", json!(true));
    let pod = bed.kubernetes().create_as(scene.client("ads"), &on_node).await?;
    ensure!(scene.seal(&pod).await?.submitter == "ads", "it is another's");
    scene.stage.pod_refused(&pod, "HOST_NETWORK_NOT_ALLOWED", 0).await?;
    pod.delete(GONE_LIMIT).await?;
    scene.ends(&[]).await
}

pub(super) async fn a8_nobody_asks_for_an_account_that_is_not_his(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let pod = bed.kubernetes().create_as(scene.client("etl"), &acting(draft("acting"), "hdfs")).await?;
    scene.stage.pod_refused(&pod, "USER_DENIED", 0).await?;
    pod.delete(GONE_LIMIT).await?;
    // What etl may ask for, ads may not, nor in what etl has submitted.
    scene.submit("etl", &plain("Deployment", "acting")).await?;
    let pod = scene.pod("acting").await?;
    scene.runs_as(&pod, "etl").await?;
    let asks = json!([{"op": "add", "path": "/spec/template/spec/volumes/0/csi/volumeAttributes", "value": {"doAs": "batch"}}]);
    let patch =
        ["patch", "deployment/acting", "--type=json", "--patch", &asks.to_string()].map(str::to_owned);
    scene.kubectl("ads")?.args(patch).succeed().await?;
    is_of(&scene.stored("Deployment", "acting").await?, "ads")?;
    let old = pod.name().to_owned();
    let pods = scene.pods("acting", 2).await?;
    let pod = pods.into_iter().find(|pod| pod.name() != old).context("no other pod")?;
    scene.stage.pod_refused(&pod, "DO_AS_NOT_MEMBER", 1).await?;
    scene.remove("Deployment", "acting").await?;
    scene.ends(&["etl"]).await
}

pub(super) async fn a9_annotations_named_like_fields_of_a_request_are_only_annotations(
    bed: &Bed,
) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let victim = bed.kubernetes().create_as(scene.client("etl"), &draft("victim")).await?;
    scene.runs_as(&victim, "etl").await?;
    let uid = victim.uid().await?;
    let overwriting = [
        ("namespace", "jobs"),
        ("pod-name", "victim"),
        ("pod-uid", uid.as_str()),
        ("token-kinds", "*"),
        ("doAs", "etl"),
        ("submitter", "etl"),
        ("srcIP", "10.244.0.1"),
        ("iddecorator.username", "etl"),
        ("hadoop-token.csi/user", "etl"),
        ("hadoop-token.csi/username", "etl"),
        ("hadoop-token.csi/origin", "authenticated"),
        ("Hadoop-Token.csi/submitter", "etl"),
    ];
    let pod =
        overwriting.iter().fold(draft("overwriting"), |draft, (name, value)| draft.annotation(name, value));
    let pod = bed.kubernetes().create_as(scene.client("ads"), &pod).await?;
    scene.runs_as(&pod, "ads").await?;
    pod.delete(GONE_LIMIT).await?;
    victim.delete(GONE_LIMIT).await?;
    scene.ends(&["etl", "ads"]).await
}

pub(super) async fn a10_a_certificate_that_hadoop_would_take_for_hdfs_is_sealed_and_gets_nothing(
    bed: &Bed,
) -> Result<()> {
    let scene = Scene::set(bed).await?;
    for (number, (user, reason)) in [
        ("hdfs/x@BED.TEST", "USER_DENIED"),
        ("hdfs", "USER_DENIED"),
        ("hdfs@ELSEWHERE.TEST", "SUBMITTER_NOT_MAPPED"),
        ("system:etl", "SUBMITTER_NOT_MAPPED"),
    ]
    .into_iter()
    .enumerate()
    {
        let client = bed.kubernetes().client_as(user, Some(TEAM)).await?;
        let pod = bed.kubernetes().create_as(client, &draft(&format!("titled-{number}"))).await?;
        ensure!(scene.seal(&pod).await?.submitter == user, "it is another's");
        scene.stage.pod_refused(&pod, reason, 0).await.context(user)?;
        pod.delete(GONE_LIMIT).await?;
    }
    scene.ends(&[]).await
}

pub(super) async fn a11_a_seal_that_a_stranger_has_made_for_him_is_worth_nothing(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let address = scene.address().await?;
    // He asks the webhook himself, as if he were the API server and etl had asked that.
    let review = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "a-strangers",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "name": "strange",
            "namespace": JOBS,
            "operation": "CREATE",
            "userInfo": {"username": "etl", "groups": [TEAM]},
            "object": draft("strange").json(),
            "dryRun": false,
        },
    })
    .to_string();
    let post = |url: String| {
        let curl = Program::new("curl").args(["--silent", "--show-error", "--insecure", "--max-time", "20"]);
        curl.args(["--header", "content-type: application/json", "--data-binary", "@-"]).arg(url)
    };
    let cleartext = post(format!("http://{address}/mutate")).succeed_with(&review).await;
    ensure!(!cleartext.is_ok_and(|answer| answer.contains("patch")), "it speaks in clear");
    let stolen = patched(&post(format!("https://{address}/mutate")).succeed_with(&review).await?)?;
    let pod = wearing(draft("strange"), &stolen);
    let pod = bed.kubernetes().create_as(scene.client("ads"), &pod).await?;
    scene.runs_as(&pod, "ads").await?;
    pod.delete(GONE_LIMIT).await?;
    scene.ends(&["ads"]).await
}

/// The annotations that an answer to a review adds.
fn patched(answer: &str) -> Result<Value> {
    let answer: Value = serde_json::from_str(answer)?;
    let patch = answer.pointer("/response/patch").and_then(Value::as_str).context("no patch")?;
    let patch: Vec<Value> = serde_json::from_slice(&BASE64_STANDARD.decode(patch)?)?;
    let mut annotations = Map::new();
    for operation in &patch {
        let path = at(operation, "/path")?.as_str().unwrap_or_default();
        let Some(rest) = path.strip_prefix("/metadata/annotations") else { continue };
        match rest.strip_prefix('/') {
            Some(key) => {
                let key = key.replace("~1", "/").replace("~0", "~");
                annotations.insert(key, at(operation, "/value")?.clone());
            }
            None => annotations = at(operation, "/value")?.as_object().context("no annotations")?.clone(),
        }
    }
    ensure!(annotations.contains_key(SEAL_ANNOTATION), "there is no seal in {patch:?}");
    Ok(Value::Object(annotations))
}

pub(super) async fn a12_while_the_webhook_is_away_nothing_with_a_token_gets_in_and_workloads_wait(
    bed: &Bed,
) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let mut resting = plain("ReplicaSet", "waiting");
    put_at(&mut resting, "/spec/replicas", json!(0))?;
    scene.submit("etl", &resting).await?;
    let stolen = scene.stamps_of("etl", &draft("undecorated")).await?;
    scene.webhook.stop().await?;
    let away = async {
        let undecorated = wearing(draft("undecorated"), &stolen);
        let created = bed.kubernetes().create_as(scene.client("ads"), &undecorated).await;
        let error = created.err().context("it was created")?;
        ensure!(format!("{error:#}").contains("failed calling webhook"), "{error:#}");
        let fake = scene.submit("ads", &plain("Deployment", "undecorated")).await;
        let error = fake.err().context("a Deployment was created")?;
        ensure!(format!("{error:#}").contains("failed calling webhook"), "{error:#}");
        let scale = ["scale", "replicaset/waiting", "--replicas=1"];
        scene.kubectl("etl")?.args(scale).succeed().await?;
        scene.event("ReplicaSet", "waiting", &["FailedCreate", "failed calling webhook"]).await?;
        scene.issued_to(&[])
    };
    let away: Result<()> = away.await;
    away.and(scene.webhook.start().await)?;
    scene.runs_as(&scene.pod("waiting").await?, "etl").await?;
    scene.remove("ReplicaSet", "waiting").await?;
    scene.ends(&["etl"]).await
}

pub(super) async fn a13_pods_that_are_admitted_at_once_get_each_their_own_seal(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let keys = scene.keys().await?;
    let trial = PostParams { dry_run: true, ..PostParams::default() };
    let mut reviews = Vec::new();
    for number in 0..30 {
        for user in ["etl", "ads", "intruder"] {
            let (client, keys, trial) = (scene.client(user), &keys, &trial);
            reviews.push(async move {
                let name = format!("at-once-{user}-{number}");
                let pod: Pod = serde_json::from_value(draft(&name).json().clone())?;
                let pod = Api::<Pod>::namespaced(client, JOBS).create(trial, &pod).await?;
                let seal = pod.annotations().get(SEAL_ANNOTATION).context("no seal")?;
                let seal = keys.verify(seal)?;
                let shown = pod.annotations().get(SUBMITTER_ANNOTATION).map(String::as_str);
                ensure!(shown == Some(user) && seal.submitter == user, "{name} is of {}", seal.submitter);
                ensure!(seal.name.fits(&name, None), "{name} has the seal of {:?}", seal.name);
                Ok(())
            });
        }
    }
    try_join_all(reviews).await?;
    // And some that are not only tried.
    let create = async |user: &'static str, number: usize| {
        let pod = draft(&format!("at-once-{user}-{number}"));
        anyhow::Ok((bed.kubernetes().create_as(scene.client(user), &pod).await?, user))
    };
    let pods =
        try_join_all([("etl", 0), ("ads", 0), ("etl", 1), ("ads", 1)].map(|(user, n)| create(user, n)))
            .await?;
    for (pod, user) in &pods {
        scene.runs_as(pod, user).await?;
    }
    for (pod, _) in &pods {
        pod.delete(GONE_LIMIT).await?;
    }
    scene.ends(&["etl", "ads", "etl", "ads"]).await
}

pub(super) async fn a14_a_crowd_of_strangers_keeps_nobody_from_being_admitted(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let address = scene.address().await?;
    // More than it takes at once, all silent.
    let mut crowd = Vec::new();
    for _ in 0..600 {
        if let Ok(stranger) = timeout(Duration::from_secs(1), TcpStream::connect(&address)).await {
            crowd.push(stranger?);
        }
    }
    ensure!(crowd.len() > CONNECTIONS, "only {} strangers came", crowd.len());
    for _ in 0..10 {
        scene.stamps_of("etl", &draft("in-a-crowd")).await?;
    }
    let pod = bed.kubernetes().create_as(scene.client("etl"), &draft("in-a-crowd")).await?;
    scene.runs_as(&pod, "etl").await?;
    drop(crowd);
    pod.delete(GONE_LIMIT).await?;
    scene.ends(&["etl"]).await
}

impl Scene<'_> {
    /// Where a replica of the webhook listens, for whoever is in the cluster's network.
    async fn address(&self) -> Result<String> {
        let pod = self.webhook.pods().await?.pop().context("no replica")?;
        let address = pod.get().await?.status.and_then(|status| status.pod_ip).context("no address")?;
        Ok(format!("{address}:{PORT}"))
    }
}
