//! Bytes of an OCI image: one gzipped layer, its configuration, manifest, index and layout, in one tar file. All
//! of it depends on the content alone: sorted entries, no times, no owners.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Write},
};

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::{Entry, Image};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A written image archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// Name of the image.
    pub reference: String,
    /// Digest of its manifest: `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// Size of the archive in bytes.
    pub size: u64,
}

/// The one layer of an image.
pub(crate) struct Layer {
    compressed: Vec<u8>,
    /// Digest of the uncompressed tar.
    diff_id: String,
}

/// Packs `entries` in their order.
pub(crate) fn layer(entries: &BTreeMap<String, Entry>) -> Result<Layer> {
    let mut tar = Builder::new(Vec::new());
    for (path, entry) in entries {
        match entry {
            Entry::File { bytes, mode } => append(&mut tar, path, EntryType::Regular, *mode, bytes)?,
            Entry::Directory { mode } => append(&mut tar, path, EntryType::Directory, *mode, &[])?,
            Entry::Symlink { target } => {
                let mut header = header(EntryType::Symlink, 0o777, 0);
                tar.append_link(&mut header, path, target)?;
            }
        }
    }
    let tar = tar.into_inner()?;
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::fast());
    gzip.write_all(&tar)?;
    Ok(Layer { compressed: gzip.finish()?, diff_id: digest(&tar) })
}

/// Writes the archive and returns the digest of the manifest.
pub(crate) fn write(image: &Image, layer: &Layer, file: &mut File) -> Result<String> {
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": settings(image),
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
        "history": [{"created_by": "hadoop-token-csi images"}],
    })
    .to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, config.as_bytes()),
        "layers": [descriptor(LAYER, &layer.compressed)],
    })
    .to_string();
    let named = json!({
        "mediaType": MANIFEST,
        "digest": digest(manifest.as_bytes()),
        "size": manifest.len(),
        "annotations": {
            "io.containerd.image.name": full_name(&image.reference),
            "org.opencontainers.image.ref.name": tag(&image.reference),
        },
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [named],
    })
    .to_string();

    let mut tar = Builder::new(BufWriter::new(file));
    append(&mut tar, "oci-layout", EntryType::Regular, 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    append(&mut tar, "index.json", EntryType::Regular, 0o644, index.as_bytes())?;
    for blob in [manifest.as_bytes(), config.as_bytes(), &layer.compressed] {
        let name = format!("blobs/{}", digest(blob).replace(':', "/"));
        append(&mut tar, &name, EntryType::Regular, 0o644, blob)?;
    }
    let file =
        tar.into_inner()?.into_inner().map_err(|error| error.into_error()).context("failed to flush")?;
    file.sync_all()?;
    Ok(digest(manifest.as_bytes()))
}

fn settings(image: &Image) -> Value {
    let environment: Vec<_> =
        image.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
    json!({
        "Entrypoint": image.entrypoint,
        "Env": environment,
        "User": image.user,
        "WorkingDir": "/",
    })
}

fn append(tar: &mut Builder<impl Write>, path: &str, kind: EntryType, mode: u32, bytes: &[u8]) -> Result<()> {
    let mut header = header(kind, mode, bytes.len() as u64);
    tar.append_data(&mut header, path, bytes).with_context(|| format!("failed to pack {path}"))
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::from("sha256:"), |text, byte| text + &format!("{byte:02x}"))
}

/// The name under which kubelet looks the image up: with a registry host, `docker.io` where none is written.
fn full_name(reference: &str) -> String {
    match reference.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => reference.to_owned(),
        Some(_) => format!("docker.io/{reference}"),
        None => format!("docker.io/library/{reference}"),
    }
}

fn tag(reference: &str) -> &str {
    let last = reference.rsplit('/').next().unwrap_or(reference);
    last.split_once(':').map_or("latest", |(_, tag)| tag)
}

/// This machine's architecture in the words of OCI, which are Go's.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_registry_is_looked_up_at_docker_io() {
        assert_eq!(full_name("hadoop-token-csi/driver:1"), "docker.io/hadoop-token-csi/driver:1");
        assert_eq!(full_name("busybox:1"), "docker.io/library/busybox:1");
        assert_eq!(full_name("bed.test/busybox:1"), "bed.test/busybox:1");
        assert_eq!(full_name("localhost/busybox:1"), "localhost/busybox:1");
    }

    #[test]
    fn the_tag_follows_the_last_colon_of_the_last_part() {
        assert_eq!(tag("localhost:5000/driver"), "latest");
        assert_eq!(tag("localhost:5000/driver:1.2"), "1.2");
    }
}
