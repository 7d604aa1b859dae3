//! The webhook at the real API server: what is asked reaches it, what it writes becomes so, and nobody changes what it is
//! asked. What it decides, and what happens while it is away, are other modules' subjects.

mod forged;

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bed::{
    Bed,
    harness::Test,
    namenode::{Cluster, private_content},
    pod::Draft,
    process::until,
    product::NAMESPACE,
    users::{JOBS, Users},
    webhook::{BUNDLE, REGISTRATION, REGISTRATIONS, Webhook},
};
use identity::{
    DRIVER_NAME, GROUPS_ANNOTATION, SEAL_ANNOTATION, SUBMITTER_ANNOTATION,
    seal::{JwkSet, KeySet},
};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::{Value, json};

use self::forged::{
    a_seal_that_the_webhook_was_tricked_into_is_of_no_use,
    where_api_servers_have_certificates_nobody_else_is_answered,
};
use crate::{GONE_LIMIT, tally::Tally};

const START_LIMIT: Duration = Duration::from_secs(60);
const REPAIR_LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![
        a_pod_is_stamped_with_whoever_submits_it_and_reads_as_him,
        whatever_somebody_makes_of_its_registrations_is_put_right,
        certificates_that_others_look_after_are_taken_up_without_a_restart,
        a_seal_that_the_webhook_was_tricked_into_is_of_no_use,
        where_api_servers_have_certificates_nobody_else_is_answered,
    ]
}

/// Before the product is there.
pub(crate) fn alone() -> Vec<Test> {
    bed::tests![before the product: alone_it_says_of_every_pod_who_asked_for_it]
}

/// After all tests that have it on the bed.
pub(crate) fn removal() -> Vec<Test> {
    bed::tests![it_is_removed_and_asked_nothing_any_more]
}

fn set(configuration: &mut Value, key: &str, value: Value) {
    if let Some(sections) = configuration.as_object_mut() {
        sections.insert(key.to_owned(), value);
    }
}

/// What the webhook's seals are verified with.
fn keys_of(webhook: &Webhook) -> Result<KeySet> {
    let keys = JwkSet { keys: vec![webhook.sealing_key().public_jwk()] };
    Ok(KeySet::from_jwk_set(keys.to_json().as_bytes())?)
}

async fn alone_it_says_of_every_pod_who_asked_for_it(bed: &Bed) -> Result<()> {
    let webhook = bed.webhook_alone().await?;
    let outcome = says_of_every_pod(bed, webhook).await;
    outcome.and(webhook.remove().await)
}

/// Pods of two users say whose they are; those made while it is stopped are made all the same.
async fn says_of_every_pod(bed: &Bed, webhook: &Webhook) -> Result<()> {
    let users = Users::of(bed.kubernetes()).await?;
    let keys = keys_of(webhook)?;
    let ensure_asked_for_by = |pod: &Pod, user: &str| -> Result<()> {
        let annotations = pod.metadata.annotations.clone().unwrap_or_default();
        ensure!(annotations.get(SUBMITTER_ANNOTATION).is_some_and(|name| name == user), "{annotations:?}");
        keys.verify(annotations.get(SEAL_ANNOTATION).context("no seal")?)?;
        Ok(())
    };
    let plain = bed.kubernetes().create_as(users.etl.clone(), &Draft::new("plain").namespace(JOBS)).await?;
    plain.until_running(START_LIMIT).await?;
    ensure_asked_for_by(&plain.get().await?, "etl")?;

    let labels = json!({"app": "plain"});
    let mut template = Draft::new("plain").json().clone();
    let template = json!({
        "metadata": {"labels": labels},
        "spec": template.get_mut("spec").and_then(Value::as_object_mut).map(|spec| {
            spec.remove("restartPolicy");
            spec.clone()
        }),
    });
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "plain", "namespace": JOBS},
        "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": template},
    });
    let deployments: Api<Deployment> = Api::namespaced(users.ads.clone(), JOBS);
    deployments.create(&PostParams::default(), &serde_json::from_value(deployment)?).await?;
    let pods: Api<Pod> = Api::namespaced(users.ads.clone(), JOBS);
    let of_deployment = async || {
        let pods = pods.list(&ListParams::default().labels("app=plain")).await?.items;
        ensure!(pods.len() == 2, "there are {}", pods.len());
        anyhow::Ok(pods)
    };
    until("there: pods of a Deployment", START_LIMIT, async || {
        of_deployment().await?.iter().try_for_each(|pod| ensure_asked_for_by(pod, "ads"))
    })
    .await?;
    plain.delete(GONE_LIMIT).await?;

    // Nothing that is asked depends on it, and nothing that carries what it wrote.
    let before = of_deployment().await?;
    webhook.stop().await?;
    let lost = before.first().and_then(|pod| pod.metadata.name.as_deref()).context("a pod without a name")?;
    pods.delete(lost, &DeleteParams::default()).await?;
    until("running again: both pods of a stamped Deployment", START_LIMIT, async || {
        let now = of_deployment().await?;
        let phase = |pod: &Pod| pod.status.as_ref()?.phase.clone();
        for pod in &now {
            ensure!(pod.metadata.name.as_deref() != Some(lost), "{lost} is still there");
            ensure!(phase(pod).as_deref() == Some("Running"), "it is {:?}", phase(pod));
        }
        Ok(())
    })
    .await?;
    deployments.delete("plain", &DeleteParams::foreground()).await?;
    let unasked = bed.kubernetes().create_as(users.etl, &Draft::new("unasked").namespace(JOBS)).await?;
    unasked.until_running(START_LIMIT).await?;
    unasked.delete(GONE_LIMIT).await
}

