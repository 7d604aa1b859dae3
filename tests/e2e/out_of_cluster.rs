//! The controller as a process outside of Kubernetes: where the keytab's host is an old and trusted one, and nobody
//! who administers the cluster is to reach the keytab. It has a kubeconfig, and the rights of the manifests' ClusterRole.

use std::{env, fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    harness::Test,
    namenode::{Cluster, TokenAction, private_content},
    pod::{Draft, Running, TOKEN_FILE},
    process::{Daemon, Program, until},
    product::NAMESPACE,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{GONE_LIMIT, publish::Token, tally::Tally};

const USER: &str = "outside-controller";
const HEALTH: &str = "127.0.0.1:9819";
const READY_LIMIT: Duration = Duration::from_secs(60);
/// The bed's tokens have to be renewed once a minute.
const RENEWAL_LIMIT: Duration = Duration::from_secs(90);

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![a_controller_outside_of_the_cluster_issues_renews_and_releases]
}

async fn a_controller_outside_of_the_cluster_issues_renews_and_releases(bed: &Bed) -> Result<()> {
    let tally = Tally::begin(bed.main()).await?;
    let product = bed.product().await?;
    let controller = controller(bed).await?;
    // It takes its place and its address: node plugins notice nothing.
    product.stop_controller().await?;
    controller.start().await?;
    let outcome = lives(bed, &controller).await;
    let stopped = controller.stop().await;
    product.start_controller().await?;
    outcome?;
    stopped?;
    tally.ends().await
}

async fn lives(bed: &Bed, controller: &Daemon) -> Result<()> {
    controller.until("ready", READY_LIMIT, ready).await?;
    let tally = Tally::begin(bed.main()).await?;
    let pod = bed.kubernetes().run(&Draft::new("served-from-outside").token_of("etl")).await?;
    let (token, bytes) = (Token::of(bed, &pod)?, pod.read(TOKEN_FILE).await?);
    let before = token.renewals()?;
    until("renewed", RENEWAL_LIMIT, async || {
        ensure!(token.renewals()? > before, "the NameNode has renewed nothing");
        Ok(())
    })
    .await?;
    ensure!(pod.read(TOKEN_FILE).await? == bytes, "renewing changes no byte of the token");
    reads(&pod).await?;
    pod.delete(GONE_LIMIT).await?;
    tally.ends().await?;
    let issued = tally.events(TokenAction::Issued)?.len();
    ensure!(issued == 1, "{issued} tokens for one volume");
    let log = fs::read_to_string(controller.log())?;
    ensure!(log.contains("served-from-outside"), "the controller outside knows nothing of the pod:\n{log}");
    Ok(())
}

async fn reads(pod: &Running) -> Result<()> {
    let read = pod.hdfs_native(Cluster::Main, &["cat", "/user/etl/private.txt"]).await?.success()?;
    ensure!(read == private_content(Cluster::Main, "etl"), "read {read:?}");
    Ok(())
}

/// Not started yet.
async fn controller(bed: &Bed) -> Result<Daemon> {
    let Outside { program, configuration, kubeconfig } = Outside::of(bed, USER, HEALTH).await?;
    let program = Program::new(program).arg("--config").arg(configuration).env("KUBECONFIG", kubeconfig);
    let program = program.env("KRB5_CONFIG", bed.kdc().client_configuration());
    Ok(Daemon::new(USER, program, &bed.state().join("logs")))
}

/// What it takes to start a controller as a process: the same program with the same configuration, but for the paths,
/// which are the host's, and a Kubernetes user of its own with the rights that the manifests give the one inside.
pub(crate) struct Outside {
    pub(crate) program: PathBuf,
    pub(crate) configuration: PathBuf,
    pub(crate) kubeconfig: PathBuf,
}

impl Outside {
    pub(crate) async fn of(bed: &Bed, user: &str, health_address: &str) -> Result<Self> {
        let (kubernetes, folder) = (bed.kubernetes(), bed.state().join(user));
        let overlay = bed.product().await?.overlay();
        fs::create_dir_all(&folder)?;
        for (binding, role, namespace) in
            [("ClusterRoleBinding", "ClusterRole", None), ("RoleBinding", "Role", Some(NAMESPACE))]
        {
            let binding = json!({
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": binding,
                "metadata": {"name": user, "namespace": namespace},
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": "hadoop-token-csi-controller",
                },
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
            });
            kubernetes.apply(&binding.to_string()).await?;
        }
        let serving = kubernetes.authority().server(user, &["controller.bed.test"])?;
        let mut config = fs::read_to_string(overlay.join("controller.yaml"))?;
        for (inside, outside) in [
            ("-tls/tls.crt", serving.certificate),
            ("-tls/tls.key", serving.key),
            ("-keytab/keytab", bed.kdc().keytab("csi.keytab")),
            ("-seal/", overlay.join("")),
            ("-directory/", overlay.join("directory/")),
            ("-clusters/default", bed.client_configurations().join("main")),
            ("-clusters/", bed.client_configurations().join("")),
        ] {
            let inside = format!("/etc/hadoop-token-csi{inside}");
            config = config.replace(&inside, &outside.display().to_string());
        }
        let mut config: Value = serde_json::from_str(&config)?;
        let health = config.get_mut("healthAddress").context("no healthAddress")?;
        *health = json!(health_address);
        let configuration = folder.join("controller.yaml");
        fs::write(&configuration, config.to_string())?;
        Ok(Self { program: program()?, configuration, kubeconfig: kubernetes.kubeconfig_of(user, None)? })
    }
}

/// The program that is in the controller's image too.
fn program() -> Result<PathBuf> {
    let test = env::current_exe()?;
    let found = test.ancestors().map(|folder| folder.join("hadoop-token-csi-controller"));
    found.into_iter().find(|file| file.is_file()).context("the controller is not built")
}

async fn ready() -> Result<()> {
    let mut connection = TcpStream::connect(HEALTH).await?;
    connection.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    Ok(())
}
