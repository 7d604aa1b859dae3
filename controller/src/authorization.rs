//! Who may have which token: facts in, a user and a cluster or a refusal out. Never does I/O, never guesses.
//!
//! In two stages, because what the directory has to be asked follows from the first: [`Policy::claim`] is everything up
//! to the user's name, [`Policy::grant`] what the directory and the register of seals say to it.

mod addresses;
mod names;
mod namespaces;
mod refusal;
mod sealed;
mod tokens;
mod users;
mod volume;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use hadoop::HadoopUser;
use identity::{
    owners::{Owner, OwnerChain},
    seal::{Seal, SealError},
};

pub(crate) use self::{
    addresses::{AddressFacts, Observed, OtherPod, Verification, disagree},
    names::NameRules,
    namespaces::{Namespaces, Pattern, Rule},
    refusal::Refusal,
    sealed::{Submitter, Trust},
    tokens::{cancellable, renewable, tied},
    users::{ACCOUNT, OnLostRight, UserRules},
};
use crate::{directory::Account, ledger::Scope, request::VolumeReference};

/// What the API server says of a service-account token that it has found valid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    /// `system:serviceaccount:NAMESPACE:NAME`.
    pub(crate) username: String,
    /// The pod that the token is bound to, if to any.
    pub(crate) pod_name: Option<String>,
    pub(crate) pod_uid: Option<String>,
    /// Node of that pod.
    pub(crate) node_name: Option<String>,
}

/// What the API server says of a pod, this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LivePod {
    pub(crate) uid: String,
    pub(crate) generate_name: Option<String>,
    /// Seconds since 1970.
    pub(crate) created: i64,
    /// Its controlling owner, as its metadata claims.
    pub(crate) controller: Option<Owner>,
    pub(crate) node_name: Option<String>,
    pub(crate) service_account: String,
    /// Written by a node itself, and only mirrored to the API server.
    pub(crate) is_static: bool,
    pub(crate) host_network: bool,
    pub(crate) terminating: bool,
    pub(crate) phase: String,
    pub(crate) addresses: BTreeSet<IpAddr>,
    pub(crate) annotations: BTreeMap<String, String>,
    /// CSI volumes in its spec, by name.
    pub(crate) volumes: BTreeMap<String, CsiVolume>,
    /// Ids of the images that run in it, as far as they are known.
    pub(crate) images: Vec<String>,
}

impl LivePod {
    /// Whether no container of it will ever run again.
    pub(crate) fn has_finished(&self) -> bool {
        self.phase == "Succeeded" || self.phase == "Failed"
    }
}

/// An inline CSI volume in a pod's spec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CsiVolume {
    pub(crate) driver: String,
    pub(crate) read_only: bool,
    pub(crate) attributes: BTreeMap<String, String>,
}

/// Who calls, and for which pod, proven by the API server.
#[derive(Clone, Debug)]
pub(crate) struct CallerFacts {
    pub(crate) driver: Identity,
    pub(crate) pod_token: Identity,
    pub(crate) pod: Option<LivePod>,
}

/// Everything known of one request before the directory is asked.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) caller: CallerFacts,
    /// What the pod's seal says, or why it is not genuine. None: it has no seal.
    pub(crate) seal: Option<Result<Seal, SealError>>,
    /// Followed for new tokens only: a workload that is deleted later takes none away from pods that outlive it.
    pub(crate) owners: Option<OwnerChain>,
    /// Empty unless the rules ask for them.
    pub(crate) namespace_labels: BTreeMap<String, String>,
    /// None when the node plugin has not looked.
    pub(crate) addresses: Option<AddressFacts>,
}

/// What is found out about a claim.
#[derive(Clone, Debug)]
pub(crate) struct Findings {
    /// None when there is no directory.
    pub(crate) accounts: Option<Accounts>,
    /// The pod is the first to show its seal, or the UID of the one that was.
    pub(crate) nonce: Result<(), String>,
}

/// What the directory knows of the users of a claim; nothing of those who do not exist.
#[derive(Clone, Debug, Default)]
pub(crate) struct Accounts {
    pub(crate) submitter: Option<Arc<Account>>,
    /// The same, unless a headless account is asked for.
    pub(crate) effective: Option<Arc<Account>>,
}

/// What a decision is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose<'a> {
    /// New tokens.
    Issue,
    /// More time for those it has, of this cluster.
    Renew(&'a str),
    /// Whether it may keep those it has, of this cluster.
    Check(&'a str),
}

/// What the operator allows.
#[derive(Debug)]
pub(crate) struct Policy {
    /// The node plugin's service account.
    pub(crate) driver: ServiceAccount,
    /// Names of the clusters.
    pub(crate) clusters: BTreeSet<String>,
    /// The cluster of a volume that names none.
    pub(crate) default_cluster: Option<String>,
    pub(crate) trust: Trust,
    pub(crate) names: NameRules,
    pub(crate) users: UserRules,
    pub(crate) namespaces: Namespaces,
    /// When addresses are verified, unless a namespace's rule says otherwise.
    pub(crate) verification: Verification,
}

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceAccount {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// What a volume asks for, of which all is proven but what the directory has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) submitter: Submitter,
    /// The Hadoop user that the submitter is.
    pub(crate) mapped: HadoopUser,
    /// The Hadoop user whose tokens they are: the same, or a headless account.
    pub(crate) effective: HadoopUser,
    pub(crate) cluster: String,
    /// As in [`Grant`].
    pub(crate) job: Option<String>,
    pub(crate) verification: Verification,
    /// Whether the pod's addresses were seen, and are its own.
    pub(crate) addresses_verified: bool,
}

/// What a volume is entitled to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) user: HadoopUser,
    pub(crate) cluster: String,
    /// UID of the owner whose pods share the token, if it is to be shared: the pod's root owner or, when it has none, the
    /// pod itself.
    pub(crate) job: Option<String>,
    pub(crate) verification: Verification,
    pub(crate) addresses_verified: bool,
}

