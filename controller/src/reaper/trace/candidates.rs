//! What the identifier of a lost token may be, the likeliest first. A service counts its tokens and dates them as it
//! counts, so the tokens that are known around the lost one leave few numbers, and each of those a span of time. Pure:
//! asks nobody.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    ops::Range,
};

use crate::issuance::Marks;

/// A token that was asked for, and of which nobody knows whether it exists.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lost {
    /// On the service's clock, as well as it was known.
    pub(super) requested_at: u64,
    /// The greatest number that was known of any token then, if one was.
    pub(super) after: Option<i32>,
}

/// How far the date of a request may be off, in milliseconds.
const SKEW: u64 = 600_000;

/// A number is tried with so many dates before the next likely number is tried as well.
const HEAD_START: usize = 8;

/// Most numbers that are tried: nobody has the time to try the dates of more.
const MOST_NUMBERS: usize = 4096;

/// Most master keys that are tried, beginning with the youngest.
const MOST_KEYS: usize = 8;

/// All that the lost token may be, in the order of likelihood, each once.
#[derive(Debug)]
pub(super) struct Candidates {
    /// Numbers whose turn has not come, the likeliest last.
    waiting: Vec<Number>,
    /// Numbers whose dates are being tried, and which of them is next.
    trying: Vec<Number>,
    turn: usize,
    /// How often each of these had its turn since the last of them was added.
    rounds: usize,
    conclusive: bool,
}

impl Candidates {
    /// What `lost` may be. Of the tokens that are known at its service, the one with the greatest number must have been
    /// issued when the lost one could not be issued any more.
    pub(super) fn new(lost: Lost, known: impl IntoIterator<Item = Marks>) -> Self {
        let known: BTreeMap<_, _> = known.into_iter().map(|marks| (marks.sequence_number, marks)).collect();
        let mut this =
            Self { waiting: Vec::new(), trying: Vec::new(), turn: 0, rounds: 0, conclusive: false };
        let before = |marks: &Marks| marks.issue_date.saturating_add(SKEW) <= lost.requested_at;
        let lowest = known.values().rev().find(|marks| before(marks)).map(|marks| marks.sequence_number);
        let greatest = known.keys().next_back().copied();
        // A service that counts less than it did once began anew.
        let lowest =
            lowest.max(lost.after).filter(|lowest| greatest.is_some_and(|greatest| *lowest < greatest));
        let later = |marks: &Marks| marks.issue_date >= lost.requested_at.saturating_add(SKEW);
        let above = |number: i32| known.range(number.saturating_add(1)..).map(|(_, marks)| *marks);
        let first_later = above(lowest.unwrap_or(i32::MIN)).find(later);
        let Some(last) = first_later.or_else(|| known.values().next_back().copied()) else { return this };

        // Nobody knows where to begin: with the latest numbers, of as many as can be tried.
        let guessed = || last.sequence_number.saturating_sub(i32::try_from(MOST_NUMBERS).unwrap_or(i32::MAX));
        let floor = lowest.unwrap_or_else(|| guessed().max(0));
        this.conclusive = lowest.is_some() || floor == 0;
        let mut numbers = Vec::new();
        let (mut lower, mut from) = (known.get(&floor).copied(), floor);
        for upper in above(floor).take_while(|marks| marks.sequence_number <= last.sequence_number) {
            let gap = Gap { from, lower, upper, anchored: lowest.is_some() };
            let (variants, all) = gap.variants();
            let (between, whole) = gap.numbers(lost.requested_at);
            this.conclusive &= between.is_empty() || all && whole;
            numbers.extend(between.map(|number| {
                let (unlikely, dates) = gap.dates(number, lost.requested_at);
                let variants = variants.clone();
                (unlikely, Number { number, dates, variants, date: None, tried: 0 })
            }));
            (lower, from) = (Some(upper), upper.sequence_number);
        }
        this.conclusive &= numbers.len() <= MOST_NUMBERS;
        numbers.sort_by_key(|(unlikely, number)| (*unlikely, Reverse(number.number)));
        this.waiting = numbers.into_iter().take(MOST_NUMBERS).rev().map(|(_, number)| number).collect();
        this
    }

    /// Whether the lost token was never issued when it is none of all these.
    pub(super) fn conclusive(&self) -> bool {
        self.conclusive
    }

    /// The same for the same facts, before the first was asked for.
    pub(super) fn facts(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.conclusive.hash(&mut hasher);
        for Number { number, dates, variants, .. } in &self.waiting {
            (number, dates.from, dates.to, variants).hash(&mut hasher);
        }
        hasher.finish()
    }
}

impl Iterator for Candidates {
    type Item = Marks;

    fn next(&mut self) -> Option<Marks> {
        loop {
            if (self.trying.is_empty() || self.rounds >= HEAD_START)
                && let Some(number) = self.waiting.pop()
            {
                self.trying.push(number);
                self.rounds = 0;
            }
            if self.trying.is_empty() {
                return None;
            }
            match self.trying.get_mut(self.turn).map(Number::next) {
                Some(Some(marks)) => {
                    self.turn += 1;
                    return Some(marks);
                }
                Some(None) => drop(self.trying.remove(self.turn)),
                None => {
                    self.turn = 0;
                    self.rounds = self.rounds.saturating_add(1);
                }
            }
        }
    }
}

