//! Jobs for the training operator: what is written into one, and what has become of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bed::{Bed, image::HDFS_CLIENT, namenode::Cluster, pod::Running, process::until, users::JOBS};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
        PostParams,
    },
};
use serde_json::{Map, Value, json};

use crate::{GONE_LIMIT, attacks::stage::draft};

const POD_LIMIT: Duration = Duration::from_secs(60);
/// A launcher tries again until its workers run.
const END_LIMIT: Duration = Duration::from_secs(120);

/// A pod template with a token volume, whose one container, of the name that the operator looks for, runs a script.
pub(super) fn template(container: &str, script: &str) -> Value {
    let draft = draft("of-a-template").script(script).set("/spec/containers/0/name", json!(container));
    json!({"metadata": {}, "spec": draft.json().get("spec")})
}

/// What reads the private file of a user.
pub(super) fn reading(user: &str) -> String {
    format!("{HDFS_CLIENT} --url {} cat /user/{user}/private.txt", Cluster::Main.url())
}

/// Two workers that each read a user's private file.
pub(super) fn tf_job(name: &str, user: &str) -> Value {
    json!({
        "apiVersion": "kubeflow.org/v1",
        "kind": "TFJob",
        "metadata": {"name": name, "namespace": JOBS},
        "spec": {
            "runPolicy": {"cleanPodPolicy": "None"},
            "tfReplicaSpecs": {"Worker": {
                "replicas": 2,
                "restartPolicy": "Never",
                "template": template("tensorflow", &reading(user)),
            }},
        },
    })
}

/// A job of another kind of training, whose pods are so many of each role, and all read a user's private file.
pub(super) fn training_job(kind: &str, name: &str, roles: &[(&str, usize)], user: &str) -> Value {
    let framework = kind.trim_end_matches("Job").to_lowercase();
    let specs = if framework == "xgboost" { "xgb" } else { &*framework };
    let role = |(role, replicas): &(&str, usize)| {
        let template = template(&framework, &reading(user));
        ((*role).to_owned(), json!({"replicas": replicas, "restartPolicy": "Never", "template": template}))
    };
    json!({
        "apiVersion": "kubeflow.org/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": JOBS},
        "spec": {
            "runPolicy": {"cleanPodPolicy": "None"},
            (format!("{specs}ReplicaSpecs")): roles.iter().map(role).collect::<Map<_, _>>(),
        },
    })
}

/// A launcher that reads a user's private file itself and then, as MPI does, starts two workers to read it.
pub(super) fn mpi_job(name: &str, user: &str) -> Value {
    let (own, remote) =
        (reading(user), format!("/etc/mpi/kubexec.sh {name}-worker-$number {}", reading(user)));
    let script = format!("set -e; {own}; for number in 0 1; do until {remote}; do sleep 1; done; done");
    let mut launcher = template("mpi", &script);
    // It asks the API server to run commands.
    if let Some(spec) = launcher.pointer_mut("/spec").and_then(Value::as_object_mut) {
        spec.remove("automountServiceAccountToken");
    }
    json!({
        "apiVersion": "kubeflow.org/v1",
        "kind": "MPIJob",
        "metadata": {"name": name, "namespace": JOBS},
        "spec": {
            "runPolicy": {"cleanPodPolicy": "None"},
            "mpiReplicaSpecs": {
                "Launcher": {"replicas": 1, "restartPolicy": "Never", "template": launcher},
                "Worker": {"replicas": 2, "restartPolicy": "Never", "template": template("mpi", "sleep 365d")},
            },
        },
    })
}

/// Objects of a kind in [`JOBS`].
pub(super) fn objects(
    client: &Client,
    api_version: &str,
    kind: &str,
    plural: &str,
) -> Result<Api<DynamicObject>> {
    let (group, version) = api_version.split_once('/').context("an API version without a group")?;
    let kind = GroupVersionKind::gvk(group, version, kind);
    let resource = ApiResource::from_gvk_with_plural(&kind, plural);
    Ok(Api::namespaced_with(client.clone(), JOBS, &resource))
}

/// A job that was submitted.
pub(super) struct Job<'bed> {
    bed: &'bed Bed,
    kind: String,
    pub(super) name: String,
    pub(super) uid: String,
}

impl<'bed> Job<'bed> {
    /// Submits it with somebody's client.
    pub(super) async fn submit(bed: &'bed Bed, client: &Client, manifest: &Value) -> Result<Self> {
        let object: DynamicObject = serde_json::from_value(manifest.clone())?;
        let kind = object.types.as_ref().context("no kind")?.kind.clone();
        let created = api(client, &kind)?.create(&PostParams::default(), &object).await?;
        Ok(Self { bed, kind, name: created.name_any(), uid: created.uid().context("no UID")? })
    }

    /// Changes it with somebody's client.
    pub(super) async fn patch(&self, client: &Client, patch: &Value) -> Result<()> {
        let objects = api(client, &self.kind)?;
        objects.patch(&self.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// As it is now.
    pub(super) async fn get(&self) -> Result<Value> {
        Ok(serde_json::to_value(api(&self.bed.kubernetes().client(), &self.kind)?.get(&self.name).await?)?)
    }

    /// Its pods, of which there are so many in the end.
    pub(super) async fn pods(&self, number: usize) -> Result<Vec<Pod>> {
        let pods: Api<Pod> = Api::namespaced(self.bed.kubernetes().client(), JOBS);
        let its = ListParams::default().labels(&format!("training.kubeflow.org/job-name={}", self.name));
        until("there: pods of a job", POD_LIMIT, async || {
            let found = pods.list(&its).await?.items;
            ensure!(found.len() == number, "{} pods", found.len());
            Ok(found)
        })
        .await
    }

    /// One of its pods, by the end of its name.
    pub(super) fn pod(&self, rest: &str) -> Running {
        self.bed.kubernetes().pod(JOBS, &format!("{}-{rest}", self.name))
    }

    /// What one of its pods has written when it has ended, which it does well.
    pub(super) async fn log(&self, rest: &str) -> Result<String> {
        self.pod(rest).until_succeeded(END_LIMIT).await
    }

    /// What one of its pods has written when it has failed.
    pub(super) async fn failure(&self, rest: &str) -> Result<String> {
        let pod = self.pod(rest);
        let ended =
            |pod: &Pod| pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Failed"));
        pod.until("failing", END_LIMIT, ended).await?;
        pod.logs().await
    }

    /// Deletes it, and waits until its pods are gone.
    pub(super) async fn delete(&self) -> Result<()> {
        let pods = Api::<Pod>::namespaced(self.bed.kubernetes().client(), JOBS);
        let its = ListParams::default().labels(&format!("training.kubeflow.org/job-name={}", self.name));
        api(&self.bed.kubernetes().client(), &self.kind)?
            .delete(&self.name, &DeleteParams::background())
            .await?;
        until("gone: pods of a job", GONE_LIMIT, async || {
            let left = pods.list(&its).await?.items;
            ensure!(left.is_empty(), "{} pods", left.len());
            Ok(())
        })
        .await
    }
}

fn api(client: &Client, kind: &str) -> Result<Api<DynamicObject>> {
    objects(client, "kubeflow.org/v1", kind, &format!("{}s", kind.to_lowercase()))
}