impl Policy {
    /// What the volume asks for, when every fact fits.
    pub(crate) fn claim(
        &self,
        purpose: Purpose<'_>,
        volume: &VolumeReference,
        facts: &Facts,
    ) -> Result<Claim, Refusal> {
        let proven = self.admit_pod(purpose, volume, &facts.caller)?;
        let (pod, namespace) = (proven.pod, &volume.pod.namespace);
        let cluster = self.cluster(purpose, proven)?;
        let rule = self.namespaces.rule(namespace, &facts.namespace_labels)?;
        namespaces::admit_network(rule, namespace, pod)?;
        let submitter = sealed::submitter(self.trust, purpose, &volume.pod, pod, facts)?;
        let mapped = self.names.map(&submitter.name)?;
        let effective = match proven.do_as() {
            Some(account) => submitter.may_ask_for(account)?,
            None => mapped.clone(),
        };
        self.users.admit(&effective)?;
        namespaces::admit(rule, namespace, &effective, &cluster)?;
        let job = job(purpose, proven, facts.owners.as_ref())?;
        let verification = self.verification_by(rule);
        let addresses_verified = match &facts.addresses {
            Some(addresses) if verification != Verification::Off => {
                addresses::verify(pod, addresses)?;
                true
            }
            _ => false,
        };
        Ok(Claim { submitter, mapped, effective, cluster, job, verification, addresses_verified })
    }

    /// What the claim entitles to, after all that was found out about it.
    pub(crate) fn grant(&self, claim: &Claim, findings: &Findings) -> Result<Grant, Refusal> {
        findings.nonce.as_ref().map_err(|first| Refusal::SealReused(first.clone()))?;
        self.users.admit_accounts(&claim.mapped, &claim.effective, findings.accounts.as_ref())?;
        Ok(Grant {
            user: claim.effective.clone(),
            cluster: claim.cluster.clone(),
            job: claim.job.clone(),
            verification: claim.verification,
            addresses_verified: claim.addresses_verified,
        })
    }

    /// When the addresses of pods in `namespace` are verified; what does not get anything is not verified.
    pub(crate) fn verification(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Verification {
        self.namespaces.rule(namespace, labels).map_or(Verification::Off, |rule| self.verification_by(rule))
    }

    fn verification_by(&self, rule: Option<&Rule>) -> Verification {
        rule.and_then(|rule| rule.verification).unwrap_or(self.verification)
    }

    /// Whether tokens of a pod that is refused so are left alone until they expire, not taken away.
    pub(crate) fn lets_expire(&self, refusal: &Refusal) -> bool {
        self.users.on_lost_right == OnLostRight::Expire && refusal.is_of_withdrawn_right()
    }

    /// The Hadoop user whose tokens the pod may have had by its facts, as far as that can be told: for tokens that are
    /// to be taken away. A seal that is not genuine says nothing.
    pub(crate) fn owner_by(&self, volume: &VolumeReference, facts: &Facts) -> Option<HadoopUser> {
        let pod = facts.caller.pod.as_ref()?;
        let do_as = pod.volumes.get(&volume.name)?.attributes.get(identity::DO_AS_ATTRIBUTE);
        if let Some(account) = do_as {
            return account.parse().ok();
        }
        match (&facts.seal, self.trust) {
            (Some(Ok(seal)), Trust::Seals { .. }) => self.names.map(&seal.submitter).ok(),
            (_, Trust::Annotations) => {
                self.names.map(pod.annotations.get(identity::SUBMITTER_ANNOTATION)?).ok()
            }
            _ => None,
        }
    }
}

/// Whose pods are to share new tokens.
fn job(
    purpose: Purpose<'_>,
    proven: volume::Proven<'_>,
    owners: Option<&OwnerChain>,
) -> Result<Option<String>, Refusal> {
    match (proven.scope()?, purpose) {
        (Scope::Pod, _) | (_, Purpose::Renew(_) | Purpose::Check(_)) => Ok(None),
        (Scope::Job, Purpose::Issue) => {
            let root = owners.map(sealed::root).transpose()?.flatten();
            Ok(Some(root.map_or(&proven.pod.uid, |root| &root.uid).clone()))
        }
    }
}

#[cfg(any(test, feature = "bench"))]
pub(crate) mod example;
