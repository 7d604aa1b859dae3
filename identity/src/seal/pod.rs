//! The seal of a pod: what of its manifest is sealed, read from the manifest as the API server has it at admission, and
//! the annotations that carry it.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    CannotSeal, ObjectName, Owner, Seal, SealingKey, Statement, fresh_nonce, groups_annotation, groups_digest,
};
use crate::{DO_AS_ATTRIBUTE, DRIVER_NAME, GROUPS_ANNOTATION, SEAL_ANNOTATION, SUBMITTER_ANNOTATION};

/// Who submits, when and for what, as those know who admit it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// Kubernetes user.
    pub submitter: String,
    /// The user's groups.
    pub groups: Vec<String>,
    /// Root of the chain of owners, if somebody owns the pod.
    pub root_owner: Option<Owner>,
    /// Now, in seconds since 1970.
    pub time: i64,
}

/// An object that has neither `metadata.name` nor `metadata.generateName`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the object has neither a name nor a generateName")]
pub struct NamelessObject;

impl Seal {
    /// The seal of a pod that is submitted to `namespace`, with a nonce of its own. `pod` is the JSON of the pod.
    ///
    /// # Errors
    /// When the pod has no name.
    pub fn of_pod(submission: &Submission, namespace: &str, pod: &Value) -> Result<Self, NamelessObject> {
        let name = ObjectName::of(pod).ok_or(NamelessObject)?;
        Ok(Self {
            submitter: submission.submitter.clone(),
            groups_digest: groups_digest(&submission.groups),
            do_as: headless_accounts(pod.pointer("/spec/volumes")),
            namespace: namespace.to_owned(),
            service_account: text(pod, "/spec/serviceAccountName")
                .or_else(|| text(pod, "/spec/serviceAccount"))
                .unwrap_or("default")
                .to_owned(),
            name,
            root_owner: submission.root_owner.clone(),
            sealed_at: submission.time,
            nonce: fresh_nonce(),
        })
    }
}

impl ObjectName {
    /// How `object` is called, or will be; none when it has no name.
    #[must_use]
    pub fn of(object: &Value) -> Option<Self> {
        let name = text(object, "/metadata/name").map(|name| Self::Name(name.to_owned()));
        name.or_else(|| {
            text(object, "/metadata/generateName").map(|name| Self::GenerateName(name.to_owned()))
        })
    }
}

fn text<'a>(object: &'a Value, pointer: &str) -> Option<&'a str> {
    object.pointer(pointer)?.as_str().filter(|text| !text.is_empty())
}

/// Headless accounts that a list of a pod's volumes asks for.
#[must_use]
pub fn headless_accounts(volumes: Option<&Value>) -> BTreeSet<String> {
    let volumes = volumes.and_then(Value::as_array).into_iter().flatten();
    volumes
        .filter_map(|volume| volume.get("csi"))
        .filter(|csi| csi.get("driver").and_then(Value::as_str) == Some(DRIVER_NAME))
        .filter_map(|csi| csi.get("volumeAttributes")?.get(DO_AS_ATTRIBUTE)?.as_str().map(str::to_owned))
        .collect()
}

impl SealingKey {
    /// The annotations that go with this seal, on a pod or in a template. `groups` are the submitter's, whose digest is
    /// in the seal.
    ///
    /// # Errors
    /// As [`SealingKey::sign`].
    pub fn annotations<S: Statement>(
        &self,
        seal: &S,
        groups: &[String],
    ) -> Result<[(&'static str, String); 3], CannotSeal> {
        Ok([
            (SUBMITTER_ANNOTATION, seal.submitter().to_owned()),
            (GROUPS_ANNOTATION, groups_annotation(groups)),
            (SEAL_ANNOTATION, self.sign(seal)?),
        ])
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn submission() -> Submission {
        Submission {
            submitter: "etl".to_owned(),
            groups: vec!["system:authenticated".to_owned()],
            root_owner: None,
            time: 1_800_000_000,
        }
    }

    fn volume(driver: &str, attributes: &Value) -> Value {
        json!({"name": "v", "csi": {"driver": driver, "readOnly": true, "volumeAttributes": attributes}})
    }

    #[test]
    fn seals_what_the_manifest_says() {
        let pod = json!({
            "metadata": {"generateName": "job-"},
            "spec": {
                "serviceAccountName": "worker",
                "volumes": [
                    volume(DRIVER_NAME, &json!({"doAs": "batch", "cluster": "main"})),
                    volume(DRIVER_NAME, &json!({"cluster": "main"})),
                    volume(DRIVER_NAME, &json!({"doAs": "ads"})),
                    volume("another.csi", &json!({"doAs": "hdfs"})),
                    {"name": "scratch", "emptyDir": {}},
                ],
            },
        });
        let seal = Seal::of_pod(&submission(), "team", &pod).unwrap();
        let expected = Seal {
            submitter: "etl".to_owned(),
            groups_digest: groups_digest(&submission().groups),
            do_as: ["ads", "batch"].map(str::to_owned).into(),
            namespace: "team".to_owned(),
            service_account: "worker".to_owned(),
            name: ObjectName::GenerateName("job-".to_owned()),
            root_owner: None,
            sealed_at: 1_800_000_000,
            nonce: seal.nonce.clone(),
        };
        assert_eq!(seal, expected);
    }

    #[test]
    fn a_name_counts_before_a_prefix_as_at_the_api_server() {
        let named = json!({"metadata": {"name": "etl-0", "generateName": "etl-"}});
        let seal = Seal::of_pod(&submission(), "team", &named).unwrap();
        assert_eq!(seal.name, ObjectName::Name("etl-0".to_owned()));
        assert_eq!(seal.service_account, "default");
        for nameless in [json!({}), json!({"metadata": {"name": "", "generateName": ""}}), json!(null)] {
            assert_eq!(Seal::of_pod(&submission(), "team", &nameless), Err(NamelessObject));
        }
    }

    #[test]
    fn every_pod_gets_a_nonce_of_its_own() {
        let pod = json!({"metadata": {"name": "etl-0"}});
        let nonce = || Seal::of_pod(&submission(), "team", &pod).unwrap().nonce;
        assert_ne!(nonce(), nonce());
    }

    #[test]
    fn annotations_agree_with_the_seal() {
        let groups = ["b".to_owned(), "a".to_owned()];
        let submission = Submission { groups: groups.to_vec(), ..submission() };
        let seal = Seal::of_pod(&submission, "team", &json!({"metadata": {"name": "etl-0"}})).unwrap();
        let annotations = SealingKey::generate().annotations(&seal, &groups).unwrap();
        let [(_, submitter), (_, shown), _] = annotations;
        assert_eq!(submitter, seal.submitter);
        let shown: Vec<String> = serde_json::from_str(&shown).unwrap();
        assert_eq!(groups_digest(&shown), seal.groups_digest);
    }
}
