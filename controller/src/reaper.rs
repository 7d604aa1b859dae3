//! Ends the tokens of pods that are gone, and finds those that were lost on their way.

mod trace;
