//! Who is calling, and for which pod: asks the API server, live, and believes nothing else. Never decides; that is
//! `authorization`'s.

mod live_pod;
mod namespace;
mod owner_chain;
mod token_review;
mod unproven;

use std::{net::IpAddr, sync::Arc, time::Duration};

use kube::{Client, Config};
use proto::{CONTROLLER_AUDIENCE, POD_AUDIENCE};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::timeout;
use zeroize::Zeroizing;

use self::unproven::Unproven;
use crate::{
    authorization::{CallerFacts, Identity, Policy, Refusal},
    failure::{Failure, chain},
    pod_watch::LONGEST_SILENCE,
    request::VolumeReference,
    turns::{self, Turns},
};

/// Longest wait for one answer of the API server.
const DEADLINE: Duration = Duration::from_secs(5);

/// The API server, seen as a witness.
#[derive(Clone)]
pub(crate) struct ApiServer {
    client: Client,
    address: String,
    unproven: Arc<Unproven>,
    turns: Turns,
}

/// Why the API server could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiServerError {
    #[error("Kubernetes API server at {address} cannot be reached: {error}")]
    Unreachable { address: String, error: String },
    #[error("Kubernetes API server at {address} did not answer within {} seconds", DEADLINE.as_secs())]
    Late { address: String },
    #[error("Kubernetes API server at {address} cannot answer now: {error}")]
    Unwell { address: String, error: String },
    #[error(
        "Kubernetes API server at {address} does not let the controller {what}: grant its account what the \
         ClusterRole of the manifests lists ({error})"
    )]
    Forbidden { address: String, what: &'static str, error: String },
    #[error("Kubernetes API server at {address} gave an answer that cannot be read: {error}")]
    Unreadable { address: String, error: String },
}

impl ApiServer {
    /// The API server of the cluster we run in, or of the kubeconfig.
    pub(crate) async fn infer() -> anyhow::Result<Self> {
        let mut config = Config::infer().await?;
        config.connect_timeout = Some(DEADLINE);
        config.write_timeout = Some(DEADLINE);
        config.read_timeout = Some(LONGEST_SILENCE);
        Self::new(config)
    }

    fn new(config: Config) -> anyhow::Result<Self> {
        let address = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        Ok(Self {
            client: Client::try_from(config)?,
            address,
            unproven: Arc::default(),
            turns: Turns::default(),
        })
    }

    /// Where it is.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// For what is neither asked here nor secret.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Whether the API server answers us at all.
    pub(crate) async fn check(&self) -> Result<(), ApiServerError> {
        let version = timeout(DEADLINE, self.client.apiserver_version());
        match version.await {
            Ok(answer) => answer.map(|_| ()).map_err(|error| self.error("ask for its version", &error)),
            Err(_) => Err(ApiServerError::Late { address: self.address.clone() }),
        }
    }

    /// The node plugin behind the token that a caller at `peer` shows. Others are refused before they can cause more
    /// work, and soon without asking.
    pub(crate) async fn driver(
        &self,
        policy: &Policy,
        token: Option<SecretString>,
        peer: Option<IpAddr>,
    ) -> Result<Identity, Failure> {
        let token = token.ok_or(Refusal::DriverTokenMissing)?;
        let _turn = self.unproven.turn(peer).await?;
        let review = self.review(&token, CONTROLLER_AUDIENCE).await?;
        let proven = review.map_err(Refusal::DriverTokenRejected).and_then(|identity| {
            policy.admit_driver(&identity)?;
            Ok(identity)
        });
        Ok(proven.inspect_err(|_| self.unproven.rejected(peer))?)
    }

    /// Who asks for `volume`: what the pod's token proves, and the pod as it is now.
    pub(crate) async fn caller(
        &self,
        driver: Identity,
        volume: &VolumeReference,
        pod_token: &SecretString,
    ) -> Result<CallerFacts, Failure> {
        if pod_token.expose_secret().is_empty() {
            return Err(Refusal::PodTokenMissing.into());
        }
        let (review, pod) =
            tokio::try_join!(self.review(pod_token, POD_AUDIENCE), self.live_pod(&volume.pod))?;
        Ok(CallerFacts { driver, pod_token: review.map_err(Refusal::PodTokenRejected)?, pod })
    }

    /// The text of the answer to `request`, or nothing when there is no such object. The client's typed calls are
    /// not used: they log what they cannot read, which may be a secret.
    async fn ask(
        &self,
        what: &'static str,
        request: http::Result<http::Request<Vec<u8>>>,
    ) -> Result<Option<Zeroizing<String>>, ApiServerError> {
        let request = request.map_err(|error| self.unreadable(&error))?;
        let Some(_turn) = self.turns.take().await else {
            return Err(ApiServerError::Unwell {
                address: self.address.clone(),
                error: turns::NONE.to_owned(),
            });
        };
        match timeout(DEADLINE, self.client.request_text(request)).await {
            Ok(Ok(text)) => Ok(Some(Zeroizing::new(text))),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(None),
            Ok(Err(error)) => Err(self.error(what, &error)),
            Err(_) => Err(ApiServerError::Late { address: self.address.clone() }),
        }
    }

    fn error(&self, what: &'static str, error: &kube::Error) -> ApiServerError {
        let address = self.address.clone();
        match error {
            kube::Error::Api(status) => {
                let error = status.message.clone();
                match status.code {
                    401 | 403 => ApiServerError::Forbidden { address, what, error },
                    _ => ApiServerError::Unwell { address, error },
                }
            }
            kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => self.unreadable(error),
            kube::Error::Service(error) => ApiServerError::Unreachable { address, error: chain(&**error) },
            _ => ApiServerError::Unreachable { address, error: chain(error) },
        }
    }

    fn unreadable(&self, error: &dyn std::error::Error) -> ApiServerError {
        ApiServerError::Unreadable { address: self.address.clone(), error: chain(error) }
    }
}

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
