//! `deploy/example` is whole: an API server takes it as it is, and what its programs are configured to read is in it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use bed::{Bed, harness::Test, process::Program, product::source};
use k8s_openapi::api::core::v1::{PodSpec, Volume};
use kube::{
    ResourceExt,
    core::{DynamicObject, ObjectList},
};
use serde_json::Value;

/// What the comment at the head of its kustomization has a site put beside its files.
const OF_THE_SITE: [&str; 9] = [
    "keytab",
    "krb5.conf",
    "core-site.xml",
    "hdfs-site.xml",
    "ca.crt",
    "tls.crt",
    "tls.key",
    "keys.json",
    "seal.pem",
];
/// Programs with the objects that run them and the files that configure them.
const PROGRAMS: [(&str, &str, &str); 3] = [
    ("DaemonSet", "hadoop-token-csi-driver", "driver.yaml"),
    ("Deployment", "hadoop-token-csi-controller", "controller.yaml"),
    ("Deployment", "hadoop-token-csi-webhook", "webhook.yaml"),
];
/// Where the manifests mount what is of the site.
const MOUNTS: &str = "/etc/hadoop-token-csi";

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![the_example_is_taken_by_the_api_server_and_has_every_file_that_it_names]
}

async fn the_example_is_taken_by_the_api_server_and_has_every_file_that_it_names(bed: &Bed) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let parts = ["example", "kubernetes"].map(|part| source().join("deploy").join(part));
    Program::new("cp").arg("-r").args(parts).arg(folder.path()).succeed().await?;
    let example = folder.path().join("example");
    let kustomization = fs::read_to_string(example.join("kustomization.yaml"))?;
    let head: Vec<&str> = kustomization.lines().take_while(|line| line.starts_with('#')).collect();
    for file in OF_THE_SITE {
        let is_told = head.iter().any(|line| line.split_whitespace().any(|word| word == file));
        ensure!(is_told, "the kustomization's head does not tell of {file}");
        fs::write(example.join(file), "of the site\n")?;
    }

    let apply = ["apply", "--dry-run=server", "--output=json", "--kustomize"];
    let taken = bed.kubernetes().kubectl().args(apply).arg(&example).succeed().await?;
    let taken: ObjectList<DynamicObject> = serde_json::from_str(&taken)?;
    for (kind, name, configuration) in PROGRAMS {
        let object = find(&taken.items, kind, name).with_context(|| format!("there is no {kind} {name}"))?;
        let pod = object.data.pointer("/spec/template/spec").cloned().unwrap_or_default();
        let files = mounted(&serde_json::from_value(pod)?, &taken.items)?;
        let text = fs::read_to_string(example.join(configuration))?;
        let named = named(&serde_saphyr::from_str(&text)?);
        ensure!(!named.is_empty(), "{configuration} names no file");
        for path in named {
            let is_there = files.keys().any(|file| file.starts_with(&path));
            ensure!(is_there, "{configuration} names {}, and {name} has {:?}", path.display(), files.keys());
        }
        let own = Path::new(MOUNTS).join(configuration);
        ensure!(files.get(&own) == Some(&text), "{name} does not have {}", own.display());
    }
    Ok(())
}

fn find<'a>(objects: &'a [DynamicObject], kind: &str, name: &str) -> Option<&'a DynamicObject> {
    let is_it = |object: &&DynamicObject| {
        object.types.as_ref().is_some_and(|types| types.kind == kind) && object.name_any() == name
    };
    objects.iter().find(is_it)
}

/// The files of the site that the containers of a pod see, with what the API server says is in them.
fn mounted(pod: &PodSpec, objects: &[DynamicObject]) -> Result<BTreeMap<PathBuf, String>> {
    let mut files = BTreeMap::new();
    for mount in pod.containers.iter().flat_map(|container| container.volume_mounts.iter().flatten()) {
        let volume = pod.volumes.iter().flatten().find(|volume| volume.name == mount.name);
        let volume = volume.with_context(|| format!("there is no volume {}", mount.name))?;
        for (kind, name, is_optional) in sources(volume) {
            let Some(object) = find(objects, kind, &name) else {
                ensure!(is_optional, "there is no {kind} {name}");
                continue;
            };
            for (file, content) in object.data.get("data").and_then(Value::as_object).into_iter().flatten() {
                let content = content.as_str().unwrap_or_default().to_owned();
                files.insert(Path::new(&mount.mount_path).join(file), content);
            }
        }
    }
    Ok(files)
}

/// What a volume shows: kind, name, and whether it may be missing.
fn sources(volume: &Volume) -> Vec<(&'static str, String, bool)> {
    let mut sources = Vec::new();
    if let Some(map) = &volume.config_map {
        sources.push(("ConfigMap", map.name.clone(), map.optional == Some(true)));
    }
    if let Some(secret) = &volume.secret {
        sources.push((
            "Secret",
            secret.secret_name.clone().unwrap_or_default(),
            secret.optional == Some(true),
        ));
    }
    let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    sources.extend(
        projected
            .filter_map(|source| source.config_map.as_ref())
            .map(|map| ("ConfigMap", map.name.clone(), map.optional == Some(true))),
    );
    sources
}

/// Everything in a configuration that is a path below [`MOUNTS`].
fn named(configuration: &Value) -> Vec<PathBuf> {
    match configuration {
        Value::String(text) if text.starts_with(MOUNTS) => vec![PathBuf::from(text)],
        Value::Object(map) => map.values().flat_map(named).collect(),
        Value::Array(items) => items.iter().flat_map(named).collect(),
        _ => Vec::new(),
    }
}
