//! Whoever edits YAML, uses a service account, or owns a node: none of them gets another's token. Every attack is
//! made as a real user of the real API server, and ends without a token and with the reason told.

mod names;
mod namespaces;
mod network;
mod nodes;
mod owners;
mod requests;
mod seals;
pub(crate) mod stage;
mod yaml;

use bed::harness::Test;

pub(crate) fn tests() -> Vec<Test> {
    use names::*;
    use namespaces::*;
    use network::*;
    use nodes::*;
    use owners::*;
    use requests::*;
    use seals::*;
    use yaml::*;
    bed::tests![
        a1_patching_the_submitter_after_creation_gains_nothing,
        a2_an_exempt_namespace_gets_nothing_whatever_its_pods_say,
        a3_a_service_account_is_itself_and_nobody_else,
        a4_what_a_workload_hands_on_to_its_pods_unsealed_is_worth_nothing,
        a5_changing_somebodys_workload_makes_no_pod_of_his,
        a6_a_name_used_again_is_another_pod,
        a7_a_pod_in_the_nodes_network_gets_nothing,
        a8_nobody_acts_as_a_superuser_and_no_request_says_as_whom,
        a9_annotations_named_like_fields_of_a_request_change_nothing,
        a10_a_certificate_that_hadoop_would_take_for_hdfs_gets_nothing,
        a11_neither_cleartext_nor_a_stranger_in_the_controllers_place_sees_a_token,
        a12_a_pod_that_nobody_decorated_gets_nothing,
        a13_pods_that_were_given_each_others_seals_get_nothing,
        a14_a_flood_of_strangers_costs_the_api_server_nothing,
        a_pod_that_claims_or_is_given_an_owner_gains_nothing,
        owner_references_that_are_forged_or_endless_get_nothing,
        a_node_gets_tokens_for_pods_scheduled_on_it_and_no_others,
        only_the_node_plugins_own_bound_token_makes_a_caller,
        requests_that_no_node_plugin_makes_are_refused,
        tokens_of_others_can_be_neither_renewed_nor_taken_away,
        a_pod_with_a_seal_of_its_own_making_gets_nothing,
        a_seal_of_another_pod_time_or_submitter_gains_nothing,
        one_seal_serves_one_pod,
        a_namespace_gets_what_its_rule_says_and_one_without_a_rule_nothing,
        names_that_mean_somebody_else_to_hadoop_get_nothing,
    ]
}
