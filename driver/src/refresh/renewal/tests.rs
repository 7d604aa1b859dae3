//! Renewal over days of the bed's time.

use std::{collections::HashMap, fs, os::unix::fs::MetadataExt};

use proto::token::v1::{NotRenewed, RenewalAdvice, Revoked, check_response::Outcome};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::note_renewal;
use crate::{
    bed::{DAY, HOUR, after, on_a_bed, pass},
    controller_client::Renewed,
    publish_request::tests::UID,
    volume::Phase,
};

fn not_renewed(reason: &str, advice: RenewalAdvice) -> NotRenewed {
    NotRenewed { reason: reason.to_owned(), message: "why not".to_owned(), advice: advice.into() }
}

#[test]
fn a_mounted_token_is_renewed_again_and_again_without_changing() {
    on_a_bed(async |bed| {
        let start = bed.clock.now();
        bed.publish().await.unwrap();
        let token = || {
            let path = bed.target().join("token");
            (fs::read(&path).unwrap(), fs::metadata(&path).unwrap().ino())
        };
        let before = token();
        pass(15 * HOUR).await;
        assert_eq!(bed.controller.renewals(1), 0);
        pass(4 * HOUR).await;
        assert_eq!(bed.controller.renewals(1), 1, "at about 70 % of a day");
        pass(3 * DAY).await;
        let renewals = bed.controller.renewals(1);
        assert!((5..=7).contains(&renewals), "{renewals}");
        assert_eq!(token(), before);
        let record = bed.record().unwrap();
        assert!(record.tokens[0].about.renew_date > after(start, 4 * DAY), "{record:?}");
        let json = fs::read_to_string(bed.target().join("token.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["tokens"][0]["renewDate"], record.tokens[0].about.renew_date.to_string());
        assert_eq!(json["nextRenewal"], record.next_renewal.unwrap().to_string());
    });
}

#[test]
fn a_token_at_the_end_of_its_life_is_not_renewed_any_more() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        bed.controller.lock().refuse_rotation = Some(Status::unavailable("not now"));
        pass(30 * DAY).await;
        let renewals = bed.controller.renewals(1);
        assert!((8..=11).contains(&renewals), "{renewals}");
        assert_eq!(bed.record().unwrap().next_renewal, None);
        assert_eq!((bed.mounts(), bed.controller.live()), (1, vec![1]));
    });
}

#[test]
fn the_token_stays_while_the_controller_is_down_and_is_renewed_when_it_is_back() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        let before = bed.snapshot();
        bed.controller.stop();
        pass(22 * HOUR).await;
        assert_eq!(bed.snapshot(), before);
        bed.controller.start();
        pass(301_000).await;
        assert_eq!(bed.controller.renewals(1), 1);
    });
}

#[test]
fn a_renewal_whose_record_cannot_be_read_brings_no_earlier_one_back_and_is_repeated() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        let before = bed.record().unwrap();
        let id = &before.volume.id;
        bed.volumes().renewals.remove(id);
        fs::remove_file(bed.record_file()).unwrap();
        std::os::unix::fs::symlink(bed.record_file(), bed.record_file()).unwrap();
        let renewed = Renewed { dates: vec![after(bed.clock.now(), DAY)], clock_lead: None };
        note_renewal(bed.volumes(), &before, &renewed);
        assert!(bed.record_file().is_symlink(), "it was written over");
        assert!(bed.volumes().renewals.contains(id));
    });
}

#[test]
fn a_refusal_to_renew_never_unmounts() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        bed.controller.lock().refuse = Some(Status::permission_denied("no"));
        pass(20 * HOUR).await;
        bed.publish().await.unwrap();
        let asked = bed.controller.lock().shown.len();
        assert!((5..100).contains(&asked), "{asked} calls");
        assert_eq!((bed.mounts(), bed.controller.renewals(1)), (1, 0));
        assert!(bed.target().join("token").exists());
    });
}

#[test]
fn a_pod_that_is_refused_renewal_as_entitled_to_nothing_is_checked_at_once() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        let details = ErrorDetails::with_error_info("USER_DENIED", proto::ERROR_DOMAIN, HashMap::new());
        let refusal = Status::with_error_details(Code::PermissionDenied, "etl is denied", details);
        bed.controller.lock().refuse_renewal = Some(refusal);
        pass(14 * HOUR).await;
        assert_eq!(bed.controller.lock().shown_addresses.len(), 0, "no check before");
        let outcome = Revoked { reason: "USER_DENIED".to_owned(), message: "etl is denied".to_owned() };
        bed.controller.lock().outcome = Some(Outcome::Revoked(outcome));
        pass(5 * HOUR).await;
        assert!(!bed.target().join("token").exists());
        assert_eq!(bed.controller.live(), [0u8; 0]);
        assert_eq!(bed.record().unwrap().phase, Phase::Stopped);
        let calls = bed.controller.lock().shown.len();
        pass(DAY).await;
        assert_eq!(bed.controller.lock().shown.len(), calls, "it is not renewed any more");
    });
}

#[test]
fn after_a_restart_renewal_waits_for_kubelet_to_bring_the_pods_token() {
    on_a_bed(async |mut bed| {
        bed.publish().await.unwrap();
        bed.restart_driver().await;
        pass(20 * HOUR).await;
        assert_eq!(bed.controller.renewals(1), 0, "no service-account token, no renewal");
        bed.publish().await.unwrap();
        pass(2_000).await;
        assert_eq!(bed.controller.renewals(1), 1);
        pass(2 * DAY).await;
        assert!(bed.controller.renewals(1) >= 3);
    });
}

