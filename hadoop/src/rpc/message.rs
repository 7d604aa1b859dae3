//! The messages around every call: headers, connection context, SASL. Encoded and decoded here, sent elsewhere.

use std::fmt;

use crate::codec::{DecodeError, Reader, Sink};
use crate::error::{Failure, RemoteException};
use crate::protobuf::{self, Value, put_bytes, put_header, put_number, put_signed};
use crate::rpc::frame::Encode;

/// What a client says first: "hrpc", version 9, service class 0, and that it authenticates by SASL.
pub(crate) const PREAMBLE: [u8; 7] = *b"hrpc\x09\x00\xdf";

/// Reserved call ids.
pub(crate) const SASL_CALL: i32 = -33;
pub(crate) const CONTEXT_CALL: i32 = -3;

/// `retryCount` of what is not a call.
const NO_RETRY_COUNT: i32 = -1;

/// `RpcRequestHeaderProto`.
pub(crate) struct RequestHeader<'a> {
    pub(crate) call_id: i32,
    pub(crate) client_id: &'a [u8],
    pub(crate) retry_count: i32,
    /// For the server's audit log.
    pub(crate) caller_context: Option<&'a str>,
}

impl<'a> RequestHeader<'a> {
    pub(crate) const SASL: RequestHeader<'static> = RequestHeader {
        call_id: SASL_CALL,
        client_id: &[],
        retry_count: NO_RETRY_COUNT,
        caller_context: None,
    };

    pub(crate) fn context(client_id: &'a [u8]) -> Self {
        Self { call_id: CONTEXT_CALL, client_id, retry_count: NO_RETRY_COUNT, caller_context: None }
    }
}

impl Encode for RequestHeader<'_> {
    fn encode(&self, sink: &mut impl Sink) {
        put_number(1, 2, sink); // RPC_PROTOCOL_BUFFER
        put_number(2, 0, sink); // RPC_FINAL_PACKET
        put_signed(3, self.call_id, sink);
        put_bytes(4, self.client_id, sink);
        put_signed(5, self.retry_count, sink);
        if let Some(context) = self.caller_context {
            put_message(7, &Text(context), sink);
        }
    }
}

/// A message whose field 1 is a text.
struct Text<'a>(&'a str);

impl Encode for Text<'_> {
    fn encode(&self, sink: &mut impl Sink) {
        put_bytes(1, self.0.as_bytes(), sink);
    }
}

fn put_message(number: u32, message: &impl Encode, sink: &mut impl Sink) {
    put_header(number, message.encoded_length(), sink);
    message.encode(sink);
}

/// Which protocol of a server is spoken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Protocol {
    pub(crate) name: &'static str,
    pub(crate) version: u64,
}

/// `IpcConnectionContextProto`.
pub(crate) struct ConnectionContext<'a> {
    /// Whom to act as, if not ourselves.
    pub(crate) effective_user: Option<&'a str>,
    pub(crate) protocol: Protocol,
}

impl Encode for ConnectionContext<'_> {
    fn encode(&self, sink: &mut impl Sink) {
        if let Some(user) = self.effective_user {
            put_message(2, &Text(user), sink);
        }
        put_bytes(3, self.protocol.name.as_bytes(), sink);
    }
}

/// `RequestHeaderProto`.
pub(crate) struct Method {
    pub(crate) name: &'static str,
    pub(crate) protocol: Protocol,
}

impl Encode for Method {
    fn encode(&self, sink: &mut impl Sink) {
        put_bytes(1, self.name.as_bytes(), sink);
        put_bytes(2, self.protocol.name.as_bytes(), sink);
        put_number(3, self.protocol.version, sink);
    }
}

/// `RpcResponseHeaderProto`, and the message behind it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Response<'a> {
    pub(crate) call_id: i32,
    pub(crate) outcome: Outcome<'a>,
}

#[derive(PartialEq, Eq)]
pub(crate) enum Outcome<'a> {
    /// The reply.
    Success(&'a [u8]),
    /// This call failed; the connection goes on.
    Error(RemoteException),
    /// The server closes the connection: every call has failed.
    Fatal(RemoteException),
}

/// Without the reply, which may be a token.
impl fmt::Debug for Outcome<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success(reply) => write!(f, "Success({} bytes)", reply.len()),
            Self::Error(exception) => f.debug_tuple("Error").field(exception).finish(),
            Self::Fatal(exception) => f.debug_tuple("Fatal").field(exception).finish(),
        }
    }
}

impl<'a> Response<'a> {
    /// Reads a frame.
    pub(crate) fn decode(frame: &'a [u8]) -> Result<Self, Failure> {
        Self::read(frame).map_err(|error| Failure::Protocol(error.to_string()))
    }

