//! Looks after the certificate and the configuration objects for as long as we run, and says when API servers can ask us.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use process::{
    health::Check,
    tls::{ClientAuthority, Tls},
};
use rustls::ServerConfig;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{Bundle, Registrar, RegistrationError};
use crate::{
    certificate::{self, Identity, Now, Rotation, Step},
    metrics::Metrics,
};

/// For all questions to the API server of one pass.
const PASS_LIMIT: Duration = Duration::from_secs(15);
/// To the next pass, when this one failed or API servers have still to learn what was written.
const SOON: Duration = Duration::from_secs(1);
/// The same, when another replica wrote at the same time.
const AT_ONCE: Duration = Duration::from_millis(50);
/// Attempts to take our authority along.
const FAREWELLS: usize = 3;

/// As whom API servers meet us.
pub(crate) enum Showing {
    /// By certificates that we make.
    OurOwn(Box<OurOwn>),
    /// By files.
    Files(Arc<Tls>),
}

/// Certificates that we make for `host`.
pub(crate) struct OurOwn {
    pub(crate) rotation: Rotation,
    pub(crate) host: String,
    pub(crate) own: certificate::Own,
    pub(crate) shown: Arc<ArcSwap<ServerConfig>>,
}

/// The task.
pub(crate) struct Upkeep {
    registrar: Registrar,
    showing: Showing,
    check: Check,
    metrics: Metrics,
    /// What `check` was told last.
    told: Option<Result<(), String>>,
}

impl Upkeep {
    pub(crate) fn new(registrar: Registrar, showing: Showing, check: Check, metrics: Metrics) -> Self {
        Self { registrar, showing, check, metrics, told: None }
    }

    /// Until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Self {
        while let Some(wait) = stop.run_until_cancelled(self.pass()).await {
            let namespaces = self.registrar.namespaces.clone();
            let next = async {
                tokio::select! {
                    () = sleep(jittered(wait)) => {}
                    () = namespaces.woken() => {}
                }
            };
            if stop.run_until_cancelled(next).await.is_none() {
                break;
            }
        }
        self
    }

    /// When nobody is served any more: our authority need not be believed any longer. Nothing depends on it.
    pub(crate) async fn leave(self) {
        let Showing::OurOwn(ours) = &self.showing else { return };
        let rotation = &ours.rotation;
        let retired = rotation.retired().union(&rotation.own()).cloned().collect();
        for _ in 0..FAREWELLS {
            match timeout(PASS_LIMIT, self.registrar.withdraw(&retired)).await {
                Ok(Err(error)) if error.is_conflict() => sleep(jittered(AT_ONCE)).await,
                Ok(Err(error)) => return warn!(%error, "Failed to take our authority along"),
                Err(_) => return warn!("Failed to take our authority along in time"),
                Ok(Ok(())) => return,
            }
        }
    }

    /// Does what has to be done, and says when to come again.
    async fn pass(&mut self) -> Duration {
        let now = now();
        self.rotate(now);
        let bundle = match &self.showing {
            Showing::OurOwn(ours) => {
                Bundle::Shared { own: ours.rotation.own(), retired: ours.rotation.retired() }
            }
            Showing::Files(_) => Bundle::OfOthers,
        };
        let passed = timeout(PASS_LIMIT, self.registrar.pass(bundle, now.date)).await;
        let (state, wait) = match passed {
            Ok(Ok(authorities)) => self.registered(&authorities, now),
            Ok(Err(error)) if error.is_conflict() => return AT_ONCE,
            Ok(Err(error)) => self.failed(&error),
            Err(_) => {
                self.metrics.registration_failures.inc();
                (self.still("the API server does not answer"), SOON)
            }
        };
        self.tell(state);
        wait
    }

    fn registered(
        &mut self,
        authorities: &BTreeSet<certificate::Authority>,
        now: Now,
    ) -> (Result<(), String>, Duration) {
        let interval = self.registrar.section.interval();
        match &mut self.showing {
            Showing::Files(_) => (Ok(()), interval),
            Showing::OurOwn(ours) => {
                let rotation = &mut ours.rotation;
                rotation.written(authorities, now);
                let state = match rotation.is_believed(now) {
                    true => Ok(()),
                    false => Err("API servers have still to learn of the certificate".to_owned()),
                };
                // A successor is shown as soon as it may be.
                (state, if rotation.is_settled(now) { interval } else { SOON.min(interval) })
            }
        }
    }

    /// What is registered stays so while the API server is away; not when the objects are.
    fn failed(&mut self, error: &RegistrationError) -> (Result<(), String>, Duration) {
        self.metrics.registration_failures.inc();
        let state = match error {
            RegistrationError::Missing { .. } => Err(error.to_string()),
            RegistrationError::Api { .. } => self.still(&error.to_string()),
        };
        (state, SOON)
    }

    fn still(&self, trouble: &str) -> Result<(), String> {
        match &self.told {
            Some(Ok(())) => {
                warn!(error = trouble, "Failed to look after the registration");
                Ok(())
            }
            _ => Err(trouble.to_owned()),
        }
    }

    fn tell(&mut self, state: Result<(), String>) {
        if self.told.as_ref() != Some(&state) {
            match &state {
                Ok(()) => info!("API servers can ask us"),
                Err(why) => warn!(why, "API servers cannot ask us yet"),
            }
        }
        self.check.set(state.clone());
        self.told = Some(state);
    }

    /// Makes a successor, and shows it, when it is time.
    fn rotate(&mut self, now: Now) {
        match &mut self.showing {
            Showing::Files(tls) => {
                self.metrics
                    .certificate_expiry
                    .set(certificate::end_of(&tls.certificate()).unwrap_or_default());
            }
            Showing::OurOwn(ours) => {
                ours.rotate(now);
                self.metrics.certificate_expiry.set(ours.rotation.current().end);
            }
        }
    }
}

impl OurOwn {
    fn rotate(&mut self, now: Now) {
        if self.rotation.step(now) == Step::Make {
            match Identity::make(&self.host, now.date, self.own.lifetime) {
                Ok(identity) => {
                    info!(host = self.host, "Made a new certificate");
                    self.rotation.succeed_by(identity);
                }
                Err(error) => error!(%error, "Failed to make a new certificate"),
            }
        }
        let new_clients = match self.own.clients.as_ref().map(ClientAuthority::reload).transpose() {
            Ok(changed) => changed.flatten(),
            Err(error) => {
                warn!(%error, "Failed to reload the authority of API servers");
                None
            }
        };
        let is_other = new_clients.is_some();
        if is_other {
            info!("Took up a new authority of API servers");
            self.own.clients = new_clients;
        }
        let is_next = self.rotation.step(now) == Step::Show;
        if is_next {
            self.rotation.show_next();
        }
        if is_other || is_next {
            match self.rotation.current().server(self.own.clients.as_ref()) {
                Ok(config) => {
                    self.shown.store(config);
                    info!(host = self.host, "Shows the new certificate");
                }
                Err(error) => error!(%error, "Failed to show the new certificate"),
            }
        }
    }
}

/// The clocks' reading.
pub(crate) fn now() -> Now {
    let date = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { date: i64::try_from(date.as_secs()).unwrap_or(i64::MAX), at: Instant::now() }
}

/// Replicas do not stay in step.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(0.8 + 0.4 * fastrand::f64())
}
