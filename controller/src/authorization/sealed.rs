//! Who submitted the pod: what its seal proves, and whether the seal is this pod's. That the signature is genuine is a
//! fact that comes in; that no other pod showed the same nonce is one that is found afterwards, for a seal that fits.

use std::collections::BTreeSet;

use hadoop::HadoopUser;
use identity::{
    GROUPS_ANNOTATION, SUBMITTER_ANNOTATION,
    owners::{ChainEnd, MAX_LINKS, Owner, OwnerChain},
    seal::{ObjectName, Seal, groups_digest},
};

use super::{Facts, LivePod, Purpose, Refusal};
use crate::request::PodReference;

/// By what a pod is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// By its seal, made at most so many seconds before or after the pod was created.
    Seals { tolerance: u64 },
    /// By what its annotations say. For development only.
    Annotations,
}

/// Who submitted a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Submitter {
    /// Kubernetes user.
    pub(crate) name: String,
    /// His Kubernetes groups, for audit.
    pub(crate) groups: Vec<String>,
    /// Headless accounts that the pod may ask for.
    do_as: BTreeSet<String>,
    /// What no other pod may show.
    pub(crate) nonce: Option<String>,
}

impl Submitter {
    /// The headless account `name`, when the pod was admitted with it.
    pub(super) fn may_ask_for(&self, name: &str) -> Result<HadoopUser, Refusal> {
        let account: HadoopUser = name.parse().map_err(Refusal::UserInvalid)?;
        if self.do_as.contains(name) { Ok(account) } else { Err(Refusal::DoAsNotSealed(account)) }
    }
}

/// Who submitted `pod`, which is proven to be the one of `reference`.
pub(super) fn submitter(
    trust: Trust,
    purpose: Purpose<'_>,
    reference: &PodReference,
    pod: &LivePod,
    facts: &Facts,
) -> Result<Submitter, Refusal> {
    let annotated = pod.annotations.get(SUBMITTER_ANNOTATION);
    let Trust::Seals { tolerance } = trust else {
        return Ok(Submitter {
            name: annotated.ok_or(Refusal::SubmitterMissing)?.clone(),
            groups: groups(pod).unwrap_or_default(),
            do_as: BTreeSet::new(),
            nonce: None,
        });
    };
    let seal = match &facts.seal {
        None => return Err(Refusal::SealMissing),
        Some(verified) => verified.as_ref().map_err(|error| Refusal::SealInvalid(error.clone()))?,
    };
    of_this_pod(seal, reference, pod)?;
    match &facts.owners {
        Some(chain) => of_this_owner(seal, chain)?,
        None if purpose == Purpose::Issue => {
            let problem = "is not known";
            return Err(Refusal::OwnerNotFound { owner: String::new(), problem });
        }
        None => {}
    }
    let apart = pod.created.abs_diff(seal.sealed_at);
    if apart > tolerance {
        return Err(Refusal::SealOutOfTime { apart, tolerance });
    }
    if annotated != Some(&seal.submitter) {
        return Err(Refusal::SubmitterChanged(SUBMITTER_ANNOTATION));
    }
    let groups = groups(pod)
        .filter(|groups| groups_digest(groups) == seal.groups_digest)
        .ok_or(Refusal::SubmitterChanged(GROUPS_ANNOTATION))?;
    Ok(Submitter {
        name: seal.submitter.clone(),
        groups,
        do_as: seal.do_as.clone(),
        nonce: Some(seal.nonce.clone()),
    })
}

fn groups(pod: &LivePod) -> Option<Vec<String>> {
    serde_json::from_str(pod.annotations.get(GROUPS_ANNOTATION)?).ok()
}

fn of_this_pod(seal: &Seal, reference: &PodReference, pod: &LivePod) -> Result<(), Refusal> {
    let same = |what, sealed: &str, found: &str| {
        if sealed == found {
            return Ok(());
        }
        Err(Refusal::SealOfAnotherPod { what, sealed: sealed.to_owned(), found: found.to_owned() })
    };
    same("namespace", &seal.namespace, &reference.namespace)?;
    same("service account", &seal.service_account, &pod.service_account)?;
    if !seal.name.fits(&reference.name, pod.generate_name.as_deref()) {
        let (what, sealed) = match &seal.name {
            ObjectName::Name(name) => ("name", name.clone()),
            ObjectName::GenerateName(prefix) => ("name", format!("{prefix}…")),
        };
        return Err(Refusal::SealOfAnotherPod { what, sealed, found: reference.name.clone() });
    }
    Ok(())
}

