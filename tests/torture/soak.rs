//! Pods live and die for a long time, and what the product then holds is what it held before: memory, files, threads,
//! mounts, the ledger.

use std::{cell::Cell, fmt, time::Duration};

use anyhow::{Result, ensure};
use bed::{
    Bed,
    load::Load,
    namenode::Cluster,
    process::Footprint,
    product::Part,
    reckoning::{Reckoning, ledger_size, mounts},
};
use tokio::time::{Instant, sleep};

use crate::{SETTLE_LIMIT, print};

/// First, so many pods live, that everything is as large as it is in use.
const WARM_UP: usize = 100;
const LOAD: Load = Load { at_once: 8, readers: 2, cluster: Cluster::Main };
const PAUSE: Duration = Duration::from_millis(500);
const PROBE: Duration = Duration::from_secs(60);
/// An allocator keeps some of what it had.
const MEMORY_NOISE_KIB: u64 = 4096;
/// Connections that are open just now, to the API server, the NameNode and the other program, and tokio's helpers.
const FILE_NOISE: usize = 8;
const THREAD_NOISE: usize = 4;

/// What there is at one moment, nothing of the load being there.
struct Held {
    driver: Footprint,
    controller: Footprint,
    mounts: usize,
    ledger: usize,
}

pub(crate) async fn soak(bed: &Bed, length: Duration, lives: usize) -> Result<()> {
    let reckoning = Reckoning::begin(bed).await?;
    let warm_up = Cell::new(0);
    let report = LOAD.counting(bed, &warm_up, until_lived(&warm_up, WARM_UP)).await?;
    reckoning.settles(SETTLE_LIMIT).await?;
    let before = Held::now(bed).await?;
    print(&format!("before: {report}; {before}"))?;

    let (begun, lived) = (Instant::now(), Cell::new(0));
    let shown = async {
        while begun.elapsed() < length {
            sleep(PROBE.min(length.saturating_sub(begun.elapsed()))).await;
            let (seconds, lives) = (begun.elapsed().as_secs_f64(), lived.get());
            print(&format!("{seconds:5.0} s, {lives:5} lives: {}", Held::now(bed).await?))?;
        }
        until_lived(&lived, lives).await
    };
    let report = LOAD.counting(bed, &lived, shown).await?;
    let account = reckoning.closes(SETTLE_LIMIT).await?;
    let after = Held::now(bed).await?;
    print(&format!("after {:.0} s: {report}; {account}; {after}", begun.elapsed().as_secs_f64()))?;
    after.is_no_more_than(&before)
}

async fn until_lived(lived: &Cell<usize>, lives: usize) -> Result<()> {
    while lived.get() < lives {
        sleep(PAUSE).await;
    }
    Ok(())
}

impl Held {
    async fn now(bed: &Bed) -> Result<Self> {
        Ok(Self {
            driver: Footprint::of(Part::Driver.pid()?)?,
            controller: Footprint::of(Part::Controller.pid()?)?,
            mounts: mounts()?,
            ledger: ledger_size(bed).await?,
        })
    }

    fn is_no_more_than(&self, before: &Self) -> Result<()> {
        for (name, now, then) in
            [("driver", self.driver, before.driver), ("controller", self.controller, before.controller)]
        {
            let grown = now.resident_kib > then.resident_kib + MEMORY_NOISE_KIB
                || now.files > then.files + FILE_NOISE
                || now.threads > then.threads + THREAD_NOISE;
            ensure!(!grown, "the {name} has grown: {now}, was {then}");
        }
        ensure!(self.mounts <= before.mounts, "{} mounts, were {}", self.mounts, before.mounts);
        ensure!(self.ledger <= before.ledger, "{} in the ledger, were {}", self.ledger, before.ledger);
        Ok(())
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { driver, controller, mounts, ledger } = self;
        write!(f, "driver {driver}; controller {controller}; {mounts} mounts, {ledger} in the ledger")
    }
}
