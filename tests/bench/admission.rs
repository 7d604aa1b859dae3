//! How long a review takes and what the webhook takes of memory at a steady load, against the smallest webhook in Go that
//! writes a name into a pod (`admission_peer`); and what a user waits for a pod with a token longer than for one of
//! which nobody is asked.

mod load;
mod reviews;

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bed::{
    Bed,
    pod::{Draft, Running},
    process::{Footprint, processes_of, until},
    progress::phase,
    users::{JOBS, Users},
    webhook::{PROGRAM, REGISTRATIONS},
};
use identity::DRIVER_NAME;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config,
    api::{DeleteParams, PostParams},
};
use nix::unistd::Pid;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};
use tokio::time::Instant;

use self::{
    load::{Figures, run},
    reviews::{Class, Reviews},
};
use crate::report::Report;

const RUNS: usize = 3;
/// Pods that are really created, of each kind.
const CREATED: usize = 300;
const PEER: &str = "admission-peer";
/// Name on the peer's certificate.
const PEER_NAME: &str = "admission-peer.bed.test";
const OUR_NAME: &str = "hadoop-token-csi-webhook.hadoop-token-csi.svc";
const PORT: u16 = 9444;
const READY_LIMIT: Duration = Duration::from_secs(60);
const GONE_LIMIT: Duration = Duration::from_secs(60);

/// A webhook that is measured.
struct Side {
    client: Client,
    pid: Pid,
}

pub(crate) async fn measure(bed: &Bed, report: &mut Report) -> Result<()> {
    let users = Users::of(bed.kubernetes()).await?;
    let ours = ours(bed).await?;
    let (peer, pod) = peer(bed).await?;
    let reviews = phase("Collecting reviews", Reviews::collect(bed, &users.etl)).await?;
    let (mut our_runs, mut peer_runs) = (Vec::new(), Vec::new());
    phase("Measuring reviews", async {
        for _ in 0..RUNS {
            our_runs.push(run(&ours.client, ours.pid, &reviews).await.context("ours failed")?);
            peer_runs.push(run(&peer.client, peer.pid, &reviews).await.context("the peer failed")?);
        }
        Ok(())
    })
    .await?;
    pod.delete(GONE_LIMIT).await?;
    let mut add = |name: String, unit, of: &dyn Fn(&Figures) -> f64| {
        let column = |runs: &[Figures]| runs.iter().map(of).collect::<Vec<_>>();
        report.add(name, unit, &column(&our_runs), &column(&peer_runs));
    };
    for class in Class::ALL {
        for (word, of_hundred) in [("p50", 50), ("p99", 99)] {
            let of = move |figures: &Figures| figures.quantile(class, of_hundred);
            add(format!("review_{}_{word}", class.name()), "ms", &of);
        }
    }
    add("review_cpu".to_owned(), "ms/review", &|figures| figures.cpu_ms);
    add("webhook_rss".to_owned(), "MiB", &|figures| figures.rss_mib);
    phase("Creating pods with and without the volume", created(&users.etl, report)).await
}

/// The webhook as it is installed.
async fn ours(bed: &Bed) -> Result<Side> {
    let webhook = bed.webhook().await?;
    let [mutating, _] = REGISTRATIONS;
    let registration = webhook.registration(mutating).await?;
    let bundle = registration.pointer("/webhooks/0/clientConfig/caBundle").and_then(Value::as_str);
    let bundle = BASE64_STANDARD.decode(bundle.context("no caBundle")?)?;
    let pods = webhook.pods().await?;
    let [pod] = pods.as_slice() else { anyhow::bail!("there are {} replicas", pods.len()) };
    Ok(Side { client: client(pod, &bundle, OUR_NAME).await?, pid: pid(PROGRAM)? })
}

