//! kubelet's request to publish a volume, parsed whole. The only place that reads the volume context: what comes out
//! is checked, and what is wrong is refused with a sentence that says what to change.

use std::{
    collections::HashMap,
    path::{Component, Path, PathBuf},
};

use proto::{
    DRIVER_NAME, POD_AUDIENCE, VOLUME_ATTRIBUTES, VolumeId,
    csi::v1::{
        NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeUnpublishVolumeRequest, VolumeCapability,
        volume_capability::{AccessType, MountVolume, access_mode::Mode},
    },
};
use secrecy::SecretString;
use serde::Deserialize;
use zeroize::{Zeroize, Zeroizing};

use crate::volume::{Pod, Target, Volume};

/// What kubelet's own keys begin with, wherever attributes and secrets come.
const KUBELET: &str = "csi.storage.k8s.io/";
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
const POD_NAME: &str = "csi.storage.k8s.io/pod.name";
const POD_NAMESPACE: &str = "csi.storage.k8s.io/pod.namespace";
const POD_UID: &str = "csi.storage.k8s.io/pod.uid";
const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// Longest name or UID that Kubernetes gives anything.
const MAX_NAME: usize = 253;

/// A volume to publish.
#[derive(Debug)]
pub(crate) struct PublishRequest {
    pub(crate) volume: Volume,
    pub(crate) target: Target,
    /// Group that is to own the files.
    pub(crate) fs_group: Option<u32>,
    /// Needed to get tokens only: without it a volume that has them is none the worse, and unmounted nowhere.
    pub(crate) pod_token: Result<PodToken, InvalidRequest>,
}

/// The pod's own service-account token: proves to the controller which pod asks.
#[derive(Debug, Clone)]
pub(crate) struct PodToken(pub(crate) SecretString);

/// A volume to unpublish.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnpublishRequest {
    pub(crate) id: VolumeId,
    pub(crate) target: Target,
}

impl PublishRequest {
    /// Parses a request. `pods` is kubelet's directory of pods.
    ///
    /// # Errors
    /// With the first thing that is wrong.
    pub(crate) fn parse(mut request: NodePublishVolumeRequest, pods: &Path) -> Result<Self, InvalidRequest> {
        let context = std::mem::take(&mut request.volume_context);
        let mut context = Wiped(context);
        let mut secrets = Wiped(std::mem::take(&mut request.secrets));

        present("volume_id", &request.volume_id)?;
        present("target_path", &request.target_path)?;
        let mount = mount(request.volume_capability.as_ref())?;

        let pod = Pod {
            namespace: context.name(POD_NAMESPACE)?,
            name: context.name(POD_NAME)?,
            uid: context.name(POD_UID)?,
        };
        let target = Target::parse(&request.target_path, pods)?;
        if context.get(EPHEMERAL) != Some("true") {
            return Err(InvalidRequest::NotInline);
        }
        if target.pod_uid != pod.uid {
            return Err(InvalidRequest::AnotherPodsTarget { uid: pod.uid, target: target.path });
        }
        let id = id(&request.volume_id, &target)?;
        if !request.readonly {
            return Err(InvalidRequest::Writable { volume: target.volume });
        }
        for attribute in context.0.keys() {
            if !attribute.starts_with(KUBELET) && !VOLUME_ATTRIBUTES.contains(&attribute.as_str()) {
                return Err(InvalidRequest::UnknownAttribute { attribute: shortened(attribute) });
            }
        }
        if !mount.fs_type.is_empty() {
            return Err(InvalidRequest::FileSystem { fs_type: shortened(&mount.fs_type) });
        }
        if let Some(flag) = mount.mount_flags.first() {
            return Err(InvalidRequest::MountFlag { flag: shortened(flag) });
        }
        let fs_group = match mount.volume_mount_group.as_str() {
            "" => None,
            group => Some(group_id(group)?),
        };
        // Kubernetes before 1.35 puts them among the attributes.
        let tokens = secrets.take(TOKENS).or_else(|| context.take(TOKENS));
        let pod_token = tokens.ok_or(InvalidRequest::NoTokens).and_then(|tokens| pod_token(&tokens));
        let volume = Volume { id, name: target.volume.clone(), pod };
        Ok(Self { volume, target, fs_group, pod_token })
    }
}

