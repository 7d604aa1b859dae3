//! Gets, renews and cancels tokens in a user's name: who may be which user was decided before. The ledger knows of each
//! token before it is asked for, and again before it leaves. A token that nobody takes over is cancelled, whatever became
//! of the call that asked for it.

mod clock;
mod gate;
mod probe;
mod renewals;
mod strays;

use std::{
    collections::VecDeque,
    future::Future,
    pin::pin,
    sync::{Arc, Mutex as SyncMutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hadoop::{HadoopUser, Token, TokenIdentifier};
use process::fault;
use tokio::{
    sync::{Mutex, oneshot},
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;

use self::{
    clock::{ServerClock, millis},
    gate::{Gate, Place},
    renewals::Renewals,
};
pub(crate) use self::{probe::Marks, strays::strays};
use crate::{
    audit::{Audit, Record, TokenNumber},
    cancellation::{self, Pending, Unclaimed},
    cluster::{Authority, CallError, NotGot},
    failure::Failure,
    job::Shared,
    ledger::{Entry, Intent, KnownToken, Ledger, LedgerError, Scope},
    metrics::{Cancelled, Metrics},
    request::VolumeReference,
};

/// Longest that an Issue waits for Hadoop. The node plugin waits a little longer, so that it hears of the failure and
/// of its cause; kubelet waits two minutes.
pub(crate) const ISSUE_DEADLINE: Duration = Duration::from_secs(30);

/// The same for what can be abandoned and repeated.
const DEADLINE: Duration = Duration::from_secs(20);

/// How long a Release begins new attempts before the node plugin has to ask again.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a learnt renew interval is believed. A NameNode that restarts may come back with another.
const INTERVAL_LIFETIME: Duration = Duration::from_mins(10);

/// Issues the tokens of one cluster.
pub(crate) struct Issuer {
    cluster: String,
    authority: Arc<dyn Authority>,
    /// Who renews and cancels: the short name of our own principal.
    renewer: String,
    interval: Mutex<Option<LearntInterval>>,
    clock: ServerClock,
    /// What this process got lately.
    got: SyncMutex<VecDeque<Marks>>,
    ledger: Ledger,
    renewals: Renewals,
    gate: Gate,
    tasks: TaskTracker,
    audit: Audit,
    metrics: Metrics,
}

/// How many calls there may be at one cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Under way.
    pub(crate) calls: usize,
    /// Waiting for their turn.
    pub(crate) queue: usize,
}

#[derive(Clone, Copy)]
struct LearntInterval {
    interval: u64,
    at: Instant,
}

/// For which volume a token is, as the ledger shows it.
#[derive(Clone, Debug)]
pub(crate) struct Purpose {
    pub(crate) volume: VolumeReference,
    pub(crate) node: String,
    pub(crate) submitter: String,
    pub(crate) scope: Scope,
}

/// A token with its dates, and the duty to cancel it if it does not reach its volume.
pub(crate) struct Issued {
    pub(crate) token: Token,
    pub(crate) identifier: TokenIdentifier,
    /// Milliseconds since the epoch, on the NameNode's clock, as all Hadoop dates.
    pub(crate) renew_date: u64,
    /// What that clock shows now, if it is known.
    pub(crate) server_date: Option<u64>,
    pub(crate) services: Vec<String>,
    /// Where the ledger has it.
    pub(crate) entry: Arc<Entry>,
    pub(crate) unclaimed: Unclaimed,
}

impl Issuer {
    /// Issues for `cluster`, within `bounds`. All work runs in `tasks`; what becomes of a token that nobody takes over
    /// is told to `audit`.
    #[expect(clippy::too_many_arguments, reason = "the parts that it is put together from")]
    pub(crate) fn new(
        cluster: String,
        authority: Arc<dyn Authority>,
        renewer: String,
        bounds: Bounds,
        ledger: Ledger,
        tasks: TaskTracker,
        audit: Audit,
        metrics: Metrics,
    ) -> Self {
        let gate = Gate::new(bounds.calls, bounds.queue, metrics.waiting(&cluster));
        Self {
            cluster,
            authority,
            renewer,
            interval: Mutex::default(),
            clock: ServerClock::default(),
            got: SyncMutex::default(),
            ledger,
            renewals: Renewals::default(),
            gate,
            tasks,
            audit,
            metrics,
        }
    }

    /// Who renews and cancels.
    pub(crate) fn renewer(&self) -> &str {
        &self.renewer
    }

    /// What the clock of the cluster's Hadoop service shows, in milliseconds since the epoch. None as long as it has
    /// told nothing.
    pub(crate) fn server_date(&self) -> Option<u64> {
        self.clock.now()
    }

    /// The same; before the service has answered for the first time, its clock is as good as ours.
    pub(crate) fn date(&self) -> u64 {
        let ours = || millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        self.clock.now().unwrap_or_else(ours)
    }

    /// A new token of `user` for `purpose`. `record` says the same to the NameNode's audit log and, if nobody takes the
    /// token over, to ours.
    ///
    /// The work runs in a task of its own: when the caller goes away half-way, the token is still seen, and
    /// cancelled.
    pub(crate) async fn issue(
        self: &Arc<Self>,
        user: HadoopUser,
        purpose: Purpose,
        mut record: Record,
    ) -> Result<Issued, Failure> {
        let place = self.place()?;
        record.user = Some(user.to_string());
        record.cluster = Some(self.cluster.clone());
        let (mut answer, answered) = oneshot::channel();
        let issuer = Arc::clone(self);
        self.tasks.spawn(async move {
            let Some(turn) = place.turn().await else { return };
            if answer.is_closed() {
                return; // nobody waits any more, and nothing has been asked for yet
            }
            let mut fetched = pin!(issuer.fetch(&user, purpose, record));
            let outcome = tokio::select! {
                biased;
                outcome = &mut fetched => outcome,
                () = answer.closed() => {
                    // What comes of it has to be known all the same, but nobody is to wait for that.
                    drop(turn);
                    fetched.await
                }
            };
            // A token that cannot be delivered is dropped here, and so cancelled.
            drop(answer.send(outcome));
        });
        match timeout(ISSUE_DEADLINE, answered).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Failure::Stopping),
            Err(_) => Err(Failure::Late { cluster: self.cluster.clone() }),
        }
    }

    async fn fetch(
        &self,
        user: &HadoopUser,
        purpose: Purpose,
        mut record: Record,
    ) -> Result<Issued, Failure> {
        let entry = self.ledger.open(&self.intent(user, purpose)).await?;
        let asked = Instant::now();
        let context = record.caller_context();
        fault::point("hadoop.get:before");
        let got = self.timed("get", self.authority.get(user, &self.renewer, &context)).await;
        fault::point("hadoop.get:after");
        let token = match got {
            Ok(token) => token,
            Err(NotGot { error, may_exist }) => {
                // Of one that may exist the reaper has to find out.
                if !may_exist {
                    self.discard(entry);
                }
                return Err(self.failure("get a token", error));
            }
        };
        let decoded = token.decode_identifier();
        record.tokens = decoded.iter().map(TokenNumber::from).collect();
        let known = known(&token, decoded.as_ref().ok());
        let pending = self.pending(&entry, known.clone(), record);
        let mut unclaimed = Unclaimed::new(pending, self.tasks.clone());
        let wrong = |what: String| Failure::WrongToken { cluster: self.cluster.clone(), what };
        let identifier = decoded.map_err(|error| wrong(error.to_string()))?;
        if identifier.owner != user.as_str() || identifier.renewer != self.renewer {
            return Err(wrong(format!(
                "it is of {:?} with renewer {:?}, not of {user} with renewer {:?}",
                identifier.owner, identifier.renewer, self.renewer
            )));
        }
        self.clock.heard(identifier.issue_date, asked);
        self.counted(&identifier);
        let services =
            self.authority.services().await.map_err(|error| self.failure("name its services", error))?;
        let renew_date = self.renew_date(&token, &identifier, &context, asked).await?;
        let known =
            KnownToken { services: services.iter().map(|name| name.as_str().into()).collect(), ..known };
        let entry = self.ledger.record(&entry, &known, renew_date).await?;
        unclaimed.recorded(entry.clone());
        if entry.deleting {
            return Err(LedgerError::Gone(entry.to_string()).into());
        }
        let server_date = self.server_date().or(Some(identifier.issue_date));
        Ok(Issued { token, identifier, renew_date, server_date, services, entry, unclaimed })
    }

    /// The token that others have, for `purpose` too. Nothing is asked of Hadoop, so it may be gone.
    pub(crate) async fn share(
        &self,
        shared: &Shared,
        purpose: Purpose,
        mut record: Record,
    ) -> Result<Issued, Failure> {
        let Shared { token, identifier, known, services, .. } = shared;
        let renew_date = shared.renew_date();
        let user: HadoopUser = identifier.owner.parse().map_err(|error| Failure::WrongToken {
            cluster: self.cluster.clone(),
            what: format!("its owner is nobody: {error}"),
        })?;
        // A call of the same volume that came to nothing deletes its entry, sooner or later: this one has its own.
        let entry = self.ledger.share(&self.intent(&user, purpose), known, renew_date).await?;
        record.tokens = vec![TokenNumber::from(identifier)];
        let pending = self.pending(&entry, known.clone(), record);
        Ok(Issued {
            token: token.clone(),
            identifier: identifier.clone(),
            renew_date,
            server_date: self.server_date(),
            services: services.clone(),
            entry,
            unclaimed: Unclaimed::new(pending, self.tasks.clone()),
        })
    }

    /// What it takes to have the token of `entry` cancelled.
    fn pending(&self, entry: &Arc<Entry>, token: KnownToken, record: Record) -> Pending {
        Pending {
            authority: Arc::clone(&self.authority),
            ledger: self.ledger.clone(),
            entry: entry.clone(),
            token,
            cluster: self.cluster.clone(),
            record,
            audit: self.audit.clone(),
            metrics: self.metrics.clone(),
        }
    }

    fn intent(&self, user: &HadoopUser, purpose: Purpose) -> Intent {
        let Purpose { volume, node, submitter, scope } = purpose;
        let (user, cluster) = (user.to_string(), self.cluster.clone());
        let (requested_at, after) = (self.date(), self.last_number());
        Intent { volume, node, submitter, user, cluster, scope, requested_at, after }
    }

    /// Removes an intent of which nothing came, without anybody waiting for it.
    fn discard(&self, entry: Arc<Entry>) {
        let ledger = self.ledger.clone();
        self.tasks.spawn(async move { ledger.discard(&entry).await });
    }

    /// When the token must be renewed. Neither the token nor the NameNode's answer says it; only a renewal does, so
    /// one is made now and then and the interval remembered. Callers wait for each other: one renewal serves all.
    async fn renew_date(
        &self,
        token: &Token,
        identifier: &TokenIdentifier,
        context: &str,
        asked: Instant,
    ) -> Result<u64, Failure> {
        let mut learnt = self.interval.lock().await;
        if let Some(known) = *learnt
            && known.at.elapsed() < INTERVAL_LIFETIME
        {
            return Ok(identifier.issue_date.saturating_add(known.interval).min(identifier.max_date));
        }
        let date = self
            .timed("renew", self.authority.renew(token, context))
            .await
            .map_err(|error| self.failure("renew a new token", error))?;
        // The NameNode renewed a little after it issued; what passed meanwhile is no part of the interval.
        let passed = millis(asked.elapsed());
        let interval = date.saturating_sub(identifier.issue_date).saturating_sub(passed);
        *learnt = Some(LearntInterval { interval, at: Instant::now() });
        Ok(date)
    }

    /// Cancels the token with `identifier`; one that is unknown counts as cancelled. Safe to abandon and to repeat.
    pub(crate) async fn cancel(
        &self,
        identifier: &[u8],
        why: Cancelled,
        record: &Record,
    ) -> Result<(), Failure> {
        let context = record.caller_context();
        let place = self.place()?;
        let cancellation = async {
            let _turn = place.turn().await.ok_or(Failure::Stopping)?;
            let cancelled = cancellation::cancel(&*self.authority, identifier, &context, PATIENCE);
            let cancelled = self.timed("cancel", cancelled).await;
            cancelled.map_err(|error| self.failure("cancel a token", error))?;
            self.metrics.cancelled(why);
            Ok(())
        };
        timeout(DEADLINE, cancellation)
            .await
            .unwrap_or_else(|_| Err(Failure::Late { cluster: self.cluster.clone() }))
    }

    fn place(&self) -> Result<Place, Failure> {
        self.gate.place().ok_or_else(|| Failure::Busy { cluster: self.cluster.clone() })
    }

    async fn timed<T>(&self, operation: &'static str, call: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let outcome = call.await;
        self.metrics.hadoop_took(&self.cluster, operation, begun.elapsed());
        outcome
    }

    fn failure(&self, doing: &'static str, error: CallError) -> Failure {
        Failure::Hadoop { cluster: self.cluster.clone(), doing, error }
    }
}

/// What the ledger keeps of a token, as far as it can be read.
fn known(token: &Token, identifier: Option<&TokenIdentifier>) -> KnownToken {
    KnownToken {
        identifier: token.identifier.as_slice().into(),
        kind: token.kind.as_str().into(),
        services: Box::default(),
        sequence_number: identifier.map_or(0, |identifier| identifier.sequence_number),
        issue_date: identifier.map_or(0, |identifier| identifier.issue_date),
        // One that cannot be read may live for ever.
        max_date: identifier.map_or(u64::MAX >> 1, |identifier| identifier.max_date),
    }
}

#[cfg(test)]
pub(crate) mod tests;
