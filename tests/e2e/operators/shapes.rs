//! Kinds of operators: their names, and the places from which their pods get annotations and volumes. Whatever else an
//! object has means nothing to whoever plays its operator.

use bed::pod::{TOKEN_FOLDER, VOLUME};
use identity::DRIVER_NAME;
use serde_json::{Value, json};

/// A kind, and what its operator makes of an object.
pub(super) struct Shape {
    pub(super) api_version: &'static str,
    pub(super) kind: &'static str,
    pub(super) plural: &'static str,
    /// All of an object but its name.
    pub(super) spec: Value,
    /// Where pods' annotations are to be found in an object.
    pub(super) carriers: Vec<String>,
    /// A value by which whoever sets it becomes the submitter.
    pub(super) content: (&'static str, Value),
    /// One by which he does not.
    pub(super) scaling: Option<(&'static str, Value)>,
    /// The operator's service account.
    pub(super) operator: &'static str,
    pub(super) makes: Makes,
}

/// What an operator makes.
pub(super) enum Makes {
    /// Pods, with the annotations of the carriers.
    Pods,
    /// An object of another kind here, whose spec is somewhere in this one's.
    Child { kind: &'static str, spec: &'static str },
    /// A workload of Kubernetes, whose template has the annotations of the first carrier.
    Workload { kind: &'static str, plural: &'static str },
    /// Jobs, from the template of the one carrier.
    Jobs,
    /// A JobSet, from elsewhere: applied, not created, and without a word of the submitter.
    JobSet,
    /// Pods, but by the real operator.
    Others,
}

/// All of them. Those whose definitions are the real ones have objects that fit these.
pub(super) fn all() -> Vec<Shape> {
    let mount = json!({"name": VOLUME, "mountPath": TOKEN_FOLDER, "readOnly": true});
    let spark = json!({
        "type": "Python",
        "mode": "cluster",
        "sparkVersion": "3.5.5",
        "mainApplicationFile": "local:///main.py",
        "volumes": [volume()],
        "driver": {"cores": 1, "annotations": {"of": "the user"}, "volumeMounts": [mount]},
        "executor": {"instances": 1, "volumeMounts": [mount]},
    });
    let spark_carriers = ["driver/annotations", "executor/annotations"];
    let ray = json!({
        "rayVersion": "2",
        "headGroupSpec": {"rayStartParams": {}, "template": template()},
        "workerGroupSpecs": [
            {"groupName": "small", "replicas": 1, "template": template()},
            {"groupName": "large", "replicas": 0, "template": template()},
        ],
    });
    let ray_carriers = [
        "headGroupSpec/template/metadata/annotations",
        "workerGroupSpecs/0/template/metadata/annotations",
        "workerGroupSpecs/1/template/metadata/annotations",
    ];
    let workflow = json!({
        "entrypoint": "steps",
        "volumes": [volume()],
        "templates": [
            {"name": "steps", "steps": [[{"name": "first", "template": "work"}]]},
            {"name": "work", "container": {"name": "main", "image": "work"}},
        ],
    });
    let flink = json!({
        "image": "flink",
        "podTemplate": template(),
        "jobManager": {"replicas": 1},
        "taskManager": {"replicas": 1},
        "job": {"jarURI": "local:///job.jar", "state": "running"},
    });
    // The real operator is there: it is to make nothing of them.
    let suspended = |specs: &'static str| {
        json!({
            "runPolicy": {"suspend": true},
            specs: {"Master": {"replicas": 1, "template": template()}},
        })
    };
    vec![
        Shape {
            api_version: "sparkoperator.k8s.io/v1beta2",
            kind: "SparkApplication",
            plural: "sparkapplications",
            spec: spark.clone(),
            carriers: below("/spec", &spark_carriers),
            content: ("/spec/mainApplicationFile", json!("local:///other.py")),
            scaling: Some(("/spec/executor/instances", json!(7))),
            operator: "spark",
            makes: Makes::Pods,
        },
        Shape {
            api_version: "sparkoperator.k8s.io/v1beta2",
            kind: "ScheduledSparkApplication",
            plural: "scheduledsparkapplications",
            spec: json!({"schedule": "@every 5m", "concurrencyPolicy": "Allow", "template": spark}),
            carriers: below("/spec/template", &spark_carriers),
            content: ("/spec/template/mainApplicationFile", json!("local:///other.py")),
            scaling: Some(("/spec/suspend", json!(true))),
            operator: "spark",
            makes: Makes::Child { kind: "SparkApplication", spec: "/spec/template" },
        },
        Shape {
            api_version: "ray.io/v1",
            kind: "RayCluster",
            plural: "rayclusters",
            spec: ray.clone(),
            carriers: below("/spec", &ray_carriers),
            content: ("/spec/workerGroupSpecs/1/template/spec/containers/0/image", json!("other")),
            scaling: Some(("/spec/workerGroupSpecs/1/replicas", json!(7))),
            operator: "ray",
            makes: Makes::Pods,
        },
        Shape {
            api_version: "ray.io/v1",
            kind: "RayJob",
            plural: "rayjobs",
            spec: json!({"entrypoint": "python main.py", "rayClusterSpec": ray}),
            carriers: below("/spec/rayClusterSpec", &ray_carriers),
            content: ("/spec/entrypoint", json!("python other.py")),
            scaling: Some(("/spec/suspend", json!(true))),
            operator: "ray",
            makes: Makes::Child { kind: "RayCluster", spec: "/spec/rayClusterSpec" },
        },
        Shape {
            api_version: "ray.io/v1",
            kind: "RayService",
            plural: "rayservices",
            spec: json!({"serveConfigV2": "applications: []", "rayClusterConfig": ray}),
            carriers: below("/spec/rayClusterConfig", &ray_carriers),
            content: ("/spec/serveConfigV2", json!("applications: [other]")),
            scaling: None,
            operator: "ray",
            makes: Makes::Child { kind: "RayCluster", spec: "/spec/rayClusterConfig" },
        },
        Shape {
            api_version: "batch.volcano.sh/v1alpha1",
            kind: "Job",
            plural: "jobs",
            spec: json!({
                "schedulerName": "volcano",
                "minAvailable": 1,
                "tasks": [
                    {"name": "master", "replicas": 1, "template": template()},
                    {"name": "worker", "replicas": 1, "template": template()},
                ],
            }),
            carriers: below(
                "/spec/tasks",
                &["0/template/metadata/annotations", "1/template/metadata/annotations"],
            ),
            content: ("/spec/tasks/1/template/spec/containers/0/image", json!("other")),
            scaling: Some(("/spec/tasks/1/replicas", json!(7))),
            operator: "volcano",
            makes: Makes::Pods,
        },
        Shape {
            api_version: "argoproj.io/v1alpha1",
            kind: "Workflow",
            plural: "workflows",
            spec: workflow.clone(),
            carriers: below("/spec", &["podMetadata/annotations"]),
            content: ("/spec/templates/1/container/image", json!("other")),
            scaling: Some(("/spec/suspend", json!(true))),
            operator: "argo",
            makes: Makes::Pods,
        },
        Shape {
            api_version: "argoproj.io/v1alpha1",
            kind: "CronWorkflow",
            plural: "cronworkflows",
            spec: json!({"schedule": "0 0 * * *", "workflowSpec": workflow}),
            carriers: below("/spec/workflowSpec", &["podMetadata/annotations"]),
            content: ("/spec/workflowSpec/templates/1/container/image", json!("other")),
            scaling: Some(("/spec/suspend", json!(true))),
            operator: "argo",
            makes: Makes::Child { kind: "Workflow", spec: "/spec/workflowSpec" },
        },
        Shape {
            api_version: "flink.apache.org/v1beta1",
            kind: "FlinkDeployment",
            plural: "flinkdeployments",
            spec: flink,
            carriers: below("/spec", &["podTemplate/metadata/annotations"]),
            content: ("/spec/job/jarURI", json!("local:///other.jar")),
            scaling: Some(("/spec/taskManager/replicas", json!(7))),
            operator: "flink",
            makes: Makes::Workload { kind: "Deployment", plural: "deployments" },
        },
        Shape {
            api_version: "kubeflow.org/v1",
            kind: "Notebook",
            plural: "notebooks",
            spec: json!({"template": template()}),
            carriers: vec!["/metadata/annotations".to_owned()],
            content: ("/spec/template/spec/containers/0/image", json!("other")),
            scaling: None,
            operator: "notebook",
            makes: Makes::Workload { kind: "StatefulSet", plural: "statefulsets" },
        },
        Shape {
            api_version: "kubeflow.org/v1",
            kind: "PyTorchJob",
            plural: "pytorchjobs",
            spec: suspended("pytorchReplicaSpecs"),
            carriers: below("/spec", &["pytorchReplicaSpecs/Master/template/metadata/annotations"]),
            content: ("/spec/pytorchReplicaSpecs/Master/template/spec/containers/0/image", json!("other")),
            scaling: Some(("/spec/pytorchReplicaSpecs/Master/replicas", json!(7))),
            operator: "others",
            makes: Makes::Others,
        },
        Shape {
            api_version: "kubeflow.org/v1",
            kind: "XGBoostJob",
            plural: "xgboostjobs",
            spec: suspended("xgbReplicaSpecs"),
            carriers: below("/spec", &["xgbReplicaSpecs/Master/template/metadata/annotations"]),
            content: ("/spec/xgbReplicaSpecs/Master/template/spec/containers/0/image", json!("other")),
            scaling: Some(("/spec/xgbReplicaSpecs/Master/replicas", json!(7))),
            operator: "others",
            makes: Makes::Others,
        },
        Shape {
            api_version: "kubeflow.org/v1",
            kind: "PaddleJob",
            plural: "paddlejobs",
            spec: suspended("paddleReplicaSpecs"),
            carriers: below("/spec", &["paddleReplicaSpecs/Master/template/metadata/annotations"]),
            content: ("/spec/paddleReplicaSpecs/Master/template/spec/containers/0/image", json!("other")),
            scaling: Some(("/spec/paddleReplicaSpecs/Master/replicas", json!(7))),
            operator: "others",
            makes: Makes::Others,
        },
        Shape {
            api_version: "jobset.x-k8s.io/v1alpha2",
            kind: "JobSet",
            plural: "jobsets",
            spec: job_set(),
            carriers: below("/spec/replicatedJobs", &["0/template/spec/template/metadata/annotations"]),
            content: (
                "/spec/replicatedJobs/0/template/spec/template/spec/containers/0/image",
                json!("other"),
            ),
            scaling: Some(("/spec/replicatedJobs/0/replicas", json!(7))),
            operator: "jobset",
            makes: Makes::Jobs,
        },
        Shape {
            api_version: "trainer.kubeflow.org/v1alpha1",
            kind: "TrainJob",
            plural: "trainjobs",
            spec: json!({
                "runtimeRef": {"name": "any"},
                "trainer": {"image": "train"},
                "podSpecOverrides": [{"targetJobs": [{"name": "node"}], "volumes": [volume()]}],
            }),
            carriers: vec!["/metadata/annotations".to_owned()],
            content: ("/spec/trainer/image", json!("other")),
            scaling: Some(("/spec/suspend", json!(true))),
            operator: "trainer",
            makes: Makes::JobSet,
        },
    ]
}

/// Kinds whose definitions are the real ones; all others are defined by the tests.
pub(super) fn is_defined(shape: &Shape) -> bool {
    matches!(
        shape.kind,
        "PyTorchJob"
            | "XGBoostJob"
            | "PaddleJob"
            | "TrainJob"
            | "SparkApplication"
            | "ScheduledSparkApplication"
    )
}

/// What an operator writes into references to an object of a kind about its being the controller, if anything.
pub(super) fn controls(kind: &str) -> Option<bool> {
    match kind {
        "ScheduledSparkApplication" => None,
        "FlinkDeployment" => Some(false),
        _ => Some(true),
    }
}

/// What makes the API server know a kind, and nothing of what is in it.
pub(super) fn definition(shape: &Shape) -> Value {
    let (group, version) = shape.api_version.split_once('/').unwrap_or_default();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{}.{group}", shape.plural),
            // For groups that look like Kubernetes' own.
            "annotations": {"api-approved.kubernetes.io": "unapproved, only the names are those of an operator"},
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": shape.kind, "plural": shape.plural, "singular": shape.kind.to_lowercase()},
            "versions": [{
                "name": version,
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }],
        },
    })
}

fn below(at: &str, carriers: &[&str]) -> Vec<String> {
    carriers.iter().map(|carrier| format!("{at}/{carrier}")).collect()
}

fn volume() -> Value {
    json!({"name": VOLUME, "csi": {"driver": DRIVER_NAME, "readOnly": true}})
}

/// What a JobSet has.
pub(super) fn job_set() -> Value {
    let job = json!({"parallelism": 1, "completions": 1, "backoffLimit": 0, "template": template()});
    json!({"replicatedJobs": [{"name": "node", "replicas": 1, "template": {"spec": job}}]})
}

/// Of a pod that is never scheduled.
fn template() -> Value {
    json!({"spec": {
        "restartPolicy": "Never",
        "containers": [{"name": "main", "image": "main"}],
        "schedulingGates": [{"name": "bed/never"}],
        "volumes": [volume()],
    }})
}
