//! A NameNode (or HDFS router): gets delegation tokens for users by impersonation, renews and cancels them. A token
//! that is not what was asked for, or that nobody waits for any more, is cancelled and never handed out.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};
use zeroize::Zeroizing;

use crate::codec::{Counter, DecodeError};
use crate::error::{Error, Failure, Refusal};
use crate::kerberos::Login;
use crate::principal::{Principal, ServerIdentity};
use crate::protobuf::{self, put_bytes, put_header};
use crate::rpc::Protection;
use crate::rpc::connection::{CallFailure, Fate, Request};
use crate::rpc::message::Protocol;
use crate::rpc::pool::{Pool, Server, resolve};
use crate::token::{HDFS_DELEGATION_TOKEN, Token, TokenIdentifier};
use crate::user::HadoopUser;

/// What clients speak to a NameNode.
pub(crate) const CLIENT_PROTOCOL: Protocol =
    Protocol { name: "org.apache.hadoop.hdfs.protocol.ClientProtocol", version: 1 };

/// How long a caller waits, connecting included.
const CALL_LIMIT: Duration = Duration::from_secs(15);

/// How long we wait for a token once it is asked for. Longer than anybody else does: whether there is one must be
/// known, and one that nobody waits for any more be cancelled when it comes.
const TOKEN_LIMIT: Duration = Duration::from_secs(60);

/// Waits between attempts to cancel a token that nobody waits for: the first, and the longest that it grows to.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// How long a token lives that nobody renews, by Hadoop's default.
const UNRENEWED_LIFETIME: Duration = Duration::from_hours(24);

/// How often a call is sent anew when its connection turns out to have been closed before it was sent.
const MAX_STALE_CONNECTIONS: usize = 2;

/// Longest caller context. Servers cut at 128 bytes by default.
const MAX_CALLER_CONTEXT: usize = 128;

/// Where a NameNode is, and what it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Host name, lower case.
    pub host: String,
    /// RPC port.
    pub port: u16,
    /// Its Kerberos principal.
    pub identity: ServerIdentity,
    /// The weakest protection that will do.
    pub protection: Protection,
    /// Whether clients look tokens up by the NameNode's address (`hadoop.security.token.service.use_ip`) or its name.
    pub services_by_address: bool,
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Whether there was anything to cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// The token worked until now.
    Now,
    /// The NameNode did not know the token: it was cancelled before, or has expired.
    Before,
}

/// What a NameNode tells its clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerDefaults {
    /// Address of the key server, if files can be encrypted.
    pub key_provider_uri: Option<String>,
}

/// A NameNode. Cheap to clone; clones share their connections.
#[derive(Clone, Debug)]
pub struct NameNode(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    address: String,
    login: Arc<Login>,
    pool: Pool,
}

impl NameNode {
    /// The NameNode of these settings, spoken to as `login`. Connects to nobody yet.
    #[must_use]
    pub fn new(settings: Settings, login: Arc<Login>) -> Self {
        let server = Server {
            host: settings.host.clone(),
            port: settings.port,
            identity: settings.identity.clone(),
            protection: settings.protection,
            protocol: CLIENT_PROTOCOL,
        };
        let pool = Pool::new(server, login.clone());
        Self(Arc::new(Inner { address: settings.to_string(), settings, login, pool }))
    }

