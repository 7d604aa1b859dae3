//! What kubelet hears of a volume, whatever has become of it.

use proto::{
    VolumeId,
    csi::v1::{NodeGetVolumeHealthRequest, NodeGetVolumeStatsRequest, volume_usage::Unit},
};
use tonic::{Code, Status};

use super::*;
use crate::{
    bed::{Bed, on_a_bed},
    mount::Mounter,
    publish_request::tests::UID,
    volume::{Stop, tests::record},
};

fn start() -> Timestamp {
    "2026-11-23T00:00:00Z".parse().unwrap()
}

fn after(hours: i64) -> Timestamp {
    start() + SignedDuration::from_hours(hours)
}

/// A token for a day, a week at most, that is renewed and replaced in time.
fn published() -> Record {
    let mut record = record(UID, start());
    record.tokens[0].clock_lead = 0;
    Record { next_renewal: Some(after(16)), next_rotation: Some(after(130)), ..record }
}

#[track_caller]
fn check(record: &Record, at: Timestamp, expected: Option<(Severity, &str)>) {
    let found = trouble(record, true, true, at);
    assert_eq!(found.as_ref().map(|found| (found.severity, found.reason)), expected, "{found:?}");
}

#[test]
fn a_volume_is_well_until_its_renewal_is_late_and_dead_when_its_token_is() {
    let record = published();
    for hours in [0, 15, 16, 17] {
        check(&record, after(hours), None);
    }
    check(&record, after(19), Some((Severity::Degraded, "RenewalFailing")));
    check(&record, after(24), Some((Severity::Unusable, "TokenExpired")));
}

#[test]
fn a_volume_whose_token_cannot_be_replaced_is_in_trouble_before_the_token_ends() {
    let mut record = Record { next_renewal: None, ..published() };
    record.tokens[0].about.renew_date = after(168);
    check(&record, after(131), None);
    check(&record, after(145), Some((Severity::Degraded, "RotationFailing")));
    check(&record, after(168), Some((Severity::Unusable, "TokenExpired")));
}

#[test]
fn dates_count_by_the_clock_of_the_service() {
    let mut record = published();
    // Its clock is two hours behind.
    record.tokens[0].clock_lead = -7_200_000;
    check(&record, after(25), Some((Severity::Degraded, "RenewalFailing")));
    check(&record, after(26), Some((Severity::Unusable, "TokenExpired")));
}

#[test]
fn a_volume_without_a_token_says_why() {
    let waiting = Record { phase: Phase::Waiting, ..published() };
    check(&waiting, start(), Some((Severity::Degraded, "WaitingForToken")));
    let stop = Stop { reason: "TOKEN_REVOKED".to_owned(), message: "somebody deleted it".to_owned() };
    let stopped = Record { phase: Phase::Stopped, stopped: Some(stop), ..published() };
    let found = trouble(&stopped, true, false, start()).unwrap();
    assert_eq!((found.severity, found.reason), (Severity::Unusable, "TokenTakenAway"));
    assert_eq!(found.message, "somebody deleted it [TOKEN_REVOKED]");
    assert_eq!(trouble(&published(), true, false, start()).unwrap().reason, "TokenFileMissing");
    assert_eq!(trouble(&published(), false, false, start()).unwrap().reason, "NotMounted");
}

impl Bed {
    async fn condition(&self) -> Result<(bool, String), Status> {
        let (volume_id, volume_path) =
            (VolumeId::of(UID, "hadoop").to_string(), self.target().display().to_string());
        let request = NodeGetVolumeStatsRequest { volume_id, volume_path };
        let answer = self.node().node_get_volume_stats(request).await?.into_inner();
        let units: Vec<_> = answer.usage.iter().map(|usage| (usage.unit(), usage.total)).collect();
        assert_eq!(units, [(Unit::Bytes, 1024 * 1024), (Unit::Inodes, 256)]);
        assert!(
            answer.usage.iter().all(|usage| usage.used > 0 && usage.used + usage.available == usage.total)
        );
        let condition = answer.volume_condition.unwrap();
        let healthy = self.health(VolumeId::of(UID, "hadoop").as_str()).await;
        assert_eq!(healthy.map_or(true, |reasons| !reasons.is_empty()), condition.abnormal);
        Ok((condition.abnormal, condition.message))
    }

    async fn health(&self, id: &str) -> Result<Vec<String>, Status> {
        let request = NodeGetVolumeHealthRequest { volume_id: id.to_owned() };
        let health = self.node().node_get_volume_health(request).await?.into_inner().volume_health.unwrap();
        assert_eq!(health.volume_id, id);
        Ok(health.health_statuses.into_iter().map(|entry| entry.reason).collect())
    }
}

#[test]
fn kubelet_hears_how_a_volume_is() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        assert_eq!(bed.condition().await.unwrap(), (false, "the pod has its tokens".to_owned()));
        bed.controller.stop();
        tokio::time::sleep(std::time::Duration::from_hours(25)).await;
        let (abnormal, message) = bed.condition().await.unwrap();
        assert!(abnormal && message.contains("expired at 2026-11-24T00:00:00Z"), "{message}");
        std::fs::remove_file(bed.record_file()).unwrap();
        assert!(bed.condition().await.unwrap().1.contains("nothing is known"));
    });
}

#[test]
fn what_is_not_mounted_is_not_found() {
    on_a_bed(async |bed| {
        assert_eq!(bed.condition().await.unwrap_err().code(), Code::NotFound);
        for id in ["csi-1", VolumeId::of(UID, "hadoop").as_str()] {
            assert_eq!(bed.health(id).await.unwrap_err().code(), Code::NotFound);
        }
        bed.publish().await.unwrap();
        let good = (VolumeId::of(UID, "hadoop").to_string(), bed.target().display().to_string());
        for (id, path, code) in [
            ("", good.1.as_str(), Code::InvalidArgument),
            (good.0.as_str(), "", Code::InvalidArgument),
            ("csi-1", good.1.as_str(), Code::NotFound),
            (good.0.as_str(), "some/path", Code::NotFound),
            (good.0.as_str(), "/etc", Code::NotFound),
        ] {
            let request =
                NodeGetVolumeStatsRequest { volume_id: id.to_owned(), volume_path: path.to_owned() };
            let status = bed.node().node_get_volume_stats(request).await.unwrap_err();
            assert_eq!(status.code(), code, "{id:?} {path:?}: {}", status.message());
        }
        assert_eq!(bed.health("").await.unwrap_err().code(), Code::InvalidArgument);
        // Taken away by somebody.
        bed.mounter.unmount(&bed.target()).unwrap();
        assert_eq!(bed.condition().await.unwrap_err().code(), Code::NotFound);
        assert_eq!(bed.health(&good.0).await.unwrap(), ["NotMounted"]);
    });
}
