//! The controller, over TLS: issue, renew, check and release tokens, and hear of pods' addresses. Connects when it is called and again when the
//! connection broke; the certificate authorities and our own token are read from their files each time they are
//! needed, so that they may be replaced. Nothing that the controller answers is trusted to be well-formed.

mod refusal;
mod tls;

use std::{borrow::Cow, error::Error, fmt, path::PathBuf, time::Duration};

use hadoop::{Token, token_file::TokenFile};
use http::{Uri, uri::Authority};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use process::{fault::point, health::Check};
use proto::token::v1::{
    self as wire, CheckRequest, HeldTokens, IssueRequest, IssueResponse, NotRenewed, ObservedAddresses,
    ReleaseRequest, RenewRequest, Renewal, RenewalOutcome, TokenIdentifier, WatchEvent, WatchRequest,
    check_response::Outcome, renewal_outcome::Outcome as RenewalResult,
    token_service_client::TokenServiceClient,
};
use secrecy::ExposeSecret;
use tokio::time::{error::Elapsed, timeout};
use tonic::{
    Code, Request, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;
use zeroize::Zeroizing;

use self::{
    refusal::{Meaning, meaning},
    tls::UnusableFile,
};
use crate::{
    clock::Clock,
    config::ControllerConfig,
    publish_request::PodToken,
    volume::{AboutToken, AddressVerification, IssuedToken, Record, Stop, Volume, timestamp},
};

/// How long a call may take. Well below kubelet's two minutes, so that it hears what is wrong from us.
const ISSUE: Duration = Duration::from_secs(45);
const RENEW: Duration = Duration::from_secs(45);
const CHECK: Duration = Duration::from_secs(30);
const RELEASE: Duration = Duration::from_secs(30);

/// How long the stream of events may take to open. It then stays open.
const WATCH: Duration = Duration::from_secs(30);

/// How long TCP and TLS may take.
const CONNECT: Duration = Duration::from_secs(5);

/// A connection on which a call waits is probed so often, and given up when no answer comes for so long.
const PROBE: Duration = Duration::from_secs(10);
const PROBE_ANSWER: Duration = Duration::from_secs(5);

/// A client of the controller's token service. Clones share the connection.
#[derive(Clone, Debug)]
pub(crate) struct ControllerClient {
    service: TokenServiceClient<Channel>,
    address: String,
    token_file: PathBuf,
    clock: Clock,
    reachable: Check,
}

/// Tokens for a volume, new from the controller.
pub(crate) struct Issued {
    pub(crate) user: String,
    pub(crate) cluster: String,
    /// What is recorded of them.
    pub(crate) tokens: Vec<IssuedToken>,
    /// What the pod gets.
    pub(crate) file: TokenFile,
    pub(crate) verification: AddressVerification,
    /// When to check them next; nothing is never.
    pub(crate) check_after: Option<Duration>,
    /// The controller trusts annotations that nobody sealed.
    pub(crate) unsealed: bool,
}

/// More time for the tokens of a volume.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Renewed {
    /// The new renew dates, in the order of the tokens.
    pub(crate) dates: Vec<Timestamp>,
    /// By how many milliseconds the service's clock is ahead of ours, if that was said.
    pub(crate) clock_lead: Option<i64>,
}

/// What the controller says to a check.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Checked {
    Kept {
        check_after: Option<Duration>,
        /// The addresses that were shown are the pod's.
        addresses_verified: bool,
    },
    /// The tokens are cancelled.
    Revoked(Stop),
}

impl ControllerClient {
    /// A client of the configured controller, not connected yet. `reachable` shows how its last call went.
    ///
    /// # Errors
    /// When the file of certificate authorities, or the client certificate, cannot be used.
    pub(crate) fn new(
        config: &ControllerConfig,
        clock: Clock,
        reachable: Check,
    ) -> Result<Self, UnusableFile> {
        tls::client_config(config)?;
        let connector = tower::service_fn({
            let config = config.clone();
            move |_: Uri| {
                let config = config.clone();
                async move { tls::connect(config).await.map(TokioIo::new) }
            }
        });
        let channel = endpoint(&config.address).connect_with_connector_lazy(connector);
        Ok(Self::over(channel, config.address.to_string(), config.token_file.clone(), clock, reachable))
    }

    /// A client over a channel that tests may have made.
    pub(crate) fn over(
        channel: Channel,
        address: String,
        token_file: PathBuf,
        clock: Clock,
        reachable: Check,
    ) -> Self {
        Self { service: TokenServiceClient::new(channel), address, token_file, clock, reachable }
    }

