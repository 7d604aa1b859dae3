//! The product on the bed: built from this very source, packed as for a release, installed by the manifests of
//! `deploy/kubernetes` with an overlay that holds only what differs from site to site.

mod overlay;

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use identity::seal::SealingKey;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::ListParams};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

pub(crate) use self::overlay::write;
use self::overlay::write_overlay;
use crate::{
    Bed,
    bed::programs,
    host::KUBELET,
    pod::{Running, is_ready},
    process::{Program, processes_of, until},
    provision,
    seal::write_keys,
};

/// Namespace of the product.
pub const NAMESPACE: &str = "hadoop-token-csi";
/// Address of the controller, from everywhere in the bed.
pub const CONTROLLER: &str = "controller.bed.test:9443";

/// File of the overlay with the public keys of seals.
pub const SEAL_KEYS: &str = "keys.json";

/// Where the controller finds password and authority of the directory.
const DIRECTORY: &str = "/etc/hadoop-token-csi-directory";

/// A folder of the node in which the controller may keep an audit log.
pub const AUDIT_FOLDER: &str = "/run/bed/audit";
/// The same, as the controller sees it.
pub const AUDIT_FOLDER_IN_POD: &str = "/var/log/hadoop-token-csi";
const DRIVER_WORKLOAD: &str = "daemonset/hadoop-token-csi-driver";
const CONTROLLER_WORKLOAD: &str = "deployment/hadoop-token-csi-controller";
const READY_LIMIT: Duration = Duration::from_secs(90);
/// From a changed ConfigMap to a program that has read it in its pod.
const TAKE_UP_LIMIT: Duration = Duration::from_secs(120);

/// One of the product's programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The node plugin.
    Driver,
    /// The token service.
    Controller,
}

impl Part {
    fn component(self) -> &'static str {
        match self {
            Self::Driver => "driver",
            Self::Controller => "controller",
        }
    }

    /// Name of its program.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Driver => "hadoop-token-csi-driver",
            Self::Controller => "hadoop-token-csi-controller",
        }
    }

    /// Its one process.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn pid(self) -> Result<Pid> {
        let found = processes_of(self.program())?;
        match found.as_slice() {
            [pid] => Ok(*pid),
            other => anyhow::bail!("{} is run by {other:?}", self.program()),
        }
    }

    /// Sends its one process a signal.
    ///
    /// # Errors
    /// When there is not exactly one.
    pub fn signal(self, signal: Signal) -> Result<()> {
        Ok(kill(self.pid()?, signal)?)
    }
}

/// What a program needs outside of the bed before it enters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Kerberos, Hadoop and Kubernetes.
    Bed,
    /// The product's programs too, built and packed.
    Programs,
    /// The product, installed.
    Product,
}

/// Fetches and builds what is needed, outside of the bed.
///
/// # Errors
/// When something cannot be fetched or built, with the tail of its output.
pub async fn prepare(need: Need) -> Result<()> {
    provision::prepare().await?;
    let folder = programs()?;
    let release = folder.ends_with("release");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // With the whole workspace selected, dependencies have the features that `cargo test --workspace` gave them.
    let selection: &[&str] = if release {
        &["--release", "--package", "hdfs-client"]
    } else {
        &["--workspace", "--bin", "hdfs-client"]
    };
    let build = Program::new(cargo).args(["build", "--locked"]).args(selection.iter().copied());
    provision::build("Building the independent HDFS client", build, "hdfs-client").await?;
    if need >= Need::Programs {
        let build = Program::new(source().join("deploy/images/build.sh"))
            .arg(images()?)
            .env("PROFILE", if release { "release" } else { "dev" })
            .env("TAG", env!("CARGO_PKG_VERSION"));
        provision::build("Building and packing the product", build, "product").await?;
    }
    Ok(())
}

/// The product, installed.
pub struct Product {
    client: Client,
    kubectl: Program,
    overlay: PathBuf,
}

impl Product {
    pub(crate) async fn install(bed: &Bed) -> Result<Self> {
        let kubernetes = bed.kubernetes();
        let images = images()?;
        for name in ["hadoop-token-csi-driver.tar", "hadoop-token-csi-controller.tar"] {
            kubernetes.import(&images.join(name)).await?;
        }
        let overlay = bed.state().join("product");
        write_overlay(&overlay, bed).await?;
        let product = Self { client: kubernetes.client(), kubectl: kubernetes.kubectl(), overlay };
        product.apply().await?;
        product.until_ready().await?;
        Ok(product)
    }

