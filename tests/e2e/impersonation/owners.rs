//! Owner references, revisions and orphans that somebody else has written, so that Kubernetes' own controllers make pods
//! for him, or take them for another's.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bed::{Bed, image, process::until, users::JOBS};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::scene::{Scene, at, is_of, plain, put_at, refused, template, text, wearing};
use crate::{GONE_LIMIT, attacks::stage::draft};

const LIMIT: Duration = Duration::from_secs(60);
/// Keeps a pod from its node, and so from a token.
const GATE: &str = "bed.test/attack";
/// Keeps an object that was deleted.
const HOLD: &str = "bed.test/hold";
/// Where a pod of a StatefulSet has the name of its revision.
const REVISION: &str = "controller-revision-hash";
/// What one would run in another's name.
const SPIES: [&str; 3] = ["sh", "-c", "cat /etc/hadoop-token/token; sleep 2147483647"];

pub(super) async fn a_pod_that_says_it_is_of_anothers_replicaset_is_its_creators(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    scene.submit("etl", &plain("Deployment", "claimed")).await?;
    let honest = scene.pod("claimed").await?;
    scene.runs_as(&honest, "etl").await?;
    let live = serde_json::to_value(honest.get().await?)?;
    let owners = live.pointer("/metadata/ownerReferences").context("no owner")?.clone();
    let stolen = scene.stamps_of("etl", &draft("claims")).await?;
    let claiming = wearing(draft("claims"), &stolen)
        .set("/metadata/ownerReferences", owners.clone())
        .set("/metadata/labels", at(&live, "/metadata/labels")?.clone())
        .set("/metadata/finalizers", json!([HOLD]))
        .set("/spec/schedulingGates", json!([{"name": GATE}]));
    let pod = bed.kubernetes().create_as(scene.client("ads"), &claiming).await?;
    let seal = scene.seal(&pod).await?;
    let root = seal.root_owner.context("the seal names no owner")?;
    ensure!(
        (seal.submitter.as_str(), root.kind.as_str()) == ("ads", "Deployment"),
        "{} {root}",
        seal.submitter
    );
    // The ReplicaSet has one too many now, and may have deleted it.
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    let pods: Api<Pod> = Api::namespaced(scene.client("ads"), JOBS);
    pods.patch("claims", &PatchParams::default(), &free).await?;
    match pods.delete("claims", &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        deleted => drop(deleted?),
    }
    pod.until_gone(GONE_LIMIT).await?;

    // An owner by another UID is none.
    let mut forged = owners;
    put_at(&mut forged, "/0/uid", json!("00000000-0000-4000-8000-000000000000"))?;
    let forged: Pod =
        serde_json::from_value(draft("forged").set("/metadata/ownerReferences", forged).json().clone())?;
    let answer = pods.create(&PostParams::default(), &forged).await;
    refused(answer, "an owner by another UID", "OWNER_NOT_FOUND", &["another of the same name"])?;
    scene.remove("Deployment", "claimed").await?;
    scene.ends(&["etl"]).await
}

