//! Nothing secret where it does not belong. Secrets are taken from where they do, and looked for everywhere else, in
//! every form in which programs write bytes. Comes last, so that everything the other tests made is searched too.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use aho_corasick::AhoCorasick;
use anyhow::{Context, Result, bail, ensure};
use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD},
};
use bed::{
    Bed,
    harness::Test,
    host::{KUBELET, STATE},
    namenode::TokenAction,
    pod::{Draft, Running, TOKEN_FILE},
    process::until,
    product::NAMESPACE,
};
use hadoop::token_file::TokenFile;

use crate::tally::Tally;

const RENEW_LIMIT: Duration = Duration::from_secs(90);

/// How every service-account token begins: `{"alg":"ES25` in Base64. Seals, which are no secret, begin otherwise.
const ANY_JWT: &[u8] = b"eyJhbGciOiJFUzI1";

/// Where a node writes: everything the bed's programs keep and log, the database of the API server among it; kubelet's
/// folder, where the node plugin keeps its records too; and what containers log.
const PLACES: [&str; 3] = [STATE, KUBELET, "/var/log/pods"];
/// Where containerd keeps images as they came.
const IMAGES: &str = "io.containerd.content.v1.content";

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![a_whole_run_leaves_no_secret_on_disk_in_logs_events_or_arguments]
}

async fn a_whole_run_leaves_no_secret_on_disk_in_logs_events_or_arguments(bed: &Bed) -> Result<()> {
    // Both programs log all there is to log.
    set_log_level(bed, "LOG_LEVEL=trace").await?;
    let outcome = run(bed).await;
    outcome.and(set_log_level(bed, "LOG_LEVEL-").await)
}

async fn run(bed: &Bed) -> Result<()> {
    let tally = Tally::begin(bed.main()).await?;
    let mut needles = Needles::default();
    for (number, key) in keys(&fs::read(bed.kdc().keytab("csi.keytab"))?)?.iter().enumerate() {
        needles.add(&format!("key {number} of the keytab"), key, &KEYTAB_PLACES);
    }

    let pod = bed.kubernetes().run(&Draft::new("secretive").token_of("etl")).await?;
    for (service, token) in token_file(&pod).await?.tokens {
        needles.add(&format!("password of token {service}"), token.password.expose(), &[]);
    }
    let driver = bed.product().await?.driver().await?;
    let jwt = projected_token(&driver).await?;
    ensure!(jwt.as_bytes().starts_with(ANY_JWT), "service-account tokens begin otherwise here");
    needles.add("JWT of the node plugin", jwt.as_bytes(), &[]);
    renewed(&tally).await?;
    needles.can_be_found(bed).await?;
    needles.check(bed).await.context("while the pod runs")?;

    tally.ends_after(&[pod]).await?;
    needles.check(bed).await.context("after the pod")
}

async fn set_log_level(bed: &Bed, change: &str) -> Result<()> {
    let kubectl = bed.kubernetes().kubectl().args(["--namespace", NAMESPACE, "set", "env"]);
    let workloads = ["deployment/hadoop-token-csi-controller", "daemonset/hadoop-token-csi-driver"];
    kubectl.args(workloads).arg(change).succeed().await?;
    bed.product().await?.until_ready().await
}

async fn token_file(pod: &Running) -> Result<TokenFile> {
    let volumes =
        PathBuf::from(KUBELET).join("pods").join(pod.uid().await?).join("volumes/kubernetes.io~csi");
    let name = Path::new(TOKEN_FILE).file_name().context("no file name")?;
    let path = volumes.join("hadoop-token/mount").join(name);
    let bytes = fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
    Ok(TokenFile::decode(&bytes)?)
}

/// The service-account token that kubelet projects into the node plugin's pod.
async fn projected_token(driver: &Running) -> Result<String> {
    let pod = PathBuf::from(KUBELET).join("pods").join(driver.uid().await?);
    let path = pod.join("volumes/kubernetes.io~projected/identity/token");
    fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))
}

/// Waits until a token has been renewed by its own timer: the file was read back and sent.
async fn renewed(tally: &Tally<'_>) -> Result<()> {
    // The first is the controller's, which learns the interval by it.
    let begun = tally.events(TokenAction::Renewed)?.len();
    until("renewed: the token", RENEW_LIMIT, async || {
        ensure!(tally.events(TokenAction::Renewed)?.len() > begun, "no renewal in the audit log");
        Ok(())
    })
    .await
}

