//! Reads at the API server what a decision needs: owners with the seals that they carry, pods, and namespaces. Owners are
//! kept for some seconds, because the pods of one job come all at once. What was kept is enough to let a seal pass, which
//! went into the owner together with the template that the pod has, and never enough to refuse one: that is read anew.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use identity::{
    INJECT_ANNOTATION, SEAL_ANNOTATION, is_object_name,
    owners::{Owner, OwnerChain, OwnerKinds, OwnerMetadata, controller_of, follow},
};
use kube::Client;
use moka::future::Cache;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    admission::STAMPS,
    kinds::{Kinds, Role},
    refusal::Refusal,
};

/// Longest wait for one answer of the API server, which waits for ours meanwhile.
const DEADLINE: Duration = Duration::from_secs(3);
/// Questions that are under way at the API server at most.
const AT_ONCE: usize = 32;
const REVISION_GROUP: &str = "apps";
/// How long an owner is kept, and a namespace's wish.
const KEPT: Duration = Duration::from_secs(5);
/// How many are kept: a few hundred bytes each.
const MOST_KEPT: u64 = 10_000;

/// Whoever gets objects.
pub(crate) trait Reads: Send + Sync {
    /// The object at a path of the API server, or nothing where there is none; else what went wrong.
    fn object(&self, path: String) -> BoxFuture<'_, Result<Option<Value>, String>>;
}

/// What is known of an owner.
#[derive(Debug)]
pub(crate) struct OwnerFacts {
    metadata: OwnerMetadata,
    /// The seals that its carriers carry.
    pub(crate) seals: BTreeSet<String>,
    /// What it says of its submitter where its controller does not copy that.
    pub(crate) own: Option<Map<String, Value>>,
}

/// How new an answer has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Age {
    /// One that was kept will do.
    Kept,
    /// As it is now.
    Now,
}

/// Asks, and keeps some of the answers.
pub(crate) struct Reader {
    reads: Arc<dyn Reads>,
    owners: OwnerKinds,
    kinds: Arc<Kinds>,
    kept: Cache<String, Arc<OwnerFacts>>,
    injecting: Cache<String, bool>,
}

impl Reader {
    pub(crate) fn new(reads: Arc<dyn Reads>, owners: OwnerKinds, kinds: Arc<Kinds>) -> Self {
        let kept = Cache::builder().time_to_live(KEPT).max_capacity(MOST_KEPT).build();
        let injecting = Cache::builder().time_to_live(KEPT).max_capacity(MOST_KEPT).build();
        Self { reads, owners, kinds, kept, injecting }
    }

    /// What is known of `owner` in `namespace`; nothing when it does not exist, or its kind is not read.
    pub(crate) async fn owner(
        &self,
        namespace: &str,
        owner: &Owner,
        age: Age,
    ) -> Result<Option<Arc<OwnerFacts>>, Refusal> {
        let Some(path) = self.owners.path(namespace, owner) else { return Ok(None) };
        let found = self.at(path, (owner.group(), &owner.kind), age).await?;
        Ok(found.filter(|facts| facts.metadata.uid == owner.uid))
    }

    /// The owners of an object in `namespace` whose controller is `controller`.
    pub(crate) async fn chain(
        &self,
        namespace: &str,
        controller: Option<Owner>,
    ) -> Result<OwnerChain, Refusal> {
        let chain = self.follow(namespace, controller.clone(), Age::Kept).await?;
        if chain.root().is_ok() {
            return Ok(chain);
        }
        self.follow(namespace, controller, Age::Now).await
    }

    async fn follow(
        &self,
        namespace: &str,
        controller: Option<Owner>,
        age: Age,
    ) -> Result<OwnerChain, Refusal> {
        follow(namespace, controller, &self.owners, |path, owner| async move {
            let found = self.at(path, (owner.group(), &owner.kind), age).await?;
            Ok(found.map(|facts| facts.metadata.clone()))
        })
        .await
    }

    /// What is at `path`. Whoever would do with a kept answer does with one that another is waiting for, too.
    async fn at(
        &self,
        path: String,
        kind: (&str, &str),
        age: Age,
    ) -> Result<Option<Arc<OwnerFacts>>, Refusal> {
        if age == Age::Now {
            let facts = self.fetch(&path, kind).await?;
            if let Some(facts) = &facts {
                self.kept.insert(path, facts.clone()).await;
            }
            return Ok(facts);
        }
        // What does not exist is not kept: it may in a moment.
        let fetch = async { self.fetch(&path, kind).await.map_err(Some)?.ok_or(None) };
        match self.kept.try_get_with_by_ref(&path, fetch).await {
            Ok(facts) => Ok(Some(facts)),
            Err(error) => match Option::clone(&error) {
                None => Ok(None),
                Some(refusal) => Err(refusal),
            },
        }
    }

    async fn fetch(
        &self,
        path: &str,
        (group, kind): (&str, &str),
    ) -> Result<Option<Arc<OwnerFacts>>, Refusal> {
        let Some(object) = self.read(path.to_owned()).await? else { return Ok(None) };
        let metadata = object.get("metadata").map(OwnerMetadata::deserialize).transpose();
        let metadata = metadata.map_err(|error| unreadable(path, &error))?.unwrap_or_default();
        let carriers = self.kinds.of_kind(group, kind).map(|kind| kind.carriers(&object)).unwrap_or_default();
        let seals = carriers.iter().filter_map(|found| found.annotation(SEAL_ANNOTATION));
        let seals = seals.map(str::to_owned).collect();
        let own = carriers.iter().find(|found| found.role == Role::Own).and_then(|found| found.current);
        Ok(Some(Arc::new(OwnerFacts { metadata, seals, own: own.map(stamps) })))
    }

