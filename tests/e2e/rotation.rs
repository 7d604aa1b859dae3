//! Tokens that live for a minute and a half: a pod outlives them, and nobody notices when they are replaced.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    harness::Test,
    namenode::{Cluster, TokenAction, TokenEvent, private_content},
    pod::{Draft, Running, TOKEN_FILE},
    process::until,
    reading::across_rotations,
};
use identity::ROTATE_ANNOTATION;
use serde_json::{Value, json};

use crate::{
    GONE_LIMIT,
    objects::{annotate, number, of_pod, the_one_of},
    promptness::Cancels,
    tally::Tally,
};

/// Longer than one of the private cluster's tokens lives, which is 90 s. They are replaced after a quarter of that: the
/// client does not use one that ends within a minute.
const SHORT: Duration = Duration::from_secs(110);
const ROTATIONS: usize = 3;
/// From the word to the other token.
const ROTATED_LIMIT: Duration = Duration::from_secs(20);
/// How long nothing more must happen.
const SILENCE: Duration = Duration::from_secs(3);

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![
        a_pod_reads_on_across_rotations_and_its_file_is_always_whole,
        an_annotation_has_a_token_replaced_once_and_its_predecessor_lives_until_the_pod_ends,
        who_is_no_member_any_more_gets_no_new_token_and_loses_the_old_one,
        who_is_no_member_any_more_keeps_the_old_token_where_it_may_expire,
    ]
}

async fn a_pod_reads_on_across_rotations_and_its_file_is_always_whole(bed: &Bed) -> Result<()> {
    bed.private().await?;
    across_rotations(bed, "reads-on", Cluster::Private, SHORT, ROTATIONS).await
}

