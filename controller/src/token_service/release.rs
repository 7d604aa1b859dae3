//! The end of a volume's tokens: because it has ended, or because it may not keep them.

use std::sync::Arc;

use futures_util::future::join_all;
use proto::token::v1 as wire;
use tracing::info;

use super::{Call, TokenService};
use crate::{
    audit::{Record, TokenNumber},
    authorization::{Refusal, cancellable},
    failure::Failure,
    issuance::Issuer,
    ledger::{Entry, KnownToken, LedgerError, Scope},
    metrics::Cancelled,
    request::{Release, ReleasedToken},
};

/// What is to be cancelled for a volume that has ended.
#[derive(Default)]
struct Ending<'a> {
    /// What the ledger has of the volume.
    entries: Vec<(Arc<Entry>, KnownToken)>,
    /// What the node plugin names, and the ledger does not have: a token of before there was one.
    unknown: Vec<&'a [u8]>,
    numbers: Vec<TokenNumber>,
    failed: Vec<Failure>,
}

impl TokenService {
    /// Cancels all tokens of a volume, whatever the node plugin knows of them. What it cannot, the reaper does when the
    /// pod is gone.
    pub(super) async fn release_tokens(
        &self,
        request: &Release,
        call: &mut Call,
    ) -> Result<wire::ReleaseResponse, Failure> {
        let issuer = self.issuer(&request.cluster)?;
        call.record.cluster = Some(request.cluster.clone());
        let Ending { entries, unknown, numbers, mut failed } =
            self.ending(request, issuer, call.record.node.as_deref().unwrap_or_default()).await?;
        call.record.tokens = numbers;
        let (of_ledger, of_node) = tokio::join!(
            join_all(entries.iter().map(|(entry, token)| self.ended(entry, token, &call.record))),
            cancelled(issuer, &unknown, Cancelled::Released, &call.record),
        );
        failed.extend(of_ledger.into_iter().filter_map(Result::err).chain(of_node));
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
            tokens = entries.len() + unknown.len(),
            "Cancelled tokens"
        );
        Ok(wire::ReleaseResponse {})
    }

    /// What is to be cancelled for a volume that `node` says has ended. A node has only the tokens of its own pods
    /// cancelled.
    async fn ending<'a>(
        &self,
        request: &'a Release,
        issuer: &Issuer,
        node: &str,
    ) -> Result<Ending<'a>, Failure> {
        if !self.ledger.is_complete() {
            return Err(LedgerError::Unreadable("not all objects have been listed yet".to_owned()).into());
        }
        let (pod, mut ending) = (&request.volume.pod, Ending::default());
        for entry in self.ledger.of_volume(&pod.namespace, &pod.uid, &request.volume.name) {
            if *entry.node != *node {
                let (found, driver) = (entry.node.to_string(), node.to_owned());
                return Err(Refusal::PodOnAnotherNode { pod: pod.to_string(), found, driver }.into());
            }
            match &entry.token {
                // A shared one goes when no pod that has it is left, and of a lost one nothing is known: the reaper's.
                Some(token) if entry.scope == Scope::Pod => {
                    let token = token.clone();
                    ending.numbers.push(TokenNumber::from(&token));
                    ending.entries.push((entry, token));
                }
                _ => {}
            }
        }
        for (number, token) in request.tokens.iter().enumerate() {
            let ReleasedToken { identifier, kind } = token;
            let mut known = self.ledger.by_identifier_in(&pod.namespace, identifier);
            if known.is_empty() {
                // What is followed may be late, and the token another's too.
                known = self.ledger.confirm_live(&pod.namespace, identifier).await?;
            }
            if known.iter().any(|entry| entry.is_of(&request.volume) || entry.scope == Scope::Job) {
                continue;
            }
            if !known.is_empty() {
                ending.failed.push(Refusal::TokenOfAnotherVolume { number }.into());
                continue;
            }
            if !self.ledger.by_identifier(identifier).is_empty() {
                // Of another namespace, as far as anybody knows: it ends with the pod there, and holds up nobody here.
                continue;
            }
            match cancellable(number, kind, identifier, issuer.renewer()) {
                Ok(decoded) => {
                    ending.numbers.push(TokenNumber::from(&decoded));
                    ending.unknown.push(identifier.as_slice());
                }
                Err(refusal) => ending.failed.push(refusal.into()),
            }
        }
        Ok(ending)
    }

    /// Cancels the token of `entry`, then removes the entry.
    async fn ended(&self, entry: &Entry, token: &KnownToken, record: &Record) -> Result<(), Failure> {
        let issuer = self.issuer(&entry.cluster)?;
        issuer.cancel(&token.identifier, Cancelled::Released, record).await?;
        Ok(self.ledger.remove(entry).await?)
    }
}

/// Cancels all, and says what failed. One that fails keeps none of the others alive.
async fn cancelled(issuer: &Issuer, identifiers: &[&[u8]], why: Cancelled, record: &Record) -> Vec<Failure> {
    let cancellations = identifiers.iter().map(|identifier| issuer.cancel(identifier, why, record));
    join_all(cancellations).await.into_iter().filter_map(Result::err).collect()
}
