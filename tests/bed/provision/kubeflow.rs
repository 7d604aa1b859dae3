//! Kubeflow's training operator, and the definitions of the kinds that it and its successor know: both from their Go
//! modules.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use super::{build_go, version_of};
use crate::process::Program;

const SOURCES: [(&str, &str); 3] = [
    ("go.mod", include_str!("../operators/go.mod")),
    ("go.sum", include_str!("../operators/go.sum")),
    ("main.go", include_str!("../operators/main.go")),
];
const OPERATOR: &str = "github.com/kubeflow/training-operator";
/// Its successor, of which nothing is run.
const TRAINER: &str = "github.com/kubeflow/trainer/v2@v2.0.0";
/// Where both modules have the definitions.
const DEFINITIONS: &str = "manifests/base/crds";

/// Name of the folder in the cache.
pub(super) fn key() -> String {
    let mut inputs: Vec<&str> = SOURCES.iter().map(|(_, text)| *text).collect();
    inputs.push(TRAINER);
    super::key("operators", &inputs)
}

/// Fills that folder.
pub(super) async fn build(cache: &Path, folder: &Path) -> Result<()> {
    build_go(cache, "training-operator", SOURCES, "-s -w", folder).await?;
    copy_definitions(folder).await
}

async fn copy_definitions(folder: &Path) -> Result<()> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Module {
        dir: PathBuf,
    }
    let operator = format!("{OPERATOR}@{}", version_of(OPERATOR, SOURCES)?);
    let download = Program::new("go").args(["mod", "download", "-json", &operator, TRAINER]);
    let mut command = download.command();
    // In no module: that of the test bed does not need all of them.
    let output = command.current_dir(folder).kill_on_drop(true).output().await?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "failed to fetch {operator} and {TRAINER}: {complaint}");
    for module in serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Module>() {
        let definitions = module?.dir.join(DEFINITIONS);
        for entry in fs::read_dir(&definitions).with_context(|| format!("no {}", definitions.display()))? {
            let entry = entry?;
            if entry.file_name() != "kustomization.yaml" {
                fs::copy(entry.path(), folder.join(entry.file_name()))?;
            }
        }
    }
    Ok(())
}
