//! Uninstalled as README.md says, the product leaves nothing behind: no object, no token, no mount, no file. The last
//! test of all, because there is no product afterwards.

use std::{fs, path::Path, time::Duration};

use anyhow::{Result, ensure};
use bed::{
    Bed, harness::Test, host::KUBELET, namenode::Cluster, pod::Draft, process::until, product::NAMESPACE,
};
use identity::DRIVER_NAME;

use crate::{GONE_LIMIT, publish::Volume, tally::Tally};

/// `kubectl delete` waits until everything is gone.
const LIMIT: Duration = Duration::from_secs(120);
const CRD: &str = "crd/delegationtokens.hadoop-token.csi";

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![nothing_is_left_of_the_product_once_it_is_uninstalled]
}

async fn nothing_is_left_of_the_product_once_it_is_uninstalled(bed: &Bed) -> Result<()> {
    let (tally, product) = (Tally::begin(bed.main()).await?, bed.product().await?);
    let uses = bed.kubernetes().run(&Draft::new("still-uses-it").token_of("etl")).await?;
    let leaves = bed.kubernetes().run(&Draft::new("ends-before").token_of("ads")).await?;
    let timeout = format!("--timeout={}s", LIMIT.as_secs());
    let delete = || bed.kubernetes().kubectl().args(["delete", "--ignore-not-found", &timeout]);

    // Pods first: without a node plugin, kubelet could not unmount their volumes. Then the custom resource, whose
    // objects go as soon as the controller has cancelled their tokens. Then the rest.
    let volume = Volume::mounted_in(&leaves).await?;
    leaves.delete(GONE_LIMIT).await?;
    volume.until_unmounted().await?;
    delete().arg(CRD).succeed().await?;
    tally.ends().await?;
    uses.hdfs_native(Cluster::Main, &["cat", "/user/etl/private.txt"]).await?.failure()?;
    let volume = Volume::mounted_in(&uses).await?;
    uses.delete(GONE_LIMIT).await?;
    // kubelet unmounts only after the pod is gone from the API, and cannot without the node plugin.
    volume.until_unmounted().await?;
    delete().arg("-k").arg(product.overlay()).succeed().await?;

    let named = ["delegationtoken", "hadoop-token"];
    for kind in ["crd", "csidriver", "clusterrole", "clusterrolebinding", "namespace", "lease", "pod"] {
        let output = ["-o", "name", "--all-namespaces"];
        let left = bed.kubernetes().kubectl().args(["get", kind]).args(output).succeed().await?;
        let left: Vec<&str> =
            left.lines().filter(|line| named.iter().any(|name| line.contains(name))).collect();
        ensure!(left.is_empty(), "left: {left:?}");
    }
    let in_namespace =
        bed.kubernetes().kubectl().args(["get", "lease", "--namespace", NAMESPACE, "-o", "name"]);
    ensure!(in_namespace.succeed().await?.is_empty(), "a lease is left");
    until("unregistered: the node plugin", GONE_LIMIT, async || {
        let drivers = ["get", "csinode", "-o", "jsonpath={.items[*].spec.drivers[*].name}"];
        let drivers = bed.kubernetes().kubectl().args(drivers).succeed().await?;
        ensure!(!drivers.contains(DRIVER_NAME), "kubelet knows {drivers}");
        Ok(())
    })
    .await?;
    on_the_node()
}

/// No mount, no socket, no folder.
fn on_the_node() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mounts: Vec<&str> = mounts.lines().filter(|line| line.contains("kubernetes.io~csi")).collect();
    ensure!(mounts.is_empty(), "still mounted: {mounts:?}");
    for folder in ["plugins", "plugins_registry"] {
        let found = files_below(&Path::new(KUBELET).join(folder))?;
        // kubelet made an empty folder for the volume of the node plugin's pod.
        let empty = Path::new(KUBELET).join("plugins").join(DRIVER_NAME).display().to_string();
        let ours = |path: &String| path.contains(DRIVER_NAME) && *path != empty;
        let found: Vec<_> = found.into_iter().filter(ours).collect();
        ensure!(found.is_empty(), "left on the node: {found:?}");
    }
    Ok(())
}

fn files_below(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            found.push(path.display().to_string());
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    Ok(found)
}
