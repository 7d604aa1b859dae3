//! Kubeflow's training operator, the real one, as a process on the bed's node that is a service account to the API
//! server. It runs jobs of Kubeflow's. Kinds of other operators, and what those do, are the tests' own.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use images::Image;
use kube::config::Kubeconfig;
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use crate::{
    Bed,
    host::NODE_IP,
    kubernetes::Kubernetes,
    outside,
    process::{Daemon, Program},
    users::{Bound, JOBS, TEAM, Users, service_account_token},
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

const NAMESPACE: &str = "kubeflow";
const ACCOUNT: &str = "training-operator";
/// The kinds that it runs.
const KINDS: [&str; 5] = ["tfjob", "mpijob", "pytorchjob", "xgboostjob", "paddlejob"];
/// Definitions of kinds, by their files. The last is of a kind that nobody runs here.
const DEFINITIONS: [&str; 6] = [
    "kubeflow.org_tfjobs.yaml",
    "kubeflow.org_mpijobs.yaml",
    "kubeflow.org_pytorchjobs.yaml",
    "kubeflow.org_xgboostjobs.yaml",
    "kubeflow.org_paddlejobs.yaml",
    "trainer.kubeflow.org_trainjobs.yaml",
];
/// What gives an MPI launcher its kubectl, with which it starts commands in the workers.
const KUBECTL_DELIVERY: &str = "bed/kubectl-delivery:1";
const READY_LIMIT: Duration = Duration::from_secs(60);

/// The training operator. Ends with the bed.
pub struct Operators {
    daemon: Daemon,
}

impl Operators {
    pub(crate) async fn start_new(bed: &Bed, logs: &Path) -> Result<Self> {
        let (kubernetes, tools) = (bed.kubernetes(), bed.tools());
        Users::of(kubernetes).await?;
        define(kubernetes, &tools.operators).await?;
        kubernetes.apply(&rights().to_string()).await?;
        import_kubectl(bed).await?;
        let folder = bed.state().join("operators");
        fs::create_dir(&folder)?;
        // The operator's token is a secret: it is kept where kubelet keeps those of pods, in memory of its own.
        mount(Some("bed"), &folder, Some("tmpfs"), MsFlags::empty(), Some("mode=0700"))
            .with_context(|| format!("failed to mount a tmpfs at {}", folder.display()))?;
        let kubeconfig = kubeconfig(kubernetes, &folder).await?;
        let health = format!("{NODE_IP}:9816");
        let program = Program::new(tools.operators.join("training-operator"))
            .args(KINDS.map(|kind| format!("--kind={kind}")))
            .arg(format!("--health={health}"))
            .arg(format!("--mpi-image={KUBECTL_DELIVERY}"))
            .env("KUBECONFIG", kubeconfig);
        let daemon = Daemon::new("training-operator", program, logs);
        daemon.start().await?;
        daemon.until("ready", READY_LIMIT, async || outside::ready(&health).await).await?;
        Ok(Self { daemon })
    }

    /// The operator, as a process.
    #[must_use]
    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }
}

/// What the webhook's configuration says of them, under `controllers`.
pub(crate) fn named() -> Value {
    let user = |account: &str| format!("system:serviceaccount:{account}");
    NAMED.iter().map(|(account, kinds)| json!({"user": user(account), "kinds": kinds})).collect()
}

/// Makes the API server know the kinds.
async fn define(kubernetes: &Kubernetes, folder: &Path) -> Result<()> {
    // They are longer than an annotation can be, which is where another way of applying would keep them.
    let apply = kubernetes.kubectl().args(["apply", "--server-side"]);
    let apply = DEFINITIONS.iter().fold(apply, |apply, file| apply.arg("--filename").arg(folder.join(file)));
    apply.succeed().await?;
    let names = DEFINITIONS.map(|file| {
        let (group, plural) = file.trim_end_matches(".yaml").split_once('_').unwrap_or_default();
        format!("crd/{plural}.{group}")
    });
    let wait = kubernetes.kubectl().args(["wait", "--for=condition=Established", "--timeout=60s"]);
    wait.args(names).succeed().await.map(drop)
}

/// What the operator may do, and that teams may have jobs of its kinds.
fn rights() -> Value {
    let everything = json!(["create", "get", "list", "watch", "patch", "update", "delete"]);
    let may = |group: &str, resources: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": everything});
    let jobs: Vec<_> =
        KINDS.iter().flat_map(|kind| [format!("{kind}s"), format!("{kind}s/status")]).collect();
    let jobs: Vec<_> = jobs.iter().map(String::as_str).collect();
    let rules = json!([
        may("kubeflow.org", &jobs),
        may("", &["pods", "services", "configmaps", "serviceaccounts", "events"]),
        may("rbac.authorization.k8s.io", &["roles", "rolebindings"]),
        // It may let launchers do only what it may do itself.
        {"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["create"]},
    ]);
    let team = json!([may("kubeflow.org", &["*"]), may("trainer.kubeflow.org", &["*"])]);
    let role = |kind: &str, metadata: Value, rules: Value| json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": metadata, "rules": rules});
    let binding = |kind: &str, metadata: Value, role: &str, subject: Value| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": format!("{kind}Binding"),
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
            "metadata": metadata,
            "subjects": [subject],
        })
    };
    let account = json!({"kind": "ServiceAccount", "namespace": NAMESPACE, "name": ACCOUNT});
    let group = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": TEAM});
    let trainers = json!({"name": "trainers", "namespace": JOBS});
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "namespace": NAMESPACE}},
        role("ClusterRole", json!({"name": ACCOUNT}), rules),
        binding("ClusterRole", json!({"name": ACCOUNT}), ACCOUNT, account),
        role("Role", trainers.clone(), team),
        binding("Role", trainers, "trainers", group),
    ]})
}

/// A kubeconfig with a token of the operator's service account.
async fn kubeconfig(kubernetes: &Kubernetes, folder: &Path) -> Result<std::path::PathBuf> {
    let client = kubernetes.client();
    let audience = "https://kubernetes.default.svc";
    let token = service_account_token(&client, NAMESPACE, ACCOUNT, audience, Bound::Nothing).await?;
    let mut config = serde_json::to_value(Kubeconfig::read_from(kubernetes.kubeconfig())?)?;
    let user = config.pointer_mut("/users/0/user").context("a kubeconfig without a user")?;
    *user = json!({"token": token});
    let path = folder.join("kubeconfig");
    fs::write(&path, serde_json::to_vec(&config)?)?;
    Ok(path)
}

/// Packs the bed's own kubectl for launchers of MPIJobs.
async fn import_kubectl(bed: &Bed) -> Result<()> {
    let archive = bed.state().join("kubectl.tar");
    let (kubectl, target) = (bed.tools().kubernetes.join("kubernetes"), archive.clone());
    tokio::task::spawn_blocking(move || {
        Image::new(KUBECTL_DELIVERY)
            .file("/bin/busybox", "/bin/busybox", 0o755)
            .file(kubectl, "/bin/kubectl", 0o755)
            .entrypoint(["/bin/busybox", "sh", "-c", "/bin/busybox cp /bin/kubectl \"$TARGET_DIR/kubectl\""])
            .write_oci_archive(&target)
    })
    .await?
    .context("failed to pack kubectl")?;
    bed.kubernetes().import(&archive).await?;
    fs::remove_file(archive).map_err(Into::into)
}
