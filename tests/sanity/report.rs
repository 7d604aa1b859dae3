//! What csi-sanity found: every specification of its that ran, and why others did not.

use std::{collections::BTreeMap, fmt, fs, path::Path};

use anyhow::{Result, ensure};
use serde::Deserialize;

/// In the names of what is examined of controllers: volumes written into pods need none.
const OF_CONTROLLERS: [&str; 2] = ["[Controller Server]", "[GroupController "];

/// Why something may be skipped: capabilities that the node plugin does not claim.
const NOT_CLAIMED: [&str; 5] = [
    "NodeStageVolume not supported",
    "NodeUnstageVolume not supported",
    "NodeExpandVolume not supported",
    "NodeGetStorageHealth not supported",
    "Service does not have single node multi writer capability",
];

/// Fewer must have been left out by accident.
const AT_LEAST: usize = 19;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    spec_reports: Vec<Spec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    leaf_node_type: String,
    #[serde(default)]
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_text: String,
    state: String,
    #[serde(default)]
    failure: Failure,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Failure {
    message: String,
}

/// What became of each specification for nodes.
pub(crate) struct Report(Vec<Spec>);

impl Report {
    /// Reads the file that Ginkgo writes.
    pub(crate) fn read(file: &Path) -> Result<Self> {
        let suites: Vec<Suite> = serde_json::from_slice(&fs::read(file)?)?;
        let specs = suites.into_iter().flat_map(|suite| suite.spec_reports);
        let ours = |spec: &Spec| {
            let name = spec.to_string();
            spec.leaf_node_type == "It" && !OF_CONTROLLERS.iter().any(|other| name.contains(other))
        };
        Ok(Self(specs.filter(ours).collect()))
    }

    /// Nothing may have failed, and what was skipped must be something that is not claimed.
    pub(crate) fn check(&self) -> Result<()> {
        let (mut bad, mut passed) = (Vec::new(), 0);
        for spec in &self.0 {
            match spec.state.as_str() {
                "passed" => passed += 1,
                "skipped" if NOT_CLAIMED.contains(&spec.failure.message.as_str()) => {}
                state => bad.push(format!("{state}: {spec}: {}", spec.failure.message)),
            }
        }
        ensure!(bad.is_empty(), "{}", bad.join("\n"));
        ensure!(passed >= AT_LEAST, "only {passed} specifications were examined");
        Ok(())
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for text in self.container_hierarchy_texts.iter().flatten() {
            write!(f, "{text} ")?;
        }
        f.write_str(&self.leaf_node_text)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for spec in &self.0 {
            *counts.entry(&spec.state).or_default() += 1;
        }
        write!(f, "csi-sanity: {counts:?}")
    }
}
