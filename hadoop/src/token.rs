//! A delegation token, the identifier inside it, and its one-line text form (`HADOOP_TOKEN`, WebHDFS). The identifier
//! may be shown and stored; the password has a type that cannot be printed and is wiped.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD_INDIFFERENT;
use zeroize::Zeroizing;

use crate::codec::{Counter, DecodeError, Reader, Sink};

/// Kind of the tokens of NameNodes and HDFS routers.
pub const HDFS_DELEGATION_TOKEN: &str = "HDFS_DELEGATION_TOKEN";

/// Kinds whose identifier has the common `Writable` layout. Others (YARN's ResourceManager, Timeline, HBase, Ozone)
/// are protobuf.
const WRITABLE_KINDS: [&str; 6] = [
    HDFS_DELEGATION_TOKEN,
    "WEBHDFS delegation",
    "SWEBHDFS delegation",
    "kms-dt",
    "MR_DELEGATION_TOKEN",
    "HIVE_DELEGATION_TOKEN",
];

/// A delegation token: whoever holds it acts as its owner until it expires or is cancelled.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What the service knows the token by; see [`TokenIdentifier`].
    pub identifier: Vec<u8>,
    /// What proves that its holder may use it.
    pub password: TokenPassword,
    /// Which sort of service issued it, such as [`HDFS_DELEGATION_TOKEN`].
    pub kind: String,
    /// Name under which clients look it up. Empty as issued.
    pub service: String,
}

impl Token {
    /// A token of these parts.
    pub fn new(
        identifier: Vec<u8>,
        password: impl Into<TokenPassword>,
        kind: impl Into<String>,
        service: impl Into<String>,
    ) -> Self {
        Self { identifier, password: password.into(), kind: kind.into(), service: service.into() }
    }

    /// Reads the identifier.
    ///
    /// # Errors
    ///
    /// [`DecodeError::UndecodableKind`] when tokens of this kind have another sort of identifier, which is no fault of
    /// the token; any other when its bytes are not an identifier.
    pub fn decode_identifier(&self) -> Result<TokenIdentifier, DecodeError> {
        TokenIdentifier::decode(&self.kind, &self.identifier)
    }

    /// The token as one line of URL-safe Base64: identifier, password, kind and service. Secret.
    #[must_use]
    pub fn to_url_string(&self) -> Zeroizing<String> {
        let mut length = Counter::default();
        self.write(&mut length);
        let mut bytes = Zeroizing::new(Vec::with_capacity(length.0));
        self.write(&mut *bytes);
        let mut text = Zeroizing::new(String::with_capacity(bytes.len().div_ceil(3) * 4));
        URL_SAFE_NO_PAD_INDIFFERENT.encode_string(&*bytes, &mut text);
        text
    }

    /// Reads a token from its one-line form.
    ///
    /// # Errors
    ///
    /// When the text is not a token. The error holds nothing of the text.
    pub fn from_url_string(text: &str) -> Result<Self, DecodeError> {
        let what = "token text";
        let mut bytes = Zeroizing::new(vec![0; text.len().div_ceil(4) * 3]);
        let length = URL_SAFE_NO_PAD_INDIFFERENT
            .decode_slice(text, &mut bytes)
            .map_err(|_| DecodeError::Base64(what))?;
        bytes.truncate(length);
        let mut reader = Reader::new(&bytes);
        let token = Self::read(&mut reader)?;
        reader.finish(what)?;
        Ok(token)
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            identifier: reader.bytes("token identifier")?.to_vec(),
            password: TokenPassword::from(reader.bytes("token password")?),
            kind: reader.text("token kind")?.to_owned(),
            service: reader.text("token service")?.to_owned(),
        })
    }

    pub(crate) fn write(&self, sink: &mut impl Sink) {
        sink.bytes(&self.identifier);
        sink.bytes(self.password.expose());
        sink.bytes(self.kind.as_bytes());
        sink.bytes(self.service.as_bytes());
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Token");
        match self.decode_identifier() {
            Ok(identifier) => shown.field("identifier", &identifier),
            Err(_) => shown.field("identifier", &format_args!("({} bytes)", self.identifier.len())),
        };
        shown
            .field("password", &self.password)
            .field("kind", &self.kind)
            .field("service", &self.service)
            .finish()
    }
}

