//! Rules and principals to compare on: those that sites have, those that look for trouble, and random ones from a
//! grammar, the same in every run.

use fastrand::Rng;

/// One list of rules, and the principals that it is tried with.
pub(super) struct Case {
    pub(super) default_realm: &'static str,
    pub(super) rules: String,
    pub(super) principals: Vec<String>,
}

/// Lists of rules as sites have them, and such as try every corner of the language.
pub(super) const RULES: [&str; 44] = [
    "DEFAULT",
    "",
    " \n\t",
    "DEFAULT DEFAULTDEFAULT/L",
    "RULE:[1:$1@$0](.*@CORP)s/@.*//\nDEFAULT",
    "RULE:[1:$1@$0](^.*@AD\\.CORP$)s/^(.*)@AD\\.CORP$/$1/g\nRULE:[2:$1@$0](^.*@AD\\.CORP$)s/^(.*)@AD\\.CORP$/$1/g\nDEFAULT",
    "RULE:[2:$1@$0](nn@.*CORP)s/.*/hdfs/\nRULE:[2:$1@$0](dn@.*CORP)s/.*/hdfs/\nRULE:[2:$1@$0](rm@.*)s/.*/yarn/",
    "RULE:[2:$1@$0]([nd]n@.*)s/.*/hdfs/ RULE:[2:$1@$0]([rn]m@.*)s/.*/yarn/ RULE:[2:$1@$0](jhs@.*)s/.*/mapred/ DEFAULT",
    "RULE:[1:$1@$0](.*@CORP)s/@.*///L DEFAULT",
    "RULE:[1:$1]/L",
    "RULE:[1:$1]L RULE:[2:$1$2]L",
    "RULE:[2:$1.$2]s/\\..*//",
    "RULE:[2:$1;$2](^.*;admin$)s/;admin$// RULE:[2:$2](root)",
    "RULE:[1:$1@$0](.*@OTHER)s/(.*)@.*/other_$1/ RULE:[1:$1@$0]",
    "RULE:[1:oidc-$1@$0](oidc-oidc:.*)s/^oidc-oidc:([^@]*)@.*$/$1/L",
    "RULE:[1:$1]s/[^a-z]//g",
    "RULE:[1:$1]s/[A-Z]/_$0/g",
    "RULE:[1:$1]s/x*/-/g",
    "RULE:[1:$1]s/x*/-/",
    "RULE:[1:$1]s//-/g",
    "RULE:[1:$1]s/^//",
    "RULE:[1:$1]s/$/$0x/g",
    "RULE:[1:$1]s/\\b/|/g",
    "RULE:[1:$1]s/\\B/|/g",
    "RULE:[1:$1]s/(a|ab)(c|bcd)(d*)/<$1.$2.$3>/",
    "RULE:[1:$1]s/(?<first>[a-z])(?<second>[a-z])/${second}${first}/g",
    "RULE:[1:$1]s/(a)|(b)|(c)/[$1$2$3]/g",
    "RULE:[1:$1]s/(?:(a)|b)+/<$1>/g",
    "RULE:[1:$1]s/(a|b)*/<$1>/g",
    "RULE:[1:$1]s/(?i)etl/x/g",
    "RULE:[1:$1]s/(?i:E)t(?i)L|A/x/g",
    "RULE:[1:$1]s/[\\w&&x]/y/ DEFAULT",
    "RULE:[1:$1]s/a/\\$1\\\\/g",
    "RULE:[1:$1]s/(a)/$10$01/g",
    "RULE:[0:$1] RULE:[3:$1$2$3] RULE:[01:$1]",
    "RULE:[1:]RULE:[2:]",
    "RULE:[2:$0|$1|$2]s/\\|/,/g",
    "RULE:[1:$0]s/\\./_/g/L",
    "RULE:[1:$1](\\p{Alpha}*)s/\\p{Upper}/U/g RULE:[1:$1](\\P{Alpha}*)s/\\p{Digit}/D/g RULE:[1:$1]s/\\p{Punct}/P/g",
    "RULE:[1:$1](a|b|)s/$/!/ RULE:[1:$1](|abc)s/$/?/ RULE:[1:$1](.{3})s/$/#/",
    "RULE:[1:$1]s/a{2}/2/g RULE:[1:$1]s/a{2,}?/x/",
    "RULE:[1:$1]s/.+?/x/",
    "RULE:[1:$1]s/(.+?)\\.(.*)/$2.$1/ DEFAULT",
    "RULE:[1:$1@$0](.*@\\QAD.CORP\\E)s/@.*//",
];

