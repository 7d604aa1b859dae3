//! Kubeflow: training jobs of both generations, notebooks, and JobSet, from which the newer generation makes pods.

use super::{below, path, paths, with_metadata};
use crate::kinds::{Carrier, Kind, Role};

const TRAINING: &str = "kubeflow.org";

pub(super) fn kinds() -> Vec<Kind> {
    vec![
        training("MPIJob", "mpijobs", "spec.mpiReplicaSpecs"),
        training("PaddleJob", "paddlejobs", "spec.paddleReplicaSpecs"),
        training("PyTorchJob", "pytorchjobs", "spec.pytorchReplicaSpecs"),
        training("TFJob", "tfjobs", "spec.tfReplicaSpecs"),
        training("XGBoostJob", "xgboostjobs", "spec.xgbReplicaSpecs"),
        notebook(),
        train_job(),
        job_set(),
    ]
}

/// A training job of the first generation; MPIJob v2beta1 has the same form.
fn training(kind: &str, resource: &str, replicas: &str) -> Kind {
    let mut scaling = below(replicas, &["*.replicas"]);
    scaling.extend(paths(&[
        "spec.runPolicy",
        "spec.cleanPodPolicy",
        "spec.elasticPolicy.minReplicas",
        "spec.elasticPolicy.maxReplicas",
        "spec.elasticPolicy.maxRestarts",
        "spec.elasticPolicy.metrics",
    ]));
    let carriers = below(replicas, &["*.template"]).into_iter().map(Carrier::template).collect();
    Kind::of_operator((TRAINING, kind, resource), carriers, scaling)
}

/// Its pods have the notebook's own annotations and labels, by which others inject into pods: so these are content, but
/// for those that say when it is stopped or was last used, and what `kubectl apply` keeps.
fn notebook() -> Kind {
    let carrier = Carrier { pod: Some(path("spec.template.spec")), ..with_metadata("", Role::Sealed) };
    let scaling = [
        "kubeflow-resource-stopped",
        "kubectl.kubernetes.io/last-applied-configuration",
        "notebooks.kubeflow.org/last-activity",
        "notebooks.kubeflow.org/last_activity_check_timestamp",
    ];
    let scaling = scaling.map(|key| ["metadata", "annotations", key].into_iter().collect()).into();
    Kind::of_operator((TRAINING, "Notebook", "notebooks"), vec![carrier], scaling)
}

/// Its pods come from a runtime that others write; of its own annotations they get none. It may override those of the
/// runtime, in three generations of fields.
fn train_job() -> Kind {
    const PATCHED: &str =
        "spec.runtimePatches[*].trainingRuntimeSpec.template.spec.replicatedJobs[*].template.spec.template";
    let mut volumes = below(PATCHED, &["spec.volumes"]);
    volumes.extend(paths(&["spec.podSpecOverrides[*].volumes", "spec.podTemplateOverrides[*].spec.volumes"]));
    let carriers = vec![
        Carrier { volumes, ..with_metadata("", Role::Own) },
        with_metadata("spec.podTemplateOverrides[*]", Role::Cleared),
        with_metadata(PATCHED, Role::Cleared),
    ];
    let scaling =
        paths(&["spec.suspend", "spec.trainer.numNodes", "spec.activeDeadlineSeconds", "spec.managedBy"]);
    Kind::of_operator(("trainer.kubeflow.org", "TrainJob", "trainjobs"), carriers, scaling)
}

fn job_set() -> Kind {
    const JOBS: &str = "spec.replicatedJobs[*]";
    let mut scaling = below(
        JOBS,
        &["replicas", "template.spec.parallelism", "template.spec.completions", "template.spec.suspend"],
    );
    scaling.extend(paths(&["spec.suspend", "spec.ttlSecondsAfterFinished", "spec.managedBy"]));
    let carriers = below(JOBS, &["template.spec.template"]).into_iter().map(Carrier::template).collect();
    Kind::of_operator(("jobset.x-k8s.io", "JobSet", "jobsets"), carriers, scaling)
}
