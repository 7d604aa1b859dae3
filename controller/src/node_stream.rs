//! Tells a node plugin what it has to hear without asking: its pods' addresses, tokens that were revoked, and tokens
//! that are to be replaced now; first what is known, then each change. Proves nothing: the node plugin takes addresses
//! as the moment to ask for a check, and only loses by the rest.

mod tokens;

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
    vec,
};

use futures_util::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use proto::token::v1 as wire;
use tokio::{
    sync::mpsc::Receiver,
    time::{Sleep, sleep},
};
use tonic::Status;
use tracing::{info, warn};

use self::tokens::{Age, RevokedToken, Told, Unknown, Word};
use crate::{
    authorization::Refusal,
    events::{Events, Severity},
    failure::Failure,
    ledger::{Change, Entry, Ledger, LedgerError},
    metrics::{Counted, Metrics},
    pod_watch::{PodAddresses, PodWatch},
    request::Held,
};

/// How long a stream lives, in seconds: the caller's token is looked at again with each new one. Not all end at
/// once.
const LIFE_SECONDS: std::ops::Range<u64> = 480..720;

/// Tokens that are looked for live at once, for one node.
const LOOKS_AT_ONCE: usize = 2;

/// What comes of looking for tokens live.
type Looks = BoxStream<'static, Result<Option<Word>, LedgerError>>;

/// What there is to be told, and who else hears of it.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) pods: PodWatch,
    pub(crate) ledger: Ledger,
    pub(crate) events: Events,
    pub(crate) metrics: Metrics,
}

/// The answer to `Watch`. Ends without an error when its time is up, the caller is too slow, the same node opens
/// another, or the controller stops.
pub(crate) struct NodeStream {
    sources: Sources,
    node: Box<str>,
    /// What was known when it was opened.
    first: vec::IntoIter<Word>,
    addresses: vec::IntoIter<PodAddresses>,
    /// Tokens that the node holds and the ledger does not have, as they are looked for live.
    looked_for: Option<Looks>,
    changes_of_tokens: Receiver<Change>,
    changes_of_addresses: Receiver<PodAddresses>,
    told: Told,
    end: Pin<Box<Sleep>>,
    _counted: Counted,
}

impl NodeStream {
    /// The stream of `node`, which its own reviewed token names, and whose volumes hold `held`.
    pub(crate) fn open(sources: Sources, node: &str, held: &[Held]) -> Result<Self, Failure> {
        // Whoever comes so early would be told that all its tokens are gone.
        if !sources.ledger.is_complete() {
            return Err(LedgerError::Unreadable("it has not been listed yet".to_owned()).into());
        }
        let addresses = sources.pods.subscribe(node).ok_or(Failure::TooManyWatches)?;
        // Before looking, so that nothing changes unnoticed in between.
        let changes_of_tokens = sources.ledger.subscribe_to(node).ok_or(Failure::TooManyWatches)?;
        let known = sources.ledger.of_node(node);
        let (told, first) = Told::new(&known, held);
        let unknown = tokens::unknown(held, |identifier| sources.ledger.by_identifier(identifier));
        let looked_for = (!unknown.is_empty()).then(|| looked_for(sources.ledger.clone(), unknown));
        let life = Duration::from_secs(fastrand::u64(LIFE_SECONDS));
        let counted = Counted::new(&sources.metrics.open_watches);
        Ok(Self {
            sources,
            node: node.into(),
            first: first.into_iter(),
            addresses: addresses.snapshot.into_iter(),
            looked_for,
            changes_of_tokens,
            changes_of_addresses: addresses.changes,
            told,
            end: Box::pin(sleep(life)),
            _counted: counted,
        })
    }

