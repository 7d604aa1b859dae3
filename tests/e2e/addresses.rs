//! Addresses of real pods, as API server and node see them: verified for every pod, before its first token where that
//! is wanted, and the end of the token where the two do not agree.

use std::{collections::BTreeSet, fs, net::IpAddr, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    harness::Test,
    host::{KUBELET, NODE_IP},
    image,
    namenode::{Cluster, private_content},
    pod::{Draft, Running, TOKEN_FILE},
    process::until,
};
use proto::{DRIVER_NAME, VolumeId};
use serde_json::{Value, json};

use crate::{
    GONE_LIMIT,
    publish::{Token, Volume},
};

/// From a running pod to verified addresses.
const VERIFIED_LIMIT: Duration = Duration::from_secs(60);
/// The controller lets API server and node differ for a while first.
const REVOKED_LIMIT: Duration = Duration::from_secs(90);

const DRIVER_IMAGE: &str = "hadoop-token-csi/driver";

/// An address that the bed gives to nobody while tests run.
const FOREIGN: &str = "10.244.0.253";
const VOLUME: &str = "hadoop-token";
const WAITING: &str = "wait";

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![
        a_pods_addresses_are_verified_and_remembered,
        a_pod_that_moved_to_another_address_loses_its_token_and_reads_why,
        an_address_that_a_finished_pod_had_is_no_false_alarm,
        host_network_is_refused_and_where_it_is_allowed_the_nodes_addresses_are_verified,
        where_it_is_strict_an_init_container_waits_until_the_address_is_verified,
    ]
}

async fn a_pods_addresses_are_verified_and_remembered(bed: &Bed) -> Result<()> {
    bed.product().await?;
    let pod = bed.kubernetes().run(&Draft::new("addressed").token_of("etl")).await?;
    let verified = until_verified(&pod).await?;
    ensure!(verified == addresses(&pod).await?, "verified {verified:?}");
    let token = Token::of(bed, &pod)?;
    bed.product().await?.restart_driver().await?;
    ensure!(record(&pod).await?.pointer("/verifiedAddresses").is_some(), "a restart forgot them");
    token.is_live_and_the_only_one()?;
    pod.delete(GONE_LIMIT).await
}

async fn a_pod_that_moved_to_another_address_loses_its_token_and_reads_why(bed: &Bed) -> Result<()> {
    let product = bed.product().await?;
    let pod = bed.kubernetes().run(&moved(Draft::new("moved-away").token_of("etl"))).await?;
    let (token, folder) = (Token::of(bed, &pod)?, Volume::mounted_in(&pod).await?);
    token.until_cancelled_within(REVOKED_LIMIT).await?;
    let event = pod.until_event("ADDRESS_MISMATCH", GONE_LIMIT).await?;
    ensure!(event.contains(FOREIGN), "{event}");
    until("wiped: the volume", GONE_LIMIT, async || {
        let read = pod.exec(&["cat", TOKEN_FILE]).await?.failure()?;
        ensure!(read.contains("No such file"), "{read}");
        Ok(())
    })
    .await?;
    for generation in fs::read_dir(&folder.target)? {
        ensure!(!generation?.path().join("token").exists(), "a token is left in the volume");
    }
    let said = token_json(&pod).await?;
    ensure!(said.pointer("/stopped/reason") == Some(&json!("ADDRESS_MISMATCH")), "{said}");
    let uid = pod.uid().await?;
    let audited = |record: &Value| {
        [("/uid", uid.as_str()), ("/action", "revoke"), ("/decision", "granted")]
            .iter()
            .all(|(field, value)| record.pointer(field).and_then(Value::as_str) == Some(*value))
    };
    let audit = product.audit().await?;
    ensure!(audit.iter().any(audited), "not audited: {audit:?}");
    // Neither kubelet, which publishes again and again, nor a restart brings it back.
    product.restart_driver().await?;
    ensure!(folder.mounts()? == 1, "it is not mounted any more");
    ensure!(!folder.target.join("token").exists(), "the token is back");
    ensure!(record(&pod).await?.pointer("/phase") == Some(&json!("stopped")));
    pod.delete(GONE_LIMIT).await?;
    folder.until_unmounted().await
}

