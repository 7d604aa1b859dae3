//! Kerberos principal names, and the check of a server's own name against the one that the configuration expects.

use std::fmt;
use std::str::FromStr;

use crate::error::Failure;

/// A Kerberos principal with its realm: `user@REALM` or `service/host@REALM`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Principal {
    primary: String,
    instance: Option<String>,
    realm: String,
}

impl Principal {
    /// First component: what Hadoop's default rules make the short name.
    #[must_use]
    pub fn primary(&self) -> &str {
        &self.primary
    }

    /// Second component, of a service its host.
    #[must_use]
    pub fn instance(&self) -> Option<&str> {
        self.instance.as_deref()
    }

    /// The realm.
    #[must_use]
    pub fn realm(&self) -> &str {
        &self.realm
    }

    /// The service that gives the tickets of a realm.
    pub(crate) fn ticket_granting(realm: &str) -> Self {
        Self { primary: "krbtgt".to_owned(), instance: Some(realm.to_owned()), realm: realm.to_owned() }
    }

    pub(crate) fn with_instance(&self, instance: &str) -> Self {
        Self { instance: Some(instance.to_owned()), ..self.clone() }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { primary, instance, realm } = self;
        match instance {
            Some(instance) => write!(f, "{primary}/{instance}@{realm}"),
            None => write!(f, "{primary}@{realm}"),
        }
    }
}

impl FromStr for Principal {
    type Err = InvalidPrincipal;

    fn from_str(text: &str) -> Result<Self, InvalidPrincipal> {
        let invalid = || InvalidPrincipal(text.chars().take(300).collect());
        // Escaped separators exist, but no Hadoop service is named so.
        let plain = |part: &str| {
            !part.is_empty() && part.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '@' | '/' | '\\'))
        };
        let (name, realm) = text.split_once('@').ok_or_else(invalid)?;
        let (primary, instance) = match name.split_once('/') {
            Some((primary, instance)) => (primary, Some(instance)),
            None => (name, None),
        };
        if text.len() <= 300 && plain(primary) && instance.is_none_or(plain) && plain(realm) {
            Ok(Self {
                primary: primary.to_owned(),
                instance: instance.map(str::to_owned),
                realm: realm.to_owned(),
            })
        } else {
            Err(invalid())
        }
    }
}

/// Text that is not a principal with a realm.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid Kerberos principal {0:?}: write name@REALM or name/host@REALM")]
pub struct InvalidPrincipal(String);

/// Who the server must be. Any other host of the realm also has a valid key, and could pose as the server if this
/// were not checked before a ticket is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerIdentity {
    /// The expected principal, `_HOST` already replaced.
    pub principal: Principal,
    /// When set, what the server's principal must match instead.
    pub pattern: Option<Glob>,
}

impl ServerIdentity {
    /// The principal to ask a ticket for, if the server that says it is `protocol`/`server_id` may be the expected one.
    pub(crate) fn verify(&self, protocol: &str, server_id: &str) -> Result<Principal, Failure> {
        let realm = self.principal.realm();
        let offered = format!("{protocol}/{server_id}@{realm}");
        let mismatch = |expected: String| Failure::PrincipalMismatch {
            offered: offered.chars().take(300).filter(|c| !c.is_control()).collect(),
            expected,
        };
        let Ok(principal) = offered.parse::<Principal>() else {
            return Err(mismatch(self.principal.to_string()));
        };
        match &self.pattern {
            Some(pattern) if pattern.matches(&offered) => Ok(principal),
            Some(pattern) => Err(mismatch(format!("one that matches {pattern}"))),
            None if principal == self.principal => Ok(principal),
            None => Err(mismatch(self.principal.to_string())),
        }
    }
}

/// A pattern in Hadoop's glob syntax, as `dfs.namenode.kerberos.principal.pattern` has it: `*`, `?`, `[a-z]`, `[^a-z]`,
/// `{one,two}` (not nested), and `\` before a character to take it as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    text: String,
    alternatives: Alternatives,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Element {
    Character(char),
    Any,
    Many,
    Set { negated: bool, ranges: Vec<(char, char)> },
}

/// What the text so far can be, one sequence for each combination of alternatives.
type Alternatives = Vec<Vec<Element>>;

