//! Many entries of several clusters, some of which do not answer: all are looked at, none by two, none in a hurry.

use proptest::prelude::*;
use serde_json::json;

use super::*;

const NEVER: Outcome = Outcome::Failed { passes: true, cancelled: false };

fn entry(uid: &str, cluster: &str) -> Arc<Entry> {
    Entry::of(json!({
        "metadata": {"namespace": "jobs", "name": uid, "uid": uid},
        "spec": {"cluster": cluster, "token": {"identifier": "AAAA"}},
    }))
}

fn deleted(uid: &str, cluster: &str) -> Arc<Entry> {
    Entry::of(json!({
        "metadata": {"namespace": "jobs", "name": uid, "uid": uid, "deletionTimestamp": "2027-01-15T08:00:00Z"},
        "spec": {"cluster": cluster, "token": {"identifier": "AAAA"}},
    }))
}

fn uids(looks: &[Look]) -> Vec<&str> {
    looks.iter().map(|look| &*look.entry.uid).collect()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_cluster_that_does_not_answer_holds_up_no_other() {
    let (mut schedule, now) = (Schedule::new(2), Instant::now());
    for number in 0..100 {
        schedule.want(&entry(&format!("d-{number:02}"), "down"), true, Duration::ZERO, now);
    }
    schedule.want(&entry("m-1", "main"), true, Duration::ZERO, now);
    let looks = schedule.take(now);
    assert_eq!(uids(&looks), ["d-00", "d-01", "m-1"]);
    // Each that comes back makes room for the next.
    let next = schedule.looked(&looks[0].entry.uid, NEVER, now, 1.0).unwrap();
    assert_eq!(&*next.entry.uid, "d-02");
    assert!(schedule.looked(&looks[2].entry.uid, Outcome::Done, now, 1.0).is_none());
    assert!(schedule.take(now).is_empty());
    assert_eq!(schedule.len(), 100);
}

#[test]
fn an_entry_that_got_its_token_meanwhile_is_looked_at_as_it_is_now() {
    let (mut schedule, now) = (Schedule::new(1), Instant::now());
    let intent = Entry::of(json!({
        "metadata": {"namespace": "jobs", "name": "u", "uid": "u"},
        "spec": {"cluster": "main"},
    }));
    schedule.want(&intent, false, seconds(45), now);
    schedule.refresh(&entry("u", "main"));
    assert_eq!(schedule.next(), Some(now + seconds(45)));
    let look = schedule.take(now + seconds(45)).pop().unwrap();
    assert!(look.entry.token.is_some());
    schedule.refresh(&entry("other", "main"));
    assert_eq!(schedule.len(), 1);
}

#[test]
fn attempts_become_rare_and_go_on_for_ever() {
    let (mut schedule, mut now) = (Schedule::new(1), Instant::now());
    schedule.want(&entry("u", "main"), true, Duration::ZERO, now);
    let mut waits = Vec::new();
    for _ in 0..50 {
        let look = schedule.take(now).pop().unwrap();
        schedule.looked(&look.entry.uid, NEVER, now, 1.0);
        let next = schedule.next().unwrap();
        waits.push(next - now);
        now = next;
    }
    assert_eq!(waits[..4], [250, 500, 1000, 2000].map(Duration::from_millis));
    assert!(waits[10..].iter().all(|wait| *wait == LONGEST_WAIT));
}

#[test]
fn what_somebody_has_to_mend_is_tried_more_rarely_until_there_is_news() {
    let (mut schedule, now) = (Schedule::new(1), Instant::now());
    let stuck = Outcome::Failed { passes: false, cancelled: false };
    let mut at = now;
    schedule.want(&entry("u", "main"), true, Duration::ZERO, now);
    for _ in 0..20 {
        schedule.take(at);
        schedule.looked(&"u".into(), stuck, at, 1.0);
        at = schedule.next().unwrap();
    }
    let now = at - LONGEST_WAIT_FOR_PEOPLE + seconds(1);
    // That it looks as before is no news: it may be our own writing.
    schedule.want(&entry("u", "main"), true, Duration::ZERO, now);
    assert_eq!(schedule.next(), Some(at));
    schedule.want(&deleted("u", "main"), true, Duration::ZERO, now);
    assert_eq!(schedule.next(), Some(now));
}

#[test]
fn news_during_a_look_cause_another_one_and_old_ones_do_not() {
    let (mut schedule, now) = (Schedule::new(1), Instant::now());
    schedule.want(&entry("u", "main"), false, Duration::ZERO, now);
    schedule.take(now);
    schedule.want(&entry("u", "main"), true, seconds(1), now);
    schedule.looked(&"u".into(), Outcome::Done, now, 0.0);
    assert_eq!(uids(&schedule.take(now)), ["u"]);
    schedule.want(&entry("u", "main"), true, Duration::ZERO, now);
    schedule.looked(&"u".into(), Outcome::Done, now, 0.0);
    assert_eq!((schedule.len(), schedule.next()), (0, None));
}

#[test]
fn the_time_since_it_began_to_die_survives_looks_and_begins_anew_with_a_new_end() {
    let (mut schedule, start) = (Schedule::new(1), Instant::now());
    schedule.want(&entry("u", "main"), true, Duration::ZERO, start);
    schedule.take(start);
    schedule.looked(&"u".into(), Outcome::Again(seconds(10)), start, 0.0);
    let look = schedule.take(start + seconds(10)).pop().unwrap();
    assert_eq!((look.known_for, look.dying_for), (seconds(10), seconds(10)));
    assert_eq!(schedule.dying_for("u", start + seconds(11)), seconds(11));
    schedule.looked(&"u".into(), Outcome::Done, start, 0.0);
    assert_eq!(schedule.dying_for("u", start + seconds(11)), Duration::ZERO);
}

#[test]
fn what_there_is_news_for_is_looked_at_at_once() {
    let (mut schedule, now) = (Schedule::new(1), Instant::now());
    schedule.want(&entry("u", "main"), true, seconds(300), now);
    schedule.hurry("u", now);
    schedule.hurry("nobody", now);
    assert_eq!(uids(&schedule.take(now)), ["u"]);
    schedule.hurry("u", now);
    schedule.looked(&"u".into(), Outcome::Again(seconds(300)), now, 0.0);
    assert_eq!(uids(&schedule.take(now)), ["u"]);
    schedule.looked(&"u".into(), Outcome::Again(seconds(300)), now, 0.0);
    assert_eq!(schedule.next(), Some(now + seconds(300)));
}

#[test]
fn what_is_gone_is_looked_at_no_more() {
    let (mut schedule, now) = (Schedule::new(1), Instant::now());
    for uid in ["a", "b", "c"] {
        schedule.want(&entry(uid, "main"), true, Duration::ZERO, now);
    }
    let looks = schedule.take(now);
    assert_eq!(uids(&looks), ["a"]);
    ["a", "b"].iter().for_each(|uid| schedule.forget(uid));
    let next = schedule.looked(&"a".into(), Outcome::Done, now, 0.0).unwrap();
    assert_eq!(&*next.entry.uid, "c");
    schedule.looked(&"c".into(), Outcome::Done, now, 0.0);
    assert_eq!((schedule.len(), schedule.clusters.len()), (0, 0));
}

#[test]
fn what_was_removed_is_not_taken_up_again_by_what_is_seen_late() {
    let (mut schedule, now) = (Schedule::new(1), Instant::now());
    schedule.want(&entry("u", "main"), true, Duration::ZERO, now);
    schedule.take(now);
    schedule.want(&deleted("u", "main"), true, Duration::ZERO, now);
    schedule.looked(&"u".into(), Outcome::Removed { cancelled: true }, now, 0.0);
    schedule.want(&deleted("u", "main"), true, Duration::ZERO, now);
    assert_eq!((schedule.len(), schedule.next(), schedule.uids().len()), (0, None, 1));
    schedule.forget("u");
    assert!(schedule.uids().is_empty());
}

#[test]
fn what_was_cancelled_by_way_of_another_entry_is_only_to_be_removed() {
    let (mut schedule, now) = (Schedule::new(1), Instant::now());
    schedule.want(&entry("u", "main"), true, seconds(60), now);
    assert!(schedule.take(now).is_empty());
    schedule.cancelled("u", now);
    let look = schedule.take(now).pop().unwrap();
    assert!(look.cancelled);
    schedule.cancelled("u", now);
    schedule.looked(&"u".into(), NEVER, now, 1.0);
    assert!(schedule.next().unwrap() > now, "is in no hurry after a failure");
}

#[derive(Clone, Debug)]
enum Step {
    Want {
        uid: u8,
        dying: bool,
        deleted: bool,
        wait: u64,
    },
    Forget(u8),
    /// The n-th look under way ends.
    Looked {
        which: usize,
        outcome: u8,
    },
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..12_u8, any::<bool>(), any::<bool>(), 0..5_u64)
            .prop_map(|(uid, dying, deleted, wait)| Step::Want { uid, dying, deleted, wait }),
        (0..12_u8).prop_map(Step::Forget),
        (any::<usize>(), 0..5_u8).prop_map(|(which, outcome)| Step::Looked { which, outcome }),
        (0..40_u64).prop_map(Step::Pass),
    ]
}

