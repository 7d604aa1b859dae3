//! Where attacks are made: users without special rights, the token service at their hands, the sealing key of those
//! who admit pods, and two witnesses: the NameNode's audit log says whether anybody got anything, the controller's says
//! why not.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    host::KUBELET,
    namenode::{TokenAction, TokenEvent},
    pod::{Draft, Running},
    process::until,
    second_node::SecondNode,
    token_service::{Caller, TokenService, reason, volume},
    users::{Bound, JOBS, TEAM, Users, service_account_token},
};
use identity::{
    DRIVER_NAME,
    seal::{Seal, SealingKey, Submission},
};
use jiff::Timestamp;
use kube::Client;
use proto::{
    POD_AUDIENCE,
    token::v1::{IssueRequest, IssueResponse, ReleaseRequest, TokenIdentifier, Volume},
};
use serde_json::{Value, json};
use tonic::Status;

use crate::tally::Tally;

/// Name of the volume in the pods of [`Draft`].
pub(crate) const VOLUME: &str = "hadoop-token";
const WITNESS_LIMIT: Duration = Duration::from_secs(30);

/// A test's attackers and witnesses.
pub(crate) struct Stage<'bed> {
    pub(crate) bed: &'bed Bed,
    pub(crate) users: Users,
    pub(crate) service: TokenService,
    tally: Tally<'bed>,
}

impl<'bed> Stage<'bed> {
    pub(crate) async fn set(bed: &'bed Bed) -> Result<Self> {
        Ok(Self {
            bed,
            users: Users::of(bed.kubernetes()).await?,
            service: TokenService::of(bed)?,
            tally: Tally::begin(bed.main()).await?,
        })
    }

    /// How many tokens have been issued, to anybody, since the stage was set.
    pub(crate) fn issued(&self) -> Result<usize> {
        Ok(self.tally.events(TokenAction::Issued)?.len())
    }

    /// Whose tokens have been issued since the stage was set, in order.
    pub(crate) fn owners(&self) -> Result<Vec<String>> {
        let issued = self.tally.events(TokenAction::Issued)?.into_iter();
        issued.map(|event| event.owner.context("a token without an owner")).collect()
    }

    /// The pod's events, kubelet's and the controller's, and the controller's audit log say `reason`, and `issued`
    /// tokens were issued in all. Gives kubelet's event.
    pub(crate) async fn pod_refused(&self, pod: &Running, reason: &str, issued: usize) -> Result<String> {
        pod.until_event(&format!("{reason}: "), WITNESS_LIMIT).await?;
        let event = pod.until_event(&format!("[{reason}]"), WITNESS_LIMIT).await?;
        ensure!(event.starts_with("FailedMount: ") && event.ends_with(&format!("[{reason}]")), "{event}");
        self.audited(&[(pod.uid().await?, reason.to_owned())]).await?;
        ensure!(self.issued()? == issued, "pod {} got a token", pod.name());
        Ok(event)
    }

    /// The controller's audit log has a refusal of each pod, by its UID, for its reason.
    pub(crate) async fn audited(&self, refusals: &[(String, String)]) -> Result<()> {
        let product = self.bed.product().await?;
        until("written: the audit records", WITNESS_LIMIT, async || {
            let records = product.audit().await?;
            for (uid, reason) in refusals {
                let of_pod =
                    records.iter().filter(|record| record.get("uid").is_some_and(|found| found == uid));
                let found: Vec<_> = of_pod
                    .map(|record| (record.get("decision"), record.get("reason").and_then(Value::as_str)))
                    .collect();
                let wanted = (Some(&json!("refused")), Some(reason.as_str()));
                ensure!(found.contains(&wanted), "pod {uid} was not refused for {reason}: {found:?}");
            }
            Ok(())
        })
        .await
    }

    /// The token of this number has been issued, and not been cancelled.
    pub(crate) fn still_live(&self, number: i32) -> Result<()> {
        let is_it = |event: &TokenEvent| event.sequence_number.map(i64::from) == Some(number.into());
        ensure!(self.tally.events(TokenAction::Issued)?.iter().any(is_it), "token {number} was never issued");
        ensure!(
            !self.tally.events(TokenAction::Cancelled)?.iter().any(is_it),
            "token {number} was cancelled"
        );
        Ok(())
    }

