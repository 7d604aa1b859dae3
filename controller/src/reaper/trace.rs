//! Finds a token that was asked for and whose answer nobody heard, and cancels it. To cancel a token takes its whole
//! identifier, and no service tells which it has given; but all in it is known or can be guessed within bounds, and an
//! attempt to cancel what does not exist harms nothing.

mod candidates;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hadoop::{HadoopUser, TokenIdentifier};
use identity::VolumeId;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tracing::{info, warn};

use self::candidates::{Candidates, Lost};
use super::{Reaper, look::record, schedule::Outcome};
use crate::{
    audit::TokenNumber,
    failure::Failure,
    issuance::{Issuer, Marks, Purpose},
    lease::Term,
    ledger::{Change, Entry, KnownToken, Ledger, Scope},
    metrics::{Cancelled, LetGo},
    request::{PodReference, VolumeReference},
};

/// Most tokens of each cluster that are remembered when they are gone.
const MOST_GONE: usize = 4096;

/// Only one of a cluster's lost tokens is looked for at a time: each that is found makes the others easier to find. The
/// others come again after this.
const NEXT_TURN: Duration = Duration::from_secs(1);

/// Longest until it is asked again whether a token that nobody found has ended.
const LONGEST_WAIT: Duration = Duration::from_mins(5);

/// How long a token counts as alive after it should have ended, in milliseconds: clocks differ.
const MARGIN: u64 = 15 * 60 * 1000;

/// Longest life of a token that nobody renews, in milliseconds, where its service has not shown it: Hadoop's default of
/// the longest life of all.
const LONGEST_LIFE: u64 = 7 * 24 * 60 * 60 * 1000;

/// What an object says whose token was looked for in vain.
const GIVEN_UP: &str = "TOKEN_LOST";

/// Looks for lost tokens.
#[derive(Debug)]
pub(crate) struct Tracer {
    /// Most attempts for one token; none: lost tokens are left to end by themselves.
    attempts: u32,
    /// Where the ledger has the tokens that show how a service counts.
    namespace: String,
    clusters: Mutex<BTreeMap<String, Cluster>>,
}

/// What is remembered of a cluster.
#[derive(Debug, Default)]
struct Cluster {
    /// Tokens that are gone: what they had, a lost one has not.
    gone: VecDeque<Marks>,
    /// Held while a lost token is looked for.
    busy: Arc<tokio::sync::Mutex<()>>,
}

/// What came of looking for a lost token.
enum Traced {
    Cancelled { number: i32, attempts: u32 },
    NeverIssued { attempts: u32 },
    NotFound { attempts: u32 },
}

impl Tracer {
    /// Makes at most `attempts` for each token. What it needs itself, the ledger has in `namespace`.
    pub(crate) fn new(attempts: u32, namespace: String) -> Self {
        Self { attempts, namespace, clusters: Mutex::default() }
    }

    /// Remembers the tokens that leave the ledger, until `stop`: each that is known of makes a lost one easier to find.
    pub(crate) async fn listen(self: Arc<Self>, ledger: Ledger, stop: CancellationToken) {
        let mut changes = ledger.subscribe();
        loop {
            match stop.run_until_cancelled(changes.recv()).await {
                Some(Ok(Change::Gone(entry))) => {
                    if let Some(marks) = marks(&entry) {
                        self.gone(&entry.cluster, marks);
                    }
                }
                Some(Ok(_) | Err(RecvError::Lagged(_))) => {}
                Some(Err(RecvError::Closed)) | None => return,
            }
        }
    }

    fn gone(&self, cluster: &str, marks: Marks) {
        self.with(cluster, |cluster| {
            cluster.gone.push_back(marks);
            if cluster.gone.len() > MOST_GONE {
                cluster.gone.pop_front();
            }
        });
    }

    fn with<T>(&self, cluster: &str, work: impl FnOnce(&mut Cluster) -> T) -> T {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        work(clusters.entry(cluster.to_owned()).or_default())
    }
}

