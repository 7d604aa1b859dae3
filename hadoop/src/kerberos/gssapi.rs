//! A Kerberos security context with one server, by MIT's GSSAPI. Never asks to delegate: our ticket-granting ticket
//! stays here.

use libgssapi::context::{ClientCtx, CtxFlags, SecurityContext};
use libgssapi::credential::Cred;
use libgssapi::error::Error;
use libgssapi::name::Name;
use libgssapi::oid::{GSS_MECH_KRB5, GSS_NT_KRB5_PRINCIPAL};
use zeroize::{Zeroize, Zeroizing};

use super::KerberosFailure;
use crate::error::Failure;
use crate::principal::Principal;
use crate::rpc::Protection;
use crate::rpc::security::Mechanism;

/// What every context must have.
const FLAGS: CtxFlags = CtxFlags::GSS_C_MUTUAL_FLAG
    .union(CtxFlags::GSS_C_INTEG_FLAG)
    .union(CtxFlags::GSS_C_CONF_FLAG)
    .union(CtxFlags::GSS_C_REPLAY_FLAG)
    .union(CtxFlags::GSS_C_SEQUENCE_FLAG);

/// A security context with a server.
pub(crate) struct GssContext(ClientCtx);

impl GssContext {
    /// Gets a ticket for the server if there is none yet, and makes the first token. Blocks on the network.
    pub(super) fn initiate(credential: Cred, target: &Principal) -> Result<(Self, Vec<u8>), KerberosFailure> {
        // A principal's name and not a host's: no DNS look-up may change whom we talk to.
        let name = Name::new(target.to_string().as_bytes(), Some(GSS_NT_KRB5_PRINCIPAL))
            .map_err(|error| failure(&error))?;
        let mut context = ClientCtx::new(Some(credential), name, FLAGS, Some(GSS_MECH_KRB5));
        let token = context.step(None, None).map_err(|error| failure(&error))?;
        let token = token.ok_or_else(|| KerberosFailure::other("no token to start with"))?.to_vec();
        Ok((Self(context), token))
    }
}

impl Mechanism for GssContext {
    fn step(&mut self, token: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        let answer = self.0.step(Some(token), None).map_err(|error| Failure::Kerberos(failure(&error)))?;
        Ok(answer.map(|token| token.to_vec()))
    }

    fn is_complete(&self) -> Result<bool, Failure> {
        if !self.0.is_complete() {
            return Ok(false);
        }
        let flags = self.0.flags().map_err(|error| Failure::Kerberos(failure(&error)))?;
        if flags.contains(FLAGS) && !flags.contains(CtxFlags::GSS_C_DELEG_FLAG) {
            Ok(true)
        } else {
            Err(Failure::Protocol(format!("its security context has flags {flags:?}, not {FLAGS:?}")))
        }
    }

    fn wrap(&mut self, protection: Protection, message: &[u8]) -> Result<Vec<u8>, Failure> {
        let mut wrapped = self
            .0
            .wrap(protection == Protection::Privacy, message)
            .map_err(|error| Failure::Kerberos(failure(&error)))?;
        let token = wrapped.to_vec();
        // With integrity alone it holds the message in the clear.
        wrapped.zeroize();
        Ok(token)
    }

    fn unwrap(&mut self, protection: Protection, token: &[u8]) -> Result<Zeroizing<Vec<u8>>, Failure> {
        if protection == Protection::Privacy && !is_encrypted(token) {
            return Err(Failure::Protocol("data without the agreed encryption".to_owned()));
        }
        let mut message = self
            .0
            .unwrap(token)
            .map_err(|error| Failure::Protocol(format!("data that fails verification: {}", text(&error))))?;
        let kept = Zeroizing::new(message.to_vec());
        message.zeroize();
        Ok(kept)
    }
}

/// Whether a wrap token says that it is encrypted. The binding does not tell; the flag is protected with the rest, and
/// tokens of ciphers older than AES, which have another form, count as not encrypted.
fn is_encrypted(token: &[u8]) -> bool {
    const WRAP_TOKEN: [u8; 2] = [5, 4];
    const SEALED: u8 = 2;
    matches!(token, [a, b, flags, ..] if [*a, *b] == WRAP_TOKEN && flags & SEALED != 0)
}

/// Must be called on the thread that failed: the library keeps the details there.
pub(super) fn failure(error: &Error) -> KerberosFailure {
    KerberosFailure::gss(error.minor, &text(error))
}

fn text(error: &Error) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sealed_aes_tokens_count_as_encrypted() {
        assert!(is_encrypted(&[5, 4, 2, 0xff]));
        assert!(is_encrypted(&[5, 4, 7, 0xff]));
        assert!(!is_encrypted(&[5, 4, 1, 0xff]));
        assert!(!is_encrypted(&[5, 4]));
        assert!(!is_encrypted(&[0x60, 2, 2, 2]));
        assert!(!is_encrypted(&[]));
    }
}
