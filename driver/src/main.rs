//! CSI node plugin: mounts a pod's Hadoop delegation tokens and keeps them valid. Runs on every node, as root, and
//! has neither a keytab nor any right at the Kubernetes API.

mod app;
#[cfg(test)]
mod bed;
mod clock;
mod config;
mod controller_client;
mod csi;
mod mount;
mod publish_request;
mod refresh;
mod registration;
mod socket;
mod token_dir;
mod volume;

use anyhow::Context;
use clap::Parser;
use tracing::info;

use app::App;
use config::{Args, Config};

/// Threads for what waits for the disk. The rest is one thread's work.
const BLOCKING_THREADS: usize = 4;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    process::log::init(&args.log)?;
    let config = Config::load(&args.config)?; // lists every mistake
    if args.check_config {
        info!(config = %args.config.display(), "The configuration is valid");
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .context("cannot start")?;
    let ended = runtime.block_on(async {
        let version = env!("CARGO_PKG_VERSION");
        info!(node = config.node_name, socket = %config.paths.csi_socket.display(), version, "Starting");
        let app = App::bind(config).await.context("cannot start")?;
        app.run(process::terminated()).await
    });
    runtime.shutdown_background(); // what did not drain in time is not waited for
    ended
}
