use proptest::prelude::*;
use serde_json::json;

use super::*;

fn places(path: &str, object: &Value) -> Vec<String> {
    let path: Path = path.parse().expect(path);
    path.find(object).into_iter().map(|(at, _)| at.to_string()).collect()
}

#[test]
fn finds_every_place_in_maps_and_lists() {
    let object = json!({"spec": {
        "replicas": {"Worker": {"template": 1}, "a/b~c": {"template": 2}, "PS": {}},
        "tasks": [{"template": 1}, {}, {"template": {}}],
    }});
    assert_eq!(
        places("spec.replicas.*.template", &object),
        ["/spec/replicas/Worker/template", "/spec/replicas/a~1b~0c/template"]
    );
    assert_eq!(
        places("spec.tasks[*].template", &object),
        ["/spec/tasks/0/template", "/spec/tasks/2/template"]
    );
    assert_eq!(places(r#"spec.replicas["a/b~c"]"#, &object), ["/spec/replicas/a~1b~0c"]);
    assert_eq!(places("", &object), [""]);
}

#[test]
fn what_is_null_or_of_another_form_is_not_there() {
    let object = json!({"a": null, "b": [null, 1], "c": {"x": null}, "d": "text"});
    for path in ["a", "a.b", "b.*", "c[*]", "c.*", "d.x", "d[*]", "missing", "[*]"] {
        assert_eq!(places(path, &object), [""; 0], "{path}");
    }
    assert_eq!(places("b[*]", &object), ["/b/1"]);
    assert_eq!(places("", &Value::Null), [""; 0]);
}

#[test]
fn a_text_that_is_no_path_is_refused_with_what_is_wrong() {
    for (text, problem) in [
        (".", "a key is missing"),
        ("spec.", "a key is missing"),
        (".spec", "a key is missing"),
        ("spec..template", "a key is missing"),
        ("spec.a/b", "a dot is missing"),
        ("spec.*x", "a dot is missing"),
        ("spec.tasks[0]", "in brackets there is *"),
        ("spec.tasks[*", "in brackets there is *"),
        ("spec[\"a", "a quote is not closed"),
        ("spec[\"a\"", "a bracket is not closed"),
        ("spec[\"a\"]b", "a dot is missing"),
        (&"a.".repeat(40), "it has too many steps"),
    ] {
        let error = text.parse::<Path>().expect_err(text).to_string();
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn a_path_covers_itself_and_what_is_below_it() {
    let path = |text: &str| text.parse::<Path>().expect("is a path");
    assert!(path("spec").covers(&path("spec.template")));
    assert!(path("").covers(&path("spec")));
    assert!(path("spec").covers(&path("spec")));
    assert!(!path("spec.template").covers(&path("spec")));
    assert!(!path("spec.temp").covers(&path("spec.template")));
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => "[a-zA-Z0-9_-]{1,8}".prop_map(Step::Key),
        2 => any::<String>().prop_map(Step::Key),
        1 => Just(Step::EachValue),
        1 => Just(Step::EachItem),
    ]
}

proptest! {
    #[test]
    fn a_path_reads_as_it_is_written(steps in proptest::collection::vec(step(), 0..MAX_STEPS)) {
        let path = Path(steps);
        prop_assert_eq!(path.to_string().parse::<Path>(), Ok(path));
    }

    #[test]
    fn what_is_found_is_where_the_pointer_says(keys in proptest::collection::vec(any::<String>(), 1..5)) {
        let object = keys.iter().rev().fold(json!("deep"), |inner, key| json!({key.clone(): [inner, 1]}));
        let steps = keys.iter().flat_map(|key| [Step::Key(key.clone()), Step::EachItem]).collect();
        let found = Path(steps).find(&object);
        prop_assert!(!found.is_empty());
        for (at, value) in found {
            prop_assert_eq!(object.pointer(at.as_str()), Some(value));
            prop_assert_eq!(at.resolve(&object).expect("is there"), value);
        }
    }
}
