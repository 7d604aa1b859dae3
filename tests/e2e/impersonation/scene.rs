//! People who own the namespaces that they share, the webhook, and the two witnesses: what is stored and mounted, and to
//! whom the NameNode gave a token.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    namenode::{Cluster, private_content},
    pod::{Draft, Running},
    process::{Program, until},
    product::SEAL_KEYS,
    users::{JOBS, OTHER, TEAM},
    webhook::{REGISTRATION, REGISTRATIONS, Webhook},
};
use identity::{
    GROUPS_ANNOTATION, SEAL_ANNOTATION, SUBMITTER_ANNOTATION,
    seal::{KeySet, Seal},
};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
        PostParams,
    },
};
use serde_json::{Value, json};

use crate::{
    GONE_LIMIT,
    attacks::stage::{Stage, draft},
};

pub(super) const LIMIT: Duration = Duration::from_secs(100);
pub(super) const RIGHTS: &str = "impersonation";
/// What is written over whatever was there.
const STAMPS: [&str; 3] = [SUBMITTER_ANNOTATION, GROUPS_ANNOTATION, SEAL_ANNOTATION];

/// Where somebody tries to be another.
pub(super) struct Scene<'bed> {
    pub(super) bed: &'bed Bed,
    pub(super) stage: Stage<'bed>,
    pub(super) webhook: &'bed Webhook,
}

impl<'bed> Scene<'bed> {
    pub(super) async fn set(bed: &'bed Bed) -> Result<Self> {
        bed.product().await?;
        let webhook = bed.webhook().await?;
        let stage = Stage::set(bed).await?;
        let scene = Self { bed, stage, webhook };
        scene.owned().await?;
        Ok(scene)
    }

    /// Everybody may do everything in the namespaces that they share, as who owns a namespace.
    async fn owned(&self) -> Result<()> {
        let rules = json!([{"apiGroups": ["", "apps", "batch"], "resources": ["*"], "verbs": ["*"]}]);
        let items: Vec<Value> = [JOBS, OTHER]
            .into_iter()
            .flat_map(|namespace| {
                let metadata = json!({"name": RIGHTS, "namespace": namespace});
                [
                    json!({
                        "apiVersion": "rbac.authorization.k8s.io/v1",
                        "kind": "Role",
                        "metadata": metadata,
                        "rules": rules,
                    }),
                    json!({
                        "apiVersion": "rbac.authorization.k8s.io/v1",
                        "kind": "RoleBinding",
                        "metadata": metadata,
                        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": RIGHTS},
                        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": TEAM}],
                    }),
                ]
            })
            .collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        self.bed.kubernetes().apply(&list.to_string()).await.map(drop)
    }

    /// Somebody's client.
    pub(super) fn client(&self, user: &str) -> Client {
        let users = &self.stage.users;
        match user {
            "etl" => users.etl.clone(),
            "ads" => users.ads.clone(),
            "intruder" => users.intruder.clone(),
            _ => self.bed.kubernetes().client(),
        }
    }

    /// kubectl as one of them, in [`JOBS`].
    pub(super) fn kubectl(&self, user: &str) -> Result<Program> {
        let kubernetes = self.bed.kubernetes();
        let kubeconfig = kubernetes.kubeconfig_of(user, Some(TEAM))?;
        Ok(kubernetes.kubectl().env("KUBECONFIG", kubeconfig).args(["--namespace", JOBS]))
    }

    /// Objects of a kind of Kubernetes' own in [`JOBS`], with somebody's client.
    pub(super) fn objects(&self, user: &str, kind: &str) -> Api<DynamicObject> {
        let (group, version) = group_version(kind);
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        Api::namespaced_with(self.client(user), JOBS, &resource)
    }

    /// Submits an object of Kubernetes' own as somebody, and gives it as it is stored.
    pub(super) async fn submit(&self, user: &str, object: &Value) -> Result<Value> {
        let kind = text(object, "/kind")?;
        let created = self.objects(user, kind).create(&PostParams::default(), &typed(object)?).await;
        let created = created.with_context(|| format!("{user} cannot create a {kind}"))?;
        Ok(serde_json::to_value(created)?)
    }

    /// An object as it is now.
    pub(super) async fn stored(&self, kind: &str, name: &str) -> Result<Value> {
        Ok(serde_json::to_value(self.objects("admin", kind).get(name).await?)?)
    }

