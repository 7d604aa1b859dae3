//! The files in a volume: `token`, which Hadoop clients read, and `token.json`, which says without any secret whose
//! it is and how long it lasts. Both are links into a directory that is replaced as a whole by renaming one link, so
//! that a reader sees the old files or the new ones and never a part. The directory before the current one is kept: a
//! reader that has just followed the link still finds its file there.

use std::{
    ffi::OsString,
    fs, io,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
};

use hadoop::token_file::TokenFile;
use jiff::Timestamp;
use process::fault;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    mount::directory_mode,
    volume::{AboutToken, AddressVerification, Phase, Pod, Record, Stop},
};

const TOKEN: &str = "token";
const SUMMARY: &str = "token.json";

/// The link that is replaced, and its name while it is made.
const CURRENT: &str = "..data";
const NEXT: &str = "..data_next";

/// Beginning of the names of the directories that it leads to.
const GENERATION: &str = "..files-";

/// The root of a mounted volume.
#[derive(Debug)]
pub(crate) struct TokenDir {
    root: PathBuf,
    group: Option<u32>,
}

/// What becomes of `token` when the files are replaced.
enum Content<'a> {
    New(&'a TokenFile),
    Same,
    None,
}

/// What `token.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Summary {
    pub(crate) user: String,
    pub(crate) cluster: String,
    pub(crate) pod: Pod,
    pub(crate) tokens: Vec<AboutToken>,
    pub(crate) next_renewal: Option<Timestamp>,
    #[serde(default)]
    pub(crate) next_rotation: Option<Timestamp>,
    #[serde(default)]
    pub(crate) address_verification: AddressVerification,
    /// What has to happen before there is a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) waiting: Option<String>,
    /// Why there is no token any more, or never will be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stopped: Option<Stop>,
    /// What somebody should know before relying on this installation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) warning: Option<String>,
}

/// What is said wherever the controller trusts what nobody sealed.
pub(crate) const UNSEALED: &str = "This is a development installation: the controller trusts annotations that nobody \
    sealed, so that whoever may create pods can be any Hadoop user";

/// What a volume without a token waits for at first.
const WAITING: &str = "for the API server to know the pod's addresses";

impl Summary {
    /// What may be told of a record.
    pub(crate) fn of(record: &Record) -> Self {
        Self {
            user: record.user.clone(),
            cluster: record.cluster.clone(),
            pod: record.volume.pod.clone(),
            tokens: match record.phase {
                Phase::Issued | Phase::Published => {
                    record.tokens.iter().map(|token| token.about.clone()).collect()
                }
                Phase::Waiting | Phase::Stopped => Vec::new(),
            },
            next_renewal: record.next_renewal,
            next_rotation: record.next_rotation,
            address_verification: record.address_verification,
            waiting: (record.phase == Phase::Waiting).then(|| WAITING.to_owned()),
            stopped: record.stopped.clone(),
            warning: record.unsealed.then(|| UNSEALED.to_owned()),
        }
    }
}

impl TokenDir {
    /// The files of the volume mounted at `root`, to be read by `group`, or by everybody.
    pub(crate) fn new(root: &Path, group: Option<u32>) -> Self {
        Self { root: root.to_owned(), group }
    }

    /// Writes both files, in place of older ones.
    ///
    /// # Errors
    /// When the file system refuses; older files are then still there.
    pub(crate) fn write(&self, token: &TokenFile, summary: &Summary) -> io::Result<()> {
        fault::point("files.write:before");
        self.replace(summary, &Content::New(token))?;
        fault::point("files.write:after");
        Ok(())
    }

    /// Writes `token.json` anew, and takes the token away if there is one: from every directory, at once.
    ///
    /// # Errors
    /// When the file system refuses; what was there may then still be there.
    pub(crate) fn write_without_token(&self, summary: &Summary) -> io::Result<()> {
        self.replace(summary, &Content::None)
    }

    /// Writes `token.json` anew. The token stays the very same file.
    ///
    /// # Errors
    /// When the file system refuses; the older file is then still there.
    pub(crate) fn write_summary(&self, summary: &Summary) -> io::Result<()> {
        self.replace(summary, &Content::Same)
    }

