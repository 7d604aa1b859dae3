//! The controller as a process outside of Kubernetes: the same program with the same configuration, but for the paths,
//! which are the host's, and a Kubernetes user of its own with the rights that the manifests give the one inside.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    Bed,
    product::{NAMESPACE, controller_program},
};

/// What it takes to start a controller as a process.
pub struct Outside {
    /// The program that is in the controller's image too.
    pub program: PathBuf,
    /// Its configuration.
    pub configuration: PathBuf,
    /// As whom it speaks to the API server.
    pub kubeconfig: PathBuf,
}

impl Outside {
    /// For a controller that is this user of Kubernetes, and shows its health at this address.
    ///
    /// # Errors
    /// When the API server refuses the user's rights, or a file cannot be written.
    pub async fn of(bed: &Bed, user: &str, health_address: &str) -> Result<Self> {
        let (kubernetes, folder) = (bed.kubernetes(), bed.state().join(user));
        let overlay = bed.product().await?.overlay();
        fs::create_dir_all(&folder)?;
        for (binding, role, namespace) in
            [("ClusterRoleBinding", "ClusterRole", None), ("RoleBinding", "Role", Some(NAMESPACE))]
        {
            let binding = json!({
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": binding,
                "metadata": {"name": user, "namespace": namespace},
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": "hadoop-token-csi-controller",
                },
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
            });
            kubernetes.apply(&binding.to_string()).await?;
        }
        let serving = kubernetes.authority().server(user, &["controller.bed.test"])?;
        let mut config = fs::read_to_string(overlay.join("controller.yaml"))?;
        for (inside, outside) in [
            ("-tls/tls.crt", serving.certificate),
            ("-tls/tls.key", serving.key),
            ("-keytab/keytab", bed.kdc().keytab("csi.keytab")),
            ("-seal/", overlay.join("")),
            ("-directory/", overlay.join("directory/")),
            ("-clusters/default", bed.client_configurations().join("main")),
            ("-clusters/", bed.client_configurations().join("")),
        ] {
            let inside = format!("/etc/hadoop-token-csi{inside}");
            config = config.replace(&inside, &outside.display().to_string());
        }
        let mut config: Value = serde_json::from_str(&config)?;
        let health = config.get_mut("healthAddress").context("no healthAddress")?;
        *health = json!(health_address);
        let configuration = folder.join("controller.yaml");
        fs::write(&configuration, config.to_string())?;
        let (program, kubeconfig) = (controller_program()?, kubernetes.kubeconfig_of(user, None)?);
        Ok(Self { program, configuration, kubeconfig })
    }
}

/// Whether the controller that shows its health at this address is ready.
///
/// # Errors
/// When it is not.
pub async fn ready(health_address: &str) -> Result<()> {
    let mut connection = TcpStream::connect(health_address).await?;
    connection.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    Ok(())
}
