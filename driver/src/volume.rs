//! What a volume is, and what is known of one that has tokens: the record. Neither holds a secret: a token's
//! identifier serves to cancel it, but not to use it.

pub(crate) mod condition;
pub(crate) mod error;
mod exchange;
pub(crate) mod lifecycle;
mod lost;
pub(crate) mod pods;
mod recovery;
pub(crate) mod store;
mod transitions;

use std::{collections::BTreeSet, fmt, net::IpAddr, path::PathBuf};

use jiff::{SignedDuration, Timestamp};
use proto::{VolumeId, token::v1 as wire};
use serde::{Deserialize, Serialize};

pub(crate) use exchange::Revocation;

/// One inline volume of one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Volume {
    #[serde(with = "volume_id")]
    pub(crate) id: VolumeId,
    /// Name in the pod's spec.
    pub(crate) name: String,
    pub(crate) pod: Pod,
}

/// A pod, as kubelet names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl From<&Volume> for wire::Volume {
    fn from(volume: &Volume) -> Self {
        let Pod { namespace, name, uid } = volume.pod.clone();
        let pod = Some(wire::Pod { namespace, name, uid });
        Self { id: volume.id.to_string(), name: volume.name.clone(), pod }
    }
}

/// Where kubelet wants a volume: a directory of the pod's own, which is ours to make and to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) path: PathBuf,
    /// The pod and the volume that the path is for.
    pub(crate) pod_uid: String,
    pub(crate) volume: String,
}

/// All that must survive a restart about the tokens of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub(crate) version: Version,
    pub(crate) phase: Phase,
    pub(crate) volume: Volume,
    pub(crate) target: PathBuf,
    pub(crate) fs_group: Option<u32>,
    /// Hadoop user that owns the tokens.
    pub(crate) user: String,
    /// Hadoop cluster that issued them.
    pub(crate) cluster: String,
    pub(crate) tokens: Vec<IssuedToken>,
    /// When to renew them; nothing when that would not help any more.
    pub(crate) next_renewal: Option<Timestamp>,
    /// When to ask for others in their place.
    #[serde(default)]
    pub(crate) next_rotation: Option<Timestamp>,
    /// What this record becomes once the volume has other tokens: it is being given them, and whether it has them
    /// already is to be seen in its files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) successor: Option<Box<Record>>,
    #[serde(default)]
    pub(crate) address_verification: AddressVerification,
    /// The addresses that the API server had of the pod when they were verified last.
    #[serde(default)]
    pub(crate) verified_addresses: BTreeSet<IpAddr>,
    /// When to ask the controller whether the tokens may stay; nothing is never. A record from before there were
    /// checks is due at once.
    #[serde(default = "at_once")]
    pub(crate) next_check: Option<Timestamp>,
    /// The controller trusts annotations that nobody sealed.
    #[serde(default)]
    pub(crate) unsealed: bool,
    /// Why there is no token any more, or never will be.
    #[serde(default)]
    pub(crate) stopped: Option<Stop>,
}

// serde wants the whole field.
#[allow(clippy::unnecessary_wraps)]
fn at_once() -> Option<Timestamp> {
    Some(Timestamp::UNIX_EPOCH)
}

/// When the addresses of a pod are compared: those that the API server has, and those in its network namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum AddressVerification {
    Off,
    /// The pod has its tokens first.
    #[default]
    Eventual,
    /// The pod has no token before.
    Strict,
}

impl From<wire::AddressVerification> for AddressVerification {
    fn from(verification: wire::AddressVerification) -> Self {
        match verification {
            // Of a controller from before there was a choice.
            wire::AddressVerification::Unspecified | wire::AddressVerification::Off => Self::Off,
            wire::AddressVerification::Eventual => Self::Eventual,
            wire::AddressVerification::Strict => Self::Strict,
        }
    }
}

/// The controller's last word on a volume: it has no token any more, or will have none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stop {
    /// Stable, for programs.
    pub(crate) reason: String,
    /// For people.
    pub(crate) message: String,
}

/// The form of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Version {
    #[serde(rename = "v1")]
    V1,
}

