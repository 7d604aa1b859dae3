//! Where lines go: a file that others may rename, or a stream. Takes whole lines, and says how many of them are kept
//! for good when it could not take all. Never leaves half a line where a whole one can follow it.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// How far back the beginning of a torn line is looked for: further than any record is long.
const LONGEST_LINE: u64 = 8 * 1024 * 1024;

/// Takes lines, one batch after the other.
pub(super) trait Sink: Send + 'static {
    /// Appends `lines`, and returns when they are safe.
    fn append(&mut self, lines: &[u8]) -> Result<(), Partial>;
}

/// Not all lines could be appended.
#[derive(Debug)]
pub(super) struct Partial {
    /// So many bytes, whole lines, were appended all the same.
    pub(super) kept: usize,
    pub(super) error: io::Error,
}

impl From<io::Error> for Partial {
    fn from(error: io::Error) -> Self {
        Self { kept: 0, error }
    }
}

/// Writes all of `bytes`, or says how many were written.
fn write_all(out: &mut impl Write, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut rest = bytes;
    while !rest.is_empty() {
        match out.write(rest) {
            Ok(0) => return Err((bytes.len() - rest.len(), io::ErrorKind::WriteZero.into())),
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((bytes.len() - rest.len(), error)),
        }
    }
    Ok(())
}

/// Length of the whole lines at the beginning of `bytes`.
fn whole_lines(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)
}

/// A stream, such as standard output, from which nothing can be taken back: after half a line the next one begins on
/// a line of its own.
pub(super) struct Stream<W> {
    out: W,
    torn: bool,
}

impl<W: Write> Stream<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, torn: false }
    }
}

impl<W: Write + Send + 'static> Sink for Stream<W> {
    fn append(&mut self, lines: &[u8]) -> Result<(), Partial> {
        if self.torn {
            write_all(&mut self.out, b"\n").map_err(|(_, error)| error)?;
            self.torn = false;
        }
        if let Err((written, error)) = write_all(&mut self.out, lines) {
            let kept = whole_lines(lines.get(..written).unwrap_or_default());
            self.torn = kept < written;
            return Err(Partial { kept, error });
        }
        self.out.flush()?;
        Ok(())
    }
}

/// A file that is only ever appended to. Opened anew when it is renamed or removed; several controllers may share it.
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
}

impl LogFile {
    /// Opens the file at `path`, or makes one that its owner alone can read.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: open(path)? })
    }

    /// Follows a rotation.
    fn reopen(&mut self) -> io::Result<()> {
        let open_one = self.file.metadata()?;
        match std::fs::metadata(&self.path) {
            Ok(there) if (there.dev(), there.ino()) == (open_one.dev(), open_one.ino()) => Ok(()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => {
                self.file = open(&self.path)?;
                Ok(())
            }
        }
    }

    fn append_alone(&mut self, lines: &[u8]) -> Result<(), Partial> {
        let begin = self.end_of_whole_lines()?;
        let written = write_all(&mut self.file, lines);
        let outcome = written.and_then(|()| self.file.sync_data().map_err(|error| (lines.len(), error)));
        let Err((_, error)) = outcome else { return Ok(()) };
        // Nothing of it counts: after a failed flush nobody knows what reached the disk, but for what is written anew.
        // Should this fail, the next append finds the torn line.
        let _ = self.file.set_len(begin);
        Err(error.into())
    }

    /// Where the next line belongs. A torn line, left by a crash, is cut off, or ended where files may only grow.
    fn end_of_whole_lines(&mut self) -> io::Result<u64> {
        let length = self.file.metadata()?.len();
        let mut last = [b'\n'];
        if length > 0 {
            self.file.read_exact_at(&mut last, length - 1)?;
        }
        if last == *b"\n" {
            return Ok(length);
        }
        let begin = length.saturating_sub(LONGEST_LINE);
        let mut tail = vec![0; usize::try_from(length - begin).unwrap_or(0)];
        self.file.read_exact_at(&mut tail, begin)?;
        let whole = begin + u64::try_from(whole_lines(&tail)).unwrap_or(0);
        if (begin == 0 || whole > begin) && self.file.set_len(whole).is_ok() {
            return Ok(whole);
        }
        self.file.write_all(b"\n")?;
        Ok(length + 1)
    }
}

impl Sink for LogFile {
    fn append(&mut self, lines: &[u8]) -> Result<(), Partial> {
        self.reopen()?;
        // While one of several controllers writes, no other can, so that what it takes back is its own.
        self.file.lock()?;
        let outcome = self.append_alone(lines);
        self.file.unlock()?;
        outcome
    }
}

fn open(path: &Path) -> io::Result<File> {
    let is_new = !path.exists();
    let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    if is_new {
        // The name has to survive a crash, too.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests;
