//! An audit log in memory, for tests of what is recorded and of what happens when nothing can be.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use prometheus_client::registry::Registry;
use serde_json::Value;

use super::{
    Audit,
    sink::{Partial, Sink},
};
use crate::metrics::Metrics;

/// What an audit log holds. Clones look at the same.
#[derive(Clone, Default)]
pub(crate) struct Recorded {
    lines: Arc<Mutex<Vec<u8>>>,
    full: Arc<AtomicBool>,
}

impl Recorded {
    /// An audit log, and what it holds.
    pub(crate) fn audit() -> (Audit, Self) {
        let recorded = Self::default();
        let metrics = Metrics::register(&mut Registry::default(), ["main"]);
        let audit = Audit::start(recorded.clone(), metrics).unwrap();
        (Audit { spins: true, ..audit }, recorded)
    }

    /// Takes all room away, or gives it back.
    pub(crate) fn fill(&self, full: bool) {
        self.full.store(full, SeqCst);
    }

    /// The records, oldest first.
    pub(crate) fn records(&self) -> Vec<Value> {
        let lines = self.lines.lock().unwrap();
        let text = std::str::from_utf8(&lines).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "ends within a line");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Sink for Recorded {
    fn append(&mut self, lines: &[u8]) -> Result<(), Partial> {
        if self.full.load(SeqCst) {
            return Err(io::Error::from(io::ErrorKind::StorageFull).into());
        }
        self.lines.lock().unwrap().extend_from_slice(lines);
        Ok(())
    }
}
