//! Whether a volume may keep its tokens, decided anew; and taking them away when it may not.

use std::sync::Arc;

use futures_util::future::join_all;
use hadoop::{HadoopUser, TokenIdentifier};
use proto::token::v1 as wire;
use tracing::{info, warn};

use super::{Call, TokenService, judge::Question};
use crate::{
    audit::{Action, Record, TokenNumber},
    authorization::{Identity, Purpose, Refusal, cancellable, tied},
    events::Severity,
    failure::Failure,
    issuance::Issuer,
    ledger::{Entry, Scope},
    metrics::Cancelled,
    request::{Check, ReleasedToken, VolumeReference},
};

/// What becomes of the tokens of a volume that may not keep them.
#[derive(Default)]
struct Taken<'a> {
    /// They are the pod's, and to be cancelled.
    cancelled: Vec<(TokenNumber, &'a [u8])>,
    /// They may be another's: the node plugin gives back itself what it has.
    left: Vec<Left>,
}

struct Left {
    /// None of a token that cannot be read.
    token: Option<TokenNumber>,
    refusal: Refusal,
}

impl TokenService {
    pub(super) async fn check_tokens(
        &self,
        driver: Identity,
        request: &Check,
        call: &mut Call,
    ) -> Result<wire::CheckResponse, Failure> {
        let Check { volume, pod_token, cluster, tokens, addresses } = request;
        let purpose = Purpose::Check(cluster);
        let question = Question { purpose, volume, pod_token, addresses: addresses.as_ref() };
        let issuer = self.issuer(cluster)?;
        let facts = self.judge.facts(driver, &question, call).await?;
        let (refusal, taken) = match self.judge.decide(&question, &facts, &mut call.record).await {
            Ok(grant) => match of_another_user(tokens, &grant.user, issuer, &mut call.record)? {
                Some((refusal, left)) => (refusal, Taken { left, ..Taken::default() }),
                None => match self.not_in_ledger(request, &call.record).await? {
                    Some(taken) => (Refusal::TokenRevoked, taken),
                    None => return Ok(self.kept(grant.addresses_verified)),
                },
            },
            Err(Failure::Refused(refusal)) if refusal.revokes() => {
                if self.judge.policy.lets_expire(&refusal) {
                    call.record.why = Some(refusal.reason());
                    let message = format!("the pod's tokens are neither renewed nor replaced: {refusal}");
                    self.events.publish(&volume.pod, Severity::Warning, refusal.reason(), &message);
                    return Ok(self.kept(false));
                }
                let user = self.judge.policy.owner_by(volume, &facts);
                (refusal, taken(tokens, user.as_ref(), issuer, &mut call.record))
            }
            Err(failure) => return Err(failure),
        };
        for Left { refusal, .. } in &taken.left {
            warn!(error = %refusal, pod.uid = volume.pod.uid, "Left a token to the node plugin");
        }
        let ends = taken.cancelled.iter().map(|(_, identifier)| async {
            match self.shared(identifier, volume).await? {
                None => issuer.cancel(identifier, Cancelled::Revoked, &call.record).await,
                Some(own) => self.withdrawn(&own).await,
            }
        });
        let failed = join_all(ends).await.into_iter().filter_map(Result::err).collect();
        self.revoked(request, call, &refusal, &taken, failed)
    }