    /// Gets new tokens for a volume, whose pod has these `addresses` if they are known, in place of those that it
    /// holds, if any.
    ///
    /// # Errors
    /// When the controller refuses, or cannot be asked.
    pub(crate) async fn issue(
        &self,
        volume: &Volume,
        pod_token: &PodToken,
        addresses: Option<ObservedAddresses>,
        held: &[IssuedToken],
    ) -> Result<Issued, CallError> {
        let request = IssueRequest {
            volume: Some(volume.into()),
            pod_token: pod_token.0.expose_secret().to_owned(),
            addresses,
            held: held.iter().map(identifier).collect(),
        };
        let request = self.request(request, ISSUE)?;
        point("rpc.issue:before");
        let mut service = self.service.clone();
        let answer = service.issue(request);
        let answer = self.answered(answer, ISSUE).await?;
        point("rpc.issue:after");
        Ok(Issued::parse(answer, self.clock.now()))
    }

    /// Renews tokens of some volumes. The answer has what became of each, in their order.
    ///
    /// # Errors
    /// When the controller refuses all of them, or cannot be asked.
    pub(crate) async fn renew(
        &self,
        renewals: Vec<Renewal>,
    ) -> Result<Vec<Result<Renewed, CallError>>, CallError> {
        let counts: Vec<_> = renewals.iter().map(|renewal| renewal.tokens.len()).collect();
        let request = self.request(RenewRequest { renewals }, RENEW)?;
        point("rpc.renew:before");
        let mut service = self.service.clone();
        let answer = service.renew(request);
        let outcomes = self.answered(answer, RENEW).await?.outcomes;
        point("rpc.renew:after");
        if outcomes.len() != counts.len() {
            return Err(self.malformed("as many outcomes as there are volumes"));
        }
        let now = self.clock.now();
        let outcome = |(outcome, count): (RenewalOutcome, usize)| match outcome.outcome {
            Some(RenewalResult::Renewed(renewed)) if renewed.renew_dates.len() == count => Ok(Renewed {
                dates: renewed.renew_dates.into_iter().map(timestamp).collect(),
                clock_lead: (renewed.server_date > 0).then(|| clock_lead(renewed.server_date, now)),
            }),
            Some(RenewalResult::Renewed(_)) => Err(self.malformed("as many renew dates as there are tokens")),
            Some(RenewalResult::NotRenewed(not)) => Err(CallError::NotRenewed(not)),
            None => Err(self.malformed("an outcome")),
        };
        Ok(outcomes.into_iter().zip(counts).map(outcome).collect())
    }

    /// Asks whether a volume may keep its tokens, and, if they are known, whether these are its pod's `addresses`.
    ///
    /// # Errors
    /// When nothing was decided: the tokens stay as they are.
    pub(crate) async fn check(
        &self,
        record: &Record,
        pod_token: &PodToken,
        addresses: Option<ObservedAddresses>,
    ) -> Result<Checked, CallError> {
        let request = CheckRequest {
            volume: Some((&record.volume).into()),
            pod_token: pod_token.0.expose_secret().to_owned(),
            cluster: record.cluster.clone(),
            tokens: record.tokens.iter().map(identifier).collect(),
            addresses,
        };
        let request = self.request(request, CHECK)?;
        let mut service = self.service.clone();
        let answer = service.check(request);
        match self.answered(answer, CHECK).await?.outcome {
            Some(Outcome::Kept(kept)) => Ok(Checked::Kept {
                check_after: after(kept.check_after_seconds),
                addresses_verified: kept.addresses_verified,
            }),
            Some(Outcome::Revoked(wire::Revoked { reason, message })) => {
                Ok(Checked::Revoked(Stop { reason, message }))
            }
            None => Err(self.malformed("an outcome")),
        }
    }

    /// Opens the stream of what the controller has to tell of this node's pods, which have the tokens of these records.
    ///
    /// # Errors
    /// When the controller refuses, or cannot be asked.
    pub(crate) async fn watch(&self, held: Vec<Record>) -> Result<Streaming<WatchEvent>, CallError> {
        let held = held.iter().map(|record| HeldTokens {
            volume: Some((&record.volume).into()),
            tokens: record.all_tokens().map(identifier).collect(),
        });
        let mut request = self.request(WatchRequest { held: held.collect() }, WATCH)?;
        request.metadata_mut().remove("grpc-timeout"); // it would end the stream, not its opening
        let mut service = self.service.clone();
        let answer = service.watch(request);
        self.answered(answer, WATCH).await
    }

