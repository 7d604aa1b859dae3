//! Whoever wants to be another, with the webhook in his way: what people, controllers and accounts submit, change, copy
//! and forge, as real users of the real API server, and what their pods are then. Every test ends with what the
//! NameNode's audit log says: who got a token.

mod models;
mod scene;
mod workloads;

use bed::harness::Test;

pub(crate) fn tests() -> Vec<Test> {
    use models::*;
    use workloads::*;
    bed::tests![
        threat_model_1_a_fake_name_in_a_deployment_gains_nothing,
        threat_model_2_a_fake_name_in_a_bare_pod_gains_nothing,
        pods_of_every_workload_read_hdfs_as_whoever_submitted_it,
        whoever_sets_an_image_or_undoes_it_is_the_submitter,
        whoever_scales_is_not_the_submitter,
        a_manifest_that_another_applies_or_replaces_unchanged_keeps_its_seal,
        a_workload_from_before_the_webhook_says_so_and_is_sealed_by_a_restart,
        a_statefulsets_pods_are_of_whoever_submitted_their_revision,
        a_job_that_another_makes_of_a_cronjob_is_his,
    ]
}
