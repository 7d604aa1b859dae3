//! The program as an operator starts it.

use std::{
    fs, io,
    path::Path,
    process::{Command, Output},
};

fn check_config(yaml: &str) -> io::Result<Output> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("driver.yaml");
    fs::write(&file, yaml)?;
    driver(&["--check-config", "--log-format=text"], &file)
}

fn driver(args: &[&str], config: &Path) -> io::Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hadoop-token-csi-driver"));
    command.args(args).arg("--config").arg(config).env_remove("NODE_NAME").output()
}

#[test]
fn a_valid_configuration_is_said_to_be_so() {
    let output = check_config(
        "nodeName: n1\ncontroller: {address: 'c.example:9443', ca: /ca.crt, tokenFile: /token}\n",
    )
    .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("The configuration is valid"));
}

#[test]
fn every_mistake_of_the_configuration_is_said() {
    let output =
        check_config("tmpfsSize: huge\ncontroller: {address: nowhere, ca: /ca.crt, tokenFile: /token}\n")
            .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    for key in ["nodeName:", "tmpfsSize:", "controller.address:"] {
        assert!(said.contains(key), "{key} in {said}");
    }
}

#[test]
fn waiting_for_a_token_needs_nothing_but_the_volume() {
    let volume = tempfile::tempdir().unwrap();
    let wait = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hadoop-token-csi-driver"));
        command.env_clear().args(["wait", "--timeout", "200ms", "--volume"]).arg(volume.path());
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    fs::write(volume.path().join("token.json"), r#"{"waiting": "for rain"}"#).unwrap();
    assert_eq!(wait(), (Some(1), "Waiting for rain\nGave up after 0 s of waiting for rain\n".to_owned()));
    fs::write(volume.path().join("token"), "").unwrap();
    assert_eq!(wait(), (Some(0), "The token is there, after 0.0 s\n".to_owned()));
}

#[test]
fn a_missing_configuration_is_named() {
    let output = driver(&["--check-config"], Path::new("/nonexistent/driver.yaml")).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent/driver.yaml"));
}
