//! The API server with the webhook's entries registered, in a namespace for this, and the ways to ask it something that
//! has no effect.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use bed::{Bed, process::until};
use http::{Method, Request};
use kube::Client;
use serde_json::{Value, json};

use super::manifests::Manifest;

/// What the webhook registers, with an address at which nobody listens.
const ENTRIES: &str = include_str!("../../../webhook/src/conditions/entries.json");
const NAMESPACE: &str = "conditions";
const EXEMPT: &str = "kube-system";
const OBJECTS: [(&str, &str, &str); 2] = [
    ("MutatingWebhookConfiguration", "mutatingwebhookconfigurations", "mutating"),
    ("ValidatingWebhookConfiguration", "validatingwebhookconfigurations", "validating"),
];
const REGISTRATION: &str = "/apis/admissionregistration.k8s.io/v1";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const LIMIT: Duration = Duration::from_secs(30);
/// Longest until a namespace is gone, with all that was in it.
const CLEAN_LIMIT: Duration = Duration::from_secs(120);

/// What becomes of a request.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    /// The webhook would have been asked.
    Asked,
    /// It would not, and the request went on.
    Passed,
    /// The API server itself refuses it.
    Refused(String),
}

pub(super) struct Server {
    client: Client,
}

impl Server {
    /// Lets `story` happen on an API server that knows the kinds of `manifests`, and leaves nothing of it behind.
    pub(super) async fn with_kinds(
        bed: &Bed,
        manifests: &[Manifest],
        story: impl AsyncFnOnce(&Self) -> Result<()>,
    ) -> Result<()> {
        let server = Self { client: bed.kubernetes().client() };
        let definitions = definitions(manifests);
        let outcome = async {
            server.prepare(&definitions).await?;
            story(&server).await
        };
        let outcome = outcome.await;
        outcome.and(server.clean(&definitions).await)
    }

    /// Registers the webhook for the namespaces of this test, and waits until the API server goes by it.
    pub(super) async fn register(&self) -> Result<()> {
        let mut entries: Value = serde_json::from_str(ENTRIES)?;
        for (kind, resource, key) in OBJECTS {
            let mut entries = entries[key].take();
            for entry in entries.as_array_mut().context("entries are a list")? {
                let namespaces =
                    entry.pointer_mut("/namespaceSelector/matchExpressions").context("namespaces")?;
                let namespaces = namespaces.as_array_mut().context("namespaces are a list")?;
                // Where a namespace is to be that has pods with tokens, as long as there is none.
                for none in namespaces.iter_mut().filter(|label| label["values"] == json!([""])) {
                    none["values"] = json!([NAMESPACE]);
                }
                let here = [NAMESPACE, EXEMPT];
                namespaces
                    .push(json!({"key": "kubernetes.io/metadata.name", "operator": "In", "values": here}));
            }
            let object = json!({
                "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
                "metadata": {"name": NAMESPACE}, "webhooks": entries,
            });
            self.must(Method::POST, &format!("{REGISTRATION}/{resource}"), &object).await?;
        }
        let annotated = json!({"hadoop-token.csi/inject": "true"});
        let asked = json!({"metadata": {"name": "asked", "annotations": annotated}, "spec": {"containers": [{
            "name": "main", "image": "bed/tools:1",
        }]}});
        until("asking the webhook", LIMIT, async || {
            let answer = self.post("/api/v1", "pods", &asked).await?;
            let reached = self.connect("asked", "exec?command=id&stdout=true").await?;
            ensure!(answer == Answer::Asked && reached == Answer::Asked, "{answer:?} {reached:?}");
            Ok(())
        })
        .await
    }

    /// Labels the namespace, and waits until the API server goes by it.
    pub(super) async fn ask_for_injection(&self) -> Result<()> {
        let label = json!({"metadata": {"labels": {"hadoop-token.csi/inject": "true"}}});
        self.must(Method::PATCH, &format!("/api/v1/namespaces/{NAMESPACE}"), &label).await?;
        let plain = json!({"metadata": {"name": "plain"}, "spec": {"containers": [{
            "name": "main", "image": "bed/tools:1",
        }]}});
        until("asking for everything", LIMIT, async || {
            let answer = self.post("/api/v1", "pods", &plain).await?;
            ensure!(answer == Answer::Asked, "{answer:?}");
            Ok(())
        })
        .await
    }

    /// What would become of `object` of the kind of `manifest`.
    pub(super) async fn create(&self, manifest: &Manifest, object: &Value) -> Result<Answer> {
        self.post(&root(manifest.api_version()), &manifest.resource(), object).await
    }

    /// Creates an object for good.
    pub(super) async fn put(&self, root: &str, resource: &str, object: &Value) -> Result<()> {
        let path = format!("{root}/namespaces/{NAMESPACE}/{resource}");
        // A namespace's service account comes some time after it.
        until("created", LIMIT, async || self.must(Method::POST, &path, object).await).await
    }

    pub(super) async fn post(&self, root: &str, resource: &str, object: &Value) -> Result<Answer> {
        let path = format!("{root}/namespaces/{NAMESPACE}/{resource}?dryRun=All");
        self.answer(Method::POST, &path, object).await
    }

    pub(super) async fn post_to_exempt(&self, root: &str, resource: &str, object: &Value) -> Result<Answer> {
        let path = format!("{root}/namespaces/{EXEMPT}/{resource}?dryRun=All");
        self.answer(Method::POST, &path, object).await
    }

    /// `place` is like `apps/v1/deployments/NAME`.
    pub(super) async fn patch(&self, place: &str, patch: &Value) -> Result<Answer> {
        self.answer(Method::PATCH, &at(place), patch).await
    }

