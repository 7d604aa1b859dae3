//! Who got what and why can be learnt afterwards: from the controller's audit log and the NameNode's, joined, and from
//! the controller's metrics. What cannot be recorded does not happen.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    harness::Test,
    namenode::{TokenAction, TokenEvent},
    pod::{Draft, Running},
    process::{Program, until},
    product::{AUDIT_FOLDER, AUDIT_FOLDER_IN_POD, CONTROLLER},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{GONE_LIMIT, tally::Tally};

/// From the issue of a token to its first renewal, and more.
const RENEWAL_LIMIT: Duration = Duration::from_secs(90);
const WATCH_LIMIT: Duration = Duration::from_secs(30);
const EVENT_LIMIT: Duration = Duration::from_secs(60);
/// kubelet waits up to two minutes between its attempts.
const RECOVERY_LIMIT: Duration = Duration::from_secs(180);

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![
        a_token_s_life_is_told_by_our_audit_log_and_by_the_namenode_s_alike,
        what_cannot_be_recorded_is_not_issued_until_the_disk_has_room,
        decisions_are_counted_with_their_reasons
    ]
}

/// Records about a pod, of one action.
fn of(records: &[Value], uid: &str, action: &str) -> Vec<Value> {
    let is_it = |record: &&Value| text(record, "/uid") == uid && text(record, "/action") == action;
    records.iter().filter(is_it).cloned().collect()
}

fn text<'a>(record: &'a Value, pointer: &str) -> &'a str {
    record.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The NameNode's event of just the call that our record is about: the same request, pod, token and owner.
fn joins(record: &Value, pod: &Running, events: &[TokenEvent], action: TokenAction) -> Result<()> {
    let context = format!("hadoop-token-csi:{}:default/{}", text(record, "/requestId"), pod.name());
    let number = record.pointer("/tokens/0/sequenceNumber").and_then(Value::as_u64);
    let same = |event: &&TokenEvent| {
        event.action == action
            && event.allowed
            && event.caller_context.as_deref() == Some(&context)
            && event.sequence_number.map(u64::from) == number
    };
    ensure!(number.is_some(), "names no token: {record}");
    ensure!(text(record, "/decision") == "granted", "{record}");
    ensure!(text(record, "/namespace") == "default" && text(record, "/pod") == pod.name(), "{record}");
    ensure!(events.iter().filter(same).count() == 1, "no event joins {record}: {events:?}");
    Ok(())
}

async fn a_token_s_life_is_told_by_our_audit_log_and_by_the_namenode_s_alike(bed: &Bed) -> Result<()> {
    let product = bed.product().await?;
    let pod = bed.kubernetes().run(&Draft::new("audited").token_of("etl")).await?;
    let uid = pod.uid().await?;
    let renewal = until("recorded: a renewal", RENEWAL_LIMIT, async || {
        of(&product.audit().await?, &uid, "renew").first().cloned().context("none")
    })
    .await?;
    pod.delete(GONE_LIMIT).await?;
    // Node plugin and reaper both end it: who is first cancels it, and the other finds it unknown.
    let end = until("recorded: its end", GONE_LIMIT, async || {
        let (records, events) = (product.audit().await?, bed.main().token_events()?);
        let ends = ["release", "cancel"].into_iter().flat_map(|action| of(&records, &uid, action));
        let joined = |record: &Value| joins(record, &pod, &events, TokenAction::Cancelled).is_ok();
        ends.into_iter().find(joined).with_context(|| format!("none joins {events:?}"))
    })
    .await?;

    let issues = of(&product.audit().await?, &uid, "issue");
    ensure!(issues.len() == 1, "one volume is one token: {issues:?}");
    let issue = issues.first().context("no issue")?;
    for (pointer, expected) in
        [("/submitter", "etl"), ("/mappedUser", "etl"), ("/user", "etl"), ("/cluster", "main")]
    {
        ensure!(text(issue, pointer) == expected, "{pointer} in {issue}");
    }
    ensure!(!text(issue, "/node").is_empty() && issue.pointer("/services/0").is_some(), "{issue}");
    let ids = [issue, &renewal, &end].map(|record| text(record, "/requestId"));
    let distinct: std::collections::BTreeSet<_> = ids.into_iter().collect();
    ensure!(distinct.len() == 3 && ids.iter().all(|id| id.len() == 16), "request ids {ids:?}");

    let events = bed.main().token_events()?;
    joins(issue, &pod, &events, TokenAction::Issued)?;
    joins(&renewal, &pod, &events, TokenAction::Renewed)
}

/// A file system so small that it can be filled, where the controller writes its audit log.
struct SmallDisk(PathBuf);

impl SmallDisk {
    async fn mount() -> Result<Self> {
        let folder = PathBuf::from(AUDIT_FOLDER);
        fs::create_dir_all(&folder)?;
        let options = "size=64k,mode=0700,uid=65532,gid=65532";
        Program::new("mount").args(["-t", "tmpfs", "-o", options, "audit"]).arg(&folder).succeed().await?;
        Ok(Self(folder))
    }