    /// All tokens that were issued are cancelled.
    pub(crate) async fn ends(&self) -> Result<()> {
        self.tally.ends().await
    }
}

/// A pod with a token volume in [`JOBS`], not sealed yet.
pub(crate) fn draft(name: &str) -> Draft {
    Draft::new(name).namespace(JOBS).token_volume(&json!({"driver": DRIVER_NAME, "readOnly": true}))
}

/// Asks for the headless account.
pub(crate) fn acting(draft: Draft, account: &str) -> Draft {
    draft.set("/spec/volumes/0/csi/volumeAttributes", json!({"doAs": account}))
}

/// The groups of everybody here.
pub(crate) fn groups() -> Vec<String> {
    [TEAM, "system:authenticated"].map(str::to_owned).to_vec()
}

/// What is sealed when `submitter` submits the pod.
pub(crate) fn seal_of(draft: &Draft, submitter: &str) -> Result<Seal> {
    let pod = draft.json();
    let namespace = pod.pointer("/metadata/namespace").and_then(Value::as_str);
    let submission = Submission {
        submitter: submitter.to_owned(),
        groups: groups(),
        root_owner: None,
        time: Timestamp::now().as_second(),
    };
    Ok(Seal::of_pod(&submission, namespace.context("a pod without a namespace")?, pod)?)
}

/// The pod with this seal on it.
pub(crate) fn carrying(key: &SealingKey, draft: Draft, seal: &Seal) -> Result<Draft> {
    let annotations = key.annotations(seal, &groups())?;
    Ok(annotations.into_iter().fold(draft, |draft, (name, value)| draft.annotation(name, &value)))
}

/// The pod, sealed as when `submitter` submits it.
pub(crate) fn sealed(key: &SealingKey, draft: Draft, submitter: &str) -> Result<Draft> {
    sealed_with(key, draft, submitter, |_| {})
}

/// The pod, with a seal that was changed before it was signed.
pub(crate) fn sealed_with(
    key: &SealingKey,
    draft: Draft,
    submitter: &str,
    change: impl FnOnce(&mut Seal),
) -> Result<Draft> {
    let mut seal = seal_of(&draft, submitter)?;
    change(&mut seal);
    carrying(key, draft, &seal)
}

/// A pod as whoever holds its token and its names can show it.
#[derive(Clone)]
pub(crate) struct Prey {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    /// Its service-account token, bound to it, as the node plugin gets it from kubelet.
    pub(crate) jwt: String,
}

impl Prey {
    /// A pod whose token is asked for with the rights of `client`.
    pub(crate) async fn of(client: &Client, pod: &Running) -> Result<Self> {
        let found = pod.get().await?;
        let account = found.spec.and_then(|spec| spec.service_account_name).context("no service account")?;
        let uid = found.metadata.uid.context("a pod without a UID")?;
        let namespace = found.metadata.namespace.context("a pod without a namespace")?;
        let bound = Bound::Pod { name: pod.name(), uid: &uid };
        let jwt = service_account_token(client, &namespace, &account, POD_AUDIENCE, bound).await?;
        Ok(Self { namespace, name: pod.name().to_owned(), uid, jwt })
    }

    /// Its token volume.
    pub(crate) fn volume(&self) -> Volume {
        volume(&self.namespace, &self.name, &self.uid, VOLUME)
    }

    pub(crate) fn issue(&self) -> IssueRequest {
        IssueRequest { volume: Some(self.volume()), pod_token: self.jwt.clone(), ..IssueRequest::default() }
    }

    /// Gives back what an answer brought.
    pub(crate) fn release(&self, answer: IssueResponse) -> ReleaseRequest {
        ReleaseRequest {
            volume: Some(self.volume()),
            cluster: answer.cluster,
            tokens: answer.tokens.into_iter().filter_map(|issued| issued.token).map(identifier).collect(),
        }
    }
}

