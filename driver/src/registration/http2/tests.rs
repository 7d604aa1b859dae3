//! What a client may do, and what it may not, frame by frame.

use proptest::prelude::*;

use super::*;

const POST: [(&str, &str); 4] = [
    (":method", "POST"),
    (":path", "/a.B/C"),
    // As kubelet sends it, and h2 refuses it.
    (":authority", "%2Fvar%2Flib%2Fkubelet%2Fplugins_registry%2Fhadoop-token.csi-reg.sock"),
    ("content-type", "application/grpc"),
];

/// A gRPC message without a byte, framed.
const EMPTY: [u8; 5] = [0; 5];

fn raw(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn headers(stream: u32, fields: &[(&str, &str)], flags: u8) -> Vec<u8> {
    raw(0x1, flags, stream, &block(fields))
}

/// A whole call without content.
fn post(stream: u32) -> Vec<u8> {
    [headers(stream, &POST, 0x4), raw(0x0, 0x1, stream, &EMPTY)].concat()
}

/// A connection that has shaken hands, and nothing to send.
fn ready() -> Connection {
    let mut connection = Connection::new();
    connection.receive(&[PREFACE, &raw(0x4, 0, 0, &[])].concat()).unwrap();
    connection.take_output();
    connection
}

/// Types, flags and streams of what is to be sent.
fn sent(connection: &mut Connection) -> Vec<(u8, u8, u32)> {
    let output = connection.take_output();
    let (mut rest, mut frames) = (output.as_slice(), Vec::new());
    while let [_, l1, l2, kind, flags, s1, s2, s3, s4, ..] = rest {
        let length = usize::from(u16::from_be_bytes([*l1, *l2]));
        frames.push((*kind, *flags, u32::from_be_bytes([*s1, *s2, *s3, *s4])));
        rest = &rest[9 + length..];
    }
    frames
}

fn ids(calls: &[Call]) -> Vec<u32> {
    calls.iter().map(|call| call.stream).collect()
}

#[track_caller]
fn breaks(frames: &[u8], code: ErrorCode) {
    let mut connection = ready();
    let error = connection.receive(frames).expect_err("must end the connection");
    assert_eq!(error.code, code, "{error}");
    assert_eq!(sent(&mut connection).last().map(|frame| frame.0), Some(0x7), "GOAWAY is the last frame");
}

#[track_caller]
fn resets(frames: &[u8], code: ErrorCode) {
    let mut connection = ready();
    connection.receive(frames).expect("must not end the connection");
    let output = connection.take_output();
    let reset = raw(0x3, 0, 1, &(code as u32).to_be_bytes());
    assert!(output.ends_with(&reset), "{output:?}");
    assert_eq!(ids(&connection.receive(&post(5)).unwrap()), [5], "others go on");
}

#[test]
fn answers_a_call_however_its_bytes_are_cut() {
    let bytes = [PREFACE, &raw(0x4, 0, 0, &[]), &post(1)].concat();
    for cut in 0..bytes.len() {
        let mut connection = Connection::new();
        let mut calls = connection.receive(&bytes[..cut]).unwrap();
        calls.extend(connection.receive(&bytes[cut..]).unwrap());
        assert_eq!(calls, [Call { stream: 1, path: "/a.B/C".to_owned(), message: vec![] }]);
        connection.take_output();
        connection.reply(1, Ok(b"reply".to_vec()));
        assert_eq!(sent(&mut connection), [(0x1, 0x4, 1), (0x0, 0, 1), (0x1, 0x5, 1)]);
    }
}

#[test]
fn puts_header_blocks_and_bodies_together() {
    let mut connection = ready();
    let head = block(&POST);
    let frames = [
        raw(0x1, 0, 1, &head[..3]),
        raw(0x9, 0, 1, &head[3..9]),
        raw(0x9, 0x4, 1, &head[9..]),
        raw(0x0, 0, 1, &[0, 0, 0]),
        raw(0x0, 0x8, 1, &[2, 0, 2, b'h', 0, 0]),
        raw(0x0, 0x1, 1, b"i"),
    ];
    let calls = connection.receive(&frames.concat()).unwrap();
    assert_eq!(calls, [Call { stream: 1, path: "/a.B/C".to_owned(), message: b"hi".to_vec() }]);
}

#[test]
fn trailers_may_end_a_call() {
    let mut connection = ready();
    let frames = [headers(1, &POST, 0x4), raw(0x0, 0, 1, &EMPTY), headers(1, &[("x", "y")], 0x5)].concat();
    assert_eq!(ids(&connection.receive(&frames).unwrap()), [1]);
}

#[test]
fn huffman_and_the_dynamic_table_are_understood() {
    // RFC 7541, C.4.1 and C.4.2 put "www.example.com" (Huffman) into the table and use it from there.
    let first = [0x83, 0x86, 0x44, 0x06, b'/', b'a', b'.', b'B', b'/', b'C', 0x41, 0x8c];
    let authority = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
    let kind = [&[0x5f, 16], b"application/grpc".as_slice()].concat();
    let mut connection = ready();
    let head = [first.as_slice(), &authority, &kind].concat();
    let call = [raw(0x1, 0x4, 1, &head), raw(0x0, 0x1, 1, &EMPTY)].concat();
    assert_eq!(connection.receive(&call).unwrap()[0].path, "/a.B/C");
    // Now all of it by its index: content-type, authority and path are 62, 63 and 64.
    let call = [raw(0x1, 0x4, 3, &[0x83, 0xbe, 0xbf, 0xc0]), raw(0x0, 0x1, 3, &EMPTY)].concat();
    assert_eq!(connection.receive(&call).unwrap()[0].path, "/a.B/C");
}

#[test]
fn settings_and_pings_are_acknowledged() {
    let mut connection = ready();
    connection
        .receive(&[raw(0x4, 0, 0, &[]), raw(0x6, 0, 0, b"01234567"), raw(0x4, 1, 0, &[])].concat())
        .unwrap();
    assert_eq!(connection.take_output(), [raw(0x4, 1, 0, &[]), raw(0x6, 1, 0, b"01234567")].concat());
}

#[test]
fn a_reply_waits_for_the_windows() {
    let mut connection = ready();
    connection.receive(&raw(0x4, 0, 0, &[0, 4, 0, 0, 0, 6])).unwrap(); // initial window: 6 bytes
    connection.receive(&post(1)).unwrap();
    connection.take_output();
    connection.reply(1, Ok(b"0123456789".to_vec()));
    assert_eq!(sent(&mut connection), [(0x1, 0x4, 1), (0x0, 0, 1)], "6 of 15 bytes");
    connection.receive(&raw(0x8, 0, 1, &[0, 0, 0, 4])).unwrap();
    assert_eq!(sent(&mut connection), [(0x0, 0, 1)], "4 more");
    connection.receive(&raw(0x4, 0, 0, &[0, 4, 0, 1, 0, 0])).unwrap();
    assert_eq!(sent(&mut connection), [(0x4, 1, 0), (0x0, 0, 1), (0x1, 0x5, 1)], "the rest, and the end");
    assert!(connection.streams.is_empty());
}

#[test]
fn a_smaller_initial_window_may_make_a_streams_negative() {
    let mut connection = ready();
    connection.receive(&raw(0x4, 0, 0, &[0, 4, 0, 0, 0, 6])).unwrap();
    connection.receive(&post(1)).unwrap();
    connection.reply(1, Ok(b"0123456789".to_vec()));
    connection.receive(&raw(0x4, 0, 0, &[0, 4, 0, 0, 0, 0])).unwrap();
    connection.take_output();
    connection.receive(&raw(0x8, 0, 1, &[0, 0, 0, 6])).unwrap();
    assert_eq!(sent(&mut connection), [], "-6 and 6 is nothing");
}

#[test]
fn what_was_received_widens_the_connections_window_again() {
    let mut connection = ready();
    for stream in 0..40 {
        let stream = stream * 2 + 1;
        let body = [&[0, 0, 0, 0x3f, 0xf0], [b'x'; 0x3ff0].as_slice()].concat();
        let frames = [headers(stream, &POST, 0x4), raw(0x0, 0x1, stream, &body)].concat();
        assert_eq!(ids(&connection.receive(&frames).unwrap()), [stream]);
        assert_eq!(connection.take_output(), raw(0x8, 0, 0, &[0, 0, 0x3f, 0xf5]));
        connection.reply(stream, Err(Failure::UNKNOWN_METHOD));
        connection.take_output();
    }
}

#[test]
fn a_failure_is_one_block_of_trailers() {
    let mut connection = ready();
    connection.receive(&post(1)).unwrap();
    connection.take_output();
    connection.reply(1, Err(Failure::UNKNOWN_METHOD));
    let output = connection.take_output();
    assert_eq!(Decoder::new().decode(&output[9..]).unwrap()[2], (b"grpc-status".to_vec(), b"12".to_vec()));
    assert_eq!((output[3], output[4]), (0x1, 0x5));
}

#[test]
fn replies_to_streams_that_were_given_up_are_skipped() {
    let mut connection = ready();
    connection.receive(&[post(1), raw(0x3, 0, 1, &[0; 4])].concat()).unwrap();
    connection.take_output();
    connection.reply(1, Ok(vec![]));
    connection.reply(3, Err(Failure::UNKNOWN_METHOD));
    assert_eq!(connection.take_output(), b"");
}

#[test]
fn bodies_must_hold_one_plain_message() {
    let cases: [(&[u8], &str); 4] = [
        (&[], "exactly one"),
        (&[0, 0, 0, 0, 2, 1], "exactly one"),
        (&[0, 0, 0, 0, 1, 1, 0], "exactly one"),
        (&[1, 0, 0, 0, 0], "compressed"),
    ];
    for (body, sentence) in cases {
        let mut connection = ready();
        let frames = [headers(1, &POST, 0x4), raw(0x0, 0x1, 1, body)].concat();
        assert_eq!(connection.receive(&frames).unwrap(), []);
        let output = connection.take_output();
        assert!(String::from_utf8_lossy(&output).contains(sentence), "{body:?}");
    }
}

#[test]
fn calls_that_are_not_grpc_are_refused_alone() {
    let cases: [&[(&str, &str)]; 2] = [
        &[(":method", "GET"), (":path", "/"), ("content-type", "application/grpc")],
        &[(":method", "POST"), (":path", "/"), ("content-type", "text/plain")],
    ];
    for fields in cases {
        let mut connection = ready();
        assert_eq!(connection.receive(&headers(1, fields, 0x5)).unwrap(), []);
        assert_eq!(sent(&mut connection), [(0x1, 0x5, 1)]);
        assert_eq!(ids(&connection.receive(&post(3)).unwrap()), [3]);
    }
    resets(&headers(1, &[(":method", "POST")], 0x5), ErrorCode::Protocol);
}

#[test]
fn streams_beyond_the_bound_are_refused_and_the_table_is_kept() {
    let mut connection = ready();
    let open: Vec<u8> = (0..8).flat_map(|n| headers(n * 2 + 1, &POST, 0x4)).collect();
    connection.receive(&open).unwrap();
    connection.take_output();
    connection.receive(&post(17)).unwrap();
    let refused = raw(0x3, 0, 17, &(ErrorCode::RefusedStream as u32).to_be_bytes());
    assert!(connection.take_output().starts_with(&refused));
    connection.receive(&raw(0x3, 0, 1, &[0; 4])).unwrap();
    assert_eq!(ids(&connection.receive(&post(19)).unwrap()), [19]);
}

#[test]
fn what_exceeds_a_bound_ends_the_stream_or_the_connection() {
    let much = raw(0x0, 0, 1, &[0; MAX_PAYLOAD]);
    resets(
        &[headers(1, &POST, 0x4), much.clone(), much, raw(0x0, 0, 1, b"x")].concat(),
        ErrorCode::EnhanceYourCalm,
    );
    let part = raw(0x9, 0, 1, &[0; 4096]);
    breaks(&[raw(0x1, 0, 1, b"x"), part.clone(), part].concat(), ErrorCode::EnhanceYourCalm);
    breaks(&raw(0x0, 0, 1, &[0; MAX_PAYLOAD + 1]), ErrorCode::FrameSize);
    // Opened and given up, over and over.
    let many: Vec<u8> = (0..1_001)
        .flat_map(|n| [headers(n * 2 + 1, &POST, 0x4), raw(0x3, 0, n * 2 + 1, &[0; 4])].concat())
        .collect();
    breaks(&many, ErrorCode::EnhanceYourCalm);
    // A table beyond the default.
    breaks(&raw(0x1, 0x4, 1, &[0x3f, 0xe2, 0x1f, 0x83]), ErrorCode::Compression);
}

#[test]
fn broken_rules_end_the_connection() {
    use ErrorCode::{Compression, FlowControl, Protocol};
    let open = headers(1, &POST, 0x4);
    breaks(&raw(0x1, 0x4, 1, &[0xff, 0xff]), Compression);
    breaks(&[raw(0x1, 0, 1, b""), raw(0x6, 0, 0, &[0; 8])].concat(), Protocol);
    breaks(&[raw(0x1, 0, 1, b""), raw(0x9, 0x4, 3, b"")].concat(), Protocol);
    breaks(&[raw(0x1, 0, 1, b""), raw(0x9, 0, 1, b"")].concat(), Protocol);
    breaks(&raw(0x9, 0x4, 1, b""), Protocol);
    breaks(&headers(2, &POST, 0x5), Protocol);
    breaks(&[headers(5, &POST, 0x4), headers(3, &POST, 0x4)].concat(), Protocol);
    breaks(&[open.clone(), headers(1, &[("x", "y")], 0x4)].concat(), Protocol);
    breaks(&raw(0x0, 0, 1, b""), Protocol);
    breaks(&raw(0x3, 0, 1, &[0; 4]), Protocol);
    breaks(&raw(0x8, 0, 1, &[0, 0, 0, 1]), Protocol);
    breaks(&raw(0x5, 0x4, 1, &[0, 0, 0, 2]), Protocol);
    breaks(&raw(0x8, 0, 0, &[0; 4]), Protocol);
    breaks(&raw(0x8, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), FlowControl);
    breaks(&raw(0x4, 0, 0, &[0, 4, 0x80, 0, 0, 0]), FlowControl);
    breaks(&raw(0x4, 0, 0, &[0, 5, 0, 0, 0, 1]), Protocol);
    breaks(&raw(0x4, 0, 0, &[0, 2, 0, 0, 0, 2]), Protocol);
    let wide = raw(0x8, 0, 1, &[0x7f, 0xff, 0, 0]);
    breaks(&[open, wide, raw(0x4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff])].concat(), FlowControl);
}

