//! `bed`: brings up the test bed, with the product or without, and runs a command or a shell in it.

use std::{
    os::unix::process::ExitStatusExt,
    process::{ExitCode, ExitStatus},
};

use anyhow::{Context, Result};
use bed::{
    Bed, Options,
    isolate::{ROLE, Side, enter, stay_outside},
    process::Program,
    product::{Need, prepare},
    progress::say,
};
use clap::{Parser, Subcommand};

/// A real Kerberos, Hadoop and Kubernetes in namespaces of their own; gone when the command ends.
#[derive(Parser, Debug)]
struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Fetch and build what the bed is made of, and no more.
    Prepare,
    /// Run a command in a bed; kubectl is on its PATH.
    Run {
        /// Leave the product out.
        #[arg(long)]
        bare: bool,
        /// The command and its arguments.
        #[arg(required = true, trailing_var_arg = true)]
        command: Vec<String>,
    },
    /// Open a shell in a bed.
    Shell {
        /// Leave the product out.
        #[arg(long)]
        bare: bool,
    },
}

fn main() -> ExitCode {
    match run(&Args::parse().action) {
        Ok(code) => code,
        Err(error) => {
            say(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(action: &Action) -> Result<ExitCode> {
    let (bare, command) = match action {
        Action::Prepare => return stay_outside(async || prepare(Need::Product).await),
        Action::Run { bare, command } => (*bare, command.clone()),
        Action::Shell { bare } => {
            (*bare, vec![std::env::var("SHELL").unwrap_or_else(|_| "/bin/bash".into())])
        }
    };
    let need = if bare { Need::Bed } else { Need::Product };
    if let Side::Outside(code) = enter(|| prepare(need))? {
        return Ok(code);
    }
    tokio::runtime::Runtime::new()?.block_on(inside(bare, &command))
}

async fn inside(bare: bool, command: &[String]) -> Result<ExitCode> {
    let bed = Bed::start(Options::default()).await?;
    if !bare {
        bed.product().await?;
    }
    let (program, arguments) = command.split_first().context("there is no command")?;
    let mut command = bed.environment(Program::new(program).args(arguments))?.command();
    let status =
        command.env_remove(ROLE).status().await.with_context(|| format!("failed to run {program}"))?;
    Ok(exit_code(status))
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}
