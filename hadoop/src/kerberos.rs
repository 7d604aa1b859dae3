//! Kerberos: who we are, by a keytab, and tickets for the services we call, by MIT's library. Everything in that
//! library may block on the network for half a minute, so it runs apart from the executor and within a time limit.

mod credential;
mod failure;
mod gssapi;
mod keytab;
mod login;

pub(crate) use failure::KerberosFailure;
pub(crate) use gssapi::GssContext;
pub use login::Login;
