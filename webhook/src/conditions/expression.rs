//! Expressions in CEL about objects. An expression that fails refuses the request, or lets it pass unseen, depending on
//! the other conditions: so none assumes that anything is there, or is what it should be. A custom resource may have any
//! form that its definition admits, and the object that does not exist is null.

use std::collections::{BTreeMap, BTreeSet};

use identity::{ANNOTATION_PREFIX, DRIVER_NAME, INJECT_ANNOTATION};

use crate::{
    admission::STAMPS,
    kinds::Kind,
    path::{Path, Step},
};

/// Whether a token is involved in `object`; in Rust it is `Found::involves_token`.
pub(super) fn involves_token(kind: &Kind, object: &str) -> String {
    involves(kind, object, Holds::KeyOfOurs)
}

/// The same without stamps; in Rust it is `Found::involves_more_than_stamps`.
pub(super) fn involves_more_than_stamps(kind: &Kind, object: &str) -> String {
    involves(kind, object, Holds::KeyButStamps)
}

/// Whether a token is involved in `object`: by annotations of which `annotated` holds, label or volume.
fn involves(kind: &Kind, object: &str, annotated: Holds) -> String {
    let mut places = Places::default();
    for carrier in &kind.carriers {
        places.add(&carrier.at.join(&carrier.annotations), &[], annotated);
        if let Some(labels) = &carrier.labels {
            places.add(&carrier.at.join(labels), &[key(INJECT_ANNOTATION)], Holds::Text("true"));
        }
        let driver = [Step::EachItem, key("csi"), key("driver")];
        if let Some(pod) = &carrier.pod {
            places.add(
                &carrier.at.join(pod).join(&["volumes"].into_iter().collect()),
                &driver,
                Holds::Text(DRIVER_NAME),
            );
        }
        for volumes in &carrier.volumes {
            places.add(volumes, &driver, Holds::Text(DRIVER_NAME));
        }
    }
    places.hold(object, 0)
}

/// Whether an update changes anything that we look at: a part of the object that has carriers or content, as far as it
/// can be found by keys alone; of metadata that are no content, only what is ours.
pub(super) fn has_changed(kind: &Kind) -> String {
    let carriers = kind.carriers.iter().flat_map(|carrier| {
        let places = [Some(&carrier.annotations), carrier.labels.as_ref(), carrier.pod.as_ref()];
        let places = places.into_iter().flatten().map(|path| carrier.at.join(path));
        places.chain(carrier.volumes.iter().cloned()).collect::<Vec<_>>()
    });
    let paths: BTreeSet<Vec<String>> = carriers.chain(kind.content.iter().cloned()).map(keys).collect();
    let is_below = |path: &[String]| paths.iter().any(|top| top.len() < path.len() && path.starts_with(top));
    let tops = paths.iter().filter(|path| !is_below(path));
    let content: BTreeSet<Vec<String>> = kind.content.iter().cloned().map(keys).collect();
    let (ours, others): (Vec<_>, Vec<_>) = tops.partition(|path| {
        let in_metadata = path.first().is_some_and(|key| key == "metadata");
        in_metadata && !content.iter().any(|content| content.starts_with(path))
    });
    let ours = (!ours.is_empty()).then(ours_differ);
    any_of(others.into_iter().map(|path| differs(path, "object", "oldObject")).chain(ours))
}

/// The keys with which a path begins.
fn keys(path: Path) -> Vec<String> {
    let keys = path.steps().iter().map_while(|step| match step {
        Step::Key(key) => Some(key.clone()),
        Step::EachValue | Step::EachItem => None,
    });
    keys.collect()
}

/// Whether what binds a pod brings annotations of ours.
pub(super) fn binding_is_annotated() -> String {
    let mut places = Places::default();
    places.add(&["metadata", "annotations"].into_iter().collect(), &[], Holds::KeyOfOurs);
    places.hold("object", 0)
}

/// Whether somebody else than a node has a service account's token made that is bound to a pod.
pub(super) fn account_token_speaks_for_pod() -> String {
    "has(object.spec.boundObjectRef) && has(object.spec.boundObjectRef.kind) && object.spec.boundObjectRef.kind == 'Pod' \
     && !(has(request.userInfo.groups) && 'system:nodes' in request.userInfo.groups)"
        .to_owned()
}