/// What is needed to cancel a token.
pub(crate) fn identifier(token: proto::token::v1::Token) -> TokenIdentifier {
    TokenIdentifier { identifier: token.identifier, kind: token.kind }
}

/// The token of the node plugin on the bed's own node, taken from its file there.
pub(crate) async fn stolen_driver_token(bed: &Bed) -> Result<String> {
    let uid = bed.product().await?.driver().await?.uid().await?;
    let file = Path::new(KUBELET).join(format!("pods/{uid}/volumes/kubernetes.io~projected/identity/token"));
    let token = std::fs::read_to_string(&file);
    Ok(token.with_context(|| format!("failed to read {}", file.display()))?.trim().to_owned())
}

/// Calls, and is refused for the reason `expected`, see [`refusal`].
pub(crate) async fn refused(
    caller: &Caller,
    request: IssueRequest,
    what: &str,
    expected: &str,
) -> Result<Status> {
    let answer = caller.clone().issue(request).await.map(tonic::Response::into_inner);
    refusal(answer, what, expected)
}

/// A call was refused for one of the reasons in `expected`, which bars separate.
pub(crate) fn refusal<T>(answer: Result<T, Status>, what: &str, expected: &str) -> Result<Status> {
    let status = answer.err().with_context(|| format!("{what}: not refused"))?;
    let found = reason(&status).with_context(|| what.to_owned())?;
    ensure!(expected.split('|').any(|one| one == found), "{what:?}: {found} instead of {expected}: {status}");
    Ok(status)
}

/// The second node in the intruder's hands. Pods that are put there cost nothing, because nobody runs them; to the
/// token service they are like any others, and the node plugin's own token speaks for them.
pub(crate) struct Lair<'stage> {
    stage: &'stage Stage<'stage>,
    node: SecondNode,
    caller: Caller,
}

impl<'stage> Lair<'stage> {
    pub(crate) async fn of(stage: &'stage Stage<'stage>) -> Result<Self> {
        let node = SecondNode::join(stage.bed.kubernetes()).await?;
        let caller = stage.service.with(&node.driver_token)?;
        Ok(Self { stage, node, caller })
    }

    /// The pods, each created by the intruder, are refused for their reasons.
    pub(crate) async fn all_refused(&self, cases: Vec<(&str, Draft, &str)>) -> Result<()> {
        let before = self.stage.issued()?;
        let mut refusals = Vec::new();
        for (what, draft, expected) in cases {
            let prey = self.create(&draft).await.with_context(|| what.to_owned())?;
            let status = refused(&self.caller, prey.issue(), what, expected).await?;
            refusals.push((prey.uid.clone(), reason(&status)?));
            self.forget(&prey).await?;
        }
        self.stage.audited(&refusals).await?;
        ensure!(self.stage.issued()? == before, "a token was issued all the same");
        Ok(())
    }

    /// The pod gets a token of `user`, which it gives back, and ends. It shows that others were refused for nothing
    /// else.
    pub(crate) async fn granted(&self, what: &str, draft: &Draft, user: &str) -> Result<()> {
        let prey = self.create(draft).await?;
        let answer = self.caller.clone().issue(prey.issue()).await.with_context(|| what.to_owned())?;
        let answer = answer.into_inner();
        ensure!(answer.user == user, "{what}: a token of {}", answer.user);
        self.caller.clone().release(prey.release(answer)).await?;
        self.forget(&prey).await
    }

    /// The token service, shown the node plugin's token.
    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Removes a pod.
    pub(crate) async fn forget(&self, prey: &Prey) -> Result<()> {
        self.node.forget(&prey.namespace, &prey.name).await
    }

    /// Puts a pod on the node.
    pub(crate) async fn create(&self, draft: &Draft) -> Result<Prey> {
        let kubernetes = self.stage.bed.kubernetes();
        let pod = self.node.create_as(kubernetes, self.stage.users.intruder.clone(), draft).await?;
        Prey::of(&kubernetes.client(), &pod).await
    }

    /// Takes the node out of the cluster; all tokens that were issued are cancelled.
    pub(crate) async fn leave(self) -> Result<()> {
        self.node.leave().await?;
        self.stage.ends().await
    }
}
