//! The custom resource `DelegationToken`, as `kubectl` shows it. Its manifest follows from it: see `definition`.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One delegation token of one volume of one pod. Its owner is the pod, and it goes when the token is cancelled: deleting
/// it revokes the token.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "hadoop-token.csi",
    version = "v1alpha1",
    kind = "DelegationToken",
    plural = "delegationtokens",
    singular = "delegationtoken",
    shortname = "dt",
    namespaced,
    status = "DelegationTokenStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"User","type":"string","jsonPath":".spec.user"}"#,
    printcolumn = r#"{"name":"Cluster","type":"string","jsonPath":".spec.cluster"}"#,
    printcolumn = r#"{"name":"Pod","type":"string","jsonPath":".spec.pod"}"#,
    printcolumn = r#"{"name":"Node","type":"string","jsonPath":".spec.node"}"#,
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Expires","type":"string","jsonPath":".status.expires"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Trouble","type":"string","jsonPath":".status.lastError","priority":1}"#
)]
pub(crate) struct DelegationTokenSpec {
    /// Name of the pod.
    pub(crate) pod: String,
    /// UID of the pod.
    pub(crate) pod_uid: String,
    /// Name of the volume in the pod's spec.
    pub(crate) volume: String,
    /// Node on which the pod runs.
    pub(crate) node: String,
    /// Kubernetes user who submitted the pod.
    pub(crate) submitter: String,
    /// Hadoop user that owns the token.
    pub(crate) user: String,
    /// Name of the cluster in the controller's configuration.
    pub(crate) cluster: String,
    /// Who shares the token.
    pub(crate) scope: Scope,
    /// When it was asked for, in milliseconds since the epoch on the Hadoop service's clock, as well as that was known.
    pub(crate) requested_at: u64,
    /// The number of the last token of the cluster that was known then. Its own is greater.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) after: Option<i32>,
    /// What is known of the token once there is one. Set once. As long as it is missing, one may have been issued whose
    /// identifier nobody learnt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<TokenFacts>,
}

/// Who shares a token.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Scope {
    /// One volume has it for itself.
    #[default]
    Pod,
    /// The pods of one root owner; each has an object of its own with the same identifier.
    Job,
}

/// A token without its password. Dates are milliseconds since the epoch on the Hadoop service's clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TokenFacts {
    /// Base64 of the identifier: enough to cancel the token, and not to use it.
    #[schemars(
        length(min = 4, max = 4096),
        regex(pattern = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$")
    )]
    pub(crate) identifier: String,
    /// As in `HDFS_DELEGATION_TOKEN`.
    pub(crate) kind: String,
    /// Names under which clients look the token up.
    pub(crate) services: Vec<String>,
    /// The token's number at its service.
    pub(crate) sequence_number: i32,
    /// When it was issued.
    pub(crate) issue_date: u64,
    /// When it ends whatever is done.
    pub(crate) max_date: u64,
}

/// What became of the token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DelegationTokenStatus {
    /// How far it has come.
    #[serde(default)]
    pub(crate) phase: Phase,
    /// When it ends unless it is renewed, in milliseconds since the epoch on the Hadoop service's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) renew_date: Option<u64>,
    /// The same, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires: Option<String>,
    /// How often it was renewed.
    #[serde(default)]
    pub(crate) renewals: u32,
    /// Why it could not be renewed or cancelled when that was tried last: reason and sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_error: Option<String>,
}

/// How far a token has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum Phase {
    /// It is being asked for.
    #[default]
    Requested,
    /// Its volume has it.
    Active,
    /// Its pod has ended, or lost it: it is being cancelled.
    Cancelling,
}