    pub(super) async fn delete(&self, place: &str) -> Result<Answer> {
        self.answer(Method::DELETE, &at(place), &json!({})).await
    }

    /// Reaches into a pod.
    pub(super) async fn connect(&self, pod: &str, deed: &str) -> Result<Answer> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}/{deed}");
        self.answer(Method::POST, &path, &Value::Null).await
    }

    async fn prepare(&self, definitions: &BTreeMap<String, Value>) -> Result<()> {
        let namespace = json!({"metadata": {"name": NAMESPACE}});
        self.must(Method::POST, "/api/v1/namespaces", &namespace).await?;
        for definition in definitions.values() {
            self.must(Method::POST, DEFINITIONS, definition).await?;
        }
        for definition in definitions.values() {
            let group = definition["spec"]["group"].as_str().unwrap_or_default();
            let resource = definition["spec"]["names"]["plural"].as_str().unwrap_or_default();
            for version in definition["spec"]["versions"].as_array().into_iter().flatten() {
                let version = version["name"].as_str().unwrap_or_default();
                let list = format!("/apis/{group}/{version}/namespaces/{NAMESPACE}/{resource}");
                until("served", LIMIT, async || self.must(Method::GET, &list, &Value::Null).await).await?;
            }
        }
        Ok(())
    }

    async fn clean(&self, definitions: &BTreeMap<String, Value>) -> Result<()> {
        let mut paths: Vec<_> =
            OBJECTS.iter().map(|(_, resource, _)| format!("{REGISTRATION}/{resource}/{NAMESPACE}")).collect();
        paths.extend(definitions.keys().map(|name| format!("{DEFINITIONS}/{name}")));
        paths.push(format!("/api/v1/namespaces/{NAMESPACE}"));
        for path in &paths {
            // What was not created need not go.
            let _ = self.ask(Method::DELETE, path, &Value::Null).await?;
        }
        for path in &paths {
            until("gone", CLEAN_LIMIT, async || match self.ask(Method::GET, path, &Value::Null).await? {
                Err(status) if status.code == 404 => Ok(()),
                _ => bail!("{path} is still there"),
            })
            .await?;
        }
        Ok(())
    }

    async fn must(&self, method: Method, path: &str, body: &Value) -> Result<()> {
        let outcome = self.ask(method, path, body).await?;
        outcome.map(drop).map_err(|status| anyhow::anyhow!("{path}: {}", status.message))
    }

    async fn answer(&self, method: Method, path: &str, body: &Value) -> Result<Answer> {
        let Err(status) = self.ask(method, path, body).await? else { return Ok(Answer::Passed) };
        let message = status.message;
        if !message.contains("hadoop-token.csi") {
            return Ok(Answer::Refused(message));
        }
        // Not any failure will do: an expression that cannot be evaluated also refuses.
        ensure!(
            message.contains("failed calling webhook") && message.contains("connection refused"),
            "{message}"
        );
        Ok(Answer::Asked)
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<Result<String, Box<kube::core::Status>>> {
        let content = match method {
            Method::PATCH if is_custom(path) => "application/merge-patch+json",
            Method::PATCH => "application/strategic-merge-patch+json",
            _ => "application/json",
        };
        let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body)? };
        let request =
            Request::builder().method(method).uri(path).header("content-type", content).body(body)?;
        match self.client.request_text(request).await {
            Ok(text) => Ok(Ok(text)),
            Err(kube::Error::Api(status)) => Ok(Err(status)),
            Err(error) => Err(error).with_context(|| path.to_owned()),
        }
    }
}

/// Whether it is the path of a custom resource: of a group with a dot.
fn is_custom(path: &str) -> bool {
    path.strip_prefix("/apis/")
        .and_then(|rest| rest.split('/').next())
        .is_some_and(|group| group.contains('.'))
}

/// Where objects of a version are.
fn root(api_version: &str) -> String {
    if api_version.contains('/') { format!("/apis/{api_version}") } else { format!("/api/{api_version}") }
}

/// `apps/v1/deployments/NAME` as a path of the test's namespace, without effect.
fn at(place: &str) -> String {
    let words = if place.starts_with("v1/") { 1 } else { 2 };
    let end = place.match_indices('/').nth(words - 1).map_or(place.len(), |(end, _)| end);
    let (version, rest) = place.split_at(end);
    format!("{}/namespaces/{NAMESPACE}{rest}?dryRun=All", root(version))
}

/// Definitions of all kinds that Kubernetes does not have, by name. They admit whatever is in `spec`.
fn definitions(manifests: &[Manifest]) -> BTreeMap<String, Value> {
    let mut definitions = BTreeMap::new();
    for manifest in manifests.iter().filter(|manifest| !manifest.is_kubernetes()) {
        let (group, version) = manifest.api_version().split_once('/').unwrap_or_default();
        let (kind, resource) = (manifest.kind(), manifest.resource());
        let anything = json!({"x-kubernetes-preserve-unknown-fields": true});
        let schema = json!({"type": "object", "properties": {"spec": anything}});
        let definition = definitions.entry(format!("{resource}.{group}")).or_insert_with(|| {
            json!({
                "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                // Groups that end with k8s.io are protected.
                "metadata": {
                    "name": format!("{resource}.{group}"),
                    "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
                },
                "spec": {
                    "group": group, "scope": "Namespaced", "versions": [],
                    "names": {"kind": kind, "plural": resource, "singular": kind.to_lowercase()},
                },
            })
        });
        if let Some(versions) = definition["spec"]["versions"].as_array_mut()
            && !versions.iter().any(|known| known["name"] == version)
        {
            let storage = versions.is_empty();
            versions.push(json!({
                "name": version, "served": true, "storage": storage, "schema": {"openAPIV3Schema": schema},
            }));
        }
    }
    definitions
}
