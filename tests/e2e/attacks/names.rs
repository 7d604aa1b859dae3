//! Attackers who may choose what they are called: a certificate's name, an account's name, a headless account.

use anyhow::Result;
use bed::Bed;

use super::stage::{Lair, Stage, acting, draft, sealed};

pub(super) async fn names_that_mean_somebody_else_to_hadoop_get_nothing(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let lair = Lair::of(&stage).await?;
    let key = bed.kubernetes().sealing_key();
    let endless = "e".repeat(5_000);
    let mut cases = Vec::new();
    for (submitter, reason) in [
        // Superusers, in every form that Hadoop takes for them.
        ("hdfs", "USER_DENIED"),
        ("hdfs@BED.TEST", "USER_DENIED"),
        ("hdfs/x@BED.TEST", "USER_DENIED"),
        ("yarn", "USER_DENIED"),
        ("mapred/host.bed.test@BED.TEST", "USER_DENIED"),
        ("hive", "USER_DENIED"),
        ("hbase", "USER_DENIED"),
        ("kms", "USER_DENIED"),
        ("root", "USER_DENIED"),
        // People of other realms.
        ("etl@ELSEWHERE.TEST", "SUBMITTER_NOT_MAPPED"),
        ("hdfs@ELSEWHERE.TEST", "SUBMITTER_NOT_MAPPED"),
        ("etl@bed.test", "SUBMITTER_NOT_MAPPED"),
        // Kubernetes' own.
        ("system:admin", "SUBMITTER_NOT_MAPPED"),
        ("system:masters", "SUBMITTER_NOT_MAPPED"),
        ("system:anonymous", "SUBMITTER_NOT_MAPPED"),
        ("system:node:second", "SUBMITTER_NOT_MAPPED"),
        ("system:kube-controller-manager", "SUBMITTER_NOT_MAPPED"),
        ("system:etl", "SUBMITTER_NOT_MAPPED"),
        ("system:serviceaccount:jobs:robot", "SERVICE_ACCOUNT_NOT_MAPPED"),
        ("system:serviceaccount:kube-system:replicaset-controller", "SERVICE_ACCOUNT_NOT_MAPPED"),
        ("system:serviceaccount:jobs:etl@BED.TEST", "SERVICE_ACCOUNT_NOT_MAPPED|SUBMITTER_NOT_MAPPED"),
        ("system:serviceaccount:etl", "SERVICE_ACCOUNT_NOT_MAPPED|SUBMITTER_NOT_MAPPED"),
        // Nearly etl.
        ("ETL", "USER_UNKNOWN|SUBMITTER_NOT_MAPPED"),
        ("\u{435}tl", "USER_UNKNOWN|SUBMITTER_NOT_MAPPED"),
        ("etl ", "SUBMITTER_NOT_MAPPED"),
        (" etl", "SUBMITTER_NOT_MAPPED"),
        ("etl\n", "SUBMITTER_NOT_MAPPED"),
        ("etl\u{0}", "SUBMITTER_NOT_MAPPED"),
        ("etl\nads", "SUBMITTER_NOT_MAPPED"),
        ("etl@BED.TEST\n", "SUBMITTER_NOT_MAPPED"),
        ("x\netl@BED.TEST", "SUBMITTER_NOT_MAPPED"),
        ("etl,ads", "USER_UNKNOWN|SUBMITTER_NOT_MAPPED"),
        ("../etl", "SUBMITTER_NOT_MAPPED"),
        ("etl@BED.TEST@BED.TEST", "SUBMITTER_NOT_MAPPED"),
        // A directory's language.
        ("*", "USER_UNKNOWN|SUBMITTER_NOT_MAPPED"),
        ("e*", "USER_UNKNOWN|SUBMITTER_NOT_MAPPED"),
        ("etl)(uid=*", "USER_UNKNOWN|SUBMITTER_NOT_MAPPED"),
        ("x)(|(uid=etl", "USER_UNKNOWN|SUBMITTER_NOT_MAPPED"),
        ("uid=etl,ou=people", "USER_UNKNOWN|SUBMITTER_NOT_MAPPED"),
        ("", "SUBMITTER_NOT_MAPPED"),
        (&endless, "USER_UNKNOWN|SUBMITTER_NOT_MAPPED"),
    ] {
        cases.push((submitter, sealed(key, draft("named"), submitter)?, reason));
    }
    // Accounts that nobody may act for, or that he may not.
    for (account, reason) in [
        ("hdfs", "USER_DENIED"),
        ("root", "USER_DENIED"),
        ("ads", "DO_AS_NOT_MEMBER"),
        ("HDFS", "USER_DENIED"), // in whatever case
        ("*", "DO_AS_NOT_MEMBER|USER_INVALID"),
        ("hdfs@BED.TEST", "DO_AS_NOT_MEMBER|USER_INVALID"),
        ("hdfs/x@BED.TEST", "DO_AS_NOT_MEMBER|USER_INVALID"),
        ("ads\n", "USER_INVALID"),
        ("", "USER_INVALID"),
        ("x)(|(cn=*", "DO_AS_NOT_MEMBER|USER_INVALID"),
    ] {
        cases.push((account, sealed(key, acting(draft("acting"), account), "etl")?, reason));
    }
    lair.all_refused(cases).await?;
    lair.leave().await
}
