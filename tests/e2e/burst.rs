//! Hundreds of pods that ask for their tokens at one moment, and end at one moment: what the NameNode, the KDC and the
//! API server are asked meanwhile, counted by themselves or on the way to them, never by the controller.

mod api_server;
mod relay;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use bed::{
    Bed,
    harness::Test,
    host::{KUBELET, NODE_IP},
    kdc::{SUPERUSER, TicketKind},
    namenode::{Cluster, TokenAction},
    pod::Draft,
    process::until,
    progress::say,
    second_node::SecondNode,
    token_service::{Caller, TokenService},
    users::{JOBS, Users},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use identity::DRIVER_NAME;
use jiff::Timestamp;
use kube::{
    ResourceExt,
    api::{DynamicObject, ListParams},
};
use proto::token::v1::IssueResponse;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, lookup_host},
    time::{Instant, sleep},
};
use tonic::{Code, Status};

use self::{
    api_server::{Requests, few_connections},
    relay::Relay,
};
use crate::{
    GONE_LIMIT,
    attacks::stage::{Prey, draft, sealed},
    objects::{number, objects, text},
    tally::Tally,
};

const PODS: usize = 300;
/// In turn.
const USERS: [&str; 4] = ["etl", "ads", "batch", "reports"];
/// Connections to the controller: as many as so many node plugins have, because one of them may have no more than 256
/// calls under way.
const CONNECTIONS: usize = 4;

/// The controller's configured bound on calls under way at one NameNode.
const AT_ONCE: usize = 8;
/// The port at which it looks for the NameNode: there is the relay.
const RELAY_PORT: u16 = 8021;
/// So many wait for their turn before the NameNode goes on.
const QUEUE: usize = 100;
/// How long the NameNode stands still at most: less than the controller lets a call wait.
const QUEUE_LIMIT: Duration = Duration::from_secs(20);

/// What the controller asks the KDC for in all, from its start to the end of the last token: a ticket-granting ticket and
/// one for each of the two NameNodes, and each of them once more, because half of its life may be over.
const MOST_TICKETS: usize = 6;

/// How a pod without a token is tried again: as kubelet does, and then for so long.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(60);
const CALL_LIMIT: Duration = Duration::from_secs(45);
/// Requests of the test's own under way at the API server.
const HANDS: usize = 16;

const VOLUMES: usize = 20;
const START_LIMIT: Duration = Duration::from_secs(120);

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![
        three_hundred_pods_at_once_have_a_token_each_within_the_bounds_of_every_server,
        volumes_that_were_mounted_together_are_not_renewed_together,
    ]
}

async fn three_hundred_pods_at_once_have_a_token_each_within_the_bounds_of_every_server(
    bed: &Bed,
) -> Result<()> {
    let product = bed.product().await?;
    let tickets = bed.kdc().requests()?.len();
    let relay = Relay::between(namenode(RELAY_PORT).await?, namenode(8020).await?).await?;
    let settings = Settings::moved(&product.overlay().join(Cluster::Main.name()))?;
    let bounded = |configuration: &mut Value| {
        if let Some(keys) = configuration.as_object_mut() {
            keys.insert("limits".to_owned(), json!({"concurrentCalls": AT_ONCE}));
        }
    };
    let outcome = product.with_controller(bounded, || async {
        let outcome = burst(bed, &relay, tickets).await;
        settings.restored()?;
        outcome
    });
    let outcome = outcome.await;
    settings.restored()?;
    outcome
}

