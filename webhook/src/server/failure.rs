//! Why there is no decision. Where it can be told what was asked, the answer is a denial; else the HTTP status, which the
//! API server tells its caller and takes for a failure of the webhook.

use crate::admission::Denial;

/// What went wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    NotJson,
    TooLarge,
    /// The memory that reviews may take is used up.
    Busy,
    /// The body ended early, or did not end in time.
    BrokenOff,
    Unreadable(String),
    /// The decision crashed.
    Crashed,
    /// The decision did not come in time.
    TooSlow,
}

impl Failure {
    /// Stable, one of those in docs/errors.md.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::NotJson => "REVIEW_NOT_JSON",
            Self::TooLarge => "REVIEW_TOO_LARGE",
            Self::Busy => "TOO_MANY_REVIEWS",
            Self::BrokenOff => "REVIEW_BROKEN_OFF",
            Self::Unreadable(_) => "REVIEW_UNREADABLE",
            Self::Crashed => "REVIEW_CRASHED",
            Self::TooSlow => "REVIEW_TOO_SLOW",
        }
    }

    pub(super) fn code(&self) -> u16 {
        match self {
            Self::NotJson => 415,
            Self::TooLarge => 413,
            Self::Busy => 503,
            Self::BrokenOff => 408,
            Self::Unreadable(_) => 400,
            Self::Crashed => 500,
            Self::TooSlow => 504,
        }
    }

    pub(super) fn message(&self) -> String {
        let message = match self {
            Self::NotJson => "reviews are application/json",
            Self::TooLarge => "the review is too large",
            Self::Busy => "too many reviews are under way: try again",
            Self::BrokenOff => "the review did not come whole in time",
            Self::Unreadable(why) => return format!("the review cannot be read: {why}"),
            Self::Crashed => "the webhook of hadoop-token-csi crashed over this: its log says where",
            Self::TooSlow => "the webhook of hadoop-token-csi could not decide in time: try again",
        };
        message.to_owned()
    }
}

impl From<Failure> for Denial {
    fn from(failure: Failure) -> Self {
        Self { reason: failure.reason(), message: failure.message(), code: failure.code() }
    }
}
