//! What a release ends: the tokens that the ledger has of the volume, and no others.

use axum::http::StatusCode;

use super::*;
use crate::{
    ledger::{Entry, Intent, KnownToken, Scope},
    request::VolumeReference,
};

fn release(tokens: &[&[u8]]) -> Request<wire::ReleaseRequest> {
    let token = |identifier: &&[u8]| wire::TokenIdentifier {
        identifier: identifier.to_vec(),
        kind: "HDFS_DELEGATION_TOKEN".to_owned(),
    };
    let tokens = tokens.iter().map(token).collect();
    from_driver(wire::ReleaseRequest { volume: Some(volume()), cluster: "main".to_owned(), tokens })
}

impl Bed {
    /// A token of a pod's volume that the ledger has, as any replica wrote it there.
    async fn recorded(&self, uid: &str, node: &str, scope: Scope) -> Arc<Entry> {
        let token = self.name_node.get(&"etl".parse().unwrap(), "csi", "").await.unwrap();
        self.written("jobs", uid, node, scope, token).await
    }

    /// What somebody wrote into `namespace` of a pod's volume, and of `token`.
    async fn written(
        &self,
        namespace: &str,
        uid: &str,
        node: &str,
        scope: Scope,
        token: hadoop::Token,
    ) -> Arc<Entry> {
        let decoded = token.decode_identifier().unwrap();
        let known = KnownToken {
            identifier: token.identifier.into(),
            kind: token.kind.as_str().into(),
            services: Box::default(),
            sequence_number: decoded.sequence_number,
            issue_date: decoded.issue_date,
            max_date: decoded.max_date,
        };
        let pod =
            PodReference { namespace: namespace.to_owned(), name: "etl-0".to_owned(), uid: uid.to_owned() };
        let intent = Intent {
            volume: VolumeReference { id: VolumeId::of(uid, "token"), name: "token".to_owned(), pod },
            node: node.to_owned(),
            submitter: "etl".to_owned(),
            user: "etl".to_owned(),
            cluster: "main".to_owned(),
            scope,
            requested_at: ISSUED,
            after: None,
        };
        self.service.ledger.share(&intent, &known, ISSUED).await.unwrap()
    }

    /// A token of a pod's volume that somebody wrote into another namespace.
    async fn recorded_elsewhere(&self, uid: &str, node: &str) -> Arc<Entry> {
        let token = self.name_node.get(&"etl".parse().unwrap(), "csi", "").await.unwrap();
        self.written("elsewhere", uid, node, Scope::Pod, token).await
    }

    /// From now on the controller's watch is late: it does not show what there is.
    async fn falls_behind(&mut self) {
        let late = Objects::default();
        let ledger = late.followed(self.work.clone()).await;
        late.kept().by_name = std::mem::take(&mut self.objects.kept().by_name);
        self.objects = late;
        self.change(|service| service.ledger = ledger);
    }

    /// Releases tokens in vain, and says why.
    async fn not_released(&self, tokens: &[&[u8]]) -> (String, String) {
        let status = self.client().await.release(release(tokens)).await.unwrap_err();
        assert_eq!(self.name_node.cancelled(), 0);
        (reason(&status), status.message().to_owned())
    }
}

#[tokio::test]
async fn a_release_ends_every_token_of_its_volume_whatever_the_node_plugin_knows() {
    let bed = Bed::new().await;
    let tokens = [bed.recorded("u-1", "n-1", Scope::Pod).await, bed.recorded("u-1", "n-1", Scope::Pod).await];
    let elsewhere = bed.recorded("u-2", "n-2", Scope::Pod).await;
    bed.client().await.release(release(&[])).await.unwrap();
    let mut cancelled = bed.name_node.cancelled.lock().unwrap().clone();
    let mut expected = tokens.map(|entry| entry.identifier().unwrap().to_vec());
    cancelled.sort();
    expected.sort();
    assert_eq!(cancelled, expected);
    let objects = bed.objects.all();
    let [object] = &*objects else { panic!("{objects:?}") };
    assert_eq!(object["metadata"]["uid"], *elsewhere.uid);
    let record = bed.recorded.records().pop().unwrap();
    assert_eq!(record["tokens"].as_array().unwrap().len(), 2, "{record}");
}

#[tokio::test]
async fn a_token_of_before_there_was_a_ledger_is_cancelled_on_the_node_plugin_s_word() {
    let bed = Bed::new().await;
    let token = bed.name_node.get(&"etl".parse().unwrap(), "csi", "").await.unwrap();
    bed.client().await.release(release(&[&token.identifier])).await.unwrap();
    assert_eq!(*bed.name_node.cancelled.lock().unwrap(), [token.identifier]);
}

#[tokio::test]
async fn a_node_releases_no_token_of_a_pod_on_another() {
    let bed = Bed::new().await;
    let entry = bed.recorded("u-1", "n-2", Scope::Pod).await;
    let (reason, message) = bed.not_released(&[entry.identifier().unwrap()]).await;
    assert_eq!(reason, "POD_ON_ANOTHER_NODE", "{message}");
}

#[tokio::test]
async fn a_volume_releases_no_token_of_another() {
    let bed = Bed::new().await;
    let entry = bed.recorded("u-2", "n-1", Scope::Pod).await;
    let (reason, message) = bed.not_released(&[entry.identifier().unwrap()]).await;
    assert_eq!(reason, "TOKENS_NOT_CANCELLED");
    assert!(message.contains("another volume"), "{message}");
}

