//! Tells the API server of what it has to ask us: keeps the two configuration objects as they have to be, whatever
//! anybody makes of them. Neither creates nor deletes them, so that removing the product removes them.

mod comparison;
mod entry;
mod upkeep;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::{
    certificate::{self, Authority},
    metrics::{Metrics, Webhook},
    token_namespaces::TokenNamespaces,
};

use self::comparison::{bundle_of, is_as_wanted, with_bundles_of, without};
pub(crate) use self::{
    entry::{Address, Common, Entry, FailurePolicy, Requirement, Rule},
    upkeep::{OurOwn, Showing, Upkeep, now},
};

const MANAGER: &str = "hadoop-token-csi-webhook";

/// The configuration's key `registration`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(crate) struct Section {
    /// Name of the MutatingWebhookConfiguration.
    mutating: String,
    /// Name of the ValidatingWebhookConfiguration.
    validating: String,
    /// By which API servers find us, unless there is a `url`.
    service: Service,
    /// For API servers that find us without a service: `https://` and a host, perhaps with a port.
    url: Option<String>,
    /// How often it is looked whether they still are as they have to be.
    interval_seconds: u16,
    /// How long API servers wait for an answer.
    timeout_seconds: u8,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Service {
    namespace: String,
    name: String,
    port: u16,
}

impl Default for Section {
    fn default() -> Self {
        Self {
            mutating: "hadoop-token-csi".to_owned(),
            validating: "hadoop-token-csi".to_owned(),
            service: Service::default(),
            url: None,
            interval_seconds: 10,
            timeout_seconds: 5,
        }
    }
}

impl Default for Service {
    fn default() -> Self {
        Self {
            namespace: "hadoop-token-csi".to_owned(),
            name: "hadoop-token-csi-webhook".to_owned(),
            port: 443,
        }
    }
}

impl Section {
    /// What is wrong with it, each with the key.
    pub(crate) fn mistakes(&self) -> Vec<String> {
        let Service { namespace, name, .. } = &self.service;
        let names = [
            ("mutating", &self.mutating),
            ("validating", &self.validating),
            ("service.namespace", namespace),
            ("service.name", name),
        ];
        let wrong = names.into_iter().filter(|(_, name)| !identity::is_object_name(name));
        let mut mistakes: Vec<_> =
            wrong.map(|(key, name)| format!("registration.{key}: {name:?} is not a name")).collect();
        if self.service.port == 0 {
            mistakes.push("registration.service.port: must be at least 1".to_owned());
        }
        if let Some(url) = &self.url
            && (!url.starts_with("https://") || self.address().host().is_empty())
        {
            mistakes.push(format!("registration.url: {url:?} is not https:// and a host"));
        }
        if self.interval_seconds == 0 {
            mistakes.push("registration.intervalSeconds: must be at least 1".to_owned());
        }
        if !(2..=30).contains(&self.timeout_seconds) {
            mistakes.push("registration.timeoutSeconds: must be 2 to 30".to_owned());
        }
        mistakes
    }

    pub(crate) fn address(&self) -> Address {
        match &self.url {
            Some(url) => Address::Url(url.clone()),
            None => {
                let Service { namespace, name, port } = self.service.clone();
                Address::Service { namespace, name, port }
            }
        }
    }

    /// How long a review may take here: some time before the API server gives it up, so that it hears why.
    pub(crate) fn time_limit(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds.into()) * 4 / 5
    }

    fn interval(&self) -> Duration {
        Duration::from_secs(self.interval_seconds.into())
    }

    fn name_of(&self, webhook: Webhook) -> &str {
        match webhook {
            Webhook::Mutate => &self.mutating,
            Webhook::Validate => &self.validating,
        }
    }
}

/// What is to be in `caBundle`.
pub(crate) enum Bundle<'a> {
    /// Of all replicas' authorities those that are needed; of this one's, `own`, and not the `retired` ones.
    Shared { own: BTreeSet<Authority>, retired: &'a BTreeSet<Authority> },
    /// Whatever is there: somebody else looks after it.
    OfOthers,
}

/// Keeps the objects as they have to be.
pub(crate) struct Registrar {
    client: Client,
    section: Section,
    common: Common,
    entries: Vec<Entry>,
    namespaces: Arc<TokenNamespaces>,
    metrics: Metrics,
    /// Authorities of all replicas when we last looked.
    seen: Mutex<BTreeSet<Authority>>,
    /// What the API server keeps otherwise than it was written.
    kept: Mutex<HashMap<Webhook, Kept>>,
}

