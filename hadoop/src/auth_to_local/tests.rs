//! What the rules promise. That they give Hadoop's names is shown by Hadoop itself, on the test bed.

use proptest::prelude::*;

use super::*;

fn rules(text: &str) -> Rules {
    Rules::parse(text, Some("CORP")).unwrap()
}

#[track_caller]
fn maps(rules: &Rules, cases: &[(&str, &str)]) {
    for (principal, name) in cases {
        assert_eq!(rules.short_name(principal).as_deref(), Ok(*name), "{principal}");
    }
}

#[test]
fn default_takes_the_default_realm_off_and_the_host_with_it() {
    let rules = rules("DEFAULT");
    maps(&rules, &[("etl@CORP", "etl"), ("hdfs/nn1.corp@CORP", "hdfs"), ("etl", "etl")]);
    assert_eq!(rules.short_name("etl@OTHER"), Err(NoName::NoRule));
    assert_eq!(rules.short_name("etl@corp"), Err(NoName::NoRule));
    assert_eq!(Rules::parse("DEFAULT", None).unwrap().short_name("etl@CORP"), Err(NoName::NoRule));
}

#[test]
fn the_first_rule_that_applies_gives_the_name() {
    let rules = rules(
        r"RULE:[1:$1@$0](.*@EU\.CORP)s/@.*//
          RULE:[2:$1;$2](^nn;.*$|^dn;.*$)s/^.*$/hdfs/
          RULE:[1:$1.$0](.*\.US)s/\.US$/_us/g/L DEFAULT",
    );
    maps(
        &rules,
        &[("etl@EU.CORP", "etl"), ("Etl.X@US", "etl.x_us"), ("nn/h@A", "hdfs"), ("jn/h@CORP", "jn")],
    );
    assert_eq!(rules.short_name("etl@XCORP"), Err(NoName::NoRule));
}

#[test]
fn a_filter_ends_at_the_first_closing_parenthesis() {
    let refused = Rules::parse("RULE:[2:$1;$2](^(nn|dn);.*$)s/^.*$/hdfs/", None).unwrap_err();
    assert!(refused.problem == Problem::FilterGroup, "{refused}");
}

#[test]
fn a_filter_must_match_all_of_the_name() {
    let rules = rules("RULE:[1:$1](etl|ads)s/$/_x/");
    maps(&rules, &[("etl@A", "etl_x"), ("ads@B", "ads_x")]);
    for principal in ["etl2@A", "xads@A", "etl/h@A"] {
        assert_eq!(rules.short_name(principal), Err(NoName::NoRule), "{principal}");
    }
}

#[test]
fn a_thousand_rules_keep_their_order() {
    let text: String = (0..1000).map(|i| format!("RULE:[1:$1](a{i}|b{}.*)s/$/_{i}/ ", i / 2)).collect();
    let rules = rules(&text);
    maps(&rules, &[("a0@X", "a0_0"), ("a63@X", "a63_63"), ("a64@X", "a64_64"), ("a999@X", "a999_999")]);
    maps(&rules, &[("b100@X", "b100_2"), ("b499@X", "b499_8"), ("b7@X", "b7_14")]);
    assert_eq!(rules.short_name("a1000@X"), Err(NoName::NoRule));
}

#[test]
fn a_name_that_is_not_simple_ends_the_search() {
    let rules = rules("RULE:[1:$1@$0] DEFAULT");
    let expected = NoName::NotSimple { name: "etl@CORP".to_owned(), number: 1 };
    assert_eq!(rules.short_name("etl@CORP"), Err(expected));
    maps(&rules, &[("etl/h@CORP", "etl")]);
}

#[test]
fn a_principal_without_a_realm_but_with_a_host_goes_through_the_rules() {
    maps(&rules("RULE:[2:$0.$1.$2]"), &[("hdfs/h", "null.hdfs.h"), ("a/b/c", "a/b/c")]);
    assert_eq!(rules("DEFAULT").short_name("hdfs/h"), Err(NoName::NoRule));
}

#[test]
fn principals_that_are_none_are_refused() {
    let rules = rules("DEFAULT RULE:[1:$1]");
    for principal in ["@CORP", "etl@", "a/b/c@CORP", "a@b@CORP", "/h@CORP", "etl/@CORP", "etl@a/b"] {
        assert_eq!(rules.short_name(principal), Err(NoName::Malformed), "{principal}");
    }
    for principal in ["etl\n@CORP", "etl\0@CORP", "étl@CORP", "etl\u{85}", &"x".repeat(1025)] {
        assert_eq!(rules.short_name(principal), Err(NoName::Characters), "{principal:?}");
    }
}

