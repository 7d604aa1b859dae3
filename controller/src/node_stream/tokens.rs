//! What a node has to hear of its tokens: which were revoked, and which are to be replaced. Decides only.

use std::{collections::HashMap, sync::Arc};

use hadoop::TokenIdentifier;
use proto::{VolumeId, token::v1 as wire};

use crate::{
    authorization::Refusal,
    ledger::{Change, Entry, Scope},
    pod_watch::PodAddresses,
    request::{Held, PodReference, ReleasedToken, VolumeReference},
};

/// Something to tell a node.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Word {
    Addresses(PodAddresses),
    Revoke(RevokedToken),
    /// The volume's tokens are to be replaced.
    Rotate(VolumeId),
}

/// A token that a volume may not have any more.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RevokedToken {
    pub(super) volume_id: VolumeId,
    /// As the ledger has it, or, of a token that the ledger does not have, as the node names it.
    pub(super) pod: PodReference,
    pub(super) identifier: Vec<u8>,
    /// None of one that nobody can read.
    pub(super) age: Option<Age>,
}

/// What grows from token to token of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Age(u64, i32);

impl Age {
    /// That of the token of `entry`, if it has one.
    pub(super) fn of(entry: &Entry) -> Option<Self> {
        let token = entry.token.as_ref()?;
        Some(match entry.scope {
            Scope::Pod => Self(token.issue_date, token.sequence_number),
            // A shared token may be older than one that was got before it.
            Scope::Job => Self(entry.requested_at, token.sequence_number),
        })
    }

    /// That of a token that the ledger does not have.
    fn read(token: &ReleasedToken) -> Option<Self> {
        let identifier = TokenIdentifier::decode(&token.kind, &token.identifier).ok()?;
        Some(Self(identifier.issue_date, identifier.sequence_number))
    }
}

/// A token that a volume holds and the ledger does not have.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unknown {
    pub(super) volume: VolumeReference,
    pub(super) identifier: Vec<u8>,
    age: Option<Age>,
}

/// What a node was told so far.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The rotations that were asked for, by the UID of the object.
    rotations: HashMap<Arc<str>, Box<str>>,
}

impl Told {
    /// A node that holds `held`, and what it is told first. `entries` are all that the ledger has on the node.
    pub(super) fn new(entries: &[Arc<Entry>], held: &[Held]) -> (Self, Vec<Word>) {
        let asked = |entry: &Arc<Entry>| Some((entry.uid.clone(), entry.rotate.clone()?));
        let told = Self { rotations: entries.iter().filter_map(asked).collect() };
        let mut words: Vec<_> = entries.iter().filter_map(|entry| revoked(entry)).map(Word::Revoke).collect();
        for Held { volume, tokens } in held {
            // A predecessor was replaced already, when that was asked for.
            let wanted = |entry: &&Arc<Entry>| {
                entry.rotate.is_some()
                    && !entry.deleting
                    && entry.is_of(volume)
                    && tokens.iter().any(|token| entry.identifier() == Some(&*token.identifier))
            };
            if entries.iter().any(|entry| wanted(&entry)) {
                words.push(Word::Rotate(volume.id.clone()));
            }
        }
        (told, words)
    }

    /// What the node is told of a change, if anything.
    pub(super) fn change(&mut self, change: &Change) -> Option<Word> {
        match change {
            Change::Written(entry) => {
                if let Some(revoked) = revoked(entry) {
                    return Some(Word::Revoke(revoked));
                }
                let rotate = entry.rotate.clone()?;
                let before = self.rotations.insert(entry.uid.clone(), rotate.clone());
                // Nothing is mounted yet of a token that is being asked for.
                (before != Some(rotate) && entry.token.is_some() && !entry.deleting)
                    .then(|| Word::Rotate(entry.volume_id()))
            }
            Change::Gone(entry) => {
                self.rotations.remove(&entry.uid);
                None
            }
            Change::Listed => None,
        }
    }
}

/// The token of an object that somebody deleted.
fn revoked(entry: &Entry) -> Option<RevokedToken> {
    let token = entry.token.as_ref().filter(|_| entry.deleting)?;
    Some(RevokedToken {
        volume_id: entry.volume_id(),
        pod: entry.pod(),
        identifier: token.identifier.to_vec(),
        age: Age::of(entry),
    })
}

/// Those of `held` of which `find` finds no object of their volume.
pub(super) fn unknown(held: &[Held], find: impl Fn(&[u8]) -> Vec<Arc<Entry>>) -> Vec<Unknown> {
    let mut unknown = Vec::new();
    for Held { volume, tokens } in held {
        let lost =
            tokens.iter().filter(|token| !find(&token.identifier).iter().any(|entry| entry.is_of(volume)));
        unknown.extend(lost.map(|token| Unknown {
            volume: volume.clone(),
            identifier: token.identifier.clone(),
            age: Age::read(token),
        }));
    }
    unknown
}

impl Unknown {
    /// What the node is told when `found` are the token's objects, read live.
    pub(super) fn verdict(self, found: &[Arc<Entry>]) -> Option<Word> {
        if found.iter().any(|entry| entry.is_of(&self.volume) && !entry.deleting) {
            return None;
        }
        let Self { volume: VolumeReference { id: volume_id, pod, .. }, identifier, age } = self;
        Some(Word::Revoke(RevokedToken { volume_id, pod, identifier, age }))
    }
}

impl Word {
    /// As it goes over the wire.
    pub(super) fn event(self) -> wire::WatchEvent {
        use wire::watch_event::Event;

        let event = match self {
            Self::Addresses(pod) => Event::PodAddresses(wire::PodAddresses {
                pod_uid: pod.uid.to_string(),
                addresses: pod.addresses.iter().map(ToString::to_string).collect(),
            }),
            Self::Revoke(revoked) => {
                let refusal = Refusal::TokenRevoked;
                Event::Revoke(wire::Revoke {
                    volume_id: revoked.volume_id.to_string(),
                    identifiers: vec![revoked.identifier],
                    reason: refusal.reason().to_owned(),
                    message: refusal.to_string(),
                })
            }
            Self::Rotate(volume_id) => Event::Rotate(wire::Rotate { volume_id: volume_id.to_string() }),
        };
        wire::WatchEvent { event: Some(event) }
    }
}
