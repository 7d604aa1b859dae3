//! The wall clock of a node jumps by hours, ahead and back, and no token is renewed or replaced at another time because of
//! it, and nothing fails.

use std::{fs, iter, ops::Range, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use bed::{Bed, harness::Test, namenode::Cluster, product::NAMESPACE, provision, reading::Reading};
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
/// Tokens are renewed 14 s and replaced 20 s after they were issued or so, which makes as much from one to the next. A
/// clock that moved anything by hours would make that less, or more than the test lasts.
const BETWEEN: Range<SignedDuration> = SignedDuration::from_secs(12)..SignedDuration::from_secs(40);
/// How long a line of the log may be on its way.
const NEAR: SignedDuration = SignedDuration::from_secs(10);

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![steps_of_a_nodes_clock_change_no_renewal_and_no_rotation]
}

async fn steps_of_a_nodes_clock_change_no_renewal_and_no_rotation(bed: &Bed) -> Result<()> {
    // `cargo test --workspace` has done so before.
    provision::build_own(DRIVER).await?;
    let (product, _) = (bed.product().await?, bed.private().await?);
    show(DAY)?;
    let overlay = product.overlay().join("kustomization.yaml");
    let saved = fs::read(&overlay)?;
    fs::write(&overlay, with_faked_time(&saved)?)?;
    let outcome = async {
        product.apply().await?;
        product.until_ready().await?;
        let reading = Reading::begin(bed, "reads-on-over-steps", Cluster::Private).await?;
        let began = Timestamp::now();
        for clock in CLOCKS {
            show(clock)?;
            reading.go_on(EACH).await?;
        }
        let (log, ended) = (log(bed).await?, Timestamp::now());
        saw_the_steps(&log)?;
        for what in ["Renewed", "Replaced tokens"] {
            as_ever(&log, what, began, ended)?;
        }
        reading.end(2).await
    };
    let outcome = outcome.await;
    let restored = async {
        fs::write(&overlay, saved)?;
        product.apply().await?;
        product.until_ready().await
    };
    outcome.and(restored.await)
}

/// A line of the node plugin's log.
struct Line {
    /// When it was written.
    at: Timestamp,
    /// When by the node plugin's clock.
    said: Timestamp,
    level: String,
    message: String,
}

impl Line {
    /// From what `kubectl logs --timestamps` shows.
    fn parse(line: &str) -> Result<Self> {
        let (at, said) = line.split_once(' ').context("no time")?;
        let said: Value = serde_json::from_str(said)?;
        let field = |name: &str| said.get(name).and_then(Value::as_str).context("a field is missing");
        Ok(Self {
            at: at.parse()?,
            said: field("timestamp")?.parse()?,
            level: field("level")?.to_owned(),
            message: field("message")?.to_owned(),
        })
    }
}

/// The node plugin's log.
async fn log(bed: &Bed) -> Result<Vec<Line>> {
    let driver = bed.product().await?.driver().await?;
    let kubectl = bed.kubernetes().kubectl().args(["--namespace", NAMESPACE, "logs", "--timestamps"]);
    let log = kubectl.arg(driver.name()).succeed().await?;
    log.lines().map(|line| Line::parse(line).with_context(|| line.to_owned())).collect()
}

/// The node plugin believed what it was told, one clock after the other, and had nothing to complain of.
fn saw_the_steps(log: &[Line]) -> Result<()> {
    let mut expected = iter::once(DAY).chain(CLOCKS).peekable();
    let mut clock = SignedDuration::ZERO;
    for line in log {
        ensure!(line.level == "INFO", "it says at {}: {}", line.at, line.message);
        let ahead = line.said.duration_since(line.at);
        let shows = |clock: SignedDuration| (ahead - clock).abs() < NEAR;
        clock = expected.next_if(|next| shows(*next)).unwrap_or(clock);
        ensure!(shows(clock), "its clock is {ahead:#} ahead, not {clock:#}: {}", line.message);
    }
    ensure!(
        expected.peek().is_none(),
        "it never saw a clock {:#} ahead",
        expected.next().unwrap_or_default()
    );
    Ok(())
}

/// Something was done in that time as often as ever.
fn as_ever(log: &[Line], what: &str, began: Timestamp, ended: Timestamp) -> Result<()> {
    let times: Vec<Timestamp> = log.iter().filter(|line| line.message == what).map(|line| line.at).collect();
    let (first, last) = times.first().zip(times.last()).with_context(|| format!("never: {what}"))?;
    let waits = times.iter().zip(times.iter().skip(1)).map(|(one, next)| next.duration_since(*one));
    let waits: Vec<SignedDuration> = waits.collect();
    let ends = [first.duration_since(began), ended.duration_since(*last)];
    let even = waits.iter().all(|wait| BETWEEN.contains(wait)) && ends.iter().all(|wait| *wait < BETWEEN.end);
    ensure!(even, "{what}: from one to the next {waits:?}, before and after {ends:?}");
    Ok(())
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
