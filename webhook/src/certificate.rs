//! As whom the API server meets us. Either by files that others look after, or by ourselves: each replica makes a
//! certificate authority, signs one certificate with it, forgets the authority's key, and has API servers believe that
//! authority. No private key is ever written anywhere. Before half of its life is over there is a successor, which is
//! believed for a while before it is shown.

mod authority;
mod rotation;

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use process::tls::{self, ClientAuthority, Tls, TlsError};
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, date_time_ymd,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use serde::Deserialize;
use zeroize::Zeroize;

pub(crate) use authority::{Authority, bundle, end_of, read, wanted};
pub(crate) use rotation::{Now, Rotation, Step};

/// By which authorities of ours are told from others.
const ORGANIZATION: &str = "hadoop-token-csi-webhook";

/// How far the clocks of API servers may be behind ours.
const CLOCK_TOLERANCE: Duration = Duration::from_hours(1);

/// The configuration's key `certificate`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) enum Section {
    SelfManaged(SelfManaged),
    /// Whoever looks after these looks after `caBundle` too.
    Files(tls::Section),
}

impl Default for Section {
    fn default() -> Self {
        Self::SelfManaged(SelfManaged::default())
    }
}

/// Where certificates come from, checked.
pub(crate) enum Source {
    SelfManaged(Own),
    Files(Tls),
}

/// What our own certificates are made with.
pub(crate) struct Own {
    pub(crate) lifetime: Duration,
    pub(crate) settling: Duration,
    pub(crate) clients: Option<ClientAuthority>,
}

impl Section {
    /// Reads the files, if it is files.
    ///
    /// # Errors
    /// All mistakes, without the key `certificate`.
    pub(crate) fn open(self) -> Result<Source, Vec<String>> {
        match self {
            Self::SelfManaged(section) => section.open().map(Source::SelfManaged),
            Self::Files(files) => {
                Tls::load(files, tls::HTTP).map(Source::Files).map_err(|error| vec![error.to_string()])
            }
        }
    }
}

/// Certificates that we make.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(crate) struct SelfManaged {
    lifetime_seconds: u32,
    /// From the API server's having written an authority down to every API server's believing it.
    settle_seconds: u32,
    /// Who must have signed the certificate that API servers have to show. Without it they need none.
    client_authority: Option<PathBuf>,
}

impl Default for SelfManaged {
    fn default() -> Self {
        Self { lifetime_seconds: 2 * 24 * 60 * 60, settle_seconds: 5, client_authority: None }
    }
}

impl SelfManaged {
    fn open(self) -> Result<Own, Vec<String>> {
        let mut mistakes = Vec::new();
        // A successor is made at half, and has to be believed before the other half is over.
        let least = self.settle_seconds.saturating_mul(4).max(20);
        if self.lifetime_seconds < least {
            mistakes.push(format!("selfManaged.lifetimeSeconds must be at least {least}"));
        }
        let clients = self.client_authority.as_deref().map(ClientAuthority::load).transpose();
        let clients = clients.map_err(|error: TlsError| mistakes.push(error.to_string())).ok().flatten();
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let [lifetime, settling] =
            [self.lifetime_seconds, self.settle_seconds].map(|seconds| Duration::from_secs(seconds.into()));
        Ok(Own { lifetime, settling, clients })
    }
}

/// A certificate of ours, to be shown, and what has to be believed for it.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) authority: Authority,
    certificate: CertificateDer<'static>,
    key: Arc<PrivateKeyDer<'static>>,
    /// In seconds since the epoch.
    pub(crate) made: i64,
    pub(crate) end: i64,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error("cannot make a certificate: {0}")]
    Signing(#[from] rcgen::Error),
    #[error("cannot use a certificate of our own making: {0}")]
    Tls(#[from] rustls::Error),
    #[error("a certificate of our own making is none")]
    Unreadable,
}

impl Identity {
    /// Makes one for `host`, good for `lifetime` from `now`, in seconds since the epoch.
    pub(crate) fn make(host: &str, now: i64, lifetime: Duration) -> Result<Self, CertificateError> {
        let end = now.saturating_add_unsigned(lifetime.as_secs());
        let date =
            |seconds: i64| date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds.max(0).unsigned_abs());
        let begin = date(now) - CLOCK_TOLERANCE;
        let mut key = KeyPair::generate()?;
        let mut params = CertificateParams::new([host.to_owned()])?;
        params.distinguished_name = name(host);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = (begin, date(end));

        let mut signer = CertificateParams::default();
        let mut authority_key = KeyPair::generate()?;
        // Each with a name of its own, so that nobody tries the one's key on the other's signature.
        let digest = signer.key_identifier(&authority_key);
        let serial = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect::<String>();
        signer.distinguished_name = name(&serial);
        signer.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        signer.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        signer.name_constraints = constraints(host);
        (signer.not_before, signer.not_after) = (begin, date(end));
        let authority = signer.self_signed(&authority_key)?;
        let certificate = params.signed_by(&key, &Issuer::new(signer, &authority_key))?;
        authority_key.zeroize();
        let private =
            PrivateKeyDer::try_from(key.serialize_der()).map_err(|_| CertificateError::Unreadable)?;
        key.zeroize();
        let authority = Authority::read(authority.der()).ok_or(CertificateError::Unreadable)?;
        Ok(Self { authority, certificate: certificate.der().clone(), key: Arc::new(private), made: now, end })
    }

    /// TLS by it, for callers of `clients`, or any.
    pub(crate) fn server(
        &self,
        clients: Option<&ClientAuthority>,
    ) -> Result<Arc<ServerConfig>, CertificateError> {
        let chain = vec![self.certificate.clone()];
        Ok(Arc::new(tls::server(chain, self.key.clone_key(), clients, tls::HTTP)?))
    }
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, ORGANIZATION);
    name.push(DnType::CommonName, common);
    name
}

/// The authority can vouch for nothing else, whoever had its key.
fn constraints(host: &str) -> Option<NameConstraints> {
    let only = match host.parse::<IpAddr>() {
        Ok(address @ IpAddr::V4(_)) => GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(address, 32)),
        Ok(address @ IpAddr::V6(_)) => GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(address, 128)),
        Err(_) => GeneralSubtree::DnsName(host.to_owned()),
    };
    Some(NameConstraints { permitted_subtrees: vec![only], excluded_subtrees: Vec::new() })
}

#[cfg(test)]
mod tests;