impl UnpublishRequest {
    /// Parses a request. `pods` is kubelet's directory of pods.
    ///
    /// # Errors
    /// With the first thing that is wrong.
    pub(crate) fn parse(request: &NodeUnpublishVolumeRequest, pods: &Path) -> Result<Self, InvalidRequest> {
        present("volume_id", &request.volume_id)?;
        present("target_path", &request.target_path)?;
        let target = Target::parse(&request.target_path, pods)?;
        let id = id(&request.volume_id, &target)?;
        Ok(Self { id, target })
    }
}

/// A volume whose state is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct StatsRequest {
    pub(crate) id: VolumeId,
    pub(crate) target: Target,
}

impl StatsRequest {
    /// Parses a request; nothing if id and path are not those of one volume of ours. `pods` is kubelet's directory of
    /// pods.
    ///
    /// # Errors
    /// When the request is not complete.
    pub(crate) fn parse(
        request: &NodeGetVolumeStatsRequest,
        pods: &Path,
    ) -> Result<Option<Self>, InvalidRequest> {
        present("volume_id", &request.volume_id)?;
        present("volume_path", &request.volume_path)?;
        let parsed = Target::parse(&request.volume_path, pods)
            .and_then(|target| Ok(Self { id: id(&request.volume_id, &target)?, target }));
        Ok(parsed.ok())
    }
}

impl Target {
    /// Parses kubelet's path of an inline volume: `PODS/UID/volumes/kubernetes.io~csi/VOLUME/mount`.
    pub(crate) fn parse(path: &str, pods: &Path) -> Result<Self, InvalidRequest> {
        let unexpected = || InvalidRequest::Target { target: shortened(path), pods: pods.to_owned() };
        let below = Path::new(path).strip_prefix(pods).map_err(|_| unexpected())?;
        let parts: Option<Vec<&str>> = below
            .components()
            .map(|part| match part {
                Component::Normal(name) => name.to_str(),
                _ => None,
            })
            .collect();
        match parts.as_deref() {
            Some(&[pod_uid, "volumes", "kubernetes.io~csi", volume, "mount"])
                if is_name(pod_uid) && is_name(volume) && is_plain(path) =>
            {
                Ok(Self { path: path.into(), pod_uid: pod_uid.to_owned(), volume: volume.to_owned() })
            }
            _ => Err(unexpected()),
        }
    }
}

/// `Path` drops single dots and doubled slashes; kubelet writes none.
fn is_plain(path: &str) -> bool {
    path.split('/').skip(1).all(|part| !matches!(part, "" | "." | ".."))
}

fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=MAX_NAME).contains(&text.len()) && text.chars().all(allowed) && !text.starts_with('.')
}

fn present(field: &'static str, value: &str) -> Result<(), InvalidRequest> {
    if value.is_empty() { Err(InvalidRequest::Missing { field }) } else { Ok(()) }
}

fn id(id: &str, target: &Target) -> Result<VolumeId, InvalidRequest> {
    let expected = VolumeId::of(&target.pod_uid, &target.volume);
    if id == expected.as_str() {
        return Ok(expected);
    }
    Err(InvalidRequest::WrongVolumeId { id: shortened(id), expected, target: target.path.clone() })
}

fn mount(capability: Option<&VolumeCapability>) -> Result<&MountVolume, InvalidRequest> {
    let capability = capability.ok_or(InvalidRequest::Missing { field: "volume_capability" })?;
    let mount = match &capability.access_type {
        Some(AccessType::Mount(mount)) => mount,
        Some(AccessType::Block(_)) => return Err(InvalidRequest::Block),
        None => return Err(InvalidRequest::Missing { field: "volume_capability.access_type" }),
    };
    match capability.access_mode.map(|mode| mode.mode()) {
        Some(
            Mode::SingleNodeWriter
            | Mode::SingleNodeReaderOnly
            | Mode::SingleNodeSingleWriter
            | Mode::SingleNodeMultiWriter,
        ) => Ok(mount),
        Some(Mode::Unknown) | None => Err(InvalidRequest::Missing { field: "volume_capability.access_mode" }),
        Some(Mode::MultiNodeReaderOnly | Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter) => {
            Err(InvalidRequest::MultiNode)
        }
    }
}

