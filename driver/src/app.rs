//! Composition root of the node plugin: binds and opens everything, then starts its tasks, and ends them when the
//! process is asked to stop. Mounts are left alone: pods go on using their tokens while no node plugin runs.

use std::{future::Future, io, time::Duration};

use anyhow::{Context, anyhow};
use process::health::{Endpoint, Health};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    clock::Clock, config::Config, controller_client::ControllerClient, csi, mount::Tmpfs,
    pod_network::Processes, refresh, registration::Registration, socket::Socket, verification,
    volume::lifecycle::Volumes, volume::store::Store, watch,
};

/// How long calls under way may take to end. Kubernetes kills us after 30 s.
const GRACE: Duration = Duration::from_secs(20);

/// The program, ready to run.
pub(crate) struct App {
    config: Config,
    volumes: Volumes,
    csi: Socket,
    registration: Registration,
    health: Endpoint,
}

impl App {
    /// Binds and opens everything that can fail, and serves nothing yet.
    ///
    /// # Errors
    /// When something cannot be bound or opened, with what and why.
    pub(crate) async fn bind(config: Config) -> anyhow::Result<Self> {
        let paths = &config.paths;
        let health = Health::default();
        let registered = health.needs("registration");
        // Shown, but no need: without the controller mounted tokens stay, and volumes can be unpublished.
        let reachable = health.shows("controller");
        let state = &paths.state;
        let store = Store::open(state)
            .with_context(|| format!("cannot open the state directory {}", state.display()))?;
        let clock = Clock::steady(state);
        let controller = ControllerClient::new(&config.controller, clock.clone(), reachable)?;
        let csi = Socket::bind(&paths.csi_socket)?;
        let registration = Registration::bind(&paths.registration, &paths.csi_socket_on_host, registered)?;
        let health = Endpoint::bind(config.health_address, health)
            .await
            .with_context(|| format!("cannot listen on {}", config.health_address))?;
        let volumes =
            Volumes::new(store, Box::new(Tmpfs::new(&config.tmpfs)), Box::new(Processes), controller, clock);
        Ok(Self { config, volumes, csi, registration, health })
    }

    /// Runs until `asked_to_stop` or until a part of it fails.
    ///
    /// # Errors
    /// When a part fails: the process is better started anew than left limping.
    pub(crate) async fn run(self, asked_to_stop: impl Future<Output = io::Result<()>>) -> anyhow::Result<()> {
        let Self { config, volumes, csi, registration, health } = self;
        volumes.recover(&config.paths.pods).context("cannot read the records of volumes")?;

        let stop = CancellationToken::new();
        let mut tasks: JoinSet<(&'static str, anyhow::Result<()>)> = JoinSet::new();
        let (node, pods) = (config.node_name, config.paths.pods);
        let serving = csi::serve(csi, volumes.clone(), node, pods, stop.clone());
        tasks.spawn(async { ("CSI server", serving.await.map_err(Into::into)) });
        // Only now, so that kubelet finds the CSI socket served when it learns of it.
        let registering = registration.serve(stop.clone());
        tasks.spawn(async { ("registration", registering.await.map_err(Into::into)) });
        let answering = health.serve(stop.clone());
        tasks.spawn(async { ("health endpoint", answering.await.map_err(Into::into)) });
        let renewing = refresh::run(volumes.clone(), stop.clone());
        tasks.spawn(async {
            renewing.await;
            ("renewal", Ok(()))
        });
        let checking = verification::run(volumes.clone(), stop.clone());
        tasks.spawn(async {
            checking.await;
            ("checks", Ok(()))
        });
        let watching = watch::run(volumes.clone(), stop.clone());
        tasks.spawn(async {
            watching.await;
            ("watch", Ok(()))
        });
        let releasing = refresh::release::run(volumes.clone(), stop.clone());
        tasks.spawn(async {
            releasing.await;
            ("release", Ok(()))
        });

        let outcome = tokio::select! {
            asked = asked_to_stop => asked.context("cannot wait for a signal"),
            Some(ended) = tasks.join_next() => match ended {
                Ok((task, Ok(()))) => Err(anyhow!("the {task} ended by itself")),
                Ok((task, Err(error))) => Err(error.context(format!("the {task} failed"))),
                Err(error) => Err(anyhow!(error).context("a task ended in a way it must not")),
            },
        };
        stop.cancel();
        let drained = async {
            while tasks.join_next().await.is_some() {}
            volumes.drained().await;
        };
        match timeout_at(Instant::now() + GRACE, drained).await {
            Ok(()) => match Store::leave(&config.paths.state) {
                Ok(true) => info!("Stopped; nothing is left behind, as there are no volumes"),
                Ok(false) => info!("Stopped; volumes stay mounted"),
                Err(error) => warn!(%error, "Stopped; failed to look whether anything is left behind"),
            },
            Err(_) => warn!(grace = ?GRACE, "Stopped while calls were under way; volumes stay mounted"),
        }
        outcome
    }
}

#[cfg(test)]
mod tests;
