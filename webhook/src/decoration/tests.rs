//! Stories of who submits what, through the decision and the patches that come of it, with an API server that has what
//! the story says.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
};

use futures_util::future::BoxFuture;
use identity::{
    DRIVER_NAME, GROUPS_ANNOTATION, SUBMITTER_ANNOTATION,
    owners::OwnerKinds,
    seal::{KeySet, ObjectName, SealingKey},
};
use json_patch::Patch;
use serde_json::json;

use super::*;
use crate::reading::Reads;

const NOW: i64 = 1_800_000_000;
const PEM: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n\
                   -----END PRIVATE KEY-----\n";
const OPERATOR: &str = "system:serviceaccount:kubeflow:training-operator";
const DEPLOYMENTS: &str = "system:serviceaccount:kube-system:deployment-controller";
const REPLICA_SETS: &str = "system:serviceaccount:kube-system:replicaset-controller";
const STATEFUL_SETS: &str = "system:serviceaccount:kube-system:statefulset-controller";
const ROBOT: &str = "system:serviceaccount:jobs:robot";

#[derive(Default)]
struct Objects(Mutex<HashMap<String, Value>>);

impl Objects {
    fn kept(&self) -> MutexGuard<'_, HashMap<String, Value>> {
        self.0.lock().unwrap()
    }
}

impl Reads for Objects {
    fn object(&self, path: String) -> BoxFuture<'_, Result<Option<Value>, String>> {
        Box::pin(async move { Ok(self.kept().get(&path).cloned()) })
    }
}

/// A cluster in which things are submitted.
struct Cluster {
    objects: Arc<Objects>,
    decorator: Decorator,
    created: Mutex<u32>,
}

struct Kindly(&'static str, &'static str, &'static str);

const POD: Kindly = Kindly("", "v1", "pods");
const DEPLOYMENT: Kindly = Kindly("apps", "v1", "deployments");
const REPLICA_SET: Kindly = Kindly("apps", "v1", "replicasets");
const STATEFUL_SET: Kindly = Kindly("apps", "v1", "statefulsets");
const REVISION: Kindly = Kindly("apps", "v1", "controllerrevisions");
const TRAIN_JOB: Kindly = Kindly("trainer.kubeflow.org", "v1alpha1", "trainjobs");
const JOB_SET: Kindly = Kindly("jobset.x-k8s.io", "v1alpha2", "jobsets");
const NOTEBOOK: Kindly = Kindly("kubeflow.org", "v1", "notebooks");
const FLINK: Kindly = Kindly("flink.apache.org", "v1beta1", "flinkdeployments");
const SPARK: Kindly = Kindly("sparkoperator.k8s.io", "v1beta2", "sparkapplications");
const SCHEDULED_SPARK: Kindly = Kindly("sparkoperator.k8s.io", "v1beta2", "scheduledsparkapplications");
const JOB: Kindly = Kindly("batch", "v1", "jobs");

impl Cluster {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Decorator)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("seal.pem");
        std::fs::write(&key, PEM).unwrap();
        let section = serde_json::from_value(json!({"key": key})).unwrap();
        let kinds = Arc::new(Kinds::default());
        let objects = Arc::new(Objects::default());
        let named = serde_json::from_value(json!([{"user": OPERATOR, "kinds": ["Job.batch"]}])).unwrap();
        let namespaces = Arc::new(TokenNamespaces::new(BTreeSet::new()));
        namespaces.registered(BTreeSet::from(["jobs".to_owned()]));
        let mut decorator = Decorator {
            namespaces,
            controllers: NamedControllers::new(&kinds, named).unwrap(),
            inherit: Vec::new(),
            injection: injection::Config::default(),
            scope: Scope::Tokens,
            exempt: BTreeSet::from(["kube-system".to_owned()]),
            sealing: Arc::new(Sealing::load(section).unwrap()),
            reader: Arc::new(Reader::new(objects.clone(), OwnerKinds::default(), kinds.clone())),
            kinds,
        };
        change(&mut decorator);
        Self { objects, decorator, created: Mutex::new(0) }
    }

    async fn ask(
        &self,
        user: Value,
        operation: &str,
        Kindly(group, version, resource): Kindly,
        [old, new]: [&Value; 2],
    ) -> Verdict {
        let namespace = new.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or("jobs");
        let request = json!({
            "uid": "r-1",
            "kind": {"group": group, "version": version, "kind": "Any"},
            "resource": {"group": group, "version": version, "resource": resource},
            "name": "", "namespace": namespace, "operation": operation, "userInfo": user, "dryRun": false,
        });
        let question = Question {
            request: serde_json::from_value(request).unwrap(),
            object: new.clone(),
            old_object: old.clone(),
        };
        self.decorator.decide(&question, NOW).await
    }

    /// Submits `object`, which then is as the answer says, with a UID.
    async fn submit(&self, user: &str, kind: Kindly, object: Value) -> Result<Value, Denial> {
        self.submit_as(json!({"username": user, "groups": ["team"]}), kind, object).await
    }

    async fn submit_as(&self, user: Value, kind: Kindly, object: Value) -> Result<Value, Denial> {
        let resource = (kind.0, kind.1, kind.2);
        let mut object = patched(self.ask(user, "CREATE", kind, [&Value::Null, &object]).await, object)?;
        let uid = {
            let mut created = self.created.lock().unwrap();
            *created += 1;
            format!("u-{created}")
        };
        object["metadata"]["uid"] = json!(uid);
        self.store(resource, &object);
        Ok(object)
    }

    fn store(&self, (group, version, resource): (&str, &str, &str), object: &Value) {
        let name = object["metadata"]["name"].as_str().unwrap_or("generated");
        let root =
            if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        self.objects.kept().insert(format!("{root}/namespaces/jobs/{resource}/{name}"), object.clone());
    }

    async fn update(&self, user: &str, kind: Kindly, old: &Value, new: Value) -> Result<Value, Denial> {
        let resource = (kind.0, kind.1, kind.2);
        let user = json!({"username": user, "groups": ["team"]});
        let object = patched(self.ask(user, "UPDATE", kind, [old, &new]).await, new)?;
        self.store(resource, &object);
        Ok(object)
    }

    fn keys(&self) -> KeySet {
        self.decorator.sealing.now().known.clone()
    }

    /// Who submitted what the workload's pods are, by its seal.
    fn submitter(&self, workload: &Value) -> String {
        let annotations = &workload["spec"]["template"]["metadata"]["annotations"];
        let seal = self.keys().verify_workload(annotations[SEAL_ANNOTATION].as_str().unwrap()).unwrap();
        assert_eq!(annotations[SUBMITTER_ANNOTATION], *seal.submitter);
        seal.submitter
    }

    fn seal(&self, pod: &Value) -> Seal {
        let annotations = &pod["metadata"]["annotations"];
        let seal = self.keys().verify(annotations[SEAL_ANNOTATION].as_str().unwrap()).unwrap();
        assert_eq!(annotations[SUBMITTER_ANNOTATION], *seal.submitter);
        seal
    }

    /// A Deployment of `etl` and the ReplicaSet that Kubernetes makes of it.
    async fn deployed(&self) -> (Value, Value) {
        let deployment = self.submit("etl", DEPLOYMENT, deployment(template())).await.unwrap();
        let set = self.submit(DEPLOYMENTS, REPLICA_SET, replica_set(&deployment)).await.unwrap();
        (deployment, set)
    }
}