    /// Reads the tokens back.
    ///
    /// # Errors
    /// When there is no readable token file.
    pub(crate) fn read(&self) -> io::Result<TokenFile> {
        let bytes = Zeroizing::new(fs::read(self.root.join(CURRENT).join(TOKEN))?);
        TokenFile::decode(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Whether there is a token file.
    pub(crate) fn has_token(&self) -> bool {
        fs::metadata(self.root.join(TOKEN)).is_ok_and(|file| file.is_file())
    }

    /// Reads `token.json` back.
    ///
    /// # Errors
    /// When there is no readable summary.
    pub(crate) fn read_summary(&self) -> io::Result<Summary> {
        let bytes = fs::read(self.root.join(CURRENT).join(SUMMARY))?;
        serde_json::from_slice(&bytes).map_err(Into::into)
    }

    /// Takes the tokens away, and leaves the rest to unmounting.
    ///
    /// # Errors
    /// When the file system refuses. No files are no error.
    pub(crate) fn wipe(&self) -> io::Result<()> {
        match fs::remove_file(self.root.join(CURRENT)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.remove_generations(&[])
    }

    fn replace(&self, summary: &Summary, token: &Content<'_>) -> io::Result<()> {
        let next = tempfile::Builder::new().prefix(GENERATION).tempdir_in(&self.root)?;
        let path = next.path().join(TOKEN);
        match token {
            Content::New(token) => self.write_file(&path, &token.encode_v0())?,
            Content::Same => fs::hard_link(self.root.join(CURRENT).join(TOKEN), path)?,
            Content::None => {}
        }
        let mut json = serde_json::to_vec_pretty(summary)?;
        json.push(b'\n');
        self.write_file(&next.path().join(SUMMARY), &json)?;
        self.hand_over(next.path(), directory_mode(self.group))?;
        let name = next.path().file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();

        let previous = fs::read_link(self.root.join(CURRENT)).ok();

        let link = self.root.join(NEXT);
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {} // a crash may have left one
        }
        symlink(&name, &link)?;
        fs::rename(&link, self.root.join(CURRENT))?;
        let _ = next.keep(); // from here on it is the current one
        let mut kept = vec![name];
        self.link(SUMMARY)?;
        match token {
            Content::New(_) | Content::Same => {
                self.link(TOKEN)?;
                kept.extend(previous.map(PathBuf::into_os_string));
            }
            Content::None => match fs::remove_file(self.root.join(TOKEN)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            },
        }
        self.remove_generations(&kept)
    }

    /// Makes the link by which clients find a file, if it is not there.
    fn link(&self, file: &str) -> io::Result<()> {
        match symlink(Path::new(CURRENT).join(file), self.root.join(file)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes all generations but these, those that crashes left among them.
    fn remove_generations(&self, kept: &[OsString]) -> io::Result<()> {
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_generation = name.to_string_lossy().starts_with(GENERATION);
            if is_generation && !kept.contains(&name) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    fn write_file(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(content)?;
        let mode = if self.group.is_some() { 0o440 } else { 0o444 };
        self.hand_over(path, mode)
    }

    fn hand_over(&self, path: &Path, mode: u32) -> io::Result<()> {
        chown(path, None, self.group)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::MetadataExt,
        sync::atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use hadoop::Token;

    use super::*;
    use crate::{
        mount::{
            Mounter,
            tests::{in_private_mounts, tmpfs},
        },
        volume::tests::record,
    };

    fn token_file(password: &str) -> TokenFile {
        let token = Token::new(b"id".to_vec(), password.as_bytes(), "HDFS_DELEGATION_TOKEN", "nn1:8020");
        TokenFile { tokens: vec![("nn1:8020".to_owned(), token)], secrets: vec![] }
    }

    fn summary(user: &str) -> Summary {
        Summary { user: user.to_owned(), ..Summary::of(&record("uid", Timestamp::UNIX_EPOCH)) }
    }

    /// A mounted volume, with `group` and in a namespace of its own.
    fn mounted(group: Option<u32>, test: impl FnOnce(&Path, TokenDir) + Send) {
        in_private_mounts(|| {
            let dir = tempfile::tempdir().unwrap();
            tmpfs().mount(dir.path(), group).unwrap();
            test(dir.path(), TokenDir::new(dir.path(), group));
            tmpfs().unmount(dir.path()).unwrap();
        });
    }

    fn names(root: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn clients_find_a_token_file_of_version_0_and_a_summary_without_secrets() {
        mounted(None, |root, files| {
            files.write(&token_file("s3cret"), &summary("etl")).unwrap();
            assert_eq!(fs::read(root.join("token")).unwrap(), *token_file("s3cret").encode_v0());
            let json = fs::read_to_string(root.join("token.json")).unwrap();
            assert!(json.contains("\"user\": \"etl\"") && json.contains("\"sequenceNumber\": 42"), "{json}");
            assert!(
                !json.contains("s3cret") && !json.contains("identifier") && !json.contains("password"),
                "{json}"
            );
            assert_eq!(files.read().unwrap(), token_file("s3cret"));
            assert_eq!(files.read_summary().unwrap(), summary("etl"));
        });
    }

    #[test]
    fn the_group_alone_may_read_where_there_is_one() {
        mounted(Some(2000), |root, files| {
            files.write(&token_file("s3cret"), &summary("etl")).unwrap();
            let shown =
                |path: PathBuf| fs::metadata(path).map(|m| (m.mode() & 0o7777, m.uid(), m.gid())).unwrap();
            assert_eq!(shown(root.join("token")), (0o440, 0, 2000));
            assert_eq!(shown(root.join("token.json")), (0o440, 0, 2000));
            assert_eq!(shown(root.join("..data")), (0o550, 0, 2000));
        });
    }

    #[test]
    fn everybody_in_the_pod_may_read_where_there_is_no_group() {
        mounted(None, |root, files| {
            files.write(&token_file("s3cret"), &summary("etl")).unwrap();
            let mode = |name: &str| fs::metadata(root.join(name)).unwrap().mode() & 0o7777;
            assert_eq!((mode("token"), mode("token.json"), mode("..data")), (0o444, 0o444, 0o555));
        });
    }

    #[test]
    fn a_new_summary_leaves_the_token_the_same_file() {
        mounted(Some(7), |root, files| {
            files.write(&token_file("s3cret"), &summary("etl")).unwrap();
            let inode = || fs::metadata(root.join("token")).map(|m| (m.ino(), m.mtime_nsec())).unwrap();
            let before = inode();
            files.write_summary(&summary("later")).unwrap();
            assert_eq!(inode(), before);
            assert_eq!(files.read_summary().unwrap().user, "later");
        });
    }

    #[test]
    fn replacing_leaves_two_generations_and_no_leftovers_of_crashes() {
        mounted(None, |root, files| {
            files.write(&token_file("one"), &summary("etl")).unwrap();
            fs::create_dir(root.join("..files-crashed")).unwrap();
            symlink("..files-crashed", root.join("..data_next")).unwrap();
            files.write(&token_file("two"), &summary("etl")).unwrap();
            files.write(&token_file("three"), &summary("etl")).unwrap();
            assert_eq!(files.read().unwrap(), token_file("three"));
            assert_eq!(names(root).len(), 5, "{:?}", names(root));
        });
    }

    #[test]
    fn a_failed_replacement_leaves_the_old_files_and_nothing_else() {
        mounted(None, |root, files| {
            files.write(&token_file("old"), &summary("etl")).unwrap();
            let big = "x".repeat(2 * 1024 * 1024);
            let error = files.write(&token_file(&big), &summary("etl")).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            assert_eq!(files.read().unwrap(), token_file("old"));
            assert_eq!(names(root).len(), 4, "{:?}", names(root));
        });
    }

    #[test]
    fn a_reader_sees_the_old_files_or_the_new_ones() {
        mounted(None, |root, files| {
            files.write(&token_file("one"), &summary("etl")).unwrap();
            let (one, two) = (token_file("one"), token_file("two"));
            let (reads, replacements) = (AtomicUsize::new(0), AtomicUsize::new(0));
            std::thread::scope(|scope| {
                let reader = scope.spawn(|| {
                    while replacements.load(SeqCst) < 1_000 {
                        let seen = TokenFile::decode(&fs::read(root.join("token")).unwrap()).unwrap();
                        assert!(seen == one || seen == two);
                        reads.fetch_add(1, SeqCst);
                    }
                });
                for file in [&two, &one].into_iter().cycle() {
                    // A reader is not slower than the time between two replacements.
                    let before = reads.load(SeqCst);
                    while reads.load(SeqCst) == before && !reader.is_finished() {
                        std::thread::yield_now();
                    }
                    if reader.is_finished() {
                        break;
                    }
                    files.write(file, &summary("etl")).unwrap();
                    replacements.fetch_add(1, SeqCst);
                }
                reader.join().unwrap();
            });
        });
    }

    #[test]
    fn wiping_takes_the_tokens_away_and_may_be_repeated() {
        mounted(None, |_, files| {
            files.wipe().unwrap();
            files.write(&token_file("s3cret"), &summary("etl")).unwrap();
            files.wipe().unwrap();
            files.wipe().unwrap();
            assert_eq!(files.read().unwrap_err().kind(), io::ErrorKind::NotFound);
        });
    }
}
