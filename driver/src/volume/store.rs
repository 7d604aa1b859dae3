//! Records on disk: one file for each volume, replaced atomically and synced, so that whatever happens to the node
//! plugin, every token can still be cancelled. Records of released volumes stand apart, under names of their own,
//! until their tokens are cancelled; a pod's volume may meanwhile be published again. What cannot be read is put
//! aside, never deleted.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use nix::errno::Errno;
use process::fault;
use proto::VolumeId;
use tempfile::NamedTempFile;
use tracing::warn;

use super::Record;
use crate::clock::Clock;

/// The directory of records.
#[derive(Debug)]
pub(crate) struct Store {
    volumes: PathBuf,
    released: PathBuf,
    quarantined: PathBuf,
}

/// Name of a released volume's record.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ReleaseId(String);

impl ReleaseId {
    /// A name that no release of this volume has in `dir`. Nobody else makes any: callers hold the volume's lock.
    fn unused(dir: &Path, id: &VolumeId) -> io::Result<Self> {
        unused(dir, |number| format!("{id}.{number}.json")).map(Self)
    }

    /// A name for a record that could not be written.
    pub(crate) fn unstored(id: &VolumeId, number: usize) -> Self {
        Self(format!("{id}.unstored-{number}"))
    }
}

impl Store {
    /// Opens the directory, making it if it is not there, and clears what a crash left half-written.
    ///
    /// # Errors
    /// When the directories cannot be made or read.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let store = Self {
            volumes: dir.to_owned(),
            released: dir.join("released"),
            quarantined: dir.join("quarantined"),
        };
        for dir in [&store.volumes, &store.released, &store.quarantined] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        for dir in [&store.volumes, &store.released] {
            for name in file_names(dir)? {
                if name.starts_with(TEMPORARY) {
                    fs::remove_file(dir.join(name))?;
                }
            }
        }
        Ok(store)
    }

    /// Removes the directory `dir` if it holds no record of any kind, so that nothing is left on a node where the product
    /// is not installed any more. Whether it did.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn leave(dir: &Path) -> io::Result<bool> {
        let folders = [dir.join("released"), dir.join("quarantined")];
        for folder in folders.iter().map(PathBuf::as_path).chain([dir]) {
            if !file_names(folder)?.is_empty() {
                return Ok(false);
            }
        }
        for folder in folders {
            fs::remove_dir(folder)?;
        }
        Clock::forget(dir)?;
        fs::remove_dir(dir)?;
        Ok(true)
    }

    /// The record of a volume, if there is one. One that cannot be read is put aside.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn get(&self, id: &VolumeId) -> io::Result<Option<Record>> {
        let record = self.read(&self.volumes, &file_name(id))?;
        Ok(record.filter(|record| record.volume.id == *id))
    }

    /// The records of all volumes that are not released. Others may be at work meanwhile: what they are writing is none
    /// yet.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn all(&self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for name in file_names(&self.volumes)? {
            if name.starts_with(TEMPORARY) {
                continue;
            }
            let Some(record) = self.read(&self.volumes, &name)? else { continue };
            if file_name(&record.volume.id) == name {
                records.push(record);
            } else {
                self.quarantine(&self.volumes, &name, "it is the record of another volume");
            }
        }
        Ok(records)
    }

    /// Writes a volume's record, in place of an older one.
    ///
    /// # Errors
    /// When the disk fails; the older one is then still there.
    pub(crate) fn put(&self, record: &Record) -> io::Result<()> {
        fault::point("record.put:before");
        write(&self.volumes, &file_name(&record.volume.id), record)?;
        fault::point("record.put:after");
        Ok(())
    }

    /// Forgets a volume's record, if there is one: it has no tokens.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn remove(&self, id: &VolumeId) -> io::Result<()> {
        fs::remove_file(self.volumes.join(file_name(id))).or_else(missing_is_fine)?;
        sync(&self.volumes)
    }

    /// Makes a volume's record a released one, in one step.
    ///
    /// # Errors
    /// When the disk fails; a record that was there is then still there, in either place.
    pub(crate) fn release(&self, id: &VolumeId) -> io::Result<ReleaseId> {
        let release = ReleaseId::unused(&self.released, id)?;
        fault::point("record.release:before");
        fs::rename(self.volumes.join(file_name(id)), self.released.join(&release.0))?;
        sync(&self.released)?;
        sync(&self.volumes)?;
        fault::point("record.release:after");
        Ok(release)
    }

    /// Writes a released record that never was a volume's.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn put_released(&self, record: &Record) -> io::Result<ReleaseId> {
        let release = ReleaseId::unused(&self.released, &record.volume.id)?;
        fault::point("record.release:before");
        write(&self.released, &release.0, record)?;
        fault::point("record.release:after");
        Ok(release)
    }

    /// Names of all released records.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn all_released(&self) -> io::Result<Vec<ReleaseId>> {
        Ok(file_names(&self.released)?.into_iter().map(ReleaseId).collect())
    }

    /// A released record, if it is there. One that cannot be read is put aside.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn get_released(&self, release: &ReleaseId) -> io::Result<Option<Record>> {
        self.read(&self.released, &release.0)
    }

    /// Forgets a released record: its tokens are cancelled.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn remove_released(&self, release: &ReleaseId) -> io::Result<()> {
        fs::remove_file(self.released.join(&release.0)).or_else(missing_is_fine)?;
        sync(&self.released)
    }

    fn read(&self, dir: &Path, name: &str) -> io::Result<Option<Record>> {
        let why = match fs::read(dir.join(name)) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(record) => return Ok(Some(record)),
                Err(error) => error.to_string(),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if is_damage(&error) => error.to_string(),
            Err(error) => return Err(error),
        };
        self.quarantine(dir, name, &why);
        Ok(None)
    }

    /// Puts a record aside that would be in the way for ever. Its tokens are cancelled by the controller, which has
    /// them in its ledger, once the pod is gone.
    fn quarantine(&self, dir: &Path, name: &str, why: &str) {
        fault::point("record.quarantine:before");
        match self.put_aside(dir, name) {
            Ok(to) => {
                warn!(record = name, moved_to = %to.display(), why, "Put aside a record that cannot be read");
            }
            Err(error) => {
                warn!(record = name, why, %error, "Failed to put aside a record that cannot be read");
            }
        }
        fault::point("record.quarantine:after");
    }

    fn put_aside(&self, dir: &Path, name: &str) -> io::Result<PathBuf> {
        let to = self.quarantined.join(unused(&self.quarantined, |number| format!("{name}.{number}"))?);
        fs::rename(dir.join(name), &to)?;
        sync(&self.quarantined)?;
        sync(dir)?;
        Ok(to)
    }
}

