//! Jobs of operators, submitted by people: whoever makes their pods, they belong to whoever submitted the job. The
//! training operator is the real one and its jobs run; other operators are played by the tests, on kinds of the same
//! shape as theirs.

mod executors;
mod jobs;
mod played;
mod shapes;

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    harness::Test,
    namenode::{Cluster, private_content},
    product::SEAL_KEYS,
    users::{Bound, JOBS, TEAM, service_account_token},
};
use identity::{GROUPS_ANNOTATION, SEAL_ANNOTATION, SUBMITTER_ANNOTATION, seal::KeySet};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::{Value, json};

use self::jobs::{Job, mpi_job, tf_job, training_job};
use crate::attacks::stage::Stage;

pub(crate) fn tests() -> Vec<Test> {
    let mut tests = bed::tests![
        a_tfjobs_workers_read_hdfs_as_whoever_submitted_it,
        an_mpijobs_pods_read_hdfs_as_whoever_submitted_it,
        pods_of_other_training_jobs_read_hdfs_as_whoever_submitted_them,
        nobody_else_reaches_workers_by_way_of_an_mpijobs_launcher,
        a_tfjob_with_anothers_name_in_it_runs_as_its_submitter,
        a_tfjob_changed_by_another_runs_as_whoever_changed_it,
        a_running_tfjob_changed_by_another_has_pods_of_both,
        a_tfjob_resumed_by_another_runs_as_its_submitter,
    ];
    tests.extend(played::tests());
    tests.extend(executors::tests());
    tests
}

async fn a_tfjobs_workers_read_hdfs_as_whoever_submitted_it(bed: &Bed) -> Result<()> {
    let stage = stage(bed).await?;
    let job = Job::submit(bed, &stage.users.etl, &tf_job("trains", "etl")).await?;
    submitted(bed, &job, 2, "etl").await?;
    for worker in ["worker-0", "worker-1"] {
        let read = job.log(worker).await?;
        ensure!(read == private_content(Cluster::Main, "etl"), "{worker} read {read:?}");
    }
    ensure!(stage.owners()? == ["etl", "etl"], "tokens of {:?}", stage.owners()?);
    job.delete().await?;
    stage.ends().await
}

async fn an_mpijobs_pods_read_hdfs_as_whoever_submitted_it(bed: &Bed) -> Result<()> {
    let stage = stage(bed).await?;
    let job = Job::submit(bed, &stage.users.etl, &mpi_job("spreads", "etl")).await?;
    submitted(bed, &job, 3, "etl").await?;
    let read = job.log("launcher").await?;
    let times = read.matches(&private_content(Cluster::Main, "etl")).count();
    ensure!(times == 3, "launcher and workers read it {times} times:\n{read}");
    ensure!(stage.owners()? == ["etl"; 3], "tokens of {:?}", stage.owners()?);
    job.delete().await?;
    stage.ends().await
}

async fn pods_of_other_training_jobs_read_hdfs_as_whoever_submitted_them(bed: &Bed) -> Result<()> {
    let stage = stage(bed).await?;
    for (kind, name, roles) in [
        ("PyTorchJob", "learns", &[("Worker", 2)][..]),
        ("XGBoostJob", "boosts", &[("Master", 1), ("Worker", 1)]),
        ("PaddleJob", "paddles", &[("Worker", 2)]),
    ] {
        let job = training_job(kind, name, roles, "etl");
        let job = Job::submit(bed, &stage.users.etl, &job).await.context(kind)?;
        submitted(bed, &job, 2, "etl").await.context(kind)?;
        for (role, replicas) in roles {
            for number in 0..*replicas {
                let pod = format!("{}-{number}", role.to_lowercase());
                let read = job.log(&pod).await.context(kind)?;
                ensure!(read == private_content(Cluster::Main, "etl"), "{kind}'s {pod} read {read:?}");
            }
        }
        job.delete().await?;
    }
    ensure!(stage.owners()? == ["etl"; 6], "tokens of {:?}", stage.owners()?);
    stage.ends().await
}

