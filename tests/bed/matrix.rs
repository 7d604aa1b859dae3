//! The fault matrix: at each point between two steps that outlive a program, the program that is there is killed, or the
//! other, or both. What a point is reached by is done first: a pod is started, renewed, given another token, ended, or
//! its record spoilt. Whatever the fault, the pod must work in the end; what must be left is for
//! [`crate::reckoning`] to say.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use identity::{DRIVER_NAME, LEDGER_GROUP, ROTATE_ANNOTATION};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams},
};
use nix::sys::signal::Signal;
use proto::VolumeId;
use serde_json::json;

use crate::{
    Bed,
    fault::{arm, hold},
    host::KUBELET,
    namenode::{Cluster, private_content},
    pod::{Draft, Running, VOLUME},
    process::until,
    product::Part,
    reckoning::Reckoning,
};

/// From what leads to a point to the program's being there. A renewal is due after 14 s, and by a driver that has just
/// been started again when kubelet has brought the pod's token.
const STRIKE_LIMIT: Duration = Duration::from_secs(60);
/// From the fault to a running pod: kubelet's wait grows with each failure.
const RECOVERY_LIMIT: Duration = Duration::from_secs(120);

/// What leads to a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// A pod begins.
    Start,
    /// A token is renewed.
    Renewal,
    /// A token is replaced.
    Rotation,
    /// The driver finds a record that it cannot read.
    SpoiltRecord,
    /// A pod ends.
    End,
}

/// A place in a program.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    /// The step; a fault strikes before or after it.
    pub step: &'static str,
    /// The program that takes it.
    pub part: Part,
    /// What leads there.
    pub occasion: Occasion,
}

/// All steps, each with two points.
pub const STEPS: [Point; 17] = [
    step("rpc.issue", Part::Driver, Occasion::Start),
    step("ledger.open", Part::Controller, Occasion::Start),
    step("hadoop.get", Part::Controller, Occasion::Start),
    step("ledger.record", Part::Controller, Occasion::Start),
    step("issue.answer", Part::Controller, Occasion::Start),
    step("record.put", Part::Driver, Occasion::Start),
    step("mount", Part::Driver, Occasion::Start),
    step("files.write", Part::Driver, Occasion::Start),
    step("rpc.renew", Part::Driver, Occasion::Renewal),
    step("hadoop.renew", Part::Controller, Occasion::Renewal),
    step("files.swap", Part::Driver, Occasion::Rotation),
    step("record.quarantine", Part::Driver, Occasion::SpoiltRecord),
    step("unmount", Part::Driver, Occasion::End),
    step("record.release", Part::Driver, Occasion::End),
    step("rpc.release", Part::Driver, Occasion::End),
    step("hadoop.cancel", Part::Controller, Occasion::End),
    step("ledger.remove", Part::Controller, Occasion::End),
];

/// Before and after the step.
pub const SIDES: [&str; 2] = ["before", "after"];

const fn step(step: &'static str, part: Part, occasion: Occasion) -> Point {
    Point { step, part, occasion }
}

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The program that is at the point.
    Own,
    /// The other, while the first is held at the point.
    Other,
    /// Both.
    Both,
}

/// One cell of the matrix.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// Where.
    pub point: Point,
    /// On which side of it.
    pub side: &'static str,
    /// Who is killed.
    pub victim: Victim,
}

