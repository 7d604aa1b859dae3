//! Which groups a user is in, worked out search by search: first those that name the user, then, walking upwards,
//! those that name a group found before. Decides what to ask and when to stop; the asking is done elsewhere. Every
//! value in a filter is escaped here.

use std::collections::{BTreeSet, HashSet};

use ldap3::ldap_escape;
use serde::Deserialize;

use super::entry::Entry;

/// Active Directory's rule that follows memberships of any depth by itself.
const IN_CHAIN: &str = "1.2.840.113556.1.4.1941";
/// Groups to ask about in one search.
const AT_ONCE: usize = 50;

/// How groups name their members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) enum Members {
    /// By user name, as posixGroup does; the group of the account's `gidNumber` counts too.
    #[serde(rename = "memberUid")]
    MemberUid,
    /// By distinguished name, as groupOfNames does.
    #[serde(rename = "member")]
    Member,
    /// Either way.
    #[default]
    #[serde(rename = "both")]
    Both,
}

impl Members {
    pub(super) fn by_name(self) -> bool {
        self != Self::Member
    }

    fn by_dn(self) -> bool {
        self != Self::MemberUid
    }
}

/// How groups within groups are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Nested {
    /// Not at all.
    None,
    /// By asking for the groups of groups, level by level.
    #[default]
    Walk,
    /// By Active Directory, at once.
    Chain,
}

/// What groups are searched for.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) members: Members,
    pub(super) nested: Nested,
    /// A filter that every group must match.
    pub(super) filter: Option<String>,
    pub(super) name_attribute: String,
    /// The most groups that a user may be in.
    pub(super) most_groups: usize,
    /// The most levels of groups within groups.
    pub(super) most_levels: usize,
}

/// A user of whom groups are asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member<'a> {
    pub(super) name: &'a str,
    pub(super) dn: &'a str,
    /// Of the account itself, with a group that need not name the user.
    pub(super) gid_number: Option<u64>,
}

/// A walk under way.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    rules: &'a Rules,
    /// The next searches of this level.
    filters: Vec<String>,
    level: usize,
    names: BTreeSet<String>,
    seen: HashSet<String>,
    /// Groups that were found on this level, and not before.
    found: Vec<String>,
}

impl<'a> Walk<'a> {
    pub(super) fn of(member: Member<'_>, rules: &'a Rules) -> Self {
        let mut ways = Vec::new();
        if rules.members.by_name() {
            ways.push(equals("memberUid", member.name));
            if let Some(number) = member.gid_number {
                ways.push(format!("(&(objectClass=posixGroup)(gidNumber={number}))"));
            }
        }
        match rules.nested {
            Nested::Chain => ways.push(equals(&format!("member:{IN_CHAIN}:"), member.dn)),
            _ if rules.members.by_dn() => ways.push(equals("member", member.dn)),
            _ => {}
        }
        let filters = vec![rules.filter_for(&ways)];
        let (names, seen, found) = Default::default();
        Self { rules, filters, level: 0, names, seen, found }
    }

    /// The filter to search groups by next; none when all are found.
    pub(super) fn next(&mut self) -> Result<Option<String>, String> {
        if self.filters.is_empty() && self.rules.nested == Nested::Walk && !self.found.is_empty() {
            self.level += 1;
            if self.level > self.rules.most_levels {
                let why = "groups are within groups on more than {} levels: raise groups.mostLevels";
                return Err(why.replace("{}", &self.rules.most_levels.to_string()));
            }
            let found = std::mem::take(&mut self.found);
            self.filters = found
                .chunks(AT_ONCE)
                .map(|dns| {
                    let ways: Vec<String> = dns.iter().map(|dn| equals("member", dn)).collect();
                    self.rules.filter_for(&ways)
                })
                .collect();
        }
        Ok(self.filters.pop())
    }

    /// Takes in what the search has found.
    pub(super) fn take(&mut self, groups: Vec<Entry>) -> Result<(), String> {
        for group in groups {
            // Names are compared as they are; the same group in another spelling costs a search, no more.
            if !self.seen.insert(group.dn.to_lowercase()) {
                continue;
            }
            if self.seen.len() > self.rules.most_groups {
                return Err(format!(
                    "a user is in more than {} groups: raise groups.mostGroups",
                    self.rules.most_groups
                ));
            }
            let names = group.values(&self.rules.name_attribute);
            if names.is_empty() {
                let attribute = &self.rules.name_attribute;
                return Err(format!(
                    "group {:?} has no {attribute}, or we may not read it: see groups.nameAttribute",
                    group.dn
                ));
            }
            self.names.extend(names.iter().cloned());
            self.found.push(group.dn);
        }
        Ok(())
    }

    /// Names of all groups found.
    pub(super) fn finish(self) -> BTreeSet<String> {
        self.names
    }
}

impl Rules {
    fn filter_for(&self, ways: &[String]) -> String {
        let any = match ways {
            [one] => one.clone(),
            several => format!("(|{})", several.concat()),
        };
        match &self.filter {
            Some(filter) => format!("(&{filter}{any})"),
            None => any,
        }
    }
}

/// The filter for entries whose `attribute` is `value`.
pub(super) fn equals(attribute: &str, value: &str) -> String {
    format!("({attribute}={})", ldap_escape(value))
}

#[cfg(test)]
mod tests;
