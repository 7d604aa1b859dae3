//! Which pod asks, and for which of its volumes: who the tokens prove it to be, what the API server has, and what the
//! request says must all agree.

use identity::{
    CLUSTER_ATTRIBUTE, DO_AS_ATTRIBUTE, DRIVER_NAME, JOB_SCOPE, POD_SCOPE, SCOPE_ATTRIBUTE,
    VOLUME_ATTRIBUTES, VolumeId,
};

use super::{CallerFacts, CsiVolume, Identity, LivePod, Policy, Purpose, Refusal, ServiceAccount};
use crate::{ledger::Scope, request::VolumeReference};

impl ServiceAccount {
    fn username(&self) -> String {
        username(&self.namespace, &self.name)
    }
}

fn username(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

/// The pod that asks, proven, and its volume.
#[derive(Clone, Copy)]
pub(crate) struct Proven<'a> {
    pub(crate) pod: &'a LivePod,
    volume: &'a CsiVolume,
}

impl<'a> Proven<'a> {
    /// The headless account that the volume asks for.
    pub(super) fn do_as(&self) -> Option<&'a str> {
        self.volume.attributes.get(DO_AS_ATTRIBUTE).map(String::as_str)
    }

    /// With whom the volume shares its token.
    pub(crate) fn scope(&self) -> Result<Scope, Refusal> {
        match self.volume.attributes.get(SCOPE_ATTRIBUTE).map(String::as_str) {
            None | Some(POD_SCOPE) => Ok(Scope::Pod),
            Some(JOB_SCOPE) => Ok(Scope::Job),
            Some(other) => Err(Refusal::ScopeUnknown(other.to_owned())),
        }
    }
}

impl Policy {
    /// The node plugin's node, when the caller is the node plugin.
    pub(crate) fn admit_driver<'a>(&self, driver: &'a Identity) -> Result<&'a str, Refusal> {
        let expected = self.driver.username();
        if driver.username != expected {
            return Err(Refusal::CallerNotDriver { found: driver.username.clone(), expected });
        }
        match (&driver.pod_uid, &driver.node_name) {
            (Some(_), Some(node)) => Ok(node),
            _ => Err(Refusal::DriverTokenUnbound),
        }
    }

    /// The pod, when it is proven that it asks, may still ask, and has such a volume. Worth knowing before more facts
    /// are gathered for it.
    pub(crate) fn admit_pod<'a>(
        &self,
        purpose: Purpose<'_>,
        reference: &VolumeReference,
        facts: &'a CallerFacts,
    ) -> Result<Proven<'a>, Refusal> {
        let node = self.admit_driver(&facts.driver)?;
        bound_to(&facts.pod_token, reference, node)?;
        let pod = alive(facts.pod.as_ref(), purpose, reference, &facts.pod_token, node)?;
        if pod.is_static {
            return Err(Refusal::StaticPod(reference.pod.to_string()));
        }
        Ok(Proven { pod, volume: ours(pod, reference)? })
    }

    /// The cluster that the tokens are of, or are to be of.
    pub(super) fn cluster(&self, purpose: Purpose<'_>, proven: Proven<'_>) -> Result<String, Refusal> {
        let named = proven.volume.attributes.get(CLUSTER_ATTRIBUTE);
        if let Some(name) = named {
            self.known(name)?;
        }
        match purpose {
            Purpose::Issue => named
                .or(self.default_cluster.as_ref())
                .cloned()
                .ok_or_else(|| Refusal::ClusterMissing(self.known_clusters())),
            // The default may have changed since the tokens were issued; a volume that names its cluster can have no
            // others.
            Purpose::Renew(tokens) | Purpose::Check(tokens) => match named {
                Some(volume) if volume != tokens => {
                    Err(Refusal::TokenOfAnotherCluster { tokens: tokens.to_owned(), volume: volume.clone() })
                }
                _ => self.known(tokens).map(|()| tokens.to_owned()),
            },
        }
    }

    /// Whether there is a cluster `name`.
    pub(crate) fn known(&self, name: &str) -> Result<(), Refusal> {
        if self.clusters.contains(name) {
            return Ok(());
        }
        Err(Refusal::ClusterUnknown { name: name.to_owned(), known: self.known_clusters() })
    }

    fn known_clusters(&self) -> String {
        self.clusters.iter().cloned().collect::<Vec<_>>().join(", ")
    }
}

/// The pod's token proves this pod on this node.
fn bound_to(token: &Identity, reference: &VolumeReference, node: &str) -> Result<(), Refusal> {
    let (Some(name), Some(uid)) = (&token.pod_name, &token.pod_uid) else {
        return Err(Refusal::PodTokenUnbound);
    };
    let account_prefix = username(&reference.pod.namespace, "");
    if name != &reference.pod.name
        || uid != &reference.pod.uid
        || !token.username.starts_with(&account_prefix)
    {
        return Err(Refusal::PodTokenOfAnotherPod(format!("pod {name} of {}", token.username)));
    }
    match &token.node_name {
        Some(found) if found == node => Ok(()),
        Some(found) => Err(Refusal::NodeMismatch { pod: found.clone(), driver: node.to_owned() }),
        None => Err(Refusal::PodTokenUnbound),
    }
}

