//! Publish and unpublish, as kubelet asks for them and as nobody should: repeated, with nothing there, with the
//! controller away, and with everything wrong that can be.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    harness::Test,
    host::KUBELET,
    namenode::{Cluster, TokenAction, private_content},
    pod::{Draft, Running},
    process::until,
};
use proto::{
    DRIVER_NAME, POD_AUDIENCE, VolumeId,
    csi::v1::{
        NodePublishVolumeRequest, NodeUnpublishVolumeRequest, VolumeCapability,
        node_client::NodeClient,
        volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
    },
};
use serde_json::json;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;

use crate::GONE_LIMIT;

const EVENT_LIMIT: Duration = Duration::from_secs(60);
const CANCEL_LIMIT: Duration = Duration::from_secs(60);

/// Name of the volume in the pods of [`Draft`].
const MOUNTED: &str = "hadoop-token";
/// A volume that no container mounts, so that kubelet leaves it to us.
const SPARE: &str = "spare";

const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![
        ten_publishes_change_neither_mounts_tokens_nor_files,
        unpublish_twice_of_a_missing_path_and_of_a_plain_directory_is_fine,
        unpublish_with_the_controller_away_is_fine_and_the_token_is_cancelled_when_it_is_back,
        a_pod_with_a_user_and_a_group_reads_the_file,
        pods_that_ask_wrongly_are_told_what_to_change,
        calls_that_are_wrong_are_refused_and_leave_neither_mount_nor_token,
    ]
}

async fn ten_publishes_change_neither_mounts_tokens_nor_files(bed: &Bed) -> Result<()> {
    let pod = bed.kubernetes().run(&Draft::new("published").token_of("etl")).await?;
    let volume = Volume::of(&pod, MOUNTED).await?;
    let (before, token) = (volume.state()?, Token::of(bed, &pod)?);
    let request = volume.request(bed, &pod, POD_AUDIENCE).await?;
    for _ in 0..10 {
        publish(request.clone()).await?;
    }
    ensure!(volume.state()? == before, "{:?} was {before:?}", volume.state()?);
    token.is_live_and_the_only_one()?;
    pod.delete(GONE_LIMIT).await?;
    token.until_cancelled().await
}

async fn unpublish_twice_of_a_missing_path_and_of_a_plain_directory_is_fine(bed: &Bed) -> Result<()> {
    let pod = spare_pod(bed, "unpublished").await?;
    let volume = Volume::of(&pod, SPARE).await?;
    volume.unpublish().await.context("of a path that never was")?;
    fs::create_dir_all(&volume.target)?;
    volume.unpublish().await.context("of a plain directory")?;
    ensure!(!volume.target.exists(), "the directory is still there");
    publish(volume.request(bed, &pod, POD_AUDIENCE).await?).await?;
    let token = Token::of(bed, &pod)?;
    ensure!(volume.mounts()? == 1);
    volume.unpublish().await?;
    volume.unpublish().await.context("of the same again")?;
    ensure!(volume.mounts()? == 0 && !volume.target.exists());
    token.until_cancelled().await?;
    volume.leave()?;
    pod.delete(GONE_LIMIT).await
}

async fn unpublish_with_the_controller_away_is_fine_and_the_token_is_cancelled_when_it_is_back(
    bed: &Bed,
) -> Result<()> {
    let product = bed.product().await?;
    let pod = bed.kubernetes().run(&Draft::new("ends-alone").token_of("etl")).await?;
    let (volume, token) = (Volume::of(&pod, MOUNTED).await?, Token::of(bed, &pod)?);
    product.stop_controller().await?;
    let gone = async {
        pod.delete(GONE_LIMIT).await?;
        volume.until_unmounted().await?;
        volume.unpublish().await?;
        token.is_live_and_the_only_one()
    };
    let gone = gone.await;
    product.start_controller().await?;
    gone?;
    token.until_cancelled().await
}

