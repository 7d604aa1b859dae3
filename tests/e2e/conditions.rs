//! What the API server asks the webhook of: the very entries that the webhook registers, on the real API server, with
//! nobody at their address. So what it would ask is refused, and what it would not goes on.

#![expect(clippy::indexing_slicing, reason = "what is indexed is JSON, of which what is not there is null")]

mod manifests;
mod server;

use anyhow::{Context, Result, ensure};
use bed::{Bed, harness::Test};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

use self::{
    manifests::manifests,
    server::{Answer, Server},
};

/// Requests under way at once.
const AT_ONCE: usize = 8;
/// What no field of these kinds should be.
const ODD: [fn() -> Value; 5] =
    [|| Value::Null, || json!("odd"), || json!(7), || json!([7, null, "odd"]), || json!({"odd": 7})];

/// The tests of this module.
pub(crate) fn tests() -> Vec<Test> {
    bed::tests![on a bare bed:
        whatever_involves_a_token_is_asked_for_and_nothing_else_however_odd,
        large_objects_are_within_what_expressions_may_cost,
        an_update_is_asked_for_only_when_it_changes_what_matters,
        a_namespace_that_asks_for_injection_is_asked_for_and_an_exempt_one_never,
    ]
}

async fn whatever_involves_a_token_is_asked_for_and_nothing_else_however_odd(bed: &Bed) -> Result<()> {
    let manifests = manifests()?;
    Server::with_kinds(bed, &manifests, async |server| {
        server.register().await?;
        let (mut asked, mut passed) = (Vec::new(), Vec::new());
        for manifest in &manifests {
            asked.push((manifest, manifest.object.clone()));
            asked.extend(manifest.with_one_place().into_iter().map(|object| (manifest, object)));
            passed.push((manifest, manifest.without_token()));
            for odd in ODD {
                passed.extend(manifest.with_odd(&odd()).into_iter().map(|object| (manifest, object)));
            }
        }
        ensure!(asked.len() > manifests.len() && passed.len() > 1000, "{} {}", asked.len(), passed.len());
        let asked = stream::iter(asked).map(async |(manifest, object)| {
            let answer = server.create(manifest, &object).await?;
            ensure!(answer == Answer::Asked, "not asked for: {object}: {answer:?}");
            Ok(())
        });
        asked.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        let passed = stream::iter(passed).map(async |(manifest, object)| {
            let answer = server.create(manifest, &object).await?;
            // The API server itself has something against much of what is odd in its own kinds.
            let by_itself = manifest.is_kubernetes() && matches!(answer, Answer::Refused(_));
            ensure!(answer == Answer::Passed || by_itself, "asked for or failed: {object}: {answer:?}");
            Ok(())
        });
        passed.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        let plain = manifests.iter().map(|manifest| (manifest, manifest.without_token()));
        for (manifest, object) in plain {
            let answer = server.create(manifest, &object).await?;
            ensure!(answer == Answer::Passed, "{object}: {answer:?}");
        }
        Ok(())
    })
    .await
}

