//! The one connection to the directory, shared by all searches: made when it is needed and none is there, by one task
//! however many wait, and after a failure not before a growing, jittered pause is over. Files are read anew for every
//! connection, so that a renewed password or certificate needs no restart.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ldap3::{Ldap, LdapConnAsync, LdapConnSettings, LdapError, LdapResult, Scope};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use tracing::{debug, info, warn};
use zeroize::Zeroizing;

use super::entry::Entry;
use crate::directory::DirectoryError;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// What a server says in `supportedCapabilities` when it is an Active Directory.
const ACTIVE_DIRECTORY: &str = "1.2.840.113556.1.4.800";

/// How to connect.
#[derive(Debug)]
pub(super) struct Settings {
    /// URLs, tried in this order.
    pub(super) servers: Vec<String>,
    pub(super) start_tls: bool,
    pub(super) ca: Option<PathBuf>,
    pub(super) client: Option<ClientFiles>,
    pub(super) bind: Bind,
    /// Whether the server must be an Active Directory.
    pub(super) active_directory: bool,
    pub(super) connect_limit: Duration,
    pub(super) bind_limit: Duration,
}

/// Files of the certificate that we show.
#[derive(Clone, Debug)]
pub(super) struct ClientFiles {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

/// Who we are for the directory.
#[derive(Clone, Debug)]
pub(super) enum Bind {
    Simple { dn: String, password_file: PathBuf },
    External,
    Anonymous,
}

/// Makes connections, one after the other.
pub(super) struct Connector {
    settings: Arc<Settings>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    current: Option<Connection>,
    /// Counts connections.
    number: u64,
    failures: u32,
    pause: Option<(Instant, DirectoryError)>,
}

/// A connection that was good when it was last used.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) ldap: Ldap,
    pub(super) address: String,
    number: u64,
}

impl Connector {
    pub(super) fn new(settings: Settings) -> Self {
        Self { settings: Arc::new(settings), state: Arc::default() }
    }

    pub(super) fn addresses(&self) -> String {
        self.settings.servers.join(", ")
    }

    /// The present connection, or a new one.
    pub(super) async fn connection(&self) -> Result<Connection, DirectoryError> {
        let mut state = Arc::clone(&self.state).lock_owned().await;
        if let Some(connection) = &mut state.current {
            if !connection.ldap.is_closed() {
                return Ok(connection.clone());
            }
            debug!(address = connection.address, "The directory has closed the connection");
            state.current = None;
        }
        if let Some((end, error)) = &state.pause
            && Instant::now() < *end
        {
            return Err(error.clone());
        }
        let settings = Arc::clone(&self.settings);
        // Goes on when the one who waits goes away: the next one is glad of it.
        let connecting = tokio::spawn(async move {
            state.number += 1;
            let made = settings.connect(state.number).await;
            match &made {
                Ok(connection) => {
                    info!(address = connection.address, "Connected to the directory");
                    state.current = Some(connection.clone());
                    state.failures = 0;
                    state.pause = None;
                }
                Err(error) => {
                    state.failures = state.failures.saturating_add(1);
                    state.pause = Some((Instant::now() + pause(state.failures), error.clone()));
                }
            }
            made
        });
        connecting.await.unwrap_or_else(|error| {
            Err(DirectoryError::Unwell { address: self.addresses(), why: error.to_string() })
        })
    }

    /// Has the next search use another connection than this. Searches that are under way may end on it.
    pub(super) async fn give_up(&self, connection: &Connection) {
        let mut state = self.state.lock().await;
        if state.current.as_ref().is_some_and(|current| current.number == connection.number) {
            state.current = None;
        }
    }
}

/// How long to wait after so many failures in a row: twice as long each time, between half of it and all of it.
fn pause(failures: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
    doubled.min(LONGEST_PAUSE).mul_f64(0.5 + fastrand::f64() / 2.0)
}

impl Settings {
    /// Reads every file that a connection needs, and says what is wrong with them.
    pub(super) fn check(&self) -> Vec<String> {
        let tls = self.tls().err();
        let password = match &self.bind {
            Bind::Simple { password_file, .. } => password(password_file).err(),
            Bind::External | Bind::Anonymous => None,
        };
        tls.into_iter().chain(password).collect()
    }

