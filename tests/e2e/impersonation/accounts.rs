//! Service accounts that make pods, and users whose names look like those of Kubernetes' own: each is itself. Only where
//! it is configured does a pod hand its submitter on, to what it makes with a token of its own.

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    pod::{Draft, Running},
    users::{Bound, JOBS, ROBOT, TEAM, service_account_token},
};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::{Api, Client, api::PostParams};
use serde_json::{Value, json};

use super::scene::{Scene, annotations, at, is_of, plain, put_at, refused, wearing};
use crate::{GONE_LIMIT, attacks::stage::draft};

const API_SERVER: &str = "https://kubernetes.default.svc";
const GATE: &str = "bed.test/attack";

pub(super) async fn a3_accounts_and_names_like_those_of_controllers_are_only_themselves(
    bed: &Bed,
) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let kubernetes = bed.kubernetes();
    let set = scene.submit("etl", &plain("ReplicaSet", "trusted")).await?;
    scene.runs_as(&scene.pod("trusted").await?, "etl").await?;
    let stolen = annotations(&set)?.clone();
    let owner = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true,
        "name": "trusted", "uid": at(&set, "/metadata/uid")?,
    }]);
    // An account of his own, of the name that the real controller has in kube-system.
    let accounts: Api<ServiceAccount> = Api::namespaced(scene.client("ads"), JOBS);
    let own = serde_json::from_value(json!({"metadata": {"name": "replicaset-controller"}}))?;
    accounts.create(&PostParams::default(), &own).await?;
    let rights = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "replicaset-controller", "namespace": JOBS},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ROBOT},
        "subjects": [{"kind": "ServiceAccount", "name": "replicaset-controller", "namespace": JOBS}],
    });
    kubernetes.apply(&rights.to_string()).await?;
    let account = |name: &str| format!("system:serviceaccount:{JOBS}:{name}");
    let evil = "evilsystem:serviceaccount:kube-system:replicaset-controller";
    for (number, (client, user, reason)) in [
        (scene.account(ROBOT).await?, account(ROBOT), "SERVICE_ACCOUNT_NOT_MAPPED"),
        (
            scene.account("replicaset-controller").await?,
            account("replicaset-controller"),
            "SERVICE_ACCOUNT_NOT_MAPPED",
        ),
        (kubernetes.client_as(evil, Some(TEAM)).await?, evil.to_owned(), "SUBMITTER_NOT_MAPPED"),
    ]
    .into_iter()
    .enumerate()
    {
        // With all that a pod of that ReplicaSet has, but for the label by which it would be counted.
        let pretends = wearing(draft(&format!("pretends-{number}")), &stolen);
        let claiming = pretends.clone().set("/metadata/ownerReferences", owner.clone());
        let claiming = claiming
            .set("/metadata/labels", json!({"app": "trusted"}))
            .set("/spec/schedulingGates", json!([{"name": GATE}]));
        let trial = PostParams { dry_run: true, ..PostParams::default() };
        let pods: Api<Pod> = Api::namespaced(client.clone(), JOBS);
        let claimed = pods.create(&trial, &serde_json::from_value(claiming.json().clone())?).await?;
        let submitter = claimed.metadata.annotations.unwrap_or_default();
        let submitter = submitter.get(identity::SUBMITTER_ANNOTATION).cloned();
        ensure!(submitter.as_ref() == Some(&user), "{user} made a pod of {submitter:?}");
        let pod = kubernetes.create_as(client, &pretends).await?;
        ensure!(scene.seal(&pod).await?.submitter == user, "{user} made another's pod");
        let event = scene.waits(&pod, reason, &["etl"]).await.context(user)?;
        ensure!(event.contains(&format!("[{reason}]")), "{event}");
        pod.delete(GONE_LIMIT).await?;
    }
    accounts.delete("replicaset-controller", &Default::default()).await?;
    scene.remove("ReplicaSet", "trusted").await?;
    scene.ends(&["etl"]).await
}

pub(super) async fn a4_an_operator_that_is_not_named_hands_nobodys_name_on(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    // It copies what it found on an object of etl's, from wherever, into what it makes.
    let job = scene.submit("etl", &other_job()?).await?;
    is_of(&job, "etl")?;
    let operator = scene.account(ROBOT).await?;
    let copied = wearing(draft("handed-on"), annotations(&job)?);
    let owned = copied.set(
        "/metadata/ownerReferences",
        json!([{
            "apiVersion": "batch/v1", "kind": "Job", "controller": true,
            "name": "submitted", "uid": at(&job, "/metadata/uid")?,
        }]),
    );
    let pod = bed.kubernetes().create_as(operator, &owned).await?;
    let own = format!("system:serviceaccount:{JOBS}:{ROBOT}");
    ensure!(scene.seal(&pod).await?.submitter == own, "it is etl's");
    scene.stage.pod_refused(&pod, "SERVICE_ACCOUNT_NOT_MAPPED", 0).await?;
    pod.delete(GONE_LIMIT).await?;
    scene.remove("Job", "submitted").await?;
    scene.ends(&[]).await
}