    /// `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.0.address
    }

    /// Gets a token that acts as `user`, and that `renewer` may renew. `caller_context` is for the NameNode's audit
    /// log. Never sent twice: a retry could leave a token that nobody knows. The token's service is empty, as issued.
    ///
    /// Waits for an answer much longer than a caller will. Who drops the future has the token cancelled when it comes.
    ///
    /// # Errors
    ///
    /// When Kerberos or the NameNode refuses or does not answer, or when the token is not what was asked for;
    /// [`Error::may_have_happened`] tells whether there may be a token nevertheless.
    pub async fn get_delegation_token(
        &self,
        user: &HadoopUser,
        renewer: &str,
        caller_context: &str,
    ) -> Result<Token, Error> {
        let (inner, owner) = (self.0.clone(), user.clone());
        let (renewer, caller_context) = (renewer.to_owned(), caller_context.to_owned());
        // On its own, so that a token that comes after its caller left is cancelled, not forgotten.
        let mut issued = tokio::spawn(async move { inner.issue(owner, &renewer, &caller_context).await });
        let ended = match timeout(CALL_LIMIT, &mut issued).await {
            Ok(ended) => ended,
            Err(_) => {
                // Others had better connect anew.
                self.0.pool.discard(Some(user));
                issued.await
            }
        };
        match ended {
            Ok(Ok(issued)) => Ok(issued.claim()),
            Ok(Err(CallFailure { failure, fate })) => {
                let error = self.0.error(failure);
                Err(if fate == Fate::Unknown { error.unanswered() } else { error })
            }
            Err(lost) => {
                let failure = Failure::ConnectionLost(format!("the call was lost: {lost}"));
                Err(self.0.error(failure).unanswered())
            }
        }
    }

    /// Renews a token whose renewer we are. Gives its new expiry, in milliseconds since the Unix epoch on the
    /// NameNode's clock. `caller_context` is for the NameNode's audit log.
    ///
    /// # Errors
    ///
    /// When Kerberos or the NameNode refuses or does not answer; [`Error::needs_new_token`] tells when to give up.
    pub async fn renew_delegation_token(&self, token: &Token, caller_context: &str) -> Result<u64, Error> {
        let request = Request {
            method: "renewDelegationToken",
            message: token_message(token),
            caller_context: Some(printable(caller_context)),
        };
        self.0.own_call(request, |reply| number(reply, 1)).await.map_err(|failure| self.0.error(failure))
    }

    /// Cancels the token with this identifier. That it is already unknown is fine. `caller_context` is for the
    /// NameNode's audit log.
    ///
    /// # Errors
    ///
    /// When Kerberos or the NameNode refuses or does not answer. The token may still work then.
    pub async fn cancel_delegation_token(
        &self,
        identifier: &[u8],
        caller_context: &str,
    ) -> Result<Cancelled, Error> {
        let caller_context = Some(printable(caller_context));
        self.0.cancel(identifier, caller_context).await.map_err(|failure| self.0.error(failure))
    }

    /// Asks for the NameNode's defaults: a cheap proof that Kerberos and the NameNode work.
    ///
    /// # Errors
    ///
    /// When Kerberos or the NameNode refuses or does not answer.
    pub async fn server_defaults(&self) -> Result<ServerDefaults, Error> {
        let request =
            Request { method: "getServerDefaults", message: Zeroizing::default(), caller_context: None };
        self.0.own_call(request, server_defaults).await.map_err(|failure| self.0.error(failure))
    }

    /// The names under which clients look up a token of this NameNode, the likeliest first: by its addresses as they
    /// resolve now, and by its name.
    ///
    /// # Errors
    ///
    /// When the name does not resolve.
    pub async fn services(&self) -> Result<Vec<String>, Error> {
        let Settings { host, port, services_by_address, .. } = &self.0.settings;
        let resolved = timeout(CALL_LIMIT, resolve(host, *port))
            .await
            .unwrap_or(Err(Failure::TimedOut { waiting_for: "its name to resolve", limit: CALL_LIMIT }));
        let addresses = resolved.map_err(|failure| self.0.error(failure))?;
        let by_name = std::iter::once(format!("{host}:{port}"));
        let by_address = addresses.into_iter().map(service_of);
        let mut services: Vec<String> = if *services_by_address {
            by_address.chain(by_name).collect()
        } else {
            by_name.chain(by_address).collect()
        };
        services.dedup();
        Ok(services)
    }
}

impl Inner {
    fn error(&self, failure: Failure) -> Error {
        Error::namenode(self.login.principal(), &self.address, failure)
    }

