//! A pod that reads HDFS once a second with nothing but its token, while somebody on the node reads its token file
//! 10,000 times a second: how it is shown that tokens are renewed and replaced without anybody noticing.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use hadoop::token_file::TokenFile;
use tokio::time::{Instant, sleep};

use crate::{
    Bed,
    host::KUBELET,
    image::HDFS_CLIENT,
    namenode::{Cluster, TokenAction, private_content},
    pod::{Draft, Running, VOLUME},
    process::until,
    progress::say,
};

/// How often the token file is read.
const FILE_READS_PER_SECOND: f64 = 10_000.0;
/// Of which so many must really have been, on a machine that is busy.
const LEAST_READS_PER_SECOND: f64 = 9_000.0;
const PAUSE: Duration = Duration::from_millis(1);
/// How often it is made sure that the file can still be read.
const LOOK: Duration = Duration::from_secs(10);
/// From second to second, a new client has to start and to shake hands, also on a machine that is busy.
const HDFS_READ_LIMIT: Duration = Duration::from_secs(30);
const GONE_LIMIT: Duration = Duration::from_secs(60);

/// A pod that reads, and whoever watches its file.
pub struct Reading<'bed> {
    bed: &'bed Bed,
    cluster: Cluster,
    pod: Running,
    began: Instant,
    over: Arc<AtomicBool>,
    watcher: JoinHandle<Result<Seen>>,
}

/// What was in a token file.
struct Seen {
    reads: u64,
    /// Each content in turn.
    contents: Vec<Vec<u8>>,
}

impl<'bed> Reading<'bed> {
    /// Starts the pod as user `etl`, and begins to read.
    ///
    /// # Errors
    /// When the pod does not run.
    pub async fn begin(bed: &'bed Bed, name: &str, cluster: Cluster) -> Result<Self> {
        let content = private_content(cluster, "etl");
        let script = format!(
            "n=0; while :; do said=$({HDFS_CLIENT} --url {} cat /user/etl/private.txt 2>&1); \
            if [ \"$said\" = '{}' ]; then n=$((n+1)); echo \"read $n\"; else echo \"failed: $said\"; fi; \
            sleep 1; done",
            cluster.url(),
            content.trim_end()
        );
        let draft = Draft::new(name).token_of_at("etl", cluster).script(&script);
        let pod = bed.kubernetes().run(&draft).await?;
        let file = token_file(&pod.uid().await?, VOLUME);
        let over = Arc::new(AtomicBool::new(false));
        let watcher = {
            let over = over.clone();
            thread::Builder::new().name("file-reader".to_owned()).spawn(move || watch(&file, &over))?
        };
        Ok(Self { bed, cluster, pod, began: Instant::now(), over, watcher })
    }

    /// The pod.
    #[must_use]
    pub fn pod(&self) -> &Running {
        &self.pod
    }

    /// Waits, and makes sure now and then that nothing has failed.
    ///
    /// # Errors
    /// As soon as something has.
    pub async fn go_on(&self, length: Duration) -> Result<()> {
        let end = Instant::now() + length;
        while Instant::now() < end {
            sleep(LOOK.min(end.saturating_duration_since(Instant::now()))).await;
            ensure!(!self.watcher.is_finished(), "the token file could not be read: {}", self.pod.name());
        }
        // One more, with the token as it is at the end.
        let before = self.reads().await?;
        until("one more read of HDFS", HDFS_READ_LIMIT, async || {
            ensure!(self.reads().await? > before, "still {before} reads");
            Ok(())
        })
        .await
    }

    /// How often HDFS has been read.
    async fn reads(&self) -> Result<u64> {
        let log = self.pod.logs().await?;
        let failed: Vec<&str> = log.lines().filter(|line| !line.starts_with("read ")).collect();
        ensure!(failed.is_empty(), "reading HDFS failed in pod {}: {failed:?}", self.pod.name());
        Ok(log.lines().count().try_into()?)
    }