/// The first of these names that nothing has in `dir`.
fn unused(dir: &Path, name: impl Fn(usize) -> String) -> io::Result<String> {
    let mut number = 0;
    loop {
        let name = name(number);
        if !dir.join(&name).try_exists()? {
            return Ok(name);
        }
        number += 1;
    }
}

/// Whether a file itself cannot be read, and not only now.
fn is_damage(error: &io::Error) -> bool {
    let damage = [Errno::EIO, Errno::EBADMSG, Errno::EUCLEAN, Errno::EISDIR];
    error.raw_os_error().is_some_and(|number| damage.contains(&Errno::from_raw(number)))
}

/// Beginning of the names of files that are being written.
const TEMPORARY: &str = ".new-";

fn file_name(id: &VolumeId) -> String {
    format!("{id}.json")
}

/// Names of the plain files in a directory. Ours are all UTF-8.
fn file_names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let file_type = entry.file_type();
        if matches!(&file_type, Err(error) if error.kind() == io::ErrorKind::NotFound) {
            continue; // it is gone meanwhile
        }
        if file_type?.is_file() {
            names.extend(entry.file_name().into_string().ok());
        }
    }
    names.sort();
    Ok(names)
}

fn write(dir: &Path, name: &str, record: &Record) -> io::Result<()> {
    let mut file: NamedTempFile = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(dir)?;
    serde_json::to_writer(&mut file, record)?;
    file.write_all(b"\n")?;
    file.as_file().sync_all()?;
    file.persist(dir.join(name))?;
    sync(dir)
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn missing_is_fine(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::volume::tests::record;

    fn open() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state")).unwrap();
        (dir, store)
    }

    fn one(uid: &str) -> Record {
        record(uid, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn keeps_records_over_a_restart() {
        let (dir, store) = open();
        store.put(&one("a")).unwrap();
        store.put(&one("b")).unwrap();
        store.put(&Record { fs_group: None, ..one("b") }).unwrap();
        let store = Store::open(&dir.path().join("state")).unwrap();
        assert_eq!(store.get(&one("a").volume.id).unwrap(), Some(one("a")));
        assert_eq!(store.get(&one("b").volume.id).unwrap().unwrap().fs_group, None);
        assert_eq!(store.get(&one("c").volume.id).unwrap(), None);
        assert_eq!(store.all().unwrap().len(), 2);
    }

    #[test]
    fn an_unused_directory_is_left_without_a_trace_and_a_used_one_as_it_is() {
        let (dir, store) = open();
        let state = dir.path().join("state");
        let id = one("a").volume.id;
        store.put(&one("a")).unwrap();
        assert!(!Store::leave(&state).unwrap());
        let release = store.release(&id).unwrap();
        assert!(!Store::leave(&state).unwrap());
        assert!(store.get_released(&release).unwrap().is_some());
        store.remove_released(&release).unwrap();
        let _ = Clock::steady(&state);
        assert!(Store::leave(&state).unwrap());
        assert!(!state.exists());
        assert!(Store::open(&state).unwrap().all().unwrap().is_empty());
    }

    #[test]
    fn a_volume_may_be_released_again_before_the_first_release_is_done() {
        let (_dir, store) = open();
        let id = one("a").volume.id;
        store.put(&one("a")).unwrap();
        let first = store.release(&id).unwrap();
        assert_eq!(store.get(&id).unwrap(), None);
        store.put(&Record { user: "other".to_owned(), ..one("a") }).unwrap();
        let second = store.release(&id).unwrap();
        let third = store.put_released(&one("a")).unwrap();
        assert_eq!(store.all_released().unwrap(), [first.clone(), second.clone(), third]);
        assert_eq!(store.get_released(&first).unwrap().unwrap().user, "etl");
        assert_eq!(store.get_released(&second).unwrap().unwrap().user, "other");
        store.remove_released(&first).unwrap();
        store.remove_released(&first).unwrap();
        assert_eq!(store.get_released(&first).unwrap(), None);
        assert_eq!(store.all_released().unwrap().len(), 2);
    }

    #[test]
    fn releasing_what_has_no_record_is_an_error() {
        let (_dir, store) = open();
        let error = store.release(&one("a").volume.id).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_corrupt_record_is_put_aside_and_the_others_are_read() {
        let (dir, store) = open();
        let state = dir.path().join("state");
        store.put(&one("a")).unwrap();
        store.put(&one("b")).unwrap();
        let name = file_name(&one("b").volume.id);
        for content in ["", "{\"version\":\"v1\"", "{\"version\":\"v9\"}", "\0\0\0\0"] {
            fs::write(state.join(&name), content).unwrap();
            assert_eq!(store.all().unwrap(), [one("a")], "{content:?}");
            assert!(!state.join(&name).exists());
        }
        // None in place of another.
        let mut kept: Vec<String> = fs::read_dir(state.join("quarantined"))
            .unwrap()
            .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
            .collect();
        kept.sort();
        assert_eq!(kept, ["", "\0\0\0\0", "{\"version\":\"v1\"", "{\"version\":\"v9\"}"]);
        let release = ReleaseId::unused(&state.join("released"), &one("a").volume.id).unwrap();
        fs::write(state.join("released").join(&release.0), "rubbish").unwrap();
        assert_eq!(store.get_released(&release).unwrap(), None);
        assert_eq!(store.all_released().unwrap(), []);
    }

    #[test]
    fn a_record_that_the_disk_does_not_give_back_is_put_aside() {
        let (dir, store) = open();
        let path = dir.path().join("state").join(file_name(&one("a").volume.id));
        fs::create_dir(&path).unwrap(); // reading it fails, as it does on a bad sector
        assert_eq!(store.get(&one("a").volume.id).unwrap(), None);
        assert!(!path.exists());
        store.put(&one("a")).unwrap();
        assert_eq!(store.get(&one("a").volume.id).unwrap(), Some(one("a")));
        for (error, is) in [(Errno::EIO, true), (Errno::EUCLEAN, true), (Errno::EMFILE, false)] {
            assert_eq!(is_damage(&io::Error::from(error)), is, "{error}");
        }
    }

    #[test]
    fn a_record_under_another_volumes_name_is_put_aside() {
        let (dir, store) = open();
        let state = dir.path().join("state");
        store.put(&one("a")).unwrap();
        fs::copy(state.join(file_name(&one("a").volume.id)), state.join(file_name(&one("b").volume.id)))
            .unwrap();
        assert_eq!(store.all().unwrap(), [one("a")]);
    }

    #[test]
    fn what_others_are_writing_is_no_record_and_left_alone() {
        let (_dir, store) = open();
        store.put(&one("a")).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| (0..200).try_for_each(|_| store.put(&one("b"))));
            while !writer.is_finished() {
                assert!(store.all().unwrap().contains(&one("a")));
            }
            writer.join().unwrap().unwrap();
        });
        assert_eq!(store.all().unwrap().len(), 2);
        assert_eq!(file_names(&store.quarantined).unwrap(), [""; 0]);
    }

    #[test]
    fn what_a_crash_left_half_written_is_cleared() {
        let (dir, _store) = open();
        let state = dir.path().join("state");
        fs::write(state.join(".new-x1y2"), "{").unwrap();
        fs::write(state.join("released/.new-x1y2"), "{").unwrap();
        let store = Store::open(&state).unwrap();
        assert_eq!((store.all().unwrap().len(), store.all_released().unwrap().len()), (0, 0));
        assert!(!state.join(".new-x1y2").exists() && !state.join("released/.new-x1y2").exists());
    }

    #[test]
    fn only_the_owner_may_read_records() {
        use std::os::unix::fs::PermissionsExt;
        let (dir, store) = open();
        store.put(&one("a")).unwrap();
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(dir.path().join("state")), 0o700);
        assert_eq!(mode(dir.path().join("state").join(file_name(&one("a").volume.id))), 0o600);
    }
}
