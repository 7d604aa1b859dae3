//! `hadoop-token-csi-driver wait`: what an init container runs where a pod has no token before its addresses are
//! verified. Waits for the token file and says why it waits. Needs no configuration and no right but to read the
//! volume, and writes nothing but its output.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use jiff::SignedDuration;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

/// How often the volume is looked at.
const PERIOD: Duration = Duration::from_millis(100);

/// Options of `wait`.
#[derive(Args, Debug, Clone)]
pub(crate) struct WaitArgs {
    /// Directory where the token volume is mounted.
    #[arg(long)]
    pub(crate) volume: PathBuf,
    /// How long to wait, such as 90s or 5m.
    #[arg(long, default_value = "5m", value_parser = duration)]
    pub(crate) timeout: Duration,
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed: Result<SignedDuration, _> = text.parse();
    let positive = parsed.ok().and_then(|duration| Duration::try_from(duration).ok());
    positive.ok_or_else(|| "not a duration such as 90s or 5m".to_owned())
}

/// How it stands with a volume.
#[derive(Debug, PartialEq, Eq)]
enum State {
    /// The token is there.
    There,
    /// Why it is not, so far.
    Waiting(String),
    /// Why it never will be.
    Never(String),
}

/// What is needed of `token.json`, of whatever version.
#[derive(Deserialize)]
struct Said {
    waiting: Option<String>,
    stopped: Option<Stopped>,
}

#[derive(Deserialize)]
struct Stopped {
    reason: String,
    message: String,
}

/// Waits until the token is there or never will be, or the time is over; writes to `output` what there is to say.
///
/// # Errors
/// When nothing can be written to `output`.
pub(crate) async fn run(args: &WaitArgs, output: &mut impl Write) -> io::Result<ExitCode> {
    let start = Instant::now();
    let mut last = String::new();
    loop {
        let elapsed = || start.elapsed().as_secs_f32();
        match look(&args.volume) {
            State::There => {
                writeln!(output, "The token is there, after {:.1} s", elapsed())?;
                return Ok(ExitCode::SUCCESS);
            }
            State::Never(why) => {
                writeln!(output, "There will be no token: {why}")?;
                return Ok(ExitCode::FAILURE);
            }
            State::Waiting(why) if start.elapsed() >= args.timeout => {
                writeln!(output, "Gave up after {:.0} s of waiting {why}", elapsed())?;
                return Ok(ExitCode::FAILURE);
            }
            State::Waiting(why) => {
                if why != last {
                    writeln!(output, "Waiting {why}")?;
                    last = why;
                }
            }
        }
        sleep(PERIOD.min(args.timeout)).await;
    }
}

fn look(volume: &Path) -> State {
    let token = match File::open(volume.join("token")) {
        Ok(_) => return State::There,
        Err(error) => error,
    };
    let said = fs::read(volume.join("token.json")).map_err(|error| error.to_string());
    let said = said.and_then(|json| {
        serde_json::from_slice::<Said>(&json).map_err(|error| format!("it is not what it should be: {error}"))
    });
    match said {
        Ok(Said { stopped: Some(Stopped { reason, message }), .. }) => {
            State::Never(format!("{message} [{reason}]"))
        }
        Ok(Said { waiting: Some(what), .. }) => State::Waiting(what),
        Ok(Said { waiting: None, stopped: None }) => {
            State::Waiting(format!("until {} can be read: {token}", volume.join("token").display()))
        }
        Err(error) => State::Waiting(format!(
            "for a token volume on {}: token.json cannot be read: {error}",
            volume.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(timeout: &str) -> Option<u64> {
        duration(timeout).ok().map(|duration| duration.as_secs())
    }

    #[test]
    fn a_timeout_is_written_as_people_do() {
        assert_eq!((check("90s"), check("5m"), check("1h30m")), (Some(90), Some(300), Some(5_400)));
        assert_eq!((check("-5m"), check("soon"), check("")), (None, None, None));
    }

    /// Runs `wait` on a directory where `change` is done after a second. Ended well, and what it said.
    async fn waited(json: Option<&str>, change: impl FnOnce(&Path)) -> (bool, String) {
        let dir = tempfile::tempdir().unwrap();
        if let Some(json) = json {
            fs::write(dir.path().join("token.json"), json).unwrap();
        }
        let args = WaitArgs { volume: dir.path().to_owned(), timeout: Duration::from_secs(60) };
        let mut output = Vec::new();
        let waiting = run(&args, &mut output);
        let changing = async {
            sleep(Duration::from_secs(1)).await;
            change(dir.path());
        };
        let (code, ()) = tokio::join!(waiting, changing);
        let output = String::from_utf8(output).unwrap().replace(&dir.path().display().to_string(), "DIR");
        (code.unwrap() == ExitCode::SUCCESS, output)
    }

    #[tokio::test(start_paused = true)]
    async fn ends_well_as_soon_as_the_token_is_there() {
        let (well, said) = waited(Some(r#"{"user": "etl", "waiting": "for rain"}"#), |dir| {
            fs::write(dir.join("token"), "").unwrap();
        })
        .await;
        assert!(well, "{said}");
        assert!(said.starts_with("Waiting for rain\nThe token is there, after 1."), "{said}");
    }

    #[tokio::test(start_paused = true)]
    async fn says_each_new_thing_it_waits_for_once() {
        let (well, said) = waited(Some(r#"{"waiting": "for rain"}"#), |dir| {
            fs::write(dir.join("token.json"), r#"{"waiting": "for sun"}"#).unwrap();
        })
        .await;
        assert!(!well);
        assert_eq!(said, "Waiting for rain\nWaiting for sun\nGave up after 60 s of waiting for sun\n");
    }

    #[tokio::test(start_paused = true)]
    async fn ends_at_once_when_there_will_be_no_token() {
        let (well, said) = waited(Some(r#"{"waiting": "for rain"}"#), |dir| {
            let stopped = r#"{"stopped": {"reason": "ADDRESS_MISMATCH", "message": "the pod is elsewhere"}}"#;
            fs::write(dir.join("token.json"), stopped).unwrap();
        })
        .await;
        assert!(!well);
        assert_eq!(
            said,
            "Waiting for rain\nThere will be no token: the pod is elsewhere [ADDRESS_MISMATCH]\n"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn says_so_when_there_is_no_volume() {
        let (well, said) = waited(None, |_| {}).await;
        assert!(!well);
        assert!(
            said.starts_with("Waiting for a token volume on DIR: token.json cannot be read: No such"),
            "{said}"
        );
    }
}
