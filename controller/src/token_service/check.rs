//! Whether a volume may keep its tokens, decided anew; and taking them away when it may not.

use proto::token::v1 as wire;
use secrecy::SecretString;
use tracing::{info, warn};

use super::{Call, TokenService, judge::Question, release::cancelled};
use crate::{
    audit::{Action, Decision, TokenNumber},
    authorization::{Purpose, Refusal, tied},
    events::Severity,
    failure::Failure,
    metrics::Cancelled,
    request::Check,
};

impl TokenService {
    pub(super) async fn check_tokens(
        &self,
        driver: Option<SecretString>,
        request: &Check,
        call: &mut Call,
    ) -> Result<wire::CheckResponse, Failure> {
        let Check { volume, pod_token, cluster, tokens, addresses } = request;
        let purpose = Purpose::Check(cluster);
        let question = Question { purpose, volume, pod_token, addresses: addresses.as_ref() };
        let driver = self.judge.driver(driver, &mut call.record).await?;
        let issuer = self.issuer(cluster)?;
        let facts = self.judge.facts(driver, &question, call).await?;
        let grant = match self.judge.decide(&question, &facts, &mut call.record).await {
            Ok(grant) => grant,
            Err(Failure::Refused(refusal)) if refusal.revokes() => {
                let user = self.judge.policy.owner_by(volume, &facts);
                let mut identifiers = Vec::new();
                for (number, token) in tokens.iter().enumerate() {
                    match tied(number, &token.kind, &token.identifier, user.as_ref(), issuer.renewer()) {
                        Ok(identifier) => {
                            call.record.tokens.push(TokenNumber::from(&identifier));
                            identifiers.push(token.identifier.as_slice());
                        }
                        Err(error) => warn!(%error, pod.uid = volume.pod.uid, "Left a token alone"),
                    }
                }
                let failed = cancelled(issuer, &identifiers, Cancelled::Revoked, &call.record).await;
                return self.revoked(request, call, &refusal, failed);
            }
            Err(failure) => return Err(failure),
        };
        for (number, token) in tokens.iter().enumerate() {
            let identifier =
                tied(number, &token.kind, &token.identifier, Some(&grant.user), issuer.renewer())?;
            call.record.tokens.push(TokenNumber::from(&identifier));
        }
        let kept = wire::Kept {
            check_after_seconds: self.recheck_seconds(),
            addresses_verified: grant.addresses_verified,
        };
        Ok(wire::CheckResponse { outcome: Some(wire::check_response::Outcome::Kept(kept)) })
    }

    fn revoked(
        &self,
        request: &Check,
        call: &mut Call,
        refusal: &Refusal,
        failed: Vec<Failure>,
    ) -> Result<wire::CheckResponse, Failure> {
        let reason = refusal.reason();
        call.record.decision = Decision::Refused;
        call.record.reason = Some(reason);
        call.record.message = Some(refusal.to_string());
        let mut revocation = call.record.follow_up(Action::Revoke, reason);
        if !failed.is_empty() {
            // Asked again, the node plugin gets the same refusal, and the rest is cancelled then.
            let failure = Failure::NotReleased(failed);
            revocation.reason = Some(failure.reason());
            revocation.message = Some(failure.to_string());
            call.follow_ups.push(revocation);
            return Err(failure);
        }
        revocation.granted();
        call.follow_ups.push(revocation);
        self.metrics.revoked(reason);
        let (pod, message) = (&request.volume.pod, refusal.to_string());
        self.events.publish(pod, Severity::Warning, reason, &format!("the pod lost its tokens: {message}"));
        info!(
            reason,
            error = message,
            pod.namespace = pod.namespace,
            pod.name = pod.name,
            pod.uid = pod.uid,
            volume.name = request.volume.name,
            tokens = call.record.tokens.len(),
            "Revoked tokens"
        );
        let revoked = wire::Revoked { reason: reason.to_owned(), message };
        Ok(wire::CheckResponse { outcome: Some(wire::check_response::Outcome::Revoked(revoked)) })
    }
}
