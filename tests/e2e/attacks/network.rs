//! Attackers on the network: names and addresses used again, the node's network, a way without TLS, a server in the
//! controller's place, a flood.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use bed::{Bed, host::NODE_IP, product::CONTROLLER, token_service::volume};
use proto::token::v1::IssueRequest;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use super::stage::{Lair, Prey, Stage, VOLUME, draft, refused, sealed};
use crate::GONE_LIMIT;

/// How an HTTP/2 client begins when nothing protects it.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
/// First byte of a TLS record with an alert.
const ALERT: u8 = 21;
const FLOOD: usize = 300;

pub(super) async fn a6_a_name_used_again_is_another_pod(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let lair = Lair::of(&stage).await?;
    let key = bed.kubernetes().sealing_key();
    let first = lair.create(&sealed(key, draft("worker"), "ads")?).await?;
    let answer = lair.caller().clone().issue(first.issue()).await?.into_inner();
    lair.caller().clone().release(first.release(answer)).await?;
    lair.forget(&first).await?;
    let gone = ("the token of a pod that is gone", first.clone());
    let second = lair.create(&sealed(key, draft("worker"), "etl")?).await?;
    let before = stage.issued()?;
    for (what, shown, reasons) in [
        gone,
        ("the new pod's token under the old UID", Prey { uid: first.uid.clone(), ..second.clone() }),
        ("the old pod's token under the new UID", Prey { jwt: first.jwt.clone(), ..second.clone() }),
    ]
    .map(|(what, shown)| (what, shown, "POD_TOKEN_REJECTED|POD_TOKEN_OF_ANOTHER_POD|POD_REPLACED"))
    {
        refused(lair.caller(), shown.issue(), what, reasons).await?;
    }
    ensure!(stage.issued()? == before, "a token was issued all the same");
    lair.forget(&second).await?;
    lair.leave().await
}

pub(super) async fn a7_a_pod_in_the_nodes_network_gets_nothing(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let draft = draft("on-the-node").set("/spec/hostNetwork", json!(true));
    let draft = sealed(bed.kubernetes().sealing_key(), draft, "etl")?;
    let pod = bed.kubernetes().create_as(stage.users.etl.clone(), &draft).await?;
    stage.pod_refused(&pod, "HOST_NETWORK_NOT_ALLOWED", 0).await?;
    pod.delete(GONE_LIMIT).await?;
    stage.ends().await
}

pub(super) async fn a11_neither_cleartext_nor_a_stranger_in_the_controllers_place_sees_a_token(
    bed: &Bed,
) -> Result<()> {
    let stage = Stage::set(bed).await?;
    // Whoever speaks HTTP/2 without TLS hears an alert at most.
    let mut plain = TcpStream::connect(CONTROLLER).await?;
    plain.write_all(PREFACE).await?;
    let mut heard = Vec::new();
    plain.read_to_end(&mut heard).await?;
    ensure!(heard.first().is_none_or(|byte| *byte == ALERT), "it answered {heard:x?}");

    let stranger = Stranger::new().await?;
    let product = bed.product().await?;
    let file = product.overlay().join("driver.yaml");
    let original = fs::read_to_string(&file)?;
    let mut redirected: Value = serde_json::from_str(&original)?;
    let address = redirected.pointer_mut("/controller/address").context("no address")?;
    *address = json!(format!("controller.bed.test:{}", stranger.port));
    fs::write(&file, redirected.to_string())?;
    let outcome = async {
        product.apply().await?;
        product.until_ready().await?;
        let draft = sealed(bed.kubernetes().sealing_key(), draft("misled"), "etl")?;
        let pod = bed.kubernetes().create_as(stage.users.etl.clone(), &draft).await?;
        let event = pod.until_event("[CONTROLLER_UNREACHABLE]", GONE_LIMIT).await?;
        ensure!(event.contains("UnknownIssuer"), "{event}");
        pod.delete(GONE_LIMIT).await
    };
    let outcome = outcome.await;
    fs::write(&file, original)?;
    product.apply().await?;
    product.until_ready().await?;
    outcome?;
    let met = stranger.met();
    ensure!(!met.is_empty(), "nobody came by");
    for end in met {
        ensure!(end.contains("UnknownCA"), "somebody went on to speak to a stranger: {end}");
    }
    ensure!(stage.issued()? == 0, "a token was issued all the same");
    stage.ends().await
}

/// A server with a certificate of its own making for the controller's name. Notes how each caller left.
struct Stranger {
    port: u16,
    met: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Stranger {
    async fn new() -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(vec!["controller.bed.test".to_owned()])?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        let (acceptor, listener) =
            (TlsAcceptor::from(Arc::new(config)), TcpListener::bind((NODE_IP, 0)).await?);
        let (port, met) = (listener.local_addr()?.port(), Arc::new(Mutex::new(Vec::new())));
        let ends = met.clone();
        let task = tokio::spawn(async move {
            while let Ok((caller, _)) = listener.accept().await {
                let (acceptor, ends) = (acceptor.clone(), ends.clone());
                tokio::spawn(async move {
                    let end = match acceptor.accept(caller).await {
                        Err(error) => format!("{error:?}"),
                        Ok(mut tls) => {
                            let mut said = vec![0; 4096];
                            match tls.read(&mut said).await {
                                Ok(length) => format!("said {length} bytes"),
                                Err(error) => format!("{error:?}"),
                            }
                        }
                    };
                    ends.lock().unwrap_or_else(PoisonError::into_inner).push(end);
                });
            }
        });
        Ok(Self { port, met, task })
    }

    fn met(&self) -> Vec<String> {
        self.met.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(super) async fn a14_a_flood_of_strangers_costs_the_api_server_nothing(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let reviews = async || -> Result<f64> {
        let request = http::Request::get("/metrics").body(Vec::new())?;
        let metrics = bed.kubernetes().client().request_text(request).await?;
        let counts = metrics.lines().filter(|line| {
            line.starts_with("apiserver_request_total{") && line.contains(r#"resource="tokenreviews""#)
        });
        counts.map(|line| Ok(line.rsplit(' ').next().unwrap_or_default().parse::<f64>()?)).sum()
    };
    let before = reviews().await?;
    let strange = |number: usize| IssueRequest {
        volume: Some(volume(&format!("namespace-{number}"), &format!("pod-{number}"), "u", VOLUME)),
        pod_token: "x".repeat(1000),
        ..IssueRequest::default()
    };
    let caller = stage.service.with_nothing();
    for number in 0..FLOOD {
        refused(&caller, strange(number), "a stranger", "DRIVER_TOKEN_MISSING").await?;
    }
    ensure!(reviews().await? - before < 10.0, "strangers made the API server review tokens");
    // A name that looks like a record of its own stays in its line, whoever writes it.
    let product = bed.product().await?;
    for line in product.controller().await?.logs().await?.lines() {
        let parsed: Result<Value, _> = serde_json::from_str(line);
        ensure!(parsed.is_ok_and(|line| line.is_object()), "a line of the log is no record: {line:?}");
    }
    product.until_ready().await?;
    ensure!(stage.issued()? == 0);
    stage.ends().await
}