#[test]
fn a_streams_own_faults_end_it_alone() {
    let open = headers(1, &POST, 0x4);
    resets(&[post(1), raw(0x0, 0, 1, b"x")].concat(), ErrorCode::StreamClosed);
    resets(&[post(1), headers(1, &[("x", "y")], 0x5)].concat(), ErrorCode::StreamClosed);
    resets(&[open.clone(), raw(0x8, 0, 1, &[0; 4])].concat(), ErrorCode::Protocol);
    resets(&[open, raw(0x8, 0, 1, &[0x7f, 0xff, 0xff, 0xff])].concat(), ErrorCode::FlowControl);
}

#[test]
fn the_connection_must_begin_as_http2_does() {
    let mut connection = Connection::new();
    assert_eq!(connection.receive(b"PRI * HTTP/1").unwrap_err().code, ErrorCode::Protocol);
    let mut connection = Connection::new();
    let ping = [PREFACE, &raw(0x6, 0, 0, &[0; 8])].concat();
    assert_eq!(connection.receive(&ping).unwrap_err().code, ErrorCode::Protocol);
    let mut connection = Connection::new();
    let acknowledged = [PREFACE, &raw(0x4, 1, 0, &[])].concat();
    assert_eq!(connection.receive(&acknowledged).unwrap_err().code, ErrorCode::Protocol);
}

