//! The controller as a process outside of Kubernetes: where the keytab's host is an old and trusted one, and nobody
//! who administers the cluster is to reach the keytab. It has a kubeconfig, and the rights of the manifests' ClusterRole.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use bed::{
    Bed,
    harness::Test,
    namenode::{Cluster, TokenAction, private_content},
    outside::{Outside, ready},
    pod::{Draft, Running, TOKEN_FILE},
    process::{Daemon, Program, until},
};

use crate::{GONE_LIMIT, publish::Token, tally::Tally};

const USER: &str = "outside-controller";
const HEALTH: &str = "127.0.0.1:9819";
const READY_LIMIT: Duration = Duration::from_secs(60);
/// The bed's tokens have to be renewed once a minute.
const RENEWAL_LIMIT: Duration = Duration::from_secs(90);

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![a_controller_outside_of_the_cluster_issues_renews_and_releases]
}

async fn a_controller_outside_of_the_cluster_issues_renews_and_releases(bed: &Bed) -> Result<()> {
    let tally = Tally::begin(bed.main()).await?;
    let product = bed.product().await?;
    let controller = controller(bed).await?;
    // It takes its place and its address: node plugins notice nothing.
    product.stop_controller().await?;
    controller.start().await?;
    let outcome = lives(bed, &controller).await;
    let stopped = controller.stop().await;
    let back = product.start_controller().await;
    outcome.and(stopped).and(back)?;
    tally.ends().await
}

async fn lives(bed: &Bed, controller: &Daemon) -> Result<()> {
    controller.until("ready", READY_LIMIT, async || ready(HEALTH).await).await?;
    let tally = Tally::begin(bed.main()).await?;
    let pod = bed.kubernetes().run(&Draft::new("served-from-outside").token_of("etl")).await?;
    let (token, bytes) = (Token::of(bed, &pod)?, pod.read(TOKEN_FILE).await?);
    let before = token.renewals()?;
    until("renewed", RENEWAL_LIMIT, async || {
        ensure!(token.renewals()? > before, "the NameNode has renewed nothing");
        Ok(())
    })
    .await?;
    ensure!(pod.read(TOKEN_FILE).await? == bytes, "renewing changes no byte of the token");
    reads(&pod).await?;
    pod.delete(GONE_LIMIT).await?;
    tally.ends().await?;
    let issued = tally.events(TokenAction::Issued)?.len();
    ensure!(issued == 1, "{issued} tokens for one volume");
    let log = fs::read_to_string(controller.log())?;
    ensure!(log.contains("served-from-outside"), "the controller outside knows nothing of the pod:\n{log}");
    Ok(())
}

async fn reads(pod: &Running) -> Result<()> {
    let read = pod.hdfs_native(Cluster::Main, &["cat", "/user/etl/private.txt"]).await?.success()?;
    ensure!(read == private_content(Cluster::Main, "etl"), "read {read:?}");
    Ok(())
}

/// Not started yet.
async fn controller(bed: &Bed) -> Result<Daemon> {
    let Outside { program, configuration, kubeconfig } = Outside::of(bed, USER, HEALTH).await?;
    let program = Program::new(program).arg("--config").arg(configuration).env("KUBECONFIG", kubeconfig);
    let program = program.env("KRB5_CONFIG", bed.kdc().client_configuration());
    Ok(Daemon::new(USER, program, &bed.state().join("logs")))
}
