//! A request that is granted, for tests to spoil, and the most work that a decision can be, for the benchmark.

use std::{collections::BTreeSet, sync::Arc};

use hadoop::{HadoopUser, auth_to_local::Rules};
use identity::{
    DRIVER_NAME, GROUPS_ANNOTATION, SUBMITTER_ANNOTATION, VolumeId,
    owners::ChainEnd,
    seal::{JwkSet, KeySet, ObjectName, Seal, SealingKey, groups_annotation, groups_digest},
};

#[cfg(test)]
pub(crate) use self::spoiling::{check, decided, granted};
use super::*;
use crate::request::{PodReference, VolumeReference};

/// A request, all that is known about it, and a policy.
pub struct Case {
    pub(crate) volume: VolumeReference,
    pub(crate) facts: Facts,
    pub(crate) findings: Findings,
    pub(crate) policy: Policy,
}

const CREATED: i64 = 1_800_000_000;

fn identity(account: &str, pod: &str, uid: &str) -> Identity {
    Identity {
        username: format!("system:serviceaccount:{account}"),
        pod_name: Some(pod.to_owned()),
        pod_uid: Some(uid.to_owned()),
        node_name: Some("n-1".to_owned()),
    }
}

#[expect(clippy::expect_used, reason = "names in tests are right")]
pub(crate) fn user(name: &str) -> HadoopUser {
    name.parse().expect("a user's name")
}

#[expect(clippy::expect_used, reason = "rules in tests are right")]
fn names(rules: &str) -> NameRules {
    let rules = Rules::parse(rules, Some("EXAMPLE.COM")).expect("rules");
    NameRules::new(rules, BTreeMap::new())
}

/// An account of these groups.
pub(crate) fn account(groups: &[&str]) -> Option<Arc<Account>> {
    Some(Arc::new(Account { groups: groups.iter().map(|&group| group.to_owned()).collect() }))
}

impl Case {
    /// Pod jobs/etl-0 on n-1, submitted and sealed for `etl`, asks for its volume `token`.
    #[must_use]
    pub fn granted() -> Self {
        let id = VolumeId::of("u-1", "token");
        let pod =
            PodReference { namespace: "jobs".to_owned(), name: "etl-0".to_owned(), uid: "u-1".to_owned() };
        let csi = CsiVolume { driver: DRIVER_NAME.to_owned(), read_only: true, attributes: BTreeMap::new() };
        let groups = ["staff".to_owned(), "system:authenticated".to_owned()];
        let seal = Seal {
            submitter: "etl".to_owned(),
            groups_digest: groups_digest(&groups),
            do_as: BTreeSet::new(),
            namespace: "jobs".to_owned(),
            service_account: "runner".to_owned(),
            name: ObjectName::Name("etl-0".to_owned()),
            root_owner: None,
            sealed_at: CREATED,
            nonce: "0123456789abcdef".to_owned(),
        };
        let live = LivePod {
            uid: "u-1".to_owned(),
            created: CREATED,
            node_name: Some("n-1".to_owned()),
            service_account: "runner".to_owned(),
            phase: "Pending".to_owned(),
            annotations: [
                (SUBMITTER_ANNOTATION.to_owned(), "etl".to_owned()),
                (GROUPS_ANNOTATION.to_owned(), groups_annotation(&groups)),
            ]
            .into(),
            volumes: [("token".to_owned(), csi)].into(),
            ..LivePod::default()
        };
        let known = account(&["staff"]);
        Self {
            volume: VolumeReference { id, name: "token".to_owned(), pod },
            facts: Facts {
                caller: CallerFacts {
                    driver: identity("system:driver", "driver-x", "u-d"),
                    pod_token: identity("jobs:runner", "etl-0", "u-1"),
                    pod: Some(live),
                },
                seal: Some(Ok(seal)),
                owners: Some(OwnerChain::default()),
                namespace_labels: BTreeMap::new(),
                addresses: None,
            },
            findings: Findings {
                accounts: Some(Accounts { submitter: known.clone(), effective: known }),
                nonce: Ok(()),
            },
            policy: Policy {
                driver: ServiceAccount { namespace: "system".to_owned(), name: "driver".to_owned() },
                clusters: ["main".to_owned(), "spare".to_owned()].into(),
                default_cluster: Some("main".to_owned()),
                trust: Trust::Seals { tolerance: 120 },
                names: names("DEFAULT"),
                users: UserRules {
                    allowed: None,
                    allowed_groups: None,
                    denied: [user("hdfs")].into(),
                    denied_groups: ["supergroup".to_owned()].into(),
                    headless_group: ACCOUNT.to_owned(),
                    on_lost_right: OnLostRight::Cancel,
                },
                namespaces: Namespaces::default(),
                verification: Verification::Eventual,
            },
        }
    }

