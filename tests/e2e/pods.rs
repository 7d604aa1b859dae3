//! Pods in all the states a pod can be in when somebody asks for its token: finished, ending, replaced by another of
//! its name, with an address that another has or had, in the node's network, or never seen by the API server.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    harness::Test,
    host::NODE_NAME,
    pod::Running,
    process::until,
    second_node::SecondNode,
    users::{Bound, JOBS, service_account_token},
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use proto::{
    POD_AUDIENCE,
    token::v1::{
        CheckRequest, CheckResponse, IssueResponse, ObservedAddresses, RenewRequest, Renewal,
        check_response::Outcome, renewal_outcome::Outcome as RenewalResult,
    },
};
use serde_json::json;
use tonic::Status;

use crate::{
    GONE_LIMIT,
    attacks::stage::{Lair, Prey, Stage, draft, identifier, refusal, refused, sealed, stolen_driver_token},
};

/// An address of the pods' network that the bed gives to nobody while tests run.
const ADDRESS: &str = "10.244.0.251";
const ANOTHER: &str = "10.244.0.252";
/// Longer than the controller waits for API server and node to agree on a pod's addresses.
const AGREE_LIMIT: Duration = Duration::from_secs(90);

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![
        a_finished_pod_gets_nothing_more,
        a_terminating_pod_gets_nothing_new_and_keeps_what_it_has,
        the_next_pod_of_a_name_gets_its_own_submitters_token,
        an_address_that_a_finished_pod_had_is_its_next_owners_alone,
        a_pod_whose_address_another_has_loses_its_token,
        a_pod_that_its_node_sees_elsewhere_loses_its_token,
        a_static_pod_gets_nothing,
    ]
}

async fn a_finished_pod_gets_nothing_more(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let done = sealed(bed.kubernetes().sealing_key(), draft("done").script("true"), "etl")?;
    let pod = bed.kubernetes().create_as(stage.users.etl.clone(), &done).await?;
    pod.until_succeeded(GONE_LIMIT).await?;
    let driver = stage.service.with(&stolen_driver_token(bed).await?)?;
    let prey = Prey::of(&bed.kubernetes().client(), &pod).await?;
    refused(&driver, prey.issue(), "a finished pod", "POD_FINISHED").await?;
    ensure!(stage.issued()? == 1, "it got another token");
    pod.delete(GONE_LIMIT).await?;
    stage.ends().await
}

async fn a_terminating_pod_gets_nothing_new_and_keeps_what_it_has(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let lair = Lair::of(&stage).await?;
    let slow = draft("slow").set("/spec/terminationGracePeriodSeconds", json!(600));
    let prey = lair.create(&sealed(bed.kubernetes().sealing_key(), slow, "etl")?).await?;
    let answer = lair.caller().clone().issue(prey.issue()).await?.into_inner();
    let pods: Api<Pod> = Api::namespaced(stage.users.etl.clone(), JOBS);
    pods.delete("slow", &DeleteParams::default()).await?;
    refused(lair.caller(), prey.issue(), "a terminating pod", "POD_TERMINATING").await?;
    // It may have a day of work to write out.
    let renewal = Renewal {
        volume: Some(prey.volume()),
        pod_token: prey.jwt.clone(),
        cluster: answer.cluster.clone(),
        tokens: answer.tokens.iter().filter_map(|issued| issued.token.clone()).collect(),
    };
    let renewed = lair.caller().clone().renew(RenewRequest { renewals: vec![renewal] }).await?.into_inner();
    let outcome = renewed.outcomes.first().and_then(|outcome| outcome.outcome.as_ref());
    ensure!(matches!(outcome, Some(RenewalResult::Renewed(_))), "{renewed:?}");
    let kept = check(&lair, &prey, &answer, None).await?;
    ensure!(matches!(kept.outcome, Some(Outcome::Kept(_))), "{kept:?}");
    lair.caller().clone().release(prey.release(answer)).await?;
    lair.forget(&prey).await?;
    lair.leave().await
}

