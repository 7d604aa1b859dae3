//! Finds a token that was asked for and whose answer nobody heard, and cancels it. To cancel a token takes its whole
//! identifier, and no service tells which it has given; but all in it is known or can be guessed within bounds, and an
//! attempt to cancel what does not exist harms nothing.

mod candidates;
mod memory;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hadoop::{HadoopUser, TokenIdentifier};
use identity::VolumeId;
use tokio::{
    sync::{Notify, broadcast::error::RecvError},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tracing::{info, warn};

use self::{
    candidates::{Candidates, Lost},
    memory::{Memory, Search},
};
use super::{Reaper, fate::ISSUE_TIME, look::record, schedule::Outcome};
use crate::{
    audit::TokenNumber,
    failure::Failure,
    issuance::{Issuer, Marks, Purpose},
    lease::Term,
    ledger::{Change, Entry, KnownToken, Ledger, LedgerError, Phase, Scope},
    metrics::{Cancelled, LetGo},
    request::{PodReference, VolumeReference},
};

/// A cluster's lost tokens are looked for in turns of so many attempts: each that is found makes the others easier to
/// find.
const TURN: u32 = 500;

/// Between two turns for the same token.
const NEXT_TURN: Duration = Duration::from_secs(1);

/// Longest until it is asked again whether a token that nobody found has ended, or can be found now.
const LONGEST_WAIT: Duration = Duration::from_mins(5);

/// How long a token counts as alive after it should have ended, in milliseconds: clocks differ.
const MARGIN: u64 = 15 * 60 * 1000;

/// Longest life of a token that nobody renews, in milliseconds, where no token of its service has shown it: Hadoop's
/// default of the longest life of all.
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
    clusters: Mutex<BTreeMap<String, Memory>>,
    news: Notify,
}

/// What came of looking for a lost token.
enum Traced {
    Cancelled {
        number: i32,
    },
    NeverIssued,
    /// There are attempts left for another turn.
    NotYet,
    NotFound,
}

impl Tracer {
    /// Makes at most `attempts` for each token. What it needs itself, the ledger has in `namespace`.
    pub(crate) fn new(attempts: u32, namespace: String) -> Self {
        Self { attempts, namespace, clusters: Mutex::default(), news: Notify::new() }
    }

    /// Hears of the tokens that come into the ledger and leave it, until `stop`: each that is known of makes a lost one
    /// easier to find.
    pub(crate) async fn listen(self: Arc<Self>, ledger: Ledger, stop: CancellationToken) {
        let mut changes = ledger.subscribe();
        loop {
            match stop.run_until_cancelled(changes.recv()).await {
                Some(Ok(Change::Written(entry))) => self.written(&entry),
                Some(Ok(Change::Gone(entry))) => self.gone(&entry, marks(&entry)),
                Some(Ok(Change::Listed) | Err(RecvError::Lagged(_))) => {
                    let uids = ledger.all().iter().map(|entry| entry.uid.clone()).collect();
                    self.clusters().values_mut().for_each(|memory| memory.retain(&uids));
                }
                Some(Err(RecvError::Closed)) | None => return,
            }
        }
    }

    fn written(&self, entry: &Entry) {
        let Some(token) = &entry.token else { return };
        self.with(&entry.cluster, |memory| {
            if let Some(interval) = interval(entry) {
                memory.shown(interval);
            }
            // Its answer came after all.
            memory.end(&entry.uid);
            self.stir(memory, Some(token.sequence_number));
        });
    }

    /// `entry` has left the ledger; its token was known, or is now, by `marks`.
    fn gone(&self, entry: &Entry, marks: Option<Marks>) {
        self.with(&entry.cluster, |memory| {
            let was_lost = memory.end(&entry.uid);
            if let Some(marks) = marks {
                memory.forget(marks);
            }
            if was_lost {
                self.stir(memory, marks.map(|marks| marks.sequence_number));
            }
        });
    }

