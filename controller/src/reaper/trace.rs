//! Finds a token that was asked for and whose answer nobody heard, and cancels it.

mod candidates;
