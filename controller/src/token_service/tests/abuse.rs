//! Callers who ask too much, who are nobody, or who do not wait for the answer.

use super::*;

fn release(tokens: usize) -> wire::ReleaseRequest {
    let token = wire::TokenIdentifier { identifier: b"x".to_vec(), kind: "HDFS_DELEGATION_TOKEN".to_owned() };
    wire::ReleaseRequest { volume: Some(volume()), cluster: "main".to_owned(), tokens: vec![token; tokens] }
}

impl Bed {
    fn calls(&self) -> Calls {
        Calls(self.service.clone())
    }

    /// Waits until there is such an audit record.
    async fn record(&self, action: &str, decision: &str, reason: &str) {
        while !self.decisions().contains(&record_of(action, decision, reason)) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test]
async fn strangers_cannot_fill_the_audit_log() {
    let bed = Bed::new().await;
    let calls = bed.calls();
    for _ in 0..400 {
        let status = calls.release(Request::new(release(0))).await.unwrap_err();
        assert_eq!(reason(&status), "DRIVER_TOKEN_MISSING");
    }
    let recorded = bed.recorded.records().len();
    assert!((100..200).contains(&recorded), "{recorded}");
    assert_eq!(bed.metrics.unrecorded.get(), 400 - u64::try_from(recorded).unwrap());
    for _ in 0..100 {
        calls.renew(from_driver(wire::RenewRequest::default())).await.unwrap_err();
    }
    assert!(bed.metrics.unrecorded.get() > 300, "{:?}", bed.metrics.unrecorded);
    // Of node plugins nothing is lost by that.
    calls.issue(issue()).await.unwrap();
    assert_eq!(bed.decisions().pop(), Some(record_of("issue", "granted", "")));
}

#[tokio::test]
async fn whoever_may_not_listen_is_recorded() {
    let bed = Bed::new().await;
    let status = bed.calls().watch(Request::new(wire::WatchRequest::default())).await.err().unwrap();
    assert_eq!(reason(&status), "DRIVER_TOKEN_MISSING");
    assert_eq!(bed.decisions(), [record_of("watch", "refused", "DRIVER_TOKEN_MISSING")]);
}

#[tokio::test]
async fn rejected_tokens_of_one_address_soon_cost_nothing_and_good_ones_never_count() {
    let bed = Bed::new().await;
    let mut client = bed.client().await;
    for _ in 0..150 {
        client.release(from_driver(release(0))).await.unwrap();
    }
    let strange = || {
        let mut request = Request::new(release(0));
        request.metadata_mut().insert("authorization", "Bearer pod-jwt".parse().unwrap());
        request
    };
    for _ in 0..100 {
        let status = client.release(strange()).await.unwrap_err();
        assert_eq!(reason(&status), "DRIVER_TOKEN_REJECTED");
    }
    let asked = bed.api_server.answers().requests;
    let status = client.release(strange()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "RATE_LIMITED"));
    assert!(status.message().contains("127.0.0.1"), "{status}");
    assert_eq!(bed.api_server.answers().requests, asked);
}

#[tokio::test]
async fn a_node_s_share_is_used_up_by_tokens_not_by_calls() {
    let mut bed = Bed::new().await;
    let rates = json!({"node": {"perSecond": 1, "burst": 60}});
    let limits = RateLimits::new(&serde_json::from_value(rates).unwrap(), bed.metrics.clone());
    bed.change(|service| service.judge.limits = Arc::new(limits));
    let calls = bed.calls();
    assert_eq!(reason(&calls.release(from_driver(release(50))).await.unwrap_err()), "TOKENS_NOT_CANCELLED");
    assert_eq!(reason(&calls.release(from_driver(release(50))).await.unwrap_err()), "RATE_LIMITED");
}