fn group_id(group: &str) -> Result<u32, InvalidRequest> {
    let digits = group.chars().all(|c| c.is_ascii_digit());
    // The greatest number means "leave as it is" to chown.
    let id = group.parse().ok().filter(|id| digits && *id != u32::MAX);
    id.ok_or_else(|| InvalidRequest::Group { group: shortened(group) })
}

/// Picks our audience's token from kubelet's map of them.
fn pod_token(tokens: &str) -> Result<PodToken, InvalidRequest> {
    #[derive(Deserialize)]
    struct Entry {
        token: SecretString,
    }
    // The error would show the place in the text, and so parts of it.
    let mut tokens: HashMap<String, Entry> =
        serde_json::from_str(tokens).map_err(|_| InvalidRequest::UnreadableTokens)?;
    match tokens.remove(POD_AUDIENCE) {
        Some(Entry { token }) if !secrecy::ExposeSecret::expose_secret(&token).is_empty() => {
            Ok(PodToken(token))
        }
        _ => Err(InvalidRequest::NoTokenForUs),
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_NAME).collect()
}

/// Texts that may hold secrets, wiped when dropped.
struct Wiped(HashMap<String, String>);

impl Wiped {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    fn take(&mut self, key: &str) -> Option<Zeroizing<String>> {
        self.0.remove(key).map(Zeroizing::new)
    }

    fn name(&self, key: &'static str) -> Result<String, InvalidRequest> {
        match self.get(key) {
            Some(name) if is_name(name) => Ok(name.to_owned()),
            Some(name) => Err(InvalidRequest::PodInfo { key, value: shortened(name) }),
            None => Err(InvalidRequest::NoPodInfo { key }),
        }
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        self.0.values_mut().for_each(Zeroize::zeroize);
    }
}

/// What is wrong with a request. The sentences are shown in the pod's events.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidRequest {
    #[error("{field} is missing in the request")]
    Missing { field: &'static str },
    #[error("block volumes are not supported: list the volume under volumeMounts, not under volumeDevices")]
    Block,
    #[error("a token volume is mounted on one node: access modes of several nodes are not supported")]
    MultiNode,
    #[error("{key} is missing in the request: set podInfoOnMount: true in the CSIDriver {DRIVER_NAME}")]
    NoPodInfo { key: &'static str },
    #[error("{key} is {value:?}, which is not a name")]
    PodInfo { key: &'static str, value: String },
    #[error(
        "target path {target:?} is not that of an inline volume below {pods}: set kubeletDir in the driver's \
         configuration to kubelet's --root-dir", pods = pods.display()
    )]
    Target { target: String, pods: PathBuf },
    #[error(
        "token volumes belong to one pod: write the volume into the pod's spec as csi: {{driver: {DRIVER_NAME}}}, \
         not as a PersistentVolume"
    )]
    NotInline,
    #[error("target path {target} is not one of the pod with UID {uid}", target = target.display())]
    AnotherPodsTarget { uid: String, target: PathBuf },
    #[error("volume id {id:?} does not belong to target path {target}, whose volume has the id {expected}",
        target = target.display())]
    WrongVolumeId { id: String, expected: VolumeId, target: PathBuf },
    #[error("volume {volume:?} must be read-only: set csi.readOnly: true on it in the pod's spec")]
    Writable { volume: String },
    #[error("unknown volume attribute {attribute:?}: csi.volumeAttributes may have {}", VOLUME_ATTRIBUTES.join(", "))]
    UnknownAttribute { attribute: String },
    #[error("file system type {fs_type:?} cannot be chosen: remove csi.fsType from the volume")]
    FileSystem { fs_type: String },
    #[error("mount flag {flag:?} is not supported: remove the volume's mount options")]
    MountFlag { flag: String },
    #[error("volume_mount_group {group:?} is not a group id: set the pod's fsGroup to a number")]
    Group { group: String },
    #[error(
        "no service-account token of the pod came with the request: set tokenRequests: [{{audience: {POD_AUDIENCE}}}] \
         in the CSIDriver {DRIVER_NAME}"
    )]
    NoTokens,
    #[error("the pod's service-account tokens cannot be read: they are not JSON as kubelet writes it")]
    UnreadableTokens,
    #[error(
        "no service-account token for audience {POD_AUDIENCE} came with the request: add {{audience: {POD_AUDIENCE}}} \
         to tokenRequests in the CSIDriver {DRIVER_NAME}"
    )]
    NoTokenForUs,
}