async fn burst(bed: &Bed, relay: &Relay, tickets: usize) -> Result<()> {
    let kubernetes = bed.kubernetes();
    Users::of(kubernetes).await?;
    let (node, tally) = (SecondNode::join(kubernetes).await?, Tally::begin(bed.main()).await?);
    let pods: Vec<Prey> = stream::iter(0..PODS)
        .map(async |index| {
            let user = USERS.iter().cycle().nth(index).context("no user")?;
            let draft = sealed(kubernetes.sealing_key(), draft(&format!("burst-{index}")), user)?;
            let pod = node.create_as(kubernetes, kubernetes.client(), &draft).await?;
            Prey::of(&kubernetes.client(), &pod).await
        })
        .buffer_unordered(HANDS)
        .try_collect()
        .await?;
    let mut callers = Vec::new();
    for _ in 0..CONNECTIONS {
        callers.push(TokenService::of(bed)?.with(&node.driver_token)?);
    }

    // All at once, while the NameNode stands still for a moment.
    let before = Requests::so_far(&kubernetes.client()).await?;
    relay.keep_back(true);
    let calls = pods.iter().zip(callers.iter().cycle()).map(|(pod, caller)| issued(caller, pod));
    let (answers, queued) = tokio::join!(futures_util::future::join_all(calls), async {
        let queued = queued(relay).await;
        relay.keep_back(false);
        queued
    });
    queued?;
    let after = Requests::so_far(&kubernetes.client()).await?;
    let in_burst = relay.counts();
    let mut calls = 0;
    let mut granted = Vec::new();
    for (pod, answer) in pods.iter().zip(answers) {
        let (answer, attempts) = answer.with_context(|| format!("pod {}", pod.name))?;
        calls += attempts;
        granted.push((pod, answer));
    }
    say(format_args!("burst: {calls} calls for {PODS} pods; at the NameNode {in_burst:?}"));
    after.cost(&before, PODS, calls)?;
    few_connections("for their tokens")?;
    each_has_one(bed, &tally, &granted).await?;

    // And all end at once: half of them as kubelet ends them, half without anybody telling.
    let (unpublished, forgotten): (Vec<_>, Vec<_>) =
        granted.into_iter().zip(callers.iter().cycle()).enumerate().partition(|(index, _)| index % 2 == 0);
    let released = unpublished.into_iter().map(|(_, ((pod, answer), caller))| released(caller, pod, answer));
    let forgotten = stream::iter(forgotten)
        .map(|(_, ((pod, _), _))| node.forget(&pod.namespace, &pod.name))
        .buffer_unordered(HANDS)
        .try_collect::<Vec<()>>();
    tokio::try_join!(futures_util::future::try_join_all(released), forgotten)?;
    few_connections("for their end")?;
    tally.ends().await?;
    until("gone: every object", GONE_LIMIT, async || {
        let left = own_objects(bed, &pods).await?.len();
        ensure!(left == 0, "{left} are left");
        Ok(())
    })
    .await?;
    stream::iter(&pods)
        .map(|pod| node.forget(&pod.namespace, &pod.name))
        .buffer_unordered(HANDS)
        .try_collect::<Vec<()>>()
        .await?;
    node.leave().await?;

    let counts = relay.counts();
    say(format_args!("burst: at the NameNode in the end {counts:?}"));
    ensure!(in_burst.most_under_way == AT_ONCE, "never {AT_ONCE} calls at once: {in_burst:?}");
    ensure!(counts.most_under_way <= AT_ONCE, "more than {AT_ONCE} calls at once: {counts:?}");
    ensure!(counts.calls >= 2 * PODS && counts.under_way == 0, "{counts:?}");
    // One for each user, and its own, which may be closing while the next is opened.
    ensure!(counts.most_open <= 2 * (USERS.len() + 1), "{counts:?}");
    few_tickets(bed, tickets)
}

/// Where the main NameNode is, or the relay at another of its ports.
async fn namenode(port: u16) -> Result<SocketAddr> {
    let mut found = lookup_host((Cluster::Main.host(), port)).await?;
    found.next().context("the NameNode has no address")
}

/// Waits until the NameNode has as many calls as it may have, and many more wait for their turn.
async fn queued(relay: &Relay) -> Result<()> {
    until("full: the controller's queue", QUEUE_LIMIT, async || {
        let (counts, waiting) = (relay.counts(), waiting().await?);
        ensure!(
            counts.under_way == AT_ONCE && waiting >= QUEUE,
            "{waiting} wait, {} are under way",
            counts.under_way
        );
        Ok(())
    })
    .await
}

