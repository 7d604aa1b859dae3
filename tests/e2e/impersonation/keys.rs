//! The sealing key is exchanged as docs/webhook.md says, while workloads carry seals of the old one.

use std::fs;

use anyhow::{Context, Result, ensure};
use bed::{Bed, pod::Running, webhook::generate_key};
use identity::{
    SEAL_ANNOTATION,
    seal::{JwkSet, KeySet, SealingKey},
};
use kube::ResourceExt;
use serde_json::json;

use super::scene::{Scene, is_of, plain, put_at};
use crate::GONE_LIMIT;

pub(super) async fn sealing_keys_are_exchanged_and_pods_stay_whose_they_are(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let product = bed.product().await?;
    let old_pem = fs::read_to_string(scene.webhook.overlay().join("seal.pem"))?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("seal.pem");
    let new = generate_key(&file).await?;
    let owners = exchange(&scene, &new, &fs::read_to_string(&file)?).await;
    let beds_own = bed.kubernetes().sealing_key();
    let old = scene.webhook.sealing_key();
    let restored = async {
        product.publish_seal_keys(&[beds_own, old, &new]).await?;
        scene.webhook.seal_by(product, &old_pem, &[beds_own, old, &new]).await?;
        product.publish_seal_keys(&[beds_own, old]).await?;
        scene.webhook.until_taken_up(product, old, &[beds_own, old]).await
    };
    let restored = restored.await;
    let owners = owners?;
    restored?;
    scene.ends(&owners).await
}

async fn exchange(scene: &Scene<'_>, new: &SealingKey, new_pem: &str) -> Result<Vec<&'static str>> {
    let product = scene.bed.product().await?;
    let (beds_own, old) = (scene.bed.kubernetes().sealing_key(), scene.webhook.sealing_key());
    let submit = async |user: &str, name: &str| scene.submit(user, &plain("ReplicaSet", name)).await;
    is_of(&submit("etl", "restarted").await?, "etl")?;
    let mut forgotten = plain("ReplicaSet", "forgotten");
    put_at(&mut forgotten, "/spec/replicas", json!(0))?;
    is_of(&scene.submit("etl", &forgotten).await?, "etl")?;
    let first = scene.pod("restarted").await?;
    scene.runs_as(&first, "etl").await?;
    is_sealed_by(old, &first).await?;

    // Both are believed before one seals by the new one.
    product.publish_seal_keys(&[beds_own, old, new]).await?;
    scene.webhook.until_taken_up(product, old, &[beds_own, old, new]).await?;
    scene.webhook.seal_by(product, new_pem, &[beds_own, old, new]).await?;
    submit("ads", "later").await?;
    let later = scene.pod("later").await?;
    scene.runs_as(&later, "ads").await?;
    is_sealed_by(new, &later).await?;
    // The workload carries a seal of the old one still.
    first.delete(GONE_LIMIT).await?;
    let second = scene.pod("restarted").await?;
    scene.runs_as(&second, "etl").await?;
    is_sealed_by(new, &second).await?;

    // As `kubectl rollout restart` does to a Deployment.
    let restart = json!({"spec": {"template": {"metadata": {"annotations": {"restarted": "now"}}}}});
    is_of(&scene.merge("etl", "ReplicaSet", "restarted", restart).await?, "etl")?;
    product.publish_seal_keys(&[beds_own, new]).await?;
    scene.webhook.until_taken_up(product, new, &[beds_own, new]).await?;
    second.delete(GONE_LIMIT).await?;
    let third = scene.pod("restarted").await?;
    scene.runs_as(&third, "etl").await?;
    scene.merge("etl", "ReplicaSet", "forgotten", json!({"spec": {"replicas": 1}})).await?;
    let words = ["FailedCreate", "the seal of its owner ReplicaSet forgotten", "cannot be trusted"];
    scene.event("ReplicaSet", "forgotten", &words).await?;

    for name in ["restarted", "forgotten", "later"] {
        scene.remove("ReplicaSet", name).await?;
    }
    Ok(vec!["etl", "ads", "etl", "etl"])
}

/// The pod's seal is one of this key's.
async fn is_sealed_by(key: &SealingKey, pod: &Running) -> Result<()> {
    let keys = KeySet::from_jwk_set(JwkSet { keys: vec![key.public_jwk()] }.to_json().as_bytes())?;
    let live = pod.get().await?;
    let seal = live.annotations().get(SEAL_ANNOTATION).context("no seal")?;
    ensure!(keys.verify(seal).is_ok(), "{} is sealed by another key", pod.name());
    Ok(())
}
