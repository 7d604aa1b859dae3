//! What a finished handshake leaves behind: a security layer that signs, and with privacy encrypts, every frame of
//! the connection in both directions.

use std::fmt;

use zeroize::Zeroizing;

use crate::error::Failure;
use crate::rpc::frame::{Buffer, Encode, Frames, frame};
use crate::rpc::message::{Outcome, RequestHeader, Response, SASL_CALL, Sasl, SaslState};

/// How frames are protected, `hadoop.rpc.protection`. Later is stronger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protection {
    /// Both sides proved who they are; frames go as they are.
    Authentication,
    /// Frames are signed.
    Integrity,
    /// Frames are encrypted.
    Privacy,
}

impl Protection {
    const ALL: [Self; 3] = [Self::Authentication, Self::Integrity, Self::Privacy];

    /// Its bit in the SASL negotiation.
    pub(crate) fn bit(self) -> u8 {
        match self {
            Self::Authentication => 1,
            Self::Integrity => 2,
            Self::Privacy => 4,
        }
    }

    /// The strongest of those whose bits are set.
    pub(crate) fn strongest(bits: u8) -> Option<Self> {
        Self::ALL.into_iter().rev().find(|protection| bits & protection.bit() != 0)
    }

    /// The one with this name in `hadoop.rpc.protection`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|protection| protection.to_string() == name)
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Authentication => "authentication",
            Self::Integrity => "integrity",
            Self::Privacy => "privacy",
        })
    }
}

/// An authentication mechanism under SASL: GSSAPI, or in tests a recorded one.
pub(crate) trait Mechanism: Send + 'static {
    /// Takes the peer's token; gives ours, if there is one to send.
    fn step(&mut self, token: &[u8]) -> Result<Option<Vec<u8>>, Failure>;

    /// Whether both sides are authenticated. An error when they are, but the context lacks what we asked for.
    fn is_complete(&self) -> Result<bool, Failure>;

    /// Signs, or encrypts and signs.
    fn wrap(&mut self, protection: Protection, message: &[u8]) -> Result<Vec<u8>, Failure>;

    /// Verifies; with `Protection::Privacy` refuses what is only signed.
    fn unwrap(&mut self, protection: Protection, token: &[u8]) -> Result<Zeroizing<Vec<u8>>, Failure>;
}

/// Protects and checks what goes over one connection. Messages are numbered, so their order here must be the order
/// on the wire: only the connection's own task has it.
pub(crate) struct SecurityLayer<M> {
    pub(crate) mechanism: M,
    pub(crate) protection: Protection,
    /// How much of our data fits into a token that the server accepts.
    pub(crate) max_chunk: usize,
}

impl<M: Mechanism> SecurityLayer<M> {
    /// Appends a frame, protected as agreed.
    pub(crate) fn seal(&mut self, plain: &[u8], out: &mut Buffer) -> Result<(), Failure> {
        if self.protection == Protection::Authentication {
            out.push(plain);
            return Ok(());
        }
        for chunk in plain.chunks(self.max_chunk) {
            let token = Zeroizing::new(self.mechanism.wrap(self.protection, chunk)?);
            out.push(&frame(&RequestHeader::SASL, |sink| {
                Sasl::new(SaslState::Wrap, Some(&token)).encode_delimited(sink);
            }));
        }
        Ok(())
    }

    /// Checks a received frame and gives what it carries to `inner`, as one piece of a stream of frames.
    pub(crate) fn open(&mut self, received: &[u8], inner: &mut Frames) -> Result<(), Failure> {
        // Without the layer anybody on the path could have written it, the text of an error too.
        let unprotected = || Failure::Protocol(format!("data without the agreed {}", self.protection));
        let response = Response::decode(received)?;
        let Outcome::Success(body) = response.outcome else { return Err(unprotected()) };
        if response.call_id != SASL_CALL {
            return Err(unprotected());
        }
        let sasl = Sasl::decode(body)?;
        match (sasl.state, sasl.token) {
            (SaslState::Wrap, Some(token)) => {
                inner.push(&self.mechanism.unwrap(self.protection, token)?);
                Ok(())
            }
            _ => Err(unprotected()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_the_strongest_protection_offered() {
        for (bits, expected) in [
            (0, None),
            (1, Some(Protection::Authentication)),
            (3, Some(Protection::Integrity)),
            (7, Some(Protection::Privacy)),
            (5, Some(Protection::Privacy)),
            (0xf8, None),
        ] {
            assert_eq!(Protection::strongest(bits), expected, "{bits}");
        }
        assert_eq!(Protection::named("integrity"), Some(Protection::Integrity));
        assert_eq!(Protection::named("auth"), None);
    }
}