/// The secret half of a token. Cannot be printed, and is wiped when dropped.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct TokenPassword(Zeroizing<Vec<u8>>);

impl TokenPassword {
    /// The secret bytes, to be written where the token is to be used and nowhere else.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for TokenPassword {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl From<&[u8]> for TokenPassword {
    fn from(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.to_vec()))
    }
}

impl fmt::Debug for TokenPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenPassword(..)")
    }
}

/// What a token says about itself. Times are milliseconds since the Unix epoch on the service's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenIdentifier {
    /// User the token acts as.
    pub owner: String,
    /// Short name of the user who may renew it; empty: nobody.
    pub renewer: String,
    /// Full principal of the service that got the token for its owner; empty: the owner itself.
    pub real_user: String,
    /// When it was issued.
    pub issue_date: u64,
    /// It cannot be renewed beyond this.
    pub max_date: u64,
    /// The service's number for it.
    pub sequence_number: i32,
    /// Which of the service's keys made the password.
    pub master_key_id: i32,
}

impl TokenIdentifier {
    /// Reads the identifier of a token of this kind.
    ///
    /// # Errors
    ///
    /// As [`Token::decode_identifier`].
    pub fn decode(kind: &str, bytes: &[u8]) -> Result<Self, DecodeError> {
        if !WRITABLE_KINDS.contains(&kind) {
            return Err(DecodeError::UndecodableKind(kind.to_owned()));
        }
        let what = "token identifier";
        let mut reader = Reader::new(bytes);
        let version = reader.byte(what)?;
        if version != 0 {
            return Err(DecodeError::UnknownVersion { what, version });
        }
        let identifier = Self {
            owner: reader.text("token owner")?.to_owned(),
            renewer: reader.text("token renewer")?.to_owned(),
            real_user: reader.text("token real user")?.to_owned(),
            issue_date: date(&mut reader, "token issue date")?,
            max_date: date(&mut reader, "token max date")?,
            sequence_number: reader.vint("token sequence number")?,
            master_key_id: reader.vint("token master key id")?,
        };
        reader.finish(what)?;
        Ok(identifier)
    }

    /// The identifier as a `Writable` kind's bytes. Dates beyond Java's `long` are written as its greatest value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.bytes(self.owner.as_bytes());
        bytes.bytes(self.renewer.as_bytes());
        bytes.bytes(self.real_user.as_bytes());
        bytes.vlong(i64::try_from(self.issue_date).unwrap_or(i64::MAX));
        bytes.vlong(i64::try_from(self.max_date).unwrap_or(i64::MAX));
        bytes.vint(self.sequence_number);
        bytes.vint(self.master_key_id);
        bytes
    }
}

