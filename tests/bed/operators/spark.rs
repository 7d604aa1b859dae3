//! The admission webhook of Spark's operator. `spark-submit` makes a driver's pod with neither an owner nor volumes, and
//! this webhook writes both into it, and volumes into executors. What starts `spark-submit` is not here: that needs a
//! whole Spark, and tests make the pods that it makes.

use std::path::Path;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::PostParams};
use serde_json::{Value, json};

use super::{READY_LIMIT, binding, define, kubeconfig, role};
use crate::{
    Bed,
    host::NODE_IP,
    kubernetes::Kubernetes,
    outside,
    pod::Draft,
    process::{Daemon, Program},
    users::JOBS,
};

const NAMESPACE: &str = "spark-operator";
/// Name of its account, its Service and its registration. The API server asks webhooks in the order of the latter: this
/// one after ours.
const NAME: &str = "spark-operator-webhook";
const SECRET: &str = "spark-operator-webhook-certs";
const PORT: u16 = 9817;
/// Label of pods that it is asked about.
pub const LAUNCHED: &str = "sparkoperator.k8s.io/launched-by-spark-operator";
/// Label with the name of a pod's SparkApplication.
pub const APP_NAME: &str = "sparkoperator.k8s.io/app-name";
/// Label with `driver` or `executor`.
pub const ROLE: &str = "spark-role";
const DEFINITIONS: [&str; 2] =
    ["sparkoperator.k8s.io_sparkapplications.yaml", "sparkoperator.k8s.io_scheduledsparkapplications.yaml"];

pub(super) async fn start(bed: &Bed, folder: &Path, logs: &Path) -> Result<Daemon> {
    let (kubernetes, tools) = (bed.kubernetes(), bed.tools());
    define(kubernetes, &tools.operators, &DEFINITIONS).await?;
    kubernetes.apply(&installation().to_string()).await?;
    let health = format!("{NODE_IP}:9818");
    let program = Program::new(tools.operators.join("spark-operator"))
        .args(["webhook", "start"])
        .arg(format!("--namespaces={JOBS}"))
        .arg(format!("--webhook-cert-dir={}", folder.join(NAME).display()))
        .arg(format!("--webhook-port={PORT}"))
        .args([format!("--webhook-svc-name={NAME}"), format!("--webhook-svc-namespace={NAMESPACE}")])
        .args([format!("--webhook-secret-name={SECRET}"), format!("--webhook-secret-namespace={NAMESPACE}")])
        .arg(format!("--mutating-webhook-name={NAME}"))
        .arg(format!("--health-probe-bind-address={health}"))
        .env("KUBECONFIG", kubeconfig(kubernetes, folder, (NAMESPACE, NAME)).await?);
    let daemon = Daemon::new(NAME, program, logs);
    daemon.start().await?;
    daemon
        .until("asked by the API server", READY_LIMIT, async || {
            outside::ready(&health).await?;
            is_asked(kubernetes).await
        })
        .await?;
    Ok(daemon)
}

/// A pod of an application that is not there is refused by it.
async fn is_asked(kubernetes: &Kubernetes) -> Result<()> {
    let draft = Draft::new("of-no-application")
        .namespace(JOBS)
        .set("/metadata/labels", json!({LAUNCHED: "true", APP_NAME: "nobody", ROLE: "driver"}));
    let pod: Pod = serde_json::from_value(draft.json().clone())?;
    let trial = PostParams { dry_run: true, ..PostParams::default() };
    let answer = Api::<Pod>::namespaced(kubernetes.client(), JOBS).create(&trial, &pod).await;
    let told = answer.err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(told.contains("failed to get SparkApplication"), "the API server says {told:?}");
    Ok(())
}

/// What its chart installs for this part of it, but for what has its program run in pods.
fn installation() -> Value {
    let own = json!({"name": NAME, "namespace": NAMESPACE});
    let account = json!({"kind": "ServiceAccount", "namespace": NAMESPACE, "name": NAME});
    let read = json!(["get", "list", "watch"]);
    let rules = json!([
        {
            "apiGroups": ["admissionregistration.k8s.io"],
            "resources": ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"],
            "verbs": ["get", "list", "watch", "update"],
        },
        {"apiGroups": [""], "resources": ["pods"], "verbs": read},
        {
            "apiGroups": ["sparkoperator.k8s.io"],
            "resources": ["sparkapplications", "scheduledsparkapplications"],
            "verbs": read,
        },
    ]);
    let secrets =
        json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["create", "get", "update"]}]);
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": own},
        role("ClusterRole", &json!({"name": NAME}), &rules),
        binding("ClusterRole", &json!({"name": NAME}), &account),
        role("Role", &own, &secrets),
        binding("Role", &own, &account),
        {"apiVersion": "v1", "kind": "Service", "metadata": own, "spec": {"ports": [{"port": PORT}]}},
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": NAME, "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": NAME},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [NODE_IP], "conditions": {"ready": true}}],
            "ports": [{"port": PORT}],
        },
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": NAME},
            "webhooks": [{
                "name": "mutate--v1-pod.sparkoperator.k8s.io",
                "admissionReviewVersions": ["v1"],
                "clientConfig": {"service": {
                    "name": NAME, "namespace": NAMESPACE, "port": PORT, "path": "/mutate--v1-pod",
                }},
                "sideEffects": "NoneOnDryRun",
                "failurePolicy": "Fail",
                "objectSelector": {"matchLabels": {LAUNCHED: "true"}},
                "rules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]},
                ],
            }],
        },
    ]})
}