#[tokio::test]
async fn whoever_may_not_use_an_account_uses_up_nothing_of_its_share() {
    let mut bed = Bed::new().await;
    let rates = json!({"user": {"perSecond": 1, "burst": 1}});
    let limits = RateLimits::new(&serde_json::from_value(rates).unwrap(), bed.metrics.clone());
    bed.change(|service| service.judge.limits = Arc::new(limits));
    let service = |pod: &mut Value| {
        pod["spec"]["volumes"][0]["csi"]["volumeAttributes"] = json!({"doAs": "svc"});
    };
    bed.submitted("ads", service);
    assert_eq!(reason(&bed.calls().issue(issue()).await.unwrap_err()), "DO_AS_NOT_MEMBER");
    bed.submitted("etl", service);
    assert_eq!(bed.calls().issue(issue()).await.unwrap().into_inner().user, "svc");
}

#[tokio::test]
async fn calls_whose_caller_goes_away_are_seen_through_and_recorded() {
    let mut bed = Bed::new().await;
    bed.name_node(Scripted { renew_after: Duration::from_millis(50), ..Scripted::default() });
    let answer = bed.calls().issue(issue()).await.unwrap().into_inner();
    let token = answer.tokens[0].token.clone().unwrap();
    let identifier = wire::TokenIdentifier { identifier: token.identifier.clone(), kind: token.kind.clone() };

    let renew = wire::Renewal {
        volume: Some(volume()),
        pod_token: "pod-jwt".to_owned(),
        cluster: "main".to_owned(),
        tokens: vec![token.clone()],
    };
    let (calls, before) = (bed.calls(), bed.name_node.renewals.load(SeqCst));
    let call =
        tokio::spawn(
            async move { calls.renew(from_driver(wire::RenewRequest { renewals: vec![renew] })).await },
        );
    while bed.name_node.renewals.load(SeqCst) == before {
        tokio::task::yield_now().await;
    }
    call.abort();
    bed.record("renew", "granted", "").await;

    let release = wire::ReleaseRequest {
        volume: Some(volume()),
        cluster: "main".to_owned(),
        tokens: vec![identifier.clone()],
    };
    bed.name_node.cancel_errors.lock().unwrap().push_back(crate::cluster::scripted::down());
    let calls = bed.calls();
    let call = tokio::spawn(async move { calls.release(from_driver(release)).await });
    while bed.name_node.cancel_attempts.load(SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    call.abort();
    bed.record("release", "granted", "").await;

    bed.pod(|pod| pod["status"]["phase"] = json!("Failed"));
    bed.name_node.cancel_errors.lock().unwrap().push_back(crate::cluster::scripted::down());
    let (calls, check) = (bed.calls(), check(&token, None));
    let before = bed.name_node.cancel_attempts.load(SeqCst);
    let call = tokio::spawn(async move { calls.check(check).await });
    while bed.name_node.cancel_attempts.load(SeqCst) == before {
        tokio::task::yield_now().await;
    }
    call.abort();
    bed.record("check", "refused", "POD_FINISHED").await;
    bed.record("revoke", "granted", "").await;
}

#[tokio::test]
async fn what_fails_while_kubelet_does_not_wait_is_told_by_an_event() {
    let mut bed = Bed::new().await;
    let (events, writer) = Events::new(bed.service.judge.api_server.client(), "test".to_owned());
    bed.change(|service| service.events = events);
    tokio::spawn(writer.run(CancellationToken::new()));
    bed.pod(|pod| pod["status"]["podIPs"] = json!([{"ip": "10.0.0.7"}]));
    let failing =
        |bed: &Bed| *bed.name_node.renew_error.lock().unwrap() = Some(crate::cluster::scripted::down());
    failing(&bed);
    assert_eq!(reason(&bed.calls().issue(issue()).await.unwrap_err()), "NAMENODE_UNREACHABLE");
    failing(&bed);
    let mut request = issue();
    request.get_mut().pod_token = "pod-jwt".to_owned();
    request.get_mut().addresses = seen("10.0.0.7");
    assert!(bed.api_server.answers().events.is_empty(), "kubelet says it itself");
    assert_eq!(reason(&bed.calls().issue(request).await.unwrap_err()), "NAMENODE_UNREACHABLE");
    while bed.api_server.answers().events.is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let event = bed.api_server.answers().events.pop().unwrap();
    assert_eq!(event["reason"], "NAMENODE_UNREACHABLE");
}
