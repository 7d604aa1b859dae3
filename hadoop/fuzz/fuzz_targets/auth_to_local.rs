//! Any rules are taken or refused, and any name is mapped or not: quickly, without a panic, and never to a name that a
//! rule gave and that is not simple.
#![no_main]

use hadoop::auth_to_local::Rules;

libfuzzer_sys::fuzz_target!(|input: (&str, &str)| {
    let (rules, principal) = input;
    if let Ok(rules) = Rules::parse(rules, Some("R"))
        && let Ok(name) = rules.short_name(principal)
        && principal.contains('@')
    {
        assert!(!name.contains(['/', '@']), "{name:?}");
    }
});
