//! What can go wrong with Kerberos or a Hadoop service, told in the words of the one who must mend it. The same
//! error always has the same [`reason`](Error::reason); whether trying again can help is decided here and nowhere else.

use std::fmt;
use std::time::Duration;

use crate::kerberos::KerberosFailure;
use crate::principal::Principal;
use crate::rpc::Protection;

/// A failure of Kerberos or of a Hadoop service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(Box<Context>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Context {
    /// Who we are.
    login: Principal,
    /// `host:port` of the NameNode that was to be reached, if any.
    namenode: Option<String>,
    failure: Failure,
    /// The server may have done what it was asked.
    unanswered: bool,
}

impl Error {
    pub(crate) fn kerberos(login: &Principal, failure: KerberosFailure) -> Self {
        let failure = Failure::Kerberos(failure);
        Self(Box::new(Context { login: login.clone(), namenode: None, failure, unanswered: false }))
    }

    pub(crate) fn namenode(login: &Principal, address: &str, failure: Failure) -> Self {
        let namenode = Some(address.to_owned());
        Self(Box::new(Context { login: login.clone(), namenode, failure, unanswered: false }))
    }

    pub(crate) fn unanswered(mut self) -> Self {
        self.0.unanswered = true;
        self
    }

    /// A stable word for this sort of failure, for metrics, events and programs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match &self.0.failure {
            Failure::Kerberos(failure) => failure.reason(),
            Failure::Unreachable(_) => "NAMENODE_UNREACHABLE",
            Failure::TimedOut { .. } => "NAMENODE_TIMEOUT",
            Failure::ConnectionLost(_) => "NAMENODE_CONNECTION_LOST",
            Failure::Insecure => "NAMENODE_INSECURE",
            Failure::KerberosNotOffered(_) => "NAMENODE_WITHOUT_KERBEROS",
            Failure::PrincipalMismatch { .. } => "NAMENODE_PRINCIPAL_MISMATCH",
            Failure::ProtectionTooWeak { .. } => "NAMENODE_PROTECTION_TOO_WEAK",
            Failure::NotHadoop(_) => "NOT_A_HADOOP_RPC_PORT",
            Failure::Protocol(_) => "PROTOCOL_ERROR",
            Failure::NoToken => "NO_TOKEN_ISSUED",
            Failure::WrongToken(_) => "WRONG_TOKEN_ISSUED",
            Failure::Refused(refusal, _) => refusal.reason(),
        }
    }

    /// Whether the same request can succeed later without anybody changing a configuration.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match &self.0.failure {
            Failure::Kerberos(failure) => failure.retryable(),
            Failure::Unreachable(_) | Failure::TimedOut { .. } | Failure::ConnectionLost(_) => true,
            Failure::Insecure
            | Failure::KerberosNotOffered(_)
            | Failure::PrincipalMismatch { .. }
            | Failure::ProtectionTooWeak { .. }
            | Failure::NotHadoop(_)
            | Failure::Protocol(_)
            | Failure::NoToken
            | Failure::WrongToken(_) => false,
            Failure::Refused(refusal, _) => refusal.retryable(),
        }
    }

    /// Whether the NameNode may have issued a token all the same: the request was sent, and its answer is lost. When
    /// not, there is no token. Said of that call alone; all others can be repeated.
    #[must_use]
    pub fn may_have_happened(&self) -> bool {
        self.0.unanswered
    }

    /// Whether the token that was to be renewed is beyond renewing, so that only a new one can replace it.
    #[must_use]
    pub fn needs_new_token(&self) -> bool {
        match &self.0.failure {
            Failure::Refused(refusal, _) => matches!(
                refusal,
                Refusal::TokenUnknown
                    | Refusal::TokenExpired
                    | Refusal::TokenPastMaxDate
                    | Refusal::MasterKeyGone
            ),
            _ => false,
        }
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Context { login, namenode, failure, .. } = &*self.0;
        match (namenode, failure) {
            (None, Failure::Kerberos(failure)) => write!(f, "Kerberos login as {login}: {failure}"),
            (Some(address), Failure::Kerberos(failure)) => {
                write!(f, "Kerberos ticket of {login} for NameNode {address}: {failure}")
            }
            (None, failure) => write!(f, "{}", Told { failure, login }),
            (Some(address), failure) => write!(f, "NameNode {address}: {}", Told { failure, login }),
        }
    }
}

