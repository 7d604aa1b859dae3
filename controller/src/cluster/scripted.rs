//! A NameNode for tests of moments that a real one cannot be brought to.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex as SyncMutex, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use hadoop::{HadoopUser, Token, TokenIdentifier, namenode::Cancelled};
use tokio::{sync::Notify, time::Instant};
use tonic::Code;

use super::{Authority, CallError, NotGot};

pub(crate) const ISSUED: u64 = 1_800_000_000_000;
pub(crate) const INTERVAL: u64 = 86_400_000;
pub(crate) const LIFETIME: u64 = 604_800_000;

/// A NameNode in memory: counts, and fails as told.
#[derive(Default)]
pub(crate) struct Scripted {
    pub(crate) gets: AtomicU64,
    /// Outcomes of the next requests for a token; then all succeed.
    pub(crate) get_errors: SyncMutex<VecDeque<NotGot>>,
    pub(crate) renewals: AtomicU64,
    pub(crate) cancelled: SyncMutex<Vec<Vec<u8>>>,
    pub(crate) cancel_attempts: AtomicU64,
    /// How long a cancellation takes.
    pub(crate) cancel_after: Duration,
    /// Outcomes of the next cancellations; then all succeed.
    pub(crate) cancel_errors: SyncMutex<VecDeque<CallError>>,
    pub(crate) renew_error: SyncMutex<Option<CallError>>,
    /// Since when its clock runs; else it stands still.
    pub(crate) runs_since: Option<Instant>,
    /// How long a renewal takes.
    pub(crate) renew_after: Duration,
    /// Whose tokens it gives, if not of the one who was asked for.
    pub(crate) owner: Option<&'static str>,
    /// When set, a token is made, and its delivery waits for this.
    pub(crate) delivery: Option<Arc<Notify>>,
    pub(crate) cancellation: Notify,
}

pub(crate) fn down() -> CallError {
    CallError { reason: "NAMENODE_UNREACHABLE", code: Code::Unavailable, message: "down".to_owned() }
}

pub(crate) fn denied() -> CallError {
    CallError { reason: "CANCEL_DENIED", code: Code::FailedPrecondition, message: "denied".to_owned() }
}

impl Scripted {
    fn date(&self) -> u64 {
        let runs = self.runs_since.map(|since| since.elapsed()).unwrap_or_default();
        ISSUED + u64::try_from(runs.as_millis()).unwrap()
    }

    pub(crate) fn cancelled(&self) -> usize {
        self.cancelled.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Waits until a token has been cancelled.
    pub(crate) async fn cancellation(&self) {
        while self.cancelled() == 0 {
            self.cancellation.notified().await;
        }
    }
}

#[tonic::async_trait]
impl Authority for Scripted {
    async fn get(&self, user: &HadoopUser, renewer: &str, _: &str) -> Result<Token, NotGot> {
        let number = self.gets.fetch_add(1, SeqCst);
        if let Some(error) = self.get_errors.lock().unwrap().pop_front() {
            return Err(error);
        }
        if let Some(delivery) = &self.delivery {
            delivery.notified().await;
        }
        let identifier = TokenIdentifier {
            owner: self.owner.unwrap_or(user.as_str()).to_owned(),
            renewer: renewer.to_owned(),
            real_user: "csi/h@R".to_owned(),
            issue_date: self.date(),
            max_date: self.date() + LIFETIME,
            sequence_number: i32::try_from(number).unwrap(),
            master_key_id: 1,
        };
        Ok(Token::new(identifier.encode(), b"password".to_vec(), hadoop::token::HDFS_DELEGATION_TOKEN, ""))
    }

    async fn renew(&self, _: &Token, _: &str) -> Result<u64, CallError> {
        self.renewals.fetch_add(1, SeqCst);
        let error = self.renew_error.lock().unwrap().take();
        tokio::time::sleep(self.renew_after).await;
        match error {
            Some(error) => Err(error),
            None => Ok(self.date() + u64::try_from(self.renew_after.as_millis()).unwrap() + INTERVAL),
        }
    }

    async fn cancel(&self, identifier: &[u8], _: &str) -> Result<Cancelled, CallError> {
        self.cancel_attempts.fetch_add(1, SeqCst);
        if let Some(error) = self.cancel_errors.lock().unwrap().pop_front() {
            return Err(error);
        }
        if !self.cancel_after.is_zero() {
            tokio::time::sleep(self.cancel_after).await;
        }
        self.cancelled.lock().unwrap().push(identifier.to_vec());
        self.cancellation.notify_one();
        Ok(Cancelled::Now)
    }

    async fn services(&self) -> Result<Vec<String>, CallError> {
        Ok(vec!["10.0.0.1:8020".to_owned(), "nn1:8020".to_owned()])
    }
}
