//! Between node plugin and controller: client certificates where they are asked for, and every certificate and
//! authority exchanged while both run.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    harness::Test,
    pki::{Authority, Identity},
    pod::{Draft, Running},
    process::until,
    product::Product,
    token_service::{TokenService, reason, volume},
};
use proto::token::v1::ReleaseRequest;
use serde_json::Value;

use crate::GONE_LIMIT;

/// The controller looks for new files every ten seconds.
const RELOAD_LIMIT: Duration = Duration::from_secs(40);

/// What the test changes in the overlay.
const FILES: [&str; 7] = [
    "driver.yaml",
    "ca.crt",
    "tls.crt",
    "tls.key",
    "client-ca.crt",
    "driver-tls/tls.crt",
    "driver-tls/tls.key",
];

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![certificates_and_authorities_are_exchanged_while_pods_start_and_nothing_restarts]
}

async fn certificates_and_authorities_are_exchanged_while_pods_start_and_nothing_restarts(
    bed: &Bed,
) -> Result<()> {
    let product = bed.product().await?;
    let overlay = product.overlay();
    let saved = FILES.map(|file| (overlay.join(file), fs::read(overlay.join(file))));
    let mut driver: Value = serde_json::from_slice(&fs::read(overlay.join("driver.yaml"))?)?;
    let controller = driver.pointer_mut("/controller").and_then(Value::as_object_mut);
    let controller = controller.context("driver.yaml names no controller")?;
    for (key, file) in [("certificate", "tls.crt"), ("key", "tls.key")] {
        controller.insert(key.to_owned(), format!("/etc/hadoop-token-csi-tls/{file}").into());
    }
    fs::write(overlay.join("driver.yaml"), driver.to_string())?;
    let wants_certificates = |configuration: &mut Value| {
        let file = "/etc/hadoop-token-csi-tls/client-ca.crt".into();
        let tls = configuration.pointer_mut("/tls").and_then(Value::as_object_mut);
        tls.map(|tls| tls.insert("clientAuthority".to_owned(), file));
    };
    let outcome = product.with_controller(wants_certificates, || exchange(bed, product)).await;
    for (file, content) in saved {
        fs::write(file, content?)?;
    }
    product.apply().await?;
    product.until_ready().await?;
    let (controller, driver) = (product.controller().await?, product.driver().await?);
    product.until_mounted(&mounted(&controller, &driver)).await?;
    until("as it was: the controller's certificate", RELOAD_LIMIT, async || {
        ensure!(gets_in(&bed.kubernetes().authority().file(), None).await?, "not yet");
        Ok(())
    })
    .await?;
    starts_a_pod(bed, "certified-after").await?;
    outcome
}

async fn exchange(bed: &Bed, product: &Product) -> Result<()> {
    let (controller, driver) = (product.controller().await?, product.driver().await?);
    let overlay = product.overlay();
    let old = bed.kubernetes().authority();
    let new = Authority::new(&bed.state().join("new-authority"))?;
    let caller = |authority: &Authority| authority.client("caller", "caller", None);
    let (old_caller, new_caller) = (caller(old)?, caller(&new)?);
    starts_a_pod(bed, "certified-first").await?;
    ensure!(gets_in(&old.file(), Some(&old_caller)).await?, "a caller with a right certificate is kept out");
    ensure!(!gets_in(&old.file(), None).await?, "a caller without a certificate is let in");
    ensure!(!gets_in(&old.file(), Some(&new_caller)).await?, "a caller of a strange authority is let in");

    // Both sides trust both authorities.
    let both = fs::read_to_string(old.file())? + new.pem();
    fs::write(overlay.join("ca.crt"), &both)?;
    fs::write(overlay.join("client-ca.crt"), &both)?;
    until_taken_up(product, &controller, &driver).await?;
    starts_a_pod(bed, "certified-by-both").await?;
    ensure!(gets_in(&old.file(), Some(&new_caller)).await?, "the new authority is not believed");

    // Both sides show certificates of the new one.
    let serving = new.server("controller", &["controller.bed.test"])?;
    let calling = new.client("driver", "driver", None)?;
    fs::copy(serving.certificate, overlay.join("tls.crt"))?;
    fs::copy(serving.key, overlay.join("tls.key"))?;
    fs::copy(calling.certificate, overlay.join("driver-tls/tls.crt"))?;
    fs::copy(calling.key, overlay.join("driver-tls/tls.key"))?;
    until_taken_up(product, &controller, &driver).await?;
    starts_a_pod(bed, "certified-anew").await?;
    ensure!(gets_in(&new.file(), Some(&new_caller)).await?, "the new certificate is not shown");

    // Nobody trusts the old one any more.
    fs::copy(new.file(), overlay.join("ca.crt"))?;
    fs::copy(new.file(), overlay.join("client-ca.crt"))?;
    until_taken_up(product, &controller, &driver).await?;
    starts_a_pod(bed, "certified-by-the-new").await?;
    ensure!(!gets_in(&new.file(), Some(&old_caller)).await?, "the old authority is still believed");

    for before in [&controller, &driver] {
        let pod = before.get().await?;
        let statuses = pod.status.and_then(|status| status.container_statuses).unwrap_or_default();
        let restarts: i32 = statuses.iter().map(|status| status.restart_count).sum();
        ensure!(restarts == 0, "{} was restarted", before.name());
    }
    // A node plugin that connects only now knows nothing but the new files.
    product.restart_driver().await?;
    starts_a_pod(bed, "certified-last").await
}

/// The files of the overlay are in both pods, and the controller goes by them.
async fn until_taken_up(product: &Product, controller: &Running, driver: &Running) -> Result<()> {
    let taken_up = async || -> Result<usize> {
        Ok(controller.logs().await?.matches("Took up new certificates").count())
    };
    let before = taken_up().await?;
    product.until_mounted(&mounted(controller, driver)).await?;
    until("taken up: new certificates", RELOAD_LIMIT, async || {
        ensure!(taken_up().await? > before, "not yet");
        Ok(())
    })
    .await
}

/// The files that matter here: in which volume of which pod they are, and where in the overlay.
fn mounted<'a>(
    controller: &'a Running,
    driver: &'a Running,
) -> [(&'a Running, &'a str, &'a str, &'a str); 4] {
    let tls = "kubernetes.io~secret/tls";
    [
        (controller, tls, "tls.crt", "tls.crt"),
        (controller, tls, "client-ca.crt", "client-ca.crt"),
        (driver, tls, "tls.crt", "driver-tls/tls.crt"),
        (driver, "kubernetes.io~projected/configuration", "ca.crt", "ca.crt"),
    ]
}

/// A pod gets its token.
async fn starts_a_pod(bed: &Bed, name: &str) -> Result<()> {
    let pod = bed.kubernetes().run(&Draft::new(name).token_of("etl")).await?;
    pod.delete(GONE_LIMIT).await
}

/// Whether a caller comes as far as to be asked for a token.
async fn gets_in(authority: &Path, client: Option<&Identity>) -> Result<bool> {
    let volume = Some(volume("default", "none", "none", "none"));
    let request = ReleaseRequest { volume, ..ReleaseRequest::default() };
    let status = TokenService::showing(authority, client)?.with_nothing().release(request).await;
    let status = status.err().context("a token was cancelled for nobody")?;
    Ok(reason(&status).is_ok())
}
