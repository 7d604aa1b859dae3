//! What is kept in memory of each `DelegationToken`. The rest is skipped while parsing, so that ten thousand cost a few
//! megabytes.

use std::{borrow::Cow, fmt, sync::Arc};

use base64::{Engine, alphabet::STANDARD, engine::GeneralPurpose, engine::GeneralPurposeConfig};
use identity::CANCEL_FINALIZER;
use k8s_openapi::{
    NamespaceResourceScope,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::Resource;
use proto::VolumeId;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::resource::{DelegationToken, DelegationTokenStatus, Phase, Scope};
use crate::{
    audit::TokenNumber,
    request::{PodReference, VolumeReference},
};

/// The manifest's schema lets nothing else in; a reader that is less strict than it cannot trip over anything.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// A token of a volume, as the ledger has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) namespace: Box<str>,
    pub(crate) name: Box<str>,
    pub(crate) uid: Arc<str>,
    /// Grows with each change of the object.
    pub(super) version: u64,
    /// In seconds since the epoch, on the API server's clock.
    pub(crate) created: i64,
    /// Somebody deleted the object; it is there until the token is cancelled.
    pub(crate) deleting: bool,
    /// An operator wants it gone even if the token cannot be cancelled.
    pub(crate) let_go: bool,
    /// Changes each time an operator wants another token in this one's place.
    pub(crate) rotate: Option<Box<str>>,
    pub(super) finalizers: Finalizers,
    pub(crate) pod: Box<str>,
    pub(crate) pod_uid: Arc<str>,
    pub(crate) volume: Box<str>,
    pub(crate) node: Arc<str>,
    pub(crate) submitter: Box<str>,
    pub(crate) user: Box<str>,
    pub(crate) cluster: Box<str>,
    pub(crate) scope: Scope,
    /// In milliseconds since the epoch, on the Hadoop service's clock.
    pub(crate) requested_at: u64,
    /// The number of the last token of the cluster that was known then.
    pub(crate) after: Option<i32>,
    /// None: it was asked for, and nobody learnt what came of it.
    pub(crate) token: Option<KnownToken>,
    pub(crate) phase: Phase,
    /// In milliseconds since the epoch, on the Hadoop service's clock.
    pub(crate) renew_date: Option<u64>,
    pub(crate) renewals: u32,
    pub(crate) last_error: Option<Box<str>>,
}

/// A token without its password. Dates are milliseconds since the epoch, on the Hadoop service's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KnownToken {
    pub(crate) identifier: Box<[u8]>,
    pub(crate) kind: Box<str>,
    pub(crate) services: Box<[Box<str>]>,
    pub(crate) sequence_number: i32,
    pub(crate) issue_date: u64,
    pub(crate) max_date: u64,
}

impl From<&KnownToken> for TokenNumber {
    fn from(token: &KnownToken) -> Self {
        Self { sequence_number: token.sequence_number, max_date: token.max_date }
    }
}

/// What keeps the object from vanishing when it is deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Finalizers {
    pub(super) ours: bool,
    pub(super) others: Box<[Box<str>]>,
}

impl Entry {
    /// The pod whose volume the token is for.
    pub(crate) fn pod(&self) -> PodReference {
        PodReference {
            namespace: (*self.namespace).to_owned(),
            name: (*self.pod).to_owned(),
            uid: (*self.pod_uid).to_owned(),
        }
    }

    /// Whether it is for `volume`: whoever may write into one namespace says nothing of the pods of another.
    pub(crate) fn is_of(&self, volume: &VolumeReference) -> bool {
        let VolumeReference { pod, name, .. } = volume;
        *self.namespace == *pod.namespace && *self.pod_uid == *pod.uid && *self.volume == **name
    }

    /// The volume's id.
    pub(crate) fn volume_id(&self) -> VolumeId {
        VolumeId::of(&self.pod_uid, &self.volume)
    }

