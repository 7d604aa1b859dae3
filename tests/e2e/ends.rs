//! Pods that end without their node: nobody there releases anything, and their tokens end all the same.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bed::{Bed, harness::Test, pod::Draft, process::until, second_node::SECOND_NODE};
use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, WatchEvent, WatchParams},
};
use serde_json::json;
use tokio::time::{Instant, timeout};

use crate::{
    GONE_LIMIT,
    attacks::stage::{Lair, Prey, Stage, draft, sealed},
    objects::{number, of_pod, the_one_of},
    promptness::{Cancels, Times},
    tally::Tally,
};

const PODS: usize = 20;
/// From the change in the API to the end of the token.
const UNKNOWN: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(20);
/// How long nobody may lead after one was killed who did, and what a busy machine needs on top.
const LED_LIMIT: Duration = Duration::from_secs(60);
/// Kubernetes looks for pods of lost nodes every 20 s, and then waits for 40 s.
const LOST_LIMIT: Duration = Duration::from_secs(150);

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![
        tokens_of_force_deleted_pods_are_unknown_within_two_seconds,
        tokens_of_a_deleted_namespace_are_cancelled_and_it_goes,
        tokens_of_a_node_that_never_comes_back_are_unknown_within_two_seconds_of_its_pods_end,
    ]
}

async fn tokens_of_force_deleted_pods_are_unknown_within_two_seconds(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let (lair, cancels) = (Lair::of(&stage).await?, Cancels::follow(bed.main())?);
    // After another test took the controller away, it may be a while until one leads: that is not measured here.
    let (prey, first) = with_a_token(bed, &lair, "forced-first").await?;
    lair.forget(&prey).await?;
    cancels.until(first, LED_LIMIT).await?;
    let mut times = Times::default();
    for index in 0..PODS {
        let (prey, number) = with_a_token(bed, &lair, &format!("forced-{index}")).await?;
        let began = Instant::now();
        lair.forget(&prey).await?;
        times.push(cancels.until(number, LIMIT).await?.at - began);
        nothing_is_left(bed, &prey).await?;
    }
    times.within("from the end of a force-deleted pod to its token's", UNKNOWN)?;
    // Where kubelet lives, it is told the same way, and may be a moment faster or slower.
    let pod = bed.kubernetes().run(&Draft::new("forced").token_of("etl")).await?;
    let object = the_one_of(bed, &pod.uid().await?).await?;
    let began = Instant::now();
    let pods: Api<Pod> = Api::default_namespaced(bed.kubernetes().client());
    pods.delete("forced", &DeleteParams::default().grace_period(0)).await?;
    let took = cancels.until(number(&object)?, LIMIT).await?.at - began;
    ensure!(took <= UNKNOWN, "it took {took:?}");
    lair.leave().await
}

async fn tokens_of_a_deleted_namespace_are_cancelled_and_it_goes(bed: &Bed) -> Result<()> {
    let (kubernetes, tally) = (bed.kubernetes(), Tally::begin(bed.main()).await?);
    let namespaces: Api<Namespace> = Api::all(kubernetes.client());
    let doomed = "doomed";
    kubernetes
        .apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": doomed}}).to_string())
        .await?;
    let draft = |name: &str| Draft::new(name).namespace(doomed).token_of("etl");
    let mut pods = Vec::new();
    for name in ["first", "second"] {
        // A new namespace has no service account yet.
        let pod = until("created: a pod", LIMIT, async || kubernetes.create(&draft(name)).await).await?;
        pod.until_running(GONE_LIMIT).await?;
        pods.push(pod.uid().await?);
    }
    namespaces.delete(doomed, &DeleteParams::default()).await?;
    tally.ends().await?;
    until("gone: the namespace", GONE_LIMIT, async || {
        let left = namespaces.get_opt(doomed).await?;
        ensure!(left.is_none(), "{:?}", left.and_then(|left| left.status));
        Ok(())
    })
    .await?;
    for uid in pods {
        let left = of_pod(bed, &uid).await?;
        ensure!(left.is_empty(), "{left:?}");
    }
    Ok(())
}

async fn tokens_of_a_node_that_never_comes_back_are_unknown_within_two_seconds_of_its_pods_end(
    bed: &Bed,
) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let (lair, cancels) = (Lair::of(&stage).await?, Cancels::follow(bed.main())?);
    let mut lost = Vec::new();
    for index in 0..3 {
        lost.push(with_a_token(bed, &lair, &format!("lost-{index}")).await?);
    }
    let ends = lost.iter().map(|(prey, _)| end_of(bed, prey));
    let ends = futures_util::future::try_join_all(ends);
    // Nobody is there who could stop or release anything: the node has no kubelet, and its node plugin no process.
    let nodes: Api<Node> = Api::all(bed.kubernetes().client());
    let ended = async {
        nodes.delete(SECOND_NODE, &DeleteParams::default()).await?;
        ends.await
    };
    let ended = ended.await?;
    let mut times = Times::default();
    for ((prey, number), end) in lost.iter().zip(ended) {
        times.push(cancels.until(*number, LIMIT).await?.at.saturating_duration_since(end));
        nothing_is_left(bed, prey).await?;
    }
    times.within("from the end of a lost node's pod to its token's", UNKNOWN)?;
    stage.ends().await
}

/// A pod on a node where nobody runs it, with its token.
async fn with_a_token(bed: &Bed, lair: &Lair<'_>, name: &str) -> Result<(Prey, u32)> {
    let prey = lair.create(&sealed(bed.kubernetes().sealing_key(), draft(name), "etl")?).await?;
    let answer = lair.caller().clone().issue(prey.issue()).await?.into_inner();
    let issued = answer.tokens.first().context("no token")?;
    let object = the_one_of(bed, &prey.uid).await?;
    ensure!(i64::from(number(&object)?) == i64::from(issued.sequence_number), "{object:?}");
    Ok((prey, number(&object)?))
}

/// When a pod goes from the API.
async fn end_of(bed: &Bed, prey: &Prey) -> Result<Instant> {
    let pods: Api<Pod> = Api::namespaced(bed.kubernetes().client(), &prey.namespace);
    let only = WatchParams::default().fields(&format!("metadata.name={}", prey.name)).timeout(280);
    let mut events = pods.watch(&only, "0").await?.boxed();
    let end = async {
        while let Some(event) = events.try_next().await? {
            if let WatchEvent::Deleted(_) = event {
                return Ok(Instant::now());
            }
        }
        anyhow::bail!("the watch has ended")
    };
    timeout(LOST_LIMIT, end).await.with_context(|| format!("pod {} is still there", prey.name))?
}

async fn nothing_is_left(bed: &Bed, prey: &Prey) -> Result<()> {
    until("gone: the objects", LIMIT, async || {
        let left: Vec<_> = of_pod(bed, &prey.uid).await?.iter().map(ResourceExt::name_any).collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await
}