    /// The most work: 100 mapping rules of which the last applies, 1,000 denied groups and an account in 200 others,
    /// 100 namespace rules of which the last fits, 20 owners, a headless account, 100 Kubernetes groups, addresses.
    #[must_use]
    pub fn hardest() -> Self {
        let mut case = Self::granted();
        let numbered =
            |name: &str, count: usize| (0..count).map(|n| format!("{name}-{n}")).collect::<Vec<_>>();
        let rules: String = (0..99)
            .map(|n| {
                format!(
                    "RULE:[1:$1@$0](^team{n}-.*@CORP{n}\\.EXAMPLE\\.COM$)s/^team{n}-([a-z0-9]+)@.*$/$1/L\n"
                )
            })
            .collect();
        case.policy.names = names(&format!("{rules}DEFAULT"));
        case.policy.users.denied_groups = numbered("denied", 1_000).into_iter().collect();
        case.policy.users.denied = numbered("denied", 1_000).iter().map(|name| user(name)).collect();
        let mut groups: BTreeSet<String> = numbered("group", 200).into_iter().collect();
        groups.insert("svc".to_owned());
        let known = Some(Arc::new(Account { groups }));
        case.findings.accounts = Some(Accounts { submitter: known.clone(), effective: known });
        case.policy.namespaces.rules = numbered("team", 99)
            .into_iter()
            .map(|name| Rule { names: Some(vec![Pattern::new(format!("{name}-*"))]), ..Rule::default() })
            .chain([Rule { users: Some([user("svc")].into()), ..Rule::default() }])
            .collect();

        let links: Vec<Owner> = numbered("owner", 20)
            .into_iter()
            .map(|name| Owner {
                api_version: "apps/v1".to_owned(),
                kind: "Deployment".to_owned(),
                uid: format!("u-{name}"),
                name,
            })
            .collect();
        let root = links.last().map(|root| Owner {
            api_version: root.api_version.clone(),
            kind: root.kind.clone(),
            name: root.name.clone(),
            uid: root.uid.clone(),
        });
        case.facts.owners = Some(OwnerChain { links, end: ChainEnd::Root });
        let groups = numbered("system:group", 100);
        let address: IpAddr = [10, 0, 0, 7].into();
        if let Some(pod) = &mut case.facts.caller.pod {
            pod.annotations.insert(GROUPS_ANNOTATION.to_owned(), groups_annotation(&groups));
            pod.addresses.insert(address);
            if let Some(volume) = pod.volumes.get_mut("token") {
                volume.attributes.insert("doAs".to_owned(), "svc".to_owned());
            }
        }
        if let Some(Ok(seal)) = &mut case.facts.seal {
            seal.root_owner = root;
            seal.groups_digest = groups_digest(&groups);
            seal.do_as.insert("svc".to_owned());
        }
        case.facts.addresses = Some(AddressFacts {
            observed: Observed::Seen { host_network: false, addresses: [address].into() },
            others: Vec::new(),
            disagreement_lasts: false,
        });
        case
    }

