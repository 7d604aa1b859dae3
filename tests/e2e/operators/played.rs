//! Operators that the tests play: each is a service account that makes, of an object that somebody has submitted, what
//! the real one would. What it copies is what the API server stored; the rest is up to the webhook.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    harness::Test,
    namenode::{Cluster, private_content},
    operators::{
        PLAYED,
        spark::{APP_NAME, LAUNCHED, ROLE},
    },
    pod::Draft,
    process::until,
    users::{Bound, JOBS, TEAM, Users, service_account_token},
};
use identity::{SEAL_ANNOTATION, SUBMITTER_ANNOTATION};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    AUDIENCE, at,
    jobs::{objects, reading},
    sealed, set,
    shapes::{Makes, Shape, all, controls, definition, is_defined, job_set},
};
use crate::{
    GONE_LIMIT,
    attacks::stage::{Stage, draft},
};

const LIMIT: Duration = Duration::from_secs(60);
/// An account with an operator's rights, that nobody has told the webhook of.
const UNNAMED: &str = "unnamed";

pub(super) fn tests() -> Vec<Test> {
    bed::tests![
        objects_of_every_kind_say_who_submitted_them_wherever_pods_come_from,
        what_operators_make_is_of_whoever_submitted_the_object,
        a_sparkapplications_driver_reads_hdfs_as_whoever_submitted_it,
        an_operator_that_is_not_named_passes_nobody_on,
    ]
}

async fn objects_of_every_kind_say_who_submitted_them_wherever_pods_come_from(bed: &Bed) -> Result<()> {
    let people = set_up(bed).await?;
    for shape in all() {
        changes_hands(&people, &shape).await.with_context(|| shape.kind.to_owned())?;
    }
    Ok(())
}

/// An object, its changes and who is said to have submitted it.
async fn changes_hands(people: &Users, shape: &Shape) -> Result<()> {
    let (etl, ads) = (api(&people.etl, shape)?, api(&people.ads, shape)?);
    let object = submit(&etl, shape, "changes", Some("ads")).await?;
    let before = submitted(shape, &object, "etl")?;
    if let Some((pointer, value)) = &shape.scaling {
        let scaled = change(&ads, "changes", pointer, value).await?;
        ensure!(submitted(shape, &scaled, "etl")? == before, "scaling made another seal");
    }
    let changed = change(&ads, "changes", shape.content.0, &shape.content.1).await?;
    ensure!(submitted(shape, &changed, "ads")? != before, "a change left the seal");
    etl.delete("changes", &DeleteParams::background()).await?;
    Ok(())
}

async fn what_operators_make_is_of_whoever_submitted_the_object(bed: &Bed) -> Result<()> {
    let people = set_up(bed).await?;
    for shape in all() {
        if !matches!(shape.makes, Makes::Others) {
            has_pods(bed, &people, &shape).await.with_context(|| shape.kind.to_owned())?;
        }
    }
    Ok(())
}

/// An object, and what its operator makes of it.
async fn has_pods(bed: &Bed, people: &Users, shape: &Shape) -> Result<()> {
    let etl = api(&people.etl, shape)?;
    let name = format!("has-{}", shape.kind.to_lowercase());
    let object = submit(&etl, shape, &name, None).await?;
    submitted(shape, &object, "etl")?;
    operate(bed, shape, &object).await?;
    etl.delete(&name, &DeleteParams::foreground()).await?;
    until("gone: an object with all that came of it", GONE_LIMIT, async || {
        ensure!(etl.get_opt(&name).await?.is_none(), "it is still there");
        Ok(())
    })
    .await
}

