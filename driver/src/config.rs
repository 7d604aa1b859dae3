//! Command line and configuration file of the node plugin, turned into typed settings. Every mistake of the file is
//! reported at once. Reads no secret: it only learns in which files they are.

use std::{
    env, fmt,
    net::SocketAddr,
    path::{Component, Path, PathBuf},
};

use clap::{Parser, Subcommand};
use http::uri::Authority;
use process::{config::ConfigError, log::LogArgs};
use proto::DRIVER_NAME;
use rustls::pki_types::ServerName;
use serde::Deserialize;

use crate::wait::WaitArgs;

/// Mounts Hadoop delegation tokens into the pods of its node.
#[derive(Parser, Debug)]
#[command(name = "hadoop-token-csi-driver", version, args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// Configuration file (YAML).
    #[arg(long, default_value = "/etc/hadoop-token-csi/driver.yaml")]
    pub(crate) config: PathBuf,
    /// Check the configuration file and exit.
    #[arg(long)]
    pub(crate) check_config: bool,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// What else the program can do.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Wait for the token of a mounted volume: for an init container of a pod whose addresses are verified first.
    Wait(WaitArgs),
}

/// What the program is to do, checked.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Name of the Kubernetes node.
    pub(crate) node_name: String,
    pub(crate) paths: Paths,
    pub(crate) health_address: SocketAddr,
    pub(crate) tmpfs: TmpfsConfig,
    pub(crate) controller: ControllerConfig,
}

/// Where everything is. Paths are as seen by this program, unless they say otherwise.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    /// kubelet's directory of pods; the same path on the host and here.
    pub(crate) pods: PathBuf,
    /// The socket on which kubelet calls us.
    pub(crate) csi_socket: PathBuf,
    /// The same socket, as kubelet finds it on the host.
    pub(crate) csi_socket_on_host: PathBuf,
    /// kubelet's directory of registration sockets.
    pub(crate) registration: PathBuf,
    /// Our records.
    pub(crate) state: PathBuf,
}

/// How the file systems of volumes are made.
#[derive(Debug, Clone)]
pub(crate) struct TmpfsConfig {
    /// Greatest size in bytes.
    pub(crate) size: u64,
    /// SELinux context of everything in it, on nodes where SELinux is on.
    pub(crate) selinux_context: String,
}

/// Where the controller is, and how both sides prove who they are.
#[derive(Debug, Clone)]
pub(crate) struct ControllerConfig {
    /// Host and port.
    pub(crate) address: Authority,
    /// Name that its certificate must carry.
    pub(crate) server_name: ServerName<'static>,
    /// PEM file of the certificate authorities that may have signed it.
    pub(crate) ca: PathBuf,
    /// File with our own service-account token, for the controller's audience.
    pub(crate) token_file: PathBuf,
    /// Shown to the controller besides, where it asks for one.
    pub(crate) certificate: Option<ClientCertificate>,
}

