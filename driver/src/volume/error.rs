//! Why a volume could not be published or unpublished, and how kubelet hears of it: each sentence is shown in the
//! pod's events, and ends with its stable reason in brackets.

use std::{borrow::Cow, collections::HashMap, io};

use proto::{ERROR_DOMAIN, VolumeId};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::Target;
use crate::{controller_client::CallError, publish_request::InvalidRequest};

/// Why a volume could not be published or unpublished.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    #[error("another call for volume {id} is under way")]
    Busy { id: VolumeId },
    #[error(transparent)]
    Controller(#[from] CallError),
    #[error(
        "the volume's record cannot be kept on the node's disk (stateDir in the driver's configuration): {0}"
    )]
    Record(io::Error),
    #[error("the volume cannot be mounted on {target}: {source}", target = target.display())]
    Mount { target: std::path::PathBuf, source: io::Error },
    #[error("the volume cannot be unmounted from {target}: {source}", target = target.display())]
    Unmount { target: std::path::PathBuf, source: io::Error },
    #[error("volume {id} is not mounted there")]
    NotFound { id: String },
    #[error("the volume on {target} cannot be looked at: {source}", target = target.display())]
    Look { target: std::path::PathBuf, source: io::Error },
    #[error("the driver has a bug: see its log")]
    Bug,
}

impl VolumeError {
    pub(super) fn mount(target: &Target, source: io::Error) -> Self {
        Self::Mount { target: target.path.clone(), source }
    }

    /// How kubelet is to take it. After Unavailable and Aborted it will unpublish what may be left; all others are
    /// final for the one call, and nothing may be left when they are answered.
    fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::Busy { .. } => Code::Aborted,
            Self::NotFound { .. } => Code::NotFound,
            Self::Controller(CallError::Refused(status)) => status.code(),
            Self::Controller(
                CallError::NotRenewed(_)
                | CallError::Unreachable { .. }
                | CallError::TooLate { .. }
                | CallError::Malformed { .. }
                | CallError::OwnToken { .. },
            )
            | Self::Record(_)
            | Self::Mount { .. }
            | Self::Unmount { .. }
            | Self::Look { .. }
            | Self::Bug => Code::Unavailable,
        }
    }

    pub(crate) fn reason(&self) -> Cow<'static, str> {
        let reason = match self {
            Self::Controller(error) => return error.reason(),
            Self::Invalid(invalid) => invalid.reason(),
            Self::Busy { .. } => "VOLUME_BUSY",
            Self::Record(_) => "RECORD_FAILED",
            Self::Mount { .. } => "MOUNT_FAILED",
            Self::Unmount { .. } => "UNMOUNT_FAILED",
            Self::NotFound { .. } => "VOLUME_NOT_FOUND",
            Self::Look { .. } => "VOLUME_UNREADABLE",
            Self::Bug => "BUG",
        };
        reason.into()
    }
}

impl From<VolumeError> for Status {
    fn from(error: VolumeError) -> Self {
        let (reason, code) = (error.reason(), error.code());
        let sentence = format!("{error} [{reason}]");
        match error {
            // With the controller's details, but not its sentence, which is in them again and is what kubelet shows.
            VolumeError::Controller(CallError::Refused(status)) => {
                Self::with_error_details(code, sentence, status.get_error_details())
            }
            _ => {
                let details = ErrorDetails::with_error_info(reason, ERROR_DOMAIN, HashMap::new());
                Self::with_error_details(code, sentence, details)
            }
        }
    }
}
