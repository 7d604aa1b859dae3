//! Every way a call can fail, and the one map from cause to answer: gRPC code, stable reason, sentence.
//!
//! kubelet takes Canceled, DeadlineExceeded, Unavailable, ResourceExhausted and Aborted for passing and every other
//! code for final: after a final one it forgets the volume and never unpublishes it. So a final code is sent only
//! where waiting cannot help, and never while a token may exist.

use proto::ERROR_DOMAIN;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{authorization::Refusal, caller::ApiServerError, cluster::CallError, request::InvalidRequest};

/// Why a call fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    ApiServer(#[from] ApiServerError),
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
            Self::WrongToken { .. } | Self::Late { .. } | Self::Stopping => Code::Unavailable,
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
            Self::Refused(refusal) => refusal_reason(refusal),
            Self::ApiServer(error) => api_server_reason(error),
            Self::Hadoop { error, .. } => error.reason,
            Self::WrongToken { .. } => "WRONG_TOKEN",
            Self::Late { .. } => "HADOOP_LATE",
            Self::NotReleased(_) => "TOKENS_NOT_CANCELLED",
            Self::Stopping => "STOPPING",
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
        | Refusal::UserMissing
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
        | Refusal::UserDenied(_)
        | Refusal::TokenOfAnotherCluster { .. }
        | Refusal::TokenOfAnotherUser { .. }
        | Refusal::TokenOfAnotherRenewer { .. } => Code::PermissionDenied,
        Refusal::PodNotFound(_) | Refusal::PodReplaced(_) => Code::NotFound,
        Refusal::PodTerminating(_) | Refusal::PodFinished(_) => Code::FailedPrecondition,
    }
}

fn refusal_reason(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::DriverTokenMissing => "DRIVER_TOKEN_MISSING",
        Refusal::DriverTokenRejected(_) => "DRIVER_TOKEN_REJECTED",
        Refusal::CallerNotDriver { .. } => "CALLER_NOT_DRIVER",
        Refusal::DriverTokenUnbound => "DRIVER_TOKEN_UNBOUND",
        Refusal::PodTokenMissing => "POD_TOKEN_MISSING",
        Refusal::PodTokenRejected(_) => "POD_TOKEN_REJECTED",
        Refusal::PodTokenUnbound => "POD_TOKEN_UNBOUND",
        Refusal::PodTokenOfAnotherPod(_) => "POD_TOKEN_OF_ANOTHER_POD",
        Refusal::NodeMismatch { .. } => "NODE_MISMATCH",
        Refusal::PodNotFound(_) => "POD_NOT_FOUND",
        Refusal::PodReplaced(_) => "POD_REPLACED",
        Refusal::PodTerminating(_) => "POD_TERMINATING",
        Refusal::PodFinished(_) => "POD_FINISHED",
        Refusal::PodOnAnotherNode { .. } => "POD_ON_ANOTHER_NODE",
        Refusal::VolumeNotInPod(_) => "VOLUME_NOT_IN_POD",
        Refusal::VolumeOfAnotherDriver { .. } => "VOLUME_OF_ANOTHER_DRIVER",
        Refusal::VolumeNotReadOnly(_) => "VOLUME_NOT_READ_ONLY",
        Refusal::VolumeIdMismatch { .. } => "VOLUME_ID_MISMATCH",
        Refusal::UnknownAttribute { .. } => "UNKNOWN_ATTRIBUTE",
        Refusal::UserMissing => "USER_MISSING",
        Refusal::UserInvalid(_) => "USER_INVALID",
        Refusal::UserDenied(_) => "USER_DENIED",
        Refusal::ClusterUnknown { .. } => "CLUSTER_UNKNOWN",
        Refusal::ClusterMissing(_) => "CLUSTER_MISSING",
        Refusal::TokenOfAnotherCluster { .. } => "TOKEN_OF_ANOTHER_CLUSTER",
        Refusal::TokenOfAnotherUser { .. } => "TOKEN_OF_ANOTHER_USER",
        Refusal::TokenOfAnotherRenewer { .. } => "TOKEN_OF_ANOTHER_RENEWER",
        Refusal::TokenUnreadable { .. } => "TOKEN_UNREADABLE",
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
