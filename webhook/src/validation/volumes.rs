//! Volumes of our driver as pods have them: what the node plugin would refuse, told to whoever writes it, and mounts in
//! which a token would grow old.

use identity::{DO_AS_ATTRIBUTE, DRIVER_NAME, JOB_SCOPE, POD_SCOPE, SCOPE_ATTRIBUTE, VOLUME_ATTRIBUTES};
use serde_json::Value;

use super::place;
use crate::{admission::Denial, kinds::Found, own_seal::Verifier};

const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Everything that is wrong with the volumes of a carrier, and with their mounts.
pub(super) fn problems(carrier: &Found<'_>) -> Vec<Denial> {
    let mut problems = Vec::new();
    let mut ours = Vec::new();
    for (at, list) in &carrier.volumes {
        for volume in list.as_array().into_iter().flatten() {
            let Some(csi) = token_volume(volume) else { continue };
            let name = text(volume, "name").unwrap_or_default();
            ours.push(name);
            volume_problems(name, csi, &place(at), &mut problems);
        }
    }
    if let Some((at, pod)) = &carrier.pod {
        let lists = CONTAINERS.into_iter().filter_map(|list| Some((list, pod.get(list)?.as_array()?)));
        for (list, container) in
            lists.flat_map(|(list, all)| all.iter().map(move |container| (list, container)))
        {
            let mounts = container.get("volumeMounts").and_then(Value::as_array).into_iter().flatten();
            for mount in mounts.filter(|mount| text(mount, "name").is_some_and(|name| ours.contains(&name))) {
                let name = text(container, "name").unwrap_or_default();
                let inside = format!("{}.{list}", place(at));
                mount_problems(mount, &format!("container {name:?} in {inside}"), &mut problems);
            }
        }
    }
    problems
}

fn volume_problems(name: &str, csi: &Value, place: &str, problems: &mut Vec<Denial>) {
    let mut wrong = |reason, what: String| {
        let message = format!("volume {name:?} in {place} {what}");
        problems.push(Denial { reason, message, code: 422 });
    };
    if csi.get("readOnly").and_then(Value::as_bool) != Some(true) {
        wrong("VOLUME_NOT_READ_ONLY", "is writable: set csi.readOnly: true on it".to_owned());
    }
    let attributes = csi.get("volumeAttributes").and_then(Value::as_object);
    for (attribute, value) in attributes.into_iter().flatten() {
        if !VOLUME_ATTRIBUTES.contains(&attribute.as_str()) {
            wrong(
                "UNKNOWN_ATTRIBUTE",
                format!(
                    "has the unknown attribute {attribute:?}: csi.volumeAttributes may have {}",
                    VOLUME_ATTRIBUTES.join(", ")
                ),
            );
        }
        if attribute == SCOPE_ATTRIBUTE && ![POD_SCOPE, JOB_SCOPE].map(Some).contains(&value.as_str()) {
            wrong(
                "SCOPE_UNKNOWN",
                format!(
                    "has the scope {value}: csi.volumeAttributes.{SCOPE_ATTRIBUTE} may be {POD_SCOPE:?} or {JOB_SCOPE:?}"
                ),
            );
        }
    }
    if csi.get("nodePublishSecretRef").is_some_and(|secret| !secret.is_null()) {
        wrong(
            "SECRET_REFERENCE_REFUSED",
            "names a Secret, which nobody would read: remove csi.nodePublishSecretRef".to_owned(),
        );
    }
    if text(csi, "fsType").is_some() {
        wrong("UNSUPPORTED_FS_TYPE", "has a file system type: remove csi.fsType".to_owned());
    }
}

fn mount_problems(mount: &Value, whose: &str, problems: &mut Vec<Denial>) {
    let mut wrong = |reason, what: &str| {
        problems.push(Denial { reason, message: format!("{whose} mounts a token volume {what}"), code: 422 });
    };
    for field in ["subPath", "subPathExpr"] {
        if text(mount, field).is_some() {
            wrong(
                "TOKEN_SUB_PATH",
                &format!(
                    "by {field}, which never shows a new token: remove {field} and mount the whole volume"
                ),
            );
        }
    }
    if text(mount, "mountPropagation") == Some("Bidirectional") {
        wrong(
            "TOKEN_MOUNT_PROPAGATED",
            "with mountPropagation Bidirectional, which would let it out of the pod: remove mountPropagation",
        );
    }
}

/// Whether a pod with volumes of ours is sealed, and the headless accounts that they ask for were there by then. What
/// another webhook adds after this one is not, and would wait for a token for ever.
pub(super) fn sealed(pod: &Value, verifier: Verifier<'_>) -> Result<(), Denial> {
    let volumes = pod.pointer("/spec/volumes").and_then(Value::as_array).into_iter().flatten();
    let mut ours = volumes.filter_map(token_volume).peekable();
    if ours.peek().is_none() {
        return Ok(());
    }
    let refused = |reason, what: String| Denial {
        reason,
        message: format!(
            "{what}; if you submitted it so, the administrator has to see which webhook changes pods after this one"
        ),
        code: 403,
    };
    let seal = verifier.own_seal(pod).map_err(|problem| {
        refused(
            "SEAL_MISSING",
            format!("it has a token volume, and {problem}: have the volume in what you submit"),
        )
    })?;
    let accounts = ours.filter_map(|csi| text(csi.get("volumeAttributes")?, DO_AS_ATTRIBUTE));
    match accounts.into_iter().find(|account| !seal.do_as.contains(*account)) {
        None => Ok(()),
        Some(account) => Err(refused(
            "DO_AS_NOT_SEALED",
            format!(
                "its volumes ask for the headless account {account:?}, which came to the pod after it was sealed: write \
                 doAs into what you submit"
            ),
        )),
    }
}

/// `csi` of a volume, if it is ours.
pub(super) fn token_volume(volume: &Value) -> Option<&Value> {
    volume.get("csi").filter(|csi| text(csi, "driver") == Some(DRIVER_NAME))
}

fn text<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get(key)?.as_str().filter(|text| !text.is_empty())
}
