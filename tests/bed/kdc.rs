//! An MIT Kerberos KDC for the realm `BED.TEST`, which can be stopped and started again.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::net::TcpStream;

use crate::{
    host::KDC_IP,
    process::{Daemon, Program},
};

/// The realm.
pub const REALM: &str = "BED.TEST";
/// The superuser that the controller is: may act for members of `hadoop-users`.
pub const SUPERUSER: &str = "csi/controller.bed.test@BED.TEST";

const PRINCIPALS: [(&str, &[&str]); 8] = [
    ("csi.keytab", &["csi/controller.bed.test"]),
    ("nn1.keytab", &["nn/nn1.bed.test"]),
    ("nn2.keytab", &["nn/nn2.bed.test"]),
    ("dn1.keytab", &["dn/dn1.bed.test"]),
    ("dn2.keytab", &["dn/dn2.bed.test"]),
    ("http1.keytab", &["HTTP/nn1.bed.test", "HTTP/dn1.bed.test"]),
    ("http2.keytab", &["HTTP/nn2.bed.test", "HTTP/dn2.bed.test"]),
    ("stranger.keytab", &["stranger/nowhere.bed.test"]),
];
const READY_LIMIT: Duration = Duration::from_secs(20);

/// What a client asked the KDC for, from the KDC's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TicketRequest {
    /// What kind of ticket.
    pub kind: TicketKind,
    /// Whose, as `csi/controller.bed.test@BED.TEST`.
    pub client: String,
    /// For whom, as `nn/nn1.bed.test@BED.TEST`.
    pub server: String,
}

/// What kind of ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TicketKind {
    /// A first one, for a key: a ticket-granting ticket.
    Initial,
    /// One for a service, for a ticket-granting ticket.
    Service,
}

impl TicketRequest {
    /// One line of the log, if it is about a ticket; whether the KDC gave it, or asked for more, does not matter.
    #[must_use]
    pub fn of_line(line: &str) -> Option<Self> {
        let kind = if line.contains("TGS_REQ (") {
            TicketKind::Service
        } else if line.contains("AS_REQ (") {
            TicketKind::Initial
        } else {
            return None;
        };
        let (before, after) = line.split_once(" for ")?;
        let client = before.rsplit(' ').next()?.to_owned();
        let server = after.split([' ', ',']).next()?.to_owned();
        Some(Self { kind, client, server })
    }
}

/// The KDC.
#[derive(Debug)]
pub struct Kdc {
    folder: PathBuf,
    daemon: Daemon,
}

impl Kdc {
    /// Makes the realm with all its principals and keytabs, and starts the KDC.
    ///
    /// # Errors
    /// When one of Kerberos' programs fails.
    pub(crate) async fn start_new(state: &Path, logs: &Path) -> Result<Self> {
        let folder = state.join("kerberos");
        fs::create_dir(&folder)?;
        let (client, server) = (folder.join("krb5.conf"), folder.join("kdc.conf"));
        fs::write(&client, client_configuration())?;
        fs::write(&server, server_configuration(&folder))?;
        let program = |name: &str| {
            Program::new(name)
                .env("KRB5_CONFIG", client.as_os_str())
                .env("KRB5_KDC_PROFILE", server.as_os_str())
        };
        program("kdb5_util").args(["create", "-s", "-P", "master", "-r", REALM]).succeed().await?;
        let mut script = String::new();
        for (keytab, principals) in PRINCIPALS {
            let keytab = folder.join(keytab);
            for principal in principals {
                script +=
                    &format!("addprinc -randkey {principal}\nktadd -k {} {principal}\n", keytab.display());
            }
        }
        program("kadmin.local").succeed_with(&script).await?;
        let daemon = Daemon::new("kdc", program("krb5kdc").arg("-n"), logs);
        let kdc = Self { folder, daemon };
        kdc.start().await?;
        Ok(kdc)
    }

