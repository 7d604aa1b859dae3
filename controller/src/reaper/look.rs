//! One look at one entry: learns what has to be known, asks `fate`, and does it. Every step can be repeated, and may be
//! abandoned at any point.

use identity::is_object_name;
use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use identity::RELEASE_ANNOTATION;
use tonic::Code;
use tracing::{info, warn};

use super::{
    CATCH_UP, Reaper,
    fate::{Facts, Fate, Pod, fate},
    schedule::{Look, Outcome},
};
use crate::{
    audit::{Action, Record, RequestId, TokenNumber},
    caller::ApiServerError,
    issuance::Issuer,
    lease::Term,
    ledger::{Entry, KnownToken, LedgerError, Phase, Scope},
    metrics::{Cancelled, LetGo},
};

impl Reaper {
    /// Looks at an entry, and says what came of it.
    pub(super) async fn look(&self, look: Look, term: &Term) -> (Arc<Entry>, Outcome) {
        let outcome = self.outcome(&look, term).await;
        (look.entry, outcome)
    }

    async fn outcome(&self, look: &Look, term: &Term) -> Outcome {
        let entry = &*look.entry;
        let failed = Outcome::Failed { passes: true, cancelled: look.cancelled };
        let pod = match self.pod(entry).await {
            Ok(pod) => pod,
            Err(error) => {
                warn!(%error, token.object = %entry, "Failed to learn whether a pod has ended");
                return failed;
            }
        };
        let issuer = self.issuers.get(&*entry.cluster);
        let facts = Facts {
            pod,
            known_for: look.known_for,
            dying_for: look.dying_for,
            shared: look.shared,
            failed: look.failed,
            cancelled: look.cancelled,
            configured: issuer.is_some(),
            date: issuer.and_then(|issuer| issuer.server_date()).unwrap_or_else(wall_clock),
            grace: self.grace,
        };
        // The process may have stood still for long.
        if !term.lasts() {
            return failed;
        }
        match (fate(entry, facts), issuer, &entry.token, look.held_up) {
            (Fate::Keep, ..) => Outcome::Done,
            (Fate::Wait(wait), ..) => Outcome::Again(wait),
            (Fate::Remove(why), ..) => self.remove(entry, why, look.cancelled).await,
            (Fate::Cancel(_), .., Some(wait)) => Outcome::Again(wait),
            (Fate::Cancel(why), Some(issuer), Some(token), None) => {
                self.end(look, token, why, issuer, term).await
            }
            (Fate::Trace, Some(issuer), ..) => self.trace(&look.entry, issuer, term).await,
            (Fate::Strand | Fate::Cancel(_) | Fate::Trace, ..) => {
                let why = format!(
                    "CLUSTER_UNKNOWN: cluster {:?} is not in the controller's configuration: add it, or let the object \
                     go by the annotation {RELEASE_ANNOTATION}: \"true\"",
                    entry.cluster
                );
                self.tell(entry, &why).await;
                Outcome::Failed { passes: false, cancelled: look.cancelled }
            }
        }
    }

    /// What the entry's pod is. One that the watch does not show is read live: the watch may be late.
    async fn pod(&self, entry: &Entry) -> Result<Pod, ApiServerError> {
        if self.pods.uses_us(&entry.pod_uid) {
            return Ok(Pod::Alive);
        }
        // Its token ends either way, and a name that no pod can have is not asked for.
        if entry.deleting || !is_object_name(&entry.pod) || !is_object_name(&entry.namespace) {
            return Ok(Pod::Ended);
        }
        let ended = match self.api_server.live_pod(&entry.pod()).await? {
            Some(pod) => *pod.uid != *entry.pod_uid || matches!(&*pod.phase, "Succeeded" | "Failed"),
            None => true,
        };
        Ok(if ended { Pod::Ended } else { Pod::Alive })
    }

