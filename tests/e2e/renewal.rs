//! A token that must be renewed once a minute outlives that minute, in place.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bed::{
    Bed,
    harness::Test,
    namenode::{Cluster, TokenAction, private_content},
    pod::{Draft, Running, TOKEN_FILE},
    process::until,
};
use hadoop::token_file::TokenFile;
use serde_json::Value;

use crate::GONE_LIMIT;

const RENEWAL_LIMIT: Duration = Duration::from_secs(90);

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![a_token_is_renewed_in_place_and_outlives_its_renew_interval]
}

async fn a_token_is_renewed_in_place_and_outlives_its_renew_interval(bed: &Bed) -> Result<()> {
    let pod = bed.kubernetes().run(&Draft::new("renewed").token_of("etl")).await?;
    let (file, first) = (token_file(&pod).await?, renew_date(&pod).await?);
    let number = sequence_number(&file)?;
    let renewals = || -> Result<usize> {
        let events = bed.main().token_events()?;
        let ours = events.iter().filter(|event| event.sequence_number == Some(number));
        Ok(ours.filter(|event| event.action == TokenAction::Renewed && event.allowed).count())
    };
    let before = renewals()?;
    until("past the first renew date", RENEWAL_LIMIT, async || {
        let now = jiff::Timestamp::now();
        ensure!(now > first, "{now} is before {first}");
        Ok(())
    })
    .await?;
    ensure!(renewals()? > before, "the NameNode has renewed nothing");
    ensure!(renew_date(&pod).await? > first, "token.json should tell the new date");
    ensure!(token_file(&pod).await? == file, "renewing changes no byte of the token");
    let read = pod.hdfs_native(Cluster::Main, &["cat", "/user/etl/private.txt"]).await?.success()?;
    ensure!(read == private_content(Cluster::Main, "etl"), "read {read:?}");
    pod.delete(GONE_LIMIT).await
}

async fn token_file(pod: &Running) -> Result<Vec<u8>> {
    let text = pod.exec(&["base64", TOKEN_FILE]).await?.success()?;
    BASE64_STANDARD.decode(text.replace('\n', "")).context("the token file did not come whole")
}

fn sequence_number(file: &[u8]) -> Result<u32> {
    let file = TokenFile::decode(file)?;
    let (_, token) = file.tokens.first().context("the token file is empty")?;
    Ok(u32::try_from(token.decode_identifier()?.sequence_number)?)
}

async fn renew_date(pod: &Running) -> Result<jiff::Timestamp> {
    let json = pod.exec(&["cat", "/etc/hadoop-token/token.json"]).await?.success()?;
    let json: Value = serde_json::from_str(&json).with_context(|| format!("not JSON: {json}"))?;
    let date = json.pointer("/tokens/0/renewDate").and_then(Value::as_str).context("no renewDate")?;
    Ok(date.parse()?)
}
