//! What the volume is for: a pod reads HDFS as its user, and only as its user, with nothing of Kerberos in it.

use anyhow::{Result, ensure};
use bed::{
    Bed,
    harness::Test,
    namenode::{Cluster, private_content},
    pod::{Draft, Running},
};

use crate::GONE_LIMIT;

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![
        a_pod_reads_its_users_private_file_with_java,
        a_pod_reads_its_users_private_file_with_hdfs_native,
        the_file_of_another_user_stays_closed,
        without_the_volume_the_same_commands_fail,
    ]
}

async fn a_pod_reads_its_users_private_file_with_java(bed: &Bed) -> Result<()> {
    let pod = bed.kubernetes().run(&Draft::new("java-reader").java(bed).token_of("etl")).await?;
    holds_nothing_of_kerberos(&pod).await?;
    let read = pod.hadoop(bed.tools(), Cluster::Main, &["-cat", "/user/etl/private.txt"]).await?.success()?;
    ensure!(read == private_content(Cluster::Main, "etl"), "read {read:?}");
    pod.delete(GONE_LIMIT).await
}

async fn a_pod_reads_its_users_private_file_with_hdfs_native(bed: &Bed) -> Result<()> {
    let pod = bed.kubernetes().run(&Draft::new("native-reader").token_of("etl")).await?;
    holds_nothing_of_kerberos(&pod).await?;
    let read = pod.hdfs_native(Cluster::Main, &["cat", "/user/etl/private.txt"]).await?.success()?;
    ensure!(read == private_content(Cluster::Main, "etl"), "read {read:?}");
    pod.delete(GONE_LIMIT).await
}

async fn the_file_of_another_user_stays_closed(bed: &Bed) -> Result<()> {
    let pod = bed.kubernetes().run(&Draft::new("curious-reader").java(bed).token_of("ads")).await?;
    let own = pod.hadoop(bed.tools(), Cluster::Main, &["-cat", "/user/ads/private.txt"]).await?.success()?;
    ensure!(own == private_content(Cluster::Main, "ads"), "read {own:?}");
    let refused =
        pod.hadoop(bed.tools(), Cluster::Main, &["-cat", "/user/etl/private.txt"]).await?.failure()?;
    ensure!(refused.contains("Permission denied: user=ads"), "{refused}");
    pod.delete(GONE_LIMIT).await
}

async fn without_the_volume_the_same_commands_fail(bed: &Bed) -> Result<()> {
    let java = bed.kubernetes().run(&Draft::new("java-without").java(bed)).await?;
    let refused =
        java.hadoop(bed.tools(), Cluster::Main, &["-cat", "/user/etl/private.txt"]).await?.failure()?;
    ensure!(
        refused.contains("SIMPLE authentication is not enabled.  Available:[TOKEN, KERBEROS]"),
        "{refused}"
    );
    let native = bed.kubernetes().run(&Draft::new("native-without")).await?;
    native.hdfs_native(Cluster::Main, &["cat", "/user/etl/private.txt"]).await?.failure()?;
    java.delete(GONE_LIMIT).await?;
    native.delete(GONE_LIMIT).await
}

/// The pod has no Kerberos configuration, keytab, ticket or variable.
async fn holds_nothing_of_kerberos(pod: &Running) -> Result<()> {
    let script = "ls /etc/krb5.conf /etc/krb5.keytab /tmp/krb5cc* 2>/dev/null; env | grep KRB5";
    let found = pod.exec(&["sh", "-c", script]).await?;
    ensure!(found.stdout.is_empty(), "the pod holds {}", found.stdout);
    Ok(())
}
