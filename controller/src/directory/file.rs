//! The directory as a YAML file, for sites without LDAP and for development. Looked at again when somebody asks, and
//! read again when it has changed; a version that is wrong is warned of, and the last good one stays.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use hadoop::HadoopUser;
use serde::Deserialize;
use tokio::{sync::Mutex, time::Instant};
use tracing::{info, warn};

use super::{Account, DirectoryError};

/// A change counts after this time at the latest.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The file as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    users: BTreeMap<String, User>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct User {
    #[serde(default)]
    groups: BTreeSet<String>,
}

type Accounts = BTreeMap<HadoopUser, Arc<Account>>;

/// All users of the file.
pub(super) struct Users {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    looked: Instant,
    /// The content that was last looked at, good or bad; none when it could not be read.
    content: Option<Vec<u8>>,
    accounts: Accounts,
    /// Why the present content is not the one in use.
    trouble: Option<String>,
}

impl Users {
    /// Reads the file, which must be right.
    pub(super) fn open(path: PathBuf) -> Result<Self, String> {
        let content = std::fs::read(&path).ok();
        let accounts = read(&path).map_err(|error| format!("file: {error}"))?;
        let state = State { looked: Instant::now(), content, accounts, trouble: None };
        Ok(Self { path, state: Mutex::new(state) })
    }

    pub(super) async fn account(&self, user: &HadoopUser) -> Option<Arc<Account>> {
        let mut state = self.state.lock().await;
        self.look(&mut state).await;
        state.accounts.get(user).cloned()
    }

    pub(super) async fn check(&self) -> Result<(), DirectoryError> {
        let mut state = self.state.lock().await;
        self.look(&mut state).await;
        let address = || self.path.display().to_string();
        match &state.trouble {
            None => Ok(()),
            Some(why) => Err(DirectoryError::Unwell { address: address(), why: why.clone() }),
        }
    }

    async fn look(&self, state: &mut State) {
        if state.looked.elapsed() < LOOK_AGAIN {
            return;
        }
        state.looked = Instant::now();
        let content = tokio::fs::read(&self.path).await.ok();
        if content == state.content {
            return;
        }
        state.content = content;
        match read(&self.path) {
            Ok(accounts) => {
                info!(path = %self.path.display(), users = accounts.len(), "Took up a new file of users");
                state.accounts = accounts;
                state.trouble = None;
            }
            Err(error) => {
                warn!(path = %self.path.display(), error, "The file of users has changed and is wrong; the last good one stays");
                state.trouble = Some(format!("{error}; what it held before still counts"));
            }
        }
    }
}

fn read(path: &std::path::Path) -> Result<Accounts, String> {
    let file: File = process::config::load(path).map_err(|error| match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    })?;
    let mut mistakes = Vec::new();
    let mut accounts = Accounts::new();
    for (name, User { groups }) in file.users {
        if groups.iter().any(String::is_empty) {
            mistakes.push(format!("users.{name}.groups: a group has a name"));
        }
        match name.parse() {
            Ok(user) => drop(accounts.insert(user, Arc::new(Account { groups }))),
            Err(error) => mistakes.push(format!("users: {error}")),
        }
    }
    if mistakes.is_empty() {
        Ok(accounts)
    } else {
        Err(format!("{}: {}", path.display(), mistakes.join("; ")))
    }
}

#[cfg(test)]
mod tests;
