//! Follows a pod's owners upwards, live: pod, ReplicaSet, Deployment and so on. An owner reference is only a claim of
//! whoever wrote it, so each owner is read and its UID compared. Never decides what a broken chain means.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde::Deserialize;
use tokio::time::timeout;

use super::{ApiServer, ApiServerError, DEADLINE};
use crate::request::is_name;

/// Most owners, one above the other, that a pod may have.
pub(crate) const MAX_LINKS: usize = 20;

/// Only the metadata of an owner is wanted, whatever its kind is.
const METADATA_ONLY: &str =
    "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json;q=0.5";

/// An object that owns a pod or another owner, as the owned one names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OwnerLink {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// The owners of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OwnerChain {
    /// From the pod's own controller upwards. All but the last exist with the UID that the one below names; so does
    /// the last, unless `end` says otherwise.
    pub(crate) links: Vec<OwnerLink>,
    pub(crate) end: ChainEnd,
}

/// How a chain of owners ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum ChainEnd {
    /// The last link exists and has no controller; or there is no link at all.
    #[default]
    Root,
    /// The last link is of a kind that is not read. It may exist or not.
    NotRead,
    /// The last link does not exist.
    Missing,
    /// There is an object of the last link's kind and name, and it is another one.
    Replaced { found_uid: String },
    /// The last link is one that is in the chain already.
    Cycle,
    /// There are more than [`MAX_LINKS`].
    TooLong,
}

impl OwnerChain {
    /// The topmost owner when the chain is whole: nothing for a pod that nobody controls.
    pub(crate) fn root(&self) -> Result<Option<&OwnerLink>, &ChainEnd> {
        match &self.end {
            ChainEnd::Root | ChainEnd::NotRead => Ok(self.links.last()),
            broken => Err(broken),
        }
    }
}

/// An entry of `owners` in the configuration: a kind whose objects are read.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct OwnerKind {
    api_version: String,
    kind: String,
    /// The kind's name in paths: plural, lower-case.
    resource: String,
}

/// The kinds whose objects are read.
#[derive(Clone, Debug)]
pub(crate) struct OwnerKinds(BTreeMap<(String, String), OwnerKind>);

impl Default for OwnerKinds {
    fn default() -> Self {
        let kinds = [
            ("apps/v1", "ReplicaSet", "replicasets"),
            ("apps/v1", "Deployment", "deployments"),
            ("apps/v1", "StatefulSet", "statefulsets"),
            ("apps/v1", "DaemonSet", "daemonsets"),
            ("v1", "ReplicationController", "replicationcontrollers"),
            ("batch/v1", "Job", "jobs"),
            ("batch/v1", "CronJob", "cronjobs"),
        ];
        let entry = |(api_version, kind, resource): (&str, &str, &str)| OwnerKind {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            resource: resource.to_owned(),
        };
        Self(kinds.map(entry).into_iter().map(|kind| (kind.key(), kind)).collect())
    }
}

impl OwnerKinds {
    /// The built-in kinds and `more`; or everything that is wrong with `more`, entry by entry.
    pub(crate) fn new(more: Vec<OwnerKind>) -> Result<Self, Vec<String>> {
        let (mut kinds, mut mistakes) = (Self::default(), Vec::new());
        for (number, kind) in more.into_iter().enumerate() {
            if !kind.is_fit() {
                mistakes.push(format!(
                    "entry {}: apiVersion {:?}, kind {:?} and resource {:?} are not like \"batch/v1\", \"Job\" and \
                     \"jobs\"",
                    number + 1,
                    kind.api_version,
                    kind.kind,
                    kind.resource
                ));
            } else if let Some(kind) = kinds.0.insert(kind.key(), kind) {
                mistakes.push(format!(
                    "entry {}: {} {} is there already",
                    number + 1,
                    kind.api_version,
                    kind.kind
                ));
            }
        }
        if mistakes.is_empty() { Ok(kinds) } else { Err(mistakes) }
    }

