//! More time for the tokens of a volume, when it would get them anew today.

use futures_util::future::try_join_all;
use proto::token::v1 as wire;

use super::{Call, TokenService, judge::Question};
use crate::{
    audit::TokenNumber,
    authorization::{Identity, Purpose, renewable},
    failure::Failure,
    request::Renew,
};

impl TokenService {
    pub(super) async fn renew_tokens(
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
        }
        self.audit.ready().await?;
        let renew_dates = try_join_all(tokens.iter().map(|token| issuer.renew(token, &call.record))).await?;
        Ok(wire::Renewed { renew_dates, server_date: 0 })
    }
}

/// What the node plugin is told.
pub(super) fn outcome(renewed: Result<wire::Renewed, Failure>) -> wire::RenewalOutcome {
    use wire::renewal_outcome::Outcome;

    let outcome = match renewed {
        Ok(renewed) => Outcome::Renewed(renewed),
        Err(failure) => Outcome::NotRenewed(wire::NotRenewed {
            reason: failure.reason().to_owned(),
            message: failure.to_string(),
            advice: wire::RenewalAdvice::Retry.into(),
        }),
    };
    wire::RenewalOutcome { outcome: Some(outcome) }
}
