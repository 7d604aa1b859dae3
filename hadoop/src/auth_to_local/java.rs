//! Java's regular expressions and replacements, as far as the `regex` crate gives exactly their results for text of
//! printable ASCII characters. A pattern that it cannot be sure of is refused: either it means something else in Java,
//! or Java's meaning depends on the version of Java.

mod dialect;

use regex::bytes::{Captures, Regex, RegexBuilder};

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

/// A regular expression that has Java's meaning.
#[derive(Clone, Debug)]
pub(super) struct Pattern(Regex);

impl Pattern {
    /// A pattern that must match all of a text, as Java's `matches`.
    pub(super) fn whole(pattern: &str) -> Result<Self, Unsupported> {
        Self::compile(pattern, |pattern| format!(r"\A(?:{pattern})\z"))
    }

    /// A pattern that is looked for, as by Java's `find`.
    pub(super) fn part(pattern: &str) -> Result<Self, Unsupported> {
        Self::compile(pattern, str::to_owned)
    }

    fn compile(pattern: &str, wrap: impl FnOnce(&str) -> String) -> Result<Self, Unsupported> {
        let pattern = wrap(&dialect::translate(pattern)?);
        // Not Unicode: classes, case and word boundaries are Java's own, which are ASCII's for ASCII text.
        RegexBuilder::new(&pattern).unicode(false).build().map(Self).map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => Unsupported::TooLarge,
            error => Unsupported::Syntax(last_line(&error.to_string())),
        })
    }

    pub(super) fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text.as_bytes())
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
