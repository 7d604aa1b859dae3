//! Kubeflow's operators, and the definitions of the kinds that they and a successor know: all from their Go modules.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use super::{build_go, version_of};
use crate::process::Program;

const TRAINING_SOURCES: [(&str, &str); 3] = [
    ("go.mod", include_str!("../operators/training/go.mod")),
    ("go.sum", include_str!("../operators/training/go.sum")),
    ("main.go", include_str!("../operators/training/main.go")),
];
const TRAINING: &str = "github.com/kubeflow/training-operator";
/// Its own program is built as it is.
const SPARK_SOURCES: [(&str, &str); 2] = [
    ("go.mod", include_str!("../operators/spark/go.mod")),
    ("go.sum", include_str!("../operators/spark/go.sum")),
];
const SPARK: &str = "github.com/kubeflow/spark-operator/v2";
/// The training operator's successor, of which nothing is run.
const TRAINER: &str = "github.com/kubeflow/trainer/v2@v2.0.0";
/// Where the modules have the definitions; no other files are there but a list of them.
const DEFINITIONS: [&str; 2] = ["manifests/base/crds", "config/crd/bases"];

/// Name of the folder in the cache.
pub(super) fn key() -> String {
    let sources = TRAINING_SOURCES.iter().chain(&SPARK_SOURCES);
    let inputs: Vec<&str> = sources.map(|(_, text)| *text).chain([TRAINER]).collect();
    super::key("operators", &inputs)
}

/// Fills that folder.
pub(super) async fn build(cache: &Path, folder: &Path) -> Result<()> {
    build_go(cache, "training-operator", &TRAINING_SOURCES, (".", "-s -w"), folder).await?;
    let program = format!("{SPARK}/cmd/operator");
    build_go(cache, "spark-operator", &SPARK_SOURCES, (&program, "-s -w"), folder).await?;
    copy_definitions(folder).await
}

async fn copy_definitions(folder: &Path) -> Result<()> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Module {
        dir: PathBuf,
    }
    let training = format!("{TRAINING}@{}", version_of(TRAINING, &TRAINING_SOURCES)?);
    let spark = format!("{SPARK}@{}", version_of(SPARK, &SPARK_SOURCES)?);
    let download = Program::new("go").args(["mod", "download", "-json", &training, &spark, TRAINER]);
    let mut command = download.command();
    // In no module: that of the test bed does not need all of them.
    let output = command.current_dir(folder).kill_on_drop(true).output().await?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "failed to fetch {training}, {spark} and {TRAINER}: {complaint}");
    for module in serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Module>() {
        let Module { dir } = module?;
        let definitions = DEFINITIONS.iter().map(|place| dir.join(place)).find(|place| place.is_dir());
        let definitions = definitions.with_context(|| format!("no definitions in {}", dir.display()))?;
        for entry in fs::read_dir(&definitions)? {
            let entry = entry?;
            if entry.file_name() != "kustomization.yaml" {
                fs::copy(entry.path(), folder.join(entry.file_name()))?;
            }
        }
    }
    Ok(())
}