async fn an_address_that_a_finished_pod_had_is_no_false_alarm(bed: &Bed) -> Result<()> {
    bed.product().await?;
    let first = Draft::new("had-the-address").token_of("ads").script("true");
    let first = bed.kubernetes().create(&first).await?;
    first.until_succeeded(GONE_LIMIT).await?;
    let had = addresses(&first).await?;
    ensure!(!had.is_empty(), "the API server has forgotten the finished pod's address");
    until("given back: the address", GONE_LIMIT, async || {
        let free = had.iter().all(|address| !leases(bed).join(address.to_string()).exists());
        ensure!(free, "{had:?} is still taken");
        Ok(())
    })
    .await?;
    // The next address is the one after the last.
    let Some(IpAddr::V4(address)) = had.first() else { anyhow::bail!("{had:?} is not of IPv4") };
    let before = std::net::Ipv4Addr::from_bits(address.to_bits() - 1);
    fs::write(leases(bed).join("last_reserved_ip.0"), before.to_string())?;
    let second = bed.kubernetes().run(&Draft::new("has-the-address").token_of("etl")).await?;
    ensure!(addresses(&second).await? == had, "it has another address");
    ensure!(until_verified(&second).await? == had);
    Token::of(bed, &second)?.is_live_and_the_only_one()?;
    second.delete(GONE_LIMIT).await?;
    first.delete(GONE_LIMIT).await
}

async fn host_network_is_refused_and_where_it_is_allowed_the_nodes_addresses_are_verified(
    bed: &Bed,
) -> Result<()> {
    let product = bed.product().await?;
    let draft = |name: &str| Draft::new(name).token_of("etl").set("/spec/hostNetwork", json!(true));
    let refused = bed.kubernetes().create(&draft("on-the-nodes-network")).await?;
    refused.until_event("[HOST_NETWORK_NOT_ALLOWED]", GONE_LIMIT).await?;
    refused.delete(GONE_LIMIT).await?;
    let allow = |configuration: &mut Value| {
        if let Some(namespaces) = configuration.get_mut("namespaces").and_then(Value::as_object_mut) {
            namespaces.insert("rules".to_owned(), json!([{"names": ["*"], "hostNetwork": true}]));
        }
    };
    let allowed = async || {
        let pod = bed.kubernetes().run(&draft("allowed-there")).await?;
        let verified = until_verified(&pod).await?;
        ensure!(verified.contains(&NODE_IP.parse()?), "verified {verified:?}");
        Token::of(bed, &pod)?.is_live_and_the_only_one()?;
        pod.delete(GONE_LIMIT).await
    };
    product.with_controller(allow, allowed).await
}

async fn where_it_is_strict_an_init_container_waits_until_the_address_is_verified(bed: &Bed) -> Result<()> {
    let strict = |configuration: &mut Value| {
        if let Some(keys) = configuration.as_object_mut() {
            keys.insert("addressVerification".to_owned(), json!("strict"));
        }
    };
    let waited = async || {
        let pod = waiting(Draft::new("waited-for").token_of("etl").run_as(1000, Some(2000)));
        let pod = bed.kubernetes().run(&pod).await?;
        let log = log_of_wait(bed, &pod).await?;
        ensure!(log.contains("Waiting for ") && log.contains("The token is there, after "), "{log}");
        let read = pod.hdfs_native(Cluster::Main, &["cat", "/user/etl/private.txt"]).await?.success()?;
        ensure!(read == private_content(Cluster::Main, "etl"), "read {read:?}");
        ensure!(until_verified(&pod).await? == addresses(&pod).await?);
        let token = Token::of(bed, &pod)?;
        token.is_live_and_the_only_one()?;
        pod.delete(GONE_LIMIT).await?;
        token.until_cancelled().await?;

        let pod =
            bed.kubernetes().create(&waiting(moved(Draft::new("never-served").token_of("etl")))).await?;
        let failed = |pod: &k8s_openapi::api::core::v1::Pod| {
            pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Failed")
        };
        pod.until("at its end", REVOKED_LIMIT, failed).await?;
        let log = log_of_wait(bed, &pod).await?;
        ensure!(log.contains("There will be no token: ") && log.contains("[ADDRESS_MISMATCH]"), "{log}");
        pod.until_event("ADDRESS_MISMATCH", GONE_LIMIT).await?;
        ensure!(Token::of(bed, &pod).is_err(), "it got a token");
        pod.delete(GONE_LIMIT).await
    };
    bed.product().await?.with_controller(strict, waited).await
}

