//! What must be true after whatever happened: every token that was ever issued is mounted in a living pod or unknown to
//! its NameNode, and no mount, record or object of the ledger is left of a pod that is gone. What was issued and
//! cancelled is read in the NameNodes' audit logs and in their journals, and every token is tried, by Hadoop's own
//! client: see `TokenJournal.java`. Nothing here asks the product how it is.

mod node;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use identity::{DRIVER_NAME, LEDGER_GROUP};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams},
};
use proto::VolumeId;
use tokio::{task::JoinHandle, time::sleep};

use crate::{
    Bed,
    kdc::SUPERUSER,
    namenode::{Cluster, NameNode, TokenAction, TokenEvent},
    process::until,
};

const OBSERVATION_PAUSE: Duration = Duration::from_millis(500);

/// A token by its number at its NameNode.
type Number = u32;

/// The NameNodes as they were when a scenario began.
pub struct Reckoning<'bed> {
    bed: &'bed Bed,
    /// The audit log's events and the greatest number until then, of each NameNode there was.
    before: BTreeMap<&'static str, (usize, Number)>,
    /// Tokens that were mounted when somebody looked.
    seen: Arc<Mutex<Seen>>,
    /// Objects that the ledger had of pods that are gone: another scenario's.
    stale: BTreeSet<String>,
    observer: JoinHandle<()>,
}

/// The UIDs of the pods in which each token was seen, by cluster and number.
type Seen = BTreeMap<(&'static str, Number), BTreeSet<String>>;

impl Drop for Reckoning<'_> {
    fn drop(&mut self) {
        self.observer.abort();
    }
}

/// What a reckoning found when all was well.
#[derive(Debug, Default, Clone, Copy)]
pub struct Account {
    /// Tokens that the controller got.
    pub issued: usize,
    /// Those among them that living pods have: mounted, or the predecessors of such.
    pub held: usize,
    /// Those that their NameNode does not know, having been tried.
    pub unknown: usize,
    /// Those that ended by themselves.
    pub lapsed: usize,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { issued, held, unknown, lapsed } = self;
        write!(f, "{issued} tokens issued, {held} held by living pods, {unknown} unknown, {lapsed} lapsed")
    }
}

/// The pods that have not ended.
#[derive(Default)]
struct Living {
    uids: BTreeSet<String>,
    /// Ids of their volumes that are ours.
    volumes: BTreeSet<String>,
}

/// Everything that is left, in words.
type Problems = Vec<String>;

impl<'bed> Reckoning<'bed> {
    /// Takes down where the NameNodes and the ledger stand, and which tokens are mounted from now on.
    ///
    /// # Errors
    /// When an audit log or the ledger cannot be read.
    pub async fn begin(bed: &'bed Bed) -> Result<Self> {
        let mut before = BTreeMap::new();
        for name_node in bed.name_nodes() {
            let events = name_node.token_events()?;
            let greatest = events.iter().filter_map(|event| event.sequence_number).max().unwrap_or(0);
            before.insert(name_node.cluster().name(), (events.len(), greatest));
        }
        let client = bed.kubernetes().client();
        let living = Living::now(&client).await?;
        let stale =
            ledger(&client).await?.iter().filter(|object| !living.has_token_of(object)).map(name).collect();
        let seen = Arc::new(Mutex::default());
        let observer = tokio::spawn(observe_on(seen.clone()));
        Ok(Self { bed, before, seen, stale, observer })
    }

