//! Tokens whose objects somebody deleted, and users who lost their right.

use super::*;

impl Bed {
    /// The only object of the ledger, as somebody deletes it; the reaper comes later.
    async fn revoke(&self) {
        let ledger = &self.service.ledger;
        let [entry] = ledger.of_pod("u-1").try_into().unwrap();
        ledger.delete(&entry).await.unwrap();
    }
}

fn renewals(token: &wire::Token) -> Request<wire::RenewRequest> {
    let renewal = wire::Renewal {
        volume: Some(volume()),
        pod_token: "pod-jwt".to_owned(),
        cluster: "main".to_owned(),
        tokens: vec![token.clone()],
    };
    from_driver(wire::RenewRequest { renewals: vec![renewal] })
}

#[tokio::test]
async fn a_check_takes_away_a_token_whose_object_was_deleted() {
    let bed = Bed::new().await;
    let mut client = bed.client().await;
    let token = token_of(&mut client).await;
    kept(client.check(check(&token, None)).await.unwrap());
    bed.revoke().await;
    assert_eq!(revoked(client.check(check(&token, None)).await.unwrap()), "TOKEN_REVOKED");
    assert_eq!(*bed.name_node.cancelled.lock().unwrap(), [token.identifier]);
    let decisions = bed.decisions();
    let [.., revoke, check] = &*decisions else { panic!("{decisions:?}") };
    assert_eq!(*revoke, record_of("revoke", "granted", ""));
    assert_eq!(*check, record_of("check", "refused", "TOKEN_REVOKED"));
}

#[tokio::test]
async fn a_check_takes_away_a_token_that_the_ledger_does_not_have() {
    let bed = Bed::new().await;
    let mut client = bed.client().await;
    let token = bed.name_node.get(&"etl".parse().unwrap(), "csi", "").await.unwrap();
    let token = wire::Token { identifier: token.identifier, kind: token.kind, ..Default::default() };
    assert_eq!(revoked(client.check(check(&token, None)).await.unwrap()), "TOKEN_REVOKED");
    assert_eq!(bed.name_node.cancelled(), 1);
}

#[tokio::test]
async fn a_ledger_that_cannot_be_read_takes_nothing_away() {
    let bed = Bed::new().await;
    let mut client = bed.client().await;
    let token = token_of(&mut client).await;
    bed.objects.kept().refuse_list = Some(axum::http::StatusCode::SERVICE_UNAVAILABLE);
    // What is followed is enough.
    kept(client.check(check(&token, None)).await.unwrap());
    bed.revoke().await;
    let status = client.check(check(&token, None)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "LEDGER_UNREADABLE"));
    assert_eq!(bed.name_node.cancelled(), 0);
}

#[tokio::test]
async fn a_token_that_was_revoked_is_not_renewed_but_checked() {
    let bed = Bed::new().await;
    let mut client = bed.client().await;
    let token = token_of(&mut client).await;
    renewal(client.renew(renewals(&token)).await.unwrap().into_inner()).unwrap();
    bed.revoke().await;
    let not_renewed = renewal(client.renew(renewals(&token)).await.unwrap().into_inner()).unwrap_err();
    let advice = not_renewed.advice();
    assert_eq!((not_renewed.reason.as_str(), advice), ("TOKEN_REVOKED", wire::RenewalAdvice::Check));
}

#[tokio::test]
async fn where_lost_rights_let_tokens_expire_a_user_who_left_keeps_his_unrenewed() {
    let mut bed = Bed::new().await;
    bed.change(|service| service.judge.policy.users.on_lost_right = OnLostRight::Expire);
    let mut client = bed.client().await;
    let token = token_of(&mut client).await;
    fs::write(bed.folder.path().join("users.yaml"), "users: {ads: {}}").unwrap();
    tokio::time::sleep(Duration::from_millis(1_100)).await; // the file counts a second later
    kept(client.check(check(&token, None)).await.unwrap());
    let not_renewed = renewal(client.renew(renewals(&token)).await.unwrap().into_inner()).unwrap_err();
    let advice = not_renewed.advice();
    assert_eq!((not_renewed.reason.as_str(), advice), ("USER_UNKNOWN", wire::RenewalAdvice::Alert));
    assert_eq!(bed.name_node.cancelled(), 0);
    // The pod's end takes it away all the same.
    bed.pod(|pod| pod["status"]["phase"] = json!("Failed"));
    assert_eq!(revoked(client.check(check(&token, None)).await.unwrap()), "POD_FINISHED");
}
