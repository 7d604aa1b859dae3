//! The seal as operators meet it: exchanging the key that pods are sealed with, and doing without seals where that is
//! nobody's secret.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    harness::Test,
    namenode::{Cluster, private_content},
    pod::{Draft, Running},
};
use identity::seal::SealingKey;
use serde_json::json;

use crate::{GONE_LIMIT, publish::Token, tally::Tally};

/// kubelet asks again after at most two minutes.
const START_LIMIT: Duration = Duration::from_secs(180);
const EVENT_LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![
        keys_are_exchanged_without_a_restart,
        only_the_switch_for_development_makes_up_for_a_seal_and_says_so,
    ]
}

async fn keys_are_exchanged_without_a_restart(bed: &Bed) -> Result<()> {
    let often = |configuration: &mut serde_json::Value| {
        if let Some(sections) = configuration.as_object_mut() {
            sections.insert("recheckSeconds".to_owned(), json!(10));
        }
    };
    bed.product().await?.with_controller(often, || exchange(bed)).await
}

async fn exchange(bed: &Bed) -> Result<()> {
    let tally = Tally::begin(bed.main()).await?;
    let product = bed.product().await?;
    let (old, new) = (bed.kubernetes().sealing_key(), Arc::new(SealingKey::generate().with_id("next")));
    let started = starts(&product.controller().await?).await?;
    let by_new = |name: &str| Draft::new(name).token_of("etl").sealed_with(&new);
    let exchange = async {
        let early = bed.kubernetes().create(&by_new("sealed-early")).await?;
        refused(&early, "SEAL_INVALID").await?;
        product.publish_seal_keys(&[old, &new]).await?;
        // kubelet asks again by itself.
        reads(&early).await?;
        let last = bed.kubernetes().create(&Draft::new("sealed-old").token_of("etl")).await?;
        reads(&last).await?;
        let (early_token, last_token) = (Token::of(bed, &early)?, Token::of(bed, &last)?);

        product.publish_seal_keys(&[&new]).await?;
        let late = bed.kubernetes().create(&Draft::new("sealed-late").token_of("etl")).await?;
        refused(&late, "SEAL_INVALID").await?;
        let next = bed.kubernetes().create(&by_new("sealed-new")).await?;
        reads(&next).await?;
        // A pod that was sealed with the withdrawn key and runs is found at the next check.
        last_token.until_cancelled().await?;
        early_token.is_live_and_the_only_one()?;
        anyhow::Ok([early, last, late, next])
    };
    let exchanged = exchange.await;
    let restored = product.publish_seal_keys(&[old]).await;
    let pods = exchanged?;
    restored?;
    ensure!(starts(&product.controller().await?).await? == started, "the controller was restarted");
    tally.ends_after(&pods).await
}

async fn only_the_switch_for_development_makes_up_for_a_seal_and_says_so(bed: &Bed) -> Result<()> {
    let tally = Tally::begin(bed.main()).await?;
    let product = bed.product().await?;
    let pod = bed.kubernetes().create(&Draft::new("unsealed").token_of("etl").unsealed()).await?;
    refused(&pod, "SEAL_MISSING").await?;
    let trusting = |configuration: &mut serde_json::Value| {
        if let Some(sections) = configuration.as_object_mut() {
            sections.remove("seal");
            sections.insert("insecure".to_owned(), json!({"trustUnsealedAnnotations": true}));
        }
    };
    product
        .with_controller(trusting, async || {
            reads(&pod).await?;
            let told = pod.exec(&["cat", "/etc/hadoop-token/token.json"]).await?.success()?;
            ensure!(told.contains("\"unsealed\""), "token.json says nothing of it: {told}");
            for (program, log) in [
                ("controller", product.controller().await?.logs().await?),
                ("node plugin", product.driver().await?.logs().await?),
            ] {
                let warned = |line: &&str| line.contains("WARN") && line.to_lowercase().contains("seal");
                ensure!(log.lines().any(|line| warned(&line)), "the {program} does not warn");
            }
            pod.delete(GONE_LIMIT).await
        })
        .await?;
    let pod = bed.kubernetes().create(&Draft::new("unsealed-again").token_of("etl").unsealed()).await?;
    refused(&pod, "SEAL_MISSING").await?;
    tally.ends_after(&[pod]).await
}

/// Waits for the event that says why the pod has no token.
async fn refused(pod: &Running, reason: &str) -> Result<()> {
    pod.until_event(reason, EVENT_LIMIT).await.map(drop)
}

/// Waits until the pod runs, and has it read what only its user may read.
async fn reads(pod: &Running) -> Result<()> {
    pod.until_running(START_LIMIT).await?;
    let read = pod.hdfs_native(Cluster::Main, &["cat", "/user/etl/private.txt"]).await?.success()?;
    ensure!(read == private_content(Cluster::Main, "etl"), "{} read {read:?}", pod.name());
    Ok(())
}

/// Which pod it is, and how often its container was restarted.
async fn starts(pod: &Running) -> Result<(String, i32)> {
    let status = pod.get().await?.status.context("no status")?;
    let containers = status.container_statuses.unwrap_or_default();
    Ok((pod.uid().await?, containers.iter().map(|container| container.restart_count).sum()))
}