proptest! {
    #[test]
    fn none_is_looked_at_twice_at_once_no_share_is_exceeded_and_none_is_forgotten(
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let (mut schedule, mut now) = (Schedule::new(2), Instant::now());
        let mut under_way: Vec<Look> = Vec::new();
        let cluster = |uid: u8| if uid.is_multiple_of(2) { "even" } else { "odd" };
        for step in steps {
            match step {
                Step::Want { uid, dying, deleted: false, wait } => {
                    schedule.want(&entry(&uid.to_string(), cluster(uid)), dying, seconds(wait), now);
                }
                Step::Want { uid, dying, wait, .. } => {
                    schedule.want(&deleted(&uid.to_string(), cluster(uid)), dying, seconds(wait), now);
                }
                Step::Forget(uid) => schedule.forget(&uid.to_string()),
                Step::Looked { .. } if under_way.is_empty() => {}
                Step::Looked { which, outcome } => {
                    let look = under_way.swap_remove(which % under_way.len());
                    let outcome = match outcome {
                        0 => Outcome::Done,
                        1 => Outcome::Again(seconds(3)),
                        2 => Outcome::Failed { passes: true, cancelled: true },
                        3 => Outcome::Removed { cancelled: true },
                        _ => Outcome::Failed { passes: false, cancelled: false },
                    };
                    under_way.extend(schedule.looked(&look.entry.uid, outcome, now, 0.5));
                }
                Step::Pass(passed) => now += seconds(passed),
            }
            under_way.extend(schedule.take(now));
            let mut uids = uids(&under_way);
            uids.sort_unstable();
            let count = uids.len();
            uids.dedup();
            prop_assert_eq!(uids.len(), count, "one is looked at by two");
            for name in ["even", "odd"] {
                let busy = under_way.iter().filter(|look| *look.entry.cluster == *name).count();
                prop_assert!(busy <= 2);
                prop_assert_eq!(busy, schedule.clusters.get(name).map_or(0, |cluster| cluster.busy));
                // Whoever waits, waits for somebody.
                let waiting = schedule.clusters.get(name).map_or(0, |cluster| cluster.waiting.len());
                prop_assert!(waiting == 0 || busy == 2);
            }
            for (uid, task) in &schedule.tasks {
                let due = schedule.due.iter().any(|(_, due)| due == uid);
                prop_assert_eq!(due, matches!(task.state, State::Due(_)), "{}", uid);
            }
        }
        // In the end all have their look.
        for _ in 0..100 {
            now += LONGEST_WAIT_FOR_PEOPLE;
            under_way.extend(schedule.take(now));
            while let Some(look) = under_way.pop() {
                under_way.extend(schedule.looked(&look.entry.uid, Outcome::Done, now, 0.5));
            }
        }
        prop_assert_eq!(schedule.len(), 0);
    }
}
