//! The key that the webhook seals with, and those that it believes, while it runs.

use std::{fs, path::Path, time::Duration};

use anyhow::{Result, ensure};
use identity::seal::SealingKey;

use super::{Webhook, overlay::SEAL_PEM};
use crate::{
    process::{Program, until},
    product::Product,
};

/// kubelet brings a changed file within a minute, and the program looks every ten seconds.
const TAKE_UP_LIMIT: Duration = Duration::from_secs(100);

/// Writes a new private key to `file`, as its users make one.
///
/// # Errors
/// When openssl does not.
pub async fn generate_key(file: &Path) -> Result<SealingKey> {
    let generate = Program::new("openssl").args(["genpkey", "-algorithm", "ed25519", "-out"]);
    generate.arg(file).succeed().await?;
    Ok(SealingKey::from_pem(&fs::read_to_string(file)?)?)
}

impl Webhook {
    /// Has the running replicas seal by the private key in `pem`, and waits until all do, and believe `known` and no
    /// other.
    ///
    /// # Errors
    /// When they do not.
    pub async fn seal_by(&self, product: &Product, pem: &str, known: &[&SealingKey]) -> Result<()> {
        fs::write(self.overlay.join(SEAL_PEM), pem)?;
        self.apply().await?;
        self.until_taken_up(product, &SealingKey::from_pem(pem)?, known).await
    }

    /// Waits until the running replicas seal by `key`, and believe `known` and no other.
    ///
    /// # Errors
    /// When they do not.
    pub async fn until_taken_up(
        &self,
        product: &Product,
        key: &SealingKey,
        known: &[&SealingKey],
    ) -> Result<()> {
        let mut ids: Vec<String> = known.iter().map(|key| key.public_jwk().id()).collect();
        ids.sort();
        let wanted =
            [format!(r#""sealing":"{}""#, key.public_jwk().id()), format!(r#""known":"{}""#, ids.join(" "))];
        until("taken up: the webhook's keys", TAKE_UP_LIMIT, async || {
            for pod in self.pods().await? {
                product.have_looked_at(&pod).await?;
                let log = pod.logs().await?;
                let last = log.lines().rfind(|line| line.contains("Took up new keys")).unwrap_or_default();
                let is_so = wanted.iter().all(|words| last.contains(words));
                ensure!(is_so, "{} says {last:?}, not {wanted:?}", pod.name());
            }
            Ok(())
        })
        .await
    }
}
