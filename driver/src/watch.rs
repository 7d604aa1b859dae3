//! The controller's stream of what a node plugin has to hear without asking: the addresses that the API server has of
//! this node's pods, tokens that are taken away, and tokens that are to be replaced now. Open as long as there is a
//! volume, and opened again whenever it ends or breaks; whatever was missed is told anew with each stream.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use proto::{
    VolumeId,
    token::v1::{PodAddresses, Revoke, Rotate, WatchEvent, watch_event::Event},
};
use tokio::time::{Instant, error::Elapsed, sleep, timeout_at};
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

/// How long we keep a stream, in seconds: less than any controller does, so that all who hear that theirs has ended
/// know that the controller is going, and that all others hear it too.
const LIFE_SECONDS: std::ops::Range<u64> = 300..450;

/// All who hear that at once come back within this time: some hundred a second, where there are thousands.
const SPREAD: Duration = Duration::from_secs(10);

/// Longest wait for a controller that cannot be reached: what is revoked meanwhile is not heard.
const LONGEST: Duration = Duration::from_secs(30);

/// A stream that lasted so long was none that failed.
const LASTED: Duration = Duration::from_secs(60);

/// Why a stream is to be opened again.
#[derive(Debug)]
enum Ended {
    /// We kept it for as long as we wanted.
    InTime,
    /// The controller ended it, or the way to it broke.
    Broken(Option<CallError>),
    NotOpened(CallError),
}

impl Ended {
    /// How long to wait before it is opened again, after so many failures in a row; `chance` is between 0 and 1.
    fn wait(&self, failures: u32, chance: f64) -> Duration {
        match self {
            Self::InTime => Duration::ZERO,
            Self::Broken(_) if failures == 0 => SPREAD.mul_f64(chance.clamp(0.0, 1.0)),
            Self::NotOpened(CallError::Unreachable { .. } | CallError::TooLate { .. }) | Self::Broken(_) => {
                // From 8 s on, because all others wait too; and the longest is shortened as well, by up to half.
                backoff(failures.max(3), 0.0).min(LONGEST).mul_f64(1.0 - 0.5 * chance.clamp(0.0, 1.0))
            }
            Self::NotOpened(_) => backoff(failures, chance),
        }
    }
}

/// Follows the stream until `stop`.
pub(crate) async fn run(volumes: Volumes, stop: CancellationToken) {
    let mut failures = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = volumes.pods.until(true) => {}
        }
        let begun = Instant::now();
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            () = volumes.pods.until(false) => continue,
            ended = follow(&volumes) => ended,
        };
        if begun.elapsed() >= LASTED {
            failures = 0;
        }
        let retry_in = ended.wait(failures, fastrand::f64());
        match &ended {
            Ended::InTime => {}
            Ended::Broken(None) => debug!(?retry_in, "The controller ended its stream"),
            Ended::Broken(Some(error)) => warn!(%error, ?retry_in, "The controller's stream broke"),
            Ended::NotOpened(error) => warn!(%error, ?retry_in, "Failed to open the controller's stream"),
        }
        failures = if matches!(ended, Ended::InTime) { 0 } else { failures.saturating_add(1) };
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(retry_in) => {}
        }
    }
}

async fn follow(volumes: &Volumes) -> Ended {
    let held = blocking({
        let volumes = volumes.clone();
        move || volumes.held()
    });
    let mut events = match volumes.controller.watch(held.await).await {
        Ok(events) => events,
        Err(error) => return Ended::NotOpened(error),
    };
    debug!("The controller's stream is open");
    volumes.pods.forget_others();
    let end = Instant::now() + Duration::from_secs(fastrand::u64(LIFE_SECONDS));
    loop {
        match timeout_at(end, events.message()).await {
            Ok(Ok(Some(event))) => take(volumes, event),
            Ok(Ok(None)) => return Ended::Broken(None),
            Ok(Err(status)) => return Ended::Broken(Some(volumes.controller.broken(status))),
            Err(Elapsed { .. }) => return Ended::InTime,
        }
    }
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