async fn a_pod_with_a_user_and_a_group_reads_the_file(bed: &Bed) -> Result<()> {
    for (name, group, modes) in [("grouped", Some(2000), (0o550, 0o440)), ("ungrouped", None, (0o555, 0o444))]
    {
        let pod = bed.kubernetes().run(&Draft::new(name).token_of("etl").run_as(1000, group)).await?;
        let read = pod.hdfs_native(Cluster::Main, &["cat", "/user/etl/private.txt"]).await?.success()?;
        ensure!(read == private_content(Cluster::Main, "etl"), "{name} read {read:?}");
        let target = Volume::of(&pod, MOUNTED).await?.target;
        let folder = fs::metadata(&target)?;
        let file = fs::metadata(target.join("token"))?;
        let owner = (0, group.unwrap_or(0));
        ensure!((folder.mode() & 0o7777, file.mode() & 0o7777) == modes, "{name}: {folder:?} {file:?}");
        ensure!(
            (folder.uid(), folder.gid()) == owner && (file.uid(), file.gid()) == owner,
            "{name}: {file:?}"
        );
        let written = pod.exec(&["sh", "-c", "echo x > /etc/hadoop-token/token"]).await?.failure()?;
        ensure!(written.contains("Read-only") || written.contains("Permission denied"), "{written}");
        pod.delete(GONE_LIMIT).await?;
    }
    Ok(())
}

async fn pods_that_ask_wrongly_are_told_what_to_change(bed: &Bed) -> Result<()> {
    let writable = json!({"driver": DRIVER_NAME, "readOnly": false});
    let unknown = json!({"driver": DRIVER_NAME, "readOnly": true, "volumeAttributes": {"clustre": "main"}});
    for (name, csi, sentence) in [
        ("writable", writable, "set csi.readOnly: true on it in the pod's spec"),
        ("misspelt", unknown, "unknown volume attribute \"clustre\""),
    ] {
        let draft = Draft::new(name).submitter("etl", &[]).token_volume(&csi);
        let pod = bed.kubernetes().create(&draft).await?;
        let event = pod.until_event(sentence, EVENT_LIMIT).await?;
        ensure!(event.starts_with("FailedMount: ") && event.contains("code = InvalidArgument"), "{event}");
        ensure!(Volume::of(&pod, MOUNTED).await?.mounts()? == 0);
        ensure!(numbers(bed, &pod)?.is_empty(), "{name}: it got a token");
        pod.delete(GONE_LIMIT).await?;
    }
    Ok(())
}

async fn calls_that_are_wrong_are_refused_and_leave_neither_mount_nor_token(bed: &Bed) -> Result<()> {
    let pod = spare_pod(bed, "wronged").await?;
    let other = spare_pod(bed, "other").await?;
    let volume = Volume::of(&pod, SPARE).await?;
    let valid = volume.request(bed, &pod, POD_AUDIENCE).await?;
    let check = async |change: &dyn Fn(&mut NodePublishVolumeRequest), code, reason: &str, sentence: &str| {
        let mut request = valid.clone();
        change(&mut request);
        let status = publish(request).await.err().with_context(|| format!("accepted, though {reason}"))?;
        ensure!(status.code() == code && status.message().contains(sentence), "{reason}: {status}");
        let found = status.get_details_error_info().context("a refusal without a reason")?.reason;
        ensure!(found == reason, "{found} instead of {reason}: {status}");
        ensure!(volume.mounts()? == 0 && !volume.target.exists(), "{reason}: it left something");
        anyhow::Ok(())
    };
    let invalid = Code::InvalidArgument;
    check(&|r| r.readonly = false, invalid, "VOLUME_NOT_READ_ONLY", "set csi.readOnly: true").await?;
    let clustre = |r: &mut NodePublishVolumeRequest| {
        r.volume_context.insert("clustre".to_owned(), "main".to_owned());
    };
    check(&clustre, invalid, "UNKNOWN_ATTRIBUTE", "csi.volumeAttributes may have cluster").await?;
    check(&|r| r.secrets.clear(), invalid, "POD_TOKEN_MISSING", "set tokenRequests").await?;
    let wrong_id = |r: &mut NodePublishVolumeRequest| r.volume_id = VolumeId::of("x", SPARE).to_string();
    check(&wrong_id, invalid, "VOLUME_ID_MISMATCH", "whose volume has the id csi-").await?;

    let others = tokens(&jwt(bed, &other, POD_AUDIENCE).await?);
    let status = refusal(&valid, |r| r.secrets.clone_from(&others)).await?;
    ensure!(status.code() == Code::PermissionDenied, "{status}");
    ensure!(status.message().contains("not to the pod that asks"), "{status}");
    let stray = tokens(&jwt(bed, &pod, "somebody.else").await?);
    let status = refusal(&valid, |r| r.secrets.clone_from(&stray)).await?;
    ensure!([Code::PermissionDenied, Code::Unauthenticated].contains(&status.code()), "{status}");
    ensure!(status.message().contains("the CSIDriver object must request audience"), "{status}");
    ensure!(volume.mounts()? == 0 && !volume.target.exists(), "it left something");

    let issued = [numbers(bed, &pod)?, numbers(bed, &other)?].concat();
    ensure!(issued.is_empty(), "tokens {issued:?} were issued all the same");
    // It was for nothing else that these were refused.
    publish(valid).await?;
    volume.unpublish().await?;
    volume.leave()?;
    pod.delete(GONE_LIMIT).await?;
    other.delete(GONE_LIMIT).await
}

