//! Reads a namespace, live: its labels say who may run what in it.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{ApiServer, ApiServerError};

/// What the API server says of a namespace, this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LiveNamespace {
    pub(crate) labels: BTreeMap<String, String>,
}

impl ApiServer {
    /// The namespace of this name, if there is one. `name` is a checked name (see `request`), so that it cannot
    /// leave its place in the path.
    pub(crate) async fn live_namespace(&self, name: &str) -> Result<Option<LiveNamespace>, ApiServerError> {
        let request = http::Request::get(format!("/api/v1/namespaces/{name}")).body(Vec::new());
        let Some(text) = self.ask("get namespaces", request).await? else { return Ok(None) };
        let found: Found = serde_json::from_str(&text).map_err(|error| self.unreadable(&error))?;
        Ok(Some(LiveNamespace { labels: found.metadata.labels }))
    }
}

#[derive(Deserialize)]
struct Found {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fake::FakeApiServer;

    #[tokio::test]
    async fn reads_the_labels_of_a_namespace_and_sees_that_there_is_none() {
        let fake = FakeApiServer::default();
        let namespace = json!({"metadata": {"name": "jobs", "labels": {"team": "data"}}});
        fake.answers().objects.insert("/api/v1/namespaces/jobs".to_owned(), namespace);
        let bare = json!({"metadata": {"name": "bare"}});
        fake.answers().objects.insert("/api/v1/namespaces/bare".to_owned(), bare);
        let api_server = fake.serve().await;
        let found = api_server.live_namespace("jobs").await.unwrap().unwrap();
        assert_eq!(found.labels, [("team".to_owned(), "data".to_owned())].into());
        assert!(api_server.live_namespace("bare").await.unwrap().unwrap().labels.is_empty());
        assert_eq!(api_server.live_namespace("gone").await.unwrap(), None);
    }
}
