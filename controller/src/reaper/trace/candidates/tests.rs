//! The lost token is among the candidates, soon, whatever else its service issued.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

const DAY: u64 = 86_400_000;
const START: u64 = 1_800_000_000_000;

fn marks(sequence_number: i32, issue_date: u64) -> Marks {
    Marks { sequence_number, issue_date, lifetime: 7 * DAY, master_key_id: 4 }
}

fn lost(requested_at: u64, after: Option<i32>) -> Lost {
    Lost { requested_at, after }
}

/// What the service did: tokens in its own order; the lost one is among them.
#[derive(Clone, Debug)]
struct History {
    all: Vec<Marks>,
    lost: usize,
    /// Which of them are known. The last one always is.
    known: Vec<bool>,
    /// How long before its issue the lost one was asked for, as the asker's clock had it.
    early: i64,
}

impl History {
    fn requested_at(&self) -> u64 {
        self.token().issue_date.saturating_add_signed(-self.early)
    }

    fn token(&self) -> Marks {
        self.all[self.lost]
    }

    fn known(&self) -> impl Iterator<Item = Marks> {
        let last = self.all.len() - 1;
        let known = move |at: usize| at == last || at != self.lost && self.known[at];
        self.all.iter().enumerate().filter(move |(at, _)| known(*at)).map(|(_, marks)| *marks)
    }

    /// The greatest number that was known when the lost one was asked for.
    fn after(&self) -> Option<i32> {
        let earlier = self.known().filter(|marks| marks.sequence_number < self.token().sequence_number);
        earlier.map(|marks| marks.sequence_number).max()
    }

    fn candidates(&self, after: Option<i32>) -> Candidates {
        Candidates::new(lost(self.requested_at(), after), self.known())
    }
}

/// Tokens whose distances are at most `apart`, keys that change now and then, and a request that is off by `early`.
fn histories(apart: u64, early: std::ops::Range<i64>) -> impl Strategy<Value = History> {
    let step = (0..apart, 1..4_i32, prop::bool::weighted(0.05), any::<bool>());
    (prop::collection::vec(step, 2..30), any::<prop::sample::Index>(), early, 1..100_000_i32).prop_map(
        |(steps, lost, early, first)| {
            let lost = lost.index(steps.len() - 1);
            let (mut all, mut known) = (Vec::new(), Vec::new());
            let mut marks = marks(first, START);
            for (apart, others, new_key, is_known) in steps {
                marks.issue_date += apart;
                marks.sequence_number += others;
                marks.master_key_id += i32::from(new_key);
                all.push(marks);
                known.push(is_known);
            }
            History { all, lost, known, early }
        },
    )
}

proptest! {
    #[test]
    fn the_lost_token_is_among_the_candidates(history in histories(50, -20..20)) {
        prop_assume!(history.after().is_some());
        let candidates = history.candidates(history.after());
        prop_assert!(candidates.conclusive());
        prop_assert!(candidates.into_iter().any(|candidate| candidate == history.token()));
    }

    #[test]
    fn a_clock_that_is_off_by_minutes_hides_no_token(history in histories(40, -590_000..590_000)) {
        prop_assume!(history.after().is_some());
        prop_assert!(history.candidates(history.after()).any(|candidate| candidate == history.token()));
    }

    #[test]
    fn nothing_is_tried_twice_and_nobodys_token_at_all(history in histories(30, -20..20)) {
        let numbers: HashSet<_> = history.known().map(|marks| marks.sequence_number).collect();
        let mut seen = HashSet::new();
        for candidate in history.candidates(history.after()).take(5_000) {
            prop_assert!(!numbers.contains(&candidate.sequence_number), "{candidate:?}");
            prop_assert!(seen.insert(candidate), "{candidate:?}");
        }
    }

    #[test]
    fn dates_rise_with_numbers(history in histories(30, -20..20)) {
        let known: Vec<_> = history.known().collect();
        for candidate in history.candidates(history.after()).take(500) {
            for other in known.iter().filter(|other| Some(other.sequence_number) >= history.after()) {
                let rises = (candidate.sequence_number < other.sequence_number
                    && candidate.issue_date <= other.issue_date)
                    || (candidate.sequence_number > other.sequence_number
                        && candidate.issue_date >= other.issue_date);
                prop_assert!(rises, "{candidate:?} {other:?}");
            }
        }
    }

    /// A controller that was killed alone, at a service of which it knows all else: some 10 ms of Kerberos and waiting.
    #[test]
    fn a_token_that_came_soon_is_found_soon(took in 0..200_u64, idle in 0..DAY, waited in 30_000..DAY) {
        let known = [marks(41, START), marks(43, START + idle + took + waited)];
        let token = marks(42, START + idle + took);
        let mut candidates = Candidates::new(lost(START + idle, Some(41)), known);
        let at = candidates.position(|candidate| candidate == token);
        prop_assert!(at.is_some_and(|at| at as u64 <= took + took / 2 + 1), "{at:?}");
    }

    /// Sixteen at once were lost, each of another user.
    #[test]
    fn tokens_that_were_lost_together_are_found_soon(took in 0..200_u64, which in 1..=16) {
        let known = [marks(40, START - DAY), marks(57, START + 40_000)];
        let token = marks(40 + which, START + took);
        let mut candidates = Candidates::new(lost(START, Some(40)), known);
        let at = candidates.position(|candidate| candidate == token);
        prop_assert!(at.is_some_and(|at| at < 8_000), "{at:?}");
    }
}

