//! Users, groups and headless accounts by a real LDAP server: every way to connect and bind, what is odd in a
//! directory, and a directory that is away, frozen or restarted while pods are created.

mod answers;
mod outages;
mod setup;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    harness::Test,
    namenode::{Cluster, TokenAction, TokenEvent, private_content},
    pod::{Draft, Running},
    process::until,
};

use crate::GONE_LIMIT;

const EVENT_LIMIT: Duration = Duration::from_secs(60);
/// How often volumes are checked in the test of removed members.
const RECHECK: Duration = Duration::from_secs(5);
/// From the removal to the end of the token: a check, what the controller remembers of the directory, and the work.
const REVOKED_LIMIT: Duration = Duration::from_secs(5 + 2 + 20);

pub(crate) fn tests() -> Vec<Test> {
    [
        answers::tests(),
        bed::tests![
            a_member_runs_as_the_headless_account,
            a_member_of_a_member_group_runs_as_the_headless_account,
            who_is_no_member_does_not_run_as_the_headless_account,
            nobody_runs_as_hdfs_not_even_a_member_of_its_group,
            nobody_runs_as_a_user_whom_the_directory_does_not_know,
            a_removed_member_loses_the_headless_token,
        ],
        outages::tests(),
    ]
    .concat()
}

async fn a_member_runs_as_the_headless_account(bed: &Bed) -> Result<()> {
    let pod = bed.kubernetes().run(&Draft::new("headless").token_of("etl").do_as("batch")).await?;
    ensure!(owners(bed, &pod)? == ["batch"]);
    let read = pod.hdfs_native(Cluster::Main, &["cat", "/user/batch/private.txt"]).await?.success()?;
    ensure!(read == private_content(Cluster::Main, "batch"), "{read:?}");
    pod.hdfs_native(Cluster::Main, &["cat", "/user/etl/private.txt"]).await?.failure()?;
    pod.delete(GONE_LIMIT).await
}

async fn a_member_of_a_member_group_runs_as_the_headless_account(bed: &Bed) -> Result<()> {
    let pod = bed.kubernetes().run(&Draft::new("nested").token_of("ads").do_as("reports")).await?;
    ensure!(owners(bed, &pod)? == ["reports"]);
    pod.delete(GONE_LIMIT).await
}

async fn who_is_no_member_does_not_run_as_the_headless_account(bed: &Bed) -> Result<()> {
    for (name, user, account) in [("not-batch", "ads", "batch"), ("not-reports", "etl", "reports")] {
        refused(bed, &Draft::new(name).token_of(user).do_as(account), "DO_AS_NOT_MEMBER").await?;
    }
    Ok(())
}

async fn nobody_runs_as_hdfs_not_even_a_member_of_its_group(bed: &Bed) -> Result<()> {
    refused(bed, &Draft::new("as-hdfs").token_of("operator").do_as("hdfs"), "USER_DENIED").await
}

async fn nobody_runs_as_a_user_whom_the_directory_does_not_know(bed: &Bed) -> Result<()> {
    refused(bed, &Draft::new("unknown").token_of("nobody-knows"), "USER_UNKNOWN").await?;
    // LDAP finds him; Hadoop knows another one.
    refused(bed, &Draft::new("shouted").token_of("ETL"), "USER_UNKNOWN").await?;
    refused(bed, &Draft::new("twin").token_of("twin"), "twin is two entries").await
}

async fn a_removed_member_loses_the_headless_token(bed: &Bed) -> Result<()> {
    let directory = bed.directory().await?;
    let often = |configuration: &mut serde_json::Value| {
        if let Some(keys) = configuration.as_object_mut() {
            keys.insert("recheckSeconds".to_owned(), RECHECK.as_secs().into());
        }
    };
    let test = async || {
        let pod = bed.kubernetes().run(&Draft::new("removed").token_of("etl").do_as("batch")).await?;
        let own = bed.kubernetes().run(&Draft::new("unmoved").token_of("etl")).await?;
        tokio::time::sleep(RECHECK * 2).await;
        ensure!(cancelled(bed, &pod)?.is_empty(), "a member has lost the token");

        directory.remove_member("batch", "etl").await?;
        let end = until("cancelled: the token of who is no member any more", REVOKED_LIMIT, async || {
            ensure!(cancelled(bed, &pod)?.len() == 1, "it is not cancelled");
            Ok(())
        });
        let end = end.await;
        directory.add_member("batch", "etl").await?;
        end?;
        pod.until_event("DO_AS_NOT_MEMBER", EVENT_LIMIT).await?;
        until("gone: the token's file", EVENT_LIMIT, async || {
            pod.exec(&["cat", bed::pod::TOKEN_FILE]).await?.failure().map(drop)
        })
        .await?;
        let told = pod.exec(&["cat", "/etc/hadoop-token/token.json"]).await?.success()?;
        ensure!(told.contains("DO_AS_NOT_MEMBER"), "token.json says {told}");
        ensure!(cancelled(bed, &own)?.is_empty(), "the other token is gone too");
        pod.delete(GONE_LIMIT).await?;
        own.delete(GONE_LIMIT).await
    };
    bed.product().await?.with_controller(often, test).await
}

/// What the NameNode was asked for on a pod's behalf, and did.
fn events(bed: &Bed, pod: &Running, action: TokenAction) -> Result<Vec<TokenEvent>> {
    let name = format!("default/{}", pod.name());
    let events =
        bed.main().token_events()?.into_iter().filter(|event| event.allowed && event.action == action);
    Ok(events.filter(|event| event.pod() == Some(&name)).collect())
}

/// The tokens that were issued for a pod.
fn issued(bed: &Bed, pod: &Running) -> Result<Vec<TokenEvent>> {
    events(bed, pod, TokenAction::Issued)
}

/// Whose they are.
fn owners(bed: &Bed, pod: &Running) -> Result<Vec<String>> {
    Ok(issued(bed, pod)?.into_iter().filter_map(|event| event.owner).collect())
}

/// Those of them that were cancelled.
fn cancelled(bed: &Bed, pod: &Running) -> Result<Vec<TokenEvent>> {
    let issued: Vec<_> = issued(bed, pod)?.into_iter().map(|event| event.sequence_number).collect();
    let events = bed.main().token_events()?.into_iter();
    let ours = events.filter(|event| event.allowed && event.action == TokenAction::Cancelled);
    Ok(ours.filter(|event| issued.contains(&event.sequence_number)).collect())
}

/// The pod gets no token, and its event says why.
async fn refused(bed: &Bed, draft: &Draft, reason: &str) -> Result<()> {
    let pod = bed.kubernetes().create(draft).await?;
    pod.until_event(reason, EVENT_LIMIT).await?;
    let issued = issued(bed, &pod).context(reason.to_owned())?;
    ensure!(issued.is_empty(), "{reason}, but {issued:?}");
    pod.delete(GONE_LIMIT).await
}
