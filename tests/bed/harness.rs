//! Runs end-to-end tests on one bed, one after the other, and prints as `cargo test` does. A bed is started only when
//! there is a test to run; a test that fails shows the tails of the bed's logs.

use std::{any::Any, panic::AssertUnwindSafe, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Result, anyhow};
use futures_util::{FutureExt, future::LocalBoxFuture};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::{runtime::Runtime, time::timeout};

use crate::{
    Bed, Options,
    bed::keep_logs,
    isolate::{Side, enter},
    product::{Need, prepare},
    progress::say,
};

const TEST_LIMIT: Duration = Duration::from_secs(10 * 60);

/// One test. Made by [`tests!`](crate::tests).
#[derive(Debug, Clone, Copy)]
pub struct Test {
    /// Module and function.
    pub name: &'static str,
    /// What must be there before.
    pub need: Need,
    /// The test.
    pub run: for<'bed> fn(&'bed Bed) -> LocalBoxFuture<'bed, Result<()>>,
}

/// The tests of a module, from their functions: `async fn name(bed: &Bed) -> anyhow::Result<()>`.
///
/// `tests![a, b]` for tests of the product, `tests![on a bare bed: a, b]` for those that do without, and
/// `tests![before the product: a, b]` for those that install some of it.
#[macro_export]
macro_rules! tests {
    (on a bare bed: $($name:ident),* $(,)?) => { $crate::tests![@ $crate::product::Need::Bed, $($name),*] };
    (before the product: $($name:ident),* $(,)?) => { $crate::tests![@ $crate::product::Need::Programs, $($name),*] };
    (@ $need:expr, $($name:ident),*) => {
        vec![$($crate::harness::Test {
            name: concat!(module_path!(), "::", stringify!($name)),
            need: $need,
            run: |bed| Box::pin($name(bed)),
        }),*]
    };
    ($($name:ident),* $(,)?) => { $crate::tests![@ $crate::product::Need::Product, $($name),*] };
}

/// The `main` of a test program.
#[must_use]
pub fn main(tests: Vec<Test>) -> ExitCode {
    match run(tests) {
        Ok(code) => code,
        Err(error) => {
            say(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(tests: Vec<Test>) -> Result<ExitCode> {
    let mut arguments = Arguments::from_args();
    // They share one bed, and stop and start parts of it.
    arguments.test_threads = Some(1);
    let idle = |test: &Test| Trial::test(short(test.name), || Ok(()));
    let chosen: Vec<&Test> = tests.iter().filter(|test| !arguments.is_filtered_out(&idle(test))).collect();
    if arguments.list || chosen.is_empty() {
        return Ok(libtest_mimic::run(&arguments, tests.iter().map(idle).collect()).exit_code());
    }
    let need = chosen.iter().map(|test| test.need).max().unwrap_or(Need::Bed);
    if let Side::Outside(code) = enter(|| prepare(need))? {
        return Ok(code);
    }
    let runtime = Arc::new(Runtime::new()?);
    let bed = Arc::new(runtime.block_on(Bed::start(Options::default()))?);
    let trials = tests.iter().map(|test| {
        let (test, bed, runtime) = (*test, bed.clone(), runtime.clone());
        Trial::test(short(test.name), move || runtime.block_on(attempt(test, &bed)))
    });
    Ok(libtest_mimic::run(&arguments, trials.collect()).exit_code())
}

/// Without the name of the test program.
fn short(name: &'static str) -> &'static str {
    name.split_once("::").map_or(name, |(_, rest)| rest)
}

async fn attempt(test: Test, bed: &Bed) -> Result<(), Failed> {
    let run = async {
        if test.need == Need::Product {
            bed.product().await?;
        }
        (test.run)(bed).await
    };
    let running = AssertUnwindSafe(run).catch_unwind();
    let result = match timeout(TEST_LIMIT, running).await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => Err(anyhow!("panicked: {}", panic_message(panic.as_ref()))),
        Err(_) => Err(anyhow!("not finished after {} s", TEST_LIMIT.as_secs())),
    };
    let Err(error) = result else { return Ok(()) };
    Err(format!("{error:#}\n\n{}{}", bed.log_tails(), keep_logs().await).into())
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
        (Some(message), _) => message,
        (_, Some(message)) => message,
        _ => "without a message",
    }
}
