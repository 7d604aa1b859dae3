//! Reads a pod, live: never from a cache, which might still show one that is gone.

use k8s_openapi::api::core::v1::Pod;

use super::{ApiServer, ApiServerError};
use crate::{
    authorization::{CsiVolume, LivePod},
    request::PodReference,
};

impl ApiServer {
    /// The pod of this namespace and name, if there is one.
    pub(super) async fn live_pod(&self, pod: &PodReference) -> Result<Option<LivePod>, ApiServerError> {
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
    LivePod {
        uid: pod.metadata.uid.unwrap_or_default(),
        node_name: spec.node_name,
        service_account: spec.service_account_name.unwrap_or_default(),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        phase: status.phase.unwrap_or_default(),
        annotations: pod.metadata.annotations.unwrap_or_default(),
        volumes: volumes.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_decision_needs() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {
                "uid": "u-1",
                "deletionTimestamp": "2026-01-01T00:00:00Z",
                "annotations": {"hadoop-token.csi/user": "etl"},
            },
            "spec": {
                "nodeName": "n-1",
                "serviceAccountName": "etl",
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
            "status": {"phase": "Pending"},
        }))
        .unwrap();
        let volume = CsiVolume {
            driver: "hadoop-token.csi".to_owned(),
            read_only: true,
            attributes: [("cluster".to_owned(), "main".to_owned())].into(),
        };
        let expected = LivePod {
            uid: "u-1".to_owned(),
            node_name: Some("n-1".to_owned()),
            service_account: "etl".to_owned(),
            terminating: true,
            phase: "Pending".to_owned(),
            annotations: [("hadoop-token.csi/user".to_owned(), "etl".to_owned())].into(),
            volumes: [("token".to_owned(), volume)].into(),
        };
        assert_eq!(facts(pod), expected);
    }
}
