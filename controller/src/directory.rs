//! Which users exist and which groups they are in: asked of an LDAP server, or read from a file. An account is known,
//! or known not to exist, or there is an error, which never passes for either: whoever asks tries again later.

mod cache;
mod file;
mod ldap;

use std::{collections::BTreeSet, io::Write, path::PathBuf, sync::Arc};

use anyhow::{Context, anyhow};
use hadoop::HadoopUser;
use serde::Deserialize;

/// The configuration's `directory`: one of two kinds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) enum Section {
    /// A YAML file with all users and their groups.
    File(PathBuf),
    /// An LDAP server.
    Ldap(Box<ldap::Section>),
}

/// What is known of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Account {
    /// Names of the groups that the user is in, also by way of other groups.
    pub(crate) groups: BTreeSet<String>,
}

/// Where accounts are looked up. Clones share connection and cache.
#[derive(Clone)]
pub(crate) struct Directory(Arc<Source>);

enum Source {
    File(file::Users),
    Ldap(cache::Cached),
}

impl Directory {
    /// Checks the section and the files it names, without a word over the network. Each mistake begins with its key
    /// below `directory`.
    pub(crate) fn open(section: Section) -> Result<Self, Vec<String>> {
        let source = match section {
            Section::File(path) => Source::File(file::Users::open(path).map_err(|error| vec![error])?),
            Section::Ldap(section) => Source::Ldap(cache::Cached::open(*section)?),
        };
        Ok(Self(Arc::new(source)))
    }

    /// The user's account; `None` when the directory has answered that there is no such user.
    pub(crate) async fn account(&self, user: &HadoopUser) -> Result<Option<Arc<Account>>, DirectoryError> {
        match &*self.0 {
            Source::File(users) => Ok(users.account(user).await),
            Source::Ldap(cached) => cached.account(user).await,
        }
    }

    /// Writes what it says of a user, a group a line, for an operator who wants to see what the controller sees.
    pub(crate) async fn write_groups(&self, user: &HadoopUser, mut target: impl Write) -> anyhow::Result<()> {
        let asked = self.account(user).await;
        let found = asked.map_err(|error| anyhow!("{error} [{}]", error.reason()))?;
        let account = found.with_context(|| format!("the directory knows no user {user}"))?;
        for group in &account.groups {
            writeln!(target, "{group}").context("cannot write the groups")?;
        }
        Ok(())
    }

    /// Whether it could answer now.
    pub(crate) async fn check(&self) -> Result<(), DirectoryError> {
        match &*self.0 {
            Source::File(users) => users.check().await,
            Source::Ldap(cached) => cached.check().await,
        }
    }
}

/// Why the directory gives no answer. Always worth another try; never says anything about the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DirectoryError {
    /// There is no connection, or none that can be trusted.
    #[error("the directory {address} cannot be reached: {why}")]
    Unreachable { address: String, why: String },
    /// The answer did not come in time.
    #[error("the directory {address} is too late: {why}")]
    Late { address: String, why: String },
    /// It does not let us in.
    #[error("the directory {address} refuses our bind: {why}")]
    BindRefused { address: String, why: String },
    /// It answers, but not completely, or not what was asked.
    #[error("the directory {address} cannot answer: {why}")]
    Unwell { address: String, why: String },
}

impl DirectoryError {
    /// One word for programs.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "DIRECTORY_UNREACHABLE",
            Self::Late { .. } => "DIRECTORY_LATE",
            Self::BindRefused { .. } => "DIRECTORY_BIND_REFUSED",
            Self::Unwell { .. } => "DIRECTORY_UNWELL",
        }
    }
}