/// Does what the operators of an object of `etl` do, down to its pods.
async fn operate(bed: &Bed, shape: &Shape, object: &Value) -> Result<()> {
    let operator = account(bed, shape.operator).await?;
    let name = at(object, "/metadata/name")?.as_str().unwrap_or_default();
    match shape.makes {
        Makes::Pods => make_pods(bed, &operator, shape, object, "etl").await,
        Makes::Child { kind, spec } => {
            let child = of_kind(kind)?;
            let copy = owned(&child, &format!("{name}-child"), at(object, spec)?, object)?;
            let copy = api(&operator, &child)?.create(&PostParams::default(), &typed(&copy)?).await?;
            let copy = json(&copy)?;
            let is_handed_on = submitted(&child, &copy, "etl")? == submitted(shape, object, "etl")?;
            // Without a controller above it, it has to have a seal of its own for its pods.
            ensure!(is_handed_on == (controls(shape.kind) == Some(true)), "handed on: {is_handed_on}");
            Box::pin(operate(bed, &child, &copy)).await
        }
        Makes::JobSet => {
            let child = of_kind("JobSet")?;
            let set = owned(&child, name, &job_set(), object)?;
            let sets = api(&operator, &child)?;
            let apply = async || {
                let sets = sets.patch(name, &PatchParams::apply("trainer"), &Patch::Apply(&set)).await?;
                json(&sets)
            };
            let made = apply().await?;
            ensure!(submitted(&child, &made, "etl")? == submitted(shape, object, "etl")?, "another seal");
            // An operator does so over and over.
            let again = apply().await?;
            ensure!(at(&again, "/spec")? == at(&made, "/spec")?, "applied once more, it is {again}");
            Box::pin(operate(bed, &child, &made)).await
        }
        Makes::Jobs => {
            let template = at(object, "/spec/replicatedJobs/0/template/spec")?;
            let job = workload("batch/v1", "Job", name, template, object)?;
            let jobs = objects(&operator, "batch/v1", "Job", "jobs")?;
            jobs.create(&PostParams::default(), &typed(&job)?).await?;
            sealed(bed, &pod_with(bed, "batch.kubernetes.io/job-name", name).await?, "etl").await
        }
        Makes::Workload { kind, plural } => {
            let labels = json!({"app": name});
            let spec = json!({
                "selector": {"matchLabels": labels},
                "serviceName": name,
                "template": {
                    "metadata": {"labels": labels, "annotations": carried(shape, object)?},
                    "spec": pod_spec(),
                },
            });
            let mut made = workload("apps/v1", kind, name, &spec, object)?;
            set(&mut made, "/spec/template/spec/restartPolicy", json!("Always"))?;
            let workloads = objects(&operator, "apps/v1", kind, plural)?;
            workloads.create(&PostParams::default(), &typed(&made)?).await?;
            sealed(bed, &pod_with(bed, "app", name).await?, "etl").await
        }
        Makes::Others => Ok(()),
    }
}

pub(super) fn of_kind(kind: &str) -> Result<Shape> {
    all().into_iter().find(|shape| shape.kind == kind).context("no such kind")
}

/// An object of a kind here that another one owns.
fn owned(shape: &Shape, name: &str, spec: &Value, owner: &Value) -> Result<Value> {
    workload(shape.api_version, shape.kind, name, spec, owner)
}

