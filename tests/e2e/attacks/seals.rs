//! Attackers who write annotations: seals copied, kept, edited, made by themselves, or made for somebody else.

use anyhow::{Context, Result};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL};
use bed::{
    Bed,
    pod::Draft,
    users::{OTHER, ROBOT},
};
use identity::{
    GROUPS_ANNOTATION, SEAL_ANNOTATION, SUBMITTER_ANNOTATION,
    seal::{ObjectName, Owner, Seal, SealingKey},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use super::stage::{Lair, Stage, acting, carrying, draft, seal_of, sealed, sealed_with};

/// More than the bed's controller tolerates between sealing and creation.
const LONG: i64 = 150;

/// The type that seals have.
const TYPE: &str = "hadoop-token-seal+jwt";

pub(super) async fn a_pod_with_a_seal_of_its_own_making_gets_nothing(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let lair = Lair::of(&stage).await?;
    let (key, own) = (bed.kubernetes().sealing_key(), SealingKey::generate());
    let id = key.public_jwk().id();
    let text_for = |name: &str, submitter: &str| anyhow::Ok(key.sign(&seal_of(&draft(name), submitter)?)?);

    let mut cases: Vec<(&str, Draft, &str)> = Vec::new();
    let said = draft("said").annotation(SUBMITTER_ANNOTATION, "etl").annotation(GROUPS_ANNOTATION, "[]");
    cases.push(("his word", said.clone(), "SEAL_MISSING"));
    for (what, text) in [
        ("an empty seal", String::new()),
        ("a word", "trust-me".to_owned()),
        ("a line too many", format!("{}\n", text_for("said", "etl")?)),
        ("a seal in JSON", json!({"payload": "e30", "signatures": []}).to_string()),
        ("a seal without end", format!("{}.{}", text_for("said", "etl")?, "A".repeat(200_000))),
        ("a seal with a NUL", format!("{}\u{0}", text_for("said", "etl")?)),
    ] {
        cases.push((what, said.clone().annotation(SEAL_ANNOTATION, &text), "SEAL_INVALID"));
    }

    // Signed by others, or not at all.
    cases.push(("a key of his own", sealed(&own, draft("own-key"), "etl")?, "SEAL_INVALID"));
    let named = SealingKey::generate().with_id(&id);
    cases.push((
        "a key of his own under the right name",
        sealed(&named, draft("kid"), "etl")?,
        "SEAL_INVALID",
    ));
    let claims = seal_of(&draft("forged"), "etl")?;
    let bare = carrying(key, draft("forged"), &claims)?;
    let forged = |text: &str| bare.clone().annotation(SEAL_ANNOTATION, text);
    let unsigned = |header: Value| -> Result<String> {
        let body = BASE64URL.encode(serde_json::to_vec(&claims)?);
        Ok(format!("{}.{body}.", BASE64URL.encode(header.to_string())))
    };
    for (what, header) in [
        ("no algorithm", json!({"alg": "none", "typ": TYPE, "kid": id})),
        ("no algorithm and no key", json!({"alg": "none", "typ": TYPE})),
        ("no signature", json!({"alg": "EdDSA", "typ": TYPE, "kid": id})),
    ] {
        cases.push((what, forged(&unsigned(header)?), "SEAL_INVALID"));
    }
    // The public key is public: as the secret of a symmetric algorithm anybody could sign with it.
    let public = serde_json::to_value(key.public_jwk())?;
    let x = public.get("x").and_then(Value::as_str).context("a public key without x")?;
    for secret in [x.as_bytes().to_vec(), BASE64URL.decode(x)?] {
        let header =
            Header { typ: Some(TYPE.to_owned()), kid: Some(id.clone()), ..Header::new(Algorithm::HS256) };
        let text = jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(&secret))?;
        cases.push(("the public key as a secret", forged(&text), "SEAL_INVALID"));
    }

    // A genuine seal of the intruder's, edited.
    let text = text_for("edited", "intruder")?;
    let parts: Vec<&str> = text.split('.').collect();
    let [header, body, signature] = parts.as_slice() else {
        anyhow::bail!("a seal of {} parts", parts.len())
    };
    let decoded = String::from_utf8(BASE64URL.decode(body)?)?;
    let renamed = BASE64URL.encode(decoded.replace("intruder", "etl"));
    let edited = sealed(key, draft("edited"), "etl")?;
    for (what, text) in [
        ("another's name written into a seal", format!("{header}.{renamed}.{signature}")),
        ("a signature cut short", format!("{header}.{body}.{}", signature.get(..40).unwrap_or_default())),
        ("the signature of another seal", {
            let other = text_for("edited", "etl")?;
            let (start, _) = other.rsplit_once('.').context("no signature")?;
            format!("{start}.{signature}")
        }),
        ("one part more", format!("{text}.{body}")),
    ] {
        cases.push((what, edited.clone().annotation(SEAL_ANNOTATION, &text), "SEAL_INVALID"));
    }
    lair.all_refused(cases).await?;
    lair.leave().await
}

