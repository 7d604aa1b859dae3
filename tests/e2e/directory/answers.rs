//! What the controller makes of a real LDAP server's answers, asked by its command line.

use anyhow::{Context, Result, ensure};
use bed::{Bed, harness::Test, host::LDAP_NAME, ldap, pki::Authority};
use serde_json::{Map, Value, json};

use super::setup::{ask, groups, section};

pub(super) fn tests() -> Vec<Test> {
    bed::tests![
        every_way_to_connect_and_bind_gives_the_same_answer,
        whoever_is_not_let_in_is_told_why,
        groups_are_found_by_name_number_and_dn_and_within_groups,
        names_that_mean_something_in_filters_are_only_names,
        an_incomplete_answer_is_an_error,
        a_directory_that_does_not_answer_is_late,
    ]
}

/// The section with some keys changed; null takes a key away.
fn with(section: &Value, changes: &Value) -> Value {
    let both = [section, changes].into_iter().filter_map(Value::as_object).flatten();
    let mut keys: Map<String, Value> = both.map(|(key, value)| (key.clone(), value.clone())).collect();
    keys.retain(|_, value| !value.is_null());
    Value::Object(keys)
}

async fn every_way_to_connect_and_bind_gives_the_same_answer(bed: &Bed) -> Result<()> {
    let simple = section(bed).await?;
    let directory = bed.directory().await?;
    let (ldaps, plain) = (format!("ldaps://{LDAP_NAME}"), format!("ldap://{LDAP_NAME}:389"));
    let certificate = json!({"certificate": directory.reader().certificate, "key": directory.reader().key});
    let external = with(&simple, &json!({"bind": "external", "clientCertificate": certificate}));
    let local = with(&simple, &json!({"servers": [directory.socket()], "bind": "external", "ca": null}));
    for (how, section) in [
        ("LDAPS, simple bind", simple.clone()),
        ("LDAPS, client certificate", external.clone()),
        ("StartTLS, simple bind", with(&simple, &json!({"servers": [plain], "startTls": true}))),
        ("StartTLS, client certificate", with(&external, &json!({"servers": [plain], "startTls": true}))),
        ("local socket", local),
        ("the second of two", with(&simple, &json!({"servers": [format!("{ldaps}:1636"), ldaps]}))),
    ] {
        let found = groups(bed, &section, "etl").await.context(how)?;
        ensure!(found == ["batch", "hadoop-users", "people"], "{how}: {found:?}");
    }
    Ok(())
}

async fn whoever_is_not_let_in_is_told_why(bed: &Bed) -> Result<()> {
    let simple = section(bed).await?;
    let directory = bed.directory().await?;
    let wrong = bed.state().join("wrong-password");
    std::fs::write(&wrong, "guess")?;
    let strangers = Authority::new(&bed.state().join("strangers"))?;
    let stranger = directory.stranger();
    let stranger = json!({"certificate": stranger.certificate, "key": stranger.key});
    let foreign = strangers.client("foreign", "csi", None)?;
    let foreign = json!({"certificate": foreign.certificate, "key": foreign.key});
    let plain = format!("ldap://{LDAP_NAME}");
    for (what, changes, reason, words) in [
        (
            "a wrong password",
            json!({"bind": {"simple": {"dn": ldap::READER, "passwordFile": wrong}}}),
            "DIRECTORY_BIND_REFUSED",
            "invalidCredentials",
        ),
        ("nobody", json!({"bind": "anonymous"}), "DIRECTORY_BIND_REFUSED", "anonymous"),
        (
            "a password in the clear",
            json!({"servers": [plain], "insecure": true, "ca": null}),
            "DIRECTORY_BIND_REFUSED",
            "confidentialityRequired",
        ),
        ("another authority's server", json!({"ca": strangers.file()}), "DIRECTORY_UNREACHABLE", "check ca"),
        (
            "another authority's server after StartTLS",
            json!({"ca": strangers.file(), "servers": [plain], "startTls": true}),
            "DIRECTORY_UNREACHABLE",
            "check ca",
        ),
        (
            "a server of another name",
            json!({"servers": ["ldaps://10.245.0.13"]}),
            "DIRECTORY_UNREACHABLE",
            "check ca",
        ),
        (
            "another authority's client",
            json!({"bind": "external", "clientCertificate": foreign}),
            "DIRECTORY_",
            LDAP_NAME,
        ),
        (
            "somebody who may see nothing",
            json!({"bind": "external", "clientCertificate": stranger}),
            "DIRECTORY_UNWELL",
            "hidden from us",
        ),
        (
            "a port that nobody listens on",
            json!({"servers": [format!("ldaps://{LDAP_NAME}:1636")]}),
            "DIRECTORY_UNREACHABLE",
            "refused",
        ),
    ] {
        fails(bed, &with(&simple, &changes), "etl", reason, words).await.context(what)?;
    }
    Ok(())
}

