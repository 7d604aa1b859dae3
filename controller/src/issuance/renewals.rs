//! Renewals of tokens that many may hold. Whoever asks while one is under way gets its outcome, and whoever asks for a
//! token that was renewed lately gets the date that the ledger has.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared, ready},
};
use hadoop::Token;
use process::fault;
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::{DEADLINE, Issuer};
use crate::{
    audit::Record,
    cluster::CallError,
    failure::Failure,
    ledger::{Entry, KnownToken},
    request::VolumeReference,
};

/// A token that has more than so many tenths of the renew interval left was renewed lately.
const FRESH_TENTHS: u64 = 6;

/// The outcome of a renewal is remembered for so long, for those who ask before the ledger shows it.
const REMEMBERED: Duration = Duration::from_secs(5);

/// Tokens among which those are looked for that can be forgotten.
const MANY: usize = 1024;

type Flight = Shared<BoxFuture<'static, Result<u64, NotRenewed>>>;

/// The renewals under way and those of a moment ago, by the token's identifier.
#[derive(Default)]
pub(super) struct Renewals(Mutex<State>);

#[derive(Default)]
struct State {
    renewals: HashMap<Box<[u8]>, Renewal>,
    /// How many there were when the forgotten ones were removed last.
    tidied: usize,
}

enum Renewal {
    UnderWay(WeakShared<BoxFuture<'static, Result<u64, NotRenewed>>>),
    Done { date: u64, at: Instant },
}

/// Why a token was not renewed, for everybody who asked.
#[derive(Clone, Debug)]
enum NotRenewed {
    Refused(CallError),
    Busy,
    Late,
    Stopping,
}

impl Renewal {
    fn is_forgotten(&self) -> bool {
        match self {
            Self::UnderWay(flight) => flight.upgrade().is_none(),
            Self::Done { at, .. } => at.elapsed() >= REMEMBERED,
        }
    }
}

impl Renewals {
    /// The renewal of the token with `identifier` that is under way or was made a moment ago, or else a new one.
    fn join(&self, identifier: &[u8], begin: impl FnOnce() -> Flight) -> Flight {
        let mut state = self.state();
        match state.renewals.get(identifier) {
            Some(Renewal::UnderWay(flight)) => {
                if let Some(flight) = flight.upgrade() {
                    return flight;
                }
            }
            Some(Renewal::Done { date, at }) if at.elapsed() < REMEMBERED => {
                return ready(Ok(*date)).boxed().shared();
            }
            _ => {}
        }
        if state.renewals.len() > MANY.max(state.tidied * 2) {
            state.renewals.retain(|_, renewal| !renewal.is_forgotten());
            state.tidied = state.renewals.len();
        }
        let flight = begin();
        if let Some(weak) = flight.downgrade() {
            state.renewals.insert(identifier.into(), Renewal::UnderWay(weak));
        }
        flight
    }

