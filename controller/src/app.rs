//! The controller put together: binds everything, serves, and stops within a deadline. Knows every part, and no
//! part's business.

use std::{collections::BTreeMap, future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use hadoop::{kerberos::Login, namenode::NameNode};
use process::health::{Endpoint, Health};
use proto::token::v1::token_service_server::TokenServiceServer;
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::Server;
use tracing::{info, warn};

use crate::{
    caller::ApiServer,
    config::{Config, Limits},
    health,
    issuance::Issuer,
    tls::{self, Certificate},
    token_service::TokenService,
};

/// A renewed certificate and a new replica get their share of the connections within this time.
const MAX_CONNECTION_AGE: Duration = Duration::from_mins(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest message taken: a few dozen tokens.
const MAX_MESSAGE: usize = 256 * 1024;

/// A bound controller, not serving yet.
pub(crate) struct App {
    listener: TcpListener,
    health_endpoint: Endpoint,
    health: Health,
    certificate: Arc<Certificate>,
    login: Arc<Login>,
    api_server: ApiServer,
    name_nodes: BTreeMap<String, NameNode>,
    service: TokenService,
    limits: Limits,
    /// Work that outlives the call that asked for it: tokens being fetched or cancelled.
    work: TaskTracker,
}

impl App {
    /// Binds every address and prepares every part. Needs neither KDC nor NameNode nor API server to be up.
    pub(crate) async fn bind(config: Config) -> anyhow::Result<Self> {
        let Config { listen, health_address, certificate, login, policy, clusters, limits } = config;
        let api_server = ApiServer::infer().await.context("no way to the Kubernetes API server")?;
        let work = TaskTracker::new();
        let renewer = login.principal().primary().to_owned();
        let mut name_nodes = BTreeMap::new();
        let mut issuers = BTreeMap::new();
        for (name, site) in clusters {
            let name_node = NameNode::new(site.namenode, login.clone());
            let authority = Arc::new(name_node.clone());
            let permits = Arc::new(Semaphore::new(limits.concurrent_calls));
            let issuer = Issuer::new(name.clone(), authority, renewer.clone(), permits, work.clone());
            issuers.insert(name.clone(), Arc::new(issuer));
            name_nodes.insert(name, name_node);
        }
        let health = Health::default();
        Ok(Self {
            listener: bind(listen).await?,
            health_endpoint: Endpoint::bind(health_address, health.clone())
                .await
                .with_context(|| format!("cannot bind {health_address}"))?,
            health,
            certificate: Arc::new(certificate),
            login,
            service: TokenService { api_server: api_server.clone(), policy, issuers },
            api_server,
            name_nodes,
            limits,
            work,
        })
    }

    /// Serves until `terminated`, then lets calls under way end, and tokens that nobody took over be cancelled.
    pub(crate) async fn run(self, terminated: impl Future<Output = io::Result<()>>) -> anyhow::Result<()> {
        let (stop, end) = (CancellationToken::new(), CancellationToken::new());
        self.watch(&stop);
        info!(
            address = %self.listener.local_addr()?,
            api_server = self.api_server.address(),
            principal = %self.login.principal(),
            version = env!("CARGO_PKG_VERSION"),
            "Listening"
        );
        let (work, grace) = (self.work, Duration::from_secs(self.limits.drain_seconds));
        let connections = tls::connections(
            self.listener,
            self.certificate.server_config(),
            self.limits.connections,
            stop.clone(),
        );
        let service = TokenServiceServer::new(self.service).max_decoding_message_size(MAX_MESSAGE);
        let mut server = tokio::spawn(
            Server::builder()
                .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
                .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
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
        }
        stop.cancel();
        let drain = timeout(grace, async {
            server.await.context("the token service crashed")?.context("the token service failed")?;
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

    /// Starts what looks after the certificate and after what we need.
    fn watch(&self, stop: &CancellationToken) {
        tokio::spawn(self.certificate.clone().keep_fresh(stop.clone()));

        let login = self.login.clone();
        let need = |name: &str| (name.to_owned(), self.health.needs(name), stop.clone());
        let show = |name: &str| (name.to_owned(), self.health.shows(name), stop.clone());
        let (name, check, until) = need("kerberos");
        tokio::spawn(health::watch(name, check, until, move || {
            let login = login.clone();
            async move { login.check().await }
        }));
        let api_server = self.api_server.clone();
        let (name, check, until) = need("kubernetes");
        tokio::spawn(health::watch(name, check, until, move || {
            let api_server = api_server.clone();
            async move { api_server.check().await }
        }));
        for (cluster, name_node) in &self.name_nodes {
            let name_node = name_node.clone();
            // One of several clusters may be away for long; the others' pods need us all the same.
            let needed = self.service.policy.default_cluster.as_ref() == Some(cluster);
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