    /// The seals in the revision `name` of a StatefulSet, which `owner` is; none when that has no such revision.
    pub(crate) async fn revision(
        &self,
        namespace: &str,
        owner: &Owner,
        name: &str,
    ) -> Result<BTreeSet<String>, Refusal> {
        if !is_object_name(name) {
            return Ok(BTreeSet::new());
        }
        let path = format!("/apis/{REVISION_GROUP}/v1/namespaces/{namespace}/controllerrevisions/{name}");
        // The pod names it by its name alone, and there may be another of that name by now.
        let facts = self.at(path, (REVISION_GROUP, "ControllerRevision"), Age::Now).await?;
        let of_owner = |facts: &OwnerFacts| {
            let controller = controller_of(facts.metadata.owner_references.clone());
            controller.is_some_and(|controller| controller.uid == owner.uid)
        };
        Ok(facts.filter(|facts| of_owner(facts)).map(|facts| facts.seals.clone()).unwrap_or_default())
    }

    /// A pod as it is now.
    pub(crate) async fn pod(&self, namespace: &str, name: &str) -> Result<Option<Value>, Refusal> {
        // What no pod can be called would leave its place in the path.
        if !is_object_name(name) {
            return Ok(None);
        }
        self.read(format!("/api/v1/namespaces/{namespace}/pods/{name}")).await
    }

    /// Whether pods of `namespace` are given a token without asking for one.
    pub(crate) async fn injects(&self, namespace: &str) -> Result<bool, Refusal> {
        if let Some(known) = self.injecting.get(namespace).await {
            return Ok(known);
        }
        let object = self.read(format!("/api/v1/namespaces/{namespace}")).await?.unwrap_or_default();
        let labels = object.pointer("/metadata/labels");
        let injects = labels.and_then(|labels| labels.get(INJECT_ANNOTATION)?.as_str()) == Some("true");
        self.injecting.insert(namespace.to_owned(), injects).await;
        Ok(injects)
    }

    async fn read(&self, path: String) -> Result<Option<Value>, Refusal> {
        let object = self.reads.object(path.clone()).await;
        object.map_err(|error| Refusal::ApiServer { what: path, error })
    }
}

/// Of annotations those that say who submitted the object.
fn stamps(annotations: &Map<String, Value>) -> Map<String, Value> {
    let is_stamp = |(key, _): &(&String, &Value)| STAMPS.contains(&key.as_str());
    annotations.iter().filter(is_stamp).map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn unreadable(path: &str, error: &dyn std::error::Error) -> Refusal {
    Refusal::ApiServer { what: path.to_owned(), error: format!("its answer cannot be read: {error}") }
}

/// The API server.
pub(crate) struct ApiServer {
    client: Client,
    turns: Semaphore,
}

impl ApiServer {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, turns: Semaphore::new(AT_ONCE) }
    }

    async fn get(&self, path: String) -> Result<Option<Value>, String> {
        let request = http::Request::get(path).body(Vec::new()).map_err(|error| error.to_string())?;
        let _turn = self.turns.acquire().await.map_err(|error| error.to_string())?;
        match self.client.request::<Value>(request).await {
            Ok(object) => Ok(Some(object)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(kube::Error::Api(status)) => Err(status.message.clone()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Reads for ApiServer {
    fn object(&self, path: String) -> BoxFuture<'_, Result<Option<Value>, String>> {
        Box::pin(async move {
            let answer = timeout(DEADLINE, self.get(path)).await;
            answer.unwrap_or_else(|_| Err(format!("no answer within {} s", DEADLINE.as_secs())))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use serde_json::json;

    use super::*;

    /// Answers in its own time.
    #[derive(Default)]
    struct Slow {
        asked: AtomicUsize,
        object: Option<Value>,
    }

    impl Reads for Slow {
        fn object(&self, path: String) -> BoxFuture<'_, Result<Option<Value>, String>> {
            Box::pin(async move {
                self.asked.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_secs(1)).await;
                if path.ends_with("broken") { Err("no".to_owned()) } else { Ok(self.object.clone()) }
            })
        }
    }

    fn reader(object: Option<Value>) -> (Arc<Slow>, Reader) {
        let slow = Arc::new(Slow { object, ..Slow::default() });
        let reader = Reader::new(slow.clone(), OwnerKinds::default(), Arc::new(Kinds::default()));
        (slow, reader)
    }

    fn job(name: &str) -> Owner {
        let (api_version, kind) = ("batch/v1".to_owned(), "Job".to_owned());
        Owner { api_version, kind, name: name.to_owned(), uid: "u-1".to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn pods_of_a_job_that_come_at_once_have_it_read_once() {
        let (slow, reader) = reader(Some(json!({"metadata": {"uid": "u-1"}})));
        let owner = job("train");
        let all = join_all((0..100).map(|_| reader.owner("jobs", &owner, Age::Kept))).await;
        assert!(all.into_iter().all(|found| found.unwrap().is_some()));
        assert_eq!(slow.asked.load(Ordering::Relaxed), 1);
        reader.owner("jobs", &owner, Age::Now).await.unwrap();
        assert_eq!(slow.asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_there_or_not_answered_is_asked_for_again() {
        let (slow, reader) = reader(None);
        for asked in 1..=2 {
            assert!(reader.owner("jobs", &job("train"), Age::Kept).await.unwrap().is_none());
            assert_eq!(slow.asked.load(Ordering::Relaxed), asked);
        }
        for asked in 3..=4 {
            let error = reader.owner("jobs", &job("broken"), Age::Kept).await.unwrap_err();
            assert!(matches!(error, Refusal::ApiServer { .. }));
            assert_eq!(slow.asked.load(Ordering::Relaxed), asked);
        }
    }
}
