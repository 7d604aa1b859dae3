//! kubelet and the node plugin end and begin again, while pods live and while they end.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use bed::{
    Bed,
    harness::Test,
    namenode::{Cluster, private_content},
    pod::{Draft, Running},
    process::until,
};
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};

use crate::{
    GONE_LIMIT,
    publish::{State, Token, Volume},
};

/// From the republish that brings the pod's token to the next renewal: the renew interval of the bed is a minute.
const RENEW_LIMIT: Duration = Duration::from_secs(90);
/// From the end of the driver to its next start, kubelet's back-off included.
const START_LIMIT: Duration = Duration::from_secs(60);

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
    let driver = bed.product().await?.driver().await?;
    let started = restarts(&driver).await?;
    kill("hadoop-token-csi-driver")?;
    until("started again: the driver", START_LIMIT, async || {
        ensure!(restarts(&driver).await? > started);
        Ok(())
    })
    .await?;
    driver.until_ready(START_LIMIT).await?;
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

/// Kills the one process of the bed that runs this program.
fn kill(program: &str) -> Result<()> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        // A process may end meanwhile.
        if fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe.ends_with(program)) {
            found.push(pid);
        }
    }
    ensure!(found.len() == 1, "{program} is run by {found:?}");
    found
        .into_iter()
        .try_for_each(|pid| signal::kill(Pid::from_raw(pid), Signal::SIGKILL).map_err(Into::into))
}

/// How often the containers of a pod were started again.
async fn restarts(pod: &Running) -> Result<i32> {
    let containers = pod.get().await?.status.and_then(|status| status.container_statuses);
    Ok(containers.into_iter().flatten().map(|container| container.restart_count).sum())
}
