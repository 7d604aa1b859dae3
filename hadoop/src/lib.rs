//! Hadoop delegation tokens. Without the feature `rpc` only their formats: the token itself, its identifier and
//! the credentials file, for programs that write tokens but never speak to Hadoop. With it also everything that
//! gets them: Kerberos login from a keytab, Hadoop's RPC, the NameNode, users' names by Hadoop's rules. Knows nothing
//! of Kubernetes.

#[cfg(feature = "auth-to-local")]
pub mod auth_to_local;
mod codec;
#[cfg(feature = "rpc")]
mod error;
#[cfg(feature = "rpc")]
pub mod kerberos;
#[cfg(feature = "rpc")]
pub mod namenode;
#[cfg(feature = "rpc")]
mod principal;
mod protobuf;
#[cfg(feature = "rpc")]
mod rpc;
#[cfg(feature = "rpc")]
pub mod site;
pub mod token;
pub mod token_file;
mod user;

pub use codec::DecodeError;
#[cfg(feature = "rpc")]
pub use error::Error;
#[cfg(feature = "rpc")]
pub use principal::{Glob, InvalidGlob, InvalidPrincipal, Principal, ServerIdentity};
#[cfg(feature = "rpc")]
pub use rpc::Protection;
pub use token::{Token, TokenIdentifier, TokenPassword};
pub use user::{HadoopUser, InvalidUser};