    fn read(frame: &'a [u8]) -> Result<Self, DecodeError> {
        let what = "response header";
        let mut reader = Reader::new(frame);
        let header = protobuf::delimited(&mut reader, what)?;
        let (mut call_id, mut status, mut class, mut message) = (None, None, "", "");
        protobuf::fields(header, what, |number, value| {
            match number {
                1 => call_id = Some(low_32_bits(value.number(what)?)),
                2 => status = Some(value.number(what)?),
                4 => class = value.text("exception class")?,
                5 => message = value.text("exception message")?,
                _ => {}
            }
            Ok(())
        })?;
        let call_id = call_id.ok_or(DecodeError::Protobuf(what))?;
        let outcome = match status {
            Some(0) => {
                let body = protobuf::delimited(&mut reader, "reply")?;
                reader.finish("reply")?;
                Outcome::Success(body)
            }
            Some(1) => Outcome::Error(RemoteException::new(class, message)),
            Some(2) => Outcome::Fatal(RemoteException::new(class, message)),
            _ => return Err(DecodeError::Protobuf(what)),
        };
        Ok(Self { call_id, outcome })
    }
}

/// A negative id comes back as the two's complement of 32 bits.
fn low_32_bits(number: u64) -> i32 {
    let [a, b, c, d, ..] = number.to_le_bytes();
    i32::from_le_bytes([a, b, c, d])
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SaslState {
    Success,
    Negotiate,
    Initiate,
    Challenge,
    Response,
    Wrap,
}

/// `RpcSaslProto`.
#[derive(PartialEq, Eq)]
pub(crate) struct Sasl<'a> {
    pub(crate) state: SaslState,
    pub(crate) token: Option<&'a [u8]>,
    pub(crate) auths: Vec<SaslAuth<'a>>,
}

/// One way to authenticate. Its challenge is left out: only other mechanisms than ours have one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SaslAuth<'a> {
    pub(crate) method: &'a str,
    pub(crate) mechanism: &'a str,
    pub(crate) protocol: Option<&'a str>,
    pub(crate) server_id: Option<&'a str>,
}

/// Without the token, which may hold a whole reply that is only signed.
impl fmt::Debug for Sasl<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sasl").field("state", &self.state).field("auths", &self.auths).finish_non_exhaustive()
    }
}

impl<'a> Sasl<'a> {
    pub(crate) fn new(state: SaslState, token: Option<&'a [u8]>) -> Self {
        Self { state, token, auths: Vec::new() }
    }

    pub(crate) fn decode(message: &'a [u8]) -> Result<Self, Failure> {
        Self::read(message).map_err(|error| Failure::Protocol(error.to_string()))
    }

    fn read(message: &'a [u8]) -> Result<Self, DecodeError> {
        let what = "SASL message";
        let (mut state, mut token, mut auths) = (None, None, Vec::new());
        protobuf::fields(message, what, |number, value| {
            match number {
                2 => state = Some(value.number(what)?),
                3 => token = Some(value.bytes(what)?),
                4 => auths.push(SaslAuth::read(value)?),
                _ => {}
            }
            Ok(())
        })?;
        let state = match state {
            Some(0) => SaslState::Success,
            Some(1) => SaslState::Negotiate,
            Some(2) => SaslState::Initiate,
            Some(3) => SaslState::Challenge,
            Some(4) => SaslState::Response,
            Some(5) => SaslState::Wrap,
            _ => return Err(DecodeError::Protobuf(what)),
        };
        Ok(Self { state, token, auths })
    }
}

impl<'a> SaslAuth<'a> {
    fn read(value: Value<'a>) -> Result<Self, DecodeError> {
        let what = "SASL method";
        let mut auth = Self { method: "", mechanism: "", protocol: None, server_id: None };
        protobuf::fields(value.bytes(what)?, what, |number, value| {
            match number {
                1 => auth.method = value.text(what)?,
                2 => auth.mechanism = value.text(what)?,
                3 => auth.protocol = Some(value.text(what)?),
                4 => auth.server_id = Some(value.text(what)?),
                _ => {}
            }
            Ok(())
        })?;
        Ok(auth)
    }
}

impl Encode for SaslAuth<'_> {
    fn encode(&self, sink: &mut impl Sink) {
        put_bytes(1, self.method.as_bytes(), sink);
        put_bytes(2, self.mechanism.as_bytes(), sink);
        if let Some(protocol) = self.protocol {
            put_bytes(3, protocol.as_bytes(), sink);
        }
        if let Some(server_id) = self.server_id {
            put_bytes(4, server_id.as_bytes(), sink);
        }
    }
}