pub(super) async fn a_seal_of_another_pod_time_or_submitter_gains_nothing(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let lair = Lair::of(&stage).await?;
    let key = bed.kubernetes().sealing_key();
    let etl = |name: &str, change: &dyn Fn(&mut Seal)| sealed_with(key, draft(name), "etl", change);
    let renamed = |draft: Draft, name: &str| draft.set("/metadata/name", json!(name));
    let mut cases: Vec<(&str, Draft, &str)> = vec![
        ("another name", renamed(etl("etl-job", &|_| {})?, "etl-job-2"), "SEAL_OF_ANOTHER_POD"),
        ("another namespace", etl("elsewhere", &|_| {})?.namespace(OTHER), "SEAL_OF_ANOTHER_POD"),
        (
            "another service account",
            etl("as-robot", &|_| {})?.set("/spec/serviceAccountName", json!(ROBOT)),
            "SEAL_OF_ANOTHER_POD",
        ),
        (
            "the beginning of a name",
            etl("etl-x", &|seal| seal.name = ObjectName::GenerateName("etl-".to_owned()))?,
            "SEAL_OF_ANOTHER_POD",
        ),
        (
            "a beginning that is none",
            etl("etl-y", &|seal| seal.name = ObjectName::GenerateName("etl-".to_owned()))?
                .set("/metadata/generateName", json!("etl")),
            "SEAL_OF_ANOTHER_POD",
        ),
        ("a seal kept for later", etl("old", &|seal| seal.sealed_at -= LONG)?, "SEAL_OUT_OF_TIME"),
        ("a seal from the future", etl("new", &|seal| seal.sealed_at += LONG)?, "SEAL_OUT_OF_TIME"),
        ("the beginning of time", etl("first", &|seal| seal.sealed_at = i64::MIN)?, "SEAL_OUT_OF_TIME"),
        (
            "an owner who is none",
            etl("owned", &|seal| {
                seal.root_owner = Some(Owner {
                    api_version: "apps/v1".to_owned(),
                    kind: "Deployment".to_owned(),
                    name: "etl".to_owned(),
                    uid: "c0ffee00-0000-4000-8000-000000000000".to_owned(),
                });
            })?,
            "SEAL_OF_ANOTHER_POD",
        ),
    ];
    // His own seal, and another's name beside it.
    let own = |name: &str| sealed(key, draft(name), "intruder");
    for (what, name, annotation, text) in [
        ("another's name", "renamed", SUBMITTER_ANNOTATION, "etl"),
        ("no name", "nameless", SUBMITTER_ANNOTATION, ""),
        ("other groups", "regrouped", GROUPS_ANNOTATION, r#"["system:masters"]"#),
        ("groups that are none", "ungrouped", GROUPS_ANNOTATION, "team"),
    ] {
        cases.push((what, own(name)?.annotation(annotation, text), "SUBMITTER_CHANGED"));
    }
    // doAs that was not sealed, that was sealed for another account, and on a second volume.
    cases.push(("doAs added", acting(own("acting")?, "svc-etl"), "DO_AS_NOT_SEALED"));
    let sealed_as = |name: &str, account: &str| {
        sealed_with(key, draft(name), "intruder", |seal| seal.do_as = [account.to_owned()].into())
    };
    cases.push(("doAs changed", acting(sealed_as("acting-2", "svc-ads")?, "svc-etl"), "DO_AS_NOT_SEALED"));
    cases.push((
        "doAs in other letters",
        acting(sealed_as("acting-3", "svc-etl")?, "SVC-ETL"),
        "DO_AS_NOT_SEALED",
    ));
    lair.all_refused(cases).await?;
    lair.leave().await
}

pub(super) async fn one_seal_serves_one_pod(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let lair = Lair::of(&stage).await?;
    let key = bed.kubernetes().sealing_key();
    let mut seal = seal_of(&draft("worker-1"), "etl")?;
    seal.name = ObjectName::GenerateName("worker-".to_owned());
    let first = carrying(key, draft("worker-1"), &seal)?.set("/metadata/generateName", json!("worker-"));
    lair.granted("the pod that was sealed", &first, "etl").await?;

    // A pod of the same beginning, with the same annotations; then the same name again.
    let copy = first.clone().set("/metadata/name", json!("worker-2"));
    lair.all_refused(vec![("a copy beside it", copy.clone(), "SEAL_REUSED")]).await?;
    let again = ("the same name again", first.clone(), "SEAL_REUSED");
    lair.all_refused(vec![again]).await?;

    // Sealed anew under the same nonce, which whoever seals must never do.
    let twice = sealed_with(key, draft("worker-3"), "etl", |other| other.nonce.clone_from(&seal.nonce))?;
    lair.all_refused(vec![("the same nonce", twice, "SEAL_REUSED")]).await?;
    lair.leave().await
}
