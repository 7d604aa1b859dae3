//! What users and controllers notice while the webhook is away, is replaced, gets new certificates, dies, or has its
//! registrations emptied. Where it is asked all the time by several of them at once, each answer counts.

mod callers;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    harness::Test,
    image,
    namenode::Cluster,
    pod::{Draft, Running},
    process::until,
    progress::say,
    users::JOBS,
    webhook::{REGISTRATION, REGISTRATIONS, Webhook},
};
use identity::DRIVER_NAME;
use k8s_openapi::api::{
    apps::v1::Deployment,
    batch::v1::Job,
    core::v1::{Event, Pod, ServiceAccount},
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use self::callers::{Attempt, Callers, Outcome, until_clean};
use crate::{
    GONE_LIMIT,
    admission::{Scene, deployment, refused},
    tally::Tally,
};

const ELSEWHERE: &str = "elsewhere";
const START_LIMIT: Duration = Duration::from_secs(90);
/// What it says of a pod when the webhook was asked only after all mutation.
const NO_SEAL: &str = "it has a token volume, and it has no seal";
/// What the API server says when it cannot ask.
const NOT_ASKED: &str = "failed calling webhook";
/// Before and after something happens under load.
const CALM: Duration = Duration::from_secs(4);
/// From a replica's death to the last request that is refused for it: kubelet has to see it, and every API server to
/// hear of it.
const DEATH_LIMIT: Duration = Duration::from_secs(10);
/// From a registration's change to the last request that is not asked about: it is looked at every two seconds, and the API
/// server has to hear of it.
const REPAIR_LIMIT: Duration = Duration::from_secs(15);

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![
        while_it_is_away_only_what_has_a_token_waits_and_says_so,
        nothing_is_refused_while_replicas_and_certificates_are_replaced_under_load,
        a_killed_replica_costs_what_was_on_its_way_and_what_came_before_it_was_missed,
        registrations_that_are_emptied_under_load_are_filled_within_seconds,
    ]
}

/// Wants a token, and says nothing of its submitter.
fn draft(name: &str) -> Draft {
    Draft::new(name).namespace(JOBS).token_volume(&json!({"driver": DRIVER_NAME, "readOnly": true}))
}

/// The same, reading all the time what only etl may read.
fn reading(name: &str) -> Draft {
    let (client, url) = (image::HDFS_CLIENT, Cluster::Main.url());
    let read = format!("{client} --url {url} cat /user/etl/private.txt > /dev/null && echo read");
    draft(name).script(&format!("while :; do {read}; sleep 1; done"))
}

/// The pods of an app, which are not on their way out.
async fn pods_of(bed: &Bed, app: &str, number: usize) -> Result<Vec<Running>> {
    let pods: Api<Pod> = Api::namespaced(bed.kubernetes().client(), JOBS);
    let names = until(&format!("there: {number} pods of {app}"), START_LIMIT, async || {
        let mut found = pods.list(&ListParams::default().labels(&format!("app={app}"))).await?.items;
        found.retain(|pod| pod.metadata.deletion_timestamp.is_none());
        ensure!(found.len() == number, "there are {}", found.len());
        Ok(found.into_iter().filter_map(|pod| pod.metadata.name).collect::<Vec<_>>())
    })
    .await?;
    Ok(names.iter().map(|name| bed.kubernetes().pod(JOBS, name)).collect())
}

/// What controllers could not create, by the object for which they tried.
async fn not_created(bed: &Bed) -> Result<BTreeMap<String, String>> {
    let events: Api<Event> = Api::namespaced(bed.kubernetes().client(), JOBS);
    let failed = events.list(&ListParams::default().fields("reason=FailedCreate")).await?.items;
    let told = failed.into_iter().map(|event| {
        let (kind, name) = (event.involved_object.kind, event.involved_object.name);
        let object = format!("{}/{}", kind.unwrap_or_default(), name.unwrap_or_default());
        (object, event.message.unwrap_or_default())
    });
    Ok(told.collect())
}

