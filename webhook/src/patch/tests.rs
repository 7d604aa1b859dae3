use proptest::prelude::*;
use serde_json::json;

use super::*;

fn pointer(text: &str) -> PointerBuf {
    PointerBuf::parse(text).expect("is a pointer")
}

fn annotated(mut object: Value, at: &str) -> Result<(Value, usize), NotAMap> {
    let mut edit = Edit::new(object.clone());
    edit.annotate(&pointer(at), &BTreeMap::from([("a/b~c", "new".to_owned())]))?;
    let patch = edit.into_patch();
    json_patch::patch(&mut object, &patch).expect("the patch fits");
    Ok((object, patch.len()))
}

#[test]
fn missing_and_null_maps_are_made_and_others_kept() {
    let expected = json!({"metadata": {"annotations": {"a/b~c": "new"}}});
    for (object, operations) in [
        (json!({}), 3),
        (json!({"metadata": null}), 3),
        (json!({"metadata": {}}), 2),
        (json!({"metadata": {"annotations": null}}), 2),
        (json!({"metadata": {"annotations": {}}}), 1),
        (json!({"metadata": {"annotations": {"a/b~c": "old"}}}), 1),
        (json!({"metadata": {"annotations": {"a/b~c": 5}}}), 1),
        (json!({"metadata": {"annotations": {"a/b~c": "new"}}}), 0),
    ] {
        assert_eq!(annotated(object, "/metadata/annotations"), Ok((expected.clone(), operations)));
    }
}

#[test]
fn what_is_no_map_is_left_as_it_is() {
    for (object, at, culprit) in [
        (json!({"metadata": "text"}), "/metadata/annotations", "/metadata"),
        (json!({"metadata": {"annotations": ["a"]}}), "/metadata/annotations", "/metadata/annotations"),
        (json!({"tasks": []}), "/tasks/0/annotations", "/tasks"),
        (json!(5), "/metadata", ""),
    ] {
        assert_eq!(annotated(object.clone(), at), Err(NotAMap(pointer(culprit))));
    }
    let mut edit = Edit::new(json!({"metadata": {"annotations": 7}}));
    let at = pointer("/metadata/annotations");
    assert_eq!(edit.remove(&at, |_| true), Err(NotAMap(at)));
    assert_eq!(edit.into_patch(), []);
}

#[test]
fn places_that_share_a_missing_parent_make_one_patch() {
    let mut object = json!({"spec": {"tasks": [{}, {"metadata": null}]}});
    let mut edit = Edit::new(object.clone());
    let ours = BTreeMap::from([("a", "1".to_owned())]);
    for at in
        ["/spec/podMetadata/annotations", "/spec/podMetadata/labels", "/spec/tasks/1/metadata/annotations"]
    {
        edit.annotate(&pointer(at), &ours).expect("can be made");
    }
    edit.remove(&pointer("/spec/podMetadata/labels"), |key| key == "a").expect("can be removed");
    edit.remove(&pointer("/spec/nowhere"), |_| true).expect("nothing is there");
    let after = edit.object().clone();
    json_patch::patch(&mut object, &edit.into_patch()).expect("the patch fits");
    assert_eq!(object, after);
    assert_eq!(
        object,
        json!({"spec": {
            "podMetadata": {"annotations": {"a": "1"}, "labels": {}},
            "tasks": [{}, {"metadata": {"annotations": {"a": "1"}}}],
        }})
    );
}

#[test]
fn nothing_to_set_makes_no_map() {
    let mut edit = Edit::new(json!({}));
    edit.annotate(&pointer("/metadata"), &BTreeMap::new()).expect("nothing is in the way");
    assert_eq!(edit.into_patch(), []);
}

/// Any JSON, with keys that need escaping and that look like ours.
fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(|number| json!(number)),
        "[a-z~/]{0,6}".prop_map(Value::String),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            proptest::collection::btree_map(key(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof!["[ab~/.0]{0,3}", Just("metadata".to_owned()), Just("annotations".to_owned())]
}

proptest! {
    #[test]
    fn a_patch_changes_exactly_those_annotations(
        object in json(),
        at in proptest::collection::vec(key(), 0..4),
        wanted in proptest::collection::btree_map(key(), "[a-z]{0,3}", 0..4),
        unwanted in proptest::collection::btree_set(key(), 0..4),
    ) {
        let at = PointerBuf::from_tokens(&at);
        let annotations = wanted.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
        let mut edit = Edit::new(object.clone());
        let done = edit.annotate(&at, &annotations).and_then(|()| edit.remove(&at, |key| unwanted.contains(key)));
        // What is no map is the business of another test.
        prop_assume!(done.is_ok());
        let mut patched = object.clone();
        json_patch::patch(&mut patched, &edit.clone().into_patch()).expect("the patch fits");
        prop_assert_eq!(&patched, edit.object());

        let annotations = |object: &Value| at.resolve(object).ok().and_then(Value::as_object).cloned();
        let mut expected = annotations(&object).unwrap_or_default();
        expected.extend(wanted.into_iter().map(|(key, value)| (key, Value::String(value))));
        expected.retain(|key, _| !unwanted.contains(key));
        prop_assert_eq!(annotations(&patched).unwrap_or_default(), expected);
        // With that map taken out of both, and empty maps on the way to it, nothing differs.
        prop_assert_eq!(without(patched, &at), without(object, &at));
    }
}

/// `object` without the value at `at`, and without the maps above it that are empty then.
fn without(mut object: Value, at: &Pointer) -> Value {
    let _ = at.delete(&mut object);
    let mut at = at.to_buf();
    while at.pop_back().is_some() && !at.is_root() {
        let is_empty = |value: &Value| value.is_null() || value.as_object().is_some_and(Map::is_empty);
        if at.resolve(&object).is_ok_and(is_empty) {
            let _ = at.delete(&mut object);
        }
    }
    object
}