fn patched(verdict: Verdict, mut object: Value) -> Result<Value, Denial> {
    match verdict {
        Verdict::Allowed(Allowed { patch, .. }) => {
            json_patch::patch(&mut object, &Patch(patch)).unwrap();
            Ok(object)
        }
        Verdict::Denied(denial) => Err(denial),
    }
}

fn token_volume() -> Value {
    json!({"name": "token", "csi": {"driver": DRIVER_NAME, "readOnly": true}})
}

fn template() -> Value {
    json!({
        "metadata": {"labels": {"app": "web"}},
        "spec": {
            "serviceAccountName": "default",
            "containers": [{"name": "main", "image": "web:1"}],
            "volumes": [token_volume()],
        },
    })
}

fn deployment(template: Value) -> Value {
    json!({"metadata": {"name": "web", "namespace": "jobs"}, "spec": {"replicas": 2, "template": template}})
}

fn owned(mut object: Value, (api_version, kind): (&str, &str), owner: &Value) -> Value {
    object["metadata"]["ownerReferences"] = json!([{
        "apiVersion": api_version, "kind": kind, "controller": true,
        "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"],
    }]);
    object
}

/// What the deployment controller makes of a Deployment.
fn replica_set(deployment: &Value) -> Value {
    let set = json!({
        "metadata": {"name": "web-5d", "namespace": "jobs"},
        "spec": {"template": deployment["spec"]["template"]},
    });
    owned(set, ("apps/v1", "Deployment"), deployment)
}

/// What a controller makes of a template.
fn pod_of(workload: &Value, kind: (&str, &str)) -> Value {
    let mut pod = workload["spec"]["template"].clone();
    pod["metadata"]["namespace"] = json!("jobs");
    pod["metadata"]["generateName"] = json!(format!("{}-", workload["metadata"]["name"].as_str().unwrap()));
    owned(pod, kind, workload)
}

fn set_pod(set: &Value) -> Value {
    pod_of(set, ("apps/v1", "ReplicaSet"))
}

fn bare_pod() -> Value {
    let mut pod = template();
    pod["metadata"]["name"] = json!("etl-0");
    pod["metadata"]["namespace"] = json!("jobs");
    pod
}

fn reason(outcome: Result<Value, Denial>) -> &'static str {
    outcome.unwrap_err().reason
}

