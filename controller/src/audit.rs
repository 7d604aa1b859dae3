//! The audit log: one JSON line for everything that was asked for and done, safe on disk before the answer goes out.
//! While it cannot be written, [`Audit::ready`] fails, and nothing is asked of Hadoop. Never holds a secret.

mod record;
mod sink;
mod writer;

use std::{
    fmt, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::Ordering::Relaxed,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::Duration,
};

use serde::Deserialize;
use tokio::{sync::oneshot, time::timeout};

use self::{
    sink::{LogFile, Sink, Stream},
    writer::{Entry, MAX_KEPT, State, Writer},
};
pub(crate) use record::{Action, Decision, Record, RequestId, TokenNumber};

use crate::metrics::Metrics;

/// Records that may wait for the disk. The calls they belong to wait with them.
const QUEUE: usize = 8192;

/// How long a record may take to be safe, before its call fails.
const DEADLINE: Duration = Duration::from_secs(5);

/// The configuration's key `audit`: `{file: PATH}` or `{stdout: true}`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(crate) struct Section {
    file: Option<PathBuf>,
    stdout: Option<bool>,
}

/// Where records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    Stdout,
    File(PathBuf),
}

impl Section {
    /// The one destination it names; standard output, when it names none.
    pub(crate) fn destination(self) -> Result<Destination, &'static str> {
        match (self.file, self.stdout) {
            (Some(_), Some(true)) => Err("name either a file or stdout"),
            (None, Some(false)) => Err("name a file, or leave stdout on"),
            (Some(file), _) if !file.is_absolute() => Err("file: must be an absolute path"),
            (Some(file), _) => Ok(Destination::File(file)),
            (None, _) => Ok(Destination::Stdout),
        }
    }
}

/// Why a record is not safe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuditError {
    /// The system's reason.
    #[error("the audit log cannot be written: {0}")]
    Unwritable(Arc<str>),
    #[error("the audit log takes longer than {} s to be written", DEADLINE.as_secs())]
    Late,
    #[error("too many audit records wait to be written")]
    Full,
}

/// The audit log at start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("cannot open the audit log {path}", path = path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("cannot start the thread that writes the audit log")]
    Thread(#[source] io::Error),
}

/// The audit log. Clones write to the same.
#[derive(Clone)]
pub(crate) struct Audit {
    entries: SyncSender<Entry>,
    state: Arc<State>,
    metrics: Metrics,
    /// Waits without tokio's clock, which a test may have stopped: it would run on at once.
    #[cfg(test)]
    spins: bool,
}

impl Audit {
    /// Opens the log. It ends, having written everything, with the last clone.
    pub(crate) fn open(destination: Destination, metrics: Metrics) -> Result<Self, OpenError> {
        match destination {
            Destination::Stdout => Self::start(Stream::new(io::stdout()), metrics),
            Destination::File(path) => match LogFile::open(&path) {
                Ok(file) => Self::start(file, metrics),
                Err(source) => Err(OpenError::File { path, source }),
            },
        }
    }

    fn start(sink: impl Sink, metrics: Metrics) -> Result<Self, OpenError> {
        let (entries, receiver) = sync_channel(QUEUE);
        let state = Arc::new(State::default());
        let writer = Writer { sink, entries: receiver, state: state.clone(), metrics: metrics.clone() };
        // A thread of its own: a disk that hangs must stop no call but those that wait for it.
        thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run())
            .map_err(OpenError::Thread)?;
        Ok(Self {
            entries,
            state,
            metrics,
            #[cfg(test)]
            spins: false,
        })
    }

    /// Whether records can be written, to be asked before anything is done that must be recorded. After a failure,
    /// this is so only when the records that were not written then have been.
    pub(crate) async fn ready(&self) -> Result<(), AuditError> {
        if self.state.failure().is_none() {
            return Ok(());
        }
        self.append(Vec::new()).await
    }

    /// Counts the record, and writes it; it is safe when this returns. One that is not is kept, and written as soon
    /// as that is possible.
    pub(crate) async fn write(&self, record: &Record) -> Result<(), AuditError> {
        self.metrics.decided(record.action, record.decision, record.reason);
        let line = record.line().map_err(|error| AuditError::Unwritable(error.to_string().into()))?;
        self.append(line).await
    }

    async fn append(&self, line: Vec<u8>) -> Result<(), AuditError> {
        let (answer, answered) = oneshot::channel();
        self.send(Entry { line, answer: Some(answer) })?;
        #[cfg(test)]
        while self.spins && answered.is_empty() && !answered.is_terminated() {
            thread::yield_now();
        }
        match timeout(DEADLINE, answered).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(AuditError::Unwritable("its thread has ended".into())),
            Err(_) => {
                self.state.set_failure(Some(AuditError::Late));
                Err(AuditError::Late)
            }
        }
    }

    fn send(&self, entry: Entry) -> Result<(), AuditError> {
        let length = entry.line.len();
        let outcome = if self.state.queued.fetch_add(length, Relaxed) + length > MAX_KEPT {
            Err(AuditError::Full)
        } else {
            self.metrics.audit_queue.inc();
            self.entries.try_send(entry).map_err(|error| {
                self.metrics.audit_queue.dec();
                match error {
                    TrySendError::Full(_) => AuditError::Full,
                    TrySendError::Disconnected(_) => AuditError::Unwritable("its thread has ended".into()),
                }
            })
        };
        if outcome.is_err() {
            self.state.queued.fetch_sub(length, Relaxed);
        }
        outcome
    }
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Audit")
    }
}

#[cfg(test)]
pub(crate) mod recorded;
#[cfg(test)]
mod tests;