    async fn issue(
        self: Arc<Self>,
        user: HadoopUser,
        renewer: &str,
        caller_context: &str,
    ) -> Result<Issued, CallFailure> {
        let ended = |failure, fate| CallFailure { failure, fate };
        let timed_out = |waiting_for, limit| Failure::TimedOut { waiting_for, limit };
        let mut message = Vec::new();
        put_bytes(1, renewer.as_bytes(), &mut message);
        let request = Request {
            method: "getDelegationToken",
            message: message.into(),
            caller_context: Some(printable(caller_context)),
        };
        let mut stale = 0;
        let reply = loop {
            let pooled = timeout(CALL_LIMIT, self.pool.get(Some(&user)))
                .await
                .unwrap_or_else(|_| Err(timed_out("a connection", CALL_LIMIT)))
                .map_err(|failure| ended(failure, Fate::NotSent))?;
            let replied = timeout(TOKEN_LIMIT, pooled.connection.call(request.clone())).await;
            match replied {
                Ok(Ok(reply)) => break reply,
                Ok(Err(CallFailure { fate: Fate::NotSent, .. }))
                    if pooled.reused && stale < MAX_STALE_CONNECTIONS =>
                {
                    stale += 1;
                }
                Ok(Err(lost)) => return Err(lost),
                Err(_) => return Err(ended(timed_out("a token", TOKEN_LIMIT), Fate::Unknown)),
            }
        };
        let token = issued_token(&reply).map_err(|error| ended(malformed(error), Fate::Unknown))?;
        let Some(token) = token else { return Err(ended(Failure::NoToken, Fate::Refused)) };
        // From here on it is cancelled unless somebody claims it.
        let issued = Issued { token, unclaimed_at: Some(self.clone()) };
        match what_is_wrong(&issued.token, &user, renewer, self.login.principal()) {
            None => Ok(issued),
            Some(wrong) => {
                let cancelled = self.cancel(&issued.token.identifier, Some(printable(caller_context))).await;
                match cancelled {
                    Ok(_) => {
                        issued.claim();
                        Err(ended(Failure::WrongToken(wrong), Fate::Refused))
                    }
                    // Dropped unclaimed, it goes on being cancelled.
                    Err(failure) => {
                        let failure = self.error(failure);
                        let failure =
                            Failure::WrongToken(format!("{wrong}; but cancelling it failed: {failure}"));
                        Err(ended(failure, Fate::Unknown))
                    }
                }
            }
        }
    }

    async fn cancel(&self, identifier: &[u8], caller_context: Option<String>) -> Result<Cancelled, Failure> {
        // The identifier alone will do.
        let token = Token::new(identifier.to_vec(), Vec::new(), "", "");
        let request =
            Request { method: "cancelDelegationToken", message: token_message(&token), caller_context };
        let mut ended = self.own_call(request.clone(), |_| Ok(())).await;
        if let Err(Failure::Refused(Refusal::CancelDenied, _)) = ended
            && let Ok(identifier) = TokenIdentifier::decode(HDFS_DELEGATION_TOKEN, identifier)
            && let Ok(owner) = identifier.owner.parse::<HadoopUser>()
        {
            // Not ours to renew, so not ours to cancel, but its owner may.
            ended = self.call(Some(&owner), request, |_| Ok(())).await;
        }
        match ended {
            Ok(()) => Ok(Cancelled::Now),
            Err(Failure::Refused(Refusal::TokenUnknown, _)) => Ok(Cancelled::Before),
            Err(failure) => Err(failure),
        }
    }

    async fn own_call<T>(
        &self,
        request: Request,
        decode: impl Fn(&[u8]) -> Result<T, DecodeError>,
    ) -> Result<T, Failure> {
        self.call(None, request, decode).await
    }