/// What happened, without where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Kerberos(KerberosFailure),
    /// No connection: the name does not resolve, nobody listens, no route.
    Unreachable(String),
    /// No answer in time.
    TimedOut {
        waiting_for: &'static str,
        limit: Duration,
    },
    /// The connection ended under us.
    ConnectionLost(String),
    /// The server wants no authentication.
    Insecure,
    /// The server authenticates, but not by Kerberos; what it offers.
    KerberosNotOffered(String),
    /// The server is another one than configured.
    PrincipalMismatch {
        offered: String,
        expected: String,
    },
    ProtectionTooWeak {
        offered: String,
        required: Protection,
    },
    /// Somebody answers, but not in Hadoop's RPC protocol.
    NotHadoop(String),
    /// Hadoop's protocol, but against its rules.
    Protocol(String),
    /// A reply without a token.
    NoToken,
    /// A token that is not what was asked for.
    WrongToken(String),
    /// The server's own refusal.
    Refused(Refusal, RemoteException),
}

impl Failure {
    pub(crate) fn refused(exception: RemoteException) -> Self {
        Self::Refused(Refusal::of(&exception), exception)
    }
}

/// A failure in sentences; `login` is who we are, since some remedies name us.
struct Told<'a> {
    failure: &'a Failure,
    login: &'a Principal,
}

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = self.login.primary();
        match self.failure {
            Failure::Kerberos(failure) => write!(f, "{failure}"),
            Failure::Unreachable(what) => write!(f, "cannot be reached: {what}"),
            Failure::TimedOut { waiting_for, limit } => {
                write!(f, "no answer within {limit:?} (waiting for {waiting_for})")
            }
            Failure::ConnectionLost(how) => write!(f, "connection lost: {how}"),
            Failure::Insecure => f.write_str(
                "asks for no authentication (hadoop.security.authentication is simple there); only Kerberos is accepted",
            ),
            Failure::KerberosNotOffered(offered) => {
                write!(f, "does not offer Kerberos authentication, only {offered}")
            }
            Failure::PrincipalMismatch { offered, expected } => write!(
                f,
                "has Kerberos principal {offered}, expected {expected}: wrong host, wrong dfs.namenode.kerberos.principal, \
                 or an impostor"
            ),
            Failure::ProtectionTooWeak { offered, required } => write!(
                f,
                "offers protection {offered}, but hadoop.rpc.protection requires at least {required}"
            ),
            Failure::NotHadoop(what) => {
                write!(f, "does not speak Hadoop RPC ({what}): is this the RPC port of the NameNode?")
            }
            Failure::Protocol(what) => write!(f, "broke the protocol: {what}"),
            Failure::NoToken => f.write_str(
                "issued no token: its security is off, or (a router) its token store is not running",
            ),
            Failure::WrongToken(what) => {
                write!(f, "issued a token other than asked for, which was cancelled: {what}")
            }
            Failure::Refused(refusal, exception) => match refusal.advice(us) {
                Some(advice) => write!(f, "{advice} ({})", exception.message),
                None => write!(f, "{exception}"),
            },
        }
    }
}

/// A Java exception as the server sent it, without its stack trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RemoteException {
    /// Full class name.
    pub(crate) class: String,
    pub(crate) message: String,
}

/// More than this of a server's message helps nobody.
const MAX_MESSAGE: usize = 1000;

impl RemoteException {
    pub(crate) fn new(class: &str, message: &str) -> Self {
        let message = message.split("\n\tat ").next().unwrap_or_default().trim();
        // Servers repeat the class before the message of a nested exception; once is enough.
        let message = message.strip_prefix(class).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(message);
        let message =
            message.chars().take(MAX_MESSAGE).map(|c| if c.is_control() { ' ' } else { c }).collect();
        let class = class.chars().take(200).filter(|c| !c.is_control()).collect();
        Self { class, message }
    }

    fn class_is(&self, name: &str) -> bool {
        self.class.rsplit(['.', '$']).next() == Some(name)
    }
}

impl fmt::Display for RemoteException {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { class, message } = self;
        match (class.is_empty(), message.is_empty()) {
            (false, false) => write!(f, "{message} [{class}]"),
            (false, true) => f.write_str(class),
            (true, false) => f.write_str(message),
            (true, true) => f.write_str("refused without saying why"),
        }
    }
}

/// The server's refusals that somebody can do something about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    ImpersonationDenied,
    ImpersonationHostDenied,
    ServiceAclDenied,
    UnknownProtocol,
    VersionMismatch,
    KerberosNotEnabled,
    TicketRejected,
    NameNotMapped,
    TokensByTokenDenied,
    TokenUnknown,
    TokenExpired,
    TokenPastMaxDate,
    MasterKeyGone,
    RenewerMismatch,
    NoRenewer,
    WrongPassword,
    CancelDenied,
    Standby,
    SafeMode,
    Busy,
    AccessDenied,
    Other,
}