/// PEM files of a certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientCertificate {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    node_name: Option<String>,
    #[serde(default = "default_kubelet_dir")]
    kubelet_dir: PathBuf,
    #[serde(default = "default_csi_socket")]
    csi_socket: PathBuf,
    csi_socket_on_host: Option<PathBuf>,
    #[serde(default = "default_registration_dir")]
    registration_dir: PathBuf,
    #[serde(default = "default_state_dir")]
    state_dir: PathBuf,
    #[serde(default = "default_health_address")]
    health_address: String,
    #[serde(default = "default_tmpfs_size")]
    tmpfs_size: String,
    #[serde(default = "default_selinux_context")]
    selinux_context: String,
    controller: ControllerFile,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ControllerFile {
    address: String,
    server_name: Option<String>,
    ca: PathBuf,
    token_file: PathBuf,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

fn default_kubelet_dir() -> PathBuf {
    "/var/lib/kubelet".into()
}

fn default_csi_socket() -> PathBuf {
    "/csi/csi.sock".into()
}

fn default_registration_dir() -> PathBuf {
    "/registration".into()
}

fn default_state_dir() -> PathBuf {
    "/csi/volumes".into()
}

fn default_health_address() -> String {
    "[::]:9808".to_owned()
}

fn default_tmpfs_size() -> String {
    "1Mi".to_owned()
}

fn default_selinux_context() -> String {
    "system_u:object_r:container_file_t:s0".to_owned()
}

/// Least size of a volume's file system: two generations of files, with room for many tokens.
const MIN_TMPFS: u64 = 128 * 1024;

/// Longest path of a Unix socket, with the dot of its hidden name.
const MAX_SOCKET_PATH: usize = 106;

impl Config {
    /// Reads the configuration file; the node's name may come from the environment, `NODE_NAME`.
    ///
    /// # Errors
    /// When the file cannot be read or parsed, or with everything that is wrong with what it says.
    pub(crate) fn load(path: &Path) -> Result<Self, LoadError> {
        let file: File = process::config::load(path)?;
        Ok(Self::check(file, env::var("NODE_NAME").ok())?)
    }

    fn check(file: File, node_name: Option<String>) -> Result<Self, Mistakes> {
        let mut mistakes = Mistakes::default();
        let node_name = file.node_name.or(node_name).unwrap_or_default();
        if node_name.is_empty() {
            mistakes.add("nodeName: not set; write it here or into the environment variable NODE_NAME");
        }
        let csi_socket_on_host = file
            .csi_socket_on_host
            .unwrap_or_else(|| file.kubelet_dir.join("plugins").join(DRIVER_NAME).join("csi.sock"));
        mistakes.path("kubeletDir", &file.kubelet_dir);
        mistakes.socket("csiSocket", &file.csi_socket);
        mistakes.socket("csiSocketOnHost", &csi_socket_on_host);
        let registration_socket = file.registration_dir.join(format!("{DRIVER_NAME}-reg.sock"));
        mistakes.socket("registrationDir", &registration_socket);
        mistakes.path("stateDir", &file.state_dir);
        mistakes.path("controller.ca", &file.controller.ca);
        mistakes.path("controller.tokenFile", &file.controller.token_file);

        let health_address = mistakes.unless(
            file.health_address.parse::<SocketAddr>(),
            format_args!("healthAddress: {:?} is not an IP address and port", file.health_address),
        );
        let size = bytes(&file.tmpfs_size).filter(|size| *size >= MIN_TMPFS);
        let size = mistakes.unless(
            size.ok_or(()),
            format_args!("tmpfsSize: {:?} is not a size of at least 128Ki, such as 1Mi", file.tmpfs_size),
        );
        if !context_is_plain(&file.selinux_context) {
            mistakes.add(format_args!("selinuxContext: {:?} is not a context", file.selinux_context));
        }

        let certificate = match (file.controller.certificate, file.controller.key) {
            (Some(certificate), Some(key)) => {
                mistakes.path("controller.certificate", &certificate);
                mistakes.path("controller.key", &key);
                Some(ClientCertificate { certificate, key })
            }
            (None, None) => None,
            _ => {
                mistakes.add("controller: certificate and key need each other");
                None
            }
        };
        let address = file.controller.address.parse::<Authority>().ok();
        let address =
            address.filter(|address| address.port_u16().is_some() && !address.as_str().contains('@'));
        let address = mistakes.unless(
            address.ok_or(()),
            format_args!("controller.address: {:?} is not a host and port", file.controller.address),
        );
        let server_name = file.controller.server_name.or_else(|| {
            let host = address.as_ref()?.host();
            Some(host.trim_start_matches('[').trim_end_matches(']').to_owned())
        });
        let server_name = server_name.and_then(|name| {
            let parsed = ServerName::try_from(name.clone());
            let what =
                format_args!("controller.serverName: {name:?} is neither a DNS name nor an IP address");
            mistakes.unless(parsed, what)
        });

        match (health_address, size, address, server_name) {
            (Some(health_address), Some(size), Some(address), Some(server_name)) if mistakes.0.is_empty() => {
                Ok(Self {
                    node_name,
                    paths: Paths {
                        pods: file.kubelet_dir.join("pods"),
                        csi_socket: file.csi_socket,
                        csi_socket_on_host,
                        registration: file.registration_dir,
                        state: file.state_dir,
                    },
                    health_address,
                    tmpfs: TmpfsConfig { size, selinux_context: file.selinux_context },
                    controller: ControllerConfig {
                        address,
                        server_name,
                        ca: file.controller.ca,
                        token_file: file.controller.token_file,
                        certificate,
                    },
                })
            }
            _ => Err(mistakes),
        }
    }
}

/// Bytes of a number with an optional binary unit.
fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at_checked(at)?,
        None => (text, ""),
    };
    let unit = match unit {
        "" => 1,
        "Ki" => 1024,
        "Mi" => 1024 * 1024,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// A context is written between quotes into the options of a mount.
fn context_is_plain(context: &str) -> bool {
    context.split(':').count() >= 4
        && context.chars().all(|c| c.is_ascii_alphanumeric() || "_:.,-".contains(c))
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// The file cannot be read or parsed.
    #[error(transparent)]
    File(#[from] ConfigError),
    /// What it says is wrong.
    #[error(transparent)]
    Mistakes(#[from] Mistakes),
}

/// Everything that is wrong, one line each.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Mistakes(Vec<String>);

impl Mistakes {
    fn add(&mut self, mistake: impl fmt::Display) {
        self.0.push(mistake.to_string());
    }

    fn unless<T, E>(&mut self, result: Result<T, E>, mistake: impl fmt::Display) -> Option<T> {
        result.map_err(|_| self.add(mistake)).ok()
    }

    fn path(&mut self, key: &str, path: &Path) {
        let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
        if !path.is_absolute() || !path.components().all(plain) {
            self.add(format_args!(
                "{key}: {:?} is not an absolute path without ..",
                path.display().to_string()
            ));
        }
    }

    fn socket(&mut self, key: &str, path: &Path) {
        self.path(key, path);
        if path.as_os_str().len() > MAX_SOCKET_PATH {
            let shown = path.display();
            self.add(format_args!("{key}: the socket's path {shown} is longer than {MAX_SOCKET_PATH} bytes"));
        }
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Mistakes {}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const LEAST: &str = "
        nodeName: n1
        controller: {address: 'controller.example:9443', ca: /ca.crt, tokenFile: /token}";

    fn load(yaml: &str) -> Result<Config, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(yaml.as_bytes()).unwrap();
        let file: File = process::config::load(file.path()).map_err(|error| error.to_string())?;
        Config::check(file, None).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_left_out_has_the_value_of_the_manifests() {
        let config = load(LEAST).unwrap();
        assert_eq!(config.paths.pods, Path::new("/var/lib/kubelet/pods"));
        assert_eq!(
            config.paths.csi_socket_on_host,
            Path::new("/var/lib/kubelet/plugins/hadoop-token.csi/csi.sock")
        );
        assert_eq!(config.paths.csi_socket, Path::new("/csi/csi.sock"));
        assert_eq!(config.tmpfs.size, 1024 * 1024);
        assert_eq!(config.controller.server_name, ServerName::try_from("controller.example").unwrap());
    }

    /// What docs/configuration.md shows is a configuration.
    #[test]
    fn the_documented_example_is_right() {
        let document = include_str!("../../docs/configuration.md");
        let (_, example) = document.split_once("```yaml driver\n").unwrap();
        let (example, _) = example.split_once("```").unwrap();
        let config = load(example).unwrap();
        assert!(config.controller.certificate.is_some());
    }

    #[test]
    fn everything_can_be_set() {
        let config = load(
            "
            nodeName: n1
            kubeletDir: /k
            csiSocket: /c/csi.sock
            csiSocketOnHost: /h/csi.sock
            registrationDir: /r
            stateDir: /s
            healthAddress: 127.0.0.1:1
            tmpfsSize: 256Ki
            selinuxContext: system_u:object_r:data_t:s0
            controller: {address: '[::1]:9443', serverName: other.example, ca: /ca, tokenFile: /t,
                         certificate: /tls.crt, key: /tls.key}",
        )
        .unwrap();
        assert_eq!(config.paths.pods, Path::new("/k/pods"));
        assert_eq!(config.paths.csi_socket_on_host, Path::new("/h/csi.sock"));
        assert_eq!(config.tmpfs.size, 256 * 1024);
        assert_eq!(config.controller.server_name, ServerName::try_from("other.example").unwrap());
        let files = ClientCertificate { certificate: "/tls.crt".into(), key: "/tls.key".into() };
        assert_eq!(config.controller.certificate, Some(files));
    }

    #[test]
    fn a_certificate_without_its_key_is_a_mistake() {
        for alone in ["certificate: /tls.crt", "key: /tls.key"] {
            let error = load(&LEAST.replace("tokenFile:", &format!("{alone}, tokenFile:"))).unwrap_err();
            assert_eq!(error, "controller: certificate and key need each other");
        }
    }

    #[test]
    fn an_address_may_be_the_name_to_check() {
        let config = load(&LEAST.replace("controller.example", "[::1]")).unwrap();
        assert_eq!(config.controller.server_name, ServerName::try_from("::1").unwrap());
    }

    #[test]
    fn the_node_may_be_named_by_the_environment() {
        let file = || serde_json::from_str(r#"{"controller":{"address":"c:1","ca":"/c","tokenFile":"/t"}}"#);
        assert_eq!(Config::check(file().unwrap(), Some("n2".to_owned())).unwrap().node_name, "n2");
        assert!(Config::check(file().unwrap(), None).unwrap_err().to_string().contains("NODE_NAME"));
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let error = load(&format!(
            "
            kubeletDir: kubelet
            csiSocket: /csi/../csi.sock
            registrationDir: /{}
            stateDir: ''
            healthAddress: everywhere
            tmpfsSize: 1K
            selinuxContext: 'x\"y'
            controller: {{address: nowhere, serverName: 'a b', ca: ca, tokenFile: token}}",
            "r".repeat(100)
        ))
        .unwrap_err();
        let keys = [
            "nodeName",
            "kubeletDir",
            "csiSocket",
            "registrationDir",
            "stateDir",
            "controller.ca",
            "controller.tokenFile",
            "healthAddress",
            "tmpfsSize",
            "selinuxContext",
            "controller.address",
            "controller.serverName",
        ];
        for key in keys {
            assert!(error.lines().any(|line| line.starts_with(&format!("{key}:"))), "{key} in\n{error}");
        }
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_place() {
        let error = load(&format!("{LEAST}\n        kubletDir: /k")).unwrap_err();
        assert!(error.contains("kubletDir") && error.contains("line"), "{error}");
    }
}
