//! The program is killed between any two steps that outlive it. The next start, and what kubelet then repeats, leave
//! every token mounted or cancelled, and nothing else behind.
//!
//! A test that is to be killed runs as a process of its own: this very program, told by the environment what to do. It
//! shares its folder and its mounts with the test that started it.

use std::{env, fs, os::unix::process::ExitStatusExt, path::Path, process::Command};

use hadoop::token_file::TokenFile;

use crate::{
    bed::{Bed, DAY, HOUR, on_a_bed_in, pass},
    mount::tests::in_private_mounts,
    volume::{Phase, Record},
};

const FAULTS: &str = "HADOOP_TOKEN_CSI_FAULTS";
const FOLDER: &str = "HADOOP_TOKEN_CSI_KILLED_IN";
const DEED: &str = "HADOOP_TOKEN_CSI_KILLED_WHILE";
/// Name of [`what_is_killed`].
const KILLED: &str = "volume::recovery::kills::what_is_killed";

/// What the program does when it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Publish,
    Unpublish,
    Rotate,
    Restart,
}

impl Deed {
    async fn done(self, bed: &mut Bed, arm: impl Fn()) {
        if self == Self::Publish {
            arm();
        }
        bed.publish().await.unwrap();
        bed.settle().await;
        match self {
            Self::Publish => {}
            Self::Unpublish => {
                arm();
                bed.unpublish().await.unwrap();
                bed.settle().await;
            }
            Self::Rotate => {
                arm();
                pass(6 * DAY + 20 * HOUR).await;
            }
            Self::Restart => {
                bed.stop_driver().await;
                fs::write(bed.record_file(), "{").unwrap();
                arm();
                bed.restart_driver().await;
            }
        }
    }
}

/// Kills the program at `point` of a deed, and sees what is there after the next start.
fn check(deed: Deed, point: &str, after: impl AsyncFnOnce(Bed)) {
    let dir = tempfile::tempdir().unwrap();
    let faults = dir.path().join("faults");
    fs::create_dir(&faults).unwrap();
    fs::write(dir.path().join("point"), point).unwrap();
    let ended = Command::new(env::current_exe().unwrap())
        .args(["--exact", KILLED, "--nocapture"])
        .env(FAULTS, &faults)
        .env(FOLDER, dir.path())
        .env(DEED, format!("{deed:?}"))
        .output()
        .unwrap();
    assert_eq!(
        ended.status.signal(),
        Some(9),
        "{deed:?}, {point}: {}",
        String::from_utf8_lossy(&ended.stderr)
    );
    println!("{deed:?}, {point}");
    on_a_bed_in(dir.path(), after);
}

/// Not a test of its own: what [`check`] has killed.
#[test]
fn what_is_killed() {
    let Some(dir) = env::var_os(FOLDER) else { return };
    let dir = Path::new(&dir);
    let deeds = [Deed::Publish, Deed::Unpublish, Deed::Rotate, Deed::Restart];
    let deed = env::var(DEED).unwrap();
    let deed = deeds.into_iter().find(|known| format!("{known:?}") == deed).unwrap();
    on_a_bed_in(dir, async |mut bed| {
        let arm = || {
            let point = fs::read_to_string(dir.join("point")).unwrap();
            fs::write(dir.join("faults").join(point), "").unwrap();
        };
        deed.done(&mut bed, arm).await;
    });
}

/// Numbers of the tokens that are in the volume.
fn mounted(bed: &Bed) -> Vec<u8> {
    let file = TokenFile::decode(&fs::read(bed.target().join("token")).unwrap()).unwrap();
    let mut numbers: Vec<u8> =
        file.tokens.iter().map(|(_, token)| *token.identifier.last().unwrap()).collect();
    numbers.dedup();
    numbers
}

/// Numbers of the tokens that the record has.
fn recorded(record: &Record) -> Vec<u8> {
    record.tokens.iter().map(|token| *token.identifier.last().unwrap()).collect()
}

/// kubelet publishes again, and at last unpublishes.
async fn lives_on_and_ends(bed: Bed) {
    bed.publish().await.unwrap();
    pass(11_000).await;
    let (record, mounted) = (bed.record().unwrap(), mounted(&bed));
    assert_eq!((bed.mounts(), record.phase), (1, Phase::Published));
    assert_eq!(recorded(&record), mounted);
    let live = bed.controller.live();
    assert!(mounted.iter().all(|number| live.contains(number)), "{live:?} without {mounted:?}");
    bed.unpublish().await.unwrap();
    pass(11_000).await;
    assert_eq!((bed.mounts(), bed.target().exists(), bed.record()), (0, false, None));
    assert_eq!(fs::read_dir(bed.state().join("released")).unwrap().count(), 0);
    assert_eq!(bed.controller.live(), [0u8; 0]);
}

#[test]
fn killed_while_it_publishes() {
    in_private_mounts(|| {
        for point in ["rpc.issue:before", "record.put:after", "mount:before", "mount:after"] {
            check(Deed::Publish, point, async |bed| lives_on_and_ends(bed).await);
        }
        for point in ["files.write:before", "files.write:after"] {
            check(Deed::Publish, point, async |bed| lives_on_and_ends(bed).await);
        }
        // Nothing of the token came to the disk: the controller finds it in its ledger.
        for point in ["rpc.issue:after", "record.put:before"] {
            check(Deed::Publish, point, async |bed| lives_on_and_ends(bed).await);
        }
    });
}

#[test]
fn killed_while_it_unpublishes() {
    in_private_mounts(|| {
        let released = ["record.release:before", "record.release:after"];
        let unmounted = ["unmount:before", "unmount:after"];
        for point in released.into_iter().chain(unmounted).chain(["rpc.release:before", "rpc.release:after"])
        {
            check(Deed::Unpublish, point, async |bed| {
                bed.unpublish().await.unwrap();
                pass(11_000).await;
                bed.assert_nothing_left().await;
            });
            // Or the pod was only restarted.
            check(Deed::Unpublish, point, async |bed| lives_on_and_ends(bed).await);
        }
    });
}

#[test]
fn killed_while_it_replaces_a_token() {
    in_private_mounts(|| {
        // The one before is good until the pod ends, and then the controller's to cancel: only its ledger has it.
        for (point, has) in [("files.swap:before", 1), ("files.swap:after", 2)] {
            check(Deed::Rotate, point, async |bed| {
                assert_eq!(mounted(&bed), [has]);
                lives_on_and_ends(bed).await;
            });
        }
    });
}

#[test]
fn killed_while_it_puts_a_record_aside() {
    in_private_mounts(|| {
        for point in ["record.quarantine:before", "record.quarantine:after"] {
            check(Deed::Restart, point, async |bed| lives_on_and_ends(bed).await);
        }
    });
}