#[test]
fn no_free_number_proves_that_nothing_was_issued() {
    let known = [marks(41, START), marks(42, START + 40_000)];
    let mut candidates = Candidates::new(lost(START + 5, Some(41)), known);
    assert!(candidates.conclusive());
    assert_eq!(candidates.next(), None);
}

#[test]
fn without_a_lower_bound_the_latest_numbers_come_first_and_prove_nothing() {
    let mut candidates = Candidates::new(lost(START, None), [marks(90_000, START + 40_000)]);
    assert!(!candidates.conclusive());
    assert_eq!(candidates.next(), Some(marks(89_999, START)));
    let at = candidates.position(|candidate| candidate == marks(89_990, START + 20));
    assert!(at.is_some_and(|at| at < 2_000), "{at:?}");
}

#[test]
fn a_service_that_counts_from_one_has_a_lower_bound() {
    let candidates = Candidates::new(lost(START, None), [marks(3, START + 40_000)]);
    assert!(candidates.conclusive());
    let numbers: HashSet<_> = candidates.take(1_000).map(|candidate| candidate.sequence_number).collect();
    assert_eq!(numbers, [1, 2].into());
}

#[test]
fn what_was_issued_long_before_or_after_is_left_alone() {
    let known =
        [1, 5, 9, 13].map(|number| marks(number, START + u64::try_from(number).unwrap_or_default() * SKEW));
    let candidates = Candidates::new(lost(START + 7 * SKEW, None), known);
    assert!(candidates.conclusive());
    let numbers: HashSet<_> = candidates.map(|candidate| candidate.sequence_number).collect();
    assert_eq!(numbers, [6, 7, 8].into());
}

#[test]
fn nothing_known_is_nothing_tried_and_nothing_proven() {
    let mut candidates = Candidates::new(lost(START, None), []);
    assert!(!candidates.conclusive());
    assert_eq!(candidates.next(), None);
}

#[test]
fn a_service_that_restarted_meanwhile_has_another_key_and_perhaps_another_lifetime() {
    let after = Marks { lifetime: DAY, master_key_id: 5, ..marks(43, START + 20) };
    let candidates: HashSet<_> = Candidates::new(lost(START, Some(41)), [marks(41, START), after]).collect();
    for (lifetime, master_key_id) in [(7 * DAY, 4), (DAY, 5), (7 * DAY, 5), (DAY, 4)] {
        let token = Marks { lifetime, master_key_id, ..marks(42, START + 7) };
        assert!(candidates.contains(&token), "{token:?}");
    }
    assert_eq!(candidates.len(), 21 * 4);
}

#[test]
fn a_busy_service_costs_little_memory() {
    let known = [marks(1, START - DAY), marks(5_000_000, START + DAY)];
    let candidates = Candidates::new(lost(START, Some(1)), known);
    assert!(!candidates.conclusive());
    assert_eq!(candidates.waiting.len(), MOST_NUMBERS);
    // Half of the time, half of the numbers.
    assert!(candidates.waiting.iter().all(|number| number.number.abs_diff(2_500_000) < 10_000));
}

#[test]
fn a_service_that_began_to_count_anew_is_searched_from_its_beginning() {
    let mut candidates = Candidates::new(lost(START, Some(70_000)), [marks(3, START + 40_000)]);
    assert_eq!(candidates.next(), Some(marks(2, START)));
}

proptest! {
    /// What the search begins with is one number for the same facts, and another when one of the numbers is taken.
    #[test]
    fn facts_are_others_when_a_number_in_question_is_known_and_only_then(history in histories(50, -20..20)) {
        let candidates = history.candidates(history.after());
        let numbers: HashSet<_> = candidates.waiting.iter().map(|number| number.number).collect();
        prop_assert_eq!(candidates.facts(), history.candidates(history.after()).facts());
        let lost = lost(history.requested_at(), history.after());
        for other in &history.all {
            let now = Candidates::new(lost, history.known().chain([*other]));
            let taken = numbers.contains(&other.sequence_number);
            prop_assert_eq!(now.facts() != candidates.facts(), taken, "{:?}", other);
        }
    }
}
