//! Owners of a pod, upwards: pod, ReplicaSet, Deployment and so on. An owner reference is only a claim of whoever wrote
//! it, so each owner is read and its UID compared. Who seals and who verifies follow the same kinds, or they would find
//! different roots. Reads nothing itself, and never decides what a broken chain means.

mod kinds;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use kinds::{OwnerKind, OwnerKinds};

use crate::is_object_name;

/// Most owners, one above the other, that a pod may have.
pub const MAX_LINKS: usize = 20;

/// An object that owns a pod or another owner, as the owned one names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Owner {
    /// Group and version, such as `apps/v1`.
    pub api_version: String,
    /// Kind, such as `Deployment`.
    pub kind: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

impl Owner {
    /// The API group; the core group has no name.
    #[must_use]
    pub fn group(&self) -> &str {
        group(&self.api_version)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.kind, self.name, self.uid)
    }
}

/// The API group in `GROUP/VERSION`; the core group has no name.
#[must_use]
pub fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

/// The owners of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerChain {
    /// From the pod's own controller upwards. All but the last exist with the UID that the one below names; so does
    /// the last, unless `end` says otherwise.
    pub links: Vec<Owner>,
    /// How it ends.
    pub end: ChainEnd,
}

/// How a chain of owners ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ChainEnd {
    /// The last link exists and has no controller; or there is no link at all.
    #[default]
    Root,
    /// The last link is of a kind that is not read. It may exist or not.
    NotRead,
    /// The last link does not exist.
    Missing,
    /// There is an object of the last link's kind and name, and it is another one.
    Replaced {
        /// That one's UID.
        found_uid: String,
    },
    /// The last link is one that is in the chain already.
    Cycle,
    /// There are more than [`MAX_LINKS`].
    TooLong,
}

impl OwnerChain {
    /// The topmost owner when the chain is whole: nothing for a pod that nobody controls.
    ///
    /// # Errors
    /// How the chain is broken.
    pub fn root(&self) -> Result<Option<&Owner>, &ChainEnd> {
        match &self.end {
            ChainEnd::Root | ChainEnd::NotRead => Ok(self.links.last()),
            broken => Err(broken),
        }
    }
}

/// What is wanted of an object's metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerMetadata {
    /// Its UID.
    pub uid: String,
    /// Who owns it.
    pub owner_references: Vec<OwnerReference>,
}

/// An entry of `metadata.ownerReferences`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    /// Group and version.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Whether it makes and counts what it owns.
    pub controller: Option<bool>,
}

/// The one of `owners` that controls what they own. The API server lets there be one at most.
#[must_use]
pub fn controller_of(owners: Vec<OwnerReference>) -> Option<Owner> {
    let controller = owners.into_iter().find(|owner| owner.controller == Some(true))?;
    let OwnerReference { api_version, kind, name, uid, .. } = controller;
    Some(Owner { api_version, kind, name, uid })
}

/// The chain of owners that begins with `controller`, the one of an object in `namespace`, which must be a checked name.
/// `read` gets the metadata of an owner's object at its path at the API server, or nothing where there is none.
///
/// # Errors
/// Those of `read`.
pub async fn follow<E, F>(
    namespace: &str,
    controller: Option<Owner>,
    kinds: &OwnerKinds,
    mut read: impl FnMut(String, Owner) -> F,
) -> Result<OwnerChain, E>
where
    F: Future<Output = Result<Option<OwnerMetadata>, E>>,
{
    let (mut links, mut next) = (Vec::new(), controller);
    let end = loop {
        let Some(owner) = next else { break ChainEnd::Root };
        if links.len() == MAX_LINKS {
            break ChainEnd::TooLong;
        }
        let known = links.iter().any(|link: &Owner| link.uid == owner.uid);
        links.push(owner.clone());
        if known {
            break ChainEnd::Cycle;
        }
        let Some(path) = kinds.path(namespace, &owner) else { break ChainEnd::NotRead };
        // What no object or version can be called would leave its place in the path.
        if !is_object_name(&owner.name) || !owner.api_version.split('/').all(is_object_name) {
            break ChainEnd::Missing;
        }
        let Some(found) = read(path, owner.clone()).await? else { break ChainEnd::Missing };
        if found.uid != owner.uid {
            break ChainEnd::Replaced { found_uid: found.uid };
        }
        next = controller_of(found.owner_references);
    };
    Ok(OwnerChain { links, end })
}

#[cfg(test)]
mod tests;