/// Longest pattern, and most combinations of its alternatives.
const MAX_PATTERN: usize = 1000;
const MAX_ALTERNATIVES: usize = 256;

impl Glob {
    /// Whether the whole text matches.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        self.alternatives.iter().any(|elements| matches(elements, &text))
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Glob {
    type Err = InvalidGlob;

    fn from_str(text: &str) -> Result<Self, InvalidGlob> {
        let invalid = |why| InvalidGlob { pattern: text.chars().take(MAX_PATTERN).collect(), why };
        if text.len() > MAX_PATTERN {
            return Err(invalid("it is too long"));
        }
        let mut alternatives: Alternatives = vec![Vec::new()];
        // Inside braces: what stood before them, and the alternatives that are complete.
        let mut group: Option<(Alternatives, Alternatives)> = None;
        let mut rest = text.chars().peekable();
        while let Some(c) = rest.next() {
            let element = match c {
                '*' => Element::Many,
                '?' => Element::Any,
                '\\' => Element::Character(rest.next().ok_or_else(|| invalid("it ends with '\\'"))?),
                '[' => {
                    let negated = rest.next_if(|&c| c == '^' || c == '!').is_some();
                    let mut ranges = Vec::new();
                    loop {
                        let from = match rest.next() {
                            Some(']') if !ranges.is_empty() => break,
                            Some('\\') => rest.next(),
                            other => other,
                        }
                        .ok_or_else(|| invalid("a '[' is not closed"))?;
                        let to = match rest.next_if_eq(&'-') {
                            Some(_) if rest.peek() != Some(&']') => {
                                rest.next().ok_or_else(|| invalid("a '[' is not closed"))?
                            }
                            Some(_) => {
                                ranges.push(('-', '-'));
                                from
                            }
                            None => from,
                        };
                        ranges.push((from, to));
                    }
                    Element::Set { negated, ranges }
                }
                '{' if group.is_some() => return Err(invalid("braces are nested")),
                '{' => {
                    group = Some((std::mem::replace(&mut alternatives, vec![Vec::new()]), Vec::new()));
                    continue;
                }
                ',' if let Some((_, complete)) = &mut group => {
                    complete.append(&mut alternatives);
                    alternatives.push(Vec::new());
                    continue;
                }
                '}' if let Some((before, mut complete)) = group.take() => {
                    complete.append(&mut alternatives);
                    if before.len() * complete.len() > MAX_ALTERNATIVES {
                        return Err(invalid("it has too many alternatives"));
                    }
                    alternatives = before
                        .iter()
                        .flat_map(|before| complete.iter().map(move |more| [&before[..], &more[..]].concat()))
                        .collect();
                    continue;
                }
                c => Element::Character(c),
            };
            for alternative in &mut alternatives {
                alternative.push(element.clone());
            }
        }
        if group.is_some() {
            return Err(invalid("a '{' is not closed"));
        }
        Ok(Self { text: text.to_owned(), alternatives })
    }
}

/// Goes back to the last `*` only, which is enough, so time is bounded by the product of both lengths.
fn matches(elements: &[Element], text: &[char]) -> bool {
    let (mut element, mut at) = (0, 0);
    let mut last_many: Option<(usize, usize)> = None;
    loop {
        match (elements.get(element), text.get(at)) {
            (None, None) => return true,
            (Some(Element::Many), _) => {
                last_many = Some((element, at));
                element += 1;
                continue;
            }
            (Some(Element::Any), Some(_)) => {
                (element, at) = (element + 1, at + 1);
                continue;
            }
            (Some(Element::Character(wanted)), Some(c)) if wanted == c => {
                (element, at) = (element + 1, at + 1);
                continue;
            }
            (Some(Element::Set { negated, ranges }), Some(c))
                if ranges.iter().any(|(from, to)| (from..=to).contains(&c)) != *negated =>
            {
                (element, at) = (element + 1, at + 1);
                continue;
            }
            _ => {}
        }
        match last_many {
            Some((many, from)) if from < text.len() => {
                last_many = Some((many, from + 1));
                (element, at) = (many + 1, from + 1);
            }
            _ => return false,
        }
    }
}

/// A pattern that is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid pattern {pattern:?}: {why}")]
pub struct InvalidGlob {
    pattern: String,
    why: &'static str,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_principal_has_a_realm_and_at_most_two_components() {
        let principal: Principal = "csi/h1.example.com@EXAMPLE.COM".parse().unwrap();
        assert_eq!(principal.primary(), "csi");
        assert_eq!(principal.instance(), Some("h1.example.com"));
        assert_eq!(principal.realm(), "EXAMPLE.COM");
        assert_eq!(principal.to_string(), "csi/h1.example.com@EXAMPLE.COM");
        assert_eq!("csi@R".parse::<Principal>().unwrap().instance(), None);
        for text in
            ["", "csi", "csi/h", "@R", "csi@", "a/b/c@R", "/h@R", "csi/@R", "a b@R", "a\\@b@R", "a@b@R"]
        {
            assert!(text.parse::<Principal>().is_err(), "{text:?}");
        }
    }

