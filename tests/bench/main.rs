//! `bench`: measures the product against peers in Java and Go on the same bed in the same run, prints a table, and writes
//! `target/bench/results.json`. Ours and the peer's runs alternate, and the median of the runs counts, so that what
//! else the machine does meets both alike. `bench pods tokens reviews` measures some of it.

mod admission;
mod issue;
mod pods;
mod report;

use std::{env, process::ExitCode};

use anyhow::{Context, Result};
use bed::{
    Bed, Options,
    isolate::{Side, enter},
    product::{Need, prepare},
    progress::say,
};

use report::Report;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            say(format_args!("{error:?}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    if let Some(code) = issue::as_client()? {
        return Ok(code);
    }
    if let Side::Outside(code) = enter(|| prepare(Need::Product))? {
        return Ok(code);
    }
    let options = Options { bench_users: issue::USERS, ..Options::default() };
    tokio::runtime::Runtime::new()?.block_on(async {
        let bed = Bed::start(options).await?;
        bed.product().await?;
        let report = measure(&bed).await.map_err(|error| error.context(bed.log_tails()))?;
        report.print()?;
        report.write().context("failed to write the results")?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Measures what the command line names, or all.
async fn measure(bed: &Bed) -> Result<Report> {
    let names: Vec<String> = env::args().skip(1).collect();
    let is_wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    let mut report = Report::default();
    if is_wanted("pods") {
        pods::measure(bed, &mut report).await?;
    }
    if is_wanted("tokens") {
        issue::measure(bed, &mut report).await?;
    }
    // With it, pods are sealed by the webhook.
    if is_wanted("reviews") {
        admission::measure(bed, &mut report).await?;
    }
    Ok(report)
}
