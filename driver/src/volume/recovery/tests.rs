//! Starts after all that can have happened to records and mounts meanwhile.

use std::{fs, os::unix::fs::symlink, path::PathBuf};

use nix::mount::{MsFlags, mount};
use proto::VolumeId;

use super::*;
use crate::{
    bed::{Bed, HOUR, on_a_bed, pass},
    mount::Mounter,
    publish_request::tests::UID,
    volume::store::Store,
};

/// What somebody else mounts.
fn mount_another(target: &Path) {
    mount(Some("another"), target, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

fn quarantined(bed: &Bed) -> usize {
    fs::read_dir(bed.state().join("quarantined")).unwrap().count()
}

#[test]
fn a_mounted_volume_whose_record_is_lost_goes_on_before_kubelet_calls() {
    for content in [None, Some(""), Some("{\"version\":\"v1\""), Some("{\"version\":\"v9\"}"), Some("\0\0")] {
        on_a_bed(async |mut bed| {
            bed.publish().await.unwrap();
            let (before, record) = (bed.mounts(), bed.record().unwrap());
            bed.stop_driver().await;
            match content {
                None => fs::remove_file(bed.record_file()).unwrap(),
                Some(content) => fs::write(bed.record_file(), content).unwrap(),
            }
            bed.restart_driver().await;
            let adopted = bed.record().unwrap();
            assert_eq!(quarantined(&bed), usize::from(content.is_some()));
            assert_eq!((adopted.tokens, adopted.next_renewal), (record.tokens, record.next_renewal));
            assert_eq!((adopted.fs_group, adopted.user), (Some(2000), record.user));
            assert_eq!((bed.mounts(), bed.controller.live()), (before, vec![1]));
            bed.publish().await.unwrap();
            pass(20 * HOUR).await;
            assert!(bed.controller.renewals(1) > 0);
            bed.unpublish().await.unwrap();
            bed.assert_nothing_left().await;
        });
    }
}

#[test]
fn a_volume_without_a_group_is_adopted_as_such() {
    on_a_bed(async |mut bed| {
        let mut request = bed.request();
        request.volume_capability = Some(without_group());
        bed.node().node_publish_volume(request).await.unwrap();
        bed.stop_driver().await;
        fs::remove_file(bed.record_file()).unwrap();
        bed.restart_driver().await;
        assert_eq!(bed.record().unwrap().fs_group, None);
    });
}

fn without_group() -> proto::csi::v1::VolumeCapability {
    use proto::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};
    proto::csi::v1::VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
    }
}

#[test]
fn a_mounted_volume_is_found_although_kubelets_folder_is_reached_by_a_link() {
    on_a_bed(async |mut bed| {
        let elsewhere = bed.dir.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        symlink(&elsewhere, bed.pods()).unwrap();
        bed.publish().await.unwrap();
        let record = bed.record().unwrap();
        bed.stop_driver().await;
        fs::remove_file(bed.record_file()).unwrap();
        bed.restart_driver().await;
        assert_eq!(bed.record().unwrap().target, record.target);
        bed.unpublish().await.unwrap();
        bed.assert_nothing_left().await;
    });
}

#[test]
fn an_unpublish_that_a_crash_cut_short_is_done_at_the_next_start() {
    on_a_bed(async |mut bed| {
        bed.publish().await.unwrap();
        bed.stop_driver().await;
        Store::open(&bed.state()).unwrap().release(&VolumeId::of(UID, "hadoop")).unwrap();
        bed.restart_driver().await;
        assert_eq!((bed.mounts(), bed.target().exists()), (0, false));
        pass(11_000).await;
        bed.assert_nothing_left().await;
        bed.unpublish().await.unwrap();
    });
}

#[test]
fn a_mount_whose_files_do_not_tell_what_it_is_stays_until_kubelet_calls() {
    on_a_bed(async |mut bed| {
        bed.publish().await.unwrap();
        let token = fs::read(bed.target().join("token")).unwrap();
        bed.stop_driver().await;
        fs::remove_file(bed.record_file()).unwrap();
        fs::write(bed.target().join("token.json"), "{").unwrap();
        bed.restart_driver().await;
        assert_eq!(bed.record(), None);
        assert_eq!(fs::read(bed.target().join("token")).unwrap(), token, "a pod may be using it");
        bed.unpublish().await.unwrap();
        assert_eq!((bed.mounts(), bed.target().exists()), (0, false));
    });
}

#[test]
fn what_others_mounted_over_a_volume_is_taken_away() {
    on_a_bed(async |mut bed| {
        bed.publish().await.unwrap();
        let before = bed.snapshot();
        for lost in [false, true] {
            bed.stop_driver().await;
            mount_another(&bed.target());
            mount_another(&bed.target());
            if lost {
                fs::remove_file(bed.record_file()).unwrap();
            }
            bed.restart_driver().await;
            assert_eq!(bed.mounts(), 1);
            assert!(bed.target().join("token").exists());
            bed.publish().await.unwrap();
            assert!(lost || bed.snapshot() == before);
        }
        bed.unpublish().await.unwrap();
        bed.assert_nothing_left().await;
    });
}

#[test]
fn what_others_mounted_in_place_of_a_volume_is_not_taken_for_it() {
    on_a_bed(async |mut bed| {
        bed.publish().await.unwrap();
        bed.stop_driver().await;
        bed.mounter.unmount(&bed.target()).unwrap();
        mount_another(&bed.target());
        bed.restart_driver().await;
        assert_eq!((bed.mounts(), bed.target().exists(), bed.record()), (0, false, None));
        pass(11_000).await;
        bed.assert_nothing_left().await;
    });
}

#[test]
fn a_start_with_nothing_but_rubbish_goes_on() {
    on_a_bed(async |mut bed| {
        bed.stop_driver().await;
        let rubbish: [PathBuf; 3] =
            ["x.json", "released/y.json", ".new-z"].map(|name| bed.state().join(name));
        for path in &rubbish {
            fs::write(path, "rubbish").unwrap();
        }
        fs::create_dir(bed.state().join("a-folder")).unwrap();
        bed.restart_driver().await;
        bed.settle().await;
        assert!(rubbish.iter().all(|path| !path.exists()));
        assert_eq!(quarantined(&bed), 2);
        bed.publish().await.unwrap();
        bed.unpublish().await.unwrap();
        bed.assert_nothing_left().await;
    });
}