/// Wants a token, and says nothing of its submitter.
fn draft(name: &str) -> Draft {
    Draft::new(name).namespace(JOBS).token_volume(&json!({"driver": DRIVER_NAME, "readOnly": true}))
}

async fn a_pod_is_stamped_with_whoever_submits_it_and_reads_as_him(bed: &Bed) -> Result<()> {
    let tally = Tally::begin(bed.main()).await?;
    let (webhook, users) = (bed.webhook().await?, Users::of(bed.kubernetes()).await?);
    let pretends =
        draft("stamped").annotation(SUBMITTER_ANNOTATION, "ads").annotation(SEAL_ANNOTATION, "nonsense");
    let pod = bed.kubernetes().create_as(users.etl.clone(), &pretends).await?;
    let annotations = pod.get().await?.metadata.annotations.unwrap_or_default();
    ensure!(annotations.get(SUBMITTER_ANNOTATION).is_some_and(|name| name == "etl"), "{annotations:?}");
    let groups: Vec<String> = serde_json::from_str(annotations.get(GROUPS_ANNOTATION).context("no groups")?)?;
    ensure!(groups.contains(&"system:authenticated".to_owned()), "{groups:?}");
    let seal = annotations.get(SEAL_ANNOTATION).context("no seal")?;
    keys_of(webhook)?.verify(seal)?;

    pod.until_running(START_LIMIT).await?;
    let read = pod.hdfs_native(Cluster::Main, &["cat", "/user/etl/private.txt"]).await?.success()?;
    ensure!(read == private_content(Cluster::Main, "etl"), "read {read:?}");
    let told = pod.hdfs_native(Cluster::Main, &["cat", "/user/ads/private.txt"]).await?.failure()?;
    ensure!(told.contains("Permission denied: user=etl"), "told {told}");
    for replica in webhook.metrics().await? {
        let counted = r#"hadoop_token_csi_webhook_reviews_total{webhook="mutate",operation="CREATE",decision="patched","#;
        ensure!(replica.contains(counted), "{replica}");
    }
    tally.ends_after(&[pod]).await
}

