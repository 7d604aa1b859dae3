//! The SASL handshake with Kerberos, as states that can only follow one another: bytes in, a step out, no I/O. A
//! ticket is asked for and sent only after the server's own name was checked; a server without authentication is
//! refused, and so is one that ends the handshake early.

use zeroize::Zeroizing;

use crate::error::Failure;
use crate::principal::{Principal, ServerIdentity};
use crate::rpc::frame::{Encode, frame};
use crate::rpc::message::{Outcome, PREAMBLE, RequestHeader, Response, SASL_CALL, Sasl, SaslAuth, SaslState};
use crate::rpc::security::{Mechanism, Protection, SecurityLayer};

/// Greatest token we say we accept. Hadoop says the same.
const OUR_MAX_TOKEN: u32 = 0x01_0000;

/// Room for the header, trailer and padding that protection adds to a message.
const TOKEN_OVERHEAD: usize = 256;

/// Most rounds of the mechanism. Kerberos needs one.
const MAX_ROUNDS: usize = 8;

/// What opens a connection: the preamble and the question how to authenticate.
pub(crate) fn opening() -> Vec<u8> {
    let negotiate = sasl_frame(&Sasl::new(SaslState::Negotiate, None));
    [&PREAMBLE[..], &negotiate].concat()
}

/// The server's Kerberos method, its name checked.
#[derive(Debug)]
pub(crate) struct Negotiated {
    /// Whom to get a ticket for.
    pub(crate) target: Principal,
    protocol: Option<String>,
    server_id: Option<String>,
}

impl Negotiated {
    /// Reads the answer to the opening.
    pub(crate) fn receive(frame: &[u8], expected: &ServerIdentity) -> Result<Self, Failure> {
        let sasl = sasl_of(frame)?;
        match sasl.state {
            SaslState::Negotiate => {}
            SaslState::Success => return Err(Failure::Insecure),
            other => return Err(unexpected(other, "the negotiation")),
        }
        let Some(auth) =
            sasl.auths.iter().find(|auth| auth.method == "KERBEROS" && auth.mechanism == "GSSAPI")
        else {
            if sasl.auths.iter().any(|auth| auth.method == "SIMPLE") {
                return Err(Failure::Insecure);
            }
            let offered: Vec<_> =
                sasl.auths.iter().map(|auth| format!("{}/{}", auth.method, auth.mechanism)).collect();
            let offered: String = offered.join(", ").chars().filter(|c| !c.is_control()).take(200).collect();
            return Err(Failure::KerberosNotOffered(if offered.is_empty() {
                "nothing".to_owned()
            } else {
                offered
            }));
        };
        let target =
            expected.verify(auth.protocol.unwrap_or_default(), auth.server_id.unwrap_or_default())?;
        Ok(Self {
            target,
            protocol: auth.protocol.map(str::to_owned),
            server_id: auth.server_id.map(str::to_owned),
        })
    }

    /// Starts the mechanism with its first token.
    pub(crate) fn initiate<M: Mechanism>(self, mechanism: M, token: &[u8]) -> (Exchange<M>, Vec<u8>) {
        // The server compares: its own entry, all fields, without the challenge.
        let auth = SaslAuth {
            method: "KERBEROS",
            mechanism: "GSSAPI",
            protocol: self.protocol.as_deref(),
            server_id: self.server_id.as_deref(),
        };
        let sasl = Sasl { state: SaslState::Initiate, token: Some(token), auths: vec![auth] };
        (Exchange { mechanism, state: State::Authenticating { rounds: 0 } }, sasl_frame(&sasl).to_vec())
    }
}

/// A handshake from our first token on.
pub(crate) struct Exchange<M> {
    mechanism: M,
    state: State,
}

enum State {
    /// Tokens go back and forth.
    Authenticating { rounds: usize },
    /// Authenticated; the server will say which protections it offers.
    AwaitingOffer,
    /// We chose; the server will agree.
    AwaitingSuccess { protection: Protection, max_chunk: usize },
}

