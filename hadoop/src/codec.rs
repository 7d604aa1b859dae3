//! Hadoop's `Writable` encoding: variable-length numbers, texts and byte strings. Reading never copies, never trusts
//! a length beyond the bytes that are there, and never panics.

/// Bytes that are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The input ends inside a value.
    #[error("{0} is cut short")]
    Truncated(&'static str),
    /// A length or number that cannot be.
    #[error("{0} is out of range")]
    OutOfRange(&'static str),
    /// Text that is not UTF-8.
    #[error("{0} is not UTF-8")]
    NotUtf8(&'static str),
    /// Bytes after the end.
    #[error("{bytes} bytes follow the end of {what}")]
    Trailing {
        /// What had ended.
        what: &'static str,
        /// How much more there is.
        bytes: usize,
    },
    /// The first bytes are not those of the format.
    #[error("{0} does not start as one")]
    BadHeader(&'static str),
    /// A version of the format that is not known.
    #[error("{what} has unknown version {version}")]
    UnknownVersion {
        /// The format.
        what: &'static str,
        /// The version it claims.
        version: u8,
    },
    /// A token kind whose identifier has another encoding.
    #[error("identifiers of kind {0:?} cannot be decoded")]
    UndecodableKind(String),
    /// A protobuf field that must be there is not, or has another type.
    #[error("{0} is malformed protobuf")]
    Protobuf(&'static str),
    /// Not URL-safe Base64.
    #[error("{0} is not Base64")]
    Base64(&'static str),
}

/// Reads `Writable` values from the front of a byte string.
#[derive(Clone)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn remaining(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn finish(self, what: &'static str) -> Result<(), DecodeError> {
        match self.0.len() {
            0 => Ok(()),
            bytes => Err(DecodeError::Trailing { what, bytes }),
        }
    }

    pub(crate) fn take(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(DecodeError::Truncated(what))?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn byte(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        let (&first, rest) = self.0.split_first().ok_or(DecodeError::Truncated(what))?;
        self.0 = rest;
        Ok(first)
    }

    /// A number of one to nine bytes. The first one is the number itself, or tells sign and length of what follows.
    pub(crate) fn vlong(&mut self, what: &'static str) -> Result<i64, DecodeError> {
        let first = self.byte(what)?.cast_signed();
        let (negative, length) = match first {
            -128..=-121 => (true, -120 - i16::from(first)),
            -120..=-113 => (false, -112 - i16::from(first)),
            -112.. => return Ok(i64::from(first)),
        };
        let payload = self.take(usize::from(length.unsigned_abs()), what)?;
        let value = payload.iter().fold(0u64, |value, &byte| value << 8 | u64::from(byte)).cast_signed();
        Ok(if negative { !value } else { value })
    }

    pub(crate) fn vint(&mut self, what: &'static str) -> Result<i32, DecodeError> {
        i32::try_from(self.vlong(what)?).map_err(|_| DecodeError::OutOfRange(what))
    }

    /// A byte string: its length, then the bytes.
    pub(crate) fn bytes(&mut self, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let length = usize::try_from(self.vint(what)?).map_err(|_| DecodeError::OutOfRange(what))?;
        self.take(length, what)
    }

    pub(crate) fn text(&mut self, what: &'static str) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes(what)?).map_err(|_| DecodeError::NotUtf8(what))
    }
}

/// Takes encoded bytes. There are two: one that only counts, so that the one that keeps them can be given its full
/// capacity first; a buffer that grows would leave unwiped copies of secrets behind.
pub(crate) trait Sink {
    fn put(&mut self, bytes: &[u8]);

    fn vlong(&mut self, value: i64) {
        if let Ok(small @ -112..) = i8::try_from(value) {
            return self.put(&[small.cast_unsigned()]);
        }
        let magnitude = if value < 0 { !value } else { value }.cast_unsigned();
        let payload = magnitude.to_be_bytes();
        let skipped = usize::min(magnitude.leading_zeros() as usize / 8, 7);
        let payload = payload.get(skipped..).unwrap_or_default();
        // 1..=8 payload bytes: -113..=-120, or -121..=-128 when negative.
        let length = i8::try_from(payload.len()).unwrap_or(8);
        let first = if value < 0 { -120 - length } else { -112 - length };
        self.put(&[first.cast_unsigned()]);
        self.put(payload);
    }

    fn vint(&mut self, value: i32) {
        self.vlong(i64::from(value));
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.vlong(i64::try_from(bytes.len()).unwrap_or(i64::MAX));
        self.put(bytes);
    }
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Counts what would be written.
#[derive(Default)]
pub(crate) struct Counter(pub(crate) usize);

impl Sink for Counter {
    fn put(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    #[track_caller]
    fn check(value: i64, hex: &str) {
        let mut written = Vec::new();
        written.vlong(value);
        assert_eq!(written, unhex(hex), "{value}");
        let mut reader = Reader::new(&written);
        assert_eq!(reader.vlong("number"), Ok(value));
        assert_eq!(reader.finish("number"), Ok(()));
    }

    #[test]
    fn numbers_are_written_as_hadoop_writes_them() {
        check(0, "00");
        check(127, "7f");
        check(128, "8f80");
        check(255, "8fff");
        check(256, "8e0100");
        check(65535, "8effff");
        check(65536, "8d010000");
        check(1_700_000_000_000, "8a018bcfe56800");
        check(-1, "ff");
        check(-112, "90");
        check(-113, "8770");
        check(-256, "87ff");
        check(-257, "860100");
        check(i64::MAX, "887fffffffffffffff");
        check(i64::MIN, "807fffffffffffffff");
    }

    #[test]
    fn refuses_lengths_that_are_negative_or_too_long() {
        assert_eq!(Reader::new(&[0xff]).bytes("name"), Err(DecodeError::OutOfRange("name")));
        assert_eq!(
            Reader::new(&unhex("8c7fffffff00")).bytes("name"),
            Err(DecodeError::Truncated("name")),
            "2 GiB"
        );
        assert_eq!(
            Reader::new(&unhex("887fffffffffffffff")).bytes("name"),
            Err(DecodeError::OutOfRange("name"))
        );
        assert_eq!(Reader::new(&[]).vlong("number"), Err(DecodeError::Truncated("number")));
        assert_eq!(Reader::new(&[0x8e, 1]).vlong("number"), Err(DecodeError::Truncated("number")));
        assert_eq!(Reader::new(&[1, 0xff]).text("name"), Err(DecodeError::NotUtf8("name")));
    }

    proptest! {
        #[test]
        fn every_number_survives_a_round_trip(value: i64) {
            let (mut written, mut counted) = (Vec::new(), Counter::default());
            written.vlong(value);
            counted.vlong(value);
            prop_assert_eq!(written.len(), counted.0);
            prop_assert_eq!(Reader::new(&written).vlong("number"), Ok(value));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Reader::new(&bytes).vlong("number");
            let _ = Reader::new(&bytes).vint("number");
            let _ = Reader::new(&bytes).text("text");
        }
    }
}
