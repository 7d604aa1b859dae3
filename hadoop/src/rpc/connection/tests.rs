//! The connection's task against a server on the other end of a pipe, with a mechanism that only marks what it
//! protects.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::error::Refusal;
use crate::namenode::CLIENT_PROTOCOL;
use crate::protobuf::{put_bytes, put_number};
use crate::rpc::message::{SASL_CALL, Sasl, SaslState};

/// Marks what it wraps, and accepts only what is marked.
struct Marking;

impl Mechanism for Marking {
    fn step(&mut self, _: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        Ok(None)
    }

    fn is_complete(&self) -> Result<bool, Failure> {
        Ok(true)
    }

    fn wrap(&mut self, _: Protection, message: &[u8]) -> Result<Vec<u8>, Failure> {
        Ok([b"!", message].concat())
    }

    fn unwrap(&mut self, _: Protection, token: &[u8]) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let message = token.strip_prefix(b"!");
        message.map(|message| message.to_vec().into()).ok_or(Failure::Protocol("unmarked".to_owned()))
    }
}

struct Server {
    stream: DuplexStream,
    frames: Frames,
}

impl Server {
    async fn frame(&mut self) -> Vec<u8> {
        let mut chunk = [0; 1024];
        loop {
            if let Some(frame) = self.frames.next().unwrap() {
                return frame.to_vec();
            }
            let length = self.stream.read(&mut chunk).await.unwrap();
            assert_ne!(length, 0, "the client left");
            self.frames.push(&chunk[..length]);
        }
    }

    async fn answer(&mut self, frames: &[Vec<u8>]) {
        self.stream.write_all(&frames.concat()).await.unwrap();
    }
}

fn response(call_id: u64, status: u64, class: &str, message: &str, body: Option<&[u8]>) -> Vec<u8> {
    let mut header = Vec::new();
    put_number(1, call_id, &mut header);
    put_number(2, status, &mut header);
    if status > 0 {
        put_bytes(4, class.as_bytes(), &mut header);
        put_bytes(5, message.as_bytes(), &mut header);
    }
    let mut content = Vec::new();
    put_varint(header.len() as u64, &mut content);
    content.extend(header);
    if let Some(body) = body {
        put_varint(body.len() as u64, &mut content);
        content.extend(body);
    }
    [&u32::try_from(content.len()).unwrap().to_be_bytes()[..], &content].concat()
}

fn reply(call_id: u64, body: &[u8]) -> Vec<u8> {
    response(call_id, 0, "", "", Some(body))
}

fn wrapped(token: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    Sasl::new(SaslState::Wrap, Some(token)).encode(&mut body);
    reply(u64::from(SASL_CALL.cast_unsigned()), &body)
}

async fn connect(protection: Protection) -> (Connection, Server) {
    let (client, server) = tokio::io::duplex(100_000);
    let layer = SecurityLayer { mechanism: Marking, protection, max_chunk: 50 };
    let context = ConnectionContext { effective_user: Some("alice"), protocol: CLIENT_PROTOCOL };
    let connection =
        Connection::start(client, layer, Frames::default(), &context, Duration::from_secs(10)).unwrap();
    let mut server = Server { stream: server, frames: Frames::default() };
    if protection == Protection::Authentication {
        let context = server.frame().await;
        assert!(context.windows(5).any(|window| window == b"alice"));
    }
    (connection, server)
}

fn request(method: &'static str) -> Request {
    Request { method, message: Zeroizing::new(b"\x0a\x01x".to_vec()), caller_context: None }
}

fn call(connection: &Connection, method: &'static str) -> tokio::task::JoinHandle<Reply> {
    let connection = connection.clone();
    tokio::spawn(async move { connection.call(request(method)).await })
}

