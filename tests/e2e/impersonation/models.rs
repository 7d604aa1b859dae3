//! The three threat models of the article on Kube2Hadoop: a fake name in a Deployment, a fake name in a bare pod, and a
//! cluster administrator.

use anyhow::{Result, ensure};
use bed::{Bed, users::JOBS};
use identity::SUBMITTER_ANNOTATION;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::scene::{Scene, is_of, put_at, refused, template, wearing, workload};
use crate::{GONE_LIMIT, attacks::stage::draft};

/// What the NameNode says of somebody whom the controller may not act for.
const NOT_OURS: &str = "IMPERSONATION_DENIED";

pub(super) async fn threat_model_1_a_fake_name_in_a_deployment_gains_nothing(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    // Everything that a pod of etl's would carry, his genuine seal included.
    let stolen = scene.stamps_of("etl", &draft("genuine")).await?;
    let mut fake = workload("Deployment", "fake", &wearing(draft("unused"), &stolen));
    put_at(&mut fake, "/metadata/annotations", stolen.clone())?;
    let created = scene.submit("ads", &fake).await?;
    is_of(&created, "ads")?;
    let pod = scene.pod("fake").await?;
    scene.runs_as(&pod, "ads").await?;

    // He writes it there once more: into the template, which stays as it was, and into the pod, which is refused.
    let again = json!({"spec": {"template": {"metadata": {"annotations": stolen}}}});
    let patched = scene.merge("ads", "Deployment", "fake", again).await?;
    ensure!(template(&patched)? == template(&created)?, "the template is another one: {patched}");
    let pods: Api<Pod> = Api::namespaced(scene.client("ads"), JOBS);
    for change in [json!({"metadata": {"annotations": stolen}}), renamed()] {
        let answer = pods.patch(pod.name(), &PatchParams::default(), &Patch::Merge(change)).await;
        refused(answer, "a name in the pod", "ANNOTATION_CHANGED", &["create a new pod"])?;
    }
    scene.issued_to(&["ads"])?;
    scene.remove("Deployment", "fake").await?;

    // One whom Hadoop gives nothing does not get more by it.
    scene.submit("intruder", &fake).await?;
    let pod = scene.pod("fake").await?;
    ensure!(scene.seal(&pod).await?.submitter == "intruder", "the pod is another's");
    scene.waits(&pod, NOT_OURS, &["ads"]).await?;
    scene.remove("Deployment", "fake").await?;
    scene.ends(&["ads"]).await
}

pub(super) async fn threat_model_2_a_fake_name_in_a_bare_pod_gains_nothing(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let fake = wearing(draft("fake"), &scene.stamps_of("etl", &draft("fake")).await?);
    let pod = bed.kubernetes().create_as(scene.client("ads"), &fake).await?;
    scene.runs_as(&pod, "ads").await?;
    let pods: Api<Pod> = Api::namespaced(scene.client("ads"), JOBS);
    let answer = pods.patch("fake", &PatchParams::default(), &Patch::Merge(renamed())).await;
    refused(answer, "a name in the pod", "ANNOTATION_CHANGED", &[SUBMITTER_ANNOTATION])?;
    scene.issued_to(&["ads"])?;
    pod.delete(GONE_LIMIT).await?;

    let pod = bed.kubernetes().create_as(scene.client("intruder"), &fake).await?;
    ensure!(scene.seal(&pod).await?.submitter == "intruder", "the pod is another's");
    scene.waits(&pod, NOT_OURS, &["ads"]).await?;
    pod.delete(GONE_LIMIT).await?;
    scene.ends(&["ads"]).await
}

/// Etl's name for a pod.
fn renamed() -> serde_json::Value {
    json!({"metadata": {"annotations": {SUBMITTER_ANNOTATION: "etl"}}})
}
