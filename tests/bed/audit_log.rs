//! The API server's audit log: who asked for what, and what was found of it on the way. Only that of [`JOBS`] is
//! written, and of no object its content.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{process::Program, users::JOBS};

/// The log of one API server.
#[derive(Debug)]
pub struct AuditLog(PathBuf);

impl AuditLog {
    pub(crate) fn new(logs: &Path) -> Self {
        Self(logs.join("kube-apiserver-audit.log"))
    }

    /// Has the API server write it. Its policy goes into `folder`.
    pub(crate) fn written_by(&self, api_server: Program, folder: &Path) -> Result<Program> {
        let policy = folder.join("audit-policy.yaml");
        let written = json!({
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived", "ResponseStarted"],
            "rules": [{
                "level": "Metadata",
                "namespaces": [JOBS],
                "resources": [{"group": "", "resources": ["pods", "pods/*"]}, {"group": "apps"}],
            }],
        });
        fs::write(&policy, serde_json::to_vec_pretty(&written)?)?;
        let [policy, log] = [&policy, &self.0].map(|path| path.display().to_string());
        Ok(api_server
            .arg(format!("--audit-policy-file={policy}"))
            .arg(format!("--audit-log-path={log}"))
            .arg("--audit-log-mode=blocking"))
    }

    /// The end of the log as it is now, for [`Self::since`].
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn end(&self) -> Result<u64> {
        Ok(fs::metadata(&self.0).with_context(|| self.0.display().to_string())?.len())
    }

    /// The events (`audit.k8s.io/v1`) that were written after `end`. The API server answers first and writes then.
    ///
    /// # Errors
    /// When it cannot be read, or is no such log.
    pub fn since(&self, end: u64) -> Result<Vec<Value>> {
        let log = fs::read_to_string(&self.0).with_context(|| self.0.display().to_string())?;
        let new = log.get(usize::try_from(end)?..).context("the log has become shorter")?;
        // The last line may not have been written to its end.
        let whole = new.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).map_err(Into::into)).collect()
    }
}
