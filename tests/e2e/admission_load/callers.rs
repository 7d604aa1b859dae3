//! Users who create pods and Deployments with a token over and over, and look at what became of each. Pods wait for
//! nobody who would start them: what is meant is what the API server does with the request.

use std::{
    cell::{Cell, RefCell},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    pod::Draft,
    process::until,
    users::{JOBS, Users},
    webhook::Webhook,
};
use identity::{
    SEAL_ANNOTATION, SUBMITTER_ANNOTATION,
    seal::{JwkSet, KeySet},
};
use k8s_openapi::api::{apps::v1::Deployment, batch::v1::Job, core::v1::Pod};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::draft;
use crate::{GONE_LIMIT, admission::deployment};

/// From a caller's one request to his next.
const PACE: Duration = Duration::from_millis(40);
/// Pods of each Job.
const PODS: usize = 3;
/// Longest that a Job's pods may take to be there. That they come, and none is refused, is what is meant.
const JOB_LIMIT: Duration = Duration::from_secs(60);

/// What is asked for.
#[derive(Debug, Clone, Copy)]
enum What {
    Pod,
    Deployment,
}

/// What became of a request.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    /// Created, with a seal of whoever asked.
    Sealed,
    /// Created, without a word about whoever asked.
    Unsealed,
    /// Not created; what the API server said.
    Refused(String),
}

/// One request.
#[derive(Debug, Clone)]
pub(super) struct Attempt {
    pub(super) begun: Instant,
    pub(super) ended: Instant,
    pub(super) outcome: Outcome,
}

/// All of them.
pub(super) struct Callers<'bed> {
    bed: &'bed Bed,
    keys: KeySet,
    over: Cell<bool>,
    attempts: RefCell<Vec<Attempt>>,
    jobs: Cell<usize>,
}

impl<'bed> Callers<'bed> {
    pub(super) fn of(bed: &'bed Bed, webhook: &Webhook) -> Result<Self> {
        let keys = JwkSet { keys: vec![webhook.sealing_key().public_jwk()] };
        Ok(Self {
            bed,
            keys: KeySet::from_jwk_set(keys.to_json().as_bytes())?,
            over: Cell::new(false),
            attempts: RefCell::default(),
            jobs: Cell::new(0),
        })
    }

    /// Creates pods as three users and Deployments as one for as long as `meanwhile` lasts.
    pub(super) async fn call_during(&self, meanwhile: impl Future<Output = Result<()>>) -> Result<()> {
        let users = Users::of(self.bed.kubernetes()).await?;
        let meanwhile = async {
            let outcome = meanwhile.await;
            self.over.set(true);
            outcome
        };
        tokio::try_join!(
            meanwhile,
            self.call(&users.etl, "etl", What::Pod),
            self.call(&users.ads, "ads", What::Pod),
            self.call(&users.intruder, "intruder", What::Pod),
            self.call(&users.etl, "etl", What::Deployment),
        )?;
        Ok(())
    }

    /// All that became of their requests, oldest first.
    pub(super) fn attempts(&self) -> Vec<Attempt> {
        let mut attempts = self.attempts.borrow().clone();
        attempts.sort_by_key(|attempt| attempt.ended);
        attempts
    }

    /// Jobs whose pods all came, sealed.
    pub(super) fn jobs(&self) -> usize {
        self.jobs.get()
    }

    fn is_over(&self) -> bool {
        self.over.get()
    }

