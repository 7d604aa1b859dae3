//! From a request to a grant or a refusal: gathers the facts in the order of what they cost and of what they prove, has
//! `authorization` decide, and notes in the audit record what came out on the way.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use hadoop::HadoopUser;
use identity::{SEAL_ANNOTATION, owners::OwnerKinds};
use secrecy::SecretString;
use tokio::time::Instant;

use super::{Call, disagreements::Disagreements};
use crate::{
    audit::Record,
    authorization::{
        Accounts, AddressFacts, Claim, Facts, Findings, Grant, Identity, LivePod, Observed, OtherPod, Policy,
        Purpose, Refusal, Trust, Verification, disagree,
    },
    caller::ApiServer,
    directory::{Account, Directory},
    failure::Failure,
    ledger::Scope,
    pod_watch::PodWatch,
    rate_limit::{Exceeded, RateLimits},
    request::VolumeReference,
    seal::{NonceRegister, SealKeys},
};

/// Everybody who is asked before a token is given, and the policy by which it is decided.
pub(crate) struct Judge {
    pub(crate) policy: Policy,
    pub(crate) api_server: ApiServer,
    /// Kinds of owners that are read.
    pub(crate) owners: OwnerKinds,
    /// None only where annotations are believed without a seal.
    pub(crate) seal_keys: Option<Arc<SealKeys>>,
    pub(crate) nonces: NonceRegister,
    pub(crate) directory: Option<Directory>,
    pub(crate) pods: PodWatch,
    pub(crate) disagreements: Disagreements,
    pub(crate) limits: Arc<RateLimits>,
}

/// What a call is for, as far as judging it goes.
pub(super) struct Question<'a> {
    pub(crate) purpose: Purpose<'a>,
    pub(crate) volume: &'a VolumeReference,
    pub(crate) pod_token: &'a SecretString,
    pub(crate) addresses: Option<&'a Observed>,
}

impl Judge {
    /// A register of seals that remembers them for as long as pods live by them.
    pub(crate) fn nonces(trust: Trust, recheck: Duration) -> NonceRegister {
        let tolerance = match trust {
            Trust::Seals { tolerance } => Duration::from_secs(tolerance),
            Trust::Annotations => Duration::ZERO,
        };
        NonceRegister::new(tolerance, recheck)
    }

    /// Whether pods are believed without a seal.
    pub(crate) fn is_insecure(&self) -> bool {
        self.policy.trust == Trust::Annotations
    }

    /// The node plugin behind the token that a caller at `peer` shows, if its node does not ask too often, or for too
    /// many tokens.
    pub(super) async fn driver(
        &self,
        token: Option<SecretString>,
        peer: Option<IpAddr>,
        tokens: usize,
        record: &mut Record,
    ) -> Result<Identity, Failure> {
        let driver = self.api_server.driver(&self.policy, token, peer).await?;
        if let Some(node) = &driver.node_name {
            self.limits.admit_node(node, tokens).map_err(limited)?;
        }
        record.node.clone_from(&driver.node_name);
        Ok(driver)
    }

    /// Everything that is known before the directory is asked. Stops early for a pod that will be refused anyway.
    pub(super) async fn facts(
        &self,
        driver: Identity,
        question: &Question<'_>,
        call: &mut Call,
    ) -> Result<Facts, Failure> {
        let Question { purpose, volume, pod_token, addresses } = *question;
        let caller = self.api_server.caller(driver, volume, pod_token).await?;
        let pod = caller.pod.as_ref();
        let seal = pod.and_then(|pod| self.seal(pod));
        let mut facts =
            Facts { seal, owners: None, namespace_labels: BTreeMap::new(), addresses: None, caller };
        let Ok(proven) = self.policy.admit_pod(purpose, volume, &facts.caller) else { return Ok(facts) };
        call.pod_proven = true;
        call.record.images.clone_from(&proven.pod.images);

        let namespace = &volume.pod.namespace;
        if self.policy.namespaces.ask_for_labels(namespace) {
            let found = self.api_server.live_namespace(namespace).await?;
            facts.namespace_labels = found.map(|namespace| namespace.labels).unwrap_or_default();
        }
        let job = matches!(proven.scope(), Ok(Scope::Job));
        if purpose == Purpose::Issue && (job || matches!(facts.seal, Some(Ok(_)))) {
            let controller = proven.pod.controller.clone();
            facts.owners = Some(self.api_server.owner_chain(namespace, controller, &self.owners).await?);
        }
        if let Some(observed) = addresses
            && self.policy.verification(namespace, &facts.namespace_labels) != Verification::Off
        {
            facts.addresses = Some(self.addresses(proven.pod, observed).await?);
        }
        Ok(facts)
    }

