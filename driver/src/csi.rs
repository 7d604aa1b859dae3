//! The services that kubelet calls on the CSI socket. Shells only: what they are asked is parsed in
//! `publish_request` and done in `volume::lifecycle`.

mod identity;
mod node;

use std::{io, path::PathBuf};

use proto::csi::v1::{identity_server::IdentityServer, node_server::NodeServer};
use tokio::{net::UnixStream, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::{
    socket::{BindError, Socket},
    volume::lifecycle::Volumes,
};
use identity::Identity;
use node::Node;

/// Connections that wait to be served. kubelet opens one for each call.
const BACKLOG: usize = 16;

/// Serves kubelet on `socket` until `stop`, and then ends when the calls under way have.
///
/// # Errors
/// When the socket fails.
pub(crate) async fn serve(
    mut socket: Socket,
    volumes: Volumes,
    node_name: String,
    pods: PathBuf,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    socket.announce()?;
    let (connections, incoming) = mpsc::channel::<io::Result<UnixStream>>(BACKLOG);
    let server = Server::builder()
        .add_service(IdentityServer::new(Identity))
        .add_service(NodeServer::new(Node::new(node_name, pods, volumes)))
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), stop.clone().cancelled_owned());
    let accept = async {
        loop {
            let stream = socket.accept().await?;
            if connections.send(Ok(stream)).await.is_err() {
                return Ok::<_, io::Error>(()); // the server has ended, and says why
            }
        }
    };
    tokio::pin!(server);
    tokio::select! {
        served = &mut server => return Ok(served?),
        accepted = accept => accepted?,
    }
    Ok(server.await?)
}

/// Why kubelet is not served any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The socket cannot be shown.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The socket is of no use any more.
    #[error("the CSI socket failed")]
    Accept(#[from] io::Error),
    /// The server gave up.
    #[error("the CSI server failed")]
    Serve(#[from] tonic::transport::Error),
}