/// How far a volume has come. One that is released has its record in another place (see `store`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Phase {
    /// There are tokens; mount and files may not be there yet.
    Issued,
    /// Mounted, with its files.
    Published,
    /// Mounted, without a token until the pod's addresses are verified.
    Waiting,
    /// Mounted, without a token for good; [`Record::stopped`] says why.
    Stopped,
}

impl Phase {
    /// Whether a volume that is mounted is as it should be.
    pub(crate) fn is_settled(self) -> bool {
        match self {
            Self::Published | Self::Waiting | Self::Stopped => true,
            Self::Issued => false,
        }
    }
}

/// A token without its password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct IssuedToken {
    #[serde(with = "base64_text")]
    pub(crate) identifier: Vec<u8>,
    /// By how many milliseconds the service's clock was ahead of ours when it told the dates.
    #[serde(default)]
    pub(crate) clock_lead: i64,
    #[serde(flatten)]
    pub(crate) about: AboutToken,
}

impl IssuedToken {
    /// What the service's clock shows when ours shows `at`.
    pub(crate) fn at_service(&self, at: Timestamp) -> Timestamp {
        at.saturating_add(SignedDuration::from_millis(self.clock_lead)).unwrap_or(at)
    }

    /// What our clock shows when the service's shows `at`.
    pub(crate) fn here(&self, at: Timestamp) -> Timestamp {
        at.saturating_sub(SignedDuration::from_millis(self.clock_lead)).unwrap_or(at)
    }

    /// When the token ends by our clock, provided that nobody renews it.
    pub(crate) fn ends(&self) -> Timestamp {
        self.here(self.about.renew_date.min(self.about.max_date))
    }
}

/// What anybody may know of a token. Dates count by the service's clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AboutToken {
    pub(crate) kind: String,
    /// Names under which clients look it up.
    pub(crate) services: Vec<String>,
    pub(crate) sequence_number: i32,
    pub(crate) issue_date: Timestamp,
    /// The service refuses it from here on unless it is renewed.
    pub(crate) renew_date: Timestamp,
    /// It cannot be renewed beyond this.
    pub(crate) max_date: Timestamp,
}

impl Record {
    /// Numbers by which the NameNode's log knows the tokens.
    pub(crate) fn sequence_numbers(&self) -> Vec<i32> {
        self.tokens.iter().map(|token| token.about.sequence_number).collect()
    }

    /// Whether the pod's addresses are to be verified, now that the API server has these of it.
    pub(crate) fn is_to_be_verified(&self, addresses: &BTreeSet<IpAddr>) -> bool {
        let open = match (self.phase, self.address_verification) {
            (Phase::Waiting, _) => true,
            (Phase::Published, AddressVerification::Eventual | AddressVerification::Strict) => {
                self.verified_addresses != *addresses
            }
            (Phase::Published, AddressVerification::Off) | (Phase::Issued | Phase::Stopped, _) => false,
        };
        open && !addresses.is_empty()
    }

    /// All tokens that this record is about: those that its volume has, and those that it is being given.
    pub(crate) fn all_tokens(&self) -> impl Iterator<Item = &IssuedToken> {
        let coming = self.successor.iter().flat_map(|successor| &successor.tokens);
        self.tokens.iter().chain(coming)
    }

    /// When the first of the volume's tokens ends by our clock, provided that nobody renews it.
    pub(crate) fn ends(&self) -> Option<Timestamp> {
        self.tokens.iter().map(IssuedToken::ends).min()
    }

    /// When the last of all tokens is dead, provided that nobody renews them.
    pub(crate) fn dead_at(&self) -> Option<Timestamp> {
        self.all_tokens().map(IssuedToken::ends).max()
    }
}

/// Hadoop's milliseconds as a time. What no calendar holds is the end of all time.
pub(crate) fn timestamp(milliseconds: u64) -> Timestamp {
    let milliseconds = i64::try_from(milliseconds).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(milliseconds).unwrap_or(Timestamp::MAX)
}

