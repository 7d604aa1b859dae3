//! Honest work: whatever makes the pods, they are of whoever submitted what they are, and of whoever changed that since.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bed::{Bed, process::until};
use kube::{
    ResourceExt,
    api::{DynamicObject, Patch, PatchParams},
};
use serde_json::json;

use super::scene::{Scene, is_of, plain, put_at, submitter, template, text};
use crate::GONE_LIMIT;

const ALL: [&str; 7] =
    ["CronJob", "DaemonSet", "Deployment", "Job", "ReplicaSet", "ReplicationController", "StatefulSet"];
/// From a manifest to running pods.
const ROLLOUT: &str = "--timeout=90s";
const LIMIT: Duration = Duration::from_secs(60);
/// The same image by another name.
const OTHER_NAME: &str = "main=docker.io/bed/tools:1";

pub(super) async fn pods_of_every_workload_read_hdfs_as_whoever_submitted_it(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    for kind in ALL {
        let mut workload = plain(kind, &kind.to_lowercase());
        if kind == "CronJob" {
            put_at(&mut workload, "/spec/suspend", json!(true))?;
        }
        is_of(&scene.submit("etl", &workload).await?, "etl").context(kind)?;
    }
    // Who lets it run is not who says what it does.
    let resumed = json!({"spec": {"suspend": false}});
    is_of(&scene.merge("ads", "CronJob", "cronjob", resumed).await?, "etl")?;
    for kind in ALL.into_iter().rev() {
        let pod = scene.pod(&kind.to_lowercase()).await.context(kind)?;
        scene.runs_as(&pod, "etl").await.context(kind)?;
        let root = scene.seal(&pod).await?.root_owner.with_context(|| format!("{kind}: no owner"))?;
        ensure!((root.kind.as_str(), root.name) == (kind, kind.to_lowercase()), "{kind}: {}", root.kind);
    }
    for kind in ALL {
        scene.remove(kind, &kind.to_lowercase()).await?;
    }
    scene.ends(&["etl"; ALL.len()]).await
}

pub(super) async fn whoever_sets_an_image_or_undoes_it_is_the_submitter(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let image = |words: &[&str]| [&["set", "image", "deployment/changing"], words].concat().join(" ");
    let undo = "rollout undo deployment/changing".to_owned();
    scene.submit("etl", &plain("Deployment", "changing")).await?;
    let mut owners = vec!["etl"];
    scene.rolled_out("changing").await?;
    // The last one brings back a template that carries a genuine seal of etl's.
    for (user, words) in
        [("ads", image(&[OTHER_NAME])), ("etl", undo.clone()), ("etl", image(&[OTHER_NAME])), ("ads", undo)]
    {
        let before = scene.stored("Deployment", "changing").await?;
        let words: Vec<&str> = words.split(' ').collect();
        scene.kubectl(user)?.args(words).succeed().await?;
        let after = scene.stored("Deployment", "changing").await?;
        ensure!(template(&before)? != template(&after)?, "nothing has changed");
        is_of(&after, user)?;
        scene.rolled_out("changing").await?;
        owners.push(user);
        scene.runs_as(&scene.pod("changing").await?, user).await?;
        scene.issued_to(&owners)?;
    }
    scene.remove("Deployment", "changing").await?;
    scene.ends(&owners).await
}

pub(super) async fn whoever_scales_is_not_the_submitter(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let created = scene.submit("etl", &plain("Deployment", "scaled")).await?;
    let scale = ["scale", "deployment/scaled", "--replicas=2"];
    scene.kubectl("ads")?.args(scale).succeed().await?;
    scene.pods("scaled", 2).await?;
    // As an autoscaler does it.
    let three = Patch::Merge(json!({"spec": {"replicas": 3}}));
    let parameters = PatchParams::default();
    scene.objects("ads", "Deployment").patch_scale("scaled", &parameters, &three).await?;
    for pod in scene.pods("scaled", 3).await? {
        scene.runs_as(&pod, "etl").await?;
    }
    let scaled = scene.stored("Deployment", "scaled").await?;
    ensure!(template(&scaled)? == template(&created)?, "the template is another one");
    scene.remove("Deployment", "scaled").await?;
    scene.ends(&["etl"; 3]).await
}

