//! Configurations as operators write them, right and wrong.

use std::{fmt::Write as _, fs};

use identity::seal::{JwkSet, SealingKey};
use tempfile::TempDir;

use super::*;
use crate::authorization::OnLostRight;

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
    let keys = JwkSet { keys: vec![SealingKey::generate().public_jwk()] };
    fs::write(at("seal.json"), keys.to_json()).unwrap();
    fs::write(at("users.yaml"), "users: {etl: {groups: [staff]}}").unwrap();
    folder
}

const RIGHT: &str = r#"
listen: "[::]:9443"
healthAddress: "[::]:9809"
tls: {certificate: $/tls.crt, key: $/tls.key}
kerberos: {principal: csi/h1.example.com@EXAMPLE.COM, keytab: $/keytab}
clusters:
  - {name: main, configuration: $/main}
seal: {keys: $/seal.json}
"#;

fn load(folder: &TempDir, yaml: &str) -> Result<Config, String> {
    let path = folder.path().join("controller.yaml");
    fs::write(&path, yaml.replace("$/", &format!("{}/", folder.path().display()))).unwrap();
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
    for name in ["hdfs", "yarn", "mapred", "hive", "hbase", "kms", "http", "root"] {
        assert!(config.policy.users.denied.contains(&name.parse().unwrap()), "{name} is not denied");
        assert!(config.policy.users.denied_groups.contains(name), "group {name} is not denied");
    }
    assert!(config.policy.users.denied_groups.contains("supergroup"), "Hadoop's default superusers");
    let own = config.policy.users.denied.contains(&"csi".parse().unwrap());
    assert!(own, "pods may be what the controller is");
    assert_eq!(config.policy.trust, Trust::Seals { tolerance: 120 });
    assert_eq!(config.policy.verification, Verification::Eventual);
    assert!(config.policy.namespaces.exempt.contains("kube-system"));
    assert_eq!(config.recheck, Duration::from_mins(15));
    let LeaseName { namespace, name } = config.lease;
    assert_eq!((&*namespace, &*name), ("hadoop-token-csi", "hadoop-token-csi-reaper"));
    let user = config.policy.names.map("etl").unwrap();
    assert_eq!(user.as_str(), "etl", "by DEFAULT in the realm of our own principal");
}

