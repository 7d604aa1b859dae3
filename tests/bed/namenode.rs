//! HDFS clusters: a NameNode with its DataNode each, secured by Kerberos, with home folders of three users. What a
//! NameNode did with delegation tokens is read from its own audit log and metrics, not from ours.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    Options,
    host::SECOND_CONTROLLER_IP,
    kdc::Kdc,
    process::{Daemon, Program, until},
    provision::Tools,
};

const READY_LIMIT: Duration = Duration::from_secs(90);
/// Users with a home folder: owner and the only one who may enter. All but the last may be acted for.
const HOMES: [&str; 4] = ["etl", "ads", "batch", "intruder"];
/// Name of the one file in a home folder.
pub const PRIVATE_FILE: &str = "private.txt";

/// Which cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cluster {
    /// `nn1.bed.test`, `hadoop.rpc.protection` = `authentication`.
    Main,
    /// `nn2.bed.test`, `hadoop.rpc.protection` = `privacy`.
    Private,
}

impl Cluster {
    /// What it is called in the controller's configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Private => "private",
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Main => 1,
            Self::Private => 2,
        }
    }

    fn protection(self) -> &'static str {
        match self {
            Self::Main => "authentication",
            Self::Private => "privacy",
        }
    }

    /// Host of its NameNode.
    #[must_use]
    pub fn host(self) -> String {
        format!("nn{}.bed.test", self.number())
    }

    /// Address of its NameNode, as in tokens' services.
    #[must_use]
    pub fn address(self) -> String {
        format!("{}:8020", self.host())
    }

    /// The cluster whose NameNode tokens call so, by address or by name.
    #[must_use]
    pub fn of_service(service: &str) -> Option<Self> {
        [Self::Main, Self::Private].into_iter().find(|cluster| {
            service == cluster.address() || service == format!("10.245.0.1{}:8020", cluster.number())
        })
    }

    /// Its file system.
    #[must_use]
    pub fn url(self) -> String {
        format!("hdfs://{}", self.address())
    }
}

/// The setting of a NameNode that says after how many milliseconds tokens must be renewed.
const RENEW_INTERVAL: &str = "dfs.namenode.delegation.token.renew-interval";

/// How long a NameNode's tokens live.
#[derive(Debug, Clone, Copy)]
pub struct TokenLife {
    /// Until they must be renewed.
    pub renew_interval: Duration,
    /// Until they cannot be renewed any more.
    pub max_lifetime: Duration,
}

/// What a NameNode did with a token, from its audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenEvent {
    /// What was done.
    pub action: TokenAction,
    /// Whether it was allowed and worked.
    pub allowed: bool,
    /// Number of the token at this NameNode; none when it did not come to one.
    pub sequence_number: Option<u32>,
    /// Whose token.
    pub owner: Option<String>,
    /// Who asked, as the NameNode saw it: `etl (auth:PROXY) via csi/… (auth:KERBEROS)`.
    pub caller: String,
    /// Address the caller called from.
    pub address: String,
    /// What the caller said it was doing this for.
    pub caller_context: Option<String>,
}

impl TokenEvent {
    /// One line of an audit log, if it is about tokens.
    #[must_use]
    pub fn of_line(line: &str) -> Option<Self> {
        let (_, fields) = line.split_once("allowed=")?;
        let fields = format!("allowed={fields}");
        let field =
            |name: &str| fields.split('\t').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
        let action = match field("cmd")? {
            "getDelegationToken" => TokenAction::Issued,
            "renewDelegationToken" => TokenAction::Renewed,
            "cancelDelegationToken" => TokenAction::Cancelled,
            _ => return None,
        };
        // The token prints as `HDFS_DELEGATION_TOKEN token 7 for etl with renewer csi`.
        let words: Vec<&str> = field("src").unwrap_or_default().split(' ').collect();
        let after = |name: &str| {
            words.iter().position(|word| *word == name).and_then(|at| words.get(at + 1)).copied()
        };
        Some(Self {
            action,
            allowed: field("allowed")? == "true",
            sequence_number: after("token").and_then(|number| number.parse().ok()),
            owner: after("for").map(str::to_owned),
            caller: field("ugi")?.to_owned(),
            address: field("ip")?.trim_start_matches('/').to_owned(),
            caller_context: field("callerContext").map(str::to_owned),
        })
    }

