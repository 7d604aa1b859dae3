//! A load of pods that start and end all the time, and pods that read HDFS all the time, while something else happens.
//! Pods of the load end in every way: by themselves, deleted while they run, deleted while they start. Whoever makes
//! them is patient: with everything else away, so may the API server be.

use std::{
    cell::{Cell, RefCell},
    fmt, fs,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::{join, try_join_all};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::{
    Bed,
    image::HDFS_CLIENT,
    namenode::{Cluster, private_content},
    pod::{Draft, Running},
};

/// How long anything may take that has to wait for what is away: as long as that is, and kubelet's longest wait after.
const PATIENCE: Duration = Duration::from_secs(300);
/// What its pods have.
const LABEL: &str = "bed/load";
const PAUSE: Duration = Duration::from_millis(500);
/// Until a pod is deleted that starts, at most.
const SOON: Duration = Duration::from_secs(3);

/// How much.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Pods that start and end at the same time.
    pub at_once: usize,
    /// Pods that read all the time.
    pub readers: usize,
    /// Where all of them read.
    pub cluster: Cluster,
}

/// What became of a load.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Lives of pods.
    pub lives: usize,
    /// Reads that worked.
    pub reads: usize,
    /// Reads that did not: when, and what the client said.
    pub failures: Vec<(Timestamp, String)>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lives, reads, failures } = self;
        write!(f, "{lives} lives of pods, {reads} reads by those that stayed, {} failed", failures.len())
    }
}

/// How a pod of the load ends.
#[derive(Debug, Clone, Copy)]
enum End {
    ByItself,
    DeletedRunning,
    DeletedStarting,
}

impl Load {
    /// Has the load while something happens, and ends it: no pod of it is left.
    ///
    /// # Errors
    /// When a pod does not start, read and end, however patient one is, or `meanwhile` fails.
    pub async fn during(self, bed: &Bed, meanwhile: impl Future<Output = Result<()>>) -> Result<Report> {
        self.counting(bed, &Cell::new(0), meanwhile).await
    }

    /// The same, with every life of a pod counted as it ends.
    ///
    /// # Errors
    /// As [`Self::during`].
    pub async fn counting(
        self,
        bed: &Bed,
        lives: &Cell<usize>,
        meanwhile: impl Future<Output = Result<()>>,
    ) -> Result<Report> {
        let readers = try_join_all((0..self.readers).map(|number| self.reader(bed, number))).await?;
        let over = Cell::new(false);
        let workers = try_join_all((0..self.at_once).map(|worker| self.live(bed, worker, &over, lives)));
        let what = async {
            let outcome = meanwhile.await;
            over.set(true);
            outcome
        };
        let (lived, outcome) = join(workers, what).await;
        let report = async {
            outcome.and(lived)?;
            let mut report = Report { lives: lives.get(), ..Report::default() };
            for reader in &readers {
                report.add(reader).await?;
            }
            Ok(report)
        };
        let report = report.await;
        let cleared = clear(bed).await;
        report.and_then(|report| cleared.map(|()| report))
    }

    async fn reader(&self, bed: &Bed, number: usize) -> Result<Running> {
        let script = format!("while :; do {}; sleep 1; done", self.read());
        let draft = self.draft(&format!("reader-{number}")).script(&script);
        bed.kubernetes().run(&draft).await
    }

    fn draft(&self, name: &str) -> Draft {
        Draft::new(name).set("/metadata/labels", json!({LABEL: ""})).token_of_at("etl", self.cluster)
    }

    /// A line of shell that reads, says how that went, and fails if it did.
    fn read(&self) -> String {
        let content = private_content(self.cluster, "etl");
        format!(
            "said=$({HDFS_CLIENT} --url {} cat /user/etl/private.txt 2>&1); \
            [ \"$said\" = '{}' ] && echo read || {{ echo \"failed: $said\" | tr '\\n' ' '; echo; false; }}",
            self.cluster.url(),
            content.trim_end()
        )
    }

    /// One pod after the other, until it is over.
    async fn live(&self, bed: &Bed, worker: usize, over: &Cell<bool>, lives: &Cell<usize>) -> Result<()> {
        let mut round = worker;
        while !over.get() {
            let name = format!("load-{worker}-{round}");
            let end = match round % 3 {
                0 => End::ByItself,
                1 => End::DeletedRunning,
                _ => End::DeletedStarting,
            };
            self.one(bed, &name, end).await.with_context(|| format!("pod {name}, {end:?}"))?;
            lives.set(lives.get() + 1);
            round += 1;
        }
        Ok(())
    }

