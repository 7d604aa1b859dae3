//! One attack in every form that a request can have: copies, patches of every kind, trials, bindings, statuses, and what
//! kubectl makes of a pod.

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    host::NODE_NAME,
    image,
    users::{JOBS, OTHER},
};
use identity::{SEAL_ANNOTATION, SUBMITTER_ANNOTATION};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{DynamicObject, EvictParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::scene::{Scene, annotations, is_of, plain, put_at, refused, stamps, template, wearing, workload};
use crate::{GONE_LIMIT, attacks::stage::draft};

/// Keeps a pod from its node, and so from a token.
const GATE: &str = "bed.test/attack";

pub(super) async fn a_seal_that_was_copied_is_written_over_wherever_it_came_from(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let deployment = scene.submit("etl", &plain("Deployment", "genuine")).await?;
    let pod = scene.pod("genuine").await?;
    scene.runs_as(&pod, "etl").await?;
    let live = pod.get().await?;
    let of_pod = stamps(live.annotations().clone());
    let of_template = annotations(&deployment)?.clone();
    let elsewhere: Api<Pod> = Api::namespaced(scene.client("etl"), OTHER);
    let trial = PostParams { dry_run: true, ..PostParams::default() };
    let there: Pod = serde_json::from_value(draft("copies").namespace(OTHER).json().clone())?;
    let of_elsewhere = stamps(elsewhere.create(&trial, &there).await?.annotations().clone());

    let mut owners = vec!["etl"];
    for (what, stolen) in [("pod", &of_pod), ("template", &of_template), ("elsewhere", &of_elsewhere)] {
        ensure!(stolen.get(SEAL_ANNOTATION).is_some(), "{what}: there is no seal to steal");
        let bare = wearing(draft("copies"), stolen);
        // As a controller names pods, of the very prefix.
        let generated = wearing(draft("unused"), stolen)
            .set("/metadata/name", Value::Null)
            .set("/metadata/generateName", json!(live.metadata.generate_name));
        for copy in [bare, generated] {
            let copy = bed.kubernetes().create_as(scene.client("ads"), &copy).await?;
            scene.runs_as(&copy, "ads").await.context(what)?;
            owners.push("ads");
            copy.delete(GONE_LIMIT).await?;
        }
        let copy = workload("Deployment", "copies", &wearing(draft("unused"), stolen));
        is_of(&scene.submit("ads", &copy).await?, "ads").context(what)?;
        scene.runs_as(&scene.pod("copies").await?, "ads").await.context(what)?;
        owners.push("ads");
        scene.remove("Deployment", "copies").await?;
    }
    scene.remove("Deployment", "genuine").await?;
    scene.ends(&owners).await
}

pub(super) async fn every_kind_of_patch_makes_its_author_the_submitter_and_moves_no_seal(
    bed: &Bed,
) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let created = scene.submit("etl", &resting("patched")?).await?;
    let stolen = annotations(&scene.submit("ads", &resting("thiefs")?).await?)?.clone();
    let ads = scene.objects("ads", "Deployment");
    let changes = |annotations: Option<&Value>, number: usize| -> Vec<(&str, Patch<Value>)> {
        let command = json!(["sleep", (1_000_000 + number).to_string()]);
        let container = json!({"name": "main", "image": image::TOOLS, "command": command});
        let template = match annotations {
            Some(annotations) => json!({"metadata": {"annotations": annotations}}),
            None => json!({"spec": {"containers": [container]}}),
        };
        let (at, value) = match annotations {
            Some(annotations) => ("metadata/annotations", annotations.clone()),
            None => ("spec/containers/0/command", command),
        };
        let operation = json!([{"op": "replace", "path": format!("/spec/template/{at}"), "value": value}]);
        let change = json!({"spec": {"template": template}});
        let applied = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "patched"},
            "spec": {"template": template},
        });
        let operation = serde_json::from_value(operation).map(Patch::Json);
        let mut all = vec![("strategic", Patch::Strategic(change.clone())), ("apply", Patch::Apply(applied))];
        // It would replace all containers.
        if annotations.is_some() {
            all.push(("merge", Patch::Merge(change)));
        }
        all.extend(operation.ok().map(|operation| ("JSON", operation)));
        all
    };
    let send = async |patch: &Patch<Value>| {
        let parameters = match patch {
            Patch::Apply(_) => PatchParams::apply("ads").force(),
            _ => PatchParams::default(),
        };
        let patched = ads.patch("patched", &parameters, patch).await?;
        anyhow::Ok(serde_json::to_value(patched)?)
    };
    // Another's seal, which ads has really got, and nothing else: the old one is put back.
    for (what, patch) in changes(Some(&stolen), 0) {
        let patched = send(&patch).await.context(what)?;
        ensure!(template(&patched)? == template(&created)?, "{what}: {}", template(&patched)?);
    }
    let mut put = created.clone();
    put_at(&mut put, "/spec/template/metadata/annotations", stolen.clone())?;
    put_at(&mut put, "/metadata/resourceVersion", Value::Null)?;
    let put: DynamicObject = serde_json::from_value(put)?;
    let put = serde_json::to_value(ads.replace("patched", &PostParams::default(), &put).await?)?;
    ensure!(template(&put)? == template(&created)?, "put: {}", template(&put)?);
    // Something to run: it is his.
    for (number, (what, _)) in changes(None, 0).into_iter().enumerate() {
        let by_etl = json!([{"op": "add", "path": "/spec/template/spec/terminationGracePeriodSeconds", "value": number}]);
        let by_etl = Patch::<Value>::Json(serde_json::from_value(by_etl)?);
        let back =
            scene.objects("etl", "Deployment").patch("patched", &PatchParams::default(), &by_etl).await?;
        is_of(&serde_json::to_value(back)?, "etl")?;
        let (_, patch) =
            changes(None, number + 1).into_iter().find(|(kind, _)| *kind == what).context("no patch")?;
        is_of(&send(&patch).await.context(what)?, "ads").context(what)?;
    }
    let one = json!({"spec": {"replicas": 1}});
    is_of(&scene.merge("etl", "Deployment", "patched", one).await?, "ads")?;
    scene.runs_as(&scene.pod("patched").await?, "ads").await?;
    scene.remove("Deployment", "patched").await?;
    scene.remove("Deployment", "thiefs").await?;
    scene.ends(&["ads"]).await
}