    fn stir(&self, memory: &mut Memory, number: Option<i32>) {
        if memory.stir(number) {
            self.news.notify_one();
        }
    }

    /// Waits for news of tokens that were looked for in vain. Returns the UIDs of their objects.
    pub(super) async fn news(&self) -> BTreeSet<Arc<str>> {
        self.news.notified().await;
        self.clusters().values_mut().flat_map(Memory::stirred).collect()
    }

    fn with<T>(&self, cluster: &str, work: impl FnOnce(&mut Memory) -> T) -> T {
        work(self.clusters().entry(cluster.to_owned()).or_default())
    }

    fn clusters(&self) -> MutexGuard<'_, BTreeMap<String, Memory>> {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reaper {
    /// Ends the token of `entry`, of which nobody knows whether there is one: its answer was lost, and is too late now.
    /// To be repeated until it is [`Outcome::Removed`]; may be abandoned at any point. Asks `term` before each step.
    pub(super) async fn trace(&self, entry: &Arc<Entry>, issuer: &Arc<Issuer>, term: &Term) -> Outcome {
        let search = self.tracer.with(&entry.cluster, |memory| memory.search(&entry.uid));
        let in_vain = |search: Search| search.vain == Some(self.candidates(entry, issuer, &search).facts());
        if self.tracer.attempts == 0 || search.is_some_and(in_vain) {
            return self.outlived(entry, issuer, term).await;
        }
        let busy = self.tracer.with(&entry.cluster, |memory| {
            memory.late(&entry.uid);
            memory.busy()
        });
        let Ok(_busy) = busy.try_lock() else { return Outcome::Again(NEXT_TURN) };
        let (known, pause) = self.tracer.with(&entry.cluster, |memory| {
            (memory.search(&entry.uid).is_some(), memory.pause(Instant::now()))
        });
        if let Some(pause) = pause.filter(|_| !known) {
            return Outcome::Again(pause);
        }
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
        let left =
            self.tracer.with(&entry.cluster, |memory| memory.search(&entry.uid).map(|search| search.left));
        let attempts = left.map_or(0, |left| self.tracer.attempts.saturating_sub(left));
        match traced {
            Traced::NotYet => Outcome::Again(NEXT_TURN),
            Traced::Cancelled { number } => {
                info!(token.object = %entry, token.number = number, attempts, "Cancelled a token that was lost");
                self.metrics.cancelled(Cancelled::Lost);
                self.forgotten(entry, None, true).await
            }
            Traced::NeverIssued => {
                info!(token.object = %entry, attempts, "No token was issued of which nobody heard");
                self.forgotten(entry, Some(LetGo::NeverIssued), false).await
            }
            Traced::NotFound => {
                warn!(token.object = %entry, attempts, "Found no token of which nobody heard, though there may be one");
                self.outlived(entry, issuer, term).await
            }
        }
    }

    /// Removes an entry whose token needs not be looked for any more.
    async fn forgotten(&self, entry: &Entry, why: Option<LetGo>, cancelled: bool) -> Outcome {
        let outcome = self.remove(entry, why, cancelled).await;
        if matches!(outcome, Outcome::Removed { .. }) {
            self.tracer.gone(entry, None);
        }
        outcome
    }

