//! The thread that writes: takes what has gathered since the last batch, writes it at once, and only then tells
//! those who wait. What could not be written is kept, and comes before everything else as soon as there is room.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use tracing::{error, info};

use super::{
    AuditError,
    sink::{Partial, Sink},
};
use crate::metrics::Metrics;

/// How long what could not be written waits for the next attempt, if nobody asks before.
const RETRY: Duration = Duration::from_secs(1);

/// One batch takes no more lines once it is that long.
const BATCH: usize = 1024 * 1024;

/// What is kept of lines that cannot be written. What is beyond goes to the log.
pub(super) const MAX_KEPT: usize = 16 * 1024 * 1024;

/// What those who wait have in common with the thread.
#[derive(Default)]
pub(super) struct State {
    /// Why the last batch could not be written.
    failure: Mutex<Option<AuditError>>,
    /// Bytes of lines on their way to the thread.
    pub(super) queued: AtomicUsize,
}

impl State {
    pub(super) fn failure(&self) -> Option<AuditError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_failure(&self, failure: Option<AuditError>) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }
}

/// One line, or none: then the question whether there is room again.
pub(super) struct Entry {
    pub(super) line: Vec<u8>,
    /// Told when the line is safe, or that it is not.
    pub(super) answer: Option<oneshot::Sender<Result<(), AuditError>>>,
}

impl Entry {
    fn answer(&mut self, outcome: Result<(), AuditError>) {
        if let Some(answer) = self.answer.take() {
            drop(answer.send(outcome)); // nobody may wait any more
        }
    }
}

pub(super) struct Writer<S> {
    pub(super) sink: S,
    pub(super) entries: Receiver<Entry>,
    pub(super) state: Arc<State>,
    pub(super) metrics: Metrics,
}

impl<S: Sink> Writer<S> {
    /// Writes until nobody can send any more.
    pub(super) fn run(mut self) {
        let mut kept = Vec::new();
        loop {
            let first = if kept.is_empty() {
                self.entries.recv().map_err(RecvTimeoutError::from)
            } else {
                self.entries.recv_timeout(RETRY)
            };
            let over = matches!(first, Err(RecvTimeoutError::Disconnected));
            let mut length = 0;
            let mut next = first.ok();
            while let Some(entry) = next {
                self.state.queued.fetch_sub(entry.line.len(), Relaxed);
                self.metrics.audit_queue.dec();
                length += entry.line.len();
                kept.push(entry);
                next = if length < BATCH { self.entries.try_recv().ok() } else { None };
            }
            kept = self.write(kept);
            if over {
                break;
            }
        }
        self.lose(&kept);
    }

    /// Writes and answers. Returns what has to be written again.
    fn write(&mut self, mut batch: Vec<Entry>) -> Vec<Entry> {
        let lines: Vec<u8> = batch.iter().flat_map(|entry| entry.line.iter().copied()).collect();
        let begun = Instant::now();
        let outcome = self.sink.append(&lines);
        self.metrics.audit_seconds.observe(begun.elapsed().as_secs_f64());
        let (safe, error) = match outcome {
            Ok(()) => (batch.len(), None),
            Err(Partial { kept, error }) => {
                (count(&batch, kept), Some(AuditError::Unwritable(error.to_string().into())))
            }
        };
        self.show(error.clone());
        let mut unwritten = batch.split_off(safe);
        batch.into_iter().for_each(|mut entry| entry.answer(Ok(())));
        if let Some(error) = error {
            unwritten.iter_mut().for_each(|entry| entry.answer(Err(error.clone())));
        }
        unwritten.retain(|entry| !entry.line.is_empty());
        self.lose(&unwritten.split_off(count(&unwritten, MAX_KEPT)));
        unwritten
    }

    /// Tells readiness, and the log what is new.
    fn show(&self, error: Option<AuditError>) {
        match (self.state.failure(), &error) {
            (None, Some(error)) => error!(%error, "Nothing is issued until the audit log can be written"),
            (Some(_), None) => info!("The audit log can be written again"),
            _ => {}
        }
        if error.is_some() {
            self.metrics.audit_failures.inc();
        }
        self.state.set_failure(error);
    }

    /// The last resort: a record that will never be written goes to the log, which is another stream.
    fn lose(&self, entries: &[Entry]) {
        for entry in entries {
            self.metrics.audit_lost.inc();
            error!(record = String::from_utf8_lossy(&entry.line).trim_end(), "An audit record is lost");
        }
    }
}

/// How many entries fit into so many bytes.
fn count(entries: &[Entry], bytes: usize) -> usize {
    let mut end = 0;
    let fits = |entry: &&Entry| {
        end += entry.line.len();
        end <= bytes
    };
    entries.iter().take_while(fits).count()
}
