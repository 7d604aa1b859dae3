//! What the node plugin asks for, typed: the only place that reads the wire messages. Never decides anything.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use identity::is_object_name;
use proto::{VolumeId, token::v1 as wire};
use secrecy::SecretString;
use tonic::metadata::MetadataMap;

use crate::authorization::Observed;

/// One pod, as named by the node plugin. Unproven until the API server has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodReference {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl fmt::Display for PodReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One inline volume of one pod, as named by the node plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeReference {
    pub(crate) id: VolumeId,
    pub(crate) name: String,
    pub(crate) pod: PodReference,
}

/// Tokens for a volume.
#[derive(Debug)]
pub(crate) struct Issue {
    pub(crate) volume: VolumeReference,
    pub(crate) pod_token: SecretString,
    pub(crate) addresses: Option<Observed>,
    /// Those that are mounted now; none at the first publish.
    pub(crate) held: Vec<ReleasedToken>,
}

/// Whether a volume may keep its tokens.
#[derive(Debug)]
pub(crate) struct Check {
    pub(crate) volume: VolumeReference,
    pub(crate) pod_token: SecretString,
    pub(crate) cluster: String,
    pub(crate) tokens: Vec<ReleasedToken>,
    pub(crate) addresses: Option<Observed>,
}

/// More time for the tokens of a volume.
#[derive(Debug)]
pub(crate) struct Renew {
    pub(crate) volume: VolumeReference,
    pub(crate) pod_token: SecretString,
    pub(crate) cluster: String,
    pub(crate) tokens: Vec<hadoop::Token>,
}

/// The end of a volume's tokens.
#[derive(Debug)]
pub(crate) struct Release {
    pub(crate) volume: VolumeReference,
    pub(crate) cluster: String,
    pub(crate) tokens: Vec<ReleasedToken>,
}

/// What a volume holds, as its node plugin says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) volume: VolumeReference,
    pub(crate) tokens: Vec<ReleasedToken>,
}

/// What is left of a token when it is to be cancelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReleasedToken {
    pub(crate) identifier: Vec<u8>,
    pub(crate) kind: String,
}

/// A request that no node plugin of ours sends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid request: {0}")]
pub(crate) struct InvalidRequest(pub(crate) String);

/// Most tokens that one volume can have.
const MAX_TOKENS: usize = 64;

/// Most volumes whose tokens are renewed by one request.
const MAX_RENEWALS: usize = 128;

/// Most volumes of one node.
const MAX_VOLUMES: usize = 4096;

/// Most addresses that a pod can have, and longest explanation of why they are not known.
const MAX_ADDRESSES: usize = 256;
const MAX_EXPLANATION: usize = 200;

/// The node plugin's own JWT, if it sent one.
pub(crate) fn driver_token(metadata: &MetadataMap) -> Option<SecretString> {
    let value = metadata.get("authorization")?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty()).then(|| token.trim().into())
}

impl TryFrom<wire::IssueRequest> for Issue {
    type Error = InvalidRequest;

    fn try_from(request: wire::IssueRequest) -> Result<Self, InvalidRequest> {
        let pod_token = SecretString::from(request.pod_token);
        let addresses = request.addresses.map(observed).transpose()?;
        Ok(Self { volume: volume(request.volume)?, pod_token, addresses, held: identifiers(request.held)? })
    }
}

impl TryFrom<wire::CheckRequest> for Check {
    type Error = InvalidRequest;

    fn try_from(request: wire::CheckRequest) -> Result<Self, InvalidRequest> {
        let pod_token = SecretString::from(request.pod_token);
        Ok(Self {
            volume: volume(request.volume)?,
            pod_token,
            cluster: cluster(request.cluster)?,
            tokens: identifiers(request.tokens)?,
            addresses: request.addresses.map(observed).transpose()?,
        })
    }
}

impl TryFrom<wire::Renewal> for Renew {
    type Error = InvalidRequest;

