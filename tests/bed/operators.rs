//! Kubeflow's operators, the real ones, as processes on the bed's node that are service accounts to the API server: the
//! training operator, and of Spark's the part that says which pods are whose. Kinds of other operators, and what those
//! do, are the tests' own.

pub mod spark;
mod training;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use kube::config::Kubeconfig;
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use crate::{
    Bed,
    kubernetes::Kubernetes,
    process::Daemon,
    users::{Bound, Users, service_account_token},
};

/// Namespace of the service accounts of operators that tests play.
pub const PLAYED: &str = "operators";
/// Operators: their Kubernetes users, and the kinds whose objects they make pods or further objects of. Those in
/// [`PLAYED`] are played by tests.
const NAMED: [(&str, &[&str]); 9] = [
    (
        "kubeflow:training-operator",
        &[
            "TFJob.kubeflow.org",
            "MPIJob.kubeflow.org",
            "PyTorchJob.kubeflow.org",
            "XGBoostJob.kubeflow.org",
            "PaddleJob.kubeflow.org",
        ],
    ),
    (
        "operators:spark",
        &["SparkApplication.sparkoperator.k8s.io", "ScheduledSparkApplication.sparkoperator.k8s.io"],
    ),
    ("operators:ray", &["RayCluster.ray.io", "RayJob.ray.io", "RayService.ray.io"]),
    ("operators:volcano", &["Job.batch.volcano.sh"]),
    ("operators:argo", &["Workflow.argoproj.io", "CronWorkflow.argoproj.io"]),
    ("operators:flink", &["FlinkDeployment.flink.apache.org"]),
    ("operators:notebook", &["Notebook.kubeflow.org"]),
    ("operators:trainer", &["TrainJob.trainer.kubeflow.org"]),
    ("operators:jobset", &["JobSet.jobset.x-k8s.io"]),
];

const READY_LIMIT: Duration = Duration::from_secs(60);

/// The operators. End with the bed.
pub struct Operators {
    training: Daemon,
    spark: Daemon,
}

impl Operators {
    pub(crate) async fn start_new(bed: &Bed, logs: &Path) -> Result<Self> {
        Users::of(bed.kubernetes()).await?;
        let folder = bed.state().join("operators");
        fs::create_dir(&folder)?;
        // Their tokens are secrets: they are kept where kubelet keeps those of pods, in memory of its own.
        mount(Some("bed"), &folder, Some("tmpfs"), MsFlags::empty(), Some("mode=0700"))
            .with_context(|| format!("failed to mount a tmpfs at {}", folder.display()))?;
        Ok(Self {
            training: training::start(bed, &folder, logs).await?,
            spark: spark::start(bed, &folder, logs).await?,
        })
    }

    /// What they log.
    pub(crate) fn logs(&self) -> impl Iterator<Item = &Path> {
        [&self.training, &self.spark].into_iter().map(Daemon::log)
    }
}

/// What the webhook's configuration says of them, under `controllers`.
pub(crate) fn named() -> Value {
    let user = |account: &str| format!("system:serviceaccount:{account}");
    NAMED.iter().map(|(account, kinds)| json!({"user": user(account), "kinds": kinds})).collect()
}

/// Makes the API server know kinds, by the files of their definitions, as Kubeflow names them.
async fn define(kubernetes: &Kubernetes, folder: &Path, files: &[&str]) -> Result<()> {
    // They are longer than an annotation can be, which is where another way of applying would keep them.
    let apply = kubernetes.kubectl().args(["apply", "--server-side"]);
    let apply = files.iter().fold(apply, |apply, file| apply.arg("--filename").arg(folder.join(file)));
    apply.succeed().await?;
    let names = files.iter().map(|file| {
        let (group, plural) = file.trim_end_matches(".yaml").split_once('_').unwrap_or_default();
        format!("crd/{plural}.{group}")
    });
    let wait = kubernetes.kubectl().args(["wait", "--for=condition=Established", "--timeout=60s"]);
    wait.args(names).succeed().await.map(drop)
}

/// A role, cluster's or not.
fn role(kind: &str, metadata: &Value, rules: &Value) -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": metadata, "rules": rules})
}

/// That somebody has the role of the same name.
fn binding(kind: &str, metadata: &Value, subject: &Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": format!("{kind}Binding"),
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": metadata.get("name"),
        },
        "metadata": metadata,
        "subjects": [subject],
    })
}

/// A kubeconfig in `folder` with a token of a service account.
async fn kubeconfig(
    kubernetes: &Kubernetes,
    folder: &Path,
    (namespace, account): (&str, &str),
) -> Result<PathBuf> {
    let client = kubernetes.client();
    let audience = "https://kubernetes.default.svc";
    let token = service_account_token(&client, namespace, account, audience, Bound::Nothing).await?;
    let mut config = serde_json::to_value(Kubeconfig::read_from(kubernetes.kubeconfig())?)?;
    let user = config.pointer_mut("/users/0/user").context("a kubeconfig without a user")?;
    *user = json!({"token": token});
    let path = folder.join(format!("{account}.kubeconfig"));
    fs::write(&path, serde_json::to_vec(&config)?)?;
    Ok(path)
}
