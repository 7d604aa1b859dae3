//! Operators whose objects describe a cluster or a batch job with pod templates in it: Flink, Ray, Spark and Volcano.

use super::{bare, below, path, paths, templates};
use crate::{
    kinds::{Carrier, Kind, Role},
    path::Path,
};

const RAY: &str = "ray.io";
const SPARK: &str = "sparkoperator.k8s.io";

pub(super) fn kinds() -> Vec<Kind> {
    vec![
        flink_deployment(),
        ray_cluster(),
        ray_job(),
        ray_service(),
        scheduled_spark_application(),
        spark_application(),
        volcano_job(),
    ]
}

/// The common template is merged with that of the job manager and that of the task managers.
fn flink_deployment() -> Kind {
    let carriers = templates("spec", &["podTemplate", "jobManager.podTemplate", "taskManager.podTemplate"]);
    let scaling = paths(&[
        "spec.restartNonce",
        "spec.job.parallelism",
        "spec.job.state",
        "spec.job.savepointTriggerNonce",
        "spec.job.checkpointTriggerNonce",
        "spec.job.autoscalerResetNonce",
        "spec.jobManager.replicas",
        "spec.taskManager.replicas",
    ]);
    Kind::of_operator(("flink.apache.org", "FlinkDeployment", "flinkdeployments"), carriers, scaling)
}

fn ray_cluster() -> Kind {
    let (carriers, scaling) = ray("spec");
    Kind::of_operator((RAY, "RayCluster", "rayclusters"), carriers, scaling)
}

fn ray_job() -> Kind {
    let (mut carriers, mut scaling) = ray("spec.rayClusterSpec");
    carriers.extend(templates("spec", &["submitterPodTemplate"]));
    scaling.extend(paths(&[
        "spec.suspend",
        "spec.activeDeadlineSeconds",
        "spec.preRunningDeadlineSeconds",
        "spec.backoffLimit",
        "spec.submitterConfig",
        "spec.ttlSecondsAfterFinished",
        "spec.shutdownAfterJobFinishes",
        "spec.deletionStrategy",
        "spec.managedBy",
    ]));
    Kind::of_operator((RAY, "RayJob", "rayjobs"), carriers, scaling)
}

fn ray_service() -> Kind {
    let (carriers, mut scaling) = ray("spec.rayClusterConfig");
    scaling.extend(paths(&[
        "spec.suspend",
        "spec.rayClusterDeletionDelaySeconds",
        "spec.serviceUnhealthySecondThreshold",
        "spec.deploymentUnhealthySecondThreshold",
        "spec.managedBy",
    ]));
    Kind::of_operator((RAY, "RayService", "rayservices"), carriers, scaling)
}

/// What describes a Ray cluster. Ray's autoscaler, which runs in the head's pod, changes what is scaling.
fn ray(at: &str) -> (Vec<Carrier>, Vec<Path>) {
    let scaling = [
        "suspend",
        "managedBy",
        "workerGroupSpecs[*].replicas",
        "workerGroupSpecs[*].minReplicas",
        "workerGroupSpecs[*].maxReplicas",
        "workerGroupSpecs[*].numOfHosts",
        "workerGroupSpecs[*].idleTimeoutSeconds",
        "workerGroupSpecs[*].priority",
        "workerGroupSpecs[*].scaleStrategy",
        "workerGroupSpecs[*].suspend",
    ];
    (templates(at, &["headGroupSpec.template", "workerGroupSpecs[*].template"]), below(at, &scaling))
}

fn spark_application() -> Kind {
    let (carriers, scaling) = spark("spec");
    Kind::of_operator((SPARK, "SparkApplication", "sparkapplications"), carriers, scaling)
}

fn scheduled_spark_application() -> Kind {
    let (carriers, mut scaling) = spark("spec.template");
    scaling.extend(paths(&[
        "spec.schedule",
        "spec.timeZone",
        "spec.suspend",
        "spec.concurrencyPolicy",
        "spec.successfulRunHistoryLimit",
        "spec.failedRunHistoryLimit",
    ]));
    Kind::of_operator((SPARK, "ScheduledSparkApplication", "scheduledsparkapplications"), carriers, scaling)
}

/// What describes a Spark application. `annotations` go over those of the template; volumes are in neither.
fn spark(at: &str) -> (Vec<Carrier>, Vec<Path>) {
    let role = |role: &str| Carrier {
        volumes: below(at, &["volumes"]),
        ..bare(&format!("{at}.{role}"), Role::Sealed)
    };
    let mut carriers = vec![role("driver"), role("executor")];
    carriers.extend(templates(at, &["driver.template", "executor.template"]));
    let scaling = [
        "suspend",
        "restartPolicy",
        "failureRetries",
        "retryInterval",
        "timeToLiveSeconds",
        "dynamicAllocation",
        "executor.instances",
    ];
    (carriers, below(at, &scaling))
}

fn volcano_job() -> Kind {
    let scaling = [
        "maxRetry",
        "minAvailable",
        "minSuccess",
        "priorityClassName",
        "queue",
        "runningEstimate",
        "ttlSecondsAfterFinished",
        "tasks[*].maxRetry",
        "tasks[*].minAvailable",
        "tasks[*].replicas",
    ];
    let carriers = vec![Carrier::template(path("spec.tasks[*].template"))];
    Kind::of_operator(("batch.volcano.sh", "Job", "jobs"), carriers, below("spec", &scaling))
}