impl Refusal {
    /// Class first, then how the message begins or what it surely holds: wording moves between versions.
    fn of(exception: &RemoteException) -> Self {
        let says = |text: &str| exception.message.contains(text);
        let class = |name: &str| exception.class_is(name);
        if class("AuthorizationException") {
            if says("is not allowed to impersonate") {
                Self::ImpersonationDenied
            } else if says("Unauthorized connection for super-user") {
                Self::ImpersonationHostDenied
            } else if says("Unknown protocol") {
                Self::UnknownProtocol
            } else {
                Self::ServiceAclDenied
            }
        } else if class("InvalidToken") {
            if says("max expiration date") {
                Self::TokenPastMaxDate
            } else if says("has expired") || says("is expired") {
                Self::TokenExpired
            } else if says("master key") {
                Self::MasterKeyGone
            } else {
                Self::TokenUnknown
            }
        } else if class("AccessControlException") {
            if says("non-matching renewer") {
                Self::RenewerMismatch
            } else if says("without a renewer") {
                Self::NoRenewer
            } else if says("with wrong password") {
                Self::WrongPassword
            } else if says("is not authorized to cancel") {
                Self::CancelDenied
            } else if says("authentication is not enabled") {
                Self::KerberosNotEnabled
            } else {
                Self::AccessDenied
            }
        } else if class("StandbyException") {
            Self::Standby
        } else if class("SafeModeException") {
            Self::SafeMode
        } else if class("RetriableException") || class("CallQueueTooBigException") {
            if says("safe mode") { Self::SafeMode } else { Self::Busy }
        } else if class("VersionMismatch") {
            Self::VersionMismatch
        } else if class("RpcNoSuchMethodException") || class("RpcNoSuchProtocolException") {
            Self::UnknownProtocol
        } else if class("SaslException") {
            Self::TicketRejected
        } else if class("NoMatchingRule") || says("No rules applied to") {
            Self::NameNotMapped
        } else if says("only with kerberos or web authentication") {
            Self::TokensByTokenDenied
        } else {
            Self::Other
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::ImpersonationDenied => "IMPERSONATION_DENIED",
            Self::ImpersonationHostDenied => "IMPERSONATION_HOST_DENIED",
            Self::ServiceAclDenied => "SERVICE_ACL_DENIED",
            Self::UnknownProtocol => "WRONG_HADOOP_SERVICE",
            Self::VersionMismatch => "HADOOP_VERSION_MISMATCH",
            Self::KerberosNotEnabled => "NAMENODE_WITHOUT_KERBEROS",
            Self::TicketRejected => "TICKET_REJECTED",
            Self::NameNotMapped => "PRINCIPAL_NOT_MAPPED",
            Self::TokensByTokenDenied => "KERBEROS_REQUIRED",
            Self::TokenUnknown => "TOKEN_UNKNOWN",
            Self::TokenExpired => "TOKEN_EXPIRED",
            Self::TokenPastMaxDate => "TOKEN_PAST_MAX_LIFETIME",
            Self::MasterKeyGone => "TOKEN_MASTER_KEY_GONE",
            Self::RenewerMismatch => "RENEWER_MISMATCH",
            Self::NoRenewer => "TOKEN_WITHOUT_RENEWER",
            Self::WrongPassword => "TOKEN_PASSWORD_WRONG",
            Self::CancelDenied => "CANCEL_DENIED",
            Self::Standby => "NAMENODE_STANDBY",
            Self::SafeMode => "NAMENODE_SAFE_MODE",
            Self::Busy => "NAMENODE_BUSY",
            Self::AccessDenied => "ACCESS_DENIED",
            Self::Other => "NAMENODE_ERROR",
        }
    }

    fn retryable(self) -> bool {
        match self {
            Self::Standby | Self::SafeMode | Self::Busy => true,
            // A replay that was none; anything else shows again at once.
            Self::TicketRejected => true,
            // An unknown exception may pass; a wrong "no" would be the worse mistake.
            Self::Other => true,
            Self::ImpersonationDenied
            | Self::ImpersonationHostDenied
            | Self::ServiceAclDenied
            | Self::UnknownProtocol
            | Self::VersionMismatch
            | Self::KerberosNotEnabled
            | Self::NameNotMapped
            | Self::TokensByTokenDenied
            | Self::TokenUnknown
            | Self::TokenExpired
            | Self::TokenPastMaxDate
            | Self::MasterKeyGone
            | Self::RenewerMismatch
            | Self::NoRenewer
            | Self::WrongPassword
            | Self::CancelDenied
            | Self::AccessDenied => false,
        }
    }

