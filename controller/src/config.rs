//! The configuration file: read, checked as a whole, and turned into parts that cannot be wrong. Every mistake is
//! told at once. Nothing here reaches the network.

mod namespaces;
mod users;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hadoop::{Principal, kerberos::Login, site::Site};
use identity::{
    is_object_name,
    owners::{OwnerKind, OwnerKinds},
};
use process::{
    config::Mistakes,
    tls::{self, Tls},
};
use serde::Deserialize;

use crate::{
    audit,
    authorization::{Policy, ServiceAccount, Trust, Verification},
    directory::{self, Directory},
    rate_limit,
    seal::SealKeys,
};

/// The file as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    listen: String,
    health_address: String,
    tls: tls::Section,
    kerberos: KerberosSection,
    #[serde(default)]
    driver: DriverSection,
    clusters: Vec<ClusterSection>,
    default_cluster: Option<String>,
    seal: Option<SealSection>,
    insecure: Option<InsecureSection>,
    #[serde(default)]
    users: users::Section,
    directory: Option<directory::Section>,
    #[serde(default)]
    namespaces: namespaces::Section,
    #[serde(default)]
    owners: Vec<OwnerKind>,
    #[serde(default)]
    address_verification: VerificationName,
    #[serde(default = "quarter_of_an_hour")]
    recheck_seconds: u32,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    audit: audit::Section,
    #[serde(default)]
    lease: LeaseSection,
    #[serde(default)]
    job: JobSection,
}

/// By which the replicas agree on one of them. All have to have the same.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct LeaseSection {
    /// None: that of the node plugin.
    namespace: Option<String>,
    name: String,
}

impl Default for LeaseSection {
    fn default() -> Self {
        Self { namespace: None, name: "hadoop-token-csi-reaper".to_owned() }
    }
}

/// Tokens that the pods of one owner share.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct JobSection {
    grace_seconds: u32,
}

impl Default for JobSection {
    fn default() -> Self {
        Self { grace_seconds: 60 }
    }
}

fn quarter_of_an_hour() -> u32 {
    15 * 60
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct SealSection {
    keys: PathBuf,
    #[serde(default = "two_minutes")]
    tolerance_seconds: u32,
}

fn two_minutes() -> u32 {
    120
}

/// What is not meant for production.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct InsecureSection {
    trust_unsealed_annotations: bool,
}

/// When addresses are verified, as the file spells it.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
enum VerificationName {
    Off,
    #[default]
    Eventual,
    Strict,
}

impl From<VerificationName> for Verification {
    fn from(name: VerificationName) -> Self {
        match name {
            VerificationName::Off => Self::Off,
            VerificationName::Eventual => Self::Eventual,
            VerificationName::Strict => Self::Strict,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct KerberosSection {
    principal: String,
    keytab: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct DriverSection {
    namespace: String,
    service_account: String,
}

impl Default for DriverSection {
    fn default() -> Self {
        let [namespace, service_account] = ["hadoop-token-csi", "hadoop-token-csi-driver"].map(str::to_owned);
        Self { namespace, service_account }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ClusterSection {
    name: String,
    configuration: PathBuf,
}

/// Bounds on what the controller does at once.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(crate) struct Limits {
    /// Calls under way at one cluster.
    pub(crate) concurrent_calls: usize,
    /// Calls that wait for their turn at one cluster.
    pub(crate) waiting_calls: usize,
    /// Attempts to cancel what a token may be whose answer was lost; with 0 such tokens are left to end by themselves.
    pub(crate) trace_attempts: u32,
    /// Connections of node plugins.
    pub(crate) connections: usize,
    /// How long calls under way may take to end when the controller stops.
    pub(crate) drain_seconds: u64,
    /// How often one node, namespace and user may ask.
    pub(crate) rates: rate_limit::Section,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            concurrent_calls: 16,
            waiting_calls: 8192,
            trace_attempts: 5000,
            connections: 8192,
            drain_seconds: 40,
            rates: rate_limit::Section::default(),
        }
    }
}

/// A configuration that is right, as far as can be told without asking anybody.
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    pub(crate) health_address: SocketAddr,
    pub(crate) tls: Tls,
    pub(crate) login: Arc<Login>,
    pub(crate) policy: Policy,
    /// None only where annotations are believed without a seal.
    pub(crate) seal_keys: Option<SealKeys>,
    pub(crate) directory: Option<Directory>,
    /// Kinds of owners that are read.
    pub(crate) owners: OwnerKinds,
    /// How long a volume keeps its tokens without a check.
    pub(crate) recheck: Duration,
    pub(crate) audit: audit::Destination,
    /// Settings of each cluster's NameNode, by the cluster's name.
    pub(crate) clusters: BTreeMap<String, Site>,
    pub(crate) limits: Limits,
    /// How long a shared token waits for another pod after its last one.
    pub(crate) job_grace: Duration,
    pub(crate) lease: LeaseName,
}

/// Where the replicas find the Lease by which they agree on one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeaseName {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Config {
    /// Reads the file at `path` and everything it names.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        Ok(Self::check(process::config::load(path)?)?)
    }

