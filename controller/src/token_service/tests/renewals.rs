//! Renewals of many volumes by one request.

use super::*;

/// The volume of pod etl-NUMBER.
fn volume_of(number: usize) -> wire::Volume {
    let (name, uid) = (format!("etl-{number}"), format!("u-{}", number + 1));
    wire::Volume {
        id: VolumeId::of(&uid, "token").to_string(),
        name: "token".to_owned(),
        pod: Some(wire::Pod { namespace: "jobs".to_owned(), name, uid }),
    }
}

/// What a node plugin says to renew the token of that pod, which it gets first.
async fn renewal_of(number: usize, client: &mut TokenServiceClient<Channel>) -> wire::Renewal {
    let (volume, pod_token) = (Some(volume_of(number)), format!("pod-jwt-{number}"));
    let request = wire::IssueRequest {
        volume: volume.clone(),
        pod_token: pod_token.clone(),
        ..wire::IssueRequest::default()
    };
    let answer = client.issue(from_driver(request)).await.unwrap().into_inner();
    let tokens = answer.tokens.into_iter().filter_map(|issued| issued.token).collect();
    wire::Renewal { volume, pod_token, cluster: "main".to_owned(), tokens }
}

impl Bed {
    /// Pods etl-0, etl-1 and so on, each proven by its own service-account token.
    fn pods(&self, count: usize) {
        for number in 0..count {
            let (name, uid) = (format!("etl-{number}"), format!("u-{}", number + 1));
            let mut pod = pod();
            (pod["metadata"]["name"], pod["metadata"]["uid"]) = (json!(name), json!(uid));
            let mut answers = self.api_server.answers();
            answers.pods.insert(format!("jobs/{name}"), sealed(&self.key, "etl", pod));
            let review = review(POD_AUDIENCE, "jobs:runner", &name, &uid);
            answers.reviews.insert(format!("pod-jwt-{number}"), review);
        }
    }
}

#[tokio::test]
async fn each_volume_of_a_request_has_its_own_outcome() {
    let bed = Bed::new().await;
    bed.pods(20);
    let mut client = bed.client().await;
    let mut renewals = Vec::new();
    for number in 0..20 {
        renewals.push(renewal_of(number, &mut client).await);
    }
    bed.api_server.answers().pods.remove("jobs/etl-3");
    let answer = client.renew(from_driver(wire::RenewRequest { renewals })).await.unwrap().into_inner();
    assert_eq!(answer.outcomes.len(), 20);
    for (number, outcome) in answer.outcomes.into_iter().enumerate() {
        match (number, renewal(wire::RenewResponse { outcomes: vec![outcome] })) {
            (3, Err(not_renewed)) => {
                assert_eq!(not_renewed.reason, "POD_NOT_FOUND");
                assert_eq!(not_renewed.advice(), wire::RenewalAdvice::Check);
            }
            (_, renewed) => assert_eq!(renewed.unwrap().renew_dates, [ISSUED + INTERVAL], "{number}"),
        }
    }
    let records = bed.recorded.records();
    let of = |uid: &str| {
        records.iter().filter(|record| record["uid"] == uid && record["action"] == "renew").count()
    };
    assert_eq!((of("u-1"), of("u-4"), of("u-20")), (1, 1, 1));
}

#[tokio::test]
async fn a_token_that_hadoop_forgot_is_to_be_replaced() {
    let bed = Bed::new().await;
    bed.pods(1);
    let mut client = bed.client().await;
    let renewal_of_0 = renewal_of(0, &mut client).await;
    let message = "gone".to_owned();
    let gone = crate::cluster::CallError { reason: "TOKEN_UNKNOWN", code: Code::NotFound, message };
    *bed.name_node.renew_error.lock().unwrap() = Some(gone);
    let request = wire::RenewRequest { renewals: vec![renewal_of_0] };
    let answer = client.renew(from_driver(request)).await.unwrap().into_inner();
    let not_renewed = renewal(answer).unwrap_err();
    assert_eq!(
        (not_renewed.reason.as_str(), not_renewed.advice()),
        ("TOKEN_UNKNOWN", wire::RenewalAdvice::Rotate)
    );
}