    fn log(&self) -> PathBuf {
        self.0.join("audit.log")
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// Takes all room, also what is left in the log's last page.
    fn fill(&self) -> Result<()> {
        let used = usize::try_from(fs::metadata(self.log())?.len())?;
        let filler = json!({"filler": "x".repeat(2 * 4096 - used % 4096 - "{\"filler\":\"\"}\n".len())});
        OpenOptions::new().append(true).open(self.log())?.write_all(format!("{filler}\n").as_bytes())?;
        let mut ballast = fs::File::create(self.ballast())?;
        loop {
            match ballast.write_all(&[0; 4096]) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn unmount(self) -> Result<()> {
        Program::new("umount").arg("--lazy").arg(&self.0).succeed().await.map(drop)
    }
}

fn records(log: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(log)?;
    ensure!(text.is_empty() || text.ends_with('\n'), "ends within a line: {text}");
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("no record: {line}")))
        .collect()
}

async fn what_cannot_be_recorded_is_not_issued_until_the_disk_has_room(bed: &Bed) -> Result<()> {
    let disk = SmallDisk::mount().await?;
    let outcome = bed
        .product()
        .await?
        .with_controller(
            |configuration| {
                let file = format!("{AUDIT_FOLDER_IN_POD}/audit.log");
                configuration["audit"] = json!({"file": file});
            },
            || without_room(bed, &disk),
        )
        .await;
    outcome.and(disk.unmount().await)
}

async fn without_room(bed: &Bed, disk: &SmallDisk) -> Result<()> {
    let mode = fs::metadata(disk.log())?.permissions().mode() & 0o7777;
    ensure!(mode == 0o600, "others may read it: {mode:o}");
    let tally = Tally::begin(bed.main()).await?;
    let first = bed.kubernetes().run(&Draft::new("recorded").token_of("etl")).await?;
    let issues = of(&records(&disk.log())?, &first.uid().await?, "issue");
    joins(issues.first().context("no record")?, &first, &bed.main().token_events()?, TokenAction::Issued)?;

    disk.fill()?;
    let live = bed.main().live_tokens().await?;
    let before = fs::read(disk.log())?;
    let pod = bed.kubernetes().create(&Draft::new("unrecorded").token_of("etl")).await?;
    let event = pod.until_event("[AUDIT_UNWRITABLE]", EVENT_LIMIT).await?;
    ensure!(event.contains("No space left on device"), "{event}");
    let phase = pod.get().await?.status.and_then(|status| status.phase);
    ensure!(phase.as_deref() == Some("Pending"), "started without a record: {phase:?}");
    bed.main().until_live_tokens(live, EVENT_LIMIT).await?;
    ensure!(fs::read(disk.log())? == before, "the log holds part of a record");
    until("shown: that nothing can be recorded", EVENT_LIMIT, async || {
        let ready = get("/readyz").await?;
        ensure!(ready.contains(" 503 ") && ready.contains("[-] audit: "), "{ready}");
        Ok(())
    })
    .await?;

    fs::remove_file(disk.ballast())?;
    pod.until_running(RECOVERY_LIMIT).await?;
    let (records, uid) = (records(&disk.log())?, pod.uid().await?);
    let granted: Vec<_> = of(&records, &uid, "issue")
        .into_iter()
        .filter(|record| text(record, "/decision") == "granted")
        .collect();
    let cancelled = of(&records, &uid, "cancel");
    // The one whose record found no room was cancelled, and both are told as soon as there is room.
    ensure!(granted.len() == 2 && cancelled.len() == 1, "{granted:?}, {cancelled:?}");
    let (lost, kept) = (granted.first().context("none")?, granted.last().context("none")?);
    let undone = cancelled.first().context("none")?;
    ensure!(text(undone, "/why") == "NOT_HANDED_OVER", "{undone}");
    ensure!(undone.pointer("/tokens") == lost.pointer("/tokens"), "{undone} is not of {lost}");
    let events = bed.main().token_events()?;
    joins(undone, &pod, &events, TokenAction::Cancelled)?;
    joins(kept, &pod, &events, TokenAction::Issued)?;
    tally.ends_after(&[first, pod]).await
}

async fn decisions_are_counted_with_their_reasons(bed: &Bed) -> Result<()> {
    let product = bed.product().await?;
    let granted = r#"hadoop_token_csi_decisions_total{call="issue",decision="granted",reason=""}"#;
    let denied = r#"hadoop_token_csi_decisions_total{call="issue",decision="refused",reason="USER_DENIED"}"#;
    let issued = r#"hadoop_token_csi_tokens_issued_total{cluster="main"}"#;
    let before = get("/metrics").await?;
    let pod = bed.kubernetes().run(&Draft::new("counted").token_of("etl")).await?;
    let refused = bed.kubernetes().create(&Draft::new("refused").token_of("hdfs")).await?;
    refused.until_event("[USER_DENIED]", EVENT_LIMIT).await?;
    let after = get("/metrics").await?;
    for name in [granted, denied, issued] {
        let (was, is) = (number(&before, name), number(&after, name));
        ensure!(is > was, "{name} was {was} and is {is}");
    }
    let timed = "hadoop_token_csi_call_seconds_bucket{";
    ensure!(after.contains(timed), "no {timed} in {after}");
    // Node plugins take their time to come back to a controller that has just started.
    until("listening: the node plugin", WATCH_LIMIT, async || {
        let open = number(&get("/metrics").await?, "hadoop_token_csi_open_watches");
        ensure!(open == 1, "{open} watches are open");
        Ok(())
    })
    .await?;
    let uid = pod.uid().await?;
    let told = [pod.name(), &uid, "etl", "default"].map(|name| after.contains(&format!("\"{name}\"")));
    ensure!(!told.contains(&true), "a label names a pod, a user or a namespace: {after}");
    ensure!(!product.audit().await?.is_empty(), "the log on standard output is empty");
    refused.delete(GONE_LIMIT).await?;
    pod.delete(GONE_LIMIT).await
}

/// A metric's value; 0, if it is not there yet.
fn number(metrics: &str, name: &str) -> u64 {
    let value = metrics.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

/// What the controller's health address answers, with its head.
async fn get(path: &str) -> Result<String> {
    let host = CONTROLLER.split(':').next().unwrap_or_default();
    let mut stream = TcpStream::connect((host, 9809)).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
