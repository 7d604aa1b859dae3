//! The wall clock of a node jumps ten minutes ahead and back, and no token is renewed or replaced at another time
//! because of it.

use std::{fs, ops::RangeInclusive, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    harness::Test,
    namenode::{Cluster, TokenAction},
    reading::Reading,
};
use serde_json::json;

/// In it, libfaketime looks for the difference between the clock it shows and the machine's.
const FOLDER: &str = "/run/bed/faked-time";
/// Debian's place of the library.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime";
/// The clocks shown, one after the other, each for a while; tokens live for 90 s in all.
const CLOCKS: [&str; 4] = ["+600", "-600", "+3600", "+0"];
/// The first one.
const DAY: Duration = Duration::from_secs(86_400);
const EACH: Duration = Duration::from_secs(26);
/// Tokens are renewed 14 s and replaced 20 s after they were issued or so. A clock that moved anything by ten minutes
/// would make that many more, or none.
const RENEWALS: RangeInclusive<usize> = 3..=12;
const ROTATIONS: RangeInclusive<usize> = 3..=8;

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![steps_of_a_nodes_clock_change_no_renewal_and_no_rotation]
}

async fn steps_of_a_nodes_clock_change_no_renewal_and_no_rotation(bed: &Bed) -> Result<()> {
    let (product, private) = (bed.product().await?, bed.private().await?);
    show(&format!("+{}", DAY.as_secs()))?;
    let overlay = product.overlay().join("kustomization.yaml");
    let saved = fs::read(&overlay)?;
    fs::write(&overlay, with_faked_time(&saved)?)?;
    let outcome = async {
        product.apply().await?;
        product.until_ready().await?;
        is_faked(bed).await?;
        let reading = Reading::begin(bed, "reads-on-over-steps", Cluster::Private).await?;
        let before = private.token_events()?.len();
        for clock in CLOCKS {
            show(clock)?;
            reading.go_on(EACH).await?;
        }
        let events = private.token_events()?.split_off(before);
        let count = |action| events.iter().filter(|event| event.action == action).count();
        let (renewed, issued) = (count(TokenAction::Renewed), count(TokenAction::Issued));
        ensure!(RENEWALS.contains(&renewed), "{renewed} renewals");
        ensure!(ROTATIONS.contains(&issued), "{issued} rotations");
        reading.end(*ROTATIONS.start()).await
    };
    let outcome = outcome.await;
    show("+0")?;
    fs::write(&overlay, saved)?;
    product.apply().await?;
    product.until_ready().await?;
    outcome
}

/// The node plugin believes what it is told: its own log says which day it has.
async fn is_faked(bed: &Bed) -> Result<()> {
    let log = bed.product().await?.driver().await?.logs().await?;
    let tomorrow = (jiff::Timestamp::now() + DAY).to_string();
    let tomorrow = tomorrow.split('T').next().context("no date")?;
    ensure!(log.contains(tomorrow), "its clock does not say {tomorrow}:\n{log}");
    Ok(())
}

/// Shows another clock from now on.
fn show(difference: &str) -> Result<()> {
    let folder = Path::new(FOLDER);
    fs::create_dir_all(folder)?;
    // By renaming, so that nobody reads a part.
    fs::write(folder.join("next"), difference)?;
    fs::rename(folder.join("next"), folder.join("now"))?;
    Ok(())
}

/// The overlay, with a node plugin that libfaketime tells the time.
fn with_faked_time(overlay: &[u8]) -> Result<Vec<u8>> {
    let mut overlay: serde_json::Value = serde_json::from_slice(overlay)?;
    let add = |path: &str, value: serde_json::Value| json!({"op": "add", "path": path, "value": value});
    let container = "/spec/template/spec/containers/0";
    let variable =
        |name: &str, value: &str| add(&format!("{container}/env/-"), json!({"name": name, "value": value}));
    let mount = |name: &str, path: &str| {
        add(
            &format!("{container}/volumeMounts/-"),
            json!({"name": name, "mountPath": path, "readOnly": true}),
        )
    };
    let volume = |name: &str, path: &str| {
        add(
            "/spec/template/spec/volumes/-",
            json!({"name": name, "hostPath": {"path": path, "type": "Directory"}}),
        )
    };
    let changes = json!([
        volume("faketime", LIBRARY),
        volume("faked-time", FOLDER),
        mount("faketime", "/faketime"),
        mount("faked-time", "/faked-time"),
        variable("LD_PRELOAD", "/faketime/libfaketimeMT.so.1"),
        variable("FAKETIME_TIMESTAMP_FILE", "/faked-time/now"),
        variable("FAKETIME_NO_CACHE", "1"),
        variable("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        variable("NO_FAKE_STAT", "1"),
    ]);
    let patch = json!({
        "target": {"kind": "DaemonSet", "name": "hadoop-token-csi-driver"},
        "patch": changes.to_string(),
    });
    let patches = overlay.get_mut("patches").and_then(serde_json::Value::as_array_mut);
    patches.context("no patches")?.push(patch);
    Ok(serde_json::to_vec_pretty(&overlay)?)
}
