//! Which Hadoop users pods may be: by lists of users and of groups, on the user whose name the token will bear, and
//! only for members of a headless account's group.

use std::collections::{BTreeSet, HashSet};

use hadoop::HadoopUser;

use super::{Accounts, Refusal};
use crate::directory::Account;

/// Where the account's name goes in [`UserRules::headless_group`].
pub(crate) const ACCOUNT: &str = "{account}";

/// The operator's lists. One that is not there restricts nothing; none is empty.
#[derive(Clone, Debug)]
pub(crate) struct UserRules {
    pub(crate) allowed: Option<BTreeSet<HadoopUser>>,
    pub(crate) allowed_groups: Option<HashSet<String>>,
    pub(crate) denied: BTreeSet<HadoopUser>,
    pub(crate) denied_groups: HashSet<String>,
    /// Whose members may act as a headless account, with [`ACCOUNT`] for its name.
    pub(crate) headless_group: String,
    pub(crate) on_lost_right: OnLostRight,
}

/// What becomes of tokens whose user, or namespace, lost the right to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OnLostRight {
    /// They are cancelled.
    #[default]
    Cancel,
    /// They are neither renewed nor replaced.
    Expire,
}

impl UserRules {
    /// What can be told without the directory.
    pub(super) fn admit(&self, user: &HadoopUser) -> Result<(), Refusal> {
        // `HDFS` is `hdfs` to a directory, and to Hadoop where names are lowered.
        if self.denied.iter().any(|denied| denied.as_str().eq_ignore_ascii_case(user.as_str())) {
            return Err(Refusal::UserDenied(user.clone()));
        }
        Ok(())
    }

    /// What the directory says of `submitter`, who wants to be `effective`.
    pub(super) fn admit_accounts(
        &self,
        submitter: &HadoopUser,
        effective: &HadoopUser,
        accounts: Option<&Accounts>,
    ) -> Result<(), Refusal> {
        let Some(accounts) = accounts else {
            if submitter != effective {
                return Err(Refusal::DoAsWithoutDirectory(effective.clone()));
            }
            return self.admit_groups(effective, None);
        };
        let unknown = |user: &HadoopUser| Refusal::UserUnknown(user.clone());
        if submitter != effective {
            let submitter_account = accounts.submitter.as_deref().ok_or_else(|| unknown(submitter))?;
            let group = self.headless_group.replace(ACCOUNT, effective.as_str());
            if !submitter_account.groups.contains(&group) {
                return Err(Refusal::DoAsNotMember {
                    user: submitter.clone(),
                    account: effective.clone(),
                    group,
                });
            }
        }
        let account = accounts.effective.as_deref().ok_or_else(|| unknown(effective))?;
        self.admit_groups(effective, Some(account))
    }

