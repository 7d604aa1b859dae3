//! Where admission is tried: people who share a namespace and may do there whatever the webhook has a say in, the
//! programs that they use, and what it looks like when they are refused.

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    pod::{Draft, Running},
    process::{Output, Program},
    users::{JOBS, TEAM, Users},
};
use kube::{Api, Client, api::PostParams};
use serde_json::{Value, json};

use crate::GONE_LIMIT;

/// What whoever shares a namespace may do to pods besides what [`TEAM`] may.
const REACH: &str = "reach";

/// People with the rights to reach into pods, and a webhook that watches them.
pub(crate) struct Scene<'bed> {
    pub(crate) bed: &'bed Bed,
    pub(crate) users: Users,
}

impl<'bed> Scene<'bed> {
    pub(crate) async fn set(bed: &'bed Bed) -> Result<Self> {
        bed.product().await?;
        bed.webhook().await?;
        let users = Users::of(bed.kubernetes()).await?;
        let scene = Self { bed, users };
        scene.may_reach(JOBS).await?;
        Ok(scene)
    }

    /// Whoever is in the team may do in `namespace` all that the webhook has a say in.
    pub(crate) async fn may_reach(&self, namespace: &str) -> Result<()> {
        let pods = [
            "attach",
            "binding",
            "ephemeralcontainers",
            "eviction",
            "exec",
            "portforward",
            "proxy",
            "status",
        ]
        .map(|part| format!("pods/{part}"));
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "Role",
                "metadata": {"name": REACH, "namespace": namespace},
                "rules": [
                    {"apiGroups": [""], "resources": pods, "verbs": ["*"]},
                    {"apiGroups": [""], "resources": ["pods", "bindings"], "verbs": ["*"]},
                    {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["*"]},
                ],
            },
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": {"name": REACH, "namespace": namespace},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": REACH},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": TEAM}],
            },
        ]});
        self.bed.kubernetes().apply(&list.to_string()).await.map(drop)
    }

    /// kubectl as somebody of the team, in [`JOBS`].
    pub(crate) fn kubectl(&self, user: &str) -> Result<Program> {
        let kubeconfig = self.bed.kubernetes().kubeconfig_of(user, Some(TEAM))?;
        Ok(self.bed.kubernetes().kubectl().env("KUBECONFIG", kubeconfig).args(["--namespace", JOBS]))
    }

    /// A pod of etl's.
    pub(crate) async fn run(&self, draft: Draft) -> Result<Running> {
        let pod = self.bed.kubernetes().create_as(self.users.etl.clone(), &draft).await?;
        pod.until_running(GONE_LIMIT).await?;
        Ok(pod)
    }
}

/// A request was refused with this status, and with all these words.
pub(crate) fn refused<T>(answer: kube::Result<T>, what: &str, code: u16, words: &[&str]) -> Result<()> {
    match answer {
        Ok(_) => anyhow::bail!("{what} went through"),
        Err(kube::Error::Api(status)) => {
            ensure!(status.code == code, "{what}: {} {}", status.code, status.message);
            for word in words {
                ensure!(status.message.contains(word), "{what}: {word:?} is not in {:?}", status.message);
            }
            Ok(())
        }
        Err(error) => Err(error).with_context(|| format!("{what} failed otherwise")),
    }
}

/// A program was refused, and told so with all these words.
pub(crate) fn told(output: Output, words: &[&str]) -> Result<()> {
    let text = output.failure()?;
    for word in words {
        ensure!(text.contains(word), "{word:?} is not in {text:?}");
    }
    Ok(())
}

/// Creates as `client`, but only to see what the API server says.
pub(crate) async fn tried<K>(client: &Client, object: &Value) -> Result<kube::Result<K>>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
    K::DynamicType: Default,
{
    let api: Api<K> = Api::namespaced(client.clone(), JOBS);
    let object: K = serde_json::from_value(object.clone())?;
    Ok(api.create(&PostParams { dry_run: true, ..PostParams::default() }, &object).await)
}

/// A Deployment, in [`JOBS`], of pods like `draft`.
pub(crate) fn deployment(draft: &Draft) -> Value {
    let part = |pointer: &str| draft.json().pointer(pointer).cloned().unwrap_or_default();
    let (name, annotations, mut spec) =
        (part("/metadata/name"), part("/metadata/annotations"), part("/spec"));
    if let Some(spec) = spec.as_object_mut() {
        spec.insert("restartPolicy".to_owned(), json!("Always"));
    }
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": JOBS},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}, "annotations": annotations}, "spec": spec},
        },
    })
}
