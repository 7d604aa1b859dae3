//! The credentials file that `HADOOP_TOKEN_FILE_LOCATION` names, versions 0 (`Writable`, what Hadoop writes) and 1
//! (protobuf). Codec only: it opens no file. Buffers that hold passwords are wiped.

use std::fmt;

use zeroize::Zeroizing;

use crate::codec::{Counter, DecodeError, Reader, Sink};
use crate::protobuf;
use crate::token::{Token, TokenPassword};

const MAGIC: &[u8] = b"HDTS";
const WHAT: &str = "token file";

/// What a credentials file holds. Each token stands under an alias; readers keep the last one of each. Write
/// alias = service: only then does a running client pick up a newer token.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TokenFile {
    /// Tokens by alias, in the order of the file.
    pub tokens: Vec<(String, Token)>,
    /// Other secrets by alias.
    pub secrets: Vec<(String, TokenPassword)>,
}

impl TokenFile {
    /// Reads a file of either version.
    ///
    /// # Errors
    ///
    /// When the bytes are not a whole credentials file, or hold more than one.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        if reader.take(MAGIC.len(), WHAT)? != MAGIC {
            return Err(DecodeError::BadHeader(WHAT));
        }
        let file = match reader.byte(WHAT)? {
            0 => Self::read_v0(&mut reader)?,
            1 => Self::read_v1(protobuf::delimited(&mut reader, WHAT)?)?,
            version => return Err(DecodeError::UnknownVersion { what: WHAT, version }),
        };
        reader.finish(WHAT)?;
        Ok(file)
    }

    /// The file in version 0, which every reader knows. Secret.
    #[must_use]
    pub fn encode_v0(&self) -> Zeroizing<Vec<u8>> {
        let mut length = Counter::default();
        self.write_v0(&mut length);
        let mut bytes = Zeroizing::new(Vec::with_capacity(length.0));
        self.write_v0(&mut *bytes);
        bytes
    }

    /// The file in version 1. Secret.
    #[must_use]
    pub fn encode_v1(&self) -> Zeroizing<Vec<u8>> {
        let mut length = Counter::default();
        self.write_v1(&mut length);
        let mut bytes = Zeroizing::new(Vec::with_capacity(length.0));
        self.write_v1(&mut *bytes);
        bytes
    }

    fn read_v0(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut file = Self::default();
        for _ in 0..count(reader)? {
            let alias = reader.text("token alias")?.to_owned();
            file.tokens.push((alias, Token::read(reader)?));
        }
        for _ in 0..count(reader)? {
            let alias = reader.text("secret alias")?.to_owned();
            file.secrets.push((alias, reader.bytes("secret")?.into()));
        }
        Ok(file)
    }

    fn write_v0(&self, sink: &mut impl Sink) {
        sink.put(MAGIC);
        sink.put(&[0]);
        sink.vlong(i64::try_from(self.tokens.len()).unwrap_or(i64::MAX));
        for (alias, token) in &self.tokens {
            sink.bytes(alias.as_bytes());
            token.write(sink);
        }
        sink.vlong(i64::try_from(self.secrets.len()).unwrap_or(i64::MAX));
        for (alias, secret) in &self.secrets {
            sink.bytes(alias.as_bytes());
            sink.bytes(secret.expose());
        }
    }

    /// `CredentialsProto`: entries of alias and token in field 1, of alias and secret in field 2.
    fn read_v1(message: &[u8]) -> Result<Self, DecodeError> {
        let mut file = Self::default();
        protobuf::fields(message, WHAT, |number, value| {
            if number != 1 && number != 2 {
                return Ok(());
            }
            let (mut alias, mut token, mut secret) = (None, None, None);
            protobuf::fields(value.bytes(WHAT)?, WHAT, |number, value| {
                match number {
                    1 => alias = Some(value.text("alias")?.to_owned()),
                    2 => token = Some(protobuf::token(value.bytes("token message")?)?),
                    3 => secret = Some(TokenPassword::from(value.bytes("secret")?)),
                    _ => {}
                }
                Ok(())
            })?;
            let alias = alias.ok_or(DecodeError::Protobuf(WHAT))?;
            if number == 1 {
                file.tokens.push((alias, token.ok_or(DecodeError::Protobuf(WHAT))?));
            } else {
                file.secrets.push((alias, secret.ok_or(DecodeError::Protobuf(WHAT))?));
            }
            Ok(())
        })?;
        Ok(file)
    }

    fn write_v1(&self, sink: &mut impl Sink) {
        sink.put(MAGIC);
        sink.put(&[1]);
        let mut length = Counter::default();
        self.write_credentials(&mut length);
        protobuf::put_varint(length.0 as u64, sink);
        self.write_credentials(sink);
    }

    fn write_credentials(&self, sink: &mut impl Sink) {
        for (alias, token) in &self.tokens {
            let (mut entry, mut message) = (Counter::default(), Counter::default());
            protobuf::put_token(token, &mut message);
            protobuf::put_bytes(1, alias.as_bytes(), &mut entry);
            protobuf::put_header(2, message.0, &mut entry);
            protobuf::put_header(1, entry.0 + message.0, sink);
            protobuf::put_bytes(1, alias.as_bytes(), sink);
            protobuf::put_header(2, message.0, sink);
            protobuf::put_token(token, sink);
        }
        for (alias, secret) in &self.secrets {
            let mut entry = Counter::default();
            protobuf::put_bytes(1, alias.as_bytes(), &mut entry);
            protobuf::put_bytes(3, secret.expose(), &mut entry);
            protobuf::put_header(2, entry.0, sink);
            protobuf::put_bytes(1, alias.as_bytes(), sink);
            protobuf::put_bytes(3, secret.expose(), sink);
        }
    }
}

