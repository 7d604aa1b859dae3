//! What every program of ours does at start and stop, so that their `main`s do not drift apart: read the
//! configuration, write the log, answer health requests, and stop on a signal.

pub mod config;
pub mod fault;
pub mod health;
pub mod log;
mod signal;
#[cfg(feature = "tls")]
pub mod tls;

pub use signal::terminated;
