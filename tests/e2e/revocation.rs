//! Who deletes a `DelegationToken` takes the token away: from the NameNode, and out of the pod.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    harness::Test,
    namenode::TokenAction,
    pod::{Draft, Running, TOKEN_FILE, VOLUME},
    process::until,
    product::NAMESPACE,
    reading::token_file,
};
use identity::DRIVER_NAME;
use kube::{ResourceExt, api::DeleteParams};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    GONE_LIMIT,
    objects::{number, objects, of_pod, text, the_one_of},
    promptness::{Cancels, Times},
    tally::Tally,
};

const PODS: usize = 3;
const VOLUMES: usize = 10;
/// From the deletion to the end of the file, and of the token.
const WIPED: Duration = Duration::from_secs(1);
const UNKNOWN: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(20);
/// Until a node hears of it that has tried in vain to listen for a while: it waits half a minute before it tries again.
const HEARD_LIMIT: Duration = Duration::from_secs(60);
const PROBE_PAUSE: Duration = Duration::from_millis(1);
const DRIVER: &str = "daemonset/hadoop-token-csi-driver";

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![
        a_revoked_token_is_wiped_within_a_second_and_unknown_within_two,
        a_token_revoked_while_the_node_plugin_was_away_is_wiped_when_it_is_back,
        a_token_revoked_while_the_controller_was_away_is_wiped_and_cancelled_when_it_is_back,
    ]
}

async fn a_revoked_token_is_wiped_within_a_second_and_unknown_within_two(bed: &Bed) -> Result<()> {
    // Its volume keeps the node's stream open.
    let listening = until_heard(bed, "revoked-first").await?;
    let (tally, cancels) = (Tally::begin(bed.main()).await?, Cancels::follow(bed.main())?);
    let (mut wiped, mut unknown) = (Times::default(), Times::default());
    let mut pods = Vec::new();
    for number in 0..PODS {
        let pod = bed.kubernetes().run(&of_many_volumes(&format!("revoked-{number}"))).await?;
        revoke_all(bed, &pod, &cancels, &mut wiped, &mut unknown).await?;
        pods.push(pod);
    }
    wiped.within("from revoking a token to the end of its file", WIPED)?;
    unknown.within("from revoking a token to its end at the NameNode", UNKNOWN)?;
    for pod in &pods {
        is_told_why(pod).await?;
    }
    tally.ends_after(&pods).await?;
    let issued = tally.events(TokenAction::Issued)?.len();
    ensure!(issued == PODS * VOLUMES, "{issued} tokens: who lost one got another");
    for pod in &pods {
        ensure!(pod.get().await.is_err(), "pod {} is still there", pod.name());
    }
    listening.delete(GONE_LIMIT).await
}

/// A pod that has lost its token: somebody leads, and the node listens, which may both take a while after another test
/// took the controller away.
async fn until_heard(bed: &Bed, name: &str) -> Result<Running> {
    let cancels = Cancels::follow(bed.main())?;
    let pod = bed.kubernetes().run(&Draft::new(name).token_of("etl")).await?;
    let uid = pod.uid().await?;
    let object = the_one_of(bed, &uid).await?;
    let objects = objects(bed.kubernetes().client(), "default");
    objects.delete(&object.name_any(), &DeleteParams::default()).await?;
    cancels.until(number(&object)?, HEARD_LIMIT).await?;
    until_wiped(&token_file(&uid, VOLUME)).await?;
    Ok(pod)
}

async fn until_wiped(file: &Path) -> Result<()> {
    until("wiped: the file", HEARD_LIMIT, async || {
        ensure!(!file.exists(), "it is still there");
        Ok(())
    })
    .await
}

async fn revoke_all(
    bed: &Bed,
    pod: &Running,
    cancels: &Cancels,
    wiped: &mut Times,
    unknown: &mut Times,
) -> Result<()> {
    let uid = pod.uid().await?;
    let found = of_pod(bed, &uid).await?;
    ensure!(found.len() == VOLUMES, "{} objects of {VOLUMES} volumes", found.len());
    let objects = objects(bed.kubernetes().client(), "default");
    for object in found {
        let volume = text(&object, "/spec/volume").context("no volume")?;
        let file = token_file(&uid, volume);
        fs::metadata(&file).with_context(|| format!("before it is revoked: {}", file.display()))?;
        let began = Instant::now();
        objects.delete(&object.name_any(), &DeleteParams::default()).await?;
        while file.exists() {
            ensure!(began.elapsed() < LIMIT, "{} is still there after {LIMIT:?}", file.display());
            tokio::time::sleep(PROBE_PAUSE).await;
        }
        wiped.push(began.elapsed());
        let cancel = cancels.until(number(&object)?, LIMIT).await?;
        unknown.push(cancel.at - began);
    }
    until("gone: the objects", LIMIT, async || {
        let left = of_pod(bed, &uid).await?;
        ensure!(left.is_empty(), "{} are left", left.len());
        Ok(())
    })
    .await
}

