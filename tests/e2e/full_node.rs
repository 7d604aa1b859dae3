//! A node with as many volumes as kubelet lets pods onto it: kubelet and the node plugin end and begin again, and nothing
//! changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    harness::Test,
    host::{KUBELET, NODE_NAME},
    namenode::TokenAction,
    pod::{Draft, Running},
    process::until,
    product::Part,
};
use nix::sys::signal::Signal;
use proto::DRIVER_NAME;
use serde_json::json;

use crate::GONE_LIMIT;

const PODS: usize = 11;
const VOLUMES_EACH: usize = 10;
const VOLUMES: usize = PODS * VOLUMES_EACH;

const START_LIMIT: Duration = Duration::from_secs(180);
/// kubelet publishes what it finds mounted as soon as it knows its pods.
const REPUBLISH_LIMIT: Duration = Duration::from_secs(120);
const CANCEL_LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![neither_kubelet_nor_the_driver_changes_any_of_110_volumes_when_it_starts_anew]
}

async fn neither_kubelet_nor_the_driver_changes_any_of_110_volumes_when_it_starts_anew(
    bed: &Bed,
) -> Result<()> {
    let (kubernetes, product) = (bed.kubernetes(), bed.product().await?);
    let others = mounted()?.len();
    let mut pods = Vec::new();
    for number in 0..PODS {
        pods.push(kubernetes.create(&draft(&format!("full-{number}"))).await?);
    }
    for pod in &pods {
        pod.until_running(START_LIMIT).await?;
    }
    let before = mounted()?;
    ensure!(before.len() == others + VOLUMES, "{} volumes of {VOLUMES}, and {others}", before.len());
    ensure!(before.values().all(|volume| volume.mounts == 1), "{before:?}");
    // A first attempt may have failed, and then its token is cancelled.
    let tokens = issued(bed, &pods)?;
    let live: BTreeSet<u32> = tokens.difference(&cancelled(bed)?).copied().collect();
    ensure!(live.len() == VOLUMES, "{} tokens, of which {} live", tokens.len(), live.len());

    kubernetes.stop_kubelet().await?;
    kubernetes.start_kubelet().await?;
    until("published again: every volume", REPUBLISH_LIMIT, async || {
        let calls = publishes(bed).await?;
        ensure!(calls >= VOLUMES, "{calls} calls of {VOLUMES}");
        Ok(())
    })
    .await?;
    unchanged(&before, "kubelet's")?;

    let started = product.restarts(Part::Driver).await?;
    Part::Driver.signal(Signal::SIGKILL)?;
    product.until_restarted(Part::Driver, started).await?;
    unchanged(&before, "the driver's")?;
    let now = issued(bed, &pods)?;
    ensure!(now == tokens, "{} tokens were issued meanwhile", now.difference(&tokens).count());
    let lost = live.intersection(&cancelled(bed)?).count();
    ensure!(lost == 0, "{lost} tokens were cancelled meanwhile");

    for pod in &pods {
        pod.delete(GONE_LIMIT).await?;
    }
    until("gone: every volume and its token", CANCEL_LIMIT, async || {
        let left = mounted()?.len();
        ensure!(left <= others, "{} volumes are left", left - others);
        let live = tokens.difference(&cancelled(bed)?).count();
        ensure!(live == 0, "{live} tokens are not cancelled");
        Ok(())
    })
    .await
}

/// A pod with many volumes, all of them mounted in its container.
fn draft(name: &str) -> Draft {
    (0..VOLUMES_EACH).fold(Draft::new(name).submitter("etl", &[]), |draft, number| {
        let volume = format!("token-{number}");
        draft
            .push("/spec/volumes", json!({"name": volume, "csi": {"driver": DRIVER_NAME, "readOnly": true}}))
            .push(
                "/spec/containers/0/volumeMounts",
                json!({"name": volume, "mountPath": format!("/etc/{volume}"), "readOnly": true}),
            )
    })
}

/// What no restart may change about a volume.
#[derive(Debug, PartialEq, Eq)]
struct Volume {
    mounts: usize,
    device: u64,
    inode: u64,
    written: (i64, i64),
    token: Vec<u8>,
}

/// Every volume of ours that is mounted below kubelet's folder of pods.
fn mounted() -> Result<BTreeMap<PathBuf, Volume>> {
    let mut targets: BTreeMap<PathBuf, usize> = BTreeMap::new();
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        let target = line.split(' ').nth(4).context("a mount has a place")?;
        let is_ours = line.contains(&format!(" - tmpfs {DRIVER_NAME} "));
        if is_ours && Path::new(target).starts_with(Path::new(KUBELET).join("pods")) {
            *targets.entry(target.into()).or_default() += 1;
        }
    }
    let volume = |(target, mounts): (PathBuf, usize)| {
        let path = target.join("token");
        let file = fs::metadata(&path).with_context(|| format!("failed to find {}", path.display()))?;
        let volume = Volume {
            mounts,
            device: file.dev(),
            inode: file.ino(),
            written: (file.mtime(), file.mtime_nsec()),
            token: fs::read(&path)?,
        };
        Ok((target, volume))
    };
    targets.into_iter().map(volume).collect()
}

fn unchanged(before: &BTreeMap<PathBuf, Volume>, whose: &str) -> Result<()> {
    let now = mounted()?;
    let other: Vec<_> = before.iter().filter(|(target, volume)| now.get(*target) != Some(volume)).collect();
    ensure!(other.is_empty(), "{whose} restart changed {} volumes: {other:?}", other.len());
    ensure!(now.len() == before.len(), "{whose} restart made {} volumes of {}", now.len(), before.len());
    Ok(())
}

/// Numbers of the tokens that were issued for these pods, as the NameNode's audit log has it.
fn issued(bed: &Bed, pods: &[Running]) -> Result<BTreeSet<u32>> {
    let names: BTreeSet<String> = pods.iter().map(|pod| format!("default/{}", pod.name())).collect();
    let events = bed.main().token_events()?.into_iter();
    let ours = events.filter(|event| event.action == TokenAction::Issued && event.allowed);
    let ours = ours.filter(|event| event.pod().is_some_and(|pod| names.contains(pod)));
    Ok(ours.filter_map(|event| event.sequence_number).collect())
}

/// Numbers of all tokens that were cancelled.
fn cancelled(bed: &Bed) -> Result<BTreeSet<u32>> {
    let events = bed.main().token_events()?.into_iter();
    let done = events.filter(|event| event.action == TokenAction::Cancelled && event.allowed);
    Ok(done.filter_map(|event| event.sequence_number).collect())
}

/// How often kubelet has had volumes published, and well, since it started: it counts its calls.
async fn publishes(bed: &Bed) -> Result<usize> {
    let path = format!("/api/v1/nodes/{NODE_NAME}/proxy/metrics");
    let metrics = bed.kubernetes().kubectl().args(["get", "--raw", &path]).succeed().await?;
    let wanted = [DRIVER_NAME, "grpc_status_code=\"OK\"", "/csi.v1.Node/NodePublishVolume\""];
    let line = metrics.lines().find(|line| {
        line.starts_with("csi_operations_seconds_count") && wanted.iter().all(|part| line.contains(part))
    });
    let count = line.and_then(|line| line.rsplit_once(' ')).context("kubelet has not published any yet")?.1;
    count.parse().with_context(|| format!("{count} is no count"))
}
