//! What is on the node of the product: mounts of its volumes, the tokens in them, its records.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use hadoop::token_file::TokenFile;
use identity::DRIVER_NAME;

use super::{Living, Number, Problems};
use crate::{host::KUBELET, namenode::Cluster};

/// Where kubelet has CSI volumes, within a pod's folder.
const VOLUMES: &str = "/volumes/kubernetes.io~csi/";

/// A token in a mounted volume.
pub(super) struct Mounted {
    pub(super) cluster: Cluster,
    pub(super) number: Number,
    /// UID of the pod whose volume it is in.
    pub(super) pod: String,
}

/// Tokens in all volumes that are mounted.
pub(super) fn mounted_tokens() -> Result<Vec<Mounted>> {
    let mut found = Vec::new();
    for (folder, _) in mounts()? {
        let bytes = match fs::read(folder.join("token")) {
            Ok(bytes) => bytes,
            // It waits for the pod's addresses, was wiped, or is gone meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("failed to read {}", folder.display())),
        };
        let file = TokenFile::decode(&bytes).with_context(|| format!("{} is damaged", folder.display()))?;
        for (alias, token) in &file.tokens {
            let cluster = Cluster::of_service(alias).with_context(|| format!("a token for {alias}"))?;
            let number = Number::try_from(token.decode_identifier()?.sequence_number)?;
            found.push(Mounted { cluster, number, pod: pod_of(&folder)? });
        }
    }
    Ok(found)
}

/// Mounts and records that belong to no living pod, or are there twice.
pub(super) fn leftovers(living: &Living) -> Result<Problems> {
    let mut problems = Vec::new();
    for (folder, count) in mounts()? {
        if !living.uids.contains(&pod_of(&folder)?) {
            problems.push(format!("mount {}", folder.display()));
        }
        if count > 1 {
            problems.push(format!("{count} mounts at {}", folder.display()));
        }
    }
    let records = Path::new(KUBELET).join("plugins").join(DRIVER_NAME).join("volumes");
    for record in files(&records)? {
        let id = record.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if id.starts_with("csi-") && !living.volumes.contains(&id) {
            problems.push(format!("record {}", record.display()));
        }
    }
    for aside in ["released", "quarantined"] {
        let found = files(&records.join(aside))?;
        problems.extend(found.iter().map(|record| format!("record {}", record.display())));
    }
    Ok(problems)
}

/// Where volumes are mounted, and how many times over.
pub(super) fn mounts() -> Result<BTreeMap<PathBuf, usize>> {
    let mut found = BTreeMap::new();
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        if let Some(path) = line.split(' ').nth(4).filter(|path| path.contains(VOLUMES)) {
            *found.entry(PathBuf::from(path)).or_default() += 1;
        }
    }
    Ok(found)
}

/// The UID of the pod whose volume it is.
fn pod_of(folder: &Path) -> Result<String> {
    let below = folder.strip_prefix(Path::new(KUBELET).join("pods"));
    let uid = below.ok().and_then(|path| path.components().next());
    let uid = uid.with_context(|| format!("a volume outside of pods: {}", folder.display()))?;
    Ok(uid.as_os_str().to_string_lossy().into_owned())
}

/// Files in a folder; none when there is no such folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("failed to read {}", folder.display())),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            found.push(entry.path());
        }
    }
    Ok(found)
}