#[test]
fn of_several_clusters_none_is_the_default_unless_named() {
    let folder = installation();
    let two = RIGHT.replace("clusters:\n", "clusters:\n  - {name: spare, configuration: $/spare}\n");
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
lease: {name: "a/b"}
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
        "lease.namespace: \"a b\"",
        "lease.name: \"a/b\"",
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

/// Everything that an operator can say of who gets what.
const WHOLE: &str = r#"
users:
  defaultRealm: CORP.EXAMPLE.COM
  authToLocal:
    - RULE:[1:$1@$0](.*@PARTNER\.EXAMPLE\.COM)s/@.*//
    - DEFAULT
  serviceAccounts: {jobs/spark: svc_spark}
  allowed: [etl, svc]
  allowedGroups: [staff]
  denied: [hdfs]
  deniedGroups: [supergroup]
  doAs: {group: "may-be-{account}"}
  onLostRight: expire
directory: {file: $/users.yaml}
namespaces:
  exempt: [kube-system]
  rules:
    - {names: ["team-*"], labels: {hadoop: "yes"}, users: [etl], clusters: [main], services: [hdfs], hostNetwork: true, addressVerification: strict}
    - {labels: {hadoop: maybe}}
owners: [{apiVersion: sparkoperator.k8s.io/v1beta2, kind: SparkApplication, resource: sparkapplications}]
addressVerification: off
recheckSeconds: 60
limits: {rates: {node: {perSecond: 5, burst: 10}}}
audit: {file: /var/log/audit.jsonl}
lease: {namespace: system, name: reaper}
"#;

#[test]
fn takes_all_that_an_operator_can_say() {
    let folder = installation();
    let config = load(&folder, &format!("{RIGHT}{WHOLE}")).unwrap();
    let Policy { names, users, namespaces, verification, .. } = config.policy;
    let mapped = |name: &str| names.map(name).map(|user| user.to_string()).ok();
    assert_eq!(mapped("etl").as_deref(), Some("etl"));
    assert_eq!(mapped("ads@PARTNER.EXAMPLE.COM").as_deref(), Some("ads"));
    assert_eq!(mapped("system:serviceaccount:jobs:spark").as_deref(), Some("svc_spark"));
    assert_eq!(mapped("ads@OTHER.EXAMPLE.COM"), None);
    assert_eq!(users.headless_group, "may-be-{account}");
    assert_eq!(users.on_lost_right, OnLostRight::Expire);
    assert_eq!(users.denied, ["hdfs", "csi"].map(|name| name.parse().unwrap()).into());
    assert_eq!(namespaces.rules.len(), 2);
    assert_eq!(verification, Verification::Off);
    assert_eq!(config.recheck, Duration::from_secs(60));
    assert!(config.directory.is_some());
    assert_eq!(config.audit, audit::Destination::File("/var/log/audit.jsonl".into()));
    assert_eq!(config.lease, LeaseName { namespace: "system".to_owned(), name: "reaper".to_owned() });
}

#[test]
fn tells_every_mistake_about_who_gets_what_at_once() {
    let folder = installation();
    let wrong = r#"
users:
  defaultRealm: ""
  authToLocal: [DEFAULT, "RULE:[1:$1](?=x)"]
  serviceAccounts: {spark: svc, jobs/spark: "a b"}
  allowed: []
  denied: ["hdfs@R"]
  deniedGroups: [supergroup]
  doAs: {group: admins}
namespaces:
  exempt: []
  rules:
    - {users: [etl]}
    - {names: [], clusters: [nope], services: []}
    - {names: [A*]}
owners: [{apiVersion: v1, kind: pod, resource: pods}]
recheckSeconds: 0
audit: {file: relative}
insecure: {trustUnsealedAnnotations: true}
"#;
    let mistakes = load(&folder, &format!("{RIGHT}{wrong}")).err().unwrap();
    let missing: Vec<_> = [
        "users.defaultRealm: ",
        "users.authToLocal: ",
        "users.serviceAccounts[spark]: is not NAMESPACE/NAME",
        "users.serviceAccounts[jobs/spark]: ",
        "users.allowed: is empty",
        "users.denied: invalid Hadoop user name",
        "users.deniedGroups: needs a directory",
        "users.doAs.group: must contain {account}",
        "namespaces.exempt: is empty",
        "namespaces.rules[1].names: say which namespaces",
        "namespaces.rules[2].names: is empty",
        "namespaces.rules[2].clusters: \"nope\" is not among clusters",
        "namespaces.rules[2].services: is empty",
        "namespaces.rules[3].names: \"A*\"",
        "owners: ",
        "recheckSeconds: must be at least 1",
        "audit: ",
        "insecure: cannot be together with seal",
    ]
    .into_iter()
    .filter(|part| !mistakes.contains(part))
    .collect();
    assert!(missing.is_empty(), "does not say:\n{missing:#?}\nbut:\n{mistakes}");
}

#[test]
fn it_has_to_be_said_by_what_pods_are_believed() {
    let folder = installation();
    let neither = RIGHT.replace("seal: {keys: $/seal.json}\n", "");
    assert!(load(&folder, &neither).err().unwrap().contains("seal: is missing"));
    let insecure = format!("{neither}insecure: {{trustUnsealedAnnotations: true}}\n");
    assert_eq!(load(&folder, &insecure).unwrap().policy.trust, Trust::Annotations);
    let not_really = format!("{neither}insecure: {{trustUnsealedAnnotations: false}}\n");
    assert!(load(&folder, &not_really).err().unwrap().contains("insecure.trustUnsealedAnnotations"));
    let no_keys = RIGHT.replace("seal.json", "missing.json");
    assert!(load(&folder, &no_keys).err().unwrap().contains("missing.json"));
}

/// What docs/configuration.md shows is a configuration, but for files that are not on this machine.
#[test]
fn the_documented_example_lacks_nothing_but_its_files() {
    let document = include_str!("../../../docs/configuration.md");
    let (_, example) = document.split_once("```yaml controller\n").unwrap();
    let (example, _) = example.split_once("```").unwrap();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("controller.yaml");
    fs::write(&path, example).unwrap();
    let file: File = process::config::load(&path).unwrap();
    let Err(mistakes) = Config::check(file) else { panic!("the files are there") };
    let others: Vec<_> = mistakes.iter().filter(|mistake| !mistake.contains("No such file")).collect();
    assert_eq!(others, Vec::<&str>::new());
    assert!(mistakes.iter().count() > 5, "{mistakes:?}");
}

#[test]
fn the_role_of_the_manifests_names_the_lease_that_is_the_default() {
    let manifests = include_str!("../../../deploy/kubernetes/controller.yaml");
    let objects = manifests.split("\n---\n").map(serde_saphyr::from_str::<serde_json::Value>);
    let roles: Vec<_> = objects.map(Result::unwrap).filter(|object| object["kind"] == "Role").collect();
    let [role] = &*roles else { panic!("{roles:?}") };
    let named: Vec<_> = role["rules"].as_array().unwrap().iter().map(|rule| &rule["resourceNames"]).collect();
    let default = LeaseSection::default().name;
    assert_eq!(named, [&serde_json::Value::Null, &serde_json::json!([default])], "create cannot be named");
}
