//! Reviews that no API server has sent. Whoever reaches the webhook's port may post what he likes, and is answered; no
//! seal that he gets so is of use to him. Where API servers have certificates he is not even answered.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bed::{
    Bed,
    product::NAMESPACE,
    users::{JOBS, Users},
    webhook::{BUNDLE, REGISTRATIONS, Webhook},
};
use identity::{GROUPS_ANNOTATION, SEAL_ANNOTATION, SUBMITTER_ANNOTATION};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::{TLS_FOLDER, TLS_SECRET, draft, forget_tls, keys_of, set};
use crate::GONE_LIMIT;

const PORT: u16 = 9444;
const HOST: &str = "hadoop-token-csi-webhook.hadoop-token-csi.svc";

pub(super) async fn a_seal_that_the_webhook_was_tricked_into_is_of_no_use(bed: &Bed) -> Result<()> {
    let (webhook, users) = (bed.webhook().await?, Users::of(bed.kubernetes()).await?);
    let wanted = draft("forged");
    let answer = post(webhook, &review(wanted.json(), "etl")).await?;
    let stamps = stamps(&answer)?;
    let seal = stamps.get(SEAL_ANNOTATION).context("no seal")?.as_str().context("no text")?;
    let forged = keys_of(webhook)?.verify(seal).context("the forged seal is none")?;
    ensure!(forged.submitter == "etl", "sealed for {}", forged.submitter);

    let draft =
        [SUBMITTER_ANNOTATION, GROUPS_ANNOTATION, SEAL_ANNOTATION].into_iter().fold(wanted, |draft, name| {
            draft.annotation(name, stamps.get(name).and_then(Value::as_str).unwrap_or_default())
        });
    let pod = bed.kubernetes().create_as(users.intruder.clone(), &draft).await?;
    let annotations = pod.get().await?.metadata.annotations.unwrap_or_default();
    ensure!(annotations.get(SUBMITTER_ANNOTATION).is_some_and(|name| name == "intruder"), "{annotations:?}");
    let sealed = keys_of(webhook)?.verify(annotations.get(SEAL_ANNOTATION).context("no seal")?)?;
    ensure!(sealed.submitter == "intruder", "sealed for {}", sealed.submitter);
    pod.delete(GONE_LIMIT).await
}

pub(super) async fn where_api_servers_have_certificates_nobody_else_is_answered(bed: &Bed) -> Result<()> {
    let webhook = bed.webhook().await?;
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": TLS_SECRET, "namespace": NAMESPACE},
        "stringData": {"client-ca.crt": bed.kubernetes().authority().pem()},
    });
    bed.kubernetes().apply(&secret.to_string()).await?;
    let asking = |configuration: &mut Value| {
        let authority = format!("{TLS_FOLDER}/client-ca.crt");
        set(configuration, "certificate", json!({"selfManaged": {"clientAuthority": authority}}));
    };
    // That it becomes ready says that the API server is answered.
    let outcome = webhook
        .with_configuration(asking, async || {
            let answer = post(webhook, &review(draft("forged").json(), "etl")).await;
            ensure!(answer.is_err(), "answered: {}", answer.unwrap_or_default());
            Ok(())
        })
        .await;
    outcome.and(forget_tls(bed).await)
}

/// What an API server would send if `user` created this pod.
fn review(pod: &Value, user: &str) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "1",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "name": pod.pointer("/metadata/name"),
            "namespace": JOBS,
            "operation": "CREATE",
            "userInfo": {"username": user, "groups": ["system:authenticated"]},
            "object": pod,
            "oldObject": null,
            "dryRun": true,
        },
    })
}

/// The annotations that the answer writes.
fn stamps(answer: &Value) -> Result<serde_json::Map<String, Value>> {
    let patch = answer.pointer("/response/patch").and_then(Value::as_str);
    let patch = patch.with_context(|| format!("there is no patch: {answer}"))?;
    let patch: Vec<Value> = serde_json::from_slice(&BASE64_STANDARD.decode(patch)?)?;
    let mut found = serde_json::Map::new();
    for operation in &patch {
        let path = operation.get("path").and_then(Value::as_str).unwrap_or_default();
        let Some(rest) = path.strip_prefix("/metadata/annotations") else { continue };
        let value = operation.get("value").cloned().unwrap_or_default();
        match (rest.strip_prefix('/'), value) {
            (Some(key), value) => drop(found.insert(key.replace("~1", "/").replace("~0", "~"), value)),
            (None, Value::Object(all)) => found.extend(all),
            (None, _) => {}
        }
    }
    Ok(found)
}

/// Posts to its one replica, past every Service, without a certificate.
async fn post(webhook: &Webhook, review: &Value) -> Result<Value> {
    let pods = webhook.pods().await?;
    let [pod] = pods.as_slice() else { anyhow::bail!("there are {} replicas", pods.len()) };
    let address = pod.get().await?.status.and_then(|status| status.pod_ip).context("it has no address")?;
    let mut roots = RootCertStore::empty();
    for kind in REGISTRATIONS {
        for entry in webhook.entries(kind).await? {
            let bundle = entry.pointer(BUNDLE).and_then(Value::as_str).context("no bundle")?;
            for authority in CertificateDer::pem_slice_iter(&BASE64_STANDARD.decode(bundle)?) {
                roots.add(authority?)?;
            }
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connection = TcpStream::connect((address.as_str(), PORT)).await?;
    let name = ServerName::try_from(HOST)?;
    let mut connection = TlsConnector::from(Arc::new(config)).connect(name, connection).await?;
    let body = review.to_string();
    let head = format!(
        "POST /mutate HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes()).await?;
    connection.write_all(body.as_bytes()).await?;
    connection.flush().await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").context("there is no body")?;
    Ok(serde_json::from_str(body)?)
}
