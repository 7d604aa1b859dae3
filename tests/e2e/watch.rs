//! A node hears of its pods' addresses as soon as the API server has them, and of no other node's.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    harness::Test,
    pod::{Draft, Running},
    second_node::SecondNode,
    token_service::{Caller, TokenService, reason},
    users::{JOBS, Users},
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use proto::token::v1::{WatchEvent, WatchRequest, watch_event::Event};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use tonic::Streaming;

use crate::GONE_LIMIT;

/// From the API server's answer to the node's news.
const SOON: Duration = Duration::from_secs(1);
/// In this time a second message would have come.
const SILENCE: Duration = Duration::from_secs(2);

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![
        a_node_hears_of_its_own_pods_addresses_within_a_second,
        a_node_goes_on_hearing_after_the_api_server_was_away,
    ]
}

async fn a_node_hears_of_its_own_pods_addresses_within_a_second(bed: &Bed) -> Result<()> {
    let kubernetes = bed.kubernetes();
    bed.product().await?;
    let users = Users::of(kubernetes).await?;
    let second = SecondNode::join(kubernetes).await?;
    let caller = TokenService::of(bed)?.with(&second.driver_token)?;
    let ours = |name: &str| Draft::new(name).namespace(JOBS).token_of("etl");
    let early = second.create_as(kubernetes, users.etl.clone(), &ours("early")).await?;
    let without = Draft::new("without").namespace(JOBS);
    let without = second.create_as(kubernetes, users.etl.clone(), &without).await?;
    status(&second, &early, &["10.9.0.1"], "Running").await?;
    status(&second, &without, &["10.9.0.2"], "Running").await?;

    let mut stream = watch(&caller).await?;
    ensure!(next(&mut stream).await? == told(&early, &["10.9.0.1"]).await?, "the snapshot");
    // It comes and goes on another node, unheard here.
    let elsewhere = kubernetes.run(&Draft::new("elsewhere").token_of("etl")).await?;
    let late = second.create_as(kubernetes, users.etl.clone(), &ours("late")).await?;
    let mut slowest = Duration::ZERO;
    for (addresses, phase, heard) in [
        (&["10.9.0.3", "fd00::3"][..], "Running", &["10.9.0.3", "fd00::3"][..]),
        (&["10.9.0.4"], "Running", &["10.9.0.4"]),
        // A finished pod's addresses are nobody's.
        (&["10.9.0.4"], "Succeeded", &[]),
    ] {
        status(&second, &late, addresses, phase).await?;
        let answered = Instant::now();
        ensure!(next(&mut stream).await? == told(&late, heard).await?, "{phase} on {addresses:?}");
        slowest = slowest.max(answered.elapsed());
    }
    ensure!(slowest < SOON, "took {slowest:?}");

    // A second stream takes the first one's place, and begins with what is known.
    let mut newer = watch(&caller).await?;
    ensure!(next(&mut newer).await? == told(&early, &["10.9.0.1"]).await?, "the second snapshot");
    ensure!(stream.message().await?.is_none(), "the first stream goes on");
    second.forget(JOBS, early.name()).await?;
    ensure!(next(&mut newer).await?.1.is_empty(), "the end of a pod");
    elsewhere.delete(GONE_LIMIT).await?;
    if let Ok(more) = timeout(SILENCE, newer.message()).await {
        anyhow::bail!("heard of what is none of its business: {more:?}");
    }
    for pod in [late, without] {
        second.forget(JOBS, pod.name()).await?;
    }
    second.leave().await
}

async fn a_node_goes_on_hearing_after_the_api_server_was_away(bed: &Bed) -> Result<()> {
    let kubernetes = bed.kubernetes();
    bed.product().await?;
    let users = Users::of(kubernetes).await?;
    let second = SecondNode::join(kubernetes).await?;
    let caller = TokenService::of(bed)?.with(&second.driver_token)?;
    let draft = Draft::new("patient").namespace(JOBS).token_of("etl");
    let pod = second.create_as(kubernetes, users.etl.clone(), &draft).await?;
    status(&second, &pod, &["10.9.0.5"], "Running").await?;
    let mut stream = watch(&caller).await?;
    ensure!(next(&mut stream).await? == told(&pod, &["10.9.0.5"]).await?, "the snapshot");
    kubernetes
        .without_api_server(async {
            // Nobody can be told who asks, and says so.
            let status = watch(&caller).await.err().context("a watch without the API server")?;
            let status = status.downcast::<tonic::Status>()?;
            let found = reason(&status)?;
            ensure!(found == "API_SERVER_UNREACHABLE", "{found}: {status}");
            Ok(())
        })
        .await?;
    status(&second, &pod, &["10.9.0.6"], "Running").await?;
    ensure!(next(&mut stream).await? == told(&pod, &["10.9.0.6"]).await?, "after the outage");
    second.forget(JOBS, pod.name()).await?;
    second.leave().await
}

async fn watch(caller: &Caller) -> Result<Streaming<WatchEvent>> {
    Ok(caller.clone().watch(WatchRequest::default()).await?.into_inner())
}

async fn next(stream: &mut Streaming<WatchEvent>) -> Result<(String, Vec<String>)> {
    let event = timeout(GONE_LIMIT, stream.message()).await.context("nothing was heard")??;
    let event = event.context("the stream has ended")?.event.context("an empty event")?;
    let Event::PodAddresses(pod) = event else { anyhow::bail!("not addresses: {event:?}") };
    Ok((pod.pod_uid, pod.addresses))
}

async fn told(pod: &Running, addresses: &[&str]) -> Result<(String, Vec<String>)> {
    Ok((pod.uid().await?, addresses.iter().map(|&address| address.to_owned()).collect()))
}

/// What kubelet would say there.
async fn status(node: &SecondNode, pod: &Running, addresses: &[&str], phase: &str) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(node.kubelet.clone(), JOBS);
    let list: Vec<Value> = addresses.iter().map(|address| json!({"ip": address})).collect();
    let first = addresses.first().context("no address")?;
    let status = json!({"status": {"phase": phase, "podIP": first, "podIPs": list}});
    pods.patch_status(pod.name(), &PatchParams::default(), &Patch::Merge(&status)).await?;
    Ok(())
}