async fn an_annotation_has_a_token_replaced_once_and_its_predecessor_lives_until_the_pod_ends(
    bed: &Bed,
) -> Result<()> {
    let tally = Tally::begin(bed.main()).await?;
    let cancels = Cancels::follow(bed.main())?;
    let pod = bed.kubernetes().run(&Draft::new("replaced").token_of("etl")).await?;
    let (uid, first) = (pod.uid().await?, pod.read(TOKEN_FILE).await?);
    let predecessor = the_one_of(bed, &uid).await?;
    annotate(bed, &predecessor, ROTATE_ANNOTATION, "now").await?;
    let second = until_other_than(&pod, &first).await?;
    let objects = of_pod(bed, &uid).await?;
    ensure!(objects.len() == 2, "{} objects: {objects:?}", objects.len());
    let json = summary(&pod).await?;
    let shown = json.pointer("/tokens/0/sequenceNumber").and_then(Value::as_u64);
    let successor = objects.iter().map(number).collect::<Result<Vec<_>>>()?;
    let successor = successor.into_iter().max().context("no objects")?;
    ensure!(shown == Some(successor.into()), "token {successor}, and token.json says {json}");

    // Who still has the old one open goes on, and the same word is heard once.
    annotate(bed, &predecessor, "example.com/unrelated", "now").await?;
    tokio::time::sleep(SILENCE).await;
    ensure!(pod.read(TOKEN_FILE).await? == second, "it was replaced again");
    let old = number(&predecessor)?;
    ensure!(cancels.of(old).is_empty(), "the predecessor was cancelled: {:?}", cancels.of(old));
    let file = bed.state().join("predecessor");
    std::fs::write(&file, &first)?;
    let client = bed.hdfs_as_nobody(Cluster::Main)?.env("HADOOP_TOKEN_FILE_LOCATION", &file);
    let client = client.args(["cat", "/user/etl/private.txt"]);
    ensure!(client.succeed().await? == private_content(Cluster::Main, "etl"));
    // Another value is another word, also on the other object.
    let objects = of_pod(bed, &uid).await?;
    let current = objects.iter().find(|object| number(object).is_ok_and(|number| number == successor));
    annotate(bed, current.context("the successor's object is gone")?, ROTATE_ANNOTATION, "again").await?;
    until_other_than(&pod, &second).await?;
    tally.ends_after(&[pod]).await?;
    client.output().await?.failure()?;
    std::fs::remove_file(&file)?;
    let issued = tally.events(TokenAction::Issued)?.len();
    ensure!(issued == 3, "{issued} tokens");
    until("gone: the objects", GONE_LIMIT, async || {
        let left = of_pod(bed, &uid).await?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await
}

async fn who_is_no_member_any_more_gets_no_new_token_and_loses_the_old_one(bed: &Bed) -> Result<()> {
    let (pod, tally) = without_the_right(bed, "no-member").await?;
    let lost = async {
        until("cancelled: the token", GONE_LIMIT, async || {
            let cancelled = tally.events(TokenAction::Cancelled)?.len();
            ensure!(cancelled == 1, "{cancelled} tokens were cancelled");
            Ok(())
        })
        .await?;
        until("gone: the file", GONE_LIMIT, async || {
            pod.exec(&["cat", TOKEN_FILE]).await?.failure().map(drop)
        })
        .await
    };
    let lost = lost.await;
    bed.directory().await?.add_member("batch", "etl").await?;
    lost?;
    tally.ends_after(&[pod]).await?;
    one_issued(&tally.events(TokenAction::Issued)?)
}

async fn who_is_no_member_any_more_keeps_the_old_token_where_it_may_expire(bed: &Bed) -> Result<()> {
    let policy = |configuration: &mut Value| {
        if let Some(users) = configuration.get_mut("users").and_then(Value::as_object_mut) {
            users.insert("onLostRight".to_owned(), json!("expire"));
        }
    };
    let test = async || {
        let (pod, tally) = without_the_right(bed, "may-expire").await?;
        let kept = async {
            tokio::time::sleep(SILENCE).await;
            let cancelled = tally.events(TokenAction::Cancelled)?;
            ensure!(cancelled.is_empty(), "{cancelled:?}");
            let read =
                pod.hdfs_native(Cluster::Main, &["cat", "/user/batch/private.txt"]).await?.success()?;
            ensure!(read == private_content(Cluster::Main, "batch"), "{read:?}");
            Ok(())
        };
        let kept = kept.await;
        bed.directory().await?.add_member("batch", "etl").await?;
        kept?;
        tally.ends_after(&[pod]).await?;
        one_issued(&tally.events(TokenAction::Issued)?)
    };
    bed.product().await?.with_controller(policy, test).await
}

/// A pod of the headless account whose submitter has just left its group, told to have its token replaced, and refused.
async fn without_the_right<'bed>(bed: &'bed Bed, name: &str) -> Result<(Running, Tally<'bed>)> {
    let directory = bed.directory().await?;
    let tally = Tally::begin(bed.main()).await?;
    let pod = bed.kubernetes().run(&Draft::new(name).token_of("etl").do_as("batch")).await?;
    let object = the_one_of(bed, &pod.uid().await?).await?;
    directory.remove_member("batch", "etl").await?;
    let refused = async {
        // The controller may remember the directory's last answer for a moment, and rotate once more.
        tokio::time::sleep(Duration::from_secs(3)).await;
        annotate(bed, &object, ROTATE_ANNOTATION, "now").await?;
        pod.until_event("DO_AS_NOT_MEMBER", GONE_LIMIT).await
    };
    let refused = refused.await;
    if refused.is_err() {
        directory.add_member("batch", "etl").await?;
    }
    refused?;
    Ok((pod, tally))
}

fn one_issued(issued: &[TokenEvent]) -> Result<()> {
    ensure!(issued.len() == 1, "a token was issued without the right to it: {issued:?}");
    Ok(())
}

async fn until_other_than(pod: &Running, token: &[u8]) -> Result<Vec<u8>> {
    until("replaced: the token", ROTATED_LIMIT, async || {
        let now = pod.read(TOKEN_FILE).await?;
        ensure!(now != token, "it is the same token");
        Ok(now)
    })
    .await
}

/// `token.json`.
async fn summary(pod: &Running) -> Result<Value> {
    let json = pod.exec(&["cat", "/etc/hadoop-token/token.json"]).await?.success()?;
    serde_json::from_str(&json).with_context(|| format!("not JSON: {json}"))
}
