//! A review of admission.k8s.io/v1, taken apart and put together. The objects in it are handed on as they came.

use base64::{Engine, engine::general_purpose::STANDARD};
use kube::{
    api::TypeMeta,
    core::{DynamicObject, admission::AdmissionRequest},
};
use serde_json::{Map, Value, json};

use crate::admission::{Allowed, Denial, Question, Verdict};

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// Why there is no question in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    /// Which question the API server waits to have answered, when that can be told.
    pub(super) uid: Option<String>,
    pub(super) why: String,
}

/// Reads what the API server sent.
pub(super) fn read(body: &[u8]) -> Result<Question, Unreadable> {
    let unreadable = |why: String| Unreadable { uid: None, why };
    let mut review: Map<String, Value> =
        serde_json::from_slice(body).map_err(|error| unreadable(format!("it is no JSON object: {error}")))?;
    let text = |key: &str| review.get(key).and_then(Value::as_str).unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    if (version, kind) != (API_VERSION, KIND) {
        return Err(unreadable(format!(
            "it is a {kind:?} of {version:?}, and not {KIND:?} of {API_VERSION:?}"
        )));
    }
    let Some(Value::Object(mut request)) = review.remove("request") else {
        return Err(unreadable("it has no request".to_owned()));
    };
    let uid = request.get("uid").and_then(Value::as_str).filter(|uid| !uid.is_empty()).map(str::to_owned);
    let unreadable = |why: String| Unreadable { uid: uid.clone(), why };
    let mut take = |key: &str| match request.remove(key).unwrap_or_default() {
        object @ (Value::Object(_) | Value::Null) => Ok(object),
        _ => Err(unreadable(format!("its {key} is no object"))),
    };
    let (object, old_object) = (take("object")?, take("oldObject")?);
    let mut request: AdmissionRequest<DynamicObject> = serde_json::from_value(Value::Object(request))
        .map_err(|error| unreadable(format!("its request is none: {error}")))?;
    if request.uid.is_empty() {
        return Err(unreadable("its request has no uid".to_owned()));
    }
    request.types = TypeMeta { api_version: API_VERSION.to_owned(), kind: KIND.to_owned() };
    Ok(Question { request, object, old_object })
}

/// The answer to the question `uid`.
pub(super) fn answer(uid: &str, verdict: &Verdict) -> Result<Vec<u8>, serde_json::Error> {
    let mut response = match verdict {
        Verdict::Allowed(allowed) => allow(allowed)?,
        Verdict::Denied(denial) => deny(denial),
    };
    if let Some(response) = response.as_object_mut() {
        response.insert("uid".to_owned(), json!(uid));
    }
    serde_json::to_vec(&json!({"apiVersion": API_VERSION, "kind": KIND, "response": response}))
}

fn allow(Allowed { patch, audit, warnings }: &Allowed) -> Result<Value, serde_json::Error> {
    let mut response = json!({"allowed": true});
    let mut add = |key: &str, value: Value| {
        if let Some(response) = response.as_object_mut() {
            response.insert(key.to_owned(), value);
        }
    };
    if !patch.is_empty() {
        add("patchType", json!("JSONPatch"));
        add("patch", json!(STANDARD.encode(serde_json::to_vec(patch)?)));
    }
    if !audit.is_empty() {
        add("auditAnnotations", json!(audit));
    }
    if !warnings.is_empty() {
        add("warnings", json!(warnings));
    }
    Ok(response)
}

/// kubectl shows the message, and the reason before it.
fn deny(Denial { reason, message, code }: &Denial) -> Value {
    json!({
        "allowed": false,
        "auditAnnotations": {"reason": reason},
        "status": {"status": "Failure", "code": code, "reason": reason, "message": message},
    })
}