#[tokio::test]
async fn what_is_written_into_another_namespace_holds_up_no_release() {
    let bed = Bed::new().await;
    let token = bed.name_node.get(&"etl".parse().unwrap(), "csi", "").await.unwrap();
    bed.written("jobs", "u-1", "n-1", Scope::Pod, token.clone()).await;
    // As if the volume were on another node, had another token, or shared its own.
    bed.written("elsewhere", "u-1", "n-2", Scope::Pod, token.clone()).await;
    bed.written("elsewhere", "u-9", "n-2", Scope::Job, token.clone()).await;
    bed.recorded_elsewhere("u-1", "n-1").await;
    bed.client().await.release(release(&[&token.identifier])).await.unwrap();
    assert_eq!(*bed.name_node.cancelled.lock().unwrap(), [token.identifier]);
    assert!(bed.objects.all().iter().all(|object| object["metadata"]["namespace"] == "elsewhere"));
}

#[tokio::test]
async fn a_token_of_another_namespace_is_not_cancelled_on_the_node_plugins_word() {
    let bed = Bed::new().await;
    let entry = bed.recorded_elsewhere("u-2", "n-2").await;
    bed.client().await.release(release(&[entry.identifier().unwrap()])).await.unwrap();
    assert_eq!(bed.name_node.cancelled(), 0);
}

#[tokio::test]
async fn a_shared_token_is_left_to_those_who_share_it() {
    let bed = Bed::new().await;
    let own = bed.recorded("u-1", "n-1", Scope::Job).await;
    bed.client().await.release(release(&[own.identifier().unwrap()])).await.unwrap();
    let others = bed.recorded("u-2", "n-2", Scope::Job).await;
    bed.client().await.release(release(&[others.identifier().unwrap()])).await.unwrap();
    assert_eq!(bed.name_node.cancelled(), 0);
    assert_eq!(bed.objects.all().len(), 2);
}

#[tokio::test]
async fn a_controller_whose_watch_is_late_ends_nobody_elses_token() {
    let mut bed = Bed::new().await;
    let shared = bed.recorded("u-2", "n-2", Scope::Job).await;
    let others = bed.recorded("u-3", "n-1", Scope::Pod).await;
    let [shared, others] = [&shared, &others].map(|entry| entry.identifier().unwrap());
    bed.falls_behind().await;
    bed.client().await.release(release(&[shared])).await.unwrap();
    let (reason, message) = bed.not_released(&[others]).await;
    assert_eq!(reason, "TOKENS_NOT_CANCELLED");
    assert!(message.contains("another volume"), "{message}");
    assert_eq!(bed.objects.all().len(), 2);
}

#[tokio::test]
async fn a_pod_that_lost_its_right_takes_no_shared_token_with_it_while_the_watch_is_late() {
    let mut bed = Bed::new().await;
    let own = bed.recorded("u-1", "n-1", Scope::Job).await;
    bed.objects.kept().by_name.values_mut().for_each(|object| {
        let mut others = object.clone();
        (others["spec"]["podUid"], others["metadata"]["uid"]) = (json!("u-2"), json!("o-2"));
        *object = others;
    });
    let object_of_others = bed.objects.all().remove(0);
    let name = own.name.to_string();
    bed.objects.kept().by_name.insert("others".to_owned(), object_of_others);
    bed.objects.kept().by_name.get_mut(&name).unwrap()["spec"]["podUid"] = json!("u-1");
    bed.falls_behind().await;
    bed.pod(|pod| pod["status"]["phase"] = json!("Failed"));
    let token = wire::Token {
        identifier: own.identifier().unwrap().to_vec(),
        kind: "HDFS_DELEGATION_TOKEN".to_owned(),
        ..Default::default()
    };
    let answer = bed.client().await.check(check(&token, None)).await.unwrap();
    assert_eq!(revoked(answer), "POD_FINISHED");
    assert_eq!(bed.name_node.cancelled(), 0, "cancelled, although another pod has it");
    let kept = bed.objects.kept();
    let deleted = |name: &str| kept.by_name[name]["metadata"].get("deletionTimestamp").is_some();
    assert!(deleted(&name) && !deleted("others"));
}

#[tokio::test]
async fn a_token_that_is_not_cancelled_stays_in_the_ledger() {
    let bed = Bed::new().await;
    bed.recorded("u-1", "n-1", Scope::Pod).await;
    bed.name_node.cancel_errors.lock().unwrap().push_back(crate::cluster::scripted::denied());
    let (reason, message) = bed.not_released(&[]).await;
    assert_eq!((reason.as_str(), bed.objects.all().len()), ("TOKENS_NOT_CANCELLED", 1), "{message}");
    bed.client().await.release(release(&[])).await.unwrap();
    assert_eq!((bed.name_node.cancelled(), bed.objects.all().len()), (1, 0));
}

#[tokio::test]
async fn a_release_is_asked_for_again_while_the_ledger_cannot_be_written() {
    let bed = Bed::new().await;
    bed.recorded("u-1", "n-1", Scope::Pod).await;
    bed.objects.kept().refuse_patch = Some(StatusCode::SERVICE_UNAVAILABLE);
    let status = bed.client().await.release(release(&[])).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    bed.objects.kept().refuse_patch = None;
    bed.client().await.release(release(&[])).await.unwrap();
    assert!(bed.objects.all().is_empty());
}

#[tokio::test]
async fn nothing_is_released_before_the_ledger_is_known() {
    let mut bed = Bed::new().await;
    let token = bed.recorded("u-2", "n-1", Scope::Pod).await;
    let unread = Ledger::new(bed.objects.client(), TaskTracker::new());
    bed.change(|service| service.ledger = unread);
    let (reason, message) = bed.not_released(&[token.identifier().unwrap()]).await;
    assert_eq!(reason, "LEDGER_UNREADABLE", "{message}");
}
