//! `scope: job`: the pods of one job share one token, which ends with the last of them and not before.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    harness::Test,
    namenode::{Cluster, TokenAction, private_content},
    pod::{Draft, Running, TOKEN_FILE},
    process::until,
    users::JOBS,
};
use futures_util::future::try_join_all;
use identity::{SCOPE_ATTRIBUTE, seal::Owner};
use k8s_openapi::api::batch::v1::CronJob;
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    GONE_LIMIT,
    attacks::stage::{Stage, carrying, draft, seal_of},
    objects::{number, of_pod, the_one_of},
    promptness::Cancels,
    tally::Tally,
};

const PODS: usize = 6;
/// How long a job's last token waits for the next pod in this test: longer than a pod takes to start where all is busy.
const GRACE: Duration = Duration::from_secs(25);
/// From the end of that to the end of the token.
const CANCEL_LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![
        pods_of_one_job_share_one_token_which_ends_with_the_last_of_them,
        revoking_the_token_of_a_job_takes_it_from_one_pod_and_not_from_the_others,
    ]
}

async fn pods_of_one_job_share_one_token_which_ends_with_the_last_of_them(bed: &Bed) -> Result<()> {
    let grace = |configuration: &mut Value| {
        if let Some(keys) = configuration.as_object_mut() {
            keys.insert("job".to_owned(), json!({"graceSeconds": GRACE.as_secs()}));
        }
    };
    bed.product().await?.with_controller(grace, || lives(bed)).await
}