    /// The bed.
    #[must_use]
    pub fn bed(&self) -> &'bed Bed {
        self.bed
    }

    /// Takes down which tokens are mounted now. A living pod may have had them and others later; one that it never had
    /// was lost on the way to it, and must be cancelled though the pod lives on.
    ///
    /// # Errors
    /// When a mounted token cannot be read.
    pub fn observe(&self) -> Result<()> {
        observe(&self.seen)
    }

    /// Whether a living pod has it, or had it before the one it has now.
    fn is_held(&self, cluster: Cluster, number: Number, living: &Living) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let pods = seen.get(&(cluster.name(), number));
        pods.is_some_and(|pods| !pods.is_disjoint(&living.uids))
    }

    /// Waits until nothing is left but what living pods have, by the audit logs, the node's mounts and files, and the
    /// ledger. Tries no token: see [`Self::closes`].
    ///
    /// # Errors
    /// When something is left after `limit`, with all of it.
    pub async fn settles(&self, limit: Duration) -> Result<()> {
        until("settled: tokens, mounts, records, ledger", limit, async || {
            nothing_left(&self.problems().await?)
        })
        .await
    }

    /// The same, and then tries every token that was issued since the beginning.
    ///
    /// # Errors
    /// When something is left after `limit`, with all of it, or a NameNode knows a token that no living pod has.
    pub async fn closes(&self, limit: Duration) -> Result<Account> {
        self.settles(limit).await?;
        self.tries_all().await
    }

    /// Tries every token that was issued since the beginning, but for those that living pods have.
    ///
    /// # Errors
    /// When a NameNode knows a token that no living pod has. It is cancelled then.
    pub async fn tries_all(&self) -> Result<Account> {
        let living = Living::now(&self.bed.kubernetes().client()).await?;
        let mut account = Account::default();
        for name_node in self.bed.name_nodes() {
            self.try_all(name_node, &living, &mut account).await?;
        }
        Ok(account)
    }

    async fn problems(&self) -> Result<Problems> {
        let client = self.bed.kubernetes().client();
        let living = Living::now(&client).await?;
        let mut problems = node::leftovers(&living)?;
        self.observe()?;
        for name_node in self.bed.name_nodes() {
            let events = self.events(name_node)?;
            for token in issued(&events) {
                let number = token.sequence_number.context("a token without a number")?;
                let is_cancelled = events.iter().any(|event| {
                    event.action == TokenAction::Cancelled
                        && event.allowed
                        && event.sequence_number == Some(number)
                });
                let (cluster, pod) = (name_node.cluster(), token.pod().unwrap_or("?"));
                if !is_cancelled && !self.is_held(cluster, number, &living) {
                    problems.push(format!("token {number} of {}, issued for {pod}", cluster.name()));
                }
            }
        }
        problems.extend(self.ledger_without_pods(&client, &living).await?);
        Ok(problems)
    }

    /// Objects of pods that are gone, those that go, and those whose token nobody has found yet.
    async fn ledger_without_pods(&self, client: &Client, living: &Living) -> Result<Problems> {
        let objects = ledger(client).await?;
        let left = objects.iter().filter(|object| !living.has_token_of(object));
        let left = left.map(|object| (name(object), object)).filter(|(name, _)| !self.stale.contains(name));
        Ok(left
            .map(|(name, object)| {
                let data = &object.data;
                format!("ledger object {name}, finalizers {:?}: {data}", object.finalizers())
            })
            .collect())
    }

    /// What was done since the beginning.
    fn events(&self, name_node: &NameNode) -> Result<Vec<TokenEvent>> {
        let (before, _) = self.before(name_node);
        let mut events = name_node.token_events()?;
        Ok(events.split_off(before.min(events.len())))
    }

    fn before(&self, name_node: &NameNode) -> (usize, Number) {
        self.before.get(name_node.cluster().name()).copied().unwrap_or_default()
    }

    async fn try_all(&self, name_node: &NameNode, living: &Living, account: &mut Account) -> Result<()> {
        let cluster = name_node.cluster();
        let events = self.events(name_node)?;
        let numbers: BTreeMap<Number, &TokenEvent> =
            issued(&events).filter_map(|event| Some((event.sequence_number?, event))).collect();
        let untried = numbers.keys().filter(|number| self.is_held(cluster, **number, living));
        let untried: Vec<String> = untried.map(Number::to_string).collect();
        let (_, greatest) = self.before(name_node);
        let configuration = self.bed.client_configurations().join(cluster.name());
        let kerberos = self.bed.kdc().client_configuration();
        let journal = self
            .bed
            .tools()
            .java(&configuration)
            .env("JDK_JAVA_OPTIONS", format!("-Djava.security.krb5.conf={}", kerberos.display()))
            .arg("org.apache.hadoop.hdfs.server.namenode.TokenJournal")
            .arg(name_node.journal())
            .arg(&configuration)
            .args([SUPERUSER, &self.bed.kdc().keytab("csi.keytab").display().to_string()])
            .arg(greatest.to_string())
            .args(untried)
            .succeed()
            .await?;
        let mut states: BTreeMap<Number, &str> = BTreeMap::new();
        for line in journal.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let &[number, _owner, state] = words.as_slice() else { bail!("a strange line: {line}") };
            states.insert(number.parse()?, state);
        }
        let stray = states.iter().find(|(number, state)| **state == "known" && !numbers.contains_key(number));
        if let Some((number, _)) = stray {
            bail!("token {number} of {}, which the audit log does not have, still worked", cluster.name());
        }
        for (number, token) in numbers {
            let pod = token.pod().unwrap_or("?");
            account.issued += 1;
            match states.get(&number).copied() {
                Some("untried") => account.held += 1,
                Some("unknown") => account.unknown += 1,
                Some("lapsed") => account.lapsed += 1,
                Some("known") => {
                    bail!("token {number} of {}, issued for {pod}, still worked", cluster.name());
                }
                state => bail!("the journal of {} says {state:?} of token {number}", cluster.name()),
            }
        }
        Ok(())
    }
}