fn date(reader: &mut Reader<'_>, what: &'static str) -> Result<u64, DecodeError> {
    u64::try_from(reader.vlong(what)?).map_err(|_| DecodeError::OutOfRange(what))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) const IDENTIFIER: &str = "0005616c696365036373691e6373692f68312e6578616d706c652e636f6d404558414d504c452e434f4d8a018bcfe568008a018bf3f1ec008e012c07";
    const URL_STRING: &str = "PAAFYWxpY2UDY3NpHmNzaS9oMS5leGFtcGxlLmNvbUBFWEFNUExFLkNPTYoBi8_laACKAYvz8ewAjgEsBxQBAgMEBQYHCAkKCwwNDg8QERITFBVIREZTX0RFTEVHQVRJT05fVE9LRU4LaGEtaGRmczpuczE";

    pub(crate) fn unhex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    /// The token of the recorded vectors.
    pub(crate) fn recorded_token() -> Token {
        Token::new(unhex(IDENTIFIER), (1..=0x14).collect::<Vec<u8>>(), HDFS_DELEGATION_TOKEN, "ha-hdfs:ns1")
    }

    fn recorded_identifier() -> TokenIdentifier {
        TokenIdentifier {
            owner: "alice".to_owned(),
            renewer: "csi".to_owned(),
            real_user: "csi/h1.example.com@EXAMPLE.COM".to_owned(),
            issue_date: 1_700_000_000_000,
            max_date: 1_700_604_800_000,
            sequence_number: 300,
            master_key_id: 7,
        }
    }

    #[test]
    fn reads_and_writes_an_identifier_of_a_real_namenode() {
        assert_eq!(recorded_token().decode_identifier(), Ok(recorded_identifier()));
        assert_eq!(recorded_identifier().encode(), unhex(IDENTIFIER));
    }

    #[test]
    fn says_when_a_kind_has_another_sort_of_identifier() {
        let decoded = TokenIdentifier::decode("RM_DELEGATION_TOKEN", &unhex(IDENTIFIER));
        assert_eq!(decoded, Err(DecodeError::UndecodableKind("RM_DELEGATION_TOKEN".to_owned())));
    }

    #[test]
    fn refuses_identifiers_of_other_versions_or_with_more_behind() {
        let mut bytes = unhex(IDENTIFIER);
        bytes.push(0);
        assert!(matches!(
            TokenIdentifier::decode("kms-dt", &bytes),
            Err(DecodeError::Trailing { bytes: 1, .. })
        ));
        bytes[0] = 1;
        assert!(matches!(
            TokenIdentifier::decode("kms-dt", &bytes),
            Err(DecodeError::UnknownVersion { version: 1, .. })
        ));
    }

    #[test]
    fn reads_and_writes_the_text_form() {
        assert_eq!(recorded_token().to_url_string().as_str(), URL_STRING);
        assert_eq!(Token::from_url_string(URL_STRING), Ok(recorded_token()));
        assert_eq!(Token::from_url_string(&format!("{URL_STRING}=")), Ok(recorded_token()), "padded");
        assert_eq!(Token::from_url_string("PAA*"), Err(DecodeError::Base64("token text")));
    }

    #[test]
    fn debug_output_holds_no_password() {
        let token = Token::new(b"id".to_vec(), b"s3cret".to_vec(), "kind", "service");
        let shown = format!("{token:?} {:?}", token.password);
        assert!(!shown.contains("s3cret") && !shown.contains("115, 51"), "{shown}");
        assert!(shown.contains("TokenPassword(..)"), "{shown}");
    }

    prop_compose! {
        pub(crate) fn any_token()(
            identifier: Vec<u8>, password: Vec<u8>, kind: String, service: String,
        ) -> Token {
            Token::new(identifier, password, kind, service)
        }
    }

    prop_compose! {
        fn any_identifier()(
            owner: String, renewer: String, real_user: String,
            issue_date in 0..=i64::MAX as u64, max_date in 0..=i64::MAX as u64,
            sequence_number: i32, master_key_id: i32,
        ) -> TokenIdentifier {
            TokenIdentifier { owner, renewer, real_user, issue_date, max_date, sequence_number, master_key_id }
        }
    }

    proptest! {
        #[test]
        fn every_identifier_survives_a_round_trip(identifier in any_identifier()) {
            prop_assert_eq!(TokenIdentifier::decode(HDFS_DELEGATION_TOKEN, &identifier.encode()), Ok(identifier));
        }

        #[test]
        fn every_token_survives_its_text_form(token in any_token()) {
            prop_assert_eq!(Token::from_url_string(&token.to_url_string()), Ok(token));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, text: String, mut near in Just(unhex(IDENTIFIER)), at in 0..60usize, to: u8) {
            let _ = TokenIdentifier::decode(HDFS_DELEGATION_TOKEN, &bytes);
            let _ = Token::from_url_string(&text);
            near[at % 60] = to;
            let _ = TokenIdentifier::decode(HDFS_DELEGATION_TOKEN, &near);
        }
    }
}
