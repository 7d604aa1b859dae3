//! `torture`: what takes too long for `make test`. The whole fault matrix; each part away for a minute under fifty pods
//! that start and end; a pod that reads across rotations for ten minutes; and a soak, after which the product must be
//! what it was before. Each phase has a limit, prints its figures, and must lose no token and leave nothing.

mod soak;

use std::{
    io::{Write as _, stdout},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use bed::{
    Bed, Options,
    isolate::{Side, enter},
    load::Load,
    matrix::{Fault, Occasion, SIDES, STEPS, Victim},
    namenode::Cluster,
    outage::ALL,
    product::{Need, prepare},
    progress::say,
    reading::across_rotations,
    reckoning::Reckoning,
};
use clap::{Parser, ValueEnum};
use tokio::time::{Instant, timeout};

/// From the last fault to the last token's end.
const SETTLE_LIMIT: Duration = Duration::from_secs(300);
const GONE_LIMIT: Duration = Duration::from_secs(120);

/// Ends programs, takes parts away, and counts what is left.
#[derive(Parser, Debug)]
struct Args {
    /// Phases to go through, in this order; all when none is named.
    phases: Vec<Phase>,
    /// How long each part is away in phase `outages`, in seconds.
    #[arg(long, default_value_t = 60)]
    away: u64,
    /// Parts that go away in phase `outages`: those in whose names this is, as in `Controller`; all without.
    #[arg(long, default_value = "")]
    part: String,
    /// How long pods read in phase `rotation`, in seconds.
    #[arg(long, default_value_t = 600)]
    read: u64,
    /// How long the soak lasts at least, in seconds.
    #[arg(long, default_value_t = 1800)]
    soak: u64,
    /// How many pods live in the soak at least.
    #[arg(long, default_value_t = 2000)]
    lives: usize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Phase {
    Matrix,
    Outages,
    Rotation,
    Soak,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            say(format_args!("{error:?}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<ExitCode> {
    if let Side::Outside(code) = enter(|| prepare(Need::Product))? {
        return Ok(code);
    }
    tokio::runtime::Runtime::new()?.block_on(async {
        let bed = Bed::start(args.options()).await?;
        bed.product().await?;
        let all = Phase::value_variants();
        let phases = if args.phases.is_empty() { all } else { &args.phases };
        for phase in phases {
            let begun = Instant::now();
            let done = timeout(phase.limit(args), phase.run(&bed, args)).await;
            if let Err(error) = done.unwrap_or_else(|_| Err(anyhow::anyhow!("it takes too long"))) {
                return Err(error.context(format!("{phase:?}")).context(bed.log_tails()));
            }
            print(&format!("{phase:?}: done in {:.0} s", begun.elapsed().as_secs_f64()))?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

impl Args {
    /// Tokens are renewed when 70 % of their time is over: what is left must be longer than a part is away, as it is with
    /// the day that Hadoop gives them.
    fn options(&self) -> Options {
        let mut options = Options::default();
        let interval = &mut options.tokens.renew_interval;
        *interval = (*interval).max(Duration::from_secs(5 * self.away));
        options
    }
}

impl Phase {
    /// So long it may take, whatever happens.
    fn limit(self, args: &Args) -> Duration {
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        match self {
            Self::Matrix => minutes(90),
            // One of them goes away four times.
            Self::Outages => minutes(20) + Duration::from_secs(2 * args.away * (ALL.len() + 3) as u64),
            Self::Rotation => minutes(10) + Duration::from_secs(args.read),
            Self::Soak => minutes(60) + Duration::from_secs(2 * args.soak),
        }
    }

    async fn run(self, bed: &Bed, args: &Args) -> Result<()> {
        match self {
            Self::Matrix => matrix(bed).await,
            Self::Outages => outages(bed, &args.part, Duration::from_secs(args.away)).await,
            Self::Rotation => rotation(bed, Duration::from_secs(args.read)).await,
            Self::Soak => soak::soak(bed, Duration::from_secs(args.soak), args.lives).await,
        }
    }
}

async fn matrix(bed: &Bed) -> Result<()> {
    for point in STEPS {
        if point.occasion == Occasion::Renewal {
            bed.private().await?;
        }
        let reckoning = Reckoning::begin(bed).await?;
        let begun = Instant::now();
        let mut pods = Vec::new();
        for side in SIDES {
            for victim in [Victim::Own, Victim::Other, Victim::Both] {
                pods.extend(Fault { point, side, victim }.strike(&reckoning).await?);
            }
        }
        // What living pods do not have must be gone before they end.
        reckoning.settles(SETTLE_LIMIT).await.with_context(|| format!("after {}", point.step))?;
        for pod in pods {
            pod.delete(GONE_LIMIT).await?;
        }
        let account =
            reckoning.closes(SETTLE_LIMIT).await.with_context(|| format!("after {}", point.step))?;
        let (step, seconds) = (point.step, begun.elapsed().as_secs_f64());
        print(&format!("{step}: 6 faults in {seconds:.0} s; {account}"))?;
    }
    Ok(())
}

async fn outages(bed: &Bed, part: &str, away: Duration) -> Result<()> {
    let load = Load { at_once: 50, readers: 5, cluster: Cluster::Main };
    for outage in ALL.into_iter().filter(|outage| format!("{outage:?}").contains(part)) {
        let reckoning = Reckoning::begin(bed).await?;
        let mut window = None;
        let happening = async {
            window = outage.happen(bed, away).await?;
            Ok(())
        };
        let report = load.during(bed, happening).await.with_context(|| format!("{outage:?}"))?;
        report.failed_only_between(window.as_slice()).with_context(|| format!("{outage:?}"))?;
        let account = reckoning.closes(SETTLE_LIMIT).await.with_context(|| format!("after {outage:?}"))?;
        print(&format!("{outage:?} away for {} s: {report}; {account}", away.as_secs()))?;
    }
    Ok(())
}

async fn rotation(bed: &Bed, length: Duration) -> Result<()> {
    bed.private().await?;
    let reckoning = Reckoning::begin(bed).await?;
    // Tokens of 90 s are replaced well before their end: at least so often.
    let rotations = usize::try_from(length.as_secs() / 90)?;
    across_rotations(bed, "rotating", Cluster::Private, length, rotations).await?;
    let account = reckoning.closes(SETTLE_LIMIT).await?;
    print(&format!("read for {} s across at least {rotations} rotations; {account}", length.as_secs()))
}

fn print(line: &str) -> Result<()> {
    Ok(writeln!(stdout(), "{line}")?)
}
