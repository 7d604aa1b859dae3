//! The bed itself: what all other tests rely on.

use std::time::Duration;

use anyhow::{Result, ensure};
use bed::{
    Bed,
    harness::Test,
    kdc::SUPERUSER,
    namenode::{Cluster, private_content},
    pod::Draft,
    process::Program,
};

const MINUTE: Duration = Duration::from_secs(60);

/// The tests of this module.
pub(crate) fn tests() -> Vec<Test> {
    bed::tests![on a bare bed:
        a_pod_runs_and_ends,
        a_pod_resolves_the_names_of_the_bed,
        the_superuser_reads_a_users_file_as_that_user,
        the_superuser_may_not_act_for_others_than_hadoop_users,
        nobody_reads_without_credentials,
        java_and_hdfs_native_are_refused_in_a_pod_without_a_token,
        the_private_cluster_serves_under_privacy,
        kdc_and_namenode_stop_and_come_back,
        containers_survive_a_kubelet_restart,
    ]
}

async fn a_pod_runs_and_ends(bed: &Bed) -> Result<()> {
    let draft = Draft::new("ends").script("id -u; cat /proc/1/comm").run_as(1000, None);
    let pod = bed.kubernetes().create(&draft).await?;
    let logs = pod.until_succeeded(MINUTE).await?;
    ensure!(logs.starts_with("1000\n"), "{logs}");
    pod.delete(MINUTE).await
}

async fn a_pod_resolves_the_names_of_the_bed(bed: &Bed) -> Result<()> {
    let pod = bed.kubernetes().run(&Draft::new("names")).await?;
    let answer = pod.exec(&["nslookup", "nn1.bed.test"]).await?.success()?;
    ensure!(answer.contains("10.245.0.11"), "{answer}");
    let answer = pod.exec(&["nslookup", "nowhere.bed.test"]).await?.failure()?;
    ensure!(answer.contains("NXDOMAIN"), "{answer}");
    pod.delete(MINUTE).await
}

async fn the_superuser_reads_a_users_file_as_that_user(bed: &Bed) -> Result<()> {
    let client = bed.hdfs_as(Cluster::Main, SUPERUSER, "csi.keytab")?;
    let as_etl = client.clone().args(["--as", "etl", "cat", "/user/etl/private.txt"]);
    ensure!(as_etl.succeed().await? == private_content(Cluster::Main, "etl"));
    let as_other = client.args(["--as", "etl", "cat", "/user/ads/private.txt"]);
    let refusal = as_other.output().await?.failure()?;
    ensure!(refusal.contains("Permission denied"), "{refusal}");
    Ok(())
}

async fn the_superuser_may_not_act_for_others_than_hadoop_users(bed: &Bed) -> Result<()> {
    // By Java, which says why; hdfs-native only tells that the connection broke.
    let tickets = bed.state().join("tmp/tickets").display().to_string();
    let kinit = bed.kdc().client(Program::new("kinit")).args(["-c", &tickets, "-k", "-t"]);
    kinit.arg(bed.kdc().keytab("csi.keytab")).arg(SUPERUSER).succeed().await?;
    let configuration = bed.client_configurations().join("main");
    let shell =
        bed.tools().java(&configuration).env("KRB5CCNAME", &tickets).env("HADOOP_PROXY_USER", "intruder");
    let krb5 = format!("-Djava.security.krb5.conf={}", bed.kdc().client_configuration().display());
    let shell = shell.env("JDK_JAVA_OPTIONS", krb5).args(["org.apache.hadoop.fs.FsShell", "-ls", "/user"]);
    let refusal = shell.output().await?.failure()?;
    ensure!(refusal.contains("is not allowed to impersonate intruder"), "{refusal}");
    Ok(())
}

async fn nobody_reads_without_credentials(bed: &Bed) -> Result<()> {
    bed.hdfs_as_nobody(Cluster::Main)?.args(["ls", "/"]).output().await?.failure()?;
    Ok(())
}

async fn java_and_hdfs_native_are_refused_in_a_pod_without_a_token(bed: &Bed) -> Result<()> {
    let java = bed.kubernetes().run(&Draft::new("java-bare").java(bed)).await?;
    let refusal =
        java.hadoop(bed.tools(), Cluster::Main, &["-cat", "/user/etl/private.txt"]).await?.failure()?;
    ensure!(refusal.contains("SIMPLE authentication is not enabled"), "{refusal}");
    let native = bed.kubernetes().run(&Draft::new("native-bare")).await?;
    let refusal = native.hdfs_native(Cluster::Main, &["cat", "/user/etl/private.txt"]).await?.failure()?;
    ensure!(!refusal.contains("for the eyes"), "{refusal}");
    java.delete(MINUTE).await?;
    native.delete(MINUTE).await
}

async fn the_private_cluster_serves_under_privacy(bed: &Bed) -> Result<()> {
    bed.private().await?;
    let client = bed.hdfs_as(Cluster::Private, SUPERUSER, "csi.keytab")?;
    let content = client.args(["--as", "ads", "cat", "/user/ads/private.txt"]).succeed().await?;
    ensure!(content == private_content(Cluster::Private, "ads"));
    Ok(())
}

async fn kdc_and_namenode_stop_and_come_back(bed: &Bed) -> Result<()> {
    let read = async || {
        let client = bed.hdfs_as(Cluster::Main, SUPERUSER, "csi.keytab")?;
        client.args(["--as", "etl", "cat", "/user/etl/private.txt"]).output().await
    };
    bed.kdc().stop().await?;
    read().await?.failure()?;
    bed.kdc().start().await?;
    read().await?.success()?;
    bed.main().stop().await?;
    read().await?.failure()?;
    bed.main().start().await?;
    read().await?.success()?;
    Ok(())
}

async fn containers_survive_a_kubelet_restart(bed: &Bed) -> Result<()> {
    let pod = bed.kubernetes().run(&Draft::new("survivor")).await?;
    let started = pod.exec(&["stat", "-c", "%Y", "/proc/1"]).await?.success()?;
    bed.kubernetes().stop_kubelet().await?;
    bed.kubernetes().start_kubelet().await?;
    ensure!(pod.exec(&["stat", "-c", "%Y", "/proc/1"]).await?.success()? == started);
    pod.delete(MINUTE).await
}
