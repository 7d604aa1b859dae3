//! Entries in every condition: what lives is left alone, what ends is ended once nothing speaks against it.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const ISSUED: u64 = 1_800_000_000_000;
const DAY: u64 = 86_400_000;

fn entry(deleting: bool, let_go: bool, scope: &str, token: bool) -> Arc<Entry> {
    let mut object = json!({
        "metadata": {"namespace": "jobs", "name": "a", "uid": "u-1", "annotations": {}},
        "spec": {"pod": "a", "podUid": "p-1", "volume": "token", "cluster": "main", "scope": scope, "requestedAt": ISSUED},
        "status": {"phase": "Active", "renewDate": ISSUED + DAY},
    });
    if deleting {
        object["metadata"]["deletionTimestamp"] = json!("2027-01-15T08:00:00Z");
    }
    if let_go {
        object["metadata"]["annotations"]["hadoop-token.csi/release"] = json!("true");
    }
    if token {
        object["spec"]["token"] = json!({"identifier": "AAAA", "maxDate": ISSUED + 7 * DAY});
    }
    Entry::of(object)
}

/// Of a pod that has ended, all else as it is on most days.
fn ended() -> Facts {
    Facts {
        pod: Pod::Ended,
        known_for: Duration::ZERO,
        dying_for: Duration::ZERO,
        shared: false,
        failed: false,
        cancelled: false,
        configured: true,
        date: ISSUED + DAY / 2,
        grace: Duration::from_mins(1),
    }
}

fn alive() -> Facts {
    Facts { pod: Pod::Alive, ..ended() }
}

#[test]
fn a_token_ends_with_its_pod_or_when_its_object_is_deleted() {
    for scope in ["pod", "job"] {
        let facts = Facts { dying_for: Duration::from_mins(1), ..ended() };
        assert_eq!(fate(&entry(false, false, scope, true), facts), Fate::Cancel(Cancelled::Ended));
        assert_eq!(fate(&entry(true, false, scope, true), facts), Fate::Cancel(Cancelled::Ended));
        // Somebody wants it gone now: a shared one too.
        assert_eq!(fate(&entry(true, false, scope, true), alive()), Fate::Cancel(Cancelled::Deleted));
        assert_eq!(fate(&entry(false, false, scope, true), alive()), Fate::Keep);
    }
}

#[test]
fn a_shared_token_outlives_the_last_pod_by_its_grace_and_each_other_by_nothing() {
    let entry = entry(false, false, "job", true);
    let others = Facts { shared: true, ..ended() };
    assert_eq!(fate(&entry, others), Fate::Remove(Some(LetGo::Shared)));
    assert_eq!(fate(&entry, ended()), Fate::Wait(Duration::from_mins(1)));
    let late = Facts { dying_for: Duration::from_secs(50), ..ended() };
    assert_eq!(fate(&entry, late), Fate::Wait(Duration::from_secs(10)));
    // Another pod came meanwhile.
    let revived = Facts { shared: true, ..late };
    assert_eq!(fate(&entry, revived), Fate::Remove(Some(LetGo::Shared)));
    let no_grace = Facts { grace: Duration::ZERO, ..ended() };
    assert_eq!(fate(&entry, no_grace), Fate::Cancel(Cancelled::Ended));
}

#[test]
fn an_object_deleted_by_hand_takes_no_shared_token_from_the_other_pods() {
    let shared = Facts { shared: true, ..alive() };
    assert_eq!(fate(&entry(true, false, "job", true), shared), Fate::Remove(Some(LetGo::Shared)));
}

#[test]
fn what_should_have_ended_by_itself_is_forgotten_when_nobody_can_be_asked() {
    let after = |date: u64| Facts { date, failed: true, ..ended() };
    let entry = entry(false, false, "pod", true);
    assert_eq!(fate(&entry, after(ISSUED + DAY + MARGIN)), Fate::Cancel(Cancelled::Ended));
    assert_eq!(fate(&entry, after(ISSUED + DAY + MARGIN + 1)), Fate::Remove(Some(LetGo::Expired)));
    // A renewal may not be written down, and our clock be wrong.
    let untried = Facts { failed: false, ..after(u64::MAX) };
    assert_eq!(fate(&entry, untried), Fate::Cancel(Cancelled::Ended));
    // Its cluster may be gone from the configuration.
    let unknown = Facts { configured: false, failed: false, ..after(ISSUED + DAY + MARGIN + 1) };
    assert_eq!(fate(&entry, unknown), Fate::Remove(Some(LetGo::Expired)));
    // Nobody renewed it, but its pod lives.
    assert_eq!(fate(&entry, Facts { date: u64::MAX, ..alive() }), Fate::Keep);
}

