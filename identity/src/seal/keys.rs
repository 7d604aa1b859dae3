//! Keys of seals: the private one that signs, and the set of public ones that verify. Several public keys at a time are
//! how keys are exchanged without a moment in which good seals are refused.

use std::collections::{BTreeMap, btree_map::Entry};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{CannotSeal, MAX_SEAL_LENGTH, Seal, SealError, Statement, WorkloadSeal, is_nonce};

const MAX_KEY_ID_LENGTH: usize = 128;
const PUBLIC_KEY_LENGTH: usize = 32;

/// The key that signs seals. Cannot be printed, and is wiped when dropped.
pub struct SealingKey {
    key: EncodingKey,
    public: PublicJwk,
}

impl SealingKey {
    /// Reads what `openssl genpkey -algorithm ed25519` writes: PKCS#8 in PEM, not encrypted.
    ///
    /// # Errors
    /// When the text is not that.
    pub fn from_pem(pem: &str) -> Result<Self, InvalidKey> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| InvalidKey::NotPem)?;
        Self::from_der(Zeroizing::new(der).secret_pkcs8_der())
    }

    /// A key that nobody has. It cannot be saved: a key that is to be kept is made with `openssl`.
    #[must_use]
    #[expect(clippy::expect_used, reason = "see the messages")]
    pub fn generate() -> Self {
        let der = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("the system has randomness");
        Self::from_der(der.as_ref()).expect("a generated key is a key")
    }

    fn from_der(der: &[u8]) -> Result<Self, InvalidKey> {
        let pair = Ed25519KeyPair::from_pkcs8(der).map_err(|_| InvalidKey::NotEd25519)?;
        let public = PublicJwk::new(pair.public_key().as_ref());
        Ok(Self { key: EncodingKey::from_ed_der(der), public })
    }

    /// The same under a key id of one's own instead of the thumbprint.
    #[must_use]
    pub fn with_id(mut self, kid: &str) -> Self {
        self.public.kid = Some(kid.to_owned());
        self
    }

    /// The public half, as it has to be in the key set of those who verify.
    #[must_use]
    pub fn public_jwk(&self) -> PublicJwk {
        self.public.clone()
    }

    /// The text of a seal.
    ///
    /// # Errors
    /// When the seal would be refused as too long or for its nonce.
    #[expect(clippy::expect_used, reason = "see the message")]
    pub fn sign<S: Statement>(&self, seal: &S) -> Result<String, CannotSeal> {
        if !is_nonce(seal.nonce()) {
            return Err(CannotSeal("its nonce is not 16 to 64 letters and digits"));
        }
        let header = header::<S>(self.public.id());
        let text = jsonwebtoken::encode(&header, seal, &self.key)
            .expect("the key was read before, and a seal has no map whose keys are not texts");
        if text.len() > MAX_SEAL_LENGTH { Err(CannotSeal("it is too long")) } else { Ok(text) }
    }
}

/// The one header that seals of a type have.
fn header<S: Statement>(kid: String) -> Header {
    Header { typ: Some(S::TYPE.to_owned()), kid: Some(kid), ..Header::new(Algorithm::EdDSA) }
}

/// Why a private key cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// No PEM with a private key.
    #[error("there is no unencrypted private key in PKCS#8 PEM (BEGIN PRIVATE KEY)")]
    NotPem,
    /// Another kind of key.
    #[error("it is no Ed25519 key (openssl genpkey -algorithm ed25519 makes one)")]
    NotEd25519,
}

/// A public key as a JSON Web Key (RFC 7517, RFC 8037).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicJwk {
    kty: String,
    crv: String,
    x: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    alg: Option<String>,
    #[serde(default, rename = "use", skip_serializing_if = "Option::is_none")]
    usage: Option<String>,
    /// The private half, which must not be here. Only seen, never kept.
    #[serde(default, skip_serializing, deserialize_with = "seen")]
    d: bool,
}

fn seen<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    serde::de::IgnoredAny::deserialize(deserializer).map(|_| true)
}

impl PublicJwk {
    fn new(key: &[u8]) -> Self {
        let mut jwk = Self {
            kty: "OKP".to_owned(),
            crv: "Ed25519".to_owned(),
            x: BASE64_URL_SAFE_NO_PAD.encode(key),
            kid: None,
            alg: Some("EdDSA".to_owned()),
            usage: Some("sig".to_owned()),
            d: false,
        };
        jwk.kid = Some(jwk.thumbprint());
        jwk
    }

    /// Its key id; the thumbprint when it was given none.
    #[must_use]
    pub fn id(&self) -> String {
        self.kid.clone().unwrap_or_else(|| self.thumbprint())
    }

    /// RFC 7638: hash of the members that make the key, in alphabetical order.
    fn thumbprint(&self) -> String {
        let members = format!(r#"{{"crv":"{}","kty":"{}","x":"{}"}}"#, self.crv, self.kty, self.x);
        BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(members))
    }

