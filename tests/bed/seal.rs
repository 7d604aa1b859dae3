//! Seals pods as they are admitted: what the admission webhook is for, done by whoever creates a pod on the bed, with
//! the product's own code.

use std::{fs, path::Path, sync::Arc};

use anyhow::{Context, Result};
use identity::seal::{JwkSet, Seal, SealingKey, Submission};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// Groups of a submitter who is said to be in none: those that the API server adds.
const AUTHENTICATED: &str = "system:authenticated";

/// Who submits a pod, and how it is sealed.
#[derive(Clone)]
pub(crate) struct Sealing {
    submission: Submission,
    /// Another key than the bed's.
    key: Option<Arc<SealingKey>>,
    sealed: bool,
}

impl Sealing {
    /// An honest one.
    pub(crate) fn of(submitter: &str, groups: &[&str]) -> Self {
        Self { submission: submission(submitter, groups), key: None, sealed: true }
    }

    pub(crate) fn unsealed(&mut self) {
        self.sealed = false;
    }

    pub(crate) fn with_key(&mut self, key: Arc<SealingKey>) {
        self.key = Some(key);
    }

    pub(crate) fn with_submitter(&mut self, submitter: &str, groups: &[&str]) {
        self.submission = submission(submitter, groups);
    }

    /// Writes the annotations into a pod, now.
    pub(crate) fn apply(&self, bed: &SealingKey, pod: &mut Value) -> Result<()> {
        let submission = Submission { time: Timestamp::now().as_second(), ..self.submission.clone() };
        let seal = Seal::of_pod(&submission, &namespace_of(pod), pod)?;
        let key = self.key.as_deref().unwrap_or(bed);
        let annotations = key.annotations(&seal, &submission.groups)?;
        let target = annotations_of(pod)?;
        // The seal comes last.
        for (name, value) in annotations.into_iter().take(if self.sealed { 3 } else { 2 }) {
            target.insert(name.to_owned(), json!(value));
        }
        Ok(())
    }
}

/// Seals the JSON of a pod as submitted now by `submitter`, who is in `groups`.
///
/// # Errors
/// When the pod has no name or no metadata.
pub fn seal_pod(key: &SealingKey, pod: &mut Value, submitter: &str, groups: &[&str]) -> Result<()> {
    Sealing::of(submitter, groups).apply(key, pod)
}

fn submission(submitter: &str, groups: &[&str]) -> Submission {
    Submission {
        submitter: submitter.to_owned(),
        groups: groups.iter().chain([&AUTHENTICATED]).map(|&group| group.to_owned()).collect(),
        root_owner: None,
        time: 0,
    }
}

fn namespace_of(pod: &Value) -> String {
    let named = pod.pointer("/metadata/namespace").and_then(Value::as_str);
    named.unwrap_or("default").to_owned()
}

fn annotations_of(pod: &mut Value) -> Result<&mut Map<String, Value>> {
    let metadata = pod.pointer_mut("/metadata").and_then(Value::as_object_mut);
    let metadata = metadata.context("the pod has no metadata")?;
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    annotations.as_object_mut().context("the pod's annotations are no map")
}

/// Writes the file of public keys that the controller is given.
///
/// # Errors
/// When it cannot be written.
pub fn write_keys(file: &Path, keys: &[&SealingKey]) -> Result<()> {
    let set = JwkSet { keys: keys.iter().map(|key| key.public_jwk()).collect() };
    fs::write(file, set.to_json()).with_context(|| format!("failed to write {}", file.display()))
}
