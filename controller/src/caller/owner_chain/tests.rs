//! Chains of owners that are whole, forged, dangling, circular and endless.

use identity::owners::{ChainEnd, MAX_LINKS, OwnerKind};
use serde_json::{Value, json};

use super::{super::fake::FakeApiServer, *};

fn link(api_version: &str, kind: &str, name: &str, uid: &str) -> Owner {
    let [api_version, kind, name, uid] = [api_version, kind, name, uid].map(str::to_owned);
    Owner { api_version, kind, name, uid }
}

fn object(uid: &str, owner: Option<&Owner>) -> Value {
    let references: Vec<_> = owner
        .map(|owner| {
            json!({
                "apiVersion": owner.api_version,
                "kind": owner.kind,
                "name": owner.name,
                "uid": owner.uid,
                "controller": true,
            })
        })
        .into_iter()
        .collect();
    json!({"metadata": {"uid": uid, "ownerReferences": references}})
}

fn jobs(resource: &str, name: &str) -> String {
    format!("/apis/apps/v1/namespaces/jobs/{resource}/{name}")
}

async fn chain(fake: &FakeApiServer, controller: Option<Owner>) -> OwnerChain {
    fake.serve().await.owner_chain("jobs", controller, &OwnerKinds::default()).await.unwrap()
}

#[tokio::test]
async fn a_pod_that_nobody_controls_has_no_root_and_costs_no_request() {
    let fake = FakeApiServer::default();
    let chain = chain(&fake, None).await;
    assert_eq!(chain.root(), Ok(None));
    assert_eq!(fake.answers().requests, 0);
}

#[tokio::test]
async fn a_deployments_pod_is_followed_up_to_the_deployment() {
    let fake = FakeApiServer::default();
    let set = link("apps/v1", "ReplicaSet", "web-5d", "u-rs");
    let deployment = link("apps/v1", "Deployment", "web", "u-d");
    fake.answers().objects.extend([
        (jobs("replicasets", "web-5d"), object("u-rs", Some(&deployment))),
        (jobs("deployments", "web"), object("u-d", None)),
    ]);
    let chain = chain(&fake, Some(set.clone())).await;
    assert_eq!(chain.root(), Ok(Some(&deployment)));
    assert_eq!(chain, OwnerChain { links: vec![set, deployment.clone()], end: ChainEnd::Root });
}

#[tokio::test]
async fn a_forged_reference_with_another_objects_name_is_seen() {
    let fake = FakeApiServer::default();
    fake.answers().objects.insert(jobs("replicasets", "theirs"), object("u-real", None));
    let forged = link("apps/v1", "ReplicaSet", "theirs", "u-invented");
    let chain = chain(&fake, Some(forged)).await;
    assert_eq!(chain.root(), Err(&ChainEnd::Replaced { found_uid: "u-real".to_owned() }));
}

#[tokio::test]
async fn a_reference_to_nothing_is_seen() {
    let fake = FakeApiServer::default();
    let chain = chain(&fake, Some(link("batch/v1", "Job", "gone", "u-1"))).await;
    assert_eq!(chain.root(), Err(&ChainEnd::Missing));
}

#[tokio::test]
async fn another_version_of_a_kind_does_not_escape_being_read() {
    let fake = FakeApiServer::default();
    let chain = chain(&fake, Some(link("batch/v1beta1", "CronJob", "gone", "u-1"))).await;
    assert_eq!(chain.root(), Err(&ChainEnd::Missing));
}

#[tokio::test]
async fn a_name_that_would_leave_its_place_in_the_path_is_never_asked_for() {
    let fake = FakeApiServer::default();
    let chain = chain(&fake, Some(link("apps/v1", "ReplicaSet", "x/../../secrets/y", "u-1"))).await;
    assert_eq!(chain.root(), Err(&ChainEnd::Missing));
    assert_eq!(fake.answers().requests, 0);
}

#[tokio::test]
async fn owners_in_a_circle_end() {
    let fake = FakeApiServer::default();
    let (one, other) =
        (link("apps/v1", "ReplicaSet", "one", "u-1"), link("apps/v1", "ReplicaSet", "other", "u-2"));
    fake.answers().objects.extend([
        (jobs("replicasets", "one"), object("u-1", Some(&other))),
        (jobs("replicasets", "other"), object("u-2", Some(&one))),
    ]);
    let chain = chain(&fake, Some(one)).await;
    assert_eq!(chain.root(), Err(&ChainEnd::Cycle));
    assert_eq!(fake.answers().requests, 2);
}

#[tokio::test]
async fn a_chain_of_twenty_is_followed_and_one_of_twenty_one_is_not() {
    for (length, expected_requests) in [(MAX_LINKS, MAX_LINKS), (MAX_LINKS + 1, MAX_LINKS)] {
        let fake = FakeApiServer::default();
        let sets: Vec<_> = (0..length)
            .map(|n| link("apps/v1", "ReplicaSet", &format!("set-{n}"), &format!("u-{n}")))
            .collect();
        for (n, set) in sets.iter().enumerate() {
            let content = object(&set.uid, sets.get(n + 1));
            fake.answers().objects.insert(jobs("replicasets", &set.name), content);
        }
        let chain = chain(&fake, sets.first().cloned()).await;
        let expected = if length > MAX_LINKS { Err(&ChainEnd::TooLong) } else { Ok(sets.last()) };
        assert_eq!(chain.root(), expected);
        assert_eq!(chain.links.len(), MAX_LINKS);
        assert_eq!(fake.answers().requests, expected_requests);
    }
}

#[tokio::test]
async fn an_owner_of_an_unknown_kind_is_the_root_and_is_not_read() {
    let fake = FakeApiServer::default();
    let app = link("example.com/v1", "Application", "pi", "u-1");
    let chain = chain(&fake, Some(app.clone())).await;
    assert_eq!((chain.root(), &chain.end), (Ok(Some(&app)), &ChainEnd::NotRead));
    assert_eq!(fake.answers().requests, 0);
}

#[tokio::test]
async fn an_owner_of_a_configured_kind_is_read() {
    let fake = FakeApiServer::default();
    let app = link("example.com/v1", "Application", "pi", "u-1");
    let path = "/apis/example.com/v1/namespaces/jobs/applications/pi";
    fake.answers().objects.insert(path.to_owned(), object("u-1", None));
    let kinds = OwnerKinds::new(vec![OwnerKind {
        api_version: "example.com/v1".to_owned(),
        kind: "Application".to_owned(),
        resource: "applications".to_owned(),
    }]);
    let chain = fake.serve().await.owner_chain("jobs", Some(app), &kinds.unwrap()).await.unwrap();
    assert_eq!(chain.end, ChainEnd::Root);
}