/// A pod that gives itself another address before its first process sees the volume.
fn moved(draft: Draft) -> Draft {
    let script = format!(
        "set -e
         device=$(busybox ip -o -4 address show scope global | busybox awk '{{print $2; exit}}')
         busybox ip address flush dev $device; busybox ip address add {FOREIGN}/24 dev $device"
    );
    let container = json!({
        "name": "move",
        "image": image::TOOLS,
        "imagePullPolicy": "Never",
        "command": ["busybox", "sh", "-c", script],
        "securityContext": {"runAsUser": 0, "capabilities": {"add": ["NET_ADMIN"]}},
    });
    draft.set("/spec/initContainers", json!([container]))
}

/// A pod whose first container waits for the token.
fn waiting(draft: Draft) -> Draft {
    let wait = json!({
        "name": WAITING,
        "image": format!("{DRIVER_IMAGE}:{}", env!("CARGO_PKG_VERSION")),
        "imagePullPolicy": "Never",
        "args": ["wait", "--volume=/etc/hadoop-token", "--timeout=2m"],
        "securityContext": {
            "runAsUser": 1000, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": VOLUME, "mountPath": "/etc/hadoop-token", "readOnly": true}],
    });
    if draft.json().pointer("/spec/initContainers").is_some() {
        return draft.push("/spec/initContainers", wait);
    }
    draft.set("/spec/initContainers", json!([wait]))
}

async fn log_of_wait(bed: &Bed, pod: &Running) -> Result<String> {
    bed.kubernetes().kubectl().args(["logs", pod.name(), "-c", WAITING]).succeed().await
}

/// The addresses that the API server has of a pod.
async fn addresses(pod: &Running) -> Result<BTreeSet<IpAddr>> {
    let status = pod.get().await?.status.unwrap_or_default();
    status.pod_ips.unwrap_or_default().into_iter().map(|address| Ok(address.ip.parse()?)).collect()
}

/// Waits until the node plugin has noted for which addresses of a pod its tokens are.
async fn until_verified(pod: &Running) -> Result<BTreeSet<IpAddr>> {
    until("verified: the pod's addresses", VERIFIED_LIMIT, async || {
        let record = record(pod).await?;
        let verified = record.pointer("/verifiedAddresses").and_then(Value::as_array);
        let verified = verified.filter(|list| !list.is_empty()).with_context(|| record.to_string())?;
        verified.iter().map(|text| Ok(text.as_str().context("no text")?.parse()?)).collect()
    })
    .await
}

/// The node plugin's record of a pod's volume.
async fn record(pod: &Running) -> Result<Value> {
    let id = VolumeId::of(&pod.uid().await?, VOLUME);
    let path = Path::new(KUBELET).join("plugins").join(DRIVER_NAME).join(format!("volumes/{id}.json"));
    let text = fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

async fn token_json(pod: &Running) -> Result<Value> {
    let text = pod.exec(&["cat", "/etc/hadoop-token/token.json"]).await?.success()?;
    Ok(serde_json::from_str(&text)?)
}

/// Where the network plugin notes which addresses are taken, and which it gave last.
fn leases(bed: &Bed) -> std::path::PathBuf {
    bed.state().join("kubernetes/addresses/bed")
}
