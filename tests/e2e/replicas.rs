//! Two replicas of the controller, of which one is away: stopped in good order, killed, cut off. Pods that begin get
//! their tokens from the other one, and those that end lose theirs.

use std::time::Duration;

use anyhow::{Result, ensure};
use bed::{
    Bed,
    harness::Test,
    namenode::{Cluster, private_content},
    pod::Draft,
    progress::say,
    replicas::{ABSENCES, Replicas},
};
use tokio::time::Instant;

use crate::{GONE_LIMIT, tally::Tally};

/// What a pod needs to start with a token when all is well, on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(5);

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![pods_start_promptly_and_end_whichever_of_two_replicas_is_away]
}

async fn pods_start_promptly_and_end_whichever_of_two_replicas_is_away(bed: &Bed) -> Result<()> {
    let replicas = Replicas::two(bed).await?;
    let outcome = each_is_away(bed, &replicas).await;
    outcome.and(replicas.one().await)
}

async fn each_is_away(bed: &Bed, replicas: &Replicas<'_>) -> Result<()> {
    for absence in ABSENCES {
        let lives = async {
            let tally = Tally::begin(bed.main()).await?;
            let first = lives(bed, "at-once").await?;
            let second = lives(bed, "later").await?;
            say(format_args!("{absence:?}: a pod ran after {first:.1?}, the next one after {second:.1?}"));
            ensure!(first < START_LIMIT + absence.reconnecting(), "{first:?} until the first pod ran");
            ensure!(second < START_LIMIT, "{second:?} until the second pod ran");
            tally.ends().await
        };
        replicas.without(absence, lives).await?;
    }
    Ok(())
}

/// A pod begins, reads and ends. Tells how long it took to begin.
async fn lives(bed: &Bed, name: &str) -> Result<Duration> {
    let begun = Instant::now();
    let pod = bed.kubernetes().run(&Draft::new(name).token_of("etl")).await?;
    let took = begun.elapsed();
    let read = pod.hdfs_native(Cluster::Main, &["cat", "/user/etl/private.txt"]).await?.success()?;
    ensure!(read == private_content(Cluster::Main, "etl"), "read {read:?}");
    pod.delete(GONE_LIMIT).await?;
    Ok(took)
}