/// Principals as they come, and such as try every corner of their form.
pub(super) const PRINCIPALS: [&str; 48] = [
    "etl@CORP",
    "ETL@CORP",
    "Etl.X@CORP",
    "etl@OTHER",
    "etl@AD.CORP",
    "etl@XADxCORP",
    "etl",
    "",
    "@",
    "@CORP",
    "etl@",
    "nn/nn1.corp@CORP",
    "dn/d1@EU.CORP",
    "rm/r@CORP",
    "jhs/h@CORP",
    "joe/admin@CORP",
    "root/root@CORP",
    "hdfs/x@CORP",
    "hdfs/x",
    "a/b/c",
    "a/b/c@CORP",
    "/x",
    "x/",
    "/",
    "a@b@CORP",
    "etl@a/b",
    "oidc:alice@example.com",
    "oidc:Alice@Example.com",
    "system:node:x",
    "abcd@CORP",
    "ababab@CORP",
    "aaa@CORP",
    "aab@CORP",
    "abc@CORP",
    "bcabc@CORP",
    "xxa@CORP",
    "xaxxbx@CORP",
    "a-b_c.d@CORP",
    "A1b2@CORP",
    "123@CORP",
    "a b@CORP",
    " a@CORP",
    "$1@CORP",
    "\\@CORP",
    "a|b/c|d@CORP",
    "[x]@CORP",
    "!#%&'*+@CORP",
    "~{}^`\"@CORP",
];

/// Hand-picked rules, each with all hand-picked principals; then so many random ones.
pub(super) fn cases(random: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for default_realm in ["CORP", "AD.CORP", ""] {
        cases.extend(RULES.map(|rules| Case {
            default_realm,
            rules: rules.to_owned(),
            principals: PRINCIPALS.map(str::to_owned).into(),
        }));
    }
    let mut grammar = Grammar(Rng::with_seed(20_260_101));
    cases.extend((0..random).map(|_| grammar.case()));
    cases
}

/// Where random rules and principals come from.
struct Grammar(Rng);

impl Grammar {
    fn case(&mut self) -> Case {
        let count = self.0.usize(1..4);
        let mut rules = String::new();
        for _ in 0..count {
            rules += &self.rule();
            rules += self.one_of(&["\n", " ", "", "\t \n"]);
        }
        if self.sometimes(20) {
            rules = self.spoil(&rules);
        }
        let count = self.0.usize(10..20);
        Case {
            default_realm: self.one_of(&["A", "B.C", ""]),
            rules,
            principals: (0..count).map(|_| self.principal()).collect(),
        }
    }

