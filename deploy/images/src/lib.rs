//! Packs files into an OCI image archive that `ctr images import`, `podman load` and `skopeo` read. Needs no
//! container engine and no base image, and the same input always gives the same digest. Never talks to a
//! registry.

mod archive;
mod libraries;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

pub use archive::Archive;

/// An image to be: what its one layer holds and how it is run. Every path inside the image is absolute; parent
/// directories come by themselves (mode 0755); everything belongs to root. Nothing is read before
/// [`Image::write_oci_archive`]. What is put at the same path later replaces the former.
#[derive(Debug)]
pub struct Image {
    reference: String,
    sources: Vec<(String, Source)>,
    entrypoint: Vec<String>,
    environment: BTreeMap<String, String>,
    user: String,
}

#[derive(Debug)]
enum Source {
    File { path: PathBuf, mode: u32 },
    Binary { path: PathBuf },
    Content { bytes: Vec<u8>, mode: u32 },
    Symlink { target: String },
    Directory { mode: u32 },
}

/// What stands at one path of the layer.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    File { bytes: Vec<u8>, mode: u32 },
    Symlink { target: String },
    Directory { mode: u32 },
}

impl Image {
    /// An empty image that will be imported as `reference`, such as `example/program:1.0`.
    #[must_use]
    pub fn new(reference: impl Into<String>) -> Self {
        Self {
            reference: reference.into(),
            sources: Vec::new(),
            entrypoint: Vec::new(),
            environment: BTreeMap::new(),
            user: String::new(),
        }
    }

    /// Puts the file `source` at `path`.
    #[must_use]
    pub fn file(self, source: impl Into<PathBuf>, path: impl Into<String>, mode: u32) -> Self {
        self.with(path, Source::File { path: source.into(), mode })
    }

    /// Puts `bytes` at `path`.
    #[must_use]
    pub fn content(self, bytes: impl Into<Vec<u8>>, path: impl Into<String>, mode: u32) -> Self {
        self.with(path, Source::Content { bytes: bytes.into(), mode })
    }

    /// Puts the program `source` at `path`, and the shared libraries and the loader that it needs where they are
    /// on this machine. A static program comes alone.
    #[must_use]
    pub fn binary_with_libraries(self, source: impl Into<PathBuf>, path: impl Into<String>) -> Self {
        self.with(path, Source::Binary { path: source.into() })
    }

    /// Puts a symbolic link to `target` at `path`.
    #[must_use]
    pub fn symlink(self, target: impl Into<String>, path: impl Into<String>) -> Self {
        self.with(path, Source::Symlink { target: target.into() })
    }

    /// Puts an empty directory at `path`.
    #[must_use]
    pub fn directory(self, path: impl Into<String>, mode: u32) -> Self {
        self.with(path, Source::Directory { mode })
    }

    /// The program that containers of this image run, with its first arguments.
    #[must_use]
    pub fn entrypoint<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.entrypoint = words.into_iter().map(Into::into).collect();
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn environment(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.insert(name.into(), value.into());
        self
    }

    /// User (and group) that containers run as, such as `65532:65532`; root if never called.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = user.into();
        self
    }

    /// Reads everything and writes the archive to `path`, which appears only when it is whole.
    ///
    /// # Errors
    /// When a file cannot be read, a library is missing, a path inside the image is not absolute, or the archive
    /// cannot be written; the message names the file.
    pub fn write_oci_archive(&self, path: impl AsRef<Path>) -> Result<Archive> {
        let path = path.as_ref();
        let layer = archive::layer(&self.entries()?)?;
        self.write(&layer, path).with_context(|| format!("failed to write {}", path.display()))
    }

    /// Whoever writes the same archive at the same time writes another file, and the last one stays.
    fn write(&self, layer: &archive::Layer, path: &Path) -> Result<Archive> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut partial = tempfile::Builder::new().prefix(".partial-").tempfile_in(folder)?;
        let digest = archive::write(self, layer, partial.as_file_mut())?;
        partial.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
        let size = partial.persist(path)?.metadata()?.len();
        Ok(Archive { reference: self.reference.clone(), digest, size })
    }

    fn with(mut self, path: impl Into<String>, source: Source) -> Self {
        self.sources.push((path.into(), source));
        self
    }

    /// Reads the sources; the paths come out sorted, without the leading slash, parents before children.
    fn entries(&self) -> Result<BTreeMap<String, Entry>> {
        let mut entries = BTreeMap::new();
        for (path, source) in &self.sources {
            match source {
                Source::File { path: file, mode } => {
                    insert(&mut entries, path, Entry::File { bytes: read(file)?, mode: *mode })?;
                }
                Source::Binary { path: file } => {
                    for library in libraries::of(file)? {
                        let to = library.to_str().context("the path of a shared library is not UTF-8")?;
                        insert(&mut entries, to, Entry::File { bytes: read(&library)?, mode: 0o755 })?;
                    }
                    insert(&mut entries, path, Entry::File { bytes: read(file)?, mode: 0o755 })?;
                }
                Source::Content { bytes, mode } => {
                    insert(&mut entries, path, Entry::File { bytes: bytes.clone(), mode: *mode })?;
                }
                Source::Symlink { target } => {
                    insert(&mut entries, path, Entry::Symlink { target: target.clone() })?;
                }
                Source::Directory { mode } => {
                    insert(&mut entries, path, Entry::Directory { mode: *mode })?;
                }
            }
        }
        Ok(entries)
    }
}

fn insert(entries: &mut BTreeMap<String, Entry>, path: &str, entry: Entry) -> Result<()> {
    let relative = path.strip_prefix('/').unwrap_or_default();
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    ensure!(relative.split('/').all(plain), "path in the image must be absolute and plain, is {path:?}");
    for (end, _) in relative.match_indices('/') {
        let parent = relative.get(..end).unwrap_or_default();
        let standing = entries.entry(parent.to_owned()).or_insert(Entry::Directory { mode: 0o755 });
        ensure!(
            matches!(standing, Entry::Directory { .. }),
            "{path} cannot be below /{parent}: not a directory"
        );
    }
    entries.insert(relative.to_owned(), entry);
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("failed to read {}", path.display()))
}

#[cfg(test)]
mod tests;
