//! Hadoop delegation tokens. Without the feature `rpc` only their formats: the token itself, its identifier and
//! the credentials file, for programs that write tokens but never speak to Hadoop. With it also everything that
//! gets them: Kerberos login from a keytab, Hadoop's RPC, the NameNode. Knows nothing of Kubernetes.

mod codec;
mod protobuf;
pub mod token;
pub mod token_file;
mod user;

pub use codec::DecodeError;
pub use token::{Token, TokenIdentifier, TokenPassword};
pub use user::{HadoopUser, InvalidUser};
