use std::{io::Write, path::Path};

use tempfile::NamedTempFile;

use super::*;

const LEAST: &str = "\
servers: ['ldapi://%2Frun%2Fldapi']
bind: external
users: {base: 'ou=people,dc=test'}
groups: {base: 'ou=groups,dc=test'}
";

fn section(yaml: &str) -> Section {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(yaml.as_bytes()).unwrap();
    process::config::load(file.path()).unwrap_or_else(|error| panic!("{error}: {yaml}"))
}

#[test]
fn little_is_needed() {
    let section = section(LEAST);
    assert_eq!(section.mistakes(), Vec::<String>::new());
    assert_eq!(section.users.filter, "(objectClass=posixAccount)");
    assert_eq!((section.groups.members, section.groups.nested), (Members::Both, Nested::Walk));
}

#[test]
fn everything_can_be_said() {
    let section = section(
        "\
servers: ['ldaps://ldap1.test', 'ldaps://ldap2.test:1636/', 'ldap://ldap3.test:389']
startTls: true
ca: /ca.crt
clientCertificate: {certificate: /tls.crt, key: /tls.key}
bind: {simple: {dn: 'cn=csi,dc=test', passwordFile: /password}}
users: {base: 'dc=test', nameAttribute: sAMAccountName, filter: '(objectClass=user)', ignoreCase: true}
groups: {base: 'dc=test', nameAttribute: cn, filter: '(objectClass=group)', members: member, nested: chain, mostGroups: 10, mostLevels: 2}
timeouts: {connectSeconds: 1, bindSeconds: 1, searchSeconds: 1, lookupSeconds: 2}
cache: {positiveSeconds: 5, negativeSeconds: 1, megabytes: 10}
",
    );
    assert_eq!(section.mistakes(), Vec::<String>::new());
}

#[test]
fn unknown_keys_are_refused() {
    for (yaml, key) in [
        (format!("{LEAST}starttls: true\n"), "starttls"),
        (LEAST.replace("external", "{simple: {dn: x, password: y}}"), "password"),
        (LEAST.replace("external", "internal"), "internal"),
        (LEAST.replace("{base: 'ou=people", "{bases: 'ou=people"), "bases"),
        (format!("{LEAST}cache: {{seconds: 3}}\n"), "seconds"),
    ] {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(yaml.as_bytes()).unwrap();
        let error = process::config::load::<Section>(file.path()).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
}

#[test]
fn every_mistake_is_told_at_once() {
    let section = section(
        "\
servers: ['ldap://ldap.test', 'http://ldap.test', 'ldaps://[::1]']
clientCertificate: {certificate: /tls.crt, key: /tls.key}
bind: {simple: {dn: '', passwordFile: /password}}
users: {base: '', nameAttribute: 'uid=*)(x', filter: 'objectClass=posixAccount'}
groups: {base: 'dc=test', filter: '(cn=', members: memberUid, mostGroups: 0}
timeouts: {searchSeconds: 0}
cache: {megabytes: 0}
",
    );
    let keys: Vec<String> =
        section.mistakes().iter().map(|mistake| mistake.split(": ").next().unwrap().to_owned()).collect();
    assert_eq!(
        keys,
        [
            "ldap.servers",
            "ldap.servers",
            "ldap.servers",
            "ldap.ca",
            "ldap.bind.simple.dn",
            "ldap.users.base",
            "ldap.users.nameAttribute",
            "ldap.users.filter",
            "ldap.groups.filter",
            "ldap.groups.nested",
            "ldap.groups.mostGroups",
            "ldap.timeouts.searchSeconds",
            "ldap.cache.megabytes",
        ]
    );
}

#[test]
fn nothing_crosses_the_network_unprotected_by_accident() {
    let check = |old: &str, new: &str, key: &str| {
        let mistakes = section(&LEAST.replace(old, new)).mistakes();
        assert!(mistakes.iter().any(|mistake| mistake.starts_with(key)), "{new}: {mistakes:?}");
    };
    let local = "'ldapi://%2Frun%2Fldapi'";
    check(local, "'ldap://ldap.test'", "ldap.servers");
    check(local, "'ldapi://%2Frun%2Fldapi', 'ldap://ldap.test'", "ldap.servers");
    check(local, "'ldaps://ldap.test'", "ldap.ca");
    check(local, "'ldaps://ldap.test'", "ldap.bind");
    check("bind:", "insecure: true\nbind:", "ldap.insecure");
    check("bind:", "startTls: true\nbind:", "ldap.startTls");
    let insecure =
        LEAST.replace(local, "'ldap://ldap.test'").replace("external", "anonymous\ninsecure: true");
    assert_eq!(section(&insecure).mistakes(), Vec::<String>::new());
}

#[test]
fn addresses_are_those_of_servers() {
    for good in
        ["ldaps://ldap.test", "ldap://127.0.0.1:1389/", "ldapi://%2Frun%2Fldapi", "ldapi://%2Frun%2Fldapi/"]
    {
        assert!(well_formed(good), "{good}");
    }
    for bad in [
        "ldaps://",
        "ldaps://:636",
        "ldaps://ldap.test:0",
        "ldaps://ldap.test:port",
        "ldaps://ldap.test/dc=test",
        "ldaps://user@ldap.test",
        "ldap:/ldap.test",
        "ldapi://",
        "ldapi:///run/ldapi",
    ] {
        assert!(!well_formed(bad), "{bad}");
    }
}

#[test]
fn files_that_are_missing_are_mistakes() {
    let yaml = "\
servers: ['ldaps://ldap.test']
ca: /nonexistent/ca.crt
bind: {simple: {dn: 'cn=csi', passwordFile: /nonexistent/password}}
users: {base: 'dc=test'}
groups: {base: 'dc=test'}
";
    let mistakes = Ldap::open(section(yaml)).err().unwrap();
    assert!(mistakes.iter().any(|mistake| mistake.contains("/nonexistent/ca.crt")), "{mistakes:?}");
    assert!(mistakes.iter().any(|mistake| mistake.contains("/nonexistent/password")), "{mistakes:?}");
    assert!(!Path::new("/nonexistent").exists());
}
