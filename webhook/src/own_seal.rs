//! Whether the seal that a pod carries is its own, by what the API server says of the pod: as the controller decides it
//! before it issues a token, but for owners. A seal is a text that can be copied into any pod past this webhook.

use identity::{
    SEAL_ANNOTATION,
    seal::{KeySet, Seal},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Deserialize;
use serde_json::Value;

/// What seals are verified with.
#[derive(Clone, Copy)]
pub(crate) struct Verifier<'a> {
    /// Keys of seals that are believed.
    pub(crate) keys: &'a KeySet,
    /// Most seconds between sealing and the pod's creation.
    pub(crate) tolerance: u64,
}

impl Verifier<'_> {
    /// The seal of `pod`, if it is its own.
    ///
    /// # Errors
    /// Why it is not, as something that is said of the pod.
    pub(crate) fn own_seal(&self, pod: &Value) -> Result<Seal, String> {
        let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str);
        let seal =
            pod.pointer("/metadata/annotations").and_then(|annotations| annotations.get(SEAL_ANNOTATION));
        let seal = seal.and_then(Value::as_str).ok_or("it has no seal that says who submitted it")?;
        let seal = self.keys.verify(seal).map_err(|error| format!("its seal cannot be trusted: {error}"))?;
        let account = text("/spec/serviceAccountName").or_else(|| text("/spec/serviceAccount"));
        let own = text("/metadata/namespace") == Some(&seal.namespace)
            && seal.name.fits(text("/metadata/name").unwrap_or_default(), text("/metadata/generateName"))
            && account.unwrap_or("default") == seal.service_account;
        if !own {
            return Err("its seal is that of another pod".to_owned());
        }
        match created(pod).map(|created| created.abs_diff(seal.sealed_at)) {
            Some(apart) if apart > self.tolerance => {
                Err(format!("it was sealed {apart} seconds away from its creation"))
            }
            _ => Ok(seal),
        }
    }
}

/// When the pod was created, in seconds since 1970; the API server says it of every pod that it has.
fn created(pod: &Value) -> Option<i64> {
    let Time(created) = Time::deserialize(pod.pointer("/metadata/creationTimestamp")?).ok()?;
    Some(created.as_second())
}

/// Whether a pod does not end, and has not ended.
pub(crate) fn lives(pod: &Value) -> bool {
    let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str);
    text("/metadata/deletionTimestamp").is_none()
        && !["Succeeded", "Failed"].map(Some).contains(&text("/status/phase"))
}

#[cfg(test)]
mod tests {
    use identity::seal::{JwkSet, SealingKey, Submission};
    use serde_json::json;

    use super::*;

    fn judged(change: impl FnOnce(&mut Value)) -> Result<(), String> {
        let key = SealingKey::generate();
        let keys =
            KeySet::from_jwk_set(JwkSet { keys: vec![key.public_jwk()] }.to_json().as_bytes()).unwrap();
        let mut pod = json!({
            "metadata": {"name": "etl-0", "namespace": "jobs", "creationTimestamp": "2027-01-15T08:00:00Z"},
            "spec": {"serviceAccountName": "spark"},
        });
        let submission = Submission {
            submitter: "etl".to_owned(),
            groups: Vec::new(),
            root_owner: None,
            time: 1_800_000_000,
        };
        let seal = key.sign(&Seal::of_pod(&submission, "jobs", &pod).unwrap()).unwrap();
        pod["metadata"]["annotations"] = json!({"hadoop-token.csi/seal": seal});
        change(&mut pod);
        Verifier { keys: &keys, tolerance: 120 }.own_seal(&pod).map(|seal| assert_eq!(seal.submitter, "etl"))
    }

    #[test]
    fn a_seal_is_a_pods_own_by_name_namespace_account_and_time() {
        judged(|_| {}).unwrap();
        let another = Err("its seal is that of another pod".to_owned());
        assert_eq!(judged(|pod| pod["metadata"]["name"] = json!("etl-1")), another);
        assert_eq!(judged(|pod| pod["metadata"]["namespace"] = json!("other")), another);
        assert_eq!(judged(|pod| pod["spec"]["serviceAccountName"] = json!("default")), another);
        judged(|pod| pod["metadata"]["creationTimestamp"] = json!("2027-01-15T08:02:00Z")).unwrap();
        let late = judged(|pod| pod["metadata"]["creationTimestamp"] = json!("2027-01-15T08:02:01Z"));
        assert_eq!(late, Err("it was sealed 121 seconds away from its creation".to_owned()));
    }

    #[test]
    fn a_pod_lives_until_it_ends() {
        assert!(lives(&json!({"metadata": {}, "status": {"phase": "Running"}})));
        assert!(lives(&json!({"metadata": {}})));
        assert!(!lives(&json!({"metadata": {"deletionTimestamp": "2027-01-15T08:00:00Z"}})));
        for phase in ["Succeeded", "Failed"] {
            assert!(!lives(&json!({"status": {"phase": phase}})));
        }
    }
}
