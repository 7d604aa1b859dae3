//! The certificate authorities by which API servers believe us: of every replica those that are still good, in one
//! bundle of PEM that all replicas write alike.

use std::{collections::BTreeSet, fmt::Write};

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::ORGANIZATION;

/// How long an authority is kept after its end: a replica whose clock is ahead must not take away those of the others.
/// API servers do not believe it any longer anyway.
pub(super) const KEPT_AFTER_END: i64 = 24 * 60 * 60;

/// Authorities in a bundle. Replicas that crash leave theirs behind.
pub(super) const MOST: usize = 64;

/// A certificate authority. In the order of their ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Authority {
    /// In seconds since the epoch.
    end: i64,
    der: Vec<u8>,
}

impl Authority {
    /// None when it is no certificate, or not one that a replica of ours has made.
    pub(crate) fn read(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let mut organizations = certificate.subject().iter_organization();
        let ours = organizations.any(|name| name.as_str() == Ok(ORGANIZATION));
        let end = certificate.validity().not_after.timestamp();
        ours.then(|| Self { end, der: der.to_vec() })
    }
}

/// Those of ours in a bundle. The rest of it is nothing that anybody is to be believed by.
pub(crate) fn read(pem: &[u8]) -> BTreeSet<Authority> {
    CertificateDer::pem_slice_iter(pem).flatten().filter_map(|der| Authority::read(&der)).collect()
}

/// When the first certificate in this PEM ends, in seconds since the epoch.
pub(crate) fn end_of(pem: &[u8]) -> Option<i64> {
    let der = CertificateDer::pem_slice_iter(pem).next()?.ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

/// What is to be in the bundle: of those `present` all that others may still need, not the `retired` ones, and `own`.
pub(crate) fn wanted(
    present: BTreeSet<Authority>,
    own: &BTreeSet<Authority>,
    retired: &BTreeSet<Authority>,
    now: i64,
) -> BTreeSet<Authority> {
    let others = present.into_iter().filter(|authority| {
        now < authority.end.saturating_add(KEPT_AFTER_END)
            && !retired.contains(authority)
            && !own.contains(authority)
    });
    let mut others: BTreeSet<_> = others.collect();
    while others.len() + own.len() > MOST && others.pop_first().is_some() {}
    others.extend(own.iter().cloned());
    others
}

/// The bundle of these.
pub(crate) fn bundle(authorities: &BTreeSet<Authority>) -> String {
    let mut pem = String::new();
    for Authority { der, .. } in authorities {
        pem += "-----BEGIN CERTIFICATE-----\n";
        let text = STANDARD.encode(der);
        for line in text.as_bytes().chunks(64) {
            // Base64 is ASCII, and writing to a string cannot fail.
            let _ = writeln!(pem, "{}", String::from_utf8_lossy(line));
        }
        pem += "-----END CERTIFICATE-----\n";
    }
    pem
}