async fn nobody_else_reaches_workers_by_way_of_an_mpijobs_launcher(bed: &Bed) -> Result<()> {
    let stage = stage(bed).await?;
    let mut manifest = mpi_job("shows", "etl");
    set(&mut manifest, &format!("{LAUNCHER}/spec/containers/0/command"), json!(["sleep", "365d"]))?;
    // It holds no token itself, only the account by which it reaches those that do.
    set(&mut manifest, &format!("{LAUNCHER}/spec/volumes"), json!([]))?;
    set(&mut manifest, &format!("{LAUNCHER}/spec/containers/0/volumeMounts"), json!([]))?;
    let job = Job::submit(bed, &stage.users.etl, &manifest).await?;
    submitted(bed, &job, 3, "etl").await?;
    let (launcher, worker) = (job.pod("launcher"), job.pod("worker-0"));
    launcher.until_running(RUN_LIMIT).await?;
    worker.until_running(RUN_LIMIT).await?;

    let kubeconfig = bed.kubernetes().kubeconfig_of("intruder", Some(TEAM))?;
    let kubectl = bed.kubernetes().kubectl().env("KUBECONFIG", kubeconfig).args(["--namespace", JOBS]);
    // Through the launcher, whose account may exec into the workers, or past it.
    for pod in [&launcher, &worker] {
        let exec = kubectl.clone().args(["exec", pod.name(), "--", "ls", "/"]);
        let told = exec.output().await?.failure()?;
        ensure!(told.contains("only etl, who submitted it, may"), "told {told}");
    }
    // As if he were the launcher: whoever may have tokens of service accounts may name a pod to bind them to.
    let (uid, account) = (launcher.uid().await?, format!("{}-launcher", job.name));
    let bound = Bound::Pod { name: launcher.name(), uid: &uid };
    let token = service_account_token(&stage.users.intruder, JOBS, &account, AUDIENCE, bound).await;
    let told = format!("{:#}", token.err().context("somebody else has the launcher's own token")?);
    ensure!(told.contains("only etl, who submitted it, may"), "told {told}");
    job.delete().await?;
    stage.ends().await
}

async fn a_tfjob_with_anothers_name_in_it_runs_as_its_submitter(bed: &Bed) -> Result<()> {
    let stage = stage(bed).await?;
    let mut honest = tf_job("honest", "etl");
    set(&mut honest, "/spec/runPolicy/suspend", json!(true))?;
    let honest = Job::submit(bed, &stage.users.etl, &honest).await?;
    // All that the other's job carries, seal included, is in the template already.
    let stolen = at(&honest.get().await?, &format!("{TEMPLATE}/metadata/annotations"))?.clone();
    for name in [SUBMITTER_ANNOTATION, GROUPS_ANNOTATION, SEAL_ANNOTATION] {
        ensure!(stolen.get(name).is_some(), "there is no {name} to steal in {stolen}");
    }
    let mut job = tf_job("borrows", "etl");
    set(&mut job, &format!("{TEMPLATE}/metadata/annotations"), stolen)?;
    let job = Job::submit(bed, &stage.users.ads, &job).await?;
    runs_as_ads(&stage, &job).await?;
    honest.delete().await?;
    job.delete().await?;
    stage.ends().await
}

async fn a_tfjob_changed_by_another_runs_as_whoever_changed_it(bed: &Bed) -> Result<()> {
    let stage = stage(bed).await?;
    let mut manifest = tf_job("changes", "etl");
    set(&mut manifest, "/spec/runPolicy/suspend", json!(true))?;
    let job = Job::submit(bed, &stage.users.etl, &manifest).await?;
    submitter_in(&job.get().await?, "etl")?;
    let change = |pointer: &str, value: Value| {
        let mut manifest = manifest.clone();
        set(&mut manifest, pointer, value)?;
        anyhow::Ok(json!({"spec": manifest.get("spec")}))
    };
    let changed = change(&format!("{TEMPLATE}/spec/containers/0/workingDir"), json!("/tmp"))?;
    job.patch(&stage.users.ads, &changed).await?;
    submitter_in(&job.get().await?, "ads")?;
    job.patch(&stage.users.etl, &json!({"spec": {"runPolicy": {"suspend": false}}})).await?;
    runs_as_ads(&stage, &job).await?;
    job.delete().await?;
    stage.ends().await
}

async fn a_running_tfjob_changed_by_another_has_pods_of_both(bed: &Bed) -> Result<()> {
    let stage = stage(bed).await?;
    let mut manifest = tf_job("mixes", "etl");
    set(&mut manifest, "/spec/tfReplicaSpecs/Worker/replicas", json!(1))?;
    set(&mut manifest, &format!("{TEMPLATE}/spec/containers/0/command"), json!(["sleep", "365d"]))?;
    let job = Job::submit(bed, &stage.users.etl, &manifest).await?;
    submitted(bed, &job, 1, "etl").await?;
    job.pod("worker-0").until_running(RUN_LIMIT).await?;
    set(&mut manifest, "/spec/tfReplicaSpecs/Worker/replicas", json!(2))?;
    set(&mut manifest, &format!("{TEMPLATE}/spec/containers/0/workingDir"), json!("/tmp"))?;
    job.patch(&stage.users.ads, &json!({"spec": manifest.get("spec")})).await?;
    let pods = job.pods(2).await?;
    for (pod, user) in [("mixes-worker-0", "etl"), ("mixes-worker-1", "ads")] {
        let pod = pods.iter().find(|found| found.name_any() == pod).context("no such worker")?;
        sealed(bed, pod, user).await?;
    }
    job.pod("worker-1").until_running(RUN_LIMIT).await?;
    ensure!(stage.owners()? == ["etl", "ads"], "tokens of {:?}", stage.owners()?);
    job.delete().await?;
    stage.ends().await
}

