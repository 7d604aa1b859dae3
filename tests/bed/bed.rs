//! The whole bed: everything started side by side, and kept until the process ends.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tokio::sync::OnceCell;

use crate::{
    fault,
    host::{STATE, TEMPORARY},
    kdc::{Kdc, REALM},
    kubernetes::{Kubernetes, path_with},
    ldap::Ldap,
    namenode::{self, Cluster, NameNode, TokenLife},
    operators::Operators,
    process::{Program, tail},
    product::Product,
    progress::phase,
    provision::Tools,
    webhook::{self, Webhook},
};

/// Folder to copy all logs to when something fails.
const KEEP_LOGS: &str = "HADOOP_TOKEN_CSI_BED_LOGS";

/// What can be different from bed to bed.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long the main NameNode's tokens live.
    pub tokens: TokenLife,
    /// How long those of the private one live: so short that a test can wait for their end.
    pub private_tokens: TokenLife,
    /// How many users `bench0000`, `bench0001`, … the NameNodes know, and let the controller act for.
    pub bench_users: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tokens: TokenLife {
                renew_interval: Duration::from_secs(60),
                max_lifetime: Duration::from_secs(60 * 60),
            },
            private_tokens: TokenLife {
                renew_interval: Duration::from_secs(20),
                max_lifetime: Duration::from_secs(90),
            },
            bench_users: 0,
        }
    }
}

impl Options {
    /// How long the tokens of a cluster live.
    #[must_use]
    pub fn tokens_of(&self, cluster: Cluster) -> TokenLife {
        match cluster {
            Cluster::Main => self.tokens,
            Cluster::Private => self.private_tokens,
        }
    }
}

/// Everything real that a test needs. Ends with the namespaces it is in, see [`crate::isolate`].
pub struct Bed {
    options: Options,
    tools: Tools,
    state: PathBuf,
    logs: PathBuf,
    kdc: Kdc,
    main: NameNode,
    private: OnceCell<NameNode>,
    kubernetes: Kubernetes,
    directory: OnceCell<Ldap>,
    product: OnceCell<Product>,
    webhook: webhook::Place,
    operators: OnceCell<Operators>,
}

impl Bed {
    /// Starts KDC, main HDFS and Kubernetes. Must run inside, see [`crate::isolate::enter`].
    ///
    /// # Errors
    /// When a part does not come up, with the tail of its log.
    pub async fn start(options: Options) -> Result<Self> {
        match Self::start_all(options).await {
            Ok(bed) => Ok(bed),
            Err(error) => Err(error.context(keep_logs().await)),
        }
    }

    async fn start_all(options: Options) -> Result<Self> {
        let state = PathBuf::from(STATE);
        let logs = state.join("logs");
        fs::create_dir(state.join("started"))
            .context("there is a bed in these namespaces already, or none can be")?;
        fault::set_up()?;
        let tools = Tools::find()?;
        let hdfs = hdfs_client()?;
        let hadoop = phase("Starting Kerberos and HDFS", async {
            let kdc = Kdc::start_new(&state, &logs).await?;
            write_clients(&state.join("clients"))?;
            let main =
                NameNode::start_new(Cluster::Main, options, &kdc, &tools, &hdfs, (&state, &logs)).await?;
            Ok((kdc, main))
        });
        let kubernetes = phase("Starting Kubernetes", Kubernetes::start_new(&tools, &hdfs, &state, &logs));
        let ((kdc, main), kubernetes) = tokio::try_join!(hadoop, kubernetes)?;
        Ok(Self {
            options,
            tools,
            state,
            logs,
            kdc,
            main,
            private: OnceCell::new(),
            kubernetes,
            directory: OnceCell::new(),
            product: OnceCell::new(),
            webhook: webhook::Place::default(),
            operators: OnceCell::new(),
        })
    }

    /// How it is different from other beds.
    #[must_use]
    pub fn options(&self) -> Options {
        self.options
    }

