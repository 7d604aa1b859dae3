//! Real files on real file systems, one of them full; and streams that break off.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use super::*;

/// Runs a test with a file system of its own, of 64 KiB, that ends with it. Only for root.
fn on_a_small_disk<T: Send>(test: impl FnOnce(&Path) -> T + Send) -> T {
    let folder = tempfile::tempdir().unwrap();
    let ended = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).expect("the tests must run as root");
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            mount(Some("tmpfs"), folder.path(), Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
            catch_unwind(AssertUnwindSafe(|| test(folder.path())))
        });
        thread.join()
    });
    ended.flatten().unwrap_or_else(|panic| resume_unwind(panic))
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn a_new_file_is_its_owner_s_alone_and_an_old_one_is_continued() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    LogFile::open(&path).unwrap().append(b"1\n").unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    LogFile::open(&path).unwrap().append(b"2\n3\n").unwrap();
    assert_eq!(text(&path), "1\n2\n3\n");
}

#[test]
fn what_cannot_be_opened_is_said_at_start() {
    let folder = tempfile::tempdir().unwrap();
    for wrong in [folder.path().join("missing/audit.log"), folder.path().to_owned(), "/dev/null".into()] {
        assert!(LogFile::open(&wrong).is_err(), "{}", wrong.display());
    }
}

#[test]
fn a_full_disk_leaves_whole_lines_and_goes_on_when_there_is_room() {
    on_a_small_disk(|disk| {
        let (path, ballast) = (disk.join("audit.log"), disk.join("ballast"));
        let mut file = LogFile::open(&path).unwrap();
        file.append(b"first\n").unwrap();
        fs::write(&ballast, vec![0; 48 * 1024]).unwrap();
        let batch = format!("{}\n", "x".repeat(999)).repeat(40);
        for _ in 0..3 {
            let partial = file.append(batch.as_bytes()).unwrap_err();
            assert_eq!((partial.kept, partial.error.kind()), (0, io::ErrorKind::StorageFull));
            assert_eq!(text(&path), "first\n");
        }
        fs::remove_file(&ballast).unwrap();
        file.append(batch.as_bytes()).unwrap();
        assert_eq!(text(&path), format!("first\n{batch}"));
    });
}

#[track_caller]
fn check_torn(before: &str, after: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    fs::write(&path, before).unwrap();
    LogFile::open(&path).unwrap().append(b"next\n").unwrap();
    assert_eq!(text(&path), after);
}

#[test]
fn a_line_torn_by_a_crash_is_cut_off() {
    check_torn("1\n2\n{\"time\":", "1\n2\nnext\n");
    check_torn("{\"time\":", "next\n");
    check_torn("1\n", "1\nnext\n");
    check_torn("", "next\n");
}

#[test]
fn a_renamed_or_removed_file_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (path, old) = (folder.path().join("audit.log"), folder.path().join("audit.log.1"));
    let mut file = LogFile::open(&path).unwrap();
    file.append(b"1\n").unwrap();
    fs::rename(&path, &old).unwrap();
    file.append(b"2\n").unwrap();
    assert_eq!((text(&old).as_str(), text(&path).as_str()), ("1\n", "2\n"));
    fs::remove_file(&path).unwrap();
    file.append(b"3\n").unwrap();
    assert_eq!(text(&path), "3\n");
    // Copied away and emptied, as some do.
    fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    file.append(b"4\n").unwrap();
    assert_eq!(text(&path), "4\n");
}

#[test]
fn two_controllers_may_share_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    std::thread::scope(|scope| {
        for name in ["a", "b"] {
            let mut file = LogFile::open(&path).unwrap();
            scope.spawn(move || {
                let line = format!("{}\n", name.repeat(5000));
                (0..50).for_each(|_| file.append(line.as_bytes()).unwrap());
            });
        }
    });
    let written = text(&path);
    assert_eq!(written.lines().count(), 100);
    assert!(written.lines().all(|line| line == "a".repeat(5000) || line == "b".repeat(5000)));
}

/// A stream that takes a few bytes at a time, as long as there is room.
#[derive(Clone, Default)]
struct Short {
    taken: Arc<Mutex<Vec<u8>>>,
    room: Arc<AtomicUsize>,
}

impl Write for Short {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(self.room.load(SeqCst)).min(3);
        if count == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.taken.lock().unwrap().extend_from_slice(&bytes[..count]);
        self.room.fetch_sub(count, SeqCst);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn after_half_a_line_in_a_stream_the_next_begins_on_its_own() {
    let out = Short::default();
    let mut stream = Stream::new(out.clone());
    out.room.store(8, SeqCst);
    let partial = stream.append(b"first\nsecond\n").unwrap_err();
    assert_eq!(partial.kept, "first\n".len());
    assert_eq!(stream.append(b"second\n").unwrap_err().kept, 0);
    out.room.store(100, SeqCst);
    stream.append(b"second\nthird\n").unwrap();
    assert_eq!(*out.taken.lock().unwrap(), b"first\nse\nsecond\nthird\n");
}

#[test]
fn a_full_stream_is_an_error() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let partial = Stream::new(full).append(b"line\n").unwrap_err();
    assert_eq!((partial.kept, partial.error.kind()), (0, io::ErrorKind::StorageFull));
}
