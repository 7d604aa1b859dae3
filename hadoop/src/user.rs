//! The name of a Hadoop user, in a form that is safe to impersonate.

use std::fmt;
use std::str::FromStr;

/// Longest accepted name. Hadoop has no limit; user databases stop far below.
const MAX_LENGTH: usize = 128;

/// Short name of a Hadoop user, such as `alice`. Never a Kerberos principal: Hadoop would take `alice@REALM` as the
/// owner's name as it stands, and no permission of `alice` would apply.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HadoopUser(String);

impl HadoopUser {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HadoopUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for HadoopUser {
    type Err = InvalidUser;

    fn from_str(name: &str) -> Result<Self, InvalidUser> {
        let inside = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        if starts_well && name.len() <= MAX_LENGTH && name.chars().all(inside) {
            Ok(Self(name.to_owned()))
        } else {
            Err(InvalidUser(name.chars().take(MAX_LENGTH).collect()))
        }
    }
}

/// Text that cannot be the name of a Hadoop user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid Hadoop user name {0:?}: write a short name (ASCII letters, digits, '_', '-', '.', not starting with '-' or '.')"
)]
pub struct InvalidUser(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, valid: bool) {
        assert_eq!(name.parse::<HadoopUser>().is_ok(), valid, "{name:?}");
    }

    #[test]
    fn accepts_short_names() {
        for name in ["alice", "svc_etl", "a.b-c", "_x", "7of9", "HTTP"] {
            check(name, true);
        }
    }

    #[test]
    fn rejects_principals_paths_options_and_empty_names() {
        for name in
            ["", "alice@CORP", "alice/host", "..", ".", "-f", "a b", "ålice", "a\0", "a\n", &"x".repeat(129)]
        {
            check(name, false);
        }
    }
}
