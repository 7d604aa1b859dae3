//! The kinds of owners whose objects are read.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Owner, group};
use crate::is_object_name;

/// Kinds of Kubernetes itself, in the version that every API server has.
const KUBERNETES: [(&str, &str, &str); 8] = [
    ("v1", "Pod", "pods"),
    ("v1", "ReplicationController", "replicationcontrollers"),
    ("apps/v1", "ReplicaSet", "replicasets"),
    ("apps/v1", "Deployment", "deployments"),
    ("apps/v1", "StatefulSet", "statefulsets"),
    ("apps/v1", "DaemonSet", "daemonsets"),
    ("batch/v1", "Job", "jobs"),
    ("batch/v1", "CronJob", "cronjobs"),
];

/// Kinds of operators: group, kind, resource. They are read in the version that the reference names, because which
/// versions there are depends on what is installed. One that is not served is an owner that does not exist.
const OPERATORS: [(&str, &str, &str); 17] = [
    ("argoproj.io", "CronWorkflow", "cronworkflows"),
    ("argoproj.io", "Workflow", "workflows"),
    ("batch.volcano.sh", "Job", "jobs"),
    ("flink.apache.org", "FlinkDeployment", "flinkdeployments"),
    ("jobset.x-k8s.io", "JobSet", "jobsets"),
    ("kubeflow.org", "MPIJob", "mpijobs"),
    ("kubeflow.org", "Notebook", "notebooks"),
    ("kubeflow.org", "PaddleJob", "paddlejobs"),
    ("kubeflow.org", "PyTorchJob", "pytorchjobs"),
    ("kubeflow.org", "TFJob", "tfjobs"),
    ("kubeflow.org", "XGBoostJob", "xgboostjobs"),
    ("ray.io", "RayCluster", "rayclusters"),
    ("ray.io", "RayJob", "rayjobs"),
    ("ray.io", "RayService", "rayservices"),
    ("sparkoperator.k8s.io", "ScheduledSparkApplication", "scheduledsparkapplications"),
    ("sparkoperator.k8s.io", "SparkApplication", "sparkapplications"),
    ("trainer.kubeflow.org", "TrainJob", "trainjobs"),
];

/// An entry of `owners` in a configuration: a kind whose objects are read.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct OwnerKind {
    /// Group and version in which it is read.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// The kind's name in paths: plural, lower-case.
    pub resource: String,
}

/// The kinds whose objects are read, by group and kind.
#[derive(Clone, Debug)]
pub struct OwnerKinds(BTreeMap<(String, String), Place>);

/// Where objects of a kind are.
#[derive(Clone, Debug)]
struct Place {
    /// Group and version; none where that of the reference counts.
    api_version: Option<String>,
    resource: String,
}

impl Default for OwnerKinds {
    fn default() -> Self {
        let kubernetes = KUBERNETES.map(|(api_version, kind, resource)| {
            let place = Place { api_version: Some(api_version.to_owned()), resource: resource.to_owned() };
            ((group(api_version).to_owned(), kind.to_owned()), place)
        });
        let operators = OPERATORS.map(|(group, kind, resource)| {
            let place = Place { api_version: None, resource: resource.to_owned() };
            ((group.to_owned(), kind.to_owned()), place)
        });
        Self(kubernetes.into_iter().chain(operators).collect())
    }
}

impl OwnerKinds {
    /// The built-in kinds and `more`; or everything that is wrong with `more`, entry by entry. An entry for an
    /// operator's kind that is built in says in which version it is read.
    ///
    /// # Errors
    /// What is wrong with `more`.
    pub fn new(more: Vec<OwnerKind>) -> Result<Self, Vec<String>> {
        let (mut kinds, mut mistakes) = (Self::default(), Vec::new());
        for (number, entry) in (1..).zip(more) {
            let OwnerKind { api_version, kind, resource } = &entry;
            if !entry.is_fit() {
                mistakes.push(format!(
                    "entry {number}: apiVersion {api_version:?}, kind {kind:?} and resource {resource:?} are not like \
                     \"batch/v1\", \"Job\" and \"jobs\""
                ));
                continue;
            }
            let key = (group(api_version).to_owned(), kind.clone());
            let place = Place { api_version: Some(api_version.clone()), resource: resource.clone() };
            if kinds.0.insert(key, place).is_some_and(|known| known.api_version.is_some()) {
                mistakes.push(format!("entry {number}: {api_version} {kind} is there already"));
            }
        }
        if mistakes.is_empty() { Ok(kinds) } else { Err(mistakes) }
    }

    /// Whether objects of this kind are read.
    #[must_use]
    pub fn reads(&self, group: &str, kind: &str) -> bool {
        self.0.contains_key(&(group.to_owned(), kind.to_owned()))
    }

    /// The path of `owner`, when objects of its kind are read.
    #[must_use]
    pub fn path(&self, namespace: &str, owner: &Owner) -> Option<String> {
        let Place { api_version, resource } = self.0.get(&(owner.group().to_owned(), owner.kind.clone()))?;
        let api_version = match api_version {
            Some(ours) => ours,
            None => &owner.api_version,
        };
        let root = if api_version.contains('/') { "apis" } else { "api" };
        Some(format!("/{root}/{api_version}/namespaces/{namespace}/{resource}/{}", owner.name))
    }
}

impl OwnerKind {
    /// Whether it can stand in a path.
    fn is_fit(&self) -> bool {
        let parts: Vec<_> = self.api_version.split('/').collect();
        parts.len() <= 2
            && parts.into_iter().all(is_object_name)
            && is_object_name(&self.resource)
            && self.kind.starts_with(|c: char| c.is_ascii_uppercase())
            && self.kind.chars().all(|c| c.is_ascii_alphanumeric())
    }
}