#[test]
fn after_a_restart_renewal_keeps_its_time() {
    on_a_bed(async |mut bed| {
        bed.publish().await.unwrap();
        pass(10 * HOUR).await;
        bed.restart_driver().await;
        bed.publish().await.unwrap();
        pass(4 * HOUR).await;
        assert_eq!(bed.controller.renewals(1), 0);
        pass(5 * HOUR).await;
        assert_eq!(bed.controller.renewals(1), 1);
    });
}

#[test]
fn what_is_unpublished_is_not_renewed() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        bed.unpublish().await.unwrap();
        pass(7 * DAY).await;
        assert_eq!(bed.controller.renewals(1), 0);
        bed.assert_nothing_left().await;
    });
}

#[test]
fn a_renewal_that_ends_after_unpublish_brings_no_record_back() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        let renewed = bed.record().unwrap();
        bed.unpublish().await.unwrap();
        let dates = vec![after(bed.clock.now(), DAY)];
        super::note_renewal(bed.volumes(), &renewed, &super::Renewed { dates, clock_lead: None });
        assert_eq!(bed.record(), None);
        assert!(!bed.volumes().renewals.contains(&renewed.volume.id));
        bed.assert_nothing_left().await;
    });
}

#[test]
fn short_intervals_are_kept_up_with() {
    on_a_bed(async |bed| {
        bed.controller.lock().interval = 60_000;
        bed.publish().await.unwrap();
        pass(60 * 60_000).await;
        let renewals = bed.controller.renewals(1);
        assert!((78..=93).contains(&renewals), "{renewals} in an hour");
    });
}

#[test]
fn what_is_due_together_is_renewed_with_one_call_and_fails_apart() {
    on_a_bed(async |bed| {
        bed.controller.lock().interval = 40_000;
        bed.controller.lock().max_life = 100 * DAY;
        let uids: Vec<String> = (0..100).map(|number| format!("pod-{number}")).collect();
        for uid in &uids {
            bed.publish_for(uid).await.unwrap();
        }
        bed.controller
            .lock()
            .not_renewed
            .insert("pod-7".to_owned(), not_renewed("KDC_UNREACHABLE", RenewalAdvice::Retry));
        pass(31_000).await;
        let batches = bed.controller.lock().batches.clone();
        assert!(batches.iter().all(|size| (1..=64).contains(size)), "{batches:?}");
        assert!(batches[..3].iter().any(|size| *size > 30), "{batches:?}");
        for number in (1..=100).filter(|number| *number != 8) {
            assert!(bed.controller.renewals(number) > 0, "{number}");
        }
        assert_eq!(bed.controller.renewals(8), 0);
        bed.controller.lock().not_renewed.clear();
        pass(5_000).await;
        assert!(bed.controller.renewals(8) > 0, "tried again while its date is not past");
    });
}

#[test]
fn a_token_that_hadoop_does_not_know_is_replaced_at_once() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        bed.controller
            .lock()
            .not_renewed
            .insert(UID.to_owned(), not_renewed("TOKEN_UNKNOWN", RenewalAdvice::Rotate));
        pass(19 * HOUR).await;
        assert_eq!(bed.record().unwrap().sequence_numbers(), [2]);
        assert_eq!(bed.controller.lock().held, [vec![], vec![1]]);
        bed.controller.lock().not_renewed.clear();
        pass(20 * HOUR).await;
        assert_eq!((bed.controller.renewals(1), bed.controller.renewals(2)), (0, 1));
    });
}

#[test]
fn what_somebody_has_to_mend_is_tried_seldom_and_the_token_replaced_when_its_date_is_past() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        bed.controller
            .lock()
            .not_renewed
            .insert(UID.to_owned(), not_renewed("RENEWER_MISMATCH", RenewalAdvice::Alert));
        pass(23 * HOUR).await;
        let asked = bed.controller.lock().batches.len();
        assert!((4..=14).contains(&asked), "{asked} times");
        assert_eq!(bed.record().unwrap().sequence_numbers(), [1]);
        pass(2 * HOUR).await;
        assert_eq!(bed.record().unwrap().sequence_numbers(), [2], "past its date it is good for nothing");
    });
}

#[test]
fn a_token_past_its_date_has_one_more_chance() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        bed.controller.stop();
        pass(30 * HOUR).await;
        bed.controller.start();
        pass(301_000).await;
        assert_eq!((bed.controller.renewals(1), bed.record().unwrap().sequence_numbers()), (1, vec![1]));
    });
}

#[test]
fn a_volume_whose_token_is_not_in_its_file_gets_another() {
    on_a_bed(async |bed| {
        bed.publish().await.unwrap();
        fs::remove_file(bed.target().join("..data/token")).unwrap();
        pass(19 * HOUR).await;
        assert_eq!(bed.record().unwrap().sequence_numbers(), [2]);
        assert!(bed.target().join("token").exists());
    });
}

#[test]
fn only_the_clock_of_hadoop_tells_when_a_token_ends() {
    on_a_bed(async |bed| {
        for lead in [-400_000_000, 400_000_000] {
            bed.controller.lock().clock_lead = lead;
            bed.publish().await.unwrap();
            let number = bed.record().unwrap().tokens[0].identifier[2];
            pass(15 * HOUR).await;
            assert_eq!(bed.controller.renewals(number), 0, "{lead}");
            pass(4 * HOUR).await;
            assert_eq!(bed.controller.renewals(number), 1, "{lead}");
            bed.controller.lock().clock_lead = 0; // it is set right meanwhile
            for _ in 0..10 {
                pass(DAY).await;
                let about = bed.record().unwrap().tokens.remove(0).about;
                assert!(
                    about.renew_date > bed.clock.now() && about.max_date > bed.clock.now(),
                    "{lead} {about:?}"
                );
            }
            bed.unpublish().await.unwrap();
        }
    });
}
