//! What Kerberos failures mean, told by their codes: their texts differ between versions and threads.

use std::fmt;

/// A failure of Kerberos.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KerberosFailure {
    kind: Kind,
    /// The library's own words, or ours.
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    KeytabUnusable,
    KdcUnreachable,
    RealmUnknown,
    ConfigurationUnusable,
    ClientUnknown,
    ClientLocked,
    KeyOutdated,
    ServerUnknown,
    ClockSkew,
    TicketExpired,
    EncryptionTypes,
    Policy,
    NoCredentials,
    Other,
}

impl Kind {
    /// By `krb5.h`. The codes come through GSSAPI unchanged, as unsigned numbers.
    fn of(minor: u32) -> Self {
        match minor.cast_signed() {
            -1_765_328_228 | -1_765_328_164 | -1_765_328_355 => Self::KdcUnreachable,
            -1_765_328_230 => Self::RealmUnknown,
            -1_765_328_249 | -1_765_328_248 | -1_765_328_160 => Self::ConfigurationUnusable,
            -1_765_328_378 => Self::ClientUnknown,
            -1_765_328_366 | -1_765_328_383 => Self::ClientLocked,
            -1_765_328_360 | -1_765_328_353 | -1_765_328_361 | -1_765_328_154 => Self::KeyOutdated,
            -1_765_328_377 | -1_765_328_365 | -1_765_328_358 => Self::ServerUnknown,
            -1_765_328_347 | -1_765_328_236 | -1_765_328_351 => Self::ClockSkew,
            -1_765_328_352 => Self::TicketExpired,
            -1_765_328_370 => Self::EncryptionTypes,
            -1_765_328_372 | -1_765_328_373 => Self::Policy,
            -1_765_328_189 | -1_765_328_190 | -1_765_328_203 | -1_765_328_243 => Self::NoCredentials,
            _ => Self::Other,
        }
    }
}

impl KerberosFailure {
    /// From GSSAPI's minor code and its text, rendered on the thread that failed.
    pub(super) fn gss(minor: u32, text: &str) -> Self {
        // "Unspecified GSS failure.  Minor code may provide more information (what happened)"
        let inner = text.split_once(" (").and_then(|(_, inner)| inner.strip_suffix(')')).unwrap_or(text);
        let text: String = inner.chars().filter(|c| !c.is_control()).take(500).collect();
        Self { kind: Kind::of(minor), text }
    }

    pub(super) fn keytab(text: String) -> Self {
        Self { kind: Kind::KeytabUnusable, text }
    }

    /// The library is still waiting for a KDC, and we no longer are.
    pub(super) fn silent_kdc(realm: &str, text: &str) -> Self {
        Self {
            kind: Kind::KdcUnreachable,
            text: format!("Cannot contact any KDC for realm '{realm}': {text}"),
        }
    }

    pub(super) fn other(text: impl Into<String>) -> Self {
        Self { kind: Kind::Other, text: text.into() }
    }

    /// Whether a second try at once may do: another thread was refreshing our tickets.
    pub(super) fn is_momentary(&self) -> bool {
        matches!(self.kind, Kind::NoCredentials | Kind::TicketExpired | Kind::KdcUnreachable)
    }

    pub(super) fn is_missing_credentials(&self) -> bool {
        self.kind == Kind::NoCredentials
    }

    pub(crate) fn reason(&self) -> &'static str {
        match self.kind {
            Kind::KeytabUnusable => "KEYTAB_UNUSABLE",
            Kind::KdcUnreachable => "KDC_UNREACHABLE",
            Kind::RealmUnknown => "KERBEROS_REALM_UNKNOWN",
            Kind::ConfigurationUnusable => "KERBEROS_CONFIGURATION_UNUSABLE",
            Kind::ClientUnknown => "KERBEROS_CLIENT_UNKNOWN",
            Kind::ClientLocked => "KERBEROS_CLIENT_LOCKED",
            Kind::KeyOutdated => "KEYTAB_OUTDATED",
            Kind::ServerUnknown => "KERBEROS_SERVER_UNKNOWN",
            Kind::ClockSkew => "KERBEROS_CLOCK_SKEW",
            Kind::TicketExpired => "KERBEROS_TICKET_EXPIRED",
            Kind::EncryptionTypes => "KERBEROS_ENCRYPTION_TYPES",
            Kind::Policy => "KERBEROS_POLICY",
            Kind::NoCredentials | Kind::Other => "KERBEROS_FAILED",
        }
    }

    pub(crate) fn retryable(&self) -> bool {
        match self.kind {
            Kind::KdcUnreachable | Kind::TicketExpired | Kind::NoCredentials | Kind::Other => true,
            Kind::KeytabUnusable
            | Kind::RealmUnknown
            | Kind::ConfigurationUnusable
            | Kind::ClientUnknown
            | Kind::ClientLocked
            | Kind::KeyOutdated
            | Kind::ServerUnknown
            | Kind::ClockSkew
            | Kind::EncryptionTypes
            | Kind::Policy => false,
        }
    }
}

impl fmt::Display for KerberosFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let advice = match self.kind {
            Kind::KeytabUnusable | Kind::Other | Kind::NoCredentials => return f.write_str(&self.text),
            Kind::KdcUnreachable => {
                "cannot contact any KDC: it is down, its name does not resolve, or a network policy is in the way"
            }
            Kind::RealmUnknown => "krb5.conf names no KDC for the realm",
            Kind::ConfigurationUnusable => "krb5.conf is missing or unusable",
            Kind::ClientUnknown => "the KDC does not know our principal",
            Kind::ClientLocked => "the KDC has locked our principal, or it has expired",
            Kind::KeyOutdated => {
                "the key in the keytab is outdated (the principal's key was changed since): export the keytab anew"
            }
            Kind::ServerUnknown => {
                "the KDC does not know the service: wrong host name, or the realm's domain mapping in krb5.conf is wrong"
            }
            Kind::ClockSkew => "clocks differ by more than the KDC allows",
            Kind::TicketExpired => "the ticket has expired",
            Kind::EncryptionTypes => "the KDC supports no encryption type of the keytab or of krb5.conf",
            Kind::Policy => "the KDC's policy forbids it",
        };
        write!(f, "{advice} ({})", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(minor: u32, text: &str, reason: &str, retryable: bool) {
        let failure = KerberosFailure::gss(minor, text);
        assert_eq!((failure.reason(), failure.retryable()), (reason, retryable), "{failure}");
        assert!(failure.to_string().contains("what happened"), "{failure}");
    }

    #[test]
    fn failures_are_told_apart_by_code() {
        let text = "Unspecified GSS failure.  Minor code may provide more information (what happened)";
        check(2_529_638_919, text, "KERBEROS_SERVER_UNKNOWN", false);
        check(2_529_639_053, text, "KERBEROS_FAILED", true);
        check(2_529_638_943, text, "KEYTAB_OUTDATED", false);
        check(2_529_638_918, text, "KERBEROS_CLIENT_UNKNOWN", false);
        check(2_529_639_068, text, "KDC_UNREACHABLE", true);
        check(2_529_639_066, text, "KERBEROS_REALM_UNKNOWN", false);
        check(2_529_638_949, text, "KERBEROS_CLOCK_SKEW", false);
        check(2_529_638_944, text, "KERBEROS_TICKET_EXPIRED", true);
        check(0, text, "KERBEROS_FAILED", true);
        check(7, "what happened", "KERBEROS_FAILED", true);
    }
}
