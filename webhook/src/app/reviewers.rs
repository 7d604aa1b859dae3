//! The two decisions, as the server asks for them: with what they need besides the question.

use std::sync::Arc;

use serde_json::Value;

use super::{Decorator, Reader, Sealing, now};
use crate::{
    admission::{Question, Verdict},
    injection,
    kinds::Kinds,
    server::{Review, Reviewer},
    validation::{Interactive, Validation, calling_pod, pod_to_read},
};

/// Writes who submitted what.
pub(super) struct Mutating(pub(super) Decorator);

impl Reviewer for Mutating {
    fn review(&self, question: Question) -> Review<'_> {
        Box::pin(async move { self.0.decide(&question, now().date).await })
    }
}

/// Refuses what must not become so.
pub(super) struct Validating {
    pub(super) kinds: Arc<Kinds>,
    pub(super) interactive: Interactive,
    pub(super) injection: injection::Config,
    pub(super) sealing: Arc<Sealing>,
    pub(super) reader: Arc<Reader>,
}

impl Reviewer for Validating {
    fn review(&self, question: Question) -> Review<'_> {
        Box::pin(async move {
            let pod = match pod_to_read(&question) {
                None => None,
                Some((namespace, name)) => match self.reader.pod(namespace, name).await {
                    Ok(pod) => pod,
                    Err(refusal) => return Verdict::Denied(refusal.into()),
                },
            };
            let caller = match (&pod, pod_to_read(&question), calling_pod(&question)) {
                (Some(_), Some((namespace, _)), Some((name, uid))) => {
                    match self.reader.pod(namespace, &name).await {
                        // One that is gone, or another by now, is nobody.
                        Ok(caller) => caller.filter(|caller| {
                            caller.pointer("/metadata/uid").and_then(Value::as_str) == Some(&uid)
                        }),
                        Err(refusal) => return Verdict::Denied(refusal.into()),
                    }
                }
                _ => None,
            };
            let keys = self.sealing.now();
            let validation = Validation {
                kinds: &self.kinds,
                interactive: &self.interactive,
                injection: &self.injection,
                verifier: keys.verifier(),
            };
            validation.decide(&question, pod.as_ref(), caller.as_ref())
        })
    }
}
