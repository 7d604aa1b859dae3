//! One request that is granted, and every way to spoil it.

use super::*;
use crate::{failure::Failure, request::PodReference};

struct Case {
    volume: VolumeReference,
    facts: Facts,
    policy: Policy,
}

impl Case {
    /// Pod jobs/etl-0 on n-1 asks for its volume `token`, for Hadoop user etl.
    fn granted() -> Self {
        let id = VolumeId::of("u-1", "token");
        let pod =
            PodReference { namespace: "jobs".to_owned(), name: "etl-0".to_owned(), uid: "u-1".to_owned() };
        let csi = CsiVolume { driver: DRIVER_NAME.to_owned(), read_only: true, attributes: BTreeMap::new() };
        Self {
            volume: VolumeReference { id, name: "token".to_owned(), pod },
            facts: Facts {
                driver: Identity {
                    username: "system:serviceaccount:system:driver".to_owned(),
                    pod_name: Some("driver-x".to_owned()),
                    pod_uid: Some("u-d".to_owned()),
                    node_name: Some("n-1".to_owned()),
                },
                pod_token: Identity {
                    username: "system:serviceaccount:jobs:runner".to_owned(),
                    pod_name: Some("etl-0".to_owned()),
                    pod_uid: Some("u-1".to_owned()),
                    node_name: Some("n-1".to_owned()),
                },
                pod: Some(LivePod {
                    uid: "u-1".to_owned(),
                    node_name: Some("n-1".to_owned()),
                    service_account: "runner".to_owned(),
                    terminating: false,
                    phase: "Pending".to_owned(),
                    annotations: [(USER_ANNOTATION.to_owned(), "etl".to_owned())].into(),
                    volumes: [("token".to_owned(), csi)].into(),
                }),
            },
            policy: Policy {
                driver: ServiceAccount { namespace: "system".to_owned(), name: "driver".to_owned() },
                clusters: ["main".to_owned(), "spare".to_owned()].into(),
                default_cluster: Some("main".to_owned()),
                denied_users: ["hdfs".to_owned()].into(),
            },
        }
    }

    fn pod(&mut self) -> &mut LivePod {
        self.facts.pod.as_mut().unwrap()
    }

    fn csi(&mut self) -> &mut CsiVolume {
        self.pod().volumes.get_mut("token").unwrap()
    }

    fn attribute(&mut self, name: &str, value: &str) {
        self.csi().attributes.insert(name.to_owned(), value.to_owned());
    }

    fn user(&mut self, name: &str) {
        self.pod().annotations.insert(USER_ANNOTATION.to_owned(), name.to_owned());
    }

    fn decide(&self, purpose: Purpose) -> Result<(String, String), Refusal> {
        let grant = self.policy.decide(purpose, &self.volume, &self.facts)?;
        let cluster = self.policy.cluster(&grant)?;
        Ok((grant.user.to_string(), cluster))
    }
}

/// Spoils the granted request by `change` and expects a refusal with `reason` whose sentence holds `says`.
#[track_caller]
fn check(change: impl FnOnce(&mut Case), reason: &str, says: &str) {
    let mut case = Case::granted();
    change(&mut case);
    let refusal = case.decide(Purpose::Issue).unwrap_err();
    let sentence = refusal.to_string();
    assert_eq!(Failure::from(refusal).reason(), reason, "{sentence}");
    assert!(sentence.contains(says), "{sentence}");
}

fn decided(change: impl FnOnce(&mut Case)) -> Result<(String, String), Refusal> {
    let mut case = Case::granted();
    change(&mut case);
    case.decide(Purpose::Issue)
}

fn granted(user: &str, cluster: &str) -> Result<(String, String), Refusal> {
    Ok((user.to_owned(), cluster.to_owned()))
}

#[test]
fn grants_the_annotated_user_at_the_default_cluster() {
    assert_eq!(decided(|_| {}), granted("etl", "main"));
}

#[test]
fn grants_the_cluster_that_the_volume_names() {
    assert_eq!(decided(|case| case.attribute("cluster", "spare")), granted("etl", "spare"));
}

#[test]
fn refuses_a_caller_that_is_not_the_node_plugin() {
    check(
        |case| case.facts.driver.username = "system:serviceaccount:jobs:runner".to_owned(),
        "CALLER_NOT_DRIVER",
        "system:serviceaccount:system:driver",
    );
    check(|case| case.facts.driver.username = String::new(), "CALLER_NOT_DRIVER", "driver");
}

#[test]
fn refuses_a_node_plugin_whose_token_is_bound_to_no_pod_or_node() {
    check(|case| case.facts.driver.pod_uid = None, "DRIVER_TOKEN_UNBOUND", "projected");
    check(|case| case.facts.driver.node_name = None, "DRIVER_TOKEN_UNBOUND", "projected");
}

#[test]
fn refuses_a_pod_token_that_is_bound_to_no_pod_or_node() {
    check(|case| case.facts.pod_token.pod_uid = None, "POD_TOKEN_UNBOUND", "tokenRequests");
    check(|case| case.facts.pod_token.pod_name = None, "POD_TOKEN_UNBOUND", "tokenRequests");
    check(|case| case.facts.pod_token.node_name = None, "POD_TOKEN_UNBOUND", "tokenRequests");
}