/// The keys in a keytab of version 0x502.
fn keys(keytab: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut entries = keytab.strip_prefix(&[5, 2]).context("not a keytab")?;
    let mut keys = Vec::new();
    while !entries.is_empty() {
        let mut entry = counted(&mut entries, 4)?;
        let components = number(take(&mut entry, 2)?);
        for _ in 0..=components {
            counted(&mut entry, 2)?; // realm and components
        }
        take(&mut entry, 4 + 4 + 1 + 2)?; // type of name, time, version, type of key
        keys.push(counted(&mut entry, 2)?.to_vec());
    }
    ensure!(!keys.is_empty() && keys.iter().all(|key| key.len() >= 16), "no keys in the keytab");
    Ok(keys)
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count).context("the keytab is cut off")?;
    *bytes = rest;
    Ok(taken)
}

fn counted<'a>(bytes: &mut &'a [u8], width: usize) -> Result<&'a [u8]> {
    let count = number(take(bytes, width)?);
    take(bytes, count)
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

/// Where the keytab belongs, by what paths begin with: the KDC's folder, the installation's own files, and the Secret
/// in which the installation keeps it, as etcd stores it.
const KEYTAB_PLACES: [&str; 3] = ["kerberos/", "product/", "kubernetes/etcd/"];

/// Secrets in every form in which they could be written.
#[derive(Default)]
struct Needles(Vec<Needle>);

struct Needle {
    name: String,
    bytes: Vec<u8>,
    allowed: &'static [&'static str],
}

impl Needles {
    fn add(&mut self, name: &str, secret: &[u8], allowed: &'static [&'static str]) {
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let list = |bytes: &[u8]| bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
        // Base64 of a part of something longer is another text for each of three positions.
        let inside =
            |skip: usize| secret.get(skip..).map(|rest| rest.get(..rest.len() / 3 * 3).unwrap_or_default());
        let mut forms = vec![
            ("raw", secret.to_vec()),
            ("hexadecimal", hex.to_uppercase().into_bytes()),
            ("hexadecimal", hex.into_bytes()),
            ("list of numbers", list(secret.get(..secret.len().min(12)).unwrap_or_default()).into_bytes()),
        ];
        for part in (0..3).filter_map(inside) {
            forms.push(("Base64", BASE64_STANDARD_NO_PAD.encode(part).into_bytes()));
            forms.push(("Base64 for URLs", BASE64_URL_SAFE_NO_PAD.encode(part).into_bytes()));
        }
        for (form, bytes) in forms {
            self.0.push(Needle { name: format!("{name} ({form})"), bytes, allowed });
        }
    }

    /// The search is not blind: a secret that lies about is found in each of its forms.
    async fn can_be_found(&self, bed: &Bed) -> Result<()> {
        let planted = bed.state().join("planted");
        let everything: Vec<_> =
            self.0.iter().flat_map(|needle| [b"<", &*needle.bytes, b">"].concat()).collect();
        fs::write(&planted, everything)?;
        let found = self.check(bed).await;
        fs::remove_file(&planted)?;
        let found = found.err().context("the search is blind")?.to_string();
        for needle in &self.0 {
            let line = format!("{}: {}", planted.display(), needle.name);
            ensure!(found.contains(&line), "the search overlooks {line}");
        }
        Ok(())
    }

    /// Looks everywhere.
    async fn check(&self, bed: &Bed) -> Result<()> {
        let mut search = Search::new(self)?;
        for place in PLACES {
            search.tree(Path::new(place))?;
        }
        let events = bed.kubernetes().kubectl().args(["get", "events", "--all-namespaces", "--output=json"]);
        search.bytes(Path::new("events"), events.succeed().await?.as_bytes());
        search.processes()?;
        search.driver_memory()?;
        search.result()
    }
}

/// One search for all needles.
struct Search<'a> {
    needles: &'a [Needle],
    /// Finds the needles in their order, and after them any JWT.
    automaton: AhoCorasick,
    found: BTreeSet<String>,
    files: usize,
    processes: usize,
}