/// The root of the pod's owners, which are whole up to there; None for a pod of nobody.
pub(super) fn root(chain: &OwnerChain) -> Result<Option<&Owner>, Refusal> {
    let broken = |problem| {
        let owner =
            chain.links.last().map_or_else(String::new, |link| format!("{} {}", link.kind, link.name));
        Err(Refusal::OwnerNotFound { owner, problem })
    };
    match chain.root() {
        Ok(root) => Ok(root),
        Err(ChainEnd::TooLong) => Err(Refusal::OwnerChainTooLong { limit: MAX_LINKS }),
        Err(ChainEnd::Replaced { .. }) => broken("was replaced by another of the same name"),
        Err(ChainEnd::Cycle) => broken("is its own owner"),
        Err(ChainEnd::Missing | ChainEnd::Root | ChainEnd::NotRead) => broken("does not exist"),
    }
}

/// The seal names the root of the pod's owners.
fn of_this_owner(seal: &Seal, chain: &OwnerChain) -> Result<(), Refusal> {
    let root = root(chain)?;
    let same = match (&seal.root_owner, root) {
        (None, None) => true,
        (Some(sealed), Some(found)) => {
            // Not the version: whoever writes a reference is free to name any that is served.
            sealed.uid == found.uid
                && sealed.group() == found.group()
                && sealed.kind == found.kind
                && sealed.name == found.name
        }
        _ => false,
    };
    if same {
        return Ok(());
    }
    let nobody = || "nobody".to_owned();
    Err(Refusal::SealOfAnotherPod {
        what: "owner",
        sealed: seal.root_owner.as_ref().map_or_else(nobody, Owner::to_string),
        found: root.map_or_else(nobody, Owner::to_string),
    })
}

#[cfg(test)]
mod tests {
    use identity::seal::SealError;

    use super::*;
    use crate::authorization::example::{Case, check, decided, granted};

    fn link(name: &str, uid: &str) -> Owner {
        Owner {
            api_version: "apps/v1".to_owned(),
            kind: "Deployment".to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
        }
    }

    fn owner(name: &str, uid: &str) -> Option<Owner> {
        Some(Owner {
            api_version: "apps/v1".to_owned(),
            kind: "Deployment".to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
        })
    }

    #[test]
    fn refuses_a_pod_without_a_seal() {
        check(|case| case.facts.seal = None, "SEAL_MISSING", "recreate it");
    }

    #[test]
    fn refuses_a_seal_that_nobody_we_know_made() {
        check(|case| case.facts.seal = Some(Err(SealError::BadSignature)), "SEAL_INVALID", "signature");
        check(
            |case| case.facts.seal = Some(Err(SealError::UnknownKey("k-9".to_owned()))),
            "SEAL_INVALID",
            "seal.keys",
        );
    }

    #[test]
    fn refuses_a_seal_that_was_made_for_another_pod() {
        check(|case| case.seal().namespace = "other".to_owned(), "SEAL_OF_ANOTHER_POD", "namespace");
        check(|case| case.seal().service_account = "other".to_owned(), "SEAL_OF_ANOTHER_POD", "account");
        check(|case| case.seal().name = ObjectName::Name("etl-1".to_owned()), "SEAL_OF_ANOTHER_POD", "etl-1");
    }

    #[test]
    fn a_generated_name_has_to_be_generated_from_what_was_sealed() {
        let generated = |prefix: &'static str, from: Option<&'static str>| {
            move |case: &mut Case| {
                case.seal().name = ObjectName::GenerateName(prefix.to_owned());
                case.pod().generate_name = from.map(str::to_owned);
            }
        };
        assert_eq!(decided(generated("etl-", Some("etl-"))), granted("etl", "main"));
        check(generated("etl-", None), "SEAL_OF_ANOTHER_POD", "etl-…");
        check(generated("ads-", Some("ads-")), "SEAL_OF_ANOTHER_POD", "ads-…");
        check(generated("etl-", Some("e")), "SEAL_OF_ANOTHER_POD", "etl-…");
    }

