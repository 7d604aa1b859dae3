//! New tokens for a volume, its first ones or others in their place; and the end of those that were lost on the way to
//! it.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use process::fault;
use proto::token::v1 as wire;
use tokio::{sync::broadcast::error::RecvError, time::timeout};
use tracing::{info, warn};

use super::{Call, TokenService, judge::Question};
use crate::{
    audit::TokenNumber,
    authorization::{Identity, Purpose, Refusal, Verification},
    events::Severity,
    failure::Failure,
    issuance::{self, Issued, strays},
    job::JobKey,
    ledger::{Entry, LedgerError, Scope},
    request::{Issue, ReleasedToken, VolumeReference},
};

/// How long a call waits for the ledger to be read, which is a matter of a moment after a start.
const LEDGER_PATIENCE: Duration = Duration::from_secs(5);

/// What audit log and events say of a call that was granted, and gave no tokens.
const WAITS_FOR_ADDRESSES: &str = "WAITS_FOR_ADDRESSES";

/// An answer, and the tokens that go with it. Tokens that are dropped are cancelled.
pub(super) struct Prepared {
    answer: wire::IssueResponse,
    issued: Option<Issued>,
}

impl Prepared {
    /// The whole answer; from here on the volume is answerable for its tokens.
    pub(super) fn hand_over(self) -> wire::IssueResponse {
        let Self { mut answer, issued } = self;
        fault::point("issue.answer:before");
        answer.tokens.extend(issued.map(hand_over));
        fault::point("issue.answer:after");
        answer
    }
}

fn hand_over(issued: Issued) -> wire::IssuedToken {
    let Issued { token, identifier, renew_date, server_date, services, unclaimed, .. } = issued;
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
        server_date: server_date.unwrap_or_default(),
    }
}

impl TokenService {
    pub(super) async fn issue_tokens(
        &self,
        driver: Identity,
        request: &Issue,
        call: &mut Call,
    ) -> Result<Prepared, Failure> {
        let Issue { volume, pod_token, addresses, held } = request;
        let question = Question { purpose: Purpose::Issue, volume, pod_token, addresses: addresses.as_ref() };
        let facts = self.judge.facts(driver, &question, call).await?;
        let grant = self.judge.decide(&question, &facts, &mut call.record).await?;
        if self.judge.is_insecure() {
            warn!(
                pod.namespace = volume.pod.namespace,
                pod.name = volume.pod.name,
                user = %grant.user,
                "Believed annotations that nobody sealed"
            );
        }
        let address_verification = match grant.verification {
            Verification::Off => wire::AddressVerification::Off,
            Verification::Eventual => wire::AddressVerification::Eventual,
            Verification::Strict => wire::AddressVerification::Strict,
        };
        let answer = wire::IssueResponse {
            user: grant.user.to_string(),
            cluster: grant.cluster.clone(),
            tokens: Vec::new(),
            address_verification: address_verification.into(),
            check_after_seconds: self.recheck_seconds(),
            unsealed: self.judge.is_insecure(),
        };
        if grant.verification == Verification::Strict && !grant.addresses_verified {
            call.record.why = Some(WAITS_FOR_ADDRESSES);
            let message = "the pod has its tokens when it has an address that its node confirms";
            self.events.publish(&volume.pod, Severity::Normal, WAITS_FOR_ADDRESSES, message);
            return Ok(Prepared { answer, issued: None });
        }

        self.audit.ready().await?;
        self.ledger_known().await?;
        self.not_revoked(volume, held).await?;
        let purpose = issuance::Purpose {
            volume: volume.clone(),
            node: call.record.node.clone().unwrap_or_default(),
            submitter: call.record.submitter.clone().unwrap_or_default(),
            scope: if grant.job.is_some() { Scope::Job } else { Scope::Pod },
        };
        let issuer = self.issuer(&grant.cluster)?;
        let issued = match grant.job {
            None => issuer.issue(grant.user.clone(), purpose, call.record.clone()).await?,
            Some(owner) => {
                let (namespace, user) = (volume.pod.namespace.clone(), grant.user.clone());
                let key = JobKey { namespace, owner, user, cluster: grant.cluster.clone() };
                self.jobs.token(&key, issuer, purpose, held, &call.record).await?
            }
        };
        call.record.tokens = vec![TokenNumber::from(&issued.identifier)];
        call.record.services.clone_from(&issued.services);
        info!(
            pod.namespace = volume.pod.namespace,
            pod.name = volume.pod.name,
            pod.uid = volume.pod.uid,
            volume.name = volume.name,
            node = call.record.node,
            user = %grant.user,
            cluster = grant.cluster,
            token.sequence_number = issued.identifier.sequence_number,
            token.max_date = issued.identifier.max_date,
            "Issued token"
        );
        self.forget_strays(&issued.entry, held).await;
        Ok(Prepared { answer, issued: Some(issued) })
    }

    /// Refuses a volume whose tokens somebody took away, before its node heard of it.
    async fn not_revoked(&self, volume: &VolumeReference, held: &[ReleasedToken]) -> Result<(), Failure> {
        let holds = |entry: &Arc<Entry>| entry.is_of(volume) && !entry.deleting;
        for ReleasedToken { identifier, .. } in held {
            if !self.ledger.by_identifier(identifier).iter().any(holds) {
                let live = self.ledger.confirm_live(&volume.pod.namespace, identifier).await?;
                if !live.iter().any(holds) {
                    return Err(Refusal::TokenRevoked.into());
                }
            }
        }
        Ok(())
    }

    /// Waits until the ledger is known, without which nobody knows what the volume has.
    async fn ledger_known(&self) -> Result<(), Failure> {
        let mut changes = self.ledger.subscribe();
        let known = timeout(LEDGER_PATIENCE, async {
            while !self.ledger.is_complete() {
                // Having missed some is as good as having heard one.
                if let Err(RecvError::Closed) = changes.recv().await {
                    return;
                }
            }
        });
        known.await.map_err(|_| LedgerError::Unreadable("it has not been listed yet".to_owned()).into())
    }

    /// Has what was lost on the way to the volume of `own` cancelled. What cannot be deleted now is found again when
    /// the pod ends.
    async fn forget_strays(&self, own: &Entry, held: &[ReleasedToken]) {
        let strays = strays(self.ledger.of_volume(&own.namespace, &own.pod_uid, &own.volume), own, held);
        let deleted = join_all(strays.iter().map(|stray| self.ledger.delete(stray))).await;
        for (stray, deleted) in strays.iter().zip(deleted) {
            let sequence_number = stray.token.as_ref().map(|token| token.sequence_number);
            match deleted {
                Ok(()) => info!(
                    token.object = %stray,
                    token.sequence_number = sequence_number,
                    "Deleted a token that never reached its volume"
                ),
                Err(error) => warn!(
                    %error,
                    token.object = %stray,
                    token.sequence_number = sequence_number,
                    "Failed to delete a token that never reached its volume"
                ),
            }
        }
    }
}