    /// Cancels the token, then removes the entry.
    async fn end(
        &self,
        look: &Look,
        token: &KnownToken,
        why: Cancelled,
        issuer: &Issuer,
        term: &Term,
    ) -> Outcome {
        let entry = &*look.entry;
        if entry.scope == Scope::Job {
            // Whoever shares it from now on sees this, or is seen by what follows.
            if entry.phase != Phase::Cancelling
                && let Err(error) = self.ledger.failed(entry, Phase::Cancelling, None).await
                && !matches!(error, LedgerError::Gone(_))
            {
                warn!(%error, token.object = %entry, "Failed to show that a shared token is being cancelled");
                return Outcome::Failed { passes: true, cancelled: false };
            }
            if let Some(outcome) = self.unseen_sharers(look, token).await {
                return outcome;
            }
        }
        let mut record = record(entry);
        record.why = Some(why.name());
        match issuer.cancel(&token.identifier, why, &record).await {
            Ok(()) => {
                record.granted();
                self.write(&record).await;
                info!(
                    token.object = %entry,
                    token.number = token.sequence_number,
                    cluster = &*entry.cluster,
                    why = why.name(),
                    "Cancelled the token of a pod"
                );
            }
            Err(failure) => {
                self.metrics.reaper_failed(&entry.cluster);
                warn!(error = %failure, token.object = %entry, "Failed to cancel the token of a pod");
                if entry.let_go && term.lasts() {
                    return self.remove(entry, Some(LetGo::Released), false).await;
                }
                self.tell(entry, &format!("{}: {failure}", failure.reason())).await;
                return Outcome::Failed { passes: failure.code() == Code::Unavailable, cancelled: false };
            }
        }
        if !term.lasts() {
            return Outcome::Failed { passes: true, cancelled: true };
        }
        self.remove(entry, None, true).await
    }

    /// What stands against cancelling a shared token now: an entry that the ledger does not show yet, or did not when this
    /// look began.
    async fn unseen_sharers(&self, look: &Look, token: &KnownToken) -> Option<Outcome> {
        let entry = &look.entry;
        let live = match self.ledger.confirm_live(&entry.namespace, &token.identifier).await {
            Ok(live) => live,
            Err(error) => {
                warn!(%error, token.object = %entry, "Failed to learn who shares a token");
                return Some(Outcome::Failed { passes: true, cancelled: false });
            }
        };
        let unseen = |live: &Arc<Entry>| live.uid != entry.uid && !look.sharers.contains(&live.uid);
        live.iter().any(unseen).then_some(Outcome::Again(CATCH_UP))
    }

    /// Removes an entry whose token needs nothing more.
    pub(super) async fn remove(&self, entry: &Entry, why: Option<LetGo>, cancelled: bool) -> Outcome {
        match self.ledger.remove(entry).await {
            Ok(()) | Err(LedgerError::Gone(_)) => {}
            Err(error) => {
                warn!(%error, token.object = %entry, "Failed to remove an object whose token has ended");
                return Outcome::Failed { passes: true, cancelled };
            }
        }
        if let Some(why) = why {
            self.metrics.let_go(why);
            info!(token.object = %entry, why = why.name(), "Let an object go without cancelling its token");
            if why == LetGo::Released {
                let mut record = record(entry);
                (record.why, record.reason) = (Some(why.name()), Some("TOKENS_NOT_CANCELLED"));
                self.write(&record).await;
            }
        }
        Outcome::Removed { cancelled }
    }

    /// Shows in the object what hinders its end, unless it says so already.
    pub(super) async fn tell(&self, entry: &Entry, why: &str) {
        let reason = |text: &str| text.split(':').next().unwrap_or_default().to_owned();
        let told = entry.last_error.as_deref().map(reason);
        if told == Some(reason(why)) && entry.phase == Phase::Cancelling {
            return;
        }
        match self.ledger.failed(entry, Phase::Cancelling, Some(why)).await {
            Ok(_) | Err(LedgerError::Gone(_)) => {}
            Err(error) => warn!(%error, token.object = %entry, "Failed to show why a token does not end"),
        }
    }

    pub(super) async fn write(&self, record: &Record) {
        if let Err(error) = self.audit.write(record).await {
            // The audit log keeps the record, and writes it when it can.
            warn!(%error, "The cancellation of a token is not recorded yet");
        }
    }
}

/// What the audit log is told of the end of `entry`.
pub(super) fn record(entry: &Entry) -> Record {
    let mut record = Record::new(Action::Cancel, RequestId::random());
    record.namespace = entry.namespace.to_string();
    record.pod = entry.pod.to_string();
    record.uid = entry.pod_uid.to_string();
    record.volume = entry.volume.to_string();
    record.node = Some(entry.node.to_string());
    record.submitter = Some(entry.submitter.to_string());
    record.user = Some(entry.user.to_string());
    record.cluster = Some(entry.cluster.to_string());
    let number =
        |token: &KnownToken| TokenNumber { sequence_number: token.sequence_number, max_date: token.max_date };
    record.tokens = entry.token.iter().map(number).collect();
    record
}

fn wall_clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