#[test]
fn refuses_a_token_for_another_pod() {
    let other = || Some("other".to_owned());
    check(|case| case.facts.pod_token.pod_uid = other(), "POD_TOKEN_OF_ANOTHER_POD", "etl-0");
    check(|case| case.facts.pod_token.pod_name = other(), "POD_TOKEN_OF_ANOTHER_POD", "other");
    check(
        |case| case.facts.pod_token.username = "system:serviceaccount:other:runner".to_owned(),
        "POD_TOKEN_OF_ANOTHER_POD",
        "other:runner",
    );
    check(
        |case| case.facts.pod_token.username = "system:serviceaccount:jobs:other".to_owned(),
        "POD_TOKEN_OF_ANOTHER_POD",
        "jobs:other",
    );
    check(|case| case.facts.pod_token.username = "alice".to_owned(), "POD_TOKEN_OF_ANOTHER_POD", "alice");
}

#[test]
fn refuses_a_pod_of_another_node() {
    let other = || Some("n-2".to_owned());
    check(|case| case.facts.pod_token.node_name = other(), "NODE_MISMATCH", "n-2");
    check(|case| case.pod().node_name = other(), "POD_ON_ANOTHER_NODE", "n-2");
    check(|case| case.pod().node_name = None, "POD_ON_ANOTHER_NODE", "etl-0");
}

#[test]
fn refuses_a_pod_that_is_gone_replaced_or_at_its_end() {
    check(|case| case.facts.pod = None, "POD_NOT_FOUND", "jobs/etl-0");
    check(|case| case.pod().uid = "u-2".to_owned(), "POD_REPLACED", "jobs/etl-0");
    check(|case| case.pod().terminating = true, "POD_TERMINATING", "jobs/etl-0");
    check(|case| case.pod().phase = "Succeeded".to_owned(), "POD_FINISHED", "jobs/etl-0");
    check(|case| case.pod().phase = "Failed".to_owned(), "POD_FINISHED", "jobs/etl-0");
}

#[test]
fn renews_for_a_terminating_pod_but_for_no_finished_one() {
    let mut case = Case::granted();
    case.pod().terminating = true;
    assert_eq!(case.decide(Purpose::Renew), granted("etl", "main"));
    case.pod().phase = "Succeeded".to_owned();
    assert!(matches!(case.decide(Purpose::Renew), Err(Refusal::PodFinished(_))));
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
    check(|case| case.attribute("doAs", "hdfs"), "UNKNOWN_ATTRIBUTE", "\"doAs\"");
}

#[test]
fn refuses_a_pod_that_names_no_usable_user() {
    check(|case| case.pod().annotations.clear(), "USER_MISSING", USER_ANNOTATION);
    check(|case| case.user(""), "USER_INVALID", USER_ANNOTATION);
    check(|case| case.user("etl@CORP"), "USER_INVALID", "etl@CORP");
    check(|case| case.user("hdfs"), "USER_DENIED", "hdfs");
}

#[test]
fn refuses_a_cluster_that_does_not_exist_and_names_those_that_do() {
    check(|case| case.attribute("cluster", "nope"), "CLUSTER_UNKNOWN", "main, spare");
    check(|case| case.policy.default_cluster = None, "CLUSTER_MISSING", "main, spare");
}

#[test]
fn tokens_stay_with_the_cluster_that_their_volume_names() {
    let policy = Case::granted().policy;
    let grant =
        |cluster: Option<&str>| Grant { user: "etl".parse().unwrap(), cluster: cluster.map(str::to_owned) };
    assert_eq!(policy.cluster_of_tokens(&grant(Some("spare")), "spare"), Ok(()));
    assert!(matches!(
        policy.cluster_of_tokens(&grant(Some("spare")), "main"),
        Err(Refusal::TokenOfAnotherCluster { .. })
    ));
    // The default may have changed since they were issued.
    assert_eq!(policy.cluster_of_tokens(&grant(None), "spare"), Ok(()));
    assert!(matches!(policy.cluster_of_tokens(&grant(None), "nope"), Err(Refusal::ClusterUnknown { .. })));
}

fn token(owner: &str, renewer: &str) -> hadoop::Token {
    let identifier = hadoop::TokenIdentifier {
        owner: owner.to_owned(),
        renewer: renewer.to_owned(),
        real_user: "csi/h@R".to_owned(),
        issue_date: 1,
        max_date: 2,
        sequence_number: 3,
        master_key_id: 4,
    };
    hadoop::Token::new(identifier.encode(), Vec::new(), hadoop::token::HDFS_DELEGATION_TOKEN, "")
}

#[test]
fn renews_only_the_pods_own_tokens_of_our_making() {
    let user = "etl".parse().unwrap();
    assert_eq!(renewable(0, &token("etl", "csi"), &user, "csi"), Ok(()));
    assert!(matches!(
        renewable(0, &token("ads", "csi"), &user, "csi"),
        Err(Refusal::TokenOfAnotherUser { .. })
    ));
    assert!(matches!(
        renewable(0, &token("etl", "yarn"), &user, "csi"),
        Err(Refusal::TokenOfAnotherRenewer { .. })
    ));
    let garbage = hadoop::Token::new(b"x".to_vec(), Vec::new(), hadoop::token::HDFS_DELEGATION_TOKEN, "");
    assert!(matches!(renewable(0, &garbage, &user, "csi"), Err(Refusal::TokenUnreadable { .. })));
}

#[test]
fn cancels_only_tokens_of_our_making() {
    let check = |token: hadoop::Token| cancellable(0, &token.kind, &token.identifier, "csi");
    assert_eq!(check(token("etl", "csi")), Ok(()));
    assert!(matches!(check(token("etl", "yarn")), Err(Refusal::TokenOfAnotherRenewer { .. })));
}
