//! An identifier or a one-line token of any bytes is read or refused, and what was read survives being written.
#![no_main]

use hadoop::token::HDFS_DELEGATION_TOKEN;
use hadoop::{Token, TokenIdentifier};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(identifier) = TokenIdentifier::decode(HDFS_DELEGATION_TOKEN, bytes) {
        assert_eq!(TokenIdentifier::decode(HDFS_DELEGATION_TOKEN, &identifier.encode()), Ok(identifier));
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(token) = Token::from_url_string(text)
    {
        assert_eq!(Token::from_url_string(&token.to_url_string()), Ok(token));
    }
});