    /// The KDC.
    #[must_use]
    pub fn kdc(&self) -> &Kdc {
        &self.kdc
    }

    /// HDFS with `hadoop.rpc.protection` = `authentication`.
    #[must_use]
    pub fn main(&self) -> &NameNode {
        &self.main
    }

    /// HDFS with `hadoop.rpc.protection` = `privacy`; started when first asked for.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn private(&self) -> Result<&NameNode> {
        let start = async || {
            let paths = (self.state.as_path(), self.logs.as_path());
            let hdfs = hdfs_client()?;
            let options = self.options;
            let starting =
                NameNode::start_new(Cluster::Private, options, &self.kdc, &self.tools, &hdfs, paths);
            phase("Starting the private HDFS", starting).await
        };
        self.private.get_or_try_init(start).await
    }

    /// The NameNode of a cluster; started when first asked for.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn name_node(&self, cluster: Cluster) -> Result<&NameNode> {
        match cluster {
            Cluster::Main => Ok(&self.main),
            Cluster::Private => self.private().await,
        }
    }

    /// All NameNodes that were started.
    pub fn name_nodes(&self) -> impl Iterator<Item = &NameNode> {
        [Some(&self.main), self.private.get()].into_iter().flatten()
    }

    /// The node and its control plane.
    #[must_use]
    pub fn kubernetes(&self) -> &Kubernetes {
        &self.kubernetes
    }

    /// The directory of users and groups; started when first asked for.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn directory(&self) -> Result<&Ldap> {
        let start = async || {
            let authority = self.kubernetes.authority();
            Ldap::start_new(authority, self.options.bench_users, &self.state, &self.logs).await
        };
        self.directory.get_or_try_init(start).await
    }

    /// The product; installed when first asked for.
    ///
    /// # Errors
    /// When it does not become ready, with the tail of its logs.
    pub async fn product(&self) -> Result<&Product> {
        self.product
            .get_or_try_init(async || phase("Installing the product", Product::install(self)).await)
            .await
    }

    /// Kubeflow's operators; started when first asked for.
    ///
    /// # Errors
    /// When one does not come up.
    pub async fn operators(&self) -> Result<&Operators> {
        let start = async || phase("Starting operators", Operators::start_new(self, &self.logs)).await;
        self.operators.get_or_try_init(start).await
    }

    /// The admission webhook, installed beside the product. Whoever asks for it removes it afterwards: others' pods seal
    /// themselves.
    ///
    /// # Errors
    /// When it does not become ready, with the tail of its logs.
    pub async fn webhook(&self) -> Result<&Webhook> {
        self.webhook.installed(self).await
    }

    /// The admission webhook, installed without the product, which must not be there yet, and stamping every pod. Whoever
    /// asks for it removes it afterwards.
    ///
    /// # Errors
    /// When it does not become ready, with the tail of its logs.
    pub async fn webhook_alone(&self) -> Result<&Webhook> {
        ensure!(!self.product.initialized(), "the product is installed already");
        self.webhook.alone(self).await
    }

    /// Where Java, Hadoop's jars and the rest are.
    #[must_use]
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// A folder in memory for whatever a test wants to write; gone with the bed.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// For how long the tokens of a cluster are good.
    #[must_use]
    pub fn tokens_of(&self, cluster: Cluster) -> TokenLife {
        self.options.tokens_of(cluster)
    }

    /// Hadoop's settings for the controller, a folder for each cluster: `main`, `private`, and `impostor`, which is
    /// `main` but expects another principal of its NameNode than it has. Those for clients in pods, without a word of
    /// Kerberos, are in `pods/main` and `pods/private`.
    #[must_use]
    pub fn client_configurations(&self) -> PathBuf {
        self.state.join("clients")
    }

    /// The independent HDFS client on the node, as a principal with its keytab: the path of a file is to follow.
    ///
    /// # Errors
    /// When the client was not built.
    pub fn hdfs_as(&self, cluster: Cluster, principal: &str, keytab: &str) -> Result<Program> {
        let client = Program::new(hdfs_client()?).args(["--url", &cluster.url(), "--principal", principal]);
        Ok(self.kdc.client(client.arg("--keytab").arg(self.kdc.keytab(keytab))))
    }

    /// The independent HDFS client on the node without any credentials.
    ///
    /// # Errors
    /// When the client was not built.
    pub fn hdfs_as_nobody(&self, cluster: Cluster) -> Result<Program> {
        Ok(self.kdc.client(Program::new(hdfs_client()?)).args(["--url", &cluster.url()]))
    }

    /// What a command line user of the bed needs: kubectl and its configuration, Kerberos' configuration.
    ///
    /// # Errors
    /// When `PATH` cannot be written.
    pub fn environment(&self, program: Program) -> Result<Program> {
        Ok(program
            .env("PATH", path_with(&self.tools.kubernetes)?)
            .env("KUBECONFIG", self.kubernetes.kubeconfig())
            .env("KUBECACHEDIR", TEMPORARY)
            .env("KRB5_CONFIG", self.kdc.client_configuration()))
    }

    /// The last lines of every log, for whoever wonders why something failed.
    #[must_use]
    pub fn log_tails(&self) -> String {
        let mut logs: Vec<PathBuf> = self.kubernetes.logs().map(Path::to_owned).collect();
        for hdfs in self.name_nodes() {
            logs.extend(hdfs.logs().map(Path::to_owned));
        }
        logs.push(self.logs.join("kdc.log"));
        logs.extend(self.directory.get().map(|directory| directory.log().to_owned()));
        logs.extend(self.operators.get().iter().flat_map(|operators| operators.logs().map(Path::to_owned)));
        logs.extend(container_logs());
        logs.iter().map(|log| tail(log)).collect()
    }
}