/// The peer, in a pod as ours is.
async fn peer(bed: &Bed) -> Result<(Side, Running)> {
    let authority = bed.kubernetes().authority();
    let identity = authority.server(PEER, &[PEER_NAME])?;
    let keys = identity.key.parent().context("no folder")?.display().to_string();
    let program = bed.tools().peers.display().to_string();
    let draft = Draft::new(PEER)
        .host_path("program", &program, "/peer")
        .host_path("keys", &keys, "/keys")
        .command(&[
            &format!("/peer/{PEER}"),
            &format!("-listen=:{PORT}"),
            &format!("-certificate=/keys/{PEER}.crt"),
            &format!("-key=/keys/{PEER}.key"),
        ]);
    let pod = bed.kubernetes().run(&draft).await?;
    let client = client(&pod, &fs::read(authority.file())?, PEER_NAME).await?;
    until("answering: the peer", READY_LIMIT, async || {
        let request = http::Request::post("/mutate").body(Vec::new())?;
        let refused = client.request_text(request).await.err().context("it answers to nothing")?;
        ensure!(matches!(refused, kube::Error::Api(_)), "{refused}");
        Ok(())
    })
    .await?;
    Ok((Side { client, pid: pid(PEER)? }, pod))
}

fn pid(program: &str) -> Result<Pid> {
    match processes_of(program)?.as_slice() {
        [pid] => Ok(*pid),
        other => anyhow::bail!("{program} is run by {other:?}"),
    }
}

/// Speaks to a webhook as API servers do: HTTP/1.1, on connections that are kept, as many as there are reviews at a time.
async fn client(pod: &Running, authorities: &[u8], name: &str) -> Result<Client> {
    let status = pod.get().await?.status.context("a pod without a status")?;
    let address = status.pod_ip.context("a pod without an address")?;
    let authorities = CertificateDer::pem_slice_iter(authorities).collect::<Result<Vec<_>, _>>()?;
    let mut config = Config::new(format!("https://{address}:{PORT}").parse()?);
    config.root_cert = Some(authorities.iter().map(|authority| authority.to_vec()).collect());
    config.tls_server_name = Some(name.to_owned());
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

/// Creates pods that nobody starts, by turns with the volume and with an emptyDir in its place.
async fn created(etl: &Client, report: &mut Report) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(etl.clone(), JOBS);
    let sides = [
        json!({"name": "token", "csi": {"driver": DRIVER_NAME, "readOnly": true}}),
        json!({"name": "token", "emptyDir": {}}),
    ];
    let mut times = [Vec::new(), Vec::new()];
    for number in 0..CREATED + 20 {
        for (side, times) in sides.iter().zip(&mut times) {
            let name = format!("created-{number}");
            let pod = serde_json::from_value(waiting(&name, side))?;
            let begun = Instant::now();
            pods.create(&PostParams::default(), &pod).await?;
            let time = begun.elapsed();
            pods.delete(&name, &DeleteParams::default()).await?;
            if number >= 20 {
                times.push(time.as_secs_f64() * 1e3);
            }
        }
    }
    for (word, of_hundred) in [("p50", 50), ("p99", 99)] {
        let [with, without] = times.each_ref().map(|times| load::quantile(times, of_hundred));
        report.add(format!("pod_create_{word}"), "ms", &[with], &[without]);
    }
    Ok(())
}

/// A pod with that volume that nobody will start.
fn waiting(name: &str, volume: &Value) -> Value {
    let draft = Draft::new(name)
        .namespace(JOBS)
        .set("/spec/automountServiceAccountToken", json!(true))
        .set("/spec/schedulingGates", json!([{"name": "bed.test/never"}]))
        .push("/spec/volumes", volume.clone())
        .push(
            "/spec/containers/0/volumeMounts",
            json!({"name": "token", "mountPath": "/etc/hadoop-token", "readOnly": true}),
        );
    draft.json().clone()
}

/// Resident memory in MiB.
fn resident(pid: Pid) -> Result<f64> {
    let kibibytes = u32::try_from(Footprint::of(pid)?.resident_kib)?;
    Ok(f64::from(kibibytes) / 1024.0)
}
