//! Reads a pod's owners at the API server. How a chain is followed is in `identity`, because whoever seals pods has to
//! follow it the same way.

use identity::owners::{Owner, OwnerChain, OwnerKinds, OwnerMetadata, follow};
use serde::Deserialize;
use tokio::time::timeout;

use super::{ApiServer, ApiServerError, DEADLINE};

/// Only the metadata of an owner is wanted, whatever its kind is.
const METADATA_ONLY: &str =
    "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json;q=0.5";

impl ApiServer {
    /// The chain of owners that begins with `controller`, the one of a pod in `namespace`. `namespace` is a checked
    /// name (see `request`).
    pub(crate) async fn owner_chain(
        &self,
        namespace: &str,
        controller: Option<Owner>,
        kinds: &OwnerKinds,
    ) -> Result<OwnerChain, ApiServerError> {
        let walk = timeout(DEADLINE, follow(namespace, controller, kinds, |path, _| self.metadata(path)));
        walk.await.unwrap_or_else(|_| Err(ApiServerError::Late { address: self.address.clone() }))
    }

    async fn metadata(&self, path: String) -> Result<Option<OwnerMetadata>, ApiServerError> {
        let request = http::Request::get(path).header(http::header::ACCEPT, METADATA_ONLY).body(Vec::new());
        let Some(text) = self.ask("get the owners of pods", request).await? else { return Ok(None) };
        let object: Object = serde_json::from_str(&text).map_err(|error| self.unreadable(&error))?;
        Ok(Some(object.metadata))
    }
}

#[derive(Deserialize)]
struct Object {
    metadata: OwnerMetadata,
}

#[cfg(test)]
mod tests;