    async fn call(&self, client: &Client, user: &str, what: What) -> Result<()> {
        let resource = match what {
            What::Pod => ApiResource::erase::<Pod>(&()),
            What::Deployment => ApiResource::erase::<Deployment>(&()),
        };
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), JOBS, &resource);
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in 0_u32.. {
            if self.is_over() {
                break;
            }
            pace.tick().await;
            let name = format!("load-{user}-{number}");
            let object = serde_json::from_value(what.object(&name))?;
            let begun = Instant::now();
            let answer = api.create(&PostParams::default(), &object).await;
            let ended = Instant::now();
            let outcome = match answer {
                Ok(created) => {
                    api.delete(&name, &DeleteParams::background()).await.context("failed to delete")?;
                    self.judged(user, what, &created)?
                }
                Err(kube::Error::Api(status)) => Outcome::Refused(status.message.clone()),
                Err(error) => return Err(error).context("the API server itself was not reached"),
            };
            let attempt = Attempt { begun, ended, outcome };
            self.attempts.borrow_mut().push(attempt);
        }
        Ok(())
    }

    /// A seal that is there has to be the right one.
    fn judged(&self, user: &str, what: What, created: &DynamicObject) -> Result<Outcome> {
        let object = serde_json::to_value(created)?;
        let annotations = object.pointer(what.annotations()).cloned().unwrap_or_default();
        let said = |key: &str| annotations.get(key).and_then(Value::as_str);
        let Some(seal) = said(SEAL_ANNOTATION) else { return Ok(Outcome::Unsealed) };
        let submitter = match what {
            What::Pod => self.keys.verify(seal)?.submitter,
            What::Deployment => self.keys.verify_workload(seal)?.submitter,
        };
        ensure!(submitter == user && said(SUBMITTER_ANNOTATION) == Some(user), "sealed as {submitter}");
        Ok(Outcome::Sealed)
    }

    /// One Job of ads' after the other, each until Kubernetes' controller has made its pods, until [`Self::call_during`]
    /// is over.
    pub(super) async fn run_jobs(&self) -> Result<()> {
        let (user, client) = ("ads", Users::of(self.bed.kubernetes()).await?.ads);
        let (jobs, pods): (Api<Job>, Api<Pod>) =
            (Api::namespaced(client.clone(), JOBS), Api::namespaced(client, JOBS));
        for number in 0_u32.. {
            if self.is_over() {
                break;
            }
            let name = format!("load-{number}");
            match jobs.create(&PostParams::default(), &serde_json::from_value(job(&name))?).await {
                Ok(_) => {}
                // Counted where it is one of many; here, what controllers meet is meant.
                Err(kube::Error::Api(_)) => {
                    sleep(PACE).await;
                    continue;
                }
                Err(error) => return Err(error).context("the API server itself was not reached"),
            }
            until(&format!("there: {PODS} sealed pods of Job {name}"), JOB_LIMIT, async || {
                let selector = ListParams::default().labels(&format!("job-name={name}"));
                let found = pods.list(&selector).await?.items;
                ensure!(found.len() == PODS, "there are {}", found.len());
                for pod in found {
                    let annotations = pod.metadata.annotations.unwrap_or_default();
                    let seal = annotations.get(SEAL_ANNOTATION).context("a pod without a seal")?;
                    ensure!(self.keys.verify(seal)?.submitter == user, "not {user}'s");
                }
                Ok(())
            })
            .await?;
            self.jobs.set(self.jobs.get() + 1);
            jobs.delete(&name, &DeleteParams::background()).await?;
        }
        Ok(())
    }
}

impl What {
    fn object(self, name: &str) -> Value {
        let draft = gated(name);
        match self {
            Self::Pod => draft.json().clone(),
            Self::Deployment => {
                let mut object = deployment(&draft);
                if let Some(spec) = object.pointer_mut("/spec").and_then(Value::as_object_mut) {
                    spec.insert("replicas".to_owned(), json!(0));
                }
                object
            }
        }
    }

    fn annotations(self) -> &'static str {
        match self {
            Self::Pod => "/metadata/annotations",
            Self::Deployment => "/spec/template/metadata/annotations",
        }
    }
}

/// A pod with a token that nobody will start.
fn gated(name: &str) -> Draft {
    draft(name).set("/spec/schedulingGates", json!([{"name": "bed.test/never"}]))
}

fn job(name: &str) -> Value {
    let pod = gated(name);
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": JOBS},
        "spec": {
            "parallelism": PODS,
            "completions": PODS,
            "template": {"spec": pod.json().get("spec")},
        },
    })
}

/// All that callers have made is gone.
pub(super) async fn until_clean(bed: &Bed) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(bed.kubernetes().client(), JOBS);
    until("gone: what callers made", GONE_LIMIT, async || {
        let left = pods.list(&ListParams::default()).await?.items;
        let names = left.into_iter().filter_map(|pod| pod.metadata.name);
        let left: Vec<_> = names.filter(|name| name.starts_with("load-")).collect();
        ensure!(left.is_empty(), "left: {left:?}");
        Ok(())
    })
    .await
}
