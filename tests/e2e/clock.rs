//! The wall clock of a node jumps by hours, ahead and back, and no token is renewed or replaced at another time because of
//! it, and nothing fails.

use std::{collections::BTreeMap, fs, ops::RangeInclusive, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    harness::Test,
    namenode::{Cluster, NameNode, TokenAction},
    provision,
    reading::Reading,
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

/// The node plugin's program. The image's is linked statically, so that no library can tell it the time; the same
/// program, linked as cargo does it by itself, is put in its place.
const DRIVER: &str = "hadoop-token-csi-driver";
/// In it, libfaketime looks for the difference between the clock it shows and the machine's.
const FOLDER: &str = "/run/bed/faked-time";
/// Debian's folder of libraries, and its link to the one that loads them.
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";
const LOADER: &str = "/usr/lib64";
/// The clock that the node plugin starts with, and those that it is shown then, each for a while.
const DAY: SignedDuration = SignedDuration::from_hours(24);
const CLOCKS: [SignedDuration; 3] =
    [SignedDuration::from_hours(3), SignedDuration::from_hours(-3), SignedDuration::ZERO];
const EACH: Duration = Duration::from_secs(26);
/// Tokens are renewed 14 s and replaced 20 s after they were issued or so. A clock that moved anything by hours would
/// make that more, or none.
const IN_EACH: RangeInclusive<usize> = 1..=2;
/// A line of the log is not older than a while, and its clock not further off.
const NEAR: SignedDuration = SignedDuration::from_mins(2);

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![steps_of_a_nodes_clock_change_no_renewal_and_no_rotation]
}

async fn steps_of_a_nodes_clock_change_no_renewal_and_no_rotation(bed: &Bed) -> Result<()> {
    // `cargo test --workspace` has done so before.
    provision::build_own(DRIVER).await?;
    let (product, private) = (bed.product().await?, bed.private().await?);
    show(DAY)?;
    let overlay = product.overlay().join("kustomization.yaml");
    let saved = fs::read(&overlay)?;
    fs::write(&overlay, with_faked_time(&saved)?)?;
    let outcome = async {
        product.apply().await?;
        product.until_ready().await?;
        says(bed, DAY).await?;
        let reading = Reading::begin(bed, "reads-on-over-steps", Cluster::Private).await?;
        for clock in CLOCKS {
            let before = private.token_events()?.len();
            show(clock)?;
            reading.go_on(EACH).await?;
            says(bed, clock).await?;
            as_ever(private, before).with_context(|| format!("with a clock {clock:#} ahead"))?;
        }
        nothing_failed(bed).await?;
        reading.end(CLOCKS.len() * IN_EACH.start()).await
    };
    let outcome = outcome.await;
    fs::write(&overlay, saved)?;
    product.apply().await?;
    product.until_ready().await?;
    outcome
}

/// The node plugin believes what it is told: the last line of its log has this clock's time.
async fn says(bed: &Bed, clock: SignedDuration) -> Result<()> {
    let log = log(bed).await?;
    let last = log.last().context("it has said nothing")?;
    let said: Timestamp = last.get("timestamp").and_then(Value::as_str).context("no time")?.parse()?;
    let off = said.duration_since(Timestamp::now() + clock).abs();
    ensure!(
        off < NEAR,
        "the node plugin's clock is {off:#} off, or it has said nothing for that long: {last}"
    );
    Ok(())
}

/// Tokens were renewed and replaced since as at any time.
fn as_ever(name_node: &NameNode, before: usize) -> Result<()> {
    let mut count = BTreeMap::new();
    for event in name_node.token_events()?.split_off(before) {
        ensure!(event.allowed, "refused: {event:?}");
        *count.entry(format!("{:?}", event.action)).or_insert(0) += 1;
    }
    for action in [TokenAction::Renewed, TokenAction::Issued] {
        let times = count.get(&format!("{action:?}")).copied().unwrap_or_default();
        ensure!(IN_EACH.contains(&times), "{action:?} {times} times, among {count:?}");
    }
    Ok(())
}

/// The node plugin has nothing to complain of.
async fn nothing_failed(bed: &Bed) -> Result<()> {
    let log = log(bed).await?;
    let complaint = log.iter().find(|line| line.get("level").is_none_or(|level| level != "INFO"));
    ensure!(complaint.is_none(), "the node plugin says {complaint:?}");
    Ok(())
}

/// The node plugin's log, line by line.
async fn log(bed: &Bed) -> Result<Vec<Value>> {
    let log = bed.product().await?.driver().await?.logs().await?;
    log.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// Shows another clock from now on.
fn show(clock: SignedDuration) -> Result<()> {
    let folder = Path::new(FOLDER);
    fs::create_dir_all(folder)?;
    // By renaming, so that nobody reads a part.
    fs::write(folder.join("next"), format!("{:+}", clock.as_secs()))?;
    fs::rename(folder.join("next"), folder.join("now"))?;
    Ok(())
}

/// The overlay, with a node plugin that libfaketime tells the time.
fn with_faked_time(overlay: &[u8]) -> Result<Vec<u8>> {
    let mut overlay: Value = serde_json::from_slice(overlay)?;
    let program = provision::own(DRIVER)?;
    let program = program.to_str().context("a folder whose name is no text")?;
    let container = "/spec/template/spec/containers/0";
    let add = |path: &str, value: Value| json!({"op": "add", "path": path, "value": value});
    let mut changes = Vec::new();
    for (name, kind, path, shown_as) in [
        ("program", "File", program, "/bin/hadoop-token-csi-driver"),
        ("loader", "Directory", LOADER, "/lib64"),
        ("libraries", "Directory", LIBRARIES, "/lib/x86_64-linux-gnu"),
        ("faked-time", "Directory", FOLDER, "/faked-time"),
    ] {
        let volume = json!({"name": name, "hostPath": {"path": path, "type": kind}});
        changes.push(add("/spec/template/spec/volumes/-", volume));
        let mount = json!({"name": name, "mountPath": shown_as, "readOnly": true});
        changes.push(add(&format!("{container}/volumeMounts/-"), mount));
    }
    for (name, value) in [
        ("LD_PRELOAD", "/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"),
        ("FAKETIME_TIMESTAMP_FILE", "/faked-time/now"),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("NO_FAKE_STAT", "1"),
    ] {
        changes.push(add(&format!("{container}/env/-"), json!({"name": name, "value": value})));
    }
    let patch = json!({
        "target": {"kind": "DaemonSet", "name": "hadoop-token-csi-driver"},
        "patch": serde_json::to_string(&changes)?,
    });
    let patches = overlay.get_mut("patches").and_then(Value::as_array_mut);
    patches.context("no patches")?.push(patch);
    Ok(serde_json::to_vec_pretty(&overlay)?)
}