    /// Both stages of the decision, for new tokens: the user, or why not.
    ///
    /// # Errors
    /// The refusal's sentence.
    pub fn decision(&self) -> Result<HadoopUser, String> {
        let claim = self
            .policy
            .claim(Purpose::Issue, &self.volume, &self.facts)
            .map_err(|error| error.to_string())?;
        let grant = self.policy.grant(&claim, &self.findings).map_err(|error| error.to_string())?;
        Ok(grant.user)
    }

    /// Verifies the seal's signature, as it is done before the decision. Signs it first.
    #[expect(clippy::expect_used, reason = "the seal of an example can be signed")]
    pub fn verification(&self) -> impl Fn() -> bool + use<> {
        let seal =
            self.facts.seal.as_ref().and_then(|seal| seal.as_ref().ok()).expect("an example has a seal");
        let key = SealingKey::generate();
        let text = key.sign(seal).expect("a seal can be signed");
        let set = JwkSet { keys: vec![key.public_jwk()] }.to_json();
        let keys = KeySet::from_jwk_set(set.as_bytes()).expect("a public key makes a set");
        move || keys.verify(&text).is_ok()
    }
}

#[cfg(test)]
mod spoiling {
    use super::*;
    use crate::failure::Failure;

    impl Case {
        pub(crate) fn driver(&mut self) -> &mut Identity {
            &mut self.facts.caller.driver
        }

        pub(crate) fn pod_token(&mut self) -> &mut Identity {
            &mut self.facts.caller.pod_token
        }

        pub(crate) fn pod(&mut self) -> &mut LivePod {
            self.facts.caller.pod.as_mut().unwrap()
        }

        pub(crate) fn csi(&mut self) -> &mut CsiVolume {
            self.pod().volumes.get_mut("token").unwrap()
        }

        pub(crate) fn attribute(&mut self, name: &str, value: &str) {
            self.csi().attributes.insert(name.to_owned(), value.to_owned());
        }

        pub(crate) fn annotation(&mut self, name: &str, value: &str) {
            self.pod().annotations.insert(name.to_owned(), value.to_owned());
        }

        pub(crate) fn seal(&mut self) -> &mut Seal {
            self.facts.seal.as_mut().unwrap().as_mut().unwrap()
        }

        pub(crate) fn accounts(&mut self, submitter: Option<Arc<Account>>, effective: Option<Arc<Account>>) {
            self.findings.accounts = Some(Accounts { submitter, effective });
        }

        pub(crate) fn decide(&self, purpose: Purpose<'_>) -> Result<(String, String), Refusal> {
            let claim = self.policy.claim(purpose, &self.volume, &self.facts)?;
            let grant = self.policy.grant(&claim, &self.findings)?;
            Ok((grant.user.to_string(), grant.cluster))
        }
    }

    /// Spoils the granted request by `change` and expects a refusal with `reason` whose sentence holds `says`.
    #[track_caller]
    pub(crate) fn check(change: impl FnOnce(&mut Case), reason: &str, says: &str) {
        let refusal = decided(change).unwrap_err();
        let sentence = refusal.to_string();
        assert_eq!(Failure::from(refusal).reason(), reason, "{sentence}");
        assert!(sentence.contains(says), "{sentence}");
    }

    pub(crate) fn decided(change: impl FnOnce(&mut Case)) -> Result<(String, String), Refusal> {
        let mut case = Case::granted();
        change(&mut case);
        case.decide(Purpose::Issue)
    }

    #[expect(clippy::unnecessary_wraps, reason = "to be compared with decisions")]
    pub(crate) fn granted(user: &str, cluster: &str) -> Result<(String, String), Refusal> {
        Ok((user.to_owned(), cluster.to_owned()))
    }

    #[test]
    fn the_hardest_request_is_granted_too() {
        let case = Case::hardest();
        assert_eq!(case.decision(), Ok(user("svc")));
        assert!(case.verification()());
    }
}
