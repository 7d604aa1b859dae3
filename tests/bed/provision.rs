//! What the bed is made of, fetched and built once: Debian packages, a Kubernetes node and containerd from source,
//! Hadoop's jars. Kept in `$HADOOP_TOKEN_CSI_CACHE`, else `$XDG_CACHE_HOME/hadoop-token-csi`, else
//! `~/.cache/hadoop-token-csi`; each part in a folder named for its inputs, complete or not there at all. Needs the
//! network; a bed that runs does not.

mod kubeflow;

use std::{
    env, fs,
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::process::Command;

use crate::{
    bed::programs,
    namenode,
    process::{Program, tail},
    progress::{phase, say},
};

const PACKAGES: [&str; 12] = [
    "krb5-kdc",
    "krb5-admin-server",
    "krb5-user",
    "slapd",
    "ldap-utils",
    "runc",
    "containernetworking-plugins",
    "dnsmasq-base",
    "iproute2",
    "busybox-static",
    "libfaketime",
    "util-linux",
];
const CONTAINERD: &str = "v2.4.2";
/// What folders are called until they are complete.
const PARTIAL: &str = "partial.";
/// The names under which the one Kubernetes binary does its parts.
const KUBERNETES: [&str; 6] =
    ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl"];

/// Sources that go into the key of what is built from them.
const GO_SOURCES: [(&str, &str); 3] = [
    ("go.mod", include_str!("kubernetes/go.mod")),
    ("go.sum", include_str!("kubernetes/go.sum")),
    ("main.go", include_str!("kubernetes/main.go")),
];
/// The same for csi-sanity with our shim.
const SANITY_SOURCES: [(&str, &str); 3] = [
    ("go.mod", include_str!("../sanity/shim/go.mod")),
    ("go.sum", include_str!("../sanity/shim/go.sum")),
    ("main.go", include_str!("../sanity/shim/main.go")),
];
/// The same for the peer of the webhook in the benchmarks.
const PEER_SOURCES: [(&str, &str); 3] = [
    ("go.mod", include_str!("../bench/admission_peer/go.mod")),
    ("go.sum", include_str!("../bench/admission_peer/go.sum")),
    ("main.go", include_str!("../bench/admission_peer/main.go")),
];
const POM: &str = include_str!("hadoop/pom.xml");
/// Sources of our own classes.
const CLASSES: [(&str, &str); 2] = [
    ("IssuePeer.java", include_str!("../bench/IssuePeer.java")),
    ("TokenJournal.java", include_str!("hadoop/TokenJournal.java")),
];

/// Where everything is.
#[derive(Debug, Clone)]
pub struct Tools {
    /// Kubernetes' programs, by their usual names.
    pub kubernetes: PathBuf,
    /// containerd, its shim and ctr.
    pub containerd: PathBuf,
    /// Hadoop's jars and those they need.
    pub hadoop: PathBuf,
    /// A formatted, empty NameNode, to be copied.
    pub namenode: PathBuf,
    /// Java classes of our own: the peers of the benchmarks, and what reads a NameNode's journal.
    pub classes: PathBuf,
    /// csi-sanity with our shim.
    pub sanity: PathBuf,
    /// Kubeflow's operators, and the definitions of their kinds and a successor's.
    pub operators: PathBuf,
    /// The webhook's peer in the benchmarks.
    pub peers: PathBuf,
    /// The JDK.
    pub java_home: PathBuf,
}

impl Tools {
    /// What [`prepare`] has made.
    ///
    /// # Errors
    /// When it has not.
    pub fn find() -> Result<Self> {
        let cache = cache()?;
        let tools = Self {
            kubernetes: cache.join(kubernetes_key()?),
            containerd: cache.join(containerd_key()),
            hadoop: cache.join(hadoop_key()),
            namenode: cache.join(namenode_key()),
            classes: cache.join(classes_key()),
            sanity: cache.join(sanity_key()),
            operators: cache.join(kubeflow::key()),
            peers: cache.join(peers_key()),
            java_home: java_home()?,
        };
        let folders = [&tools.kubernetes, &tools.containerd, &tools.hadoop, &tools.namenode, &tools.classes];
        for path in folders.into_iter().chain([&tools.sanity, &tools.operators, &tools.peers]) {
            ensure!(path.exists(), "{} is not there: the bed is not prepared", path.display());
        }
        Ok(tools)
    }

    /// A program on Hadoop's class path; `configuration` comes before the jars.
    #[must_use]
    pub fn java(&self, configuration: &Path) -> Program {
        let classpath =
            format!("{}:{}/*:{}", configuration.display(), self.hadoop.display(), self.classes.display());
        Program::new(self.java_home.join("bin/java"))
            // Small machines, short lives: start fast rather than run fast, and leave nothing in /tmp.
            .args(["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"])
            .args(["-Xshare:auto", "-Djava.net.preferIPv4Stack=true"])
            .arg(format!("-Djava.io.tmpdir={}", env::temp_dir().display()))
            .arg("-cp")
            .arg(classpath)
    }
}

/// Makes everything that is not there yet. Two at a time wait for each other.
///
/// # Errors
/// When something cannot be installed, fetched or built, with the tail of its output.
pub async fn prepare() -> Result<()> {
    let cache = cache()?;
    fs::create_dir_all(cache.join("logs")).with_context(|| format!("failed to make {}", cache.display()))?;
    let lock = File::create(cache.join("lock"))?;
    if lock.try_lock().is_err() {
        phase("Waiting for another run that prepares the bed", async {
            tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await?.map_err(Into::into)
        })
        .await
        .map(drop)?;
        // Whatever that one made is made; look again, with the lock.
        return Box::pin(prepare()).await;
    }
    demand_compilers()?;
    for entry in fs::read_dir(&cache)? {
        let entry = entry?;
        // Left by a run that was interrupted: nobody else can be at it, we hold the lock.
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    install_packages(&cache).await?;
    make(&cache, &hadoop_key(), "Fetching Hadoop's jars", async |folder| {
        fs::write(folder.join("pom.xml"), POM)?;
        let command = Program::new("mvn")
            .args(["-B", "-f"])
            .arg(folder.join("pom.xml"))
            .arg("dependency:copy-dependencies")
            .arg(format!("-DoutputDirectory={}", folder.display()));
        logged(command.command(), &cache.join("logs/maven.log")).await
    })
    .await?;
    let java_home = java_home()?;
    make(&cache, &classes_key(), "Compiling Java", async |folder| {
        for (name, text) in CLASSES {
            fs::write(folder.join(name), text)?;
        }
        let command = Program::new(java_home.join("bin/javac"))
            .arg("-cp")
            .arg(format!("{}/*", cache.join(hadoop_key()).display()))
            .arg("-d")
            .arg(folder)
            .args(CLASSES.map(|(name, _)| folder.join(name)));
        logged(command.command(), &cache.join("logs/javac.log")).await
    })
    .await?;
    make(&cache, &namenode_key(), "Formatting a NameNode", async |folder| {
        let tools = Tools {
            kubernetes: PathBuf::new(),
            containerd: PathBuf::new(),
            hadoop: cache.join(hadoop_key()),
            namenode: folder.to_owned(),
            classes: cache.join(classes_key()),
            sanity: PathBuf::new(),
            operators: PathBuf::new(),
            peers: PathBuf::new(),
            java_home: java_home.clone(),
        };
        let configuration = folder.join("configuration");
        namenode::write_format_configuration(&configuration, folder)?;
        let command = tools.java(&configuration).args([
            "org.apache.hadoop.hdfs.server.namenode.NameNode",
            "-format",
            "-nonInteractive",
        ]);
        logged(command.command(), &cache.join("logs/format.log")).await?;
        fs::remove_dir_all(configuration).map_err(Into::into)
    })
    .await?;
    make(&cache, &containerd_key(), "Building containerd (about a minute)", async |folder| {
        let modules = ["containerd", "containerd-shim-runc-v2", "ctr"]
            .map(|name| format!("github.com/containerd/containerd/v2/cmd/{name}@{CONTAINERD}"));
        let command =
            Program::new("go").args(["install", "-ldflags", "-s -w"]).args(modules).env("GOBIN", folder);
        logged(command.command(), &cache.join("logs/containerd.log")).await
    })
    .await?;
    make(&cache, &sanity_key(), "Building csi-sanity (half a minute)", async |folder| {
        build_go(&cache, "csi-sanity", &SANITY_SOURCES, (".", "-s -w"), folder).await
    })
    .await?;
    make(&cache, &kubeflow::key(), "Building operators (two to four minutes)", async |folder| {
        kubeflow::build(&cache, folder).await
    })
    .await?;
    make(&cache, &peers_key(), "Building the webhook's peer (half a minute)", async |folder| {
        build_go(&cache, "admission-peer", &PEER_SOURCES, (".", "-s -w"), folder).await
    })
    .await?;
    make(&cache, &kubernetes_key()?, "Building Kubernetes (5 to 8 minutes)", async |folder| {
        build_go(&cache, "kubernetes", &GO_SOURCES, (".", &kubernetes_flags()?), folder).await?;
        for name in KUBERNETES {
            std::os::unix::fs::symlink("kubernetes", folder.join(name))?;
        }
        Ok(())
    })
    .await
}

/// Builds a Go package, `.` if it is in `sources`, with linker flags, as the program `name` into `folder`.
async fn build_go(
    cache: &Path,
    name: &str,
    sources: &[(&str, &str)],
    (package, flags): (&str, &str),
    folder: &Path,
) -> Result<()> {
    let source = TempDir::with_prefix_in(PARTIAL, cache)?;
    for (file, text) in sources {
        fs::write(source.path().join(file), text)?;
    }
    let build = Program::new("go").args(["build", "-trimpath", "-ldflags", flags, "-o"]);
    let mut command = build.arg(folder.join(name)).arg(package).command();
    command.current_dir(source.path());
    logged(command, &cache.join(format!("logs/{name}.log"))).await
}

/// The version of a module that a program of [`build_go`] requires.
fn version_of(module: &str, sources: &[(&str, &'static str)]) -> Result<&'static str> {
    let (_, modules) = sources.first().context("no go.mod")?;
    modules
        .lines()
        .find_map(|line| line.trim().strip_prefix(module)?.strip_prefix(' '))
        .with_context(|| format!("go.mod does not require {module}"))
}

/// Makes the cache's folder `name` by `work`, which gets another to fill; does nothing when it is there.
async fn make(
    cache: &Path,
    name: &str,
    title: &str,
    work: impl AsyncFnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let target = cache.join(name);
    if target.exists() {
        return Ok(());
    }
    let partial = TempDir::with_prefix_in(PARTIAL, cache)?;
    phase(title, work(partial.path())).await?;
    let partial = partial.keep();
    fs::set_permissions(&partial, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    fs::rename(&partial, &target).with_context(|| format!("failed to make {}", target.display()))
}

/// A command with all that it has started: ended when this is dropped, such as when the user does not want to wait.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        // Usually there is nobody left.
        let _ = killpg(self.0, Signal::SIGTERM);
    }
}

/// Builds something of this source tree: quick when nothing has changed, and then not worth a word.
///
/// # Errors
/// When it fails, with the tail of its output.
pub(crate) async fn build(title: &str, command: Program, log: &str) -> Result<()> {
    let log = cache()?.join(format!("logs/{log}.log"));
    phase(title, logged(command.command(), &log)).await
}

/// Builds a program of this source tree in the profile in which this program was built.
///
/// # Errors
/// When it fails, with the tail of its output.
pub async fn build_own(name: &str) -> Result<()> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // With the whole workspace selected, dependencies have the features that `cargo test --workspace` gave them.
    let command = Program::new(cargo).args(["build", "--locked", "--workspace", "--bin", name]);
    let release = programs()?.ends_with("release").then_some("--release");
    build(&format!("Building {name}"), command.args(release), name).await
}

/// Where [`build_own`] puts a program.
///
/// # Errors
/// When this program's own place cannot be told.
pub fn own(name: &str) -> Result<PathBuf> {
    Ok(programs()?.join(name))
}

/// Runs a command with its output in a file, whose tail is the error when it fails.
async fn logged(mut command: Command, log: &Path) -> Result<()> {
    let file = File::create(log)?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .process_group(0)
        .spawn()
        .with_context(|| format!("failed to run {:?}", command.as_std().get_program()))?;
    let group = child.id().map(i32::try_from).transpose()?.map(Pid::from_raw).map(Group);
    let status = child.wait().await?;
    drop(group);
    if !status.success() {
        bail!("{:?} failed ({status}):\n{}", command.as_std().get_program(), tail(log));
    }
    Ok(())
}

/// What the bed does not install itself.
fn demand_compilers() -> Result<()> {
    let path = env::var_os("PATH").context("PATH is not set")?;
    for (program, what) in [("go", "Go 1.26 or later"), ("mvn", "Maven")] {
        let found = env::split_paths(&path).any(|folder| folder.join(program).exists());
        ensure!(found, "{program} is not on PATH: the test bed needs {what}");
    }
    java_home().map(drop)
}

async fn install_packages(cache: &Path) -> Result<()> {
    let installed = Program::new("dpkg-query")
        .args(["--show", "--showformat", "${Package} ${db:Status-Status}\\n"])
        .succeed()
        .await
        .context("the bed runs on Debian 12")?;
    let missing: Vec<&str> = PACKAGES
        .into_iter()
        .filter(|name| !installed.lines().any(|line| line == format!("{name} installed")))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let title = format!("Installing Debian packages {}", missing.join(", "));
    say(&title);
    // Without a configuration of its own, there is no service to start.
    Program::new("debconf-set-selections")
        .succeed_with("slapd slapd/no_configuration boolean true\n")
        .await?;
    phase("Installing them", async {
        let apt = || Program::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").arg("--yes");
        let log = cache.join("logs/apt.log");
        logged(apt().arg("update").command(), &log).await?;
        logged(apt().args(["install", "--no-install-recommends"]).args(missing).command(), &log).await
    })
    .await
}

fn cache() -> Result<PathBuf> {
    if let Some(folder) = env::var_os("HADOOP_TOKEN_CSI_CACHE").filter(|value| !value.is_empty()) {
        return Ok(std::path::absolute(folder)?);
    }
    let caches = match env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    Ok(caches.join("hadoop-token-csi"))
}

fn java_home() -> Result<PathBuf> {
    if let Some(home) = env::var_os("JAVA_HOME").filter(|value| !value.is_empty()) {
        return Ok(PathBuf::from(home));
    }
    let path = env::var_os("PATH").context("PATH is not set")?;
    let compiler = env::split_paths(&path)
        .map(|folder| folder.join("javac"))
        .find(|file| file.exists())
        .context("there is no JDK: javac is not on PATH, and JAVA_HOME is not set")?;
    let compiler = fs::canonicalize(compiler)?;
    let home = compiler.parent().and_then(Path::parent).context("javac is not in a JDK's bin folder")?;
    Ok(home.to_owned())
}

fn key(name: &str, inputs: &[&str]) -> String {
    let mut hash = Sha256::new();
    for input in inputs {
        hash.update(input.len().to_be_bytes());
        hash.update(input);
    }
    let digest: String = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("{name}-{digest}")
}

fn kubernetes_key() -> Result<String> {
    let mut inputs: Vec<&str> = GO_SOURCES.iter().map(|(_, text)| *text).collect();
    let flags = kubernetes_flags()?;
    inputs.push(&flags);
    Ok(key("kubernetes", &inputs))
}

fn sanity_key() -> String {
    key("csi-sanity", &SANITY_SOURCES.map(|(_, text)| text))
}

fn peers_key() -> String {
    key("peers", &PEER_SOURCES.map(|(_, text)| text))
}

/// Linker flags without which kubectl and feature gates would see version 0.0.0.
fn kubernetes_flags() -> Result<String> {
    let version = version_of("k8s.io/kubernetes", &GO_SOURCES)?;
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let package = "k8s.io/component-base/version";
    Ok(format!(
        "-s -w -X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
    ))
}

fn containerd_key() -> String {
    format!("containerd-{}", CONTAINERD.trim_start_matches('v'))
}

fn hadoop_key() -> String {
    key("hadoop", &[POM])
}

fn namenode_key() -> String {
    key("namenode", &[POM])
}

fn classes_key() -> String {
    {
        let mut inputs = vec![POM];
        inputs.extend(CLASSES.iter().map(|(_, text)| *text));
        key("classes", &inputs)
    }
}
