//! An OpenLDAP server with the bed's users and groups, over LDAPS, StartTLS and a local socket. It lets nobody see
//! anything but its service accounts, and can be stopped, started and made slow.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    host::LDAP_NAME,
    pki::{Authority, Identity},
    process::{Daemon, Program},
};

/// Where everything is below.
pub const BASE: &str = "dc=bed,dc=test";
/// The users.
pub const PEOPLE: &str = "ou=people,dc=bed,dc=test";
/// The groups.
pub const GROUPS: &str = "ou=groups,dc=bed,dc=test";
/// The account that may read everything; its password is in [`Ldap::password`].
pub const READER: &str = "cn=csi,ou=services,dc=bed,dc=test";
/// The same, but with no more than [`MOST`] entries at a time, and the same password.
pub const LIMITED: &str = "cn=limited,ou=services,dc=bed,dc=test";
/// See [`LIMITED`].
pub const MOST: usize = 5;

const PASSWORD: &str = "bed-reader-password";
const MANAGER: &str = "cn=manager,dc=bed,dc=test";
const MANAGER_PASSWORD: &str = "bed-manager-password";
const READY_LIMIT: Duration = Duration::from_secs(20);

/// Whoever is a person has the primary group `people`, headless accounts have `headless`.
const USERS: [(&str, u32); 8] = [
    ("etl", 1000),
    ("ads", 1000),
    ("intruder", 1000),
    ("operator", 1000),
    ("crowd", 1000),
    ("batch", 2000),
    ("reports", 2000),
    ("hdfs", 2000),
];

/// posixGroups with their numbers and members' names.
const POSIX_GROUPS: [(&str, u32, &[&str]); 5] = [
    ("people", 1000, &[]),
    ("headless", 2000, &[]),
    ("hadoop-users", 3000, &["etl", "ads"]),
    ("batch", 3001, &["etl"]),
    ("hdfs", 3002, &["operator"]),
];

/// groupOfNames with names of members, which are below [`BASE`]. `ads` is in `reports` by way of `analysts`; and there
/// is a circle.
const GROUPS_OF_NAMES: [(&str, &[&str]); 3] = [
    ("reports", &["cn=analysts,ou=groups"]),
    ("analysts", &["uid=ads,ou=people", "cn=circle,ou=groups"]),
    ("circle", &["cn=reports,ou=groups"]),
];

/// What is hard to get right: names with everything that means something in a filter or a DN, a name that two entries
/// have, and a part of the tree that is elsewhere.
const ODDITIES: &str = r"
dn: cn=Odd\, (User) * \\,ou=people,dc=bed,dc=test
objectClass: account
objectClass: posixAccount
cn: Odd, (User) * \
uid: odd
uidNumber: 900
gidNumber: 1000
homeDirectory: /nonexistent

dn: cn=Odd (Group)\, *,ou=groups,dc=bed,dc=test
objectClass: groupOfNames
cn: Odd (Group), *
member: cn=Odd\, (User) * \\,ou=people,dc=bed,dc=test

dn: cn=above-odd,ou=groups,dc=bed,dc=test
objectClass: groupOfNames
cn: above-odd
member: cn=Odd (Group)\, *,ou=groups,dc=bed,dc=test

dn: uid=twin,ou=people,dc=bed,dc=test
objectClass: account
objectClass: posixAccount
cn: twin
uid: twin
uidNumber: 901
gidNumber: 1000
homeDirectory: /nonexistent

dn: cn=other twin,ou=people,dc=bed,dc=test
objectClass: account
objectClass: posixAccount
cn: other twin
uid: twin
uidNumber: 902
gidNumber: 1000
homeDirectory: /nonexistent

dn: ou=elsewhere,dc=bed,dc=test
objectClass: referral
objectClass: extensibleObject
ou: elsewhere
ref: ldap://elsewhere.bed.test/ou=elsewhere,dc=bed,dc=test
";

/// The server.
#[derive(Debug)]
pub struct Ldap {
    folder: PathBuf,
    daemon: Daemon,
    reader: Identity,
    stranger: Identity,
}