    /// What came of `flight`.
    fn land(&self, identifier: &[u8], flight: &Flight, renewed: Option<u64>) {
        let mut state = self.state();
        let Some(renewal) = state.renewals.get_mut(identifier) else { return };
        let Renewal::UnderWay(latest) = &renewal else { return };
        if latest.upgrade().is_some_and(|latest| !latest.ptr_eq(flight)) {
            return; // a later one has begun
        }
        match renewed {
            Some(date) => *renewal = Renewal::Done { date, at: Instant::now() },
            None => drop(state.renewals.remove(identifier)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Issuer {
    /// Moves the expiry of `token`, which `volume` holds, and returns the new date. Safe to abandon and to repeat.
    pub(crate) async fn renew(
        self: &Arc<Self>,
        token: &Token,
        volume: &VolumeReference,
        record: &Record,
    ) -> Result<u64, Failure> {
        let entries = self.ledger.by_identifier_in(&volume.pod.namespace, &token.identifier);
        let own = entries.iter().find(|entry| entry.is_of(volume));
        let interval = self.renew_interval().await.or_else(|| shown_by(&entries));
        if let (Some(interval), Some(now)) = (interval, self.clock.now())
            && let Some(date) = fresh(&entries, interval, now)
        {
            self.note(own, Ok(date));
            return Ok(date);
        }
        let begin = || {
            let (issuer, token, context) = (Arc::clone(self), token.clone(), record.caller_context());
            async move { issuer.asked_to_renew(&token, interval, &context).await }.boxed().shared()
        };
        let flight = self.renewals.join(&token.identifier, begin);
        let renewed = flight.clone().await;
        self.renewals.land(&token.identifier, &flight, renewed.as_ref().ok().copied());
        let renewed = renewed.map_err(|why| self.not_renewed(why));
        self.note(own, renewed.as_ref().copied());
        renewed
    }

    async fn asked_to_renew(
        &self,
        token: &Token,
        interval: Option<u64>,
        context: &str,
    ) -> Result<u64, NotRenewed> {
        let place = self.gate.place().ok_or(NotRenewed::Busy)?;
        let renewal = async {
            let _turn = place.turn().await.ok_or(NotRenewed::Stopping)?;
            let asked = Instant::now();
            fault::point("hadoop.renew:before");
            let renewed = self.timed("renew", self.authority.renew(token, context)).await;
            fault::point("hadoop.renew:after");
            let date = renewed.map_err(NotRenewed::Refused)?;
            self.metrics.renewed(&self.cluster);
            let ends = token.decode_identifier().map_or(0, |identifier| identifier.max_date);
            // At the end of its life it gets less than the interval.
            if let Some(interval) = interval
                && date < ends
            {
                self.clock.heard(date.saturating_sub(interval), asked);
            }
            Ok(date)
        };
        timeout(DEADLINE, renewal).await.unwrap_or(Err(NotRenewed::Late))
    }

    fn not_renewed(&self, why: NotRenewed) -> Failure {
        let cluster = self.cluster.clone();
        match why {
            NotRenewed::Refused(error) => self.failure("renew a token", error),
            NotRenewed::Busy => Failure::Busy { cluster },
            NotRenewed::Late => Failure::Late { cluster },
            NotRenewed::Stopping => Failure::Stopping,
        }
    }

    /// Has the ledger show what came of a renewal, without anybody waiting for it: nothing depends on that.
    fn note(&self, own: Option<&Arc<Entry>>, renewed: Result<u64, &Failure>) {
        let Some(own) = own.cloned() else { return };
        let failed = renewed.err().map(|failure| format!("{}: {failure}", failure.reason()));
        let nothing_new = match (renewed, &failed) {
            (Ok(date), _) => own.renew_date == Some(date) && own.last_error.is_none(),
            (Err(_), failed) => own.last_error.as_deref() == failed.as_deref(),
        };
        if nothing_new {
            return;
        }
        let ledger = self.ledger.clone();
        let renewed = renewed.ok();
        self.tasks.spawn(async move {
            let noted = match renewed {
                Some(date) => ledger.renewed(&own, date).await,
                None => ledger.failed(&own, None, failed.as_deref()).await,
            };
            if let Err(error) = noted {
                warn!(%error, token.object = %own, "The ledger does not show what came of a renewal");
            }
        });
    }
}

/// The renew interval, when one of a token's entries shows it: from its issue to its first renew date.
fn shown_by(entries: &[Arc<Entry>]) -> Option<u64> {
    let shown = |entry: &Arc<Entry>| {
        let KnownToken { issue_date, max_date, .. } = entry.token.as_ref()?;
        let first = entry.renew_date.filter(|date| entry.renewals == 0 && date < max_date)?;
        first.checked_sub(*issue_date)
    };
    entries.iter().find_map(shown)
}

/// The renew date of a token that was renewed lately.
fn fresh(entries: &[Arc<Entry>], interval: u64, now: u64) -> Option<u64> {
    let renewed = entries.iter().filter(|entry| entry.renewals > 0 && !entry.deleting);
    let date = renewed.filter_map(|entry| entry.renew_date).max()?;
    (date.saturating_sub(now) > interval / 10 * FRESH_TENTHS).then_some(date)
}
