//! CSI Node: publish and unpublish, which is all that an inline volume needs.

use std::path::PathBuf;

use proto::csi::v1::{
    NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse,
    NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability, NodeUnpublishVolumeRequest,
    NodeUnpublishVolumeResponse, node_server,
    node_service_capability::{Rpc, Type, rpc},
};
use tonic::{Request, Response, Status};
use tracing::{debug, warn};

use crate::{
    publish_request::{PublishRequest, UnpublishRequest},
    volume::{error::VolumeError, lifecycle::Volumes},
};

pub(super) struct Node {
    name: String,
    /// kubelet's directory of pods.
    pods: PathBuf,
    volumes: Volumes,
}

impl Node {
    pub(super) fn new(name: String, pods: PathBuf, volumes: Volumes) -> Self {
        Self { name, pods, volumes }
    }

    async fn publish(&self, request: NodePublishVolumeRequest) -> Result<(), VolumeError> {
        self.volumes.publish(PublishRequest::parse(request, &self.pods)?).await
    }

    async fn unpublish(&self, request: &NodeUnpublishVolumeRequest) -> Result<(), VolumeError> {
        self.volumes.unpublish(UnpublishRequest::parse(request, &self.pods)?).await
    }
}

#[tonic::async_trait]
impl node_server::Node for Node {
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let target = request.target_path.clone();
        match self.publish(request).await {
            Ok(()) => Ok(Response::new(NodePublishVolumeResponse {})),
            Err(error) => {
                warn!(target, %error, "Failed to publish volume");
                Err(error.into())
            }
        }
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        match self.unpublish(&request).await {
            Ok(()) => {
                debug!(target = request.target_path, "Unpublished volume");
                Ok(Response::new(NodeUnpublishVolumeResponse {}))
            }
            Err(error) => {
                warn!(target = request.target_path, %error, "Failed to unpublish volume");
                Err(error.into())
            }
        }
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        // So that kubelet tells us the pod's fsGroup instead of changing owners itself, which it does not do for
        // volumes that are read-only.
        let mount_group = Rpc { r#type: rpc::Type::VolumeMountGroup.into() };
        let capabilities = vec![NodeServiceCapability { r#type: Some(Type::Rpc(mount_group)) }];
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        Ok(Response::new(NodeGetInfoResponse { node_id: self.name.clone(), max_volumes_per_node: 0 }))
    }
}