    fn check(file: File) -> Result<Self, Mistakes> {
        let mut mistakes = Mistakes::default();
        let listen = mistakes.take("listen", file.listen.parse::<SocketAddr>());
        let health_address = mistakes.take("healthAddress", file.health_address.parse::<SocketAddr>());
        let tls = mistakes.take("tls", Tls::load(file.tls, tls::HTTP_2));
        let principal = mistakes.take("kerberos.principal", file.kerberos.principal.parse::<Principal>());
        let login = principal
            .and_then(|principal| mistakes.take("kerberos", Login::open(principal, &file.kerberos.keytab)));
        for (key, name) in [
            ("driver.namespace", &file.driver.namespace),
            ("driver.serviceAccount", &file.driver.service_account),
        ] {
            mistakes.require(key, is_object_name(name), &format!("{name:?} is not a name"));
        }
        let lease = LeaseName {
            namespace: file.lease.namespace.unwrap_or_else(|| file.driver.namespace.clone()),
            name: file.lease.name,
        };
        for (key, name) in [("lease.namespace", &lease.namespace), ("lease.name", &lease.name)] {
            mistakes.require(key, is_object_name(name), &format!("{name:?} is not a name"));
        }
        let mut clusters = BTreeMap::new();
        for ClusterSection { name, configuration } in file.clusters {
            let key = format!("clusters[{name}]");
            mistakes.require(&key, is_object_name(&name), &format!("{name:?} is not a name"));
            mistakes.require(&key, !clusters.contains_key(&name), "is there twice");
            clusters.insert(name, mistakes.take(&key, Site::load(&configuration)));
        }
        mistakes.require("clusters", !clusters.is_empty(), "name at least one");
        let default_cluster = match file.default_cluster {
            None if clusters.len() == 1 => clusters.keys().next().cloned(),
            named => named,
        };
        if let Some(name) = &default_cluster {
            mistakes.require(
                "defaultCluster",
                clusters.contains_key(name),
                &format!("{name:?} is not among clusters"),
            );
        }
        mistakes.require("limits.concurrentCalls", file.limits.concurrent_calls > 0, "must be at least 1");
        mistakes.require("limits.waitingCalls", file.limits.waiting_calls > 0, "must be at least 1");
        mistakes.require("limits.connections", file.limits.connections > 0, "must be at least 1");
        mistakes.require("recheckSeconds", file.recheck_seconds > 0, "must be at least 1");
        let (trust, seal_keys) = trust(file.seal, file.insecure, &mut mistakes);
        let has_directory = file.directory.is_some();
        let directory =
            file.directory.and_then(|section| mistakes.take_all("directory", Directory::open(section)));
        let owners = mistakes.take_all("owners", OwnerKinds::new(file.owners));
        let audit = mistakes.take("audit", file.audit.destination());
        let cluster_names: BTreeSet<String> = clusters.keys().cloned().collect();
        let namespaces = file.namespaces.check(&cluster_names, &mut mistakes);
        let (names, users) =
            file.users.check(login.as_ref().map(Login::principal), has_directory, &mut mistakes);

        let policy = names.zip(users).map(|(names, users)| Policy {
            driver: ServiceAccount { namespace: file.driver.namespace, name: file.driver.service_account },
            clusters: cluster_names,
            default_cluster,
            trust,
            names,
            users,
            namespaces,
            verification: file.address_verification.into(),
        });
        let clusters = clusters.into_iter().map(|(name, site)| Some((name, site?))).collect();
        let judgement = policy.zip(owners).zip(audit);
        match (listen, health_address, tls, login, clusters, judgement, mistakes) {
            (
                Some(listen),
                Some(health_address),
                Some(tls),
                Some(login),
                Some(clusters),
                Some(((policy, owners), audit)),
                mistakes,
            ) if mistakes.is_empty() => Ok(Self {
                listen,
                health_address,
                tls,
                login: Arc::new(login),
                policy,
                seal_keys,
                directory,
                owners,
                recheck: Duration::from_secs(file.recheck_seconds.into()),
                audit,
                clusters,
                limits: file.limits,
                job_grace: Duration::from_secs(file.job.grace_seconds.into()),
                lease,
            }),
            (.., mistakes) => Err(mistakes),
        }
    }
}

/// By what pods are believed: exactly one way.
fn trust(
    seal: Option<SealSection>,
    insecure: Option<InsecureSection>,
    mistakes: &mut Mistakes,
) -> (Trust, Option<SealKeys>) {
    match (seal, insecure) {
        (Some(seal), None) => {
            let keys = mistakes.take("seal.keys", SealKeys::load(seal.keys));
            (Trust::Seals { tolerance: seal.tolerance_seconds.into() }, keys)
        }
        (None, Some(InsecureSection { trust_unsealed_annotations: true })) => (Trust::Annotations, None),
        (None, Some(_)) => {
            let complaint = "is false: name the keys of seals under seal";
            mistakes.require("insecure.trustUnsealedAnnotations", false, complaint);
            (Trust::Annotations, None)
        }
        (Some(_), Some(_)) => {
            mistakes.require("insecure", false, "cannot be together with seal");
            (Trust::Annotations, None)
        }
        (None, None) => {
            let complaint = "is missing: name the file of public keys that pods are sealed with (seal.keys)";
            mistakes.require("seal", false, complaint);
            (Trust::Annotations, None)
        }
    }
}

#[cfg(test)]
mod tests;