    async fn one(&self, bed: &Bed, name: &str, end: End) -> Result<()> {
        let reads = format!("until {}; do sleep 1; done", self.read());
        let script = match end {
            End::ByItself => reads,
            End::DeletedRunning | End::DeletedStarting => format!("{reads}; sleep 2147483647"),
        };
        let draft = self.draft(name).script(&script);
        let kubernetes = bed.kubernetes();
        let pod = kubernetes.pod("default", name);
        patiently("created", async || match kubernetes.create(&draft).await {
            // An answer was lost, and it is there.
            Err(_) if pod.get().await.is_ok() => Ok(()),
            created => created.map(drop),
        })
        .await?;
        match end {
            End::ByItself => comes_to(&pod, "Succeeded").await?,
            End::DeletedRunning => comes_to(&pod, "Running").await?,
            End::DeletedStarting => sleep(SOON.mul_f32(fastrand::f32())).await,
        }
        patiently("deleted", async || {
            if let Some(left) = pod.find().await? {
                if left.metadata.deletion_timestamp.is_none() {
                    pod.delete_without_waiting().await?;
                }
                bail!("it is still there");
            }
            Ok(())
        })
        .await
    }
}

/// Deletes what there still is of a load, and waits until it is gone.
async fn clear(bed: &Bed) -> Result<()> {
    let pods: Api<Pod> = Api::default_namespaced(bed.kubernetes().client());
    let its = ListParams::default().labels(LABEL);
    patiently("deleted", async || {
        pods.delete_collection(&DeleteParams::default(), &its).await?;
        let left = pods.list(&its).await?.items;
        ensure!(left.is_empty(), "{} pods are still there", left.len());
        Ok(())
    })
    .await
}

/// Asks again and again, because whoever watches is told when the API server goes. A container that was just being started
/// when kubelet went has gone with it, and is as good as any other end.
async fn comes_to(pod: &Running, phase: &str) -> Result<()> {
    let last = RefCell::new(Pod::default());
    let there = async || {
        last.replace(pod.get().await?);
        let now = phase_of(&last.borrow());
        ensure!([phase, "Succeeded", "Failed"].contains(&&*now), "its phase is {now}");
        Ok(())
    };
    patiently(phase, there).await?;
    let last = last.into_inner();
    ensure!(
        phase_of(&last) == phase || was_never_started(&last),
        "it came to {} instead of {phase}: {:?}",
        phase_of(&last),
        ends(&last).collect::<Vec<_>>()
    );
    Ok(())
}

fn phase_of(pod: &Pod) -> String {
    pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default()
}

/// Whether containerd was told to start its container by a kubelet that was gone before that was done.
fn was_never_started(pod: &Pod) -> bool {
    ends(pod).any(|end| {
        let message = end.message.as_deref().unwrap_or_default();
        end.reason.as_deref() == Some("StartError") && message.ends_with("context canceled")
    })
}

/// How its containers ended, if they did.
fn ends(pod: &Pod) -> impl Iterator<Item = &ContainerStateTerminated> {
    let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    containers.filter_map(|container| container.state.as_ref()?.terminated.as_ref())
}

/// Tries until it works, as often as patience goes.
async fn patiently(what: &str, attempt: impl AsyncFn() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let last = RefCell::new(None);
    while Instant::now() < deadline {
        match attempt().await {
            Ok(()) => return Ok(()),
            Err(error) => *last.borrow_mut() = Some(error),
        }
        sleep(PAUSE).await;
    }
    let last = last.into_inner().unwrap_or_else(|| anyhow::anyhow!("never tried"));
    Err(last.context(format!("not {what} after {} s", PATIENCE.as_secs())))
}

impl Report {
    /// Adds what a reader has said. Its log is read on the node, with the times that the node's runtime noted.
    async fn add(&mut self, reader: &Running) -> Result<()> {
        let folder = format!("/var/log/pods/default_{}_{}/main", reader.name(), reader.uid().await?);
        let log =
            fs::read_to_string(format!("{folder}/0.log")).with_context(|| format!("no log in {folder}"))?;
        for line in log.lines() {
            // TIME STREAM PART TEXT
            let mut words = line.splitn(4, ' ');
            let (time, text) = (words.next().unwrap_or_default(), words.nth(2).unwrap_or_default());
            if text.trim() == "read" {
                self.reads += 1;
            } else {
                self.failures.push((time.parse()?, text.to_owned()));
            }
        }
        ensure!(self.reads > 0, "{} has read nothing", reader.name());
        Ok(())
    }

    /// Nothing failed but between two moments.
    ///
    /// # Errors
    /// With what failed at other times.
    pub fn failed_only_between(&self, windows: &[(Timestamp, Timestamp)]) -> Result<()> {
        let excused = |time: &Timestamp| windows.iter().any(|(begin, end)| (begin..=end).contains(&time));
        let left: Vec<_> = self.failures.iter().filter(|(time, _)| !excused(time)).collect();
        ensure!(left.is_empty(), "reading HDFS failed: {left:?}");
        Ok(())
    }
}