/// What to do after a frame was received.
pub(crate) enum Step<M> {
    /// Send this, and receive the next.
    Send(Exchange<M>, Vec<u8>),
    /// The handshake is over.
    Done(SecurityLayer<M>),
}

impl<M: Mechanism> Exchange<M> {
    /// Takes the server's next frame. `required` is the weakest protection that will do.
    pub(crate) fn receive(mut self, frame: &[u8], required: Protection) -> Result<Step<M>, Failure> {
        let sasl = sasl_of(frame)?;
        match (self.state, sasl.state) {
            (State::Authenticating { rounds }, SaslState::Challenge) if rounds < MAX_ROUNDS => {
                let answer = self.mechanism.step(token_of(&sasl)?)?;
                self.state = if self.mechanism.is_complete()? {
                    State::AwaitingOffer
                } else {
                    State::Authenticating { rounds: rounds + 1 }
                };
                // The server insists on a token also when there is none: present, and empty.
                let token = answer.unwrap_or_default();
                Ok(self.respond(&token))
            }
            (State::AwaitingOffer, SaslState::Challenge) => {
                let offer = self.mechanism.unwrap(Protection::Integrity, token_of(&sasl)?)?;
                let [bits, a, b, c] = **offer else {
                    return Err(Failure::Protocol("its offer of protections is not four bytes".to_owned()));
                };
                let their_max = u32::from_be_bytes([0, a, b, c]) as usize;
                let protection = Protection::strongest(bits).ok_or_else(|| {
                    Failure::Protocol(format!("it offers no known protection (bits {bits:#04x})"))
                })?;
                if protection < required {
                    return Err(Failure::ProtectionTooWeak { offered: protection.to_string(), required });
                }
                let max_chunk = their_max.saturating_sub(TOKEN_OVERHEAD);
                if protection > Protection::Authentication && max_chunk == 0 {
                    return Err(Failure::Protocol(format!("it accepts tokens of {their_max} bytes only")));
                }
                let our_max = if protection == Protection::Authentication {
                    [0; 4]
                } else {
                    OUR_MAX_TOKEN.to_be_bytes()
                };
                let [_, a, b, c] = our_max;
                let choice = self.mechanism.wrap(Protection::Integrity, &[protection.bit(), a, b, c])?;
                self.state = State::AwaitingSuccess { protection, max_chunk };
                Ok(self.respond(&choice))
            }
            (State::AwaitingSuccess { protection, max_chunk }, SaslState::Success) => {
                Ok(Step::Done(SecurityLayer { mechanism: self.mechanism, protection, max_chunk }))
            }
            (State::Authenticating { .. } | State::AwaitingOffer, SaslState::Success) => {
                Err(Failure::Protocol("it ended the handshake before it had proved who it is".to_owned()))
            }
            (_, other) => Err(unexpected(other, "the handshake")),
        }
    }

    fn respond(self, token: &[u8]) -> Step<M> {
        let frame = sasl_frame(&Sasl::new(SaslState::Response, Some(token))).to_vec();
        Step::Send(self, frame)
    }
}

fn sasl_frame(sasl: &Sasl<'_>) -> Zeroizing<Vec<u8>> {
    frame(&RequestHeader::SASL, |sink| sasl.encode_delimited(sink))
}

fn sasl_of(frame: &[u8]) -> Result<Sasl<'_>, Failure> {
    let response = Response::decode(frame)?;
    match response.outcome {
        Outcome::Success(body) if response.call_id == SASL_CALL => Sasl::decode(body),
        Outcome::Success(_) => Err(Failure::Protocol("a reply to no call during the handshake".to_owned())),
        Outcome::Error(exception) | Outcome::Fatal(exception) => Err(Failure::refused(exception)),
    }
}

fn token_of<'a>(sasl: &Sasl<'a>) -> Result<&'a [u8], Failure> {
    sasl.token.ok_or_else(|| Failure::Protocol("a challenge without a token".to_owned()))
}

fn unexpected(state: SaslState, during: &str) -> Failure {
    Failure::Protocol(format!("unexpected SASL state {state:?} during {during}"))
}

#[cfg(test)]
pub(crate) mod tests;
