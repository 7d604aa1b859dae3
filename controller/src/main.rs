//! `hadoop-token-csi-controller`: the token service. What it does is in the library.

use std::process::ExitCode;

use clap::Parser;
use tracing::error;

#[tokio::main]
async fn main() -> ExitCode {
    match controller::run(controller::Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!(error = format!("{failure:#}"), "Failed");
            ExitCode::FAILURE
        }
    }
}
