//! The directory as an LDAP server: posixAccount and posixGroup, groupOfNames, or Active Directory. A search counts
//! only when it is complete: a referral, a size limit, an entry that cannot be read is an error. Nothing is asked
//! without TLS but over a local socket, or where the configuration says so by the name `insecure`.

mod connection;
mod entry;
mod search;
mod walk;

use std::{fmt::Display, path::PathBuf, time::Duration};

use hadoop::HadoopUser;
use ldap3::Scope;
use serde::Deserialize;
use tracing::warn;

use self::{
    connection::{Bind, ClientFiles, Connector, Settings},
    search::{Query, Searcher},
    walk::{Member, Members, Nested, Rules, Walk, equals},
};
use super::{Account, DirectoryError, cache};

/// The configuration's `directory.ldap`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Section {
    servers: Vec<String>,
    #[serde(default)]
    start_tls: bool,
    #[serde(default)]
    insecure: bool,
    ca: Option<PathBuf>,
    client_certificate: Option<ClientCertificate>,
    bind: BindSection,
    users: UsersSection,
    groups: GroupsSection,
    #[serde(default)]
    timeouts: Timeouts,
    #[serde(default)]
    pub(super) cache: cache::Section,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ClientCertificate {
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
enum BindSection {
    #[serde(rename_all = "camelCase")]
    Simple {
        dn: String,
        password_file: PathBuf,
    },
    External,
    Anonymous,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct UsersSection {
    base: String,
    #[serde(default = "uid")]
    name_attribute: String,
    #[serde(default = "posix_account")]
    filter: String,
    /// LDAP finds `etl` when asked for `ETL`; Hadoop takes them for two.
    #[serde(default)]
    ignore_case: bool,
}

fn uid() -> String {
    "uid".to_owned()
}

fn posix_account() -> String {
    "(objectClass=posixAccount)".to_owned()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct GroupsSection {
    base: String,
    #[serde(default = "cn")]
    name_attribute: String,
    filter: Option<String>,
    #[serde(default)]
    members: Members,
    #[serde(default)]
    nested: Nested,
    #[serde(default = "thousand")]
    most_groups: usize,
    #[serde(default = "ten")]
    most_levels: usize,
}

fn cn() -> String {
    "cn".to_owned()
}

fn thousand() -> usize {
    1000
}

fn ten() -> usize {
    10
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Timeouts {
    connect_seconds: u64,
    bind_seconds: u64,
    search_seconds: u64,
    /// All searches for one user, with connecting.
    lookup_seconds: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect_seconds: 5, bind_seconds: 5, search_seconds: 5, lookup_seconds: 15 }
    }
}

/// An LDAP server.
pub(super) struct Ldap {
    searcher: Searcher,
    users: UsersSection,
    groups_base: String,
    rules: Rules,
    lookup_limit: Duration,
}

impl Ldap {
    pub(super) fn open(section: Section) -> Result<Self, Vec<String>> {
        let mistakes = section.mistakes();
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let Section { groups, timeouts, .. } = section;
        let seconds = Duration::from_secs;
        let plain = section.servers.iter().any(|server| server.starts_with("ldap://")) && !section.start_tls;
        if plain {
            let servers = section.servers.join(", ");
            warn!(
                servers,
                "directory.ldap.insecure: users, groups and password cross the network unprotected"
            );
        }
        let bind = match section.bind {
            BindSection::Simple { dn, password_file } => Bind::Simple { dn, password_file },
            BindSection::External => Bind::External,
            BindSection::Anonymous => Bind::Anonymous,
        };
        let client = section
            .client_certificate
            .map(|ClientCertificate { certificate, key }| ClientFiles { certificate, key });
        let settings = Settings {
            servers: section.servers,
            start_tls: section.start_tls,
            ca: section.ca,
            client,
            bind,
            active_directory: groups.nested == Nested::Chain,
            connect_limit: seconds(timeouts.connect_seconds),
            bind_limit: seconds(timeouts.bind_seconds),
        };
        let mistakes = settings.check();
        if !mistakes.is_empty() {
            return Err(mistakes.into_iter().map(|mistake| format!("ldap: {mistake}")).collect());
        }
        let rules = Rules {
            members: groups.members,
            nested: groups.nested,
            filter: groups.filter,
            name_attribute: groups.name_attribute,
            most_groups: groups.most_groups,
            most_levels: groups.most_levels,
        };
        let searcher = Searcher::new(Connector::new(settings), seconds(timeouts.search_seconds));
        let lookup_limit = seconds(timeouts.lookup_seconds);
        Ok(Self { searcher, users: section.users, groups_base: groups.base, rules, lookup_limit })
    }

    /// The servers' addresses.
    pub(super) fn address(&self) -> String {
        self.searcher.addresses()
    }

    /// Longest that [`Ldap::account`] may take.
    pub(super) fn lookup_limit(&self) -> Duration {
        self.lookup_limit
    }

    pub(super) async fn account(&self, user: &HadoopUser) -> Result<Option<Account>, DirectoryError> {
        let UsersSection { base, name_attribute, filter, ignore_case } = &self.users;
        let filter = format!("(&{filter}{})", equals(name_attribute, user.as_str()));
        let attributes = [name_attribute.as_str(), GID_NUMBER];
        let query = Query {
            base,
            scope: Scope::Subtree,
            filter: &filter,
            attributes: &attributes,
            most: 2,
            advice: "narrow users.filter",
        };
        let mut found = self.searcher.search(query).await?;
        found.retain(|entry| {
            *ignore_case || entry.values(name_attribute).iter().any(|name| name == user.as_str())
        });
        let Some(entry) = found.pop() else { return Ok(None) };
        if let Some(other) = found.pop() {
            let why = format!("{user} is two entries: {} and {}: narrow users.filter", entry.dn, other.dn);
            return Err(self.unwell(why));
        }
        let gid_number = match entry.values(GID_NUMBER) {
            [number] => {
                Some(number.parse().map_err(|_| self.unwell(format!("{user} has gidNumber {number:?}")))?)
            }
            _ => None,
        };
        let member = Member { name: user.as_str(), dn: &entry.dn, gid_number };
        let mut walk = Walk::of(member, &self.rules);
        while let Some(filter) = walk.next().map_err(|why| self.unwell(why))? {
            let query = Query {
                base: &self.groups_base,
                scope: Scope::Subtree,
                filter: &filter,
                attributes: &[&self.rules.name_attribute],
                most: self.rules.most_groups,
                advice: "raise groups.mostGroups, or the server's limit",
            };
            let groups = self.searcher.search(query).await?;
            walk.take(groups).map_err(|why| self.unwell(why))?;
        }
        Ok(Some(Account { groups: walk.finish() }))
    }

    /// Whether both bases can be read.
    pub(super) async fn check(&self) -> Result<(), DirectoryError> {
        for (key, base) in [("users.base", &self.users.base), ("groups.base", &self.groups_base)] {
            let query = Query {
                base,
                scope: Scope::Base,
                filter: "(objectClass=*)",
                attributes: &[NO_ATTRIBUTES],
                most: 1,
                advice: "an entry is one",
            };
            let found = self.searcher.search(query).await?;
            if found.is_empty() {
                return Err(self.unwell(format!("{key} {base:?} is hidden from us")));
            }
        }
        Ok(())
    }

    fn unwell(&self, why: String) -> DirectoryError {
        DirectoryError::Unwell { address: self.address(), why }
    }
}

const GID_NUMBER: &str = "gidNumber";
const NO_ATTRIBUTES: &str = "1.1";

impl Section {
    /// Everything that can be seen to be wrong without opening a file.
    fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut demand = |holds: bool, key: &str, complaint: &dyn Display| {
            if !holds {
                mistakes.push(format!("ldap.{key}: {complaint}"));
            }
        };
        demand(!self.servers.is_empty(), "servers", &"name at least one");
        let scheme =
            |server: &str| server.split_once("://").map(|(scheme, _)| scheme.to_owned()).unwrap_or_default();
        let schemes: Vec<String> = self.servers.iter().map(|server| scheme(server)).collect();
        for (server, scheme) in self.servers.iter().zip(&schemes) {
            demand(
                ["ldaps", "ldap", "ldapi"].contains(&scheme.as_str()) && well_formed(server),
                "servers",
                &format!(
                    "{server:?} is no URL such as ldaps://HOST, ldap://HOST:PORT or ldapi://%2Frun%2Fldapi"
                ),
            );
        }
        let any = |wanted: &str| schemes.iter().any(|scheme| scheme == wanted);
        demand(
            !any("ldap") || self.start_tls || self.insecure,
            "servers",
            &"ldap:// is unprotected: use ldaps://, or set startTls: true (or, only to try something out, insecure: true)",
        );
        demand(!self.start_tls || any("ldap"), "startTls", &"is for ldap:// only");
        demand(
            !self.insecure || (any("ldap") && !self.start_tls),
            "insecure",
            &"remove it: every connection is protected",
        );
        let tls = any("ldaps") || self.start_tls;
        demand(
            !tls || self.ca.is_some(),
            "ca",
            &"name the file with the certificates of the servers' authorities",
        );
        demand(tls || self.ca.is_none(), "ca", &"there is no TLS to use it for");
        demand(
            tls || self.client_certificate.is_none(),
            "clientCertificate",
            &"there is no TLS to show it in",
        );
        if let BindSection::External = self.bind {
            demand(
                self.client_certificate.is_some() || schemes.iter().all(|scheme| scheme == "ldapi"),
                "bind",
                &"external needs a clientCertificate, or ldapi://",
            );
        }
        if let BindSection::Simple { dn, .. } = &self.bind {
            demand(!dn.trim().is_empty(), "bind.simple.dn", &"must not be empty");
        }
        for (key, base) in [("users.base", &self.users.base), ("groups.base", &self.groups.base)] {
            demand(!base.trim().is_empty(), key, &"must not be empty");
        }
        for (key, attribute) in [
            ("users.nameAttribute", &self.users.name_attribute),
            ("groups.nameAttribute", &self.groups.name_attribute),
        ] {
            let inside = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
            let starts_well = attribute.starts_with(|c: char| c.is_ascii_alphanumeric());
            demand(
                starts_well && attribute.chars().all(inside),
                key,
                &format!("{attribute:?} is no attribute"),
            );
        }
        for (key, filter) in
            [("users.filter", Some(&self.users.filter)), ("groups.filter", self.groups.filter.as_ref())]
        {
            let Some(filter) = filter else { continue };
            let whole = filter.starts_with('(') && ldap3::parse_filter(filter).is_ok();
            demand(whole, key, &format!("{filter:?} is no filter such as (objectClass=posixAccount)"));
        }
        demand(
            self.groups.nested != Nested::Walk || self.groups.members != Members::MemberUid,
            "groups.nested",
            &"memberUid names no groups: set nested: none, or members: both",
        );
        demand(
            self.groups.nested != Nested::Chain || self.groups.members == Members::Member,
            "groups.nested",
            &"chain needs members: member",
        );
        for (key, number) in
            [("groups.mostGroups", self.groups.most_groups), ("groups.mostLevels", self.groups.most_levels)]
        {
            demand((1..=100_000).contains(&number), key, &"must be from 1 to 100000");
        }
        for (key, seconds) in [
            ("timeouts.connectSeconds", self.timeouts.connect_seconds),
            ("timeouts.bindSeconds", self.timeouts.bind_seconds),
            ("timeouts.searchSeconds", self.timeouts.search_seconds),
            ("timeouts.lookupSeconds", self.timeouts.lookup_seconds),
        ] {
            demand((1..=60).contains(&seconds), key, &"must be from 1 to 60");
        }
        mistakes.extend(self.cache.mistakes());
        mistakes
    }
}

/// Whether there is a host after the scheme, and one whose certificate can be checked.
fn well_formed(server: &str) -> bool {
    let Some((scheme, rest)) = server.split_once("://") else { return false };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if scheme == "ldapi" {
        return !rest.is_empty() && !rest.contains(['/', ':']);
    }
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (rest, None),
    };
    let is_port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    is_port && rustls::pki_types::ServerName::try_from(host).is_ok()
}

#[cfg(test)]
mod tests;
