//! The configuration's `users`: names, and which of them pods may be.

use std::collections::BTreeMap;

use hadoop::{HadoopUser, Principal, auth_to_local::Rules};
use identity::is_object_name;
use process::config::Mistakes;
use serde::Deserialize;

use crate::authorization::{ACCOUNT, NameRules, OnLostRight, UserRules};

/// Users that hold rights over others wherever Hadoop runs; their groups are denied as well.
const PRIVILEGED: [&str; 9] = ["hdfs", "yarn", "mapred", "hive", "hbase", "kms", "http", "HTTP", "root"];

/// Hadoop's default of the group whose members may do everything (`dfs.permissions.superusergroup`).
const SUPERUSERS: &str = "supergroup";

/// `users`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Section {
    default_realm: Option<String>,
    auth_to_local: Option<Vec<String>>,
    service_accounts: BTreeMap<String, String>,
    allowed: Option<Vec<String>>,
    allowed_groups: Option<Vec<String>>,
    denied: Option<Vec<String>>,
    denied_groups: Option<Vec<String>>,
    do_as: DoAs,
    on_lost_right: OnLostRightName,
}

/// As the file spells it.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
enum OnLostRightName {
    #[default]
    Cancel,
    Expire,
}

impl From<OnLostRightName> for OnLostRight {
    fn from(name: OnLostRightName) -> Self {
        match name {
            OnLostRightName::Cancel => Self::Cancel,
            OnLostRightName::Expire => Self::Expire,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct DoAs {
    group: String,
}

impl Default for DoAs {
    fn default() -> Self {
        Self { group: ACCOUNT.to_owned() }
    }
}

impl Section {
    /// The rules that it means; nothing when some are wrong. What we are ourselves
    /// nobody becomes, and our realm is that of names without one, if nothing else is said.
    pub(super) fn check(
        self,
        own: Option<&Principal>,
        directory: bool,
        mistakes: &mut Mistakes,
    ) -> (Option<NameRules>, Option<UserRules>) {
        if !directory {
            for (key, list) in
                [("users.allowedGroups", &self.allowed_groups), ("users.deniedGroups", &self.denied_groups)]
            {
                mistakes.require(key, list.is_none(), "needs a directory, which tells who is in which group");
            }
        }
        mistakes.require(
            "users.doAs.group",
            self.do_as.group.contains(ACCOUNT),
            &format!("must contain {ACCOUNT}: else one group is enough for every account"),
        );
        let privileged = || PRIVILEGED.map(str::to_owned).to_vec();
        let users = |mistakes: &mut Mistakes, key: &str, list: Option<Vec<String>>| {
            let list = mistakes.not_empty(key, list)?;
            Some(list.into_iter().filter_map(|name| mistakes.take(key, name.parse())).collect())
        };
        let groups = |mistakes: &mut Mistakes, key: &str, list: Option<Vec<String>>| {
            Some(mistakes.not_empty(key, list)?.into_iter().collect())
        };
        let mut rules = UserRules {
            allowed: users(mistakes, "users.allowed", self.allowed),
            allowed_groups: groups(mistakes, "users.allowedGroups", self.allowed_groups),
            denied: users(mistakes, "users.denied", self.denied.or_else(|| Some(privileged())))
                .unwrap_or_default(),
            denied_groups: groups(
                mistakes,
                "users.deniedGroups",
                self.denied_groups
                    .or_else(|| Some(privileged().into_iter().chain([SUPERUSERS.to_owned()]).collect())),
            )
            .unwrap_or_default(),
            headless_group: self.do_as.group,
            on_lost_right: self.on_lost_right.into(),
        };
        // It may act for others.
        rules.denied.extend(own.and_then(|own| own.primary().parse().ok()));

        let realm = self.default_realm.or_else(|| own.map(|own| own.realm().to_owned()));
        let realm = realm.as_deref();
        mistakes.require(
            "users.defaultRealm",
            realm.is_none_or(|realm| {
                !realm.is_empty() && realm.chars().all(|c| c.is_ascii_graphic() && c != '@')
            }),
            "is not the name of a realm",
        );
        let texts = mistakes
            .not_empty("users.authToLocal", self.auth_to_local.or_else(|| Some(vec!["DEFAULT".to_owned()])));
        let texts = texts.map(|texts| texts.join("\n"));
        let parsed = texts.and_then(|texts| mistakes.take("users.authToLocal", Rules::parse(&texts, realm)));
        let service_accounts = accounts(self.service_accounts, mistakes);
        (parsed.map(|rules| NameRules::new(rules, service_accounts)), Some(rules))
    }
}

fn accounts(
    section: BTreeMap<String, String>,
    mistakes: &mut Mistakes,
) -> BTreeMap<(String, String), HadoopUser> {
    let mut accounts = BTreeMap::new();
    for (account, user) in section {
        let key = format!("users.serviceAccounts[{account}]");
        let user = mistakes.take(&key, user.parse());
        match account.split_once('/') {
            Some((namespace, name)) if is_object_name(namespace) && is_object_name(name) => {
                if let Some(user) = user {
                    accounts.insert((namespace.to_owned(), name.to_owned()), user);
                }
            }
            _ => mistakes.require(&key, false, "is not NAMESPACE/NAME"),
        }
    }
    accounts
}
