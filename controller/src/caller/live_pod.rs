//! Reads a pod, live: never from a cache, which might still show one that is gone.

use std::net::IpAddr;

use identity::owners::Owner;
use k8s_openapi::{
    api::core::v1::{ContainerStatus, Pod},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};

use super::{ApiServer, ApiServerError};
use crate::{
    authorization::{CsiVolume, LivePod},
    request::PodReference,
};

/// What the API server keeps on the mirror of a static pod. Nobody can remove it: the API server sees to it.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

impl ApiServer {
    /// The pod of this namespace and name, if there is one.
    pub(crate) async fn live_pod(&self, pod: &PodReference) -> Result<Option<LivePod>, ApiServerError> {
        // Both are checked names (see `request`), so they cannot leave their places.
        let path = format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name);
        let request = http::Request::get(path).body(Vec::new());
        let Some(text) = self.ask("get pods", request).await? else { return Ok(None) };
        let pod: Pod = serde_json::from_str(&text).map_err(|error| self.unreadable(&error))?;
        Ok(Some(facts(pod)))
    }
}

fn facts(pod: Pod) -> LivePod {
    let (spec, status) = (pod.spec.unwrap_or_default(), pod.status.unwrap_or_default());
    let volumes = spec.volumes.unwrap_or_default().into_iter().filter_map(|volume| {
        let csi = volume.csi?;
        let csi = CsiVolume {
            driver: csi.driver,
            read_only: csi.read_only.unwrap_or(false),
            attributes: csi.volume_attributes.unwrap_or_default(),
        };
        Some((volume.name, csi))
    });
    let annotations = pod.metadata.annotations.unwrap_or_default();
    let controller = controller_of(pod.metadata.owner_references.unwrap_or_default());
    let addresses = status.pod_ips.unwrap_or_default().into_iter();
    let statuses = [status.init_container_statuses, status.container_statuses];
    LivePod {
        uid: pod.metadata.uid.unwrap_or_default(),
        generate_name: pod.metadata.generate_name,
        created: pod.metadata.creation_timestamp.map(|time| time.0.as_second()).unwrap_or_default(),
        is_static: annotations.contains_key(MIRROR_ANNOTATION)
            || controller.as_ref().is_some_and(|owner| owner.kind == "Node"),
        controller,
        node_name: spec.node_name,
        service_account: spec.service_account_name.unwrap_or_default(),
        host_network: spec.host_network.unwrap_or_default(),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        phase: status.phase.unwrap_or_default(),
        addresses: addresses.filter_map(|address| address.ip.parse::<IpAddr>().ok()).collect(),
        annotations,
        volumes: volumes.collect(),
        images: statuses.into_iter().flatten().flatten().filter_map(image).collect(),
    }
}

fn controller_of(owners: Vec<OwnerReference>) -> Option<Owner> {
    let controller = owners.into_iter().find(|owner| owner.controller == Some(true))?;
    let OwnerReference { api_version, kind, name, uid, .. } = controller;
    Some(Owner { api_version, kind, name, uid })
}

fn image(container: ContainerStatus) -> Option<String> {
    (!container.image_id.is_empty()).then_some(container.image_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_decision_needs() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {
                "uid": "u-1",
                "generateName": "etl-",
                "creationTimestamp": "1970-01-01T00:01:40Z",
                "deletionTimestamp": "2026-01-01T00:00:00Z",
                "annotations": {"hadoop-token.csi/submitter": "etl"},
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "ConfigMap", "name": "other", "uid": "u-c"},
                    {"apiVersion": "batch/v1", "kind": "Job", "name": "etl", "uid": "u-j", "controller": true},
                ],
            },
            "spec": {
                "nodeName": "n-1",
                "serviceAccountName": "etl",
                "hostNetwork": true,
                "containers": [],
                "volumes": [
                    {"name": "scratch", "emptyDir": {}},
                    {"name": "token", "csi": {
                        "driver": "hadoop-token.csi",
                        "readOnly": true,
                        "volumeAttributes": {"cluster": "main"},
                    }},
                ],
            },
            "status": {
                "phase": "Pending",
                "podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}, {"ip": "nowhere"}],
                "containerStatuses": [
                    {"name": "a", "image": "a:1", "imageID": "sha256:1", "ready": true, "restartCount": 0},
                    {"name": "b", "image": "b:1", "imageID": "", "ready": false, "restartCount": 0},
                ],
            },
        }))
        .unwrap();
        let volume = CsiVolume {
            driver: "hadoop-token.csi".to_owned(),
            read_only: true,
            attributes: [("cluster".to_owned(), "main".to_owned())].into(),
        };
        let expected = LivePod {
            uid: "u-1".to_owned(),
            generate_name: Some("etl-".to_owned()),
            created: 100,
            controller: Some(Owner {
                api_version: "batch/v1".to_owned(),
                kind: "Job".to_owned(),
                name: "etl".to_owned(),
                uid: "u-j".to_owned(),
            }),
            node_name: Some("n-1".to_owned()),
            service_account: "etl".to_owned(),
            is_static: false,
            host_network: true,
            terminating: true,
            phase: "Pending".to_owned(),
            addresses: ["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()].into(),
            annotations: [("hadoop-token.csi/submitter".to_owned(), "etl".to_owned())].into(),
            volumes: [("token".to_owned(), volume)].into(),
            images: vec!["sha256:1".to_owned()],
        };
        assert_eq!(facts(pod), expected);
    }
    #[test]
    fn sees_that_a_pod_is_static_by_its_mirror_or_its_owner() {
        let of = |metadata: serde_json::Value| {
            facts(serde_json::from_value(serde_json::json!({"metadata": metadata})).unwrap()).is_static
        };
        assert!(of(serde_json::json!({"annotations": {"kubernetes.io/config.mirror": "hash"}})));
        let node = serde_json::json!([{
            "apiVersion": "v1", "kind": "Node", "name": "n-1", "uid": "u-n", "controller": true,
        }]);
        assert!(of(serde_json::json!({"ownerReferences": node})));
        assert!(!of(serde_json::json!({"annotations": {}})));
    }
}
