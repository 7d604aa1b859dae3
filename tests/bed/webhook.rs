//! The admission webhook on the bed: installed as its manifests say, beside the product, and only for the tests that ask
//! for it. It seals by a key of its own. The others' pods seal themselves, and must find it gone.

mod keys;
mod overlay;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use identity::{SEAL_ANNOTATION, SUBMITTER_ANNOTATION, seal::SealingKey};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Mutex, OnceCell},
};

pub use self::keys::generate_key;
use self::overlay::{CONFIGURATION, HEALTH_PORT, SEALING_KEY, configuration, write_overlay};
use crate::{
    Bed,
    pod::{Draft, Running, is_ready},
    process::{Program, processes_of, until},
    product::{NAMESPACE, Product, images, source, write},
    progress::phase,
};

/// Name of its program.
pub const PROGRAM: &str = "hadoop-token-csi-webhook";
/// Name of its two registrations.
pub const REGISTRATION: &str = "hadoop-token-csi";
/// Where in an entry is whom the API server believes.
pub const BUNDLE: &str = "/clientConfig/caBundle";
/// Kinds of them.
pub const REGISTRATIONS: [&str; 2] = ["mutatingwebhookconfiguration", "validatingwebhookconfiguration"];

const WORKLOAD: &str = "deployment/hadoop-token-csi-webhook";
const LABELS: &str = "app.kubernetes.io/name=hadoop-token-csi,app.kubernetes.io/component=webhook";
const READY_LIMIT: Duration = Duration::from_secs(90);

/// The webhook, which may be installed or not.
pub struct Webhook {
    client: Client,
    kubectl: Program,
    overlay: PathBuf,
    key: SealingKey,
    installed: Mutex<bool>,
}

/// The one of a bed; see [`Bed::webhook`].
#[derive(Default)]
pub(crate) struct Place(OnceCell<Webhook>);

impl Place {
    pub(crate) async fn installed(&self, bed: &Bed) -> Result<&Webhook> {
        let product = bed.product().await?;
        let webhook = self.0.get_or_try_init(async || Webhook::prepare(bed).await).await?;
        webhook.install(bed, product).await?;
        Ok(webhook)
    }

    pub(crate) async fn alone(&self, bed: &Bed) -> Result<&Webhook> {
        let webhook = self.0.get_or_try_init(async || Webhook::prepare(bed).await).await?;
        ensure!(!*webhook.installed.lock().await, "the webhook is installed beside the product");
        let installed = webhook.install_alone(bed).await;
        if installed.is_err() {
            installed.and(webhook.remove().await)?;
        }
        Ok(webhook)
    }
}

impl Webhook {
    async fn prepare(bed: &Bed) -> Result<Self> {
        let kubernetes = bed.kubernetes();
        kubernetes.import(&images()?.join("hadoop-token-csi-webhook.tar")).await?;
        let overlay = bed.state().join("webhook");
        write_overlay(&overlay).await?;
        let key = SealingKey::from_pem(&fs::read_to_string(overlay.join("seal.pem"))?)?;
        Ok(Self {
            client: kubernetes.client(),
            kubectl: kubernetes.kubectl(),
            overlay,
            key,
            installed: Mutex::new(false),
        })
    }

    async fn install(&self, bed: &Bed, product: &Product) -> Result<()> {
        let mut installed = self.installed.lock().await;
        if *installed {
            return Ok(());
        }
        let install = async {
            product.publish_seal_keys(&[bed.kubernetes().sealing_key(), &self.key]).await?;
            write(&self.overlay, CONFIGURATION, &configuration())?;
            self.apply().await?;
            *installed = true;
            self.until_ready().await
        };
        phase("Installing the webhook", install).await
    }

    async fn install_alone(&self, bed: &Bed) -> Result<()> {
        let mut installed = self.installed.lock().await;
        let namespace = fs::read_to_string(source().join("deploy/kubernetes/namespace.yaml"))?;
        let mut configuration = configuration();
        if let Some(sections) = configuration.as_object_mut() {
            sections.insert("scope".to_owned(), json!("all"));
            // Nobody but the webhook has keys.
            sections.insert("seal".to_owned(), json!({"key": SEALING_KEY}));
        }
        let install = async {
            bed.kubernetes().apply(&namespace).await?;
            write(&self.overlay, CONFIGURATION, &configuration)?;
            self.apply().await?;
            *installed = true;
            self.until_ready().await
        };
        phase("Installing the webhook and nothing else", install).await
    }

