//! Our own Kerberos identity, from a keytab. Tickets are kept in memory only. Credentials in use are acquired anew every
//! minute, beside the calls: that is what makes the library log in again from the keytab, at half of a ticket's life,
//! and while it cannot, calls go on with the tickets there are.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use libgssapi::credential::Cred;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::gssapi::{GssContext, failure};
use super::{KerberosFailure, credential, keytab};
use crate::error::Error;
use crate::principal::Principal;

/// How long a caller waits for Kerberos. The library alone waits 27 s for a KDC that swallows packets.
const LIMIT: Duration = Duration::from_secs(6);

/// A failure within this time was not a silent KDC, so one more try is cheap.
const QUICK: Duration = Duration::from_secs(1);

/// Threads that may wait in the library at once.
const MAX_WAITING: usize = 32;

/// How long credentials are used before they are acquired anew.
const REFRESH_AFTER: Duration = Duration::from_secs(60);

/// Credentials that end sooner are not used any more.
const SPARE_LIFE: Duration = Duration::from_secs(15);

/// How often all tickets may be thrown away because a server refused one.
const FORGET_AT_MOST_EVERY: Duration = Duration::from_secs(60);

/// Services whose credentials are held.
const MAX_HELD: usize = 64;

/// Memory caches are named process-wide; each login has its own.
static NEXT_CACHE: AtomicU64 = AtomicU64::new(0);

/// A principal with its keytab. Cheap to clone; clones share their tickets.
#[derive(Clone, Debug)]
pub struct Login(Arc<Inner>);

struct Inner {
    principal: Principal,
    keytab: PathBuf,
    keytab_name: CString,
    tickets: Mutex<Tickets>,
    /// The library refills a cache by emptying it first, so one thread at a time.
    acquiring: Mutex<()>,
    waiting: Arc<Semaphore>,
    /// For each wanted principal, how many requests the library has not given up though we have.
    overdue: Mutex<HashMap<Principal, usize>>,
}

struct Tickets {
    /// Name of the cache in memory that has them.
    cache: Arc<CStr>,
    begun: Instant,
    /// For each service one: the library locks a credential while it asks a KDC, and the KDC of one realm must not
    /// hold up the services of another.
    held: HashMap<Principal, Held>,
}

struct Held {
    credential: Cred,
    acquired: Instant,
    good_until: Instant,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("principal", &self.principal)
            .field("keytab", &self.keytab)
            .finish_non_exhaustive()
    }
}

impl Login {
    /// The identity `principal` by its key in `keytab`, a local file. Checks the file, contacts nobody.
    ///
    /// # Errors
    ///
    /// When the keytab cannot be read, is damaged, or holds no key of the principal.
    pub fn open(principal: Principal, keytab: &Path) -> Result<Self, Error> {
        let error = |failure| Error::kerberos(&principal, failure);
        keytab::check(keytab, &principal).map_err(error)?;
        let unnameable = |_| error(KerberosFailure::keytab("the keytab's path cannot be used".to_owned()));
        let keytab = std::path::absolute(keytab)
            .map_err(|failure| error(KerberosFailure::keytab(format!("keytab: {failure}"))))?;
        let mut keytab_name = b"FILE:".to_vec();
        keytab_name.extend_from_slice(keytab.as_os_str().as_encoded_bytes());
        let keytab_name = CString::new(keytab_name).map_err(unnameable)?;
        Ok(Self(Arc::new(Inner {
            principal,
            keytab,
            keytab_name,
            tickets: Mutex::new(Tickets { cache: new_cache(), begun: Instant::now(), held: HashMap::new() }),
            acquiring: Mutex::default(),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            overdue: Mutex::default(),
        })))
    }

    /// Who we are.
    #[must_use]
    pub fn principal(&self) -> &Principal {
        &self.0.principal
    }

    /// Proves that we have a ticket: contacts a KDC unless there is a good one already.
    ///
    /// # Errors
    ///
    /// When the KDC gives none, or none answers.
    pub async fn check(&self) -> Result<(), Error> {
        let ticket_granting = Principal::ticket_granting(self.0.principal.realm());
        let wanted = ticket_granting.clone();
        self.blocking(ticket_granting, move |inner| inner.credential(&wanted).map(drop))
            .await
            .map_err(|failure| Error::kerberos(&self.0.principal, failure))
    }

    /// Starts a security context with a server: the context and its first token.
    pub(crate) async fn initiate(
        &self,
        target: &Principal,
    ) -> Result<(GssContext, Vec<u8>), KerberosFailure> {
        let wanted = target.clone();
        self.blocking(wanted.clone(), move |inner| GssContext::initiate(inner.credential(&wanted)?, &wanted))
            .await
    }

    /// Throws all tickets away, so that new ones are got: a server refused one, likely because its key was changed.
    /// Whether it did; not again within a minute, lest a server that refuses everything make us flood the KDC.
    pub(crate) fn forget_tickets(&self) -> bool {
        let mut tickets = self.0.tickets();
        let now = Instant::now();
        if now.duration_since(tickets.begun) < FORGET_AT_MOST_EVERY {
            return false;
        }
        *tickets = Tickets { cache: new_cache(), begun: now, held: HashMap::new() };
        true
    }