pub(super) async fn a_replicaset_put_under_anothers_deployment_makes_pods_of_its_creator(
    bed: &Bed,
) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let deployment = scene.submit("etl", &plain("Deployment", "above")).await?;
    let honest = scene.pod("above").await?;
    scene.runs_as(&honest, "etl").await?;
    // All that etl's has, seal included, but for what is run. His controller takes its pods away soon; they stay to be
    // looked at.
    let mut own = template(&deployment)?.clone();
    put_at(&mut own, "/metadata/labels/pod-template-hash", json!("forged"))?;
    put_at(&mut own, "/metadata/finalizers", json!([HOLD]))?;
    put_at(&mut own, "/spec/containers/0/command", json!(SPIES))?;
    put_at(&mut own, "/spec/schedulingGates", json!([{"name": GATE}]))?;
    let labels = at(&own, "/metadata/labels")?.clone();
    let forged = json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": "above-forged",
            "namespace": JOBS,
            "labels": labels,
            "ownerReferences": [reference(&deployment)?],
        },
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": own},
    });
    is_of(&scene.submit("ads", &forged).await?, "ads")?;
    let pods: Api<Pod> = Api::namespaced(scene.client("ads"), JOBS);
    let its = ListParams::default().labels("pod-template-hash=forged");
    let made = until("made: a pod of the forged ReplicaSet", LIMIT, async || {
        let found = pods.list(&its).await?.items;
        if found.is_empty() {
            scene.merge("ads", "ReplicaSet", "above-forged", json!({"spec": {"replicas": 1}})).await?;
        }
        found.into_iter().next().context("there is none")
    })
    .await?;
    let seal = scene.seal(&bed.kubernetes().pod(JOBS, &made.name_any())).await?;
    ensure!(seal.submitter == "ads", "it is of {}", seal.submitter);
    scene.objects("ads", "ReplicaSet").delete("above-forged", &DeleteParams::default()).await?;
    until("gone: the pods of the forged ReplicaSet", GONE_LIMIT, async || {
        let left = pods.list(&its).await?.items;
        for pod in &left {
            let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
            pods.patch(&pod.name_any(), &PatchParams::default(), &free).await.ok();
        }
        ensure!(left.is_empty(), "{} are left", left.len());
        Ok(())
    })
    .await?;
    scene.remove("Deployment", "above").await?;
    scene.ends(&["etl"]).await
}

pub(super) async fn a_forged_revision_makes_no_pod_of_anothers(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let mut set = plain("StatefulSet", "revised");
    // What is below the partition is made of the revision that the status names. The grace is the attacker's time.
    put_at(
        &mut set,
        "/spec/updateStrategy",
        json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}),
    )?;
    put_at(&mut set, "/spec/template/spec/terminationGracePeriodSeconds", json!(3))?;
    let set = scene.submit("etl", &set).await?;
    let pod = scene.pod("revised").await?;
    scene.runs_as(&pod, "etl").await?;

    // One that changes only what is run: Kubernetes merges it into the StatefulSet as it is now, seal and volume included.
    let container = json!({"name": "main", "image": image::TOOLS, "command": SPIES});
    let merged = json!({"spec": {"template": {"spec": {"containers": [container]}}}});
    // One that is a whole template, with all that etl's carries.
    let mut whole = template(&set)?.clone();
    put_at(&mut whole, "/spec/containers/0/command", json!(SPIES))?;
    put_at(&mut whole, "/$patch", json!("replace"))?;
    let whole = json!({"spec": {"template": whole}});
    for (name, data, words) in [
        ("revised-merged", merged, ["FailedCreate", "ControllerRevision revised-merged"]),
        ("revised-whole", whole, ["FailedCreate", "which is not above it"]),
    ] {
        let revision = json!({
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": {
                "name": name,
                "namespace": JOBS,
                "labels": {"app": "revised", "controller.kubernetes.io/hash": name},
                "ownerReferences": [reference(&set)?],
            },
            "revision": 1,
            "data": data,
        });
        scene.submit("ads", &revision).await?;
        // It takes its time to end, unless there is none since the last one was refused.
        let before = pod.find().await?;
        if before.is_some() {
            scene.objects("ads", "Pod").delete(pod.name(), &DeleteParams::default()).await?;
        }
        let before = before.and_then(|pod| pod.metadata.uid);
        let status = Patch::Merge(json!({"status": {"currentRevision": name}}));
        let forged = until(&format!("tried: a pod of {name}"), LIMIT, async || {
            let sets = scene.objects("ads", "StatefulSet");
            sets.patch_status("revised", &PatchParams::default(), &status).await?;
            if let Some(made) = pod.find().await?.filter(|pod| pod.metadata.uid != before) {
                if made.labels().get(REVISION).is_some_and(|revision| revision == name) {
                    return Ok(Some(made));
                }
                // It was made before the status was written.
                scene.objects("ads", "Pod").delete(pod.name(), &DeleteParams::default()).await?;
            }
            scene.told("StatefulSet", "revised", &words).await.map(|_| None)
        })
        .await?;
        ensure!(forged.is_none(), "{name}: made of it: {:?}", forged.map(|pod| pod.metadata.annotations));
    }
    // What was forged goes, and the StatefulSet goes on.
    for name in ["revised-merged", "revised-whole"] {
        scene.objects("ads", "ControllerRevision").delete(name, &DeleteParams::default()).await?;
    }
    scene.runs_as(&scene.pod("revised").await?, "etl").await?;
    scene.remove("StatefulSet", "revised").await?;
    let owners = scene.stage.owners()?;
    ensure!(owners.iter().all(|owner| owner == "etl"), "tokens were issued to {owners:?}");
    scene.stage.ends().await
}