    /// The objects by which `volume` has a token that others may have too; None when it is the volume's alone. Looked at
    /// live, because what is followed may be late.
    async fn shared(
        &self,
        identifier: &[u8],
        volume: &VolumeReference,
    ) -> Result<Option<Vec<Arc<Entry>>>, Failure> {
        let mut entries = self.ledger.by_identifier_in(&volume.pod.namespace, identifier);
        entries.extend(self.ledger.confirm_live(&volume.pod.namespace, identifier).await?);
        entries.retain(|entry| !entry.deleting);
        let (own, others): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| entry.is_of(volume));
        let shared = !others.is_empty() || own.iter().any(|entry| entry.scope == Scope::Job);
        Ok(shared.then_some(own))
    }

    /// Takes a shared token from a volume alone. When it is the last one that has it, the reaper cancels it at once.
    async fn withdrawn(&self, own: &[Arc<Entry>]) -> Result<(), Failure> {
        let deleted = join_all(own.iter().map(|entry| self.ledger.delete(entry))).await;
        Ok(deleted.into_iter().collect::<Result<_, _>>()?)
    }

    fn kept(&self, addresses_verified: bool) -> wire::CheckResponse {
        let kept = wire::Kept { check_after_seconds: self.recheck_seconds(), addresses_verified };
        wire::CheckResponse { outcome: Some(wire::check_response::Outcome::Kept(kept)) }
    }

    /// Those of a volume's tokens whose object is gone or deleted, looked at live; None when each has its own. `record`
    /// tells their numbers.
    async fn not_in_ledger<'a>(
        &self,
        request: &'a Check,
        record: &Record,
    ) -> Result<Option<Taken<'a>>, Failure> {
        let holds = |entry: &Arc<Entry>| entry.is_of(&request.volume) && !entry.deleting;
        let (mut gone, mut taken) = (false, Taken::default());
        for (token, number) in request.tokens.iter().zip(&record.tokens) {
            if self.ledger.by_identifier(&token.identifier).iter().any(holds) {
                continue;
            }
            let namespace = &request.volume.pod.namespace;
            let found = self.ledger.confirm_live(namespace, &token.identifier).await?;
            if found.iter().any(holds) {
                continue;
            }
            gone = true;
            // Whoever shares it keeps it.
            if found.iter().all(|entry| entry.deleting) {
                taken.cancelled.push((*number, token.identifier.as_slice()));
            }
        }
        Ok(gone.then_some(taken))
    }

    fn revoked(
        &self,
        request: &Check,
        call: &mut Call,
        refusal: &Refusal,
        taken: &Taken<'_>,
        failed: Vec<Failure>,
    ) -> Result<wire::CheckResponse, Failure> {
        let reason = refusal.reason();
        call.record.refused(reason, refusal.to_string());
        if let Some(first) = taken.left.first() {
            let mut left = call.record.follow_up(Action::Revoke, reason);
            left.tokens = taken.left.iter().filter_map(|left| left.token).collect();
            left.refused(first.refusal.reason(), format!("left to the node plugin: {}", first.refusal));
            call.follow_ups.push(left);
        }
        let mut revocation = call.record.follow_up(Action::Revoke, reason);
        revocation.tokens = taken.cancelled.iter().map(|(token, _)| *token).collect();
        if !failed.is_empty() {
            // Asked again, the node plugin gets the same refusal, and the rest is cancelled then.
            let failure = Failure::NotReleased(failed);
            revocation.reason = Some(failure.reason());
            revocation.message = Some(failure.to_string());
            call.follow_ups.push(revocation);
            return Err(failure);
        }
        if !taken.cancelled.is_empty() || taken.left.is_empty() {
            revocation.granted();
            call.follow_ups.push(revocation);
        }
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
            tokens = taken.cancelled.len(),
            left = taken.left.len(),
            "Revoked tokens"
        );
        let revoked = wire::Revoked { reason: reason.to_owned(), message };
        Ok(wire::CheckResponse { outcome: Some(wire::check_response::Outcome::Revoked(revoked)) })
    }
}

/// None, when all `tokens` are of the user whose they have to be. Else none may stay where they are, nor is any of them
/// cancelled: whoever has a node could else name tokens of others, and add one to his pod's that does not fit.
fn of_another_user(
    tokens: &[ReleasedToken],
    user: &HadoopUser,
    issuer: &Issuer,
    record: &mut Record,
) -> Result<Option<(Refusal, Vec<Left>)>, Refusal> {
    let mut refusal = None;
    for (number, token) in tokens.iter().enumerate() {
        let identifier = cancellable(number, &token.kind, &token.identifier, issuer.renewer())?;
        record.tokens.push(TokenNumber::from(&identifier));
        let owner = identifier.owner;
        if owner != user.as_str() && refusal.is_none() {
            refusal = Some(Refusal::TokenOfAnotherUser { number, owner, user: user.clone() });
        }
    }
    let Some(refusal) = refusal else { return Ok(None) };
    let left = |token: &TokenNumber| Left { token: Some(*token), refusal: refusal.clone() };
    let left = record.tokens.iter().map(left).collect();
    Ok(Some((refusal, left)))
}

/// Which of `tokens` are of a pod that may have none any more. Its user was `user`, as far as that is known.
fn taken<'a>(
    tokens: &'a [ReleasedToken],
    user: Option<&HadoopUser>,
    issuer: &Issuer,
    record: &mut Record,
) -> Taken<'a> {
    let mut taken = Taken::default();
    for (number, token) in tokens.iter().enumerate() {
        let decoded = TokenIdentifier::decode(&token.kind, &token.identifier);
        let shown = decoded.ok().map(|identifier| TokenNumber::from(&identifier));
        record.tokens.extend(shown);
        match tied(number, &token.kind, &token.identifier, user, issuer.renewer()) {
            Ok(identifier) => {
                taken.cancelled.push((TokenNumber::from(&identifier), token.identifier.as_slice()));
            }
            Err(refusal) => taken.left.push(Left { token: shown, refusal }),
        }
    }
    taken
}