async fn groups_are_found_by_name_number_and_dn_and_within_groups(bed: &Bed) -> Result<()> {
    let simple = section(bed).await?;
    let base = ldap::GROUPS;
    for (what, keys, user, expected) in [
        ("all ways", json!({"base": base}), "ads", "analysts circle hadoop-users people reports"),
        ("all ways", json!({"base": base}), "etl", "batch hadoop-users people"),
        ("all ways", json!({"base": base}), "batch", "headless"),
        (
            "by name",
            json!({"base": base, "members": "memberUid", "nested": "none"}),
            "ads",
            "hadoop-users people",
        ),
        ("by DN", json!({"base": base, "members": "member", "nested": "none"}), "ads", "analysts"),
        ("by DN", json!({"base": base, "members": "member"}), "ads", "analysts circle reports"),
        (
            "those of one kind",
            json!({"base": base, "filter": "(objectClass=groupOfNames)"}),
            "ads",
            "analysts circle reports",
        ),
    ] {
        let found = groups(bed, &with(&simple, &json!({"groups": keys})), user).await.context(what)?;
        ensure!(found.join(" ") == expected, "{what}, {user}: {found:?}");
    }
    Ok(())
}

async fn names_that_mean_something_in_filters_are_only_names(bed: &Bed) -> Result<()> {
    let found = groups(bed, &section(bed).await?, "odd").await?;
    ensure!(found == ["Odd (Group), *", "above-odd", "people"], "{found:?}");
    Ok(())
}

async fn an_incomplete_answer_is_an_error(bed: &Bed) -> Result<()> {
    let simple = section(bed).await?;
    let limited = json!({"simple": {"dn": ldap::LIMITED, "passwordFile": bed.directory().await?.password()}});
    let (people, groups) = (ldap::PEOPLE, ldap::GROUPS);
    for (changes, user, words) in [
        (json!({}), "twin", "two entries"),
        (json!({"bind": limited}), "crowd", "more entries match"),
        (json!({"groups": {"base": groups, "mostGroups": ldap::MOST}}), "crowd", "mostGroups"),
        (json!({"groups": {"base": groups, "mostLevels": 1}}), "ads", "mostLevels"),
        (json!({"groups": {"base": groups, "nameAttribute": "gidNumber"}}), "ads", "nameAttribute"),
        (
            json!({"groups": {"base": groups, "members": "member", "nested": "chain"}}),
            "etl",
            "no Active Directory",
        ),
        (json!({"groups": {"base": "ou=nowhere,dc=bed,dc=test"}}), "etl", "does not exist"),
        (json!({"groups": {"base": ldap::BASE}}), "etl", "refers us to another server"),
        (json!({"users": {"base": ldap::BASE}}), "etl", "refers us to another server"),
        (json!({"users": {"base": "ou=elsewhere,dc=bed,dc=test"}}), "etl", "refers us to another server"),
        (json!({"users": {"base": "people"}}), "etl", "people"),
    ] {
        fails(bed, &with(&simple, &changes), user, "DIRECTORY_UNWELL", words).await?;
    }
    // Nor is it one to find nobody.
    let nobody = ask(bed, &simple, "nobody-knows").await?.failure()?;
    ensure!(nobody.contains("knows no user") && !nobody.contains("DIRECTORY_"), "{nobody}");
    let shouted = ask(bed, &simple, "ETL").await?.failure()?;
    ensure!(shouted.contains("knows no user"), "{shouted}");
    let any_case = with(&simple, &json!({"users": {"base": people, "ignoreCase": true}}));
    ensure!(super::setup::groups(bed, &any_case, "ETL").await?.contains(&"people".to_owned()));
    Ok(())
}

async fn a_directory_that_does_not_answer_is_late(bed: &Bed) -> Result<()> {
    let directory = bed.directory().await?;
    let short =
        json!({"timeouts": {"connectSeconds": 1, "bindSeconds": 1, "searchSeconds": 1, "lookupSeconds": 3}});
    let section = with(&section(bed).await?, &short);
    directory.freeze().await?;
    let late = fails(bed, &section, "etl", "DIRECTORY_LATE", "longer than 1 s").await;
    directory.thaw().await?;
    late?;
    groups(bed, &section, "etl").await.map(drop)
}

/// The question is not answered, for that reason, and in words among which these are.
async fn fails(bed: &Bed, section: &Value, user: &str, reason: &str, words: &str) -> Result<()> {
    let told = ask(bed, section, user).await?.failure()?;
    ensure!(told.contains(reason) && told.contains(words), "neither {reason} nor {words:?} in {told}");
    Ok(())
}