async fn until_told(bed: &Bed, object: &str) -> Result<()> {
    until(&format!("told: that no pod can be made for {object}"), START_LIMIT, async || {
        let told = not_created(bed).await?;
        let message = told.iter().find(|(name, _)| name.starts_with(object)).map(|(_, message)| message);
        let message = message.with_context(|| format!("told: {told:?}"))?;
        ensure!(message.contains(NOT_ASKED) && message.contains(DRIVER_NAME), "told: {message}");
        Ok(())
    })
    .await
}

fn a_job(name: &str) -> Value {
    let pod = reading(name);
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": JOBS},
        "spec": {"template": {"metadata": {"labels": {"app": name}}, "spec": pod.json().get("spec")}},
    })
}

async fn while_it_is_away_only_what_has_a_token_waits_and_says_so(bed: &Bed) -> Result<()> {
    let tally = Tally::begin(bed.main()).await?;
    let (scene, webhook) = (Scene::set(bed).await?, bed.webhook().await?);
    let (etl, kubernetes) = (scene.users.etl.clone(), bed.kubernetes());
    let deployments: Api<Deployment> = Api::namespaced(etl.clone(), JOBS);
    let jobs: Api<Job> = Api::namespaced(etl.clone(), JOBS);
    let create = async |object: Value| {
        deployments
            .create(&PostParams::default(), &serde_json::from_value(object)?)
            .await
            .map_err(anyhow::Error::from)
    };
    create(deployment(&reading("waits"))).await?;
    jobs.create(&PostParams::default(), &serde_json::from_value(a_job("works"))?).await?;
    let [first, worker] =
        [pods_of(bed, "waits", 1).await?, pods_of(bed, "works", 1).await?].map(|mut of| of.remove(0));
    reads_on(&first).await?;
    reads_on(&worker).await?;
    let elsewhere = without_tokens(bed).await?;

    webhook.stop().await?;
    let away = async {
        // As ever: what has no token, and looking after what has one.
        create(deployment(&Draft::new("goes-on"))).await?;
        let without = pods_of(bed, "goes-on", 1).await?.remove(0);
        without.until_running(START_LIMIT).await?;
        reads_on(&first).await?;
        let kubectl = scene.kubectl("etl")?;
        kubectl.clone().args(["scale", "deployment/waits", "--replicas=2"]).succeed().await?;
        kubectl.clone().args(["label", "deployment/waits", "seen=yes"]).succeed().await?;
        worker.delete(GONE_LIMIT).await?;
        elsewhere.exec(&["true"]).await?.success()?;
        // Waits, and says so.
        until_told(bed, "ReplicaSet/waits-").await?;
        until_told(bed, "Job/works").await?;
        let new = serde_json::from_value(deployment(&draft("new")))?;
        let answer = deployments.create(&PostParams::default(), &new).await;
        refused(answer, "a new Deployment", 500, &[NOT_ASKED, DRIVER_NAME])?;
        // Of exec the API server cannot tell which pod is meant; it asks wherever there are pods with tokens.
        let told = without.exec(&["true"]).await?.failure()?;
        ensure!(told.contains(NOT_ASKED), "told {told}");
        Ok(())
    };
    let outcome: Result<()> = away.await;
    outcome.and(webhook.start().await)?;

    let back = Instant::now();
    let pods = [pods_of(bed, "waits", 2).await?, pods_of(bed, "works", 1).await?].concat();
    for pod in &pods {
        reads_on(pod).await?;
    }
    say(format_args!("pods that had waited were there {:?} after it was ready", back.elapsed()));
    for name in ["waits", "goes-on"] {
        deployments.delete(name, &DeleteParams::background()).await?;
    }
    jobs.delete("works", &DeleteParams::background()).await?;
    kubernetes.kubectl().args(["delete", "namespace", ELSEWHERE]).succeed().await?;
    for app in ["waits", "goes-on", "works"] {
        pods_of(bed, app, 0).await?;
    }
    for pod in &pods {
        pod.until_gone(GONE_LIMIT).await?;
    }
    tally.ends().await
}

