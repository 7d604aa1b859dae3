//! Liveness, readiness and metrics over HTTP: `/livez` says that the process runs, and depends on no peer; `/readyz`
//! says whether it can do its work, and if not, what is missing. What a program can do without for a while is shown
//! there too, but does not count. `/metrics` has the numbers, in OpenMetrics' text form.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What the program needs in order to work, each with its present state. Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<BTreeMap<String, Condition>>>);

#[derive(Debug)]
struct Condition {
    needed: bool,
    state: Result<(), String>,
}

impl Health {
    /// Registers `name` as needed; it counts as failing, "not checked yet", until its first [`Check::set`].
    pub fn needs(&self, name: impl Into<String>) -> Check {
        self.add(name.into(), true, Err("not checked yet".to_owned()))
    }

    /// Registers `name` as something to show, without which the program is ready all the same. Fine until its first
    /// [`Check::set`].
    pub fn shows(&self, name: impl Into<String>) -> Check {
        self.add(name.into(), false, Ok(()))
    }

    fn add(&self, name: String, needed: bool, state: Result<(), String>) -> Check {
        let check = Check { health: self.clone(), name, needed };
        check.set(state);
        check
    }

    /// Whether everything needed is there, and one line for each need.
    #[must_use]
    pub fn report(&self) -> (bool, String) {
        let states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = states.values().all(|condition| !condition.needed || condition.state.is_ok());
        let lines = states.iter().map(|(name, condition)| match (&condition.state, condition.needed) {
            (Ok(()), _) => format!("[+] {name}: ok\n"),
            (Err(why), true) => format!("[-] {name}: {why}\n"),
            (Err(why), false) => format!("[~] {name}: {why}\n"),
        });
        (ready, lines.collect())
    }
}

/// One thing that a [`Health`] needs.
#[derive(Clone, Debug)]
pub struct Check {
    health: Health,
    name: String,
    needed: bool,
}

impl Check {
    /// Says how it is now: fine, or why not, in words for the operator.
    pub fn set(&self, state: Result<(), String>) {
        let mut states = self.health.0.lock().unwrap_or_else(PoisonError::into_inner);
        states.insert(self.name.clone(), Condition { needed: self.needed, state });
    }
}

/// A bound, not yet serving health endpoint.
#[derive(Debug)]
pub struct Endpoint {
    listener: TcpListener,
    health: Health,
    metrics: Arc<Registry>,
}

impl Endpoint {
    /// Binds `address`.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind(address: SocketAddr, health: Health) -> std::io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await?, health, metrics: Arc::default() })
    }

    /// Shows the metrics of `registry`, instead of none.
    #[must_use]
    pub fn with_metrics(self, registry: Registry) -> Self {
        Self { metrics: Arc::new(registry), ..self }
    }

    /// Serves until `stop`.
    ///
    /// # Errors
    /// When accepting fails for good.
    pub async fn serve(self, stop: CancellationToken) -> std::io::Result<()> {
        let router = Router::new()
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(readyz))
            .with_state(self.health)
            .route("/metrics", get(metrics).with_state(self.metrics));
        axum::serve(self.listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
    }
}

async fn readyz(State(health): State<Health>) -> (StatusCode, String) {
    match health.report() {
        (true, lines) => (StatusCode::OK, lines),
        (false, lines) => (StatusCode::SERVICE_UNAVAILABLE, lines),
    }
}

async fn metrics(State(registry): State<Arc<Registry>>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    #[tokio::test]
    async fn metrics_are_shown_as_they_are() {
        let (mut registry, counter) = (Registry::default(), Counter::<u64>::default());
        registry.register("calls", "Calls", counter.clone());
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let endpoint = Endpoint::bind(loopback, Health::default()).await.unwrap().with_metrics(registry);
        let (address, stop) = (endpoint.listener.local_addr().unwrap(), CancellationToken::new());
        let serving = tokio::spawn(endpoint.serve(stop.clone()));
        counter.inc_by(3);
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("\ncalls_total 3\n") && answer.contains(OPEN_METRICS), "{answer}");
        stop.cancel();
        serving.await.unwrap().unwrap();
    }

    #[test]
    fn is_ready_only_when_every_need_is_met() {
        let health = Health::default();
        assert_eq!(health.report(), (true, String::new()));
        let (kdc, api) = (health.needs("kdc"), health.needs("api"));
        kdc.set(Ok(()));
        assert_eq!(health.report(), (false, "[-] api: not checked yet\n[+] kdc: ok\n".to_owned()));
        api.set(Ok(()));
        assert!(health.report().0);
        kdc.set(Err("cannot contact any KDC".to_owned()));
        assert_eq!(health.report(), (false, "[+] api: ok\n[-] kdc: cannot contact any KDC\n".to_owned()));
    }

    #[test]
    fn what_is_only_shown_does_not_count() {
        let health = Health::default();
        let controller = health.shows("controller");
        assert_eq!(health.report(), (true, "[+] controller: ok\n".to_owned()));
        controller.set(Err("cannot be reached".to_owned()));
        assert_eq!(health.report(), (true, "[~] controller: cannot be reached\n".to_owned()));
    }
}