    async fn traced(&self, entry: &Entry, issuer: &Arc<Issuer>, term: &Term) -> Result<Traced, Failure> {
        let Ok(owner) = entry.user.parse::<HadoopUser>() else {
            // Nothing was ever asked for in the name of a user who cannot be.
            return Ok(Traced::NeverIssued);
        };
        let mut record = record(entry);
        record.why = Some(Cancelled::Lost.name());
        let (tracer, cluster, uid) = (&*self.tracer, &*entry.cluster, &entry.uid);
        let search = match tracer.with(cluster, |memory| memory.search(uid)) {
            Some(search) => search,
            None => {
                let probe = issuer.probe(&owner, self.purpose(entry), &record).await;
                let passes = |failure: &Failure| failure.code() == Code::Unavailable;
                if !probe.as_ref().is_err_and(|failure| !passes(failure)) {
                    tracer.with(cluster, |memory| memory.probed(probe.is_ok(), Instant::now()));
                }
                let probe = probe?;
                // Another leader has tried already: only what may have become easy since.
                let given_up = entry.last_error.as_deref().is_some_and(|error| error.starts_with(GIVEN_UP));
                let left = if given_up { tracer.attempts.min(TURN) } else { tracer.attempts };
                let awaited = self.awaited(entry);
                let search = Search { probe, since: Instant::now(), awaited, left, vain: None };
                tracer.with(cluster, |memory| memory.begin(uid, search.clone()));
                search
            }
        };
        if !self.settled(entry, &search).await? {
            return Ok(Traced::NotYet);
        }
        let candidates = self.candidates(entry, issuer, &search);
        let (conclusive, facts) = (candidates.conclusive(), candidates.facts());
        let most = usize::try_from(search.left.min(TURN)).unwrap_or(usize::MAX);
        let (next, all) = tracer.with(cluster, |memory| memory.untried(&entry.user, candidates, most));

        let mut begun = 0_usize;
        let identifiers = next.iter().map(|marks| {
            begun += 1;
            identified(&search.probe, *marks)
        });
        let cancelled = if next.is_empty() {
            Ok((None, 0))
        } else {
            issuer.cancel_first(identifiers, || term.lasts(), &record).await
        };
        // Of the last one nobody knows, unless all failed.
        let failed = if matches!(cancelled, Ok((None, _))) { begun } else { begun.saturating_sub(1) };
        let attempts = u32::try_from(begun).unwrap_or(u32::MAX);
        let tried = next.get(..failed).unwrap_or_default();
        tracer.with(cluster, |memory| memory.tried(uid, &entry.user, tried, attempts));
        let Some(identifier) = cancelled?.0 else {
            if all && conclusive {
                return Ok(Traced::NeverIssued);
            }
            if !all && search.left > attempts {
                return Ok(Traced::NotYet);
            }
            tracer.with(cluster, |memory| memory.vain(uid, facts));
            return Ok(Traced::NotFound);
        };
        if let Some(marks) = Marks::of(&identifier) {
            tracer.with(cluster, |memory| {
                memory.forget(marks);
                tracer.stir(memory, Some(marks.sequence_number));
            });
        }
        record.tokens = vec![TokenNumber::from(&identifier)];
        record.granted();
        self.write(&record).await;
        Ok(Traced::Cancelled { number: identifier.sequence_number })
    }

    /// What else is being asked for in the name of the same user, and may be answered yet.
    fn awaited(&self, entry: &Entry) -> HashSet<Arc<str>> {
        let all = self.ledger.all();
        self.tracer.with(&entry.cluster, |memory| {
            let of_user = |other: &&Arc<Entry>| other.cluster == entry.cluster && other.user == entry.user;
            let asked = |other: &&Arc<Entry>| other.token.is_none() && !memory.is_late(&other.uid);
            all.iter().filter(of_user).filter(asked).map(|other| other.uid.clone()).collect()
        })
    }

    /// Whether none of the tokens that the search awaits can still come to its pod without being known here: it would be
    /// taken for the lost one.
    async fn settled(&self, entry: &Entry, search: &Search) -> Result<bool, Failure> {
        if search.awaited.is_empty() {
            return Ok(true);
        }
        let all = self.ledger.all();
        for other in all.iter().filter(|other| other.token.is_none() && search.awaited.contains(&other.uid)) {
            let late = self.tracer.with(&entry.cluster, |memory| memory.is_late(&other.uid));
            let over = late || search.since.elapsed() >= ISSUE_TIME;
            // What is followed may be late too.
            if !over || self.ledger.reread(other).await?.is_some_and(|now| now.token.is_some()) {
                return Ok(false);
            }
        }
        self.tracer.with(&entry.cluster, |memory| memory.settled(&entry.uid));
        Ok(true)
    }