    fn admit_groups(&self, user: &HadoopUser, account: Option<&Account>) -> Result<(), Refusal> {
        let mut groups = account.iter().flat_map(|account| &account.groups);
        if let Some(group) = groups.clone().find(|group| self.denied_groups.contains(*group)) {
            return Err(Refusal::GroupDenied { user: user.clone(), group: group.clone() });
        }
        let by_name = self.allowed.as_ref().map(|allowed| allowed.contains(user));
        let by_group =
            self.allowed_groups.as_ref().map(|allowed| groups.any(|group| allowed.contains(group)));
        match (by_name, by_group) {
            (None, None) | (Some(true), _) | (_, Some(true)) => Ok(()),
            _ => Err(Refusal::UserNotAllowed(user.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::authorization::example::{Case, account, check, decided, granted, user};

    /// The pod asks for headless account `svc`, sealed, of whose group `etl` is a member.
    fn headless(case: &mut Case) {
        case.attribute("doAs", "svc");
        case.seal().do_as.insert("svc".to_owned());
        case.accounts(account(&["staff", "svc"]), account(&["services"]));
    }

    #[test]
    fn a_member_may_act_as_a_headless_account() {
        assert_eq!(decided(headless), granted("svc", "main"));
    }

    #[test]
    fn refuses_a_headless_account_to_whoever_is_no_member() {
        check(
            |case| {
                headless(case);
                case.accounts(account(&["staff"]), account(&["services"]));
            },
            "DO_AS_NOT_MEMBER",
            "etl may not act as svc",
        );
        check(
            |case| {
                headless(case);
                case.policy.users.headless_group = "may-be-{account}".to_owned();
            },
            "DO_AS_NOT_MEMBER",
            "may-be-svc",
        );
    }

    #[test]
    fn refuses_a_headless_account_that_was_not_sealed() {
        check(
            |case| {
                headless(case);
                case.seal().do_as.clear();
            },
            "DO_AS_NOT_SEALED",
            "svc",
        );
    }

    #[test]
    fn refuses_a_headless_account_when_there_is_no_directory() {
        check(
            |case| {
                headless(case);
                case.findings.accounts = None;
            },
            "DO_AS_WITHOUT_DIRECTORY",
            "svc",
        );
    }

    #[test]
    fn acting_as_oneself_needs_no_membership() {
        let oneself = |case: &mut Case| {
            case.attribute("doAs", "etl");
            case.seal().do_as.insert("etl".to_owned());
        };
        assert_eq!(decided(oneself), granted("etl", "main"));
    }

    #[test]
    fn refuses_what_is_no_users_name() {
        check(|case| case.attribute("doAs", "hdfs/x@R"), "USER_INVALID", "hdfs/x@R");
    }

    #[test]
    fn refuses_a_denied_user_even_to_members_of_its_group() {
        check(|case| case.policy.users.denied.extend([user("etl")]), "USER_DENIED", "etl");
        check(
            |case| {
                headless(case);
                case.policy.users.denied.extend([user("svc")]);
            },
            "USER_DENIED",
            "svc",
        );
    }

    #[test]
    fn a_denied_user_is_denied_however_the_name_is_written() {
        check(|case| case.policy.users.denied.extend([user("ETL")]), "USER_DENIED", "etl");
    }

    #[test]
    fn it_is_the_owner_of_the_token_who_must_not_be_denied() {
        let denied_submitter = |case: &mut Case| {
            headless(case);
            case.policy.users.denied.extend([user("etl")]);
        };
        assert_eq!(decided(denied_submitter), granted("svc", "main"));
    }

    #[test]
    fn refuses_members_of_denied_groups() {
        check(
            |case| case.accounts(account(&["staff", "supergroup"]), account(&["staff", "supergroup"])),
            "GROUP_DENIED",
            "supergroup",
        );
        check(
            |case| {
                headless(case);
                case.accounts(account(&["svc"]), account(&["supergroup"]));
            },
            "GROUP_DENIED",
            "svc",
        );
    }

    #[test]
    fn refuses_users_that_the_directory_does_not_know() {
        check(|case| case.accounts(None, None), "USER_UNKNOWN", "etl");
        check(
            |case| {
                headless(case);
                case.accounts(None, account(&[]));
            },
            "USER_UNKNOWN",
            "etl",
        );
        check(
            |case| {
                headless(case);
                case.accounts(account(&["svc"]), None);
            },
            "USER_UNKNOWN",
            "svc",
        );
    }

    #[test]
    fn without_a_directory_users_are_not_looked_up() {
        assert_eq!(decided(|case| case.findings.accounts = None), granted("etl", "main"));
    }

    #[test]
    fn of_two_lists_of_allowed_ones_either_will_do() {
        let lists = |users: &'static [&str], groups: &'static [&str]| {
            move |case: &mut Case| {
                case.policy.users.allowed =
                    (!users.is_empty()).then(|| users.iter().map(|name| user(name)).collect());
                case.policy.users.allowed_groups =
                    (!groups.is_empty()).then(|| groups.iter().map(|name| (*name).to_owned()).collect());
            }
        };
        assert_eq!(decided(lists(&["etl"], &[])), granted("etl", "main"));
        assert_eq!(decided(lists(&["ads"], &["staff"])), granted("etl", "main"));
        assert_eq!(decided(lists(&["etl"], &["other"])), granted("etl", "main"));
        check(lists(&["ads"], &[]), "USER_NOT_ALLOWED", "users.allowed");
        check(lists(&[], &["other"]), "USER_NOT_ALLOWED", "etl");
        check(lists(&["ads"], &["other"]), "USER_NOT_ALLOWED", "etl");
    }
}
