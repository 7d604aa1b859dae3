//! `hadoop-token-csi-webhook`: admission of pods and of what makes pods.

mod admission;
mod app;
mod certificate;
mod conditions;
mod config;
mod controllers;
mod decoration;
mod injection;
mod kinds;
mod metrics;
mod origin;
mod own_seal;
mod patch;
mod path;
mod reading;
mod refusal;
mod registration;
mod sealing;
mod server;
mod token_namespaces;
mod validation;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use process::log::LogArgs;
use tracing::error;

use crate::{app::App, config::Config};

/// Admission webhook of hadoop-token-csi.
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
