//! Streams of many nodes at once, as after a restart of the controller.

use std::{env, process::Command};

use futures_util::{StreamExt, stream};
use tokio::time::timeout;

use super::*;

/// Nodes, each with one pod that has a token, and how many of them come at once.
const NODES: usize = 4_000;
const AT_ONCE: usize = 256;

/// What one more stream may cost, in bytes.
const COST: usize = 8 << 10;

/// What all of them may take, in a build without optimization.
const PATIENCE: Duration = Duration::from_secs(60);

/// The objects, the pods and the proofs of all nodes, and the service that a restarted controller has.
async fn restarted() -> Bed {
    let mut bed = Bed::new().await;
    let objects = Objects::default();
    for number in 0..NODES {
        let (name, uid, node) = (format!("etl-{number}"), format!("u-{number}"), format!("n-{number}"));
        let mut answers = bed.api_server.answers();
        let mut driver = review(CONTROLLER_AUDIENCE, "system:driver", "driver", &format!("d-{number}"));
        driver["user"]["extra"]["authentication.kubernetes.io/node-name"] = json!([node]);
        answers.reviews.insert(format!("driver-jwt-{number}"), driver);
        drop(answers);
        let object = json!({
            "metadata": {
                "namespace": "jobs", "name": name, "uid": format!("o-{number}"), "resourceVersion": "1",
                "finalizers": [identity::CANCEL_FINALIZER],
            },
            "spec": {
                "pod": name, "podUid": uid, "volume": "token", "node": node, "submitter": "etl", "user": "etl",
                "cluster": "main", "scope": "pod", "requestedAt": ISSUED,
                "token": {
                    "identifier": encoded(&identifier(number)), "kind": "HDFS_DELEGATION_TOKEN", "services": ["nn1:8020"],
                    "sequenceNumber": number, "issueDate": ISSUED, "maxDate": ISSUED + INTERVAL,
                },
            },
        });
        objects.kept().by_name.insert(name, object);
    }
    let ledger = objects.followed(bed.work.clone()).await;
    let pods = (0..NODES).map(|number| {
        watched(&format!("u-{number}")).ours_on(&format!("n-{number}")).with(&format!(
            "10.0.{}.{}",
            number / 250,
            number % 250
        ))
    });
    let pods = watch_of(pods);
    bed.change(|service| (service.ledger, service.judge.pods) = (ledger, pods));
    bed.objects = objects;
    bed
}

fn identifier(number: usize) -> Vec<u8> {
    format!("identifier of {number}").into_bytes()
}

fn encoded(identifier: &[u8]) -> String {
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, identifier)
}

/// What node `number` asks, and holds.
fn watch(number: usize) -> Request<wire::WatchRequest> {
    let uid = format!("u-{number}");
    let volume = wire::Volume {
        id: VolumeId::of(&uid, "token").to_string(),
        name: "token".to_owned(),
        pod: Some(wire::Pod { namespace: "jobs".to_owned(), name: format!("etl-{number}"), uid }),
    };
    let token =
        wire::TokenIdentifier { identifier: identifier(number), kind: "HDFS_DELEGATION_TOKEN".to_owned() };
    let held = vec![wire::HeldTokens { volume: Some(volume), tokens: vec![token] }];
    let mut request = Request::new(wire::WatchRequest { held });
    request.metadata_mut().insert("authorization", format!("Bearer driver-jwt-{number}").parse().unwrap());
    request
}

fn resident_bytes() -> usize {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// In a process of its own, where nobody else takes memory.
#[test]
fn four_thousand_nodes_that_come_back_at_once_are_heard_soon_and_cost_little() {
    let alone = "token_service::tests::streams::in_a_process_of_its_own";
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", alone, "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&child.stderr)
    );
    println!("{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the test above"]
async fn in_a_process_of_its_own() {
    let bed = restarted().await;
    let requests = bed.api_server.answers().requests;
    let (before, begun) = (resident_bytes(), tokio::time::Instant::now());
    let calls = Arc::new(Calls(bed.service.clone()));
    let open = |number| {
        let calls = calls.clone();
        async move { calls.watch(watch(number)).await.unwrap().into_inner() }
    };
    let mut streams: Vec<_> = stream::iter(0..NODES).map(open).buffered(AT_ONCE).collect().await;
    for (number, stream) in streams.iter_mut().enumerate() {
        let event = stream.next().await.unwrap().unwrap().event.unwrap();
        let wire::watch_event::Event::PodAddresses(pod) = event else { panic!("{event:?}") };
        assert_eq!(pod.pod_uid, format!("u-{number}"));
    }
    let (took, cost) = (begun.elapsed(), resident_bytes().saturating_sub(before) / NODES);
    println!("{NODES} streams: {took:?}, {cost} bytes each");
    assert!(took < PATIENCE && cost < COST, "{took:?}, {cost} bytes each");
    assert_eq!(bed.service.metrics.open_watches.get(), i64::try_from(NODES).unwrap());
    // One review each, and no look for what is known.
    assert_eq!(bed.api_server.answers().requests - requests, NODES);

    let [entry] = bed.service.ledger.of_pod("u-1234").try_into().unwrap();
    let begun = tokio::time::Instant::now();
    bed.service.ledger.delete(&entry).await.unwrap();
    let event = streams[1234].next().await.unwrap().unwrap().event.unwrap();
    let wire::watch_event::Event::Revoke(revoke) = event else { panic!("{event:?}") };
    assert_eq!(revoke.identifiers, [identifier(1234)]);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    for number in [0, 1233, 1235] {
        assert!(
            timeout(Duration::from_millis(20), streams[number].next()).await.is_err(),
            "{number} heard of it"
        );
    }
    drop(streams);
    assert_eq!(bed.service.metrics.open_watches.get(), 0);
}
