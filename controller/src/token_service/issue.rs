//! New tokens for a volume.

use proto::token::v1 as wire;
use tracing::{info, warn};

use super::{Call, TokenService, judge::Question};
use crate::{
    audit::TokenNumber,
    authorization::{Identity, Purpose, Verification},
    events::Severity,
    failure::Failure,
    issuance::Issued,
    request::Issue,
};

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
        answer.tokens.extend(issued.map(hand_over));
        answer
    }
}

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
        server_date: identifier.issue_date,
    }
}

impl TokenService {
    pub(super) async fn issue_tokens(
        &self,
        driver: Identity,
        request: &Issue,
        call: &mut Call,
    ) -> Result<Prepared, Failure> {
        let Issue { volume, pod_token, addresses, held: _ } = request;
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
        let issued = self.issuer(&grant.cluster)?.issue(grant.user.clone(), call.record.clone()).await?;
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
        Ok(Prepared { answer, issued: Some(issued) })
    }
}
