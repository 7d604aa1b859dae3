//! Gets, renews and cancels delegation tokens against a cluster's configuration folder: to try a configuration before
//! it goes to the controller, and to measure. Reads the keytab; prints identifiers and dates, never a password.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};
use hadoop::kerberos::Login;
use hadoop::namenode::NameNode;
use hadoop::site::Site;
use hadoop::token_file::TokenFile;
use hadoop::{HadoopUser, Principal, Token};

/// Gets, renews and cancels Hadoop delegation tokens.
#[derive(Parser)]
struct Args {
    /// Folder with the cluster's core-site.xml and hdfs-site.xml.
    #[arg(long)]
    conf: PathBuf,
    /// Our Kerberos principal, with its realm.
    #[arg(long)]
    principal: Principal,
    /// Keytab with a key of the principal.
    #[arg(long)]
    keytab: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Gets a token for a user and writes it to a token file.
    Get {
        user: HadoopUser,
        /// File to write; nothing may be there.
        file: PathBuf,
        /// Who may renew it; ourselves if left out.
        #[arg(long)]
        renewer: Option<String>,
    },
    /// Renews the tokens of a token file.
    Renew { file: PathBuf },
    /// Cancels the tokens of a token file.
    Cancel { file: PathBuf },
    /// Logs in and asks the NameNode for its defaults.
    Defaults,
    /// Gets tokens at full speed, each for the next of some users named PREFIX0, PREFIX1, ..., and cancels them.
    Bench {
        prefix: String,
        #[arg(long, default_value_t = 1)]
        users: usize,
        #[arg(long, default_value_t = 8)]
        at_once: usize,
        #[arg(long, default_value_t = 1000)]
        tokens: usize,
    },
}

#[tokio::main]
#[allow(clippy::print_stdout)]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let site = Site::load(&args.conf)?;
    let login = Arc::new(Login::open(args.principal, &args.keytab)?);
    let namenode = NameNode::new(site.namenode, login.clone());
    let result = run(args.command, &login, &namenode).await;
    if let Some(error) = result.as_ref().err().and_then(|error| error.downcast_ref::<hadoop::Error>()) {
        println!("reason {} retryable {}", error.reason(), error.retryable());
    }
    result
}

#[allow(clippy::print_stdout)]
async fn run(command: Command, login: &Login, namenode: &NameNode) -> anyhow::Result<()> {
    match command {
        Command::Get { user, file, renewer } => {
            let renewer = renewer.unwrap_or_else(|| login.principal().to_string());
            let token = namenode.get_delegation_token(&user, &renewer, "example:token").await?;
            println!("{:?}", token.decode_identifier()?);
            let mut tokens = Vec::new();
            for service in namenode.services().await? {
                tokens.push((service.clone(), Token { service, ..token.clone() }));
            }
            write(&file, &TokenFile { tokens, secrets: Vec::new() })
        }
        Command::Renew { file } => {
            for (alias, token) in read(&file)?.tokens {
                println!(
                    "{alias}: expires {}",
                    namenode.renew_delegation_token(&token, "example:token").await?
                );
            }
            Ok(())
        }
        Command::Cancel { file } => {
            for (alias, token) in read(&file)?.tokens {
                println!(
                    "{alias}: {:?}",
                    namenode.cancel_delegation_token(&token.identifier, "example:token").await?
                );
            }
            Ok(())
        }
        Command::Defaults => {
            login.check().await?;
            println!("{:?}, services {:?}", namenode.server_defaults().await?, namenode.services().await?);
            Ok(())
        }
        Command::Bench { prefix, users, at_once, tokens } => {
            bench(login, namenode, &prefix, users, at_once, tokens).await
        }
    }
}

fn read(file: &Path) -> anyhow::Result<TokenFile> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    TokenFile::decode(&bytes).with_context(|| format!("{} is not a token file", file.display()))
}

fn write(file: &Path, tokens: &TokenFile) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let opened = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    let mut opened = opened.with_context(|| format!("cannot create {}", file.display()))?;
    opened.write_all(&tokens.encode_v0()).with_context(|| format!("cannot write {}", file.display()))
}

#[allow(clippy::print_stdout)]
async fn bench(
    login: &Login,
    namenode: &NameNode,
    prefix: &str,
    users: usize,
    at_once: usize,
    tokens: usize,
) -> anyhow::Result<()> {
    ensure!(users > 0 && at_once > 0 && tokens > 0, "at least one user, one call at once and one token");
    let users = (0..users).map(|n| format!("{prefix}{n}").parse()).collect::<Result<Vec<HadoopUser>, _>>()?;
    let (users, renewer) = (Arc::new(users), login.principal().to_string());
    // Whatever happens once: log in, and the ticket for the NameNode.
    namenode.server_defaults().await?;
    let (next, started, cpu) = (Arc::new(AtomicUsize::new(0)), Instant::now(), cpu_time()?);
    let workers: Vec<_> = (0..at_once)
        .map(|_| {
            let (namenode, next, users) = (namenode.clone(), next.clone(), users.clone());
            let renewer = renewer.clone();
            tokio::spawn(async move {
                let mut done = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(user) = users.get(number % users.len()).filter(|_| number < tokens) else {
                        return Ok::<_, hadoop::Error>(done);
                    };
                    let started = Instant::now();
                    let token = namenode.get_delegation_token(user, &renewer, "example:bench").await?;
                    done.push((started.elapsed(), token.identifier));
                }
            })
        })
        .collect();
    let mut done = Vec::new();
    for worker in workers {
        done.extend(worker.await??);
    }
    let (took, cpu) = (started.elapsed(), cpu_time()?.saturating_sub(cpu));
    let mut times: Vec<Duration> = done.iter().map(|(time, _)| *time).collect();
    times.sort();
    let at = |percent: usize| times.get((times.len() - 1) * percent / 100).copied().unwrap_or_default();
    println!(
        "{} tokens in {took:.2?}: {:.0}/s, p50 {:.2?}, p99 {:.2?}, CPU per token {:.2?}",
        done.len(),
        done.len() as f64 / took.as_secs_f64(),
        at(50),
        at(99),
        cpu / u32::try_from(done.len())?
    );
    let started = Instant::now();
    for (_, identifier) in &done {
        namenode.cancel_delegation_token(identifier, "example:token").await?;
    }
    println!("cancelled one by one: {:.0}/s", done.len() as f64 / started.elapsed().as_secs_f64());
    Ok(())
}

/// User and system time of this process, in clock ticks of 10 ms.
fn cpu_time() -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |field: usize| anyhow::Ok(fields.get(field).context("no such field")?.parse::<u64>()?);
    Ok(Duration::from_millis(10 * (ticks(11)? + ticks(12)?)))
}