impl Fault {
    /// Name of the point, as programs know it.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}:{}", self.point.step, self.side)
    }

    /// Name for pods.
    fn pod(&self) -> String {
        let victim = format!("{:?}", self.victim).to_lowercase();
        format!("{}-{}-{victim}", self.point.step.replace('.', "-"), self.side)
    }

    /// Has a pod live through it, and leaves the pod running, unless the fault belongs to its end.
    ///
    /// # Errors
    /// When the point is not reached, a program does not come back, or the pod does not work afterwards.
    pub async fn strike(&self, reckoning: &Reckoning<'_>) -> Result<Option<Running>> {
        self.strike_pod(reckoning)
            .await
            .with_context(|| format!("at {}, {:?} killed", self.name(), self.victim))
    }

    async fn strike_pod(&self, reckoning: &Reckoning<'_>) -> Result<Option<Running>> {
        let bed = reckoning.bed();
        // Renewals are due soon there.
        let cluster = match self.point.occasion {
            Occasion::Renewal => bed.private().await?.cluster(),
            _ => Cluster::Main,
        };
        let draft = Draft::new(&self.pod()).token_of_at("etl", cluster);
        let kubernetes = bed.kubernetes();
        let pod = match self.point.occasion {
            Occasion::Start => {
                self.kill_at(bed, async || kubernetes.create(&draft).await.map(drop)).await?;
                kubernetes.pod("default", &self.pod())
            }
            occasion => {
                let pod = kubernetes.run(&draft).await?;
                reckoning.observe()?;
                self.kill_at(bed, async || match occasion {
                    Occasion::Rotation => rotate(bed, &pod).await,
                    Occasion::SpoiltRecord => spoil_record(&pod).await,
                    Occasion::End => pod.delete_without_waiting().await,
                    Occasion::Start | Occasion::Renewal => Ok(()),
                })
                .await?;
                pod
            }
        };
        if self.point.occasion == Occasion::End {
            pod.until_gone(RECOVERY_LIMIT).await?;
            return Ok(None);
        }
        pod.until_running(RECOVERY_LIMIT).await?;
        // A token that ended while nobody renewed it is replaced when kubelet has brought what that needs.
        until("reading again: the pod", RECOVERY_LIMIT, async || reads(&pod, cluster).await).await?;
        if self.point.occasion == Occasion::SpoiltRecord {
            forget_quarantined()?;
        }
        Ok(Some(pod))
    }

    /// Kills whom it is to kill at the point to which `lead` leads, and waits until all are back.
    async fn kill_at(&self, bed: &Bed, lead: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
        let product = bed.product().await?;
        let other = match self.point.part {
            Part::Driver => Part::Controller,
            Part::Controller => Part::Driver,
        };
        let killed: &[Part] = match self.victim {
            Victim::Own => &[self.point.part],
            Victim::Other => &[other],
            Victim::Both => &[Part::Driver, Part::Controller],
        };
        let mut starts = Vec::new();
        for part in killed {
            starts.push((*part, product.restarts(*part).await?));
        }
        let armed = match self.victim {
            Victim::Own | Victim::Both => arm(&self.name())?,
            Victim::Other => hold(&self.name())?,
        };
        lead().await?;
        armed.until_struck(STRIKE_LIMIT).await?;
        if self.victim != Victim::Own {
            other.signal(Signal::SIGKILL)?;
        }
        if self.victim == Victim::Other {
            self.point.part.signal(Signal::SIGCONT)?;
        }
        for (part, before) in starts {
            product.until_restarted(part, before).await?;
        }
        Ok(())
    }
}

/// The pod's token works.
///
/// # Errors
/// When it does not.
pub async fn reads(pod: &Running, cluster: Cluster) -> Result<()> {
    let read = pod.hdfs_native(cluster, &["cat", "/user/etl/private.txt"]).await?.success()?;
    ensure!(read == private_content(cluster, "etl"), "read {read:?}");
    Ok(())
}

/// Has the token of a pod replaced, as an operator does.
///
/// # Errors
/// When the pod has no token in the ledger.
pub async fn rotate(bed: &Bed, pod: &Running) -> Result<()> {
    let kind = GroupVersionKind::gvk(LEDGER_GROUP, "v1alpha1", "DelegationToken");
    let ledger: Api<DynamicObject> =
        Api::default_namespaced_with(bed.kubernetes().client(), &ApiResource::from_gvk(&kind));
    let uid = pod.uid().await?;
    let objects = ledger.list(&ListParams::default()).await?;
    let object = objects.iter().find(|object| object.data.pointer("/spec/podUid") == Some(&json!(uid)));
    let name = object.and_then(|object| object.metadata.name.clone());
    let name = name.with_context(|| format!("pod {} has no token in the ledger", pod.name()))?;
    let now = jiff::Timestamp::now().to_string();
    let annotated = json!({"metadata": {"annotations": {ROTATE_ANNOTATION: now}}});
    ledger.patch(&name, &PatchParams::default(), &Patch::Merge(annotated)).await?;
    Ok(())
}

/// Cuts the record of a pod's volume short, as a broken disk may, and has the driver find it.
async fn spoil_record(pod: &Running) -> Result<()> {
    let id = VolumeId::of(&pod.uid().await?, VOLUME);
    let record = records().join(format!("{id}.json"));
    let content = fs::read(&record).with_context(|| format!("failed to read {}", record.display()))?;
    fs::write(&record, content.get(..content.len() / 2).unwrap_or_default())?;
    Part::Driver.signal(Signal::SIGKILL)
}

/// Removes what the driver has put aside, as an operator does who has looked at it.
fn forget_quarantined() -> Result<()> {
    let folder = records().join("quarantined");
    let mut found = 0;
    for entry in fs::read_dir(&folder)? {
        fs::remove_file(entry?.path())?;
        found += 1;
    }
    ensure!(found == 1, "{found} records are in {}", folder.display());
    Ok(())
}

fn records() -> std::path::PathBuf {
    Path::new(KUBELET).join("plugins").join(DRIVER_NAME).join("volumes")
}
