//! A token that must be renewed once a minute outlives that minute, in place.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    harness::Test,
    namenode::{Cluster, private_content},
    pod::{Draft, Running, TOKEN_FILE},
    process::until,
};
use serde_json::Value;

use crate::{GONE_LIMIT, publish::Token};

const RENEWAL_LIMIT: Duration = Duration::from_secs(90);

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![a_token_is_renewed_in_place_and_outlives_its_renew_interval]
}

async fn a_token_is_renewed_in_place_and_outlives_its_renew_interval(bed: &Bed) -> Result<()> {
    let pod = bed.kubernetes().run(&Draft::new("renewed").token_of("etl")).await?;
    let (file, first) = (pod.read(TOKEN_FILE).await?, renew_date(&pod).await?);
    let token = Token::of(bed, &pod)?;
    let before = token.renewals()?;
    until("past the first renew date", RENEWAL_LIMIT, async || {
        let now = jiff::Timestamp::now();
        ensure!(now > first, "{now} is before {first}");
        Ok(())
    })
    .await?;
    ensure!(token.renewals()? > before, "the NameNode has renewed nothing");
    ensure!(renew_date(&pod).await? > first, "token.json should tell the new date");
    ensure!(pod.read(TOKEN_FILE).await? == file, "renewing changes no byte of the token");
    let read = pod.hdfs_native(Cluster::Main, &["cat", "/user/etl/private.txt"]).await?.success()?;
    ensure!(read == private_content(Cluster::Main, "etl"), "read {read:?}");
    pod.delete(GONE_LIMIT).await
}

async fn renew_date(pod: &Running) -> Result<jiff::Timestamp> {
    let json = pod.exec(&["cat", "/etc/hadoop-token/token.json"]).await?.success()?;
    let json: Value = serde_json::from_str(&json).with_context(|| format!("not JSON: {json}"))?;
    let date = json.pointer("/tokens/0/renewDate").and_then(Value::as_str).context("no renewDate")?;
    Ok(date.parse()?)
}