/// True when one of `expressions` is; each must bind at least as strongly as `&&`.
pub(super) fn any_of(expressions: impl IntoIterator<Item = String>) -> String {
    let mut expressions: Vec<_> = expressions.into_iter().collect();
    match (expressions.pop(), expressions.is_empty()) {
        (None, _) => "false".to_owned(),
        (Some(only), true) => only,
        (Some(last), false) => format!("({} || {last})", expressions.join(" || ")),
    }
}

pub(super) fn not(expression: &str) -> String {
    format!("!({expression})")
}

/// Paths with what is to hold at one of their places, as a tree: so that what many begin with is said once.
#[derive(Default)]
struct Places {
    holds: BTreeSet<Holds>,
    below: BTreeMap<Step, Places>,
}

/// What is to hold of a value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Holds {
    /// It is this text.
    Text(&'static str),
    /// It is a map with an annotation of ours.
    KeyOfOurs,
    /// It is a map with an annotation of ours that is no stamp.
    KeyButStamps,
}

impl Places {
    fn add(&mut self, path: &Path, further: &[Step], holds: Holds) {
        let mut place = self;
        for step in path.steps().iter().chain(further) {
            place = place.below.entry(step.clone()).or_default();
        }
        place.holds.insert(holds);
    }

    /// Whether something holds in `value`.
    fn hold(&self, value: &str, depth: usize) -> String {
        let here = self.holds.iter().map(|holds| holds.of(value));
        let keys = self.below.iter().filter_map(|(step, places)| match step {
            Step::Key(key) => Some(places.hold_at(key, value, depth)),
            Step::EachValue | Step::EachItem => None,
        });
        let keys: Vec<_> = keys.collect();
        let keys = (!keys.is_empty()).then(|| format!("type({value}) == map && {}", any_of(keys)));
        let each = self.below.iter().filter_map(|(step, places)| {
            let name = format!("v{depth}");
            let (kind, inside) = match step {
                Step::Key(_) => return None,
                Step::EachValue => ("map", format!("{value}[{name}]")),
                Step::EachItem => ("list", name.clone()),
            };
            let holds = places.hold(&inside, depth + 1);
            Some(format!("type({value}) == {kind} && {value}.exists({name}, {holds})"))
        });
        any_of(here.chain(keys).chain(each))
    }

    /// Whether something holds at `key` of the map `value`.
    fn hold_at(&self, key: &str, value: &str, depth: usize) -> String {
        let key = quoted(key);
        let inside = format!("{value}[{key}]");
        format!("{key} in {value} && {}", self.hold(&inside, depth))
    }
}

impl Holds {
    fn of(self, value: &str) -> String {
        let prefix = quoted(ANNOTATION_PREFIX);
        match self {
            Self::Text(text) => format!("{value} == {}", quoted(text)),
            Self::KeyOfOurs => {
                format!("type({value}) == map && {value}.exists(k, k.startsWith({prefix}))")
            }
            Self::KeyButStamps => {
                let stamps = STAMPS.map(quoted).join(", ");
                format!(
                    "type({value}) == map && {value}.exists(k, k.startsWith({prefix}) && !(k in [{stamps}]))"
                )
            }
        }
    }
}

fn key(key: &str) -> Step {
    Step::Key(key.to_owned())
}

/// Whether at these keys, one below the other, there is something else in `one` than in `other`, or in one of them nothing.
fn differs(keys: &[String], one: &str, other: &str) -> String {
    let Some((key, below)) = keys.split_first() else { return format!("{one} != {other}") };
    let key = quoted(key);
    let (one_has, other_has) = (format!("{one}[{key}]"), format!("{other}[{key}]"));
    let deeper = differs(below, &one_has, &other_has);
    let deeper = if below.is_empty() {
        deeper
    } else {
        let maps = format!("type({one_has}) == map && type({other_has}) == map");
        format!("({maps} ? {deeper} : {one_has} != {other_has})")
    };
    format!("(({key} in {one}) != ({key} in {other}) || {key} in {one} && {deeper})")
}

/// Whether an annotation or label of ours is in one of the objects and not the same in the other.
fn ours_differ() -> String {
    let differ = |one: &str, other: &str| {
        let map = |object: &str| format!("{object}['metadata'][m]");
        let is_map = |object: &str| {
            format!(
                "type({object}['metadata']) == map && m in {object}['metadata'] && type({}) == map",
                map(object)
            )
        };
        let (ours, theirs) = (map(one), map(other));
        format!(
            "{} && {ours}.exists(k, k.startsWith({}) && !({} && k in {theirs} && {theirs}[k] == {ours}[k]))",
            is_map(one),
            quoted(ANNOTATION_PREFIX),
            is_map(other),
        )
    };
    format!(
        "['annotations', 'labels'].exists(m, {} || {})",
        differ("object", "oldObject"),
        differ("oldObject", "object")
    )
}

