//! The ledger: an object in the Kubernetes API for every token, written before the token leaves the controller, so that
//! it is found and cancelled whatever becomes of pod, node, node plugin or controller. It holds identifiers and no secret.

mod resource;

pub(crate) use resource::{
    DelegationToken, DelegationTokenSpec, DelegationTokenStatus, Phase, Scope, TokenFacts,
};
