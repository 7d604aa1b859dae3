//! A second controller, outside of Kubernetes, in a network of its own at the pods' bridge, which can be cut. What it
//! does it does from an address of its own, by which the NameNodes' logs tell it from the one inside.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use anyhow::Result;

use crate::{
    Bed,
    host::{NODE_IP, SECOND_CONTROLLER_IP},
    outside::{Outside, ready},
    process::{Daemon, Program},
};

/// Its network namespace and its user, and the bed's end of the cable to it.
const NAME: &str = "second-controller";
const CABLE: &str = "second0";
const HEALTH_PORT: u16 = 9809;
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
const READY_LIMIT: Duration = Duration::from_secs(60);

/// The place of a second controller: its network, its files and its rights. Ends with [`SecondController::leave`].
pub struct SecondController {
    outside: Outside,
    kerberos: PathBuf,
    logs: PathBuf,
}

impl SecondController {
    /// Makes the place.
    ///
    /// # Errors
    /// When the network cannot be made, or its user cannot be given his rights.
    pub async fn join(bed: &Bed) -> Result<Self> {
        let outside = Outside::of(bed, NAME, &format!("0.0.0.0:{HEALTH_PORT}")).await?;
        for words in [
            &format!("netns add {NAME}"),
            &format!("link add {CABLE} type veth peer name eth0 netns {NAME}"),
            &format!("link set {CABLE} master bed0"),
            &format!("link set {CABLE} up"),
            &format!("-netns {NAME} address add {SECOND_CONTROLLER_IP}/24 dev eth0"),
            &format!("-netns {NAME} link set lo up"),
            &format!("-netns {NAME} link set eth0 up"),
            &format!("-netns {NAME} route add default via {NODE_IP}"),
        ] {
            ip(words).await?;
        }
        let (kerberos, logs) = (bed.kdc().client_configuration(), bed.state().join("logs"));
        Ok(Self { outside, kerberos, logs })
    }

    /// A controller in that place, not started yet.
    #[must_use]
    pub fn process(&self) -> Daemon {
        Daemon::new(NAME, self.program(), &self.logs)
    }

    /// The same with another clock than everybody else has: so many seconds ahead, as in `+600`, or behind.
    #[must_use]
    pub fn process_with_clock(&self, clock: &str) -> Daemon {
        let program = self.program().env("LD_PRELOAD", FAKETIME).env("FAKETIME", clock);
        let program = program.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        Daemon::new(&format!("{NAME}{clock}"), program, &self.logs)
    }

    /// Any program, in its network.
    pub(crate) fn there(program: impl Into<OsString>) -> Program {
        Program::new("ip").args(["netns", "exec", NAME]).arg(program)
    }

    fn program(&self) -> Program {
        let Outside { program, configuration, kubeconfig } = &self.outside;
        Self::there(program)
            .arg("--config")
            .arg(configuration)
            .env("KUBECONFIG", kubeconfig)
            .env("KRB5_CONFIG", &self.kerberos)
    }

    /// Waits until a started one is ready.
    ///
    /// # Errors
    /// When it ends or is not in time.
    pub async fn until_ready(&self, process: &Daemon) -> Result<()> {
        let health = format!("{SECOND_CONTROLLER_IP}:{HEALTH_PORT}");
        process.until("ready", READY_LIMIT, async || ready(&health).await).await
    }

    /// Nothing reaches it any more, and it reaches nobody.
    ///
    /// # Errors
    /// When that fails.
    pub async fn cut_cable(&self) -> Result<()> {
        ip(&format!("link set {CABLE} down")).await
    }

    /// The end of [`Self::cut_cable`].
    ///
    /// # Errors
    /// When that fails.
    pub async fn mend_cable(&self) -> Result<()> {
        ip(&format!("link set {CABLE} up")).await
    }

    /// Removes the place, in which nothing may run any more.
    ///
    /// # Errors
    /// When the network cannot be removed.
    pub async fn leave(self) -> Result<()> {
        ip(&format!("netns delete {NAME}")).await
    }
}

async fn ip(words: &str) -> Result<()> {
    Program::new("ip").args(words.split(' ')).succeed().await.map(drop)
}
