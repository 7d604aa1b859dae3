//! Every way a call can fail, and the one map from cause to answer: gRPC code, stable reason, sentence.
//!
//! kubelet takes Canceled, DeadlineExceeded, Unavailable, ResourceExhausted and Aborted for passing and every other
//! code for final: after a final one it forgets the volume and never unpublishes it. So a final code is sent only
//! where waiting cannot help, and never while a token may exist.

use proto::ERROR_DOMAIN;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    audit::AuditError, authorization::Refusal, caller::ApiServerError, cluster::CallError,
    directory::DirectoryError, ledger::LedgerError, pod_watch::NotFollowing, request::InvalidRequest,
};

/// Why a call fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    ApiServer(#[from] ApiServerError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    OtherPods(#[from] NotFollowing),
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("too many calls wait for cluster {cluster:?}")]
    Busy { cluster: String },
    #[error("too many callers wait for the API server to review their tokens")]
    ManyCallers,
    #[error("the caller went away before it had its answer")]
    CallerGone,
    #[error("too many node plugins listen to this controller")]
    TooManyWatches,
    #[error("failed to {doing} of cluster {cluster:?}: {error}")]
    Hadoop { cluster: String, doing: &'static str, error: CallError },
    #[error("cluster {cluster:?} gave a token that was not asked for: {what}")]
    WrongToken { cluster: String, what: String },
    #[error("cluster {cluster:?} did not answer in time")]
    Late { cluster: String },
    #[error("{} tokens were not cancelled: {}", .0.len(), listed(.0))]
    NotReleased(Vec<Failure>),
    #[error("the controller is stopping")]
    Stopping,
}

impl Failure {
    /// Whether and when the same call may succeed, in gRPC's words.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::Refused(refusal) => refusal_code(refusal),
            Self::ApiServer(error) => api_server_code(error),
            Self::Hadoop { error, .. } => error.code,
            Self::WrongToken { .. }
            | Self::Late { .. }
            | Self::Stopping
            | Self::Directory(_)
            | Self::OtherPods(_)
            | Self::Audit(_)
            | Self::Ledger(_)
            | Self::Busy { .. }
            | Self::ManyCallers
            | Self::CallerGone => Code::Unavailable,
            Self::TooManyWatches => Code::ResourceExhausted,
            // As long as one may still be cancelled, asking again helps.
            Self::NotReleased(failures) => failures
                .iter()
                .map(Self::code)
                .reduce(|one, other| if one == Code::Unavailable { one } else { other })
                .unwrap_or(Code::Unavailable),
        }
    }

    /// What dashboards and scripts tell failures apart by. Never changes its meaning.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "INVALID_REQUEST",
            Self::Refused(refusal) => refusal.reason(),
            Self::ApiServer(error) => api_server_reason(error),
            Self::Hadoop { error, .. } => error.reason,
            Self::WrongToken { .. } => "WRONG_TOKEN",
            Self::Late { .. } => "HADOOP_LATE",
            Self::NotReleased(_) => "TOKENS_NOT_CANCELLED",
            Self::Stopping => "STOPPING",
            Self::Directory(error) => error.reason(),
            Self::OtherPods(_) => "OTHER_PODS_UNKNOWN",
            Self::Audit(_) => "AUDIT_UNWRITABLE",
            Self::Ledger(error) => error.reason(),
            Self::Busy { .. } | Self::ManyCallers => "CONTROLLER_BUSY",
            Self::CallerGone => "CALLER_GONE",
            Self::TooManyWatches => "TOO_MANY_WATCHES",
        }
    }
}