impl Reaper {
    /// Ends the token of `entry`, of which nobody knows whether there is one: its answer was lost, and is too late now.
    /// To be repeated until it is [`Outcome::Removed`]; may be abandoned at any point. Asks `term` before each step.
    pub(super) async fn trace(&self, entry: &Arc<Entry>, issuer: &Arc<Issuer>, term: &Term) -> Outcome {
        let given_up = entry.last_error.as_deref().is_some_and(|error| error.starts_with(GIVEN_UP));
        if given_up || self.tracer.attempts == 0 {
            return self.outlived(entry, issuer, term).await;
        }
        let busy = self.tracer.with(issuer.cluster(), |cluster| cluster.busy.clone());
        let Ok(_busy) = busy.try_lock() else { return Outcome::Again(NEXT_TURN) };
        let traced = match self.traced(entry, issuer, term).await {
            Ok(traced) => traced,
            Err(failure) => {
                self.metrics.reaper_failed(&entry.cluster);
                warn!(error = %failure, token.object = %entry, "Failed to look for a lost token");
                self.tell(entry, &format!("{}: {failure}", failure.reason())).await;
                return Outcome::Failed { passes: failure.code() == Code::Unavailable, cancelled: false };
            }
        };
        if !term.lasts() {
            return Outcome::Failed { passes: true, cancelled: false };
        }
        // It may have come after all, from a controller that did not hear of it for long.
        let answered = |now: &Arc<Entry>| now.uid == entry.uid && now.token.is_some();
        if self.ledger.of_pod(&entry.pod_uid).iter().any(answered) {
            return Outcome::Again(NEXT_TURN);
        }
        match traced {
            Traced::Cancelled { number, attempts } => {
                info!(token.object = %entry, token.number = number, attempts, "Cancelled a token that was lost");
                self.metrics.cancelled(Cancelled::Lost);
                self.remove(entry, None, true).await
            }
            Traced::NeverIssued { attempts } => {
                info!(token.object = %entry, attempts, "No token was issued of which nobody heard");
                self.remove(entry, Some(LetGo::NeverIssued), false).await
            }
            Traced::NotFound { attempts } => {
                warn!(token.object = %entry, attempts, "Found no token of which nobody heard, though there may be one");
                self.outlived(entry, issuer, term).await
            }
        }
    }

    async fn traced(&self, entry: &Entry, issuer: &Arc<Issuer>, term: &Term) -> Result<Traced, Failure> {
        let Ok(owner) = entry.user.parse::<HadoopUser>() else {
            // Nothing was ever asked for in the name of a user who cannot be.
            return Ok(Traced::NeverIssued { attempts: 0 });
        };
        let mut record = record(entry);
        record.why = Some(Cancelled::Lost.name());
        let probe = issuer.probe(&owner, self.purpose(entry), &record).await?;
        let entries = self.ledger.all();
        let entries = entries.iter().filter(|other| other.cluster == entry.cluster);
        let gone = self.tracer.with(issuer.cluster(), |cluster| cluster.gone.clone());
        // What this process got, it knows even of those that were never written down.
        let known = entries.filter_map(|other| marks(other)).chain(gone).chain(issuer.got());
        let candidates =
            Candidates::new(Lost { requested_at: entry.requested_at, after: entry.after }, known);
        let conclusive = candidates.conclusive();
        let identifiers = candidates.map(|marks| TokenIdentifier {
            owner: probe.owner.clone(),
            renewer: probe.renewer.clone(),
            real_user: probe.real_user.clone(),
            issue_date: marks.issue_date,
            max_date: marks.issue_date.saturating_add(marks.lifetime),
            sequence_number: marks.sequence_number,
            master_key_id: marks.master_key_id,
        });
        let budget = usize::try_from(self.tracer.attempts).unwrap_or(usize::MAX);
        let (cancelled, attempts) =
            issuer.cancel_first(identifiers.take(budget), || term.lasts(), &record).await?;
        let Some(identifier) = cancelled else {
            // One that would take all attempts may have more.
            return Ok(if conclusive && attempts < self.tracer.attempts {
                Traced::NeverIssued { attempts }
            } else {
                Traced::NotFound { attempts }
            });
        };
        if let Some(marks) = Marks::of(&identifier) {
            self.tracer.gone(&entry.cluster, marks);
        }
        record.tokens = vec![TokenNumber::from(&identifier)];
        record.granted();
        self.write(&record).await;
        Ok(Traced::Cancelled { number: identifier.sequence_number, attempts })
    }

    /// The volume of nobody that the ledger shows for a token which is not for any.
    fn purpose(&self, entry: &Entry) -> Purpose {
        let (name, uid) = ("trace".to_owned(), entry.uid.to_string());
        let volume = VolumeReference {
            id: VolumeId::of(&uid, &name),
            name: name.clone(),
            pod: PodReference { namespace: self.tracer.namespace.clone(), name, uid },
        };
        let submitter = entry.submitter.to_string();
        Purpose { volume, node: String::new(), submitter, scope: Scope::Pod }
    }

    /// Waits for the end of a token that nobody has, nobody renews and nobody found.
    async fn outlived(&self, entry: &Entry, issuer: &Issuer, term: &Term) -> Outcome {
        let life = issuer.renew_interval().await.unwrap_or(LONGEST_LIFE);
        let ends = entry.requested_at.saturating_add(life).saturating_add(MARGIN);
        let left = Duration::from_millis(ends.saturating_sub(issuer.date()));
        if left.is_zero() && term.lasts() {
            return self.remove(entry, Some(LetGo::Expired), false).await;
        }
        let why = format!(
            "{GIVEN_UP}: a token was asked for and the answer was lost: if there is one, nobody has it, and it ends by \
             itself when nobody has renewed it for {} minutes",
            life / 60_000
        );
        self.tell(entry, &why).await;
        Outcome::Again(left.min(LONGEST_WAIT))
    }
}

/// What the service chose of the token of `entry`.
fn marks(entry: &Entry) -> Option<Marks> {
    let KnownToken { identifier, kind, .. } = entry.token.as_ref()?;
    Marks::of(&TokenIdentifier::decode(kind, identifier).ok()?)
}

#[cfg(test)]
mod tests;