    /// Ends, and shows that the token was replaced at least so often without a fault, that nobody cancelled a token
    /// under the living pod, and that none of them is good for anything once the pod is gone.
    ///
    /// # Errors
    /// When one of this is not so.
    pub async fn end(self, rotations: usize) -> Result<()> {
        let Self { bed, cluster, pod, began, over, watcher } = &self;
        let (length, reads) = (began.elapsed(), self.reads().await?);
        over.store(true, Relaxed);
        while !watcher.is_finished() {
            sleep(PAUSE).await;
        }
        let (bed, cluster, pod) = (*bed, *cluster, pod.clone());
        let seen = self.watcher.join().map_err(|_| anyhow!("the reader of the file panicked"))??;
        let tokens = seen.contents.len();
        say(format_args!(
            "pod {}: {reads} reads of HDFS and {} of the file in {:.0} s, {tokens} tokens one after the other",
            pod.name(),
            seen.reads,
            length.as_secs_f64()
        ));
        ensure!(
            tokens > rotations,
            "{tokens} tokens in {length:?}, that is fewer than {rotations} rotations"
        );
        let per_second = u32::try_from(seen.reads).map(f64::from)? / length.as_secs_f64();
        ensure!(per_second > LEAST_READS_PER_SECOND, "{per_second:.0} reads of the file a second");

        let name_node = match cluster {
            Cluster::Main => bed.main(),
            Cluster::Private => bed.private().await?,
        };
        let name = format!("default/{}", pod.name());
        let events = name_node.token_events()?;
        let issued: Vec<u32> = events
            .iter()
            .filter(|event| {
                event.action == TokenAction::Issued && event.allowed && event.pod() == Some(&name)
            })
            .filter_map(|event| event.sequence_number)
            .collect();
        ensure!(issued.len() == tokens, "{} tokens were issued, and {tokens} seen", issued.len());
        let ours = |number: Option<u32>| number.is_some_and(|number| issued.contains(&number));
        let mut cancels = events.iter().filter(|event| event.action == TokenAction::Cancelled);
        let cancelled = cancels.find(|event| ours(event.sequence_number));
        ensure!(cancelled.is_none(), "cancelled under the living pod: {cancelled:?}");
        pod.delete(GONE_LIMIT).await?;
        all_refused(bed, cluster, &seen.contents).await
    }
}

/// The whole of it: a pod reads for `length`, and its token is replaced at least `rotations` times.
///
/// # Errors
/// When anything failed.
pub async fn across_rotations(
    bed: &Bed,
    name: &str,
    cluster: Cluster,
    length: Duration,
    rotations: usize,
) -> Result<()> {
    let reading = Reading::begin(bed, name, cluster).await?;
    reading.go_on(length).await?;
    reading.end(rotations).await
}

/// The token file of a volume, on the node.
#[must_use]
pub fn token_file(pod_uid: &str, volume: &str) -> PathBuf {
    Path::new(KUBELET)
        .join("pods")
        .join(pod_uid)
        .join("volumes/kubernetes.io~csi")
        .join(volume)
        .join("mount/token")
}

/// Reads at its rate until it is `over`. Whatever is found must be a whole token file.
fn watch(file: &Path, over: &AtomicBool) -> Result<Seen> {
    let began = Instant::now();
    let mut seen = Seen { reads: 0, contents: Vec::new() };
    while !over.load(Relaxed) {
        while f64::from(u32::try_from(seen.reads)?) < began.elapsed().as_secs_f64() * FILE_READS_PER_SECOND {
            let content = fs::read(file).with_context(|| format!("read {} of the token file", seen.reads))?;
            seen.reads += 1;
            if seen.contents.last() == Some(&content) {
                continue;
            }
            let tokens = TokenFile::decode(&content).context("a token file that is not whole")?.tokens;
            ensure!(!tokens.is_empty(), "a token file without tokens");
            ensure!(!seen.contents.contains(&content), "an older token came back");
            seen.contents.push(content);
        }
        thread::park_timeout(PAUSE);
    }
    Ok(seen)
}

/// Nobody gets anything with any of these token files.
async fn all_refused(bed: &Bed, cluster: Cluster, files: &[Vec<u8>]) -> Result<()> {
    let file = bed.state().join("stolen-token");
    for content in files {
        fs::write(&file, content)?;
        let thief = bed.hdfs_as_nobody(cluster)?.env("HADOOP_TOKEN_FILE_LOCATION", &file);
        let thief = thief.args(["cat", "/user/etl/private.txt"]);
        until("refused: a token of a pod that is gone", GONE_LIMIT, async || thief.output().await?.failure())
            .await?;
    }
    fs::remove_file(&file)?;
    Ok(())
}