async fn whatever_somebody_makes_of_its_registrations_is_put_right(bed: &Bed) -> Result<()> {
    let webhook = bed.webhook().await?;
    let changes = [
        json!([{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore"}]),
        json!([{
            "op": "add", "path": "/webhooks/0/matchConditions/-", "value": {"name": "never", "expression": "false"},
        }]),
        json!([{"op": "add", "path": "/webhooks/0/objectSelector", "value": {"matchLabels": {"no": "such"}}}]),
        json!([{"op": "remove", "path": "/webhooks/0"}]),
        json!([{"op": "remove", "path": "/webhooks"}]),
    ];
    for kind in REGISTRATIONS {
        let right = webhook.entries(kind).await?;
        for change in &changes {
            let patch = ["patch", kind, REGISTRATION, "--type=json", "--patch", &change.to_string()]
                .map(str::to_owned);
            bed.kubernetes().kubectl().args(patch).succeed().await?;
            until("put right: a registration", REPAIR_LIMIT, async || {
                let now = webhook.entries(kind).await?;
                ensure!(now == right, "after {change} it is {}", json!(now));
                Ok(())
            })
            .await?;
        }
        // What is right is written no more.
        let version = async || -> Result<Value> {
            let object = webhook.registration(kind).await?;
            object.pointer("/metadata/resourceVersion").cloned().context("it has no version")
        };
        let before = version().await?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        ensure!(version().await? == before, "it is written although it is right");
    }
    Ok(())
}

const TLS_SECRET: &str = "hadoop-token-csi-webhook-tls";
const TLS_FOLDER: &str = "/etc/hadoop-token-csi-webhook-tls";

async fn certificates_that_others_look_after_are_taken_up_without_a_restart(bed: &Bed) -> Result<()> {
    let (webhook, done) = (bed.webhook().await?, AtomicBool::new(false));
    renew(bed, "webhook-old").await?;
    let of_files = |configuration: &mut Value| {
        let file = |name: &str| format!("{TLS_FOLDER}/{name}");
        let files = json!({"certificate": file("tls.crt"), "key": file("tls.key")});
        set(configuration, "certificate", json!({"files": files}));
    };
    let checked = async {
        let pods = webhook.pods().await?;
        let [pod] = pods.as_slice() else { anyhow::bail!("there are {} replicas", pods.len()) };
        renew(bed, "webhook-new").await?;
        until("taken up: a new certificate", Duration::from_secs(120), async || {
            bed.product().await?.have_looked_at(pod).await?;
            ensure!(pod.logs().await?.contains("Took up new certificates"), "not yet");
            Ok(())
        })
        .await?;
        webhook.until_ready().await?;
        ensure!(webhook.pods().await?.iter().all(|now| now.name() == pod.name()), "it was replaced");
        anyhow::Ok(())
    };
    let run = async {
        let until_checked = async || {
            let outcome = checked.await;
            done.store(true, Ordering::Relaxed);
            outcome
        };
        let outcome = webhook.with_configuration(of_files, until_checked).await;
        // Nothing is checked with a configuration by which it does not become ready.
        done.store(true, Ordering::Relaxed);
        outcome
    };
    // What cert-manager does.
    let inject = async {
        while !done.load(Ordering::Relaxed) {
            inject(bed, webhook).await?;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        anyhow::Ok(())
    };
    let (outcome, injected) = tokio::join!(run, inject);
    outcome.and(injected).and(forget_tls(bed).await)
}

/// Deletes the Secret, whose type cannot be changed.
async fn forget_tls(bed: &Bed) -> Result<()> {
    let delete = ["delete", "secret", TLS_SECRET, "--namespace", NAMESPACE];
    bed.kubernetes().kubectl().args(delete).succeed().await.map(drop)
}

/// Puts a certificate of the bed's authority where the webhook finds it.
async fn renew(bed: &Bed, file: &str) -> Result<()> {
    let identity =
        bed.kubernetes().authority().server(file, &["hadoop-token-csi-webhook.hadoop-token-csi.svc"])?;
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": TLS_SECRET, "namespace": NAMESPACE},
        "type": "kubernetes.io/tls",
        "stringData": {
            "tls.crt": fs::read_to_string(&identity.certificate)?,
            "tls.key": fs::read_to_string(&identity.key)?,
        },
    });
    bed.kubernetes().apply(&secret.to_string()).await.map(drop)
}

/// Has all entries believe the bed's authority.
async fn inject(bed: &Bed, webhook: &Webhook) -> Result<()> {
    let bundle = json!(BASE64_STANDARD.encode(bed.kubernetes().authority().pem()));
    for kind in REGISTRATIONS {
        let entries = webhook.entries(kind).await?;
        let path = |number| format!("/webhooks/{number}{BUNDLE}");
        let wrong = entries.iter().enumerate().filter(|(_, entry)| entry.pointer(BUNDLE) != Some(&bundle));
        let patch: Vec<_> =
            wrong.map(|(number, _)| json!({"op": "add", "path": path(number), "value": bundle})).collect();
        if !patch.is_empty() {
            let patch = json!(patch).to_string();
            let words = ["patch", kind, REGISTRATION, "--type=json", "--patch", &patch];
            bed.kubernetes().kubectl().args(words).succeed().await?;
        }
    }
    Ok(())
}

async fn it_is_removed_and_asked_nothing_any_more(bed: &Bed) -> Result<()> {
    let (webhook, users) = (bed.webhook().await?, Users::of(bed.kubernetes()).await?);
    webhook.remove().await?;
    let names = async |kind| bed.kubernetes().kubectl().args(["get", kind, "-o", "name"]).succeed().await;
    for kind in ["clusterrole", "clusterrolebinding"] {
        let left = names(kind).await?;
        ensure!(!left.lines().any(|name| name.contains("hadoop-token-csi-webhook")), "left: {left}");
    }
    let registration = format!("/{REGISTRATION}");
    for kind in REGISTRATIONS {
        let left = names(kind).await?;
        ensure!(!left.lines().any(|name| name.ends_with(&registration)), "left: {left}");
    }
    let pod = bed.kubernetes().create_as(users.etl, &draft("not-stamped")).await?;
    let annotations = pod.get().await?.metadata.annotations.unwrap_or_default();
    ensure!(!annotations.contains_key(SEAL_ANNOTATION), "stamped by nobody: {annotations:?}");
    pod.delete(GONE_LIMIT).await
}
