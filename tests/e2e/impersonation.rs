//! Whoever wants to be another, with the webhook in his way: what people, controllers and accounts submit, change, copy
//! and forge, as real users of the real API server, and what their pods are then. Every test ends with what the
//! NameNode's audit log says: who got a token.

mod accounts;
mod administrator;
mod keys;
mod kube2hadoop;
mod models;
mod owners;
mod requests;
mod scene;
mod workloads;

use bed::harness::Test;

pub(crate) fn tests() -> Vec<Test> {
    use accounts::*;
    use administrator::*;
    use keys::*;
    use kube2hadoop::*;
    use models::*;
    use owners::*;
    use requests::*;
    use workloads::*;
    bed::tests![
        threat_model_1_a_fake_name_in_a_deployment_gains_nothing,
        threat_model_2_a_fake_name_in_a_bare_pod_gains_nothing,
        threat_model_3_what_an_administrator_writes_past_the_webhook_gets_nothing,
        threat_model_3_an_administrator_is_whom_he_says_he_is_and_never_a_superuser,
        threat_model_3_with_the_controller_outside_there_is_no_keytab_in_the_cluster,
        pods_of_every_workload_read_hdfs_as_whoever_submitted_it,
        whoever_sets_an_image_or_undoes_it_is_the_submitter,
        what_another_changes_is_his_of_whatever_kind_it_is,
        whoever_scales_is_not_the_submitter,
        sealing_keys_are_exchanged_and_pods_stay_whose_they_are,
        a_manifest_that_another_applies_or_replaces_unchanged_keeps_its_seal,
        a_workload_from_before_the_webhook_says_so_and_is_sealed_by_a_restart,
        a_statefulsets_pods_are_of_whoever_submitted_their_revision,
        a_job_that_another_makes_of_a_cronjob_is_his,
        a_pod_that_says_it_is_of_anothers_replicaset_is_its_creators,
        a_replicaset_put_under_anothers_deployment_makes_pods_of_its_creator,
        a_forged_revision_makes_no_pod_of_anothers,
        a_pod_that_a_replicaset_of_another_adopts_is_nobodys,
        what_an_orphaned_replicaset_makes_is_nobodys_until_it_is_submitted_again,
        a_seal_that_was_copied_is_written_over_wherever_it_came_from,
        every_kind_of_patch_makes_its_author_the_submitter_and_moves_no_seal,
        what_is_only_tried_is_answered_alike_and_leaves_nothing,
        a_copy_that_is_to_be_debugged_is_whose_copy_it_is,
        a1_nothing_that_happens_to_a_pod_later_makes_it_anothers,
        a_pod_that_another_evicts_comes_back_as_its_submitters,
        a3_accounts_and_names_like_those_of_controllers_are_only_themselves,
        a4_an_operator_that_is_not_named_hands_nobodys_name_on,
        what_a_driver_makes_is_its_accounts_unless_it_hands_its_submitter_on,
        a2_a_namespace_that_nobody_enrolled_is_watched_and_an_exempt_one_gets_nothing,
        a5_nobody_elses_hands_reach_a_token_and_what_he_changes_is_his,
        a6_a_name_used_again_is_its_new_submitters,
        a7_a_sealed_pod_in_the_nodes_network_gets_nothing,
        a8_nobody_asks_for_an_account_that_is_not_his,
        a9_annotations_named_like_fields_of_a_request_are_only_annotations,
        a10_a_certificate_that_hadoop_would_take_for_hdfs_is_sealed_and_gets_nothing,
        a11_a_seal_that_a_stranger_has_made_for_him_is_worth_nothing,
        a12_while_the_webhook_is_away_nothing_with_a_token_gets_in_and_workloads_wait,
        a13_pods_that_are_admitted_at_once_get_each_their_own_seal,
        a14_a_crowd_of_strangers_keeps_nobody_from_being_admitted,
    ]
}