/// What became of entries when we last replaced all that was there. An API server that is newer than this build fills
/// in more fields than [`Entry`] has.
struct Kept {
    wanted: Vec<Value>,
    present: Vec<Value>,
}

/// Why the objects are not as they have to be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistrationError {
    #[error("there is no {kind} {name:?}: apply the manifest of the webhook")]
    Missing { kind: &'static str, name: String },
    #[error("cannot {what} the {kind} {name:?}: {error}")]
    Api { what: &'static str, kind: &'static str, name: String, error: Box<kube::Error> },
}

impl RegistrationError {
    /// Somebody else wrote at the same time.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Api { error, .. } if matches!(&**error, kube::Error::Api(status) if status.code == 409))
    }
}

/// One of the two objects.
struct Object {
    webhook: Webhook,
    version: String,
    webhooks: Vec<Value>,
}

impl Registrar {
    pub(crate) fn new(
        client: Client,
        section: Section,
        exempt_namespaces: Vec<String>,
        entries: Vec<Entry>,
        namespaces: Arc<TokenNamespaces>,
        metrics: Metrics,
    ) -> Self {
        let timeout_seconds = section.timeout_seconds;
        let common = Common { address: section.address(), exempt_namespaces, timeout_seconds };
        Self {
            client,
            section,
            common,
            entries,
            namespaces,
            metrics,
            seen: Mutex::default(),
            kept: Mutex::default(),
        }
    }