#[test]
fn rules_may_stand_without_space_and_end_as_hadoop_reads_them() {
    maps(&rules("RULE:[1:$1](a)s/a/b/gDEFAULT/LDEFAULT"), &[("a@X", "b"), ("c@CORP", "c")]);
    maps(&rules("RULE:[1:$1]L"), &[("ETL@X", "etl")]);
    maps(&rules("RULE:[1:]"), &[("etl@X", "")]);
    maps(&rules("RULE:[3:$7$]RULE:[01:$01]"), &[("etl@X", "etl")]);
}

#[test]
fn a_rule_that_is_none_is_named_with_its_number() {
    for (text, number, problem) in [
        ("DEFAULT nonsense", 2, Problem::Form),
        ("DEFAULT DEFAULT RULE:[1:$1](a", 4, Problem::Form),
        ("RULE:[1:$1]s/a/b", 2, Problem::Form),
        ("RULE:[1;$1]", 1, Problem::Form),
        ("RULE:[:$1]", 1, Problem::Components),
        ("RULE:[99999999999:$1]", 1, Problem::Components),
        ("RULE:[1:$]", 1, Problem::Dollar),
        ("RULE:[1:$x]", 1, Problem::Dollar),
        ("RULE:[1:$1$2]", 1, Problem::Parameter { number: 2, components: 1 }),
        ("RULE:[1:$1\n]", 1, Problem::NotPrintable),
        ("DEFAULT RULE:[1:$1]s/a/é/", 2, Problem::NotPrintable),
        ("RULE:[1:$1](a++)", 1, Problem::Filter(Unsupported::Repetition)),
        ("DEFAULT RULE:[1:$1](a)s/a(?=b)//", 2, Problem::From(Unsupported::LookAround)),
        ("RULE:[1:$1]s/a/$1/", 1, Problem::To(InvalidReplacement::Group("1".to_owned()))),
    ] {
        let refused = Rules::parse(text, None).expect_err(text);
        assert_eq!((refused.number, &refused.problem), (number, &problem), "{text}");
        assert!(refused.to_string().starts_with(&format!("rule {number} (")), "{refused}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_reading_or_mapping_fail_badly(
        rules in r"(RULE:\[[0-2]:[$0-3a@/]{0,6}\](\([a@.*+?\[\]\\|^$-]{0,8}\))?(s/[a@.()*+?\\|^$]{0,8}/[a$0-2\\]{0,4}/g?)?/?L?|DEFAULT){0,4}",
        principal in r"[ab]{0,3}/?[a]{0,2}@?[A-B]{0,2}",
    ) {
        if let Ok(rules) = Rules::parse(&rules, Some("A")) {
            let _ = rules.short_name(&principal);
        }
    }

    #[test]
    fn a_name_that_is_given_by_rules_is_simple(principal in r"[a-c/]{1,4}@[A-B]{1,2}") {
        if let Ok(name) = rules("RULE:[1:$1.$0](.*b.*)s/a/@/ RULE:[2:$2] RULE:[1:$1]").short_name(&principal) {
            prop_assert!(!name.contains(['/', '@']));
        }
    }
}

/// What docs/names.md tells people.
const DOCUMENT: &str = include_str!("../../../docs/names.md");

/// Rows of tables: what stands between backquotes in each cell. `\|` is how a table writes `|`.
fn rows(text: &str) -> impl Iterator<Item = Vec<Vec<String>>> {
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let row = row.replace(r"\|", "\0");
        let cells = row.trim_matches('|').split('|');
        cells
            .map(|cell| cell.split('`').skip(1).step_by(2).map(|text| text.replace('\0', "|")).collect())
            .collect()
    })
}

#[test]
fn examples_in_the_document_are_right() {
    let mut count = 0;
    for example in DOCUMENT.split("```auth_to_local\n").skip(1) {
        let (text, rest) = example.split_once("```").unwrap();
        let rules = Rules::parse(text, Some("EXAMPLE.COM")).unwrap();
        for row in rows(rest.split("```").next().unwrap().split("## ").next().unwrap()) {
            let [name, user] = row.as_slice() else { panic!("{row:?}") };
            let principal =
                if name[0].contains('@') { name[0].clone() } else { format!("{}@EXAMPLE.COM", name[0]) };
            assert_eq!(rules.short_name(&principal).ok().as_ref(), user.first(), "{principal}");
            count += 1;
        }
    }
    assert!(count > 10, "only {count} examples were found");
}

#[test]
fn what_the_document_calls_refused_is_refused() {
    let (_, refused) = DOCUMENT.split_once("## What is refused").unwrap();
    let mut count = 0;
    for row in rows(refused) {
        for text in &row[0] {
            let rule = if text.starts_with("RULE") { text.clone() } else { format!("RULE:[1:$1]s/{text}//") };
            assert!(Rules::parse(&rule, None).is_err(), "{rule}");
            count += 1;
        }
        for text in row.get(1).into_iter().flatten().filter(|_| !row[0][0].starts_with("RULE")) {
            Rules::parse(&format!("RULE:[1:$1]s/{text}//"), None).unwrap();
        }
    }
    assert!(count > 30, "only {count} were found");
}