/// Copies all logs into the folder that `HADOOP_TOKEN_CSI_BED_LOGS` names, which outlives the bed; without it, does
/// nothing. Says where they are, or why they are not.
pub(crate) async fn keep_logs() -> String {
    let Some(folder) = env::var_os(KEEP_LOGS) else {
        return format!("set {KEEP_LOGS} to a folder to keep all logs");
    };
    let kept = async {
        fs::create_dir_all(&folder)?;
        let copy = Program::new("cp").args(["-rL", "--no-preserve=all"]);
        copy.arg(Path::new(STATE).join("logs")).arg("/var/log/pods").arg(&folder).succeed().await
    };
    match kept.await {
        Ok(_) => format!("all logs are in {}", folder.display()),
        Err(error) => format!("failed to keep the logs: {error:#}"),
    }
}

/// Logs of all containers, those of test pods among them.
fn container_logs() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from("/var/log/pods")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

fn write_clients(folder: &Path) -> Result<()> {
    for (name, cluster, principal) in [
        ("main", Cluster::Main, "nn/_HOST"),
        ("private", Cluster::Private, "nn/_HOST"),
        ("impostor", Cluster::Main, "hdfs/_HOST"),
    ] {
        let principal = format!("{principal}@{REALM}");
        namenode::write_client_configuration(&folder.join(name), cluster, &principal)?;
    }
    for cluster in [Cluster::Main, Cluster::Private] {
        namenode::write_pod_configuration(&folder.join("pods").join(cluster.name()), cluster)?;
    }
    Ok(())
}

/// The folder that cargo puts programs of this build into.
pub(crate) fn programs() -> Result<PathBuf> {
    let program = env::current_exe()?;
    let mut folder = program.parent().context("this program is in no folder")?;
    if folder.ends_with("deps") {
        folder = folder.parent().context("deps is in no folder")?;
    }
    Ok(folder.to_owned())
}

fn hdfs_client() -> Result<PathBuf> {
    let path = programs()?.join("hdfs-client");
    if !path.exists() {
        bail!("{} is not there: the bed is not prepared", path.display());
    }
    Ok(path)
}
