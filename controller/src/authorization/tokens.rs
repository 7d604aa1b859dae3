//! Which existing tokens a volume's node plugin may have renewed and cancelled: what their identifiers say must fit.

use hadoop::{HadoopUser, TokenIdentifier};

use super::Refusal;

/// A token that is to be renewed is the pod's own, and ours to renew.
pub(crate) fn renewable(
    number: usize,
    token: &hadoop::Token,
    user: &HadoopUser,
    ours: &str,
) -> Result<TokenIdentifier, Refusal> {
    let identifier = token
        .decode_identifier()
        .map_err(|error| Refusal::TokenUnreadable { number, error: error.to_string() })?;
    if identifier.owner != user.as_str() {
        return Err(Refusal::TokenOfAnotherUser { number, owner: identifier.owner, user: user.clone() });
    }
    renewer_is(number, identifier, ours)
}

/// A token that is to be cancelled is one that we may cancel.
pub(crate) fn cancellable(
    number: usize,
    kind: &str,
    identifier: &[u8],
    ours: &str,
) -> Result<TokenIdentifier, Refusal> {
    let identifier = TokenIdentifier::decode(kind, identifier)
        .map_err(|error| Refusal::TokenUnreadable { number, error: error.to_string() })?;
    renewer_is(number, identifier, ours)
}

/// A token that is to be taken from a volume is one that we may cancel, and its owner is the volume's user, if that one
/// is known: a node plugin must not have the tokens of others cancelled by a pod that lost its right. When it is not
/// known any more, the node plugin is believed, as it is when it releases tokens.
pub(crate) fn tied(
    number: usize,
    kind: &str,
    identifier: &[u8],
    user: Option<&HadoopUser>,
    ours: &str,
) -> Result<TokenIdentifier, Refusal> {
    let identifier = cancellable(number, kind, identifier, ours)?;
    match user {
        Some(user) if identifier.owner != user.as_str() => {
            Err(Refusal::TokenOfAnotherUser { number, owner: identifier.owner, user: user.clone() })
        }
        _ => Ok(identifier),
    }
}

fn renewer_is(number: usize, identifier: TokenIdentifier, ours: &str) -> Result<TokenIdentifier, Refusal> {
    if identifier.renewer == ours {
        Ok(identifier)
    } else {
        Err(Refusal::TokenOfAnotherRenewer { number, renewer: identifier.renewer, ours: ours.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(owner: &str, renewer: &str) -> hadoop::Token {
        let identifier = TokenIdentifier {
            owner: owner.to_owned(),
            renewer: renewer.to_owned(),
            real_user: "csi/h@R".to_owned(),
            issue_date: 1,
            max_date: 2,
            sequence_number: 3,
            master_key_id: 4,
        };
        hadoop::Token::new(identifier.encode(), Vec::new(), hadoop::token::HDFS_DELEGATION_TOKEN, "")
    }

    #[test]
    fn renews_only_the_pods_own_tokens_of_our_making() {
        let user = "etl".parse().unwrap();
        assert_eq!(renewable(0, &token("etl", "csi"), &user, "csi").unwrap().sequence_number, 3);
        assert!(matches!(
            renewable(0, &token("ads", "csi"), &user, "csi"),
            Err(Refusal::TokenOfAnotherUser { .. })
        ));
        assert!(matches!(
            renewable(0, &token("etl", "yarn"), &user, "csi"),
            Err(Refusal::TokenOfAnotherRenewer { .. })
        ));
        let garbage = hadoop::Token::new(b"x".to_vec(), Vec::new(), hadoop::token::HDFS_DELEGATION_TOKEN, "");
        assert!(matches!(renewable(0, &garbage, &user, "csi"), Err(Refusal::TokenUnreadable { .. })));
    }

    #[test]
    fn cancels_only_tokens_of_our_making() {
        let check = |token: hadoop::Token| cancellable(0, &token.kind, &token.identifier, "csi");
        assert!(check(token("etl", "csi")).is_ok());
        assert!(matches!(check(token("etl", "yarn")), Err(Refusal::TokenOfAnotherRenewer { .. })));
    }

    #[test]
    fn takes_from_a_pod_only_tokens_of_its_user() {
        let check = |user: Option<&str>, token: hadoop::Token| {
            let user: Option<HadoopUser> = user.map(|user| user.parse().unwrap());
            tied(0, &token.kind, &token.identifier, user.as_ref(), "csi")
        };
        assert!(check(Some("etl"), token("etl", "csi")).is_ok());
        assert!(matches!(check(Some("etl"), token("ads", "csi")), Err(Refusal::TokenOfAnotherUser { .. })));
        assert!(check(None, token("ads", "csi")).is_ok());
        assert!(matches!(check(None, token("ads", "yarn")), Err(Refusal::TokenOfAnotherRenewer { .. })));
    }
}