    /// A call that may be sent twice. A kept connection that turns out to be dead is replaced, once.
    async fn call<T>(
        &self,
        user: Option<&HadoopUser>,
        request: Request,
        decode: impl Fn(&[u8]) -> Result<T, DecodeError>,
    ) -> Result<T, Failure> {
        let method = request.method;
        let called = async {
            let mut stale = 0;
            loop {
                let pooled = self.pool.get(user).await?;
                match pooled.connection.call(request.clone()).await {
                    Ok(reply) => return decode(&reply).map_err(malformed),
                    Err(CallFailure { failure: Failure::ConnectionLost(how), .. })
                        if pooled.reused && stale < MAX_STALE_CONNECTIONS =>
                    {
                        stale += 1;
                        debug!(namenode = self.address, how, "Kept connection was closed, connecting anew");
                    }
                    Err(lost) => return Err(lost.failure),
                }
            }
        };
        timeout(CALL_LIMIT, called).await.unwrap_or_else(|_| {
            self.pool.discard(user);
            Err(Failure::TimedOut { waiting_for: method, limit: CALL_LIMIT })
        })
    }
}

/// Checks a new token against what `us` asked for.
fn what_is_wrong(token: &Token, user: &HadoopUser, renewer: &str, us: &Principal) -> Option<String> {
    if token.kind != HDFS_DELEGATION_TOKEN {
        return Some(format!("its kind is {:?}", token.kind));
    }
    let identifier = match token.decode_identifier() {
        Ok(identifier) => identifier,
        Err(error) => return Some(error.to_string()),
    };
    // The NameNode stores the short name of a renewer that it was given as a principal.
    let short = renewer.split(['/', '@']).next().unwrap_or_default();
    let TokenIdentifier { owner, renewer: stored, real_user, issue_date, max_date, .. } = &identifier;
    if owner != user.as_str() {
        Some(format!("its owner is {owner:?}, not {user}"))
    } else if stored != renewer && stored != short {
        Some(format!(
            "its renewer is {stored:?}, not {short} (if hadoop.security.auth_to_local there maps {renewer} to that name, ask \
             for that name)"
        ))
    } else if *real_user != us.to_string() {
        Some(format!("it was got by {real_user:?}, not {us}"))
    } else if max_date < issue_date {
        Some("it ends before it begins".to_owned())
    } else {
        None
    }
}

/// A token that is cancelled when it is dropped unclaimed: the caller has gone.
struct Issued {
    token: Token,
    /// Where to cancel it; `None` once it is claimed.
    unclaimed_at: Option<Arc<Inner>>,
}

impl Issued {
    fn claim(mut self) -> Token {
        self.unclaimed_at = None;
        self.token.clone()
    }
}

impl Drop for Issued {
    fn drop(&mut self) {
        let Some(namenode) = self.unclaimed_at.take() else { return };
        // Without an executor the process is ending; the token dies at its first renew date.
        let Ok(executor) = tokio::runtime::Handle::try_current() else { return };
        let identifier = std::mem::take(&mut self.token.identifier);
        executor.spawn(async move {
            let (namenode, identifier) = (&*namenode, &*identifier);
            let cancel = || async move {
                namenode.cancel(identifier, None).await.map_err(|lost| namenode.error(lost))
            };
            match persistently(cancel).await {
                Ok(_) => {
                    debug!(namenode = namenode.address, "Cancelled a token that nobody waits for any more")
                }
                Err(error) => warn!(
                    namenode = namenode.address,
                    %error,
                    "A token that nobody waits for lives on until its first renew date"
                ),
            }
        });
    }
}

/// Tries until it has worked, cannot work, or the token has most likely ended by itself.
async fn persistently<T, Attempt: Future<Output = Result<T, Error>>>(
    attempt: impl Fn() -> Attempt,
) -> Result<T, Error> {
    let (end, mut wait) = (Instant::now() + UNRENEWED_LIFETIME, FIRST_WAIT);
    loop {
        match attempt().await {
            Err(error) if error.retryable() && Instant::now() + wait < end => {
                debug!(%error, retry_in = ?wait, "Failed to cancel a token that nobody waits for any more");
                sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            }
            outcome => return outcome,
        }
    }
}

