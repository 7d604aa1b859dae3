//! Configuration files: YAML, unknown keys refused, mistakes shown with their line.

use std::{
    fmt::{self, Display},
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

/// Reads the YAML file at `path` as a `T`. `T` should carry `#[serde(deny_unknown_fields)]`.
///
/// # Errors
/// When the file cannot be read or is not a valid `T`; the message names file, line and column.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    serde_saphyr::from_str(&text)
        .map_err(|error| ConfigError::Invalid { path: path.to_owned(), error: error.to_string() })
}

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration file {path}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file's content is wrong.
    #[error("invalid configuration file {path}: {error}", path = path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        error: String,
    },
}

/// Everything that is wrong with a configuration, to be told at once. Each mistake begins with the key that it is under.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Mistakes(Vec<String>);

impl Mistakes {
    /// What came of `key`, if anything did.
    pub fn take<T, E: Display>(&mut self, key: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.0.push(format!("{key}: {error}"))).ok()
    }

    /// As [`Mistakes::take`], for parts that tell several mistakes.
    pub fn take_all<T>(&mut self, key: &str, result: Result<T, Vec<String>>) -> Option<T> {
        result.map_err(|mistakes| self.0.extend(mistakes.into_iter().map(|one| format!("{key}: {one}")))).ok()
    }

    /// The list, if there is one. One that is empty was meant to be filled, or to be left out.
    pub fn not_empty<T>(&mut self, key: &str, list: Option<Vec<T>>) -> Option<Vec<T>> {
        let empty = list.as_ref().is_some_and(Vec::is_empty);
        self.require(key, !empty, "is empty: fill it, or leave it out");
        list
    }

    /// Notes `complaint` unless what is under `key` `holds`.
    pub fn require(&mut self, key: &str, holds: bool, complaint: &str) {
        if !holds {
            self.0.push(format!("{key}: {complaint}"));
        }
    }

    /// Notes a mistake that begins with its key.
    pub fn add(&mut self, mistake: String) {
        self.0.push(mistake);
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Mistakes {}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[derive(serde::Deserialize, Debug)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[allow(dead_code)]
        listen: String,
    }

    fn error_of(yaml: &str) -> String {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(yaml.as_bytes()).unwrap();
        load::<Sample>(file.path()).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = error_of("listen: \"[::]:1\"\nlissen: x\n");
        assert!(error.contains("lissen") && error.contains("line 2"), "{error}");
    }

    #[test]
    fn a_missing_key_is_named() {
        let error = error_of("{}\n");
        assert!(error.contains("listen"), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load::<Sample>(Path::new("/nonexistent.yaml")).unwrap_err().to_string();
        assert_eq!(error, "cannot read configuration file /nonexistent.yaml");
    }
}
