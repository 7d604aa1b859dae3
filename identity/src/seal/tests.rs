//! Promises of the seal: what is signed is what comes back, and nothing else is ever taken for a seal.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use proptest::prelude::*;
use serde_json::json;

use super::*;

/// The key of RFC 8037, appendix A, as `openssl` writes it.
const RFC_8037_KEY: &str = "-----BEGIN PRIVATE KEY-----\n\
    MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n\
    -----END PRIVATE KEY-----\n";
const RFC_8037_X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
const RFC_8037_THUMBPRINT: &str = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k";

fn seal() -> Seal {
    Seal {
        submitter: "etl".to_owned(),
        groups_digest: groups_digest(&["system:authenticated".to_owned()]),
        do_as: BTreeSet::from(["etl-batch".to_owned()]),
        namespace: "team-etl".to_owned(),
        service_account: "default".to_owned(),
        name: ObjectName::GenerateName("import-".to_owned()),
        root_owner: None,
        sealed_at: 1_800_000_000,
        nonce: fresh_nonce(),
    }
}

fn key_set(keys: &[&SealingKey]) -> KeySet {
    let set = JwkSet { keys: keys.iter().map(|key| key.public_jwk()).collect() };
    KeySet::from_jwk_set(set.to_json().as_bytes()).unwrap()
}

fn load(keys: &[serde_json::Value]) -> Result<KeySet, String> {
    KeySet::from_jwk_set(json!({"keys": keys}).to_string().as_bytes()).map_err(|error| error.to_string())
}

fn good_jwk() -> serde_json::Value {
    json!({"kty": "OKP", "crv": "Ed25519", "x": RFC_8037_X})
}

/// A text signed by `key` under any header and with any content.
fn signed(key: &EncodingKey, header: &Header, content: &serde_json::Value) -> String {
    jsonwebtoken::encode(header, content, key).unwrap()
}

fn rfc_key() -> (EncodingKey, KeySet, Header) {
    let pem = SealingKey::from_pem(RFC_8037_KEY).unwrap();
    let header = Header {
        typ: Some("hadoop-token-seal+jwt".to_owned()),
        kid: Some(RFC_8037_THUMBPRINT.to_owned()),
        ..Header::new(Algorithm::EdDSA)
    };
    let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    der.extend([
        0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44,
        0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
    ]);
    (EncodingKey::from_ed_der(&der), key_set(&[&pem]), header)
}

#[test]
fn reads_the_key_of_the_standard_and_names_it_by_its_thumbprint() {
    let jwk = serde_json::to_value(SealingKey::from_pem(RFC_8037_KEY).unwrap().public_jwk()).unwrap();
    assert_eq!(
        jwk,
        json!({
            "kty": "OKP", "crv": "Ed25519", "x": RFC_8037_X,
            "kid": RFC_8037_THUMBPRINT, "alg": "EdDSA", "use": "sig",
        })
    );
    let set = load(&[good_jwk()]).unwrap();
    assert_eq!(set.ids().collect::<Vec<_>>(), [RFC_8037_THUMBPRINT]);
}

#[test]
fn a_seal_is_an_ordinary_signed_text_that_says_nothing_but_what_was_sealed() {
    let (key, set, header) = rfc_key();
    let content = json!({
        "submitter": "etl", "groupsDigest": "00", "doAs": ["batch"], "namespace": "team",
        "serviceAccount": "default", "name": {"generateName": "job-"},
        "rootOwner": {"apiVersion": "batch/v1", "kind": "Job", "name": "job", "uid": "8d5d92a4"},
        "sealedAt": 1_800_000_000, "nonce": "0123456789abcdef",
    });
    let seal = set.verify(&signed(&key, &header, &content)).unwrap();
    assert_eq!(seal.name, ObjectName::GenerateName("job-".to_owned()));
    assert_eq!(seal.root_owner.as_ref().unwrap().to_string(), "Job job (8d5d92a4)");
    let text = SealingKey::from_pem(RFC_8037_KEY).unwrap().sign(&seal).unwrap();
    let shown: Vec<serde_json::Value> = text
        .split('.')
        .take(2)
        .map(|part| serde_json::from_slice(&BASE64.decode(part).unwrap()).unwrap())
        .collect();
    assert_eq!(shown, [serde_json::to_value(header).unwrap(), content]);
}