    /// The path of `owner`, when objects of its kind are read. The version is ours: whoever writes a reference could
    /// name one that is not served.
    fn path(&self, namespace: &str, owner: &OwnerLink) -> Option<String> {
        let key = (group(&owner.api_version).to_owned(), owner.kind.clone());
        let OwnerKind { api_version, resource, .. } = self.0.get(&key)?;
        let root = if api_version.contains('/') { "apis" } else { "api" };
        Some(format!("/{root}/{api_version}/namespaces/{namespace}/{resource}/{}", owner.name))
    }
}

impl OwnerKind {
    fn key(&self) -> (String, String) {
        (group(&self.api_version).to_owned(), self.kind.clone())
    }

    /// Whether it can stand in a path.
    fn is_fit(&self) -> bool {
        let parts: Vec<_> = self.api_version.split('/').collect();
        parts.len() <= 2
            && parts.into_iter().all(is_name)
            && is_name(&self.resource)
            && self.kind.starts_with(|c: char| c.is_ascii_uppercase())
            && self.kind.chars().all(|c| c.is_ascii_alphanumeric())
    }
}

fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

/// The one of `owners` that controls what they own. The API server lets there be one at most.
pub(super) fn controller_of(owners: Option<Vec<OwnerReference>>) -> Option<OwnerLink> {
    let controller = owners?.into_iter().find(|owner| owner.controller == Some(true))?;
    let OwnerReference { api_version, kind, name, uid, .. } = controller;
    Some(OwnerLink { api_version, kind, name, uid })
}

impl ApiServer {
    /// The chain of owners that begins with `controller`, the one of a pod in `namespace`. `namespace` is a checked
    /// name (see `request`).
    pub(crate) async fn owner_chain(
        &self,
        namespace: &str,
        controller: Option<OwnerLink>,
        kinds: &OwnerKinds,
    ) -> Result<OwnerChain, ApiServerError> {
        let walk = timeout(DEADLINE, self.follow(namespace, controller, kinds));
        walk.await.unwrap_or_else(|_| Err(ApiServerError::Late { address: self.address.clone() }))
    }

    async fn follow(
        &self,
        namespace: &str,
        controller: Option<OwnerLink>,
        kinds: &OwnerKinds,
    ) -> Result<OwnerChain, ApiServerError> {
        let (mut links, mut next) = (Vec::new(), controller);
        let end = loop {
            let Some(owner) = next else { break ChainEnd::Root };
            if links.len() == MAX_LINKS {
                break ChainEnd::TooLong;
            }
            let known = links.iter().any(|link: &OwnerLink| link.uid == owner.uid);
            links.push(owner.clone());
            if known {
                break ChainEnd::Cycle;
            }
            let Some(path) = kinds.path(namespace, &owner) else { break ChainEnd::NotRead };
            // What no object can be called would leave its place in the path.
            if !is_name(&owner.name) {
                break ChainEnd::Missing;
            }
            let Some(found) = self.metadata(path).await? else { break ChainEnd::Missing };
            let found_uid = found.uid.unwrap_or_default();
            if found_uid != owner.uid {
                break ChainEnd::Replaced { found_uid };
            }
            next = controller_of(found.owner_references);
        };
        Ok(OwnerChain { links, end })
    }

    async fn metadata(&self, path: String) -> Result<Option<OwnerMetadata>, ApiServerError> {
        let request = http::Request::get(path).header(http::header::ACCEPT, METADATA_ONLY).body(Vec::new());
        let Some(text) = self.ask("get the owners of pods", request).await? else { return Ok(None) };
        let object: Owner = serde_json::from_str(&text).map_err(|error| self.unreadable(&error))?;
        Ok(Some(object.metadata))
    }
}

#[derive(Deserialize)]
struct Owner {
    metadata: OwnerMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OwnerMetadata {
    uid: Option<String>,
    owner_references: Option<Vec<OwnerReference>>,
}

#[cfg(test)]
mod tests;