    /// Takes it away, registrations and all; pods are not looked at any more. [`Bed::webhook`] brings it back.
    ///
    /// # Errors
    /// When something of it stays.
    pub async fn remove(&self) -> Result<()> {
        let mut installed = self.installed.lock().await;
        let timeout = format!("--timeout={}s", READY_LIMIT.as_secs());
        let delete = self.kubectl().args(["delete", "--ignore-not-found", &timeout, "-k"]).arg(&self.overlay);
        delete.succeed().await?;
        *installed = false;
        self.until_replicas(0).await
    }

    /// The key that it seals with. The controller is given the public half.
    #[must_use]
    pub fn sealing_key(&self) -> &SealingKey {
        &self.key
    }

    /// The folder of its overlay, with `webhook.yaml` and `seal.pem`.
    #[must_use]
    pub fn overlay(&self) -> &Path {
        &self.overlay
    }

    /// Applies the overlay as it is in its folder now.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn apply(&self) -> Result<()> {
        self.kubectl().args(["apply", "-k"]).arg(&self.overlay).succeed().await.map(drop)
    }

    /// Changes its configuration, and has it run with that for as long as `test` does.
    ///
    /// # Errors
    /// Those of `test`, and when it does not become ready with either configuration.
    pub async fn with_configuration<F>(
        &self,
        change: impl FnOnce(&mut Value),
        test: impl FnOnce() -> F,
    ) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        let file = self.overlay.join(CONFIGURATION);
        let saved = fs::read(&file)?;
        let mut changed = serde_json::from_slice(&saved)?;
        change(&mut changed);
        write(&self.overlay, CONFIGURATION, &changed)?;
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

    /// Waits until its replicas are ready, all entries of both registrations have an authority, and a pod that is only
    /// tried is stamped.
    ///
    /// # Errors
    /// When that is not in time, with its events and logs.
    pub async fn until_ready(&self) -> Result<()> {
        let limit = format!("--timeout={}s", READY_LIMIT.as_secs());
        let ready = async {
            self.kubectl().args(["rollout", "status", WORKLOAD, &limit]).succeed().await?;
            until("gone: replicas that were replaced", READY_LIMIT, async || {
                let stays = |pod: &Pod| pod.metadata.deletion_timestamp.is_none();
                ensure!(self.listed().await?.iter().all(stays), "one has not ended yet");
                Ok(())
            })
            .await?;
            until("registered: the webhook", READY_LIMIT, async || self.is_registered().await).await?;
            until("answering: the webhook", READY_LIMIT, async || self.stamps().await).await
        };
        let ready: Result<()> = ready.await;
        match ready {
            Ok(()) => Ok(()),
            Err(error) => Err(error.context(self.troubles().await)),
        }
    }

    async fn is_registered(&self) -> Result<()> {
        for kind in REGISTRATIONS {
            let entries = self.entries(kind).await?;
            let authority = |entry: &Value| entry.pointer(BUNDLE).is_some();
            ensure!(!entries.is_empty() && entries.iter().all(authority), "an entry has no authority yet");
        }
        Ok(())
    }

    /// One of its [`REGISTRATIONS`] as it is now.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn registration(&self, kind: &str) -> Result<Value> {
        let text = self.kubectl().args(["get", kind, REGISTRATION, "-o", "json"]).succeed().await?;
        Ok(serde_json::from_str(&text)?)
    }

    /// The entries of one of its [`REGISTRATIONS`] as they are now.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn entries(&self, kind: &str) -> Result<Vec<Value>> {
        let object = self.registration(kind).await?;
        Ok(object.get("webhooks").and_then(Value::as_array).cloned().unwrap_or_default())
    }

    /// Has the API server try a pod that wants a token, and nothing more.
    async fn stamps(&self) -> Result<()> {
        let draft = Draft::new("probe-of-the-webhook").token_volume(&json!({
            "driver": identity::DRIVER_NAME,
            "readOnly": true,
        }));
        let pod: Pod = serde_json::from_value(draft.json().clone())?;
        let try_only = PostParams { dry_run: true, ..PostParams::default() };
        let tried = Api::<Pod>::default_namespaced(self.client.clone()).create(&try_only, &pod).await?;
        let annotations = tried.metadata.annotations.unwrap_or_default();
        for name in [SUBMITTER_ANNOTATION, SEAL_ANNOTATION] {
            ensure!(annotations.contains_key(name), "a pod is not stamped: {annotations:?}");
        }
        Ok(())
    }

    /// Events and logs of its pods.
    async fn troubles(&self) -> String {
        let mut found = String::new();
        for words in [
            vec!["get", "pods", "--output=wide", "--selector", LABELS],
            vec!["get", "events", "--sort-by=.lastTimestamp"],
            vec!["logs", "--prefix", "--tail=50", "--selector", LABELS],
        ] {
            found += &match self.kubectl().args(words).output().await {
                Ok(output) => output.stdout + &output.stderr,
                Err(error) => format!("{error:#}\n"),
            };
        }
        found
    }

    /// Its pods, ready or not.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn pods(&self) -> Result<Vec<Running>> {
        let pods = self.listed().await?.into_iter().filter_map(|pod| pod.metadata.name);
        let running =
            |name: String| Running::new(NAMESPACE, &name, self.client.clone(), self.kubectl.clone());
        Ok(pods.map(running).collect())
    }

    async fn listed(&self) -> Result<Vec<Pod>> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        Ok(pods.list(&ListParams::default().labels(LABELS)).await?.items)
    }

    async fn until_replicas(&self, number: usize) -> Result<()> {
        until(&format!("there: {number} replicas of the webhook"), READY_LIMIT, async || {
            let pods = self.listed().await?;
            ensure!(pods.len() == number && pods.iter().all(is_ready), "there are {}", pods.len());
            Ok(())
        })
        .await
    }

    /// The log of all replicas that are there.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn logs(&self) -> Result<String> {
        self.kubectl().args(["logs", "--tail=-1", "--selector", LABELS]).succeed().await
    }

    /// The numbers of each replica, in OpenMetrics' text form.
    ///
    /// # Errors
    /// When one does not answer.
    pub async fn metrics(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for pod in self.listed().await? {
            let address = pod.status.and_then(|status| status.pod_ip).context("a replica has no address")?;
            let mut connection = TcpStream::connect((address.as_str(), HEALTH_PORT)).await?;
            connection.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
            let mut answer = String::new();
            connection.read_to_string(&mut answer).await?;
            found.push(answer);
        }
        Ok(found)
    }

    /// Has so many replicas.
    ///
    /// # Errors
    /// When they do not become ready.
    pub async fn scale(&self, replicas: usize) -> Result<()> {
        self.kubectl().args(["scale", WORKLOAD, &format!("--replicas={replicas}")]).succeed().await?;
        self.until_replicas(replicas).await
    }

    /// Has two replicas for as long as `test` lasts.
    ///
    /// # Errors
    /// Those of `test`, and when the second one does not become ready or does not go.
    pub async fn with_two_replicas<F>(&self, test: impl FnOnce() -> F) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        let outcome = async {
            self.scale(2).await?;
            self.until_ready().await?;
            test().await
        };
        let outcome = outcome.await;
        outcome.and(self.scale(1).await)
    }

    /// Takes all replicas away. The registrations stay.
    ///
    /// # Errors
    /// When they do not go.
    pub async fn stop(&self) -> Result<()> {
        self.scale(0).await
    }

    /// The end of [`Self::stop`].
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start(&self) -> Result<()> {
        self.scale(1).await?;
        self.until_ready().await
    }

    /// Replaces its replicas one after the other, as an upgrade does.
    ///
    /// # Errors
    /// When they do not become ready.
    pub async fn restart(&self) -> Result<()> {
        self.kubectl().args(["rollout", "restart", WORKLOAD]).succeed().await?;
        self.until_ready().await
    }

    /// Its processes.
    ///
    /// # Errors
    /// When processes cannot be listed.
    pub fn pids(&self) -> Result<Vec<Pid>> {
        processes_of(PROGRAM)
    }

    fn kubectl(&self) -> Program {
        self.kubectl.clone().args(["--namespace", NAMESPACE])
    }
}