impl Ldap {
    /// Writes configuration and database, and starts the server.
    ///
    /// # Errors
    /// When one of OpenLDAP's programs fails.
    pub(crate) async fn start_new(
        authority: &Authority,
        bench_users: u32,
        state: &Path,
        logs: &Path,
    ) -> Result<Self> {
        let folder = state.join("ldap");
        fs::create_dir_all(folder.join("database"))?;
        let serving = authority.server("ldap", &[LDAP_NAME])?;
        let configuration = folder.join("slapd.conf");
        fs::write(&configuration, configuration_text(&folder, authority, &serving))?;
        fs::write(folder.join("password"), format!("{PASSWORD}\n"))?;
        let entries = folder.join("entries.ldif");
        fs::write(&entries, entries_text(bench_users))?;
        let add = Program::new("slapadd").arg("-f").arg(&configuration).arg("-l").arg(&entries);
        add.succeed().await.context("failed to fill the directory")?;
        let urls = format!("ldaps://{LDAP_NAME} ldap://{LDAP_NAME} {}", socket(&folder));
        // With a debug level it stays in the foreground.
        let program = Program::new("slapd").args(["-d", "stats", "-h", &urls, "-f"]).arg(&configuration);
        let ldap = Self {
            daemon: Daemon::new("ldap", program, logs),
            folder,
            reader: authority.client("ldap-reader", "csi", None)?,
            stranger: authority.client("ldap-stranger", "stranger", None)?,
        };
        ldap.start().await?;
        Ok(ldap)
    }

    /// Starts it again and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(&self) -> Result<()> {
        self.daemon.start().await?;
        self.daemon
            .until("answering", READY_LIMIT, async || {
                let whoami = Program::new("ldapwhoami").args(["-H", &self.socket(), "-Q", "-Y", "EXTERNAL"]);
                whoami.succeed().await.map(drop)
            })
            .await
    }

    /// Stops it; connections to it end.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn stop(&self) -> Result<()> {
        self.daemon.stop().await
    }

    /// From now on it accepts connections and requests, and answers none, until [`Ldap::thaw`].
    ///
    /// # Errors
    /// When it is not running.
    pub async fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP).await
    }

    /// It answers all that it was asked meanwhile.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn thaw(&self) -> Result<()> {
        self.signal(Signal::SIGCONT).await
    }

    async fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.daemon.pid().await.context("the directory is not running")?;
        kill(Pid::from_raw(i32::try_from(pid)?), signal)?;
        Ok(())
    }

    /// Puts a user into a posixGroup.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn add_member(&self, group: &str, user: &str) -> Result<()> {
        self.modify(&format!(
            "dn: cn={group},{GROUPS}\nchangetype: modify\nadd: memberUid\nmemberUid: {user}\n"
        ))
        .await
    }

    /// Takes a user out of a posixGroup.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn remove_member(&self, group: &str, user: &str) -> Result<()> {
        self.modify(&format!(
            "dn: cn={group},{GROUPS}\nchangetype: modify\ndelete: memberUid\nmemberUid: {user}\n"
        ))
        .await
    }

    /// Changes entries as an LDIF says.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn modify(&self, ldif: &str) -> Result<()> {
        let modify = Program::new("ldapmodify").args(["-H", &self.socket(), "-x", "-D", MANAGER]);
        modify.args(["-w", MANAGER_PASSWORD]).succeed_with(ldif).await.map(drop)
    }

    /// File with the password of [`READER`] and [`LIMITED`].
    #[must_use]
    pub fn password(&self) -> PathBuf {
        self.folder.join("password")
    }

    /// Client certificate of [`READER`].
    #[must_use]
    pub fn reader(&self) -> &Identity {
        &self.reader
    }

    /// Client certificate of somebody who is in no entry and may see nothing.
    #[must_use]
    pub fn stranger(&self) -> &Identity {
        &self.stranger
    }

    /// URL of the local socket, where root is [`READER`] for SASL EXTERNAL.
    #[must_use]
    pub fn socket(&self) -> String {
        socket(&self.folder)
    }

    /// Its log: every connection and search.
    #[must_use]
    pub fn log(&self) -> &Path {
        self.daemon.log()
    }
}