/// Expressions that cost too much fail, and an object that makes them do so is refused.
async fn large_objects_are_within_what_expressions_may_cost(bed: &Bed) -> Result<()> {
    let workflows = manifests()?.into_iter().filter(|manifest| manifest.object["kind"] == "Workflow");
    let workflows: Vec<_> = workflows.collect();
    let workflow = workflows.first().context("there is a workflow")?;
    Server::with_kinds(bed, &workflows, async |server| {
        let template = |number: usize| {
            let volume = |name: &str| json!({"name": name, "csi": {"driver": "other.example"}});
            let inline = json!({"metadata": {"annotations": {"a": "b"}}, "volumes": [volume("c")]});
            json!({
                "name": format!("template-{number}"),
                "metadata": {"annotations": {"a": "b", "c": "d"}, "labels": {"e": "f"}},
                "volumes": [volume("a"), volume("b")],
                "steps": [[{"inline": inline}]],
                "container": {"image": "registry.example.org/step:1", "env": [{"name": "A", "value": "b"}]},
            })
        };
        let metadata = json!({"name": "large", "labels": {"a": "b"}});
        let spec = json!({"templates": (0..2000).map(template).collect::<Vec<_>>()});
        let large = json!({
            "apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": metadata, "spec": spec,
        });
        server.put("/apis/argoproj.io/v1alpha1", "workflows", &large).await?;
        let volumes: Vec<_> =
            (0..2000).map(|number| json!({"name": format!("volume-{number}"), "emptyDir": {}})).collect();
        server.register().await?;
        let mut larger = large;
        larger["metadata"]["name"] = json!("another");
        let answer = server.create(workflow, &larger).await?;
        ensure!(answer == Answer::Passed, "a workflow: {answer:?}");
        let patch = json!({"spec": {"entrypoint": "template-0"}});
        let answer = server.patch("argoproj.io/v1alpha1/workflows/large", &patch).await?;
        ensure!(answer == Answer::Passed, "a change of it: {answer:?}");
        let patch = json!({"spec": {"volumes": token()}});
        let answer = server.patch("argoproj.io/v1alpha1/workflows/large", &patch).await?;
        ensure!(answer == Answer::Asked, "a token in it: {answer:?}");
        let mut pod = pod("large", &json!(volumes));
        pod["metadata"]["annotations"] =
            (0..5000).map(|number| (format!("example.org/{number}"), json!("x"))).collect();
        let answer = server.post("/api/v1", "pods", &pod).await?;
        ensure!(answer == Answer::Passed, "a pod: {answer:?}");
        Ok(())
    })
    .await
}

/// A pod that nobody schedules.
fn pod(name: &str, volumes: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "schedulerName": "nobody",
        "containers": [{"name": "main", "image": "bed/tools:1"}],
        "volumes": volumes,
    }})
}

fn deployment(name: &str, volumes: &Value) -> Value {
    let labels = json!({"app": name});
    let template = json!({"metadata": {"labels": labels}, "spec": pod(name, volumes)["spec"]});
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
        "replicas": 0, "selector": {"matchLabels": labels}, "template": template,
    }})
}

fn token() -> Value {
    json!([{"name": "token", "csi": {"driver": "hadoop-token.csi", "readOnly": true}}])
}

