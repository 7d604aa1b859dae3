//! Has the API server review a service-account token. The verdict is its, never ours: we read no JWT.

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use super::{ApiServer, ApiServerError};
use crate::authorization::Identity;

const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

impl ApiServer {
    /// Whose token this is; inside, why the API server does not take it as one for `audience`.
    pub(super) async fn review(
        &self,
        token: &SecretString,
        audience: &str,
    ) -> Result<Result<Identity, String>, ApiServerError> {
        let mut review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![audience.to_owned()]),
                token: Some(token.expose_secret().to_owned()),
            },
            ..TokenReview::default()
        };
        let body = serde_json::to_vec(&review).map_err(|error| self.unreadable(&error));
        drop(review.spec.token.take().map(Zeroizing::new));
        let request =
            http::Request::post(PATH).header(http::header::CONTENT_TYPE, "application/json").body(body?);
        let answer = self.ask("create token reviews", request).await?.unwrap_or_default();
        let mut review: TokenReview =
            serde_json::from_str(&answer).map_err(|error| self.unreadable(&error))?;
        drop(review.spec.token.take().map(Zeroizing::new));
        Ok(verdict(review.status.unwrap_or_default(), audience))
    }
}

/// The audience is looked for in the answer too: an authenticator that knows nothing of audiences leaves it out.
fn verdict(status: TokenReviewStatus, audience: &str) -> Result<Identity, String> {
    if status.authenticated != Some(true) {
        let unsaid = || "it is not valid for this audience, has expired, or its pod is gone".to_owned();
        return Err(status.error.filter(|error| !error.is_empty()).unwrap_or_else(unsaid));
    }
    if !status.audiences.unwrap_or_default().iter().any(|found| found == audience) {
        return Err(format!("it is not for audience {audience:?}"));
    }
    Ok(identity(status.user.unwrap_or_default()))
}

fn identity(user: UserInfo) -> Identity {
    let mut extra = user.extra.unwrap_or_default();
    let mut single = |key: &str| match extra.remove(key)?.as_mut_slice() {
        [value] if !value.is_empty() => Some(std::mem::take(value)),
        _ => None,
    };
    Identity {
        username: user.username.unwrap_or_default(),
        pod_name: single("authentication.kubernetes.io/pod-name"),
        pod_uid: single("authentication.kubernetes.io/pod-uid"),
        node_name: single("authentication.kubernetes.io/node-name"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reviewed(json: serde_json::Value) -> Result<Identity, String> {
        verdict(serde_json::from_value(json).unwrap(), "us")
    }

    #[test]
    fn reads_the_pod_and_node_that_a_token_is_bound_to() {
        let identity = reviewed(serde_json::json!({
            "authenticated": true,
            "audiences": ["us"],
            "user": {
                "username": "system:serviceaccount:jobs:etl",
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["etl-0"],
                    "authentication.kubernetes.io/pod-uid": ["u-1"],
                    "authentication.kubernetes.io/node-name": ["n-1"],
                },
            },
        }));
        let expected = Identity {
            username: "system:serviceaccount:jobs:etl".to_owned(),
            pod_name: Some("etl-0".to_owned()),
            pod_uid: Some("u-1".to_owned()),
            node_name: Some("n-1".to_owned()),
        };
        assert_eq!(identity, Ok(expected));
    }

    #[test]
    fn refuses_what_the_api_server_refuses_in_its_words() {
        assert_eq!(reviewed(serde_json::json!({"error": "expired"})), Err("expired".to_owned()));
        assert!(reviewed(serde_json::json!({"authenticated": false})).is_err());
        assert!(reviewed(serde_json::json!({})).is_err());
    }

    #[test]
    fn refuses_a_valid_token_of_another_or_of_no_audience() {
        assert!(reviewed(serde_json::json!({"authenticated": true, "audiences": ["them"]})).is_err());
        assert!(reviewed(serde_json::json!({"authenticated": true})).is_err());
    }

    #[test]
    fn takes_no_binding_that_is_ambiguous() {
        let identity = reviewed(serde_json::json!({
            "authenticated": true,
            "audiences": ["us"],
            "user": {"extra": {"authentication.kubernetes.io/pod-uid": ["u-1", "u-2"]}},
        }));
        assert_eq!(identity.unwrap().pod_uid, None);
    }
}