#[test]
fn refuses_a_private_key_that_is_not_a_plain_ed25519_key() {
    assert_eq!(SealingKey::from_pem("").err(), Some(InvalidKey::NotPem));
    let encrypted = RFC_8037_KEY.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    assert_eq!(SealingKey::from_pem(&encrypted).err(), Some(InvalidKey::NotPem));
    let of_another_curve = RFC_8037_KEY.replace("K2Vw", "K2Vu");
    assert_eq!(SealingKey::from_pem(&of_another_curve).err(), Some(InvalidKey::NotEd25519));
    let cut = RFC_8037_KEY.replace("rAMcrn9g", "");
    assert_eq!(SealingKey::from_pem(&cut).err(), Some(InvalidKey::NotEd25519));
}

#[test]
fn several_keys_verify_at_a_time() {
    let (old, new) = (SealingKey::generate(), SealingKey::generate().with_id("2027"));
    let (both, only_new) = (key_set(&[&old, &new]), key_set(&[&new]));
    let seal = seal();
    let by_old = old.sign(&seal).unwrap();
    let by_new = new.sign(&seal).unwrap();
    assert_eq!(both.verify(&by_old), Ok(seal.clone()));
    assert_eq!(both.verify(&by_new), Ok(seal.clone()));
    assert_eq!(only_new.verify(&by_new), Ok(seal));
    assert_eq!(only_new.verify(&by_old), Err(SealError::UnknownKey(old.public_jwk().id())));
}

#[test]
fn refuses_another_key_under_a_known_id() {
    let (good, forged) = (SealingKey::generate().with_id("1"), SealingKey::generate().with_id("1"));
    assert_eq!(key_set(&[&good]).verify(&forged.sign(&seal()).unwrap()), Err(SealError::BadSignature));
}

#[test]
fn refuses_every_header_but_the_one_of_seals() {
    let (key, set, header) = rfc_key();
    let content = serde_json::to_value(seal()).unwrap();
    assert!(set.verify(&signed(&key, &header, &content)).is_ok());
    let others = [
        Header { typ: None, ..header.clone() },
        Header { typ: Some("JWT".to_owned()), ..header.clone() },
        Header { typ: Some("at+jwt".to_owned()), ..header.clone() },
        Header { kid: None, ..header.clone() },
        Header { kid: Some("k".repeat(200)), ..header.clone() },
        Header { crit: Some(vec!["exp".to_owned()]), ..header.clone() },
        Header { jku: Some("https://attacker.test/keys".to_owned()), ..header.clone() },
        Header { jwk: serde_json::from_value(good_jwk()).unwrap(), ..header.clone() },
        Header { extras: [("b64".to_owned(), "false".to_owned())].into(), ..header.clone() },
    ];
    for other in others {
        let refused = set.verify(&signed(&key, &other, &content));
        assert!(matches!(refused, Err(SealError::Malformed(_))), "{other:?}: {refused:?}");
    }
}

#[test]
fn refuses_other_algorithms_even_with_the_public_key_as_secret() {
    let (_, set, header) = rfc_key();
    let content = serde_json::to_value(seal()).unwrap();
    let public = EncodingKey::from_secret(&BASE64.decode(RFC_8037_X).unwrap());
    let hmac = signed(&public, &Header { alg: Algorithm::HS256, ..header }, &content);
    let unsigned = |alg: &str| {
        let header = json!({"typ": "hadoop-token-seal+jwt", "alg": alg, "kid": RFC_8037_THUMBPRINT});
        format!("{}.{}.", BASE64.encode(header.to_string()), BASE64.encode(content.to_string()))
    };
    for text in [hmac, unsigned("none"), unsigned("None"), unsigned(""), unsigned("HS256"), unsigned("ES256")]
    {
        let refused = set.verify(&text);
        assert!(matches!(refused, Err(SealError::Malformed(_))), "{text}: {refused:?}");
    }
    assert_eq!(set.verify(&unsigned("EdDSA")), Err(SealError::BadSignature));
}