fn malformed(error: DecodeError) -> Failure {
    Failure::Protocol(format!("its reply cannot be read: {error}"))
}

/// Keeps log lines whole: what cannot be printed becomes an underscore.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_graphic() { c } else { '_' }).take(MAX_CALLER_CONTEXT).collect()
}

/// `RenewDelegationTokenRequestProto` and `CancelDelegationTokenRequestProto`: a token in field 1.
fn token_message(token: &Token) -> Zeroizing<Vec<u8>> {
    let mut length = Counter::default();
    protobuf::put_token(token, &mut length);
    let mut header = Counter::default();
    put_header(1, length.0, &mut header);
    let mut message = Zeroizing::new(Vec::with_capacity(header.0 + length.0));
    put_header(1, length.0, &mut *message);
    protobuf::put_token(token, &mut *message);
    message
}

/// `GetDelegationTokenResponseProto`: a token in field 1, or none.
fn issued_token(reply: &[u8]) -> Result<Option<Token>, DecodeError> {
    let mut token = None;
    protobuf::fields(reply, "token reply", |number, value| {
        if number == 1 {
            token = Some(protobuf::token(value.bytes("token reply")?)?);
        }
        Ok(())
    })?;
    Ok(token)
}

/// A required number in this field.
fn number(reply: &[u8], field: u64) -> Result<u64, DecodeError> {
    let mut found = None;
    protobuf::fields(reply, "renew reply", |number, value| {
        if number == field {
            found = Some(value.number("renew date")?);
        }
        Ok(())
    })?;
    found.ok_or(DecodeError::Protobuf("renew reply"))
}

/// `GetServerDefaultsResponseProto`: in field 1 `FsServerDefaultsProto`, whose field 9 is the key provider.
fn server_defaults(reply: &[u8]) -> Result<ServerDefaults, DecodeError> {
    let what = "server defaults";
    let mut defaults = None;
    protobuf::fields(reply, what, |number, value| {
        if number == 1 {
            let mut read = ServerDefaults::default();
            protobuf::fields(value.bytes(what)?, what, |number, value| {
                if number == 9 {
                    let uri = value.text("key provider")?;
                    read.key_provider_uri = (!uri.is_empty()).then(|| uri.to_owned());
                }
                Ok(())
            })?;
            defaults = Some(read);
        }
        Ok(())
    })?;
    defaults.ok_or(DecodeError::Protobuf(what))
}

