//! Tokens a second, latency, and the client's CPU per token, against the Java peer of `IssuePeer.java`: for distinct
//! users, each of which costs a Kerberos handshake, and for one user. Both clients are processes of their own, which
//! measure themselves.

use std::{
    env,
    io::{Write as _, stdout},
    ops::Range,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bed::{Bed, kdc::SUPERUSER, process::Program, progress::phase};
use hadoop::{HadoopUser, kerberos::Login, namenode::NameNode, site::Site};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};
use serde::{Deserialize, Serialize};

use crate::{pods::resident, report::Report};

/// How many users `bench0000`, `bench0001`, … the bed must know: those measured and those that warm up before. They
/// are others, because a connection that is still open from the warm-up would spare us a handshake that the peer pays.
pub(crate) const USERS: u32 = 1_300;

const AT_ONCE: usize = 8;
const RUNS: usize = 3;
/// First argument that makes this program the client.
const CLIENT: &str = "issue";

/// Who the tokens are for.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    word: &'static str,
    warm_up: usize,
    count: usize,
}

const CASES: [Case; 2] = [
    Case { name: "issue_distinct_users", word: "distinct", warm_up: 300, count: 1_000 },
    Case { name: "issue_one_user", word: "one", warm_up: 10_000, count: 20_000 },
];

/// What a client measured.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Figures {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    cpu_ms: f64,
    rss_mib: f64,
}

pub(crate) async fn measure(bed: &Bed, report: &mut Report) -> Result<()> {
    let peer = compile(bed).await?;
    let ours = bed.kdc().client(Program::new(env::current_exe()?).arg(CLIENT));
    let mut peer_memory = Vec::new();
    for case in CASES {
        let (mut our_runs, mut peer_runs) = (Vec::new(), Vec::new());
        phase(&format!("Measuring {}", case.name), async {
            for _ in 0..RUNS {
                our_runs.push(run(bed, &ours, case).await?);
                peer_runs.push(run(bed, &peer, case).await?);
            }
            Ok(())
        })
        .await?;
        let column = |runs: &[Figures], of: fn(&Figures) -> f64| runs.iter().map(of).collect::<Vec<_>>();
        let mut add = |suffix: &str, unit, of: fn(&Figures) -> f64| {
            report.add(
                format!("{}{suffix}", case.name),
                unit,
                &column(&our_runs, of),
                &column(&peer_runs, of),
            );
        };
        add("", "tokens/s", |figures| figures.per_second);
        add("_p50", "ms", |figures| figures.p50_ms);
        add("_p99", "ms", |figures| figures.p99_ms);
        add("_client_cpu", "ms/token", |figures| figures.cpu_ms);
        peer_memory.extend(column(&peer_runs, |figures| figures.rss_mib));
    }
    report.add("controller_rss", "MiB", &[resident("hadoop-token-csi-controller")?], &peer_memory);
    Ok(())
}

async fn run(bed: &Bed, client: &Program, case: Case) -> Result<Figures> {
    let settings = bed.client_configurations().join("main");
    let program = client.clone().arg(settings).arg(SUPERUSER).arg(bed.kdc().keytab("csi.keytab")).args([
        "csi",
        case.word,
        &AT_ONCE.to_string(),
        &case.warm_up.to_string(),
        &case.count.to_string(),
    ]);
    let output = program.succeed().await?;
    serde_json::from_str(&output).with_context(|| format!("no figures: {output}"))
}

/// The peer, compiled: the same arguments as ours follow.
async fn compile(bed: &Bed) -> Result<Program> {
    let classes = bed.state().join("peer");
    let jars = format!("{}/*", bed.tools().hadoop.display());
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/IssuePeer.java");
    Program::new(bed.tools().java_home.join("bin/javac"))
        .args(["-cp", &jars, "-d"])
        .arg(&classes)
        .arg(source)
        .succeed()
        .await?;
    Ok(Program::new(bed.tools().java_home.join("bin/java"))
        .arg(format!("-Djava.security.krb5.conf={}", bed.kdc().client_configuration().display()))
        .arg("-cp")
        .arg(format!("{}:{jars}", classes.display()))
        .arg("IssuePeer"))
}

/// If this program was called as the client: measures, prints, and is done.
pub(crate) fn as_client() -> Result<Option<ExitCode>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if arguments.first().is_none_or(|first| first != CLIENT) {
        return Ok(None);
    }
    let [_, settings, principal, keytab, renewer, word, at_once, warm_up, count] = arguments.as_slice()
    else {
        anyhow::bail!("the client's arguments are wrong");
    };
    let (at_once, warm_up, count): (usize, usize, usize) =
        (at_once.parse()?, warm_up.parse()?, count.parse()?);
    ensure!(at_once > 0 && count > 0, "nothing to measure");
    let distinct = word == "distinct";
    tokio::runtime::Runtime::new()?.block_on(async {
        let site = Site::load(&PathBuf::from(settings))?;
        let login = Arc::new(Login::open(principal.parse()?, &PathBuf::from(keytab))?);
        let client = Arc::new(Client {
            namenode: NameNode::new(site.namenode, login),
            renewer: renewer.clone(),
            distinct,
        });
        client.run(at_once, count..count + warm_up).await?;
        let cpu = cpu()?;
        let start = Instant::now();
        let mut latencies = client.run(at_once, 0..count).await?;
        let (elapsed, cpu) = (start.elapsed(), self::cpu()? - cpu);
        latencies.sort_unstable();
        let milliseconds =
            |duration: Option<&Duration>| duration.map_or(f64::NAN, |duration| duration.as_secs_f64() * 1e3);
        let figures = Figures {
            per_second: count as f64 / elapsed.as_secs_f64(),
            p50_ms: milliseconds(latencies.get(count / 2)),
            p99_ms: milliseconds(latencies.get(count * 99 / 100)),
            cpu_ms: cpu.as_secs_f64() * 1e3 / count as f64,
            rss_mib: 0.0,
        };
        writeln!(stdout(), "{}", serde_json::to_string(&figures)?)?;
        Ok(Some(ExitCode::SUCCESS))
    })
}

struct Client {
    namenode: NameNode,
    renewer: String,
    distinct: bool,
}

impl Client {
    /// Gets a token for each of these numbers, so many at once; how long each took.
    async fn run(self: &Arc<Self>, at_once: usize, numbers: Range<usize>) -> Result<Vec<Duration>> {
        let next = Arc::new(AtomicUsize::new(numbers.start));
        let workers: Vec<_> = (0..at_once)
            .map(|_| {
                let (client, next, end) = (Arc::clone(self), Arc::clone(&next), numbers.end);
                tokio::spawn(async move {
                    let mut latencies = Vec::new();
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= end {
                            return Ok::<_, anyhow::Error>(latencies);
                        }
                        let number = if client.distinct { number } else { 0 };
                        let user: HadoopUser = format!("bench{number:04}").parse()?;
                        let start = Instant::now();
                        client.namenode.get_delegation_token(&user, &client.renewer, "bench").await?;
                        latencies.push(start.elapsed());
                    }
                })
            })
            .collect();
        let mut latencies = Vec::with_capacity(numbers.len());
        for worker in workers {
            latencies.extend(worker.await??);
        }
        Ok(latencies)
    }
}

/// Processor time that this process has used.
fn cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let microseconds = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(microseconds)?))
}
