//! `demo`: the life of one token, told as a story on real parts. A pod that the Kubernetes user `etl` submits is sealed
//! as his, gets a token for the Hadoop user `etl`, reads what only `etl` may read, is refused what is `ads`', has its
//! token renewed, and loses it when it is deleted; a pod that only says that it is of `etl` does not become so. Every step
//! is checked; the demo fails when one does not come out as told.

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    io::{Write as _, stdout},
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use bed::{
    Bed, Options,
    isolate::{ROLE, Side, enter},
    namenode::{Cluster, TokenAction},
    pod::{Running, TOKEN_FILE},
    process::{Output, Program, until},
    product::{Need, prepare},
    progress::say,
    users::{JOBS, TEAM, Users},
};
use hadoop::{TokenIdentifier, token_file::TokenFile};
use identity::{
    GROUPS_ANNOTATION, SEAL_ANNOTATION, SUBMITTER_ANNOTATION,
    seal::{JwkSet, KeySet, ObjectName, Seal},
};
use jiff::Timestamp;
use serde_json::json;

const POD: &str = include_str!("pod.yaml");
const START_LIMIT: Duration = Duration::from_secs(60);
const RENEWAL_LIMIT: Duration = Duration::from_secs(120);
const CANCEL_LIMIT: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            say(format_args!("{error:?}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    if let Side::Outside(code) = enter(|| prepare(Need::Product))? {
        return Ok(code);
    }
    tokio::runtime::Runtime::new()?.block_on(async {
        let bed = Bed::start(Options::default()).await?;
        bed.product().await?;
        bed.webhook().await?;
        if let Err(error) = story(&bed).await {
            return Err(error.context(bed.log_tails()));
        }
        if env::var_os("KEEP").is_some_and(|keep| !keep.is_empty()) {
            shell(&bed).await?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn story(bed: &Bed) -> Result<()> {
    the_cast(bed).await?;
    let pod = a_pod_with_a_volume(bed).await?;
    a_pod_that_only_says_so(bed).await?;
    what_it_may_read(&pod).await?;
    let (token, identifier) = the_token(&pod).await?;
    its_renewal(bed, &pod, &identifier).await?;
    its_end(bed, &pod, &token).await
}

async fn the_cast(bed: &Bed) -> Result<()> {
    chapter("A kerberized HDFS and a Kubernetes node with the driver on it")?;
    kubectl(bed, &["get", "pods", "--all-namespaces", "--output=wide"]).await?;
    tell(
        "In HDFS, /user/etl may be entered by etl alone, /user/ads by ads alone. Without a token nobody gets in:",
    )?;
    let nobody = bed.hdfs_as_nobody(Cluster::Main)?.args(["cat", "/user/etl/private.txt"]);
    show("hdfs-client cat /user/etl/private.txt", &nobody.output().await?.failure()?)
}

async fn a_pod_with_a_volume(bed: &Bed) -> Result<Running> {
    chapter("The user etl submits a pod that asks for a volume")?;
    Users::of(bed.kubernetes()).await?;
    show("cat pod.yaml", POD)?;
    submit(bed, "etl", POD).await?;
    tell(
        "It does not say whose it is. The webhook knows from the API server, and has written it down, sealed:",
    )?;
    let pod = bed.kubernetes().pod(JOBS, "report");
    show_seal(bed).await?;
    pod.until_running(START_LIMIT).await?;
    kubectl(bed, &["get", "pod", "report", "--namespace=jobs"]).await?;
    tell("The controller has believed the seal, and noted down whom it gave what:")?;
    let records = bed.product().await?.audit().await?;
    let issue = records.iter().find(|record| record.get("action") == Some(&json!("issue")));
    let command =
        "kubectl logs --namespace=hadoop-token-csi deployment/hadoop-token-csi-controller | grep issue";
    show(command, &serde_json::to_string_pretty(issue.context("no record of it")?)?)?;
    Ok(pod)
}

/// `kubectl` as a user with a certificate.
async fn submit(bed: &Bed, user: &str, manifest: &str) -> Result<()> {
    let kubeconfig = bed.kubernetes().kubeconfig_of(user, Some(TEAM))?;
    let kubectl = bed.kubernetes().kubectl().env("KUBECONFIG", &kubeconfig);
    let output = kubectl.args(["create", "--namespace=jobs", "--filename=-"]).succeed_with(manifest).await?;
    show(&format!("kubectl create --namespace=jobs --filename=pod.yaml   # as {user}"), &output)
}

async fn show_seal(bed: &Bed) -> Result<()> {
    let words = ["get", "pod", "report", "--namespace=jobs", "--output=jsonpath={.metadata.annotations}"];
    let found = bed.kubernetes().kubectl().args(words).succeed().await?;
    let mut annotations: BTreeMap<String, String> = serde_json::from_str(&found)?;
    let text = annotations.get(SEAL_ANNOTATION).context("no seal")?.clone();
    annotations.retain(|name, _| [SUBMITTER_ANNOTATION, GROUPS_ANNOTATION].contains(&name.as_str()));
    let start: String = text.chars().take(40).collect();
    annotations.insert(SEAL_ANNOTATION.to_owned(), format!("{start}… ({} letters)", text.len()));
    show(&format!("kubectl {}", words.join(" ")), &serde_json::to_string_pretty(&annotations)?)?;
    let public = JwkSet { keys: vec![bed.webhook().await?.sealing_key().public_jwk()] };
    let seal = KeySet::from_jwk_set(public.to_json().as_bytes())?.verify(&text)?;
    let ObjectName::Name(name) = &seal.name else { bail!("the seal names no pod: {:?}", seal.name) };
    let mut shown = String::new();
    writeln!(shown, "submitted by  {}", seal.submitter)?;
    writeln!(shown, "whose groups  have the digest {}", seal.groups_digest)?;
    writeln!(shown, "for pod       {name} in namespace {}, of nobody's workload", seal.namespace)?;
    writeln!(shown, "running as    service account {}", seal.service_account)?;
    writeln!(shown, "acting as     nobody else")?;
    writeln!(shown, "at            {}, and for no pod created at another time", sealed_at(&seal)?)?;
    writeln!(shown, "used once     {}, by the first pod that shows it", seal.nonce)?;
    ensure!(seal.root_owner.is_none() && seal.do_as.is_empty(), "the seal says more: {seal:?}");
    show("(decoding the seal, whose signature is right)", &shown)
}

fn sealed_at(seal: &Seal) -> Result<Timestamp> {
    Ok(Timestamp::from_second(seal.sealed_at)?)
}

async fn a_pod_that_only_says_so(bed: &Bed) -> Result<()> {
    chapter("The user ads submits a pod that says it is of etl")?;
    let claiming = format!("name: claim\n  annotations: {{{SUBMITTER_ANNOTATION}: etl}}");
    let manifest = POD.replace("name: report", &claiming);
    submit(bed, "ads", &manifest).await?;
    let words = ["get", "pod", "claim", "--namespace=jobs", "--output=yaml"];
    let yaml = bed.kubernetes().kubectl().args(words).succeed().await?;
    let submitter = yaml.lines().find(|line| line.contains(SUBMITTER_ANNOTATION)).context("no submitter")?;
    show("kubectl get pod claim --namespace=jobs --output=yaml | grep submitter", submitter)?;
    ensure!(submitter.ends_with(": ads"), "it passed for another's: {submitter}");
    let claim = bed.kubernetes().pod(JOBS, "claim");
    claim.until_running(START_LIMIT).await?;
    let other = claim.hdfs_native(Cluster::Main, &["cat", "/user/etl/private.txt"]).await?.failure()?;
    show("kubectl exec claim -- hdfs-client cat /user/etl/private.txt", &other)?;
    ensure!(other.contains("Permission denied"), "the NameNode should have refused for want of permission");
    claim.delete(START_LIMIT).await
}

async fn what_it_may_read(pod: &Running) -> Result<()> {
    chapter("What the pod may read, with no keytab, ticket or Kerberos configuration in it")?;
    let own = pod.hdfs_native(Cluster::Main, &["cat", "/user/etl/private.txt"]).await?.success()?;
    show("kubectl exec report -- hdfs-client cat /user/etl/private.txt", &own)?;
    let other = pod.hdfs_native(Cluster::Main, &["cat", "/user/ads/private.txt"]).await?.failure()?;
    show("kubectl exec report -- hdfs-client cat /user/ads/private.txt", &other)?;
    ensure!(other.contains("Permission denied"), "the NameNode should have refused for want of permission");
    Ok(())
}

async fn the_token(pod: &Running) -> Result<(Vec<u8>, TokenIdentifier)> {
    chapter("The token itself, decoded, without its secret")?;
    let bytes = pod.read(TOKEN_FILE).await?;
    let file = TokenFile::decode(&bytes).context("the token file is damaged")?;
    let (_, token) = file.tokens.first().context("the token file is empty")?;
    let identifier = token.decode_identifier()?;
    let mut shown = String::new();
    writeln!(shown, "kind       {}\nowner      {}", token.kind, identifier.owner)?;
    writeln!(shown, "real user  {}\nrenewer    {}", identifier.real_user, identifier.renewer)?;
    writeln!(shown, "number     {}", identifier.sequence_number)?;
    writeln!(shown, "ends       {}, whatever is done", from_now(identifier.max_date))?;
    writeln!(shown, "password   {} bytes, not shown", token.password.expose().len())?;
    for (alias, _) in &file.tokens {
        writeln!(shown, "for        {alias}")?;
    }
    show("(decoding /etc/hadoop-token/token)", &shown)?;
    show_token_json(pod).await?;
    Ok((bytes, identifier))
}

async fn its_renewal(bed: &Bed, pod: &Running, token: &TokenIdentifier) -> Result<()> {
    chapter("The NameNode gives it a minute at a time: waiting for the node plugin to renew it")?;
    let number = u32::try_from(token.sequence_number)?;
    let renewals = || -> Result<usize> {
        let events = bed.main().token_events()?;
        let ours = |event: &&bed::namenode::TokenEvent| {
            event.action == TokenAction::Renewed && event.allowed && event.sequence_number == Some(number)
        };
        Ok(events.iter().filter(ours).count())
    };
    let (before, told) = (renewals()?, token_json(pod).await?);
    until("renewed", RENEWAL_LIMIT, async || {
        ensure!(renewals()? > before, "the NameNode's audit log shows no renewal");
        Ok(())
    })
    .await?;
    let audit = std::fs::read_to_string(bed.main().audit_log())?;
    let line = audit.lines().rfind(|line| line.contains("cmd=renewDelegationToken")).unwrap_or_default();
    show("grep renewDelegationToken hdfs-audit.log | tail -1", line)?;
    tell("The token's bytes stay as they are; what changed is when the NameNode will let it go:")?;
    until("told by token.json", RENEWAL_LIMIT, async || {
        ensure!(token_json(pod).await? != told, "token.json has not changed");
        Ok(())
    })
    .await?;
    show_token_json(pod).await
}

async fn its_end(bed: &Bed, pod: &Running, token: &[u8]) -> Result<()> {
    chapter("A thief copies the token, and the pod is deleted")?;
    let copy = bed.state().join("stolen-token");
    std::fs::write(&copy, token)?;
    let thief = || -> Result<Program> {
        let client = bed.hdfs_as_nobody(Cluster::Main)?.args(["cat", "/user/etl/private.txt"]);
        Ok(client.env("HADOOP_TOKEN_FILE_LOCATION", &copy))
    };
    let command = "HADOOP_TOKEN_FILE_LOCATION=stolen-token hdfs-client cat /user/etl/private.txt";
    show(command, &thief()?.output().await?.success()?)?;
    show("kubectl delete pod report", "")?;
    pod.delete(START_LIMIT).await?;
    let refused = until("refused", CANCEL_LIMIT, async || thief()?.output().await?.failure()).await?;
    tell("The driver had the token cancelled. The copy is worth nothing now:")?;
    show(command, &refused)?;
    ensure!(refused.contains("can't be found in cache"), "the NameNode should not know the token any more");
    bed.main().until_live_tokens(0, CANCEL_LIMIT).await?;
    tell("Tokens alive at the NameNode: 0.")
}

async fn token_json(pod: &Running) -> Result<String> {
    pod.exec(&["cat", "/etc/hadoop-token/token.json"]).await?.success()
}

async fn show_token_json(pod: &Running) -> Result<()> {
    show("kubectl exec report -- cat /etc/hadoop-token/token.json", &token_json(pod).await?)
}

async fn kubectl(bed: &Bed, words: &[&str]) -> Result<()> {
    let output: Output = bed.kubernetes().kubectl().args(words.iter().copied()).output().await?;
    show(&format!("kubectl {}", words.join(" ")), &output.success()?)
}

async fn shell(bed: &Bed) -> Result<()> {
    chapter("The bed is yours: kubectl works here; exit ends it all")?;
    let shell = env::var("SHELL").unwrap_or_else(|_| "/bin/bash".to_owned());
    let mut command = bed.environment(Program::new(&shell))?.command();
    command.env_remove(ROLE).status().await.with_context(|| format!("failed to run {shell}"))?;
    Ok(())
}

/// How far away a date of Hadoop's, in milliseconds since the epoch, is.
fn from_now(date: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    match Duration::from_millis(date).checked_sub(now) {
        Some(left) => format!("in {} s", left.as_secs()),
        None => "already".to_owned(),
    }
}

fn chapter(title: &str) -> Result<()> {
    Ok(writeln!(stdout(), "\n== {title} ==\n")?)
}

fn tell(sentence: &str) -> Result<()> {
    Ok(writeln!(stdout(), "{sentence}\n")?)
}

/// A command and what it printed, indented, without Java's stack traces.
fn show(command: &str, output: &str) -> Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "  $ {command}")?;
    for line in output.trim_end().lines().filter(|line| !line.trim().is_empty() && !line.starts_with("\tat "))
    {
        writeln!(out, "    {line}")?;
    }
    Ok(writeln!(out)?)
}