    /// The pod that the controller was doing this for, as `NAMESPACE/NAME`.
    #[must_use]
    pub fn pod(&self) -> Option<&str> {
        let (_request, pod) =
            self.caller_context.as_deref()?.strip_prefix("hadoop-token-csi:")?.split_once(':')?;
        Some(pod)
    }
}

/// What can be done with a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenAction {
    /// A new one was given out.
    Issued,
    /// One was renewed.
    Renewed,
    /// One was cancelled.
    Cancelled,
}

/// One HDFS.
#[derive(Debug)]
pub struct NameNode {
    cluster: Cluster,
    namenode: Daemon,
    datanode: Daemon,
    audit: PathBuf,
    journal: PathBuf,
    configuration: PathBuf,
}

impl NameNode {
    /// Starts a new cluster and makes its home folders. `hdfs` is the client to do that with.
    ///
    /// # Errors
    /// When a part does not come up.
    pub(crate) async fn start_new(
        cluster: Cluster,
        options: Options,
        kdc: &Kdc,
        tools: &Tools,
        hdfs: &Path,
        (state, logs): (&Path, &Path),
    ) -> Result<Self> {
        let folder = state.join(format!("hdfs-{}", cluster.name()));
        fs::create_dir(&folder)?;
        let copied = Program::new("cp").arg("-r").arg(tools.namenode.join("name")).arg(folder.join("name"));
        copied.succeed().await?;
        let audit = logs.join(format!("audit-{}.log", cluster.name()));
        let configuration = folder.join("configuration");
        write_server_configuration(&configuration, cluster, options, kdc, &folder, &audit)?;
        let java = |class: &str| {
            tools
                .java(&configuration)
                .env("HADOOP_CONF_DIR", &configuration)
                .arg(format!("org.apache.hadoop.hdfs.server.{class}"))
        };
        let java_options = format!("-Djava.security.krb5.conf={}", kdc.client_configuration().display());
        let java = |class: &str| java(class).env("JDK_JAVA_OPTIONS", &java_options);
        let namenode = Daemon::new(&format!("namenode-{}", cluster.name()), java("namenode.NameNode"), logs);
        let datanode = Daemon::new(&format!("datanode-{}", cluster.name()), java("datanode.DataNode"), logs);
        let journal = folder.join("name/current");
        let this = Self { cluster, namenode, datanode, audit, journal, configuration };
        this.namenode.start().await?;
        this.datanode.start().await?;
        this.ready().await?;
        this.make_homes(kdc, hdfs).await?;
        Ok(this)
    }

    async fn make_homes(&self, kdc: &Kdc, hdfs: &Path) -> Result<()> {
        let number = self.cluster.number();
        for user in HOMES {
            kdc.client(Program::new(hdfs))
                .args(["--url", &self.cluster.url()])
                .args(["--principal", &format!("nn/nn{number}.bed.test@{}", crate::kdc::REALM), "--keytab"])
                .arg(kdc.keytab(&format!("nn{number}.keytab")))
                .args(["home", &format!("/user/{user}"), "--owner", user])
                .args(["--file", PRIVATE_FILE, "--content", &private_content(self.cluster, user)])
                .succeed()
                .await?;
        }
        Ok(())
    }

    /// Waits until it serves, having left safe mode, and knows its DataNode.
    async fn ready(&self) -> Result<()> {
        self.namenode
            .until("serving", READY_LIMIT, async || {
                let state = self.bean("FSNamesystem").await?;
                let state = state.get("tag.HAState").and_then(Value::as_str);
                ensure!(state == Some("active"), "state {state:?}");
                let safe_mode = self.bean("NameNodeInfo").await?;
                ensure!(safe_mode.get("Safemode").and_then(Value::as_str) == Some(""), "in safe mode");
                Ok(())
            })
            .await?;
        self.datanode
            .until("registered", READY_LIMIT, async || {
                let live = self.metric("FSNamesystemState", "NumLiveDataNodes").await?;
                ensure!(live == 1, "no live DataNode");
                Ok(())
            })
            .await
    }

    /// Which cluster it is.
    #[must_use]
    pub fn cluster(&self) -> Cluster {
        self.cluster
    }

