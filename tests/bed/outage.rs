//! Each part, away for a while and back again.

use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use tokio::time::sleep;

use crate::{
    Bed, kubernetes,
    namenode::Cluster,
    replicas::{ABSENCES, Replicas},
};

/// Who began to read while the NameNode was away says so when he gives up: so much later at most.
const GIVEN_UP: Duration = Duration::from_secs(15);

/// What can be away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// One of Kubernetes' programs.
    Kubernetes(kubernetes::Part),
    /// The node plugin.
    Driver,
    /// All replicas of the controller.
    Controller,
    /// One replica of the controller where there are two: now the one, now the other.
    OneController,
    /// The KDC.
    Kdc,
    /// A NameNode.
    NameNode(Cluster),
}

/// Everything that the product needs, and the product. First what nobody should have to wait for: kubelet asks again
/// for whoever has waited for the others only after a while.
pub const ALL: [Outage; 10] = [
    Outage::OneController,
    Outage::Kubernetes(kubernetes::Part::Kubelet),
    Outage::Kubernetes(kubernetes::Part::ApiServer),
    Outage::Kubernetes(kubernetes::Part::Etcd),
    Outage::Kubernetes(kubernetes::Part::ControllerManager),
    Outage::Kubernetes(kubernetes::Part::Scheduler),
    Outage::Driver,
    Outage::Controller,
    Outage::Kdc,
    Outage::NameNode(Cluster::Main),
];

impl Outage {
    /// Takes it away for `length`, and waits until it is back. Tells from when to when nobody could have read HDFS.
    ///
    /// # Errors
    /// When it does not go or come.
    pub async fn happen(self, bed: &Bed, length: Duration) -> Result<Option<(Timestamp, Timestamp)>> {
        let begin = Timestamp::now();
        match self {
            Self::Kubernetes(part) => {
                bed.kubernetes().stop(part).await?;
                sleep(length).await;
                bed.kubernetes().start(part).await?;
            }
            Self::Driver => {
                bed.product().await?.stop_driver().await?;
                sleep(length).await;
                bed.product().await?.start_driver().await?;
            }
            Self::Controller => {
                bed.product().await?.stop_controller().await?;
                sleep(length).await;
                bed.product().await?.start_controller().await?;
            }
            Self::OneController => {
                let replicas = Replicas::two(bed).await?;
                let away = async {
                    for absence in ABSENCES {
                        let length = async {
                            sleep(length).await;
                            Ok(())
                        };
                        replicas.without(absence, length).await?;
                    }
                    Ok(())
                };
                let outcome = away.await;
                replicas.one().await?;
                return outcome.map(|()| None);
            }
            Self::Kdc => {
                bed.kdc().stop().await?;
                sleep(length).await;
                bed.kdc().start().await?;
            }
            Self::NameNode(cluster) => {
                let name_node = bed.name_node(cluster).await?;
                name_node.stop().await?;
                sleep(length).await;
                name_node.start().await?;
                return Ok(Some((begin, Timestamp::now() + GIVEN_UP)));
            }
        }
        Ok(None)
    }
}
