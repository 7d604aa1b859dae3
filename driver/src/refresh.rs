//! Keeps mounted tokens valid: renews each when it is due, replaces it before it ends for good, and has those of
//! released volumes cancelled until each of them is.

pub(crate) mod queue;
pub(crate) mod release;
mod renewal;
mod rotation;

use tokio_util::sync::CancellationToken;

use crate::volume::lifecycle::Volumes;

/// Calls that may be under way at once, so that the controller is not flooded after it was down.
pub(crate) const AT_ONCE: usize = 4;

/// Renews and replaces what is due until `stop`.
pub(crate) async fn run(volumes: Volumes, stop: CancellationToken) {
    tokio::join!(renewal::run(volumes.clone(), stop.clone()), rotation::run(volumes, stop));
}