#[tokio::test]
async fn whoever_creates_a_pod_is_its_submitter_whatever_is_written_there() {
    let cluster = Cluster::new();
    let mut pod = bare_pod();
    pod["metadata"]["annotations"] =
        json!({SUBMITTER_ANNOTATION: "ads", GROUPS_ANNOTATION: "[]", SEAL_ANNOTATION: "x", "mine": "kept"});
    let pod = cluster.submit("etl", POD, pod).await.unwrap();
    let seal = cluster.seal(&pod);
    assert_eq!((seal.submitter.as_str(), seal.namespace.as_str()), ("etl", "jobs"));
    assert_eq!((seal.name, seal.root_owner), (ObjectName::Name("etl-0".to_owned()), None));
    assert_eq!(seal.sealed_at, NOW);
    assert_eq!(pod["metadata"]["annotations"][GROUPS_ANNOTATION], r#"["team"]"#);
    assert_eq!(pod["metadata"]["annotations"]["mine"], "kept");
}

#[tokio::test]
async fn a_service_account_is_itself_also_when_it_says_that_an_owner_made_it() {
    let cluster = Cluster::new();
    let (_, set) = cluster.deployed().await;
    let pod = cluster.submit(ROBOT, POD, set_pod(&set)).await.unwrap();
    assert_eq!(cluster.seal(&pod).submitter, ROBOT);
    // Named for Jobs, and for nothing else.
    let pod = cluster.submit(OPERATOR, POD, set_pod(&set)).await.unwrap();
    assert_eq!(cluster.seal(&pod).submitter, OPERATOR);
}

#[tokio::test]
async fn pods_of_a_deployment_are_of_whoever_submitted_that() {
    let cluster = Cluster::new();
    let (deployment, set) = cluster.deployed().await;
    assert_eq!(set["spec"], replica_set(&deployment)["spec"], "a template was changed on its way");
    assert_eq!(cluster.submitter(&set), "etl");
    let pod = cluster.submit(REPLICA_SETS, POD, set_pod(&set)).await.unwrap();
    let seal = cluster.seal(&pod);
    assert_eq!(seal.submitter, "etl");
    assert_eq!(seal.name, ObjectName::GenerateName("web-5d-".to_owned()));
    let root = seal.root_owner.unwrap();
    assert_eq!((root.kind.as_str(), root.name.as_str()), ("Deployment", "web"));
    assert_eq!(deployment["metadata"]["uid"], root.uid);
}

#[tokio::test]
async fn whoever_changes_a_template_is_the_submitter_from_then_on() {
    let cluster = Cluster::new();
    let (deployment, set) = cluster.deployed().await;
    let mut changed = deployment.clone();
    changed["spec"]["template"]["spec"]["containers"][0]["image"] = json!("theirs:1");
    let changed = cluster.update("ads", DEPLOYMENT, &deployment, changed).await.unwrap();
    assert_eq!(cluster.submitter(&changed), "ads");
    // What was made of the old template is still the old submitter's.
    let pod = cluster.submit(REPLICA_SETS, POD, set_pod(&set)).await.unwrap();
    assert_eq!(cluster.seal(&pod).submitter, "etl");
    // A controller that has not seen the change yet has to look again.
    assert_eq!(
        reason(cluster.submit(DEPLOYMENTS, REPLICA_SET, replica_set(&deployment)).await),
        "SEAL_NOT_OF_OWNER"
    );
    let set = cluster.submit(DEPLOYMENTS, REPLICA_SET, replica_set(&changed)).await.unwrap();
    let pod = cluster.submit(REPLICA_SETS, POD, set_pod(&set)).await.unwrap();
    assert_eq!(cluster.seal(&pod).submitter, "ads");
}

#[tokio::test]
async fn scaling_and_labelling_change_nothing() {
    let cluster = Cluster::new();
    let (deployment, _) = cluster.deployed().await;
    let mut scaled = deployment.clone();
    scaled["spec"]["replicas"] = json!(7);
    scaled["metadata"]["labels"] = json!({"team": "ads"});
    assert_eq!(cluster.update("ads", DEPLOYMENT, &deployment, scaled.clone()).await.unwrap(), scaled);
}

#[tokio::test]
async fn a_manifest_that_is_replaced_by_itself_keeps_its_seal() {
    let cluster = Cluster::new();
    let (stored, _) = cluster.deployed().await;
    let replaced = cluster.update("ads", DEPLOYMENT, &stored, deployment(template())).await.unwrap();
    assert_eq!(replaced["spec"], stored["spec"]);
    assert_eq!(cluster.submitter(&replaced), "etl");
}

#[tokio::test]
async fn an_old_template_that_comes_back_with_its_seal_is_of_whoever_brings_it() {
    let cluster = Cluster::new();
    let (first, _) = cluster.deployed().await;
    let mut second = first.clone();
    second["spec"]["template"]["spec"]["containers"][0]["image"] = json!("web:2");
    let second = cluster.update("etl", DEPLOYMENT, &first, second).await.unwrap();
    let back = cluster.update("ads", DEPLOYMENT, &second, first.clone()).await.unwrap();
    assert_eq!(cluster.submitter(&back), "ads");
    assert_ne!(back["spec"]["template"], first["spec"]["template"]);
}

#[tokio::test]
async fn a_copied_seal_is_written_over() {
    let cluster = Cluster::new();
    let (theirs, _) = cluster.deployed().await;
    let mut copy = deployment(theirs["spec"]["template"].clone());
    copy["metadata"]["name"] = json!("copy");
    assert_eq!(cluster.submitter(&cluster.submit("ads", DEPLOYMENT, copy).await.unwrap()), "ads");
}

#[tokio::test]
async fn a_forged_owner_gains_nothing() {
    let cluster = Cluster::new();
    let (theirs, their_set) = cluster.deployed().await;
    // A ReplicaSet of one's own that says it is of their Deployment, with their template and all.
    let mut forged = replica_set(&theirs);
    forged["metadata"]["name"] = json!("forged");
    let forged = cluster.submit("ads", REPLICA_SET, forged).await.unwrap();
    assert_eq!(cluster.submitter(&forged), "ads");
    let pod = cluster.submit(REPLICA_SETS, POD, set_pod(&forged)).await.unwrap();
    assert_eq!(cluster.seal(&pod).submitter, "ads");
    // One that was written past the webhook, with the seal of what is not above it.
    let mut lone = forged.clone();
    lone["metadata"]["name"] = json!("lone");
    lone["spec"]["template"] = their_set["spec"]["template"].clone();
    lone["metadata"].as_object_mut().unwrap().remove("ownerReferences");
    cluster.store(("apps", "v1", "replicasets"), &lone);
    assert_eq!(reason(cluster.submit(REPLICA_SETS, POD, set_pod(&lone)).await), "SEAL_OF_ANOTHER_WORKLOAD");
    // An owner that has this name and another UID.
    let mut pod = set_pod(&their_set);
    pod["metadata"]["ownerReferences"][0]["uid"] = json!("u-invented");
    assert_eq!(reason(cluster.submit("ads", POD, pod).await), "OWNER_NOT_FOUND");
}

#[tokio::test]
async fn pods_of_an_old_revision_are_of_whoever_submitted_that() {
    let cluster = Cluster::new();
    let set = cluster.submit("etl", STATEFUL_SET, deployment(template())).await.unwrap();
    let revision = |name: &str, set: &Value| {
        let object = json!({
            "metadata": {"name": name, "namespace": "jobs"},
            "data": {"spec": {"template": set["spec"]["template"]}},
        });
        owned(object, ("apps/v1", "StatefulSet"), set)
    };
    let pod = |name: &str, set: &Value| {
        let mut pod = pod_of(set, ("apps/v1", "StatefulSet"));
        pod["metadata"]["labels"]["controller-revision-hash"] = json!(name);
        pod["metadata"]["name"] = json!("web-0");
        pod
    };
    cluster.store(("apps", "v1", "controllerrevisions"), &revision("web-1", &set));
    let mut changed = set.clone();
    changed["spec"]["template"]["spec"]["containers"][0]["image"] = json!("theirs:1");
    let changed = cluster.update("ads", STATEFUL_SET, &set, changed).await.unwrap();
    let old = cluster.submit(STATEFUL_SETS, POD, pod("web-1", &set)).await.unwrap();
    assert_eq!(cluster.seal(&old).submitter, "etl");
    assert_eq!(reason(cluster.submit(STATEFUL_SETS, POD, pod("web-2", &set)).await), "SEAL_NOT_OF_OWNER");
    // One that has no template of its own is merged into the StatefulSet's, seal included.
    let mut merged = revision("web-m", &set);
    merged["data"]["spec"]["template"] =
        json!({"spec": {"containers": [{"name": "main", "image": "mine:1"}]}});
    let merged = cluster.submit("intruder", REVISION, merged).await.unwrap();
    assert_eq!(merged["data"]["spec"]["template"].get("metadata"), None, "it is sealed after all");
    let denial = cluster.submit(STATEFUL_SETS, POD, pod("web-m", &changed)).await.unwrap_err();
    assert_eq!(denial.reason, "SEAL_NOT_OF_OWNER");
    assert!(denial.message.contains("ControllerRevision web-m"), "{}", denial.message);
    // A revision that somebody puts under it is his own.
    let mut forged = revision("web-3", &set);
    forged["data"]["spec"]["template"]["spec"]["containers"][0]["image"] = json!("mine:1");
    let forged = cluster.submit("intruder", REVISION, forged).await.unwrap();
    let mut pod = pod("web-3", &set);
    pod["metadata"]["annotations"] = forged["data"]["spec"]["template"]["metadata"]["annotations"].clone();
    match cluster.submit(STATEFUL_SETS, POD, pod).await {
        Ok(pod) => assert_eq!(cluster.seal(&pod).submitter, "intruder"),
        Err(denial) => assert_eq!(denial.reason, "SEAL_OF_ANOTHER_WORKLOAD"),
    }
}

#[tokio::test]
async fn what_an_operator_does_not_copy_is_read_at_the_owner() {
    let trainer = "system:serviceaccount:kubeflow:trainer";
    let cluster = Cluster::with(|decorator| {
        let named =
            serde_json::from_value(json!([{"user": trainer, "kinds": ["TrainJob.trainer.kubeflow.org"]}]));
        decorator.controllers = NamedControllers::new(&decorator.kinds, named.unwrap()).unwrap();
    });
    let train = json!({
        "metadata": {"name": "train", "namespace": "jobs", "annotations": {"hadoop-token.csi/inject": "true"}},
        "spec": {"runtimeRef": {"name": "torch"}},
    });
    let train = cluster.submit("etl", TRAIN_JOB, train).await.unwrap();
    let set = |name: &str, owner: &Value| {
        let object = json!({
            "metadata": {"name": name, "namespace": "jobs"},
            "spec": {"replicatedJobs": [{"name": "node", "template": {"spec": {"template": template()}}}]},
        });
        owned(object, ("trainer.kubeflow.org/v1alpha1", "TrainJob"), owner)
    };
    let made = cluster.submit(trainer, JOB_SET, set("train", &train)).await.unwrap();
    let annotations = |set: &Value| {
        set["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["metadata"]["annotations"].clone()
    };
    let carried = annotations(&made);
    assert_eq!(carried[SEAL_ANNOTATION], train["metadata"]["annotations"][SEAL_ANNOTATION]);
    assert_eq!(carried[SUBMITTER_ANNOTATION], "etl");
    // The operator writes it down once more without them, and they stay.
    let again = cluster.update(trainer, JOB_SET, &made, set("train", &train)).await.unwrap();
    assert_eq!(annotations(&again), carried);
    // Anybody else's is his own.
    let theirs = cluster.submit("ads", JOB_SET, set("theirs", &train)).await.unwrap();
    assert_eq!(annotations(&theirs)[SUBMITTER_ANNOTATION], "ads");
}

#[tokio::test]
async fn what_is_made_of_a_changed_owner_that_speaks_for_itself_is_of_whoever_changed_it() {
    let (cluster, trainer) = operated("trainer", &["TrainJob.trainer.kubeflow.org"]);
    let train = json!({
        "metadata": {"name": "train", "namespace": "jobs", "annotations": {"hadoop-token.csi/inject": "true"}},
        "spec": {"runtimeRef": {"name": "torch"}, "trainer": {"image": "train:1"}},
    });
    let train = cluster.submit("etl", TRAIN_JOB, train).await.unwrap();
    let made_of = |train: &Value| {
        let mut template = template();
        template["spec"]["containers"][0]["image"] = train["spec"]["trainer"]["image"].clone();
        let object = json!({
            "metadata": {"name": "train", "namespace": "jobs"},
            "spec": {"replicatedJobs": [{"name": "node", "template": {"spec": {"template": template}}}]},
        });
        owned(object, ("trainer.kubeflow.org/v1alpha1", "TrainJob"), train)
    };
    let annotations = "/spec/replicatedJobs/0/template/spec/template/metadata/annotations";
    let made = cluster.submit(&trainer, JOB_SET, made_of(&train)).await.unwrap();
    assert_eq!(made.pointer(annotations).unwrap()[SUBMITTER_ANNOTATION], "etl");

    let mut changed = train.clone();
    changed["spec"]["trainer"]["image"] = json!("train:2");
    let changed = cluster.update("ads", TRAIN_JOB, &train, changed).await.unwrap();
    // An operator applies it over what is there, and what was written here stays meanwhile.
    let mut again = made_of(&changed);
    again["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["metadata"]["annotations"] =
        made.pointer(annotations).unwrap().clone();
    let again = cluster.update(&trainer, JOB_SET, &made, again).await.unwrap();
    let carried = again.pointer(annotations).unwrap();
    assert_eq!(carried[SUBMITTER_ANNOTATION], "ads");
    assert_eq!(carried[SEAL_ANNOTATION], changed["metadata"]["annotations"][SEAL_ANNOTATION]);
    // What it brings of another is nobody's word.
    let mut forged = made_of(&changed);
    forged["metadata"]["name"] = json!("forged");
    forged["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["metadata"]["annotations"] =
        made.pointer(annotations).unwrap().clone();
    let forged = cluster.submit(&trainer, JOB_SET, forged).await.unwrap();
    assert_eq!(forged.pointer(annotations), Some(carried));
    // Nor is it when the owner says nothing.
    let mut silent = changed.clone();
    silent["metadata"].as_object_mut().unwrap().remove("annotations");
    cluster.store(("trainer.kubeflow.org", "v1alpha1", "trainjobs"), &silent);
    assert_eq!(reason(cluster.submit(&trainer, JOB_SET, made_of(&changed)).await), "SEAL_MISSING");
}

#[tokio::test]
async fn what_stays_behind_its_changed_owner_is_to_be_deleted() {
    let (cluster, operator) = operated("notebook", &["Notebook.kubeflow.org"]);
    let notebook =
        json!({"metadata": {"name": "web", "namespace": "jobs"}, "spec": {"template": template()}});
    let notebook = cluster.submit("etl", NOTEBOOK, notebook).await.unwrap();
    // Its operator copies annotations when it makes the StatefulSet, and nothing but the pods' spec afterwards.
    let made_of = |notebook: &Value| {
        let mut set = deployment(notebook["spec"]["template"].clone());
        set["spec"]["template"]["metadata"]["annotations"] = notebook["metadata"]["annotations"].clone();
        owned(set, ("kubeflow.org/v1", "Notebook"), notebook)
    };
    let set = cluster.submit(&operator, STATEFUL_SET, made_of(&notebook)).await.unwrap();
    let mut changed = notebook.clone();
    changed["spec"]["template"]["spec"]["containers"][0]["image"] = json!("web:2");
    let changed = cluster.update("ads", NOTEBOOK, &notebook, changed).await.unwrap();
    let mut behind = set.clone();
    behind["spec"]["template"]["spec"] = changed["spec"]["template"]["spec"].clone();
    let denial = cluster.update(&operator, STATEFUL_SET, &set, behind).await.unwrap_err();
    assert_eq!((denial.reason, denial.code), ("SEAL_NOT_OF_OWNER", 409));
    assert!(denial.message.contains("delete what carries the old seal"), "{}", denial.message);
    let anew = cluster.submit(&operator, STATEFUL_SET, made_of(&changed)).await.unwrap();
    assert_eq!(cluster.submitter(&anew), "ads");
}

/// A cluster with an operator that works for `kinds`, and the operator's user.
fn operated(account: &str, kinds: &[&str]) -> (Cluster, String) {
    let user = format!("system:serviceaccount:operators:{account}");
    let cluster = Cluster::with(|decorator| {
        let named = serde_json::from_value(json!([{"user": user, "kinds": kinds}])).unwrap();
        decorator.controllers = NamedControllers::new(&decorator.kinds, named).unwrap();
    });
    (cluster, user)
}

/// The same owners, none of which is called the controller.
fn uncontrolled(mut object: Value, controller: Option<bool>) -> Value {
    for reference in object["metadata"]["ownerReferences"].as_array_mut().unwrap() {
        match controller {
            Some(controller) => reference["controller"] = json!(controller),
            None => drop(reference.as_object_mut().unwrap().remove("controller")),
        }
    }
    object
}

fn flink_deployment(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "jobs"},
        "spec": {"podTemplate": template(), "job": {"jarURI": "local:///job.jar"}},
    })
}

/// What Flink's operator makes of it.
fn job_manager(flink: &Value) -> Value {
    let made = deployment(flink["spec"]["podTemplate"].clone());
    uncontrolled(owned(made, ("flink.apache.org/v1beta1", "FlinkDeployment"), flink), Some(false))
}

#[tokio::test]
async fn a_workload_whose_owner_is_not_called_its_controller_is_of_whoever_submitted_that() {
    let (cluster, operator) = operated("flink", &["FlinkDeployment.flink.apache.org"]);
    let flink = cluster.submit("etl", FLINK, flink_deployment("stream")).await.unwrap();
    let made = cluster.submit(&operator, DEPLOYMENT, job_manager(&flink)).await.unwrap();
    assert_eq!(cluster.submitter(&made), "etl");
    // Its pods find its own seal above them, and no other.
    let annotations = &made["spec"]["template"]["metadata"]["annotations"];
    let seal = cluster.keys().verify_workload(annotations[SEAL_ANNOTATION].as_str().unwrap()).unwrap();
    assert_eq!(
        (&*seal.workload.kind, seal.workload.name),
        ("Deployment", ObjectName::Name("web".to_owned()))
    );
    let set = cluster.submit(DEPLOYMENTS, REPLICA_SET, replica_set(&made)).await.unwrap();
    let pod = cluster.submit(REPLICA_SETS, POD, set_pod(&set)).await.unwrap();
    let seal = cluster.seal(&pod);
    assert_eq!(seal.submitter, "etl");
    assert_eq!(seal.root_owner.unwrap().uid, made["metadata"]["uid"]);
    // Written down anew as it was, it keeps its seal.
    let again = cluster.update(&operator, DEPLOYMENT, &made, job_manager(&flink)).await.unwrap();
    assert_eq!(again["spec"], made["spec"]);
    // It is made of what its owner says now.
    let mut changed = flink.clone();
    changed["spec"]["job"]["jarURI"] = json!("local:///theirs.jar");
    let changed = cluster.update("ads", FLINK, &flink, changed).await.unwrap();
    assert_eq!(reason(cluster.submit(&operator, DEPLOYMENT, job_manager(&flink)).await), "SEAL_NOT_OF_OWNER");
    let made = cluster.submit(&operator, DEPLOYMENT, job_manager(&changed)).await.unwrap();
    assert_eq!(cluster.submitter(&made), "ads");
}

#[tokio::test]
async fn an_owner_that_is_not_called_the_controller_has_to_be_what_it_is_said_to_be() {
    let (cluster, operator) = operated("flink", &["FlinkDeployment.flink.apache.org"]);
    let flink = cluster.submit("etl", FLINK, flink_deployment("stream")).await.unwrap();
    let theirs = cluster.submit("ads", FLINK, flink_deployment("theirs")).await.unwrap();
    // Only who is named hands a name on.
    let forged = cluster.submit("ads", DEPLOYMENT, job_manager(&flink)).await.unwrap();
    assert_eq!(cluster.submitter(&forged), "ads");
    let forged = cluster.submit(ROBOT, DEPLOYMENT, job_manager(&flink)).await.unwrap();
    assert_eq!(cluster.submitter(&forged), ROBOT);
    // The seal is another's, the owner another one of its name, or gone.
    let mut crossed = job_manager(&theirs);
    crossed["spec"]["template"] = flink["spec"]["podTemplate"].clone();
    assert_eq!(reason(cluster.submit(&operator, DEPLOYMENT, crossed).await), "SEAL_NOT_OF_OWNER");
    let mut replaced = job_manager(&flink);
    replaced["metadata"]["ownerReferences"][0]["uid"] = json!("u-invented");
    assert_eq!(reason(cluster.submit(&operator, DEPLOYMENT, replaced).await), "OWNER_NOT_FOUND");
    let mut gone = job_manager(&flink);
    gone["metadata"]["ownerReferences"][0]["name"] = json!("gone");
    assert_eq!(reason(cluster.submit(&operator, DEPLOYMENT, gone).await), "OWNER_NOT_FOUND");
    // Among two nobody is guessed: it is the operator's own.
    let mut two = job_manager(&flink);
    let second = job_manager(&theirs)["metadata"]["ownerReferences"][0].clone();
    two["metadata"]["ownerReferences"].as_array_mut().unwrap().push(second);
    let two = cluster.submit(&operator, DEPLOYMENT, two).await.unwrap();
    assert_eq!(cluster.submitter(&two), operator);
    // Nor is an owner looked for beside a controller of another kind.
    let mut beside = job_manager(&flink);
    let controller = replica_set(&forged)["metadata"]["ownerReferences"][0].clone();
    beside["metadata"]["ownerReferences"].as_array_mut().unwrap().push(controller);
    let beside = cluster.submit(&operator, DEPLOYMENT, beside).await.unwrap();
    assert_eq!(cluster.submitter(&beside), operator);
    // One of another kind beside it is nothing.
    let mut other = job_manager(&flink);
    other["metadata"]["ownerReferences"]
        .as_array_mut()
        .unwrap()
        .push(json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "conf", "uid": "u-conf"}));
    let other = cluster.submit(&operator, DEPLOYMENT, other).await.unwrap();
    assert_eq!(cluster.submitter(&other), "etl");
}

