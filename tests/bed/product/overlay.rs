//! The overlay with which the bed installs the product: what `deploy/example` is for a site, with the bed's own names.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{AUDIT_FOLDER, AUDIT_FOLDER_IN_POD, CONTROLLER, DIRECTORY, NAMESPACE, SEAL_KEYS, source};
use crate::{
    Bed, fault,
    host::LDAP_NAME,
    kdc::{REALM, SUPERUSER},
    ldap,
    process::Program,
    seal::write_keys,
    users::EXEMPT,
};

/// An installation as `deploy/example` is one, with the bed's own names.
pub(super) async fn write_overlay(folder: &Path, bed: &Bed) -> Result<()> {
    fs::create_dir(folder)?;
    // kustomize follows no absolute paths.
    Program::new("cp")
        .arg("-r")
        .arg(source().join("deploy/kubernetes"))
        .arg(folder.join("base"))
        .succeed()
        .await?;
    let authority = bed.kubernetes().authority();
    let serving = authority.server("controller", &["controller.bed.test"])?;
    let calling = authority.client("driver", "driver", None)?;
    fs::create_dir(folder.join("driver-tls"))?;
    // Names that stay, so that running programs see new content.
    let lasting = json!({"disableNameSuffixHash": true});
    for (from, to) in [
        (bed.kdc().client_configuration(), "krb5.conf"),
        (bed.kdc().keytab("csi.keytab"), "keytab"),
        (authority.file(), "ca.crt"),
        (serving.certificate, "tls.crt"),
        (serving.key, "tls.key"),
        (authority.file(), "client-ca.crt"),
        (calling.certificate, "driver-tls/tls.crt"),
        (calling.key, "driver-tls/tls.key"),
    ] {
        fs::copy(&from, folder.join(to)).with_context(|| format!("failed to copy {}", from.display()))?;
    }
    write_keys(&folder.join(SEAL_KEYS), &[bed.kubernetes().sealing_key()])?;
    let clusters = ["main", "private", "impostor"];
    let path = |cluster: &str| match cluster {
        "main" => "/etc/hadoop-token-csi-clusters/default".to_owned(),
        other => format!("/etc/hadoop-token-csi-clusters/{other}"),
    };
    for cluster in clusters {
        let target = folder.join(cluster);
        fs::create_dir(&target)?;
        for file in ["core-site.xml", "hdfs-site.xml"] {
            fs::copy(bed.client_configurations().join(cluster).join(file), target.join(file))?;
        }
    }
    let entries: Vec<_> =
        clusters.iter().map(|name| json!({"name": name, "configuration": path(name)})).collect();
    write(
        folder,
        "controller.yaml",
        &json!({
            "listen": "[::]:9443",
            "healthAddress": "[::]:9809",
            "tls": {"certificate": "/etc/hadoop-token-csi-tls/tls.crt", "key": "/etc/hadoop-token-csi-tls/tls.key"},
            "kerberos": {"principal": SUPERUSER, "keytab": "/etc/hadoop-token-csi-keytab/keytab"},
            "driver": {"namespace": NAMESPACE, "serviceAccount": "hadoop-token-csi-driver"},
            "clusters": entries,
            "defaultCluster": "main",
            "seal": {"keys": format!("/etc/hadoop-token-csi-seal/{SEAL_KEYS}")},
            "users": {"defaultRealm": REALM},
            "namespaces": {"exempt": ["kube-system", EXEMPT]},
            "directory": {"ldap": {
                "servers": [format!("ldaps://{LDAP_NAME}")],
                "ca": format!("{DIRECTORY}/ca.crt"),
                "bind": {"simple": {"dn": ldap::READER, "passwordFile": format!("{DIRECTORY}/password")}},
                "users": {"base": ldap::PEOPLE},
                "groups": {"base": ldap::GROUPS},
                "timeouts": {"connectSeconds": 2, "bindSeconds": 2, "searchSeconds": 2, "lookupSeconds": 4},
                "cache": {"positiveSeconds": 2, "negativeSeconds": 1},
            }},
        }),
    )?;
    write(
        folder,
        "driver.yaml",
        &json!({
            "csiSocket": "/csi/csi.sock",
            "registrationDir": "/registration",
            "stateDir": "/csi/volumes",
            "healthAddress": "[::]:9808",
            "controller": {
                "address": CONTROLLER,
                "ca": "/etc/hadoop-token-csi/ca.crt",
                "tokenFile": "/var/run/secrets/hadoop-token-csi/token",
            },
        }),
    )?;
    let mut maps = vec![
        json!({"name": "hadoop-token-csi-driver", "files": ["driver.yaml"]}),
        json!({"name": "hadoop-token-csi-ca", "files": ["ca.crt"], "options": lasting}),
        json!({"name": "hadoop-token-csi-controller", "files": ["controller.yaml", "krb5.conf"]}),
        json!({"name": "hadoop-token-csi-hadoop", "files": ["main/core-site.xml", "main/hdfs-site.xml"]}),
        json!({
            "name": "hadoop-token-csi-seal-keys",
            "files": [SEAL_KEYS],
            "options": lasting,
        }),
    ];
    let directory = folder.join("directory");
    fs::create_dir(&directory)?;
    fs::copy(bed.directory().await?.password(), directory.join("password"))?;
    fs::copy(authority.file(), directory.join("ca.crt"))?;
    // Tests wait for it often.
    let soon = json!({
        "op": "replace",
        "path": "/spec/template/spec/containers/0/readinessProbe/periodSeconds",
        "value": 1,
    });
    // The node's own network, because the NameNodes let the superuser act for others from one host only.
    let mut changes = vec![
        json!({"op": "add", "path": "/spec/template/spec/hostNetwork", "value": true}),
        json!({"op": "replace", "path": "/spec/replicas", "value": 1}),
        json!({"op": "add", "path": "/spec/strategy", "value": {"type": "Recreate"}}),
        soon.clone(),
        // A program that is process 1 of its namespace cannot kill itself.
        json!({"op": "add", "path": "/spec/template/spec/shareProcessNamespace", "value": true}),
        json!({
            "op": "add",
            "path": "/spec/template/spec/volumes/-",
            "value": {"name": "audit", "hostPath": {"path": AUDIT_FOLDER, "type": "DirectoryOrCreate"}},
        }),
        json!({
            "op": "add",
            "path": "/spec/template/spec/containers/0/volumeMounts/-",
            "value": {"name": "audit", "mountPath": AUDIT_FOLDER_IN_POD},
        }),
    ];
    changes.extend(fault_points());
    for cluster in clusters.into_iter().skip(1) {
        let name = format!("hadoop-token-csi-hadoop-{cluster}");
        maps.push(json!({
            "name": name,
            "files": [format!("{cluster}/core-site.xml"), format!("{cluster}/hdfs-site.xml")],
        }));
        changes.push(json!({
            "op": "add",
            "path": "/spec/template/spec/volumes/-",
            "value": {"name": format!("hadoop-{cluster}"), "configMap": {"name": name}},
        }));
        changes.push(json!({
            "op": "add",
            "path": "/spec/template/spec/containers/0/volumeMounts/-",
            "value": {"name": format!("hadoop-{cluster}"), "mountPath": path(cluster), "readOnly": true},
        }));
    }
    write(
        folder,
        "kustomization.yaml",
        &json!({
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": NAMESPACE,
            "resources": ["base"],
            "configMapGenerator": maps,
            "secretGenerator": [
                {"name": "hadoop-token-csi-keytab", "files": ["keytab"]},
                {
                    "name": "hadoop-token-csi-tls",
                    "type": "kubernetes.io/tls",
                    "files": ["tls.crt", "tls.key", "client-ca.crt"],
                    "options": lasting,
                },
                {
                    "name": "hadoop-token-csi-driver-tls",
                    "type": "kubernetes.io/tls",
                    "files": ["driver-tls/tls.crt", "driver-tls/tls.key"],
                    "options": lasting,
                },
                {"name": "hadoop-token-csi-directory", "files": ["directory/password", "directory/ca.crt"]},
            ],
            "patches": [
                {
                    "target": {"kind": "Deployment", "name": "hadoop-token-csi-controller"},
                    "patch": serde_json::to_string(&changes)?,
                },
                {
                    "target": {"kind": "DaemonSet", "name": "hadoop-token-csi-driver"},
                    "patch": serde_json::to_string(&[fault_points().as_slice(), &[soon]].concat())?,
                },
            ],
        }),
    )
}

/// What lets a test end a program at a named point, see [`fault`].
fn fault_points() -> [Value; 3] {
    let container = "/spec/template/spec/containers/0";
    [
        json!({
            "op": "add",
            "path": "/spec/template/spec/volumes/-",
            "value": {"name": "faults", "hostPath": {"path": fault::FOLDER, "type": "Directory"}},
        }),
        json!({
            "op": "add",
            "path": format!("{container}/volumeMounts/-"),
            "value": {"name": "faults", "mountPath": fault::FOLDER},
        }),
        json!({
            "op": "add",
            "path": format!("{container}/env/-"),
            "value": {"name": "HADOOP_TOKEN_CSI_FAULTS", "value": fault::FOLDER},
        }),
    ]
}

/// JSON is YAML.
pub(crate) fn write(folder: &Path, file: &str, content: &Value) -> Result<()> {
    fs::write(folder.join(file), serde_json::to_vec_pretty(content)?)
        .with_context(|| format!("failed to write {file}"))
}
