//! What the controller asks of a cluster. The one seam on the Hadoop side: the NameNode behind it is real everywhere
//! but in the tests of what a real one does only by accident, such as losing a reply.

use hadoop::{
    HadoopUser, Token,
    namenode::{Cancelled, NameNode},
};
use tonic::Code;

/// Issues, renews and cancels tokens. `context` is for its audit log.
#[tonic::async_trait]
pub(crate) trait Authority: Send + Sync + 'static {
    /// A new token of `user` that `renewer` may renew and cancel. Not idempotent: each call makes one. Waits long, to
    /// know whether there is one; who drops the future has the token cancelled when it comes.
    async fn get(&self, user: &HadoopUser, renewer: &str, context: &str) -> Result<Token, NotGot>;

    /// Renews, and returns the new date in milliseconds since the epoch.
    async fn renew(&self, token: &Token, context: &str) -> Result<u64, CallError>;

    /// Cancels; a token that is unknown counts as cancelled before.
    async fn cancel(&self, identifier: &[u8], context: &str) -> Result<Cancelled, CallError>;

    /// Names under which clients look its tokens up.
    async fn services(&self) -> Result<Vec<String>, CallError>;
}

/// Why Hadoop did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct CallError {
    pub(crate) reason: &'static str,
    /// How the node plugin is told: Unavailable exactly when trying again can help.
    pub(crate) code: Code,
    /// Names who failed, KDC or NameNode and at which address, and what to change.
    pub(crate) message: String,
}

impl CallError {
    /// Whether the same call may succeed later.
    pub(crate) fn retryable(&self) -> bool {
        self.code == Code::Unavailable
    }
}

/// Why there is no token to hand out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NotGot {
    pub(crate) error: CallError,
    /// There may be one all the same: nobody heard what came of the request.
    pub(crate) may_exist: bool,
}

impl From<NotGot> for CallError {
    fn from(NotGot { error, .. }: NotGot) -> Self {
        error
    }
}

impl From<hadoop::Error> for CallError {
    fn from(error: hadoop::Error) -> Self {
        let code = match error.reason() {
            _ if error.retryable() => Code::Unavailable,
            // Only a new token helps, and the node plugin has to ask for it.
            _ if error.needs_new_token() => Code::NotFound,
            "IMPERSONATION_DENIED" | "IMPERSONATION_HOST_DENIED" | "SERVICE_ACL_DENIED" | "ACCESS_DENIED" => {
                Code::PermissionDenied
            }
            _ => Code::FailedPrecondition,
        };
        Self { reason: error.reason(), code, message: error.to_string() }
    }
}

#[tonic::async_trait]
impl Authority for NameNode {
    async fn get(&self, user: &HadoopUser, renewer: &str, context: &str) -> Result<Token, NotGot> {
        self.get_delegation_token(user, renewer, context).await.map_err(|error| {
            let may_exist = error.may_have_happened();
            NotGot { error: error.into(), may_exist }
        })
    }

    async fn renew(&self, token: &Token, context: &str) -> Result<u64, CallError> {
        Ok(self.renew_delegation_token(token, context).await?)
    }

    async fn cancel(&self, identifier: &[u8], context: &str) -> Result<Cancelled, CallError> {
        Ok(self.cancel_delegation_token(identifier, context).await?)
    }

    async fn services(&self) -> Result<Vec<String>, CallError> {
        Ok(NameNode::services(self).await?)
    }
}

#[cfg(test)]
pub(crate) mod scripted;