    /// Starts it again and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(&self) -> Result<()> {
        self.daemon.start().await?;
        self.daemon
            .until("answering", READY_LIMIT, async || {
                TcpStream::connect((KDC_IP, 88)).await.map(drop).map_err(Into::into)
            })
            .await
    }

    /// Stops it; tickets that are out stay good.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn stop(&self) -> Result<()> {
        self.daemon.stop().await
    }

    /// What it was asked for, in order.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub fn requests(&self) -> Result<Vec<TicketRequest>> {
        let log = fs::read_to_string(self.daemon.log())?;
        Ok(log.lines().filter_map(TicketRequest::of_line).collect())
    }

    /// Clients' krb5.conf.
    #[must_use]
    pub fn client_configuration(&self) -> PathBuf {
        self.folder.join("krb5.conf")
    }

    /// A keytab by its file name: `csi.keytab` is the controller's, `stranger.keytab` that of a principal who is
    /// nobody special, `nn1.keytab` that of HDFS' own superuser on the main cluster, `nn2.keytab` on the private one.
    ///
    /// # Panics
    /// When there is none of that name.
    #[must_use]
    pub fn keytab(&self, name: &str) -> PathBuf {
        let path = self.folder.join(name);
        assert!(path.exists(), "there is no keytab {name}");
        path
    }

    /// A program that finds this KDC, and no ticket but those it gets itself.
    #[must_use]
    pub fn client(&self, program: Program) -> Program {
        program.env("KRB5_CONFIG", self.client_configuration()).env("KRB5CCNAME", "MEMORY:")
    }

    /// Makes another principal, with its key added to the keytab of that file name.
    ///
    /// # Errors
    /// When kadmin fails.
    pub async fn add_principal(&self, keytab: &str, principal: &str) -> Result<PathBuf> {
        let path = self.folder.join(keytab);
        let script = format!("addprinc -randkey {principal}\nktadd -k {} {principal}\n", path.display());
        Program::new("kadmin.local")
            .env("KRB5_CONFIG", self.client_configuration())
            .env("KRB5_KDC_PROFILE", self.folder.join("kdc.conf"))
            .succeed_with(&script)
            .await
            .with_context(|| format!("failed to make principal {principal}"))?;
        Ok(path)
    }
}

fn client_configuration() -> String {
    format!(
        "\
[libdefaults]
  default_realm = {REALM}
  udp_preference_limit = 1
  rdns = false
  dns_canonicalize_hostname = false
  dns_lookup_kdc = false
  dns_lookup_realm = false
[realms]
  {REALM} = {{
    kdc = kdc.bed.test
  }}
[domain_realm]
  .bed.test = {REALM}
"
    )
}

fn server_configuration(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "\
[kdcdefaults]
  kdc_listen = {KDC_IP}:88
  kdc_tcp_listen = {KDC_IP}:88
[realms]
  {REALM} = {{
    database_name = {folder}/principal
    key_stash_file = {folder}/stash
    acl_file = {folder}/kadm5.acl
    supported_enctypes = aes256-cts:normal aes128-cts:normal
    max_life = 10h
    max_renewable_life = 7d
  }}
[logging]
  kdc = STDERR
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_was_asked_for() {
        let request = |line: &str| {
            let TicketRequest { kind, client, server } = TicketRequest::of_line(line)?;
            Some((kind, client, server))
        };
        let csi = "csi/controller.bed.test@BED.TEST".to_owned();
        let line = "krb5kdc: AS_REQ (2 etypes {aes256-cts(18)}) 10.244.0.1: NEEDED_PREAUTH: \
            csi/controller.bed.test@BED.TEST for krbtgt/BED.TEST@BED.TEST, Additional pre-authentication required";
        let wanted = (TicketKind::Initial, csi.clone(), "krbtgt/BED.TEST@BED.TEST".to_owned());
        assert_eq!(request(line), Some(wanted));
        let line = "krb5kdc: TGS_REQ (2 etypes {aes256-cts(18)}) 10.244.0.1: ISSUE: authtime 1, etypes {rep=18}, \
            csi/controller.bed.test@BED.TEST for nn/nn1.bed.test@BED.TEST";
        assert_eq!(request(line), Some((TicketKind::Service, csi, "nn/nn1.bed.test@BED.TEST".to_owned())));
        assert_eq!(request("krb5kdc: starting..."), None);
    }
}
