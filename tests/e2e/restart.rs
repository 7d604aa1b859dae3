//! kubelet and the node plugin end and begin again, while pods live and while they end.

use std::time::Duration;

use anyhow::{Result, ensure};
use bed::{
    Bed,
    harness::Test,
    namenode::{Cluster, private_content},
    pod::{Draft, Running},
    process::until,
    product::Part,
};
use nix::sys::signal::Signal;

use crate::{
    GONE_LIMIT,
    publish::{State, Token, Volume},
};

/// From the republish that brings the pod's token to the next renewal: the renew interval of the bed is a minute.
const RENEW_LIMIT: Duration = Duration::from_secs(90);

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![
        a_kubelet_restart_changes_neither_mounts_tokens_nor_files,
        a_driver_restart_changes_neither_mounts_tokens_nor_files_and_renewal_goes_on,
        a_driver_that_was_killed_goes_on_where_it_was,
        a_token_is_cancelled_although_the_driver_was_restarted_while_the_controller_was_away,
    ]
}

async fn a_kubelet_restart_changes_neither_mounts_tokens_nor_files(bed: &Bed) -> Result<()> {
    let pod = bed.kubernetes().run(&Draft::new("over-kubelet").token_of("etl")).await?;
    let life = Life::of(bed, &pod).await?;
    bed.kubernetes().stop_kubelet().await?;
    bed.kubernetes().start_kubelet().await?;
    bed.product().await?.until_ready().await?;
    // It publishes every volume anew, and a new pod's after those.
    let next = bed.kubernetes().run(&Draft::new("after-kubelet").token_of("ads")).await?;
    life.goes_on(&pod).await?;
    next.delete(GONE_LIMIT).await?;
    life.ends_with(&pod).await
}

async fn a_driver_restart_changes_neither_mounts_tokens_nor_files_and_renewal_goes_on(
    bed: &Bed,
) -> Result<()> {
    let pod = bed.kubernetes().run(&Draft::new("over-driver").token_of("etl")).await?;
    let life = Life::of(bed, &pod).await?;
    bed.product().await?.restart_driver().await?;
    life.goes_on(&pod).await?;
    // The new one has no service-account token of the pod until kubelet publishes again: when something about the
    // pod changes, or within a minute and a half, which is longer than tokens live here.
    let looked_at = bed.kubernetes().kubectl().args(["annotate", "pod", pod.name(), "looked-at=now"]);
    looked_at.succeed().await?;
    let renewals = life.token.renewals()?;
    until("renewed: the token", RENEW_LIMIT, async || {
        ensure!(life.token.renewals()? > renewals, "no renewal yet");
        Ok(())
    })
    .await?;
    life.goes_on(&pod).await?;
    life.ends_with(&pod).await
}

async fn a_driver_that_was_killed_goes_on_where_it_was(bed: &Bed) -> Result<()> {
    let pod = bed.kubernetes().run(&Draft::new("over-kill").token_of("etl")).await?;
    let life = Life::of(bed, &pod).await?;
    let product = bed.product().await?;
    let started = product.restarts(Part::Driver).await?;
    Part::Driver.signal(Signal::SIGKILL)?;
    product.until_restarted(Part::Driver, started).await?;
    life.goes_on(&pod).await?;
    life.ends_with(&pod).await
}

async fn a_token_is_cancelled_although_the_driver_was_restarted_while_the_controller_was_away(
    bed: &Bed,
) -> Result<()> {
    let product = bed.product().await?;
    let pod = bed.kubernetes().run(&Draft::new("over-both").token_of("etl")).await?;
    let life = Life::of(bed, &pod).await?;
    product.stop_controller().await?;
    let away = async {
        pod.delete(GONE_LIMIT).await?;
        life.volume.until_unmounted().await?;
        product.restart_driver().await?;
        life.token.is_live_and_the_only_one()
    };
    let away = away.await;
    product.start_controller().await?;
    away?;
    life.token.until_cancelled().await
}

/// What a pod has, and must keep.
struct Life<'bed> {
    volume: Volume,
    state: State,
    token: Token<'bed>,
}

impl<'bed> Life<'bed> {
    async fn of(bed: &'bed Bed, pod: &Running) -> Result<Self> {
        let volume = Volume::mounted_in(pod).await?;
        Ok(Self { state: volume.state()?, volume, token: Token::of(bed, pod)? })
    }

    /// Mount, token and file are what they were, and the pod can use them.
    async fn goes_on(&self, pod: &Running) -> Result<()> {
        let now = self.volume.state()?;
        ensure!(now == self.state, "{now:?}\nwas {:?}", self.state);
        self.token.is_live_and_the_only_one()?;
        let read = pod.hdfs_native(Cluster::Main, &["cat", "/user/etl/private.txt"]).await?.success()?;
        ensure!(read == private_content(Cluster::Main, "etl"), "read {read:?}");
        Ok(())
    }

    async fn ends_with(&self, pod: &Running) -> Result<()> {
        pod.delete(GONE_LIMIT).await?;
        self.volume.until_unmounted().await?;
        self.token.until_cancelled().await
    }
}
