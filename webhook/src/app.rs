//! The webhook put together: binds everything, serves, and stops within a deadline. Knows every part, and no part's
//! business.

mod reviewers;

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use kube::Client;
use process::{
    health::{Check, Endpoint, Health},
    tls::{self, Tls},
};
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::reviewers::{Mutating, Validating};
use crate::{
    certificate::{self, Identity, Rotation},
    config::Config,
    decoration::Decorator,
    metrics::Metrics,
    reading::{ApiServer, Reader},
    registration::{OurOwn, Registrar, Showing, Upkeep, now},
    sealing::Sealing,
    server::{Limits, Server},
    token_namespaces::TokenNamespaces,
};

/// For connecting to the API server, and for writing to it.
const DEADLINE: Duration = Duration::from_secs(5);
/// For one answer of the API server.
const LONGEST_SILENCE: Duration = Duration::from_secs(10);

/// A bound webhook, not serving yet.
pub(crate) struct App {
    listener: TcpListener,
    health_endpoint: Endpoint,
    serving: Check,
    shown: Shown,
    server: Server,
    upkeep: Upkeep,
    namespaces: Arc<TokenNamespaces>,
    client: Client,
    sealing: Arc<Sealing>,
    limits: Limits,
    api_server: String,
}

/// What connections are spoken on.
enum Shown {
    OurOwn(Arc<ArcSwap<ServerConfig>>),
    Files(Arc<Tls>),
}

impl App {
    /// Binds every address and prepares every part. Does not need the API server to be up.
    pub(crate) async fn bind(config: Config) -> anyhow::Result<Self> {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let (client, api_server) = client().await.context("no way to the Kubernetes API server")?;
        let health = Health::default();
        let serving = health.needs("serving");

        let host = config.registration.address().host();
        let (shown, showing) = match config.certificate {
            certificate::Source::Files(tls) => {
                let tls = Arc::new(tls);
                (Shown::Files(tls.clone()), Showing::Files(tls))
            }
            certificate::Source::SelfManaged(own) => {
                let first = Identity::make(&host, now().date, own.lifetime)?;
                let shown = Arc::new(ArcSwap::new(first.server(own.clients.as_ref())?));
                let rotation = Rotation::new(first, own.settling);
                (
                    Shown::OurOwn(shown.clone()),
                    Showing::OurOwn(Box::new(OurOwn { rotation, host, own, shown })),
                )
            }
        };
        let time_limit = config.registration.time_limit();
        let handing_on = config.inherit.iter().map(|entry| entry.namespace.clone()).collect();
        let namespaces = Arc::new(TokenNamespaces::new(handing_on));
        let registrar = Registrar::new(
            client.clone(),
            config.registration,
            config.exempt.iter().cloned().collect(),
            config.entries,
            namespaces.clone(),
            metrics.clone(),
        );
        let upkeep = Upkeep::new(registrar, showing, health.needs("registration"), metrics.clone());

        let reads = Arc::new(ApiServer::new(client.clone()));
        let reader = Arc::new(Reader::new(reads, config.owners, config.kinds.clone()));
        let validate = Arc::new(Validating {
            kinds: config.kinds.clone(),
            interactive: config.interactive,
            injection: config.injection.clone(),
            sealing: config.sealing.clone(),
            reader: reader.clone(),
        });
        let mutate = Arc::new(Mutating(Decorator {
            kinds: config.kinds,
            controllers: config.controllers,
            inherit: config.inherit,
            injection: config.injection,
            scope: config.scope,
            exempt: config.exempt,
            sealing: config.sealing.clone(),
            reader,
            namespaces: namespaces.clone(),
        }));
        let server = Server::new(mutate, validate, &config.limits, time_limit, metrics);
        Ok(Self {
            listener: bind(config.listen).await?,
            health_endpoint: Endpoint::bind(config.health_address, health)
                .await
                .with_context(|| format!("cannot bind {}", config.health_address))?
                .with_metrics(registry),
            serving,
            shown,
            server,
            upkeep,
            namespaces,
            client,
            sealing: config.sealing,
            limits: config.limits,
            api_server,
        })
    }

    /// Serves until `terminated`, and then until API servers ask somebody else and reviews under way are answered.
    pub(crate) async fn run(self, terminated: impl Future<Output = io::Result<()>>) -> anyhow::Result<()> {
        let (leaving, stop, end) =
            (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        info!(
            address = %self.listener.local_addr()?,
            api_server = self.api_server,
            version = env!("CARGO_PKG_VERSION"),
            "Listening"
        );
        let mut background = JoinSet::new();
        background.spawn(self.sealing.keep_fresh(stop.clone()));
        let (namespaces, client, until) = (self.namespaces, self.client, stop.clone());
        background.spawn(async move { namespaces.look(client, until).await });
        let most = self.limits.connections;
        let connections = match self.shown {
            Shown::OurOwn(shown) => tls::connections(self.listener, shown, most, stop.clone()),
            Shown::Files(files) => {
                background.spawn(files.clone().keep_fresh(stop.clone()));
                tls::connections(self.listener, files, most, stop.clone())
            }
        };
        let mut upkeep = tokio::spawn(self.upkeep.run(stop.clone()));
        let mut server = tokio::spawn(self.server.serve(connections, leaving.clone(), stop.clone()));
        // Health is answered until the very end, so that a drain is not taken for a crash.
        let mut health = tokio::spawn(self.health_endpoint.serve(end.clone()));
        self.serving.set(Ok(()));
        tokio::select! {
            signal = terminated => signal.context("cannot wait for signals")?,
            ended = &mut server => {
                ended.context("the server crashed")?;
                bail!("the server ended by itself");
            }
            ended = &mut health => {
                ended.context("the health endpoint crashed")?.context("the health endpoint failed")?;
                bail!("the health endpoint ended by itself");
            }
            ended = &mut upkeep => {
                ended.map(drop).context("the registration crashed")?;
                bail!("the registration ended by itself");
            }
            Some(ended) = background.join_next() => {
                ended.context("a task in the background crashed")?;
                bail!("a task in the background ended by itself");
            }
        }
        // API servers go on asking us until they have heard that we are not to be asked.
        self.serving.set(Err("stopping".to_owned()));
        leaving.cancel();
        sleep(Duration::from_secs(self.limits.linger_seconds)).await;
        stop.cancel();
        let grace = Duration::from_secs(self.limits.drain_seconds);
        match timeout(grace, server).await {
            Ok(ended) => ended.context("the server crashed")?,
            Err(_) => warn!(?grace, "Did not drain in time"),
        }
        upkeep.await.context("the registration crashed")?.leave().await;
        end.cancel();
        health.await.context("the health endpoint crashed")?.context("the health endpoint failed")
    }
}

/// Of the cluster we run in, or of the kubeconfig; and where that is.
async fn client() -> anyhow::Result<(Client, String)> {
    let mut config = kube::Config::infer().await?;
    config.connect_timeout = Some(DEADLINE);
    config.write_timeout = Some(DEADLINE);
    config.read_timeout = Some(LONGEST_SILENCE);
    let address = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    Ok((Client::try_from(config)?, address))
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot bind {address}"))
}

#[cfg(test)]
mod tests;