/// The numbers between two that are known.
struct Gap {
    /// The lower one, of which no more may be known.
    from: i32,
    lower: Option<Marks>,
    upper: Marks,
    /// Whether the lower one says anything at all.
    anchored: bool,
}

impl Gap {
    /// Whether the lower number is only where the search ends: then later ones are likelier.
    fn guessed(&self) -> bool {
        !self.anchored && self.lower.is_none()
    }

    /// The first and the last date between, and the one by which the numbers begin.
    fn span(&self, requested_at: u64) -> (u64, u64, u64) {
        let upper = self.upper.issue_date;
        let lower = self.lower.map_or(requested_at.saturating_sub(SKEW), |marks| marks.issue_date);
        // A clock that was set back between the two leaves the same span.
        let (from, to) = (lower.min(upper), lower.max(upper));
        (from, to, self.lower.map_or(requested_at.clamp(from, to), |_| from))
    }

    /// The numbers between, or those around the likeliest; and whether these are all.
    fn numbers(&self, requested_at: u64) -> (Range<i32>, bool) {
        let between = self.from.saturating_add(1)..self.upper.sequence_number;
        let most = i32::try_from(MOST_NUMBERS / 2).unwrap_or(i32::MAX);
        let (_, to, begin) = self.span(requested_at);
        let passed = u128::from(requested_at.clamp(begin, to) - begin);
        let steps = u128::from(self.upper.sequence_number.abs_diff(self.from));
        let likeliest = if self.guessed() { steps } else { passed * steps / u128::from(to - begin).max(1) };
        let likeliest = self.from.saturating_add(i32::try_from(likeliest).unwrap_or(i32::MAX));
        let around = likeliest.saturating_sub(most).max(between.start)
            ..likeliest.saturating_add(most).min(between.end);
        let whole = around.start == between.start && around.end == between.end;
        (around, whole)
    }

    /// When a token of this number may have been issued, and how unlikely it is the one that was requested then.
    fn dates(&self, number: i32, requested_at: u64) -> (u64, Outward) {
        let (from, to, begin) = self.span(requested_at);
        let dates = Outward::new(from, to, requested_at);
        if self.guessed() {
            return (u64::from(self.upper.sequence_number.abs_diff(number)), dates);
        }
        // As if the service had issued all those between at the same distance.
        let steps = u128::from(self.upper.sequence_number.abs_diff(self.from)).max(1);
        let passed = u128::from(to - begin) * u128::from(number.abs_diff(self.from)) / steps;
        let expected = begin.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX));
        (expected.abs_diff(requested_at), dates)
    }

    /// Lifetimes and master keys that a token between may have, and whether these are all.
    fn variants(&self) -> (Vec<(u64, i32)>, bool) {
        let last = self.upper.master_key_id;
        // A service changes its key when it starts, and once in a while.
        let first = self.lower.map_or(last.saturating_sub(1), |marks| marks.master_key_id).min(last);
        let keys = (first..=last).rev().take(MOST_KEYS);
        let mut lifetimes = vec![self.upper.lifetime];
        lifetimes
            .extend(self.lower.map(|marks| marks.lifetime).filter(|other| *other != self.upper.lifetime));
        let variants = keys.flat_map(|key| lifetimes.iter().map(move |lifetime| (*lifetime, key))).collect();
        let all = usize::try_from(last.abs_diff(first)).is_ok_and(|span| span < MOST_KEYS);
        (variants, all)
    }
}

/// A number that the lost token may have.
#[derive(Debug)]
struct Number {
    number: i32,
    dates: Outward,
    variants: Vec<(u64, i32)>,
    /// The date that is being tried, and with how many of the variants it was.
    date: Option<u64>,
    tried: usize,
}

impl Number {
    fn next(&mut self) -> Option<Marks> {
        if self.date.is_none() || self.tried >= self.variants.len() {
            (self.date, self.tried) = (Some(self.dates.next()?), 0);
        }
        let (lifetime, master_key_id) = *self.variants.get(self.tried)?;
        self.tried += 1;
        Some(Marks { sequence_number: self.number, issue_date: self.date?, lifetime, master_key_id })
    }
}

/// The dates of a span, from one of them outward: rather later ones, for an answer takes its time.
#[derive(Debug)]
struct Outward {
    up: Option<u64>,
    down: Option<u64>,
    from: u64,
    to: u64,
    steps: u64,
}

/// Of so many dates, one is earlier than the one that it begins with: the request's date may be a little late.
const EARLIER: u64 = 3;

impl Outward {
    fn new(from: u64, to: u64, middle: u64) -> Self {
        let middle = middle.clamp(from, to);
        Self {
            up: Some(middle),
            down: middle.checked_sub(1).filter(|date| *date >= from),
            from,
            to,
            steps: 0,
        }
    }
}

impl Iterator for Outward {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.steps += 1;
        let earlier = self.steps.is_multiple_of(EARLIER);
        match (self.up, self.down) {
            (Some(date), down) if !earlier || down.is_none() => {
                self.up = date.checked_add(1).filter(|date| *date <= self.to);
                Some(date)
            }
            (_, Some(date)) => {
                self.down = date.checked_sub(1).filter(|date| *date >= self.from);
                Some(date)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
