//! How long a pod takes to start with the volume, against the same pod with an emptyDir; and what node plugin and
//! controller take of memory after that.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use bed::{Bed, pod::Draft, progress::phase};
use serde_json::json;

use crate::report::Report;

const PAIRS: usize = 15;
const START_LIMIT: Duration = Duration::from_secs(60);

pub(crate) async fn measure(bed: &Bed, report: &mut Report) -> Result<()> {
    let (with, without) = phase("Starting pods with and without the volume", pairs(bed)).await?;
    report.add("pod_start_overhead", "ms", &with, &without);
    report.add("driver_rss", "MiB", &[resident("hadoop-token-csi-driver")?], &[]);
    Ok(())
}

async fn pairs(bed: &Bed) -> Result<(Vec<f64>, Vec<f64>)> {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for pair in 0..=PAIRS {
        let draft = Draft::new(&format!("volume-{pair}")).token_of("etl");
        let volume = start(bed, draft).await?;
        let draft = Draft::new(&format!("empty-{pair}"))
            .push("/spec/volumes", json!({"name": "empty", "emptyDir": {}}))
            .push(
                "/spec/containers/0/volumeMounts",
                json!({"name": "empty", "mountPath": "/etc/hadoop-token"}),
            );
        let empty = start(bed, draft).await?;
        if pair > 0 {
            // The first pair warms up.
            with.push(volume);
            without.push(empty);
        }
    }
    Ok((with, without))
}

/// Milliseconds from submission to the first instruction, both on the kernel's clock since boot.
async fn start(bed: &Bed, draft: Draft) -> Result<f64> {
    let submitted = uptime(&fs::read_to_string("/proc/uptime")?)?;
    let pod = bed.kubernetes().create(&draft.command(&["cat", "/proc/uptime"])).await?;
    let started = uptime(&pod.until_succeeded(START_LIMIT).await?)?;
    pod.delete(START_LIMIT).await?;
    Ok((started - submitted) * 1000.0)
}

fn uptime(text: &str) -> Result<f64> {
    text.split_whitespace().next().context("no uptime")?.parse().context("an uptime that is no number")
}

/// Resident memory of the one process of that program, in MiB.
pub(crate) fn resident(program: &str) -> Result<f64> {
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Ok(command) = fs::read(path.join("cmdline")) else { continue };
        let name = command.split(|byte| *byte == 0).next().unwrap_or_default();
        if !name.ends_with(format!("/{program}").as_bytes()) {
            continue;
        }
        let status = fs::read_to_string(path.join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
        return Ok(kibibytes / 1024.0);
    }
    anyhow::bail!("{program} is not running")
}