async fn a_tfjob_resumed_by_another_runs_as_its_submitter(bed: &Bed) -> Result<()> {
    let stage = stage(bed).await?;
    let mut manifest = tf_job("resumes", "etl");
    set(&mut manifest, "/spec/runPolicy/suspend", json!(true))?;
    let job = Job::submit(bed, &stage.users.etl, &manifest).await?;
    let sealed = job.get().await?;
    let only =
        json!({"spec": {"runPolicy": {"suspend": false}, "tfReplicaSpecs": {"Worker": {"replicas": 1}}}});
    job.patch(&stage.users.ads, &only).await?;
    let template = at(&sealed, TEMPLATE)?;
    ensure!(at(&job.get().await?, TEMPLATE)? == template, "the template is another one");
    submitted(bed, &job, 1, "etl").await?;
    let read = job.log("worker-0").await?;
    ensure!(read == private_content(Cluster::Main, "etl"), "read {read:?}");
    ensure!(stage.owners()? == ["etl"], "tokens of {:?}", stage.owners()?);
    job.delete().await?;
    stage.ends().await
}

/// Where an MPIJob of ours has its launcher's template.
const LAUNCHER: &str = "/spec/mpiReplicaSpecs/Launcher/template";
/// Whom tokens of service accounts are for.
const AUDIENCE: &str = "https://kubernetes.default.svc";
const RUN_LIMIT: Duration = Duration::from_secs(60);
/// Where a TFJob of ours has its pods' template.
const TEMPLATE: &str = "/spec/tfReplicaSpecs/Worker/template";

/// People, the webhook and the operator.
async fn stage(bed: &Bed) -> Result<Stage<'_>> {
    bed.webhook().await?;
    bed.operators().await?;
    Stage::set(bed).await
}

/// The workers of a job, which are to read the file of `etl`, are those of `ads`, who may not.
async fn runs_as_ads(stage: &Stage<'_>, job: &Job<'_>) -> Result<()> {
    submitted(stage.bed, job, 2, "ads").await?;
    for worker in ["worker-0", "worker-1"] {
        let complaint = job.failure(worker).await?;
        ensure!(complaint.contains("Permission denied: user=ads"), "{worker} says {complaint}");
    }
    ensure!(stage.owners()? == ["ads", "ads"], "tokens of {:?}", stage.owners()?);
    Ok(())
}

/// A job has so many pods, which are all its own, and sealed as submitted by `user`.
async fn submitted(bed: &Bed, job: &Job<'_>, number: usize, user: &str) -> Result<()> {
    let pods = job.pods(number).await?;
    for pod in &pods {
        let owners = pod.owner_references();
        ensure!(owners.iter().any(|owner| owner.uid == job.uid), "{} is owned by {owners:?}", pod.name_any());
        sealed(bed, pod, user).await?;
    }
    Ok(())
}

/// A pod has a seal of its own that says that `user` submitted it.
async fn sealed(bed: &Bed, pod: &Pod, user: &str) -> Result<()> {
    let keys = KeySet::from_jwk_set(&fs::read(bed.product().await?.overlay().join(SEAL_KEYS))?)?;
    let text = pod.annotations().get(SEAL_ANNOTATION);
    let seal = keys.verify(text.with_context(|| format!("{} has no seal", pod.name_any()))?)?;
    let shown = pod.annotations().get(SUBMITTER_ANNOTATION).map(String::as_str);
    ensure!(
        seal.submitter == user && shown == Some(user),
        "{} is of {}, and shows {shown:?}",
        pod.name_any(),
        seal.submitter
    );
    Ok(())
}

/// The template of a TFJob says that `user` submitted it.
fn submitter_in(job: &Value, user: &str) -> Result<()> {
    let annotations = at(job, &format!("{TEMPLATE}/metadata/annotations"))?;
    let found = annotations.get(SUBMITTER_ANNOTATION).and_then(Value::as_str);
    ensure!(found == Some(user), "submitted by {found:?}");
    Ok(())
}

/// What an object has at a JSON pointer.
fn at<'a>(object: &'a Value, pointer: &str) -> Result<&'a Value> {
    object.pointer(pointer).with_context(|| format!("there is no {pointer}"))
}

/// Sets something at a JSON pointer whose parent is a map.
fn set(object: &mut Value, pointer: &str, value: Value) -> Result<()> {
    let (parent, name) = pointer.rsplit_once('/').context("no pointer")?;
    let parent = object.pointer_mut(parent).and_then(Value::as_object_mut);
    parent.with_context(|| format!("{pointer} has no parent"))?.insert(name.to_owned(), value);
    Ok(())
}