pub(super) async fn a_pod_that_a_replicaset_of_another_adopts_is_nobodys(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    // Both ways: his pod in another's ReplicaSet, and another's pod in his.
    for (number, (pods, sets)) in [("ads", "etl"), ("etl", "ads")].into_iter().enumerate() {
        let name = format!("adopting-{number}");
        let orphan = draft(&format!("orphan-{number}"))
            .set("/metadata/labels", json!({"app": name}))
            .set("/spec/schedulingGates", json!([{"name": GATE}]));
        let orphan = bed.kubernetes().create_as(scene.client(pods), &orphan).await?;
        scene.submit(sets, &plain("ReplicaSet", &name)).await?;
        let adopted = |pod: &Pod| !pod.owner_references().is_empty();
        orphan.until("adopted", LIMIT, adopted).await?;
        let seal = scene.seal(&orphan).await?;
        ensure!(seal.submitter == pods, "it is of {}", seal.submitter);
        let free = json!({"spec": {"schedulingGates": null}});
        scene.merge("ads", "Pod", orphan.name(), free).await?;
        scene.stage.pod_refused(&orphan, "SEAL_OF_ANOTHER_POD", 0).await?;
        scene.remove("ReplicaSet", &name).await?;
    }
    scene.ends(&[]).await
}

pub(super) async fn what_an_orphaned_replicaset_makes_is_nobodys_until_it_is_submitted_again(
    bed: &Bed,
) -> Result<()> {
    let scene = Scene::set(bed).await?;
    scene.submit("etl", &plain("Deployment", "orphaned")).await?;
    let pod = scene.pod("orphaned").await?;
    scene.runs_as(&pod, "etl").await?;
    let set = text(&serde_json::to_value(pod.get().await?)?, "/metadata/ownerReferences/0/name")?.to_owned();
    let leave = ["delete", "deployment/orphaned", "--cascade=orphan"];
    scene.kubectl("ads")?.args(leave).succeed().await?;
    pod.delete(GONE_LIMIT).await?;
    // For some seconds the webhook still knows of the Deployment. What it lets in then is refused by the controller.
    let pods: Api<Pod> = Api::namespaced(bed.kubernetes().client(), JOBS);
    let its = ListParams::default().labels("app=orphaned");
    until("refused: a pod of an orphan", LIMIT, async || {
        for pod in pods.list(&its).await?.items {
            let pod = bed.kubernetes().pod(JOBS, &pod.name_any());
            scene.waits(&pod, "SEAL_OF_ANOTHER_POD", &["etl"]).await?;
            pod.delete(GONE_LIMIT).await?;
        }
        scene.told("ReplicaSet", &set, &["FailedCreate", "seal of Deployment jobs/orphaned"]).await
    })
    .await?;
    scene.issued_to(&["etl"])?;
    // Its manifest, submitted again, takes it over, and is of whoever submits it.
    scene.submit("ads", &plain("Deployment", "orphaned")).await?;
    until("of ads: the only pod", LIMIT, async || {
        let pod = scene.pod("orphaned").await?;
        ensure!(scene.seal(&pod).await?.submitter == "ads", "it is etl's still");
        Ok(())
    })
    .await?;
    scene.runs_as(&scene.pod("orphaned").await?, "ads").await?;
    scene.remove("Deployment", "orphaned").await?;
    scene.stage.ends().await
}

/// That an object is the owner and controller.
fn reference(object: &Value) -> Result<Value> {
    Ok(json!({
        "apiVersion": text(object, "/apiVersion")?,
        "kind": text(object, "/kind")?,
        "name": text(object, "/metadata/name")?,
        "uid": text(object, "/metadata/uid")?,
        "controller": true,
    }))
}
