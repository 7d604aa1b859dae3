//! Registration with kubelet, as the usual sidecar does it: kubelet finds our socket among its plugins', asks who we
//! are and where the CSI socket is, and says whether it took us. Two unary gRPC calls, answered by our own HTTP/2
//! responder (see [`http2`] for why). The socket stands only while the CSI socket is served.

mod frame;
mod http2;
#[cfg(test)]
mod tests;

use std::{
    io::{
        self,
        ErrorKind::{BrokenPipe, ConnectionReset},
    },
    path::Path,
    time::Duration,
};

use process::health::Check;
use prost::Message;
use proto::{
    DRIVER_NAME,
    registration::v1::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::socket::{BindError, Socket};
use http2::{Call, Connection, Failure};

const GET_INFO: &str = "/pluginregistration.Registration/GetInfo";
const NOTIFY: &str = "/pluginregistration.Registration/NotifyRegistrationStatus";

/// The only version of CSI there is, as kubelet wants it spelled.
const CSI_VERSION: &str = "1.0.0";

/// Connections that may be open at once. kubelet opens one at a time.
const MAX_CONNECTIONS: usize = 16;

/// A connection on which nothing moves for so long is closed.
const IDLE: Duration = Duration::from_secs(30);

/// The registration socket, bound and not yet visible to kubelet.
#[derive(Debug)]
pub(crate) struct Registration {
    socket: Socket,
    info: PluginInfo,
    registered: Check,
}

/// What kubelet said about our registration.
type Verdict = Result<(), String>;

impl Registration {
    /// Binds the registration socket in `dir`. `csi_socket` is where kubelet, on the host, finds the CSI socket.
    ///
    /// # Errors
    /// When the socket cannot be bound.
    pub(crate) fn bind(dir: &Path, csi_socket: &Path, registered: Check) -> Result<Self, BindError> {
        let socket = Socket::bind(&dir.join(format!("{DRIVER_NAME}-reg.sock")))?;
        let info = PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: DRIVER_NAME.to_owned(),
            endpoint: csi_socket.display().to_string(),
            supported_versions: vec![CSI_VERSION.to_owned()],
        };
        registered.set(Err("kubelet has not registered the driver yet".to_owned()));
        Ok(Self { socket, info, registered })
    }

    /// Shows the socket to kubelet and answers until `stop`; then the socket is gone, which deregisters the driver.
    ///
    /// # Errors
    /// When kubelet refuses the driver, or the socket fails.
    pub(crate) async fn serve(mut self, stop: CancellationToken) -> Result<(), RegistrationError> {
        self.socket.announce()?;
        let (verdicts, mut verdict) = mpsc::channel(MAX_CONNECTIONS);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                accepted = self.socket.accept(), if connections.len() < MAX_CONNECTIONS => {
                    connections.spawn(serve(accepted?, self.info.clone(), verdicts.clone()));
                }
                Some(verdict) = verdict.recv() => match verdict {
                    Ok(()) => {
                        info!(endpoint = self.info.endpoint, "Registered with kubelet");
                        self.registered.set(Ok(()));
                    }
                    Err(reason) => {
                        error!(reason, "Refused by kubelet");
                        return Err(RegistrationError::Refused(reason));
                    }
                },
                Some(ended) = connections.join_next() => match ended {
                    // kubelet hangs up as soon as it has its answer.
                    Ok(Err(error)) if matches!(error.kind(), BrokenPipe | ConnectionReset) => {
                        debug!(%error, "Registration connection ended");
                    }
                    Ok(Err(error)) => warn!(%error, "Registration connection failed"),
                    Ok(Ok(())) | Err(_) => {}
                },
            }
        }
    }
}

/// Why registration ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistrationError {
    /// kubelet will not use us.
    #[error("kubelet refused the driver: {0}")]
    Refused(String),
    /// The socket cannot be shown.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The socket is of no use any more.
    #[error("the registration socket failed")]
    Accept(#[from] io::Error),
}

/// Serves one connection to its end.
async fn serve(mut stream: UnixStream, info: PluginInfo, verdicts: mpsc::Sender<Verdict>) -> io::Result<()> {
    let mut connection = Connection::new();
    let mut buffer = [0; 4096];
    loop {
        let output = connection.take_output();
        timeout(IDLE, stream.write_all(&output)).await??;
        let read = match timeout(IDLE, stream.read(&mut buffer)).await {
            Ok(read) => read?,
            Err(_) => {
                connection.go_away();
                return stream.write_all(&connection.take_output()).await;
            }
        };
        let received = buffer.get(..read).unwrap_or_default();
        if received.is_empty() {
            return Ok(());
        }
        match connection.receive(received) {
            Ok(calls) => {
                for Call { stream: id, path, message } in calls {
                    debug!(path, "Registration call");
                    let (reply, verdict) = answer(&info, &path, &message);
                    connection.reply(id, reply);
                    if let Some(verdict) = verdict {
                        // A refusal ends the process: kubelet's call is answered first.
                        timeout(IDLE, stream.write_all(&connection.take_output())).await??;
                        let _ = verdicts.send(verdict).await; // the receiver outlives every connection
                    }
                }
            }
            Err(error) => {
                stream.write_all(&connection.take_output()).await?;
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }
}

/// The answer to a call, and what it told us.
fn answer(info: &PluginInfo, path: &str, message: &[u8]) -> (Result<Vec<u8>, Failure>, Option<Verdict>) {
    match path {
        GET_INFO => match InfoRequest::decode(message) {
            Ok(InfoRequest {}) => (Ok(info.encode_to_vec()), None),
            Err(_) => (Err(Failure::INVALID_MESSAGE), None),
        },
        NOTIFY => match RegistrationStatus::decode(message) {
            Ok(RegistrationStatus { plugin_registered, error }) => {
                let verdict = if plugin_registered { Ok(()) } else { Err(error) };
                (Ok(RegistrationStatusResponse {}.encode_to_vec()), Some(verdict))
            }
            Err(_) => (Err(Failure::INVALID_MESSAGE), None),
        },
        _ => (Err(Failure::UNKNOWN_METHOD), None),
    }
}
