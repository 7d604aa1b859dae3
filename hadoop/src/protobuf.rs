//! Protobuf's wire format, as far as Hadoop's messages need it, and the message that is a token. By hand, since a
//! generated decoder copies every field, passwords too, through buffers that nobody wipes; here a field is a slice of
//! the one buffer it came in.

use crate::codec::{DecodeError, Reader, Sink};
use crate::token::{Token, TokenPassword};

/// Value of one field as it stands on the wire. Never shown: it may be a password.
#[derive(Clone, Copy)]
pub(crate) enum Value<'a> {
    #[cfg_attr(not(feature = "rpc"), expect(dead_code, reason = "only messages of calls have numbers"))]
    Varint(u64),
    Bytes(&'a [u8]),
    /// Fixed-size numbers, which none of these messages use.
    Fixed,
}

impl<'a> Value<'a> {
    pub(crate) fn bytes(self, what: &'static str) -> Result<&'a [u8], DecodeError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Varint(_) | Self::Fixed => Err(DecodeError::Protobuf(what)),
        }
    }

    #[cfg(feature = "rpc")]
    pub(crate) fn number(self, what: &'static str) -> Result<u64, DecodeError> {
        match self {
            Self::Varint(number) => Ok(number),
            Self::Bytes(_) | Self::Fixed => Err(DecodeError::Protobuf(what)),
        }
    }

    pub(crate) fn text(self, what: &'static str) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes(what)?).map_err(|_| DecodeError::NotUtf8(what))
    }
}

/// Calls `field` with number and value of each field of a message, in order.
pub(crate) fn fields<'a>(
    message: &'a [u8],
    what: &'static str,
    mut field: impl FnMut(u64, Value<'a>) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    let mut reader = Reader::new(message);
    while reader.remaining() > 0 {
        let key = varint(&mut reader, what)?;
        let value = match key & 7 {
            0 => Value::Varint(varint(&mut reader, what)?),
            1 => reader.take(8, what).map(|_| Value::Fixed)?,
            2 => Value::Bytes(delimited(&mut reader, what)?),
            5 => reader.take(4, what).map(|_| Value::Fixed)?,
            _ => return Err(DecodeError::Protobuf(what)),
        };
        match key >> 3 {
            0 => return Err(DecodeError::Protobuf(what)),
            number => field(number, value)?,
        }
    }
    Ok(())
}

pub(crate) fn varint(reader: &mut Reader<'_>, what: &'static str) -> Result<u64, DecodeError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = reader.byte(what)?;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            break;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(DecodeError::OutOfRange(what))
}

/// A message or byte string with its length before it.
pub(crate) fn delimited<'a>(reader: &mut Reader<'a>, what: &'static str) -> Result<&'a [u8], DecodeError> {
    let length = usize::try_from(varint(reader, what)?).map_err(|_| DecodeError::OutOfRange(what))?;
    reader.take(length, what)
}

pub(crate) fn put_varint(mut value: u64, sink: &mut impl Sink) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            return sink.put(&[low & 0x7f]);
        }
        sink.put(&[low | 0x80]);
    }
}

/// Field `number` with an unsigned number or enum value.
#[cfg(feature = "rpc")]
pub(crate) fn put_number(number: u32, value: u64, sink: &mut impl Sink) {
    put_varint(u64::from(number) << 3, sink);
    put_varint(value, sink);
}

/// Field `number` with an `sint32`, whose sign is its lowest bit.
#[cfg(feature = "rpc")]
pub(crate) fn put_signed(number: u32, value: i32, sink: &mut impl Sink) {
    put_number(number, u64::from(((value << 1) ^ (value >> 31)).cast_unsigned()), sink);
}

/// Field `number` with a text, byte string or encoded message.
pub(crate) fn put_bytes(number: u32, bytes: &[u8], sink: &mut impl Sink) {
    put_header(number, bytes.len(), sink);
    sink.put(bytes);
}

/// What stands before a field of `length` bytes.
pub(crate) fn put_header(number: u32, length: usize, sink: &mut impl Sink) {
    put_varint(u64::from(number) << 3 | 2, sink);
    put_varint(length as u64, sink);
}

/// `hadoop.common.TokenProto`.
pub(crate) fn put_token(token: &Token, sink: &mut impl Sink) {
    put_bytes(1, &token.identifier, sink);
    put_bytes(2, token.password.expose(), sink);
    put_bytes(3, token.kind.as_bytes(), sink);
    put_bytes(4, token.service.as_bytes(), sink);
}

/// Reads `hadoop.common.TokenProto`; all four fields are required.
pub(crate) fn token(message: &[u8]) -> Result<Token, DecodeError> {
    let what = "token message";
    let (mut identifier, mut password, mut kind, mut service) = (None, None, None, None);
    fields(message, what, |number, value| {
        match number {
            1 => identifier = Some(value.bytes("token identifier")?),
            2 => password = Some(value.bytes("token password")?),
            3 => kind = Some(value.text("token kind")?),
            4 => service = Some(value.text("token service")?),
            _ => {}
        }
        Ok(())
    })?;
    match (identifier, password, kind, service) {
        (Some(identifier), Some(password), Some(kind), Some(service)) => Ok(Token {
            identifier: identifier.to_vec(),
            password: TokenPassword::from(password),
            kind: kind.to_owned(),
            service: service.to_owned(),
        }),
        _ => Err(DecodeError::Protobuf(what)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refuses_a_token_without_a_password() {
        let mut message = Vec::new();
        put_bytes(1, b"id", &mut message);
        put_bytes(3, b"kind", &mut message);
        put_bytes(4, b"", &mut message);
        assert_eq!(token(&message), Err(DecodeError::Protobuf("token message")));
        put_bytes(2, b"", &mut message);
        assert!(token(&message).is_ok());
    }

    #[test]
    fn refuses_field_zero_groups_and_endless_numbers() {
        let none = |_, _: Value<'_>| Ok(());
        assert!(fields(&[0x00, 0x00], "message", none).is_err());
        assert!(fields(&[0x0b], "message", none).is_err());
        assert!(
            fields(&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], "message", none)
                .is_err()
        );
        assert!(fields(&[0x0a, 0x05, 0x00], "message", none).is_err());
    }

    #[test]
    fn skips_fields_it_does_not_know() {
        let mut message = vec![0x49, 1, 2, 3, 4, 5, 6, 7, 8, 0x55, 1, 2, 3, 4, 0x98, 0x01, 0x05];
        put_token(&Token::new(b"id".to_vec(), b"pw".as_slice(), "kind", "service"), &mut message);
        assert_eq!(token(&message), Ok(Token::new(b"id".to_vec(), b"pw".as_slice(), "kind", "service")));
    }

    proptest! {
        #[test]
        fn numbers_survive_a_round_trip(value: u64) {
            let mut written = Vec::new();
            put_varint(value, &mut written);
            prop_assert_eq!(varint(&mut Reader::new(&written), "number"), Ok(value));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = token(&bytes);
        }
    }
}