    fn identity(pattern: Option<&str>) -> ServerIdentity {
        ServerIdentity {
            principal: "nn/nn1.example.com@EXAMPLE.COM".parse().unwrap(),
            pattern: pattern.map(|pattern| pattern.parse().unwrap()),
        }
    }

    #[test]
    fn accepts_the_configured_server_only() {
        let verified = identity(None).verify("nn", "nn1.example.com").unwrap();
        assert_eq!(verified.to_string(), "nn/nn1.example.com@EXAMPLE.COM");
        for (protocol, server_id) in [
            ("nn", "nn2.example.com"),
            ("http", "nn1.example.com"),
            ("", "default"),
            ("nn", ""),
            ("nn", "nn1.example.com@EVIL"),
            ("nn/nn1.example.com@EXAMPLE.COM", ""),
        ] {
            let refused = identity(None).verify(protocol, server_id);
            assert!(matches!(refused, Err(Failure::PrincipalMismatch { .. })), "{protocol}/{server_id}");
        }
    }

    #[test]
    fn accepts_what_the_pattern_allows_instead() {
        let identity = identity(Some("{nn,hdfs}/*.example.com@EXAMPLE.COM"));
        assert!(identity.verify("hdfs", "other.example.com").is_ok());
        assert!(identity.verify("http", "other.example.com").is_err());
        assert!(identity.verify("nn", "nn1.example.org").is_err());
    }

    #[track_caller]
    fn check(pattern: &str, yes: &[&str], no: &[&str]) {
        let glob: Glob = pattern.parse().unwrap();
        for text in yes {
            assert!(glob.matches(text), "{pattern} should match {text}");
        }
        for text in no {
            assert!(!glob.matches(text), "{pattern} should not match {text}");
        }
    }

    #[test]
    fn patterns_follow_hadoop() {
        check("*", &["", "nn/a@R"], &[]);
        check("nn/*@R", &["nn/a@R", "nn/@R", "nn/a@R@R"], &["nn/a@r", "nnn/a@R", "nn/a@R2"]);
        check("n?[0-9]/[^x-z]*", &["nn1/a", "nn1/ab"], &["nn/a", "nn1/x", "nna/a"]);
    }

    #[test]
    #[should_panic(expected = "nested")]
    fn nested_braces_are_refused() {
        let _: Glob = "{a,{b}}".parse().unwrap();
    }

    #[test]
    fn alternatives_multiply() {
        check("{a,b}{c,}x", &["acx", "bcx", "ax", "bx"], &["abx", "x", "cx"]);
        check("a,b}", &["a,b}"], &["a"]);
        check("\\*{x}", &["*x"], &["ax"]);
        check("[]a-]", &["]", "a", "-"], &["b"]);
        assert!("{a,b}".repeat(9).parse::<Glob>().is_err());
        for pattern in ["{a", "[a", "[", "\\", "[a-"] {
            assert!(pattern.parse::<Glob>().is_err(), "{pattern}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_patterns_never_panic(pattern in "[a-c*?\\[\\]{},\\\\^-]{0,20}", text in "[a-c*]{0,20}") {
            if let Ok(glob) = pattern.parse::<Glob>() {
                let _ = glob.matches(&text);
            }
        }

        #[test]
        fn plain_text_matches_itself_only(pattern in "[a-z/@.]{0,12}", text in "[a-z/@.]{0,12}") {
            let glob: Glob = pattern.parse().unwrap();
            prop_assert!(glob.matches(&pattern));
            prop_assert_eq!(glob.matches(&text), pattern == text);
        }
    }
}