async fn the_next_pod_of_a_name_gets_its_own_submitters_token(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let key = bed.kubernetes().sealing_key();
    for (client, user) in [(&stage.users.ads, "ads"), (&stage.users.etl, "etl")] {
        let pod = bed.kubernetes().create_as(client.clone(), &sealed(key, draft("again"), user)?).await?;
        pod.until_running(GONE_LIMIT).await?;
        pod.delete(GONE_LIMIT).await?;
    }
    let owners = stage.owners()?;
    ensure!(owners == ["ads", "etl"], "tokens of {owners:?} were issued");
    stage.ends().await
}

/// Writes a pod's state, as kubelet does.
async fn report(bed: &Bed, pod: &Prey, phase: &str, address: &str) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(bed.kubernetes().client(), &pod.namespace);
    let status = json!({"status": {"phase": phase, "podIP": address, "podIPs": [{"ip": address}]}});
    pods.patch_status(&pod.name, &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

/// Asks whether the pod may keep what it was issued, when its node sees it at `seen`.
async fn check(
    lair: &Lair<'_>,
    pod: &Prey,
    issued: &IssueResponse,
    seen: Option<&str>,
) -> Result<CheckResponse, Status> {
    let observed = |address: &str| ObservedAddresses {
        addresses: vec![address.to_owned()],
        ..ObservedAddresses::default()
    };
    let request = CheckRequest {
        volume: Some(pod.volume()),
        pod_token: pod.jwt.clone(),
        cluster: issued.cluster.clone(),
        tokens: issued.tokens.iter().filter_map(|issued| issued.token.clone()).map(identifier).collect(),
        addresses: seen.map(observed),
    };
    lair.caller().clone().check(request).await.map(tonic::Response::into_inner)
}

fn verified(response: &CheckResponse) -> bool {
    matches!(&response.outcome, Some(Outcome::Kept(kept)) if kept.addresses_verified)
}

/// The tokens are cancelled, for this reason.
fn revoked(response: CheckResponse, reason: &str) -> Result<()> {
    match response.outcome {
        Some(Outcome::Revoked(revoked)) if revoked.reason == reason => Ok(()),
        other => anyhow::bail!("{other:?} instead of {reason}"),
    }
}

async fn an_address_that_a_finished_pod_had_is_its_next_owners_alone(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let lair = Lair::of(&stage).await?;
    let key = bed.kubernetes().sealing_key();
    let done = lair.create(&sealed(key, draft("had-it"), "ads")?).await?;
    report(bed, &done, "Running", ADDRESS).await?;
    let old = lair.caller().clone().issue(done.issue()).await?.into_inner();
    ensure!(verified(&check(&lair, &done, &old, Some(ADDRESS)).await?), "not verified");
    report(bed, &done, "Succeeded", ADDRESS).await?;

    let next = lair.create(&sealed(key, draft("has-it"), "etl")?).await?;
    let answer = lair.caller().clone().issue(next.issue()).await?.into_inner();
    let early = check(&lair, &next, &answer, Some(ADDRESS)).await;
    refusal(early, "an address that the API server does not know", "ADDRESS_UNKNOWN")?;
    report(bed, &next, "Running", ADDRESS).await?;
    ensure!(verified(&check(&lair, &next, &answer, Some(ADDRESS)).await?), "not verified");
    // Who had it gets nothing by it any more, and loses what he had.
    refused(lair.caller(), done.issue(), "a finished pod", "POD_FINISHED").await?;
    revoked(check(&lair, &done, &old, Some(ADDRESS)).await?, "POD_FINISHED")?;

    lair.caller().clone().release(next.release(answer)).await?;
    lair.forget(&done).await?;
    lair.forget(&next).await?;
    lair.leave().await
}

async fn a_pod_whose_address_another_has_loses_its_token(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let lair = Lair::of(&stage).await?;
    let key = bed.kubernetes().sealing_key();
    let first = lair.create(&sealed(key, draft("first"), "etl")?).await?;
    report(bed, &first, "Running", ADDRESS).await?;
    let answer = lair.caller().clone().issue(first.issue()).await?.into_inner();
    ensure!(verified(&check(&lair, &first, &answer, Some(ADDRESS)).await?), "not verified");

    // One that ends will not have it much longer; one that lives is a mistake of the network, or an attack.
    let ending = lair.create(&draft("ending").set("/spec/terminationGracePeriodSeconds", json!(600))).await?;
    report(bed, &ending, "Running", ADDRESS).await?;
    let pods: Api<Pod> = Api::namespaced(bed.kubernetes().client(), JOBS);
    pods.delete("ending", &DeleteParams::default()).await?;
    until("seen: the ending pod", GONE_LIMIT, async || {
        let answer = check(&lair, &first, &answer, Some(ADDRESS)).await;
        refusal(answer, "an address that is being given up", "ADDRESS_CHANGING").map(drop)
    })
    .await?;
    lair.forget(&ending).await?;
    let living = lair.create(&draft("living")).await?;
    report(bed, &living, "Running", ADDRESS).await?;
    until("taken away: the token", GONE_LIMIT, async || {
        revoked(check(&lair, &first, &answer, Some(ADDRESS)).await?, "ADDRESS_OF_ANOTHER_POD")
    })
    .await?;
    stage.audited(&[(first.uid.clone(), "ADDRESS_OF_ANOTHER_POD".to_owned())]).await?;
    lair.forget(&living).await?;
    lair.forget(&first).await?;
    lair.leave().await
}

async fn a_pod_that_its_node_sees_elsewhere_loses_its_token(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let lair = Lair::of(&stage).await?;
    let moved = lair.create(&sealed(bed.kubernetes().sealing_key(), draft("moved"), "etl")?).await?;
    report(bed, &moved, "Running", ADDRESS).await?;
    let answer = lair.caller().clone().issue(moved.issue()).await?.into_inner();
    let early = check(&lair, &moved, &answer, Some(ANOTHER)).await;
    refusal(early, "an address that may yet be reported", "ADDRESS_CHANGING")?;
    until("taken away: the token", AGREE_LIMIT, async || {
        revoked(check(&lair, &moved, &answer, Some(ANOTHER)).await?, "ADDRESS_MISMATCH")
    })
    .await?;
    stage.audited(&[(moved.uid.clone(), "ADDRESS_MISMATCH".to_owned())]).await?;
    lair.forget(&moved).await?;
    lair.leave().await
}

async fn a_static_pod_gets_nothing(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let kubernetes = bed.kubernetes();
    let pod = sealed(kubernetes.sealing_key(), draft("static"), "etl")?;
    // One that kubelet reads from a file it does not even start.
    let (file, whole) = (kubernetes.static_pods().join("static.json"), bed.state().join("static.json"));
    fs::write(&whole, pod.json().to_string())?;
    fs::rename(&whole, &file)?; // else it might be read half
    let refused = "static pods may not reference csidrivers";
    let logged = kubernetes.kubelet().until_logged(refused, GONE_LIMIT).await;
    fs::remove_file(&file)?;
    logged?;
    ensure!(kubernetes.pod(JOBS, &format!("static-{NODE_NAME}")).get().await.is_err(), "it was started");

    // One that an attacker only says is static cannot have what a node plugin would have to show.
    let mirror = pod.annotation("kubernetes.io/config.mirror", "0123456789abcdef");
    let second = SecondNode::join(kubernetes).await?;
    let by_node = second.create_as(kubernetes, second.kubelet.clone(), &mirror).await;
    let by_node = format!("{:#}", by_node.err().context("a node wrote a pod with a CSI volume")?);
    ensure!(by_node.contains("Forbidden"), "{by_node}");
    let by_user = second.create_as(kubernetes, stage.users.intruder.clone(), &mirror).await?;
    let token =
        service_account_token_of(bed, &by_user).await.err().context("it has a service-account token")?;
    ensure!(format!("{token:#}").contains("cannot bind token"), "{token:#}");
    ensure!(stage.issued()? == 0, "it got a token");
    second.forget(JOBS, by_user.name()).await?;
    second.leave().await?;
    stage.ends().await
}

/// A token of the account that pods have when they name none, bound to a pod.
async fn service_account_token_of(bed: &Bed, pod: &Running) -> Result<String> {
    let uid = pod.uid().await?;
    let bound = Bound::Pod { name: pod.name(), uid: &uid };
    service_account_token(&bed.kubernetes().client(), JOBS, "default", POD_AUDIENCE, bound).await
}
