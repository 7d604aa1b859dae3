//! `hadoop-token-csi-webhook`: admission of pods and of what makes pods.

mod admission;
mod certificate;
mod conditions;
mod config;
mod controllers;
mod decoration;
mod injection;
mod kinds;
mod metrics;
mod origin;
mod patch;
mod path;
mod reading;
mod refusal;
mod registration;
mod sealing;
mod server;
mod validation;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use process::log::LogArgs;
use tracing::error;

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
    anyhow::bail!("{}", args.config.display());
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
