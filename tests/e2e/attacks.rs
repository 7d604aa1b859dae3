//! Whoever edits YAML, uses a service account, or owns a node: none of them gets another's token. Every attack is
//! made as a real user of the real API server, and ends without a token and with the reason told.

mod nodes;
mod stage;

use bed::harness::Test;

pub(crate) fn tests() -> Vec<Test> {
    use nodes::*;
    bed::tests![
        a_node_gets_tokens_for_pods_scheduled_on_it_and_no_others,
        only_the_node_plugins_own_bound_token_makes_a_caller,
    ]
}
