use std::{env, fs, path::Path as File};

use serde_json::{Map, Value, json};

use super::*;
use crate::{
    admission::STAMPS,
    registration::{Address, Common},
};

/// Where the end-to-end tests find what an API server is told, to show on a real one that it does what is meant.
const WRITTEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/conditions/entries.json");

fn rendered(scope: Scope) -> Value {
    let address = Address::Url("https://127.0.0.1:1".to_owned());
    let exempt_namespaces = vec!["kube-system".to_owned()];
    let common = Common { address, exempt_namespaces, timeout_seconds: 5 };
    let of = |webhook| {
        let entries = entries(&Kinds::default(), scope);
        let entries = entries.into_iter().filter(|entry| entry.webhook == webhook);
        entries.map(|entry| entry.rendered(&common, None, &BTreeSet::new())).collect::<Vec<_>>()
    };
    json!({"mutating": of(Webhook::Mutate), "validating": of(Webhook::Validate)})
}

#[test]
fn the_api_server_is_told_what_was_reviewed() {
    let now = format!("{:#}\n", rendered(Scope::Tokens));
    if env::var_os("WRITE_SNAPSHOTS").is_some() {
        fs::write(File::new(WRITTEN), now).unwrap();
    } else {
        assert!(now == fs::read_to_string(WRITTEN).unwrap(), "WRITE_SNAPSHOTS=1 writes what is now:\n{now}");
    }
}

#[test]
fn entries_have_names_of_their_own_within_the_api_servers_limits() {
    for webhook in [Webhook::Mutate, Webhook::Validate] {
        let entries = entries(&Kinds::default(), Scope::All);
        let names: Vec<_> =
            entries.iter().filter(|entry| entry.webhook == webhook).map(|e| &e.name).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
        assert!(names.iter().all(|name| name.split('.').count() >= 3), "{names:?}");
    }
    let conditions =
        entries(&Kinds::default(), Scope::All).into_iter().flat_map(|entry| entry.match_conditions);
    for (_, expression) in conditions {
        assert!(expression.len() < 12_000, "{} bytes: {expression}", expression.len());
    }
}

#[test]
fn every_kind_is_asked_for_by_both_and_what_is_not_sealed_never_by_a_policy_that_fails() {
    let entries = entries(&Kinds::default(), Scope::All);
    for kind in Kinds::default().iter() {
        for webhook in [Webhook::Mutate, Webhook::Validate] {
            let asks = |entry: &&Entry| {
                entry.webhook == webhook
                    && entry.rules.iter().any(|rule| {
                        rule.groups == [kind.group.clone()] && rule.resources.contains(&kind.resource)
                    })
            };
            let asked: Vec<_> = entries.iter().filter(asks).collect();
            assert!(!asked.is_empty(), "{}", kind.kind);
            for entry in asked {
                let token = entry.match_conditions.iter().find(|(name, _)| name == "token");
                let by_token = token.is_some_and(|(_, expression)| !expression.starts_with('!'));
                let by_namespace = entry.namespaces.iter().any(|label| label.operator == "In");
                let fails = entry.failure_policy == FailurePolicy::Fail;
                assert_eq!(fails, by_token || by_namespace, "{}", entry.name);
            }
        }
    }
}

#[test]
fn only_pods_with_tokens_are_asked_for_unless_all_are_stamped() {
    let of = |scope| entries(&Kinds::default(), scope).len();
    // And of pods, what they say then is kept.
    assert_eq!(of(Scope::All) - of(Scope::Tokens), groups(&Kinds::default()).len() + 1);
}

#[test]
fn nothing_that_carries_stamps_alone_waits_where_all_is_stamped() {
    let kinds = Kinds::default();
    let [alone, with_tokens] = [Scope::All, Scope::Tokens].map(|scope| entries(&kinds, scope));
    let except = format!(" && !(k in ['{}'])", STAMPS.join("', '"));
    let is_other = |entry: &&Entry| entry.name.contains(".others.");
    let plainly = |entry: &Entry| {
        let conditions =
            entry.match_conditions.iter().map(|(name, said)| (name.clone(), said.replace(&except, "")));
        Entry { match_conditions: conditions.collect(), ..entry.clone() }
    };
    // But for the stamps it is all the same, and each map of annotations is looked at without them.
    assert_eq!(alone.iter().filter(|entry| !is_other(entry)).map(plainly).collect::<Vec<_>>(), with_tokens);
    for (_, said) in
        alone.iter().flat_map(|entry| &entry.match_conditions).filter(|(name, _)| name == "token")
    {
        let bindings = said == &binding_is_annotated();
        assert_eq!(
            said.matches(".exists(k, ").count(),
            said.matches(&except).count() + usize::from(bindings),
            "{said}"
        );
    }
    // What they say is kept while somebody answers, and nothing is refused for it when nobody does.
    let others: Vec<_> = alone.iter().filter(is_other).collect();
    assert!(others.iter().all(|entry| entry.failure_policy == FailurePolicy::Ignore));
    let [pods] = others.iter().filter(|entry| entry.webhook == Webhook::Validate).collect::<Vec<_>>()[..]
    else {
        panic!("{others:?}")
    };
    let [of_tokens] = with_tokens
        .iter()
        .filter(|entry| (entry.webhook, &*entry.name) == (pods.webhook, "pods.hadoop-token.csi"))
        .collect::<Vec<_>>()[..]
    else {
        panic!("{with_tokens:?}")
    };
    assert_eq!((&*pods.name, &pods.rules), ("pods.others.hadoop-token.csi", &of_tokens.rules));
    let [token, change] = of_tokens.match_conditions.as_slice() else { panic!("{of_tokens:?}") };
    let stamped = ("stamps".to_owned(), token.1.clone());
    assert!(matches!(pods.match_conditions.as_slice(), [(_, not), stamps, changed]
        if not.starts_with("!(") && *stamps == stamped && changed == change));
}

/// What the end-to-end tests ask an API server about, in CEL.
#[path = "../../../tests/e2e/conditions/manifests.rs"]
#[expect(dead_code, reason = "here nothing is sent anywhere")]
mod manifests;

#[test]
fn the_program_says_of_the_same_objects_what_its_expressions_say_of_them() {
    let kinds = Kinds::default();
    let odd = [Value::Null, json!("odd"), json!(7), json!([7, null, "odd"]), json!({"odd": 7})];
    for manifest in manifests::manifests().unwrap() {
        let group = manifest.api_version().split_once('/').map_or("", |(group, _)| group);
        let kind = kinds.of_kind(group, manifest.kind()).unwrap();
        let one = manifest.with_one_place();
        assert!(!one.is_empty());
        for object in one {
            assert!(kind.involves_token(&object), "{object}");
            let carriers = kind.carriers(&object);
            let keys = carriers.iter().filter_map(|found| found.current).flat_map(Map::keys);
            let stamped = keys.filter(|key| STAMPS.contains(&key.as_str())).count();
            assert_eq!(kind.involves_more_than_stamps(&object), stamped == 0, "{object}");
        }
        assert!(!kind.involves_token(&manifest.without_token()));
        for object in odd.iter().flat_map(|odd| manifest.with_odd(odd)) {
            assert!(!kind.involves_token(&object), "{object}");
            assert!(kind.same_content(&object, &object));
        }
    }
}
