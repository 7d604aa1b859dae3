//! Whoever submitted a pod reads in its events why it has no token and what to change, and reads it once.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    harness::Test,
    pod::{Draft, Running},
    process::until,
};
use k8s_openapi::api::events::v1::Event;
use kube::{Api, api::ListParams};

use crate::GONE_LIMIT;

const CONTROLLER: &str = "hadoop-token.csi/controller";
const EVENT_LIMIT: Duration = Duration::from_secs(30);
/// As often kubelet tries to mount the volume before the events are counted.
const ATTEMPTS: i32 = 4;

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![a_refused_pod_has_one_event_that_tells_the_reason_however_often_it_asks]
}

async fn a_refused_pod_has_one_event_that_tells_the_reason_however_often_it_asks(bed: &Bed) -> Result<()> {
    bed.product().await?;
    let pod = bed.kubernetes().create(&Draft::new("denied").token_of("hdfs")).await?;
    let event = until("there: the controller's event", EVENT_LIMIT, async || {
        let mut events = of(bed, &pod).await?;
        events.pop().context("no event of the controller")
    })
    .await?;
    ensure!(event.reason.as_deref() == Some("USER_DENIED"), "{event:?}");
    ensure!(event.type_.as_deref() == Some("Warning"), "{event:?}");
    ensure!(event.note.as_deref().is_some_and(|note| note.contains("hdfs")), "{event:?}");
    let regarding = event.regarding.clone().unwrap_or_default();
    ensure!(regarding.uid == Some(pod.uid().await?), "{event:?}");
    until("tried again: the mount", GONE_LIMIT, async || {
        let attempts = attempts(bed, &pod).await?;
        ensure!(attempts >= ATTEMPTS, "{attempts} attempts");
        Ok(())
    })
    .await?;
    let events = of(bed, &pod).await?;
    ensure!(events.len() == 1, "{events:?}");
    pod.delete(GONE_LIMIT).await
}

fn events(bed: &Bed) -> Api<Event> {
    Api::namespaced(bed.kubernetes().client(), "default")
}

/// The controller's events about the pod.
async fn of(bed: &Bed, pod: &Running) -> Result<Vec<Event>> {
    let about = ListParams::default().fields(&format!("regarding.name={}", pod.name()));
    let mut found = events(bed).list(&about).await?.items;
    found.retain(|event| event.reporting_controller.as_deref() == Some(CONTROLLER));
    Ok(found)
}

/// How often kubelet says that it could not mount the volume.
async fn attempts(bed: &Bed, pod: &Running) -> Result<i32> {
    let about = ListParams::default().fields(&format!("regarding.name={},reason=FailedMount", pod.name()));
    let found = events(bed).list(&about).await?.items.into_iter();
    Ok(found.map(|event| event.deprecated_count.unwrap_or(1)).sum())
}
