//! What is taken, what is refused, and that replacing follows Java where the crate's own way is another.

use super::*;

#[track_caller]
fn refused(pattern: &str, expected: &Unsupported) {
    assert_eq!(&Pattern::parse(pattern).expect_err(pattern), expected, "{pattern}");
}

#[test]
fn patterns_that_java_may_read_otherwise_are_refused() {
    for pattern in ["a(?=b)", "a(?!b)", "(?<=a)b", "(?<!a)b"] {
        refused(pattern, &Unsupported::LookAround);
    }
    refused(r"(a)\1", &Unsupported::BackReference);
    for pattern in ["a*+", "a++", "a?+", "a{2}+", "a**", "^*", r"\b?", "a+?+", "*a", "(?i)*"] {
        refused(pattern, &Unsupported::Repetition);
    }
    for pattern in ["(a*)*", "(?:a|b?)+", "(|a){2}", "(^|a)*", "(a*b?){3,}"] {
        refused(pattern, &Unsupported::RepeatsEmpty);
    }
    for pattern in ["a{,3}", "a{ 2 }", "a{2, 3}", "a{}"] {
        refused(pattern, &Unsupported::Count);
    }
    for (pattern, escape) in [
        (r"\Qa\E", r"\Q"),
        (r"\h", r"\h"),
        (r"\v", r"\v"),
        (r"\R", r"\R"),
        (r"\Z", r"\Z"),
        (r"\G", r"\G"),
        (r"\X", r"\X"),
        (r"\k<a>", r"\k"),
        (r"\cA", r"\c"),
        (r"\e", r"\e"),
        (r"\<a", r"\<"),
        (r"\b{start}a", r"\b{start}"),
        (r"\u{61}", r"\u{61}"),
        (r"\U00000061", r"\U00000061"),
    ] {
        refused(pattern, &Unsupported::Escape(escape.to_owned()));
    }
    for pattern in ["[a&&b]", "[a-z&&[^b]]", "[a[b]]", "[[:alpha:]]", "[a--b]", "[a~~b]", "[+--]"] {
        refused(pattern, &Unsupported::ClassOperator);
    }
    for pattern in ["[]a]", "[^]a]", "[a-c-e]", "[!-[]"] {
        refused(pattern, &Unsupported::ClassLiteral);
    }
    for class in [r"\p{L}", r"\pL", r"\p{IsLatin}", r"\p{lower}", r"\p{^Lower}"] {
        refused(class, &Unsupported::Property(class.to_owned()));
    }
    for pattern in [r"(?i)\p{Lower}", r"\P{Upper}(?i)"] {
        refused(pattern, &Unsupported::CaseProperty);
    }
    for pattern in ["(?x)a b", "(?m)^a", "(?u)a", "(?U)a", "(?d).", "(?>a)", "(?ii)a"] {
        refused(pattern, &Unsupported::Flag);
    }
    for pattern in ["(?P<a>b)", "(?<a_b>c)"] {
        refused(pattern, &Unsupported::GroupName);
    }
    for pattern in ["é", r"\xe9", r"[a-\x{10FFFF}]", "a\nb"] {
        refused(pattern, &Unsupported::NotAscii);
    }
    for pattern in ["(?:a{1000}){1000}".to_owned(), format!("{}a{}", "(".repeat(60), ")".repeat(60))] {
        refused(&pattern, &Unsupported::TooLarge);
    }
    for pattern in ["(", "a)", "[a", "a{2", "a{3,2}"] {
        assert!(matches!(Pattern::parse(pattern), Err(Unsupported::Syntax(_))), "{pattern}");
    }
}

#[test]
fn the_shorthands_are_ascii_as_in_java() {
    for (pattern, yes, no) in [
        (r"\w+\d", "a_1", "a-1"),
        (r"\p{Alpha}+[\p{Digit}.]", "ab.", "a+"),
        (r"\P{Upper}+", "ab1", "aB"),
        (r"[^\p{Punct}]+", "ab", "a-"),
        ("(?i)[^a-c]x", "dX", "Ax"),
        (r"[\w-]+", "a-b", "a.b"),
        (r"a\x2fb\u0063\x{64}", "a/bcd", "a/bc"),
        ("ab$", "ab", "abc"),
    ] {
        let mut filters = Filters::default();
        filters.add(pattern).unwrap();
        filters.compile().unwrap();
        assert!(filters.matches(yes).contains(0), "{pattern}");
        assert!(!filters.matches(no).contains(0), "{pattern}");
    }
}

#[track_caller]
fn replaces(pattern: &str, replacement: &str, text: &str, first: &str, all: &str) {
    let pattern = Pattern::parse(pattern).unwrap();
    let replacement = Replacement::parse(replacement, &pattern).unwrap();
    assert_eq!(pattern.replace(text, &replacement, false), first, "{pattern:?}");
    assert_eq!(pattern.replace(text, &replacement, true), all, "{pattern:?}");
}

#[test]
fn replacing_follows_java() {
    replaces("x*", "-", "xxa", "-a", "--a-");
    replaces("", ".", "ab", ".ab", ".a.b.");
    replaces("^", "x", "ab", "xab", "xab");
    replaces("(a)(b)?", "<$2$1>", "aba", "<ba>a", "<ba><a>");
    replaces("(?<user>[a-z]+)@.*", "${user}0", "etl@R", "etl0", "etl0");
    replaces("(a)", "$10", "a", "a0", "a0");
    replaces("a", r"\$\\\x$0", "a", r"$\xa", r"$\xa");
    replaces("a|ab", "x", "abab", "xbab", "xbxb");
}

#[test]
fn replacements_that_java_fails_with_are_refused() {
    let pattern = Pattern::parse("(a)(?<b>c)").unwrap();
    for (replacement, expected) in [
        ("a\\", InvalidReplacement::Backslash),
        ("$", InvalidReplacement::Dollar),
        ("$a", InvalidReplacement::Dollar),
        ("${b", InvalidReplacement::Dollar),
        ("$3", InvalidReplacement::Group("3".to_owned())),
        ("${c}", InvalidReplacement::Group("c".to_owned())),
    ] {
        assert_eq!(Replacement::parse(replacement, &pattern).unwrap_err(), expected, "{replacement}");
    }
}