pub(super) async fn a_manifest_that_another_applies_or_replaces_unchanged_keeps_its_seal(
    bed: &Bed,
) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let manifest = plain("Deployment", "applied").to_string();
    scene.kubectl("etl")?.args(["apply", "-f", "-"]).succeed_with(&manifest).await?;
    let created = scene.stored("Deployment", "applied").await?;
    is_of(&created, "etl")?;
    let server_side = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
    for words in [&["apply", "-f", "-"][..], &["replace", "-f", "-"], &server_side] {
        scene.kubectl("ads")?.args(words.iter().copied()).succeed_with(&manifest).await?;
        let stored = scene.stored("Deployment", "applied").await?;
        ensure!(template(&stored)? == template(&created)?, "{words:?}: {}", template(&stored)?);
    }
    let label = ["label", "deployment/applied", "team=ads"];
    scene.kubectl("ads")?.args(label).succeed().await?;
    is_of(&scene.stored("Deployment", "applied").await?, "etl")?;
    scene.rolled_out("applied").await?;
    scene.runs_as(&scene.pod("applied").await?, "etl").await?;
    scene.remove("Deployment", "applied").await?;
    scene.ends(&["etl"]).await
}

pub(super) async fn a_workload_from_before_the_webhook_says_so_and_is_sealed_by_a_restart(
    bed: &Bed,
) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let pod = scene
        .past_the_webhook(async || {
            scene.submit("etl", &plain("Deployment", "older")).await?;
            scene.pod("older").await
        })
        .await?;
    ensure!(submitter(&scene.stored("Deployment", "older").await?).is_err(), "it is sealed already");
    // Its pod from then gets nothing, and there is none in its place.
    scene.stage.pod_refused(&pod, "SEAL_MISSING", 0).await?;
    let set = text(&serde_json::to_value(pod.get().await?)?, "/metadata/ownerReferences/0/name")?.to_owned();
    pod.delete(GONE_LIMIT).await?;
    let told = ["FailedCreate", "carries no seal", "kubectl rollout restart"];
    scene.event("ReplicaSet", &set, &told).await?;
    scene.issued_to(&[])?;
    scene.kubectl("etl")?.args(["rollout", "restart", "deployment/older"]).succeed().await?;
    is_of(&scene.stored("Deployment", "older").await?, "etl")?;
    scene.rolled_out("older").await?;
    scene.runs_as(&scene.pod("older").await?, "etl").await?;
    scene.remove("Deployment", "older").await?;
    scene.ends(&["etl"]).await
}

pub(super) async fn a_statefulsets_pods_are_of_whoever_submitted_their_revision(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let mut set = plain("StatefulSet", "parted");
    put_at(&mut set, "/spec/replicas", json!(2))?;
    put_at(
        &mut set,
        "/spec/updateStrategy",
        json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}),
    )?;
    scene.submit("etl", &set).await?;
    let (first, second) =
        (bed.kubernetes().pod("jobs", "parted-0"), bed.kubernetes().pod("jobs", "parted-1"));
    for pod in scene.pods("parted", 2).await? {
        scene.runs_as(&pod, "etl").await?;
    }
    let old = second.uid().await?;
    scene.kubectl("ads")?.args(["set", "image", "statefulset/parted", OTHER_NAME]).succeed().await?;
    is_of(&scene.stored("StatefulSet", "parted").await?, "ads")?;
    until("replaced: the second pod", LIMIT, async || {
        ensure!(second.uid().await? != old, "it is the old one");
        Ok(())
    })
    .await?;
    scene.runs_as(&second, "ads").await?;
    // What is below the partition is made of the old revision, and has not been changed by anybody.
    let old = first.uid().await?;
    first.delete_without_waiting().await?;
    until("replaced: the first pod", LIMIT, async || {
        ensure!(first.uid().await? != old, "it is the old one");
        Ok(())
    })
    .await?;
    scene.runs_as(&first, "etl").await?;
    scene.remove("StatefulSet", "parted").await?;
    scene.ends(&["etl", "etl", "ads", "etl"]).await
}

