//! What a pod asks for by annotations, and what it is given for that. Annotations without a value ask for nothing, as
//! templates that fill in variables often write them.

use std::collections::BTreeMap;

use identity::{
    CLIENT_CONFIGURATION_ANNOTATION, CLUSTER_ANNOTATION, CLUSTER_ATTRIBUTE, DO_AS_ANNOTATION,
    DO_AS_ATTRIBUTE, DRIVER_NAME, INJECT_ANNOTATION, REQUEST_ANNOTATIONS, SCOPE_ANNOTATION, SCOPE_ATTRIBUTE,
    WAIT_ANNOTATION, is_object_name,
};
use serde_json::{Map, Value, json};

use super::Config;
use crate::{admission::Denial, kinds::Found};

/// What a node writes on the copies of its static pods.
const STATIC_POD_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// How long an injected container waits before it fails, and kubelet starts it again.
const WAIT_LIMIT: &str = "5m";
/// Nobody, as whom the container that waits runs: it has no other right than to read the volume.
const NOBODY: u32 = 65534;

/// Annotations and labels of a pod or of a template, as far as they ask for something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    annotations: Option<&'a Map<String, Value>>,
    labels: Option<&'a Map<String, Value>>,
}

/// Whether injection is asked for, and by whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// It is not, or the pod does not want what its namespace asks for.
    No,
    /// By the pod, or the template it was made of.
    ByPod,
    /// By its namespace alone: a default for whoever can have it.
    ByNamespace,
}

impl<'a> Request<'a> {
    /// What an object asks for that has its annotations and labels where a pod has them.
    pub(crate) fn of(object: &'a Value) -> Self {
        let map = |pointer| object.pointer(pointer).and_then(Value::as_object);
        Self { annotations: map("/metadata/annotations"), labels: map("/metadata/labels") }
    }

    /// What the pods of a carrier ask for.
    pub(crate) fn in_carrier(carrier: &Found<'a>) -> Self {
        Self { annotations: carrier.current, labels: carrier.labels }
    }

    /// Whether injection is asked for. `namespace` says whether the namespace has the label. Who writes "false"
    /// anywhere on the pod has the last word. A node runs its static pods as it has them written down, whatever the
    /// API server is told, and nobody submitted them.
    pub(crate) fn asked(&self, namespace: bool) -> Asked {
        let words = self.words();
        if words.contains(&Some("false")) || self.annotation(STATIC_POD_ANNOTATION).is_some() {
            Asked::No
        } else if words.contains(&Some("true")) {
            Asked::ByPod
        } else if namespace {
            Asked::ByNamespace
        } else {
            Asked::No
        }
    }

