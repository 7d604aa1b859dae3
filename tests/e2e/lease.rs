//! Two controllers, of which one runs in a network of its own that can be cut, with a clock ten minutes ahead or behind:
//! at every moment one of them at most cancels what pods leave behind.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use bed::{
    Bed,
    harness::Test,
    host::{NODE_IP, SECOND_CONTROLLER_IP},
    process::{Daemon, until},
    product::NAMESPACE,
    second_controller::SecondController,
    users::JOBS,
};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use tokio::time::{Instant, sleep};

use crate::{
    attacks::stage::{Lair, Prey, Stage, draft, sealed},
    objects::{number, objects, the_one_of},
    promptness::Cancels,
};

/// How long a leader that says nothing more stays one for the others.
const LEASE: Duration = Duration::from_secs(15);
/// When it must itself have stopped: it tries to say something for so long.
const DEADLINE: Duration = Duration::from_secs(10);
/// What a busy machine may need on top.
const SLACK: Duration = Duration::from_secs(5);
/// From the end of one who leads to another: a lease, begun when it was last seen renewed, and two tries to take it.
const TAKEOVER_LIMIT: Duration = Duration::from_secs(40);
/// Who leads cancels so soon.
const CANCEL_LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![two_controllers_with_other_clocks_and_a_cut_cable_never_both_cancel]
}

async fn two_controllers_with_other_clocks_and_a_cut_cable_never_both_cancel(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let lair = Lair::of(&stage).await?;
    let second = SecondController::join(bed).await?;
    let processes = ["+600", "-600"].map(|clock| second.process_with_clock(clock));
    let outcome = take_turns(bed, &lair, &second, &processes).await;
    for started in &processes {
        if started.pid().await.is_some() {
            started.stop().await?;
        }
    }
    second.leave().await?;
    bed.product().await?.start_controller().await?;
    outcome?;
    lair.leave().await
}

async fn take_turns(
    bed: &Bed,
    lair: &Lair<'_>,
    second: &SecondController,
    [ahead, behind]: &[Daemon; 2],
) -> Result<()> {
    let (product, cancels) = (bed.product().await?, Cancels::follow(bed.main())?);
    let mut left = Vec::new();
    for index in 0..5 {
        left.push(Left::behind(bed, lair, &format!("left-{index}")).await?);
    }
    let [one, two, three, four, five] = left.as_slice() else { anyhow::bail!("not five") };
    let first_holder = holder(bed).await?;

    // A clock that is ahead sees a lease that is long over, and takes nothing by it.
    ahead.start().await?;
    second.until_ready(ahead).await?;
    sleep(LEASE + SLACK).await;
    ensure!(holder(bed).await? == first_holder, "the second has taken the lease from a living leader");
    one.revoked_and_cancelled_by(bed, &cancels, NODE_IP).await?;

    // One that is behind takes over all the same when the first one goes, and keeps it when the first comes back.
    ahead.stop().await?;
    behind.start().await?;
    second.until_ready(behind).await?;
    product.stop_controller().await?;
    let second_holder = until_holder_other_than(bed, &first_holder).await?;
    two.revoked_and_cancelled_by(bed, &cancels, SECOND_CONTROLLER_IP).await?;
    product.start_controller().await?;
    three.revoked_and_cancelled_by(bed, &cancels, SECOND_CONTROLLER_IP).await?;

    // Cut off, it stops by itself before another begins. What was left meanwhile is cancelled by that one alone.
    let log = fs::metadata(behind.log())?.len();
    second.cut_cable().await?;
    let cut = Instant::now();
    four.revoke(bed).await?;
    let stopped = async {
        until("leading no more: who was cut off", DEADLINE + SLACK, async || {
            let said = fs::read_to_string(behind.log())?;
            let said = said.get(usize::try_from(log)?..).unwrap_or_default();
            ensure!(said.contains("Leads no more"), "it says {said}");
            Ok(Instant::now())
        })
        .await
    };
    let (stopped, taken) = tokio::join!(stopped, async {
        let third_holder = until_holder_other_than(bed, &second_holder).await?;
        anyhow::Ok((Instant::now(), third_holder))
    });
    let (stopped, (taken, third_holder)) = (stopped?, taken?);
    ensure!(stopped < taken, "it went on for {:?} after another began", stopped - taken);
    ensure!(stopped - cut < DEADLINE + SLACK, "it stopped only after {:?}", stopped - cut);
    four.cancelled_by(&cancels, NODE_IP).await?;

    // Back again, it does nothing as long as another leads.
    second.mend_cable().await?;
    second.until_ready(behind).await?;
    five.revoked_and_cancelled_by(bed, &cancels, NODE_IP).await?;
    ensure!(holder(bed).await? == third_holder, "the lease has changed hands once more");
    for token in left {
        let attempts = cancels.of(token.number);
        ensure!(attempts.len() == 1, "token {} was cancelled more than once: {attempts:?}", token.number);
        lair.forget(&token.prey).await?;
    }
    Ok(())
}

/// A token of a pod that nobody runs: only who leads will ever cancel it.
struct Left {
    prey: Prey,
    object: String,
    number: u32,
}

impl Left {
    async fn behind(bed: &Bed, lair: &Lair<'_>, name: &str) -> Result<Self> {
        let prey = lair.create(&sealed(bed.kubernetes().sealing_key(), draft(name), "etl")?).await?;
        lair.caller().clone().issue(prey.issue()).await?;
        let object = the_one_of(bed, &prey.uid).await?;
        Ok(Self { prey, object: object.name_any(), number: number(&object)? })
    }

    async fn revoke(&self, bed: &Bed) -> Result<()> {
        let objects = objects(bed.kubernetes().client(), JOBS);
        objects.delete(&self.object, &DeleteParams::default()).await?;
        Ok(())
    }

    async fn cancelled_by(&self, cancels: &Cancels, address: &str) -> Result<()> {
        let cancel = cancels.until(self.number, CANCEL_LIMIT).await?;
        ensure!(cancel.address == address, "cancelled by {}, not by {address}", cancel.address);
        Ok(())
    }

    async fn revoked_and_cancelled_by(&self, bed: &Bed, cancels: &Cancels, address: &str) -> Result<()> {
        self.revoke(bed).await?;
        self.cancelled_by(cancels, address).await
    }
}

/// Who leads, as the one Lease in the product's namespace says.
async fn holder(bed: &Bed) -> Result<String> {
    let leases: Api<Lease> = Api::namespaced(bed.kubernetes().client(), NAMESPACE);
    let mut found = leases.list(&ListParams::default()).await?.items;
    let names: Vec<String> = found.iter().map(ResourceExt::name_any).collect();
    ensure!(found.len() == 1, "the leases {names:?}");
    let holder = found.pop().and_then(|lease| lease.spec).and_then(|spec| spec.holder_identity);
    Ok(holder.unwrap_or_default())
}

async fn until_holder_other_than(bed: &Bed, before: &str) -> Result<String> {
    until("led by another", TAKEOVER_LIMIT, async || {
        let now = holder(bed).await?;
        ensure!(!now.is_empty() && now != before, "led by {now:?}");
        Ok(now)
    })
    .await
}