#[test]
fn refuses_signed_content_that_is_not_exactly_a_seal() {
    let (key, set, header) = rfc_key();
    let good = serde_json::to_value(seal()).unwrap();
    let changed = |field: &str, value: serde_json::Value| {
        let mut content = good.clone();
        content[field] = value;
        content
    };
    let mut without_name = good.clone();
    without_name.as_object_mut().unwrap().remove("name");
    for content in [
        json!(null),
        json!("etl"),
        without_name,
        changed("onlyOnNode", json!("bed")),
        changed("nonce", json!("short")),
        changed("nonce", json!("n".repeat(65))),
        changed("nonce", json!("0123456789abcde\n")),
        changed("name", json!({"name": "a", "generateName": "b"})),
        changed("sealedAt", json!("now")),
    ] {
        let refused = set.verify(&signed(&key, &header, &content));
        assert!(matches!(refused, Err(SealError::Malformed(_))), "{content}: {refused:?}");
    }
}

#[test]
fn refuses_a_text_that_is_too_long_and_does_not_write_one() {
    let (key, set, header) = rfc_key();
    let long = Seal { submitter: "e".repeat(MAX_SEAL_LENGTH), ..seal() };
    let text = signed(&key, &header, &serde_json::to_value(&long).unwrap());
    assert_eq!(set.verify(&text), Err(SealError::Malformed("it is too long")));
    assert!(SealingKey::generate().sign(&long).is_err());
    assert!(SealingKey::generate().sign(&Seal { nonce: "1".to_owned(), ..seal() }).is_err());
}

#[test]
fn a_key_set_with_a_doubtful_key_is_refused_whole_and_says_which() {
    let changed = |field: &str, value: serde_json::Value| {
        let mut jwk = good_jwk();
        jwk[field] = value;
        jwk
    };
    let generated = serde_json::to_value(SealingKey::generate().public_jwk()).unwrap();
    for (second, says) in [
        (good_jwk(), RFC_8037_THUMBPRINT),
        (changed("kid", json!(RFC_8037_THUMBPRINT)), "have the id"),
        (changed("d", json!("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A")), "number 2 holds a private key"),
        (changed("kty", json!("EC")), "number 2 is no Ed25519 key"),
        (changed("crv", json!("X25519")), "number 2 is no Ed25519 key"),
        (changed("alg", json!("HS256")), "number 2 is not meant for EdDSA"),
        (changed("use", json!("enc")), "number 2 is not meant for signatures"),
        (changed("x", json!("11qY")), "number 2 does not have 32 bytes"),
        (changed("x", json!("not base64 at all")), "number 2 is not in base64url"),
        (changed("kid", json!("")), "number 2 has a key id that is empty"),
        (json!({"kty": "oct", "k": "c2VjcmV0"}), "JWK Set"),
    ] {
        let refused = load(&[good_jwk(), second.clone()]).err().unwrap();
        assert!(refused.contains(says), "{second}: {refused}");
        assert!(!refused.contains("nWGxne"), "a private key is not repeated: {refused}");
    }
    assert!(load(&[good_jwk(), generated]).is_ok());
    assert_eq!(load(&[]).err().unwrap(), "it holds no key");
    assert!(KeySet::from_jwk_set(b"").is_err());
}

