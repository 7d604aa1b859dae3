//! The configuration file: read, checked as a whole, and turned into parts that cannot be wrong. Every mistake is
//! told at once. Nothing here reaches the network.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use hadoop::{Principal, kerberos::Login, site::Site};
use serde::Deserialize;

use crate::{
    authorization::{Policy, ServiceAccount},
    request::is_name,
    tls::Certificate,
};

/// The file as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    listen: String,
    health_address: String,
    tls: TlsSection,
    kerberos: KerberosSection,
    #[serde(default)]
    driver: DriverSection,
    clusters: Vec<ClusterSection>,
    default_cluster: Option<String>,
    #[serde(default = "privileged_users")]
    denied_users: BTreeSet<String>,
    #[serde(default)]
    limits: Limits,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct TlsSection {
    certificate: PathBuf,
    key: PathBuf,
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
    /// Connections of node plugins.
    pub(crate) connections: usize,
    /// How long calls under way may take to end when the controller stops.
    pub(crate) drain_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { concurrent_calls: 16, connections: 8192, drain_seconds: 40 }
    }
}

/// Users that hold rights over others wherever Hadoop runs.
fn privileged_users() -> BTreeSet<String> {
    ["hdfs", "yarn", "mapred", "hive", "hbase", "kms", "http", "HTTP", "root"].map(str::to_owned).into()
}

/// A configuration that is right, as far as can be told without asking anybody.
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    pub(crate) health_address: SocketAddr,
    pub(crate) certificate: Certificate,
    pub(crate) login: Arc<Login>,
    pub(crate) policy: Policy,
    /// Settings of each cluster's NameNode, by the cluster's name.
    pub(crate) clusters: BTreeMap<String, Site>,
    pub(crate) limits: Limits,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub(crate) struct Mistakes(Vec<String>);

impl Config {
    /// Reads the file at `path` and everything it names.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        Ok(Self::check(process::config::load(path)?)?)
    }

    fn check(file: File) -> Result<Self, Mistakes> {
        let mut mistakes = Collector::default();
        let listen = mistakes.take("listen", file.listen.parse::<SocketAddr>());
        let health_address = mistakes.take("healthAddress", file.health_address.parse::<SocketAddr>());
        let certificate = mistakes.take("tls", Certificate::load(file.tls.certificate, file.tls.key));
        let principal = mistakes.take("kerberos.principal", file.kerberos.principal.parse::<Principal>());
        let login = principal
            .and_then(|principal| mistakes.take("kerberos", Login::open(principal, &file.kerberos.keytab)));
        for (key, name) in [
            ("driver.namespace", &file.driver.namespace),
            ("driver.serviceAccount", &file.driver.service_account),
        ] {
            mistakes.require(key, is_name(name), &format!("{name:?} is not a name"));
        }
        let mut clusters = BTreeMap::new();
        for ClusterSection { name, configuration } in file.clusters {
            let key = format!("clusters[{name}]");
            mistakes.require(&key, is_name(&name), &format!("{name:?} is not a name"));
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
        mistakes.require("limits.connections", file.limits.connections > 0, "must be at least 1");

        let policy = Policy {
            driver: ServiceAccount { namespace: file.driver.namespace, name: file.driver.service_account },
            clusters: clusters.keys().cloned().collect(),
            default_cluster,
            denied_users: file.denied_users,
        };
        let clusters = clusters.into_iter().map(|(name, site)| Some((name, site?))).collect();
        match (listen, health_address, certificate, login, clusters, mistakes.0) {
            (
                Some(listen),
                Some(health_address),
                Some(certificate),
                Some(login),
                Some(clusters),
                mistakes,
            ) if mistakes.is_empty() => Ok(Self {
                listen,
                health_address,
                certificate,
                login: Arc::new(login),
                policy,
                clusters,
                limits: file.limits,
            }),
            (.., mistakes) => Err(Mistakes(mistakes)),
        }
    }
}

#[derive(Default)]
struct Collector(Vec<String>);

impl Collector {
    fn take<T, E: Display>(&mut self, key: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.0.push(format!("{key}: {error}"))).ok()
    }

    fn require(&mut self, key: &str, holds: bool, complaint: &str) {
        if !holds {
            self.0.push(format!("{key}: {complaint}"));
        }
    }
}

#[cfg(test)]
mod tests;
