//! The end of a volume's tokens: because it has ended, or because it may not keep them.

use futures_util::future::join_all;
use proto::token::v1 as wire;
use tracing::info;

use super::{Call, TokenService};
use crate::{
    audit::{Record, TokenNumber},
    authorization::cancellable,
    failure::Failure,
    issuance::Issuer,
    metrics::Cancelled,
    request::Release,
};

impl TokenService {
    pub(super) async fn release_tokens(
        &self,
        request: &Release,
        call: &mut Call,
    ) -> Result<wire::ReleaseResponse, Failure> {
        let issuer = self.issuer(&request.cluster)?;
        call.record.cluster = Some(request.cluster.clone());
        let (mut identifiers, mut failed) = (Vec::new(), Vec::new());
        for (number, token) in request.tokens.iter().enumerate() {
            match cancellable(number, &token.kind, &token.identifier, issuer.renewer()) {
                Ok(identifier) => {
                    call.record.tokens.push(TokenNumber::from(&identifier));
                    identifiers.push(token.identifier.as_slice());
                }
                Err(refusal) => failed.push(refusal.into()),
            }
        }
        failed.extend(cancelled(issuer, &identifiers, Cancelled::Released, &call.record).await);
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
}

/// Cancels all, and says what failed. One that fails keeps none of the others alive.
pub(super) async fn cancelled(
    issuer: &Issuer,
    identifiers: &[&[u8]],
    why: Cancelled,
    record: &Record,
) -> Vec<Failure> {
    let cancellations = identifiers.iter().map(|identifier| issuer.cancel(identifier, why, record));
    join_all(cancellations).await.into_iter().filter_map(Result::err).collect()
}