impl<'a> Search<'a> {
    fn new(needles: &'a Needles) -> Result<Self> {
        let patterns = needles.0.iter().map(|needle| needle.bytes.as_slice()).chain([ANY_JWT]);
        let automaton = AhoCorasick::new(patterns)?;
        Ok(Self { needles: &needles.0, automaton, found: BTreeSet::new(), files: 0, processes: 0 })
    }

    /// A search that looked nowhere finds nothing.
    fn result(self) -> Result<()> {
        ensure!(self.files > 100, "only {} files were searched", self.files);
        ensure!(self.processes > 10, "only {} processes were searched", self.processes);
        if self.found.is_empty() {
            return Ok(());
        }
        bail!("found:\n  {}", self.found.into_iter().collect::<Vec<_>>().join("\n  "))
    }

    fn bytes(&mut self, place: &Path, bytes: &[u8]) {
        let inside = place.strip_prefix(STATE).unwrap_or(place);
        for found in self.automaton.find_overlapping_iter(bytes) {
            let name = match self.needles.get(found.pattern().as_usize()) {
                Some(needle) if needle.allowed.iter().any(|prefix| inside.starts_with(prefix)) => continue,
                Some(needle) => &needle.name,
                None => "a JWT",
            };
            self.found.insert(format!("{}: {name}", place.display()));
        }
    }

    /// All files below `folder`, but not what is mounted there: a tmpfs is where kubelet and the node plugin keep
    /// what must not reach the disk.
    fn tree(&mut self, folder: &Path) -> Result<()> {
        let device = fs::metadata(folder).with_context(|| format!("no {}", folder.display()))?.dev();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for path in present(fs::read_dir(&folder))?.into_iter().flatten() {
                let path = path?.path();
                let Some(about) = present(fs::symlink_metadata(&path))? else { continue };
                // Images are large, and were packed before there was anything secret: their files have no time.
                if about.dev() != device || about.mtime() == 0 || path.ends_with(IMAGES) {
                    continue;
                }
                if about.is_dir() {
                    folders.push(path);
                } else if about.is_file() {
                    let Some(bytes) = present(fs::read(&path))? else { continue };
                    self.files += 1;
                    self.bytes(&path, &bytes);
                }
            }
        }
        Ok(())
    }

    /// Command lines and environments of all processes.
    fn processes(&mut self) -> Result<()> {
        for folder in processes()? {
            self.processes += 1;
            for name in ["cmdline", "environ"] {
                let path = folder.join(name);
                if let Some(bytes) = present(fs::read(&path))? {
                    self.bytes(&path, &bytes);
                }
            }
        }
        Ok(())
    }

    /// The node plugin's memory, for the keytab only: it does hold JWTs, and tokens while it writes or renews them.
    fn driver_memory(&mut self) -> Result<()> {
        let memory = memory_of("hadoop-token-csi-driver")?;
        ensure!(!memory.is_empty(), "the node plugin does not run");
        for part in memory {
            for found in self.automaton.find_overlapping_iter(&part) {
                if let Some(needle) = self.needles.get(found.pattern().as_usize())
                    && needle.name.contains("keytab")
                {
                    self.found.insert(format!("memory of the node plugin: {}", needle.name));
                }
            }
        }
        Ok(())
    }
}

fn processes() -> Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().chars().all(|c| c.is_ascii_digit()) {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}

/// Writable memory of the process of that name.
fn memory_of(name: &str) -> Result<Vec<Vec<u8>>> {
    let mut parts = Vec::new();
    for folder in processes()? {
        let Some(link) = present(fs::read_link(folder.join("exe"))).unwrap_or_default() else { continue };
        if link.file_name().and_then(|file| file.to_str()) != Some(name) {
            continue;
        }
        let memory = fs::File::open(folder.join("mem"))?;
        for line in fs::read_to_string(folder.join("maps"))?.lines() {
            let mut words = line.split_whitespace();
            let (Some(range), Some(rights)) = (words.next(), words.next()) else { continue };
            let Some((from, to)) = range.split_once('-') else { continue };
            if !rights.starts_with("rw") {
                continue;
            }
            let (from, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
            let mut bytes = vec![0; usize::try_from(to - from)?];
            // A part that has gone meanwhile holds nothing any more.
            if memory.read_exact_at(&mut bytes, from).is_ok() {
                parts.push(bytes);
            }
        }
    }
    Ok(parts)
}

/// Nothing, when it has gone meanwhile: files and processes come and go.
fn present<T>(result: io::Result<T>) -> Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