    /// What the token of `entry` may be, by all that is known now.
    fn candidates(&self, entry: &Entry, issuer: &Issuer, search: &Search) -> Candidates {
        let entries = self.ledger.all();
        let entries = entries.iter().filter(|other| other.cluster == entry.cluster);
        let gone = self.tracer.with(&entry.cluster, |memory| memory.gone());
        // What this process got, it knows even of those that were never written down.
        let known = entries.filter_map(|other| marks(other)).chain(gone).chain(issuer.got());
        // What came later than the probe says nothing of what came before.
        let known = known.filter(|marks| marks.sequence_number < search.probe.sequence_number);
        let lost = Lost { requested_at: entry.requested_at, after: entry.after };
        Candidates::new(lost, known.chain(Marks::of(&search.probe)))
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
        let life = self.life(entry, issuer).await.unwrap_or(LONGEST_LIFE);
        let ends = entry.requested_at.saturating_add(life).saturating_add(MARGIN);
        let left = Duration::from_millis(ends.saturating_sub(issuer.date()));
        if left.is_zero() && term.lasts() {
            return self.forgotten(entry, Some(LetGo::Expired), false).await;
        }
        let why = format!(
            "{GIVEN_UP}: a token was asked for and the answer was lost: if there is one, nobody has it, and it ends by \
             itself when nobody has renewed it for {} minutes",
            life.div_ceil(60_000)
        );
        // How long it can live may have been learnt since.
        if entry.last_error.as_deref() != Some(&why) || entry.phase != Phase::Cancelling {
            match self.ledger.failed(entry, Phase::Cancelling, Some(&why)).await {
                Ok(_) | Err(LedgerError::Gone(_)) => {}
                Err(error) => warn!(%error, token.object = %entry, "Failed to show that a token is lost"),
            }
        }
        Outcome::Again(left.min(LONGEST_WAIT))
    }

    /// How long the token of `entry` lives when nobody renews it: as a renewal showed it, or as the others do.
    async fn life(&self, entry: &Entry, issuer: &Issuer) -> Option<u64> {
        if let Some(learnt) = issuer.renew_interval().await {
            return Some(learnt);
        }
        let entries = self.ledger.all();
        let others = entries.iter().filter(|other| other.cluster == entry.cluster);
        let shown = others.filter_map(|other| interval(other)).max();
        shown.or_else(|| self.tracer.with(&entry.cluster, |memory| memory.interval()))
    }
}

/// The identifier with `marks` that is otherwise like `probe`.
fn identified(probe: &TokenIdentifier, marks: Marks) -> TokenIdentifier {
    TokenIdentifier {
        owner: probe.owner.clone(),
        renewer: probe.renewer.clone(),
        real_user: probe.real_user.clone(),
        issue_date: marks.issue_date,
        max_date: marks.issue_date.saturating_add(marks.lifetime),
        sequence_number: marks.sequence_number,
        master_key_id: marks.master_key_id,
    }
}

/// What the service chose of the token of `entry`.
fn marks(entry: &Entry) -> Option<Marks> {
    let KnownToken { identifier, kind, .. } = entry.token.as_ref()?;
    Marks::of(&TokenIdentifier::decode(kind, identifier).ok()?)
}

/// The renew interval, if `entry` shows it: from its token's issue to its first renew date. A shared one may have been
/// renewed before it was shared.
fn interval(entry: &Entry) -> Option<u64> {
    let KnownToken { issue_date, max_date, .. } = entry.token.as_ref()?;
    let first = |date: &u64| entry.scope == Scope::Pod && entry.renewals == 0 && date < max_date;
    entry.renew_date.filter(first)?.checked_sub(*issue_date)
}

#[cfg(test)]
mod tests;
