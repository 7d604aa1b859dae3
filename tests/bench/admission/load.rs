//! A steady load: reviews are sent when they are due, whatever became of those before, and each one's time counts from
//! when it was due.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use kube::Client;
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::{
    sync::mpsc::{UnboundedSender, unbounded_channel},
    task::JoinSet,
};

use super::{
    resident,
    reviews::{Class, Reviews},
};

/// Reviews a second.
const RATE: u32 = 500;
const LENGTH: Duration = Duration::from_secs(30);
/// Before what counts, at the same rate.
const WARM_UP: Duration = Duration::from_secs(5);
/// Linux's unit of processor time, as programs are told of it.
const TICK: Duration = Duration::from_millis(10);
/// Between looks at memory, in reviews.
const LOOKS: usize = 100;

/// What a run has measured.
pub(super) struct Figures {
    times: Vec<(Class, f64)>,
    /// Processor time of the webhook for each review.
    pub(super) cpu_ms: f64,
    /// The most memory that was seen.
    pub(super) rss_mib: f64,
}

impl Figures {
    /// Milliseconds within which so many of a hundred of that class were answered.
    pub(super) fn quantile(&self, class: Class, of_hundred: usize) -> f64 {
        let times: Vec<f64> =
            self.times.iter().filter(|(of, _)| *of == class).map(|(_, time)| *time).collect();
        quantile(&times, of_hundred)
    }
}

/// The smallest value that is not below so many of a hundred.
pub(super) fn quantile(values: &[f64], of_hundred: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * of_hundred).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// A review that has to be sent.
struct Due {
    number: usize,
    at: Instant,
}

/// Has the webhook `pid` asked at [`RATE`]. Every review must be answered, and let the pod pass with a patch.
pub(super) async fn run(client: &Client, pid: Pid, reviews: &Reviews) -> Result<Figures> {
    ask(client, pid, reviews, WARM_UP).await?;
    let before = processor(pid)?;
    let (times, rss_mib) = ask(client, pid, reviews, LENGTH).await?;
    let cpu_ms = (processor(pid)? - before).as_secs_f64() * 1e3 / times.len() as f64;
    Ok(Figures { times, cpu_ms, rss_mib })
}

async fn ask(
    client: &Client,
    pid: Pid,
    reviews: &Reviews,
    length: Duration,
) -> Result<(Vec<(Class, f64)>, f64)> {
    let (sender, mut due) = unbounded_channel();
    // Tokio's timers are a millisecond coarse, which is more than a review takes.
    let clock = tokio::task::spawn_blocking(move || tick(&sender, length));
    let mut asked = JoinSet::new();
    let mut most = 0.0_f64;
    while let Some(Due { number, at }) = due.recv().await {
        let (class, body) = reviews.get(number).context("no review")?;
        asked.spawn(answered(client.clone(), class, body, at));
        if number % LOOKS == 0 {
            most = most.max(resident(pid)?);
        }
    }
    clock.await?;
    let mut times = Vec::new();
    while let Some(answer) = asked.join_next().await {
        times.push(answer??);
    }
    Ok((times, most.max(resident(pid)?)))
}

/// Says when reviews are due.
#[expect(clippy::disallowed_methods, reason = "this thread runs no executor")]
fn tick(sender: &UnboundedSender<Due>, length: Duration) {
    let (begin, pause) = (Instant::now(), Duration::from_secs(1) / RATE);
    let mut at = begin;
    for number in 0_usize.. {
        if at - begin >= length {
            break;
        }
        thread::sleep(at.saturating_duration_since(Instant::now()));
        if sender.send(Due { number, at }).is_err() {
            break; // nobody wants to know any more
        }
        at += pause;
    }
}

async fn answered(client: Client, class: Class, body: Vec<u8>, due: Instant) -> Result<(Class, f64)> {
    #[derive(Deserialize)]
    struct Review {
        response: Response,
    }
    #[derive(Deserialize)]
    struct Response {
        allowed: bool,
        #[serde(default)]
        patch: String,
    }
    let request = http::Request::post("/mutate").header(http::header::CONTENT_TYPE, "application/json");
    let text = client.request_text(request.body(body)?).await?;
    let time = due.elapsed().as_secs_f64() * 1e3;
    let review: Review = serde_json::from_str(&text)?;
    ensure!(review.response.allowed && !review.response.patch.is_empty(), "answered {text}");
    Ok((class, time))
}

/// Processor time that a process has used.
fn processor(pid: Pid) -> Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in brackets may hold anything; after it, user and system time are the twelfth and the thirteenth.
    let (_, rest) = text.rsplit_once(')').context("no process")?;
    let ticks: Vec<u64> =
        rest.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(TICK * u32::try_from(ticks.iter().sum::<u64>())?)
}
