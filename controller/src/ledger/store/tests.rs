//! Entries that come, change and go, in the order of nobody's choice, and who hears of them.

use serde_json::json;

use super::*;
use crate::ledger::entry::Object;

/// The entry `uid` at resource version `version`.
fn entry(uid: &str, version: u64, token: Option<&str>) -> Arc<Entry> {
    let token = token.map(|identifier| json!({"identifier": identifier}));
    let object = json!({
        "metadata": {"namespace": "jobs", "name": uid, "uid": uid, "resourceVersion": version.to_string()},
        "spec": {"podUid": format!("pod-of-{uid}"), "node": "n-1", "token": token},
    });
    serde_json::from_value::<Object>(object).unwrap().entry
}

fn list(store: &mut Store, entries: &[Arc<Entry>]) {
    store.begin_list();
    entries.iter().for_each(|entry| store.list(entry.clone()));
    store.end_list();
}

#[test]
fn an_entry_is_found_by_pod_node_and_token() {
    let mut store = Store::default();
    let (one, other) = (entry("a", 1, Some("AAAA")), entry("b", 2, Some("BBBB")));
    list(&mut store, &[one.clone(), other.clone()]);
    assert_eq!(store.of_pod("pod-of-a"), std::slice::from_ref(&one));
    assert_eq!(store.of_node("n-1"), [one.clone(), other]);
    assert_eq!(store.by_identifier(one.identifier().unwrap()), [one]);
    assert_eq!(store.of_node("n-2"), []);
    assert_eq!(store.by_identifier(b"another"), []);
}

#[test]
fn a_token_that_is_shared_has_all_its_entries() {
    let mut store = Store::default();
    list(&mut store, &[entry("a", 1, Some("AAAA")), entry("b", 2, Some("AAAA"))]);
    let identifier = entry("a", 1, Some("AAAA")).identifier().unwrap().to_vec();
    assert_eq!(store.by_identifier(&identifier).len(), 2);
    store.remove("a");
    assert_eq!(store.by_identifier(&identifier), [entry("b", 2, Some("AAAA"))]);
}

#[test]
fn what_comes_late_does_not_undo_what_was_written_since() {
    let mut store = Store::default();
    store.apply(entry("a", 7, Some("AAAA")));
    store.apply(entry("a", 5, None));
    assert_eq!(store.of_pod("pod-of-a"), [entry("a", 7, Some("AAAA"))]);
}

#[test]
fn a_list_is_the_truth_even_after_a_backup_was_restored() {
    let mut store = Store::default();
    list(&mut store, &[entry("a", 700, Some("AAAA")), entry("b", 800, None)]);
    list(&mut store, &[entry("a", 5, None)]);
    assert_eq!(store.all(), [entry("a", 5, None)]);
    assert_eq!(store.by_identifier(entry("a", 700, Some("AAAA")).identifier().unwrap()), []);
}

#[test]
fn what_was_written_while_a_list_was_under_way_stays() {
    let mut store = Store::default();
    store.begin_list();
    store.apply(entry("a", 7, None));
    store.end_list();
    assert_eq!(store.all(), [entry("a", 7, None)]);
}

#[test]
fn the_late_answer_to_a_change_brings_nothing_back() {
    let mut store = Store::default();
    store.apply(entry("a", 1, None));
    store.update(entry("a", 2, Some("AAAA")));
    assert_eq!(store.all(), [entry("a", 2, Some("AAAA"))]);
    store.remove("a");
    store.update(entry("a", 3, Some("AAAA")));
    assert_eq!(store.all(), []);
}

#[test]
fn every_change_is_told_once_to_all_and_to_those_of_its_node() {
    let mut store = Store::default();
    let (mut all, mut here) = (store.subscribe(), store.subscribe_to("n-1").unwrap());
    let mut elsewhere = store.subscribe_to("n-2").unwrap();
    store.apply(entry("a", 1, None));
    store.apply(entry("a", 1, None));
    store.apply(entry("a", 2, Some("AAAA")));
    store.remove("a");
    store.remove("a");
    let expected = [
        Change::Written(entry("a", 1, None)),
        Change::Written(entry("a", 2, Some("AAAA"))),
        Change::Gone(entry("a", 2, Some("AAAA"))),
    ];
    for change in expected {
        assert_eq!(all.try_recv().as_ref(), Ok(&change));
        assert_eq!(here.try_recv(), Ok(change));
    }
    assert!(all.try_recv().is_err() && here.try_recv().is_err() && elsewhere.try_recv().is_err());
}

#[test]
fn a_new_list_tells_what_went_unseen() {
    let mut store = Store::default();
    list(&mut store, &[entry("a", 1, None), entry("b", 2, None)]);
    let mut here = store.subscribe_to("n-1").unwrap();
    list(&mut store, &[entry("b", 2, None)]);
    assert_eq!(here.try_recv(), Ok(Change::Gone(entry("a", 1, None))));
    assert!(here.try_recv().is_err());
}

#[test]
fn a_node_that_does_not_keep_up_is_cut_off_and_holds_up_nobody() {
    let mut store = Store::default();
    let mut here = store.subscribe_to("n-1").unwrap();
    for version in 0..=NODE_BUFFER as u64 {
        store.apply(entry("a", version, None));
    }
    let mut heard = 0;
    while here.try_recv().is_ok() {
        heard += 1;
    }
    assert_eq!(heard, NODE_BUFFER);
    assert!(here.is_closed(), "goes on with a gap");
    assert!(store.subscribe_to("n-1").is_some());
}

#[test]
fn there_is_one_subscription_for_each_node_and_none_after_the_end() {
    let mut store = Store::default();
    let mut first = store.subscribe_to("n-1").unwrap();
    let second = store.subscribe_to("n-1").unwrap();
    assert!(first.try_recv().is_err() && first.is_closed());
    assert!(!second.is_closed());
    store.close();
    assert!(second.is_closed());
    assert!(store.subscribe_to("n-1").is_none());
}