/// A pod of [`reading`] is not disturbed.
async fn reads_on(pod: &Running) -> Result<()> {
    pod.until_running(START_LIMIT).await?;
    let said = async || -> Result<usize> { Ok(pod.logs().await?.matches("read").count()) };
    let before = said().await?;
    until("read once more: a pod", START_LIMIT, async || {
        let now = said().await?;
        ensure!(now > before, "it has read {now} times");
        Ok(())
    })
    .await
}

/// A pod in a namespace that has never had a pod with a token.
async fn without_tokens(bed: &Bed) -> Result<Running> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ELSEWHERE}});
    bed.kubernetes().apply(&namespace.to_string()).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(bed.kubernetes().client(), ELSEWHERE);
    until("there: service account default", START_LIMIT, async || {
        accounts.get("default").await.map_err(Into::into)
    })
    .await?;
    bed.kubernetes().run(&Draft::new("elsewhere").namespace(ELSEWHERE)).await
}

/// What became of requests, for people and for failures.
fn summary(attempts: &[Attempt]) -> String {
    let mut refusals: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut sealed, mut unsealed) = (0, 0);
    for attempt in attempts {
        match &attempt.outcome {
            Outcome::Sealed => sealed += 1,
            Outcome::Unsealed => unsealed += 1,
            Outcome::Refused(message) => *refusals.entry(message).or_default() += 1,
        }
    }
    format!("{sealed} sealed, {unsealed} without a seal, refused: {refusals:#?}")
}

async fn nothing_is_refused_while_replicas_and_certificates_are_replaced_under_load(bed: &Bed) -> Result<()> {
    let (_, webhook) = (Scene::set(bed).await?, bed.webhook().await?);
    let short_lived = |configuration: &mut Value| {
        configuration["certificate"] = json!({"selfManaged": {"lifetimeSeconds": 40, "settleSeconds": 3}});
    };
    let under_load = async || {
        let (callers, before) = (Callers::of(bed, webhook)?, not_created(bed).await?);
        let changes = async {
            webhook.restart().await?;
            new_certificates(webhook).await?;
            webhook.restart().await
        };
        tokio::try_join!(callers.call_during(changes), callers.run_jobs())?;
        let attempts = callers.attempts();
        say(format_args!("{}; {} Jobs", summary(&attempts), callers.jobs()));
        let sealed = attempts.iter().filter(|attempt| matches!(attempt.outcome, Outcome::Sealed)).count();
        ensure!(sealed == attempts.len(), "{}", summary(&attempts));
        ensure!(
            sealed > 500 && callers.jobs() > 5,
            "{sealed} requests and {} Jobs are no load",
            callers.jobs()
        );
        let after = not_created(bed).await?;
        let new: Vec<_> = after.iter().filter(|(object, _)| !before.contains_key(*object)).collect();
        ensure!(new.is_empty(), "controllers were refused: {new:?}");
        until_clean(bed).await
    };
    webhook.with_configuration(short_lived, || webhook.with_two_replicas(under_load)).await
}

/// Waits until each of two replicas shows its second new certificate.
async fn new_certificates(webhook: &Webhook) -> Result<()> {
    until("shown: two new certificates by each", Duration::from_secs(120), async || {
        let mut shown = Vec::new();
        for pod in webhook.pods().await? {
            shown.push(pod.logs().await?.matches("Shows the new certificate").count());
        }
        ensure!(shown.len() == 2 && shown.iter().all(|number| *number >= 2), "{shown:?} were shown");
        Ok(())
    })
    .await
}

async fn a_killed_replica_costs_what_was_on_its_way_and_what_came_before_it_was_missed(
    bed: &Bed,
) -> Result<()> {
    let (_, webhook) = (Scene::set(bed).await?, bed.webhook().await?);
    webhook.with_two_replicas(|| one_of_two_is_killed(bed, webhook)).await
}