    async fn connect(&self, number: u64) -> Result<Connection, DirectoryError> {
        let mut last = None;
        for address in &self.servers {
            match self.connect_to(address).await {
                Ok(ldap) => return Ok(Connection { ldap, address: address.clone(), number }),
                Err(error) => {
                    warn!(%error, "Failed to connect to the directory");
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| DirectoryError::Unreachable {
            address: "without a name".to_owned(),
            why: "no server is configured".to_owned(),
        }))
    }

    async fn connect_to(&self, address: &str) -> Result<Ldap, DirectoryError> {
        let unreachable = |why| DirectoryError::Unreachable { address: address.to_owned(), why };
        let late = |what: &str, limit: Duration| DirectoryError::Late {
            address: address.to_owned(),
            why: format!("{what} took longer than {} s", limit.as_secs()),
        };
        let tls = self.tls().map_err(unreachable)?;
        let mut settings = LdapConnSettings::new().set_starttls(self.start_tls);
        if let Some(tls) = tls {
            settings = settings.set_config(Arc::new(tls));
        }
        let opened = timeout(self.connect_limit, LdapConnAsync::with_settings(settings, address)).await;
        let (connection, mut ldap) = match opened {
            Err(_) => return Err(late("connecting", self.connect_limit)),
            Ok(Err(LdapError::LdapResult { result })) => {
                return Err(unreachable(format!("it refuses StartTLS: {}", said(&result))));
            }
            Ok(Err(error)) => return Err(unreachable(unreachable_why(&error))),
            Ok(Ok(opened)) => opened,
        };
        let owned_address = address.to_owned();
        // Ends when the last user of the connection is gone, or the connection itself.
        tokio::spawn(async move {
            if let Err(error) = connection.drive().await {
                debug!(%error, address = owned_address, "The connection to the directory has ended");
            }
        });
        match timeout(self.bind_limit, self.prepare(&mut ldap, address)).await {
            Err(_) => Err(late("the bind", self.bind_limit)),
            Ok(prepared) => prepared.map(|()| ldap),
        }
    }

    /// Binds, and checks that the server can do what we shall ask.
    async fn prepare(&self, ldap: &mut Ldap, address: &str) -> Result<(), DirectoryError> {
        let broken = |error: LdapError| DirectoryError::Unreachable {
            address: address.to_owned(),
            why: format!("the connection broke during the bind: {error}"),
        };
        let bound = match &self.bind {
            Bind::Simple { dn, password_file } => {
                let password = password(password_file)
                    .map_err(|why| DirectoryError::Unreachable { address: address.to_owned(), why })?;
                ldap.simple_bind(dn, password.expose_secret()).await
            }
            Bind::External => ldap.sasl_external_bind().await,
            Bind::Anonymous => ldap.simple_bind("", "").await,
        };
        let result = bound.map_err(broken)?;
        if result.rc != 0 {
            return Err(self.bind_refused(&result, address));
        }
        if self.active_directory {
            demand_active_directory(ldap, address).await?;
        }
        Ok(())
    }

    fn bind_refused(&self, result: &LdapResult, address: &str) -> DirectoryError {
        let address = address.to_owned();
        let said = said(result);
        match result.rc {
            // operationsError, busy, unavailable and other: nothing that is wrong with us.
            1 | 51 | 52 | 80 => {
                DirectoryError::Unwell { address, why: format!("it could not bind us: {said}") }
            }
            _ => {
                let advice = match &self.bind {
                    Bind::Simple { dn, password_file } => {
                        format!("check bind.simple: {dn} and {}", password_file.display())
                    }
                    Bind::External => {
                        "check clientCertificate, and how the server maps it to an entry".to_owned()
                    }
                    Bind::Anonymous => "it wants another bind than anonymous".to_owned(),
                };
                DirectoryError::BindRefused { address, why: format!("{said}; {advice}") }
            }
        }
    }

    /// What TLS needs; nothing where there is none.
    fn tls(&self) -> Result<Option<ClientConfig>, String> {
        let Some(ca) = &self.ca else { return Ok(None) };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(ca)? {
            roots.add(certificate).map_err(|error| format!("{}: {error}", ca.display()))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots);
        let config = match &self.client {
            None => builder.with_no_client_auth(),
            Some(ClientFiles { certificate, key }) => {
                let chain = certificates(certificate)?;
                let pem = Zeroizing::new(read(key)?);
                let key_der = PrivateKeyDer::from_pem_slice(&pem)
                    .map_err(|_| format!("{} holds no private key in PEM", key.display()))?;
                builder.with_client_auth_cert(chain, key_der).map_err(|error| {
                    format!("the certificate {} and its key cannot be used: {error}", certificate.display())
                })?
            }
        };
        Ok(Some(config))
    }
}

/// Another kind of server takes the rule for an unknown one that matches nothing, as if nobody were in any group.
async fn demand_active_directory(ldap: &mut Ldap, address: &str) -> Result<(), DirectoryError> {
    let unwell = |why| DirectoryError::Unwell { address: address.to_owned(), why };
    let found = ldap.search("", Scope::Base, "(objectClass=*)", vec!["supportedCapabilities"]).await;
    let (mut entries, result) = found
        .map(|found| (found.0, found.1))
        .map_err(|error| unwell(format!("it does not say what it is: {error}")))?;
    if result.rc != 0 {
        return Err(unwell(format!("it does not say what it is: {}", said(&result))));
    }
    let root = entries.pop().and_then(Entry::read);
    let capabilities = root.as_ref().map(|root| root.values("supportedCapabilities")).unwrap_or_default();
    if capabilities.iter().any(|capability| capability == ACTIVE_DIRECTORY) {
        return Ok(());
    }
    Err(unwell("it is no Active Directory: set groups.nested to walk".to_owned()))
}

/// What the server has said, in its words.
pub(super) fn said(result: &LdapResult) -> String {
    result.to_string()
}

fn unreachable_why(error: &LdapError) -> String {
    let tls = match error {
        LdapError::Io { source } => source.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()),
        LdapError::Rustls { .. } | LdapError::DNSName { .. } => true,
        _ => false,
    };
    if tls {
        format!("{error}; check ca, and the names in the server's certificate")
    } else {
        error.to_string()
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let empty = || format!("{} holds no certificate in PEM", path.display());
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<_, _>>().map_err(|_| empty())?;
    if found.is_empty() { Err(empty()) } else { Ok(found) }
}

/// A file's only line. An empty one would be a bind that every server takes for anonymous.
fn password(path: &Path) -> Result<SecretString, String> {
    let content = Zeroizing::new(read(path)?);
    let text = std::str::from_utf8(&content).map_err(|_| format!("{} is not UTF-8", path.display()))?;
    let line = text.strip_suffix('\n').unwrap_or(text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() || line.contains('\n') {
        return Err(format!("{} must hold the password, in one line", path.display()));
    }
    Ok(SecretString::from(line))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
