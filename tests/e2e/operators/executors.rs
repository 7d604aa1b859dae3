//! Pods that pods make, as Spark's drivers make their executors: with the token of a service account that kubelet has
//! bound to the pod. Whose they are is configured.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    harness::Test,
    host::KUBELET,
    namenode::{Cluster, private_content},
    pod::{Draft, Running},
    users::{Bound, JOBS, ROBOT, service_account_token},
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    AUDIENCE, RUN_LIMIT,
    jobs::reading,
    played::{account, api, of_kind, reference, set_up, spark_pod, submit},
    sealed,
};
use crate::{
    GONE_LIMIT,
    attacks::stage::{Stage, draft},
};

const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn tests() -> Vec<Test> {
    bed::tests![
        a_spark_drivers_executors_are_its_accounts_unless_configured_otherwise,
        a_spark_drivers_executors_read_hdfs_as_its_submitter_where_configured,
    ]
}

async fn a_spark_drivers_executors_are_its_accounts_unless_configured_otherwise(bed: &Bed) -> Result<()> {
    let driver = Driver::start(bed, "makes").await?;
    let executor = driver.make(&driver.client, "makes-executor", "true").await?;
    sealed(bed, &executor, &robot()).await?;
    driver.end().await
}

async fn a_spark_drivers_executors_read_hdfs_as_its_submitter_where_configured(bed: &Bed) -> Result<()> {
    let inherit = json!([{"namespace": JOBS, "serviceAccounts": [ROBOT]}]);
    let configure = |configuration: &mut Value| {
        if let Some(sections) = configuration.as_object_mut() {
            sections.insert("inherit".to_owned(), inherit);
        }
    };
    bed.webhook().await?.with_configuration(configure, || inherits(bed)).await
}

async fn inherits(bed: &Bed) -> Result<()> {
    let kubernetes = bed.kubernetes();
    let driver = Driver::start(bed, "lends").await?;
    let executor = driver.make(&driver.client, "lends-executor", &reading("etl")).await?;
    sealed(bed, &executor, "etl").await?;
    let read = kubernetes.pod(JOBS, &executor.name_any()).until_succeeded(LIMIT).await?;
    ensure!(read == private_content(Cluster::Main, "etl"), "read {read:?}");

    // The same account without the pod is itself, and in another's pod it is that one's.
    let unbound =
        service_account_token(&driver.stage.users.intruder, JOBS, ROBOT, AUDIENCE, Bound::Nothing).await?;
    let unbound = kubernetes.client_with_token(&unbound).await?;
    sealed(bed, &driver.make(&unbound, "lends-nothing", "true").await?, &robot()).await?;
    let theirs = Draft::new("theirs")
        .namespace(JOBS)
        .set("/spec/serviceAccountName", json!(ROBOT))
        .set("/spec/automountServiceAccountToken", json!(true));
    let theirs = theirs.annotation(identity::CLUSTER_ANNOTATION, "main");
    let theirs = kubernetes.create_as(driver.stage.users.intruder.clone(), &theirs).await?;
    theirs.until_running(RUN_LIMIT).await?;
    let their_client = kubernetes.client_with_token(&token_of(&theirs).await?).await?;
    sealed(bed, &driver.make(&their_client, "lends-not", "true").await?, "intruder").await?;
    theirs.delete(GONE_LIMIT).await?;
    ensure!(driver.stage.owners()? == ["etl", "etl"], "tokens of {:?}", driver.stage.owners()?);
    driver.end().await
}

fn robot() -> String {
    format!("system:serviceaccount:{JOBS}:{ROBOT}")
}

/// What the token in a pod is that kubelet has put there.
async fn token_of(pod: &Running) -> Result<String> {
    let folder =
        Path::new(KUBELET).join(format!("pods/{}/volumes/kubernetes.io~projected", pod.uid().await?));
    let volume = fs::read_dir(&folder)?.next().context("no token is mounted")??;
    Ok(fs::read_to_string(volume.path().join("token"))?.trim().to_owned())
}

/// The running driver of a SparkApplication of `etl`.
struct Driver<'bed> {
    stage: Stage<'bed>,
    api: Api<kube::api::DynamicObject>,
    application: Value,
    pod: Running,
    /// The driver itself.
    client: Client,
}

impl<'bed> Driver<'bed> {
    async fn start(bed: &'bed Bed, name: &str) -> Result<Self> {
        let people = set_up(bed).await?;
        let stage = Stage::set(bed).await?;
        let shape = of_kind("SparkApplication")?;
        let application = api(&people.etl, &shape)?;
        let object = submit(&application, &shape, name, None).await?;
        let driver = draft(name)
            .set("/spec/serviceAccountName", json!(ROBOT))
            .set("/spec/automountServiceAccountToken", json!(true));
        let driver = spark_pod(driver, "driver", &object)?;
        let kubernetes = bed.kubernetes();
        let pod = kubernetes.create_as(account(bed, shape.operator).await?, &driver).await?;
        pod.until_running(RUN_LIMIT).await?;
        let client = kubernetes.client_with_token(&token_of(&pod).await?).await?;
        Ok(Self { stage, api: application, application: object, pod, client })
    }

    /// A pod that `client` makes as if it were an executor, running a script.
    async fn make(&self, client: &Client, name: &str, script: &str) -> Result<Pod> {
        let owner = serde_json::to_value(self.pod.get().await?)?;
        let pod = spark_pod(draft(name).script(script), "executor", &self.application)?
            .set("/metadata/ownerReferences", json!([reference(&owner)?]));
        let pods: Api<Pod> = Api::namespaced(client.clone(), JOBS);
        Ok(pods.create(&PostParams::default(), &serde_json::from_value(pod.json().clone())?).await?)
    }

    /// Ends it, with all that it made.
    async fn end(self) -> Result<()> {
        self.api.delete(self.pod.name(), &DeleteParams::background()).await?;
        self.pod.until_gone(GONE_LIMIT).await?;
        self.stage.ends().await
    }
}
