//! One search: on the shared connection, on another when that one turns out to be broken, and complete or an error.

use std::time::Duration;

use ldap3::{LdapError, Scope, SearchOptions};
use tokio::time::timeout;

use super::{
    connection::{Connection, Connector, said},
    entry::Entry,
};
use crate::directory::DirectoryError;

/// Searches the directory.
pub(super) struct Searcher {
    connector: Connector,
    limit: Duration,
}

/// Why a search has no result.
enum Failure {
    /// The connection ended; another one may do.
    Broken(LdapError),
    /// The server's own words, or what is wrong with them.
    Unwell(String),
}

impl Searcher {
    pub(super) fn new(connector: Connector, limit: Duration) -> Self {
        Self { connector, limit }
    }

    pub(super) fn addresses(&self) -> String {
        self.connector.addresses()
    }

    /// All entries below `base` that match; more than `most` are an error.
    pub(super) async fn search(
        &self,
        base: &str,
        scope: Scope,
        filter: &str,
        attributes: &[&str],
        most: usize,
    ) -> Result<Vec<Entry>, DirectoryError> {
        let mut tried = false;
        loop {
            let connection = self.connector.connection().await?;
            let address = connection.address.clone();
            let asking = ask(&connection, base, scope, filter, attributes, most, self.limit);
            match timeout(self.limit, asking).await {
                Ok(Ok(entries)) => return Ok(entries),
                Ok(Err(Failure::Unwell(why))) => return Err(DirectoryError::Unwell { address, why }),
                Ok(Err(Failure::Broken(error))) => {
                    self.connector.give_up(&connection).await;
                    if tried {
                        let why = format!("the connection broke during a search: {error}");
                        return Err(DirectoryError::Unreachable { address, why });
                    }
                    tried = true;
                }
                Err(_) => {
                    // Perhaps nobody is there any more.
                    self.connector.give_up(&connection).await;
                    let why = format!("a search took longer than {} s", self.limit.as_secs());
                    return Err(DirectoryError::Late { address, why });
                }
            }
        }
    }
}

async fn ask(
    connection: &Connection,
    base: &str,
    scope: Scope,
    filter: &str,
    attributes: &[&str],
    most: usize,
    limit: Duration,
) -> Result<Vec<Entry>, Failure> {
    let options = SearchOptions::new()
        .sizelimit(i32::try_from(most).unwrap_or(i32::MAX))
        .timelimit(i32::try_from(limit.as_secs()).unwrap_or(i32::MAX));
    let mut ldap = connection.ldap.clone();
    let started =
        ldap.with_search_options(options).streaming_search(base, scope, filter, attributes.to_vec());
    let mut stream = started.await.map_err(failure)?;
    let mut entries = Vec::new();
    let mut trouble = None;
    // To the end, whatever comes: what is left over would be taken for somebody else's.
    while let Some(entry) = stream.next().await.map_err(failure)? {
        if entry.is_intermediate() {
            continue;
        }
        if entry.is_ref() {
            trouble = Some(format!("below {base:?} it refers us to another server: narrow the base"));
        } else if entries.len() == most {
            trouble = Some(format!("more than {most} entries match {filter}"));
        } else {
            match Entry::read(entry) {
                Some(entry) => entries.push(entry),
                None => trouble = Some(format!("it sends entries that cannot be read for {filter}")),
            }
        }
    }
    let result = stream.finish().await;
    match (result.rc, trouble) {
        (0, None) => Ok(entries),
        (0, Some(trouble)) => Err(Failure::Unwell(trouble)),
        (4, _) => Err(Failure::Unwell(format!(
            "more entries match {filter} than it gives, or than the {most} that are allowed"
        ))),
        (10, _) => Err(Failure::Unwell(format!("it refers us to another server for {base:?}"))),
        (32, _) => Err(Failure::Unwell(format!("{base:?} does not exist, or is hidden from us"))),
        _ => Err(Failure::Unwell(format!("{} below {base:?}", said(&result)))),
    }
}

fn failure(error: LdapError) -> Failure {
    match error {
        LdapError::FilterParsing => Failure::Unwell("a filter cannot be parsed".to_owned()),
        error => Failure::Broken(error),
    }
}
