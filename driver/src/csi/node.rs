//! CSI Node: publish and unpublish, which is all that an inline volume needs, and how a volume is. That is told twice: in
//! the statistics, where CSI had it up to 1.12, and as health, as it is since.

use std::path::PathBuf;

use proto::{
    VolumeId,
    csi::v1::{
        NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse,
        NodeGetVolumeHealthRequest, NodeGetVolumeHealthResponse, NodeGetVolumeStatsRequest,
        NodeGetVolumeStatsResponse, NodePublishVolumeRequest, NodePublishVolumeResponse,
        NodeServiceCapability, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse, VolumeCondition,
        VolumeHealth, VolumeUsage, node_server,
        node_service_capability::{Rpc, Type, rpc},
        volume_health::{Entry, ErrorType},
        volume_usage::Unit,
    },
};
use tonic::{Request, Response, Status};
use tracing::{debug, warn};

use crate::{
    mount::Amount,
    publish_request::{InvalidRequest, PublishRequest, StatsRequest, UnpublishRequest},
    volume::{
        condition::{Severity, Stats, Trouble},
        error::VolumeError,
        lifecycle::{Volumes, blocking},
    },
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

    async fn stats(&self, request: NodeGetVolumeStatsRequest) -> Result<Stats, VolumeError> {
        let Some(StatsRequest { id, target }) = StatsRequest::parse(&request, &self.pods)? else {
            return Err(VolumeError::NotFound { id: request.volume_id });
        };
        let volumes = self.volumes.clone();
        blocking(move || volumes.stats(&id, &target)).await
    }

    async fn health(&self, id: String) -> Result<Option<Trouble>, VolumeError> {
        if id.is_empty() {
            return Err(InvalidRequest::Missing { field: "volume_id" }.into());
        }
        let Ok(known) = id.parse::<VolumeId>() else { return Err(VolumeError::NotFound { id }) };
        let volumes = self.volumes.clone();
        blocking(move || volumes.health(&known)).await
    }
}

/// What we can besides publishing. kubelet tells us a pod's fsGroup instead of changing owners itself, which it does not
/// do for volumes that are read-only.
const CAPABILITIES: [rpc::Type; 4] = [
    rpc::Type::VolumeMountGroup,
    rpc::Type::GetVolumeStats,
    rpc::Type::VolumeCondition,
    rpc::Type::GetVolumeHealth,
];

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

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let Stats { usage, trouble } = self.stats(request.into_inner()).await?;
        let condition = VolumeCondition {
            abnormal: trouble.is_some(),
            message: trouble.map_or_else(|| "the pod has its tokens".to_owned(), |trouble| trouble.message),
        };
        Ok(Response::new(NodeGetVolumeStatsResponse {
            usage: vec![volume_usage(Unit::Bytes, usage.bytes), volume_usage(Unit::Inodes, usage.inodes)],
            volume_condition: Some(condition),
        }))
    }

    async fn node_get_volume_health(
        &self,
        request: Request<NodeGetVolumeHealthRequest>,
    ) -> Result<Response<NodeGetVolumeHealthResponse>, Status> {
        let volume_id = request.into_inner().volume_id;
        let trouble = self.health(volume_id.clone()).await?;
        let health_statuses = trouble.into_iter().map(entry).collect();
        let volume_health = Some(VolumeHealth { volume_id, health_statuses });
        Ok(Response::new(NodeGetVolumeHealthResponse { volume_health }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let capability = |r#type: rpc::Type| NodeServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: r#type.into() })),
        };
        let capabilities = CAPABILITIES.into_iter().map(capability).collect();
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        Ok(Response::new(NodeGetInfoResponse { node_id: self.name.clone(), max_volumes_per_node: 0 }))
    }
}

fn volume_usage(unit: Unit, Amount { total, available }: Amount) -> VolumeUsage {
    let number = |amount: u64| i64::try_from(amount).unwrap_or(i64::MAX);
    VolumeUsage {
        available: number(available),
        total: number(total),
        used: number(total.saturating_sub(available)),
        unit: unit.into(),
    }
}

fn entry(Trouble { severity, reason, message }: Trouble) -> Entry {
    let status = match severity {
        Severity::Degraded => ErrorType::Degraded,
        Severity::Unusable => ErrorType::Inaccessible,
    };
    Entry { status: status.into(), reason: reason.to_owned(), message }
}