#[test]
fn a_request_that_may_still_succeed_is_left_alone_and_traced_after_that() {
    let young = ISSUE_TIME - Duration::from_secs(1);
    for (deleting, facts) in [(false, alive()), (false, ended()), (true, alive()), (true, ended())] {
        let intent = entry(deleting, false, "pod", false);
        let waits = Facts { known_for: young, ..facts };
        assert_eq!(fate(&intent, waits), Fate::Wait(Duration::from_secs(1)));
        let facts = Facts { known_for: ISSUE_TIME, ..facts };
        assert_eq!(fate(&intent, facts), Fate::Trace);
        assert_eq!(fate(&intent, Facts { configured: false, ..facts }), Fate::Strand);
    }
}

#[test]
fn an_operator_lets_go_of_what_cannot_be_cancelled_and_of_nothing_that_lives() {
    let unknown = Facts { configured: false, ..ended() };
    assert_eq!(fate(&entry(false, false, "pod", true), unknown), Fate::Strand);
    assert_eq!(fate(&entry(false, true, "pod", true), unknown), Fate::Remove(Some(LetGo::Released)));
    assert_eq!(fate(&entry(false, true, "pod", false), ended()), Fate::Remove(Some(LetGo::Released)));
    // One that can be cancelled is.
    assert_eq!(fate(&entry(false, true, "pod", true), ended()), Fate::Cancel(Cancelled::Ended));
    assert_eq!(fate(&entry(false, true, "pod", true), Facts { configured: false, ..alive() }), Fate::Keep);
}

fn facts() -> impl Strategy<Value = Facts> {
    let pod = prop_oneof![Just(Pod::Alive), Just(Pod::Ended)];
    let numbers = (0_u64..200, 0_u64..200, 0_u64..100, ISSUED..ISSUED + 9 * DAY);
    (pod, any::<[bool; 4]>(), numbers).prop_map(|(pod, [shared, failed, cancelled, configured], numbers)| {
        let (known_for, dying_for, grace, date) = numbers;
        let [known_for, dying_for, grace] = [known_for, dying_for, grace].map(Duration::from_secs);
        Facts { pod, known_for, dying_for, shared, failed, cancelled, configured, date, grace }
    })
}

proptest! {
    #[test]
    fn nothing_is_taken_from_a_living_pod_unless_its_object_is_deleted(
        facts in facts(),
        [let_go, job] in any::<[bool; 2]>(),
    ) {
        let scope = if job { "job" } else { "pod" };
        let facts = Facts { pod: Pod::Alive, cancelled: false, ..facts };
        prop_assert_eq!(fate(&entry(false, let_go, scope, true), facts), Fate::Keep);
    }

    #[test]
    fn whatever_has_to_end_ends_and_no_entry_is_removed_while_its_token_may_be_good(
        facts in facts(),
        [deleting, let_go, job, token] in any::<[bool; 4]>(),
    ) {
        let dying = deleting || facts.pod == Pod::Ended;
        let scope = if job { "job" } else { "pod" };
        match fate(&entry(deleting, let_go, scope, token), facts) {
            Fate::Keep => prop_assert!(!dying && token),
            Fate::Wait(wait) => {
                prop_assert!(!wait.is_zero() && wait <= ISSUE_TIME.max(facts.grace), "{:?}", wait);
            }
            Fate::Trace => prop_assert!(!token && facts.configured),
            Fate::Cancel(_) => prop_assert!(dying && token && facts.configured && !(job && facts.shared)),
            Fate::Strand => prop_assert!(!(facts.configured || dying && let_go)),
            Fate::Remove(None) => prop_assert!(facts.cancelled),
            Fate::Remove(Some(LetGo::Expired)) => prop_assert!(dying && facts.date > ISSUED + DAY),
            Fate::Remove(Some(LetGo::Shared)) => prop_assert!(dying && job && facts.shared),
            Fate::Remove(Some(LetGo::Released)) => prop_assert!(dying && let_go),
            // Only who looked for it can tell.
            Fate::Remove(Some(LetGo::NeverIssued)) => prop_assert!(false),
        }
    }
}

#[test]
fn a_null_token_is_none() {
    let mut object = json!({"metadata": {"namespace": "jobs", "name": "a", "uid": "u"}, "spec": {}});
    object["spec"]["token"] = Value::Null;
    assert!(Entry::of(object).token.is_none());
}
