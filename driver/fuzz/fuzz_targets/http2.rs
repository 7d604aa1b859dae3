//! Whatever a peer sends to the registration socket, in parts of whatever length: no panic, and nothing held beyond
//! the bounds. The first byte says how long the parts are; an even one has the handshake done before.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code, reason = "the driver's own modules, of which only the connection is driven")]
#[path = "../../src/registration"]
mod registration {
    pub(crate) mod frame;
    pub(crate) mod http2;
}

use registration::http2::{Connection, Failure};

const HANDSHAKE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A call is answered by so much, which is more than ours are, so that windows matter.
const REPLY: usize = 300;

fuzz_target!(|input: &[u8]| {
    let Some((&first, bytes)) = input.split_first() else { return };
    let mut connection = Connection::new();
    if first.is_multiple_of(2) && connection.receive(HANDSHAKE).is_err() {
        panic!("the handshake is refused");
    }
    for part in bytes.chunks(usize::from(first).max(1)) {
        let Ok(calls) = connection.receive(part) else {
            assert!(connection.take_output().len() < 256 + 64 * part.len(), "the last words are short");
            return;
        };
        for call in calls {
            let reply = if call.path.is_empty() { Err(Failure::UNKNOWN_METHOD) } else { Ok(vec![0; REPLY]) };
            connection.reply(call.stream, reply);
        }
        // A few bytes in, such as an empty call, are at most so many out; 8 replies may have waited for a window.
        let most = 9 * (REPLY + 256) + 64 * part.len();
        assert!(connection.take_output().len() <= most, "more is sent than was asked for");
    }
});
