//! The end of a token: with its pod, however that ends.

use std::time::Duration;

use anyhow::{Result, ensure};
use bed::{
    Bed,
    harness::Test,
    namenode::{Cluster, TokenAction, private_content},
    pod::{Draft, Running, TOKEN_FILE},
    process::{Program, until},
};

use crate::{GONE_LIMIT, tally::Tally};

/// From the end of a pod to the end of its token.
const CANCEL_LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![
        deleting_the_pod_makes_its_token_unknown_to_the_namenode,
        a_pod_that_completes_by_itself_loses_its_token,
    ]
}

async fn deleting_the_pod_makes_its_token_unknown_to_the_namenode(bed: &Bed) -> Result<()> {
    let tally = Tally::begin(bed.main()).await?;
    let pod = bed.kubernetes().run(&Draft::new("deleted").token_of("etl")).await?;
    let copy = Copy::of(bed, &pod, "deleted").await?;
    let issued = tally.events(TokenAction::Issued)?;
    ensure!(issued.len() == 1, "one volume is one token: {issued:?}");
    copy.works().await?;
    pod.delete(GONE_LIMIT).await?;
    copy.becomes_unknown().await?;
    tally.ends().await
}

async fn a_pod_that_completes_by_itself_loses_its_token(bed: &Bed) -> Result<()> {
    let tally = Tally::begin(bed.main()).await?;
    // It ends when told so, once its token has been copied.
    let script = "until [ -e /tmp/end ]; do sleep 0.1; done";
    let pod = bed.kubernetes().run(&Draft::new("completed").script(script).token_of("etl")).await?;
    let copy = Copy::of(bed, &pod, "completed").await?;
    copy.works().await?;
    pod.exec(&["touch", "/tmp/end"]).await?.success()?;
    pod.until_succeeded(GONE_LIMIT).await?;
    copy.becomes_unknown().await?;
    tally.ends().await?;
    let issued = tally.events(TokenAction::Issued)?;
    let mut cancelled = tally.events(TokenAction::Cancelled)?;
    cancelled.retain(|event| issued.iter().any(|token| token.sequence_number == event.sequence_number));
    ensure!(cancelled.len() == 1, "the NameNode's audit log should show one cancel: {cancelled:?}");
    ensure!(pod.get().await.is_ok(), "the finished pod is still there, its token is not");
    pod.delete(GONE_LIMIT).await
}

/// A thief's copy of a pod's token.
struct Copy(Program);

impl Copy {
    async fn of(bed: &Bed, pod: &Running, name: &str) -> Result<Self> {
        let file = bed.state().join(format!("copy-{name}"));
        std::fs::write(&file, pod.read(TOKEN_FILE).await?)?;
        let client = bed.hdfs_as_nobody(Cluster::Main)?.env("HADOOP_TOKEN_FILE_LOCATION", file);
        Ok(Self(client.args(["cat", "/user/etl/private.txt"])))
    }

    async fn works(&self) -> Result<()> {
        let read = self.0.succeed().await?;
        ensure!(read == private_content(Cluster::Main, "etl"), "read {read:?}");
        Ok(())
    }

    async fn becomes_unknown(&self) -> Result<()> {
        let refused = until("refused", CANCEL_LIMIT, async || self.0.output().await?.failure()).await?;
        ensure!(refused.contains("can't be found in cache"), "{refused}");
        Ok(())
    }
}
