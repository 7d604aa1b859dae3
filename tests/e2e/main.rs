//! End-to-end tests: everything real, on one test bed. `cargo test -p tests --test e2e -- NAME` runs those whose name
//! contains NAME. A module here is a subject; its `tests()` lists what it promises.

mod parts;

use std::process::ExitCode;

fn main() -> ExitCode {
    bed::harness::main([parts::tests()].concat())
}
