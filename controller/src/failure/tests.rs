//! Codes and reasons that others rely on.

use super::*;

/// What kubelet takes for passing (its CSI client's list).
const PASSING: [Code; 5] =
    [Code::Cancelled, Code::DeadlineExceeded, Code::Unavailable, Code::ResourceExhausted, Code::Aborted];

fn hadoop(code: Code) -> Failure {
    let error =
        CallError { reason: "NAMENODE_UNREACHABLE", code, message: "NameNode nn1:8020: down".to_owned() };
    Failure::Hadoop { cluster: "main".to_owned(), doing: "get a token", error }
}

#[test]
fn whatever_can_pass_by_itself_is_passing_for_kubelet() {
    let address = || "https://api:6443".to_owned();
    let error = || "no".to_owned();
    for failure in [
        hadoop(Code::Unavailable),
        Failure::ApiServer(ApiServerError::Unreachable { address: address(), error: error() }),
        Failure::ApiServer(ApiServerError::Late { address: address() }),
        Failure::ApiServer(ApiServerError::Unwell { address: address(), error: error() }),
        Failure::ApiServer(ApiServerError::Unreadable { address: address(), error: error() }),
        Failure::Late { cluster: "main".to_owned() },
        Failure::WrongToken { cluster: "main".to_owned(), what: String::new() },
        Failure::Stopping,
        Failure::Directory(DirectoryError::Late { address: address(), why: error() }),
        Failure::Audit(AuditError::Late),
        Failure::Busy { cluster: "main".to_owned() },
        Failure::Refused(Refusal::AddressUnknown),
        Failure::Refused(Refusal::AddressChanging(String::new())),
        Failure::Refused(Refusal::RateLimited(String::new())),
    ] {
        assert!(PASSING.contains(&failure.code()), "{failure}");
    }
}

#[test]
fn what_somebody_has_to_change_is_final_for_kubelet() {
    for failure in [
        Failure::Invalid(InvalidRequest(String::new())),
        Failure::Refused(Refusal::SealMissing),
        Failure::Refused(Refusal::UserDenied("hdfs".parse().unwrap())),
        Failure::Refused(Refusal::VolumeNotReadOnly("token".to_owned())),
        hadoop(Code::PermissionDenied),
    ] {
        assert!(!PASSING.contains(&failure.code()), "{failure}");
    }
}

#[test]
fn a_release_is_worth_repeating_while_one_token_may_still_be_cancelled() {
    let denied = || hadoop(Code::FailedPrecondition);
    let mixed = Failure::NotReleased(vec![denied(), hadoop(Code::Unavailable), denied()]);
    assert_eq!(mixed.code(), Code::Unavailable);
    assert_eq!(Failure::NotReleased(vec![denied(), denied()]).code(), Code::FailedPrecondition);
    assert!(mixed.to_string().starts_with("3 tokens were not cancelled: failed to get a token"), "{mixed}");
}

#[test]
fn a_status_carries_reason_domain_and_sentence() {
    let status = Status::from(hadoop(Code::Unavailable));
    let info = status.get_details_error_info().unwrap();
    assert_eq!((info.reason.as_str(), info.domain.as_str()), ("NAMENODE_UNREACHABLE", ERROR_DOMAIN));
    assert_eq!(status.message(), r#"failed to get a token of cluster "main": NameNode nn1:8020: down"#);
}

#[test]
fn a_cause_that_its_effect_already_names_is_not_said_twice() {
    #[derive(Debug, thiserror::Error)]
    #[error("connect failed: refused")]
    struct Outer(#[source] Inner);
    #[derive(Debug, thiserror::Error)]
    #[error("refused")]
    struct Inner(#[source] Innermost);
    #[derive(Debug, thiserror::Error)]
    #[error("os error 111")]
    struct Innermost;
    assert_eq!(chain(&Outer(Inner(Innermost))), "connect failed: refused: os error 111");
}