    fn try_from(request: wire::Renewal) -> Result<Self, InvalidRequest> {
        let pod_token = SecretString::from(request.pod_token);
        let token = |token: wire::Token| {
            let service = token.services.into_iter().next().unwrap_or_default();
            hadoop::Token::new(token.identifier, token.password, token.kind, service)
        };
        let tokens: Vec<_> = request.tokens.into_iter().map(token).collect();
        Ok(Self {
            volume: volume(request.volume)?,
            pod_token,
            cluster: cluster(request.cluster)?,
            tokens: bounded(tokens)?,
        })
    }
}

impl TryFrom<wire::ReleaseRequest> for Release {
    type Error = InvalidRequest;

    fn try_from(request: wire::ReleaseRequest) -> Result<Self, InvalidRequest> {
        Ok(Self {
            volume: volume(request.volume)?,
            cluster: cluster(request.cluster)?,
            tokens: identifiers(request.tokens)?,
        })
    }
}

/// The volumes whose tokens are to be renewed; at least one.
pub(crate) fn renewals(request: wire::RenewRequest) -> Result<Vec<Renew>, InvalidRequest> {
    let count = request.renewals.len();
    if count == 0 || count > MAX_RENEWALS {
        return Err(InvalidRequest(format!("{count} renewals, not 1 to {MAX_RENEWALS}")));
    }
    request.renewals.into_iter().map(Renew::try_from).collect()
}

/// What the volumes of a node hold.
pub(crate) fn held(request: wire::WatchRequest) -> Result<Vec<Held>, InvalidRequest> {
    let count = request.held.len();
    if count > MAX_VOLUMES {
        return Err(InvalidRequest(format!("{count} volumes, more than {MAX_VOLUMES}")));
    }
    let held =
        |held: wire::HeldTokens| Ok(Held { volume: volume(held.volume)?, tokens: identifiers(held.tokens)? });
    request.held.into_iter().map(held).collect()
}

fn identifiers(tokens: Vec<wire::TokenIdentifier>) -> Result<Vec<ReleasedToken>, InvalidRequest> {
    let token =
        |token: wire::TokenIdentifier| ReleasedToken { identifier: token.identifier, kind: token.kind };
    bounded(tokens.into_iter().map(token).collect())
}

fn observed(observed: wire::ObservedAddresses) -> Result<Observed, InvalidRequest> {
    let wire::ObservedAddresses { host_network, addresses, unclear } = observed;
    if !unclear.is_empty() {
        // It ends up in events and logs.
        let plain = unclear.chars().filter(|c| !c.is_control());
        return Ok(Observed::Unclear(plain.take(MAX_EXPLANATION).collect()));
    }
    if addresses.len() > MAX_ADDRESSES {
        return Err(InvalidRequest(format!("{} addresses, more than {MAX_ADDRESSES}", addresses.len())));
    }
    let address = |text: String| {
        let shown: String = text.chars().take(80).collect();
        // An IPv4 address in IPv6's clothes is the same address.
        text.parse::<IpAddr>()
            .map(|address| address.to_canonical())
            .map_err(|_| InvalidRequest(format!("{shown:?} is no IP address")))
    };
    let addresses = addresses.into_iter().map(address).collect::<Result<BTreeSet<_>, _>>()?;
    Ok(Observed::Seen { host_network, addresses })
}

fn bounded<T>(tokens: Vec<T>) -> Result<Vec<T>, InvalidRequest> {
    if tokens.len() > MAX_TOKENS {
        return Err(InvalidRequest(format!("{} tokens, more than {MAX_TOKENS}", tokens.len())));
    }
    Ok(tokens)
}

fn volume(volume: Option<wire::Volume>) -> Result<VolumeReference, InvalidRequest> {
    let volume = volume.ok_or_else(|| InvalidRequest("volume is missing".to_owned()))?;
    let pod = volume.pod.ok_or_else(|| InvalidRequest("pod is missing".to_owned()))?;
    Ok(VolumeReference {
        id: volume.id.parse().map_err(|error| InvalidRequest(format!("volume id {error}")))?,
        name: name("volume name", volume.name)?,
        pod: PodReference {
            namespace: name("pod namespace", pod.namespace)?,
            name: name("pod name", pod.name)?,
            uid: name("pod UID", pod.uid)?,
        },
    })
}

