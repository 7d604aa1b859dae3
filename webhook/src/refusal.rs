//! Why somebody's word is not passed on: every reason is stable, and its sentence says what to change.

use identity::{
    owners::{MAX_LINKS, Owner},
    seal::{CannotSeal, SealError},
};

use crate::{admission::Denial, patch::NotAMap};

/// Why an object cannot be sealed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "{controller} makes it for {owner}, whose template carries no seal: run `kubectl rollout restart` on what you \
         submitted, or delete it and submit it again, so that it is known who asks for the token"
    )]
    SealMissing { controller: String, owner: Owner },
    #[error(
        "it carries another seal than its owner {owner} has now: somebody changed that one meanwhile, and {controller} \
         will try again; if that does not help, delete what carries the old seal, such as a Notebook's StatefulSet, and \
         it is made anew"
    )]
    SealNotOfOwner { controller: String, owner: Owner },
    #[error(
        "it carries another seal than the ControllerRevision {revision} that {owner} makes it of: whoever wrote that \
         revision is not who submitted the owner; delete it"
    )]
    SealNotOfRevision { owner: Owner, revision: String },
    #[error(
        "the seal of its owner {owner} cannot be trusted: {error}; change the template of what you submitted, or delete it and \
         submit it again"
    )]
    SealInvalid { owner: Owner, error: SealError },
    #[error(
        "its owner {owner} carries the seal of {sealed}, which is not above it: delete it and submit it \
         again instead of copying or orphaning it"
    )]
    SealOfAnotherWorkload { owner: Owner, sealed: String },
    #[error("the annotation {0} does not agree with the seal beside it: submit the workload again")]
    SubmitterChanged(&'static str),
    #[error(
        "its volumes ask for the headless account {0:?}, which was not in the template that was submitted: name it there"
    )]
    DoAsNotSealed(String),
    #[error("its owner {owner} {problem}: delete it, and let its controller make it anew")]
    OwnerNotFound { owner: String, problem: &'static str },
    #[error("it has more than {MAX_LINKS} owners, one above the other")]
    OwnerChainTooLong,
    #[error("it is made by pod {pod}, which {problem}: only a sealed pod that lives hands its submitter on")]
    ParentPodUnproven { pod: String, problem: String },
    #[error("it has neither a name nor a generateName")]
    Nameless,
    #[error("{0} is no map: correct the manifest")]
    Malformed(String),
    #[error("a seal of it would be refused: {0}: ask for fewer headless accounts")]
    CannotSeal(CannotSeal),
    #[error("the Kubernetes API server cannot be asked for {what}: {error}; try again")]
    ApiServer { what: String, error: String },
}

impl Refusal {
    /// As in docs/errors.md.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::SealMissing { .. } => "SEAL_MISSING",
            Self::SealNotOfOwner { .. } | Self::SealNotOfRevision { .. } => "SEAL_NOT_OF_OWNER",
            Self::SealInvalid { .. } => "SEAL_INVALID",
            Self::SealOfAnotherWorkload { .. } => "SEAL_OF_ANOTHER_WORKLOAD",
            Self::SubmitterChanged(_) => "SUBMITTER_CHANGED",
            Self::DoAsNotSealed(_) => "DO_AS_NOT_SEALED",
            Self::OwnerNotFound { .. } => "OWNER_NOT_FOUND",
            Self::OwnerChainTooLong => "OWNER_CHAIN_TOO_LONG",
            Self::ParentPodUnproven { .. } => "PARENT_POD_UNPROVEN",
            Self::Nameless => "NAME_MISSING",
            Self::Malformed(_) => "MANIFEST_MALFORMED",
            Self::CannotSeal(_) => "CANNOT_SEAL",
            Self::ApiServer { .. } => "API_SERVER_UNAVAILABLE",
        }
    }

    /// Whether the next attempt may go otherwise by itself.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::ApiServer { .. } | Self::SealNotOfOwner { .. })
    }

    /// HTTP status, see [`Denial::code`].
    fn code(&self) -> u16 {
        match self {
            Self::SealMissing { .. }
            | Self::SealInvalid { .. }
            | Self::SealOfAnotherWorkload { .. }
            | Self::SubmitterChanged(_)
            | Self::DoAsNotSealed(_)
            | Self::OwnerNotFound { .. }
            | Self::OwnerChainTooLong
            | Self::ParentPodUnproven { .. } => 403,
            Self::SealNotOfOwner { .. } | Self::SealNotOfRevision { .. } => 409,
            Self::Nameless | Self::Malformed(_) | Self::CannotSeal(_) => 422,
            Self::ApiServer { .. } => 503,
        }
    }
}

impl From<Refusal> for Denial {
    fn from(refusal: Refusal) -> Self {
        Self { reason: refusal.reason(), message: refusal.to_string(), code: refusal.code() }
    }
}

impl From<NotAMap> for Refusal {
    fn from(NotAMap(pointer): NotAMap) -> Self {
        Self::Malformed(pointer.to_string())
    }
}
