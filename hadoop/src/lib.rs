//! Hadoop delegation tokens.
