//! Java's regular expressions and replacements, as far as the `regex` crate gives exactly their results for text of
//! printable ASCII characters. A pattern that it cannot be sure of is refused: either it means something else in Java,
//! or Java's meaning depends on the version of Java.

mod dialect;

use regex::bytes::{Captures, Regex, RegexBuilder, RegexSet, RegexSetBuilder, SetMatches};

pub use dialect::Unsupported;

/// Why a replacement is not taken. Hadoop would fail with each name that it applies to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidReplacement {
    /// Nothing follows the last `\`.
    #[error("ends with a '\\': write '\\\\'")]
    Backslash,
    /// `$x`.
    #[error("has a '$' that is not followed by a group's number or {{name}}: write '\\$'")]
    Dollar,
    /// `$3` with two groups.
    #[error("refers to the group {0}, which the pattern does not have")]
    Group(String),
}

/// Largest that a pattern may become, in bytes.
const MAX_SIZE: usize = 10 << 20;
/// How many filters are tried at once: with many more, what the crate remembers of earlier names would not fit into its
/// memory, and each name would be slow.
const AT_ONCE: usize = 64;

/// Regular expressions with Java's meaning, each of which must match all of a text, as Java's `matches`. Many are tried
/// at once, which takes hardly longer than one.
#[derive(Clone, Debug, Default)]
pub(super) struct Filters {
    patterns: Vec<String>,
    sets: Vec<RegexSet>,
}

/// Which filters match a text.
pub(super) struct Matches(Vec<SetMatches>);

impl Filters {
    /// Adds a pattern, which has no effect before [`Filters::compile`]; its index.
    pub(super) fn add(&mut self, pattern: &str) -> Result<usize, Unsupported> {
        let pattern = format!(r"\A(?:{})\z", dialect::translate(pattern)?);
        // By itself, so that who wrote it is told.
        compile(&pattern)?;
        self.patterns.push(pattern);
        Ok(self.patterns.len() - 1)
    }

    pub(super) fn compile(&mut self) -> Result<(), Unsupported> {
        let sets = self.patterns.chunks(AT_ONCE).map(|patterns| {
            RegexSetBuilder::new(patterns).unicode(false).size_limit(AT_ONCE * MAX_SIZE).build()
        });
        self.sets = sets.collect::<Result<_, _>>().map_err(refusal)?;
        Ok(())
    }

    pub(super) fn matches(&self, text: &str) -> Matches {
        Matches(self.sets.iter().map(|set| set.matches(text.as_bytes())).collect())
    }
}

impl Matches {
    pub(super) fn contains(&self, filter: usize) -> bool {
        self.0.get(filter / AT_ONCE).is_some_and(|matches| matches.matched(filter % AT_ONCE))
    }
}

/// Not Unicode: classes, case and word boundaries are Java's own, which are ASCII's for ASCII text.
fn compile(pattern: &str) -> Result<Regex, Unsupported> {
    RegexBuilder::new(pattern).unicode(false).size_limit(MAX_SIZE).build().map_err(refusal)
}

fn refusal(error: regex::Error) -> Unsupported {
    match error {
        regex::Error::CompiledTooBig(_) => Unsupported::TooLarge,
        error => Unsupported::Syntax(last_line(&error.to_string())),
    }
}

/// A regular expression with Java's meaning that is looked for, as by Java's `find`.
#[derive(Clone, Debug)]
pub(super) struct Pattern(Regex);

impl Pattern {
    pub(super) fn parse(pattern: &str) -> Result<Self, Unsupported> {
        compile(&dialect::translate(pattern)?).map(Self)
    }

    /// Java's `replaceFirst`, or `replaceAll`. The text is ASCII.
    pub(super) fn replace(&self, text: &str, replacement: &Replacement, all: bool) -> String {
        let (text, mut out) = (text.as_bytes(), Vec::with_capacity(text.len()));
        let (mut copied, mut at) = (0, 0);
        while at <= text.len()
            && let Some(captures) = self.0.captures_at(text, at)
            && let Some(found) = captures.get(0)
        {
            out.extend_from_slice(text.get(copied..found.start()).unwrap_or_default());
            replacement.append(&captures, &mut out);
            copied = found.end();
            // Unlike the crate's own iterator, Java finds an empty match right behind another match.
            at = found.end() + usize::from(found.is_empty());
            if !all {
                break;
            }
        }
        out.extend_from_slice(text.get(copied..).unwrap_or_default());
        out.into_iter().map(char::from).collect()
    }
}

/// The last of the lines with which the crate draws where a mistake is.
fn last_line(text: &str) -> String {
    text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

/// What stands in the place of a match.
#[derive(Clone, Debug)]
pub(super) struct Replacement(Vec<ReplacementPart>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum ReplacementPart {
    Character(u8),
    Group(usize),
}

impl Replacement {
    /// Java's syntax: `$1` or `${name}` is a group, `\` takes the next character as it is.
    pub(super) fn parse(text: &str, pattern: &Pattern) -> Result<Self, InvalidReplacement> {
        let groups = pattern.0.captures_len();
        let digit = |byte: Option<&u8>| {
            byte.filter(|byte| byte.is_ascii_digit()).map(|byte| usize::from(byte - b'0'))
        };
        let mut parts = Vec::new();
        let mut rest = text.as_bytes().iter().peekable();
        while let Some(byte) = rest.next() {
            parts.push(match byte {
                b'\\' => ReplacementPart::Character(*rest.next().ok_or(InvalidReplacement::Backslash)?),
                b'$' if rest.next_if_eq(&&b'{').is_some() => {
                    let mut name = String::new();
                    loop {
                        match rest.next() {
                            Some(b'}') => break,
                            Some(byte) => name.push(char::from(*byte)),
                            None => return Err(InvalidReplacement::Dollar),
                        }
                    }
                    let found = pattern.0.capture_names().position(|known| known == Some(name.as_str()));
                    ReplacementPart::Group(found.ok_or(InvalidReplacement::Group(name))?)
                }
                b'$' => {
                    let mut group = digit(rest.next()).ok_or(InvalidReplacement::Dollar)?;
                    if group >= groups {
                        return Err(InvalidReplacement::Group(group.to_string()));
                    }
                    // As many digits as still name a group.
                    while let Some(longer) = digit(rest.peek().copied()).map(|digit| group * 10 + digit)
                        && longer < groups
                    {
                        group = longer;
                        rest.next();
                    }
                    ReplacementPart::Group(group)
                }
                byte => ReplacementPart::Character(*byte),
            });
        }
        Ok(Self(parts))
    }

    fn append(&self, captures: &Captures<'_>, out: &mut Vec<u8>) {
        for part in &self.0 {
            match part {
                ReplacementPart::Character(byte) => out.push(*byte),
                ReplacementPart::Group(group) => {
                    out.extend_from_slice(captures.get(*group).map_or(&[][..], |group| group.as_bytes()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