    #[test]
    fn refuses_a_seal_of_another_owner() {
        let owned = |case: &mut Case| {
            case.seal().root_owner = owner("web", "u-w");
            case.facts.owners = Some(OwnerChain { links: vec![link("web", "u-w")], end: ChainEnd::Root });
        };
        assert_eq!(decided(owned), granted("etl", "main"));
        check(|case| case.seal().root_owner = owner("web", "u-w"), "SEAL_OF_ANOTHER_POD", "nobody");
        check(
            |case| {
                owned(case);
                case.seal().root_owner = None;
            },
            "SEAL_OF_ANOTHER_POD",
            "Deployment web",
        );
        check(
            |case| {
                owned(case);
                case.seal().root_owner = owner("web", "u-x");
            },
            "SEAL_OF_ANOTHER_POD",
            "u-x",
        );
    }

    #[test]
    fn an_owner_of_another_api_group_is_another_whatever_its_version() {
        let of = |api_version: &'static str| {
            move |case: &mut Case| {
                case.seal().root_owner =
                    owner("web", "u-w").map(|owner| Owner { api_version: api_version.to_owned(), ..owner });
                case.facts.owners = Some(OwnerChain { links: vec![link("web", "u-w")], end: ChainEnd::Root });
            }
        };
        assert_eq!(decided(of("apps/v1beta2")), granted("etl", "main"));
        check(of("extensions/v1"), "SEAL_OF_ANOTHER_POD", "Deployment web");
        check(of("v1"), "SEAL_OF_ANOTHER_POD", "Deployment web");
    }

    #[test]
    fn refuses_owners_that_cannot_be_followed() {
        let ending = |end: ChainEnd| {
            move |case: &mut Case| {
                case.seal().root_owner = owner("web", "u-w");
                case.facts.owners = Some(OwnerChain { links: vec![link("web", "u-w")], end });
            }
        };
        check(ending(ChainEnd::Missing), "OWNER_NOT_FOUND", "Deployment web");
        check(ending(ChainEnd::Replaced { found_uid: "u-y".to_owned() }), "OWNER_NOT_FOUND", "replaced");
        check(ending(ChainEnd::Cycle), "OWNER_NOT_FOUND", "its own owner");
        check(ending(ChainEnd::TooLong), "OWNER_CHAIN_TOO_LONG", "20");
        // An owner of a kind that is not read is the root, as it was when the pod was sealed.
        assert_eq!(decided(ending(ChainEnd::NotRead)), granted("etl", "main"));
    }

    #[test]
    fn owners_that_were_deleted_later_take_no_tokens_away() {
        let mut case = Case::granted();
        case.seal().root_owner = owner("web", "u-w");
        case.facts.owners = None;
        assert!(matches!(case.decide(Purpose::Issue), Err(Refusal::OwnerNotFound { .. })));
        assert_eq!(case.decide(Purpose::Check("main")), granted("etl", "main"));
    }

    #[test]
    fn refuses_a_seal_that_was_made_long_before_or_after_the_pod() {
        assert_eq!(decided(|case| case.seal().sealed_at -= 120), granted("etl", "main"));
        check(|case| case.seal().sealed_at -= 121, "SEAL_OUT_OF_TIME", "121 seconds");
        check(|case| case.seal().sealed_at += 121, "SEAL_OUT_OF_TIME", "121 seconds");
        check(|case| case.seal().sealed_at = i64::MIN, "SEAL_OUT_OF_TIME", "clocks");
    }

    #[test]
    fn refuses_a_seal_that_another_pod_showed_first() {
        check(|case| case.findings.nonce = Err("u-0".to_owned()), "SEAL_REUSED", "u-0");
    }

    #[test]
    fn refuses_annotations_that_were_changed_after_sealing() {
        check(|case| case.annotation(SUBMITTER_ANNOTATION, "ads"), "SUBMITTER_CHANGED", "submitter");
        check(|case| case.pod().annotations.clear(), "SUBMITTER_CHANGED", "submitter");
        check(|case| case.annotation(GROUPS_ANNOTATION, r#"["admins"]"#), "SUBMITTER_CHANGED", "groups");
        check(|case| case.annotation(GROUPS_ANNOTATION, "admins"), "SUBMITTER_CHANGED", "groups");
    }

    #[test]
    fn in_development_annotations_are_believed_without_a_seal() {
        let unsealed = |case: &mut Case| {
            case.policy.trust = Trust::Annotations;
            case.facts.seal = None;
        };
        assert_eq!(decided(unsealed), granted("etl", "main"));
        check(
            |case| {
                unsealed(case);
                case.pod().annotations.clear();
            },
            "SUBMITTER_MISSING",
            SUBMITTER_ANNOTATION,
        );
        check(
            |case| {
                unsealed(case);
                case.attribute("doAs", "svc");
            },
            "DO_AS_NOT_SEALED",
            "svc",
        );
    }
}