impl fmt::Debug for TokenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenFile").field("tokens", &self.tokens).field("secrets", &self.secrets).finish()
    }
}

fn count(reader: &mut Reader<'_>) -> Result<usize, DecodeError> {
    usize::try_from(reader.vint("number of entries")?)
        .map_err(|_| DecodeError::OutOfRange("number of entries"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::token::tests::{IDENTIFIER, any_token, recorded_token, unhex};

    fn recorded_file() -> TokenFile {
        TokenFile {
            tokens: vec![("ha-hdfs:ns1".to_owned(), recorded_token())],
            secrets: vec![("k".to_owned(), vec![9, 8].into())],
        }
    }

    fn recorded_v0() -> Vec<u8> {
        unhex(&format!(
            "4844545300010b68612d686466733a6e73313c{IDENTIFIER}140102030405060708090a0b0c0d0e0f101112131415484446535f44454c45474154494f4e5f544f4b454e0b68612d686466733a6e733101016b020908"
        ))
    }

    fn recorded_v1() -> Vec<u8> {
        unhex(&format!(
            "484454530193010a87010a0b68612d686466733a6e733112780a3c{IDENTIFIER}12140102030405060708090a0b0c0d0e0f10111213141a15484446535f44454c45474154494f4e5f544f4b454e220b68612d686466733a6e733112070a016b1a020908"
        ))
    }

    #[test]
    fn version_0_is_what_hadoop_reads_and_writes() {
        assert_eq!(*recorded_file().encode_v0(), recorded_v0());
        assert_eq!(TokenFile::decode(&recorded_v0()), Ok(recorded_file()));
    }

    #[test]
    fn version_1_is_what_hadoop_reads_and_writes() {
        assert_eq!(*recorded_file().encode_v1(), recorded_v1());
        assert_eq!(TokenFile::decode(&recorded_v1()), Ok(recorded_file()));
    }

    #[test]
    fn buffers_are_allocated_once_so_that_no_copy_of_a_password_is_left() {
        for bytes in [recorded_file().encode_v0(), recorded_file().encode_v1()] {
            assert_eq!(bytes.len(), bytes.capacity());
        }
    }

    #[test]
    fn refuses_every_shortened_or_lengthened_file() {
        for whole in [recorded_v0(), recorded_v1()] {
            for length in 0..whole.len() {
                assert!(TokenFile::decode(&whole[..length]).is_err(), "{length} bytes");
            }
            let longer = [whole, vec![0]].concat();
            assert_eq!(TokenFile::decode(&longer), Err(DecodeError::Trailing { what: WHAT, bytes: 1 }));
        }
    }

    #[test]
    fn refuses_what_is_not_a_token_file() {
        assert_eq!(TokenFile::decode(b"{\"a\":1}"), Err(DecodeError::BadHeader(WHAT)));
        assert_eq!(
            TokenFile::decode(b"HDTS\x02"),
            Err(DecodeError::UnknownVersion { what: WHAT, version: 2 })
        );
    }

    prop_compose! {
        fn any_file()(
            tokens in prop::collection::vec((any::<String>(), any_token()), 0..4),
            secrets in prop::collection::vec((any::<String>(), any::<Vec<u8>>()), 0..4),
        ) -> TokenFile {
            TokenFile { tokens, secrets: secrets.into_iter().map(|(alias, secret)| (alias, secret.into())).collect() }
        }
    }

    proptest! {
        #[test]
        fn every_file_survives_both_versions(file in any_file()) {
            prop_assert_eq!(TokenFile::decode(&file.encode_v0()), Ok(file.clone()));
            prop_assert_eq!(TokenFile::decode(&file.encode_v1()), Ok(file));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, version in 0..2u8) {
            let _ = TokenFile::decode(&bytes);
            let _ = TokenFile::decode(&[b"HDTS".as_slice(), &[version], &bytes].concat());
        }

        #[test]
        fn a_changed_byte_never_panics(at in 0..200usize, to: u8, version in 0..2u8) {
            let mut bytes = if version == 0 { recorded_v0() } else { recorded_v1() };
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = TokenFile::decode(&bytes);
        }
    }
}