    /// Merges something into an object as somebody, and gives it as it is stored.
    pub(super) async fn merge(&self, user: &str, kind: &str, name: &str, change: Value) -> Result<Value> {
        let patch = Patch::Merge(change);
        let patched = self.objects(user, kind).patch(name, &PatchParams::default(), &patch).await;
        Ok(serde_json::to_value(patched.with_context(|| format!("{user} cannot patch {kind} {name}"))?)?)
    }

    /// What a pod of this name carries that `user` submits: a genuine seal. The pod is only tried.
    pub(super) async fn stamps_of(&self, user: &str, draft: &Draft) -> Result<Value> {
        let pods: Api<Pod> = Api::namespaced(self.client(user), JOBS);
        let pod: Pod = serde_json::from_value(draft.json().clone())?;
        let tried = pods.create(&PostParams { dry_run: true, ..PostParams::default() }, &pod).await?;
        let stamps = stamps(tried.annotations().clone());
        ensure!(stamps.as_object().is_some_and(|map| map.len() == 3), "not stamped: {stamps}");
        Ok(stamps)
    }

    /// The pods with the label of a workload of [`workload`] that do not end yet: so many, in the end.
    pub(super) async fn pods(&self, app: &str, count: usize) -> Result<Vec<Running>> {
        let pods: Api<Pod> = Api::namespaced(self.bed.kubernetes().client(), JOBS);
        let its = ListParams::default().labels(&format!("app={app}"));
        let names = until(&format!("there: {count} pods of {app}"), LIMIT, async || {
            let mut found = pods.list(&its).await?.items;
            found.retain(|pod| pod.metadata.deletion_timestamp.is_none());
            let names: Vec<String> = found.iter().map(ResourceExt::name_any).collect();
            ensure!(names.len() == count, "there are {names:?}");
            Ok(names)
        })
        .await?;
        Ok(names.iter().map(|name| self.bed.kubernetes().pod(JOBS, name)).collect())
    }

    /// The only pod of a workload.
    pub(super) async fn pod(&self, app: &str) -> Result<Running> {
        self.pods(app, 1).await?.pop().context("no pod")
    }

    /// Keys of seals that the controller believes.
    pub(super) async fn keys(&self) -> Result<KeySet> {
        let file = self.bed.product().await?.overlay().join(SEAL_KEYS);
        Ok(KeySet::from_jwk_set(&fs::read(file)?)?)
    }

    /// The seal of a pod, which is its own, and says the same as the annotations beside it.
    pub(super) async fn seal(&self, pod: &Running) -> Result<Seal> {
        let keys = self.keys().await?;
        let live = pod.get().await?;
        let annotations = live.annotations();
        let seal = annotations.get(SEAL_ANNOTATION).with_context(|| format!("{} has no seal", pod.name()))?;
        let seal = keys.verify(seal)?;
        let shown = annotations.get(SUBMITTER_ANNOTATION);
        ensure!(shown == Some(&seal.submitter), "{} shows {shown:?}", pod.name());
        Ok(seal)
    }

    /// A pod runs, is sealed as `user`'s, and reads HDFS as `user` and as nobody else.
    pub(super) async fn runs_as(&self, pod: &Running, user: &str) -> Result<()> {
        pod.until_running(LIMIT).await?;
        let submitter = self.seal(pod).await?.submitter;
        ensure!(submitter == user, "{} is of {submitter}", pod.name());
        for owner in ["etl", "ads"] {
            let file = format!("/user/{owner}/private.txt");
            let read = pod.hdfs_native(Cluster::Main, &["cat", &file]).await?;
            if owner == user {
                let read = read.success()?;
                ensure!(read == private_content(Cluster::Main, user), "{} read {read:?}", pod.name());
            } else {
                let told = read.failure()?;
                let denied = format!("Permission denied: user={user}");
                ensure!(told.contains(&denied), "{} was told {told}", pod.name());
            }
        }
        Ok(())
    }

    /// A pod waits for a token that it never gets, and its events say why; `others` have got one so far.
    pub(super) async fn waits(&self, pod: &Running, reason: &str, others: &[&str]) -> Result<String> {
        let event = pod.until_event(&format!("[{reason}]"), LIMIT).await?;
        ensure!(event.starts_with("FailedMount: "), "{event}");
        self.issued_to(others)?;
        Ok(event)
    }

    /// Waits for an event of a workload that contains all of `words`, and gives it.
    pub(super) async fn event(&self, kind: &str, name: &str, words: &[&str]) -> Result<String> {
        let what = format!("an event of {kind} {name} with {words:?}");
        until(&what, LIMIT, async || self.told(kind, name, words).await).await
    }