    /// The token's identifier, once it is known.
    pub(crate) fn identifier(&self) -> Option<&[u8]> {
        self.token.as_ref().map(|token| &*token.identifier)
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a token is found by, without its identifier being spread: the first 20 bytes of the identifier's SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Digest([u8; 20]);

impl Digest {
    pub(super) fn of(identifier: &[u8]) -> Self {
        let mut digest = [0; 20];
        for (to, from) in digest.iter_mut().zip(Sha256::digest(identifier)) {
            *to = from;
        }
        Self(digest)
    }
}

/// As in the object's label: 40 hexadecimal digits.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The identifier as the object has it.
pub(super) fn encoded(identifier: &[u8]) -> String {
    BASE64.encode(identifier)
}

/// A `DelegationToken` as it comes from the API server.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Wire")]
pub(crate) struct Object {
    /// Only what a watch itself needs.
    metadata: ObjectMeta,
    pub(crate) entry: Arc<Entry>,
}

#[derive(Deserialize)]
struct Wire {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    status: Option<DelegationTokenStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    namespace: String,
    name: String,
    uid: String,
    resource_version: Option<String>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    #[serde(default)]
    finalizers: Vec<Box<str>>,
    #[serde(default)]
    annotations: Annotations,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Annotations {
    #[serde(rename = "hadoop-token.csi/release")]
    release: Option<String>,
    #[serde(rename = "hadoop-token.csi/rotate")]
    rotate: Option<Box<str>>,
}

/// As in the schema, but what is missing is no reason to see none of the objects.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    pod: Box<str>,
    pod_uid: Box<str>,
    volume: Box<str>,
    node: Box<str>,
    submitter: Box<str>,
    user: Box<str>,
    cluster: Box<str>,
    scope: Scope,
    requested_at: u64,
    after: Option<i32>,
    token: Option<Token>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Token {
    identifier: String,
    kind: Box<str>,
    services: Box<[Box<str>]>,
    sequence_number: i32,
    issue_date: u64,
    max_date: u64,
}

impl From<Token> for KnownToken {
    fn from(token: Token) -> Self {
        let Token { identifier, kind, services, sequence_number, issue_date, max_date } = token;
        // One that cannot be read is empty. Nobody can cancel that, and the object says so.
        let identifier = BASE64.decode(identifier).unwrap_or_default().into();
        Self { identifier, kind, services, sequence_number, issue_date, max_date }
    }
}

impl From<Wire> for Object {
    fn from(Wire { metadata, spec, status }: Wire) -> Self {
        let status = status.unwrap_or_default();
        let Metadata { annotations, finalizers, .. } = metadata;
        let (ours, others): (Vec<_>, Vec<_>) =
            finalizers.into_iter().partition(|finalizer| **finalizer == *CANCEL_FINALIZER);
        let version = metadata.resource_version.as_ref().and_then(|version| version.parse().ok());
        let entry = Entry {
            namespace: metadata.namespace.as_str().into(),
            name: metadata.name.as_str().into(),
            uid: metadata.uid.into(),
            version: version.unwrap_or_default(),
            created: metadata.creation_timestamp.map(|at| at.0.as_second()).unwrap_or_default(),
            deleting: metadata.deletion_timestamp.is_some(),
            let_go: annotations.release.as_deref() == Some("true"),
            rotate: annotations.rotate,
            finalizers: Finalizers { ours: !ours.is_empty(), others: others.into() },
            pod: spec.pod,
            pod_uid: spec.pod_uid.into(),
            volume: spec.volume,
            node: spec.node.into(),
            submitter: spec.submitter,
            user: spec.user,
            cluster: spec.cluster,
            scope: spec.scope,
            requested_at: spec.requested_at,
            after: spec.after,
            token: spec.token.map(KnownToken::from),
            phase: status.phase,
            renew_date: status.renew_date,
            renewals: status.renewals,
            last_error: status.last_error.map(String::into_boxed_str),
        };
        let metadata = ObjectMeta {
            namespace: Some(metadata.namespace),
            name: Some(metadata.name),
            resource_version: metadata.resource_version,
            ..ObjectMeta::default()
        };
        Self { metadata, entry: Arc::new(entry) }
    }
}

impl Resource for Object {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        DelegationToken::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        DelegationToken::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        DelegationToken::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        DelegationToken::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
impl Entry {
    /// The entry of an object as the API server has it.
    pub(crate) fn of(object: serde_json::Value) -> Arc<Self> {
        serde_json::from_value::<Object>(object).unwrap().entry
    }
}

#[cfg(test)]
mod tests {
    use identity::{RELEASE_ANNOTATION, ROTATE_ANNOTATION};
    use serde_json::{Value, json};

    use super::*;

    fn read(object: Value) -> Entry {
        Arc::unwrap_or_clone(serde_json::from_value::<Object>(object).unwrap().entry)
    }

    #[test]
    fn the_words_of_annotations_are_those_that_everybody_shares() {
        let entry = read(json!({"metadata": {
            "namespace": "jobs", "name": "a", "uid": "u",
            "annotations": {RELEASE_ANNOTATION: "true", ROTATE_ANNOTATION: "now", "other": "x"},
            "finalizers": ["foregroundDeletion", CANCEL_FINALIZER],
        }}));
        assert!(entry.let_go && entry.rotate.as_deref() == Some("now"), "{entry:?}");
        assert!(entry.finalizers.ours, "{entry:?}");
        assert_eq!(*entry.finalizers.others, ["foregroundDeletion".into()]);
    }

    #[test]
    fn an_object_that_lacks_everything_is_read_all_the_same() {
        let entry = read(json!({
            "metadata": {"namespace": "jobs", "name": "a", "uid": "u"},
            "spec": {"token": {"identifier": "%"}},
            "status": null,
        }));
        assert_eq!(entry.identifier(), Some(&[][..]));
    }

    #[test]
    fn a_label_has_forty_digits_of_the_identifiers_sha_256() {
        // printf abc | sha256sum
        assert_eq!(Digest::of(b"abc").to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a3");
    }
}
