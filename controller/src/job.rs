//! Tokens that the pods of one owner share. One is got for all of them, by each replica, and kept in memory, bounded and
//! wiped, for the pods that come later. A pod has it only once the ledger says so, and once it was found out after that
//! that nobody is cancelling it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use hadoop::{HadoopUser, Token, TokenIdentifier};
use tokio::{
    sync::Mutex as AsyncMutex,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    audit::Record,
    caller::ApiServer,
    cluster::CallError,
    failure::Failure,
    issuance::{ISSUE_DEADLINE, Issued, Issuer, Purpose},
    ledger::{Entry, KnownToken, Ledger, Phase},
    request::ReleasedToken,
};

/// Most tokens that are kept, and longest that one is of which nobody asks for a share.
const MAX_TOKENS: usize = 1024;
const IDLE_LIMIT: Duration = Duration::from_mins(5);

/// A token that is older than so many hundredths of its life is shared no more: whoever got it would soon have to replace
/// it.
const MAX_AGE: u64 = 70;

/// Holders that are remembered, to be asked whether they hold it still.
const HOLDERS: usize = 4;

/// How often a call takes another token when the first turns out to be gone.
const ATTEMPTS: usize = 3;

/// Whose tokens are shared by whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct JobKey {
    pub(crate) namespace: String,
    /// UID of the root owner, or of a pod that has none.
    pub(crate) owner: String,
    pub(crate) user: HadoopUser,
    /// With it, its services.
    pub(crate) cluster: String,
}

/// The shared tokens.
pub(crate) struct Jobs {
    slots: Mutex<HashMap<JobKey, Arc<Slot>>>,
    ledger: Ledger,
    api_server: ApiServer,
}

/// The token of one job.
struct Slot {
    used: Mutex<Instant>,
    state: AsyncMutex<State>,
}

#[derive(Default)]
struct State {
    token: Option<Arc<Shared>>,
    /// When getting one failed last, and how: everybody who waited for it hears the same.
    failed: Option<(Instant, &'static str, CallError)>,
}

/// A token that may be shared, and the duty to find out whether it is still good.
pub(crate) struct Shared {
    pub(crate) token: Token,
    pub(crate) identifier: TokenIdentifier,
    pub(crate) known: KnownToken,
    pub(crate) services: Vec<String>,
    /// The latest that is known.
    renew_date: AtomicU64,
    /// Those who got it last, the last first.
    holders: Mutex<VecDeque<Arc<Entry>>>,
    /// When it was last found out whether it is good, and whether it was.
    asked: AsyncMutex<(Instant, bool)>,
}

impl Jobs {
    /// No tokens yet.
    pub(crate) fn new(ledger: Ledger, api_server: ApiServer) -> Self {
        Self { slots: Mutex::default(), ledger, api_server }
    }

    /// The job's token for another volume, other than those that it holds; or a new one for it and those who come later.
    pub(crate) async fn token(
        &self,
        key: &JobKey,
        issuer: &Arc<Issuer>,
        purpose: Purpose,
        held: &[ReleasedToken],
        record: &Record,
    ) -> Result<Issued, Failure> {
        let slot = self.slot(key);
        let late = || Failure::Late { cluster: key.cluster.clone() };
        let begun = Instant::now();
        let token = async {
            for _ in 0..ATTEMPTS {
                let shared = match self.kept(&slot, begun, key, issuer, &purpose, held, record).await? {
                    Kept::Old(shared) => shared,
                    Kept::New(issued) => return Ok(*issued),
                };
                let issued = issuer.share(&shared, purpose.clone(), record.clone()).await?;
                if self.is_good(&shared, &issued.entry).await? {
                    shared.held_by(issued.entry.clone());
                    return Ok(issued);
                }
                debug!(token.sequence_number = shared.identifier.sequence_number, "A shared token is gone");
                slot.forget(&shared).await;
            }
            Err(late())
        };
        timeout(ISSUE_DEADLINE, token).await.unwrap_or_else(|_| Err(late()))
    }

    /// The job's token, or else a new one: got once for all who wait for it.
    #[expect(clippy::too_many_arguments, reason = "all that a new token takes")]
    async fn kept(
        &self,
        slot: &Slot,
        begun: Instant,
        key: &JobKey,
        issuer: &Arc<Issuer>,
        purpose: &Purpose,
        held: &[ReleasedToken],
        record: &Record,
    ) -> Result<Kept, Failure> {
        let mut state = slot.state.lock().await;
        if let Some((_, doing, error)) = state.failed.as_ref().filter(|(at, ..)| *at > begun) {
            let (cluster, error) = (key.cluster.clone(), error.clone());
            return Err(Failure::Hadoop { cluster, doing, error });
        }
        if let Some(shared) = state.token.clone().filter(|shared| shared.is_for(held, issuer.date())) {
            return Ok(Kept::Old(shared));
        }
        state.token = None;
        match issuer.issue(key.user.clone(), purpose.clone(), record.clone()).await {
            Ok(issued) => {
                state.token = Shared::of(&issued).map(Arc::new);
                Ok(Kept::New(Box::new(issued)))
            }
            Err(failure) => {
                if let Failure::Hadoop { doing, error, .. } = &failure {
                    state.failed = Some((Instant::now(), doing, error.clone()));
                }
                Err(failure)
            }
        }
    }