    /// An event of a workload that contains all of `words`, if there is one by now.
    pub(super) async fn told(&self, kind: &str, name: &str, words: &[&str]) -> Result<String> {
        let events: Api<Event> = Api::namespaced(self.bed.kubernetes().client(), JOBS);
        let its = format!("involvedObject.kind={kind},involvedObject.name={name}");
        let found = events.list(&ListParams::default().fields(&its)).await?.items.into_iter().map(|event| {
            format!("{}: {}", event.reason.unwrap_or_default(), event.message.unwrap_or_default())
        });
        let found: Vec<String> = found.collect();
        let told = found.iter().find(|event| words.iter().all(|word| event.contains(word))).cloned();
        told.with_context(|| format!("events: {found:#?}"))
    }

    /// Deletes a workload, and waits until its pods are gone.
    pub(super) async fn remove(&self, kind: &str, name: &str) -> Result<()> {
        self.objects("admin", kind).delete(name, &DeleteParams::background()).await?;
        self.cleared(name).await
    }

    /// Waits until there are no pods of a workload.
    pub(super) async fn cleared(&self, app: &str) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.bed.kubernetes().client(), JOBS);
        until(&format!("gone: pods of {app}"), GONE_LIMIT, async || {
            let left = pods.list(&ListParams::default().labels(&format!("app={app}"))).await?.items;
            ensure!(left.is_empty(), "{} are left", left.len());
            Ok(())
        })
        .await
    }

    /// While the webhook's registrations are gone, as an administrator can make them. It has to be told to come back.
    pub(super) async fn past_the_webhook<T, F>(&self, meanwhile: impl FnOnce() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let outcome = async {
            for kind in REGISTRATIONS {
                self.bed.kubernetes().kubectl().args(["delete", kind, REGISTRATION]).succeed().await?;
            }
            self.until_past().await?;
            meanwhile().await
        };
        let outcome = outcome.await;
        let back = async {
            self.webhook.apply().await?;
            self.webhook.until_ready().await
        };
        let back: Result<()> = back.await;
        outcome.and_then(|found| back.map(|()| found))
    }

    /// Waits until the API server asks the webhook nothing any more: a pod that it would stamp, and refuse, goes through
    /// as it is.
    async fn until_past(&self) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client("etl"), JOBS);
        let writable = draft("past").set("/spec/volumes/0/csi/readOnly", json!(false));
        let writable: Pod = serde_json::from_value(writable.json().clone())?;
        let trial = PostParams { dry_run: true, ..PostParams::default() };
        until("past the webhook: a pod that is tried", LIMIT, async || {
            let stamps = stamps(pods.create(&trial, &writable).await?.annotations().clone());
            ensure!(stamps == json!({}), "stamped: {stamps}");
            Ok(())
        })
        .await
    }

    /// The NameNode gave tokens to these, in any order, since the scene was set, and to nobody else; and all are
    /// cancelled by now.
    pub(super) async fn ends(&self, owners: &[&str]) -> Result<()> {
        self.issued_to(owners)?;
        self.stage.ends().await
    }

    /// The NameNode gave tokens to these, in any order, since the scene was set, and to nobody else.
    pub(super) fn issued_to(&self, owners: &[&str]) -> Result<()> {
        let (mut issued, mut wanted) = (self.stage.owners()?, owners.to_vec());
        issued.sort_unstable();
        wanted.sort_unstable();
        ensure!(issued == wanted, "tokens were issued to {issued:?} instead of {wanted:?}");
        Ok(())
    }
}

/// A workload of Kubernetes' own of one pod, which is as the draft.
pub(super) fn workload(kind: &str, name: &str, draft: &Draft) -> Value {
    let restart = if ["Job", "CronJob"].contains(&kind) { "Never" } else { "Always" };
    let draft = draft.clone().set("/spec/restartPolicy", json!(restart));
    let annotations = draft.json().pointer("/metadata/annotations").cloned().unwrap_or_default();
    let labels = json!({"app": name});
    let spec = draft.json().get("spec").cloned();
    let template = json!({"metadata": {"labels": labels, "annotations": annotations}, "spec": spec});
    let selector = json!({"matchLabels": labels});
    let spec = match kind {
        "DaemonSet" => json!({"selector": selector, "template": template}),
        "StatefulSet" => {
            json!({"replicas": 1, "serviceName": name, "selector": selector, "template": template})
        }
        "ReplicationController" => json!({"replicas": 1, "selector": labels, "template": template}),
        "Job" => json!({"backoffLimit": 0, "template": template}),
        "CronJob" => json!({
            "schedule": "* * * * *",
            "concurrencyPolicy": "Forbid",
            "jobTemplate": {"spec": {"backoffLimit": 0, "template": template}},
        }),
        _ => json!({"replicas": 1, "selector": selector, "template": template}),
    };
    let (group, version) = group_version(kind);
    let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    json!({
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"name": name, "namespace": JOBS},
        "spec": spec,
    })
}

