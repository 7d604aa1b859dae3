//! What the watch reads of a pod. Everything else is skipped while parsing, so that a large cluster's pods cost
//! little memory, and their environment and commands never enter it.

use std::{borrow::Cow, net::IpAddr, sync::Arc};

use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::Resource;
use proto::DRIVER_NAME;
use serde::Deserialize;

/// A pod as it comes from the API server.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Wire")]
pub(crate) struct WatchedPod {
    /// Only what the watch itself needs.
    metadata: ObjectMeta,
    seen: SeenPod,
}

/// What is kept of a pod.
#[derive(Clone, Debug)]
pub(super) struct SeenPod {
    pub(super) namespace: Box<str>,
    pub(super) name: Box<str>,
    pub(super) uid: Arc<str>,
    /// Its node, when it has a volume of ours and is not finished: nobody asks for others.
    pub(super) node: Option<Box<str>>,
    /// None when it is finished: the addresses may be others' by now.
    pub(super) addresses: Arc<[IpAddr]>,
}

impl WatchedPod {
    pub(super) fn uid(&self) -> &str {
        &self.seen.uid
    }
}

impl From<WatchedPod> for SeenPod {
    fn from(pod: WatchedPod) -> Self {
        pod.seen
    }
}

#[derive(Deserialize)]
struct Wire {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    namespace: String,
    name: String,
    uid: String,
    resource_version: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: Option<Box<str>>,
    volumes: Option<Vec<Volume>>,
}

#[derive(Deserialize)]
struct Volume {
    csi: Option<Csi>,
}

#[derive(Deserialize)]
struct Csi {
    driver: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
}

#[derive(Deserialize)]
struct PodIp {
    ip: String,
}

impl From<Wire> for WatchedPod {
    fn from(Wire { metadata, spec, status }: Wire) -> Self {
        let ours = |volume: &Volume| volume.csi.as_ref().is_some_and(|csi| csi.driver == DRIVER_NAME);
        let uses_our_driver = spec.volumes.iter().flatten().any(ours);
        let finished = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let addresses = status.pod_ips.unwrap_or_default();
        let addresses = addresses.iter().filter(|_| !finished).filter_map(|address| address.ip.parse().ok());
        let seen = SeenPod {
            namespace: metadata.namespace.as_str().into(),
            name: metadata.name.as_str().into(),
            uid: metadata.uid.into(),
            node: spec.node_name.filter(|_| uses_our_driver && !finished),
            addresses: addresses.collect(),
        };
        let metadata = ObjectMeta {
            namespace: Some(metadata.namespace),
            name: Some(metadata.name),
            resource_version: metadata.resource_version,
            ..ObjectMeta::default()
        };
        Self { metadata, seen }
    }
}

impl Resource for WatchedPod {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Pod".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "pods".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
