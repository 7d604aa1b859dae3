//! Documents say what is: every test that docs/semantics.md names exists, and docs/errors.md has every reason that the
//! code can give, and no other.

#![allow(clippy::panic)] // helpers of tests are as entitled to it as tests

use std::{collections::BTreeSet, fs, path::Path};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What stands between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// A module of the end-to-end tests, with the files in its folder.
fn module(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e").join(name);
    let parts = fs::read_dir(folder).into_iter().flatten().flatten();
    let parts = parts.filter_map(|entry| fs::read_to_string(entry.path()).ok());
    parts.fold(read(&format!("tests/e2e/{name}.rs")), |all, part| all + &part)
}

/// How many tests `document` names. Panics when one of them does not exist.
fn named_tests(document: &str) -> usize {
    let mut named = 0;
    for test in quoted(document) {
        let Some((name, _)) = test.split_once("::") else { continue };
        let Some((_, function)) = test.rsplit_once("::") else { continue };
        assert!(module(name).contains(&format!("async fn {function}(")), "there is no test {test}");
        named += 1;
    }
    named
}

#[test]
fn every_promise_that_holds_names_tests_that_exist() {
    let document = read("docs/semantics.md");
    for number in 1..=12 {
        assert!(document.contains(&format!("**P{number}. ")), "P{number} is missing");
    }
    assert!(named_tests(&document) > 10);
}

#[test]
fn every_attack_names_the_tests_that_make_it() {
    let document = read("docs/threat-model.md");
    for number in 1..=14 {
        assert!(document.contains(&format!("`attacks::a{number}_")), "attack {number} is missing");
    }
    assert!(named_tests(&document) > 30);
}

#[test]
fn every_reason_is_documented_and_no_other() {
    let is_reason = |word: &&str| word.len() > 2 && word.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    let document = read("docs/errors.md");
    let first_cells = document.lines().filter_map(|line| line.strip_prefix('|')?.split('|').next());
    let documented: BTreeSet<&str> = first_cells.flat_map(quoted).filter(is_reason).collect();
    let sources: Vec<String> = [
        "hadoop/src/error.rs",
        "hadoop/src/kerberos/failure.rs",
        "controller/src/failure.rs",
        "controller/src/directory.rs",
        "controller/src/ledger.rs",
        "driver/src/publish_request.rs",
        "driver/src/controller_client.rs",
        "driver/src/volume/error.rs",
    ]
    .map(read)
    .into();
    // Reasons are what the arms of `reason` functions give: `=> "REASON"`.
    let given: BTreeSet<&str> = sources
        .iter()
        .flat_map(|source| source.split("=> \"").skip(1))
        .filter_map(|rest| rest.split('"').next())
        .filter(is_reason)
        .collect();
    let webhook: Vec<String> = [
        "webhook/src/refusal.rs",
        "webhook/src/server/failure.rs",
        "webhook/src/injection/request.rs",
        "webhook/src/validation/annotations.rs",
        "webhook/src/validation/reach.rs",
        "webhook/src/validation/volumes.rs",
    ]
    .map(read)
    .into();
    // There every such word between quotes is one, if it is more than a word.
    let at_admission = webhook.iter().flat_map(|source| source.split('"'));
    let given: BTreeSet<&str> =
        given.into_iter().chain(at_admission.filter(|word| is_reason(word) && word.contains('_'))).collect();
    assert!(given.len() > 50, "only {} reasons were found in the sources", given.len());
    assert_eq!(
        documented.difference(&given).collect::<Vec<_>>(),
        Vec::<&&str>::new(),
        "documented, but never given"
    );
    assert_eq!(
        given.difference(&documented).collect::<Vec<_>>(),
        Vec::<&&str>::new(),
        "given, but not documented"
    );
}
