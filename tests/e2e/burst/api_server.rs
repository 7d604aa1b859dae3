//! What the API server is asked, by its own numbers and by the controller's open connections to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use anyhow::{Result, ensure};
use bed::{product::Part, progress::say};
use kube::Client;

/// What one publish costs the API server, as docs/architecture.md has it, for a pod without owners.
const REQUESTS: [(&str, &str, usize); 4] = [
    ("POST", "tokenreviews", 2),
    ("GET", "pods", 1),
    ("POST", "delegationtokens", 1),
    ("PATCH", "delegationtokens", 1),
];
/// Connections of the controller to the API server: 32 for questions and 32 for the ledger at most, a few for what it
/// has open anyway, and as many again and more, because its client opens one when another is about to become free.
/// Without a bound there are about as many as there are pods.
const MOST_CONNECTIONS: usize = 200;

/// Requests that the API server has had from anybody, by verb and resource. Streams, which last, are left out.
pub(super) struct Requests(BTreeMap<(String, String), usize>);

impl Requests {
    /// Until now.
    pub(super) async fn so_far(client: &Client) -> Result<Self> {
        let metrics = client.request_text(http::Request::get("/metrics").body(Vec::new())?).await?;
        let mut found = BTreeMap::new();
        for line in metrics.lines() {
            let Some((labels, count)) =
                line.strip_prefix("apiserver_request_total{").and_then(|line| line.rsplit_once("} "))
            else {
                continue;
            };
            let label = |name: &str| {
                let value = labels.split(',').find_map(|label| label.strip_prefix(name)?.strip_prefix("=\""));
                value.unwrap_or_default().trim_end_matches('"').to_owned()
            };
            let verb = label("verb");
            if !["WATCH", "CONNECT"].contains(&verb.as_str()) {
                // It may stand there as 1.5e+06.
                let count: f64 = count.parse()?;
                *found.entry((verb, label("resource"))).or_default() +=
                    format!("{count:.0}").parse::<usize>()?;
            }
        }
        Ok(Self(found))
    }

    /// Since `before` there was what so many calls cost by which so many pods got their tokens, and little else.
    pub(super) fn cost(&self, before: &Self, pods: usize, calls: usize) -> Result<()> {
        let since = |key: &(String, String)| {
            self.0.get(key).copied().unwrap_or_default() - before.0.get(key).copied().unwrap_or_default()
        };
        let all: BTreeMap<_, _> =
            self.0.keys().map(|key| (key.clone(), since(key))).filter(|(_, count)| *count > 0).collect();
        say(format_args!("burst: at the API server {all:?}"));
        let mut each = 0;
        for (verb, resource, share) in REQUESTS {
            let count = since(&(verb.to_owned(), resource.to_owned()));
            // Others read pods too, and write none of the rest.
            let others = if resource == "pods" { pods / 2 } else { 0 };
            ensure!(
                count >= share * pods && count <= share * calls + others,
                "{count} times {verb} {resource} for {calls} calls"
            );
            each += share;
        }
        let total: usize = all.values().sum();
        // What goes on anyway is less than one more request for each pod would be.
        ensure!(total < each * calls + pods, "{total} requests for {calls} calls: {all:?}");
        Ok(())
    }
}

/// The controller has few connections open to the API server. One that is not needed any more stays open for a while, so
/// these are those that it needed at once.
pub(super) fn few_connections(what: &str) -> Result<()> {
    let folder = PathBuf::from(format!("/proc/{}", Part::Controller.pid()?));
    let mut own = BTreeSet::new();
    for entry in fs::read_dir(folder.join("fd"))? {
        // It may be closed meanwhile.
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        let target = target.to_string_lossy();
        own.extend(target.strip_prefix("socket:[").map(|inode| inode.trim_end_matches(']').to_owned()));
    }
    let table = fs::read_to_string(folder.join("net/tcp"))?;
    // Number, local address, remote address, state, queues, timer, retransmissions, user, time-out, inode.
    let is_one = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, _, remote, state, _, _, _, _, _, inode, ..] = words.as_slice() else { return false };
        remote.ends_with(":01BB") && *state == "01" && own.contains(*inode)
    };
    let open = table.lines().filter(is_one).count();
    say(format_args!("burst: {open} connections to the API server {what}"));
    ensure!(open > 0 && open <= MOST_CONNECTIONS, "{open} connections to the API server {what}");
    Ok(())
}
