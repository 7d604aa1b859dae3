//! The file of public keys; and seals by hand, where no webhook makes them (one that does writes over them), to see how
//! little one has to do.
//!
//! ```text
//! openssl genpkey -algorithm ed25519 -out seal.pem
//! cargo run -p identity --features seal --example seal -- keys seal.pem > keys.json
//! kubectl create --dry-run=client -o json -f pod.yaml |
//!     cargo run -p identity --features seal --example seal -- pod seal.pem NAMESPACE USER GROUP ... |
//!     kubectl create -f -
//! ```
//!
//! `keys` takes several files; what it prints is the file `seal.keys` of the controller's configuration. To exchange a
//! key: publish the old one and the new one, seal with the new one, and publish the new one alone as soon as no pod that
//! was sealed with the old one is left, because pods are checked for as long as they have a token.

use std::{
    env, fs,
    io::{Read, Write},
    time::{SystemTime, UNIX_EPOCH},
};

use identity::seal::{JwkSet, Seal, SealingKey, Submission};
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let output = match words.as_slice() {
        ["keys", files @ ..] if !files.is_empty() => public_keys(files)?,
        ["pod", key, namespace, user, groups @ ..] => sealed_pod(key, namespace, user, groups)?,
        _ => return Err("usage: seal keys KEY.pem ... | seal pod KEY.pem NAMESPACE USER [GROUP ...]".into()),
    };
    Ok(writeln!(std::io::stdout(), "{output}")?)
}

fn sealing_key(file: &str) -> Result<SealingKey, Failure> {
    let pem = zeroize::Zeroizing::new(fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?);
    Ok(SealingKey::from_pem(&pem).map_err(|error| format!("{file}: {error}"))?)
}

fn public_keys(files: &[&str]) -> Result<String, Failure> {
    let keys: Result<_, Failure> = files.iter().map(|file| Ok(sealing_key(file)?.public_jwk())).collect();
    Ok(JwkSet { keys: keys? }.to_json())
}

/// The pod on standard input, with the annotations of its seal instead of those it may have had.
fn sealed_pod(key: &str, namespace: &str, user: &str, groups: &[&str]) -> Result<String, Failure> {
    let key = sealing_key(key)?;
    let mut json = String::new();
    std::io::stdin().read_to_string(&mut json)?;
    let mut pod: Value = serde_json::from_str(&json)?;
    let submission = Submission {
        submitter: user.to_owned(),
        groups: groups.iter().map(|&group| group.to_owned()).collect(),
        root_owner: None,
        time: i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?,
    };
    let seal = Seal::of_pod(&submission, namespace, &pod)?;
    let metadata = pod.get_mut("metadata").and_then(Value::as_object_mut).ok_or("the pod has no metadata")?;
    metadata.insert("namespace".to_owned(), json!(namespace));
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    let annotations = annotations.as_object_mut().ok_or("the pod's annotations are no map")?;
    for (name, value) in key.annotations(&seal, &submission.groups)? {
        annotations.insert(name.to_owned(), json!(value));
    }
    Ok(serde_json::to_string_pretty(&pod)?)
}
