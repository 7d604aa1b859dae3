//! The controller put together: binds everything, serves, and stops within a deadline. Knows every part, and no
//! part's business.

use std::{collections::BTreeMap, fs, future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use hadoop::{kerberos::Login, namenode::NameNode};
use kube::Api;
use process::{
    health::{Endpoint, Health},
    tls::{self, Tls},
};
use prometheus_client::registry::Registry;
use proto::token::v1::token_service_server::TokenServiceServer;
use tokio::{net::TcpListener, task::JoinSet, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::Server;
use tracing::{info, warn};

use crate::{
    audit::Audit,
    caller::ApiServer,
    config::{Config, Limits},
    events::{self, Events},
    health,
    issuance::{Bounds, Issuer},
    job::Jobs,
    lease::Lease,
    ledger::Ledger,
    metrics::Metrics,
    pod_watch::PodWatch,
    rate_limit::RateLimits,
    reaper::{Reaper, Tracer},
    token_service::{Calls, Disagreements, Judge, Strangers, TokenService},
};

/// A renewed certificate and a new replica get their share of the connections within this time.
const MAX_CONNECTION_AGE: Duration = Duration::from_mins(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest message taken: a few dozen tokens, or the identifiers of what a full node holds, each volume with several.
const MAX_MESSAGE: usize = 1024 * 1024;

/// Calls that one node plugin may have under way, and the largest headers of one: a JWT and a little more.
const CALLS_PER_CONNECTION: u32 = 256;
const MAX_HEADERS: u32 = 16 * 1024;

/// A bound controller, not serving yet.
pub(crate) struct App {
    listener: TcpListener,
    health_endpoint: Endpoint,
    health: Health,
    tls: Arc<Tls>,
    login: Arc<Login>,
    name_nodes: BTreeMap<String, NameNode>,
    service: TokenService,
    events: events::Writer,
    lease: Lease,
    reaper: Arc<Reaper>,
    limits: Limits,
    /// Work that outlives the call that asked for it: tokens being fetched or cancelled.
    work: TaskTracker,
}

impl App {
    /// Binds every address and prepares every part. Needs neither KDC nor NameNode nor API server to be up.
    pub(crate) async fn bind(config: Config) -> anyhow::Result<Self> {
        let Config { listen, health_address, tls, login, policy, seal_keys, directory, .. } = config;
        let Config { owners, recheck, audit, clusters, limits, job_grace, lease, .. } = config;
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry, clusters.keys().map(String::as_str));
        let audit = Audit::open(audit, metrics.clone())?;
        let api_server = ApiServer::infer().await.context("no way to the Kubernetes API server")?;
        let (events, events_writer) = Events::new(api_server.client(), instance());
        Metrics::register_events(&mut registry, events.counters());

        let work = TaskTracker::new();
        let ledger = Ledger::new(api_server.client(), work.clone());
        Metrics::register_ledger(&mut registry, ledger.clone());
        let renewer = login.principal().primary().to_owned();
        let bounds = Bounds { calls: limits.concurrent_calls, queue: limits.waiting_calls };
        let mut name_nodes = BTreeMap::new();
        let mut issuers = BTreeMap::new();
        for (name, site) in clusters {
            let name_node = NameNode::new(site.namenode, login.clone());
            let authority = Arc::new(name_node.clone());
            let (renewer, ledger, audit, metrics) =
                (renewer.clone(), ledger.clone(), audit.clone(), metrics.clone());
            let tasks = work.clone();
            let issuer = Issuer::new(name.clone(), authority, renewer, bounds, ledger, tasks, audit, metrics);
            issuers.insert(name.clone(), Arc::new(issuer));
            name_nodes.insert(name, name_node);
        }

        let jobs = Arc::new(Jobs::new(ledger.clone(), api_server.clone()));
        let judge = Judge {
            nonces: Judge::nonces(policy.trust, recheck),
            policy,
            api_server,
            owners,
            seal_keys: seal_keys.map(Arc::new),
            directory,
            pods: PodWatch::default(),
            disagreements: Disagreements::default(),
            limits: Arc::new(RateLimits::new(&limits.rates, metrics.clone())),
        };
        let reaper = Reaper {
            ledger: ledger.clone(),
            pods: judge.pods.clone(),
            api_server: judge.api_server.clone(),
            issuers: issuers.clone(),
            audit: audit.clone(),
            metrics: metrics.clone(),
            grace: job_grace,
            share: limits.concurrent_calls,
            tracer: Arc::new(Tracer::new(limits.trace_attempts, judge.policy.driver.namespace.clone())),
        };
        // Two processes never have the same name, not even one after the other in the same pod.
        let replica = format!("{}_{:016x}", instance(), fastrand::u64(..));
        let client = judge.api_server.client();
        let lease = Lease::new(client, &lease.namespace, &lease.name, replica, metrics.leader.clone());
        let health = Health::default();
        Ok(Self {
            listener: bind(listen).await?,
            health_endpoint: Endpoint::bind(health_address, health.clone())
                .await
                .with_context(|| format!("cannot bind {health_address}"))?
                .with_metrics(registry),
            health,
            tls: Arc::new(tls),
            login,
            name_nodes,
            service: TokenService {
                judge,
                issuers,
                ledger,
                jobs,
                audit,
                metrics,
                events,
                recheck,
                strangers: Strangers::default(),
                work: work.clone(),
            },
            events: events_writer,
            lease,
            reaper: Arc::new(reaper),
            limits,
            work,
        })
    }

    /// Serves until `terminated`, then lets calls under way end, and tokens that nobody took over be cancelled.
    pub(crate) async fn run(self, terminated: impl Future<Output = io::Result<()>>) -> anyhow::Result<()> {
        let (stop, end) = (CancellationToken::new(), CancellationToken::new());
        self.watch_needs(&stop);
        info!(
            address = %self.listener.local_addr()?,
            api_server = self.service.judge.api_server.address(),
            principal = %self.login.principal(),
            version = env!("CARGO_PKG_VERSION"),
            "Listening"
        );
        if self.service.judge.is_insecure() {
            warn!("Annotations are believed without a seal: whoever may create a pod can be any Hadoop user");
        }
        let mut upkeep = JoinSet::new();
        let judge = &self.service.judge;
        upkeep.spawn(self.tls.clone().keep_fresh(stop.clone()));
        upkeep.spawn(judge.limits.clone().keep_small(stop.clone()));
        upkeep.spawn(self.events.run(stop.clone()));
        let pods = Api::all(judge.api_server.client());
        upkeep.spawn(judge.pods.clone().run(pods, self.health.needs("pods"), stop.clone()));
        let ledger = self.service.ledger.clone();
        upkeep.spawn(self.reaper.tracer.clone().listen(ledger.clone(), stop.clone()));
        upkeep.spawn(ledger.run(self.health.needs("ledger"), stop.clone()));
        let (reaper, lease) = (self.reaper, self.health.shows("lease"));
        let reap = move |term| {
            let reaper = reaper.clone();
            async move { reaper.work(term).await }
        };
        upkeep.spawn(self.lease.run(reap, lease, stop.clone()));
        upkeep.spawn(self.service.jobs.clone().keep_small(stop.clone()));
        if let Some(seal_keys) = judge.seal_keys.clone() {
            upkeep.spawn(seal_keys.keep_fresh(stop.clone()));
        }

        let (work, grace) = (self.work, Duration::from_secs(self.limits.drain_seconds));
        let connections = tls::connections(self.listener, self.tls, self.limits.connections, stop.clone());
        let service =
            TokenServiceServer::new(Calls(Arc::new(self.service))).max_decoding_message_size(MAX_MESSAGE);
        let mut server = tokio::spawn(
            Server::builder()
                .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
                .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
                .http2_max_header_list_size(MAX_HEADERS)
                .max_concurrent_streams(CALLS_PER_CONNECTION)
                .max_connection_age(MAX_CONNECTION_AGE)
                .add_service(service)
                .serve_with_incoming_shutdown(connections, stop.clone().cancelled_owned()),
        );
        // Health is answered until the very end, so that a drain is not taken for a crash.
        let mut health = tokio::spawn(self.health_endpoint.serve(end.clone()));
        tokio::select! {
            signal = terminated => signal.context("cannot wait for signals")?,
            ended = &mut server => {
                ended.context("the token service crashed")?.context("the token service failed")?;
                bail!("the token service ended by itself");
            }
            ended = &mut health => {
                ended.context("the health endpoint crashed")?.context("the health endpoint failed")?;
                bail!("the health endpoint ended by itself");
            }
            Some(ended) = upkeep.join_next() => {
                ended.context("a task in the background crashed")?;
                bail!("a task in the background ended by itself");
            }
        }
        stop.cancel();
        let drain = timeout(grace, async {
            server.await.context("the token service crashed")?.context("the token service failed")?;
            // The lease is released, so that another replica need not wait.
            while upkeep.join_next().await.is_some() {}
            work.close();
            work.wait().await;
            anyhow::Ok(())
        });
        match drain.await {
            Ok(outcome) => outcome?,
            Err(_) => warn!(?grace, unfinished = work.len(), "Did not drain in time"),
        }
        end.cancel();
        health.await.context("the health endpoint crashed")?.context("the health endpoint failed")
    }

    /// Starts what looks after our needs.
    fn watch_needs(&self, stop: &CancellationToken) {
        let need = |name: &str| (name.to_owned(), self.health.needs(name), stop.clone());
        let show = |name: &str| (name.to_owned(), self.health.shows(name), stop.clone());
        let (name, check, until) = need("kerberos");
        let login = self.login.clone();
        tokio::spawn(health::watch(name, check, until, move || {
            let login = login.clone();
            async move { login.check().await }
        }));
        let (name, check, until) = need("kubernetes");
        let api_server = self.service.judge.api_server.clone();
        tokio::spawn(health::watch(name, check, until, move || {
            let api_server = api_server.clone();
            async move { api_server.check().await }
        }));
        let (name, check, until) = need("audit");
        let audit = self.service.audit.clone();
        tokio::spawn(health::watch(name, check, until, move || {
            let audit = audit.clone();
            async move { audit.ready().await }
        }));
        if let Some(directory) = self.service.judge.directory.clone() {
            // Without it refusals name it, which they could not if nobody were sent here.
            let (name, check, until) = show("directory");
            tokio::spawn(health::watch(name, check, until, move || {
                let directory = directory.clone();
                async move { directory.check().await }
            }));
        }
        for (cluster, name_node) in &self.name_nodes {
            let name_node = name_node.clone();
            // One of several clusters may be away for long; the others' pods need us all the same.
            let needed = self.service.judge.policy.default_cluster.as_ref() == Some(cluster);
            let name = format!("namenode/{cluster}");
            let (name, check, until) = if needed { need(&name) } else { show(&name) };
            tokio::spawn(health::watch(name, check, until, move || {
                let name_node = name_node.clone();
                async move { name_node.server_defaults().await.map(drop) }
            }));
        }
    }
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot bind {address}"))
}

/// What tells this controller from its replicas: the pod's name, inside Kubernetes.
fn instance() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "controller".to_owned() } else { name.to_owned() }
}
