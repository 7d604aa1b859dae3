//! Issues to a volume that asks again: because it lost the answer, or because it replaces what it holds.

use super::*;

impl Bed {
    /// The volume's tokens that nobody has deleted, by their numbers.
    fn living(&self) -> Vec<i32> {
        let mut numbers: Vec<_> = self
            .service
            .ledger
            .of_volume("jobs", "u-1", "token")
            .iter()
            .filter(|entry| !entry.deleting)
            .filter_map(|entry| entry.token.as_ref())
            .map(|token| token.sequence_number)
            .collect();
        numbers.sort_unstable();
        numbers
    }
}

fn replacing(held: &[&wire::Token]) -> Request<wire::IssueRequest> {
    let identifier = |token: &&wire::Token| wire::TokenIdentifier {
        identifier: token.identifier.clone(),
        kind: token.kind.clone(),
    };
    from_driver(wire::IssueRequest { held: held.iter().map(identifier).collect(), ..issue().into_inner() })
}

async fn token(client: &mut TokenServiceClient<Channel>, held: &[&wire::Token]) -> wire::Token {
    let answer = client.issue(replacing(held)).await.unwrap().into_inner();
    answer.tokens.into_iter().next().unwrap().token.unwrap()
}

#[tokio::test]
async fn a_volume_that_holds_nothing_loses_what_did_not_reach_it() {
    let bed = Bed::new().await;
    let mut client = bed.client().await;
    for number in 0..3 {
        token(&mut client, &[]).await;
        assert_eq!(bed.living(), [number]);
    }
    let answer = client.issue(issue()).await.unwrap().into_inner();
    assert_eq!(
        answer.tokens[0].server_date / 1000,
        ISSUED / 1000,
        "dates count by another clock than the service's"
    );
}

#[tokio::test]
async fn a_volume_that_replaces_its_token_keeps_the_predecessors_and_loses_what_did_not_reach_it() {
    let bed = Bed::new().await;
    let mut client = bed.client().await;
    let first = token(&mut client, &[]).await;
    let second = token(&mut client, &[&first]).await;
    assert_eq!(bed.living(), [0, 1]);
    token(&mut client, &[&second]).await; // is lost on the way
    assert_eq!(bed.living(), [0, 1, 2]);
    token(&mut client, &[&second]).await;
    assert_eq!(bed.living(), [0, 1, 3]);
}

#[tokio::test]
async fn a_volume_whose_token_was_revoked_gets_no_other_in_its_place() {
    let bed = Bed::new().await;
    let mut client = bed.client().await;
    let held = token(&mut client, &[]).await;
    let [entry] = bed.service.ledger.of_pod("u-1").try_into().unwrap();
    bed.service.ledger.delete(&entry).await.unwrap();
    let status = client.issue(replacing(&[&held])).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::PermissionDenied, "TOKEN_REVOKED"));
    assert_eq!(bed.name_node.gets.load(SeqCst), 1);
}

#[tokio::test]
async fn a_pod_that_may_not_keep_a_shared_token_takes_it_from_nobody_else() {
    let bed = Bed::new().await;
    bed.submitted("etl", |pod| {
        pod["spec"]["volumes"][0]["csi"]["volumeAttributes"] = json!({"scope": "job"});
    });
    let mut client = bed.client().await;
    let shared = token(&mut client, &[]).await;
    let [mut other] = bed.objects.all().try_into().unwrap();
    assert_eq!(other["spec"]["scope"], "job");
    // Another pod of the job has it as well.
    other["spec"]["podUid"] = json!("u-2");
    let object: crate::ledger::Object = serde_json::from_value(other).unwrap();
    let volume = crate::request::VolumeReference {
        id: VolumeId::of("u-2", "token"),
        name: "token".to_owned(),
        pod: PodReference { namespace: "jobs".to_owned(), name: "etl-1".to_owned(), uid: "u-2".to_owned() },
    };
    let known = object.entry.token.as_ref().unwrap();
    let intent = crate::ledger::Intent {
        volume,
        node: "n-1".to_owned(),
        submitter: "etl".to_owned(),
        user: "etl".to_owned(),
        cluster: "main".to_owned(),
        scope: crate::ledger::Scope::Job,
        requested_at: ISSUED,
        after: None,
    };
    bed.service.ledger.share(&intent, known, ISSUED + INTERVAL).await.unwrap();

    bed.pod(|pod| pod["status"]["phase"] = json!("Succeeded"));
    let answer = client.check(check(&shared, None)).await.unwrap().into_inner();
    assert!(matches!(answer.outcome, Some(wire::check_response::Outcome::Revoked(_))), "{answer:?}");
    assert_eq!(bed.name_node.cancelled(), 0);
    assert_eq!(bed.living(), Vec::<i32>::new());
    assert_eq!(bed.service.ledger.of_pod("u-2").iter().filter(|entry| !entry.deleting).count(), 1);
}
