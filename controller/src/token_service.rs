//! The gRPC service: parse, gather facts, decide, act, answer. Each of these is somebody else's; this file only
//! says in which order.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::future::{join_all, try_join_all};
use proto::token::v1::{self as wire, token_service_server};
use secrecy::SecretString;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use crate::{
    authorization::{Policy, Purpose, cancellable, renewable},
    caller::ApiServer,
    failure::Failure,
    issuance::{Issued, Issuer},
    request::{Issue, Release, Renew, VolumeReference, driver_token},
};

/// What stands behind the service.
pub(crate) struct TokenService {
    pub(crate) api_server: ApiServer,
    pub(crate) policy: Policy,
    /// One for each of the policy's clusters.
    pub(crate) issuers: BTreeMap<String, Arc<Issuer>>,
}

#[tonic::async_trait]
impl token_service_server::TokenService for TokenService {
    async fn issue(
        &self,
        request: Request<wire::IssueRequest>,
    ) -> Result<Response<wire::IssueResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        let driver = driver_token(&metadata);
        let request = Issue::try_from(message).map_err(Failure::from)?;
        let answer = self.issue_tokens(driver, &request).await;
        answer.map(Response::new).map_err(|failure| failed("issue", &request.volume, failure))
    }

    async fn renew(
        &self,
        request: Request<wire::RenewRequest>,
    ) -> Result<Response<wire::RenewResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        let driver = driver_token(&metadata);
        let request = Renew::try_from(message).map_err(Failure::from)?;
        let answer = self.renew_tokens(driver, &request).await;
        answer.map(Response::new).map_err(|failure| failed("renew", &request.volume, failure))
    }

    async fn check(&self, _: Request<wire::CheckRequest>) -> Result<Response<wire::CheckResponse>, Status> {
        Err(Status::unimplemented("checks are not served yet"))
    }

    type WatchStream = tokio_stream::Empty<Result<wire::WatchEvent, Status>>;

    async fn watch(&self, _: Request<wire::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("watches are not served yet"))
    }

    async fn release(
        &self,
        request: Request<wire::ReleaseRequest>,
    ) -> Result<Response<wire::ReleaseResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        let driver = driver_token(&metadata);
        let request = Release::try_from(message).map_err(Failure::from)?;
        let answer = self.release_tokens(driver, &request).await;
        answer.map(Response::new).map_err(|failure| failed("release", &request.volume, failure))
    }
}

impl TokenService {
    async fn issue_tokens(
        &self,
        driver: Option<SecretString>,
        request: &Issue,
    ) -> Result<wire::IssueResponse, Failure> {
        let driver = self.api_server.driver(&self.policy, driver).await?;
        let facts = self.api_server.facts(driver, &request.volume, &request.pod_token).await?;
        let grant = self.policy.decide(Purpose::Issue, &request.volume, &facts)?;
        let cluster = self.policy.cluster(&grant)?;

        let pod = &request.volume.pod;
        let context = format!("hadoop-token-csi:{}/{}", pod.namespace, pod.name);
        let issued = self.issuer(&cluster)?.issue(grant.user.clone(), context).await?;
        info!(
            pod.namespace = pod.namespace,
            pod.name = pod.name,
            pod.uid = pod.uid,
            volume.name = request.volume.name,
            node = facts.driver.node_name,
            user = %grant.user,
            cluster,
            token.sequence_number = issued.identifier.sequence_number,
            token.max_date = issued.identifier.max_date,
            "Issued token"
        );
        // Nothing is awaited from here on: either the answer goes out or the token is cancelled.
        Ok(wire::IssueResponse {
            user: grant.user.to_string(),
            cluster,
            tokens: vec![hand_over(issued)],
            ..wire::IssueResponse::default()
        })
    }

    async fn renew_tokens(
        &self,
        driver: Option<SecretString>,
        request: &Renew,
    ) -> Result<wire::RenewResponse, Failure> {
        let driver = self.api_server.driver(&self.policy, driver).await?;
        let facts = self.api_server.facts(driver, &request.volume, &request.pod_token).await?;
        let grant = self.policy.decide(Purpose::Renew, &request.volume, &facts)?;
        self.policy.cluster_of_tokens(&grant, &request.cluster)?;

        let issuer = self.issuer(&request.cluster)?;
        for (number, token) in request.tokens.iter().enumerate() {
            renewable(number, token, &grant.user, issuer.renewer())?;
        }
        let renew_dates = try_join_all(request.tokens.iter().map(|token| issuer.renew(token))).await?;
        Ok(wire::RenewResponse { renew_dates })
    }

    async fn release_tokens(
        &self,
        driver: Option<SecretString>,
        request: &Release,
    ) -> Result<wire::ReleaseResponse, Failure> {
        self.api_server.driver(&self.policy, driver).await?;
        let issuer = self.issuer(&request.cluster)?;
        let cancellations = request.tokens.iter().enumerate().map(async |(number, token)| {
            cancellable(number, &token.kind, &token.identifier, issuer.renewer())?;
            issuer.cancel(&token.identifier).await
        });
        // One that fails keeps none of the others alive.
        let outcomes = join_all(cancellations).await;
        let failed: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
        if !failed.is_empty() {
            return Err(Failure::NotReleased(failed));
        }
        let pod = &request.volume.pod;
        info!(
            pod.namespace = pod.namespace,
            pod.name = pod.name,
            pod.uid = pod.uid,
            volume.name = request.volume.name,
            cluster = request.cluster,
            tokens = request.tokens.len(),
            "Cancelled tokens"
        );
        Ok(wire::ReleaseResponse {})
    }

    fn issuer(&self, cluster: &str) -> Result<&Arc<Issuer>, Failure> {
        self.policy.known(cluster)?;
        // The policy's clusters are the keys of the map: both come from one list.
        self.issuers.get(cluster).ok_or(Failure::Stopping)
    }
}

/// Writes the token into the answer; from here on its volume is answerable for it.
fn hand_over(issued: Issued) -> wire::IssuedToken {
    let Issued { token, identifier, renew_date, services, unclaimed } = issued;
    unclaimed.hand_over();
    wire::IssuedToken {
        token: Some(wire::Token {
            password: token.password.expose().to_vec(),
            identifier: token.identifier,
            kind: token.kind,
            services,
        }),
        issue_date: identifier.issue_date,
        renew_date,
        max_date: identifier.max_date,
        sequence_number: identifier.sequence_number,
    }
}

fn failed(call: &'static str, volume: &VolumeReference, failure: Failure) -> Status {
    warn!(
        call,
        reason = failure.reason(),
        error = %failure,
        pod.namespace = volume.pod.namespace,
        pod.name = volume.pod.name,
        pod.uid = volume.pod.uid,
        volume.name = volume.name,
        "Call failed"
    );
    failure.into()
}

#[cfg(test)]
mod tests;