/// An object that another one owns.
fn workload(api_version: &str, kind: &str, name: &str, spec: &Value, owner: &Value) -> Result<Value> {
    let metadata = json!({"name": name, "namespace": JOBS, "ownerReferences": [reference(owner)?]});
    Ok(json!({"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec}))
}

/// The pod with a label, once it is there.
async fn pod_with(bed: &Bed, label: &str, value: &str) -> Result<Pod> {
    let pods: Api<Pod> = Api::namespaced(bed.kubernetes().client(), JOBS);
    let its = ListParams::default().labels(&format!("{label}={value}"));
    until("there: a pod", LIMIT, async || pods.list(&its).await?.items.pop().context("no pod")).await
}

/// The operator makes a pod for each carrier of an object, and each is sealed as submitted by `user`.
async fn make_pods(bed: &Bed, operator: &Client, shape: &Shape, object: &Value, user: &str) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(operator.clone(), JOBS);
    for (number, carrier) in shape.carriers.iter().enumerate() {
        let pod = pod_of(object, number, at(object, carrier)?)?;
        let pod = pods.create(&PostParams::default(), &pod).await?;
        sealed(bed, &pod, user).await.with_context(|| carrier.clone())?;
    }
    Ok(())
}

async fn a_sparkapplications_driver_reads_hdfs_as_whoever_submitted_it(bed: &Bed) -> Result<()> {
    let people = set_up(bed).await?;
    let stage = Stage::set(bed).await?;
    let shape = of_kind("SparkApplication")?;
    let etl = api(&people.etl, &shape)?;
    let object = submit(&etl, &shape, "reads", None).await?;
    // Without a label that operator's webhook is not asked, and nobody owns the driver.
    let unowned = draft("unowned").set("/metadata/annotations", carried(&shape, &object)?);
    let answer = bed.kubernetes().create_as(account(bed, shape.operator).await?, &unowned).await;
    let told = format!("{:#}", answer.err().context("a driver that nobody owns has a token")?);
    ensure!(told.contains("SEAL_MISSING"), "{told}");
    let driver = spark_pod(draft("reads-driver").script(&reading("etl")), "driver", &object)?;
    let pod = bed.kubernetes().create_as(account(bed, shape.operator).await?, &driver).await?;
    let made = pod.get().await?;
    sealed(bed, &made, "etl").await?;
    let owner = made.owner_references().iter().find(|owner| owner.controller == Some(true));
    let owner = owner.context("Spark's webhook wrote no owner")?;
    ensure!(at(&object, "/metadata/uid")? == &owner.uid, "it is owned by {owner:?}");
    let read = pod.until_succeeded(LIMIT).await?;
    ensure!(read == private_content(Cluster::Main, "etl"), "read {read:?}");
    ensure!(stage.owners()? == ["etl"], "tokens of {:?}", stage.owners()?);
    etl.delete("reads", &DeleteParams::background()).await?;
    pod.until_gone(GONE_LIMIT).await?;
    stage.ends().await
}

async fn an_operator_that_is_not_named_passes_nobody_on(bed: &Bed) -> Result<()> {
    let people = set_up(bed).await?;
    let operator = account(bed, UNNAMED).await?;
    for shape in all().iter().filter(|shape| matches!(shape.makes, Makes::Pods)) {
        let etl = api(&people.etl, shape)?;
        let name = format!("strange-{}", shape.kind.to_lowercase());
        let object = submit(&etl, shape, &name, None).await?;
        let own = format!("system:serviceaccount:{PLAYED}:{UNNAMED}");
        make_pods(bed, &operator, shape, &object, &own).await.with_context(|| shape.kind.to_owned())?;
        etl.delete(&name, &DeleteParams::background()).await?;
    }
    Ok(())
}

/// The kinds, the operators and people's rights are there; and so are the webhook and the real definitions.
pub(super) async fn set_up(bed: &Bed) -> Result<Users> {
    bed.webhook().await?;
    bed.operators().await?;
    let kubernetes = bed.kubernetes();
    let people = Users::of(kubernetes).await?;
    let shapes = all();
    let groups: BTreeSet<&str> =
        shapes.iter().filter_map(|shape| shape.api_version.split_once('/')).map(|(group, _)| group).collect();
    let everything = json!(["create", "get", "list", "watch", "patch", "update", "delete"]);
    let of_kinds = json!({"apiGroups": groups, "resources": ["*"], "verbs": everything});
    let of_operators = json!([
        of_kinds,
        {"apiGroups": [""], "resources": ["pods"], "verbs": everything},
        {"apiGroups": ["apps"], "resources": ["deployments", "statefulsets"], "verbs": everything},
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": everything},
    ]);
    let role = |name: &str, rules: Value| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": name, "namespace": JOBS},
            "rules": rules,
        })
    };
    let binding = |name: &str, group: &str| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": name, "namespace": JOBS},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group}],
        })
    };
    let mut items = vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PLAYED}}),
        role("operated", json!([of_kinds])),
        binding("operated", TEAM),
        role("operators", of_operators),
        binding("operators", &format!("system:serviceaccounts:{PLAYED}")),
    ];
    let accounts: BTreeSet<&str> = shapes.iter().map(|shape| shape.operator).chain([UNNAMED]).collect();
    items.extend(accounts.iter().map(|account| {
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": PLAYED}})
    }));
    items.extend(shapes.iter().filter(|shape| !is_defined(shape)).map(definition));
    kubernetes.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()).await?;
    // Definitions and rights take a moment to be known.
    for shape in &shapes {
        let etl = api(&people.etl, shape)?;
        let what = format!("served to whoever may: {}", shape.plural);
        until(&what, LIMIT, async || etl.list(&ListParams::default()).await.map_err(Into::into)).await?;
    }
    for account in accounts {
        let pods: Api<Pod> = Api::namespaced(self::account(bed, account).await?, JOBS);
        until("allowed: an operator", LIMIT, async || {
            pods.list(&ListParams::default()).await.map_err(Into::into)
        })
        .await?;
    }
    Ok(people)
}

/// An operator's account.
pub(super) async fn account(bed: &Bed, name: &str) -> Result<Client> {
    let kubernetes = bed.kubernetes();
    let token = service_account_token(&kubernetes.client(), PLAYED, name, AUDIENCE, Bound::Nothing).await?;
    kubernetes.client_with_token(&token).await
}

pub(super) fn api(client: &Client, shape: &Shape) -> Result<Api<DynamicObject>> {
    objects(client, shape.api_version, shape.kind, shape.plural)
}

/// An object of a kind, before anybody has submitted it.
fn draft_of(shape: &Shape, name: &str) -> Value {
    json!({
        "apiVersion": shape.api_version,
        "kind": shape.kind,
        "metadata": {"name": name, "namespace": JOBS},
        "spec": shape.spec,
    })
}

