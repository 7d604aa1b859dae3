//! What the controller's refusals mean for a volume. One table of all reasons of docs/errors.md that the controller
//! gives, and no I/O.

/// What a refusal means for a volume that is refused with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// This pod is entitled to nothing: a check takes the tokens away that it has, and it gets no first one.
    NotEntitled,
    /// The pod, as it was submitted, or its end makes that it gets no first token. It keeps those that it has.
    NeverIssued,
    /// Somebody may mend it while the pod lives, or it passes by itself: asking again may end otherwise.
    MayPass,
}

/// What the refusal of this reason means. Nothing of one that this version does not know; it may pass.
pub(crate) fn meaning(reason: &str) -> Option<Meaning> {
    Some(match reason {
        // The pod and its volume.
        "POD_NOT_FOUND" | "POD_REPLACED" | "POD_FINISHED" | "STATIC_POD"
        // Who submitted it.
        | "SEAL_MISSING" | "SEAL_INVALID" | "SEAL_OF_ANOTHER_POD" | "SEAL_REUSED" | "SEAL_OUT_OF_TIME"
        | "SUBMITTER_CHANGED" | "SUBMITTER_MISSING"
        // Which user it would be.
        | "SUBMITTER_NOT_MAPPED" | "SERVICE_ACCOUNT_NOT_MAPPED" | "USER_INVALID" | "DO_AS_NOT_SEALED"
        | "DO_AS_NOT_MEMBER" | "DO_AS_WITHOUT_DIRECTORY" | "USER_UNKNOWN" | "USER_DENIED" | "GROUP_DENIED"
        | "USER_NOT_ALLOWED"
        // Its namespace.
        | "NAMESPACE_EXEMPT" | "NAMESPACE_NOT_ENROLLED" | "NAMESPACE_USER_NOT_ALLOWED"
        | "NAMESPACE_CLUSTER_NOT_ALLOWED" | "NAMESPACE_SERVICE_NOT_ALLOWED" | "HOST_NETWORK_NOT_ALLOWED"
        // What it had.
        | "TOKEN_REVOKED"
        // Where it is.
        | "ADDRESS_MISMATCH" | "HOST_NETWORK_MISMATCH" | "ADDRESS_OF_ANOTHER_POD" | "ADDRESS_UNCLEAR" => {
            Meaning::NotEntitled
        }

        "POD_TERMINATING"
        // The spec of a pod does not change, nor do its owners.
        | "VOLUME_OF_ANOTHER_DRIVER" | "VOLUME_NOT_READ_ONLY" | "UNKNOWN_ATTRIBUTE" | "SCOPE_UNKNOWN"
        | "CLUSTER_MISSING"
        | "OWNER_CHAIN_TOO_LONG" => Meaning::NeverIssued,

        // The request, or who asks: the node plugin, its node, and how both are installed.
        "INVALID_REQUEST" | "STOPPING" | "RATE_LIMITED" | "CONTROLLER_BUSY" | "TOO_MANY_WATCHES"
        | "AUDIT_UNWRITABLE" | "LEDGER_UNWRITABLE" | "LEDGER_UNREADABLE" | "DRIVER_TOKEN_MISSING" | "DRIVER_TOKEN_REJECTED" | "DRIVER_TOKEN_UNBOUND"
        | "CALLER_NOT_DRIVER" | "CALLER_GONE" | "POD_TOKEN_MISSING" | "POD_TOKEN_REJECTED" | "POD_TOKEN_UNBOUND"
        | "POD_TOKEN_OF_ANOTHER_POD" | "NODE_MISMATCH" | "POD_ON_ANOTHER_NODE" | "VOLUME_NOT_IN_POD"
        | "VOLUME_ID_MISMATCH"
        // The controller's configuration, or an owner that the API server does not show yet.
        | "CLUSTER_UNKNOWN" | "OWNER_NOT_FOUND"
        // The addresses are not known yet.
        | "ADDRESS_UNKNOWN" | "ADDRESS_CHANGING" | "OTHER_PODS_UNKNOWN"
        // About tokens that exist: nothing that a first token is refused for.
        | "TOKEN_OF_ANOTHER_VOLUME" | "TOKEN_OF_ANOTHER_CLUSTER" | "TOKEN_OF_ANOTHER_USER"
        | "TOKEN_OF_ANOTHER_RENEWER"
        | "TOKEN_UNREADABLE" | "TOKENS_NOT_CANCELLED" | "TOKEN_UNKNOWN" | "TOKEN_EXPIRED"
        | "TOKEN_PAST_MAX_LIFETIME" | "TOKEN_MASTER_KEY_GONE" | "RENEWER_MISMATCH" | "TOKEN_WITHOUT_RENEWER"
        | "TOKEN_PASSWORD_WRONG" | "CANCEL_DENIED"
        // Servers behind the controller, and what they think of the controller.
        | "API_SERVER_UNREACHABLE" | "API_SERVER_LATE" | "API_SERVER_UNWELL" | "API_SERVER_UNREADABLE"
        | "API_SERVER_FORBIDDEN" | "DIRECTORY_UNREACHABLE" | "DIRECTORY_LATE" | "DIRECTORY_UNWELL"
        | "DIRECTORY_BIND_REFUSED" | "KDC_UNREACHABLE" | "KERBEROS_REALM_UNKNOWN"
        | "KERBEROS_CONFIGURATION_UNUSABLE" | "KEYTAB_UNUSABLE" | "KEYTAB_OUTDATED"
        | "KERBEROS_CLIENT_UNKNOWN" | "KERBEROS_CLIENT_LOCKED" | "KERBEROS_SERVER_UNKNOWN"
        | "KERBEROS_CLOCK_SKEW" | "KERBEROS_TICKET_EXPIRED" | "KERBEROS_ENCRYPTION_TYPES" | "KERBEROS_POLICY"
        | "KERBEROS_FAILED" | "NAMENODE_UNREACHABLE" | "NAMENODE_TIMEOUT" | "NAMENODE_CONNECTION_LOST"
        | "HADOOP_LATE" | "NAMENODE_STANDBY" | "NAMENODE_SAFE_MODE" | "NAMENODE_BUSY" | "NAMENODE_ERROR"
        | "TICKET_REJECTED" | "NAMENODE_PRINCIPAL_MISMATCH" | "NAMENODE_INSECURE"
        | "NAMENODE_WITHOUT_KERBEROS" | "NAMENODE_PROTECTION_TOO_WEAK" | "NOT_A_HADOOP_RPC_PORT"
        | "WRONG_HADOOP_SERVICE" | "HADOOP_VERSION_MISMATCH" | "PROTOCOL_ERROR" | "PRINCIPAL_NOT_MAPPED"
        | "IMPERSONATION_DENIED" | "IMPERSONATION_HOST_DENIED" | "SERVICE_ACL_DENIED" | "ACCESS_DENIED"
        | "NO_TOKEN_ISSUED" | "KERBEROS_REQUIRED" | "WRONG_TOKEN_ISSUED" | "WRONG_TOKEN" => Meaning::MayPass,

        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_of_the_controller_has_a_meaning() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors.md");
        let document = std::fs::read_to_string(path).unwrap();
        let (_, of_controller) = document.split_once("\n## The request\n").unwrap();
        let (of_controller, _) = of_controller.split_once("\n## Refused at admission\n").unwrap();
        let rows = of_controller.lines().filter(|line| line.starts_with("| `"));
        let reasons: Vec<_> =
            rows.flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2)).collect();
        assert!(reasons.len() > 90, "{}", reasons.len());
        let undecided: Vec<_> = reasons.into_iter().filter(|reason| meaning(reason).is_none()).collect();
        assert_eq!(undecided, [""; 0]);
    }

    #[test]
    fn what_somebody_can_mend_beside_the_pod_may_pass() {
        for reason in [
            "API_SERVER_FORBIDDEN",
            "KEYTAB_OUTDATED",
            "IMPERSONATION_DENIED",
            "IMPERSONATION_HOST_DENIED",
            "SERVICE_ACL_DENIED",
            "ACCESS_DENIED",
            "CALLER_NOT_DRIVER",
            "DRIVER_TOKEN_UNBOUND",
            "CLUSTER_UNKNOWN",
        ] {
            assert_eq!(meaning(reason), Some(Meaning::MayPass), "{reason}");
        }
    }

    #[test]
    fn what_is_wrong_with_the_pod_itself_does_not_pass() {
        for reason in ["ADDRESS_MISMATCH", "SEAL_MISSING", "USER_DENIED", "POD_FINISHED"] {
            assert_eq!(meaning(reason), Some(Meaning::NotEntitled), "{reason}");
        }
        assert_eq!(meaning("POD_TERMINATING"), Some(Meaning::NeverIssued));
        assert_eq!(meaning("A_REASON_OF_TOMORROW"), None);
    }
}
