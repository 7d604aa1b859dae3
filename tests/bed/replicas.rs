//! Two replicas of the controller, of which one at a time is away. Both have addresses of one name, as those of a
//! headless Service have, and it keeps the address of who is away. The node plugin is not told anything else.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::{Api, api::ListParams};

use crate::{
    Bed,
    host::SECOND_CONTROLLER_IP,
    process::{Daemon, Program, until},
    product::CONTROLLER,
    progress::say,
    second_controller::SecondController,
};

/// From one's end to a connection to the other, for which something has to be asked: a stream is opened again in 10 s.
const FOUND_LIMIT: Duration = Duration::from_secs(30);

/// One of two that is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absence {
    /// The one inside the cluster, in good order.
    FirstStopped,
    /// The other one: it runs, and nothing reaches it.
    SecondCutOff,
    /// The other one, without a word.
    SecondKilled,
}

/// All of them. In this order the one that goes is always the one that the node plugin speaks to.
pub const ABSENCES: [Absence; 4] =
    [Absence::FirstStopped, Absence::SecondCutOff, Absence::FirstStopped, Absence::SecondKilled];

impl Absence {
    /// So much longer than else the node plugin may need for a token: until what it sent has arrived nowhere for 5 s,
    /// and kubelet has asked again. Where a connection ends, kubelet asks again all the same.
    #[must_use]
    pub fn reconnecting(self) -> Duration {
        Duration::from_secs(match self {
            Self::FirstStopped | Self::SecondKilled => 1,
            Self::SecondCutOff => 7,
        })
    }
}

/// The two. Ends with [`Replicas::one`].
pub struct Replicas<'bed> {
    bed: &'bed Bed,
    second: SecondController,
    process: Daemon,
}

impl<'bed> Replicas<'bed> {
    /// Has a second one besides that in the cluster.
    ///
    /// # Errors
    /// When it does not become ready, or is not found by the name.
    pub async fn two(bed: &'bed Bed) -> Result<Self> {
        let second = SecondController::join(bed).await?;
        let process = second.process();
        process.start().await?;
        second.until_ready(&process).await?;
        bed.kubernetes().add_address(name()?, SECOND_CONTROLLER_IP).await?;
        Ok(Self { bed, second, process })
    }

    /// Has one of them away for as long as `meanwhile` lasts and until the node plugin speaks to the other one, and
    /// waits until it is ready again. A pod may be caught by that once: kubelet's next attempt must reach the other.
    ///
    /// # Errors
    /// When it does not go or come, `meanwhile` fails, or a pod was told twice that the controller cannot be reached.
    pub async fn without(&self, absence: Absence, meanwhile: impl Future<Output = Result<()>>) -> Result<()> {
        let product = self.bed.product().await?;
        let begin = Timestamp::now();
        match absence {
            Absence::FirstStopped => product.stop_controller().await?,
            Absence::SecondCutOff => self.second.cut_cable().await?,
            Absence::SecondKilled => self.process.kill().await?,
        }
        let outcome = async {
            meanwhile.await?;
            let speaks = async || ensure_spoken_to(absence != Absence::FirstStopped).await;
            until("spoken to: the replica that is left", FOUND_LIMIT, speaks).await?;
            let waited = self.nobody_waited_twice_since(begin).await?;
            say(format_args!("{absence:?}: {waited} pods had to ask once more"));
            Ok(())
        };
        let outcome: Result<()> = outcome.await;
        let outcome = outcome.with_context(|| format!("{absence:?}"));
        let back = match absence {
            Absence::FirstStopped => product.start_controller().await,
            Absence::SecondCutOff => self.second.mend_cable().await,
            Absence::SecondKilled => self.process.start().await,
        };
        // What went wrong first is told.
        outcome.and(back)?;
        self.second.until_ready(&self.process).await
    }

    /// kubelet tells pods by events what their volumes wait for, and when, to the second. Gives how many waited once.
    async fn nobody_waited_twice_since(&self, moment: Timestamp) -> Result<usize> {
        let events: Api<Event> = Api::all(self.bed.kubernetes().client());
        let failures = ListParams::default().fields("reason=FailedMount");
        let mut told = BTreeMap::<String, (i32, String)>::new();
        for event in events.list(&failures).await? {
            let message = event.message.unwrap_or_default();
            let is_recent = event.last_timestamp.is_some_and(|last| last.0.as_second() >= moment.as_second());
            if is_recent && message.contains("controller at ") {
                let (times, last) = told.entry(event.involved_object.uid.unwrap_or_default()).or_default();
                *times += event.count.unwrap_or(1);
                *last = format!("{}: {message}", event.involved_object.name.unwrap_or_default());
            }
        }
        let waited = told.len();
        told.retain(|_, (times, _)| *times > 1);
        ensure!(told.is_empty(), "these pods waited for a controller twice and more: {:?}", told.values());
        Ok(waited)
    }

    /// Takes the second one away for good.
    ///
    /// # Errors
    /// When it does not go.
    pub async fn one(self) -> Result<()> {
        self.bed.kubernetes().remove_address(name()?, SECOND_CONTROLLER_IP).await?;
        self.process.stop().await?;
        self.second.leave().await
    }
}

fn name() -> Result<&'static str> {
    Ok(CONTROLLER.split_once(':').context("the controller's address has no port")?.0)
}

/// Whether somebody is connected to the first one or, otherwise, the second.
async fn ensure_spoken_to(first: bool) -> Result<()> {
    let connections = if first { Program::new("ss") } else { SecondController::there("ss") };
    let connections = connections.args(["-H", "-t", "-n", "state", "established", "sport", "=", ":9443"]);
    ensure!(!connections.succeed().await?.trim().is_empty(), "nobody is connected to it");
    Ok(())
}