async fn lives(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let (tally, cancels) = (Tally::begin(bed.main()).await?, Cancels::follow(bed.main())?);
    let (job, other_job) = (Job::of(bed, "shared").await?, Job::of(bed, "another").await?);
    let names: Vec<String> = (0..PODS).map(|index| format!("shares-{index}")).collect();
    let pods = try_join_all(names.iter().map(|name| job.run(bed, name))).await?;
    let issued = tally.events(TokenAction::Issued)?;
    ensure!(issued.len() == 1, "{} tokens for one job: {issued:?}", issued.len());
    let token = issued.first().and_then(|event| event.sequence_number).context("no number")?;
    for pod in &pods {
        let object = the_one_of(bed, &pod.uid().await?).await?;
        ensure!(number(&object)? == token, "{object:?}");
        reads(pod).await?;
    }
    // Other jobs do not have it, nor do pods of the same owner and user who want one of their own.
    let other = other_job.run(bed, "shares-with-nobody").await?;
    ensure!(tally.events(TokenAction::Issued)?.len() == 2, "another job's pod should have another token");
    let bytes = pods.first().context("no pod")?.read(TOKEN_FILE).await?;
    ensure!(other.read(TOKEN_FILE).await? != bytes, "it has the first job's token");

    let (last, rest) = pods.split_last().context("no pods")?;
    try_join_all(rest.iter().map(|pod| pod.delete(GONE_LIMIT))).await?;
    reads(last).await?;
    ensure!(cancels.of(token).is_empty(), "cancelled while a pod has it: {:?}", cancels.of(token));
    // A pod that comes soon after the last one gets the same again.
    last.delete(GONE_LIMIT).await?;
    let next = job.run(bed, "restarted").await?;
    ensure!(next.read(TOKEN_FILE).await? == bytes, "it should have the job's token");
    tokio::time::sleep(GRACE).await;
    reads(&next).await?;
    ensure!(cancels.of(token).is_empty(), "cancelled while a pod has it: {:?}", cancels.of(token));

    let uid = next.uid().await?;
    next.delete(GONE_LIMIT).await?;
    cancels.until(token, GRACE + CANCEL_LIMIT).await?;
    let attempts = cancels.of(token);
    ensure!(attempts.len() == 1, "cancelled more than once: {attempts:?}");
    until("gone: the objects", CANCEL_LIMIT, async || {
        let left = of_pod(bed, &uid).await?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await?;
    let late = job.run(bed, "too-late").await?;
    ensure!(late.read(TOKEN_FILE).await? != bytes, "it has a token that is cancelled");
    reads(&late).await?;
    for pod in [late, other] {
        pod.delete(GONE_LIMIT).await?;
    }
    tally.ends().await?;
    job.delete(bed).await?;
    other_job.delete(bed).await?;
    stage.ends().await
}

async fn revoking_the_token_of_a_job_takes_it_from_one_pod_and_not_from_the_others(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let cancels = Cancels::follow(bed.main())?;
    let job = Job::of(bed, "revoked").await?;
    let (one, other) = (job.run(bed, "loses").await?, job.run(bed, "keeps").await?);
    let object = the_one_of(bed, &one.uid().await?).await?;
    let objects = crate::objects::objects(bed.kubernetes().client(), JOBS);
    let name = object.metadata.name.clone().context("no name")?;
    objects.delete(&name, &DeleteParams::default()).await?;
    until("gone: the file", GONE_LIMIT, async || one.exec(&["cat", TOKEN_FILE]).await?.failure().map(drop))
        .await?;
    until("gone: the object", GONE_LIMIT, async || {
        ensure!(objects.get_opt(&name).await?.is_none(), "it is still there");
        Ok(())
    })
    .await?;
    reads(&other).await?;
    ensure!(cancels.of(number(&object)?).is_empty(), "the other pod's token is cancelled");
    for pod in [one, other] {
        pod.delete(GONE_LIMIT).await?;
    }
    job.delete(bed).await?;
    // The last token of a job waits for a while before it ends.
    cancels.until(number(&object)?, GONE_LIMIT + GONE_LIMIT).await?;
    stage.ends().await
}

async fn reads(pod: &Running) -> Result<()> {
    let read = pod.hdfs_native(Cluster::Main, &["cat", "/user/etl/private.txt"]).await?.success()?;
    ensure!(read == private_content(Cluster::Main, "etl"), "read {read:?}");
    Ok(())
}

/// The root owner of pods: a CronJob that never runs, so that nobody but the test makes or removes any.
struct Job(Owner);

impl Job {
    async fn of(bed: &Bed, name: &str) -> Result<Self> {
        let crons: Api<CronJob> = Api::namespaced(bed.kubernetes().client(), JOBS);
        let cron: CronJob = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "schedule": "0 0 1 1 *",
                "suspend": true,
                "jobTemplate": {"spec": {"template": {"spec": {
                    "restartPolicy": "Never",
                    "containers": [{"name": "main", "image": "none"}],
                }}}},
            },
        }))?;
        let uid = crons.create(&PostParams::default(), &cron).await?.metadata.uid.context("no UID")?;
        let [api_version, kind, name] = ["batch/v1", "CronJob", name].map(str::to_owned);
        Ok(Self(Owner { api_version, kind, name, uid }))
    }

    /// A running pod of it, submitted by `etl`.
    async fn run(&self, bed: &Bed, name: &str) -> Result<Running> {
        bed.kubernetes().run(&self.pod(bed, name)?).await
    }

    fn pod(&self, bed: &Bed, name: &str) -> Result<Draft> {
        let Owner { api_version, kind, name: owner, uid } = &self.0;
        let reference =
            json!({"apiVersion": api_version, "kind": kind, "name": owner, "uid": uid, "controller": true});
        let draft = draft(name)
            .set("/metadata/ownerReferences", json!([reference]))
            .set("/spec/volumes/0/csi/volumeAttributes", json!({SCOPE_ATTRIBUTE: "job"}));
        let mut seal = seal_of(&draft, "etl")?;
        seal.root_owner = Some(self.0.clone());
        carrying(bed.kubernetes().sealing_key(), draft, &seal)
    }

    async fn delete(&self, bed: &Bed) -> Result<()> {
        let crons: Api<CronJob> = Api::namespaced(bed.kubernetes().client(), JOBS);
        crons.delete(&self.0.name, &DeleteParams::background()).await?;
        Ok(())
    }
}