    /// Runs what may block on its own thread, and gives up waiting for it after [`LIMIT`]. While it then still waits,
    /// later requests for the same principal fail at once instead of adding threads: it is their probe.
    async fn blocking<T: Send + 'static>(
        &self,
        wanted: Principal,
        work: impl Fn(&Arc<Inner>) -> Result<T, KerberosFailure> + Send + 'static,
    ) -> Result<T, KerberosFailure> {
        let silent = |text: &str| KerberosFailure::silent_kdc(wanted.realm(), text);
        if self.0.overdue().contains_key(&wanted) {
            return Err(silent("an earlier request has had no answer yet"));
        }
        let deadline = Instant::now() + LIMIT;
        let no_answer = || silent(&format!("no answer within {LIMIT:?}"));
        let permit = match timeout_at(deadline, self.0.waiting.clone().acquire_owned()).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(closed)) => return Err(KerberosFailure::other(closed.to_string())),
            Err(_) => return Err(no_answer()),
        };
        let inner = self.0.clone();
        let (sender, mut receiver) = oneshot::channel();
        // A thread of its own and not one of the executor's, which at its end waits for all of them.
        let work = move || {
            let _permit = permit;
            let started = Instant::now();
            let result = match work(&inner) {
                Err(failure) if failure.is_momentary() && started.elapsed() < QUICK => work(&inner),
                result => result,
            };
            // Fails when the caller has gone; what was made is then dropped.
            let _ = sender.send(result);
        };
        std::thread::Builder::new()
            .name("kerberos".to_owned())
            .spawn(work)
            .map_err(|error| KerberosFailure::other(format!("no thread for Kerberos: {error}")))?;
        let lost = |_| KerberosFailure::other("the Kerberos thread was lost");
        match timeout_at(deadline, &mut receiver).await {
            Ok(result) => result.map_err(lost)?,
            Err(_) => {
                *self.0.overdue().entry(wanted.clone()).or_default() += 1;
                let (inner, late) = (self.0.clone(), wanted.clone());
                tokio::spawn(async move {
                    // Whatever it found out comes too late; that it is over is what counts.
                    let _ = receiver.await;
                    let mut overdue = inner.overdue();
                    match overdue.get_mut(&late) {
                        Some(count) if *count > 1 => *count -= 1,
                        _ => drop(overdue.remove(&late)),
                    }
                });
                Err(no_answer())
            }
        }
    }
}

impl Inner {
    /// Credentials to talk to `wanted` with. Blocks on the network when there are none that are good.
    fn credential(self: &Arc<Self>, wanted: &Principal) -> Result<Cred, KerberosFailure> {
        let now = Instant::now();
        let (credential, refresh) = {
            let mut tickets = self.tickets();
            match tickets.held.get_mut(wanted) {
                Some(held) if now + SPARE_LIFE < held.good_until => {
                    let refresh = now.duration_since(held.acquired) > REFRESH_AFTER;
                    if refresh {
                        // Now, and not when it is done, so that there is one at a time.
                        held.acquired = now;
                    }
                    (Some(held.credential.clone()), refresh)
                }
                _ => (None, false),
            }
        };
        if refresh {
            let (inner, wanted) = (self.clone(), wanted.clone());
            let refreshing = move || {
                if let Err(failure) = inner.acquire(&wanted) {
                    warn!(principal = %inner.principal, error = %failure, "Failed to refresh Kerberos tickets");
                }
            };
            if let Err(error) = std::thread::Builder::new().name("kerberos".to_owned()).spawn(refreshing) {
                warn!(%error, "Failed to start a thread to refresh Kerberos tickets");
            }
        }
        credential.map_or_else(|| self.acquire(wanted), Ok)
    }

    /// Acquires credentials anew: logs in if the tickets in memory are used up, or half of their life is over.
    fn acquire(&self, wanted: &Principal) -> Result<Cred, KerberosFailure> {
        let principal = self.principal.to_string();
        let (acquired, cache) = {
            let _alone = self.acquiring.lock().unwrap_or_else(PoisonError::into_inner);
            let cache = self.tickets().cache.clone();
            let acquired = credential::acquire(&principal, &self.keytab_name, &cache)
                .and_then(|credential| Ok((credential.lifetime()?, credential)))
                .map_err(|error| failure(&error));
            (acquired, cache)
        };
        let (life, credential) = acquired.map_err(|failure| {
            // The library has one text for every fault of the file. It was fine at start, and may not be now.
            if failure.is_missing_credentials() {
                keytab::check(&self.keytab, &self.principal).err().unwrap_or(failure)
            } else {
                failure
            }
        })?;
        let mut tickets = self.tickets();
        // Else they were thrown away meanwhile.
        if Arc::ptr_eq(&tickets.cache, &cache) {
            if tickets.held.len() >= MAX_HELD {
                tickets.held.clear();
            }
            let now = Instant::now();
            let held = Held { credential: credential.clone(), acquired: now, good_until: now + life };
            tickets.held.insert(wanted.clone(), held);
        }
        Ok(credential)
    }

    fn tickets(&self) -> MutexGuard<'_, Tickets> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn overdue(&self) -> MutexGuard<'_, HashMap<Principal, usize>> {
        self.overdue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of a cache that nobody else in the process has.
fn new_cache() -> Arc<CStr> {
    let number = NEXT_CACHE.fetch_add(1, Ordering::Relaxed);
    CString::new(format!("MEMORY:hadoop-{number}")).unwrap_or_default().into()
}
