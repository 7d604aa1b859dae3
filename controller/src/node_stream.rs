//! Tells a node plugin of its pods' addresses: first all that are known, then each change. Decides nothing and proves
//! nothing; the node plugin takes it as the moment to ask for a check.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
    vec,
};

use futures_util::Stream;
use prometheus_client::metrics::gauge::Gauge;
use proto::token::v1 as wire;
use tokio::{
    sync::mpsc::Receiver,
    time::{Sleep, sleep},
};
use tonic::Status;

use crate::{
    metrics::Counted,
    pod_watch::{PodAddresses, PodWatch},
};

/// How long a stream lives, in seconds: the caller's token is looked at again with each new one. Not all end at
/// once.
const LIFE_SECONDS: std::ops::Range<u64> = 480..720;

/// The answer to `Watch`. Ends without an error when its time is up, the caller is too slow, the same node opens
/// another, or the controller stops.
pub(crate) struct NodeStream {
    snapshot: vec::IntoIter<PodAddresses>,
    changes: Receiver<PodAddresses>,
    end: Pin<Box<Sleep>>,
    _counted: Option<Counted>,
}

impl NodeStream {
    /// The stream of `node`, which its own reviewed token names; none while there are too many.
    pub(crate) fn open(pods: &PodWatch, node: &str) -> Option<Self> {
        let subscription = pods.subscribe(node)?;
        let life = Duration::from_secs(fastrand::u64(LIFE_SECONDS));
        Some(Self {
            snapshot: subscription.snapshot.into_iter(),
            changes: subscription.changes,
            end: Box::pin(sleep(life)),
            _counted: None,
        })
    }

    /// Counts in `gauge` for as long as it is open.
    pub(crate) fn counted(self, gauge: &Gauge) -> Self {
        Self { _counted: Some(Counted::new(gauge)), ..self }
    }
}

impl Stream for NodeStream {
    type Item = Result<wire::WatchEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.end.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        let pod = match self.snapshot.next() {
            Some(pod) => Some(pod),
            None => ready!(self.changes.poll_recv(context)),
        };
        Poll::Ready(pod.map(|pod| Ok(event(&pod))))
    }
}

fn event(pod: &PodAddresses) -> wire::WatchEvent {
    let pod = wire::PodAddresses {
        pod_uid: pod.uid.to_string(),
        addresses: pod.addresses.iter().map(ToString::to_string).collect(),
    };
    wire::WatchEvent { event: Some(wire::watch_event::Event::PodAddresses(pod)) }
}

#[cfg(test)]
mod tests;
