//! Each program is killed once at each point between two steps that outlive it. No token is lost, nothing is left, and
//! every pod works in the end. The whole matrix, with the other program or both killed, is `make torture`'s.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    harness::Test,
    matrix::{Fault, Occasion, SIDES, STEPS, Victim},
    pod::Draft,
    progress::say,
    reckoning::Reckoning,
};

use crate::GONE_LIMIT;

/// From the last fault to the last token's end: a lost token is looked for when its request must be over.
const SETTLE_LIMIT: Duration = Duration::from_secs(240);

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![
        a_reckoning_finds_what_no_living_pod_has,
        kills_while_pods_start_lose_no_token_and_leave_nothing,
        kills_while_tokens_are_renewed_lose_no_token_and_leave_nothing,
        kills_while_tokens_are_replaced_lose_no_token_and_leave_nothing,
        kills_while_a_spoilt_record_is_put_aside_lose_no_token_and_leave_nothing,
        kills_while_pods_end_lose_no_token_and_leave_nothing,
    ]
}

async fn a_reckoning_finds_what_no_living_pod_has(bed: &Bed) -> Result<()> {
    let (reckoning, product) = (Reckoning::begin(bed).await?, bed.product().await?);
    let pod = bed.kubernetes().run(&Draft::new("reckoned").token_of("etl")).await?;
    let account = reckoning.closes(SETTLE_LIMIT).await?;
    ensure!((account.issued, account.held) == (1, 1), "{account}");

    product.stop_controller().await?;
    let found = async {
        pod.delete(GONE_LIMIT).await?;
        Ok((reckoning.settles(Duration::ZERO).await, reckoning.tries_all().await))
    };
    let found: Result<_> = found.await;
    product.start_controller().await?;
    let (left, worked) = found?;
    let left = format!("{:#}", left.err().context("nothing was left")?);
    for what in ["issued for default/reckoned", "ledger object default/reckoned-", "record /var/lib/kubelet/"]
    {
        ensure!(left.contains(what), "{what} is not said: {left}");
    }
    let worked = format!("{:#}", worked.err().context("no token worked")?);
    ensure!(worked.contains("issued for default/reckoned, still worked"), "{worked}");

    let account = reckoning.closes(SETTLE_LIMIT).await?;
    ensure!((account.issued, account.unknown) == (1, 1), "{account}");
    Ok(())
}

async fn kills_while_pods_start_lose_no_token_and_leave_nothing(bed: &Bed) -> Result<()> {
    survives(bed, Occasion::Start).await
}

async fn kills_while_tokens_are_renewed_lose_no_token_and_leave_nothing(bed: &Bed) -> Result<()> {
    bed.private().await?;
    survives(bed, Occasion::Renewal).await
}

async fn kills_while_tokens_are_replaced_lose_no_token_and_leave_nothing(bed: &Bed) -> Result<()> {
    survives(bed, Occasion::Rotation).await
}

async fn kills_while_a_spoilt_record_is_put_aside_lose_no_token_and_leave_nothing(bed: &Bed) -> Result<()> {
    survives(bed, Occasion::SpoiltRecord).await
}

async fn kills_while_pods_end_lose_no_token_and_leave_nothing(bed: &Bed) -> Result<()> {
    survives(bed, Occasion::End).await
}

async fn survives(bed: &Bed, occasion: Occasion) -> Result<()> {
    let reckoning = Reckoning::begin(bed).await?;
    let mut pods = Vec::new();
    for point in STEPS.into_iter().filter(|point| point.occasion == occasion) {
        for side in SIDES {
            pods.extend(Fault { point, side, victim: Victim::Own }.strike(&reckoning).await?);
        }
    }
    // What living pods do not have must be gone before they end.
    reckoning.settles(SETTLE_LIMIT).await?;
    for pod in pods {
        pod.delete(GONE_LIMIT).await?;
    }
    say(reckoning.closes(SETTLE_LIMIT).await?);
    Ok(())
}