/// Kills one of two replicas under load, and looks at what became of each request.
async fn one_of_two_is_killed(bed: &Bed, webhook: &Webhook) -> Result<()> {
    let callers = Callers::of(bed, webhook)?;
    let mut killed = None;
    let death = async {
        sleep(CALM).await;
        let pid = webhook.pids()?.first().copied().context("no replica runs")?;
        kill(pid, Signal::SIGKILL)?;
        killed = Some(Instant::now());
        sleep(DEATH_LIMIT + CALM).await;
        Ok(())
    };
    callers.call_during(death).await?;
    let (killed, attempts) = (killed.context("nobody was killed")?, callers.attempts());
    let mut last = Duration::ZERO;
    let mut missed = 0;
    for attempt in &attempts {
        match &attempt.outcome {
            Outcome::Sealed => {}
            Outcome::Unsealed => anyhow::bail!("created without a seal: {}", summary(&attempts)),
            Outcome::Refused(message) => {
                ensure!(message.contains(NOT_ASKED) && message.contains(DRIVER_NAME), "told {message}");
                ensure!(attempt.ended >= killed, "refused before anybody was killed: {message}");
                last = last.max(attempt.begun.saturating_duration_since(killed));
                missed += 1;
            }
        }
    }
    say(format_args!(
        "{missed} of {} refused, the last after {last:?}: {}",
        attempts.len(),
        summary(&attempts)
    ));
    ensure!(last < DEATH_LIMIT, "still refused after {last:?}: {}", summary(&attempts));
    webhook.until_ready().await?;
    until_clean(bed).await
}

/// Names of a registration's entries.
async fn entries(webhook: &Webhook, kind: &str) -> Result<Vec<Value>> {
    let registration = webhook.registration(kind).await?;
    let entries = registration.get("webhooks").and_then(Value::as_array);
    Ok(entries.into_iter().flatten().filter_map(|entry| entry.get("name").cloned()).collect())
}

async fn registrations_that_are_emptied_under_load_are_filled_within_seconds(bed: &Bed) -> Result<()> {
    let (_, webhook) = (Scene::set(bed).await?, bed.webhook().await?);
    webhook.with_two_replicas(|| both_are_emptied(bed, webhook)).await
}

/// Empties both registrations under load, and looks at what became of each request.
async fn both_are_emptied(bed: &Bed, webhook: &Webhook) -> Result<()> {
    let callers = Callers::of(bed, webhook)?;
    let mut emptied = None;
    let vandalism = async {
        sleep(CALM).await;
        let mut right = Vec::new();
        for kind in REGISTRATIONS {
            right.push(entries(webhook, kind).await?);
        }
        emptied = Some(Instant::now());
        for kind in REGISTRATIONS {
            let patch = r#"[{"op": "remove", "path": "/webhooks"}]"#;
            let kubectl = bed.kubernetes().kubectl().args([
                "patch",
                kind,
                REGISTRATION,
                "--type=json",
                "--patch",
                patch,
            ]);
            kubectl.succeed().await?;
        }
        for (kind, right) in REGISTRATIONS.into_iter().zip(right) {
            until("filled: a registration", REPAIR_LIMIT, async || {
                let now = entries(webhook, kind).await?;
                ensure!(now == right, "it has {now:?} of {right:?}");
                Ok(())
            })
            .await?;
        }
        sleep(CALM).await;
        Ok(())
    };
    callers.call_during(vandalism).await?;
    let (emptied, attempts) = (emptied.context("nothing was emptied")?, callers.attempts());
    let mut last = Duration::ZERO;
    let mut unsealed = 0;
    for attempt in &attempts {
        match &attempt.outcome {
            Outcome::Sealed => {}
            // While only one of the two is filled, what has no seal may still be refused.
            Outcome::Refused(message) if !message.contains(NO_SEAL) => anyhow::bail!("refused: {message}"),
            Outcome::Refused(_) | Outcome::Unsealed => {
                ensure!(attempt.ended >= emptied, "without a seal before anything happened");
                last = last.max(attempt.begun.saturating_duration_since(emptied));
                unsealed += 1;
            }
        }
    }
    say(format_args!("{unsealed} of {} got no seal, the last after {last:?}", attempts.len()));
    ensure!(last < REPAIR_LIMIT, "without a seal after {last:?}");
    until_clean(bed).await
}
