//! Rotation over weeks of the bed's time.

use std::fs;

use hadoop::token_file::TokenFile;

use crate::bed::{Bed, DAY, HOUR, after, on_a_bed, pass};

/// Number of the token that a reader of the volume finds.
fn mounted(bed: &Bed) -> u8 {
    let file = TokenFile::decode(&fs::read(bed.target().join("token")).unwrap()).unwrap();
    let numbers: Vec<_> = file.tokens.iter().map(|(_, token)| *token.identifier.last().unwrap()).collect();
    assert!(numbers.iter().all(|number| number == &numbers[0]), "{numbers:?}");
    numbers[0]
}

fn said(bed: &Bed) -> serde_json::Value {
    serde_json::from_slice(&fs::read(bed.target().join("token.json")).unwrap()).unwrap()
}

#[test]
fn a_token_is_replaced_before_it_ends_and_its_predecessor_stays() {
    on_a_bed(async |bed| {
        let start = bed.clock.now();
        bed.publish().await.unwrap();
        let due = bed.record().unwrap().next_rotation.unwrap();
        assert!(due >= after(start, 5 * DAY + 6 * HOUR) && due <= after(start, 5 * DAY + 15 * HOUR), "{due}");
        assert_eq!(said(&bed)["nextRotation"], due.to_string());
        pass(5 * DAY + 5 * HOUR).await;
        assert_eq!(mounted(&bed), 1);
        pass(11 * HOUR).await;
        assert_eq!(mounted(&bed), 2);
        assert_eq!(bed.controller.live(), [1, 2], "whoever still has the old one may go on");
        assert_eq!(bed.controller.lock().held, [vec![], vec![1]]);
        let record = bed.record().unwrap();
        assert_eq!((record.sequence_numbers(), &record.successor), (vec![2], &None));
        assert_eq!(said(&bed)["tokens"][0]["sequenceNumber"], 2);
        assert_eq!(said(&bed)["nextRotation"], record.next_rotation.unwrap().to_string());
        pass(25 * DAY).await;
        assert_eq!(mounted(&bed), 6, "again and again");
        assert!(bed.controller.renewals(6) > 0);
        bed.unpublish().await.unwrap();
    });
}
