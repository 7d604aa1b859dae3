//! Watches the three things without which no pod gets a token, and says which is missing. Decides nothing: a call
//! does its own work whatever was seen here last.

use std::{fmt::Display, future::Future, time::Duration};

use process::health::Check;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Between looks, while all is well and while not.
const WHEN_WELL: Duration = Duration::from_secs(30);
const WHEN_UNWELL: Duration = Duration::from_secs(2);

/// Looks by `look` and sets `check`, until `stop`. The log gets the changes only.
pub(crate) async fn watch<F, E>(
    name: String,
    check: Check,
    stop: CancellationToken,
    look: impl Fn() -> F + Send,
) where
    F: Future<Output = Result<(), E>> + Send,
    E: Display,
{
    let mut last = None;
    while let Some(seen) = stop.run_until_cancelled(look()).await {
        let seen = seen.map_err(|error| error.to_string());
        if last.as_ref() != Some(&seen) {
            match &seen {
                Ok(()) => info!(need = name, "Can be reached"),
                Err(error) => warn!(need = name, error, "Cannot be used"),
            }
        }
        check.set(seen.clone());
        let wait = if seen.is_ok() { WHEN_WELL } else { WHEN_UNWELL };
        last = Some(seen);
        if stop.run_until_cancelled(sleep(wait)).await.is_none() {
            return;
        }
    }
}