/// The pod exists, is the one that was meant, runs on this node and is not about to end.
fn alive<'a>(
    pod: Option<&'a LivePod>,
    purpose: Purpose<'_>,
    reference: &VolumeReference,
    token: &Identity,
    node: &str,
) -> Result<&'a LivePod, Refusal> {
    let shown = || reference.pod.to_string();
    let pod = pod.ok_or_else(|| Refusal::PodNotFound(shown()))?;
    if pod.uid != reference.pod.uid {
        return Err(Refusal::PodReplaced(shown()));
    }
    // A terminating pod may still have a day of work to write out, with the tokens that it has.
    if pod.terminating && purpose == Purpose::Issue {
        return Err(Refusal::PodTerminating(shown()));
    }
    if pod.has_finished() {
        return Err(Refusal::PodFinished(shown()));
    }
    if pod.node_name.as_deref() != Some(node) {
        return Err(Refusal::PodOnAnotherNode {
            pod: shown(),
            found: pod.node_name.clone().unwrap_or_default(),
            driver: node.to_owned(),
        });
    }
    if token.username != username(&reference.pod.namespace, &pod.service_account) {
        return Err(Refusal::PodTokenOfAnotherPod(token.username.clone()));
    }
    Ok(pod)
}

/// The volume is in the pod's spec, is ours, and asks for nothing unknown.
fn ours<'a>(pod: &'a LivePod, reference: &VolumeReference) -> Result<&'a CsiVolume, Refusal> {
    let name = || reference.name.clone();
    let csi = pod.volumes.get(&reference.name).ok_or_else(|| Refusal::VolumeNotInPod(name()))?;
    if csi.driver != DRIVER_NAME {
        return Err(Refusal::VolumeOfAnotherDriver { volume: name(), driver: csi.driver.clone() });
    }
    if !csi.read_only {
        return Err(Refusal::VolumeNotReadOnly(name()));
    }
    let expected = VolumeId::of(&pod.uid, &reference.name);
    if reference.id != expected {
        return Err(Refusal::VolumeIdMismatch { volume: name(), found: reference.id.clone(), expected });
    }
    match csi.attributes.keys().find(|attribute| !VOLUME_ATTRIBUTES.contains(&attribute.as_str())) {
        Some(attribute) => Err(Refusal::UnknownAttribute { volume: name(), attribute: attribute.clone() }),
        None => Ok(csi),
    }
}

#[cfg(test)]
mod tests {
    use identity::VolumeId;

    use super::*;
    use crate::authorization::example::{Case, check, decided, granted};

    #[test]
    fn grants_the_default_cluster_or_the_one_that_the_volume_names() {
        assert_eq!(decided(|_| {}), granted("etl", "main"));
        assert_eq!(decided(|case| case.attribute("cluster", "spare")), granted("etl", "spare"));
    }

    #[test]
    fn a_volume_shares_its_token_with_the_pods_of_its_root_owner_when_it_asks_to() {
        let job = |change: fn(&mut Case)| {
            let mut case = Case::granted();
            change(&mut case);
            let claim = case.policy.claim(Purpose::Issue, &case.volume, &case.facts).unwrap();
            case.policy.grant(&claim, &case.findings).unwrap().job
        };
        let asked = |case: &mut Case| case.attribute("scope", "job");
        assert_eq!(job(|_| {}), None);
        assert_eq!(job(|case| case.attribute("scope", "pod")), None);
        assert_eq!(job(asked).as_deref(), Some("u-1"), "a pod of nobody shares with itself");
        let mut case = Case::hardest();
        asked(&mut case);
        let claim = case.policy.claim(Purpose::Issue, &case.volume, &case.facts).unwrap();
        assert_eq!(claim.job.as_deref(), Some("u-owner-19"));
        let unsealed = job(|case| {
            case.policy.trust = crate::authorization::Trust::Annotations;
            case.attribute("scope", "job");
        });
        assert_eq!(unsealed.as_deref(), Some("u-1"));
    }

    #[test]
    fn refuses_a_scope_that_there_is_not() {
        check(|case| case.attribute("scope", "Job"), "SCOPE_UNKNOWN", "\"pod\" or \"job\"");
    }

    #[test]
    fn refuses_a_caller_that_is_not_the_node_plugin() {
        check(
            |case| case.driver().username = "system:serviceaccount:jobs:runner".to_owned(),
            "CALLER_NOT_DRIVER",
            "system:serviceaccount:system:driver",
        );
        check(|case| case.driver().username = String::new(), "CALLER_NOT_DRIVER", "driver");
    }

    #[test]
    fn refuses_a_node_plugin_whose_token_is_bound_to_no_pod_or_node() {
        check(|case| case.driver().pod_uid = None, "DRIVER_TOKEN_UNBOUND", "projected");
        check(|case| case.driver().node_name = None, "DRIVER_TOKEN_UNBOUND", "projected");
    }

