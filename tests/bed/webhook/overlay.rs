//! The overlay with which the bed installs the webhook: what `deploy/example` has for it, with the bed's own names.

use std::{fs, path::Path};

use anyhow::Result;
use serde_json::{Value, json};

use super::{PROGRAM, keys::generate_key};
use crate::{
    operators,
    process::Program,
    product::{NAMESPACE, source, write},
    users::EXEMPT,
};

pub(super) const CONFIGURATION: &str = "webhook.yaml";
pub(super) const SEAL_PEM: &str = "seal.pem";
pub(super) const SEALING_KEY: &str = "/etc/hadoop-token-csi-sealing-key/seal.pem";
pub(super) const HEALTH_PORT: u16 = 9810;

/// An installation as `deploy/example` has one.
pub(super) async fn write_overlay(folder: &Path) -> Result<()> {
    fs::create_dir(folder)?;
    // kustomize follows no absolute paths.
    let base = source().join("deploy/kubernetes/webhook");
    Program::new("cp").arg("-r").arg(base).arg(folder.join("base")).succeed().await?;
    generate_key(&folder.join(SEAL_PEM)).await?;
    write(folder, CONFIGURATION, &configuration())?;
    let changes = [
        json!({"op": "replace", "path": "/spec/replicas", "value": 1}),
        // Tests wait for it often.
        json!({
            "op": "replace",
            "path": "/spec/template/spec/containers/0/readinessProbe/periodSeconds",
            "value": 1,
        }),
    ];
    write(
        folder,
        "kustomization.yaml",
        &json!({
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": NAMESPACE,
            "resources": ["base"],
            "configMapGenerator": [{"name": PROGRAM, "files": [CONFIGURATION]}],
            "secretGenerator": [{
                "name": "hadoop-token-csi-sealing-key",
                "files": [SEAL_PEM],
                "options": {"disableNameSuffixHash": true},
            }],
            "patches": [{
                "target": {"kind": "Deployment", "name": PROGRAM},
                "patch": serde_json::to_string(&changes)?,
            }],
        }),
    )
}

/// As it is beside the product.
pub(super) fn configuration() -> Value {
    json!({
        "listen": "[::]:9444",
        "healthAddress": format!("[::]:{HEALTH_PORT}"),
        "seal": {"key": SEALING_KEY, "keys": "/etc/hadoop-token-csi-seal/keys.json"},
        "exemptNamespaces": ["kube-system", EXEMPT],
        "controllers": operators::named(),
        // The bed's administrator looks into pods.
        "interactive": {"groups": ["system:masters"]},
        // One API server learns at once of what it has written itself.
        "certificate": {"selfManaged": {"settleSeconds": 2}},
        "registration": {"intervalSeconds": 2},
        "limits": {"lingerSeconds": 2},
    })
}
