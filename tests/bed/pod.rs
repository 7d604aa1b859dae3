//! Pods for tests: what to write into one, and what to ask of one that is there. Waiting is watching: the API server
//! says when something has changed.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use identity::{DO_AS_ATTRIBUTE, DRIVER_NAME, seal::SealingKey};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams},
    runtime::{conditions::is_deleted, wait::await_condition},
};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    Bed, image,
    kubernetes::Kubernetes,
    namenode::Cluster,
    process::{Output, Program, until},
    provision::Tools,
    seal::Sealing,
};

/// Where test pods mount the driver's volume.
pub const TOKEN_FOLDER: &str = "/etc/hadoop-token";
/// Name of the volume.
pub const VOLUME: &str = "hadoop-token";
/// The token file in it.
pub const TOKEN_FILE: &str = "/etc/hadoop-token/token";

const CONTAINER: &str = "main";
const CLIENTS: &str = "/etc/hadoop";
const JARS: &str = "/opt/hadoop";
const RUN_LIMIT: Duration = Duration::from_secs(60);

/// A pod to be. Runs `sleep` until it is deleted unless told otherwise; never restarts; has no service-account token
/// of its own. If somebody submits it, it is sealed when it is created.
#[derive(Clone)]
pub struct Draft {
    pod: Value,
    sealing: Option<Sealing>,
}