fn socket(folder: &Path) -> String {
    format!("ldapi://{}", folder.join("ldapi").display().to_string().replace('/', "%2F"))
}

fn configuration_text(folder: &Path, authority: &Authority, serving: &Identity) -> String {
    let schemas: String = ["core", "cosine", "nis"]
        .iter()
        .map(|schema| format!("include /etc/ldap/schema/{schema}.schema\n"))
        .collect();
    format!(
        "\
{schemas}
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile {folder}/pid
TLSCACertificateFile {authority}
TLSCertificateFile {certificate}
TLSCertificateKeyFile {key}
TLSVerifyClient try
localssf 128
security simple_bind=128
disallow bind_anon
authz-regexp ^cn=csi$ {READER}
authz-regexp ^gidNumber=0[+]uidNumber=0,cn=peercred,cn=external,cn=auth$ {READER}
database mdb
suffix {BASE}
directory {folder}/database
maxsize 67108864
dbnosync
index objectClass,uid,cn,memberUid,member,gidNumber eq
rootdn {MANAGER}
rootpw {MANAGER_PASSWORD}
limits dn.exact={LIMITED} size={MOST}
access to attrs=userPassword by anonymous auth by * none
access to * by dn.exact={READER} read by dn.exact={LIMITED} read by * none
",
        folder = folder.display(),
        authority = authority.file().display(),
        certificate = serving.certificate.display(),
        key = serving.key.display(),
    )
}

fn entries_text(bench_users: u32) -> String {
    let mut text =
        format!("dn: {BASE}\nobjectClass: dcObject\nobjectClass: organization\no: bed\ndc: bed\n\n");
    for unit in ["people", "groups", "services"] {
        text += &format!("dn: ou={unit},{BASE}\nobjectClass: organizationalUnit\nou: {unit}\n\n");
    }
    for account in [READER, LIMITED] {
        let name = account.split(',').next().and_then(|part| part.strip_prefix("cn=")).unwrap_or_default();
        text +=
            &format!("dn: {account}\nobjectClass: organizationalRole\nobjectClass: simpleSecurityObject\n");
        text += &format!("cn: {name}\nuserPassword: {PASSWORD}\n\n");
    }
    let bench = (0..bench_users).map(|number| (format!("bench{number:04}"), 1000));
    let users = USERS.into_iter().map(|(name, group)| (name.to_owned(), group)).chain(bench);
    for (number, (name, group)) in users.enumerate() {
        text += &format!("dn: uid={name},{PEOPLE}\nobjectClass: account\nobjectClass: posixAccount\n");
        text += &format!("cn: {name}\nuid: {name}\nuidNumber: {}\n", 10_000 + number);
        text += &format!("gidNumber: {group}\nhomeDirectory: /nonexistent\n\n");
    }
    // More than LIMITED is given.
    let crowd = (0..=MOST).map(|number| (format!("crowd{number}"), 4000 + number, vec!["crowd"]));
    let groups = POSIX_GROUPS.into_iter().map(|(name, number, members)| {
        (name.to_owned(), usize::try_from(number).unwrap_or_default(), members.to_vec())
    });
    for (name, number, members) in groups.chain(crowd) {
        text +=
            &format!("dn: cn={name},{GROUPS}\nobjectClass: posixGroup\ncn: {name}\ngidNumber: {number}\n");
        text += &members.iter().map(|member| format!("memberUid: {member}\n")).collect::<String>();
        text += "\n";
    }
    for (name, members) in GROUPS_OF_NAMES {
        text += &format!("dn: cn={name},{GROUPS}\nobjectClass: groupOfNames\ncn: {name}\n");
        text += &members.iter().map(|member| format!("member: {member},{BASE}\n")).collect::<String>();
        text += "\n";
    }
    text + ODDITIES.trim_start()
}