/// Submits an object of a kind; it may say of somebody that he did.
pub(super) async fn submit(
    objects: &Api<DynamicObject>,
    shape: &Shape,
    name: &str,
    forged: Option<&str>,
) -> Result<Value> {
    let mut object = draft_of(shape, name);
    if let (Some(user), Some(carrier)) = (forged, shape.carriers.first()) {
        insert(&mut object, carrier, SUBMITTER_ANNOTATION, json!(user))?;
    }
    json(&objects.create(&PostParams::default(), &typed(&object)?).await?)
}

/// Sets a key of a map at a JSON pointer of keys and indices; a map that is not there is made.
fn insert(object: &mut Value, pointer: &str, key: &str, value: Value) -> Result<()> {
    let mut place = object;
    for step in pointer.split('/').skip(1) {
        place = match place {
            Value::Array(items) => items.get_mut(step.parse::<usize>()?).context("no such item")?,
            Value::Object(map) => map.entry(step).or_insert_with(|| json!({})),
            _ => anyhow::bail!("{pointer} is not in maps and lists"),
        };
    }
    place.as_object_mut().context("no map")?.insert(key.to_owned(), value);
    Ok(())
}

/// Sets one value of an object, whose operator may change others meanwhile, and gives what is stored then.
async fn change(objects: &Api<DynamicObject>, name: &str, pointer: &str, value: &Value) -> Result<Value> {
    let change = serde_json::from_value(json!([{"op": "add", "path": pointer, "value": value}]))?;
    json(&objects.patch(name, &PatchParams::default(), &Patch::<()>::Json(change)).await?)
}

/// All carriers of an object have one seal and the name of `user`. Gives the seal.
fn submitted(shape: &Shape, object: &Value, user: &str) -> Result<String> {
    let mut seals = BTreeSet::new();
    for carrier in &shape.carriers {
        let annotations = at(object, carrier)?;
        let text = |name: &str| annotations.get(name).and_then(Value::as_str);
        let found = text(SUBMITTER_ANNOTATION);
        ensure!(found == Some(user), "{carrier}: submitted by {found:?}");
        seals.insert(text(SEAL_ANNOTATION).with_context(|| format!("{carrier}: not sealed"))?);
    }
    let seal = seals.pop_first().context("no carrier")?;
    ensure!(seals.is_empty(), "carriers with different seals");
    Ok(seal.to_owned())
}

/// What the first carrier of an object has.
pub(super) fn carried(shape: &Shape, object: &Value) -> Result<Value> {
    at(object, shape.carriers.first().context("no carrier")?).cloned()
}

/// A pod that an operator makes of an object, which has the annotations of one of its carriers.
fn pod_of(object: &Value, number: usize, annotations: &Value) -> Result<Pod> {
    let name = at(object, "/metadata/name")?.as_str().unwrap_or_default();
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": format!("{name}-{number}"),
            "namespace": JOBS,
            "annotations": annotations,
            "ownerReferences": [reference(object)?],
        },
        "spec": pod_spec(),
    });
    Ok(serde_json::from_value(pod)?)
}

/// A pod as Spark itself makes it of an application, without volumes. Those, and a driver's owner, its operator's webhook
/// writes into it.
pub(super) fn spark_pod(draft: Draft, role: &str, application: &Value) -> Result<Draft> {
    let name = at(application, "/metadata/name")?;
    Ok(draft
        .set("/metadata/labels", json!({LAUNCHED: "true", APP_NAME: name, ROLE: role}))
        .set("/metadata/annotations", at(application, &format!("/spec/{role}/annotations"))?.clone())
        .set("/spec/volumes", json!([]))
        .set("/spec/containers/0/volumeMounts", json!([])))
}

/// Of a pod with a token volume that is never scheduled.
fn pod_spec() -> Value {
    let gates = json!([{"name": "bed/never"}]);
    draft("never").set("/spec/schedulingGates", gates).json().get("spec").cloned().unwrap_or_default()
}

/// That an object is the owner, and the controller if its operator says so.
pub(super) fn reference(object: &Value) -> Result<Value> {
    let kind = at(object, "/kind")?;
    let mut reference = json!({
        "apiVersion": at(object, "/apiVersion")?,
        "kind": kind,
        "name": at(object, "/metadata/name")?,
        "uid": at(object, "/metadata/uid")?,
    });
    if let Some(controls) = controls(kind.as_str().unwrap_or_default()) {
        set(&mut reference, "/controller", json!(controls))?;
    }
    Ok(reference)
}

fn typed(object: &Value) -> Result<DynamicObject> {
    Ok(serde_json::from_value(object.clone())?)
}

fn json(object: &DynamicObject) -> Result<Value> {
    Ok(serde_json::to_value(object)?)
}