impl Draft {
    /// A pod of that name in namespace `default`, from the image [`image::TOOLS`].
    #[must_use]
    pub fn new(name: &str) -> Self {
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "annotations": {}},
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": false,
                "securityContext": {},
                "containers": [{
                    "name": CONTAINER,
                    "image": image::TOOLS,
                    "imagePullPolicy": "Never",
                    "command": ["sleep", "2147483647"],
                    "env": [],
                    "volumeMounts": [],
                }],
                "volumes": [],
            },
        });
        Self { pod, sealing: None }
    }

    /// In another namespace, which must exist.
    #[must_use]
    pub fn namespace(self, namespace: &str) -> Self {
        self.set("/metadata/namespace", json!(namespace))
    }

    /// With an annotation.
    #[must_use]
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        if let Some(annotations) =
            self.pod.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut)
        {
            annotations.insert(name.to_owned(), json!(value));
        }
        self
    }

    /// With a command other than `sleep`.
    #[must_use]
    pub fn command(self, words: &[&str]) -> Self {
        self.set("/spec/containers/0/command", json!(words))
    }

    /// With a shell script as its command.
    #[must_use]
    pub fn script(self, script: &str) -> Self {
        self.command(&["sh", "-c", script])
    }

    /// With an environment variable.
    #[must_use]
    pub fn env(self, name: &str, value: &str) -> Self {
        self.push("/spec/containers/0/env", json!({"name": name, "value": value}))
    }

    /// Running as a user other than root, whose pod's volumes belong to a group.
    #[must_use]
    pub fn run_as(self, user: u32, fs_group: Option<u32>) -> Self {
        let context = match fs_group {
            Some(group) => json!({"runAsUser": user, "runAsGroup": user, "fsGroup": group}),
            None => json!({"runAsUser": user, "runAsGroup": user}),
        };
        self.set("/spec/securityContext", context)
    }

    /// With the driver's volume at [`TOKEN_FOLDER`], submitted by `user`, and Hadoop clients told of it.
    #[must_use]
    pub fn token_of(self, user: &str) -> Self {
        self.submitter(user, &[]).token_volume(&json!({"driver": DRIVER_NAME, "readOnly": true}))
    }

    /// The same for a certain cluster.
    #[must_use]
    pub fn token_of_at(self, user: &str, cluster: Cluster) -> Self {
        let attributes = json!({"cluster": cluster.name()});
        self.submitter(user, &[])
            .token_volume(&json!({"driver": DRIVER_NAME, "readOnly": true, "volumeAttributes": attributes}))
    }

    /// Submitted, as the seal says, by this Kubernetes user, who is in these groups and in `system:authenticated`.
    #[must_use]
    pub fn submitter(mut self, user: &str, groups: &[&str]) -> Self {
        match &mut self.sealing {
            Some(sealing) => sealing.with_submitter(user, groups),
            none => *none = Some(Sealing::of(user, groups)),
        }
        self
    }

    /// With every volume of the driver asking for a headless account.
    #[must_use]
    pub fn do_as(mut self, account: &str) -> Self {
        let volumes = self.pod.pointer_mut("/spec/volumes").and_then(Value::as_array_mut);
        let sections = volumes.into_iter().flatten().filter_map(|volume| volume.get_mut("csi"));
        for csi in sections.filter_map(Value::as_object_mut) {
            if csi.get("driver").and_then(Value::as_str) == Some(DRIVER_NAME) {
                let attributes = csi.entry("volumeAttributes").or_insert_with(|| json!({}));
                if let Some(attributes) = attributes.as_object_mut() {
                    attributes.insert(DO_AS_ATTRIBUTE.to_owned(), json!(account));
                }
            }
        }
        self
    }

    /// Says who submits it, but is not sealed.
    ///
    /// # Panics
    /// When nobody submits it.
    #[must_use]
    pub fn unsealed(self) -> Self {
        self.sealing(Sealing::unsealed)
    }

    /// Sealed with another key than the bed's.
    ///
    /// # Panics
    /// When nobody submits it.
    #[must_use]
    pub fn sealed_with(self, key: &Arc<SealingKey>) -> Self {
        self.sealing(|sealing| sealing.with_key(key.clone()))
    }

    fn sealing(mut self, change: impl FnOnce(&mut Sealing)) -> Self {
        change(self.sealing.as_mut().expect("somebody submits the pod"));
        self
    }

    /// With a volume of exactly this `csi` section, at [`TOKEN_FOLDER`], and Hadoop clients told of it.
    #[must_use]
    pub fn token_volume(self, csi: &Value) -> Self {
        self.push("/spec/volumes", json!({"name": VOLUME, "csi": csi}))
            .push(
                "/spec/containers/0/volumeMounts",
                json!({"name": VOLUME, "mountPath": TOKEN_FOLDER, "readOnly": true}),
            )
            .env("HADOOP_TOKEN_FILE_LOCATION", TOKEN_FILE)
    }

    /// With Java and Hadoop's jars instead of [`image::TOOLS`]; see [`Running::hadoop`]. No Kerberos configuration.
    #[must_use]
    pub fn java(self, bed: &Bed) -> Self {
        let java = bed.tools().java_home.display().to_string();
        let jars = bed.tools().hadoop.display().to_string();
        let clients = bed.client_configurations().join("pods").display().to_string();
        let mut draft = self
            .set("/spec/containers/0/image", json!(image::JAVA))
            .host_path("usr", "/usr", "/usr")
            .host_path("jars", &jars, JARS)
            .host_path("clients", &clients, CLIENTS);
        if !java.starts_with("/usr/") {
            draft = draft.host_path("java", &java, &java);
        }
        // Debian's JDK keeps its settings in /etc, behind links.
        for (number, folder) in outside_links(Path::new(&java)).iter().enumerate() {
            draft = draft.host_path(&format!("java-{number}"), folder, folder);
        }
        draft.env("JAVA_HOME", &java)
    }

    /// With a folder of the node, read-only.
    #[must_use]
    pub fn host_path(self, name: &str, folder: &str, path: &str) -> Self {
        self.push("/spec/volumes", json!({"name": name, "hostPath": {"path": folder, "type": "Directory"}}))
            .push(
                "/spec/containers/0/volumeMounts",
                json!({"name": name, "mountPath": path, "readOnly": true}),
            )
    }

    /// Sets anything at a JSON pointer whose parent is there.
    ///
    /// # Panics
    /// When the parent is not there.
    #[must_use]
    pub fn set(mut self, pointer: &str, value: Value) -> Self {
        let (parent, name) = pointer.rsplit_once('/').expect("a JSON pointer begins with a slash");
        match self.pod.pointer_mut(parent) {
            Some(Value::Object(object)) => object.insert(name.to_owned(), value),
            _ => panic!("{parent} is no object in the pod"),
        };
        self
    }

    /// Appends to a list at a JSON pointer.
    ///
    /// # Panics
    /// When there is no list.
    #[must_use]
    pub fn push(mut self, pointer: &str, value: Value) -> Self {
        match self.pod.pointer_mut(pointer) {
            Some(Value::Array(list)) => list.push(value),
            _ => panic!("{pointer} is no list in the pod"),
        }
        self
    }

    /// The pod as it is now, not sealed.
    #[must_use]
    pub fn json(&self) -> &Value {
        &self.pod
    }

    /// The pod as it is created, sealed now with `key` unless with another.
    ///
    /// # Errors
    /// When it cannot be sealed.
    pub fn admitted(&self, key: &SealingKey) -> Result<Value> {
        let mut pod = self.pod.clone();
        if let Some(sealing) = &self.sealing {
            sealing.apply(key, &mut pod)?;
        }
        Ok(pod)
    }
}

