//! What was measured: rows for people and for programs.

use std::{
    env, fs,
    io::{Write as _, stdout},
    path::PathBuf,
};

use anyhow::{Context, Result};
use serde::Serialize;

/// One measurement, ours against the peer's.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// Median of the runs.
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// The peer's median, where there is a peer.
    pub(crate) peer_value: Option<f64>,
    /// Ours to the peer's.
    pub(crate) ratio: Option<f64>,
    /// How many runs each side had.
    pub(crate) runs: usize,
}

/// All measurements of this run.
#[derive(Debug, Default)]
pub(crate) struct Report(Vec<Row>);

impl Report {
    /// Adds a row from the runs of both sides; the peer has none where there is no peer.
    pub(crate) fn add(&mut self, name: impl Into<String>, unit: &'static str, ours: &[f64], peer: &[f64]) {
        let Some(value) = median(ours) else { return };
        let peer_value = median(peer);
        let ratio = peer_value.map(|peer| value / peer);
        self.0.push(Row { name: name.into(), value, unit, peer_value, ratio, runs: ours.len() });
    }

    /// Prints the table.
    pub(crate) fn print(&self) -> Result<()> {
        let mut out = stdout().lock();
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
        writeln!(
            out,
            "{:<34}{:>12}  {:<8}{:>12}{:>10}{:>6}",
            "what", "ours", "unit", "peer", "ratio", "runs"
        )?;
        for row in &self.0 {
            let (value, peer, ratio) = (number(Some(row.value)), number(row.peer_value), number(row.ratio));
            writeln!(
                out,
                "{:<34}{value:>12}  {:<8}{peer:>12}{ratio:>10}{:>6}",
                row.name, row.unit, row.runs
            )?;
        }
        Ok(())
    }

    /// Joins the rows into `target/bench/results.json`, where rows of other programs stay.
    pub(crate) fn write(&self) -> Result<()> {
        let path = target()?.join("bench/results.json");
        fs::create_dir_all(path.parent().context("no folder")?)?;
        let mut rows: Vec<serde_json::Value> = match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        rows.retain(|row| {
            !self.0.iter().any(|ours| row.get("name").and_then(|name| name.as_str()) == Some(&ours.name))
        });
        for row in &self.0 {
            rows.push(serde_json::to_value(row)?);
        }
        let mut bytes = serde_json::to_vec_pretty(&rows)?;
        bytes.push(b'\n');
        fs::write(&path, bytes)?;
        writeln!(stdout(), "\nwritten to {}", path.display())?;
        Ok(())
    }
}

/// cargo's target folder: this program is in its `release`, or in that of a target triple.
fn target() -> Result<PathBuf> {
    let program = env::current_exe()?;
    Ok(program.ancestors().nth(2).context("this program is in no target folder")?.to_owned())
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}