fn spark_application(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "jobs"},
        "spec": {"volumes": [token_volume()], "driver": {"cores": 1}, "executor": {"instances": 1}},
    })
}

const SPARK_KINDS: [&str; 2] =
    ["SparkApplication.sparkoperator.k8s.io", "ScheduledSparkApplication.sparkoperator.k8s.io"];
const SPARK_VERSION: &str = "sparkoperator.k8s.io/v1beta2";

/// A driver as `spark-submit` makes it.
fn driver(application: &Value) -> Value {
    let mut pod = bare_pod();
    pod["metadata"]["annotations"] = application["spec"]["driver"]["annotations"].clone();
    pod
}

#[tokio::test]
async fn a_driver_whose_owner_is_written_down_afterwards_is_of_whoever_submitted_that() {
    let (cluster, operator) = operated("spark", &SPARK_KINDS);
    let scheduled = json!({
        "metadata": {"name": "nightly", "namespace": "jobs"},
        "spec": {"schedule": "@daily", "template": spark_application("")["spec"]},
    });
    let scheduled = cluster.submit("etl", SCHEDULED_SPARK, scheduled).await.unwrap();
    let mut application = spark_application("nightly-1");
    application["spec"] = scheduled["spec"]["template"].clone();
    let application = owned(application, (SPARK_VERSION, "ScheduledSparkApplication"), &scheduled);
    let application = cluster.submit(&operator, SPARK, uncontrolled(application, None)).await.unwrap();
    let annotations = &application["spec"]["driver"]["annotations"];
    assert_eq!(annotations[SUBMITTER_ANNOTATION], "etl");
    assert_ne!(
        annotations[SEAL_ANNOTATION],
        scheduled["spec"]["template"]["driver"]["annotations"][SEAL_ANNOTATION]
    );
    assert_eq!(annotations, &application["spec"]["executor"]["annotations"]);

    let first = cluster.submit(&operator, POD, driver(&application)).await.unwrap();
    assert_eq!(first["metadata"]["annotations"], *annotations);
    let second = owned(first, (SPARK_VERSION, "SparkApplication"), &application);
    let pod = cluster.submit(&operator, POD, second).await.unwrap();
    let seal = cluster.seal(&pod);
    assert_eq!(seal.submitter, "etl");
    assert_eq!(seal.root_owner.unwrap().uid, application["metadata"]["uid"]);
}