async fn an_update_is_asked_for_only_when_it_changes_what_matters(bed: &Bed) -> Result<()> {
    let notebooks = manifests()?.into_iter().filter(|manifest| manifest.object["kind"] == "Notebook");
    let notebooks: Vec<_> = notebooks.collect();
    let notebook = notebooks.first().context("there is a notebook")?;
    Server::with_kinds(bed, &notebooks, async |server| {
        for volumes in [json!([]), token()] {
            let name = if volumes == json!([]) { "plain" } else { "token" };
            server.put("/api/v1", "pods", &pod(name, &volumes)).await?;
            server.put("/apis/apps/v1", "deployments", &deployment(name, &volumes)).await?;
        }
        server.put("/apis/kubeflow.org/v1", "notebooks", &notebook.object).await?;
        server.register().await?;
        let ours = json!({"metadata": {"annotations": {"hadoop-token.csi/submitter": "ads"}}});
        let theirs = json!({"metadata": {"annotations": {"example.org/a": "b"}, "labels": {"c": "d"}}});
        let spec = |spec: Value| json!({"spec": spec});
        let template = |template: Value| json!({"spec": {"template": template}});
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
        let image = json!({"containers": [{"name": "main", "image": "example.org/other:1"}]});
        let debug = json!({"ephemeralContainers": [{"name": "debug", "image": "bed/tools:1"}]});
        let finalizer = json!({"metadata": {"finalizers": ["example.org/a"]}});
        for (is_asked, place, patch) in [
            (false, "v1/pods/token", theirs.clone()),
            (false, "v1/pods/token", finalizer),
            (false, "v1/pods/token/status", ready.clone()),
            (false, "v1/pods/plain", spec(image.clone())),
            (false, "v1/pods/plain/ephemeralcontainers", spec(debug.clone())),
            (true, "v1/pods/token", ours.clone()),
            (true, "v1/pods/plain", ours.clone()),
            (true, "v1/pods/token", json!({"metadata": {"labels": {"hadoop-token.csi/inject": "true"}}})),
            (true, "v1/pods/token/status", ours.clone()),
            (true, "v1/pods/token", spec(image.clone())),
            (true, "v1/pods/token/ephemeralcontainers", spec(debug)),
            (false, "apps/v1/deployments/token", theirs.clone()),
            (false, "apps/v1/deployments/token", ours.clone()),
            (false, "apps/v1/deployments/token/scale", spec(json!({"replicas": 2}))),
            (false, "apps/v1/deployments/token/status", ready),
            (false, "apps/v1/deployments/plain", spec(json!({"replicas": 2}))),
            (false, "apps/v1/deployments/plain", template(spec(image.clone()))),
            (false, "apps/v1/deployments/token", spec(json!({"replicas": 2, "paused": true}))),
            (true, "apps/v1/deployments/token", template(spec(image))),
            // No pod that comes of it will have one.
            (false, "apps/v1/deployments/token", template(spec(json!({"volumes": null})))),
            (true, "apps/v1/deployments/plain", template(spec(json!({"volumes": token()})))),
            (true, "apps/v1/deployments/plain", template(ours.clone())),
            // Its pods have all of its annotations and labels.
            (true, "kubeflow.org/v1/notebooks/exploration", theirs),
            (true, "kubeflow.org/v1/notebooks/exploration", ours),
            (true, "kubeflow.org/v1/notebooks/exploration", spec(json!({"replicas": 2}))),
            (false, "kubeflow.org/v1/notebooks/exploration", spec(json!({"template": null}))),
        ] {
            let answer = server.patch(place, &patch).await?;
            let expected = if is_asked { Answer::Asked } else { Answer::Passed };
            ensure!(answer == expected, "{place} {patch}: {answer:?}");
        }
        for deed in ["exec?command=id&stdout=true", "attach?stdout=true", "portforward?ports=80", "proxy"] {
            let answer = server.connect("plain", deed).await?;
            ensure!(answer == Answer::Asked, "{deed}: {answer:?}");
        }
        for resource in ["pods/token/binding", "bindings"] {
            for (is_asked, key) in [(true, "hadoop-token.csi/seal"), (false, "example.org/seal")] {
                let metadata = json!({"name": "token", "annotations": {key: "x"}});
                let binding = json!({"metadata": metadata, "target": {"kind": "Node", "name": "nowhere"}});
                let answer = server.post("/api/v1", resource, &binding).await?;
                let expected = if is_asked { Answer::Asked } else { Answer::Passed };
                ensure!(answer == expected, "{resource} {key}: {answer:?}");
            }
        }
        for place in ["v1/pods/token", "apps/v1/deployments/token"] {
            let answer = server.delete(place).await?;
            ensure!(answer == Answer::Passed, "deletion of {place}: {answer:?}");
        }
        Ok(())
    })
    .await
}

async fn a_namespace_that_asks_for_injection_is_asked_for_and_an_exempt_one_never(bed: &Bed) -> Result<()> {
    Server::with_kinds(bed, &[], async |server| {
        server.put("/apis/apps/v1", "deployments", &deployment("old", &json!([]))).await?;
        server.register().await?;
        let plain = pod("plain", &json!([]));
        let answer = server.post("/api/v1", "pods", &plain).await?;
        ensure!(answer == Answer::Passed, "{answer:?}");
        server.ask_for_injection().await?;
        for (place, resource, object) in
            [("/api/v1", "pods", &plain), ("/apis/apps/v1", "deployments", &deployment("new", &json!([])))]
        {
            let answer = server.post(place, resource, object).await?;
            ensure!(answer == Answer::Asked, "{resource}: {answer:?}");
        }
        let labels = json!({"metadata": {"labels": {"a": "b"}}});
        let answer = server.patch("apps/v1/deployments/old", &labels).await?;
        ensure!(answer == Answer::Passed, "{answer:?}");
        let answer = server.post_to_exempt("/api/v1", "pods", &pod("exempt", &token())).await?;
        ensure!(answer == Answer::Passed, "{answer:?}");
        Ok(())
    })
    .await
}
