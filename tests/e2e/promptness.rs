//! How soon something follows something else, measured many times.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead, BufReader, Seek, SeekFrom},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bed::{
    namenode::{NameNode, TokenAction, TokenEvent},
    process::until,
    progress::say,
};
use tokio::time::Instant;

const PAUSE: Duration = Duration::from_millis(2);

/// When a NameNode cancelled which token, and for whom, from its audit log as it grows.
pub(crate) struct Cancels {
    found: Arc<Mutex<HashMap<u32, Vec<Cancel>>>>,
    over: Arc<AtomicBool>,
}

/// One attempt to cancel a token.
#[derive(Clone, Debug)]
pub(crate) struct Cancel {
    pub(crate) at: Instant,
    /// Otherwise the NameNode refused, as it does when it does not know the token.
    pub(crate) worked: bool,
    /// Address of who asked.
    pub(crate) address: String,
}

impl Cancels {
    /// Follows from now on, until it is dropped.
    pub(crate) fn follow(name_node: &NameNode) -> Result<Self> {
        let mut log = File::open(name_node.audit_log())?;
        log.seek(SeekFrom::End(0))?;
        let this = Self { found: Arc::default(), over: Arc::default() };
        let (found, over) = (this.found.clone(), this.over.clone());
        thread::Builder::new().name("audit-log".to_owned()).spawn(move || {
            let (mut log, mut line) = (BufReader::new(log), String::new());
            while !over.load(Relaxed) {
                // The end of the file may be in the middle of a line.
                match log.read_line(&mut line) {
                    Ok(_) if line.ends_with('\n') => note(&found, &line),
                    Ok(_) => {
                        thread::park_timeout(PAUSE);
                        continue;
                    }
                    Err(error) => {
                        say(format_args!("the NameNode's audit log cannot be read any more: {error}"));
                        return;
                    }
                }
                line.clear();
            }
        })?;
        Ok(this)
    }

    /// Attempts to cancel a token, in order.
    pub(crate) fn of(&self, number: u32) -> Vec<Cancel> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.get(&number).cloned().unwrap_or_default()
    }

    /// Waits until a token is cancelled.
    pub(crate) async fn until(&self, number: u32, limit: Duration) -> Result<Cancel> {
        until(&format!("cancelled: token {number}"), limit, async || {
            let attempts = self.of(number);
            attempts.iter().find(|attempt| attempt.worked).cloned().with_context(|| format!("{attempts:?}"))
        })
        .await
    }
}

impl Drop for Cancels {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
    }
}

fn note(found: &Mutex<HashMap<u32, Vec<Cancel>>>, line: &str) {
    let Some(event) = TokenEvent::of_line(line.trim_end()) else { return };
    let (TokenAction::Cancelled, Some(number)) = (event.action, event.sequence_number) else { return };
    let cancel = Cancel { at: Instant::now(), worked: event.allowed, address: event.address };
    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
    found.entry(number).or_default().push(cancel);
}

/// How long something took, each time.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// 99 of 100 times it took no longer than `limit`. Says how long it took.
    pub(crate) fn within(mut self, what: &str, limit: Duration) -> Result<()> {
        self.0.sort();
        let (half, most) = (self.quantile(50), self.quantile(99));
        let (half, most) = (half.context("never")?, most.context("never")?);
        say(format_args!("{what}, {} times: p50 {half:.3?}, p99 {most:.3?}", self.0.len()));
        ensure!(most <= limit, "{what}: p99 is {most:.3?}, more than {limit:?}: {:?}", self.0);
        Ok(())
    }

    fn quantile(&self, percent: usize) -> Option<Duration> {
        let rank = (self.0.len() * percent).div_ceil(100);
        self.0.get(rank.checked_sub(1)?).copied()
    }
}