impl Encode for Sasl<'_> {
    fn encode(&self, sink: &mut impl Sink) {
        let state = match self.state {
            SaslState::Success => 0,
            SaslState::Negotiate => 1,
            SaslState::Initiate => 2,
            SaslState::Challenge => 3,
            SaslState::Response => 4,
            SaslState::Wrap => 5,
        };
        put_number(2, state, sink);
        if let Some(token) = self.token {
            put_bytes(3, token, sink);
        }
        for auth in &self.auths {
            put_message(4, auth, sink);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::namenode::CLIENT_PROTOCOL;
    use crate::rpc::frame::frame;
    use crate::token::tests::unhex;

    const CLIENT_ID: &str = "2048771a8e5e4c49abd48a6b591482f8";

    #[test]
    fn the_preamble_is_the_recorded_one() {
        assert_eq!(PREAMBLE.to_vec(), unhex("687270630900df"));
    }

    #[test]
    fn sasl_packets_are_the_recorded_ones() {
        let negotiate =
            frame(&RequestHeader::SASL, |sink| Sasl::new(SaslState::Negotiate, None).encode_delimited(sink));
        assert_eq!(*negotiate, unhex("0000000e0a08021000184122002801021001"));
        let empty = frame(&RequestHeader::SASL, |sink| {
            Sasl::new(SaslState::Response, Some(&[])).encode_delimited(sink);
        });
        assert_eq!(*empty, unhex("000000100a080210001841220028010410041a00"));
    }

    #[test]
    fn the_connection_context_is_the_recorded_one() {
        let client_id = unhex(CLIENT_ID);
        let context = ConnectionContext { effective_user: Some("alice"), protocol: CLIENT_PROTOCOL };
        let sent = frame(&RequestHeader::context(&client_id), |sink| context.encode_delimited(sink));
        let expected = format!(
            "000000551a0802100018052210{CLIENT_ID}28013912070a05616c6963651a2e\
             6f72672e6170616368652e6861646f6f702e686466732e70726f746f636f6c2e436c69656e7450726f746f636f6c"
        );
        assert_eq!(*sent, unhex(&expected));
    }

    #[test]
    fn a_call_is_the_recorded_one() {
        let client_id = unhex(CLIENT_ID);
        let header =
            RequestHeader { call_id: 16, client_id: &client_id, retry_count: 0, caller_context: None };
        let method = Method { name: "getDelegationToken", protocol: CLIENT_PROTOCOL };
        let sent = frame(&header, |sink| {
            method.encode_delimited(sink);
            Text("csi").encode_delimited(sink);
        });
        let expected = format!(
            "000000681a0802100018202210{CLIENT_ID}2800460a1267657444656c65676174696f6e546f6b656e122e\
             6f72672e6170616368652e6861646f6f702e686466732e70726f746f636f6c2e436c69656e7450726f746f636f6c1801050a03637369"
        );
        assert_eq!(*sent, unhex(&expected));
    }

    #[test]
    fn the_recorded_reply_header_is_read() {
        let frame = unhex("0e08dfffffff0f100018093a00400100");
        assert_eq!(
            Response::decode(&frame),
            Ok(Response { call_id: SASL_CALL, outcome: Outcome::Success(&[]) })
        );
    }

    #[test]
    fn errors_are_read_with_class_and_message() {
        let mut header = Vec::new();
        put_number(1, 4_294_967_293, &mut header);
        put_number(2, 2, &mut header);
        put_bytes(4, b"a.B", &mut header);
        put_bytes(5, b"no\n\tat x", &mut header);
        let mut frame = Vec::new();
        protobuf::put_varint(header.len() as u64, &mut frame);
        frame.extend(header);
        let response = Response::decode(&frame).unwrap();
        assert_eq!(response.call_id, CONTEXT_CALL);
        assert_eq!(response.outcome, Outcome::Fatal(RemoteException::new("a.B", "no")));
    }

    #[test]
    fn debug_output_holds_no_reply_and_no_token() {
        let secret = b"s3cret";
        let response = Response { call_id: 1, outcome: Outcome::Success(secret) };
        let shown = format!("{response:?} {:?}", Sasl::new(SaslState::Wrap, Some(secret)));
        assert!(!shown.contains("s3cret") && !shown.contains("115"), "{shown}");
    }

    #[test]
    fn a_method_is_echoed_with_all_fields_but_its_challenge() {
        let recorded = SaslAuth {
            method: "KERBEROS",
            mechanism: "GSSAPI",
            protocol: Some("nn"),
            server_id: Some("nn1.example.com"),
        };
        let mut offered = Vec::new();
        recorded.encode(&mut offered);
        put_bytes(5, b"challenge", &mut offered);
        let read = SaslAuth::read(Value::Bytes(&offered)).unwrap();
        assert_eq!(read, recorded);
        let mut echoed = Vec::new();
        read.encode(&mut echoed);
        assert_eq!(echoed, offered[..echoed.len()]);
        assert_eq!(offered.len() - echoed.len(), 11);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Response::decode(&bytes);
            let _ = Sasl::decode(&bytes);
        }

        #[test]
        fn sasl_messages_survive_a_round_trip(token: Option<Vec<u8>>, protocol: Option<String>) {
            let sasl = Sasl {
                state: SaslState::Initiate,
                token: token.as_deref(),
                auths: vec![SaslAuth {
                    method: "KERBEROS", mechanism: "GSSAPI", protocol: protocol.as_deref(), server_id: None,
                }],
            };
            let mut bytes = Vec::new();
            sasl.encode(&mut bytes);
            prop_assert_eq!(Sasl::decode(&bytes), Ok(sasl));
        }
    }
}