/// A Deployment without pods.
fn resting(name: &str) -> Result<Value> {
    let mut other = plain("Deployment", name);
    put_at(&mut other, "/spec/replicas", json!(0))?;
    Ok(other)
}

pub(super) async fn what_is_only_tried_is_answered_alike_and_leaves_nothing(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let created = scene.submit("etl", &resting("tried")?).await?;
    let ads = scene.objects("ads", "Deployment");
    let trial = PatchParams { dry_run: true, ..PatchParams::default() };
    let change = json!({"spec": {"replicas": 1, "template": {"metadata": {"labels": {"by": "ads"}}}}});
    let tried = ads.patch("tried", &trial, &Patch::Merge(change)).await?;
    is_of(&serde_json::to_value(tried)?, "ads")?;
    ensure!(template(&scene.stored("Deployment", "tried").await?)? == template(&created)?, "it was changed");
    let trial = PostParams { dry_run: true, ..PostParams::default() };
    let fake = plain("Deployment", "never");
    let never = ads.create(&trial, &serde_json::from_value(fake)?).await?;
    is_of(&serde_json::to_value(never)?, "ads")?;
    let stolen = scene.stamps_of("etl", &draft("never")).await?;
    let pods: Api<Pod> = Api::namespaced(scene.client("ads"), JOBS);
    let fake: Pod = serde_json::from_value(wearing(draft("never"), &stolen).json().clone())?;
    let never = pods.create(&trial, &fake).await?;
    ensure!(never.annotations().get(SUBMITTER_ANNOTATION).is_some_and(|name| name == "ads"), "etl's");
    // What would be refused is refused.
    let bad = draft("never").set("/spec/volumes/0/csi/readOnly", json!(false));
    let bad: Pod = serde_json::from_value(bad.json().clone())?;
    refused(pods.create(&trial, &bad).await, "a writable volume", "VOLUME_NOT_READ_ONLY", &[])?;
    ensure!(pods.get_opt("never").await?.is_none(), "a pod that was only tried is there");
    ensure!(ads.get_opt("never").await?.is_none(), "a Deployment that was only tried is there");
    scene.remove("Deployment", "tried").await?;
    scene.ends(&[]).await
}

