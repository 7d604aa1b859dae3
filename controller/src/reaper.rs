//! Ends the tokens of pods that are gone, at one replica at a time: whatever became of pod, node, node plugin or of the
//! controller that issued them, each token is in the ledger until it is cancelled or has ended by itself. Keeps nothing
//! that outlives it: another leader goes on from the API server alone. Never touches a token whose pod lives, unless
//! somebody deleted its object.

mod fate;
mod look;
mod schedule;
mod sweep;
mod trace;

use std::{collections::BTreeMap, future::pending, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tracing::info;

pub(crate) use self::trace::Tracer;
use self::{
    schedule::{Look, Outcome, Schedule},
    sweep::Sweep,
};
use crate::{
    audit::Audit,
    caller::ApiServer,
    issuance::Issuer,
    lease::Term,
    ledger::{Change, Entry, Ledger, Scope},
    metrics::Metrics,
    pod_watch::{PodChange, PodWatch},
};

/// How long the node plugin of a pod that has ended is left alone with it: usually it releases the tokens itself.
const SETTLE: Duration = Duration::from_millis(500);

/// Between looks at everything, in case that a change was missed.
const SWEEP_INTERVAL: Duration = Duration::from_mins(5);

/// A shared token's entry that the ledger does not show yet, or whose pod is not known to have ended, is waited for.
const CATCH_UP: Duration = Duration::from_secs(1);

/// The many entries of one token that wait for the one that goes first come again at no shorter distance than this. When
/// that one is done, they come at once.
const TURN: Duration = Duration::from_millis(10);

/// Ends tokens.
pub(crate) struct Reaper {
    pub(crate) ledger: Ledger,
    pub(crate) pods: PodWatch,
    pub(crate) api_server: ApiServer,
    /// By cluster.
    pub(crate) issuers: BTreeMap<String, Arc<Issuer>>,
    pub(crate) audit: Audit,
    pub(crate) metrics: Metrics,
    /// How long a shared token waits for another pod after its last one.
    pub(crate) grace: Duration,
    /// Tokens of one cluster at which it works at once.
    pub(crate) share: usize,
    pub(crate) tracer: Arc<Tracer>,
}

impl Reaper {
    /// Works as long as this is polled. To be dropped when `term` is over; asks it before each step all the same.
    pub(crate) async fn work(&self, term: Term) {
        let _numbers = Numbers(&self.metrics);
        let (mut changes, mut ends) = (self.ledger.subscribe(), self.pods.changes());
        self.both_complete(&mut changes, &mut ends).await;
        let (mut schedule, mut sweep) = (Schedule::new(self.share), Sweep::default());
        let mut looks = FuturesUnordered::new();
        let mut ticks = interval(SWEEP_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        info!("Reaps");
        loop {
            let next = schedule.next();
            tokio::select! {
                Some((entry, outcome)) = looks.next(), if !looks.is_empty() => {
                    let (entry, now): (Arc<Entry>, _) = (entry, Instant::now());
                    if let Outcome::Removed { cancelled: true } | Outcome::Failed { cancelled: true, .. } = outcome
                        && !schedule.is_cancelled(&entry.uid)
                    {
                        self.sharers(&entry).iter().for_each(|other| schedule.cancelled(&other.uid, now));
                    }
                    if let Some(look) = schedule.looked(&entry.uid, outcome, now, fastrand::f64()) {
                        looks.push(self.look(self.with_sharers(look, &mut schedule), &term));
                    }
                }
                change = changes.recv() => match change {
                    Ok(Change::Written(entry)) => self.consider(&entry, &mut schedule),
                    Ok(Change::Gone(entry)) => schedule.forget(&entry.uid),
                    Ok(Change::Listed) | Err(RecvError::Lagged(_)) => self.consider_all(&mut schedule),
                    Err(RecvError::Closed) => return,
                },
                end = ends.recv() => match end {
                    Ok(PodChange::Ended(uid)) => {
                        self.ledger.of_pod(&uid).iter().for_each(|entry| self.consider(entry, &mut schedule));
                    }
                    Ok(PodChange::Listed) | Err(RecvError::Lagged(_)) => self.consider_all(&mut schedule),
                    Err(RecvError::Closed) => return,
                },
                uids = self.tracer.news() => {
                    uids.iter().for_each(|uid| schedule.hurry(uid, Instant::now()));
                }
                _ = ticks.tick() => {
                    self.consider_all(&mut schedule);
                    self.pods_without_tokens(&mut sweep);
                }
                () = async { match next { Some(at) => sleep_until(at).await, None => pending().await } } => {}
            }
            for look in schedule.take(Instant::now()) {
                looks.push(self.look(self.with_sharers(look, &mut schedule), &term));
            }
            self.metrics.reaping.set(i64::try_from(schedule.len()).unwrap_or(i64::MAX));
        }
    }

    /// What is missing in an incomplete picture would look as if it had ended.
    async fn both_complete(&self, changes: &mut Receiver<Change>, ends: &mut Receiver<PodChange>) {
        while !(self.ledger.is_complete() && self.pods.is_complete()) {
            tokio::select! {
                // Who misses some sees that both are complete all the same.
                _ = changes.recv() => {}
                _ = ends.recv() => {}
            }
        }
    }

    /// Whether `entry` is to be looked at: one that lives and has its token costs nothing.
    fn consider(&self, entry: &Arc<Entry>, schedule: &mut Schedule) {
        let ended = !self.pods.uses_us(&entry.pod_uid);
        let wait = match (entry.deleting, ended, &entry.token) {
            (true, ..) => Duration::ZERO,
            (_, true, _) => SETTLE.mul_f64(0.5 + fastrand::f64()),
            (.., None) => fate::ISSUE_TIME,
            // It may have been looked for while it had no token yet.
            _ => return schedule.refresh(entry),
        };
        schedule.want(entry, entry.deleting || ended, wait, Instant::now());
    }

    fn consider_all(&self, schedule: &mut Schedule) {
        let entries = self.ledger.all();
        let mut gone = schedule.uids();
        for entry in &entries {
            gone.remove(&entry.uid);
            self.consider(entry, schedule);
        }
        gone.iter().for_each(|uid| schedule.forget(uid));
    }

    /// `look` with what other entries of the same token mean for it.
    fn with_sharers(&self, mut look: Look, schedule: &mut Schedule) -> Look {
        let sharers = if look.cancelled { Vec::new() } else { self.sharers(&look.entry) };
        if sharers.is_empty() {
            return look;
        }
        let (mut in_doubt, mut kept) = (false, sharers.iter().filter(|other| !other.deleting));
        look.shared = kept.any(|other| {
            let lives = self.pods.uses_us(&other.pod_uid);
            // The watch of the pods may be late. Its own look tells.
            in_doubt |= !lives && !schedule.ended(&other.uid);
            lives
        });
        // Its time begins when the last pod has ended, and one of them cancels it.
        let now = Instant::now();
        let last = sharers.iter().map(|other| schedule.dying_for(&other.uid, now)).min();
        look.dying_for = look.dying_for.min(last.unwrap_or(look.dying_for));
        if !schedule.goes_first(&look.entry.uid, sharers.iter().map(|other| &other.uid)) {
            let count = u32::try_from(sharers.len()).unwrap_or(u32::MAX);
            look.held_up = Some(CATCH_UP.max(TURN.saturating_mul(count)));
        } else if in_doubt {
            look.held_up = Some(CATCH_UP);
        } else {
            look.sharers = sharers.iter().map(|other| other.uid.clone()).collect();
        }
        look
    }

    /// The other entries of the token of `entry`.
    fn sharers(&self, entry: &Entry) -> Vec<Arc<Entry>> {
        let identifier = entry.identifier().filter(|_| entry.scope == Scope::Job);
        let sharers = |identifier| self.ledger.by_identifier_in(&entry.namespace, identifier);
        let mut sharers = identifier.map(sharers).unwrap_or_default();
        sharers.retain(|other| other.uid != entry.uid);
        sharers
    }
}

/// Sets the numbers that only a leader has to zero when it is none any more.
struct Numbers<'a>(&'a Metrics);

impl Drop for Numbers<'_> {
    fn drop(&mut self) {
        self.0.reaping.set(0);
        self.0.pods_without_tokens.set(0);
    }
}

#[cfg(test)]
mod tests;
