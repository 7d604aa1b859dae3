//! A controller in memory, with the Hadoop behind it: issues tokens, remembers what became of them, tells addresses, and
//! answers as a test wants it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};

use proto::{
    VolumeId,
    token::v1::{
        AddressVerification, CheckRequest, CheckResponse, IssueRequest, IssueResponse, IssuedToken, Kept,
        NotRenewed, ObservedAddresses, PodAddresses, ReleaseRequest, ReleaseResponse, RenewRequest,
        RenewResponse, RenewalOutcome, Renewed, Revoke, Rotate, Token, WatchEvent, WatchRequest,
        check_response::Outcome, renewal_outcome, token_service_server::TokenService,
        token_service_server::TokenServiceServer, watch_event::Event,
    },
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::DuplexStream,
    sync::{Semaphore, mpsc},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Server},
};

use super::{DAY, PASSWORD};
use crate::{clock::Clock, controller_client::endpoint};

/// The controller, and the Hadoop behind it.
pub(crate) struct Controller {
    state: Mutex<State>,
    clock: Clock,
    /// Where it notes tokens: another life of the bed finds them there.
    journal: PathBuf,
    /// Issue waits for a permit.
    pub(crate) gate: Semaphore,
}

#[derive(Default)]
pub(crate) struct State {
    connections: Option<mpsc::Sender<io::Result<DuplexStream>>>,
    /// Breaks every connection.
    broken: CancellationToken,
    /// By their number, which is also their identifier.
    pub(crate) tokens: BTreeMap<u8, Fate>,
    /// What Issue, Renew and Release answer instead of doing what they should.
    pub(crate) refuse: Option<Status>,
    /// What Renew alone answers instead.
    pub(crate) refuse_renewal: Option<Status>,
    /// What Renew answers about the volumes of these pods, by their UIDs.
    pub(crate) not_renewed: BTreeMap<String, NotRenewed>,
    /// How many volumes each Renew was about.
    pub(crate) batches: Vec<usize>,
    /// Streams of events were opened by a node that held these tokens: their numbers.
    pub(crate) held_by_node: Vec<Vec<u8>>,
    /// What Issue was told that the volume holds, whenever it was asked for tokens: numbers of tokens.
    pub(crate) held: Vec<Vec<u8>>,
    /// What Issue alone answers to a volume that holds tokens.
    pub(crate) refuse_rotation: Option<Status>,
    /// By how many milliseconds Hadoop's clock is ahead.
    pub(crate) clock_lead: i64,
    /// Changes what Issue answers.
    pub(crate) mangle: Option<fn(&mut IssueResponse)>,
    /// What Check answers: by default that all is well.
    pub(crate) outcome: Option<Outcome>,
    /// Check cancels nothing, as when it cannot tie tokens to the pod.
    pub(crate) ties_nothing: bool,
    /// What Check and Issue were shown of pods' addresses, and that Check was called without.
    pub(crate) shown_addresses: Vec<Option<ObservedAddresses>>,
    /// What Issue answers besides tokens.
    pub(crate) verification: AddressVerification,
    pub(crate) check_after_seconds: u32,
    pub(crate) unsealed: bool,
    /// Where Watch tells what happens, and what it tells first.
    pub(crate) opened_streams: usize,
    watchers: Vec<mpsc::Sender<Result<WatchEvent, Status>>>,
    addresses: BTreeMap<String, Vec<String>>,
    /// How long a token lives without being renewed.
    pub(crate) interval: u64,
    pub(crate) max_life: u64,
    /// Service-account tokens that were shown, the driver's and the pod's.
    pub(crate) shown: Vec<(String, String)>,
}

/// What became of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fate {
    pub(crate) volume: String,
    pub(crate) renewals: usize,
    pub(crate) max_date: u64,
    pub(crate) cancelled: bool,
}

impl Controller {
    pub(super) fn new(clock: Clock, journal: PathBuf) -> Self {
        let noted = fs::read(&journal).unwrap_or_else(|_| b"{}".to_vec()); // the first life
        let tokens = serde_json::from_slice(&noted).unwrap();
        let state = State { interval: DAY, max_life: 7 * DAY, tokens, ..State::default() };
        Self { state: Mutex::new(state), clock, journal, gate: Semaphore::new(Semaphore::MAX_PERMITS) }
    }

