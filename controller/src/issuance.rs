//! Gets, renews and cancels tokens in a user's name. Knows nothing of pods: who may be which user was decided
//! before. A token that nobody takes over is cancelled, whatever became of the call that asked for it.

use std::{sync::Arc, time::Duration};

use hadoop::{HadoopUser, Token, TokenIdentifier};
use tokio::{
    sync::{Mutex, Semaphore, oneshot},
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;

use crate::{
    cancellation::{self, Unclaimed},
    cluster::{Authority, CallError},
    failure::Failure,
};

/// Longest that an Issue waits for Hadoop. The node plugin waits a little longer, so that it hears of the failure and
/// of its cause; kubelet waits two minutes.
const ISSUE_DEADLINE: Duration = Duration::from_secs(30);

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
    permits: Arc<Semaphore>,
    tasks: TaskTracker,
}

#[derive(Clone, Copy)]
struct LearntInterval {
    interval: u64,
    at: Instant,
}

/// A token with its dates, and the duty to cancel it if it does not reach its volume.
pub(crate) struct Issued {
    pub(crate) token: Token,
    pub(crate) identifier: TokenIdentifier,
    /// Milliseconds since the epoch, on the NameNode's clock, as all Hadoop dates.
    pub(crate) renew_date: u64,
    pub(crate) services: Vec<String>,
    pub(crate) unclaimed: Unclaimed,
}

impl Issuer {
    /// Issues for `cluster`. At most as many calls run at once as `permits` has; all work runs in `tasks`.
    pub(crate) fn new(
        cluster: String,
        authority: Arc<dyn Authority>,
        renewer: String,
        permits: Arc<Semaphore>,
        tasks: TaskTracker,
    ) -> Self {
        Self { cluster, authority, renewer, interval: Mutex::new(None), permits, tasks }
    }

    /// Who renews and cancels.
    pub(crate) fn renewer(&self) -> &str {
        &self.renewer
    }

    /// A new token of `user`. `context` goes into the NameNode's audit log.
    ///
    /// The work runs in a task of its own: when the caller goes away half-way, the token is still seen, and
    /// cancelled.
    pub(crate) async fn issue(
        self: &Arc<Self>,
        user: HadoopUser,
        context: String,
    ) -> Result<Issued, Failure> {
        let (answer, answered) = oneshot::channel();
        let issuer = Arc::clone(self);
        self.tasks.spawn(async move {
            let Ok(_permit) = issuer.permits.acquire().await else { return };
            if answer.is_closed() {
                return; // nobody waits any more, and nothing has been asked for yet
            }
            // A token that cannot be delivered is dropped here, and so cancelled.
            drop(answer.send(issuer.fetch(&user, &context).await));
        });
        match timeout(ISSUE_DEADLINE, answered).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Failure::Stopping),
            Err(_) => Err(Failure::Late { cluster: self.cluster.clone() }),
        }
    }

    async fn fetch(&self, user: &HadoopUser, context: &str) -> Result<Issued, Failure> {
        let asked = Instant::now();
        let token = self
            .authority
            .get(user, &self.renewer, context)
            .await
            .map_err(|error| self.failure("get a token", error))?;
        let decoded = token.decode_identifier();
        let expires = decoded.as_ref().map_or(u64::MAX, |identifier| identifier.max_date);
        let unclaimed = Unclaimed::new(
            Arc::clone(&self.authority),
            token.identifier.clone(),
            expires,
            self.tasks.clone(),
        );
        let wrong = |what: String| Failure::WrongToken { cluster: self.cluster.clone(), what };
        let identifier = decoded.map_err(|error| wrong(error.to_string()))?;
        if identifier.owner != user.as_str() || identifier.renewer != self.renewer {
            return Err(wrong(format!(
                "it is of {:?} with renewer {:?}, not of {user} with renewer {:?}",
                identifier.owner, identifier.renewer, self.renewer
            )));
        }
        let services =
            self.authority.services().await.map_err(|error| self.failure("name its services", error))?;
        let renew_date = self.renew_date(&token, &identifier, asked).await?;
        Ok(Issued { token, identifier, renew_date, services, unclaimed })
    }

    /// When the token must be renewed. Neither the token nor the NameNode's answer says it; only a renewal does, so
    /// one is made now and then and the interval remembered. Callers wait for each other: one renewal serves all.
    async fn renew_date(
        &self,
        token: &Token,
        identifier: &TokenIdentifier,
        asked: Instant,
    ) -> Result<u64, Failure> {
        let mut learnt = self.interval.lock().await;
        if let Some(known) = *learnt
            && known.at.elapsed() < INTERVAL_LIFETIME
        {
            return Ok(identifier.issue_date.saturating_add(known.interval).min(identifier.max_date));
        }
        let date =
            self.authority.renew(token).await.map_err(|error| self.failure("renew a new token", error))?;
        // The NameNode renewed a little after it issued; what passed meanwhile is no part of the interval.
        let passed = u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX);
        let interval = date.saturating_sub(identifier.issue_date).saturating_sub(passed);
        *learnt = Some(LearntInterval { interval, at: Instant::now() });
        Ok(date)
    }

    /// Moves the expiry of `token` and returns the new date. Safe to abandon and to repeat.
    pub(crate) async fn renew(&self, token: &Token) -> Result<u64, Failure> {
        let renewal = async {
            let _permit = self.permits.acquire().await.map_err(|_| Failure::Stopping)?;
            self.authority.renew(token).await.map_err(|error| self.failure("renew a token", error))
        };
        timeout(DEADLINE, renewal)
            .await
            .unwrap_or_else(|_| Err(Failure::Late { cluster: self.cluster.clone() }))
    }

    /// Cancels the token with `identifier`; one that is unknown counts as cancelled. Safe to abandon and to repeat.
    pub(crate) async fn cancel(&self, identifier: &[u8]) -> Result<(), Failure> {
        let cancellation = async {
            let _permit = self.permits.acquire().await.map_err(|_| Failure::Stopping)?;
            cancellation::cancel(&*self.authority, identifier, PATIENCE)
                .await
                .map_err(|error| self.failure("cancel a token", error))
        };
        timeout(DEADLINE, cancellation)
            .await
            .unwrap_or_else(|_| Err(Failure::Late { cluster: self.cluster.clone() }))
    }

    fn failure(&self, doing: &'static str, error: CallError) -> Failure {
        Failure::Hadoop { cluster: self.cluster.clone(), doing, error }
    }
}

#[cfg(test)]
mod tests;
