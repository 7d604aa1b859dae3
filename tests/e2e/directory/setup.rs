//! The controller's program asked about one user, with a configuration of a test's own.

use std::fs;

use anyhow::Result;
use bed::{
    Bed,
    host::LDAP_NAME,
    kdc::SUPERUSER,
    ldap,
    process::{Output, Program},
    product::controller_program,
};
use serde_json::{Value, json};

/// A section `directory.ldap` that is right: LDAPS, simple bind.
pub(super) async fn section(bed: &Bed) -> Result<Value> {
    Ok(json!({
        "servers": [format!("ldaps://{LDAP_NAME}")],
        "ca": bed.kubernetes().authority().file(),
        "bind": {"simple": {"dn": ldap::READER, "passwordFile": bed.directory().await?.password()}},
        "users": {"base": ldap::PEOPLE},
        "groups": {"base": ldap::GROUPS},
    }))
}

/// Asks for a user's groups.
pub(super) async fn ask(bed: &Bed, section: &Value, user: &str) -> Result<Output> {
    let folder = tempfile::tempdir()?;
    let serving = bed.kubernetes().authority().server("asked", &["asked.bed.test"])?;
    let configuration = json!({
        "listen": "127.0.0.1:0",
        "healthAddress": "127.0.0.1:0",
        "tls": {"certificate": serving.certificate, "key": serving.key},
        "kerberos": {"principal": SUPERUSER, "keytab": bed.kdc().keytab("csi.keytab")},
        "clusters": [{"name": "main", "configuration": bed.client_configurations().join("main")}],
        "insecure": {"trustUnsealedAnnotations": true},
        "directory": {"ldap": section},
    });
    let file = folder.path().join("controller.yaml");
    fs::write(&file, configuration.to_string())?;
    let program = Program::new(controller_program()?).arg("--config").arg(&file);
    bed.kdc().client(program.args(["--log-format=text", "--groups-of", user])).output().await
}

/// A user's groups, which must be told.
pub(super) async fn groups(bed: &Bed, section: &Value, user: &str) -> Result<Vec<String>> {
    let told = ask(bed, section, user).await?.success()?;
    Ok(told.lines().map(str::to_owned).collect())
}