/// Feeds `bytes` in parts and answers every call, as the real loop does.
fn survives(connection: &mut Connection, bytes: &[u8], part: usize) {
    for part in bytes.chunks(part) {
        let Ok(calls) = connection.receive(part) else { return };
        for call in calls {
            connection.reply(call.stream, Ok(vec![0; 100]));
        }
        connection.take_output();
        assert!(connection.streams.len() <= usize::from(MAX_STREAMS));
        assert!(connection.input.len() <= 9 + MAX_PAYLOAD + part.len());
        assert!(connection.streams.values().all(|stream| stream.body.len() <= MAX_BODY));
        assert!(
            connection.block.as_ref().is_none_or(|block| block.bytes.len() <= usize::from(MAX_HEADER_BLOCK))
        );
    }
}

prop_compose! {
    fn any_frame()(
        kind in 0u8..11, flags: u8, stream in prop_oneof![0u32..12, any::<u32>()],
        payload in prop_oneof![
            any::<Vec<u8>>(),
            Just(block(&POST)),
            Just(EMPTY.to_vec()),
            any::<[u8; 4]>().prop_map(Vec::from),
            any::<[u8; 8]>().prop_map(Vec::from),
            (0u8..8, any::<[u8; 4]>()).prop_map(|(setting, value)| [&[0, setting], value.as_slice()].concat()),
        ],
    ) -> Vec<u8> {
        raw(kind, flags, stream, &payload)
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_and_stay_within_the_bounds(bytes: Vec<u8>, part in 1usize..64) {
        survives(&mut Connection::new(), &bytes, part);
        survives(&mut ready(), &bytes, part);
    }

    #[test]
    fn arbitrary_frames_never_panic_and_stay_within_the_bounds(
        frames in prop::collection::vec(any_frame(), 0..40), part in 1usize..512,
    ) {
        survives(&mut ready(), &frames.concat(), part);
    }
}
