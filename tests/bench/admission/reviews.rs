//! Reviews as the API server writes them: of objects that it has filled in itself, for requests of those who make such
//! objects. Pods that somebody submits, and pods of Jobs, ten of each Job in a row.

use anyhow::{Context, Result};
use bed::{Bed, users::JOBS};
use identity::{DRIVER_NAME, GROUPS_ANNOTATION, SEAL_ANNOTATION, SUBMITTER_ANNOTATION};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, PostParams},
};
use serde_json::{Value, json};

use super::waiting;

/// So many that the webhook, which keeps what it has read of an owner for five seconds, has forgotten a Job when its turn
/// comes again: half of 500 reviews a second are of Jobs' pods, so that a round takes eight seconds.
const JOBS_IN_TURN: usize = 200;
/// Pods of a Job that come in a row.
const IN_A_ROW: usize = 10;
const CONTROLLER: &str = "system:serviceaccount:kube-system:job-controller";
/// In place of what is different in each review.
const UID: &str = "00000000-0000-0000-0000-00000000d1ff";
const NAME: &str = "name-of-the-pod";

/// What a review is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// A pod that a user submits.
    Pod,
    /// A pod of a Job of which there was a pod before: what the Job carries is known.
    JobPod,
    /// The first pod of a Job, which has to be read.
    FirstJobPod,
}

impl Class {
    pub(super) const ALL: [Self; 3] = [Self::Pod, Self::JobPod, Self::FirstJobPod];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::JobPod => "job_pod",
            Self::FirstJobPod => "first_job_pod",
        }
    }
}

/// All that are asked.
pub(super) struct Reviews {
    pod: String,
    jobs: Vec<String>,
}

impl Reviews {
    /// Has the API server fill in a pod and make Jobs, and writes reviews of them.
    pub(super) async fn collect(bed: &Bed, etl: &Client) -> Result<Self> {
        let controller = bed.kubernetes().client_as(CONTROLLER, None).await?;
        let volume = json!({"name": "token", "csi": {"driver": DRIVER_NAME, "readOnly": true}});
        let pod = waiting(NAME, &volume);
        let team = json!({"username": "etl", "groups": ["team", "system:authenticated"]});
        let bare = review(&filled_in(etl, &pod, None).await?, NAME, &team)?;
        let account = json!({
            "username": CONTROLLER,
            "uid": "6c5c0a5e-0f3c-4a6e-9f53-5f4f3a3c8f0e",
            "groups": ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"],
        });
        let mut reviews = Vec::with_capacity(JOBS_IN_TURN);
        for number in 0..JOBS_IN_TURN {
            let job = job(etl, &format!("bench-{number}"), &pod).await?;
            let pod = filled_in(&controller, &pod_of(&job)?, annotations_of(&job)).await?;
            reviews.push(review(&pod, "", &account)?);
        }
        Ok(Self { pod: bare, jobs: reviews })
    }

    /// The review of this number: by turns a user's pod and a Job's.
    pub(super) fn get(&self, number: usize) -> Option<(Class, Vec<u8>)> {
        let turn = number / 2;
        let (class, text) = match (number % 2, turn % IN_A_ROW) {
            (0, _) => (Class::Pod, &self.pod),
            (_, 0) => (Class::FirstJobPod, self.job(turn)?),
            _ => (Class::JobPod, self.job(turn)?),
        };
        let uid = format!("00000000-0000-4000-8000-{number:012}");
        Some((class, text.replace(UID, &uid).replace(NAME, &format!("bare-{number:011}")).into_bytes()))
    }

    fn job(&self, turn: usize) -> Option<&String> {
        self.jobs.get(turn / IN_A_ROW % JOBS_IN_TURN)
    }
}

/// A pod as the API server sends it to its first webhook; with those annotations, if it is not to have others.
async fn filled_in(client: &Client, pod: &Value, annotations: Option<&Value>) -> Result<Value> {
    let pods: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), JOBS, &ApiResource::erase::<Pod>(&()));
    let try_only = PostParams { dry_run: true, ..PostParams::default() };
    let tried = pods.create(&try_only, &serde_json::from_value(pod.clone())?).await?;
    let mut pod = serde_json::to_value(tried)?;
    let metadata = pod.pointer_mut("/metadata").and_then(Value::as_object_mut).context("no metadata")?;
    for later in ["uid", "creationTimestamp"] {
        metadata.remove(later);
    }
    if metadata.contains_key("generateName") {
        metadata.remove("name");
    }
    if let Some(annotations) = annotations {
        metadata.insert("annotations".to_owned(), annotations.clone());
    } else if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
        for ours in [SUBMITTER_ANNOTATION, GROUPS_ANNOTATION, SEAL_ANNOTATION] {
            annotations.remove(ours);
        }
    }
    Ok(pod)
}

/// A Job that is there and makes no pods itself.
async fn job(etl: &Client, name: &str, pod: &Value) -> Result<Value> {
    let jobs: Api<DynamicObject> = Api::namespaced_with(etl.clone(), JOBS, &ApiResource::erase::<Job>(&()));
    let job = json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"suspend": true, "parallelism": IN_A_ROW, "template": {"spec": pod.pointer("/spec")}},
    });
    Ok(serde_json::to_value(jobs.create(&PostParams::default(), &serde_json::from_value(job)?).await?)?)
}

fn annotations_of(job: &Value) -> Option<&Value> {
    job.pointer("/spec/template/metadata/annotations")
}

/// As the Job controller makes it.
fn pod_of(job: &Value) -> Result<Value> {
    let part = |pointer: &str| job.pointer(pointer).with_context(|| format!("a Job without {pointer}"));
    let name = part("/metadata/name")?.as_str().unwrap_or_default();
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": format!("{name}-"),
            "namespace": JOBS,
            "labels": part("/spec/template/metadata/labels")?,
            "annotations": annotations_of(job).context("a Job without a seal")?,
            "finalizers": ["batch.kubernetes.io/job-tracking"],
            "ownerReferences": [{
                "apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": part("/metadata/uid")?,
                "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": part("/spec/template/spec")?,
    }))
}

/// The question whether `user` may create the pod.
fn review(pod: &Value, name: &str, user: &Value) -> Result<String> {
    let kind = json!({"group": "", "version": "v1", "kind": "Pod"});
    let resource = json!({"group": "", "version": "v1", "resource": "pods"});
    let mut request = json!({
        "uid": UID,
        "kind": kind,
        "resource": resource,
        "requestKind": kind,
        "requestResource": resource,
        "namespace": JOBS,
        "operation": "CREATE",
        "userInfo": user,
        "object": pod,
        "oldObject": null,
        "dryRun": false,
        "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
    });
    if let Some(request) = request.as_object_mut().filter(|_| !name.is_empty()) {
        request.insert("name".to_owned(), json!(name));
    }
    let review = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request});
    Ok(serde_json::to_string(&review)?)
}
