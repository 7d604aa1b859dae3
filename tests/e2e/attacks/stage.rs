//! Where attacks are made: users without special rights, the token service at their hands, and the NameNode's audit
//! log, which says whether anybody got anything.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    host::KUBELET,
    namenode::TokenAction,
    pod::Running,
    token_service::{Caller, TokenService, reason, volume},
    users::{Bound, Users, service_account_token},
};
use kube::Client;
use proto::{
    POD_AUDIENCE,
    token::v1::{IssueRequest, IssueResponse, Volume},
};
use tonic::Status;

use crate::tally::Tally;

/// Name of the volume in the pods of [`bed::pod::Draft`].
pub(crate) const VOLUME: &str = "hadoop-token";
/// The service account of pods that name none.
pub(crate) const DEFAULT: &str = "default";

/// A test's attackers and witnesses.
pub(crate) struct Stage<'bed> {
    pub(crate) users: Users,
    pub(crate) service: TokenService,
    tally: Tally<'bed>,
}

impl<'bed> Stage<'bed> {
    pub(crate) async fn set(bed: &'bed Bed) -> Result<Self> {
        Ok(Self {
            users: Users::of(bed.kubernetes()).await?,
            service: TokenService::of(bed)?,
            tally: Tally::begin(bed.main()).await?,
        })
    }

    /// How many tokens have been issued, to anybody, since the stage was set.
    pub(crate) fn issued(&self) -> Result<usize> {
        Ok(self.tally.events(TokenAction::Issued)?.len())
    }

    /// All tokens that were issued are cancelled.
    pub(crate) async fn ends(&self) -> Result<()> {
        self.tally.ends().await
    }
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
    pub(crate) async fn of(client: &Client, namespace: &str, pod: &Running) -> Result<Self> {
        let uid = pod.uid().await?;
        let bound = Bound::Pod { name: pod.name(), uid: &uid };
        let jwt = service_account_token(client, namespace, DEFAULT, POD_AUDIENCE, bound).await?;
        Ok(Self { namespace: namespace.to_owned(), name: pod.name().to_owned(), uid, jwt })
    }

    /// Its token volume.
    pub(crate) fn volume(&self) -> Volume {
        volume(&self.namespace, &self.name, &self.uid, VOLUME)
    }

    pub(crate) fn issue(&self) -> IssueRequest {
        IssueRequest { volume: Some(self.volume()), pod_token: self.jwt.clone(), ..IssueRequest::default() }
    }
}

/// The token of the node plugin on the bed's own node, taken from its file there.
pub(crate) async fn stolen_driver_token(bed: &Bed) -> Result<String> {
    let uid = bed.product().await?.driver().await?.uid().await?;
    let file = Path::new(KUBELET).join(format!("pods/{uid}/volumes/kubernetes.io~projected/identity/token"));
    let token = std::fs::read_to_string(&file);
    Ok(token.with_context(|| format!("failed to read {}", file.display()))?.trim().to_owned())
}

/// Calls, and is refused for one of `reasons`.
pub(crate) async fn refused(
    caller: &Caller,
    request: IssueRequest,
    what: &str,
    reasons: &[&str],
) -> Result<Status> {
    let answer: Result<IssueResponse, Status> =
        caller.clone().issue(request).await.map(tonic::Response::into_inner);
    let status = answer.err().with_context(|| format!("{what}: got a token"))?;
    let found = reason(&status).with_context(|| what.to_owned())?;
    ensure!(reasons.contains(&found.as_str()), "{what}: {found}, not one of {reasons:?}: {status}");
    Ok(status)
}