    fn one_of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices.get(self.0.usize(..choices.len())).copied().unwrap_or_default()
    }

    /// True once in so many times.
    fn sometimes(&mut self, times: usize) -> bool {
        self.0.usize(..times) == 0
    }

    /// Takes one character out, doubles it, or puts another in its place.
    fn spoil(&mut self, text: &str) -> String {
        let at = self.0.usize(..text.chars().count().max(1));
        let other = self
            .one_of(&["(", ")", "[", "]", "/", "\\", "$", "*", "+", "?", "{", "}", "-", "^", "|", "&", " "]);
        let how = self.0.usize(..3);
        let mut out = String::new();
        for (index, c) in text.chars().enumerate() {
            match how {
                0 if index == at => {}
                1 if index == at => out.extend([c, c]),
                2 if index == at => out += other,
                _ => out.push(c),
            }
        }
        out
    }

    fn several(&mut self, most: usize, part: impl Fn(&mut Self) -> String) -> String {
        let count = self.0.usize(0..=most);
        (0..count).map(|_| part(self)).collect()
    }

    fn rule(&mut self) -> String {
        if self.sometimes(8) {
            return self.one_of(&["DEFAULT", "DEFAULT/L", "DEFAULTL"]).to_owned();
        }
        let components = match self.sometimes(12) {
            true => self.one_of(&["01", "0", "3", ""]),
            false => self.one_of(&["1", "1", "2"]),
        };
        let parameters: &[&str] = match components {
            "2" => &["$1", "$1", "$2", "$0", "@", ";", ".", "-", "x", "/", "a"],
            _ => &["$1", "$1", "$0", "@", ";", ".", "x", "b"],
        };
        let format = match self.sometimes(30) {
            true => self.one_of(&["$", "$3", "$x", "$10", "$1$"]).to_owned(),
            false => format!("$1{}", self.several(3, |this| this.one_of(parameters).to_owned())),
        };
        let filter = match self.0.usize(..4) {
            0 => String::new(),
            1 => format!(
                "({})",
                self.one_of(&[".*", ".+", "a.*", ".*A", "[a-c].*", ".*[^A]", "\\w*.*", "a?b?.*"])
            ),
            _ => format!("({})", self.filter()),
        };
        let substitution = match self.0.usize(..4) {
            0 => String::new(),
            1 => self.one_of(&["s/@.*//", "s/[@;].*//g", "s/[^a-z]//g", "s/.*@//"]).to_owned(),
            _ => {
                let from = self.expression(2);
                let to = self.replacement();
                format!("s/{from}/{to}/{}", self.one_of(&["", "g", "g"]))
            }
        };
        format!(
            "RULE:[{components}:{format}]{filter}{substitution}{}",
            self.one_of(&["", "", "/L", "L", "/"])
        )
    }

    /// Mostly without parentheses: a filter ends at the first that closes.
    fn filter(&mut self) -> String {
        loop {
            let text = self.expression(0);
            if !text.contains(['(', ')']) || self.sometimes(20) {
                return text;
            }
        }
    }

    fn replacement(&mut self) -> String {
        let count = self.0.usize(..4);
        (0..count)
            .map(|_| match self.0.usize(..100) {
                0 => self.one_of(&["$", "$9", "\\", "${x}", "${n", "$a"]),
                1..=4 => self.one_of(&["$1", "$2", "$11", "$01"]),
                5 => "${n}",
                6..=12 => "$0",
                13..=16 => self.one_of(&["\\$", "\\\\", "\\a", "\\@"]),
                _ => self.one_of(&["x", "y", "-", "_", "1", "A", "&", " "]),
            })
            .collect()
    }

    /// Alternatives of sequences of repeated atoms. Groups only where they may be.
    fn expression(&mut self, depth: usize) -> String {
        let mut text = self.sequence(depth);
        while self.sometimes(4) {
            text += "|";
            text += &self.sequence(depth);
        }
        text
    }

    fn sequence(&mut self, depth: usize) -> String {
        self.several(4, |this| {
            let atom = this.atom(depth);
            let quantifier = match this.0.usize(..12) {
                0 | 1 => this.one_of(&["*", "+", "?"]),
                2 => this.one_of(&["*?", "+?", "??", "{2}", "{1,2}", "{0,1}", "{1,}", "{2}?", "{1}"]),
                3 if this.sometimes(12) => this.one_of(&["*+", "++", "?+", "{,2}", "{2}+", "**", "{", "{1"]),
                _ => "",
            };
            atom + quantifier
        })
    }

    fn atom(&mut self, depth: usize) -> String {
        match self.0.usize(..26) {
            0..=8 => self.one_of(&["a", "b", "c", "A", "B", "1", "-", "_", "x", "@", " "]).to_owned(),
            9 | 10 => ".".to_owned(),
            11 | 12 => self.one_of(&["\\w", "\\d", "\\s", "\\W", "\\D", "\\S"]).to_owned(),
            13 => self.one_of(&["^", "$", "\\b", "\\B", "\\A", "\\z"]).to_owned(),
            14 => self
                .one_of(&["\\.", "\\-", "\\@", "\\x61", "\\u0062", "\\x{63}", "\\$", "\\ ", "\\t", "]", "}"])
                .to_owned(),
            15 => self
                .one_of(&[
                    "\\p{Lower}",
                    "\\p{Upper}",
                    "\\P{Alnum}",
                    "\\p{Punct}",
                    "\\p{Graph}",
                    "\\p{XDigit}",
                    "\\p{Blank}",
                ])
                .to_owned(),
            16..=18 => self.class(),
            19 if self.sometimes(4) => self
                .one_of(&[
                    "(?=a)",
                    "(?!a)",
                    "(?<=a)",
                    "(?<!a)",
                    "(a)\\1",
                    "\\Qa.b\\E",
                    "\\h",
                    "\\v",
                    "\\R",
                    "\\Z",
                    "\\G",
                    "\\<",
                    "\\>",
                    "\\e",
                    "\\p{L}",
                    "\\pL",
                    "\\p{IsAlpha}",
                    "(?m)^",
                    "(?x) a",
                    "(?u)a",
                    "(?>a)",
                    "\\0101",
                    "\\cA",
                    "\\N",
                    "\\y",
                    "(?P<n>a)",
                    "\\b{g}",
                    "\\X",
                    "\\u{61}",
                    "(?",
                    "(?)",
                    "(?-i)b",
                    "(?s).",
                    "()",
                    "(?d).",
                ])
                .to_owned(),
            20.. if depth > 0 => {
                let open = self.one_of(&["(", "(", "(", "(?:", "(?i:", "(?<n>", "(?i)(", "(?s:"]);
                format!("{open}{})", self.expression(depth - 1))
            }
            _ => self.one_of(&["a", "b", "(?i)", "ab", "bc"]).to_owned(),
        }
    }

    fn class(&mut self) -> String {
        let mut text = self.one_of(&["[", "[", "[^"]).to_owned();
        for _ in 0..self.0.usize(1..4) {
            text += match self.0.usize(..60) {
                0 => self.one_of(&[
                    "&&",
                    "&&a",
                    "[b]",
                    "[:alpha:]",
                    "]",
                    "-",
                    "--",
                    "~~",
                    "&",
                    "^",
                    "[",
                    "\\b",
                    "\\Qa\\E",
                    "a-\\d",
                    "c-a",
                ]),
                1..=8 => self.one_of(&[
                    "\\w",
                    "\\d",
                    "\\s",
                    "\\D",
                    "\\W",
                    "\\-",
                    "\\]",
                    "\\[",
                    "\\^",
                    "\\p{Lower}",
                    "\\P{Digit}",
                ]),
                9..=15 => self.one_of(&["a-c", "A-C", "0-9", "a-z", "A-z", "!-@", "\\x61-b", "Z-b"]),
                _ => self.one_of(&["a", "b", "c", "A", "1", ".", "@", "_", "x", "+", "$", "(", "|"]),
            };
        }
        text + self.one_of(&["]", "]", "]", "-]"])
    }

    fn principal(&mut self) -> String {
        const PIECES: [&str; 20] = [
            "a", "a", "b", "b", "c", "A", "B", "1", "2", "x", "_", "-", ".", " ", "aa", "ab", "abc", "$",
            "\\", ";",
        ];
        let word = |this: &mut Self| this.several(5, |this| this.one_of(&PIECES).to_owned());
        let mut text = word(self);
        if text.is_empty() && !self.sometimes(4) {
            text = "a".to_owned();
        }
        if self.sometimes(3) {
            text += "/";
            text += &word(self);
        }
        if !self.sometimes(10) {
            text += "@";
            text += self.one_of(&["A", "A", "B", "B.C", "a", "A A", "ab", "", "A@", "A/B"]);
        }
        text
    }
}