/// Folders of `/etc` that links in a JDK lead to.
fn outside_links(java_home: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for name in ["conf/net.properties", "conf/security/java.security", "lib/security/default.policy"] {
        let Ok(target) = std::fs::canonicalize(java_home.join(name)) else { continue };
        if let Ok(below) = target.strip_prefix("/etc")
            && let Some(folder) = below.components().next()
        {
            found.insert(Path::new("/etc").join(folder).display().to_string());
        }
    }
    found
}

impl Kubernetes {
    /// Creates a pod, without waiting for it.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn create(&self, draft: &Draft) -> Result<Running> {
        self.create_as(self.client(), draft).await
    }

    /// Creates a pod with somebody's client.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn create_as(&self, client: Client, draft: &Draft) -> Result<Running> {
        let pod: Pod = serde_json::from_value(draft.admitted(self.sealing_key())?)?;
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let created = Api::<Pod>::namespaced(client, &namespace)
            .create(&PostParams::default(), &pod)
            .await
            .context("failed to create a pod")?;
        Ok(self.pod(&namespace, &created.metadata.name.unwrap_or_default()))
    }

    /// Creates a pod, and waits until it runs.
    ///
    /// # Errors
    /// When it does not run within a minute, with its events.
    pub async fn run(&self, draft: &Draft) -> Result<Running> {
        let pod = self.create(draft).await?;
        pod.until_running(RUN_LIMIT).await?;
        Ok(pod)
    }

    /// A pod that is there.
    #[must_use]
    pub fn pod(&self, namespace: &str, name: &str) -> Running {
        Running::new(namespace, name, self.client(), self.kubectl())
    }
}

/// A pod in the API server, running or not.
#[derive(Clone)]
pub struct Running {
    namespace: String,
    name: String,
    client: Client,
    kubectl: Program,
}

