//! End-to-end tests: everything real, on one test bed. `cargo test -p tests --test e2e -- NAME` runs those whose name
//! contains NAME. A module here is a subject; its `tests()` lists what it promises.

mod addresses;
mod admission;
mod admission_load;
mod attacks;
mod audit;
mod burst;
mod clock;
mod conditions;
mod directory;
mod ends;
mod events;
mod example;
mod faults;
mod full_node;
mod impersonation;
mod injection;
mod job;
mod lease;
mod ledger;
mod objects;
mod operators;
mod out_of_cluster;
mod outage;
mod outages;
mod parts;
mod pods;
mod promptness;
mod protection;
mod publish;
mod read;
mod release;
mod renewal;
mod replicas;
mod restart;
mod revocation;
mod rotation;
mod seal;
mod secrets;
mod tally;
mod transport;
mod uninstall;
mod watch;
mod webhook;

use std::{process::ExitCode, time::Duration};

/// Longest that a pod may take to go.
const GONE_LIMIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    bed::harness::main(
        [
            parts::tests(),
            conditions::tests(),
            webhook::alone(),
            directory::tests(),
            read::tests(),
            release::tests(),
            renewal::tests(),
            publish::tests(),
            restart::tests(),
            full_node::tests(),
            protection::tests(),
            attacks::tests(),
            seal::tests(),
            pods::tests(),
            addresses::tests(),
            outage::tests(),
            outages::tests(),
            replicas::tests(),
            out_of_cluster::tests(),
            example::tests(),
            events::tests(),
            watch::tests(),
            burst::tests(),
            faults::tests(),
            revocation::tests(),
            rotation::tests(),
            clock::tests(),
            job::tests(),
            lease::tests(),
            ends::tests(),
            ledger::tests(),
            audit::tests(),
            transport::tests(),
            // With it, pods are sealed by the webhook; it is removed afterwards.
            admission::tests(),
            admission_load::tests(),
            injection::tests(),
            impersonation::tests(),
            webhook::tests(),
            operators::tests(),
            webhook::removal(),
            // Searches what all others left.
            secrets::tests(),
            // Takes the product away.
            uninstall::tests(),
        ]
        .concat(),
    )
}
