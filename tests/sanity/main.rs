//! CSI conformance: csi-sanity, the specification's own test suite, against the real node plugin. It finds nothing wrong,
//! skips nothing but what the node plugin does not claim to do, and leaves nothing behind. The controller is one in
//! memory here: what it answers is not what is examined.

mod controller;
mod report;

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bed::{
    isolate::{Side, enter},
    process::{Daemon, Program, tail, until},
    progress::say,
    provision::{self, Tools},
};
use libtest_mimic::{Arguments, Trial};
use tokio::runtime::Runtime;

use controller::Controller;
use report::Report;

const DRIVER: &str = "hadoop-token-csi-driver";

const START_LIMIT: Duration = Duration::from_secs(30);
const RELEASE_LIMIT: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trial = Trial::test("csi_sanity_finds_nothing_wrong_and_nothing_is_left", || {
        Runtime::new()?.block_on(conformance()).map_err(|error| format!("{error:#}").into())
    });
    if !arguments.list && !arguments.is_filtered_out(&trial) {
        match enter(prepare) {
            Ok(Side::Inside) => {}
            Ok(Side::Outside(code)) => return code,
            Err(error) => {
                say(format_args!("{error:#}"));
                return ExitCode::FAILURE;
            }
        }
    }
    libtest_mimic::run(&arguments, vec![trial]).exit_code()
}

async fn prepare() -> Result<()> {
    provision::prepare().await?;
    provision::build_own(DRIVER).await
}

async fn conformance() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let controller = Controller::start(folder.path()).await?;
    let node = Node::make(folder.path())?;
    let driver = Daemon::new("driver", node.driver(&controller)?, folder.path());
    driver.start().await?;
    let examined = async {
        driver
            .until("serving", START_LIMIT, async || {
                ensure!(node.socket().exists(), "there is no socket");
                Ok(())
            })
            .await?;
        node.examine().await?;
        until("released: every token", RELEASE_LIMIT, async || controller.all_released()).await
    };
    examined.await.with_context(|| tail(driver.log()))?;
    driver.stop().await?;
    node.nothing_is_left()
}

/// The folders of a node.
struct Node(PathBuf);

impl Node {
    fn make(folder: &Path) -> Result<Self> {
        for name in ["kubelet/pods", "csi", "registration", "state"] {
            fs::create_dir_all(folder.join(name))?;
        }
        fs::write(folder.join("token"), "of the driver")?;
        Ok(Self(folder.to_owned()))
    }

    fn socket(&self) -> PathBuf {
        self.0.join("csi/csi.sock")
    }

    fn pods(&self) -> PathBuf {
        self.0.join("kubelet/pods")
    }

    fn driver(&self, controller: &Controller) -> Result<Program> {
        let (shown, file) = (self.0.display(), self.0.join("driver.yaml"));
        let configuration = format!(
            "{{nodeName: sanity, kubeletDir: {shown}/kubelet, csiSocket: {shown}/csi/csi.sock,
             registrationDir: {shown}/registration, stateDir: {shown}/state, healthAddress: '127.0.0.1:0',
             controller: {{address: '{}', ca: {}, tokenFile: {shown}/token}}}}",
            controller.address(),
            controller.authority().display(),
        );
        fs::write(&file, configuration)?;
        Ok(Program::new(provision::own(DRIVER)?).arg("--config").arg(file))
    }

    /// Runs csi-sanity. Nothing may fail, and nothing be skipped but what we do not claim to do.
    async fn examine(&self) -> Result<()> {
        let file = self.0.join("report.json");
        let sanity = Program::new(Tools::find()?.sanity.join("csi-sanity"))
            .arg("-driver")
            .arg(self.socket())
            .arg("-pods")
            .arg(self.pods())
            .arg(format!("-ginkgo.json-report={}", file.display()))
            // The shim's own: there is none to be examined.
            .arg(r"-ginkgo.skip=\[Controller Server\]|\[GroupController ");
        let ran = sanity.output().await?;
        let written = ran.stdout.clone();
        let report = Report::read(&file).with_context(|| format!("{}{}", ran.stdout, ran.stderr))?;
        report.check().context(written)?;
        ran.success()?;
        say(report);
        Ok(())
    }

    fn nothing_is_left(&self) -> Result<()> {
        let pods = self.pods().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let left: Vec<_> = mounts.lines().filter(|line| line.contains(&pods)).collect();
        ensure!(left.is_empty(), "still mounted: {left:?}");
        for folder in ["state", "state/released", "state/quarantined", "csi", "registration"] {
            let entries = match fs::read_dir(self.0.join(folder)) {
                // The node plugin takes its state folder away when it stops without any volume.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                entries => entries?,
            };
            for entry in entries {
                let entry = entry?;
                ensure!(entry.file_type()?.is_dir(), "still there: {}", entry.path().display());
            }
        }
        Ok(())
    }
}
