//! What is written into a manifest of each kind, and which changes of it leave the submitter as he is: to be read and
//! judged, not only compared. `WRITE_SNAPSHOTS=1 cargo test -p webhook` writes what is now.

use std::{collections::BTreeSet, env, fmt::Write as _, fs, path::Path};

use serde_json::Value;

use super::*;
use crate::patch::Edit;

struct Manifest {
    file: String,
    object: Value,
    /// What was written down.
    expected: String,
}

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/kinds/snapshots"))
}

fn manifests() -> Vec<Manifest> {
    let files = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "yaml")).collect();
    files.sort();
    let read = |path: std::path::PathBuf| Manifest {
        file: path.file_stem().unwrap().to_str().unwrap().to_owned(),
        object: serde_saphyr::from_str(&fs::read_to_string(&path).unwrap()).unwrap(),
        expected: fs::read_to_string(path.with_extension("txt")).unwrap_or_default(),
    };
    files.into_iter().map(read).collect()
}

fn kind_of<'a>(kinds: &'a Kinds, object: &Value) -> &'a Kind {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap();
    let group = text("apiVersion").split_once('/').map_or("", |(group, _)| group);
    kinds.of_kind(group, text("kind")).unwrap_or_else(|| panic!("{} is not known", text("kind")))
}

fn stamped(kind: &Kind, object: &Value) -> Edit {
    let stamps = BTreeMap::from([
        (identity::SUBMITTER_ANNOTATION, "etl".to_owned()),
        (identity::GROUPS_ANNOTATION, r#"["analysts"]"#.to_owned()),
        (identity::SEAL_ANNOTATION, "SEAL".to_owned()),
    ]);
    let mut edit = Edit::new(object.clone());
    kind.stamp(&mut edit, &stamps).unwrap();
    edit
}

/// Pointers to all values in `value` that are not maps or lists with something in them.
fn leaves(value: &Value, at: &str, found: &mut Vec<String>) {
    let escaped = |key: &str| key.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Object(map) if !map.is_empty() => {
            map.iter().for_each(|(key, value)| leaves(value, &format!("{at}/{}", escaped(key)), found));
        }
        Value::Array(items) if !items.is_empty() => {
            (0..)
                .zip(items)
                .for_each(|(index, value): (usize, _)| leaves(value, &format!("{at}/{index}"), found));
        }
        _ => found.push(at.to_owned()),
    }
}

/// Places whose change does not make the editor the submitter.
fn not_content(kind: &Kind, object: &Value) -> Vec<String> {
    let mut all = Vec::new();
    leaves(object, "", &mut all);
    all.retain(|at| {
        let mut changed = object.clone();
        *changed.pointer_mut(at).unwrap() = json!("changed");
        kind.same_content(object, &changed)
    });
    all
}

fn snapshot(kind: &Kind, object: &Value) -> String {
    let mut text = "is patched\n".to_owned();
    for operation in stamped(kind, object).into_patch() {
        writeln!(text, "  {}", serde_json::to_string(&operation).unwrap()).unwrap();
    }
    text.push_str("has the same submitter after a change of\n");
    for at in not_content(kind, object) {
        writeln!(text, "  {at}").unwrap();
    }
    text
}

#[test]
fn every_kind_is_patched_as_was_reviewed() {
    let kinds = kinds();
    let mut wrong = Vec::new();
    for Manifest { file, object, expected } in manifests() {
        let now = snapshot(kind_of(&kinds, &object), &object);
        if env::var_os("WRITE_SNAPSHOTS").is_some() {
            fs::write(folder().join(&file).with_extension("txt"), now).unwrap();
        } else if now != expected {
            wrong.push(format!("{file}: reviewed was\n{expected}\nnow is\n{now}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_kind_has_a_manifest_in_which_a_token_is_involved() {
    let kinds = kinds();
    let manifests = manifests();
    let seen: BTreeSet<_> =
        manifests.iter().map(|manifest| kind_of(&kinds, &manifest.object).key()).collect();
    let all: BTreeSet<_> = kinds.iter().map(Kind::key).collect();
    assert_eq!(seen, all);
    for Manifest { file, object, .. } in &manifests {
        assert!(kind_of(&kinds, object).involves_token(object), "{file}");
    }
}

#[test]
fn stamping_is_no_change_of_content_and_nothing_when_done_again() {
    let kinds = kinds();
    for Manifest { file, object, .. } in manifests() {
        let kind = kind_of(&kinds, &object);
        let edit = stamped(kind, &object);
        let after = edit.object().clone();
        let mut patched = object.clone();
        json_patch::patch(&mut patched, &edit.into_patch()).unwrap();
        assert_eq!(patched, after, "{file}");
        assert!(kind.same_content(&object, &patched), "{file}");
        assert_eq!(stamped(kind, &patched).into_patch(), [], "{file}");
    }
}

#[test]
fn taking_the_token_away_or_asking_for_another_account_is_content() {
    let kinds = kinds();
    for Manifest { file, object, .. } in manifests() {
        let kind = kind_of(&kinds, &object);
        for found in kind.carriers(&object) {
            for (at, _) in &found.volumes {
                let mut changed = object.clone();
                *changed.pointer_mut(at.as_str()).unwrap() = json!([]);
                assert!(!kind.same_content(&object, &changed), "{file}: {at}");
            }
            let mut edit = Edit::new(object.clone());
            let asked = BTreeMap::from([(identity::DO_AS_ANNOTATION, "another".to_owned())]);
            edit.annotate(&found.annotations, &asked).unwrap();
            assert!(!kind.same_content(&object, edit.object()), "{file}: {}", found.annotations);
        }
    }
}
