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

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    };

    use process::health::Health;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_down_at_the_start_is_seen_to_come_back_and_to_go_again() {
        let (health, up, stop) =
            (Health::default(), Arc::new(AtomicBool::new(false)), CancellationToken::new());
        let seen = up.clone();
        let watching =
            tokio::spawn(watch("kerberos".to_owned(), health.needs("kerberos"), stop.clone(), move || {
                let up = seen.load(SeqCst);
                async move { if up { Ok(()) } else { Err("cannot contact any KDC") } }
            }));
        sleep(Duration::from_secs(1)).await;
        assert_eq!(health.report(), (false, "[-] kerberos: cannot contact any KDC\n".to_owned()));
        up.store(true, SeqCst);
        sleep(WHEN_UNWELL).await;
        assert!(health.report().0);
        up.store(false, SeqCst);
        sleep(WHEN_WELL).await;
        assert!(!health.report().0);
        stop.cancel();
        assert!(watching.await.is_ok(), "does not end");
    }
}