    /// Stops the NameNode; the DataNode stays.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn stop(&self) -> Result<()> {
        self.namenode.stop().await
    }

    /// Starts the NameNode again and waits until it serves.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(&self) -> Result<()> {
        self.namenode.start().await?;
        self.ready().await
    }

    /// Restarts the NameNode with another interval after which tokens must be renewed; they keep the date that they have
    /// until they are renewed.
    ///
    /// # Errors
    /// When it does not come up with it.
    pub async fn renew_every(&self, interval: Duration) -> Result<()> {
        let file = self.configuration.join("hdfs-site.xml");
        let text = fs::read_to_string(&file)?;
        let (before, after) = text.split_once(RENEW_INTERVAL).context("no interval is set")?;
        let (name, after) = after.split_once("<value>").context("an interval without a value")?;
        let (_, after) = after.split_once("</value>").context("a value without an end")?;
        let changed = format!("{before}{RENEW_INTERVAL}{name}<value>{}</value>{after}", interval.as_millis());
        self.stop().await?;
        fs::write(&file, changed)?;
        self.start().await
    }

    /// How many delegation tokens the NameNode knows at this moment: issued, not cancelled, not expired and removed.
    ///
    /// # Errors
    /// When the NameNode does not answer.
    pub async fn live_tokens(&self) -> Result<u64> {
        self.metric("FSNamesystem", "CurrentTokensCount").await
    }

    /// Waits until the NameNode knows just so many tokens.
    ///
    /// # Errors
    /// When it does not come to that within `limit`.
    pub async fn until_live_tokens(&self, count: u64, limit: Duration) -> Result<()> {
        until(&format!("down or up to {count} live tokens"), limit, async || {
            let live = self.live_tokens().await?;
            ensure!(live == count, "{live} tokens are live");
            Ok(())
        })
        .await
    }

    /// Everything that was done with tokens, in order.
    ///
    /// # Errors
    /// When the audit log cannot be read.
    pub fn token_events(&self) -> Result<Vec<TokenEvent>> {
        let log = fs::read_to_string(&self.audit)
            .with_context(|| format!("failed to read {}", self.audit.display()))?;
        Ok(log.lines().filter_map(TokenEvent::of_line).collect())
    }

    /// The NameNode's audit log.
    #[must_use]
    pub fn audit_log(&self) -> &Path {
        &self.audit
    }

    /// The folder of the NameNode's own journal.
    pub(crate) fn journal(&self) -> &Path {
        &self.journal
    }

    /// The NameNode as a process: its log, its process id.
    #[must_use]
    pub fn daemon(&self) -> &Daemon {
        &self.namenode
    }

    pub(crate) fn logs(&self) -> [&Path; 3] {
        [self.namenode.log(), self.datanode.log(), &self.audit]
    }

    async fn metric(&self, bean: &str, name: &str) -> Result<u64> {
        let bean = self.bean(bean).await?;
        bean.get(name).and_then(Value::as_u64).with_context(|| format!("the NameNode has no metric {name}"))
    }

    /// One of the NameNode's management beans.
    async fn bean(&self, name: &str) -> Result<Value> {
        let host = self.cluster.host();
        let path = format!("/jmx?qry=Hadoop:service=NameNode,name={name}");
        let mut stream = TcpStream::connect((host.as_str(), 9870)).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {host}:9870\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").context("the NameNode's answer has no body")?;
        let status = head.lines().next().unwrap_or_default();
        ensure!(status.contains(" 200 "), "GET {path}: {status}");
        let body: Value = serde_json::from_str(body)?;
        body.pointer("/beans/0").cloned().with_context(|| format!("the NameNode has no bean {name}"))
    }
}

/// What a user's private file says.
#[must_use]
pub fn private_content(cluster: Cluster, user: &str) -> String {
    format!("for the eyes of {user} on {} only\n", cluster.name())
}

/// Settings as Hadoop reads them.
pub(crate) fn xml(settings: &[(&str, &str)]) -> String {
    let mut text = "<?xml version=\"1.0\"?>\n<configuration>\n".to_owned();
    for (name, value) in settings {
        let value = value.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(text, "  <property><name>{name}</name><value>{value}</value></property>");
    }
    text + "</configuration>\n"
}

