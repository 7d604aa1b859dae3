//! A second node, which somebody else owns: in the API server it is a node like any other, with a pod of the node
//! plugin and whatever pods are put on it. No kubelet runs there; its owner has kubelet's certificate, and can do with
//! it all that a node may.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams},
};
use proto::CONTROLLER_AUDIENCE;
use serde_json::json;

use crate::{
    kubernetes::Kubernetes,
    pod::{Draft, Running},
    process::until,
    product::NAMESPACE,
    users::{Bound, service_account_token},
};

/// Name of the node.
pub const SECOND_NODE: &str = "second";

const DRIVER_ACCOUNT: &str = "hadoop-token-csi-driver";
const DRIVER_POD: &str = "driver-on-second";
const GONE_LIMIT: Duration = Duration::from_secs(30);

/// The node with its node plugin's pod. Ends with [`SecondNode::leave`].
pub struct SecondNode {
    administrator: Client,
    /// As kubelet there, with kubelet's rights.
    pub kubelet: Client,
    /// The token of its node plugin.
    pub driver_token: String,
}

impl SecondNode {
    /// Adds the node to the cluster. The product must be installed.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn join(kubernetes: &Kubernetes) -> Result<Self> {
        let administrator = kubernetes.client();
        // Without the label of its operating system, so that no DaemonSet waits for it.
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": SECOND_NODE}});
        kubernetes.apply(&node.to_string()).await?;
        // A test that failed may have left some.
        let here = ListParams::default().fields(&format!("spec.nodeName={SECOND_NODE}"));
        for pod in Api::<Pod>::all(administrator.clone()).list(&here).await? {
            forget(&administrator, &pod.namespace().unwrap_or_default(), &pod.name_any()).await?;
        }
        let draft = Draft::new(DRIVER_POD)
            .namespace(NAMESPACE)
            .set("/spec/nodeName", json!(SECOND_NODE))
            .set("/spec/serviceAccountName", json!(DRIVER_ACCOUNT))
            .set("/spec/tolerations", json!([{"operator": "Exists"}]))
            // As in the DaemonSet: the API server lets a node ask only for audiences that its pods name.
            .push(
                "/spec/volumes",
                json!({"name": "identity", "projected": {"sources": [
                    {"serviceAccountToken": {"audience": CONTROLLER_AUDIENCE, "path": "token"}},
                ]}}),
            );
        let pod = kubernetes.create(&draft).await?;
        let group = Some("system:nodes");
        let kubelet = kubernetes.client_as(&format!("system:node:{SECOND_NODE}"), group).await?;
        let uid = pod.uid().await?;
        let bound = Bound::Pod { name: DRIVER_POD, uid: &uid };
        // The API server's picture of which pod is on which node is a moment behind.
        let driver_token = until("given: the driver's token", GONE_LIMIT, async || {
            service_account_token(&kubelet, NAMESPACE, DRIVER_ACCOUNT, CONTROLLER_AUDIENCE, bound).await
        })
        .await?;
        Ok(Self { administrator, kubelet, driver_token })
    }

    /// Removes a pod from it, if nobody else has yet: at once, because nobody there would confirm.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn forget(&self, namespace: &str, pod: &str) -> Result<()> {
        forget(&self.administrator, namespace, pod).await
    }

    /// Takes the node out of the cluster again.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn leave(self) -> Result<()> {
        self.forget(NAMESPACE, DRIVER_POD).await?;
        let nodes: Api<Node> = Api::all(self.administrator.clone());
        nodes.delete(SECOND_NODE, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Creates a pod on it with somebody's client.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn create_as(&self, kubernetes: &Kubernetes, client: Client, draft: &Draft) -> Result<Running> {
        kubernetes.create_as(client, &draft.clone().set("/spec/nodeName", json!(SECOND_NODE))).await
    }
}

async fn forget(administrator: &Client, namespace: &str, pod: &str) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(administrator.clone(), namespace);
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    match pods.delete(pod, &now).await {
        // Whoever owned it is gone, and the garbage collector was faster.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        deleted => deleted.map(drop).with_context(|| format!("failed to delete pod {namespace}/{pod}")),
    }
}
