//! The controller's stream of what a node plugin has to hear without asking: the addresses that the API server has of
//! this node's pods, tokens that are taken away, and tokens that are to be replaced now. Open as long as there is a
//! volume, and opened again whenever it ends or breaks; whatever was missed is told anew with each stream.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use proto::{
    VolumeId,
    token::v1::{PodAddresses, Revoke, Rotate, WatchEvent, watch_event::Event},
};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    controller_client::CallError,
    refresh::queue::backoff,
    volume::{
        Revocation, Stop,
        lifecycle::{Volumes, blocking},
    },
};

/// Streams that end come back within this time, not all at once.
const SPREAD: Duration = Duration::from_secs(1);

/// A stream that lasted so long was none that failed.
const LASTED: Duration = Duration::from_secs(60);

/// Follows the stream until `stop`.
pub(crate) async fn run(volumes: Volumes, stop: CancellationToken) {
    let mut failures = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = volumes.pods.until(true) => {}
        }
        let opened = Instant::now();
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            () = volumes.pods.until(false) => continue,
            ended = follow(&volumes) => ended,
        };
        if opened.elapsed() >= LASTED {
            failures = 0;
        }
        let wait = match ended {
            Ok(()) => SPREAD.mul_f64(fastrand::f64()),
            Err(error) => {
                let retry_in = backoff(failures, fastrand::f64());
                failures = failures.saturating_add(1);
                warn!(%error, ?retry_in, "The controller's stream broke");
                retry_in
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(wait) => {}
        }
    }
}

async fn follow(volumes: &Volumes) -> Result<(), CallError> {
    let held = blocking({
        let volumes = volumes.clone();
        move || volumes.held()
    });
    let mut events = volumes.controller.watch(held.await).await?;
    debug!("The controller's stream is open");
    volumes.pods.forget_others();
    while let Some(event) = events.message().await.map_err(|status| volumes.controller.broken(status))? {
        take(volumes, event);
    }
    Ok(())
}

fn take(volumes: &Volumes, event: WatchEvent) {
    match event.event {
        Some(Event::PodAddresses(PodAddresses { pod_uid, addresses })) => {
            let parsed: Result<BTreeSet<IpAddr>, _> = addresses.iter().map(|text| text.parse()).collect();
            let Ok(parsed) = parsed else {
                warn!(pod.uid = pod_uid, ?addresses, "The controller told addresses that are none");
                return;
            };
            for id in volumes.pods.tell(&pod_uid, parsed) {
                volumes.looks.insert(id, Instant::now());
            }
        }
        Some(Event::Revoke(Revoke { volume_id, identifiers, reason, message })) => {
            let Ok(id) = volume_id.parse::<VolumeId>() else {
                warn!(volume_id, "The controller revoked tokens of what is no volume");
                return;
            };
            let revocation = Revocation { identifiers, stop: Stop { reason, message } };
            volumes.note_revocation(&id, &revocation);
            volumes.in_background(id, |volumes, id| volumes.revoke(id, revocation));
        }
        Some(Event::Rotate(Rotate { volume_id })) => {
            let Ok(id) = volume_id.parse::<VolumeId>() else {
                warn!(volume_id, "The controller wants the tokens of what is no volume replaced");
                return;
            };
            volumes.in_background(id, Volumes::rotate_now);
        }
        None => debug!("The controller told something that this version does not know"),
    }
}

#[cfg(test)]
mod tests;
