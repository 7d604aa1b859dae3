//! What is sent to the API server to write the ledger. No I/O.

use std::iter::repeat_with;

use identity::CANCEL_FINALIZER;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};

use super::{
    entry::{Digest, Entry, KnownToken, encoded},
    resource::{DelegationToken, DelegationTokenSpec, DelegationTokenStatus, Phase, Scope, TokenFacts},
};
use crate::request::VolumeReference;

/// Label by which a token's objects are found: [`Digest`] of its identifier.
pub(super) const TOKEN_LABEL: &str = "hadoop-token.csi/token";

/// An object is named after its pod, of whose name no more than this is taken, and this many random letters.
const POD_PART: usize = 40;
const RANDOM_PART: usize = 10;

/// Longest explanation of a failure, in characters.
const MAX_ERROR: usize = 500;

/// A token that is about to be asked for, or to be shared.
#[derive(Clone, Debug)]
pub(crate) struct Intent {
    pub(crate) volume: VolumeReference,
    pub(crate) node: String,
    pub(crate) submitter: String,
    pub(crate) user: String,
    pub(crate) cluster: String,
    pub(crate) scope: Scope,
    /// In milliseconds since the epoch, on the Hadoop service's clock, as well as that is known.
    pub(crate) requested_at: u64,
    /// The number of the last token of the cluster that is known.
    pub(crate) after: Option<i32>,
}

/// The object that says what is about to be asked for; or, with `token` and its renew date, who shares it.
pub(super) fn object(intent: &Intent, token: Option<(&KnownToken, u64)>) -> DelegationToken {
    let pod = &intent.volume.pod;
    let spec = DelegationTokenSpec {
        pod: pod.name.clone(),
        pod_uid: pod.uid.clone(),
        volume: intent.volume.name.clone(),
        node: intent.node.clone(),
        submitter: intent.submitter.clone(),
        user: intent.user.clone(),
        cluster: intent.cluster.clone(),
        scope: intent.scope,
        requested_at: intent.requested_at,
        after: intent.after,
        token: token.map(|(token, _)| facts(token)),
    };
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        // Only the garbage collector's courtesy to a pod that is deleted in the foreground, and it would need a right.
        block_owner_deletion: Some(false),
        controller: None,
    };
    let label = |(token, _): (&KnownToken, u64)| [(TOKEN_LABEL.to_owned(), label(&token.identifier))].into();
    DelegationToken {
        metadata: ObjectMeta {
            namespace: Some(pod.namespace.clone()),
            name: Some(name(&pod.name)),
            owner_references: Some(vec![owner]),
            finalizers: Some(vec![CANCEL_FINALIZER.to_owned()]),
            labels: token.map(label),
            ..ObjectMeta::default()
        },
        spec,
        status: Some(token.map_or_else(DelegationTokenStatus::default, |(_, renew_date)| active(renew_date))),
    }
}

/// Sets what came of the request.
pub(super) fn recorded(entry: &Entry, token: &KnownToken, renew_date: u64) -> Value {
    json!({
        "metadata": {"uid": *entry.uid, "labels": {TOKEN_LABEL: label(&token.identifier)}},
        "spec": {"token": facts(token)},
        "status": active(renew_date),
    })
}

/// Says that the token was renewed, and nothing of how far it has come: it may be being cancelled meanwhile.
pub(super) fn renewed(entry: &Entry, renew_date: u64) -> Value {
    let mut status = json!(active(renew_date));
    if let Some(status) = status.as_object_mut() {
        status.remove("phase");
        status.insert("renewals".to_owned(), json!(entry.renewals.saturating_add(1)));
        status.insert("lastError".to_owned(), Value::Null);
    }
    json!({"metadata": {"uid": *entry.uid}, "status": status})
}

/// Says what hinders it, and how far it has come, if that is known.
pub(super) fn failed(entry: &Entry, phase: Option<Phase>, error: Option<&str>) -> Value {
    let error = error.map(|error| error.chars().take(MAX_ERROR).collect::<String>());
    let mut status = json!({"lastError": error});
    if let (Some(phase), Some(status)) = (phase, status.as_object_mut()) {
        status.insert("phase".to_owned(), json!(phase));
    }
    json!({"metadata": {"uid": *entry.uid}, "status": status})
}

/// Lets the object vanish when it is deleted.
pub(super) fn let_go(entry: &Entry) -> Value {
    json!({"metadata": {"uid": *entry.uid, "finalizers": entry.finalizers.others}})
}

/// The label of a token's objects.
pub(super) fn label(identifier: &[u8]) -> String {
    Digest::of(identifier).to_string()
}

fn facts(token: &KnownToken) -> TokenFacts {
    TokenFacts {
        identifier: encoded(&token.identifier),
        kind: (*token.kind).to_owned(),
        services: token.services.iter().map(|service| (**service).to_owned()).collect(),
        sequence_number: token.sequence_number,
        issue_date: token.issue_date,
        max_date: token.max_date,
    }
}

fn active(renew_date: u64) -> DelegationTokenStatus {
    DelegationTokenStatus {
        phase: Phase::Active,
        renew_date: Some(renew_date),
        expires: date(renew_date),
        ..DelegationTokenStatus::default()
    }
}

/// Milliseconds since the epoch as people write them. None for one that no calendar has.
fn date(milliseconds: u64) -> Option<String> {
    let seconds = i64::try_from(milliseconds / 1000).ok()?;
    Some(Timestamp::from_second(seconds).ok()?.to_string())
}

fn name(pod: &str) -> String {
    let start: String = pod.chars().take(POD_PART).collect();
    let random = repeat_with(|| char::from_digit(fastrand::u32(..36), 36)).flatten().take(RANDOM_PART);
    format!("{}-{}", start.trim_end_matches(['-', '.']), random.collect::<String>())
}