/// Calls that wait in the controller for their turn at the NameNode, as it says itself: when to go on depends on it,
/// and nothing else.
async fn waiting() -> Result<usize> {
    let mut stream = TcpStream::connect((NODE_IP, 9809)).await?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let mut metrics = String::new();
    stream.read_to_string(&mut metrics).await?;
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix("hadoop_token_csi_hadoop_waiting{cluster=\"main\"} "));
    Ok(line.unwrap_or("0").parse()?)
}

/// The answer for a pod, and after how many calls it came.
async fn issued(caller: &Caller, pod: &Prey) -> Result<(IssueResponse, usize)> {
    patiently(&pod.name, async || caller.clone().issue(in_time(pod.issue())).await).await
}

async fn released(caller: &Caller, pod: &Prey, answer: IssueResponse) -> Result<()> {
    let request = pod.release(answer);
    patiently(&pod.name, async || caller.clone().release(in_time(request.clone())).await).await.map(drop)
}

fn in_time<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL_LIMIT);
    request
}

/// What the controller says in the end, and after how many calls: what passes by itself is waited for.
async fn patiently<T>(
    pod: &str,
    call: impl AsyncFn() -> Result<tonic::Response<T>, Status>,
) -> Result<(T, usize)> {
    let (begun, mut wait) = (Instant::now(), FIRST_WAIT);
    for attempt in 1.. {
        match call().await {
            Ok(answer) => return Ok((answer.into_inner(), attempt)),
            Err(status) if passes(&status) && begun.elapsed() < PATIENCE => {
                say(format_args!("burst: {pod} tries again: {}", status.message()));
                sleep(wait).await;
                wait *= 2;
            }
            Err(status) => bail!("pod {pod}, after {attempt} calls: {status}"),
        }
    }
    bail!("never asked")
}

/// Whether the node plugin leaves it to kubelet to try again soon.
fn passes(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded | Code::Cancelled
    )
}

/// Number of the one token of an answer.
fn the_token(answer: &IssueResponse) -> Result<u32> {
    match answer.tokens.as_slice() {
        [one] => Ok(u32::try_from(one.sequence_number)?),
        tokens => bail!("{} tokens for {}", tokens.len(), answer.user),
    }
}

/// Every pod has the token that it was given and no other, at the NameNode and in the ledger. What was lost on the way
/// to one that asked again is cancelled soon.
async fn each_has_one(bed: &Bed, tally: &Tally<'_>, granted: &[(&Prey, IssueResponse)]) -> Result<()> {
    let (mut names, mut tokens) = (BTreeMap::new(), HashMap::new());
    for (pod, answer) in granted {
        let number = the_token(answer)?;
        names.insert(format!("{}/{}", pod.namespace, pod.name), number);
        tokens.insert(pod.uid.clone(), number);
    }
    ensure!(names.len() == PODS && names.values().collect::<BTreeSet<_>>().len() == PODS, "shared tokens");
    until("alone: each pod's one token", GONE_LIMIT, async || {
        let numbers = |action| -> Result<HashMap<u32, Option<String>>> {
            let events = tally.events(action)?.into_iter();
            let numbers = events.map(|event| (event.sequence_number, event.pod().map(str::to_owned)));
            numbers.map(|(number, pod)| Ok((number.context("no number")?, pod))).collect()
        };
        let (mut live, cancelled) = (numbers(TokenAction::Issued)?, numbers(TokenAction::Cancelled)?);
        live.retain(|number, pod| {
            !cancelled.contains_key(number) && pod.as_ref().is_some_and(|pod| names.contains_key(pod))
        });
        ensure!(live.len() == PODS, "{} tokens live", live.len());
        for (number, pod) in &live {
            ensure!(
                pod.as_ref().and_then(|pod| names.get(pod)) == Some(number),
                "{number} is not of {pod:?}"
            );
        }
        let all = own_objects(bed, granted.iter().map(|(pod, _)| *pod)).await?;
        ensure!(all.len() == PODS, "{} objects", all.len());
        for object in &all {
            let uid = text(object, "/spec/podUid").unwrap_or_default();
            ensure!(tokens.get(uid) == Some(&number(object)?), "{} has another token", object.name_any());
        }
        Ok(())
    })
    .await
}

