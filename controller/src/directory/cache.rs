//! Answers of the LDAP server, kept for a short while. What is kept is never used past its life, not even when the
//! server is away; errors are not kept. Who asks for a user that is being asked for waits for that answer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hadoop::HadoopUser;
use moka::{Expiry, future::Cache};
use serde::Deserialize;
use tokio::time::timeout;

use super::{
    Account, DirectoryError,
    ldap::{self, Ldap},
};

/// In seconds: who is taken out of a group should not stay in it for long.
const LONGEST_LIFE: u64 = 3600;

/// Of a name in memory, in bytes.
const OVERHEAD: usize = 64;

type Answer = Option<Arc<Account>>;

/// How long answers are kept, and how many of them.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Section {
    /// For users that exist, with their groups.
    positive_seconds: u64,
    /// For users that do not exist.
    negative_seconds: u64,
    /// How much memory they may take: a user may be in hundreds of groups.
    megabytes: u64,
}

impl Default for Section {
    fn default() -> Self {
        Self { positive_seconds: 60, negative_seconds: 10, megabytes: 32 }
    }
}

impl Section {
    /// What is wrong with it, each with its key below `directory`.
    pub(super) fn mistakes(self) -> Vec<String> {
        let mut mistakes = Vec::new();
        for (key, seconds) in
            [("positiveSeconds", self.positive_seconds), ("negativeSeconds", self.negative_seconds)]
        {
            if seconds > LONGEST_LIFE {
                mistakes.push(format!("ldap.cache.{key}: must be at most {LONGEST_LIFE}"));
            }
        }
        if !(1..=1024).contains(&self.megabytes) {
            mistakes.push("ldap.cache.megabytes: must be from 1 to 1024".to_owned());
        }
        mistakes
    }
}

/// An LDAP server with a memory.
pub(super) struct Cached {
    ldap: Arc<Ldap>,
    answers: Cache<HadoopUser, Answer>,
}

impl Cached {
    pub(super) fn open(section: ldap::Section) -> Result<Self, Vec<String>> {
        let lives = section.cache;
        Ok(Self { ldap: Arc::new(Ldap::open(section)?), answers: cache(lives) })
    }

    pub(super) async fn account(&self, user: &HadoopUser) -> Result<Answer, DirectoryError> {
        let ldap = Arc::clone(&self.ldap);
        let asked = user.clone();
        // A task of its own: whoever asked first may go away, and those who wait for the same answer still get it from
        // the directory in one piece. It also turns a panic over a malformed answer into an error.
        let ask = async move {
            let address = ldap.address();
            let limit = ldap.lookup_limit();
            let asking = tokio::spawn(async move { timeout(limit, ldap.account(&asked)).await });
            match asking.await {
                Ok(Ok(answer)) => Ok(answer?.map(Arc::new)),
                Ok(Err(_)) => {
                    let why = format!("a user was not looked up within {} s", limit.as_secs());
                    Err(DirectoryError::Late { address, why })
                }
                Err(error) => Err(DirectoryError::Unwell { address, why: error.to_string() }),
            }
        };
        self.answers.try_get_with_by_ref(user, ask).await.map_err(Arc::unwrap_or_clone)
    }

    pub(super) async fn check(&self) -> Result<(), DirectoryError> {
        self.ldap.check().await
    }
}

fn cache(section: Section) -> Cache<HadoopUser, Answer> {
    let lives = Lives {
        positive: Duration::from_secs(section.positive_seconds),
        negative: Duration::from_secs(section.negative_seconds),
    };
    Cache::builder().max_capacity(section.megabytes << 20).weigher(bytes).expire_after(lives).build()
}

/// About how much memory an answer takes.
fn bytes(user: &HadoopUser, answer: &Answer) -> u32 {
    let groups = answer.iter().flat_map(|account| &account.groups);
    let names = groups.map(|group| group.len() + OVERHEAD).sum::<usize>();
    u32::try_from(user.as_str().len() + 4 * OVERHEAD + names).unwrap_or(u32::MAX)
}

struct Lives {
    positive: Duration,
    negative: Duration,
}

impl Lives {
    fn of(&self, answer: &Answer) -> Option<Duration> {
        Some(if answer.is_some() { self.positive } else { self.negative })
    }
}

impl Expiry<HadoopUser, Answer> for Lives {
    fn expire_after_create(&self, _: &HadoopUser, answer: &Answer, _: Instant) -> Option<Duration> {
        self.of(answer)
    }

    /// An answer that takes the place of one that is past its life but still there.
    fn expire_after_update(
        &self,
        _: &HadoopUser,
        answer: &Answer,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        self.of(answer)
    }
}

#[cfg(test)]
mod tests;
