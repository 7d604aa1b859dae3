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

/// What to search for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Query<'a> {
    pub(super) base: &'a str,
    pub(super) scope: Scope,
    pub(super) filter: &'a str,
    pub(super) attributes: &'a [&'a str],
    /// More entries than these are an error.
    pub(super) most: usize,
    /// What the operator can do about it.
    pub(super) advice: &'a str,
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

    /// All entries that match.
    pub(super) async fn search(&self, query: Query<'_>) -> Result<Vec<Entry>, DirectoryError> {
        let mut tried = false;
        loop {
            let connection = self.connector.connection().await?;
            let address = connection.address.clone();
            match timeout(self.limit, ask(&connection, query, self.limit)).await {
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

async fn ask(connection: &Connection, query: Query<'_>, limit: Duration) -> Result<Vec<Entry>, Failure> {
    let Query { base, scope, filter, attributes, most, advice } = query;
    let options = SearchOptions::new()
        .sizelimit(i32::try_from(most).unwrap_or(i32::MAX))
        .timelimit(i32::try_from(limit.as_secs()).unwrap_or(i32::MAX));
    let mut ldap = connection.ldap.clone();
    let started = ldap.with_search_options(options).streaming_search(base, scope, filter, attributes);
    let mut stream = started.await.map_err(failure)?;
    let mut entries = Vec::new();
    let mut trouble = None;
    let too_many = || format!("more entries match {filter} than it gives us, or than {most}: {advice}");
    // To the end, whatever comes: what is left over would be taken for somebody else's.
    while let Some(entry) = stream.next().await.map_err(failure)? {
        if entry.is_intermediate() {
            continue;
        }
        if entry.is_ref() {
            trouble = Some(format!("below {base:?} it refers us to another server: narrow the base"));
        } else if entries.len() == most {
            trouble = Some(too_many());
        } else {
            match Entry::read(entry) {
                Some(entry) => entries.push(entry),
                None => trouble = Some(format!("it sends entries that cannot be read for {filter}")),
            }
        }
    }
    let result = stream.finish().await;
    let why = match (result.rc, trouble) {
        (0, None) => return Ok(entries),
        (0, Some(trouble)) => trouble,
        (4, _) => too_many(),
        (10, _) => format!("it refers us to another server for {base:?}"),
        (32, _) => format!("{base:?} does not exist, or is hidden from us"),
        _ => format!("{} below {base:?}", said(&result)),
    };
    Err(Failure::Unwell(why))
}

fn failure(error: LdapError) -> Failure {
    match error {
        LdapError::FilterParsing => Failure::Unwell("a filter cannot be parsed".to_owned()),
        error => Failure::Broken(error),
    }
}