/// How a changed request is refused.
async fn refusal(
    valid: &NodePublishVolumeRequest,
    change: impl FnOnce(&mut NodePublishVolumeRequest),
) -> Result<Status> {
    let mut request = valid.clone();
    change(&mut request);
    publish(request).await.err().context("accepted")
}

/// A running pod of the Hadoop user `etl` with a token volume that kubelet does not publish.
async fn spare_pod(bed: &Bed, name: &str) -> Result<Running> {
    let spare = json!({"name": SPARE, "csi": {"driver": DRIVER_NAME, "readOnly": true}});
    let draft = Draft::new(name).submitter("etl", &[]).push("/spec/volumes", spare);
    bed.kubernetes().run(&draft).await
}

/// The node plugin's Node service on its real socket, on a new connection, as kubelet does.
async fn node() -> Result<NodeClient<Channel>, Status> {
    let socket = format!("unix://{KUBELET}/plugins/{DRIVER_NAME}/csi.sock");
    let channel =
        Endpoint::from_shared(socket).map_err(|error| Status::internal(error.to_string()))?.connect().await;
    channel.map(NodeClient::new).map_err(|error| Status::internal(error.to_string()))
}

async fn publish(request: NodePublishVolumeRequest) -> Result<(), Status> {
    node().await?.node_publish_volume(request).await.map(drop)
}

/// Numbers of the tokens that the NameNode has issued for a pod, as its audit log says.
fn numbers(bed: &Bed, pod: &Running) -> Result<Vec<u32>> {
    let name = format!("default/{}", pod.name());
    let events = bed.main().token_events()?.into_iter();
    let issued = events.filter(|event| event.action == TokenAction::Issued && event.allowed);
    let of_pod = issued.filter(|event| event.pod() == Some(&name));
    Ok(of_pod.filter_map(|event| event.sequence_number).collect())
}

/// The one token of a pod, as the NameNode's audit log has it. Pods must have names of their own for it.
pub(crate) struct Token<'bed> {
    bed: &'bed Bed,
    pod: Running,
    number: u32,
}

impl<'bed> Token<'bed> {
    pub(crate) fn of(bed: &'bed Bed, pod: &Running) -> Result<Self> {
        let numbers = numbers(bed, pod)?;
        ensure!(numbers.len() == 1, "pod {} has the tokens {numbers:?}", pod.name());
        let number = numbers.into_iter().next().context("no token")?;
        Ok(Self { bed, pod: pod.clone(), number })
    }

    fn has_been(&self, action: TokenAction) -> Result<usize> {
        let events = self.bed.main().token_events()?.into_iter();
        let ours = events.filter(|event| event.sequence_number == Some(self.number) && event.allowed);
        Ok(ours.filter(|event| event.action == action).count())
    }

    /// How often it has been renewed.
    pub(crate) fn renewals(&self) -> Result<usize> {
        self.has_been(TokenAction::Renewed)
    }

    /// The pod has got no other, and nobody has cancelled this one.
    pub(crate) fn is_live_and_the_only_one(&self) -> Result<()> {
        let numbers = numbers(self.bed, &self.pod)?;
        ensure!(numbers == [self.number], "pod {} has the tokens {numbers:?}", self.pod.name());
        ensure!(self.has_been(TokenAction::Cancelled)? == 0, "token {} is cancelled", self.number);
        Ok(())
    }

    /// Waits until it is cancelled.
    pub(crate) async fn until_cancelled(&self) -> Result<()> {
        self.until_cancelled_within(CANCEL_LIMIT).await
    }

    /// The same, within this time.
    pub(crate) async fn until_cancelled_within(&self, limit: Duration) -> Result<()> {
        until("cancelled: the token", limit, async || {
            ensure!(self.has_been(TokenAction::Cancelled)? == 1, "token {} is not cancelled", self.number);
            Ok(())
        })
        .await
    }
}