#[test]
fn the_digest_of_groups_does_not_depend_on_their_order() {
    let groups =
        |names: &[&str]| groups_digest(&names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
    // printf '["a","b"]' | sha256sum
    assert_eq!(groups(&["a", "b"]), "0473ef2dc0d324ab659d3580c1134e9d812035905c4781fdd6d529b0c6860e13");
    assert_eq!(groups(&["b", "a", "b"]), groups(&["a", "b"]));
    assert_ne!(groups(&["a\",\"b"]), groups(&["a", "b"]));
    assert_ne!(groups(&[]), groups(&[""]));
}

#[test]
fn a_generated_name_fits_as_the_api_server_makes_it() {
    let prefix = ObjectName::GenerateName("job-".to_owned());
    assert!(prefix.fits("job-x7k2p", Some("job-")));
    assert!(!prefix.fits("job-x7k2p", None));
    assert!(!prefix.fits("job-x7k2p", Some("job")));
    assert!(!prefix.fits("job-", Some("job-")));
    assert!(!prefix.fits("other-x7k2p", Some("job-")));
    let long = "n".repeat(80);
    let cut = format!("{}-abcd", "n".repeat(58));
    assert!(ObjectName::GenerateName(long.clone()).fits(&cut, Some(&long)));
    let exact = ObjectName::Name("job-x7k2p".to_owned());
    assert!(exact.fits("job-x7k2p", None));
    assert!(exact.fits("job-x7k2p", Some("job-")));
    assert!(!exact.fits("job-x7k2q", None));
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9-]{0,20}", any::<String>()]
}

fn any_seal() -> impl Strategy<Value = Seal> {
    let owner =
        proptest::option::of(
            (any_text(), any_text(), any_text(), any_text())
                .prop_map(|(api_version, kind, name, uid)| Owner { api_version, kind, name, uid }),
        );
    let name =
        prop_oneof![any_text().prop_map(ObjectName::Name), any_text().prop_map(ObjectName::GenerateName)];
    let names = (any_text(), any_text(), any_text(), any_text(), name);
    let do_as = proptest::collection::btree_set(any_text(), 0..5);
    (names, do_as, owner, any::<i64>(), "[a-zA-Z0-9]{16,64}").prop_map(
        |(
            (submitter, groups_digest, namespace, service_account, name),
            do_as,
            root_owner,
            sealed_at,
            nonce,
        )| Seal {
            submitter,
            groups_digest,
            do_as,
            namespace,
            service_account,
            name,
            root_owner,
            sealed_at,
            nonce,
        },
    )
}

proptest! {
    #[test]
    fn what_is_sealed_comes_back(seal in any_seal()) {
        let key = SealingKey::generate();
        prop_assert_eq!(key_set(&[&key]).verify(&key.sign(&seal).unwrap()), Ok(seal));
    }

    #[test]
    fn any_changed_byte_is_refused(seal in any_seal(), at in any::<prop::sample::Index>(), byte in 0x20_u8..0x7f) {
        let key = SealingKey::generate();
        let text = key.sign(&seal).unwrap();
        let mut bytes = text.clone().into_bytes();
        let place = at.index(bytes.len());
        prop_assume!(bytes[place] != byte);
        bytes[place] = byte;
        prop_assert!(key_set(&[&key]).verify(&String::from_utf8(bytes).unwrap()).is_err());
    }

    #[test]
    fn a_cut_or_lengthened_text_is_refused(at in any::<prop::sample::Index>(), more in "[ -~]{1,5}") {
        let key = SealingKey::generate();
        let text = key.sign(&seal()).unwrap();
        let set = key_set(&[&key]);
        prop_assert!(set.verify(&text[..at.index(text.len())]).is_err());
        let lengthened = format!("{text}{more}");
        let preceded = format!("{more}{text}");
        prop_assert!(set.verify(&lengthened).is_err());
        prop_assert!(set.verify(&preceded).is_err());
    }

    #[test]
    fn no_text_makes_it_panic(text in any::<String>()) {
        let (_, set, _) = rfc_key();
        prop_assert!(set.verify(&text).is_err());
    }
}