pub(super) async fn a_job_that_another_makes_of_a_cronjob_is_his(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let mut cron = plain("CronJob", "nightly");
    put_at(&mut cron, "/spec/suspend", json!(true))?;
    scene.submit("etl", &cron).await?;
    let make = ["create", "job", "by-hand", "--from=cronjob/nightly"];
    scene.kubectl("ads")?.args(make).succeed().await?;
    is_of(&scene.stored("Job", "by-hand").await?, "ads")?;
    let job: DynamicObject = scene.objects("admin", "Job").get("by-hand").await?;
    let owners: Vec<&str> = job.owner_references().iter().map(|owner| owner.kind.as_str()).collect();
    ensure!(owners == ["CronJob"], "owned by {owners:?}");
    scene.runs_as(&scene.pod("nightly").await?, "ads").await?;
    is_of(&scene.stored("CronJob", "nightly").await?, "etl")?;
    // What he changes is his too, from then on.
    let template = json!({"metadata": {"labels": {"by": "ads"}}});
    let change = json!({"spec": {"jobTemplate": {"spec": {"template": template}}}});
    is_of(&scene.merge("ads", "CronJob", "nightly", change).await?, "ads")?;
    scene.remove("CronJob", "nightly").await?;
    scene.ends(&["ads"]).await
}

pub(super) async fn what_another_changes_is_his_of_whatever_kind_it_is(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let name = |kind: &str| format!("his-{}", kind.to_lowercase());
    let mut suspended = plain("Job", &name("Job"));
    put_at(&mut suspended, "/spec/suspend", json!(true))?;
    scene.submit("etl", &suspended).await?;
    let running = || ALL.into_iter().filter(|kind| !["CronJob", "Job"].contains(kind));
    for kind in running() {
        scene.submit("etl", &plain(kind, &name(kind))).await?;
    }
    for kind in running() {
        scene.runs_as(&scene.pod(&name(kind)).await?, "etl").await.context(kind)?;
    }
    let by_ads = || json!({"spec": {"template": {"metadata": {"annotations": {"example.com/by": "ads"}}}}});
    is_of(&scene.merge("ads", "Job", &name("Job"), by_ads()).await?, "ads")?;
    scene.merge("etl", "Job", &name("Job"), json!({"spec": {"suspend": false}})).await?;
    for kind in running() {
        is_of(&scene.merge("ads", kind, &name(kind), by_ads()).await?, "ads").context(kind)?;
        // These leave the pods that they have.
        if ["ReplicaSet", "ReplicationController"].contains(&kind) {
            scene.pod(&name(kind)).await?.delete_without_waiting().await?;
        }
    }
    for kind in running().chain(["Job"]) {
        let pod = until(&format!("of ads: the pod of the {kind}"), LIMIT, async || {
            let pod = scene.pod(&name(kind)).await?;
            ensure!(scene.seal(&pod).await?.submitter == "ads", "it is etl's still");
            Ok(pod)
        })
        .await?;
        scene.runs_as(&pod, "ads").await.context(kind)?;
        scene.remove(kind, &name(kind)).await?;
    }
    scene.ends(&["etl", "etl", "etl", "etl", "etl", "ads", "ads", "ads", "ads", "ads", "ads"]).await
}

impl Scene<'_> {
    /// A Deployment has rolled out.
    async fn rolled_out(&self, name: &str) -> Result<()> {
        let status = ["rollout", "status", ROLLOUT, &format!("deployment/{name}")].map(str::to_owned);
        self.kubectl("etl")?.args(status).succeed().await.map(drop)
    }
}