/// A Job that makes no pods by itself.
fn other_job() -> Result<Value> {
    let mut job = plain("Job", "submitted");
    put_at(&mut job, "/spec/suspend", json!(true))?;
    Ok(job)
}

pub(super) async fn what_a_driver_makes_is_its_accounts_unless_it_hands_its_submitter_on(
    bed: &Bed,
) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let own = format!("system:serviceaccount:{JOBS}:{ROBOT}");
    let driver = scene.driver("driver").await?;
    let executor = scene.executor(&scene.bound(&driver).await?).await?;
    ensure!(scene.seal(&executor).await?.submitter == own, "it is etl's");
    scene.stage.pod_refused(&executor, "SERVICE_ACCOUNT_NOT_MAPPED", 1).await?;
    executor.delete(GONE_LIMIT).await?;
    driver.delete(GONE_LIMIT).await?;

    let inheriting = |configuration: &mut Value| {
        let entry = json!({"namespace": JOBS, "serviceAccounts": [ROBOT]});
        if let Some(configuration) = configuration.as_object_mut() {
            configuration.insert("inherit".to_owned(), json!([entry]));
        }
    };
    let handed_on = async || {
        let driver = scene.driver("inherited").await?;
        let bound = scene.bound(&driver).await?;
        let executor = scene.executor(&bound).await?;
        scene.runs_as(&executor, "etl").await?;
        executor.delete(GONE_LIMIT).await?;
        // A token of the same account that is no pod's.
        let executor = scene.executor(&scene.account(ROBOT).await?).await?;
        ensure!(scene.seal(&executor).await?.submitter == own, "it is etl's");
        scene.stage.pod_refused(&executor, "SERVICE_ACCOUNT_NOT_MAPPED", 3).await?;
        executor.delete(GONE_LIMIT).await?;
        // Kubernetes lets whoever may edit a namespace act as its accounts, but not as one that shows a pod's token.
        let manifest = draft("executor").json().to_string();
        let acting = scene.kubectl("ads")?.args(["--as", &own, "create", "--validate=false", "-f", "-"]);
        let bound_to = [("pod-name", driver.name().to_owned()), ("pod-uid", driver.uid().await?)]
            .map(|(key, value)| format!("--as-user-extra=authentication.kubernetes.io/{key}={value}"));
        let forged = acting.clone().args(bound_to).succeed_with(&manifest).await;
        let error = format!("{:#}", forged.err().context("ads acts as etl's driver")?);
        ensure!(error.contains("cannot impersonate resource \"userextras"), "{error}");
        acting.succeed_with(&manifest).await?;
        let executor = scene.bed.kubernetes().pod(JOBS, "executor");
        ensure!(scene.seal(&executor).await?.submitter == own, "it is etl's");
        scene.stage.pod_refused(&executor, "SERVICE_ACCOUNT_NOT_MAPPED", 3).await?;
        executor.delete(GONE_LIMIT).await?;
        // Nobody else has a token made that is the driver's.
        let uid = driver.uid().await?;
        let to_driver = Bound::Pod { name: driver.name(), uid: &uid };
        let stolen = service_account_token(&scene.client("ads"), JOBS, ROBOT, API_SERVER, to_driver).await;
        let error = stolen.err().context("ads has a token of etl's driver")?;
        refused::<()>(Err(error.downcast()?), "ads", "NOT_THE_SUBMITTER", &["bound to it"])?;
        // Nor is it worth anything once the driver is gone.
        driver.delete(GONE_LIMIT).await?;
        let late = scene.executor(&bound).await.err().context("a driver that is gone made a pod")?;
        let (late, gone) = (format!("{late:#}"), "only a sealed pod that lives hands its submitter on");
        ensure!(late.contains("Unauthorized") || late.contains(gone), "{late}");
        Ok(())
    };
    scene.webhook.with_configuration(inheriting, handed_on).await?;
    scene.ends(&["etl", "etl", "etl"]).await
}

impl Scene<'_> {
    /// A service account of [`JOBS`], by a token that is bound to nothing.
    async fn account(&self, name: &str) -> Result<Client> {
        let admin = self.bed.kubernetes().client();
        let token = service_account_token(&admin, JOBS, name, API_SERVER, Bound::Nothing).await?;
        self.bed.kubernetes().client_with_token(&token).await
    }

    /// A pod of etl's with an account that may create pods.
    async fn driver(&self, name: &str) -> Result<Running> {
        let driver = draft(name).set("/spec/serviceAccountName", json!(ROBOT));
        let driver = self.bed.kubernetes().create_as(self.client("etl"), &driver).await?;
        self.runs_as(&driver, "etl").await?;
        Ok(driver)
    }

    /// What a pod's own token is.
    async fn bound(&self, pod: &Running) -> Result<Client> {
        let uid = pod.uid().await?;
        let bound = Bound::Pod { name: pod.name(), uid: &uid };
        let token = service_account_token(&self.client("etl"), JOBS, ROBOT, API_SERVER, bound).await?;
        self.bed.kubernetes().client_with_token(&token).await
    }

    async fn executor(&self, client: &Client) -> Result<Running> {
        let executor: Draft = draft("executor");
        self.bed.kubernetes().create_as(client.clone(), &executor).await
    }
}
