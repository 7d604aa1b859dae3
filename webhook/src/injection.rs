//! Gives a pod that asks for it the token volume, a mount of it in every container, and the environment by which
//! Hadoop's clients find it. Only adds: what the pod has is never changed, and what it has already is not added again,
//! so that it may be done any number of times. Templates of workloads are left as their authors wrote them: what they
//! ask for reaches the pods that are made of them, and is injected there. docs/injection.md has the reasons.

mod draft;
mod request;

use json_patch::PatchOperation;
use serde::Deserialize;
use serde_json::Value;

pub(crate) use request::{Asked, Request};

use self::draft::{Draft, Mounted};
use crate::admission::Denial;

/// Where the token volume is mounted.
const TOKEN_FOLDER: &str = "/etc/hadoop-token";
/// Name of the token's file in it.
const TOKEN_FILE: &str = "token";
/// What the volume is called, unless something else is called so.
const TOKEN_VOLUME: &str = "hadoop-token";
const TOKEN_VARIABLE: &str = "HADOOP_TOKEN_FILE_LOCATION";

/// The same for Hadoop's client configuration.
const CONFIGURATION_FOLDER: &str = "/etc/hadoop-conf";
const CONFIGURATION_VOLUME: &str = "hadoop-conf";
const CONFIGURATION_VARIABLE: &str = "HADOOP_CONF_DIR";

/// Name of the init container that waits. A container of that name is taken for it.
const WAITING_CONTAINER: &str = "wait-for-hadoop-token";

/// What the administrator says about injection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Config {
    /// The node plugin's image, for init containers that wait. Without it nobody can ask for one.
    pub(crate) wait_image: Option<String>,
}

/// A pod that was given what it asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Injected {
    /// The pod as it is now.
    pub(crate) pod: Value,
    /// What makes it so.
    pub(crate) patch: Vec<PatchOperation>,
    /// What could not be done without changing something of the pod's own.
    pub(crate) warnings: Vec<String>,
}

/// Injects into `pod`, an object of kind Pod, what its annotations ask for. Whether it is asked at all says
/// [`Request::asked`].
///
/// # Errors
/// When what it asks for cannot be had.
pub(crate) fn inject(config: &Config, pod: &Value) -> Result<Injected, Denial> {
    let request = Request::of(pod);
    request.check(config)?;
    let mut draft = Draft::new(pod.clone());
    if draft.is_ambiguous() {
        let (pod, patch) = draft.finish();
        return Ok(Injected { pod, patch, warnings: Vec::new() });
    }

    let token = draft.volume(TOKEN_VOLUME, |volume| request.is_served_by(volume), request.token_volume());
    let configuration = request.client_configuration().map(|name| {
        let is_it = |volume: &Value| request::configuration_of(volume) == Some(name);
        draft.volume(CONFIGURATION_VOLUME, is_it, request::configuration_volume(name))
    });
    if request.waits()
        && let Some(image) = &config.wait_image
        && !draft.has_init_container(WAITING_CONTAINER)
    {
        draft.first_init_container(request::waiting_container(WAITING_CONTAINER, image, TOKEN_FOLDER));
    }

    let mut warnings = Vec::new();
    for container in draft.containers() {
        let mut give = |volume: &str, folder: &str, variable: &str, file: &str| match draft
            .mount(&container, volume, folder)
        {
            Mounted::At(folder) => draft.variable(&container, variable, &format!("{folder}{file}")),
            Mounted::InPart => {}
            Mounted::Taken => warnings.push(format!(
                "container {} has something else at {folder}, so {volume} is not mounted there",
                draft.name(&container)
            )),
        };
        give(&token, TOKEN_FOLDER, TOKEN_VARIABLE, &format!("/{TOKEN_FILE}"));
        if let Some(configuration) = &configuration {
            give(configuration, CONFIGURATION_FOLDER, CONFIGURATION_VARIABLE, "");
        }
    }
    let (pod, patch) = draft.finish();
    Ok(Injected { pod, patch, warnings })
}

#[cfg(test)]
mod tests;
