//! Which Hadoop user a Kubernetes user is: by Hadoop's own rules for principals, and for service accounts by a list.
//! Never whether that user may have a token, and never by a guess: who is not mapped gets nothing.

use std::collections::BTreeMap;

use hadoop::{HadoopUser, auth_to_local::Rules};

use super::Refusal;

/// Names that Kubernetes keeps for itself begin so.
const SYSTEM: &str = "system:";
/// Longest part of a name that is repeated in a refusal.
const MAX_SHOWN: usize = 200;

/// The operator's rules for names.
#[derive(Clone, Debug)]
pub(crate) struct NameRules {
    rules: Rules,
    service_accounts: BTreeMap<(String, String), HadoopUser>,
}

impl NameRules {
    /// Names without a realm get the rules' default realm, so that no name goes by the rules: without a default realm
    /// they are not mapped. `service_accounts` goes by namespace and name.
    pub(crate) fn new(rules: Rules, service_accounts: BTreeMap<(String, String), HadoopUser>) -> Self {
        Self { rules, service_accounts }
    }

    /// The Hadoop user that a Kubernetes user is.
    pub(crate) fn map(&self, submitter: &str) -> Result<HadoopUser, Refusal> {
        if let Some(name) = submitter.strip_prefix(SYSTEM) {
            return self.system(submitter, name);
        }
        let short_name = if submitter.contains('@') {
            self.rules.short_name(submitter)
        } else if let Some(realm) = self.rules.default_realm() {
            self.rules.short_name(&format!("{submitter}@{realm}"))
        } else {
            return Err(not_mapped(submitter, "it has no realm, and users.defaultRealm is not configured"));
        };
        let short_name = short_name.map_err(|why| not_mapped(submitter, why))?;
        short_name.parse().map_err(|invalid| not_mapped(submitter, invalid))
    }

    fn system(&self, submitter: &str, name: &str) -> Result<HadoopUser, Refusal> {
        let account = name.strip_prefix("serviceaccount:").and_then(|account| account.split_once(':'));
        let Some((namespace, name)) = account else {
            return Err(not_mapped(submitter, "names of Kubernetes itself (system:…) never are"));
        };
        self.service_accounts
            .get(&(namespace.to_owned(), name.to_owned()))
            .cloned()
            .ok_or_else(|| Refusal::ServiceAccountNotMapped(shown(submitter)))
    }
}

fn not_mapped(submitter: &str, why: impl ToString) -> Refusal {
    Refusal::SubmitterNotMapped { submitter: shown(submitter), why: why.to_string() }
}

fn shown(name: &str) -> String {
    name.chars().take(MAX_SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(rules: &str) -> NameRules {
        let account = ("jobs".to_owned(), "spark".to_owned());
        NameRules::new(
            Rules::parse(rules, Some("CORP")).unwrap(),
            [(account, "svc_spark".parse().unwrap())].into(),
        )
    }

    #[track_caller]
    fn maps(names: &NameRules, submitter: &str, user: &str) {
        assert_eq!(names.map(submitter).unwrap().as_str(), user, "{submitter:?}");
    }

    #[track_caller]
    fn refuses(names: &NameRules, submitter: &str, because: &str) {
        match names.map(submitter) {
            Err(Refusal::SubmitterNotMapped { submitter: shown, why }) => {
                assert!(why.contains(because), "{submitter:?}: {why}");
                assert!(submitter.starts_with(&shown), "{shown:?}");
            }
            other => panic!("{submitter:?}: {other:?}"),
        }
    }

    #[test]
    fn a_plain_name_of_the_default_realm_is_itself() {
        let names = names("DEFAULT");
        maps(&names, "etl", "etl");
        maps(&names, "etl@CORP", "etl");
        refuses(&names, "etl@OTHER", "no rule applies");
    }

    #[test]
    fn a_principal_of_a_superuser_ends_as_the_superuser() {
        // Where the deny list finds it.
        maps(&names("DEFAULT"), "hdfs/x@CORP", "hdfs");
        maps(&names("DEFAULT"), "hdfs/x", "hdfs");
    }

    #[test]
    fn rules_see_names_without_a_realm_with_the_default_realm() {
        let names = names(r"RULE:[1:$1.$0](etl\.CORP)s/\..*/_corp/ RULE:[1:nobody]");
        maps(&names, "etl", "etl_corp");
        maps(&names, "ads", "nobody");
    }

    #[test]
    fn without_a_default_realm_a_name_without_a_realm_is_nobody() {
        let names = NameRules::new(Rules::parse("DEFAULT RULE:[1:$1]", None).unwrap(), BTreeMap::new());
        refuses(&names, "etl", "users.defaultRealm");
        maps(&names, "etl@CORP", "etl");
    }

    #[test]
    fn names_of_an_identity_provider_are_mapped_by_rules_alone() {
        refuses(&names("DEFAULT"), "oidc:alice@example.com", "no rule applies");
        refuses(&names("DEFAULT"), "oidc:alice", "invalid Hadoop user name");
        let names = names(r"RULE:[1:$1@$0](oidc:.*@example\.com)s/^oidc:(.*)@.*$/$1/L DEFAULT");
        maps(&names, "oidc:Alice@example.com", "alice");
        refuses(&names, "oidc:alice@example.com.evil.org", "no rule applies");
        refuses(&names, "github:alice@example.com", "no rule applies");
    }

    #[test]
    fn names_of_kubernetes_itself_are_never_mapped() {
        let names = names("RULE:[1:$1]s/.*/etl/ RULE:[2:etl] DEFAULT");
        for name in [
            "system:node:x",
            "system:admin",
            "system:anonymous",
            "system:serviceaccount:jobs",
            "system:node:x@CORP",
            "system:",
        ] {
            refuses(&names, name, "system:");
        }
    }

    #[test]
    fn service_accounts_are_mapped_by_the_list_alone() {
        let names = names("RULE:[1:$1]s/.*/etl/");
        maps(&names, "system:serviceaccount:jobs:spark", "svc_spark");
        for name in [
            "system:serviceaccount:jobs:other",
            "system:serviceaccount:other:spark",
            "system:serviceaccount:jobs:spark:",
            "system:serviceaccount:jobs:spark@CORP",
            "system:serviceaccount::",
        ] {
            let refused = names.map(name);
            assert_eq!(refused, Err(Refusal::ServiceAccountNotMapped(name.to_owned())));
        }
    }

    #[test]
    fn names_that_no_user_has_are_refused() {
        let names = names("RULE:[1:$1]");
        for name in ["", "@CORP", "etl@", "a/b/c", "a@b@CORP", "/etl"] {
            refuses(&names, name, "neither name@REALM");
        }
        for name in ["etl\n", "etl\0", "etl\0@CORP", "\u{202e}lte", "étl", &"x".repeat(2000)] {
            refuses(&names, name, "printable ASCII");
        }
        for name in ["-f", "e t l", "a\\b", "..", &"x".repeat(129)] {
            refuses(&names, name, "invalid Hadoop user name");
        }
    }

    #[test]
    fn a_mapped_name_has_to_be_a_short_name() {
        refuses(&names("RULE:[1:$1@$0]"), "etl", "rule 1 makes it \"etl@CORP\"");
        refuses(&names("RULE:[1:]"), "etl", "invalid Hadoop user name");
        refuses(&names("RULE:[1:../$1]"), "etl", "not a short name");
    }
}