    fn note(&self, state: &State) {
        fs::write(&self.journal, serde_json::to_vec(&state.tokens).unwrap()).unwrap();
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn start(self: &Arc<Self>) {
        let (connections, incoming) = mpsc::channel(1);
        let server = Server::builder()
            .add_service(TokenServiceServer::from_arc(self.clone()))
            .serve_with_incoming(ReceiverStream::new(incoming));
        tokio::spawn(async { server.await.unwrap() });
        let mut state = self.lock();
        (state.connections, state.broken) = (Some(connections), CancellationToken::new());
    }

    /// Goes down, and breaks its connections.
    pub(crate) fn stop(&self) {
        let mut state = self.lock();
        state.connections = None;
        state.broken.cancel();
    }

    pub(super) fn channel(self: Arc<Self>) -> Channel {
        let connector = tower::service_fn(move |_| {
            let state = self.lock();
            let (connections, broken) = (state.connections.clone(), state.broken.clone());
            async move {
                let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
                let (ours, mut near) = tokio::io::duplex(65_536);
                let (mut far, theirs) = tokio::io::duplex(65_536);
                connections.ok_or_else(refused)?.send(Ok(theirs)).await.map_err(|_| refused())?;
                tokio::spawn(broken.run_until_cancelled_owned(async move {
                    tokio::io::copy_bidirectional(&mut near, &mut far).await
                }));
                Ok::<_, io::Error>(hyper_util::rt::TokioIo::new(ours))
            }
        });
        endpoint(&"controller.example:9443".parse().unwrap()).connect_with_connector_lazy(connector)
    }

    /// Numbers of the tokens that are not cancelled.
    pub(crate) fn live(&self) -> Vec<u8> {
        self.lock().tokens.iter().filter(|(_, fate)| !fate.cancelled).map(|(number, _)| *number).collect()
    }

    pub(crate) fn renewals(&self, number: u8) -> usize {
        self.lock().tokens[&number].renewals
    }

    /// The API server has these addresses of a pod from now on.
    pub(crate) fn tell(&self, uid: &str, addresses: &[&str]) {
        let addresses: Vec<String> = addresses.iter().map(|address| (*address).to_owned()).collect();
        let mut state = self.lock();
        state.addresses.insert(uid.to_owned(), addresses.clone());
        state.watchers.retain(|watcher| watcher.try_send(Ok(event(uid, &addresses))).is_ok());
    }

    /// Tells whoever listens now that a token is taken away.
    pub(crate) fn revoke(&self, uid: &str, number: u8) {
        self.say(Event::Revoke(Revoke {
            volume_id: VolumeId::of(uid, "hadoop").to_string(),
            identifiers: vec![identifier(number)],
            reason: "TOKEN_REVOKED".to_owned(),
            message: "an operator took it away".to_owned(),
        }));
    }

    /// Tells whoever listens now to have the tokens of a pod's volume replaced.
    pub(crate) fn rotate(&self, uid: &str) {
        self.say(Event::Rotate(Rotate { volume_id: VolumeId::of(uid, "hadoop").to_string() }));
    }

    pub(crate) fn say(&self, event: Event) {
        let event = WatchEvent { event: Some(event) };
        self.lock().watchers.retain(|watcher| watcher.try_send(Ok(event.clone())).is_ok());
    }

    /// Streams that are open.
    pub(crate) fn watchers(&self) -> usize {
        let mut state = self.lock();
        state.watchers.retain(|watcher| !watcher.is_closed());
        state.watchers.len()
    }

    /// Ends all streams, as the controller does now and then.
    pub(crate) fn end_streams(&self) {
        self.lock().watchers.clear();
    }

    /// What Hadoop's clock shows.
    fn now(&self) -> u64 {
        let lead = self.lock().clock_lead;
        u64::try_from(self.clock.now().as_millisecond() + lead).unwrap()
    }

    /// Remembers who called, and refuses if that is to be.
    fn enter<T>(&self, request: &Request<T>, pod_token: &str) -> Result<(), Status> {
        let mut state = self.lock();
        let driver = request.metadata().get("authorization").unwrap().to_str().unwrap().to_owned();
        state.shown.push((driver, pod_token.to_owned()));
        state.refuse.clone().map_or(Ok(()), Err)
    }
}

fn event(uid: &str, addresses: &[String]) -> WatchEvent {
    let addresses = PodAddresses { pod_uid: uid.to_owned(), addresses: addresses.to_vec() };
    WatchEvent { event: Some(Event::PodAddresses(addresses)) }
}

fn identifier(number: u8) -> Vec<u8> {
    vec![0, 200, number]
}

#[tonic::async_trait]
impl TokenService for Controller {
    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<IssueResponse>, Status> {
        self.enter(&request, &request.get_ref().pod_token)?;
        self.gate.acquire().await.unwrap().forget();
        let (now, mut state) = (self.now(), self.lock());
        let IssueRequest { volume, addresses, held, .. } = request.into_inner();
        let volume = volume.unwrap().id;
        let held: Vec<u8> = held.iter().map(|token| *token.identifier.last().unwrap()).collect();
        if let (Some(refusal), false) = (state.refuse_rotation.clone(), held.is_empty()) {
            return Err(refusal);
        }
        let mut answer = IssueResponse {
            user: "etl".to_owned(),
            cluster: "main".to_owned(),
            address_verification: state.verification.into(),
            unsealed: state.unsealed,
            ..IssueResponse::default()
        };
        if state.verification == AddressVerification::Strict && addresses.is_none() {
            return Ok(Response::new(answer));
        }
        state.shown_addresses.extend(addresses.map(Some));
        // What the volume has besides was lost on the way, unless it is older than what it holds.
        let newest = held.iter().max().copied().unwrap_or_default();
        let lost =
            state.tokens.iter_mut().filter(|(number, fate)| fate.volume == volume && **number > newest);
        lost.for_each(|(_, fate)| fate.cancelled = true);
        state.held.push(held);
        let number = u8::try_from(state.tokens.len() + 1).unwrap();
        let max_date = now + state.max_life;
        state.tokens.insert(number, Fate { volume, renewals: 0, max_date, cancelled: false });
        self.note(&state);
        answer.check_after_seconds = state.check_after_seconds;
        answer.tokens = vec![IssuedToken {
            token: Some(Token {
                identifier: identifier(number),
                password: format!("{PASSWORD}-{number}").into(),
                kind: "HDFS_DELEGATION_TOKEN".to_owned(),
                services: vec!["10.0.0.1:8020".to_owned(), "nn1.example:8020".to_owned()],
            }),
            issue_date: now,
            renew_date: (now + state.interval).min(max_date),
            max_date,
            sequence_number: number.into(),
            server_date: now,
        }];
        if let Some(mangle) = state.mangle {
            mangle(&mut answer);
        }
        Ok(Response::new(answer))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        let pod_token = request.get_ref().renewals[0].pod_token.clone();
        self.enter(&request, &pod_token)?;
        let (now, mut state) = (self.now(), self.lock());
        if let Some(refusal) = state.refuse_renewal.clone() {
            return Err(refusal);
        }
        let interval = state.interval;
        let renewals = request.into_inner().renewals;
        state.batches.push(renewals.len());
        let outcomes = renewals.into_iter().map(|renewal| {
            let uid = renewal.volume.unwrap().pod.unwrap().uid;
            if let Some(not) = state.not_renewed.get(&uid) {
                return RenewalOutcome { outcome: Some(renewal_outcome::Outcome::NotRenewed(not.clone())) };
            }
            let renew_dates = renewal.tokens.into_iter().map(|token| {
                let number = *token.identifier.last().unwrap();
                assert_eq!(token.password, format!("{PASSWORD}-{number}").as_bytes());
                let fate = state.tokens.get_mut(&number).unwrap();
                assert!(!fate.cancelled, "a cancelled token is renewed");
                fate.renewals += 1;
                (now + interval).min(fate.max_date)
            });
            let renewed = Renewed { renew_dates: renew_dates.collect(), server_date: now };
            RenewalOutcome { outcome: Some(renewal_outcome::Outcome::Renewed(renewed)) }
        });
        Ok(Response::new(RenewResponse { outcomes: outcomes.collect() }))
    }

    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        self.enter(&request, &request.get_ref().pod_token)?;
        let mut state = self.lock();
        let CheckRequest { addresses, tokens, .. } = request.into_inner();
        let addresses_verified = addresses.is_some();
        state.shown_addresses.push(addresses);
        let kept = Kept { check_after_seconds: state.check_after_seconds, addresses_verified };
        let outcome = state.outcome.clone().unwrap_or(Outcome::Kept(kept));
        if let (Outcome::Revoked(_), false) = (&outcome, state.ties_nothing) {
            for token in tokens {
                state.tokens.get_mut(token.identifier.last().unwrap()).unwrap().cancelled = true;
            }
        }
        Ok(Response::new(CheckResponse { outcome: Some(outcome) }))
    }

    type WatchStream = ReceiverStream<Result<WatchEvent, Status>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        assert!(request.metadata().get("grpc-timeout").is_none(), "a stream has no end of its own");
        let (events, stream) = mpsc::channel(100);
        let mut state = self.lock();
        state.opened_streams += 1;
        let held = request.get_ref().held.iter().flat_map(|held| &held.tokens);
        let held = held.map(|token| *token.identifier.last().unwrap()).collect();
        state.held_by_node.push(held);
        if let Some(refusal) = state.refuse.clone() {
            return Err(refusal);
        }
        for (uid, addresses) in &state.addresses {
            events.try_send(Ok(event(uid, addresses))).unwrap();
        }
        state.watchers.push(events);
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        self.enter(&request, "")?;
        let mut state = self.lock();
        let ReleaseRequest { volume, tokens, .. } = request.into_inner();
        for token in tokens {
            state.tokens.get_mut(token.identifier.last().unwrap()).unwrap().cancelled = true;
        }
        // The ledger has what the volume does not know of.
        let volume = volume.unwrap().id;
        state.tokens.values_mut().filter(|fate| fate.volume == volume).for_each(|fate| fate.cancelled = true);
        self.note(&state);
        Ok(Response::new(ReleaseResponse {}))
    }
}