impl InvalidRequest {
    /// Stable name of the mistake.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "MISSING_FIELD",
            Self::Block => "BLOCK_VOLUME",
            Self::MultiNode => "UNSUPPORTED_ACCESS_MODE",
            Self::NoPodInfo { .. } | Self::PodInfo { .. } => "INVALID_POD_INFO",
            Self::Target { .. } => "UNEXPECTED_TARGET_PATH",
            Self::NotInline => "NOT_INLINE",
            Self::AnotherPodsTarget { .. } => "TARGET_OF_ANOTHER_POD",
            Self::WrongVolumeId { .. } => "VOLUME_ID_MISMATCH",
            Self::Writable { .. } => "VOLUME_NOT_READ_ONLY",
            Self::UnknownAttribute { .. } => "UNKNOWN_ATTRIBUTE",
            Self::FileSystem { .. } => "UNSUPPORTED_FS_TYPE",
            Self::MountFlag { .. } => "UNSUPPORTED_MOUNT_FLAG",
            Self::Group { .. } => "INVALID_GROUP",
            Self::NoTokens | Self::UnreadableTokens | Self::NoTokenForUs => "POD_TOKEN_MISSING",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashMap;

    use proto::csi::v1::volume_capability::{AccessMode, BlockVolume};
    use secrecy::ExposeSecret;

    use super::*;

    pub(crate) const UID: &str = "8d5d92a4-3a2a-4c4c-8d2f-3b1f6f3ad6a0";