    /// Applies the overlay as it is in its folder now.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn apply(&self) -> Result<()> {
        self.kubectl().args(["apply", "-k"]).arg(&self.overlay).succeed().await.map(drop)
    }

    /// The folder of the overlay: `driver.yaml`, `controller.yaml` and the rest.
    #[must_use]
    pub fn overlay(&self) -> &Path {
        &self.overlay
    }

    /// Changes the controller's configuration, and has it run with that for as long as `test` does.
    ///
    /// # Errors
    /// Those of `test`, and when the controller does not become ready with either configuration.
    pub async fn with_controller<F>(
        &self,
        change: impl FnOnce(&mut serde_json::Value),
        test: impl FnOnce() -> F,
    ) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        let file = self.overlay.join("controller.yaml");
        let saved = fs::read(&file)?;
        let mut changed = serde_json::from_slice(&saved)?;
        change(&mut changed);
        write(&self.overlay, "controller.yaml", &changed)?;
        let outcome = async {
            self.apply().await?;
            self.until_ready().await?;
            test().await
        };
        let outcome = outcome.await;
        let restored = async {
            fs::write(&file, saved)?;
            self.apply().await?;
            self.until_ready().await
        };
        outcome.and(restored.await)
    }

    /// Has kubelet bring the pods of both programs what Secrets and ConfigMaps hold now, and waits until `file` of the
    /// program's volume is as it is in the overlay, for each of `(pod, volume, file, file in the overlay)`.
    ///
    /// # Errors
    /// When it does not come to that.
    pub async fn until_mounted(&self, files: &[(&Running, &str, &str, &str)]) -> Result<()> {
        self.apply().await?;
        until("brought: new files to pods", TAKE_UP_LIMIT, async || {
            for (pod, volume, file, source) in files {
                self.have_looked_at(pod).await?;
                let folder = Path::new(KUBELET).join("pods").join(pod.uid().await?).join("volumes");
                let mounted = fs::read(folder.join(volume).join(file))?;
                anyhow::ensure!(mounted == fs::read(self.overlay.join(source))?, "{file} is the old one");
            }
            Ok(())
        })
        .await
    }

    /// kubelet looks after a pod's files when something about the pod changes, or once a minute.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn have_looked_at(&self, pod: &Running) -> Result<()> {
        let noted = format!("bed/looked={}", Timestamp::now().as_millisecond());
        let pod = format!("pod/{}", pod.name());
        self.kubectl().args(["annotate", "--overwrite", &pod, &noted]).succeed().await.map(drop)
    }

    /// Gives the running controller other public keys of seals, and waits until it has taken them up.
    ///
    /// # Errors
    /// When it does not.
    pub async fn publish_seal_keys(&self, keys: &[&SealingKey]) -> Result<()> {
        let file = self.overlay.join(SEAL_KEYS);
        let before = fs::read(&file)?;
        write_keys(&file, keys)?;
        if fs::read(&file)? == before {
            return Ok(());
        }
        self.apply().await?;
        let mut ids: Vec<String> = keys.iter().map(|key| key.public_jwk().id()).collect();
        ids.sort();
        let ids = ids.join(" ");
        let controller = self.controller().await?;
        until("taken up: the seal keys", TAKE_UP_LIMIT, async || {
            self.have_looked_at(&controller).await?;
            let log = controller.logs().await?;
            let last = log.lines().rfind(|line| line.contains("Took up new seal keys")).unwrap_or_default();
            anyhow::ensure!(last.contains(&ids), "the controller says {last:?}, not {ids:?}");
            Ok(())
        })
        .await
    }

    /// Waits until node plugin and controller are ready.
    ///
    /// # Errors
    /// When they are not in time, with their events and logs.
    pub async fn until_ready(&self) -> Result<()> {
        for workload in [CONTROLLER_WORKLOAD, DRIVER_WORKLOAD] {
            self.until_rolled_out(workload).await?;
        }
        Ok(())
    }

    async fn until_rolled_out(&self, workload: &str) -> Result<()> {
        let limit = format!("--timeout={}s", READY_LIMIT.as_secs());
        let status = self.kubectl().args(["rollout", "status", workload, &limit]).succeed().await;
        if let Err(error) = status {
            return Err(error.context(self.troubles().await));
        }
        Ok(())
    }

    /// Events and logs of the product's pods.
    async fn troubles(&self) -> String {
        let mut found = String::new();
        for words in [
            vec!["get", "pods", "--output=wide"],
            vec!["get", "events", "--sort-by=.lastTimestamp"],
            vec!["logs", "--prefix", "--tail=30", "--selector=app.kubernetes.io/name=hadoop-token-csi"],
        ] {
            found += &match self.kubectl().args(words).output().await {
                Ok(output) => output.stdout + &output.stderr,
                Err(error) => format!("{error:#}\n"),
            };
        }
        found
    }

    /// The node plugin's pod.
    ///
    /// # Errors
    /// When there is not exactly one.
    pub async fn driver(&self) -> Result<Running> {
        self.pod("driver").await
    }

    /// The controller's pod.
    ///
    /// # Errors
    /// When there is not exactly one.
    pub async fn controller(&self) -> Result<Running> {
        self.pod("controller").await
    }

    /// How often the container of a part was started again.
    ///
    /// # Errors
    /// When there is not exactly one pod of it.
    pub async fn restarts(&self, part: Part) -> Result<i32> {
        Ok(restarts(&self.pod(part.component()).await?.get().await?))
    }

    /// Waits until the container of a part was started again, and is ready.
    ///
    /// # Errors
    /// When it is not in time, with the product's events and logs.
    pub async fn until_restarted(&self, part: Part, before: i32) -> Result<()> {
        let what = format!("back: the {}", part.component());
        let restarted = until(&what, READY_LIMIT, async || {
            let pod = self.pod(part.component()).await?.get().await?;
            anyhow::ensure!(restarts(&pod) > before, "not started again yet");
            anyhow::ensure!(is_ready(&pod), "not ready yet");
            Ok(())
        });
        match restarted.await {
            Ok(()) => Ok(()),
            Err(error) => Err(error.context(self.troubles().await)),
        }
    }

    /// The controller's audit log since it started, record by record.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub async fn audit(&self) -> Result<Vec<serde_json::Value>> {
        let log = self.kubectl().args(["logs", CONTROLLER_WORKLOAD]).succeed().await?;
        let records = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        Ok(records.filter(|record| record.get("decision").is_some()).collect())
    }

    async fn pod(&self, component: &str) -> Result<Running> {
        let mut names = self.pod_names(component).await?;
        let name = names.pop().with_context(|| format!("there is no {component}"))?;
        anyhow::ensure!(names.is_empty(), "there is more than one {component}");
        Ok(Running::new(NAMESPACE, &name, self.client.clone(), self.kubectl.clone()))
    }

    async fn pod_names(&self, component: &str) -> Result<Vec<String>> {
        let labels =
            format!("app.kubernetes.io/name=hadoop-token-csi,app.kubernetes.io/component={component}");
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let pods = pods.list(&ListParams::default().labels(&labels)).await?;
        Ok(pods.items.into_iter().filter_map(|pod| pod.metadata.name).collect())
    }

    /// Takes the controller away.
    ///
    /// # Errors
    /// When it does not go.
    pub async fn stop_controller(&self) -> Result<()> {
        self.kubectl().args(["scale", CONTROLLER_WORKLOAD, "--replicas=0"]).succeed().await?;
        until("gone: the controller", READY_LIMIT, async || {
            let names = self.pod_names("controller").await?;
            anyhow::ensure!(names.is_empty(), "there are {names:?}");
            Ok(())
        })
        .await
    }

    /// Brings the controller back, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start_controller(&self) -> Result<()> {
        self.kubectl().args(["scale", CONTROLLER_WORKLOAD, "--replicas=1"]).succeed().await?;
        self.until_rolled_out(CONTROLLER_WORKLOAD).await
    }

    /// Takes the node plugin away.
    ///
    /// # Errors
    /// When it does not go.
    pub async fn stop_driver(&self) -> Result<()> {
        self.put_driver_on(json!({"bed/nowhere": ""})).await?;
        until("gone: the driver", READY_LIMIT, async || {
            let names = self.pod_names("driver").await?;
            anyhow::ensure!(names.is_empty(), "there are {names:?}");
            Ok(())
        })
        .await
    }

    /// Brings the node plugin back, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start_driver(&self) -> Result<()> {
        self.put_driver_on(json!({"bed/nowhere": null})).await?;
        self.until_rolled_out(DRIVER_WORKLOAD).await
    }

    /// Has it run on nodes with these labels, besides those it asks for anyway.
    async fn put_driver_on(&self, labels: Value) -> Result<()> {
        let patch = json!({"spec": {"template": {"spec": {"nodeSelector": labels}}}}).to_string();
        let words = ["patch", DRIVER_WORKLOAD, "--type=merge", "--patch", &patch];
        self.kubectl().args(words).succeed().await.map(drop)
    }

    /// Replaces the node plugin's pod by a new one, and waits until that is ready.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restart_driver(&self) -> Result<()> {
        self.driver().await?.delete(READY_LIMIT).await?;
        self.until_rolled_out(DRIVER_WORKLOAD).await
    }

    fn kubectl(&self) -> Program {
        self.kubectl.clone().args(["--namespace", NAMESPACE])
    }
}

fn restarts(pod: &Pod) -> i32 {
    let containers = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    containers.into_iter().flatten().map(|container| container.restart_count).sum()
}

/// The root of the source tree.
#[must_use]
pub fn source() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

/// The controller's program as it is in the image, for what can be asked of it outside of a pod.
///
/// # Errors
/// When it is not known where cargo puts programs.
pub fn controller_program() -> Result<PathBuf> {
    Ok(programs()?.join("hadoop-token-csi-controller"))
}

pub(crate) fn images() -> Result<PathBuf> {
    Ok(programs()?.join("image-archives"))
}
