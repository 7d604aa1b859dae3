//! The seal of a workload: who submitted what makes pods. It travels with the template, word for word, from the workload
//! down to the pods that controllers make of it, where the webhook exchanges it for the pod's own. Token services never
//! take it for a pod's: it is signed as another type.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{NamelessObject, ObjectName, Statement, Submission, fresh_nonce, groups_digest};

/// What was proven when a workload was created, or what its pods do was last changed.
///
/// Unknown fields are refused, as in [`super::Seal`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSeal {
    /// Kubernetes user who created or last changed it.
    pub submitter: String,
    /// [`groups_digest`] of the submitter's Kubernetes groups.
    pub groups_digest: String,
    /// Headless accounts that its pods may ask for.
    pub do_as: BTreeSet<String>,
    /// Its namespace.
    pub namespace: String,
    /// Which object it is.
    pub workload: Workload,
    /// When it was sealed, in seconds since 1970.
    pub sealed_at: i64,
    /// Random letters that no other seal has.
    pub nonce: String,
}

/// An object that makes pods, as it is known when it is admitted: without a UID, and in whatever version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Workload {
    /// API group; the core group has no name.
    pub group: String,
    /// Kind, such as `Deployment`.
    pub kind: String,
    /// How it is called.
    pub name: ObjectName,
}

impl WorkloadSeal {
    /// The seal of `object`, of `group` and `kind` and submitted to `namespace`, whose pods may ask for `do_as`.
    ///
    /// # Errors
    /// When the object has no name.
    pub fn of(
        submission: &Submission,
        namespace: &str,
        (group, kind): (&str, &str),
        object: &Value,
        do_as: BTreeSet<String>,
    ) -> Result<Self, NamelessObject> {
        Ok(Self {
            submitter: submission.submitter.clone(),
            groups_digest: groups_digest(&submission.groups),
            do_as,
            namespace: namespace.to_owned(),
            workload: Workload {
                group: group.to_owned(),
                kind: kind.to_owned(),
                name: ObjectName::of(object).ok_or(NamelessObject)?,
            },
            sealed_at: submission.time,
            nonce: fresh_nonce(),
        })
    }
}

impl Statement for WorkloadSeal {
    const TYPE: &str = "hadoop-token-workload-seal+jwt";

    fn submitter(&self) -> &str {
        &self.submitter
    }

    fn nonce(&self) -> &str {
        &self.nonce
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::seal::{JwkSet, KeySet, Seal, SealError, SealingKey};

    fn submission() -> Submission {
        Submission {
            submitter: "etl".to_owned(),
            groups: vec!["team".to_owned()],
            root_owner: None,
            time: 1_800_000_000,
        }
    }

    fn key() -> (SealingKey, KeySet) {
        let key = SealingKey::generate();
        let set = JwkSet { keys: vec![key.public_jwk()] };
        (key, KeySet::from_jwk_set(set.to_json().as_bytes()).unwrap())
    }

    #[test]
    fn says_who_submitted_which_object() {
        let object = json!({"metadata": {"name": "web"}});
        let do_as = BTreeSet::from(["batch".to_owned()]);
        let seal =
            WorkloadSeal::of(&submission(), "team", ("apps", "Deployment"), &object, do_as.clone()).unwrap();
        let workload = Workload {
            group: "apps".to_owned(),
            kind: "Deployment".to_owned(),
            name: ObjectName::Name("web".to_owned()),
        };
        assert_eq!((seal.submitter.as_str(), &seal.do_as, &seal.workload), ("etl", &do_as, &workload));
        let (key, set) = key();
        assert_eq!(set.verify_workload(&key.sign(&seal).unwrap()), Ok(seal));
        assert_eq!(
            WorkloadSeal::of(&submission(), "team", ("apps", "Deployment"), &json!({}), do_as),
            Err(NamelessObject)
        );
    }

    #[test]
    fn is_never_taken_for_a_pods_nor_a_pods_for_it() {
        let (key, set) = key();
        let object = json!({"metadata": {"name": "web"}});
        let workload =
            WorkloadSeal::of(&submission(), "team", ("", "Pod"), &object, BTreeSet::new()).unwrap();
        let pod = Seal::of_pod(&submission(), "team", &object).unwrap();
        let malformed = SealError::Malformed("its header is not that of a seal");
        assert_eq!(set.verify(&key.sign(&workload).unwrap()), Err(malformed.clone()));
        assert_eq!(set.verify_workload(&key.sign(&pod).unwrap()), Err(malformed));
    }
}