fn observe(seen: &Mutex<Seen>) -> Result<()> {
    let mounted = node::mounted_tokens()?;
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    for token in mounted {
        seen.entry((token.cluster.name(), token.number)).or_default().insert(token.pod);
    }
    Ok(())
}

/// Tokens may be replaced while nobody reckons.
async fn observe_on(seen: Arc<Mutex<Seen>>) {
    loop {
        // What cannot be read now is read, or told, by who reckons.
        let _ = observe(&seen);
        sleep(OBSERVATION_PAUSE).await;
    }
}

/// What the controller was given.
fn issued(events: &[TokenEvent]) -> impl Iterator<Item = &TokenEvent> {
    events.iter().filter(|event| {
        event.action == TokenAction::Issued && event.allowed && event.caller.contains(SUPERUSER)
    })
}

impl Living {
    async fn now(client: &Client) -> Result<Self> {
        let mut living = Self::default();
        for pod in Api::<Pod>::all(client.clone()).list(&ListParams::default()).await? {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
            if ["Succeeded", "Failed"].contains(&phase) {
                continue;
            }
            let uid = pod.uid().context("a pod without a UID")?;
            let volumes = pod.spec.and_then(|spec| spec.volumes).unwrap_or_default();
            let ours = volumes
                .iter()
                .filter(|volume| volume.csi.as_ref().is_some_and(|csi| csi.driver == DRIVER_NAME));
            living.volumes.extend(ours.map(|volume| VolumeId::of(&uid, &volume.name).to_string()));
            living.uids.insert(uid);
        }
        Ok(living)
    }

    /// Whether the object stands for a token of one of them, and stays.
    fn has_token_of(&self, object: &DynamicObject) -> bool {
        let pod = object.data.pointer("/spec/podUid").and_then(serde_json::Value::as_str);
        pod.is_some_and(|pod| self.uids.contains(pod))
            && object.data.pointer("/spec/token").is_some()
            && object.metadata.deletion_timestamp.is_none()
    }
}

/// Waits until the node has no mount and no record of a pod that is gone, so that the node plugin has nothing to ask of
/// the controller for it any more.
///
/// # Errors
/// When something is left after `limit`, with all of it.
pub async fn node_settles(bed: &Bed, limit: Duration) -> Result<()> {
    until("settled: mounts and records", limit, async || {
        nothing_left(&node::leftovers(&Living::now(&bed.kubernetes().client()).await?)?)
    })
    .await
}

fn nothing_left(left: &[String]) -> Result<()> {
    ensure!(left.is_empty(), "left over:\n  {}", left.join("\n  "));
    Ok(())
}

/// How many volumes are mounted on the node.
///
/// # Errors
/// When mounts cannot be listed.
pub fn mounts() -> Result<usize> {
    Ok(node::mounts()?.values().sum())
}

/// How many objects the ledger has.
///
/// # Errors
/// When the API server does not answer.
pub async fn ledger_size(bed: &Bed) -> Result<usize> {
    Ok(ledger(&bed.kubernetes().client()).await?.len())
}

async fn ledger(client: &Client) -> Result<Vec<DynamicObject>> {
    let kind = GroupVersionKind::gvk(LEDGER_GROUP, "v1alpha1", "DelegationToken");
    let ledger: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&kind));
    Ok(ledger.list(&ListParams::default()).await.context("failed to list the ledger")?.items)
}

fn name(object: &DynamicObject) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}