    /// Whether the token is good and stays so, now that `own` is written. The reaper says of a token that it is being
    /// cancelled, then looks who has it: what does not say so now, it will leave to `own`. Asked for many at once.
    async fn is_good(&self, shared: &Shared, own: &Entry) -> Result<bool, Failure> {
        let written = Instant::now();
        let mut asked = shared.asked.lock().await;
        if asked.0 < written {
            let at = Instant::now();
            let good = self.has_living_holder(shared, own).await? || self.is_waiting(shared, own).await?;
            *asked = (at, good);
        }
        Ok(asked.1)
    }

    /// Whether a pod that lives has it: then it is not being cancelled.
    async fn has_living_holder(&self, shared: &Shared, own: &Entry) -> Result<bool, Failure> {
        let mut holders = shared.holders(own);
        // When they have ended, somebody may live who got it earlier, or from another replica.
        let mut others = self.ledger.by_identifier_in(&own.namespace, &shared.token.identifier);
        others.retain(|other| {
            other.uid != own.uid && !other.deleting && holders.iter().all(|holder| holder.uid != other.uid)
        });
        others.truncate(HOLDERS);
        holders.extend(others);
        for holder in holders {
            let Some(entry) = self.ledger.reread(&holder).await? else { continue };
            shared.renew_date.fetch_max(entry.renew_date.unwrap_or_default(), Relaxed);
            if !entry.deleting && self.lives(&entry).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether its pods have ended, and the reaper waits for another one. A token that somebody took from a pod that lives
    /// is not for others.
    async fn is_waiting(&self, shared: &Shared, own: &Entry) -> Result<bool, Failure> {
        let mut left = self.ledger.confirm_live(&own.namespace, &shared.token.identifier).await?;
        left.retain(|entry| entry.uid != own.uid);
        if left.iter().any(|entry| entry.phase == Phase::Cancelling) {
            return Ok(false);
        }
        for entry in left.iter().take(HOLDERS) {
            if !self.lives(entry).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn lives(&self, entry: &Entry) -> Result<bool, Failure> {
        let pod = self.api_server.live_pod(&entry.pod()).await?;
        Ok(pod.is_some_and(|pod| *pod.uid == *entry.pod_uid && !pod.has_finished()))
    }

    fn slot(&self, key: &JobKey) -> Arc<Slot> {
        let mut slots = self.slots();
        if let Some(slot) = slots.get(key) {
            *slot.used() = Instant::now();
            return slot.clone();
        }
        if slots.len() >= MAX_TOKENS {
            let oldest = slots.iter().min_by_key(|(_, slot)| *slot.used()).map(|(key, _)| key.clone());
            oldest.and_then(|key| slots.remove(&key));
        }
        let slot = Slot { used: Mutex::new(Instant::now()), state: AsyncMutex::default() };
        slots.entry(key.clone()).or_insert_with(|| Arc::new(slot)).clone()
    }

    /// Wipes tokens for which nobody asked for a while, until `stop`, and all of them then.
    pub(crate) async fn keep_small(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = interval(IDLE_LIMIT / 5);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            self.slots().retain(|_, slot| slot.used().elapsed() < IDLE_LIMIT);
        }
        self.slots().clear();
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<JobKey, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a call gets from a job's slot.
enum Kept {
    /// One that others have.
    Old(Arc<Shared>),
    /// One that was got for this call.
    New(Box<Issued>),
}

impl Slot {
    fn used(&self) -> MutexGuard<'_, Instant> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody is to have `token` any more.
    async fn forget(&self, token: &Arc<Shared>) {
        let mut state = self.state.lock().await;
        if state.token.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, token)) {
            state.token = None;
        }
    }
}

impl Shared {
    /// The token of a volume that was the first to get it.
    fn of(issued: &Issued) -> Option<Self> {
        Some(Self {
            token: issued.token.clone(),
            identifier: issued.identifier.clone(),
            known: issued.entry.token.clone()?,
            services: issued.services.clone(),
            renew_date: AtomicU64::new(issued.renew_date),
            holders: Mutex::new([issued.entry.clone()].into()),
            asked: AsyncMutex::new((Instant::now(), true)),
        })
    }

    /// When it ends unless it is renewed.
    pub(crate) fn renew_date(&self) -> u64 {
        self.renew_date.load(Relaxed)
    }

    /// Whether a volume that holds `held` may be given it at `date`.
    fn is_for(&self, held: &[ReleasedToken], date: u64) -> bool {
        let TokenIdentifier { issue_date, max_date, .. } = self.identifier;
        let until = issue_date.saturating_add(max_date.saturating_sub(issue_date) / 100 * MAX_AGE);
        date < until
            && date < self.renew_date()
            && held.iter().all(|token| *token.identifier != *self.token.identifier)
    }

    /// Others than `own` who got it last.
    fn holders(&self, own: &Entry) -> Vec<Arc<Entry>> {
        let holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        holders.iter().filter(|holder| holder.uid != own.uid).cloned().collect()
    }

    fn held_by(&self, entry: Arc<Entry>) {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        holders.truncate(HOLDERS - 1);
        holders.push_front(entry);
    }
}

#[cfg(test)]
mod tests;