/// What the controller is told of a cluster. `principal` is the NameNode's Kerberos name, as it is to expect it.
///
/// # Errors
/// When a file cannot be written.
pub fn write_client_configuration(folder: &Path, cluster: Cluster, principal: &str) -> Result<()> {
    write_settings(
        folder,
        cluster,
        &[("hadoop.security.authentication", "kerberos")],
        &[("dfs.namenode.kerberos.principal", principal)],
    )
}

/// What clients in pods are told of a cluster. Not of Kerberos: without a krb5.conf, Java refuses to start where that
/// is required; a client that has a token shows it all the same.
pub(crate) fn write_pod_configuration(folder: &Path, cluster: Cluster) -> Result<()> {
    write_settings(folder, cluster, &[], &[])?;
    fs::write(folder.join("log4j.properties"), LOG4J.replace("INFO", "WARN"))?;
    Ok(())
}

fn write_settings(
    folder: &Path,
    cluster: Cluster,
    more_core: &[(&str, &str)],
    more_hdfs: &[(&str, &str)],
) -> Result<()> {
    fs::create_dir_all(folder)?;
    let (url, address) = (cluster.url(), cluster.address());
    let core = [("fs.defaultFS", url.as_str()), ("hadoop.rpc.protection", cluster.protection())];
    let hdfs = [("dfs.namenode.rpc-address", address.as_str()), ("dfs.replication", "1")];
    fs::write(folder.join("core-site.xml"), xml(&[&core, more_core].concat()))?;
    fs::write(folder.join("hdfs-site.xml"), xml(&[&hdfs, more_hdfs].concat()))?;
    Ok(())
}

/// The settings with which an empty NameNode is formatted into `folder/name`.
pub(crate) fn write_format_configuration(configuration: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(configuration)?;
    let name = folder.join("name").display().to_string();
    fs::write(configuration.join("core-site.xml"), xml(&[("fs.defaultFS", "hdfs://localhost:8020")]))?;
    fs::write(configuration.join("hdfs-site.xml"), xml(&[("dfs.namenode.name.dir", &name)]))?;
    fs::write(configuration.join("log4j.properties"), LOG4J)?;
    Ok(())
}

const LOG4J: &str = "\
log4j.rootLogger=INFO,console
log4j.logger.http.requests=WARN
log4j.appender.console=org.apache.log4j.ConsoleAppender
log4j.appender.console.target=System.err
log4j.appender.console.layout=org.apache.log4j.PatternLayout
log4j.appender.console.layout.ConversionPattern=%d{ISO8601} %p %c: %m%n
";

fn log4j_with_audit(audit: &Path) -> String {
    let audit = audit.display();
    format!(
        "{LOG4J}\
log4j.logger.org.apache.hadoop.hdfs.server.namenode.FSNamesystem.audit=INFO,audit
log4j.additivity.org.apache.hadoop.hdfs.server.namenode.FSNamesystem.audit=false
log4j.appender.audit=org.apache.log4j.FileAppender
log4j.appender.audit.File={audit}
log4j.appender.audit.layout=org.apache.log4j.PatternLayout
log4j.appender.audit.layout.ConversionPattern=%d{{ISO8601}} %m%n
"
    )
}

/// Who is in which groups; members of `hadoop-users` may be acted for.
fn users_and_groups(bench_users: u32) -> String {
    let fixed = "nn=supergroup;dn=dn;csi=csi;etl=etl,hadoop-users;ads=ads,hadoop-users;intruder=intruder;\
        batch=batch,hadoop-users;reports=reports,hadoop-users;";
    let bench = (0..bench_users).map(|number| format!("bench{number:04}=hadoop-users;"));
    fixed.to_owned() + &bench.collect::<String>()
}