/// A workload of one pod with a token volume.
pub(super) fn plain(kind: &str, name: &str) -> Value {
    workload(kind, name, &draft("of-a-template"))
}

fn group_version(kind: &str) -> (&'static str, &'static str) {
    match kind {
        "Pod" | "ReplicationController" => ("", "v1"),
        "Job" | "CronJob" => ("batch", "v1"),
        _ => ("apps", "v1"),
    }
}

/// The draft with annotations like those that [`Scene::stamps_of`] gives.
pub(super) fn wearing(draft: Draft, annotations: &Value) -> Draft {
    let all = annotations.as_object().into_iter().flatten();
    all.fold(draft, |draft, (name, value)| draft.annotation(name, value.as_str().unwrap_or_default()))
}

/// Those of annotations that say who submitted something.
pub(super) fn stamps(annotations: impl IntoIterator<Item = (String, String)>) -> Value {
    annotations.into_iter().filter(|(name, _)| STAMPS.contains(&name.as_str())).collect()
}

/// Who submitted what pods of a workload are, as its template says.
pub(super) fn submitter(workload: &Value) -> Result<&str> {
    let annotations = annotations(workload)?;
    let submitter = annotations.get(SUBMITTER_ANNOTATION).and_then(Value::as_str);
    ensure!(annotations.get(SEAL_ANNOTATION).is_some(), "a template without a seal: {annotations}");
    submitter.context("a template without a submitter")
}

/// The template of a workload.
pub(super) fn template(workload: &Value) -> Result<&Value> {
    let places = ["/spec/template", "/spec/jobTemplate/spec/template", "/data/spec/template"];
    places.iter().find_map(|place| workload.pointer(place)).context("no template")
}

/// The annotations of a workload's template.
pub(super) fn annotations(workload: &Value) -> Result<&Value> {
    at(template(workload)?, "/metadata/annotations")
}

/// What is at a JSON pointer.
pub(super) fn at<'a>(object: &'a Value, pointer: &str) -> Result<&'a Value> {
    object.pointer(pointer).with_context(|| format!("no {pointer}"))
}

/// Sets something at a JSON pointer whose parent is a map.
pub(super) fn put_at(object: &mut Value, pointer: &str, value: Value) -> Result<()> {
    let (parent, name) = pointer.rsplit_once('/').context("no pointer")?;
    let parent = object.pointer_mut(parent).and_then(Value::as_object_mut);
    parent.with_context(|| format!("{pointer} has no parent"))?.insert(name.to_owned(), value);
    Ok(())
}

/// The workload is said to have been submitted by `user`.
pub(super) fn is_of(workload: &Value, user: &str) -> Result<()> {
    let submitter = submitter(workload)?;
    ensure!(submitter == user, "submitted by {submitter}");
    Ok(())
}

/// A text at a JSON pointer.
pub(super) fn text<'a>(object: &'a Value, pointer: &str) -> Result<&'a str> {
    object.pointer(pointer).and_then(Value::as_str).with_context(|| format!("no {pointer}"))
}

pub(super) fn typed(object: &Value) -> Result<DynamicObject> {
    Ok(serde_json::from_value(object.clone())?)
}

/// A request was refused for a reason, in a sentence with all these words.
pub(super) fn refused<T>(answer: kube::Result<T>, what: &str, reason: &str, words: &[&str]) -> Result<()> {
    match answer {
        Ok(_) => anyhow::bail!("{what} went through"),
        Err(kube::Error::Api(status)) => {
            ensure!(status.reason == reason, "{what}: {} {}", status.reason, status.message);
            for word in words {
                ensure!(status.message.contains(word), "{what}: {word:?} is not in {:?}", status.message);
            }
            Ok(())
        }
        Err(error) => Err(error).with_context(|| format!("{what} failed otherwise")),
    }
}
