//! The handshake against recorded frames of a real NameNode, and against servers that must be refused.

use super::*;
use crate::protobuf::put_varint;
use crate::token::tests::unhex;

/// Header of every SASL reply of a real NameNode.
const REPLY_HEADER: &str = "0e08dfffffff0f100018093a004001";

/// Plays Kerberos: takes what is expected, gives what was recorded, and "wraps" by a prefix.
#[derive(Default)]
struct Recorded {
    complete: bool,
    endless: bool,
}

impl Mechanism for Recorded {
    fn step(&mut self, token: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        if self.endless {
            return Ok(Some(b"more".to_vec()));
        }
        assert_eq!(token, b"AP-REP");
        self.complete = true;
        Ok(None)
    }

    fn is_complete(&self) -> Result<bool, Failure> {
        Ok(self.complete)
    }

    fn wrap(&mut self, protection: Protection, message: &[u8]) -> Result<Vec<u8>, Failure> {
        assert!(protection < Protection::Privacy, "the choice is signed only");
        Ok([b"signed ", message].concat())
    }

    fn unwrap(&mut self, _: Protection, token: &[u8]) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let message = token.strip_prefix(b"signed ");
        message.map(|message| message.to_vec().into()).ok_or(Failure::Protocol("unsigned".to_owned()))
    }
}

fn identity() -> ServerIdentity {
    ServerIdentity { principal: "nn/nn1.example.com@EXAMPLE.COM".parse().unwrap(), pattern: None }
}

fn reply(sasl: &Sasl<'_>) -> Vec<u8> {
    let mut frame = unhex(REPLY_HEADER);
    sasl.encode_delimited(&mut frame);
    frame
}

fn challenge(token: &[u8]) -> Vec<u8> {
    reply(&Sasl::new(SaslState::Challenge, Some(token)))
}

fn success() -> Vec<u8> {
    reply(&Sasl::new(SaslState::Success, None))
}

fn auth<'a>(method: &'a str, mechanism: &'a str, protocol: &'a str, server_id: &'a str) -> SaslAuth<'a> {
    SaslAuth { method, mechanism, protocol: Some(protocol), server_id: Some(server_id) }
}

fn offer(auths: Vec<SaslAuth<'_>>) -> Vec<u8> {
    reply(&Sasl { state: SaslState::Negotiate, token: None, auths })
}

fn token_auth() -> SaslAuth<'static> {
    auth("TOKEN", "DIGEST-MD5", "", "default")
}

fn kerberos_auth() -> SaslAuth<'static> {
    auth("KERBEROS", "GSSAPI", "nn", "nn1.example.com")
}

fn initiated(mechanism: Recorded) -> (Exchange<Recorded>, Vec<u8>) {
    let negotiated = Negotiated::receive(&offer(vec![token_auth(), kerberos_auth()]), &identity()).unwrap();
    assert_eq!(negotiated.target, identity().principal);
    negotiated.initiate(mechanism, b"AP-REQ")
}

#[track_caller]
fn send(step: Result<Step<Recorded>, Failure>) -> (Exchange<Recorded>, Vec<u8>) {
    match step.unwrap() {
        Step::Send(exchange, frame) => (exchange, frame),
        Step::Done(_) => panic!("ended early"),
    }
}

/// The handshake up to where the server says what it offers.
fn authenticated() -> Exchange<Recorded> {
    let (exchange, _) = initiated(Recorded::default());
    send(exchange.receive(&challenge(b"AP-REP"), Protection::Authentication)).0
}

fn failure<T>(result: Result<T, Failure>) -> Failure {
    match result {
        Ok(_) => panic!("accepted"),
        Err(failure) => failure,
    }
}

#[test]
fn opens_with_the_recorded_bytes() {
    assert_eq!(opening(), unhex("687270630900df0000000e0a08021000184122002801021001"));
}

#[test]
fn echoes_the_servers_entry_and_answers_as_recorded() {
    let (exchange, initiate) = initiated(Recorded::default());
    let mut expected = unhex("0a08021000184122002801");
    let mut sasl = unhex("1002");
    sasl.extend(b"\x1a\x06AP-REQ\x22\x27\x0a\x08KERBEROS\x12\x06GSSAPI\x1a\x02nn\x22\x0fnn1.example.com");
    put_varint(sasl.len() as u64, &mut expected);
    expected.extend(sasl);
    let length = u32::try_from(expected.len()).unwrap().to_be_bytes();
    assert_eq!(initiate, [&length[..], &expected].concat());

    let (exchange, response) = send(exchange.receive(&challenge(b"AP-REP"), Protection::Authentication));
    assert_eq!(
        response,
        unhex("000000100a080210001841220028010410041a00"),
        "a token that is there, and empty"
    );

    let (exchange, response) =
        send(exchange.receive(&challenge(b"signed \x01\x01\x00\x00"), Protection::Authentication));
    assert!(response.ends_with(b"\x1a\x0bsigned \x01\x00\x00\x00"), "no size without a layer");
    assert!(matches!(exchange.receive(&success(), Protection::Authentication), Ok(Step::Done(_))));
}

#[track_caller]
fn check_choice(bits: u8, expected: Protection) {
    let token = [b"signed ", &[bits, 1, 0, 0][..]].concat();
    let (exchange, response) = send(authenticated().receive(&challenge(&token), Protection::Authentication));
    assert_eq!(response[response.len() - 4], expected.bit());
    let Ok(Step::Done(layer)) = exchange.receive(&success(), Protection::Authentication) else {
        panic!("not done")
    };
    assert_eq!(layer.protection, expected);
    assert_eq!(layer.max_chunk, 65536 - TOKEN_OVERHEAD);
}

