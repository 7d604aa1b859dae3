//! `DelegationToken` objects, as `kubectl` sees them.

use anyhow::{Context, Result, ensure};
use bed::Bed;
use identity::LEDGER_GROUP;
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams},
};
use serde_json::json;

/// Those of a namespace.
pub(crate) fn objects(client: Client, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(client, namespace, &resource())
}

fn resource() -> ApiResource {
    let kind = GroupVersionKind::gvk(LEDGER_GROUP, "v1alpha1", "DelegationToken");
    ApiResource::from_gvk_with_plural(&kind, "delegationtokens")
}

/// Those of a pod, whether it is still there or not.
pub(crate) async fn of_pod(bed: &Bed, pod_uid: &str) -> Result<Vec<DynamicObject>> {
    let all: Api<DynamicObject> = Api::all_with(bed.kubernetes().client(), &resource());
    let mut found = all.list(&ListParams::default()).await?.items;
    found.retain(|object| text(object, "/spec/podUid").is_some_and(|uid| uid == pod_uid));
    Ok(found)
}

/// The one of a pod that has one.
pub(crate) async fn the_one_of(bed: &Bed, pod_uid: &str) -> Result<DynamicObject> {
    let mut found = of_pod(bed, pod_uid).await?;
    ensure!(found.len() == 1, "{} objects of one pod: {found:?}", found.len());
    found.pop().context("no object")
}

/// What an object says at a JSON pointer.
pub(crate) fn text<'a>(object: &'a DynamicObject, pointer: &str) -> Option<&'a str> {
    object.data.pointer(pointer)?.as_str()
}

/// Number of its token at the NameNode.
pub(crate) fn number(object: &DynamicObject) -> Result<u32> {
    let number = object.data.pointer("/spec/token/sequenceNumber").and_then(serde_json::Value::as_u64);
    let number = number.with_context(|| format!("no token in {object:?}"))?;
    Ok(number.try_into()?)
}

/// Gives it an annotation, in place of what that was before.
pub(crate) async fn annotate(bed: &Bed, object: &DynamicObject, name: &str, value: &str) -> Result<()> {
    let namespace = object.namespace().context("no namespace")?;
    let patch = Patch::Merge(json!({"metadata": {"annotations": {name: value}}}));
    let objects = objects(bed.kubernetes().client(), &namespace);
    objects.patch(&object.name_any(), &PatchParams::default(), &patch).await?;
    Ok(())
}
