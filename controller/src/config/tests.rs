//! Configurations as operators write them, right and wrong.

use std::{fmt::Write as _, fs};

use tempfile::TempDir;

use super::*;

/// A keytab with one key of `principal`, in MIT's format (version 0x502).
fn keytab(principal: &str) -> Vec<u8> {
    let (name, realm) = principal.split_once('@').unwrap();
    let counted = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat();
    let components: Vec<_> = name.split('/').collect();
    let mut entry = u16::try_from(components.len()).unwrap().to_be_bytes().to_vec();
    entry.extend(counted(realm.as_bytes()));
    for component in components {
        entry.extend(counted(component.as_bytes()));
    }
    entry.extend(1_u32.to_be_bytes()); // name type
    entry.extend(0_u32.to_be_bytes()); // time
    entry.push(2); // key version
    entry.extend(18_u16.to_be_bytes()); // aes256-cts-hmac-sha1-96
    entry.extend(counted(&[7; 32]));
    let length = i32::try_from(entry.len()).unwrap().to_be_bytes();
    [&[5, 2], &length[..], &entry].concat()
}

fn site(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let property =
        |name: &str, value: &str| format!("<property><name>{name}</name><value>{value}</value></property>");
    let core = property("fs.defaultFS", "hdfs://nn1.example.com:8020")
        + &property("hadoop.security.authentication", "kerberos");
    let hdfs = property("dfs.namenode.kerberos.principal", "nn/_HOST@EXAMPLE.COM");
    for (name, properties) in [("core-site.xml", core), ("hdfs-site.xml", hdfs)] {
        fs::write(folder.join(name), format!("<configuration>{properties}</configuration>")).unwrap();
    }
}

/// A folder with all that a configuration names.
fn installation() -> TempDir {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let generated = rcgen::generate_simple_self_signed(["controller.test".to_owned()]).unwrap();
    fs::write(at("tls.crt"), generated.cert.pem()).unwrap();
    fs::write(at("tls.key"), generated.signing_key.serialize_pem()).unwrap();
    fs::write(at("keytab"), keytab("csi/h1.example.com@EXAMPLE.COM")).unwrap();
    site(&at("main"));
    site(&at("spare"));
    folder
}

const RIGHT: &str = r#"
listen: "[::]:9443"
healthAddress: "[::]:9809"
tls: {certificate: $/tls.crt, key: $/tls.key}
kerberos: {principal: csi/h1.example.com@EXAMPLE.COM, keytab: $/keytab}
clusters:
  - {name: main, configuration: $/main}
"#;

fn load(folder: &TempDir, yaml: &str) -> Result<Config, String> {
    let path = folder.path().join("controller.yaml");
    fs::write(&path, yaml.replace('$', folder.path().to_str().unwrap())).unwrap();
    Config::load(&path).map_err(|error| format!("{error:#}"))
}

#[test]
fn takes_a_right_one_and_fills_in_defaults() {
    let folder = installation();
    let config = load(&folder, RIGHT).unwrap();
    assert_eq!(config.listen.port(), 9443);
    assert_eq!(config.policy.default_cluster.as_deref(), Some("main"), "the only cluster");
    assert_eq!(config.policy.driver.namespace, "hadoop-token-csi");
    assert_eq!(config.policy.driver.name, "hadoop-token-csi-driver");
    for user in ["hdfs", "yarn", "mapred", "hive", "hbase", "kms", "http", "root"] {
        assert!(config.policy.denied_users.contains(user), "{user} is not denied");
    }
}

#[test]
fn of_several_clusters_none_is_the_default_unless_named() {
    let folder = installation();
    let two = format!("{RIGHT}  - {{name: spare, configuration: $/spare}}\n");
    assert_eq!(load(&folder, &two).unwrap().policy.default_cluster, None);
    let named = format!("{two}defaultCluster: spare\n");
    assert_eq!(load(&folder, &named).unwrap().policy.default_cluster.as_deref(), Some("spare"));
}

#[test]
fn tells_every_mistake_at_once() {
    let folder = installation();
    let wrong = r#"
listen: nowhere
healthAddress: "[::]"
tls: {certificate: $/missing.crt, key: $/tls.key}
kerberos: {principal: csi, keytab: $/keytab}
driver: {namespace: "a b", serviceAccount: driver}
clusters:
  - {name: main, configuration: $/main}
  - {name: main, configuration: $/missing}
defaultCluster: other
limits: {concurrentCalls: 0}
"#;
    let mistakes = load(&folder, wrong).err().unwrap();
    let mut missing = String::new();
    for part in [
        "listen: ",
        "healthAddress: ",
        "missing.crt",
        "kerberos.principal: ",
        "driver.namespace: \"a b\"",
        "clusters[main]: is there twice",
        "/missing/core-site.xml",
        "defaultCluster: \"other\"",
        "limits.concurrentCalls: must be at least 1",
    ] {
        if !mistakes.contains(part) {
            writeln!(missing, "{part}").unwrap();
        }
    }
    assert!(missing.is_empty(), "does not say:\n{missing}but:\n{mistakes}");
}

#[test]
fn a_keytab_without_the_principal_is_a_mistake() {
    let folder = installation();
    fs::write(folder.path().join("keytab"), keytab("other@EXAMPLE.COM")).unwrap();
    let mistakes = load(&folder, RIGHT).err().unwrap();
    assert!(mistakes.contains("csi/h1.example.com@EXAMPLE.COM"), "{mistakes}");
}

#[test]
fn an_unknown_key_is_a_mistake() {
    let folder = installation();
    let mistakes = load(&folder, &format!("{RIGHT}defaultClusters: main\n")).err().unwrap();
    assert!(mistakes.contains("defaultClusters"), "{mistakes}");
}

#[test]
fn no_cluster_is_a_mistake() {
    let folder = installation();
    let none = RIGHT.replace("  - {name: main, configuration: $/main}\n", "  []\n");
    assert!(load(&folder, &none).err().unwrap().contains("clusters: name at least one"));
}