    /// Why a stream that was open broke.
    pub(crate) fn broken(&self, status: Status) -> CallError {
        self.failure(status, WATCH)
    }

    /// Has the tokens of a released volume cancelled.
    ///
    /// # Errors
    /// When the controller refuses, or cannot be asked.
    pub(crate) async fn release(&self, record: &Record) -> Result<(), CallError> {
        let request = ReleaseRequest {
            volume: Some((&record.volume).into()),
            cluster: record.cluster.clone(),
            tokens: record.all_tokens().map(identifier).collect(),
        };
        let request = self.request(request, RELEASE)?;
        point("rpc.release:before");
        let mut service = self.service.clone();
        let answer = service.release(request);
        self.answered(answer, RELEASE).await?;
        point("rpc.release:after");
        Ok(())
    }

    /// The error of an answer that has not what it must have.
    pub(crate) fn malformed(&self, missing: &'static str) -> CallError {
        CallError::Malformed { address: self.address.clone(), missing }
    }

    /// A request that says who we are, and how long we wait.
    fn request<T>(&self, message: T, deadline: Duration) -> Result<Request<T>, CallError> {
        let unreadable = |why| CallError::OwnToken { path: self.token_file.clone(), why };
        let token = std::fs::read_to_string(&self.token_file);
        let token = Zeroizing::new(token.map_err(|error| unreadable(error.to_string()))?);
        let bearer = Zeroizing::new(format!("Bearer {}", token.trim()));
        let mut value: MetadataValue<Ascii> =
            bearer.parse().map_err(|_| unreadable("it is not a token".to_owned()))?;
        value.set_sensitive(true);
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", value);
        request.set_timeout(deadline);
        Ok(request)
    }

    async fn answered<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
        deadline: Duration,
    ) -> Result<T, CallError> {
        let answer = match timeout(deadline, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.failure(status, deadline)),
            Err(Elapsed { .. }) => Err(self.too_late(deadline)),
        };
        self.reachable.set(match &answer {
            Err(error @ (CallError::Unreachable { .. } | CallError::TooLate { .. })) => {
                Err(error.to_string())
            }
            _ => Ok(()),
        });
        answer
    }

    /// Tells what the controller said from what the way to it did.
    fn failure(&self, status: Status, deadline: Duration) -> CallError {
        match (status.source(), status.code()) {
            (Some(_), Code::Cancelled | Code::DeadlineExceeded) => self.too_late(deadline),
            (Some(source), _) => {
                CallError::Unreachable { address: self.address.clone(), why: innermost(source) }
            }
            (None, _) => CallError::Refused(status),
        }
    }

    fn too_late(&self, after: Duration) -> CallError {
        CallError::TooLate { address: self.address.clone(), after }
    }
}

fn identifier(token: &IssuedToken) -> TokenIdentifier {
    TokenIdentifier { identifier: token.identifier.clone(), kind: token.about.kind.clone() }
}

/// By how many milliseconds the service's clock is ahead of ours, which shows `now`. A controller that does not know
/// what the other shows says 0; then they are taken to agree.
fn clock_lead(server_date: u64, now: Timestamp) -> i64 {
    match server_date {
        0 => 0,
        known => timestamp(known).as_millisecond().saturating_sub(now.as_millisecond()),
    }
}

fn after(seconds: u32) -> Option<Duration> {
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}

/// How the controller is spoken to, once connected.
pub(crate) fn endpoint(address: &Authority) -> Endpoint {
    // With a connector of our own the scheme is only what the requests say.
    let uri = Uri::builder().scheme("https").authority(address.clone()).path_and_query("/").build();
    Endpoint::from(uri.unwrap_or_default())
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(PROBE)
        .keep_alive_timeout(PROBE_ANSWER)
        .keep_alive_while_idle(false)
}

/// What it was in the end: the outer errors only say that something failed.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