    /// The next thing to tell; None when there will be none.
    fn poll_word(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Word, LedgerError>>> {
        if let Some(word) = self.first.next() {
            return Poll::Ready(Some(Ok(word)));
        }
        while let Poll::Ready(change) = self.changes_of_tokens.poll_recv(context) {
            let Some(change) = change else { return Poll::Ready(None) };
            if let Some(word) = self.told.change(&change) {
                return Poll::Ready(Some(Ok(word)));
            }
        }
        while let Some(looked_for) = &mut self.looked_for {
            match looked_for.poll_next_unpin(context) {
                Poll::Ready(Some(Ok(None))) => {}
                Poll::Ready(Some(Ok(Some(word)))) => return Poll::Ready(Some(Ok(word))),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => self.looked_for = None,
                Poll::Pending => break,
            }
        }
        if let Some(pod) = self.addresses.next() {
            return Poll::Ready(Some(Ok(Word::Addresses(pod))));
        }
        let pod = ready!(self.changes_of_addresses.poll_recv(context));
        Poll::Ready(pod.map(|pod| Ok(Word::Addresses(pod))))
    }
}

impl Stream for NodeStream {
    type Item = Result<wire::WatchEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.end.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        loop {
            return Poll::Ready(match ready!(self.poll_word(context)) {
                Some(Ok(word)) if self.sources.needless(&word) => continue,
                Some(Ok(word)) => {
                    self.sources.note(&word, &self.node);
                    Some(Ok(word.event()))
                }
                Some(Err(error)) => {
                    warn!(%error, "Failed to look for tokens that a node holds");
                    Some(Err(Failure::from(error).into()))
                }
                None => None,
            });
        }
    }
}

impl Sources {
    /// Whether nobody needs to hear it. The token of a pod that has ended is on its way to be cancelled, by its node plugin
    /// or the reaper; and the volume may keep the token that it would lose: one that is shared it may have by two objects,
    /// of which the first was of a call that came to nothing.
    fn needless(&self, word: &Word) -> bool {
        let Word::Revoke(revoked) = word else { return false };
        let entries = self.ledger.by_identifier(&revoked.identifier);
        let of_volume =
            |entry: &Entry| *entry.pod_uid == *revoked.pod.uid && entry.volume_id() == revoked.volume_id;
        let ended = |entry: &Entry| self.pods.is_complete() && !self.pods.uses_us(&entry.pod_uid);
        entries.iter().any(|entry| of_volume(entry) && (!entry.deleting || ended(entry)))
    }

    /// Tells the others of a word to `node`.
    fn note(&self, word: &Word, node: &str) {
        let Word::Revoke(revoked) = word else { return };
        let (refusal, volume_id) = (Refusal::TokenRevoked, &revoked.volume_id);
        info!(reason = refusal.reason(), volume.id = %volume_id, "Told a node that a token was revoked");
        // Nobody needs to hear of a pod that is gone, and no node names a pod that is none of its own.
        if self.pods.uses_us_on(&revoked.pod, node) && !self.has_another(revoked) {
            self.metrics.revoked(refusal.reason());
            let message = format!("the pod lost its tokens: {refusal}");
            self.events.publish(&revoked.pod, Severity::Warning, refusal.reason(), &message);
        }
    }
}

impl Sources {
    /// Whether the volume has a later token: then this is one that it lost on the way, or that was replaced. The ledger
    /// may have forgotten this one by now.
    fn has_another(&self, revoked: &RevokedToken) -> bool {
        let entries = self.ledger.of_pod(&revoked.pod.uid);
        let of_volume = entries.iter().filter(|entry| entry.volume_id() == revoked.volume_id);
        let living = of_volume.filter(|entry| !entry.deleting);
        revoked.age.is_some_and(|age| living.filter_map(|entry| Age::of(entry)).any(|other| other > age))
    }
}

/// Looks live for tokens that are held and that the ledger does not have. A failure ends the stream, and the node
/// plugin asks again.
fn looked_for(ledger: Ledger, unknown: Vec<Unknown>) -> Looks {
    let look = move |unknown: Unknown| {
        let ledger = ledger.clone();
        async move {
            let found = ledger.confirm_live(&unknown.volume.pod.namespace, &unknown.identifier).await?;
            Ok(unknown.verdict(&found))
        }
    };
    stream::iter(unknown).map(look).buffer_unordered(LOOKS_AT_ONCE).boxed()
}

#[cfg(test)]
mod tests;
