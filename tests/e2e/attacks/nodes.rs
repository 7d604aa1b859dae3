//! Attackers who own a node, or hold what they found on one.

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    pod::Draft,
    product::NAMESPACE,
    second_node::SecondNode,
    users::{Bound, JOBS, ROBOT, service_account_token},
};
use proto::{CONTROLLER_AUDIENCE, POD_AUDIENCE, token::v1::IssueRequest};

use super::stage::{Prey, Stage, refusal, refused, stolen_driver_token};
use crate::GONE_LIMIT;

const DRIVER_ACCOUNT: &str = "hadoop-token-csi-driver";

pub(super) async fn a_node_gets_tokens_for_pods_scheduled_on_it_and_no_others(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let kubernetes = bed.kubernetes();
    let second = SecondNode::join(kubernetes).await?;
    let etl = stage.users.etl.clone();
    let here = kubernetes.create_as(etl.clone(), &Draft::new("here").namespace(JOBS).token_of("etl")).await?;
    let there =
        second.create_as(kubernetes, etl, &Draft::new("there").namespace(JOBS).token_of("etl")).await?;
    here.until_running(GONE_LIMIT).await?;
    let first_driver = stage.service.with(&stolen_driver_token(bed).await?)?;
    let second_driver = stage.service.with(&second.driver_token)?;
    let (at_here, at_there) =
        (Prey::of(&kubernetes.client(), &here).await?, Prey::of(&second.kubelet, &there).await?);
    let before = stage.issued()?;

    // Even with the pod's own token in hand.
    refused(&second_driver, at_here.issue(), "a pod of another node", "NODE_MISMATCH").await?;
    refused(&first_driver, at_there.issue(), "the other way round", "NODE_MISMATCH").await?;
    let named = Prey { jwt: at_there.jwt.clone(), ..at_here.clone() };
    refused(&second_driver, named.issue(), "another pod named", "POD_TOKEN_OF_ANOTHER_POD").await?;
    let half = Prey { name: at_there.name.clone(), ..named.clone() };
    refused(&second_driver, half.issue(), "another UID", "POD_TOKEN_OF_ANOTHER_POD").await?;
    let half = Prey { name: at_here.name.clone(), ..at_there.clone() };
    refused(&second_driver, half.issue(), "another name", "POD_TOKEN_OF_ANOTHER_POD").await?;
    // The API server gives a node no token of another's pods, nor one of a pod that is not there yet.
    let stolen = Prey::of(&second.kubelet, &here).await.err().context("a node got another's token")?;
    ensure!(format!("{stolen:#}").contains("Forbidden"), "{stolen:#}");
    ensure!(stage.issued()? == before, "a token was issued all the same");

    // It was for nothing else that these were refused.
    let issued = second_driver.clone().issue(at_there.issue()).await?.into_inner();
    ensure!(issued.user == "etl", "a token of {}", issued.user);
    let sabotage = first_driver.clone().release(at_there.release(issued.clone())).await;
    refusal(sabotage, "the end of a token on another node", "POD_ON_ANOTHER_NODE")?;
    second_driver.clone().release(at_there.release(issued)).await?;

    second.forget(JOBS, there.name()).await?;
    second.leave().await?;
    here.delete(GONE_LIMIT).await?;
    stage.ends().await
}

pub(super) async fn only_the_node_plugins_own_bound_token_makes_a_caller(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let (kubernetes, administrator) = (bed.kubernetes(), bed.kubernetes().client());
    let draft = Draft::new("pod-of-etl").namespace(JOBS).token_of("etl");
    let pod = kubernetes.create_as(stage.users.etl.clone(), &draft).await?;
    pod.until_running(GONE_LIMIT).await?;
    let prey = Prey::of(&administrator, &pod).await?;
    let before = stage.issued()?;
    let own = Bound::Pod { name: &prey.name, uid: &prey.uid };
    let driver = stolen_driver_token(bed).await?;

    let intruder = &stage.users.intruder;
    let robot = service_account_token(intruder, JOBS, ROBOT, CONTROLLER_AUDIENCE, Bound::Nothing).await?;
    let account = service_account_token(&administrator, JOBS, "default", CONTROLLER_AUDIENCE, own).await?;
    let unbound =
        service_account_token(&administrator, NAMESPACE, DRIVER_ACCOUNT, CONTROLLER_AUDIENCE, Bound::Nothing)
            .await?;
    let stray =
        service_account_token(&administrator, NAMESPACE, DRIVER_ACCOUNT, POD_AUDIENCE, Bound::Nothing)
            .await?;
    let (head, body) = driver.rsplit_once('.').context("no JWT")?;
    let forged = format!("{head}.{}", body.chars().rev().collect::<String>());
    for (shown, what, reason) in [
        (robot.as_str(), "a token that a user may have made", "CALLER_NOT_DRIVER"),
        (&account, "a token of the pod's account for the driver's audience", "CALLER_NOT_DRIVER"),
        (&unbound, "a token of the driver's account bound to nothing", "DRIVER_TOKEN_UNBOUND"),
        (&stray, "a token of the driver's account for another audience", "DRIVER_TOKEN_REJECTED"),
        (&prey.jwt, "the pod's own token", "DRIVER_TOKEN_REJECTED"),
        (&forged, "a token with another signature", "DRIVER_TOKEN_REJECTED"),
        ("eyJhbGciOiJub25lIn0.e30.", "an unsigned token", "DRIVER_TOKEN_REJECTED"),
        ("x", "no token at all", "DRIVER_TOKEN_REJECTED"),
    ] {
        refused(&stage.service.with(shown)?, prey.issue(), what, reason).await?;
    }
    refused(&stage.service.with_nothing(), prey.issue(), "no header", "DRIVER_TOKEN_MISSING").await?;

    let caller = stage.service.with(&driver)?;
    let loose = service_account_token(intruder, JOBS, "default", POD_AUDIENCE, Bound::Nothing).await?;
    let elsewhere = service_account_token(intruder, JOBS, "default", "somebody.else", own).await?;
    for (shown, what, reason) in [
        (loose.as_str(), "a pod's token that is bound to nothing", "POD_TOKEN_UNBOUND"),
        (&elsewhere, "a pod's token for another audience", "POD_TOKEN_REJECTED"),
        (&driver, "the driver's token as the pod's", "POD_TOKEN_REJECTED"),
        (&robot, "a token of another account as the pod's", "POD_TOKEN_REJECTED"),
        ("", "no pod's token", "POD_TOKEN_MISSING"),
    ] {
        let request = IssueRequest { pod_token: shown.to_owned(), ..prey.issue() };
        refused(&caller, request, what, reason).await?;
    }
    ensure!(stage.issued()? == before, "a token was issued all the same");
    pod.delete(GONE_LIMIT).await?;
    stage.ends().await
}