impl Issued {
    /// Parses an answer that came at `now`. Leniently, so that whatever was issued can at least be cancelled; see
    /// [`Issued::missing`].
    fn parse(answer: IssueResponse, now: Timestamp) -> Self {
        let verification = answer.address_verification().into();
        let (mut tokens, mut file) = (Vec::new(), TokenFile::default());
        for issued in answer.tokens {
            let Some(mut token) = issued.token else { continue };
            let password = Zeroizing::new(std::mem::take(&mut token.password));
            for service in &token.services {
                let entry = Token::new(
                    token.identifier.clone(),
                    password.as_slice(),
                    token.kind.clone(),
                    service.clone(),
                );
                file.tokens.push((service.clone(), entry));
            }
            tokens.push(IssuedToken {
                identifier: token.identifier,
                clock_lead: clock_lead(issued.server_date, now),
                about: AboutToken {
                    kind: token.kind,
                    services: token.services,
                    sequence_number: issued.sequence_number,
                    issue_date: timestamp(issued.issue_date),
                    renew_date: timestamp(issued.renew_date),
                    max_date: timestamp(issued.max_date),
                },
            });
        }
        Self {
            user: answer.user,
            cluster: answer.cluster,
            tokens,
            file,
            verification,
            check_after: after(answer.check_after_seconds),
            unsealed: answer.unsealed,
        }
    }

    /// Whether there will be tokens only when the pod's addresses are known.
    pub(crate) fn waits(&self) -> bool {
        self.tokens.is_empty() && self.verification == AddressVerification::Strict
    }

    /// What these tokens lack to be of use, if anything.
    pub(crate) fn missing(&self) -> Option<&'static str> {
        let empty = |token: &IssuedToken| token.identifier.is_empty() || token.about.kind.is_empty();
        if self.tokens.is_empty() {
            Some("a token")
        } else if self.tokens.iter().any(empty) {
            Some("an identifier and a kind in each token")
        } else if self.tokens.iter().any(|token| token.about.services.is_empty()) {
            Some("a service for each token")
        } else if self.file.tokens.iter().any(|(_, token)| token.password.expose().is_empty()) {
            Some("a password in each token")
        } else if self.user.is_empty() || self.cluster.is_empty() {
            Some("user and cluster")
        } else {
            None
        }
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("user", &self.user)
            .field("tokens", &self.tokens)
            .finish_non_exhaustive()
    }
}

/// Why a call to the controller has no result. Sentences are shown in the pod's events.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The controller's own words.
    #[error("{}", .0.message())]
    Refused(Status),
    /// The same of the tokens of one volume.
    #[error("{}", .0.message)]
    NotRenewed(NotRenewed),
    #[error("controller at {address} cannot be reached: {why}")]
    Unreachable { address: String, why: String },
    #[error("controller at {address} did not answer within {} s", after.as_secs())]
    TooLate { address: String, after: Duration },
    #[error("controller at {address} gave an answer without {missing}")]
    Malformed { address: String, missing: &'static str },
    #[error("the driver's own service-account token {path} cannot be read: {why}", path = path.display())]
    OwnToken { path: PathBuf, why: String },
}

impl CallError {
    /// Stable name of the failure: the controller's own, if it gave one.
    pub(crate) fn reason(&self) -> Cow<'static, str> {
        let reason = match self {
            Self::Refused(status) => match status.get_details_error_info() {
                Some(info) => return info.reason.into(),
                None => "REFUSED",
            },
            Self::NotRenewed(not) => return not.reason.clone().into(),
            Self::Unreachable { .. } => "CONTROLLER_UNREACHABLE",
            Self::TooLate { .. } => "CONTROLLER_TOO_LATE",
            Self::Malformed { .. } => "CONTROLLER_ANSWER_MALFORMED",
            Self::OwnToken { .. } => "OWN_TOKEN_UNREADABLE",
        };
        reason.into()
    }

    /// The refusal, if a volume that was to get its first token will get none.
    pub(crate) fn final_refusal(&self) -> Option<Stop> {
        match self {
            Self::Refused(status)
                if matches!(self.meaning(), Meaning::NotEntitled | Meaning::NeverIssued) =>
            {
                Some(Stop { reason: self.reason().into_owned(), message: status.message().to_owned() })
            }
            _ => None,
        }
    }

    /// Whether the pod is refused as one that is entitled to nothing, so that a check would take its tokens away.
    pub(crate) fn calls_for_a_check(&self) -> bool {
        self.meaning() == Meaning::NotEntitled
    }

    fn meaning(&self) -> Meaning {
        match self {
            Self::Refused(_) | Self::NotRenewed(_) => meaning(&self.reason()).unwrap_or(Meaning::MayPass),
            Self::Unreachable { .. }
            | Self::TooLate { .. }
            | Self::Malformed { .. }
            | Self::OwnToken { .. } => Meaning::MayPass,
        }
    }
}

#[cfg(test)]
mod tests;
