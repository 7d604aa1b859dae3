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
mod pod_network;
mod publish_request;
mod refresh;
mod registration;
mod socket;
mod token_dir;
mod verification;
mod volume;
mod wait;
mod watch;

use std::{io, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use tokio::runtime::Runtime;
use tracing::info;

use app::App;
use config::{Args, Command, Config};

/// Threads for what waits for the disk. The rest is one thread's work.
const BLOCKING_THREADS: usize = 4;

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    if let Some(Command::Wait(args)) = &args.command {
        return runtime()?
            .block_on(wait::run(args, &mut io::stdout()))
            .context("cannot say what is waited for");
    }
    process::log::init(&args.log)?;
    let config = Config::load(&args.config)?; // lists every mistake
    if args.check_config {
        info!(config = %args.config.display(), "The configuration is valid");
        return Ok(ExitCode::SUCCESS);
    }
    let runtime = runtime()?;
    let ended = runtime.block_on(async {
        let version = env!("CARGO_PKG_VERSION");
        info!(node = config.node_name, socket = %config.paths.csi_socket.display(), version, "Starting");
        let app = App::bind(config).await.context("cannot start")?;
        app.run(process::terminated()).await
    });
    runtime.shutdown_background(); // what did not drain in time is not waited for
    ended.map(|()| ExitCode::SUCCESS)
}

fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .context("cannot start")
}