mod volume_id {
    use proto::VolumeId;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(id: &VolumeId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(id.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<VolumeId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

mod base64_text {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn volume(pod_uid: &str) -> Volume {
        let pod = Pod { namespace: "jobs".to_owned(), name: "etl-7".to_owned(), uid: pod_uid.to_owned() };
        Volume { id: VolumeId::of(pod_uid, "hadoop"), name: "hadoop".to_owned(), pod }
    }

    pub(crate) fn record(pod_uid: &str, now: Timestamp) -> Record {
        Record {
            version: Version::V1,
            phase: Phase::Published,
            volume: volume(pod_uid),
            target: format!("/pods/{pod_uid}/volumes/kubernetes.io~csi/hadoop/mount").into(),
            fs_group: Some(2000),
            user: "etl".to_owned(),
            cluster: "main".to_owned(),
            tokens: vec![IssuedToken {
                identifier: vec![0, 1, 2, 254, 255],
                clock_lead: 600_000,
                about: AboutToken {
                    kind: "HDFS_DELEGATION_TOKEN".to_owned(),
                    services: vec!["10.0.0.1:8020".to_owned(), "nn1.example:8020".to_owned()],
                    sequence_number: 42,
                    issue_date: now,
                    renew_date: now + jiff::SignedDuration::from_hours(24),
                    max_date: now + jiff::SignedDuration::from_hours(168),
                },
            }],
            next_renewal: None,
            next_rotation: Some(now + jiff::SignedDuration::from_hours(130)),
            successor: None,
            address_verification: AddressVerification::Eventual,
            verified_addresses: BTreeSet::from(["10.1.2.3".parse().unwrap()]),
            next_check: Some(now + jiff::SignedDuration::from_mins(15)),
            unsealed: false,
            stopped: None,
        }
    }

    #[test]
    fn a_record_is_json_that_people_can_read() {
        let now = "2026-11-23T00:00:00Z".parse().unwrap();
        let json = serde_json::to_value(record("8d5d92a4", now)).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "version": "v1",
                "phase": "published",
                "volume": {
                    "id": VolumeId::of("8d5d92a4", "hadoop").as_str(),
                    "name": "hadoop",
                    "pod": {"namespace": "jobs", "name": "etl-7", "uid": "8d5d92a4"},
                },
                "target": "/pods/8d5d92a4/volumes/kubernetes.io~csi/hadoop/mount",
                "fsGroup": 2000,
                "user": "etl",
                "cluster": "main",
                "tokens": [{
                    "identifier": "AAEC/v8=",
                    "clockLead": 600_000,
                    "kind": "HDFS_DELEGATION_TOKEN",
                    "services": ["10.0.0.1:8020", "nn1.example:8020"],
                    "sequenceNumber": 42,
                    "issueDate": "2026-11-23T00:00:00Z",
                    "renewDate": "2026-11-24T00:00:00Z",
                    "maxDate": "2026-11-30T00:00:00Z",
                }],
                "nextRenewal": null,
                "nextRotation": "2026-11-28T10:00:00Z",
                "addressVerification": "eventual",
                "verifiedAddresses": ["10.1.2.3"],
                "nextCheck": "2026-11-23T00:15:00Z",
                "unsealed": false,
                "stopped": null,
            })
        );
        assert_eq!(serde_json::from_value::<Record>(json).unwrap(), record("8d5d92a4", now));
    }

    #[test]
    fn a_record_from_before_there_were_checks_is_read_and_due_to_be_checked() {
        let mut json = serde_json::to_value(record("8d5d92a4", Timestamp::UNIX_EPOCH)).unwrap();
        let fields = json.as_object_mut().unwrap();
        for new in ["addressVerification", "verifiedAddresses", "nextCheck", "unsealed", "stopped"] {
            fields.remove(new).unwrap();
        }
        let old: Record = serde_json::from_value(json).unwrap();
        assert_eq!(old.next_check, Some(Timestamp::UNIX_EPOCH));
        assert_eq!(
            (old.address_verification, old.verified_addresses.len()),
            (AddressVerification::Eventual, 0)
        );
    }

    #[test]
    fn a_date_beyond_the_calendar_is_its_end() {
        assert_eq!(timestamp(u64::MAX), Timestamp::MAX);
        assert_eq!(timestamp(0), Timestamp::UNIX_EPOCH);
    }
}