async fn a_token_revoked_while_the_node_plugin_was_away_is_wiped_when_it_is_back(bed: &Bed) -> Result<()> {
    let (tally, product) = (Tally::begin(bed.main()).await?, bed.product().await?);
    let cancels = Cancels::follow(bed.main())?;
    let pod = bed.kubernetes().run(&Draft::new("revoked-alone").token_of("etl")).await?;
    let object = the_one_of(bed, &pod.uid().await?).await?;
    let file = token_file(&pod.uid().await?, VOLUME);
    select_nodes(bed, &json!("none")).await?;
    let away = async {
        until("gone: the node plugin", LIMIT, async || {
            ensure!(product.driver().await.is_err(), "it is there");
            Ok(())
        })
        .await?;
        let objects = objects(bed.kubernetes().client(), "default");
        objects.delete(&object.name_any(), &DeleteParams::default()).await?;
        cancels.until(number(&object)?, LIMIT).await?;
        ensure!(file.exists(), "who has wiped it?");
        Ok(())
    };
    let away = away.await;
    select_nodes(bed, &json!(null)).await?;
    product.until_ready().await?;
    away?;
    until_wiped(&file).await?;
    is_told_why(&pod).await?;
    tally.ends_after(&[pod]).await
}

async fn a_token_revoked_while_the_controller_was_away_is_wiped_and_cancelled_when_it_is_back(
    bed: &Bed,
) -> Result<()> {
    let (tally, product) = (Tally::begin(bed.main()).await?, bed.product().await?);
    let cancels = Cancels::follow(bed.main())?;
    let pod = bed.kubernetes().run(&Draft::new("revoked-unheard").token_of("etl")).await?;
    let object = the_one_of(bed, &pod.uid().await?).await?;
    let file = token_file(&pod.uid().await?, VOLUME);
    product.stop_controller().await?;
    let away = async {
        let objects = objects(bed.kubernetes().client(), "default");
        objects.delete(&object.name_any(), &DeleteParams::default()).await?;
        ensure!(file.exists() && cancels.of(number(&object)?).is_empty(), "who has heard of it?");
        let kept = objects.get(&object.name_any()).await.context("the object is gone before its token")?;
        ensure!(kept.metadata.deletion_timestamp.is_some(), "it is not being deleted: {kept:?}");
        Ok(())
    };
    let away = away.await;
    product.start_controller().await?;
    away?;
    cancels.until(number(&object)?, LIMIT).await?;
    until_wiped(&file).await?;
    is_told_why(&pod).await?;
    tally.ends_after(&[pod]).await
}

/// The pod runs on, without a token; `token.json` and an event say why.
async fn is_told_why(pod: &Running) -> Result<()> {
    let gone = pod.exec(&["cat", TOKEN_FILE]).await?.failure()?;
    ensure!(gone.contains("No such file"), "{gone}");
    until("told: why there is no token", LIMIT, async || {
        let told = pod.exec(&["cat", "/etc/hadoop-token/token.json"]).await?.success()?;
        ensure!(told.contains("TOKEN_REVOKED"), "token.json says {told}");
        Ok(())
    })
    .await?;
    pod.until_event("TOKEN_REVOKED", GONE_LIMIT).await.map(drop)
}

/// A pod with [`VOLUMES`] token volumes.
fn of_many_volumes(name: &str) -> Draft {
    (1..VOLUMES).fold(Draft::new(name).token_of("etl"), |draft, number| {
        let volume = format!("{VOLUME}-{number}");
        let mount =
            json!({"name": volume, "mountPath": format!("/etc/hadoop-token-{number}"), "readOnly": true});
        draft
            .push("/spec/volumes", json!({"name": volume, "csi": {"driver": DRIVER_NAME, "readOnly": true}}))
            .push("/spec/containers/0/volumeMounts", mount)
    })
}

/// Has the node plugin run only on nodes with a label that none has, or, with null, on all again.
async fn select_nodes(bed: &Bed, label: &serde_json::Value) -> Result<()> {
    let patch = json!({"spec": {"template": {"spec": {"nodeSelector": {"bed/on": label}}}}});
    let kubectl = bed.kubernetes().kubectl().args(["--namespace", NAMESPACE, "patch", DRIVER, "--patch"]);
    kubectl.arg(patch.to_string()).succeed().await.map(drop)
}
