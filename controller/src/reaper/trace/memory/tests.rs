//! Nothing is tried twice, and only news wakes what was in vain.

use proptest::prelude::*;

use super::*;

fn probe(sequence_number: i32) -> TokenIdentifier {
    let [owner, renewer, real_user] = ["etl", "csi", "csi/h@R"].map(str::to_owned);
    TokenIdentifier {
        owner,
        renewer,
        real_user,
        issue_date: 0,
        max_date: 0,
        sequence_number,
        master_key_id: 1,
    }
}

fn marks(sequence_number: i32, issue_date: u64) -> Marks {
    Marks { sequence_number, issue_date, lifetime: 1, master_key_id: 1 }
}

fn searching(memory: &mut Memory, uid: &str, number: i32, left: u32) {
    let (since, awaited) = (Instant::now(), HashSet::new());
    memory.begin(&uid.into(), Search { probe: probe(number), since, awaited, left, vain: None });
}

fn stirred(memory: &mut Memory) -> Vec<Arc<str>> {
    memory.stirred().into_iter().collect()
}

proptest! {
    /// However the candidates change between turns, and whoever's turn it is.
    #[test]
    fn nothing_is_tried_twice_for_the_same_user(
        turns in prop::collection::vec((0..2_usize, 0..60_i32, 1..40_i32, 0..30_usize), 1..30),
    ) {
        let (mut memory, mut seen) = (Memory::default(), HashSet::new());
        searching(&mut memory, "a", 100, 1_000);
        searching(&mut memory, "b", 100, 1_000);
        for (which, from, many, most) in turns {
            let candidates = || (from..from + many).map(|number| marks(number, 7));
            let (next, all) = memory.untried("etl", candidates(), most);
            prop_assert!(next.len() <= most);
            let left = candidates().filter(|marks| !seen.contains(marks)).count();
            prop_assert_eq!(all, left <= most);
            for marks in &next {
                prop_assert!(seen.insert(*marks), "{:?}", marks);
            }
            let attempts = u32::try_from(next.len()).unwrap();
            memory.tried(["a", "b"][which], "etl", &next, attempts);
        }
        let left = |uid| memory.search(uid).unwrap().left;
        prop_assert_eq!(usize::try_from(left("a") + left("b")).unwrap(), 2_000 - seen.len());
        prop_assert_eq!(memory.untried("ads", std::iter::once(marks(0, 7)), 1).0.len(), 1);
    }
}

#[test]
fn only_news_of_what_may_be_wakes_what_was_looked_for_in_vain() {
    let mut memory = Memory::default();
    for uid in ["vain", "under-way", "early"] {
        searching(&mut memory, uid, if uid == "early" { 10 } else { 50 }, 9);
    }
    memory.vain("vain", 1);
    memory.vain("early", 2);
    assert!(!memory.stir(Some(50)) && !memory.stir(Some(60)));
    assert!(memory.stir(Some(30)));
    assert_eq!(stirred(&mut memory), ["vain".into()]);
    assert!(memory.stir(None));
    assert_eq!(stirred(&mut memory), ["early".into(), "vain".into()]);
    assert!(memory.stir(Some(5)) && memory.end("early"));
    assert_eq!(stirred(&mut memory), ["vain".into()]);
}

#[test]
fn what_is_not_looked_for_any_more_costs_no_memory() {
    let mut memory = Memory::default();
    for uid in ["a", "b"] {
        searching(&mut memory, uid, 50, 9);
    }
    memory.tried("a", "etl", &[marks(1, 1)], 1);
    memory.retain(&HashSet::from(["b".into()]));
    assert!(memory.search("a").is_none() && memory.search("b").is_some());
    assert!(memory.end("b") && !memory.end("b"));
    assert!(memory.tried.is_empty());
    (0..10_000).for_each(|number| memory.forget(marks(number, 1)));
    assert_eq!(memory.gone().len(), MOST_GONE);
    searching(&mut memory, "c", 50, u32::MAX);
    for turn in 0..200 {
        let tried: Vec<_> = (0..500).map(|date| marks(turn, date)).collect();
        memory.tried("c", "etl", &tried, 500);
    }
    assert!(memory.tried.values().map(HashSet::len).sum::<usize>() <= MOST_TRIED);
}