    /// Looks at both objects, and writes those that are not as they have to be. Says which authorities are now in all
    /// entries.
    pub(crate) async fn pass(
        &self,
        bundle: Bundle<'_>,
        now: i64,
    ) -> Result<BTreeSet<Authority>, RegistrationError> {
        let objects = [self.read(Webhook::Mutate).await?, self.read(Webhook::Validate).await?];
        let authorities = match bundle {
            Bundle::OfOthers => None,
            Bundle::Shared { own, retired } => {
                let entries = objects.iter().flat_map(|object| &object.webhooks);
                let mut present: BTreeSet<_> =
                    entries.flat_map(|entry| certificate::read(&bundle_of(entry))).collect();
                if present.is_empty() {
                    // Somebody has emptied both. Replicas are asked as soon as one of them has written.
                    present = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
                }
                Some(certificate::wanted(present, &own, retired, now))
            }
        };
        let pem = authorities.as_ref().map(certificate::bundle);
        let limited = self.entries.iter().filter(|entry| entry.where_tokens_are);
        let present = limited.filter_map(|entry| {
            let object = objects.iter().find(|object| object.webhook == entry.webhook)?;
            entry.namespaces_in(&object.webhooks)
        });
        // Where somebody has taken them out, those that were there count.
        let present = present.reduce(|some, more| &some | &more);
        let present = present.unwrap_or_else(|| self.namespaces.known());
        let namespaces = self.namespaces.wanted(&present);
        for object in objects {
            self.settle(object, pem.as_deref(), &namespaces).await?;
        }
        self.namespaces.registered(namespaces);
        let authorities = authorities.unwrap_or_default();
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&authorities);
        self.metrics.authorities.set(i64::try_from(authorities.len()).unwrap_or(i64::MAX));
        Ok(authorities)
    }

    /// Writes an object if it is not as it has to be.
    async fn settle(
        &self,
        object: Object,
        authorities: Option<&str>,
        namespaces: &BTreeSet<String>,
    ) -> Result<(), RegistrationError> {
        let webhook = object.webhook;
        let entries = self.entries.iter().filter(|entry| entry.webhook == webhook);
        let wanted: Vec<Value> =
            entries.map(|entry| entry.rendered(&self.common, authorities, namespaces)).collect();
        let is_right = |object: &Object| self.is_right(object, &wanted, authorities.is_some());
        if is_right(&object) {
            return Ok(());
        }
        info!(kind = kind(webhook), name = self.section.name_of(webhook), "Registering");
        let object = self.apply(webhook, &object.version, &wanted).await?;
        if is_right(&object) {
            return Ok(());
        }
        // Applying leaves alone what others have added, such as a condition that is never true.
        warn!(
            kind = kind(webhook),
            name = self.section.name_of(webhook),
            "Taking out what others have added"
        );
        let kept = match authorities {
            Some(_) => wanted.clone(),
            None => with_bundles_of(&object.webhooks, wanted.clone()),
        };
        let object = self.replace(webhook, &object.version, &kept).await?;
        if !is_as_wanted(&object.webhooks, &wanted, authorities.is_some()) {
            self.keep(Kept { wanted, present: object.webhooks }, webhook);
        }
        Ok(())
    }

    /// Whether the entries are the wanted ones, or what the API server makes of these.
    fn is_right(&self, object: &Object, wanted: &[Value], bundles_are_ours: bool) -> bool {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = kept.get(&object.webhook).filter(|kept| kept.wanted == wanted);
        let made = kept.is_some_and(|kept| is_as_wanted(&object.webhooks, &kept.present, bundles_are_ours));
        made || is_as_wanted(&object.webhooks, wanted, bundles_are_ours)
    }

    fn keep(&self, kept: Kept, webhook: Webhook) {
        let before = self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(webhook, kept);
        if before.is_none() {
            warn!(
                kind = kind(webhook),
                name = self.section.name_of(webhook),
                "The API server adds fields that this build does not know of"
            );
        }
    }

    /// Takes authorities out of all bundles, and leaves everything else as it is: who leaves does not say any more what
    /// has to be.
    pub(crate) async fn withdraw(&self, retired: &BTreeSet<Authority>) -> Result<(), RegistrationError> {
        for webhook in [Webhook::Mutate, Webhook::Validate] {
            let mut object = self.read(webhook).await?;
            let clients = object.webhooks.iter_mut().filter_map(|entry| entry.get_mut("clientConfig"));
            let changed: Vec<bool> = clients.map(|client| without(client, retired)).collect();
            if changed.contains(&true) {
                self.replace(webhook, &object.version, &object.webhooks).await?;
            }
        }
        Ok(())
    }

    async fn read(&self, webhook: Webhook) -> Result<Object, RegistrationError> {
        let name = self.section.name_of(webhook);
        match self.api(webhook).get_opt(name).await {
            Ok(Some(object)) => Ok(parsed(webhook, object)),
            Ok(None) => Err(RegistrationError::Missing { kind: kind(webhook), name: name.to_owned() }),
            Err(error) => Err(self.error("read", webhook, error)),
        }
    }

    async fn apply(
        &self,
        webhook: Webhook,
        version: &str,
        webhooks: &[Value],
    ) -> Result<Object, RegistrationError> {
        let resource = resource(webhook);
        let body = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            // What was not read is not to be overwritten.
            "metadata": {"name": self.section.name_of(webhook), "resourceVersion": version},
            "webhooks": webhooks,
        });
        self.write(webhook, &PatchParams::apply(MANAGER).force(), &Patch::Apply(body)).await
    }

    async fn replace(
        &self,
        webhook: Webhook,
        version: &str,
        webhooks: &[Value],
    ) -> Result<Object, RegistrationError> {
        let body = json!({"metadata": {"resourceVersion": version}, "webhooks": webhooks});
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        self.write(webhook, &params, &Patch::Merge(body)).await
    }

    async fn write(
        &self,
        webhook: Webhook,
        params: &PatchParams,
        patch: &Patch<Value>,
    ) -> Result<Object, RegistrationError> {
        self.metrics.registrations.inc();
        let written = self.api(webhook).patch(self.section.name_of(webhook), params, patch).await;
        Ok(parsed(webhook, written.map_err(|error| self.error("write", webhook, error))?))
    }

    /// Objects stay the JSON they are: what this build does not know of is seen, too.
    fn api(&self, webhook: Webhook) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &resource(webhook))
    }

    fn error(&self, what: &'static str, webhook: Webhook, error: kube::Error) -> RegistrationError {
        let name = self.section.name_of(webhook).to_owned();
        RegistrationError::Api { what, kind: kind(webhook), name, error: Box::new(error) }
    }
}

fn resource(webhook: Webhook) -> ApiResource {
    match webhook {
        Webhook::Mutate => ApiResource::erase::<MutatingWebhookConfiguration>(&()),
        Webhook::Validate => ApiResource::erase::<ValidatingWebhookConfiguration>(&()),
    }
}

fn kind(webhook: Webhook) -> &'static str {
    match webhook {
        Webhook::Mutate => "MutatingWebhookConfiguration",
        Webhook::Validate => "ValidatingWebhookConfiguration",
    }
}

fn parsed(webhook: Webhook, object: DynamicObject) -> Object {
    let webhooks = object.data.get("webhooks").and_then(Value::as_array).cloned().unwrap_or_default();
    Object { webhook, version: object.metadata.resource_version.unwrap_or_default(), webhooks }
}

#[cfg(test)]
mod tests;