fn write_server_configuration(
    configuration: &Path,
    cluster: Cluster,
    options: Options,
    kdc: &Kdc,
    folder: &Path,
    audit: &Path,
) -> Result<()> {
    let number = cluster.number();
    let (nn, dn) = (cluster.host(), format!("dn{number}.bed.test"));
    let path = |name: &str| folder.join(name).display().to_string();
    let keytab = |name: &str| kdc.keytab(&format!("{name}{number}.keytab")).display().to_string();
    let port = |last: u16| format!("0.0.0.0:{}", 9000 + u16::from(number) * 100 + last);
    let milliseconds = |duration: Duration| duration.as_millis().to_string();
    let (realm, tokens) = (crate::kdc::REALM, options.tokens_of(cluster));

    let core = [
        ("fs.defaultFS", cluster.url()),
        ("hadoop.tmp.dir", path("tmp")),
        ("hadoop.security.authentication", "kerberos".into()),
        ("hadoop.security.authorization", "true".into()),
        ("hadoop.rpc.protection", cluster.protection().into()),
        ("hadoop.user.group.static.mapping.overrides", users_and_groups(options.bench_users)),
        ("hadoop.proxyuser.csi.hosts", format!("controller.bed.test,{SECOND_CONTROLLER_IP}")),
        ("hadoop.proxyuser.csi.groups", "hadoop-users".into()),
        ("hadoop.caller.context.enabled", "true".into()),
        ("ipc.client.connect.max.retries", "60".into()),
        ("ipc.client.connect.retry.interval", "250".into()),
    ];
    let hdfs = [
        ("dfs.namenode.name.dir", path("name")),
        ("dfs.datanode.data.dir", path("data")),
        ("dfs.namenode.rpc-address", cluster.address()),
        ("dfs.namenode.http-address", format!("{nn}:9870")),
        ("dfs.datanode.hostname", dn.clone()),
        ("dfs.datanode.address", port(66)),
        ("dfs.datanode.http.address", port(64)),
        ("dfs.datanode.ipc.address", port(67)),
        ("dfs.namenode.kerberos.principal", format!("nn/_HOST@{realm}")),
        ("dfs.namenode.keytab.file", keytab("nn")),
        // Not _HOST: the NameNode would put in what the DataNode's address is first called.
        ("dfs.datanode.kerberos.principal", format!("dn/{dn}@{realm}")),
        ("dfs.datanode.keytab.file", keytab("dn")),
        ("dfs.web.authentication.kerberos.principal", format!("HTTP/_HOST@{realm}")),
        ("dfs.web.authentication.kerberos.keytab", keytab("http")),
        ("dfs.block.access.token.enable", "true".into()),
        ("ignore.secure.ports.for.testing", "true".into()),
        (RENEW_INTERVAL, milliseconds(tokens.renew_interval)),
        ("dfs.namenode.delegation.token.max-lifetime", milliseconds(tokens.max_lifetime)),
        ("dfs.replication", "1".into()),
        ("dfs.namenode.safemode.extension", "0".into()),
        ("dfs.heartbeat.interval", "1".into()),
        ("dfs.blockreport.initialDelay", "0".into()),
    ];
    fs::create_dir(configuration)?;
    fn borrowed<'a>(settings: &'a [(&'a str, String)]) -> Vec<(&'a str, &'a str)> {
        settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }
    fs::write(configuration.join("core-site.xml"), xml(&borrowed(&core)))?;
    fs::write(configuration.join("hdfs-site.xml"), xml(&borrowed(&hdfs)))?;
    fs::write(configuration.join("log4j.properties"), log4j_with_audit(audit))?;
    // Hadoop's web servers look for their folders on the class path; the jars do not have them.
    for name in ["webapps/hdfs/WEB-INF", "webapps/datanode/WEB-INF", "webapps/static"] {
        fs::create_dir_all(configuration.join(name))?;
    }
    for name in ["webapps/hdfs/WEB-INF/web.xml", "webapps/datanode/WEB-INF/web.xml"] {
        fs::write(configuration.join(name), "<web-app/>\n")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_was_done_with_a_token() {
        let line = "2026-01-02 03:04:05,678 allowed=true\tugi=etl (auth:PROXY) via csi/controller.bed.test@BED.TEST \
            (auth:KERBEROS)\tip=/10.244.0.1\tcmd=getDelegationToken\tsrc=HDFS_DELEGATION_TOKEN token 7 for etl with renewer csi\
            \tdst=null\tperm=null\tproto=rpc\tcallerContext=pods/reader";
        let event = TokenEvent::of_line(line).unwrap();
        assert_eq!(event.action, TokenAction::Issued);
        assert!(event.allowed);
        assert_eq!(event.sequence_number, Some(7));
        assert_eq!(event.owner.as_deref(), Some("etl"));
        assert_eq!(event.address, "10.244.0.1");
        assert_eq!(event.caller_context.as_deref(), Some("pods/reader"));
        assert_eq!(TokenEvent::of_line("x allowed=true\tugi=a\tip=/b\tcmd=open\tsrc=/c"), None);
    }
}
