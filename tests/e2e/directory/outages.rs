//! The directory stopped, frozen and restarted while pods are created: nothing wrong is granted, nothing right is
//! refused for good.

use std::time::Duration;

use anyhow::{Result, ensure};
use bed::{
    Bed,
    harness::Test,
    ldap::Ldap,
    pod::{Draft, Running},
};

use super::{EVENT_LIMIT, issued};
use crate::GONE_LIMIT;

/// From the end of the outage to a running pod: kubelet's wait may have grown to half a minute.
const RECOVERY_LIMIT: Duration = Duration::from_secs(120);

/// What the events of waiting pods say of a directory that is stopped, and of one that is frozen.
const UNREACHABLE: &str = "the directory ldaps://ldap.bed.test cannot be reached";
const LATE: &str = "the directory ldaps://ldap.bed.test is too late";

pub(super) fn tests() -> Vec<Test> {
    bed::tests![
        nothing_wrong_is_granted_while_the_directory_is_away_and_everything_right_afterwards,
        a_burst_gets_what_it_may_while_the_directory_restarts,
    ]
}

/// Pods that may have a token, with its owner, and pods that may not, with the reason.
struct Burst {
    right: Vec<(Running, &'static str)>,
    wrong: Vec<(Running, &'static str)>,
}

impl Burst {
    /// Creates them all, without waiting for any.
    async fn create(bed: &Bed, name: &str, many: usize) -> Result<Self> {
        let create = async |draft: Draft| bed.kubernetes().create(&draft).await;
        let mut burst = Self { right: Vec::new(), wrong: Vec::new() };
        for number in 0..many {
            let draft = |what: &str| Draft::new(&format!("{name}-{what}-{number}"));
            burst.right.push((create(draft("own").token_of("etl")).await?, "etl"));
            burst.right.push((create(draft("member").token_of("etl").do_as("batch")).await?, "batch"));
            burst.right.push((create(draft("nested").token_of("ads").do_as("reports")).await?, "reports"));
            let stranger = draft("stranger").token_of("ads").do_as("batch");
            burst.wrong.push((create(stranger).await?, "DO_AS_NOT_MEMBER"));
            burst.wrong.push((create(draft("unknown").token_of("nobody-knows")).await?, "USER_UNKNOWN"));
        }
        Ok(burst)
    }

    fn all(&self) -> impl Iterator<Item = &Running> {
        self.right.iter().chain(&self.wrong).map(|(pod, _)| pod)
    }

    /// Those that may have a token get it, and it is the right one; the others do not, and are told why.
    async fn ends_well(&self, bed: &Bed) -> Result<()> {
        for (pod, owner) in &self.right {
            pod.until("running", RECOVERY_LIMIT, |pod| {
                pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
            })
            .await?;
            let issued = issued(bed, pod)?;
            ensure!(issued.iter().all(|event| event.owner.as_deref() == Some(*owner)), "{issued:?}");
            ensure!(!issued.is_empty(), "{} runs without a token", pod.name());
        }
        for (pod, reason) in &self.wrong {
            pod.until_event(reason, RECOVERY_LIMIT).await?;
            let issued = issued(bed, pod)?;
            ensure!(issued.is_empty(), "{reason}, but {issued:?}");
        }
        for pod in self.all() {
            pod.delete(GONE_LIMIT).await?;
        }
        Ok(())
    }
}

async fn nothing_wrong_is_granted_while_the_directory_is_away_and_everything_right_afterwards(
    bed: &Bed,
) -> Result<()> {
    let directory = bed.directory().await?;
    directory.stop().await?;
    let away = away(bed, directory).await;
    // Whatever happened, the next test finds it running.
    match &away {
        Ok(_) => directory.thaw().await?,
        Err(_) => directory.start().await.or(directory.thaw().await)?,
    }
    away?.ends_well(bed).await
}

/// Pods while the directory is stopped, and then frozen; it is left so.
async fn away(bed: &Bed, directory: &Ldap) -> Result<Burst> {
    let burst = Burst::create(bed, "away", 2).await?;
    for pod in burst.all() {
        pod.until_event(UNREACHABLE, EVENT_LIMIT).await?;
    }
    none_has_a_token(bed, &burst)?;
    directory.start().await?;
    directory.freeze().await?;
    let frozen = Burst::create(bed, "frozen", 1).await?;
    for pod in frozen.all() {
        pod.until_event(LATE, EVENT_LIMIT).await?;
    }
    none_has_a_token(bed, &frozen)?;
    let Burst { right, wrong } = frozen;
    Ok(Burst {
        right: burst.right.into_iter().chain(right).collect(),
        wrong: burst.wrong.into_iter().chain(wrong).collect(),
    })
}

fn none_has_a_token(bed: &Bed, burst: &Burst) -> Result<()> {
    for pod in burst.all() {
        let issued = issued(bed, pod)?;
        ensure!(issued.is_empty(), "{} got {issued:?} without the directory", pod.name());
    }
    Ok(())
}

async fn a_burst_gets_what_it_may_while_the_directory_restarts(bed: &Bed) -> Result<()> {
    let directory = bed.directory().await?;
    let restarts = async {
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            directory.stop().await?;
            directory.start().await?;
        }
        anyhow::Ok(())
    };
    let (burst, restarted) = tokio::join!(Burst::create(bed, "burst", 5), restarts);
    restarted?;
    burst?.ends_well(bed).await
}