    /// What kubelet sends for volume `hadoop` of a pod.
    pub(crate) fn valid(pods: &Path) -> NodePublishVolumeRequest {
        let mount = MountVolume { volume_mount_group: "2000".to_owned(), ..Default::default() };
        let context = [
            (EPHEMERAL, "true"),
            (POD_NAME, "etl-7"),
            (POD_NAMESPACE, "jobs"),
            (POD_UID, UID),
            ("csi.storage.k8s.io/serviceAccount.name", "default"),
            ("cluster", "main"),
        ];
        let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        let tokens = r#"{"other":{"token":"jwt-of-another","expirationTimestamp":"2026-11-23T00:00:00Z"},
            "hadoop-token.csi":{"token":"jwt-of-the-pod","expirationTimestamp":"2026-11-23T00:00:00Z"}}"#;
        NodePublishVolumeRequest {
            volume_id: VolumeId::of(UID, "hadoop").to_string(),
            target_path: pods.join(UID).join("volumes/kubernetes.io~csi/hadoop/mount").display().to_string(),
            volume_capability: Some(VolumeCapability {
                access_type: Some(AccessType::Mount(mount)),
                access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
            }),
            readonly: true,
            secrets: HashMap::from([owned((TOKENS, tokens))]),
            volume_context: context.map(owned).into(),
            ..Default::default()
        }
    }

    fn pods() -> &'static Path {
        Path::new("/var/lib/kubelet/pods")
    }

    fn mount_of(request: &mut NodePublishVolumeRequest) -> &mut MountVolume {
        match request.volume_capability.as_mut().and_then(|capability| capability.access_type.as_mut()) {
            Some(AccessType::Mount(mount)) => mount,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn takes_what_kubelet_sends() {
        let request = PublishRequest::parse(valid(pods()), pods()).unwrap();
        assert_eq!(request.volume.id, VolumeId::of(UID, "hadoop"));
        assert_eq!(request.volume.name, "hadoop");
        assert_eq!(
            request.volume.pod,
            Pod { namespace: "jobs".to_owned(), name: "etl-7".to_owned(), uid: UID.to_owned() }
        );
        assert_eq!(request.fs_group, Some(2000));
        assert_eq!(request.pod_token.unwrap().0.expose_secret(), "jwt-of-the-pod");
    }

    #[test]
    fn takes_tokens_from_the_attributes_as_older_kubelets_send_them() {
        let mut request = valid(pods());
        request.volume_context.extend(std::mem::take(&mut request.secrets));
        let request = PublishRequest::parse(request, pods()).unwrap();
        assert_eq!(request.pod_token.unwrap().0.expose_secret(), "jwt-of-the-pod");
    }

    #[test]
    fn prefers_tokens_from_the_secrets() {
        let mut request = valid(pods());
        let forged = r#"{"hadoop-token.csi":{"token":"forged"}}"#;
        request.volume_context.insert(TOKENS.to_owned(), forged.to_owned());
        let request = PublishRequest::parse(request, pods()).unwrap();
        assert_eq!(request.pod_token.unwrap().0.expose_secret(), "jwt-of-the-pod");
    }

    #[test]
    fn a_pod_without_a_group_has_none() {
        let mut request = valid(pods());
        mount_of(&mut request).volume_mount_group.clear();
        assert_eq!(PublishRequest::parse(request, pods()).unwrap().fs_group, None);
    }

    #[test]
    fn debug_output_holds_no_token() {
        let shown = format!("{:?}", PublishRequest::parse(valid(pods()), pods()).unwrap());
        assert!(!shown.contains("jwt-of"), "{shown}");
    }

    /// One change to a valid request, and the sentence it is refused with.
    #[track_caller]
    fn check(change: impl FnOnce(&mut NodePublishVolumeRequest), sentence: &str) {
        let mut request = valid(pods());
        change(&mut request);
        let token = |request: PublishRequest| request.pod_token;
        let error = PublishRequest::parse(request, pods()).and_then(token).expect_err(sentence).to_string();
        assert!(error.contains(sentence), "{error}\ndoes not say\n{sentence}");
        assert!(!error.contains("jwt-of"), "{error}");
    }

    fn context(key: &str, value: &str) -> impl FnOnce(&mut NodePublishVolumeRequest) {
        move |request| drop(request.volume_context.insert(key.to_owned(), value.to_owned()))
    }

    fn tokens(json: &str) -> impl FnOnce(&mut NodePublishVolumeRequest) {
        move |request| drop(request.secrets.insert(TOKENS.to_owned(), json.to_owned()))
    }

    #[test]
    fn every_mistake_is_refused_with_what_to_change() {
        check(|r| r.volume_id.clear(), "volume_id is missing");
        check(|r| r.target_path.clear(), "target_path is missing");
        check(|r| r.volume_capability = None, "volume_capability is missing");
        check(|r| r.volume_capability.as_mut().unwrap().access_type = None, "access_type is missing");
        check(|r| r.volume_capability.as_mut().unwrap().access_mode = None, "access_mode is missing");
        check(
            |r| r.volume_capability.as_mut().unwrap().access_type = Some(AccessType::Block(BlockVolume {})),
            "list the volume under volumeMounts",
        );
        check(
            |r| {
                let mode = AccessMode { mode: Mode::MultiNodeMultiWriter.into() };
                r.volume_capability.as_mut().unwrap().access_mode = Some(mode);
            },
            "access modes of several nodes",
        );
        check(|r| r.readonly = false, "set csi.readOnly: true");
        check(
            context("clustre", "main"),
            "unknown volume attribute \"clustre\": csi.volumeAttributes may have cluster",
        );
        check(context(EPHEMERAL, "false"), "not as a PersistentVolume");
        check(|r| drop(r.volume_context.remove(EPHEMERAL)), "not as a PersistentVolume");
        check(|r| drop(r.volume_context.remove(POD_UID)), "set podInfoOnMount: true");
        check(|r| drop(r.volume_context.remove(POD_NAME)), "set podInfoOnMount: true");
        check(|r| drop(r.volume_context.remove(POD_NAMESPACE)), "set podInfoOnMount: true");
        check(context(POD_NAME, "a/b"), "is not a name");
        check(context(POD_UID, "another"), "is not one of the pod with UID another");
        check(|r| r.volume_id = VolumeId::of(UID, "other").to_string(), "does not belong to target path");
        check(|r| r.volume_id = "csi-1".to_owned(), "does not belong to target path");
        check(|r| mount_of(r).fs_type = "ext4".to_owned(), "remove csi.fsType");
        check(|r| mount_of(r).mount_flags.push("suid".to_owned()), "remove the volume's mount options");
        check(|r| mount_of(r).volume_mount_group = "staff".to_owned(), "set the pod's fsGroup to a number");
        check(|r| mount_of(r).volume_mount_group = "+5".to_owned(), "set the pod's fsGroup to a number");
        check(
            |r| mount_of(r).volume_mount_group = "4294967295".to_owned(),
            "set the pod's fsGroup to a number",
        );
        check(|r| r.secrets.clear(), "set tokenRequests: [{audience: hadoop-token.csi}]");
        check(
            tokens(r#"{"other":{"token":"jwt-of-another"}}"#),
            "no service-account token for audience hadoop-token.csi",
        );
        check(tokens(r#"{"hadoop-token.csi":{"token":""}}"#), "no service-account token for audience");
        check(tokens(r#"{"hadoop-token.csi":"jwt-of-the-pod"}"#), "not JSON as kubelet writes it");
        check(tokens("jwt-of-the-pod"), "not JSON as kubelet writes it");
    }

    #[test]
    fn arguments_are_missed_before_anything_else_is_checked() {
        let mut request = NodePublishVolumeRequest::default();
        let mut missed = |change: fn(&mut NodePublishVolumeRequest)| {
            let error = PublishRequest::parse(request.clone(), pods()).unwrap_err();
            change(&mut request);
            error.to_string()
        };
        assert!(missed(|r| r.volume_id = "id".to_owned()).starts_with("volume_id"));
        assert!(missed(|r| r.target_path = "/path".to_owned()).starts_with("target_path"));
        assert!(missed(|_| {}).starts_with("volume_capability"));
    }

    #[test]
    fn paths_other_than_kubelets_are_refused() {
        let base = format!("/var/lib/kubelet/pods/{UID}");
        for path in [
            "relative".to_owned(),
            "/etc".to_owned(),
            base.clone(),
            format!("{base}/volumes/kubernetes.io~csi/hadoop"),
            format!("{base}/volumes/kubernetes.io~csi/hadoop/mount/more"),
            format!("{base}/volumes/kubernetes.io~csi/../hadoop/mount"),
            format!("{base}/volumes/kubernetes.io~csi/./hadoop/mount"),
            format!("{base}/volumes/kubernetes.io~csi//hadoop/mount"),
            format!("{base}/volumes/kubernetes.io~csi/hadoop/mount/"),
            format!("{base}/volumes/kubernetes.io~csi/../mount"),
            format!("{base}/volumes/kubernetes.io~csi/.hidden/mount"),
            format!("{base}/volumes/kubernetes.io~secret/hadoop/mount"),
            format!("/var/lib/kubelet/pods/../{UID}/volumes/kubernetes.io~csi/hadoop/mount"),
        ] {
            check(|r| r.target_path.clone_from(&path), "is not that of an inline volume");
            let request =
                NodeUnpublishVolumeRequest { volume_id: "id".to_owned(), target_path: path.clone() };
            let refused = UnpublishRequest::parse(&request, pods());
            assert!(matches!(refused, Err(InvalidRequest::Target { .. })), "{path}");
        }
    }

    #[test]
    fn unpublish_takes_id_and_path_that_belong_together() {
        let NodePublishVolumeRequest { volume_id, target_path, .. } = valid(pods());
        let mut request = NodeUnpublishVolumeRequest { volume_id, target_path };
        assert_eq!(UnpublishRequest::parse(&request, pods()).unwrap().id, VolumeId::of(UID, "hadoop"));
        request.volume_id = "csi-1".to_owned();
        let refused = UnpublishRequest::parse(&request, pods());
        assert!(matches!(refused, Err(InvalidRequest::WrongVolumeId { .. })));
        request.volume_id.clear();
        let refused = UnpublishRequest::parse(&request, pods());
        assert_eq!(refused, Err(InvalidRequest::Missing { field: "volume_id" }));
        let refused = UnpublishRequest::parse(
            &NodeUnpublishVolumeRequest { volume_id: "csi-1".to_owned(), target_path: String::new() },
            pods(),
        );
        assert_eq!(refused, Err(InvalidRequest::Missing { field: "target_path" }));
    }
}
