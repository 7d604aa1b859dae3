//! `hadoop-token-csi-controller`: the token service. Holds the superuser's keytab, decides which pod may be which
//! Hadoop user, and gets, renews and cancels tokens. Keeps nothing on disk.

mod app;
mod authorization;
mod caller;
mod cancellation;
mod cluster;
mod config;
mod failure;
mod health;
mod issuance;
mod request;
mod tls;
mod token_service;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use process::log::LogArgs;
use tracing::error;

use crate::{app::App, config::Config};

/// Token service of hadoop-token-csi.
#[derive(Parser, Debug)]
#[command(version)]
struct Args {
    /// Configuration file (YAML).
    #[arg(long)]
    config: PathBuf,
    /// Check the configuration and everything it names, and end.
    #[arg(long)]
    check_config: bool,
    #[command(flatten)]
    log: LogArgs,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!(error = format!("{failure:#}"), "Failed");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    process::log::init(&args.log).context("invalid log filter")?;
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        anyhow::bail!("cryptography is already set up");
    }
    let config = Config::load(&args.config).context("invalid configuration")?;
    if args.check_config {
        return Ok(());
    }
    let app = App::bind(config).await.context("failed to start")?;
    app.run(process::terminated()).await
}
