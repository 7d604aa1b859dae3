//! The mutating webhook: writes into pods, and into what makes pods, who submitted them, and seals it, over whatever was
//! written there. A pod that asks for it is given the volume first, so that what is sealed is what it will have.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use identity::{
    SEAL_ANNOTATION, WORKLOAD_SEAL_ANNOTATION,
    owners::{ChainEnd, Owner, OwnerChain},
    seal::{Seal, Statement, Submission, WorkloadSeal, headless_accounts},
};
use kube::core::admission::Operation;
use serde_json::{Map, Value};

use crate::{
    admission::{Allowed, Denial, Question, STAMPS, Verdict},
    controllers::NamedControllers,
    injection,
    kinds::{Found, Kind, Kinds, Role},
    origin::{Asked, How, Inherit, Origin, asked, awaits_its_owner, controller},
    patch::Edit,
    reading::{Age, Reader},
    refusal::Refusal,
    sealing::{Keys, Sealing},
    token_namespaces::TokenNamespaces,
};

/// Where a pod of a StatefulSet has the name of its revision.
const REVISION_LABEL: &str = "/metadata/labels/controller-revision-hash";

/// Which pods are stamped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Scope {
    /// Those with a token.
    #[default]
    Tokens,
    /// All, for whoever wants to know who asked for a pod.
    All,
}

/// Everything that decoration depends on.
pub(crate) struct Decorator {
    pub(crate) kinds: Arc<Kinds>,
    pub(crate) controllers: NamedControllers,
    pub(crate) inherit: Vec<Inherit>,
    pub(crate) injection: injection::Config,
    pub(crate) scope: Scope,
    pub(crate) exempt: BTreeSet<String>,
    pub(crate) sealing: Arc<Sealing>,
    pub(crate) reader: Arc<Reader>,
    pub(crate) namespaces: Arc<TokenNamespaces>,
}

impl Decorator {
    /// Decides at `time`, in seconds since 1970.
    pub(crate) async fn decide(&self, question: &Question, time: i64) -> Verdict {
        let outcome = self.decorate(question, time).await;
        outcome.map_or_else(Verdict::Denied, Verdict::Allowed)
    }

    async fn decorate(&self, question: &Question, time: i64) -> Result<Allowed, Denial> {
        let request = &question.request;
        let (group, resource) = (&request.resource.group, &request.resource.resource);
        let namespace = request.namespace.as_deref().unwrap_or_default();
        let kind = self.kinds.of_resource(group, resource);
        let Some(kind) = kind.filter(|_| request.sub_resource.is_none() && !self.exempt.contains(namespace))
        else {
            return Ok(Allowed::default());
        };
        let asker = Asker { decorator: self, question, kind, namespace, time, keys: self.sealing.now() };
        match (&request.operation, kind.is_pod()) {
            (Operation::Create, true) => asker.pod().await,
            (Operation::Create, false) => Ok(asker.created().await?),
            (Operation::Update, false) => Ok(asker.updated().await?),
            (Operation::Update, true) | (Operation::Delete | Operation::Connect, _) => Ok(Allowed::default()),
        }
    }
}

/// A request, and what goes with it.
struct Asker<'a> {
    decorator: &'a Decorator,
    question: &'a Question,
    kind: &'a Kind,
    namespace: &'a str,
    time: i64,
    keys: Arc<Keys>,
}

