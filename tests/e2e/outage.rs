//! KDC, NameNode or controller away: what waits, what it says, and that nothing is left behind afterwards.

use std::time::Duration;

use anyhow::{Result, ensure};
use bed::{
    Bed,
    harness::Test,
    namenode::{Cluster, TokenAction, TokenEvent, private_content},
    pod::{Draft, Running},
    process::until,
    product::NAMESPACE,
};

use crate::{GONE_LIMIT, tally::Tally};

/// From the outage to the event that names it.
const EVENT_LIMIT: Duration = Duration::from_secs(60);
/// From the end of the outage to a running pod: kubelet's wait may have grown to half a minute.
const RECOVERY_LIMIT: Duration = Duration::from_secs(120);

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![
        a_pod_waits_for_the_namenode_names_it_and_starts_by_itself,
        a_pod_waits_for_the_kdc_names_it_and_starts_by_itself,
        a_pod_waits_for_the_controller_names_it_and_starts_by_itself,
        a_pod_starts_without_the_kdc_while_the_controllers_tickets_are_good,
        a_pod_deleted_while_the_namenode_is_away_loses_its_token_when_it_is_back,
        a_pod_deleted_while_it_waits_leaves_nothing_behind,
    ]
}

async fn a_pod_waits_for_the_namenode_names_it_and_starts_by_itself(bed: &Bed) -> Result<()> {
    let tally = Tally::begin(bed.main()).await?;
    bed.main().stop().await?;
    let waiting = waits(bed, "waits-for-namenode", "NameNode nn1.bed.test:8020: cannot be reached").await;
    bed.main().start().await?;
    recovers(&tally, &waiting?).await
}

async fn a_pod_waits_for_the_kdc_names_it_and_starts_by_itself(bed: &Bed) -> Result<()> {
    let (tally, product) = (Tally::begin(bed.main()).await?, bed.product().await?);
    // A new controller has no ticket yet.
    product.stop_controller().await?;
    bed.kdc().stop().await?;
    let waiting = async {
        scale_up(bed).await?;
        waits(bed, "waits-for-kdc", "cannot contact any KDC").await
    };
    let waiting = waiting.await;
    bed.kdc().start().await?;
    recovers(&tally, &waiting?).await?;
    product.until_ready().await
}

async fn a_pod_waits_for_the_controller_names_it_and_starts_by_itself(bed: &Bed) -> Result<()> {
    let (tally, product) = (Tally::begin(bed.main()).await?, bed.product().await?);
    product.stop_controller().await?;
    let named = "controller at controller.bed.test:9443 cannot be reached";
    let waiting = waits(bed, "waits-for-controller", named).await;
    product.start_controller().await?;
    recovers(&tally, &waiting?).await
}

async fn a_pod_starts_without_the_kdc_while_the_controllers_tickets_are_good(bed: &Bed) -> Result<()> {
    let tally = Tally::begin(bed.main()).await?;
    let first = bed.kubernetes().run(&Draft::new("with-kdc").token_of("etl")).await?;
    bed.kdc().stop().await?;
    let second = bed.kubernetes().run(&Draft::new("without-kdc").token_of("ads")).await;
    bed.kdc().start().await?;
    tally.ends_after(&[first, second?]).await
}

async fn a_pod_deleted_while_the_namenode_is_away_loses_its_token_when_it_is_back(bed: &Bed) -> Result<()> {
    let tally = Tally::begin(bed.main()).await?;
    let pod = bed.kubernetes().run(&Draft::new("deleted-meanwhile").token_of("etl")).await?;
    bed.main().stop().await?;
    let deleted = pod.delete(GONE_LIMIT).await;
    bed.main().start().await?;
    deleted?;
    tally.ends().await
}

async fn a_pod_deleted_while_it_waits_leaves_nothing_behind(bed: &Bed) -> Result<()> {
    let tally = Tally::begin(bed.main()).await?;
    bed.main().stop().await?;
    let deleted = async {
        let pod = waits(bed, "deleted-while-waiting", "NameNode nn1.bed.test:8020").await?;
        let uid = pod.uid().await?;
        pod.delete(GONE_LIMIT).await?;
        let folder = format!("{}/pods/{uid}", bed::host::KUBELET);
        until("gone: the pod's folder", GONE_LIMIT, async || {
            ensure!(!std::path::Path::new(&folder).exists(), "{folder} is still there");
            Ok(())
        })
        .await
    };
    let deleted = deleted.await;
    bed.main().start().await?;
    deleted?;
    tally.ends().await
}

/// Creates a pod with the volume, and has it wait until an event says `named`.
async fn waits(bed: &Bed, name: &str, named: &str) -> Result<Running> {
    let pod = bed.kubernetes().create(&Draft::new(name).token_of("etl")).await?;
    let event = pod.until_event(named, EVENT_LIMIT).await?;
    ensure!(event.starts_with("FailedMount: "), "{event}");
    ensure!(event.contains("code = Unavailable"), "kubelet must not take this for final: {event}");
    let phase = pod.get().await?.status.and_then(|status| status.phase);
    ensure!(phase.as_deref() == Some("Pending"), "started without a token: {phase:?}");
    Ok(pod)
}

/// The pod starts without anybody's help, works, and leaves no token.
async fn recovers(tally: &Tally<'_>, pod: &Running) -> Result<()> {
    pod.until_running(RECOVERY_LIMIT).await?;
    let read = pod.hdfs_native(Cluster::Main, &["cat", "/user/etl/private.txt"]).await?.success()?;
    ensure!(read == private_content(Cluster::Main, "etl"), "read {read:?}");
    let name = format!("default/{}", pod.name());
    let of_this_pod = |event: &&TokenEvent| event.pod() == Some(&name);
    let issued = tally.events(TokenAction::Issued)?;
    let issued: Vec<_> = issued.iter().filter(of_this_pod).collect();
    ensure!(issued.len() == 1, "one volume is one token: {issued:?}");
    tally.ends_after(std::slice::from_ref(pod)).await
}

/// Brings the controller back without waiting until it is ready, which it is not without a KDC.
async fn scale_up(bed: &Bed) -> Result<()> {
    let words = ["scale", "deployment/hadoop-token-csi-controller", "--replicas=1", "--namespace", NAMESPACE];
    bed.kubernetes().kubectl().args(words).succeed().await.map(drop)
}