    /// What the facts entitle the volume to.
    pub(super) async fn decide(
        &self,
        question: &Question<'_>,
        facts: &Facts,
        record: &mut Record,
    ) -> Result<Grant, Failure> {
        let volume = question.volume;
        if let Some(Ok(seal)) = &facts.seal {
            record.submitter = Some(seal.submitter.clone());
        }
        let claim = self.policy.claim(question.purpose, volume, facts)?;
        record.submitter = Some(claim.submitter.name.clone());
        record.groups.clone_from(&claim.submitter.groups);
        record.mapped_user = Some(claim.mapped.to_string());
        record.user = Some(claim.effective.to_string());
        record.cluster = Some(claim.cluster.clone());
        let findings = self.findings(&claim, &volume.pod.uid).await?;
        let grant = self.policy.grant(&claim, &findings)?;
        // Only now are namespace and user proven, so that nobody can use up what belongs to others.
        if question.purpose == Purpose::Issue {
            self.limits.admit(&volume.pod.namespace, grant.user.as_str()).map_err(limited)?;
        }
        Ok(grant)
    }

    fn seal(&self, pod: &LivePod) -> Option<Result<identity::seal::Seal, identity::seal::SealError>> {
        let keys = self.seal_keys.as_ref()?;
        Some(keys.now().verify(pod.annotations.get(SEAL_ANNOTATION)?))
    }

    /// Whoever else has one of the pod's addresses. The watch says who may, which is no proof: each of them is read
    /// live.
    async fn addresses(&self, pod: &LivePod, observed: &Observed) -> Result<AddressFacts, Failure> {
        let mut all: Vec<_> = pod.addresses.iter().copied().collect();
        if let Observed::Seen { addresses, .. } = observed {
            all.extend(addresses);
        }
        let mut others = Vec::new();
        if !pod.host_network {
            for sharer in self.pods.sharing(&all, &pod.uid)? {
                if let Some(live) = self.api_server.live_pod(&sharer).await? {
                    others.push(OtherPod { name: sharer.to_string(), pod: live });
                }
            }
        }
        let disagreement_lasts = self.disagreements.lasts(&pod.uid, disagree(pod, observed), Instant::now());
        Ok(AddressFacts { observed: observed.clone(), others, disagreement_lasts })
    }

    /// What directory and register say. The seal is bound to the pod only now, when all else about it is right: else
    /// whoever copies it could take it away from its pod.
    async fn findings(&self, claim: &Claim, pod_uid: &str) -> Result<Findings, Failure> {
        let nonce = match &claim.submitter.nonce {
            Some(nonce) => self.nonces.bind(nonce, pod_uid, Instant::now()),
            None => Ok(()),
        };
        let accounts = match &self.directory {
            Some(directory) if nonce.is_ok() => {
                let submitter = account(directory, &claim.mapped).await?;
                let effective = if claim.effective == claim.mapped {
                    submitter.clone()
                } else {
                    account(directory, &claim.effective).await?
                };
                Some(Accounts { submitter, effective })
            }
            _ => None,
        };
        Ok(Findings { accounts, nonce })
    }
}

async fn account(directory: &Directory, user: &HadoopUser) -> Result<Option<Arc<Account>>, Failure> {
    Ok(directory.account(user).await?)
}

fn limited(exceeded: Exceeded) -> Refusal {
    Refusal::RateLimited(format!("{} {:?}", exceeded.scope, exceeded.key))
}