impl Asker<'_> {
    /// A pod is to be created.
    async fn pod(&self) -> Result<Allowed, Denial> {
        let Decorator { controllers, reader, scope, .. } = self.decorator;
        let (user, object) = (&self.question.request.user_info, &self.question.object);
        let by_namespace = reader.injects(self.namespace).await?;
        let wish = injection::Request::of(object).asked(by_namespace);
        // It is looked at once more when its owner was written down, and proves then whose it is. Until then it has no
        // seal of its own, without which there is no token.
        if awaits_its_owner(user, self.namespace, object, controllers, &self.keys.known) {
            let injected = self.injected(object, wish)?;
            return Ok(injected.map_or_else(Allowed::default, |injected| Allowed {
                patch: injected.patch,
                warnings: injected.warnings,
                ..Allowed::default()
            }));
        }
        let (origin, chain) = match self.origin(object).await {
            Ok(known) => known,
            // Nobody asked for anything that needs to be known who asked.
            Err(refusal)
                if wish != injection::Asked::ByPod
                    && !has_token_volume(self.kind, object)
                    && !refusal.may_pass() =>
            {
                return Ok(self.without_stamps(object, &refusal)?);
            }
            Err(refusal) => return Err(refusal.into()),
        };
        let injected = self.injected(object, wish)?;
        let pod = injected.as_ref().map_or(object, |injected| &injected.pod);
        if *scope == Scope::Tokens && !self.kind.involves_token(pod) {
            return Ok(Allowed::default());
        }
        let mut allowed = self.sealed_pod(pod, &origin, &chain)?;
        // A launcher has no token, and reaches into those that will. Where all is stamped, stamps alone say nothing of one,
        // as in `conditions`. Nothing comes of a rehearsal.
        let is_involved = match scope {
            Scope::Tokens => self.kind.involves_token(pod),
            Scope::All => self.kind.involves_more_than_stamps(pod),
        };
        if is_involved && !self.question.request.dry_run {
            self.decorator.namespaces.enter(self.namespace).await?;
        }
        if let Some(mut injected) = injected {
            injected.patch.append(&mut allowed.patch);
            (allowed.patch, allowed.warnings) = (injected.patch, injected.warnings);
        }
        Ok(allowed)
    }

    /// `pod` with what `wish` says that it wants, if anything.
    fn injected(&self, pod: &Value, wish: injection::Asked) -> Result<Option<injection::Injected>, Denial> {
        match wish {
            injection::Asked::No => Ok(None),
            injection::Asked::ByPod | injection::Asked::ByNamespace => {
                injection::inject(&self.decorator.injection, pod).map(Some)
            }
        }
    }

    fn sealed_pod(&self, pod: &Value, origin: &Origin, chain: &OwnerChain) -> Result<Allowed, Refusal> {
        origin.may_ask_for(&headless_accounts(pod.pointer("/spec/volumes")))?;
        let submission = Submission {
            root_owner: chain.root().map_err(|end| broken(end, chain))?.cloned(),
            ..self.submission(origin)
        };
        let seal = Seal::of_pod(&submission, self.namespace, pod).map_err(|_| Refusal::Nameless)?;
        let mut stamps = self.stamps(&seal, origin)?;
        // Should another webhook change the pod, it is looked at once more.
        stamps.extend(origin.handed_on.clone().map(|seal| (WORKLOAD_SEAL_ANNOTATION, seal)));
        self.stamped(pod, &stamps, origin)
    }

    /// Something that makes pods is to be created.
    async fn created(&self) -> Result<Allowed, Refusal> {
        let object = &self.question.object;
        if !self.is_of_interest(&[object]).await? {
            return Ok(Allowed::default());
        }
        match self.origin(object).await {
            Ok((origin, _)) if is_for_controller(object, &origin) => self.handed_down(object, &origin).await,
            Ok((origin, _)) => self.sealed_workload(object, &origin),
            Err(refusal) if !has_token_volume(self.kind, object) && !refusal.may_pass() => {
                self.without_stamps(object, &refusal)
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// Whether it matters who submits one of `objects`: a token is involved, or will be by the namespace.
    async fn is_of_interest(&self, objects: &[&Value]) -> Result<bool, Refusal> {
        let Decorator { scope, reader, .. } = self.decorator;
        if *scope == Scope::All || objects.iter().any(|object| self.kind.involves_token(object)) {
            return Ok(true);
        }
        reader.injects(self.namespace).await
    }

    /// `object` as a controller made it for its owner.
    async fn handed_down(&self, object: &Value, origin: &Origin) -> Result<Allowed, Refusal> {
        origin.may_ask_for(&self.accounts(object))?;
        let itself = controller(object).filter(|owner| self.speaks_for_itself(owner));
        let is_carried =
            stamps_of(self.kind, object).values().any(|stamps| stamps.contains_key(SEAL_ANNOTATION));
        let own = match itself {
            // What is there was written here, of the owner as it was then.
            Some(owner) => self.own_stamps(&owner, Age::Kept).await?,
            // Controllers compare what they made with what they make it from: what they copied stays as it is.
            None if is_carried => return Ok(Allowed { audit: origin.audit(), ..Allowed::default() }),
            None => None,
        };
        let own = own.unwrap_or_default();
        let text = |key| Some((key, own.get(key)?.as_str()?.to_owned()));
        self.stamped(object, &STAMPS.into_iter().filter_map(text).collect(), origin)
    }

    /// Whether `owner` says of itself who submitted it, because its controller does not copy that.
    fn speaks_for_itself(&self, owner: &Owner) -> bool {
        let kind = self.decorator.kinds.of_kind(owner.group(), &owner.kind);
        kind.is_some_and(|kind| kind.carriers.iter().any(|carrier| carrier.role == Role::Own))
    }

    /// What `owner` says of its submitter where its controller does not copy that.
    async fn own_stamps(&self, owner: &Owner, age: Age) -> Result<Option<Map<String, Value>>, Refusal> {
        let facts = self.decorator.reader.owner(self.namespace, owner, age).await?;
        Ok(facts.and_then(|facts| facts.own.clone()))
    }

    /// Something that makes pods is changed.
    async fn updated(&self) -> Result<Allowed, Refusal> {
        let (old, new) = (&self.question.old_object, &self.question.object);
        if !self.is_of_interest(&[new, old]).await? {
            return Ok(Allowed::default());
        }
        let same_content = self.kind.same_content(old, new);
        let (before, after) = (stamps_of(self.kind, old), stamps_of(self.kind, new));
        if before == after && (same_content || self.is_its_controller()) {
            return Ok(Allowed::default());
        }
        if same_content && before.values().any(|stamps| self.is_trusted(stamps)) {
            return self.restored(&before);
        }
        self.created().await
    }

    /// Who submitted `object`, and its owners.
    async fn origin(&self, object: &Value) -> Result<(Origin, OwnerChain), Refusal> {
        let Decorator { controllers, inherit, reader, .. } = self.decorator;
        let (user, namespace) = (&self.question.request.user_info, self.namespace);
        let chain = reader.chain(namespace, controller(object)).await?;
        match asked(user, namespace, object, controllers, inherit) {
            Asked::Directly => Ok((Origin::authenticated(user), chain)),
            Asked::ByPod { name, uid } => {
                let pod = reader.pod(namespace, &name).await?;
                let origin = Origin::inherited((&name, &uid), namespace, pod.as_ref(), self.keys.verifier())?;
                Ok((origin, chain))
            }
            Asked::ByController(owner) => {
                // An owner that is not called the controller is not in the object's own chain.
                let above = match controller(object) {
                    Some(_) => chain.clone(),
                    None => reader.chain(namespace, Some(owner.clone())).await?,
                };
                above.root().map_err(|end| broken(end, &above))?;
                let origin = self.passed_on(object, &owner, &above).await?;
                Ok((origin, chain))
            }
        }
    }

    /// Who submitted `object`, which who asks makes for `owner`, from which `chain` begins.
    async fn passed_on(&self, object: &Value, owner: &Owner, chain: &OwnerChain) -> Result<Origin, Refusal> {
        let who = self.question.request.user_info.username.as_deref().unwrap_or_default();
        let (reader, keys) = (&self.decorator.reader, &self.keys.known);
        let found = self.kind.carriers(object);
        // Whatever makes pods with a token has to carry the seal, and whatever is carried has to be it.
        let sealed = found.iter().filter(|found| found.role == Role::Sealed);
        let carriers: Vec<_> = sealed
            .filter(|found| {
                found.annotation(SEAL_ANNOTATION).is_some() || found.token_volumes().next().is_some()
            })
            .map(|found| found.current)
            .collect();
        // A StatefulSet makes its pods of revisions, those of older templates among them, and merges what is written there
        // into the template as it is now. So only a seal that is in the revision is that of what the pod is.
        let revision = object.pointer(REVISION_LABEL).and_then(Value::as_str);
        if let (Some(revision), "StatefulSet", [carried]) = (revision, &*owner.kind, carriers.as_slice()) {
            let seals = reader.revision(self.namespace, owner, revision).await?;
            let origin = Origin::passed_on(who, *carried, (owner, &seals), chain, self.namespace, keys);
            return origin.map_err(|refusal| match refusal {
                Refusal::SealNotOfOwner { owner, .. } => {
                    Refusal::SealNotOfRevision { owner, revision: revision.to_owned() }
                }
                other => other,
            });
        }
        let itself = self.speaks_for_itself(owner);
        let own = if itself { self.own_stamps(owner, Age::Now).await? } else { None };
        // Whatever is carried then was written here, and may be old.
        let carriers = if itself { vec![own.as_ref()] } else { carriers };
        let mut outcome = Err(Refusal::SealMissing { controller: who.to_owned(), owner: owner.clone() });
        // Pods come by the thousand; what makes them does not.
        let ages: &[Age] = if self.kind.is_pod() { &[Age::Kept, Age::Now] } else { &[Age::Now] };
        for &age in ages {
            let facts = reader.owner(self.namespace, owner, age).await?;
            let seals = facts.map(|facts| facts.seals.clone()).unwrap_or_default();
            for carried in &carriers {
                outcome = Origin::passed_on(who, *carried, (owner, &seals), chain, self.namespace, keys);
                if outcome.is_err() {
                    break;
                }
            }
            // What was kept may be old.
            if !matches!(outcome, Err(Refusal::SealNotOfOwner { .. })) {
                return outcome;
            }
        }
        outcome
    }

    /// Whether who asks is named for objects of this very kind, which it may write down anew.
    fn is_its_controller(&self) -> bool {
        let user = self.question.request.user_info.username.as_deref().unwrap_or_default();
        self.decorator.controllers.works_for(user, &self.kind.group, &self.kind.kind)
    }

    fn is_trusted(&self, stamps: &BTreeMap<&'static str, String>) -> bool {
        let seal = stamps.get(SEAL_ANNOTATION).and_then(|text| self.keys.known.verify_workload(text).ok());
        seal.is_some_and(|seal| seal.namespace == self.namespace)
    }

    fn submission(&self, origin: &Origin) -> Submission {
        Submission {
            submitter: origin.submitter.clone(),
            groups: origin.groups.clone(),
            root_owner: None,
            time: self.time,
        }
    }

    fn sealed_workload(&self, object: &Value, origin: &Origin) -> Result<Allowed, Refusal> {
        let accounts = self.accounts(object);
        origin.may_ask_for(&accounts)?;
        let kind = (self.kind.group.as_str(), self.kind.kind.as_str());
        let seal = WorkloadSeal::of(&self.submission(origin), self.namespace, kind, object, accounts)
            .map_err(|_| Refusal::Nameless)?;
        let stamps = self.stamps(&seal, origin)?;
        self.stamped(object, &stamps, origin)
    }

    /// Headless accounts that pods of `object` may ask for: by a volume, or by the annotation that has one injected.
    fn accounts(&self, object: &Value) -> BTreeSet<String> {
        let found = self.kind.carriers(object);
        let by_volume = found.iter().flat_map(|found| &found.volumes);
        let by_volume = by_volume.flat_map(|(_, volumes)| headless_accounts(Some(volumes)));
        let by_annotation = found.iter().filter_map(|found| injection::Request::in_carrier(found).do_as());
        by_volume.chain(by_annotation.map(str::to_owned)).collect()
    }

    fn stamps<S: Statement>(
        &self,
        seal: &S,
        origin: &Origin,
    ) -> Result<BTreeMap<&'static str, String>, Refusal> {
        let stamps = self.keys.sealing.annotations(seal, &origin.groups).map_err(Refusal::CannotSeal)?;
        Ok(stamps.into())
    }

    /// `object` with `stamps` in every carrier that has any.
    fn stamped(
        &self,
        object: &Value,
        stamps: &BTreeMap<&'static str, String>,
        origin: &Origin,
    ) -> Result<Allowed, Refusal> {
        let mut edit = Edit::new(object.clone());
        self.kind.stamp(&mut edit, stamps)?;
        Ok(Allowed { patch: edit.into_patch(), audit: origin.audit(), warnings: Vec::new() })
    }

    /// The object with the stamps that it had.
    fn restored(
        &self,
        before: &BTreeMap<String, BTreeMap<&'static str, String>>,
    ) -> Result<Allowed, Refusal> {
        let object = &self.question.object;
        let mut edit = Edit::new(object.clone());
        for found in self.kind.carriers(object) {
            edit.remove(&found.annotations, is_stamp)?;
            if let Some(stamps) = before.get(&found.annotations.to_string()) {
                edit.annotate(&found.annotations, stamps)?;
            }
        }
        Ok(Allowed { patch: edit.into_patch(), ..Allowed::default() })
    }

    /// The object without what it may say of its submitter, which was not proven. The audit log has why.
    fn without_stamps(&self, object: &Value, refusal: &Refusal) -> Result<Allowed, Refusal> {
        let mut edit = Edit::new(object.clone());
        for found in self.kind.carriers(object) {
            edit.remove(&found.annotations, is_stamp)?;
        }
        let audit = BTreeMap::from([("unsealed", refusal.reason().to_owned())]);
        Ok(Allowed { patch: edit.into_patch(), audit, warnings: Vec::new() })
    }
}

/// Whether `object` was made for its controller, whose seal its pods find in their chain. Else it needs one of its own.
fn is_for_controller(object: &Value, origin: &Origin) -> bool {
    origin.how == How::PassedOn && controller(object).is_some()
}

fn is_stamp(key: &str) -> bool {
    STAMPS.contains(&key)
}

fn has_token_volume(kind: &Kind, object: &Value) -> bool {
    kind.carriers(object).iter().any(|found| found.token_volumes().next().is_some())
}

/// What every carrier says of the submitter, by its place.
fn stamps_of(kind: &Kind, object: &Value) -> BTreeMap<String, BTreeMap<&'static str, String>> {
    let stamps = |found: &Found<'_>| -> BTreeMap<&'static str, String> {
        STAMPS.into_iter().filter_map(|key| Some((key, found.annotation(key)?.to_owned()))).collect()
    };
    kind.carriers(object).iter().map(|found| (found.annotations.to_string(), stamps(found))).collect()
}

fn broken(end: &ChainEnd, chain: &OwnerChain) -> Refusal {
    let last = || chain.links.last().map_or_else(String::new, |link| format!("{} {}", link.kind, link.name));
    let not_found = |problem| Refusal::OwnerNotFound { owner: last(), problem };
    match end {
        ChainEnd::TooLong => Refusal::OwnerChainTooLong,
        ChainEnd::Replaced { .. } => not_found("was replaced by another of the same name"),
        ChainEnd::Cycle => not_found("is its own owner"),
        ChainEnd::Missing | ChainEnd::Root | ChainEnd::NotRead => not_found("does not exist"),
    }
}

#[cfg(test)]
mod tests;
