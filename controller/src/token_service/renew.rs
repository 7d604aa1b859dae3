//! More time for the tokens of some volumes, each when it would get them anew today; and what is to be done about those
//! that get none.

use std::sync::Arc;

use futures_util::{StreamExt, future::try_join_all, stream};
use proto::token::v1 as wire;
use tonic::Code;

use super::{Call, TokenService, judge::Question};
use crate::{
    audit::TokenNumber,
    authorization::{Identity, Policy, Purpose, Refusal, renewable},
    failure::Failure,
    ledger::Entry,
    request::Renew,
};

/// Volumes of one request that are worked on at once: one node gets no more of us than a few others together.
const AT_ONCE: usize = 8;

impl TokenService {
    /// What became of each volume, in their order. When the caller goes away, those that were not begun yet are left.
    pub(super) async fn renew_all(
        self: &Arc<Self>,
        driver: Identity,
        requests: impl Iterator<Item = (Renew, Call)>,
    ) -> Vec<wire::RenewalOutcome> {
        let renewals = requests.map(|(request, mut call)| {
            let (service, driver) = (Arc::clone(self), driver.clone());
            async move {
                let worker = Arc::clone(&service);
                let work = async move {
                    let renewed = worker.renew_tokens(driver, &request, &mut call).await;
                    worker.recorded(call, renewed).await
                };
                let renewed = service.to_its_end(work).await;
                outcome(renewed, &service.judge.policy)
            }
        });
        stream::iter(renewals).buffered(AT_ONCE).collect().await
    }

    async fn renew_tokens(
        &self,
        driver: Identity,
        request: &Renew,
        call: &mut Call,
    ) -> Result<wire::Renewed, Failure> {
        let Renew { volume, pod_token, cluster, tokens } = request;
        let question = Question { purpose: Purpose::Renew(cluster), volume, pod_token, addresses: None };
        let facts = self.judge.facts(driver, &question, call).await?;
        let grant = self.judge.decide(&question, &facts, &mut call.record).await?;

        let issuer = self.issuer(&grant.cluster)?;
        for (number, token) in tokens.iter().enumerate() {
            let identifier = renewable(number, token, &grant.user, issuer.renewer())?;
            call.record.tokens.push(TokenNumber::from(&identifier));
            let holds = |entry: &Arc<Entry>| entry.is_of(volume) && !entry.deleting;
            if self.ledger.is_complete() && !self.ledger.by_identifier(&token.identifier).iter().any(holds) {
                // The check that follows looks at it live.
                return Err(Refusal::TokenRevoked.into());
            }
        }
        self.audit.ready().await?;
        let renewals = tokens.iter().map(|token| issuer.renew(token, volume, &call.record));
        let renew_dates = try_join_all(renewals).await?;
        Ok(wire::Renewed { renew_dates, server_date: issuer.server_date().unwrap_or_default() })
    }
}

/// What the node plugin is told.
fn outcome(renewed: Result<wire::Renewed, Failure>, policy: &Policy) -> wire::RenewalOutcome {
    use wire::renewal_outcome::Outcome;

    let outcome = match renewed {
        Ok(renewed) => Outcome::Renewed(renewed),
        Err(failure) => Outcome::NotRenewed(wire::NotRenewed {
            reason: failure.reason().to_owned(),
            message: failure.to_string(),
            advice: advice(&failure, policy).into(),
        }),
    };
    wire::RenewalOutcome { outcome: Some(outcome) }
}

/// What the node plugin is to do about tokens that were not renewed for this.
fn advice(failure: &Failure, policy: &Policy) -> wire::RenewalAdvice {
    match failure {
        Failure::Refused(refusal) if policy.lets_expire(refusal) => wire::RenewalAdvice::Alert,
        Failure::Refused(refusal) if refusal.revokes() => wire::RenewalAdvice::Check,
        // We can never renew these, but may well get others.
        Failure::Refused(Refusal::TokenUnreadable { .. } | Refusal::TokenOfAnotherRenewer { .. }) => {
            wire::RenewalAdvice::Rotate
        }
        Failure::Hadoop { error, .. } if error.code == Code::NotFound => wire::RenewalAdvice::Rotate,
        failure => match failure.code() {
            // kubelet brings another service-account token before this one expires.
            Code::Unavailable | Code::ResourceExhausted | Code::Unauthenticated => wire::RenewalAdvice::Retry,
            _ => wire::RenewalAdvice::Alert,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        authorization::{OnLostRight, example::Case},
        cluster::CallError,
    };

    fn hadoop(reason: &'static str, code: Code) -> Failure {
        let error = CallError { reason, code, message: String::new() };
        Failure::Hadoop { cluster: "main".to_owned(), doing: "renew a token", error }
    }

    #[track_caller]
    fn check(failure: impl Into<Failure>, expected: wire::RenewalAdvice) {
        let (failure, policy) = (failure.into(), Case::granted().policy);
        assert_eq!(advice(&failure, &policy), expected, "{failure}");
    }

    #[test]
    fn what_passes_by_itself_is_tried_again() {
        use wire::RenewalAdvice::Retry;

        check(hadoop("NAMENODE_UNREACHABLE", Code::Unavailable), Retry);
        check(Failure::Late { cluster: "main".to_owned() }, Retry);
        check(Failure::Stopping, Retry);
        check(Refusal::RateLimited("node".to_owned()), Retry);
        check(Refusal::PodTokenRejected("expired".to_owned()), Retry);
    }

    #[test]
    fn dead_tokens_and_those_of_others_making_are_replaced() {
        use wire::RenewalAdvice::Rotate;

        check(hadoop("TOKEN_UNKNOWN", Code::NotFound), Rotate);
        check(hadoop("TOKEN_EXPIRED", Code::NotFound), Rotate);
        check(Refusal::TokenUnreadable { number: 0, error: "short".to_owned() }, Rotate);
        let (renewer, ours) = ("old".to_owned(), "csi".to_owned());
        check(Refusal::TokenOfAnotherRenewer { number: 0, renewer, ours }, Rotate);
    }

    #[test]
    fn a_pod_that_lost_its_right_is_checked() {
        use wire::RenewalAdvice::Check;

        check(Refusal::UserDenied("etl".parse().unwrap()), Check);
        check(Refusal::PodFinished("jobs/etl-0".to_owned()), Check);
        check(Refusal::PodNotFound("jobs/etl-0".to_owned()), Check);
    }

    #[test]
    fn what_somebody_has_to_mend_is_told() {
        use wire::RenewalAdvice::Alert;

        check(hadoop("RENEWER_MISMATCH", Code::FailedPrecondition), Alert);
        check(hadoop("SERVICE_ACL_DENIED", Code::PermissionDenied), Alert);
        check(Refusal::ClusterUnknown { name: "x".to_owned(), known: "main".to_owned() }, Alert);
    }

    #[test]
    fn where_lost_rights_let_tokens_expire_they_are_told_and_left_alone() {
        let mut policy = Case::granted().policy;
        policy.users.on_lost_right = OnLostRight::Expire;
        let failure = Failure::from(Refusal::UserDenied("etl".parse().unwrap()));
        assert_eq!(advice(&failure, &policy), wire::RenewalAdvice::Alert);
        let failure = Failure::from(Refusal::PodFinished("jobs/etl-0".to_owned()));
        assert_eq!(advice(&failure, &policy), wire::RenewalAdvice::Check);
    }
}