#[tokio::test]
async fn replies_reach_their_callers_in_any_order() {
    let (connection, mut server) = connect(Protection::Authentication).await;
    let first = call(&connection, "first");
    server.frame().await;
    let second = call(&connection, "second");
    server.frame().await;
    server.answer(&[reply(1, b"two"), reply(0, b"one")]).await;
    assert_eq!(**first.await.unwrap().unwrap(), *b"one");
    assert_eq!(**second.await.unwrap().unwrap(), *b"two");
}

#[tokio::test]
async fn an_error_fails_one_call_and_the_connection_goes_on() {
    let (connection, mut server) = connect(Protection::Authentication).await;
    let first = call(&connection, "first");
    server.frame().await;
    server.answer(&[response(0, 1, "a.StandbyException", "no\n\tat x", None)]).await;
    let failed = first.await.unwrap().unwrap_err();
    assert!(matches!(failed.failure, Failure::Refused(Refusal::Standby, _)));
    assert_eq!(failed.fate, Fate::Refused);
    let second = call(&connection, "second");
    server.frame().await;
    server.answer(&[reply(1, b"")]).await;
    assert_eq!(**second.await.unwrap().unwrap(), *b"");
}

#[tokio::test]
async fn a_fatal_error_fails_every_call_whatever_its_id() {
    let (connection, mut server) = connect(Protection::Authentication).await;
    let calls = [call(&connection, "first"), call(&connection, "second")];
    server.frame().await;
    server.frame().await;
    let message = "User: csi/h@R is not allowed to impersonate alice";
    server.answer(&[response(4_294_967_293, 2, "a.AuthorizationException", message, None)]).await;
    for call in calls {
        let failed = call.await.unwrap().unwrap_err();
        assert!(matches!(failed.failure, Failure::Refused(Refusal::ImpersonationDenied, _)));
        assert_eq!(failed.fate, Fate::Refused, "the server looked at a call without a context");
    }
    let later = connection.call(request("later")).await.unwrap_err();
    assert!(later.fate == Fate::NotSent && connection.is_closed());
    assert!(matches!(later.failure, Failure::Refused(Refusal::ImpersonationDenied, _)));
}

#[tokio::test]
async fn a_call_that_comes_after_the_connection_ended_hears_what_is_true_of_it_too() {
    // Who we say we are is refused before there is a call.
    let (connection, mut server) = connect(Protection::Authentication).await;
    let message = "User: csi/h@R is not allowed to impersonate alice";
    server.answer(&[response(4_294_967_293, 2, "a.AuthorizationException", message, None)]).await;
    connection.calls.closed().await;
    let failed = connection.call(request("first")).await.unwrap_err();
    assert!(
        matches!(failed.failure, Failure::Refused(Refusal::ImpersonationDenied, _)),
        "{:?}",
        failed.failure
    );
    // What was wrong with another call is not.
    let (connection, mut server) = connect(Protection::Authentication).await;
    let first = call(&connection, "first");
    server.frame().await;
    server.answer(&[response(0, 2, "a.RpcServerException", "unreadable", None)]).await;
    first.await.unwrap().unwrap_err();
    connection.calls.closed().await;
    let later = connection.call(request("later")).await.unwrap_err();
    assert!(matches!(later.failure, Failure::ConnectionLost(_)), "{:?}", later.failure);
}

#[tokio::test]
async fn what_becomes_of_a_call_on_a_closed_socket_is_unknown_and_later_ones_are_not_sent() {
    let (connection, mut server) = connect(Protection::Authentication).await;
    let first = call(&connection, "first");
    server.frame().await;
    drop(server);
    let failed = first.await.unwrap().unwrap_err();
    assert!(failed.fate == Fate::Unknown && matches!(failed.failure, Failure::ConnectionLost(_)));
    let later = connection.call(request("later")).await.unwrap_err();
    assert!(later.fate == Fate::NotSent && matches!(later.failure, Failure::ConnectionLost(_)));
}

