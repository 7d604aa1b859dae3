//! Parts go and come while pods start, read and end. The pods that stay read on, and afterwards nothing is lost nor left.
//! For a minute each, under fifty pods, in `make torture`.

use std::{cell::Cell, time::Duration};

use anyhow::{Context, Result};
use bed::{
    Bed, harness::Test, load::Load, namenode::Cluster, outage::ALL, progress::say, reckoning::Reckoning,
};

/// How long each part is away.
const AWAY: Duration = Duration::from_secs(5);
/// How long the readers' tokens are good without anybody who could renew them. While the API server is away nobody can, nor
/// within 90 seconds after a restart of the node plugin, until kubelet has shown it the pods' tokens again.
const RENEW_INTERVAL: Duration = Duration::from_secs(600);
const LOAD: Load = Load { at_once: 4, readers: 2, cluster: Cluster::Main };
const SETTLE_LIMIT: Duration = Duration::from_secs(240);

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![each_part_may_go_and_come_and_pods_read_on_and_no_token_is_lost]
}

async fn each_part_may_go_and_come_and_pods_read_on_and_no_token_is_lost(bed: &Bed) -> Result<()> {
    let outcome = async {
        renew_every(bed, RENEW_INTERVAL).await?;
        each_part_goes_and_comes(bed).await
    };
    let outcome = outcome.await;
    let restored = renew_every(bed, bed.tokens_of(Cluster::Main).renew_interval).await;
    outcome.and(restored)
}

/// Lets the NameNode's tokens be renewed so often, and the controller know.
async fn renew_every(bed: &Bed, interval: Duration) -> Result<()> {
    let product = bed.product().await?;
    product.stop_controller().await?;
    bed.main().renew_every(interval).await?;
    product.start_controller().await
}

async fn each_part_goes_and_comes(bed: &Bed) -> Result<()> {
    let reckoning = Reckoning::begin(bed).await?;
    let (mut windows, lives) = (Vec::new(), Cell::new(0));
    let outages = async {
        for outage in ALL {
            let window = outage.happen(bed, AWAY).await.with_context(|| format!("{outage:?}"))?;
            windows.extend(window);
            say(format_args!("{outage:?} was away; {} pods have lived", lives.get()));
        }
        Ok(())
    };
    let report = LOAD.counting(bed, &lives, outages).await?;
    say(&report);
    report.failed_only_between(&windows)?;
    say(reckoning.closes(SETTLE_LIMIT).await?);
    Ok(())
}