    fn key(&self) -> Result<DecodingKey, &'static str> {
        if self.d {
            return Err("holds a private key, which does not belong here and should be replaced now");
        }
        if self.kty != "OKP" || self.crv != "Ed25519" {
            return Err("is no Ed25519 key (kty OKP, crv Ed25519)");
        }
        // RFC 9864 gives the algorithm a second name.
        if !matches!(self.alg.as_deref(), None | Some("EdDSA" | "Ed25519")) {
            return Err("is not meant for EdDSA (alg)");
        }
        if !matches!(self.usage.as_deref(), None | Some("sig")) {
            return Err("is not meant for signatures (use)");
        }
        if self.kid.as_ref().is_some_and(|kid| kid.is_empty() || kid.len() > MAX_KEY_ID_LENGTH) {
            return Err("has a key id that is empty or longer than 128 bytes (kid)");
        }
        let key = DecodingKey::from_ed_components(&self.x).map_err(|_| "is not in base64url (x)")?;
        if key.as_bytes().len() == PUBLIC_KEY_LENGTH { Ok(key) } else { Err("does not have 32 bytes (x)") }
    }
}

/// A JWK Set (RFC 7517, section 5): the file that those who verify are given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JwkSet {
    /// The keys.
    pub keys: Vec<PublicJwk>,
}

impl JwkSet {
    /// As a file.
    #[must_use]
    #[expect(clippy::expect_used, reason = "see the message")]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a key set is texts and lists of texts")
    }
}

/// The public keys by which seals are verified.
#[derive(Clone)]
pub struct KeySet(BTreeMap<String, DecodingKey>);

impl KeySet {
    /// Reads a JWK Set. Every key in it has to be one that verifies seals: whoever finds another kind in this file has
    /// the wrong file, or expects of a key what it does not do.
    ///
    /// # Errors
    /// When the text is no key set, a key cannot be used, or two have the same key id.
    pub fn from_jwk_set(json: &[u8]) -> Result<Self, InvalidKeySet> {
        let set: JwkSet = serde_json::from_slice(json).map_err(InvalidKeySet::NotAJwkSet)?;
        let mut keys = BTreeMap::new();
        for (number, jwk) in (1..).zip(&set.keys) {
            let key = jwk.key().map_err(|problem| InvalidKeySet::Unusable { number, problem })?;
            match keys.entry(jwk.id()) {
                Entry::Vacant(entry) => entry.insert(key),
                Entry::Occupied(entry) => return Err(InvalidKeySet::Duplicate(entry.key().clone())),
            };
        }
        if keys.is_empty() { Err(InvalidKeySet::Empty) } else { Ok(Self(keys)) }
    }

    /// Ids of the keys.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The seal of a pod that a text is, if it was signed with one of these keys and not changed since.
    ///
    /// # Errors
    /// When it was not.
    pub fn verify(&self, text: &str) -> Result<Seal, SealError> {
        self.statement(text)
    }

    /// The same for the seal of a workload.
    ///
    /// # Errors
    /// When the text is no such seal.
    pub fn verify_workload(&self, text: &str) -> Result<WorkloadSeal, SealError> {
        self.statement(text)
    }

    fn statement<S: Statement>(&self, text: &str) -> Result<S, SealError> {
        if text.len() > MAX_SEAL_LENGTH {
            return Err(SealError::Malformed("it is too long"));
        }
        let shown = jsonwebtoken::decode_header(text)
            .map_err(|_| SealError::Malformed("it has no header of a signed text"))?;
        let kid = shown.kid.clone().ok_or(SealError::Malformed("its header names no key"))?;
        if kid.len() > MAX_KEY_ID_LENGTH {
            return Err(SealError::Malformed("its key id is too long"));
        }
        if shown != header::<S>(kid.clone()) {
            return Err(SealError::Malformed("its header is not that of a seal"));
        }
        let Some(key) = self.0.get(&kid) else { return Err(SealError::UnknownKey(kid)) };
        let seal = jsonwebtoken::decode::<S>(text, key, &only_the_signature())
            .map_err(|error| match error.kind() {
                jsonwebtoken::errors::ErrorKind::Json(_) => {
                    SealError::Malformed("its content is not that of a seal")
                }
                _ => SealError::BadSignature,
            })?
            .claims;
        if is_nonce(seal.nonce()) { Ok(seal) } else { Err(SealError::Malformed("its nonce is not one")) }
    }
}

/// Time and audience are not the library's to check: a seal is valid for a pod, by the time at which that was created.
fn only_the_signature() -> Validation {
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation
}

/// Why a key set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidKeySet {
    /// Not the JSON of a key set.
    #[error("it is no JWK Set: {0}")]
    NotAJwkSet(#[source] serde_json::Error),
    /// No key in it.
    #[error("it holds no key")]
    Empty,
    /// A key that cannot verify seals.
    #[error("its key number {number} {problem}")]
    Unusable {
        /// Which one, counted from 1.
        number: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Two keys of one id.
    #[error("two of its keys have the id {0:?}")]
    Duplicate(String),
}
