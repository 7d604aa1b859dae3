//! Namespaces that the operator lets ask for some things only: whoever may create pods in one gets no more there.

use anyhow::{Result, ensure};
use bed::{
    Bed,
    users::{EXEMPT, JOBS, OTHER},
};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::stage::{Lair, Stage, draft, sealed};
use crate::GONE_LIMIT;

const LABEL: &str = "bed.test/hadoop";

pub(super) async fn a_namespace_gets_what_its_rule_says_and_one_without_a_rule_nothing(
    bed: &Bed,
) -> Result<()> {
    let rules = json!({"exempt": ["kube-system"], "rules": [
        {"names": [JOBS], "users": ["etl"], "clusters": ["main"], "hostNetwork": true},
        {"names": ["o*r"], "labels": {LABEL: "yes"}},
    ]});
    let change = |configuration: &mut Value| {
        if let Some(configuration) = configuration.as_object_mut() {
            configuration.insert("namespaces".to_owned(), rules);
        }
    };
    bed.product().await?.with_controller(change, || with_rules(bed)).await
}

async fn with_rules(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let lair = Lair::of(&stage).await?;
    let key = bed.kubernetes().sealing_key();
    let attributes = json!({"cluster": "private"});
    let elsewhere = draft("elsewhere").set("/spec/volumes/0/csi/volumeAttributes", attributes);
    lair.all_refused(vec![
        ("another user", sealed(key, draft("other-user"), "ads")?, "NAMESPACE_USER_NOT_ALLOWED"),
        ("another cluster", sealed(key, elsewhere, "etl")?, "NAMESPACE_CLUSTER_NOT_ALLOWED"),
        ("no rule", sealed(key, draft("no-rule").namespace(EXEMPT), "etl")?, "NAMESPACE_NOT_ENROLLED"),
        ("no label", sealed(key, draft("no-label").namespace(OTHER), "etl")?, "NAMESPACE_NOT_ENROLLED"),
    ])
    .await?;
    let labelled = sealed(key, draft("labelled").namespace(OTHER), "etl")?;
    label(bed, Some("yes")).await?;
    lair.granted("a label", &labelled, "etl").await?;
    label(bed, None).await?;
    lair.all_refused(vec![(
        "a label that is gone",
        sealed(key, draft("unlabelled").namespace(OTHER), "etl")?,
        "NAMESPACE_NOT_ENROLLED",
    )])
    .await?;

    let on_the_node = draft("on-the-node").set("/spec/hostNetwork", json!(true));
    let pod = bed.kubernetes().create_as(stage.users.etl.clone(), &sealed(key, on_the_node, "etl")?).await?;
    pod.until_running(GONE_LIMIT).await?;
    let owners = stage.owners()?;
    ensure!(owners == ["etl", "etl"], "tokens of {owners:?} were issued");
    pod.delete(GONE_LIMIT).await?;
    lair.leave().await
}

async fn label(bed: &Bed, value: Option<&str>) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(bed.kubernetes().client());
    let patch = Patch::Merge(json!({"metadata": {"labels": {LABEL: value}}}));
    namespaces.patch(OTHER, &PatchParams::default(), &patch).await?;
    Ok(())
}