impl Running {
    pub(crate) fn new(namespace: &str, name: &str, client: Client, kubectl: Program) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned(), client, kubectl }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// As the API server has it now.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn get(&self) -> Result<Pod> {
        Ok(self.pods().get(&self.name).await?)
    }

    /// As the API server has it now; none when it is gone.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn find(&self) -> Result<Option<Pod>> {
        Ok(self.pods().get_opt(&self.name).await?)
    }

    /// Its UID.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn uid(&self) -> Result<String> {
        self.get().await?.metadata.uid.context("the pod has no UID")
    }

    /// Waits until `condition` holds.
    ///
    /// # Errors
    /// When the time is up, or the pod is gone: with phase and events of the pod.
    pub async fn until(&self, what: &str, limit: Duration, condition: impl Fn(&Pod) -> bool) -> Result<Pod> {
        let holds = |pod: Option<&Pod>| pod.is_some_and(&condition);
        match timeout(limit, await_condition(self.pods(), &self.name, holds)).await {
            Ok(pod) => pod?.context("the pod is gone"),
            Err(_) => {
                let phase = match self.get().await {
                    Ok(pod) => phase(&pod).to_owned(),
                    Err(error) => error.to_string(),
                };
                let events = self.events().await?.join("\n  ");
                bail!(
                    "pod {} is not {what} after {} s but {phase}; events:\n  {events}",
                    self.name,
                    limit.as_secs()
                )
            }
        }
    }

    /// Waits until its container runs.
    ///
    /// # Errors
    /// As [`Running::until`]; also when it has ended.
    pub async fn until_running(&self, limit: Duration) -> Result<()> {
        let pod = self.until("running", limit, |pod| !["", "Pending"].contains(&phase(pod))).await?;
        match phase(&pod) {
            "Running" => Ok(()),
            other => bail!("pod {} has {other} instead of running:\n{}", self.name, self.logs().await?),
        }
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// As [`Running::until`].
    pub async fn until_ready(&self, limit: Duration) -> Result<()> {
        self.until("ready", limit, is_ready).await.map(drop)
    }

    /// Waits until it has ended by itself, well, and gives its log.
    ///
    /// # Errors
    /// As [`Running::until`]; also when it failed, with its log.
    pub async fn until_succeeded(&self, limit: Duration) -> Result<String> {
        let ended = |pod: &Pod| ["Succeeded", "Failed"].contains(&phase(pod));
        let pod = self.until("at its end", limit, ended).await?;
        let logs = self.logs().await?;
        ensure!(phase(&pod) == "Succeeded", "pod {} failed:\n{logs}", self.name);
        Ok(logs)
    }

    /// Waits until it has an event that contains `text`, and gives the whole event.
    ///
    /// # Errors
    /// When the time is up, with the events there are.
    pub async fn until_event(&self, text: &str, limit: Duration) -> Result<String> {
        until(&format!("an event with {text:?}"), limit, async || {
            let events = self.events().await?;
            let found = events.iter().find(|event| event.contains(text)).cloned();
            found.with_context(|| format!("events:\n  {}", events.join("\n  ")))
        })
        .await
    }

    /// Its events, oldest first: reason and message.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn events(&self) -> Result<Vec<String>> {
        let fields = format!("involvedObject.kind=Pod,involvedObject.name={}", self.name);
        let events: Api<Event> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut found = events.list(&ListParams::default().fields(&fields)).await?.items;
        found.sort_by_key(|event| event.first_timestamp.clone());
        Ok(found
            .into_iter()
            .map(|event| {
                format!("{}: {}", event.reason.unwrap_or_default(), event.message.unwrap_or_default())
            })
            .collect())
    }

    /// What its container has written.
    ///
    /// # Errors
    /// When there is no log.
    pub async fn logs(&self) -> Result<String> {
        self.kubectl.clone().args(["--namespace", &self.namespace, "logs", &self.name]).succeed().await
    }

    /// Runs a command in its container.
    ///
    /// # Errors
    /// When kubectl cannot be run; not when the command fails, see [`Output`].
    pub async fn exec(&self, words: &[&str]) -> Result<Output> {
        let kubectl = self.kubectl.clone().args(["--namespace", &self.namespace, "exec", &self.name, "--"]);
        kubectl.args(words.iter().copied()).output().await
    }

    /// Reads a file in its container.
    ///
    /// # Errors
    /// When it cannot be read, or does not come whole.
    pub async fn read(&self, path: &str) -> Result<Vec<u8>> {
        let text = self.exec(&["base64", path]).await?.success()?;
        BASE64_STANDARD.decode(text.replace('\n', "")).with_context(|| format!("{path} did not come whole"))
    }

    /// Runs Java's HDFS shell in a pod that was made with [`Draft::java`].
    ///
    /// # Errors
    /// As [`Running::exec`].
    pub async fn hadoop(&self, tools: &Tools, cluster: Cluster, words: &[&str]) -> Result<Output> {
        let command = java_shell(tools, cluster, words);
        self.exec(&command.iter().map(String::as_str).collect::<Vec<_>>()).await
    }

    /// Runs the independent client in a pod of image [`image::TOOLS`].
    ///
    /// # Errors
    /// As [`Running::exec`].
    pub async fn hdfs_native(&self, cluster: Cluster, words: &[&str]) -> Result<Output> {
        let url = cluster.url();
        self.exec(&[&[image::HDFS_CLIENT, "--url", &url], words].concat()).await
    }

    /// Deletes it and waits until it is gone.
    ///
    /// # Errors
    /// When it is not gone within `limit`.
    pub async fn delete(&self, limit: Duration) -> Result<()> {
        let uid = self.uid().await?;
        self.delete_without_waiting().await?;
        self.until_gone_as(&uid, limit).await
    }

    /// Deletes it, and does not wait until it is gone.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn delete_without_waiting(&self) -> Result<()> {
        self.pods().delete(&self.name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Waits until somebody's deleting it is done.
    ///
    /// # Errors
    /// When it is not gone within `limit`.
    pub async fn until_gone(&self, limit: Duration) -> Result<()> {
        match self.pods().get_opt(&self.name).await? {
            Some(pod) => self.until_gone_as(&pod.metadata.uid.context("the pod has no UID")?, limit).await,
            None => Ok(()),
        }
    }

    async fn until_gone_as(&self, uid: &str, limit: Duration) -> Result<()> {
        match timeout(limit, await_condition(self.pods(), &self.name, is_deleted(uid))).await {
            Ok(gone) => gone.map(drop).map_err(Into::into),
            Err(_) => bail!("pod {} is still there after {} s", self.name, limit.as_secs()),
        }
    }
}

/// The command line of Java's HDFS shell in a pod that was made with [`Draft::java`].
#[must_use]
pub fn java_shell(tools: &Tools, cluster: Cluster, words: &[&str]) -> Vec<String> {
    let java = tools.java_home.join("bin/java").display().to_string();
    let classpath = format!("{CLIENTS}/{}:{JARS}/*", cluster.name());
    let fixed = [&java, "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-cp"];
    fixed
        .into_iter()
        .chain([classpath.as_str(), "org.apache.hadoop.fs.FsShell"])
        .chain(words.iter().copied())
        .map(str::to_owned)
        .collect()
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| {
        all.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    })
}