#[tokio::test]
async fn a_driver_that_asks_for_it_is_given_a_volume_at_once_and_no_second_one() {
    let (cluster, operator) = operated("spark", &SPARK_KINDS);
    let mut application = spark_application("asks");
    application["spec"]["volumes"] = json!([]);
    application["spec"]["driver"]["annotations"] = json!({"hadoop-token.csi/inject": "true"});
    let application = cluster.submit("etl", SPARK, application).await.unwrap();
    let mut pod = driver(&application);
    pod["spec"]["volumes"] = json!([]);
    let first = cluster.submit(&operator, POD, pod).await.unwrap();
    assert_eq!(first["spec"]["volumes"][0]["csi"]["driver"], DRIVER_NAME);
    assert_eq!(first["metadata"]["annotations"], application["spec"]["driver"]["annotations"]);
    let mut second = owned(first, (SPARK_VERSION, "SparkApplication"), &application);
    second["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "sidecar"}));
    let pod = cluster.submit(&operator, POD, second).await.unwrap();
    assert_eq!(cluster.seal(&pod).submitter, "etl");
    assert_eq!(pod["spec"]["volumes"].as_array().unwrap().len(), 1);
    assert_eq!(pod["spec"]["containers"][1]["volumeMounts"][0]["name"], "hadoop-token");
}

#[tokio::test]
async fn a_driver_is_left_to_another_look_only_when_its_operator_made_it_and_gains_nothing_by_it() {
    let (cluster, operator) = operated("spark", &SPARK_KINDS);
    let application = cluster.submit("etl", SPARK, spark_application("reads")).await.unwrap();
    let theirs = cluster.submit("ads", SPARK, spark_application("theirs")).await.unwrap();
    for user in ["ads", ROBOT] {
        let pod = cluster.submit(user, POD, driver(&application)).await.unwrap();
        assert_eq!(cluster.seal(&pod).submitter, user);
    }
    // By the configuration of Spark a driver can be given any annotation.
    let left = cluster.submit(&operator, POD, driver(&application)).await.unwrap();
    let seal = left["metadata"]["annotations"][SEAL_ANNOTATION].as_str().unwrap();
    assert!(cluster.keys().verify(seal).is_err(), "it has a seal of its own");
    let crossed = owned(left, (SPARK_VERSION, "SparkApplication"), &theirs);
    assert_eq!(reason(cluster.submit(&operator, POD, crossed).await), "SEAL_NOT_OF_OWNER");
    // What is no seal of its kinds is written over.
    let (deployment, _) = cluster.deployed().await;
    let others = deployment["spec"]["template"]["metadata"]["annotations"].clone();
    for annotations in [others, json!({SEAL_ANNOTATION: "x", SUBMITTER_ANNOTATION: "etl"})] {
        let mut pod = bare_pod();
        pod["metadata"]["annotations"] = annotations;
        let pod = cluster.submit(&operator, POD, pod).await.unwrap();
        assert_eq!(cluster.seal(&pod).submitter, operator);
    }
    // So is one of another namespace.
    let mut elsewhere = driver(&application);
    elsewhere["metadata"]["namespace"] = json!("others");
    cluster.decorator.namespaces.registered(BTreeSet::from(["jobs".to_owned(), "others".to_owned()]));
    let pod = cluster.submit(&operator, POD, elsewhere).await.unwrap();
    assert_eq!(cluster.seal(&pod).submitter, operator);
    // Among two owners nobody is guessed, nor waited for.
    let mut two = owned(driver(&application), (SPARK_VERSION, "SparkApplication"), &application);
    let second = owned(json!({"metadata": {}}), (SPARK_VERSION, "SparkApplication"), &theirs);
    two["metadata"]["ownerReferences"]
        .as_array_mut()
        .unwrap()
        .push(second["metadata"]["ownerReferences"][0].clone());
    let pod = cluster.submit(&operator, POD, uncontrolled(two, None)).await.unwrap();
    assert_eq!(cluster.seal(&pod).submitter, operator);
}

#[tokio::test]
async fn a_template_without_a_seal_makes_no_pod_with_a_token() {
    let cluster = Cluster::new();
    let mut old = deployment(template());
    old["metadata"]["uid"] = json!("u-old");
    cluster.store(("apps", "v1", "deployments"), &old);
    let denial = cluster.submit(DEPLOYMENTS, REPLICA_SET, replica_set(&old)).await.unwrap_err();
    assert_eq!((denial.reason, denial.code), ("SEAL_MISSING", 403));
    assert!(denial.message.contains("kubectl rollout restart"), "{}", denial.message);
    // That is what helps.
    let mut restarted = old.clone();
    restarted["spec"]["template"]["metadata"]["annotations"] =
        json!({"kubectl.kubernetes.io/restartedAt": "now"});
    let restarted = cluster.update("etl", DEPLOYMENT, &old, restarted).await.unwrap();
    assert_eq!(cluster.submitter(&restarted), "etl");
    assert!(cluster.submit(DEPLOYMENTS, REPLICA_SET, replica_set(&restarted)).await.is_ok());
}

#[tokio::test]
async fn pods_without_a_token_are_none_of_its_business_unless_they_say_who_asked() {
    let cluster = Cluster::new();
    let mut pod = bare_pod();
    pod["spec"]["volumes"] = json!([]);
    assert_eq!(cluster.submit("etl", POD, pod.clone()).await.unwrap()["metadata"].get("annotations"), None);
    pod["metadata"]["annotations"] = json!({SUBMITTER_ANNOTATION: "ads", "mine": "kept"});
    let pod = cluster.submit("etl", POD, pod).await.unwrap();
    assert_eq!(cluster.seal(&pod).submitter, "etl");
    assert_eq!(pod["metadata"]["annotations"]["mine"], "kept");
    // Of a controller's pod nobody knows it.
    let mut plain = replica_set(&deployment(template()));
    plain["metadata"].as_object_mut().unwrap().remove("ownerReferences");
    plain["metadata"]["uid"] = json!("u-plain");
    plain["spec"]["template"]["spec"]["volumes"] = json!([]);
    plain["spec"]["template"]["metadata"]["annotations"] =
        json!({SUBMITTER_ANNOTATION: "ads", "mine": "kept"});
    cluster.store(("apps", "v1", "replicasets"), &plain);
    let pod = cluster.submit(REPLICA_SETS, POD, set_pod(&plain)).await.unwrap();
    assert_eq!(pod["metadata"]["annotations"], json!({"mine": "kept"}));
}

#[tokio::test]
async fn a_namespace_that_asks_for_its_pods_has_its_workloads_sealed() {
    let cluster = Cluster::new();
    let label = json!({"metadata": {"name": "jobs", "labels": {"hadoop-token.csi/inject": "true"}}});
    let old = json!({"metadata": {"name": "web", "namespace": "jobs", "uid": "u-0"}, "spec": {"template": {
        "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "main"}]},
    }}});
    cluster.objects.kept().insert("/api/v1/namespaces/jobs".to_owned(), label);
    let web = cluster.submit("etl", DEPLOYMENT, old.clone()).await.unwrap();
    let set = cluster.submit(DEPLOYMENTS, REPLICA_SET, replica_set(&web)).await.unwrap();
    let pod = cluster.submit(REPLICA_SETS, POD, set_pod(&set)).await.unwrap();
    assert_eq!(pod["metadata"]["annotations"][SUBMITTER_ANNOTATION], "etl");
    assert_eq!(pod["spec"]["volumes"][0]["csi"]["driver"], DRIVER_NAME);

    let mut restarted = old.clone();
    restarted["spec"]["template"]["metadata"]["annotations"] = json!({"restarted": "now"});
    let web = cluster.update("ads", DEPLOYMENT, &old, restarted).await.unwrap();
    assert_eq!(web["spec"]["template"]["metadata"]["annotations"][SUBMITTER_ANNOTATION], "ads");
}

#[tokio::test]
async fn alone_it_says_of_every_pod_who_asked_for_it() {
    let cluster = Cluster::with(|decorator| decorator.scope = Scope::All);
    let mut plain = template();
    plain["spec"]["volumes"] = json!([]);
    let deployment = cluster.submit("etl", DEPLOYMENT, deployment(plain.clone())).await.unwrap();
    let set = cluster.submit(DEPLOYMENTS, REPLICA_SET, replica_set(&deployment)).await.unwrap();
    let pod = cluster.submit(REPLICA_SETS, POD, set_pod(&set)).await.unwrap();
    assert_eq!(cluster.seal(&pod).submitter, "etl");
    // Nobody waits for it who reaches into what is only stamped, as he does where a token is.
    assert_eq!(cluster.decorator.namespaces.wanted(&BTreeSet::new()), BTreeSet::new());
    cluster.submit("etl", POD, bare_pod()).await.unwrap();
    assert_eq!(cluster.decorator.namespaces.wanted(&BTreeSet::new()), BTreeSet::from(["jobs".to_owned()]));
    // What was there before it was asked for anything goes on without.
    let mut old = set.clone();
    old["metadata"]["name"] = json!("old");
    old["spec"]["template"] = plain;
    cluster.store(("apps", "v1", "replicasets"), &old);
    let pod = cluster.submit(REPLICA_SETS, POD, set_pod(&old)).await.unwrap();
    assert_eq!(pod["metadata"]["annotations"].get(SEAL_ANNOTATION), None);
}

#[tokio::test]
async fn headless_accounts_are_those_of_the_submitted_template() {
    let cluster = Cluster::new();
    let asking = |account: &str| {
        let mut template = template();
        template["spec"]["volumes"][0]["csi"]["volumeAttributes"] = json!({"doAs": account});
        template
    };
    let deployment = cluster.submit("etl", DEPLOYMENT, deployment(asking("batch"))).await.unwrap();
    let set = cluster.submit(DEPLOYMENTS, REPLICA_SET, replica_set(&deployment)).await.unwrap();
    let pod = cluster.submit(REPLICA_SETS, POD, set_pod(&set)).await.unwrap();
    assert_eq!(cluster.seal(&pod).do_as, BTreeSet::from(["batch".to_owned()]));
    let mut other = set_pod(&set);
    other["spec"]["volumes"] = asking("ads")["spec"]["volumes"].clone();
    assert_eq!(reason(cluster.submit(REPLICA_SETS, POD, other).await), "DO_AS_NOT_SEALED");
}

#[tokio::test]
async fn another_look_at_a_pod_that_others_changed_seals_it_anew() {
    let cluster = Cluster::new();
    let (_, set) = cluster.deployed().await;
    let first = cluster.submit(REPLICA_SETS, POD, set_pod(&set)).await.unwrap();
    let mut again = first.clone();
    again["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "sidecar"}));
    let second = cluster.submit(REPLICA_SETS, POD, again).await.unwrap();
    let (before, after) = (cluster.seal(&first), cluster.seal(&second));
    assert_eq!((before.submitter, before.root_owner), (after.submitter, after.root_owner));
    // Of another ReplicaSet it is nobody's.
    let other = cluster.submit("ads", DEPLOYMENT, {
        let mut other = deployment(template());
        other["metadata"]["name"] = json!("other");
        other
    });
    let mut set = replica_set(&other.await.unwrap());
    set["metadata"]["name"] = json!("other-7f");
    let set = cluster.submit(DEPLOYMENTS, REPLICA_SET, set).await.unwrap();
    let mut stolen = set_pod(&set);
    stolen["metadata"]["annotations"] = first["metadata"]["annotations"].clone();
    assert_eq!(reason(cluster.submit(REPLICA_SETS, POD, stolen).await), "SEAL_NOT_OF_OWNER");
}

#[tokio::test]
async fn a_pods_seal_in_a_template_is_nobodys_word_however_genuine() {
    let cluster = Cluster::new();
    let (_, set) = cluster.deployed().await;
    // Somebody had it made for the very pod that a controller is about to make, in another's name.
    let pod = cluster.submit("ads", POD, set_pod(&set)).await.unwrap();
    assert_eq!(cluster.seal(&pod).submitter, "ads");
    assert_eq!(reason(cluster.submit(REPLICA_SETS, POD, pod.clone()).await), "SEAL_MISSING");
    // Beside the workload's seal it changes nothing.
    let mut beside = pod;
    beside["metadata"]["annotations"][WORKLOAD_SEAL_ANNOTATION] =
        set["spec"]["template"]["metadata"]["annotations"][SEAL_ANNOTATION].clone();
    assert_eq!(reason(cluster.submit(REPLICA_SETS, POD, beside.clone()).await), "SUBMITTER_CHANGED");
    beside["metadata"]["annotations"][SUBMITTER_ANNOTATION] = json!("etl");
    let pod = cluster.submit(REPLICA_SETS, POD, beside).await.unwrap();
    assert_eq!(cluster.seal(&pod).submitter, "etl");
}

#[tokio::test]
async fn a_pod_hands_its_submitter_on_where_that_is_allowed() {
    let allowed = || {
        Cluster::with(|decorator| {
            decorator.inherit =
                serde_json::from_value(json!([{"namespace": "jobs", "serviceAccounts": ["robot"]}])).unwrap();
        })
    };
    let bound = |pod: &Value| {
        json!({"username": ROBOT, "groups": [], "extra": {
            "authentication.kubernetes.io/pod-name": [pod["metadata"]["name"]],
            "authentication.kubernetes.io/pod-uid": [pod["metadata"]["uid"]],
        }})
    };
    let mut executor = bare_pod();
    executor["metadata"]["name"] = json!("executor-1");
    for (cluster, expected) in [(allowed(), "etl"), (Cluster::new(), ROBOT)] {
        let driver = cluster.submit("etl", POD, bare_pod()).await.unwrap();
        let pod = cluster.submit_as(bound(&driver), POD, executor.clone()).await.unwrap();
        assert_eq!(cluster.seal(&pod).submitter, expected);
    }
    let cluster = allowed();
    let driver = cluster.submit("etl", POD, bare_pod()).await.unwrap();
    // The token of a pod that is gone, though there is one of its name.
    let mut gone = driver.clone();
    gone["metadata"]["uid"] = json!("u-gone");
    assert_eq!(reason(cluster.submit_as(bound(&gone), POD, executor.clone()).await), "PARENT_POD_UNPROVEN");
    // A pod that carries another's seal.
    let mut thief = driver.clone();
    (thief["metadata"]["name"], thief["metadata"]["uid"]) = (json!("thief"), json!("u-thief"));
    cluster.store(("", "v1", "pods"), &thief);
    assert_eq!(reason(cluster.submit_as(bound(&thief), POD, executor.clone()).await), "PARENT_POD_UNPROVEN");
    // A pod that has ended, one that was given the other's name and seal later, and one that runs as another account.
    for (pointer, value) in [
        ("/status", json!({"phase": "Succeeded"})),
        ("/metadata/creationTimestamp", json!("2040-01-01T00:00:00Z")),
        ("/spec/serviceAccountName", json!("another")),
    ] {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let mut changed = driver.clone();
        changed.pointer_mut(parent).unwrap()[key] = value;
        cluster.store(("", "v1", "pods"), &changed);
        let refused = cluster.submit_as(bound(&driver), POD, executor.clone()).await;
        assert_eq!(reason(refused), "PARENT_POD_UNPROVEN", "{pointer}");
    }
    // What needs no token needs nobody to be known, and says of nobody that he asked for it.
    executor["spec"]["volumes"] = json!([]);
    executor["metadata"]["annotations"] = json!({SUBMITTER_ANNOTATION: "etl"});
    let plain = cluster.submit_as(bound(&driver), POD, executor.clone()).await.unwrap();
    assert_eq!(plain["metadata"]["annotations"], json!({}));
    // What asks for one does.
    executor["metadata"]["annotations"] = json!({"hadoop-token.csi/inject": "true"});
    assert_eq!(reason(cluster.submit_as(bound(&driver), POD, executor).await), "PARENT_POD_UNPROVEN");
}

#[tokio::test]
async fn an_operator_may_write_down_anew_what_it_works_for_and_nobody_else_may() {
    let cluster = Cluster::new();
    let job = json!({"metadata": {"name": "train", "namespace": "jobs"}, "spec": {"template": template()}});
    let job = cluster.submit("etl", JOB, job).await.unwrap();
    let mut defaulted = job.clone();
    defaulted["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
    assert_eq!(cluster.update(OPERATOR, JOB, &job, defaulted.clone()).await.unwrap(), defaulted);
    let by_robot = cluster.update(ROBOT, JOB, &job, defaulted).await.unwrap();
    assert_eq!(cluster.submitter(&by_robot), ROBOT);
    let pod = cluster.submit(OPERATOR, POD, pod_of(&by_robot, ("batch/v1", "Job"))).await.unwrap();
    assert_eq!(cluster.seal(&pod).submitter, ROBOT);
}

#[tokio::test]
async fn a_workload_with_a_generated_name_is_known_by_what_it_begins_with() {
    let cluster = Cluster::new();
    let job = json!({"metadata": {"generateName": "train-", "namespace": "jobs"}, "spec": {"template": template()}});
    let mut job = cluster.submit("etl", JOB, job).await.unwrap();
    job["metadata"]["name"] = json!("train-x7k2p");
    cluster.store(("batch", "v1", "jobs"), &job);
    let pod = cluster.submit(OPERATOR, POD, pod_of(&job, ("batch/v1", "Job"))).await.unwrap();
    assert_eq!(cluster.seal(&pod).submitter, "etl");
}

#[tokio::test]
async fn exempt_namespaces_and_other_requests_are_left_alone() {
    let cluster = Cluster::new();
    let mut pod = bare_pod();
    pod["metadata"]["namespace"] = json!("kube-system");
    assert_eq!(cluster.submit("etl", POD, pod.clone()).await.unwrap()["metadata"].get("annotations"), None);
    let user = json!({"username": "ads"});
    let pod = bare_pod();
    for operation in ["UPDATE", "DELETE", "CONNECT"] {
        let verdict = cluster.ask(user.clone(), operation, POD, [&pod, &pod]).await;
        assert_eq!(verdict, Verdict::Allowed(Allowed::default()), "{operation}");
    }
}

#[tokio::test]
async fn what_is_malformed_is_refused_with_its_place() {
    let cluster = Cluster::new();
    let mut pod = bare_pod();
    pod["metadata"]["annotations"] = json!(["a list"]);
    let denial = cluster.submit("etl", POD, pod).await.unwrap_err();
    assert_eq!((denial.reason, denial.code), ("MANIFEST_MALFORMED", 422));
    assert!(denial.message.contains("/metadata/annotations"), "{}", denial.message);
    let mut nameless = bare_pod();
    nameless["metadata"].as_object_mut().unwrap().remove("name");
    assert_eq!(reason(cluster.submit("etl", POD, nameless).await), "NAME_MISSING");
}

#[tokio::test]
async fn a_seal_of_an_exchanged_key_is_named_as_such() {
    let cluster = Cluster::new();
    let (deployment, mut set) = cluster.deployed().await;
    let seal = WorkloadSeal::of(
        &Submission { submitter: "ads".to_owned(), groups: Vec::new(), root_owner: None, time: NOW },
        "jobs",
        ("apps", "Deployment"),
        &deployment,
        BTreeSet::new(),
    );
    let by_other = SealingKey::generate().annotations(&seal.unwrap(), &[]).unwrap();
    for (key, value) in by_other {
        set["spec"]["template"]["metadata"]["annotations"][key] = json!(value);
    }
    cluster.store(("apps", "v1", "replicasets"), &set);
    let denial = cluster.submit(REPLICA_SETS, POD, set_pod(&set)).await.unwrap_err();
    assert_eq!(denial.reason, "SEAL_INVALID");
    assert!(denial.message.contains("not among the seal keys"), "{}", denial.message);
}