/// `address:port` as Java writes it: IPv6 in eight groups without brackets, never shortened.
fn service_of(address: SocketAddr) -> String {
    let port = address.port();
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => format!("{ip}:{port}"),
        IpAddr::V6(ip) => {
            let groups: Vec<_> = ip.segments().iter().map(|group| format!("{group:x}")).collect();
            format!("{}:{port}", groups.join(":"))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protobuf::put_number;
    use crate::token::tests::recorded_token;

    #[track_caller]
    fn check(change: impl Fn(&mut TokenIdentifier), renewer: &str, expected: Option<&str>) {
        let mut identifier = recorded_token().decode_identifier().unwrap();
        change(&mut identifier);
        let token = Token { identifier: identifier.encode(), ..recorded_token() };
        let us = "csi/h1.example.com@EXAMPLE.COM".parse().unwrap();
        let wrong = what_is_wrong(&token, &"alice".parse().unwrap(), renewer, &us);
        assert_eq!(wrong.is_some(), expected.is_some(), "{wrong:?}");
        assert!(wrong.unwrap_or_default().contains(expected.unwrap_or_default()), "{expected:?}");
    }

    #[test]
    fn a_token_other_than_asked_for_is_noticed() {
        check(|_| {}, "csi", None);
        check(|_| {}, "csi/h1.example.com@EXAMPLE.COM", None);
        check(|_| {}, "yarn", Some("its renewer is \"csi\""));
        check(|identifier| identifier.renewer.clear(), "csi", Some("its renewer is \"\""));
        check(|identifier| identifier.owner = "bob".to_owned(), "csi", Some("its owner is \"bob\""));
        check(|identifier| identifier.owner = "alice@R".to_owned(), "csi", Some("its owner"));
        check(|identifier| identifier.real_user.clear(), "csi", Some("it was got by \"\""));
        check(|identifier| identifier.real_user = "csi".to_owned(), "csi", Some("it was got by"));
        check(|identifier| identifier.max_date = 0, "csi", Some("ends before it begins"));
        let us = "csi/h1.example.com@EXAMPLE.COM".parse().unwrap();
        for (kind, identifier) in [("kms-dt", recorded_token().identifier), (HDFS_DELEGATION_TOKEN, vec![1])]
        {
            let token = Token { kind: kind.to_owned(), identifier, ..recorded_token() };
            assert!(what_is_wrong(&token, &"alice".parse().unwrap(), "csi", &us).is_some());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_nobody_waits_for_is_cancelled_however_long_the_namenode_is_away() {
        let us = "csi/h1.example.com@EXAMPLE.COM".parse().unwrap();
        let (begun, attempts) = (Instant::now(), std::cell::Cell::new(0));
        let cancelled = persistently(|| async {
            attempts.set(attempts.get() + 1);
            if begun.elapsed() < Duration::from_hours(5) {
                return Err(Error::namenode(&us, "nn1:8020", Failure::Unreachable("refused".to_owned())));
            }
            Ok(Cancelled::Now)
        });
        assert_eq!(cancelled.await.unwrap(), Cancelled::Now);
        assert!((200..400).contains(&attempts.get()), "{}", attempts.get());

        let refused = || async { Err::<(), _>(Error::namenode(&us, "nn1:8020", Failure::NoToken)) };
        let begun = Instant::now();
        persistently(refused).await.unwrap_err();
        assert_eq!(begun.elapsed(), Duration::ZERO, "tried what cannot work again");
    }

    #[test]
    fn an_empty_reply_holds_no_token() {
        assert_eq!(issued_token(&[]), Ok(None));
        assert_eq!(issued_token(&token_message(&recorded_token())), Ok(Some(recorded_token())));
    }

    #[test]
    fn a_key_provider_is_read_and_an_empty_one_is_none() {
        for (uri, expected) in [("kms://http@h:9600/kms", Some("kms://http@h:9600/kms")), ("", None)] {
            let (mut inner, mut reply) = (Vec::new(), Vec::new());
            put_number(1, 134_217_728, &mut inner);
            put_bytes(9, uri.as_bytes(), &mut inner);
            put_bytes(1, &inner, &mut reply);
            assert_eq!(server_defaults(&reply).unwrap().key_provider_uri.as_deref(), expected);
        }
        assert!(server_defaults(&[]).is_err());
    }

    #[test]
    fn services_are_written_as_java_writes_them() {
        assert_eq!(service_of("10.1.2.3:8020".parse().unwrap()), "10.1.2.3:8020");
        assert_eq!(service_of("[fd00::1]:8020".parse().unwrap()), "fd00:0:0:0:0:0:0:1:8020");
        assert_eq!(service_of("[::ffff:10.1.2.3]:8020".parse().unwrap()), "10.1.2.3:8020");
    }

    #[test]
    fn a_caller_context_cannot_break_a_log_line() {
        assert_eq!(printable("ns/pod\tugi=root\n"), "ns/pod_ugi=root_");
        assert_eq!(printable(&"x".repeat(500)).len(), MAX_CALLER_CONTEXT);
    }

    proptest! {
        #[test]
        fn arbitrary_replies_never_panic(reply: Vec<u8>) {
            let _ = issued_token(&reply);
            let _ = number(&reply, 1);
            let _ = server_defaults(&reply);
        }
    }
}