fn cluster(cluster: String) -> Result<String, InvalidRequest> {
    name("cluster", cluster)
}

/// Names become parts of a path at the API server, so only what Kubernetes itself allows in a name may pass.
fn name(what: &str, name: String) -> Result<String, InvalidRequest> {
    if is_object_name(&name) {
        Ok(name)
    } else {
        let shown: String = name.chars().take(80).collect();
        Err(InvalidRequest(format!("{what} {shown:?} is not a name")))
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn wire_volume() -> wire::Volume {
        wire::Volume {
            id: VolumeId::of("u-1", "token").to_string(),
            name: "token".to_owned(),
            pod: Some(wire::Pod {
                namespace: "jobs".to_owned(),
                name: "etl-0".to_owned(),
                uid: "u-1".to_owned(),
            }),
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut wire::Volume), expected: &str) {
        let mut changed = wire_volume();
        change(&mut changed);
        assert_eq!(volume(Some(changed)).unwrap_err().0, expected);
    }

    #[test]
    fn takes_a_whole_request() {
        let request = wire::IssueRequest {
            volume: Some(wire_volume()),
            pod_token: "jwt".to_owned(),
            ..Default::default()
        };
        let issue = Issue::try_from(request).unwrap();
        assert_eq!(issue.volume.pod.name, "etl-0");
        assert_eq!(issue.pod_token.expose_secret(), "jwt");
    }

    #[test]
    fn a_name_cannot_leave_its_place_in_a_path() {
        check(
            |volume| volume.pod.as_mut().unwrap().name = "../../secrets/x".to_owned(),
            r#"pod name "../../secrets/x" is not a name"#,
        );
        check(
            |volume| volume.pod.as_mut().unwrap().namespace = "a/b".to_owned(),
            r#"pod namespace "a/b" is not a name"#,
        );
        check(|volume| volume.pod.as_mut().unwrap().uid = String::new(), r#"pod UID "" is not a name"#);
        check(|volume| volume.name = "a?b".to_owned(), r#"volume name "a?b" is not a name"#);
        check(|volume| volume.name = "..".to_owned(), r#"volume name ".." is not a name"#);
    }

    #[test]
    fn reads_addresses_in_whatever_form() {
        let seen = |addresses: &[&str]| {
            let addresses = addresses.iter().map(|&address| address.to_owned()).collect();
            observed(wire::ObservedAddresses { host_network: false, addresses, unclear: String::new() })
        };
        let addresses = ["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()].into();
        let expected = Observed::Seen { host_network: false, addresses };
        assert_eq!(seen(&["10.0.0.7", "fd00:0::7", "::ffff:10.0.0.7"]), Ok(expected));
        assert_eq!(seen(&["10.0.0.7/24"]).unwrap_err().0, "\"10.0.0.7/24\" is no IP address");
        assert!(seen(&["10.0.0.7"; 257]).is_err());
    }

    #[test]
    fn an_explanation_is_short_and_stays_in_its_line() {
        let unclear = format!("two\nnetworks {}", "x".repeat(1000));
        let read = observed(wire::ObservedAddresses { unclear, ..Default::default() });
        let Ok(Observed::Unclear(text)) = read else { panic!("{read:?}") };
        assert!(text.starts_with("twonetworks x") && text.len() == 200, "{text}");
    }

    #[test]
    fn says_what_is_missing() {
        assert_eq!(volume(None).unwrap_err().0, "volume is missing");
        check(|volume| volume.pod = None, "pod is missing");
    }

    #[test]
    fn finds_the_bearer_token_in_whatever_case_its_scheme_is_written() {
        let token = |value: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("authorization", value.parse().unwrap());
            driver_token(&metadata).map(|token| token.expose_secret().to_owned())
        };
        assert_eq!(token("Bearer a.b.c").as_deref(), Some("a.b.c"));
        assert_eq!(token("bearer a.b.c").as_deref(), Some("a.b.c"));
        assert_eq!(token("Bearer "), None);
        assert_eq!(token("Basic YTpi"), None);
        assert!(driver_token(&MetadataMap::new()).is_none());
    }
}