/// A token volume of a pod, on the node.
pub(crate) struct Volume {
    pod_uid: String,
    name: &'static str,
    pub(crate) target: PathBuf,
}

/// What repeated calls and restarts must not change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct State {
    mounts: usize,
    device: u64,
    inode: u64,
    written: (i64, i64),
    token: Vec<u8>,
}

impl Volume {
    /// The volume of this name.
    async fn of(pod: &Running, name: &'static str) -> Result<Self> {
        let pod_uid = pod.uid().await?;
        let volumes = Path::new(KUBELET).join("pods").join(&pod_uid).join("volumes/kubernetes.io~csi");
        Ok(Self { pod_uid, name, target: volumes.join(name).join("mount") })
    }

    /// The volume that the containers of a [`Draft`] with tokens mount.
    pub(crate) async fn mounted_in(pod: &Running) -> Result<Self> {
        Self::of(pod, MOUNTED).await
    }

    /// How many file systems are mounted on it.
    pub(crate) fn mounts(&self) -> Result<usize> {
        let target = self.target.display().to_string();
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        Ok(table.lines().filter(|line| line.split(' ').nth(4) == Some(&target)).count())
    }

    /// Waits until kubelet has had it unmounted.
    pub(crate) async fn until_unmounted(&self) -> Result<()> {
        until("unmounted: the volume", GONE_LIMIT, async || {
            ensure!(!self.target.exists() && self.mounts()? == 0, "{} is still there", self.target.display());
            Ok(())
        })
        .await
    }

    pub(crate) fn state(&self) -> Result<State> {
        let path = self.target.join("token");
        let file = fs::metadata(&path).with_context(|| format!("failed to find {}", path.display()))?;
        Ok(State {
            mounts: self.mounts()?,
            device: file.dev(),
            inode: file.ino(),
            written: (file.mtime(), file.mtime_nsec()),
            token: fs::read(&path)?,
        })
    }

    /// What kubelet sends for it, with a service-account token of the pod for `audience`.
    async fn request(&self, bed: &Bed, pod: &Running, audience: &str) -> Result<NodePublishVolumeRequest> {
        let parent = self.target.parent().context("a target has a parent")?;
        fs::create_dir_all(parent)?;
        let mount = AccessType::Mount(MountVolume::default());
        let context = [
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.name", pod.name()),
            ("csi.storage.k8s.io/pod.namespace", "default"),
            ("csi.storage.k8s.io/pod.uid", &self.pod_uid),
            ("csi.storage.k8s.io/serviceAccount.name", "default"),
        ];
        Ok(NodePublishVolumeRequest {
            volume_id: VolumeId::of(&self.pod_uid, self.name).to_string(),
            target_path: self.target.display().to_string(),
            volume_capability: Some(VolumeCapability {
                access_type: Some(mount),
                access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
            }),
            readonly: true,
            secrets: tokens(&jwt(bed, pod, audience).await?),
            volume_context: context.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            ..NodePublishVolumeRequest::default()
        })
    }

    async fn unpublish(&self) -> Result<()> {
        let volume_id = VolumeId::of(&self.pod_uid, self.name).to_string();
        let request =
            NodeUnpublishVolumeRequest { volume_id, target_path: self.target.display().to_string() };
        node().await?.node_unpublish_volume(request).await?;
        Ok(())
    }

    /// Removes what kubelet would have made and so would remove.
    fn leave(&self) -> Result<()> {
        let parent = self.target.parent().context("a target has a parent")?;
        fs::remove_dir(parent).with_context(|| format!("failed to remove {}", parent.display()))
    }
}

/// A service-account token that is bound to the pod, as kubelet gets it.
async fn jwt(bed: &Bed, pod: &Running, audience: &str) -> Result<String> {
    let uid = pod.uid().await?;
    let kubectl = bed.kubernetes().kubectl().args(["create", "token", "default", "--audience", audience]);
    let bound = ["--bound-object-kind", "Pod", "--bound-object-name", pod.name(), "--bound-object-uid", &uid];
    Ok(kubectl.args(bound).succeed().await?.trim().to_owned())
}

/// kubelet's map of tokens, with this one for our audience.
fn tokens(jwt: &str) -> HashMap<String, String> {
    let tokens = json!({POD_AUDIENCE: {"token": jwt, "expirationTimestamp": "2100-01-01T00:00:00Z"}});
    HashMap::from([(TOKENS.to_owned(), tokens.to_string())])
}
