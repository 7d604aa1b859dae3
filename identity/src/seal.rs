//! The seal: a signed statement, made while a pod is admitted, of who submitted it and what for. Here are its words and
//! its form, signing and verifying; whether a genuine seal is the seal of this pod is decided by the token service.
//!
//! The form is a compact JWS (RFC 7515), signed with Ed25519 (RFC 8037). One algorithm, one type: what a header says is
//! compared with the only header we write, and never chooses how it is verified.

mod keys;
mod pod;
mod workload;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

pub use crate::owners::Owner;

pub use keys::{InvalidKey, InvalidKeySet, JwkSet, KeySet, PublicJwk, SealingKey};
pub use pod::{NamelessObject, Submission, headless_accounts};
pub use workload::{Workload, WorkloadSeal};

/// Most bytes of a seal. A seal of ten accounts has about a thousand.
pub const MAX_SEAL_LENGTH: usize = 16 * 1024;

/// Lengths of a nonce. It is remembered, so it must not be long; [`fresh_nonce`] makes 32 digits.
const NONCE_LENGTHS: std::ops::RangeInclusive<usize> = 16..=64;
/// What the API server keeps of a prefix before it appends its random letters.
const GENERATED_NAME_PREFIX: usize = 58;

/// What can be sealed.
pub trait Statement: Serialize + DeserializeOwned {
    /// `typ` of such a seal, so that nothing else that was ever signed with such a key is taken for one (RFC 8725, 3.11).
    const TYPE: &str;

    /// Kubernetes user who submitted it.
    fn submitter(&self) -> &str;

    /// Random letters that no other seal has.
    fn nonce(&self) -> &str;
}

/// What was proven when a pod was admitted.
///
/// Unknown fields are refused, because one might be a restriction that this version does not know of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Seal {
    /// Kubernetes user who submitted it.
    pub submitter: String,
    /// [`groups_digest`] of the submitter's Kubernetes groups.
    pub groups_digest: String,
    /// Headless accounts that the pod's volumes may ask for.
    pub do_as: BTreeSet<String>,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's service account.
    pub service_account: String,
    /// The pod's name, or what it begins with.
    pub name: ObjectName,
    /// Root of the pod's owner chain; none for a pod that nobody owns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_owner: Option<Owner>,
    /// When it was sealed, in seconds since 1970.
    pub sealed_at: i64,
    /// Random letters that no other seal has.
    pub nonce: String,
}

impl Statement for Seal {
    const TYPE: &str = "hadoop-token-seal+jwt";

    fn submitter(&self) -> &str {
        &self.submitter
    }

    fn nonce(&self) -> &str {
        &self.nonce
    }
}

/// How an object is called: the API server makes a generated name only after the object was sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ObjectName {
    /// Exactly so.
    Name(String),
    /// With letters appended (`metadata.generateName`).
    GenerateName(String),
}

impl ObjectName {
    /// Whether an object of this `metadata.name` and `metadata.generateName` is meant.
    #[must_use]
    pub fn fits(&self, name: &str, generate_name: Option<&str>) -> bool {
        match self {
            Self::Name(sealed) => sealed == name,
            Self::GenerateName(sealed) => {
                let kept = sealed.get(..GENERATED_NAME_PREFIX).unwrap_or(sealed);
                generate_name == Some(sealed) && name.len() > kept.len() && name.starts_with(kept)
            }
        }
    }
}

/// Groups as a pod's annotation carries them: a JSON list, sorted, each once.
#[must_use]
#[expect(clippy::expect_used, reason = "a list of strings is JSON")]
pub fn groups_annotation(groups: &[String]) -> String {
    let groups: BTreeSet<&String> = groups.iter().collect();
    serde_json::to_string(&groups).expect("a list of strings is JSON")
}

/// What a seal says of groups: the hexadecimal SHA-256 of [`groups_annotation`].
#[must_use]
pub fn groups_digest(groups: &[String]) -> String {
    let digest = Sha256::digest(groups_annotation(groups));
    digest.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// A nonce that nobody can guess.
#[must_use]
#[expect(clippy::expect_used, reason = "without randomness no key is safe either")]
pub fn fresh_nonce() -> String {
    let mut random = [0; 16];
    aws_lc_rs::rand::fill(&mut random).expect("the system has randomness");
    random.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn is_nonce(text: &str) -> bool {
    NONCE_LENGTHS.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Why a text is no seal that can be trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// It does not have a seal's form; says which part of it.
    #[error("it is no seal: {0}")]
    Malformed(&'static str),
    /// It was signed with a key that is not in the set.
    #[error("it was made with key {0:?}, which is not among the seal keys")]
    UnknownKey(String),
    /// It was changed after it was signed, or was never signed with that key.
    #[error("its signature is wrong")]
    BadSignature,
}

/// A seal that would be refused: its text is too long, or its nonce has not the form of [`fresh_nonce`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a seal of this content would be refused: {0}")]
pub struct CannotSeal(&'static str);

#[cfg(test)]
mod tests;
