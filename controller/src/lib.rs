//! The token service: holds the superuser's keytab, decides which pod may be which Hadoop user, and gets, renews and
//! cancels tokens. Keeps no token on disk. A library only so that the benchmark of the decision can reach it.

mod app;
mod audit;
mod authorization;
mod caller;
mod cancellation;
mod cluster;
mod config;
mod directory;
mod events;
mod failure;
mod health;
mod issuance;
mod job;
mod lease;
mod ledger;
mod metrics;
mod node_stream;
mod pod_watch;
mod rate_limit;
mod reaper;
mod request;
mod seal;
mod token_service;
mod turns;

use std::path::PathBuf;

#[cfg(any(test, feature = "bench"))]
pub use authorization::example::Case;

use anyhow::Context;
use clap::Parser;
use hadoop::HadoopUser;
use process::log::LogArgs;

use crate::{app::App, config::Config};

/// Token service of hadoop-token-csi.
#[derive(Parser, Debug)]
#[command(version)]
pub struct Args {
    /// Configuration file (YAML).
    #[arg(long)]
    config: PathBuf,
    /// Check the configuration and everything it names, and end.
    #[arg(long)]
    check_config: bool,
    /// Look up a Hadoop user in the directory, write the groups, and end.
    #[arg(long, value_name = "USER")]
    groups_of: Option<HadoopUser>,
    #[command(flatten)]
    log: LogArgs,
}

/// Serves until a signal ends it.
///
/// # Errors
///
/// Says why it cannot start, or which part of it failed.
pub async fn run(args: Args) -> anyhow::Result<()> {
    process::log::init(&args.log).context("invalid log filter")?;
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        anyhow::bail!("cryptography is already set up");
    }
    let config = Config::load(&args.config).context("invalid configuration")?;
    if args.check_config {
        return Ok(());
    }
    if let Some(user) = args.groups_of {
        let directory = config.directory.context("the configuration has no directory")?;
        return directory.write_groups(&user, std::io::stdout()).await;
    }
    let app = App::bind(config).await.context("failed to start")?;
    app.run(process::terminated()).await
}