#[test]
fn chooses_the_strongest_protection_offered() {
    check_choice(1, Protection::Authentication);
    check_choice(2, Protection::Integrity);
    check_choice(4, Protection::Privacy);
    check_choice(7, Protection::Privacy);
}

#[test]
fn refuses_less_protection_than_required() {
    let refusal =
        failure(authenticated().receive(&challenge(b"signed \x01\x01\x00\x00"), Protection::Privacy));
    assert_eq!(
        refusal,
        Failure::ProtectionTooWeak { offered: "authentication".to_owned(), required: Protection::Privacy }
    );
}

#[test]
fn refuses_a_server_that_wants_no_authentication() {
    assert_eq!(failure(Negotiated::receive(&success(), &identity())), Failure::Insecure);
    let simple = offer(vec![auth("SIMPLE", "", "", "")]);
    assert_eq!(failure(Negotiated::receive(&simple, &identity())), Failure::Insecure);
}

#[test]
fn refuses_a_server_without_kerberos() {
    let refusal = failure(Negotiated::receive(&offer(vec![token_auth()]), &identity()));
    assert_eq!(refusal, Failure::KerberosNotOffered("TOKEN/DIGEST-MD5".to_owned()));
}

#[test]
fn refuses_another_server_before_any_ticket_is_asked_for() {
    for other in [
        auth("KERBEROS", "GSSAPI", "nn", "nn2.example.com"),
        auth("KERBEROS", "GSSAPI", "http", "nn1.example.com"),
        auth("KERBEROS", "GSSAPI", "", ""),
        SaslAuth { method: "KERBEROS", mechanism: "GSSAPI", protocol: None, server_id: None },
    ] {
        // A mechanism, and with it a ticket, is only made from what this returns.
        let refusal = failure(Negotiated::receive(&offer(vec![other]), &identity()));
        assert!(matches!(refusal, Failure::PrincipalMismatch { .. }), "{refusal:?}");
    }
}

#[test]
fn refuses_a_server_that_ends_the_handshake_early() {
    let (exchange, _) = initiated(Recorded::default());
    let refusal = failure(exchange.receive(&success(), Protection::Authentication));
    assert!(matches!(refusal, Failure::Protocol(ref why) if why.contains("before it had proved")));
    let refusal = failure(authenticated().receive(&success(), Protection::Authentication));
    assert!(matches!(refusal, Failure::Protocol(ref why) if why.contains("before it had proved")));
}

#[test]
fn refuses_offers_that_are_not_signed_not_four_bytes_or_unknown() {
    for token in [
        &b"\x01\x01\x00\x00"[..],
        b"signed \x01\x01\x00",
        b"signed \x01\x01\x00\x00x",
        b"signed \x08\x01\x00\x00",
    ] {
        let refusal = failure(authenticated().receive(&challenge(token), Protection::Authentication));
        assert!(matches!(refusal, Failure::Protocol(_)), "{token:?}: {refusal:?}");
    }
    let tiny =
        failure(authenticated().receive(&challenge(b"signed \x04\x00\x00\x10"), Protection::Authentication));
    assert!(matches!(tiny, Failure::Protocol(_)));
}

#[test]
fn refuses_states_out_of_order_and_endless_rounds() {
    for state in [SaslState::Negotiate, SaslState::Initiate, SaslState::Response, SaslState::Wrap] {
        let (exchange, _) = initiated(Recorded::default());
        let frame = reply(&Sasl::new(state, Some(b"x")));
        assert!(matches!(
            failure(exchange.receive(&frame, Protection::Authentication)),
            Failure::Protocol(_)
        ));
    }
    let mut exchange = initiated(Recorded { endless: true, complete: false }).0;
    let mut rounds = 0;
    let refusal = loop {
        match exchange.receive(&challenge(b"x"), Protection::Authentication) {
            Ok(Step::Send(next, _)) => exchange = next,
            Ok(Step::Done(_)) => panic!("done"),
            Err(refusal) => break refusal,
        }
        rounds += 1;
    };
    assert!(matches!(refusal, Failure::Protocol(_)) && rounds <= MAX_ROUNDS, "{rounds} {refusal:?}");
}

#[test]
fn tells_why_the_server_refused_the_ticket() {
    let mut header = unhex("08dfffffff0f1002");
    let class = "javax.security.sasl.SaslException";
    crate::protobuf::put_bytes(4, class.as_bytes(), &mut header);
    crate::protobuf::put_bytes(5, b"GSS initiate failed", &mut header);
    let mut frame = Vec::new();
    put_varint(header.len() as u64, &mut frame);
    frame.extend(header);
    let (exchange, _) = initiated(Recorded::default());
    let refusal = failure(exchange.receive(&frame, Protection::Authentication));
    assert!(matches!(refusal, Failure::Refused(crate::error::Refusal::TicketRejected, _)), "{refusal:?}");
}

#[test]
fn arbitrary_bytes_never_panic() {
    proptest::proptest!(|(bytes: Vec<u8>, body: Vec<u8>)| {
        let mut framed = unhex(REPLY_HEADER);
        put_varint(body.len() as u64, &mut framed);
        framed.extend(&body);
        for frame in [bytes, framed] {
            let _ = Negotiated::receive(&frame, &identity());
            let _ = authenticated().receive(&frame, Protection::Authentication);
        }
    });
}