    /// The headless account that an injected volume is to ask for.
    pub(crate) fn do_as(&self) -> Option<&'a str> {
        self.annotation(DO_AS_ANNOTATION)
    }

    /// What is asked for and comes to nothing, unless something is injected.
    pub(crate) fn details(&self) -> Vec<&'static str> {
        let keys = REQUEST_ANNOTATIONS.into_iter().filter(|key| *key != INJECT_ANNOTATION);
        keys.filter(|key| self.annotation(key).is_some()).collect()
    }

    /// Whether all that is asked for is understood and can be had.
    ///
    /// # Errors
    /// With the first thing that is not.
    pub(crate) fn check(&self, config: &Config) -> Result<(), Denial> {
        let yes_or_no = |text: Option<&str>| matches!(text, None | Some("" | "true" | "false"));
        if let Some(Some(word)) = self.words().into_iter().find(|word| !yes_or_no(*word)) {
            return Err(not_understood(INJECT_ANNOTATION, word));
        }
        if let Some(word) = self.annotation(WAIT_ANNOTATION).filter(|word| !yes_or_no(Some(word))) {
            return Err(not_understood(WAIT_ANNOTATION, word));
        }
        if self.waits() && config.wait_image.is_none() {
            return Err(Denial {
                reason: "WAIT_IMAGE_MISSING",
                message: format!(
                    "annotation {WAIT_ANNOTATION} asks for a container that waits for the token, and no image is \
                     configured for it: remove the annotation, or have the administrator set injection.waitImage"
                ),
                code: 422,
            });
        }
        if let Some(name) = self.client_configuration().filter(|name| !is_object_name(name)) {
            return Err(Denial {
                reason: "CLIENT_CONFIGURATION_INVALID",
                message: format!(
                    "annotation {CLIENT_CONFIGURATION_ANNOTATION} is {name:?}, which is no name: it has to be that of \
                     a ConfigMap of the pod's namespace"
                ),
                code: 422,
            });
        }
        Ok(())
    }

    pub(super) fn client_configuration(&self) -> Option<&'a str> {
        self.annotation(CLIENT_CONFIGURATION_ANNOTATION)
    }

    pub(super) fn waits(&self) -> bool {
        self.annotation(WAIT_ANNOTATION) == Some("true")
    }

    /// The volume to be added, without a name.
    pub(super) fn token_volume(&self) -> Value {
        let attributes = self.attributes();
        if attributes.is_empty() {
            json!({"csi": {"driver": DRIVER_NAME, "readOnly": true}})
        } else {
            json!({"csi": {"driver": DRIVER_NAME, "readOnly": true, "volumeAttributes": attributes}})
        }
    }

    /// Whether a volume that the pod has is the one it asks for. Who asks for nothing in particular is served by any of
    /// ours: a second token would be of no use.
    pub(super) fn is_served_by(&self, volume: &Value) -> bool {
        let Some(csi) = volume.get("csi") else { return false };
        let wanted = self.attributes();
        let has = csi.get("volumeAttributes").and_then(Value::as_object);
        let equal = || {
            has.map_or(0, Map::len) == wanted.len()
                && wanted
                    .iter()
                    .all(|(key, value)| has.and_then(|has| has.get(*key)?.as_str()) == Some(value))
        };
        csi.get("driver").and_then(Value::as_str) == Some(DRIVER_NAME) && (wanted.is_empty() || equal())
    }

    fn attributes(&self) -> BTreeMap<&'static str, &'a str> {
        let words = [
            (CLUSTER_ATTRIBUTE, CLUSTER_ANNOTATION),
            (DO_AS_ATTRIBUTE, DO_AS_ANNOTATION),
            (SCOPE_ATTRIBUTE, SCOPE_ANNOTATION),
        ];
        words.into_iter().filter_map(|(attribute, key)| Some((attribute, self.annotation(key)?))).collect()
    }

    /// What annotation and label say about injection.
    fn words(&self) -> [Option<&'a str>; 2] {
        let word = |map: Option<&'a Map<String, Value>>| map?.get(INJECT_ANNOTATION)?.as_str();
        [word(self.annotations), word(self.labels)]
    }

    fn annotation(&self, key: &str) -> Option<&'a str> {
        self.annotations?.get(key)?.as_str().filter(|text| !text.is_empty())
    }
}

fn not_understood(annotation: &str, value: &str) -> Denial {
    Denial {
        reason: "REQUEST_NOT_UNDERSTOOD",
        message: format!("{annotation} is {value:?}: it may be \"true\" or \"false\""),
        code: 422,
    }
}

/// The ConfigMap that a volume shows, all of it.
pub(super) fn configuration_of(volume: &Value) -> Option<&str> {
    let map = volume.get("configMap").filter(|map| map.get("items").is_none_or(Value::is_null))?;
    map.get("name")?.as_str()
}

/// The volume to be added for a ConfigMap, without a name.
pub(super) fn configuration_volume(name: &str) -> Value {
    json!({"configMap": {"name": name}})
}

/// An init container that ends as soon as the token is there. It asks for so little that no pod grows by it, and for
/// all that it may have, so that a pod of the class Guaranteed stays one; and it is what the strictest of the Pod
/// Security Standards wants.
pub(super) fn waiting_container(name: &str, image: &str, folder: &str) -> Value {
    let resources = json!({"cpu": "50m", "memory": "64Mi"});
    json!({
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["wait", format!("--volume={folder}"), format!("--timeout={WAIT_LIMIT}")],
        "resources": {"requests": resources, "limits": resources},
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": NOBODY,
            "runAsNonRoot": true,
            "runAsUser": NOBODY,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    })
}
