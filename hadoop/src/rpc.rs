//! Hadoop's RPC protocol, version 9, secured by Kerberos: bytes and states first, without I/O; only `connection` reads
//! and writes a socket, and only `pool` opens one.

pub(crate) mod connection;
mod frame;
pub(crate) mod handshake;
pub(crate) mod message;
pub(crate) mod pool;
pub(crate) mod security;

pub use security::Protection;