fn listed(failures: &[Failure]) -> String {
    failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn refusal_code(refusal: &Refusal) -> Code {
    match refusal {
        Refusal::DriverTokenMissing | Refusal::DriverTokenRejected(_) | Refusal::PodTokenRejected(_) => {
            Code::Unauthenticated
        }
        Refusal::PodTokenMissing
        | Refusal::VolumeNotInPod(_)
        | Refusal::VolumeOfAnotherDriver { .. }
        | Refusal::VolumeNotReadOnly(_)
        | Refusal::VolumeIdMismatch { .. }
        | Refusal::UnknownAttribute { .. }
        | Refusal::ScopeUnknown(_)
        | Refusal::SubmitterMissing
        | Refusal::UserInvalid(_)
        | Refusal::ClusterUnknown { .. }
        | Refusal::ClusterMissing(_)
        | Refusal::TokenUnreadable { .. } => Code::InvalidArgument,
        Refusal::CallerNotDriver { .. }
        | Refusal::DriverTokenUnbound
        | Refusal::PodTokenUnbound
        | Refusal::PodTokenOfAnotherPod(_)
        | Refusal::NodeMismatch { .. }
        | Refusal::PodOnAnotherNode { .. }
        | Refusal::StaticPod(_)
        | Refusal::SealMissing
        | Refusal::SealInvalid(_)
        | Refusal::SealOfAnotherPod { .. }
        | Refusal::SealOutOfTime { .. }
        | Refusal::SealReused(_)
        | Refusal::SubmitterChanged(_)
        | Refusal::OwnerChainTooLong { .. }
        | Refusal::SubmitterNotMapped { .. }
        | Refusal::ServiceAccountNotMapped(_)
        | Refusal::DoAsNotSealed(_)
        | Refusal::DoAsNotMember { .. }
        | Refusal::DoAsWithoutDirectory(_)
        | Refusal::UserUnknown(_)
        | Refusal::UserDenied(_)
        | Refusal::GroupDenied { .. }
        | Refusal::UserNotAllowed(_)
        | Refusal::NamespaceExempt(_)
        | Refusal::NamespaceNotEnrolled(_)
        | Refusal::NamespaceUserNotAllowed { .. }
        | Refusal::NamespaceClusterNotAllowed { .. }
        | Refusal::NamespaceServiceNotAllowed { .. }
        | Refusal::HostNetworkNotAllowed(_)
        | Refusal::AddressMismatch { .. }
        | Refusal::AddressOfAnotherPod { .. }
        | Refusal::AddressUnclear(_)
        | Refusal::HostNetworkMismatch { .. }
        | Refusal::TokenOfAnotherCluster { .. }
        | Refusal::TokenOfAnotherUser { .. }
        | Refusal::TokenOfAnotherVolume { .. }
        | Refusal::TokenRevoked
        | Refusal::TokenOfAnotherRenewer { .. } => Code::PermissionDenied,
        Refusal::PodNotFound(_) | Refusal::PodReplaced(_) => Code::NotFound,
        Refusal::PodTerminating(_) | Refusal::PodFinished(_) | Refusal::OwnerNotFound { .. } => {
            Code::FailedPrecondition
        }
        Refusal::AddressUnknown | Refusal::AddressChanging(_) => Code::Unavailable,
        Refusal::RateLimited(_) | Refusal::ManyRejected(_) => Code::ResourceExhausted,
    }
}

impl Refusal {
    /// As [`Failure::reason`].
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::DriverTokenMissing => "DRIVER_TOKEN_MISSING",
            Self::DriverTokenRejected(_) => "DRIVER_TOKEN_REJECTED",
            Self::CallerNotDriver { .. } => "CALLER_NOT_DRIVER",
            Self::DriverTokenUnbound => "DRIVER_TOKEN_UNBOUND",
            Self::PodTokenMissing => "POD_TOKEN_MISSING",
            Self::PodTokenRejected(_) => "POD_TOKEN_REJECTED",
            Self::PodTokenUnbound => "POD_TOKEN_UNBOUND",
            Self::PodTokenOfAnotherPod(_) => "POD_TOKEN_OF_ANOTHER_POD",
            Self::NodeMismatch { .. } => "NODE_MISMATCH",
            Self::PodNotFound(_) => "POD_NOT_FOUND",
            Self::PodReplaced(_) => "POD_REPLACED",
            Self::PodTerminating(_) => "POD_TERMINATING",
            Self::PodFinished(_) => "POD_FINISHED",
            Self::PodOnAnotherNode { .. } => "POD_ON_ANOTHER_NODE",
            Self::StaticPod(_) => "STATIC_POD",
            Self::VolumeNotInPod(_) => "VOLUME_NOT_IN_POD",
            Self::VolumeOfAnotherDriver { .. } => "VOLUME_OF_ANOTHER_DRIVER",
            Self::VolumeNotReadOnly(_) => "VOLUME_NOT_READ_ONLY",
            Self::VolumeIdMismatch { .. } => "VOLUME_ID_MISMATCH",
            Self::UnknownAttribute { .. } => "UNKNOWN_ATTRIBUTE",
            Self::ScopeUnknown(_) => "SCOPE_UNKNOWN",
            Self::ClusterUnknown { .. } => "CLUSTER_UNKNOWN",
            Self::ClusterMissing(_) => "CLUSTER_MISSING",
            Self::SealMissing => "SEAL_MISSING",
            Self::SealInvalid(_) => "SEAL_INVALID",
            Self::SealOfAnotherPod { .. } => "SEAL_OF_ANOTHER_POD",
            Self::SealOutOfTime { .. } => "SEAL_OUT_OF_TIME",
            Self::SealReused(_) => "SEAL_REUSED",
            Self::SubmitterChanged(_) => "SUBMITTER_CHANGED",
            Self::SubmitterMissing => "SUBMITTER_MISSING",
            Self::OwnerNotFound { .. } => "OWNER_NOT_FOUND",
            Self::OwnerChainTooLong { .. } => "OWNER_CHAIN_TOO_LONG",
            Self::SubmitterNotMapped { .. } => "SUBMITTER_NOT_MAPPED",
            Self::ServiceAccountNotMapped(_) => "SERVICE_ACCOUNT_NOT_MAPPED",
            Self::UserInvalid(_) => "USER_INVALID",
            Self::DoAsNotSealed(_) => "DO_AS_NOT_SEALED",
            Self::DoAsNotMember { .. } => "DO_AS_NOT_MEMBER",
            Self::DoAsWithoutDirectory(_) => "DO_AS_WITHOUT_DIRECTORY",
            Self::UserUnknown(_) => "USER_UNKNOWN",
            Self::UserDenied(_) => "USER_DENIED",
            Self::GroupDenied { .. } => "GROUP_DENIED",
            Self::UserNotAllowed(_) => "USER_NOT_ALLOWED",
            Self::NamespaceExempt(_) => "NAMESPACE_EXEMPT",
            Self::NamespaceNotEnrolled(_) => "NAMESPACE_NOT_ENROLLED",
            Self::NamespaceUserNotAllowed { .. } => "NAMESPACE_USER_NOT_ALLOWED",
            Self::NamespaceClusterNotAllowed { .. } => "NAMESPACE_CLUSTER_NOT_ALLOWED",
            Self::NamespaceServiceNotAllowed { .. } => "NAMESPACE_SERVICE_NOT_ALLOWED",
            Self::HostNetworkNotAllowed(_) => "HOST_NETWORK_NOT_ALLOWED",
            Self::AddressUnknown => "ADDRESS_UNKNOWN",
            Self::AddressChanging(_) => "ADDRESS_CHANGING",
            Self::AddressMismatch { .. } => "ADDRESS_MISMATCH",
            Self::AddressOfAnotherPod { .. } => "ADDRESS_OF_ANOTHER_POD",
            Self::AddressUnclear(_) => "ADDRESS_UNCLEAR",
            Self::HostNetworkMismatch { .. } => "HOST_NETWORK_MISMATCH",
            Self::TokenOfAnotherCluster { .. } => "TOKEN_OF_ANOTHER_CLUSTER",
            Self::TokenOfAnotherUser { .. } => "TOKEN_OF_ANOTHER_USER",
            Self::TokenOfAnotherVolume { .. } => "TOKEN_OF_ANOTHER_VOLUME",
            Self::TokenRevoked => "TOKEN_REVOKED",
            Self::TokenOfAnotherRenewer { .. } => "TOKEN_OF_ANOTHER_RENEWER",
            Self::TokenUnreadable { .. } => "TOKEN_UNREADABLE",
            Self::RateLimited(_) | Self::ManyRejected(_) => "RATE_LIMITED",
        }
    }
}

fn api_server_code(error: &ApiServerError) -> Code {
    match error {
        ApiServerError::Unreachable { .. }
        | ApiServerError::Late { .. }
        | ApiServerError::Unwell { .. }
        | ApiServerError::Unreadable { .. } => Code::Unavailable,
        ApiServerError::Forbidden { .. } => Code::FailedPrecondition,
    }
}

fn api_server_reason(error: &ApiServerError) -> &'static str {
    match error {
        ApiServerError::Unreachable { .. } => "API_SERVER_UNREACHABLE",
        ApiServerError::Late { .. } => "API_SERVER_LATE",
        ApiServerError::Unwell { .. } => "API_SERVER_UNWELL",
        ApiServerError::Unreadable { .. } => "API_SERVER_UNREADABLE",
        ApiServerError::Forbidden { .. } => "API_SERVER_FORBIDDEN",
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let info = ErrorDetails::with_error_info(failure.reason(), ERROR_DOMAIN, []);
        Status::with_error_details(failure.code(), failure.to_string(), info)
    }
}

/// An error and what caused it, each said once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