    /// What it means and what to change; `us` is our short name.
    fn advice(self, us: &str) -> Option<String> {
        Some(match self {
            Self::ImpersonationDenied => format!(
                "does not let {us} act for this user: add the user to hadoop.proxyuser.{us}.users or one of the user's groups \
                 to hadoop.proxyuser.{us}.groups there, then refresh it with \
                 'hdfs dfsadmin -refreshSuperUserGroupsConfiguration'"
            ),
            Self::ImpersonationHostDenied => format!(
                "does not let {us} act for users from this address (it may be a node's): add it to \
                 hadoop.proxyuser.{us}.hosts there, then refresh it with \
                 'hdfs dfsadmin -refreshSuperUserGroupsConfiguration'"
            ),
            Self::ServiceAclDenied => "service ACLs (hadoop-policy.xml) there exclude the user".to_owned(),
            Self::UnknownProtocol => {
                "is another Hadoop service: this is not the port of a NameNode".to_owned()
            }
            Self::VersionMismatch => "speaks another version of Hadoop RPC".to_owned(),
            Self::KerberosNotEnabled => "does not accept Kerberos authentication".to_owned(),
            Self::TicketRejected => {
                "rejected our Kerberos ticket; the cause is in its own log (usually a re-created keytab, \
                 a wrong clock, or an encryption type it lacks)"
                    .to_owned()
            }
            Self::NameNotMapped => {
                "hadoop.security.auth_to_local there has no rule for our principal".to_owned()
            }
            Self::TokensByTokenDenied => "issues and renews tokens only over Kerberos".to_owned(),
            Self::TokenUnknown => {
                "does not know the token: it was cancelled, has expired, or is of another cluster".to_owned()
            }
            Self::TokenExpired => "the token was not renewed in time".to_owned(),
            Self::TokenPastMaxDate => {
                "the token is past its longest life (dfs.namenode.delegation.token.max-lifetime)".to_owned()
            }
            Self::MasterKeyGone => "no longer has the key that made the token".to_owned(),
            Self::RenewerMismatch => format!(
                "the token names another renewer than {us}: does hadoop.security.auth_to_local there map us to {us}?"
            ),
            Self::NoRenewer => "the token names no renewer, nobody can renew it".to_owned(),
            Self::WrongPassword => "the token's password is damaged".to_owned(),
            Self::CancelDenied => format!("{us} is neither owner nor renewer of the token"),
            Self::Standby => "is in standby state, not the active NameNode".to_owned(),
            Self::SafeMode => "is in safe mode".to_owned(),
            Self::Busy => "is overloaded or starting".to_owned(),
            Self::AccessDenied | Self::Other => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RENEW: &str = "org.apache.hadoop.security.token.SecretManager$InvalidToken";
    const ACCESS: &str = "org.apache.hadoop.security.AccessControlException";
    const AUTHORIZATION: &str = "org.apache.hadoop.security.authorize.AuthorizationException";

    fn error(class: &str, message: &str) -> Error {
        let login = "csi/h@R".parse().unwrap();
        Error::namenode(&login, "nn1:8020", Failure::refused(RemoteException::new(class, message)))
    }

    #[track_caller]
    fn check(class: &str, message: &str, reason: &str, retryable: bool) {
        let error = error(class, message);
        assert_eq!((error.reason(), error.retryable()), (reason, retryable), "{error}");
        assert!(error.to_string().starts_with("NameNode nn1:8020: "), "{error}");
    }

    #[test]
    fn refusals_are_told_apart_by_class_and_message() {
        check(
            AUTHORIZATION,
            "User: csi/h@R is not allowed to impersonate alice",
            "IMPERSONATION_DENIED",
            false,
        );
        check(
            AUTHORIZATION,
            "Unauthorized connection for super-user: csi/h@R from IP /10.1.2.3",
            "IMPERSONATION_HOST_DENIED",
            false,
        );
        check(
            AUTHORIZATION,
            "User alice (auth:PROXY) via csi/h@R (auth:KERBEROS) is not authorized for protocol interface x: denied by configured ACL",
            "SERVICE_ACL_DENIED",
            false,
        );
        check(AUTHORIZATION, "Unknown protocol: x.ClientProtocol", "WRONG_HADOOP_SERVICE", false);
        check(
            ACCESS,
            "KERBEROS authentication is not enabled.  Available:[SIMPLE]",
            "NAMENODE_WITHOUT_KERBEROS",
            false,
        );
        check(
            "java.io.IOException",
            "Delegation Token can be issued only with kerberos or web authentication",
            "KERBEROS_REQUIRED",
            false,
        );
        check(RENEW, "Token for real user: X, can't be found in cache", "TOKEN_UNKNOWN", false);
        check(RENEW, "Renewal request for unknown token (token for alice: ...)", "TOKEN_UNKNOWN", false);
        check(RENEW, "Token not found (HDFS_DELEGATION_TOKEN ...)", "TOKEN_UNKNOWN", false);
        check(RENEW, "token (x) is expired", "TOKEN_EXPIRED", false);
        check(RENEW, "Token x has expired, current time: A expected renewal time: B", "TOKEN_EXPIRED", false);
        check(
            RENEW,
            "csi tried to renew an expired token (x) max expiration date: 2026",
            "TOKEN_PAST_MAX_LIFETIME",
            false,
        );
        check(RENEW, "Unable to find master key for keyId=3", "TOKEN_MASTER_KEY_GONE", false);
        check(
            ACCESS,
            "bob tries to renew a token (x) with non-matching renewer csi",
            "RENEWER_MISMATCH",
            false,
        );
        check(ACCESS, "csi tried to renew a token (x) without a renewer", "TOKEN_WITHOUT_RENEWER", false);
        check(
            ACCESS,
            "csi is trying to renew a token (x) with wrong password",
            "TOKEN_PASSWORD_WRONG",
            false,
        );
        check(ACCESS, "bob is not authorized to cancel the token (x)", "CANCEL_DENIED", false);
        check(ACCESS, "Permission denied", "ACCESS_DENIED", false);
        check(
            "org.apache.hadoop.ipc.StandbyException",
            "Operation category WRITE is not supported in state standby",
            "NAMENODE_STANDBY",
            true,
        );
        check(
            "org.apache.hadoop.hdfs.server.namenode.SafeModeException",
            "Cannot issue delegation token. Name node is in safe mode.",
            "NAMENODE_SAFE_MODE",
            true,
        );
        check(
            "org.apache.hadoop.ipc.RetriableException",
            "org.apache.hadoop.hdfs.server.namenode.SafeModeException: Name node is in safe mode.",
            "NAMENODE_SAFE_MODE",
            true,
        );
        check("org.apache.hadoop.ipc.RetriableException", "Server is too busy.", "NAMENODE_BUSY", true);
        check("org.apache.hadoop.ipc.CallQueueTooBigException", "", "NAMENODE_BUSY", true);
        check("org.apache.hadoop.ipc.RPC$VersionMismatch", "9 10", "HADOOP_VERSION_MISMATCH", false);
        check("org.apache.hadoop.ipc.RpcNoSuchMethodException", "x", "WRONG_HADOOP_SERVICE", false);
        check("javax.security.sasl.SaslException", "GSS initiate failed", "TICKET_REJECTED", true);
        check("java.lang.NullPointerException", "", "NAMENODE_ERROR", true);
    }

    #[test]
    fn stack_traces_and_repeated_class_names_are_cut_off() {
        let exception = RemoteException::new(
            RENEW,
            &format!("{RENEW}: Token not found\n\tat org.apache.hadoop.X.y(X.java:1)\n\tat z"),
        );
        assert_eq!(exception.message, "Token not found");
        assert_eq!(RemoteException::new("x", &"y".repeat(100_000)).message.len(), MAX_MESSAGE);
    }

    #[test]
    fn advice_names_the_setting_to_change_and_quotes_the_server() {
        let shown =
            error(AUTHORIZATION, "User: csi/h@R is not allowed to impersonate alice\n\tat x").to_string();
        assert!(shown.contains("hadoop.proxyuser.csi.users"), "{shown}");
        assert!(shown.ends_with("(User: csi/h@R is not allowed to impersonate alice)"), "{shown}");
    }

    #[test]
    fn only_a_dead_token_needs_a_new_one() {
        assert!(error(RENEW, "Renewal request for unknown token (x)").needs_new_token());
        assert!(error(RENEW, "x tried to renew an expired token max expiration date").needs_new_token());
        assert!(!error(ACCESS, "bob tries to renew a token with non-matching renewer").needs_new_token());
        assert!(!error("org.apache.hadoop.ipc.StandbyException", "").needs_new_token());
    }
}