pub(super) async fn a_copy_that_is_to_be_debugged_is_whose_copy_it_is(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let pod = bed.kubernetes().create_as(scene.client("etl"), &draft("original")).await?;
    scene.runs_as(&pod, "etl").await?;
    let debug = ["debug", "original", "--copy-to=copied", "--container=main", "--image-pull-policy=Never"];
    let debug = scene.kubectl("ads")?.args(debug).arg(format!("--image={}", image::TOOLS));
    debug.args(["--", "sleep", "2147483647"]).succeed().await?;
    let copy = bed.kubernetes().pod(JOBS, "copied");
    scene.runs_as(&copy, "ads").await?;
    copy.delete(GONE_LIMIT).await?;
    pod.delete(GONE_LIMIT).await?;
    scene.ends(&["etl", "ads"]).await
}

pub(super) async fn a1_nothing_that_happens_to_a_pod_later_makes_it_anothers(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let stolen = scene.stamps_of("etl", &draft("later")).await?;
    let waiting = draft("later")
        .set("/spec/schedulingGates", json!([{"name": GATE}]))
        .set("/spec/schedulerName", json!("nobody"));
    let pod = bed.kubernetes().create_as(scene.client("ads"), &waiting).await?;
    let before = pod.get().await?.annotations().clone();
    let ads: Api<Pod> = Api::namespaced(scene.client("ads"), JOBS);
    let parameters = PatchParams::default();
    let change = json!({"metadata": {"annotations": stolen}});
    let replacement = json!([{"op": "replace", "path": "/metadata/annotations", "value": stolen}]);
    let mut applied = change.clone();
    put_at(&mut applied, "/apiVersion", json!("v1"))?;
    put_at(&mut applied, "/kind", json!("Pod"))?;
    let json_patch: Patch<Value> = Patch::Json(serde_json::from_value(replacement)?);
    for patch in [Patch::Merge(change.clone()), Patch::Strategic(change.clone()), json_patch] {
        let what = format!("{patch:?}");
        refused(ads.patch("later", &parameters, &patch).await, &what, "ANNOTATION_CHANGED", &[])?;
        let answer = ads.patch_status("later", &parameters, &patch).await;
        refused(answer, &format!("{what} of the status"), "ANNOTATION_CHANGED", &[])?;
    }
    let force = PatchParams::apply("ads").force();
    refused(ads.patch("later", &force, &Patch::Apply(applied)).await, "apply", "ANNOTATION_CHANGED", &[])?;
    // The gate may be opened, and that brings nothing either.
    let opening = json!({"metadata": {"annotations": stolen}, "spec": {"schedulingGates": null}});
    let answer = ads.patch("later", &parameters, &Patch::Merge(opening)).await;
    refused(answer, "an opened gate", "ANNOTATION_CHANGED", &[])?;
    ads.patch("later", &parameters, &Patch::Merge(json!({"spec": {"schedulingGates": null}}))).await?;
    let bind = async |annotations: &Value| {
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": "later", "namespace": JOBS, "annotations": annotations},
            "target": {"apiVersion": "v1", "kind": "Node", "name": NODE_NAME},
        });
        let path = format!("/api/v1/namespaces/{}/pods/later/binding", JOBS);
        let request = http::Request::post(path).header("content-type", "application/json");
        let request = request.body(binding.to_string().into_bytes())?;
        anyhow::Ok(scene.client("ads").request::<Value>(request).await)
    };
    refused(bind(&stolen).await?, "a binding", "ANNOTATION_CHANGED", &["remove it from the binding"])?;
    bind(&json!({})).await??;
    ensure!(pod.get().await?.annotations() == &before, "the annotations have changed");
    scene.runs_as(&pod, "ads").await?;
    pod.delete(GONE_LIMIT).await?;
    scene.ends(&["ads"]).await
}

pub(super) async fn a_pod_that_another_evicts_comes_back_as_its_submitters(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    scene.submit("etl", &plain("Deployment", "evicted")).await?;
    let pod = scene.pod("evicted").await?;
    scene.runs_as(&pod, "etl").await?;
    let ads: Api<Pod> = Api::namespaced(scene.client("ads"), JOBS);
    ads.evict(pod.name(), &EvictParams::default()).await?;
    pod.until_gone(GONE_LIMIT).await?;
    scene.runs_as(&scene.pod("evicted").await?, "etl").await?;
    scene.remove("Deployment", "evicted").await?;
    scene.ends(&["etl", "etl"]).await
}