/// A string in CEL. What it may not have unescaped is escaped by its code.
fn quoted(text: &str) -> String {
    let letter = |letter: char| match letter {
        '\'' | '\\' => format!("\\{letter}"),
        letter if letter.is_control() => format!("\\U{:08x}", u32::from(letter)),
        letter => letter.to_string(),
    };
    format!("'{}'", text.chars().map(letter).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::Kinds;

    fn said(paths: &[&str]) -> String {
        let mut places = Places::default();
        for path in paths {
            places.add(&path.parse().unwrap(), &[], Holds::Text("x"));
        }
        places.hold("o", 0)
    }

    #[test]
    fn every_step_is_taken_only_where_it_can_be() {
        assert_eq!(said(&["a"]), "type(o) == map && 'a' in o && o['a'] == 'x'");
        assert_eq!(
            said(&["*[*]"]),
            "type(o) == map && o.exists(v0, type(o[v0]) == list && o[v0].exists(v1, v1 == 'x'))"
        );
        assert_eq!(said(&[""]), "o == 'x'");
    }

    #[test]
    fn what_paths_have_in_common_is_said_once() {
        assert_eq!(
            said(&["a.b", "a.*"]),
            "type(o) == map && 'a' in o && (type(o['a']) == map && 'b' in o['a'] && o['a']['b'] == 'x' \
             || type(o['a']) == map && o['a'].exists(v0, o['a'][v0] == 'x'))"
        );
        assert_eq!(
            said(&["a", "b"]),
            "type(o) == map && ('a' in o && o['a'] == 'x' || 'b' in o && o['b'] == 'x')"
        );
    }

    #[test]
    fn an_update_is_compared_where_keys_alone_lead_and_there_once() {
        let kinds = Kinds::default();
        let of = |group, kind| has_changed(kinds.of_kind(group, kind).unwrap());
        // How many there are to be is not asked about.
        assert_eq!(
            of("apps", "ReplicaSet"),
            "(('spec' in object) != ('spec' in oldObject) || 'spec' in object && (type(object['spec']) == map && \
             type(oldObject['spec']) == map ? (('template' in object['spec']) != ('template' in oldObject['spec']) || \
             'template' in object['spec'] && object['spec']['template'] != oldObject['spec']['template']) : \
             object['spec'] != oldObject['spec']))"
        );
        assert_eq!(
            of("kubeflow.org", "TFJob"),
            "(('spec' in object) != ('spec' in oldObject) || 'spec' in object && object['spec'] != oldObject['spec'])"
        );
        assert!(of("", "Pod").contains("object['spec'] != oldObject['spec']"));
        assert!(of("", "Pod").contains("'annotations', 'labels'"));
        // What pods get of it is compared whole.
        let notebook = of("kubeflow.org", "Notebook");
        assert!(
            notebook.contains("object['metadata']['annotations'] != oldObject['metadata']['annotations']")
        );
        assert!(notebook.contains("object['metadata']['labels'] != oldObject['metadata']['labels']"));
        assert!(!notebook.contains("'annotations', 'labels'"));
        assert!(of("trainer.kubeflow.org", "TrainJob").contains("'annotations', 'labels'"));
        let workflow = of("argoproj.io", "Workflow");
        for stored in ["storedWorkflowTemplateSpec", "storedTemplates"] {
            let differs = format!("object['status']['{stored}'] != oldObject['status']['{stored}']");
            assert!(workflow.contains(&differs), "{workflow}");
        }
        assert!(
            !workflow.contains("'nodes'")
                && !workflow.contains("object['status'] != oldObject['status']) ||")
        );
    }

    #[test]
    fn no_key_gets_out_of_its_quotes() {
        assert_eq!(quoted(r"a'b\c"), r"'a\'b\\c'");
        assert_eq!(quoted("a\nb"), r"'a\U0000000ab'");
    }

    #[test]
    fn one_of_none_is_false_and_of_one_itself() {
        let of = |texts: &[&str]| any_of(texts.iter().map(|text| (*text).to_owned()));
        assert_eq!(of(&[]), "false");
        assert_eq!(of(&["a"]), "a");
        assert_eq!(of(&["a", "b && c"]), "(a || b && c)");
    }
}