    #[test]
    fn refuses_a_pod_token_that_is_bound_to_no_pod_or_node() {
        check(|case| case.pod_token().pod_uid = None, "POD_TOKEN_UNBOUND", "tokenRequests");
        check(|case| case.pod_token().pod_name = None, "POD_TOKEN_UNBOUND", "tokenRequests");
        check(|case| case.pod_token().node_name = None, "POD_TOKEN_UNBOUND", "tokenRequests");
    }

    #[test]
    fn refuses_a_token_for_another_pod() {
        let other = || Some("other".to_owned());
        check(|case| case.pod_token().pod_uid = other(), "POD_TOKEN_OF_ANOTHER_POD", "etl-0");
        check(|case| case.pod_token().pod_name = other(), "POD_TOKEN_OF_ANOTHER_POD", "other");
        check(
            |case| case.pod_token().username = "system:serviceaccount:other:runner".to_owned(),
            "POD_TOKEN_OF_ANOTHER_POD",
            "other:runner",
        );
        check(
            |case| case.pod_token().username = "system:serviceaccount:jobs:other".to_owned(),
            "POD_TOKEN_OF_ANOTHER_POD",
            "jobs:other",
        );
        check(|case| case.pod_token().username = "alice".to_owned(), "POD_TOKEN_OF_ANOTHER_POD", "alice");
    }

    #[test]
    fn refuses_a_pod_of_another_node() {
        let other = || Some("n-2".to_owned());
        check(|case| case.pod_token().node_name = other(), "NODE_MISMATCH", "n-2");
        check(|case| case.pod().node_name = other(), "POD_ON_ANOTHER_NODE", "n-2");
        check(|case| case.pod().node_name = None, "POD_ON_ANOTHER_NODE", "etl-0");
    }

    #[test]
    fn refuses_a_pod_that_is_gone_replaced_or_at_its_end() {
        check(|case| case.facts.caller.pod = None, "POD_NOT_FOUND", "jobs/etl-0");
        check(|case| case.pod().uid = "u-2".to_owned(), "POD_REPLACED", "jobs/etl-0");
        check(|case| case.pod().terminating = true, "POD_TERMINATING", "jobs/etl-0");
        check(|case| case.pod().phase = "Succeeded".to_owned(), "POD_FINISHED", "jobs/etl-0");
        check(|case| case.pod().phase = "Failed".to_owned(), "POD_FINISHED", "jobs/etl-0");
    }

    #[test]
    fn refuses_a_static_pod_which_nobody_submitted() {
        check(|case| case.pod().is_static = true, "STATIC_POD", "jobs/etl-0");
    }

    #[test]
    fn renews_and_checks_for_a_terminating_pod_but_for_no_finished_one() {
        for purpose in [Purpose::Renew("main"), Purpose::Check("main")] {
            let mut case = Case::granted();
            case.pod().terminating = true;
            assert_eq!(case.decide(purpose), granted("etl", "main"));
            case.pod().phase = "Succeeded".to_owned();
            assert!(matches!(case.decide(purpose), Err(Refusal::PodFinished(_))));
        }
    }

    #[test]
    fn refuses_a_volume_that_is_not_in_the_pods_spec() {
        check(|case| case.pod().volumes.clear(), "VOLUME_NOT_IN_POD", "token");
        check(|case| case.csi().driver = "other.csi".to_owned(), "VOLUME_OF_ANOTHER_DRIVER", "other.csi");
        check(|case| case.volume.id = VolumeId::of("u-1", "other"), "VOLUME_ID_MISMATCH", "csi-");
    }

    #[test]
    fn refuses_a_writable_volume_and_says_what_to_set() {
        check(|case| case.csi().read_only = false, "VOLUME_NOT_READ_ONLY", "csi.readOnly");
    }

    #[test]
    fn refuses_an_unknown_attribute_by_name() {
        check(|case| case.attribute("doas", "hdfs"), "UNKNOWN_ATTRIBUTE", "\"doas\"");
    }

    #[test]
    fn refuses_a_cluster_that_does_not_exist_and_names_those_that_do() {
        check(|case| case.attribute("cluster", "nope"), "CLUSTER_UNKNOWN", "main, spare");
        check(|case| case.policy.default_cluster = None, "CLUSTER_MISSING", "main, spare");
    }

    #[test]
    fn tokens_stay_with_the_cluster_that_their_volume_names() {
        let mut case = Case::granted();
        // The default may have changed since they were issued.
        assert_eq!(case.decide(Purpose::Renew("spare")), granted("etl", "spare"));
        assert!(matches!(case.decide(Purpose::Check("nope")), Err(Refusal::ClusterUnknown { .. })));
        case.attribute("cluster", "spare");
        assert_eq!(case.decide(Purpose::Renew("spare")), granted("etl", "spare"));
        assert!(matches!(case.decide(Purpose::Renew("main")), Err(Refusal::TokenOfAnotherCluster { .. })));
    }
}
