//! The training operator. It runs jobs of all its kinds.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use images::Image;
use serde_json::{Value, json};

use super::{READY_LIMIT, binding, define, kubeconfig, role};
use crate::{
    Bed,
    host::NODE_IP,
    outside,
    process::{Daemon, Program},
    users::{JOBS, TEAM},
};

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

pub(super) async fn start(bed: &Bed, folder: &Path, logs: &Path) -> Result<Daemon> {
    let (kubernetes, tools) = (bed.kubernetes(), bed.tools());
    define(kubernetes, &tools.operators, &DEFINITIONS).await?;
    kubernetes.apply(&rights().to_string()).await?;
    import_kubectl(bed).await?;
    let health = format!("{NODE_IP}:9816");
    let program = Program::new(tools.operators.join("training-operator"))
        .args(KINDS.map(|kind| format!("--kind={kind}")))
        .arg(format!("--health={health}"))
        .arg(format!("--mpi-image={KUBECTL_DELIVERY}"))
        .env("KUBECONFIG", kubeconfig(kubernetes, folder, (NAMESPACE, ACCOUNT)).await?);
    let daemon = Daemon::new("training-operator", program, logs);
    daemon.start().await?;
    daemon.until("ready", READY_LIMIT, async || outside::ready(&health).await).await?;
    Ok(daemon)
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
    let account = json!({"kind": "ServiceAccount", "namespace": NAMESPACE, "name": ACCOUNT});
    let group = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": TEAM});
    let (own, trainers) = (json!({"name": ACCOUNT}), json!({"name": "trainers", "namespace": JOBS}));
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "namespace": NAMESPACE}},
        role("ClusterRole", &own, &rules),
        binding("ClusterRole", &own, &account),
        role("Role", &trainers, &team),
        binding("Role", &trainers, &group),
    ]})
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
