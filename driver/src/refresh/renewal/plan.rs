//! What to do when tokens were not renewed. No I/O.

use std::time::Duration;

use jiff::SignedDuration;
use proto::token::v1::RenewalAdvice;

use crate::refresh::queue::backoff;

/// What is known of why tokens were not renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Advice {
    /// Nobody who knows was heard.
    NothingHeard,
    /// The same may succeed later.
    Retry,
    /// Their service does not know them any more.
    Rotate,
    /// The pod may not have them any more.
    Check,
    /// Somebody has to mend a configuration.
    Alert,
}

impl From<RenewalAdvice> for Advice {
    fn from(advice: RenewalAdvice) -> Self {
        match advice {
            RenewalAdvice::Unspecified | RenewalAdvice::Retry => Self::Retry,
            RenewalAdvice::Rotate => Self::Rotate,
            RenewalAdvice::Check => Self::Check,
            RenewalAdvice::Alert => Self::Alert,
        }
    }
}

/// What to do when tokens were not renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Try again after this time; other tokens will have a time of their own.
    pub(super) retry_in: Duration,
    /// Ask whether the pod may keep them.
    pub(super) check: bool,
    /// Ask for others.
    pub(super) rotate: bool,
    /// Say it as loudly as can be.
    pub(super) alert: bool,
}

/// Bounds of the time between two attempts while somebody has to mend a configuration.
const SELDOM: Duration = Duration::from_secs(60);
const MOST_SELDOM: Duration = Duration::from_secs(3_600);

/// The least time between two attempts.
const LEAST: Duration = Duration::from_secs(1);

/// What to do after so many failures in a row `before` this one, when the first of the tokens ends after `left`, as far
/// as is known. No attempt is put off by more than a quarter of what is left, so that there are some more. Past their
/// date the tokens are tried once more, and when that was heard and failed, others are asked for. `chance` is between 0
/// and 1.
pub(super) fn plan(advice: Advice, before: u32, left: Option<SignedDuration>, chance: f64) -> Plan {
    let left = left.map(|left| Duration::try_from(left).unwrap_or(Duration::ZERO));
    let past = left.is_some_and(|left| left.is_zero());
    let quarter = left.filter(|left| !left.is_zero()).map_or(Duration::MAX, |left| left / 4);
    let wait = match advice {
        Advice::Alert => {
            let seldom = quarter.clamp(SELDOM, MOST_SELDOM);
            seldom.mul_f64(1.0 - 0.1 * chance.clamp(0.0, 1.0))
        }
        Advice::Rotate => backoff(u32::MAX, chance), // only if no others come
        Advice::NothingHeard | Advice::Retry | Advice::Check => backoff(before, chance),
    };
    let spread = 1.0 - 0.5 * chance.clamp(0.0, 1.0);
    Plan {
        retry_in: wait.min(quarter.max(LEAST).min(MOST_SELDOM).mul_f64(spread)),
        check: advice == Advice::Check,
        rotate: advice == Advice::Rotate || (past && advice != Advice::NothingHeard),
        alert: advice == Advice::Alert,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(seconds: i64) -> Option<SignedDuration> {
        Some(SignedDuration::from_secs(seconds))
    }

    #[test]
    fn what_may_pass_is_tried_ever_less_often() {
        let wait = |before| plan(Advice::Retry, before, seconds(86_400), 0.0).retry_in.as_secs();
        assert_eq!([0, 1, 2, 20].map(wait), [1, 2, 4, 300]);
        let plan = plan(Advice::Retry, 3, seconds(86_400), 0.0);
        assert!(!plan.check && !plan.rotate && !plan.alert);
    }

    #[test]
    fn a_token_that_ends_soon_has_some_attempts_left() {
        for left in [6, 20, 100] {
            let (mut now, mut before) = (0.0, 0);
            while now < f64::from(left) {
                let left = SignedDuration::from_secs_f64(f64::from(left) - now);
                now += plan(Advice::NothingHeard, before, Some(left), 0.5).retry_in.as_secs_f64();
                before += 1;
            }
            assert!(before >= 5, "{before} attempts in {left} s");
        }
    }

    #[test]
    fn what_the_service_does_not_know_is_replaced_at_once() {
        assert!(plan(Advice::Rotate, 0, seconds(3_600), 0.5).rotate);
    }

    #[test]
    fn past_its_date_a_token_has_one_more_chance_and_is_then_replaced() {
        for advice in [Advice::Retry, Advice::Check, Advice::Alert] {
            assert!(plan(advice, 0, seconds(-1), 0.5).rotate, "{advice:?}");
            assert!(!plan(advice, 0, seconds(1), 0.5).rotate, "{advice:?}");
        }
        assert!(!plan(Advice::NothingHeard, 9, seconds(-1), 0.5).rotate, "nobody would hear that either");
    }

    #[test]
    fn who_may_have_lost_a_right_is_checked_and_what_is_to_be_mended_is_tried_seldom() {
        assert!(plan(Advice::Check, 0, seconds(3_600), 0.5).check);
        let mended = plan(Advice::Alert, 0, seconds(86_400), 0.0);
        assert!(mended.alert && mended.retry_in == MOST_SELDOM, "{mended:?}");
        assert_eq!(plan(Advice::Alert, 0, seconds(1_000), 0.0).retry_in.as_secs(), 250);
    }

    proptest! {
        #[test]
        fn attempts_are_bounded_and_never_in_a_rush(
            before: u32, left in proptest::option::of(-1_000_000i64..100_000_000), chance in 0.0f64..1.0,
        ) {
            for advice in
                [Advice::NothingHeard, Advice::Retry, Advice::Rotate, Advice::Check, Advice::Alert]
            {
                let wait = plan(advice, before, left.map(SignedDuration::from_secs), chance).retry_in;
                prop_assert!(wait >= LEAST / 2 && wait <= MOST_SELDOM, "{advice:?} {wait:?}");
            }
        }
    }
}
