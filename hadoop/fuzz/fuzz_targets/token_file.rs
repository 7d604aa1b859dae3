//! A token file of any bytes is read or refused, and what was read survives being written in both versions.
#![no_main]

use hadoop::token_file::TokenFile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(file) = TokenFile::decode(bytes) {
        assert_eq!(TokenFile::decode(&file.encode_v0()), Ok(file.clone()));
        assert_eq!(TokenFile::decode(&file.encode_v1()), Ok(file));
    }
});