/// The ledger's objects of these pods.
async fn own_objects(bed: &Bed, pods: impl IntoIterator<Item = &Prey>) -> Result<Vec<DynamicObject>> {
    let uids: BTreeSet<&str> = pods.into_iter().map(|pod| pod.uid.as_str()).collect();
    let mut all = objects(bed.kubernetes().client(), JOBS).list(&ListParams::default()).await?.items;
    all.retain(|object| text(object, "/spec/podUid").is_some_and(|uid| uids.contains(uid)));
    Ok(all)
}

/// The settings of a cluster that the controller is to find at the relay.
struct Settings(Vec<(PathBuf, String)>);

impl Settings {
    fn moved(folder: &Path) -> Result<Self> {
        let mut saved = Vec::new();
        for name in ["core-site.xml", "hdfs-site.xml"] {
            let file = folder.join(name);
            let text = fs::read_to_string(&file)?;
            fs::write(&file, text.replace(":8020", &format!(":{RELAY_PORT}")))?;
            saved.push((file, text));
        }
        Ok(Self(saved))
    }

    fn restored(&self) -> Result<()> {
        self.0.iter().try_for_each(|(file, text)| Ok(fs::write(file, text)?))
    }
}

/// What the controller asked the KDC for since there were so many requests: a ticket-granting ticket and one ticket for
/// each NameNode, whatever the number of tokens.
fn few_tickets(bed: &Bed, before: usize) -> Result<()> {
    let mut requests = bed.kdc().requests()?.split_off(before);
    requests.retain(|request| request.client == SUPERUSER);
    let of = |kind| requests.iter().filter(|request| request.kind == kind).count();
    let (initial, service) = (of(TicketKind::Initial), of(TicketKind::Service));
    say(format_args!("burst: {initial} requests for first tickets, {service} for services"));
    ensure!(initial > 0 && service > 0, "the KDC was asked for nothing: {requests:?}");
    ensure!(requests.len() <= MOST_TICKETS, "{} requests for tickets: {requests:?}", requests.len());
    Ok(())
}

async fn volumes_that_were_mounted_together_are_not_renewed_together(bed: &Bed) -> Result<()> {
    let many = (0..VOLUMES).fold(Draft::new("renewed-apart").submitter("etl", &[]), |draft, index| {
        let volume =
            json!({"name": format!("token-{index}"), "csi": {"driver": DRIVER_NAME, "readOnly": true}});
        let mount = json!({"name": format!("token-{index}"), "mountPath": format!("/etc/token-{index}")});
        // kubelet leaves out volumes that no container has.
        draft.push("/spec/volumes", volume).push("/spec/containers/0/volumeMounts", mount)
    });
    let pod = bed.kubernetes().create(&many).await?;
    pod.until_running(START_LIMIT).await?;
    let folder = Path::new(KUBELET).join(format!("pods/{}/volumes/kubernetes.io~csi", pod.uid().await?));
    let mut shares = Vec::new();
    for index in 0..VOLUMES {
        let about: Value =
            serde_json::from_slice(&fs::read(folder.join(format!("token-{index}/mount/token.json")))?)?;
        let date = |pointer: &str| -> Result<Timestamp> {
            let date = about.pointer(pointer).and_then(Value::as_str);
            Ok(date.with_context(|| format!("no {pointer} in {about}"))?.parse()?)
        };
        let issued = date("/tokens/0/issueDate")?;
        let [next, last] = [date("/nextRenewal")?, date("/tokens/0/renewDate")?]
            .map(|date| date.duration_since(issued).as_secs_f64());
        shares.push(next / last);
    }
    say(format_args!("burst: next renewals after {shares:.3?} of the interval"));
    // Between 65 and 75 %, and a little more for the time that it took from the issue to the mount. That all of them are
    // within a third of that by chance happens once in a hundred million runs.
    let (least, most) = shares
        .iter()
        .fold((f64::MAX, f64::MIN), |(least, most), share| (least.min(*share), most.max(*share)));
    ensure!(least > 0.64 && most < 0.90, "from {least} to {most}");
    ensure!(most - least > 0.033, "all come due within {} of the interval", most - least);
    pod.delete(GONE_LIMIT).await
}
