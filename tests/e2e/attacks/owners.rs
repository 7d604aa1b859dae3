//! Attackers who write owner references: to what is not theirs, to what is not there, round in circles and without
//! end. The references are to a version that Kubernetes' own controllers do not know, so that these leave them alone.

use std::time::Duration;

use anyhow::{Context, Result};
use bed::{Bed, pod::Draft, process::until, users::JOBS};
use identity::seal::Owner;
use k8s_openapi::api::batch::v1::CronJob;
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::stage::{Lair, Stage, draft, seal_of};

/// Most owners, one above the other, that a pod may have.
const MOST: usize = 20;
const LABEL: &str = "owns=owners";
const GONE_LIMIT: Duration = Duration::from_secs(60);

pub(super) async fn owner_references_that_are_forged_or_endless_get_nothing(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let lair = Lair::of(&stage).await?;
    // CronJobs, because suspended ones do nothing.
    let crons: Api<CronJob> = Api::namespaced(stage.users.etl.clone(), JOBS);
    let mut chain: Vec<Owner> = Vec::new();
    for number in 0..=MOST {
        chain.push(cron(&crons, &format!("chain-{number}"), chain.last()).await?);
    }
    let (root, longest, too_long) = match chain.as_slice() {
        [root, .., longest, too_long] => (root, longest, too_long),
        _ => anyhow::bail!("no chain"),
    };
    let (circle, other) = (cron(&crons, "circle", None).await?, cron(&crons, "other", None).await?);
    own(&crons, &circle, &other).await?;
    own(&crons, &other, &circle).await?;

    let with = |owner: Owner, sealed: Option<&Owner>| -> Result<Draft> {
        let owned = draft("owned").set("/metadata/ownerReferences", json!([reference(&owner)]));
        let mut seal = seal_of(&owned, "etl")?;
        seal.root_owner = sealed.cloned();
        super::stage::carrying(bed.kubernetes().sealing_key(), owned, &seal)
    };
    let unknown = |owner: &Owner| Owner { api_version: "batch/v9".to_owned(), ..owner.clone() };
    let forged = Owner { uid: "00000000-0000-4000-8000-000000000000".to_owned(), ..unknown(root) };
    let dangling = Owner { name: "nothing".to_owned(), ..unknown(root) };
    let path = Owner { name: "../../../jobs/cronjobs/chain-0".to_owned(), ..unknown(root) };
    lair.all_refused(vec![
        ("another's owner, that the seal does not name", with(root.clone(), None)?, "SEAL_OF_ANOTHER_POD"),
        ("an owner by a UID that is not its own", with(forged.clone(), Some(&forged))?, "OWNER_NOT_FOUND"),
        ("an owner that is not there", with(dangling.clone(), Some(&dangling))?, "OWNER_NOT_FOUND"),
        ("an owner whose name is a path", with(path.clone(), Some(&path))?, "OWNER_NOT_FOUND"),
        ("owners in a circle", with(circle.clone(), Some(&circle))?, "OWNER_NOT_FOUND"),
        ("one owner too many", with(too_long.clone(), Some(root))?, "OWNER_CHAIN_TOO_LONG"),
    ])
    .await?;
    lair.granted("as many owners as there may be", &with(longest.clone(), Some(root))?, "etl").await?;

    let crons: Api<CronJob> = Api::namespaced(bed.kubernetes().client(), JOBS);
    let ours = ListParams::default().labels(LABEL);
    crons.delete_collection(&DeleteParams::default(), &ours).await?;
    until("gone: the owners", GONE_LIMIT, async || {
        let left = crons.list(&ours).await?.items.len();
        anyhow::ensure!(left == 0, "{left} are left");
        Ok(())
    })
    .await?;
    lair.leave().await
}

/// A CronJob that never runs, owned by another.
async fn cron(crons: &Api<CronJob>, name: &str, owner: Option<&Owner>) -> Result<Owner> {
    let (key, value) = LABEL.split_once('=').context("no label")?;
    let cron: CronJob = serde_json::from_value(json!({
        "metadata": {
            "name": name,
            "labels": {key: value},
            "ownerReferences": owner.map(reference).into_iter().collect::<Vec<_>>(),
        },
        "spec": {
            "schedule": "0 0 1 1 *",
            "suspend": true,
            "jobTemplate": {"spec": {"template": {"spec": {
                "restartPolicy": "Never",
                "containers": [{"name": "main", "image": "none"}],
            }}}},
        },
    }))?;
    let made = crons.create(&PostParams::default(), &cron).await?;
    let uid = made.metadata.uid.context("a CronJob without a UID")?;
    let [api_version, kind] = ["batch/v1", "CronJob"].map(str::to_owned);
    Ok(Owner { api_version, kind, name: name.to_owned(), uid })
}

async fn own(crons: &Api<CronJob>, owned: &Owner, owner: &Owner) -> Result<()> {
    let change = json!({"metadata": {"ownerReferences": [reference(owner)]}});
    crons.patch(&owned.name, &PatchParams::default(), &Patch::Merge(&change)).await?;
    Ok(())
}

fn reference(owner: &Owner) -> Value {
    let Owner { api_version, kind, name, uid } = owner;
    json!({"apiVersion": api_version, "kind": kind, "name": name, "uid": uid, "controller": true})
}
