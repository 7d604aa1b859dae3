//! Which tokens of a volume never reached it: their answer was lost, or the controller that had them was. Decides only.

use std::sync::Arc;

use hadoop::TokenIdentifier;

use crate::{
    ledger::{Entry, Scope},
    request::ReleasedToken,
};

/// Those of a volume's `entries` that were lost on the way, now that it gets the token of `own` and holds `held`. What
/// is older than the newest that it holds is a predecessor, which clients may still use; what is newer than `own`
/// belongs to a request that came after this one.
pub(crate) fn strays(entries: Vec<Arc<Entry>>, own: &Entry, held: &[ReleasedToken]) -> Vec<Arc<Entry>> {
    let arrived = |entry: &Entry| held.iter().any(|token| entry.identifier() == Some(&*token.identifier));
    let newest = entries.iter().filter(|entry| arrived(entry)).filter_map(|entry| age(entry, own)).max();
    // One that the ledger does not have tells its number all the same.
    let number = |token: &ReleasedToken| {
        let identifier = TokenIdentifier::decode(&token.kind, &token.identifier).ok()?;
        (own.scope == Scope::Pod).then_some(i128::from(identifier.sequence_number))
    };
    let newest = newest.max(held.iter().filter_map(number).max());
    let lost = |entry: &Arc<Entry>| {
        let between = match age(entry, own) {
            Some(age) => newest.is_none_or(|newest| age > newest) && Some(age) < self::age(own, own),
            // Of another cluster, of which the volume can have none unless it holds it.
            None => held.is_empty(),
        };
        // An intent is the reaper's, who finds out what came of it.
        between
            && entry.uid != own.uid
            // A call that was overtaken by a later one takes nothing from it.
            && entry.created <= own.created
            && entry.token.is_some()
            && entry.identifier() != own.identifier()
            && !entry.deleting
            && !arrived(entry)
    };
    entries.into_iter().filter(lost).collect()
}

/// What grows from token to token of a volume; None for those that cannot be compared with `own`.
fn age(entry: &Entry, own: &Entry) -> Option<i128> {
    if entry.cluster != own.cluster {
        return None;
    }
    match own.scope {
        Scope::Pod => entry.token.as_ref().map(|token| i128::from(token.sequence_number)),
        // A shared token may be older than one that was got before it, from another replica.
        Scope::Job => Some(i128::from(entry.requested_at)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ledger::Object;

    /// The volume's tokens, each by its number, when it was asked for, and its cluster.
    fn entries(scope: &str, tokens: &[(i32, u64, &str)]) -> Vec<Arc<Entry>> {
        let entry = |(index, (number, requested_at, cluster)): (usize, &(i32, u64, &str))| {
            let mut object = json!({
                "metadata": {"namespace": "jobs", "name": format!("t-{index}"), "uid": format!("u-{index}")},
                "spec": {"cluster": cluster, "scope": scope, "requestedAt": requested_at},
            });
            if *number > 0 {
                // Any bytes will do for an identifier.
                object["spec"]["token"] =
                    json!({"identifier": format!("AAA{number}"), "sequenceNumber": number});
            }
            serde_json::from_value::<Object>(object).unwrap().entry
        };
        tokens.iter().enumerate().map(entry).collect()
    }

    fn held(entries: &[Arc<Entry>], numbers: &[i32]) -> Vec<ReleasedToken> {
        let is_held = |entry: &&Arc<Entry>| {
            entry.token.as_ref().is_some_and(|token| numbers.contains(&token.sequence_number))
        };
        let token = |entry: &Arc<Entry>| ReleasedToken {
            identifier: entry.identifier().unwrap().to_vec(),
            kind: "HDFS_DELEGATION_TOKEN".to_owned(),
        };
        entries.iter().filter(is_held).map(token).collect()
    }

    /// The last of `tokens` is the one that the volume gets now.
    #[track_caller]
    fn check(scope: &str, tokens: &[(i32, u64, &str)], has: &[i32], expected: &[i32]) {
        let entries = entries(scope, tokens);
        let (own, held) = (entries.last().unwrap().clone(), held(&entries, has));
        let found = strays(entries, &own, &held);
        let found: Vec<_> = found.iter().map(|entry| entry.token.as_ref().unwrap().sequence_number).collect();
        assert_eq!(found, expected, "{tokens:?} with {has:?}");
    }

    #[test]
    fn a_volume_that_holds_nothing_lost_all_that_it_was_given() {
        check("pod", &[(1, 10, "main"), (2, 20, "main"), (3, 30, "main")], &[], &[1, 2]);
        check("pod", &[(7, 10, "old"), (3, 30, "main")], &[], &[7]);
        check("job", &[(9, 10, "main"), (3, 30, "main")], &[], &[9]);
    }

    #[test]
    fn predecessors_of_what_a_volume_holds_stay() {
        let tokens = [(1, 10, "main"), (2, 20, "main"), (3, 30, "main"), (4, 40, "main"), (5, 50, "main")];
        check("pod", &tokens, &[3], &[4]);
        check("job", &tokens, &[3], &[4]);
        check("pod", &tokens, &[2, 4], &[]);
        check("pod", &[(9, 10, "old"), (1, 20, "main"), (2, 30, "main")], &[1], &[]);
    }

    #[test]
    fn what_came_after_the_new_token_and_what_nobody_knows_yet_is_left_alone() {
        check("pod", &[(4, 40, "main"), (0, 20, "main"), (3, 30, "main")], &[], &[]);
        check("job", &[(4, 40, "main"), (3, 30, "main")], &[], &[]);
    }

    #[test]
    fn a_call_that_was_overtaken_takes_nothing_from_the_one_that_came_after() {
        let mut entries = entries("pod", &[(1, 10, "main"), (2, 20, "main")]);
        let own = entries[1].clone();
        Arc::make_mut(&mut entries[0]).created = own.created + 1;
        assert_eq!(strays(entries.clone(), &own, &[]), []);
        Arc::make_mut(&mut entries[0]).created = own.created;
        assert_eq!(strays(entries, &own, &[]).len(), 1);
    }

    #[test]
    fn another_object_of_the_same_shared_token_is_no_stray() {
        check("job", &[(3, 10, "main"), (3, 30, "main")], &[], &[]);
    }

    #[test]
    fn a_held_token_that_the_ledger_lacks_tells_its_number_all_the_same() {
        let entries = entries("pod", &[(1, 10, "main"), (3, 30, "main"), (5, 50, "main")]);
        let own = entries.last().unwrap().clone();
        let identifier = TokenIdentifier {
            owner: "etl".to_owned(),
            renewer: "csi".to_owned(),
            real_user: "csi/h@R".to_owned(),
            issue_date: 0,
            max_date: 0,
            sequence_number: 2,
            master_key_id: 1,
        };
        let kind = "HDFS_DELEGATION_TOKEN".to_owned();
        let held = [ReleasedToken { identifier: identifier.encode(), kind }];
        let found = strays(entries, &own, &held);
        assert_eq!(found.iter().map(|entry| &*entry.name).collect::<Vec<_>>(), ["t-1"]);
    }
}