#[tokio::test]
async fn a_call_that_ends_the_connection_is_refused_and_what_became_of_others_is_unknown() {
    let (connection, mut server) = connect(Protection::Authentication).await;
    let (first, second) = (call(&connection, "first"), call(&connection, "second"));
    server.frame().await;
    server.frame().await;
    server.answer(&[response(1, 2, "a.RpcServerException", "unreadable", None)]).await;
    let fates = [first.await.unwrap().unwrap_err().fate, second.await.unwrap().unwrap_err().fate];
    assert!(fates.contains(&Fate::Refused) && fates.contains(&Fate::Unknown), "{fates:?}");
}

#[tokio::test(start_paused = true)]
async fn closes_when_idle_but_not_while_a_call_waits() {
    let (connection, mut server) = connect(Protection::Authentication).await;
    let first = call(&connection, "first");
    server.frame().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!connection.is_closed());
    server.answer(&[reply(0, b"one")]).await;
    assert_eq!(**first.await.unwrap().unwrap(), *b"one");
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert!(!connection.is_closed());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(connection.is_closed());
}

#[tokio::test]
async fn closes_when_nobody_holds_it() {
    let (connection, mut server) = connect(Protection::Authentication).await;
    drop(connection);
    assert_eq!(server.stream.read(&mut [0; 8]).await.unwrap(), 0);
}

#[tokio::test]
async fn protected_frames_may_come_in_pieces_and_together() {
    let (connection, mut server) = connect(Protection::Integrity).await;
    let calls = [call(&connection, "first"), call(&connection, "second")];
    // The requests, too, are cut into tokens that the server accepts.
    let mut requests = Frames::default();
    let mut inner = Vec::new();
    while inner.len() < 3 {
        let outer = server.frame().await;
        let Outcome::Success(body) =
            Response::decode(&outer).map(|response| response.outcome).unwrap_or_else(|_| {
                // A request header reads differently; the body is what follows it.
                Outcome::Success(&outer[1 + usize::from(outer[0])..])
            })
        else {
            panic!("an error from a client")
        };
        let body =
            if body[0] & 0x80 == 0 && usize::from(body[0]) == body.len() - 1 { &body[1..] } else { body };
        let sasl = Sasl::decode(body).unwrap();
        let token = sasl.token.unwrap();
        assert!(token.len() <= 51);
        requests.push(token.strip_prefix(b"!").unwrap());
        while let Some(frame) = requests.next().unwrap() {
            inner.push(frame);
        }
    }
    let replies = [reply(0, b"one"), reply(1, b"two")].concat();
    let (left, right) = replies.split_at(3);
    server.answer(&[wrapped(&[b"!", left].concat()), wrapped(&[b"!", right].concat())]).await;
    for (call, expected) in calls.into_iter().zip([b"one", b"two"]) {
        assert_eq!(**call.await.unwrap().unwrap(), *expected);
    }
}

#[tokio::test]
async fn data_without_the_agreed_protection_is_refused_errors_too() {
    let message = "Token not found";
    for forged in [
        reply(0, b"one"),
        response(0, 1, "a.SecretManager$InvalidToken", message, None),
        response(4_294_967_295, 2, "a.SecretManager$InvalidToken", message, None),
        wrapped(b"unmarked"),
    ] {
        let (connection, mut server) = connect(Protection::Privacy).await;
        let first = call(&connection, "first");
        server.frame().await;
        server.answer(&[forged]).await;
        let failed = first.await.unwrap().unwrap_err();
        assert!(matches!(failed.failure, Failure::Protocol(_)), "{failed:?}");
    }
}

#[tokio::test]
async fn a_reply_to_no_call_ends_the_connection() {
    let (connection, mut server) = connect(Protection::Authentication).await;
    let first = call(&connection, "first");
    server.frame().await;
    server.answer(&[reply(7, b"")]).await;
    assert!(matches!(first.await.unwrap().unwrap_err().failure, Failure::Protocol(_)));
}
