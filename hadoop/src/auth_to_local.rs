//! Short names of Kerberos principals by `hadoop.security.auth_to_local`: the rules that a cluster has can be taken over
//! as they are, and give the names that Hadoop gives (3.4, mechanism `hadoop`). What could come out differently is
//! refused: a rule when it is read, a name when it is mapped. Never decides whether the name may be used.

mod java;

use std::fmt;

use java::{Filters, Matches, Pattern, Replacement};
pub use java::{InvalidReplacement, Unsupported};

/// Longest principal that is mapped. Hadoop has no limit.
const MAX_PRINCIPAL: usize = 1024;

/// What Java's `\s` is, which may stand between rules.
const WHITE_SPACE: [char; 6] = [' ', '\t', '\n', '\x0b', '\x0c', '\r'];

/// An ordered list of rules, of which the first that applies gives the name.
#[derive(Clone, Debug)]
pub struct Rules {
    rules: Vec<Rule>,
    /// What rules begin with, each once: many rules share few.
    formats: Vec<Format>,
    default_realm: Option<String>,
}

#[derive(Clone, Debug)]
enum Rule {
    /// `DEFAULT`: of a principal in the default realm, the first component.
    Default,
    /// `RULE:…`.
    Mapping(Mapping),
}

#[derive(Clone, Debug)]
struct Mapping {
    components: usize,
    /// Index of its format.
    format: usize,
    /// Index of its filter among the format's.
    filter: Option<usize>,
    substitution: Option<Substitution>,
    lower_case: bool,
}

#[derive(Clone, Debug)]
struct Substitution {
    from: Pattern,
    to: Replacement,
    all: bool,
}

/// The text in a rule's brackets, such as `$1@$0`, and the filters of all rules that have it.
#[derive(Clone, Debug)]
struct Format {
    parts: Vec<FormatPart>,
    filters: Filters,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum FormatPart {
    Text(String),
    /// 0 is the realm, 1 and 2 are the components.
    Parameter(usize),
}

/// A format filled in for a principal, and which of its filters match.
struct Base {
    text: String,
    matches: Matches,
}

/// A principal as Hadoop takes it apart.
#[derive(Debug, PartialEq, Eq)]
struct Parts<'a> {
    service: &'a str,
    host: Option<&'a str>,
    realm: Option<&'a str>,
}

impl Rules {
    /// Reads rules, between which there may be white space. `default_realm` is what `DEFAULT` takes the realm off.
    ///
    /// # Errors
    /// The first rule that Hadoop does not take, that fails in Hadoop whenever it applies, or that cannot be run with
    /// the same result.
    pub fn parse(text: &str, default_realm: Option<&str>) -> Result<Self, InvalidRule> {
        let mut rules =
            Self { rules: Vec::new(), formats: Vec::new(), default_realm: default_realm.map(str::to_owned) };
        let mut rest = text.trim_start_matches(WHITE_SPACE);
        let invalid = |number, text: &str, problem| InvalidRule {
            number,
            rule: text.split(WHITE_SPACE).next().unwrap_or_default().chars().take(200).collect(),
            problem,
        };
        while !rest.is_empty() {
            let (rule, after) =
                rules.rule(rest).map_err(|problem| invalid(rules.rules.len() + 1, rest, problem))?;
            rules.rules.push(rule);
            rest = after.trim_start_matches(WHITE_SPACE);
        }
        for format in &mut rules.formats {
            format.filters.compile().map_err(|_| invalid(rules.rules.len(), text, Problem::Filters))?;
        }
        Ok(rules)
    }

    /// The realm that these rules take off by `DEFAULT`.
    #[must_use]
    pub fn default_realm(&self) -> Option<&str> {
        self.default_realm.as_deref()
    }

    /// The short name of a principal. One without a realm and with one component is its own short name, whatever the
    /// rules, and so is one that is none, such as `a/b/c`: the result is not yet a name that is safe to use.
    ///
    /// # Errors
    /// When Hadoop gives none, and when it could be another than Hadoop's.
    pub fn short_name(&self, principal: &str) -> Result<String, NoName> {
        if principal.len() > MAX_PRINCIPAL || !is_printable(principal) {
            return Err(NoName::Characters);
        }
        let Parts { service, host, realm } = match Parts::of(principal)? {
            Parts { service, host: None, realm: None } => return Ok(service.to_owned()),
            parts => parts,
        };
        // Hadoop's, too, writes this for a realm that is not there.
        let parameters = [realm.unwrap_or("null"), service, host.unwrap_or_default()];
        let components = if host.is_some() { 2 } else { 1 };
        let mut bases: Vec<Option<Base>> = self.formats.iter().map(|_| None).collect();
        for (number, rule) in (1..).zip(&self.rules) {
            let name = match rule {
                Rule::Default if realm.is_some() && realm == self.default_realm() => service.to_owned(),
                Rule::Mapping(mapping) if mapping.components == components => {
                    let (Some(base), Some(format)) =
                        (bases.get_mut(mapping.format), self.formats.get(mapping.format))
                    else {
                        return Err(NoName::NoRule);
                    };
                    let Base { text: base, matches } = base.get_or_insert_with(|| format.fill(parameters));
                    if mapping.filter.is_some_and(|filter| !matches.contains(filter)) {
                        continue;
                    }
                    match &mapping.substitution {
                        Some(Substitution { from, to, all }) => from.replace(base, to, *all),
                        None => base.clone(),
                    }
                }
                Rule::Default | Rule::Mapping(_) => continue,
            };
            if name.contains(['/', '@']) {
                return Err(NoName::NotSimple { name, number });
            }
            return Ok(match rule {
                Rule::Mapping(Mapping { lower_case: true, .. }) => name.to_ascii_lowercase(),
                Rule::Default | Rule::Mapping(_) => name,
            });
        }
        Err(NoName::NoRule)
    }

    /// One rule, and the text behind it.
    fn rule<'a>(&mut self, text: &'a str) -> Result<(Rule, &'a str), Problem> {
        if let Some(rest) = text.strip_prefix("DEFAULT") {
            let rest = rest.strip_prefix('/').unwrap_or(rest);
            return Ok((Rule::Default, rest.strip_prefix('L').unwrap_or(rest)));
        }
        let rest = text.strip_prefix("RULE:[").ok_or(Problem::Form)?;
        let (components, rest) = rest.split_once(':').ok_or(Problem::Form)?;
        let (format, rest) = rest.split_once(']').ok_or(Problem::Form)?;
        if !components.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Problem::Form);
        }
        let components = components.parse::<i32>().ok().and_then(|count| usize::try_from(count).ok());
        let components = components.ok_or(Problem::Components)?;
        let (filter, rest) = match rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            Some((filter, rest)) => (Some(filter), rest),
            None => (None, rest),
        };
        let substitution = rest.strip_prefix("s/").and_then(|rest| {
            let (from, rest) = rest.split_once('/')?;
            let (to, rest) = rest.split_once('/')?;
            Some((from, to, rest))
        });
        let (substitution, rest) = match substitution {
            Some((from, to, rest)) => {
                let all = rest.strip_prefix('g');
                (Some((from, to, all.is_some())), all.unwrap_or(rest))
            }
            None => (None, rest),
        };
        let rest = rest.strip_prefix('/').unwrap_or(rest);
        let lower_case = rest.strip_prefix('L');
        let parts = format_parts(format, components)?;
        let format = self.formats.iter().position(|known| known.parts == parts).unwrap_or_else(|| {
            self.formats.push(Format { parts, filters: Filters::default() });
            self.formats.len() - 1
        });
        let filter = filter
            .map(|filter| {
                self.formats.get_mut(format).ok_or(Problem::Form).and_then(|format| format.add(filter))
            })
            .transpose()?;
        let rule = Mapping {
            components,
            format,
            filter,
            substitution: substitution
                .map(|(from, to, all)| Substitution::parse(from, to, all))
                .transpose()?,
            lower_case: lower_case.is_some(),
        };
        Ok((Rule::Mapping(rule), lower_case.unwrap_or(rest)))
    }
}

impl Substitution {
    fn parse(from: &str, to: &str, all: bool) -> Result<Self, Problem> {
        if !is_printable(to) {
            return Err(Problem::NotPrintable);
        }
        let from = Pattern::parse(from).map_err(Problem::From)?;
        Ok(Self { to: Replacement::parse(to, &from).map_err(Problem::To)?, from, all })
    }
}

impl Format {
    fn add(&mut self, filter: &str) -> Result<usize, Problem> {
        self.filters.add(filter).map_err(|why| match why {
            Unsupported::Syntax(_) if filter.contains('(') => Problem::FilterGroup,
            why => Problem::Filter(why),
        })
    }

    fn fill(&self, parameters: [&str; 3]) -> Base {
        let parts = self.parts.iter().map(|part| match part {
            FormatPart::Text(text) => text.as_str(),
            FormatPart::Parameter(number) => parameters.get(*number).copied().unwrap_or_default(),
        });
        let text: String = parts.collect();
        Base { matches: self.filters.matches(&text), text }
    }
}

fn format_parts(text: &str, components: usize) -> Result<Vec<FormatPart>, Problem> {
    if !is_printable(text) {
        return Err(Problem::NotPrintable);
    }
    let mut parts = Vec::new();
    let mut pieces = text.split('$');
    // What comes first is text, what comes behind a '$' begins with a number.
    let first = pieces.next().unwrap_or_default();
    parts.push(FormatPart::Text(first.to_owned()));
    for piece in pieces {
        let digits = piece.bytes().take_while(u8::is_ascii_digit).count();
        let (number, text) = piece.split_at_checked(digits).unwrap_or((piece, ""));
        // Of another number of components there are no principals, and Hadoop never looks at the format.
        if (1..=2).contains(&components) {
            let number = number.parse().map_err(|_| Problem::Dollar)?;
            if number > components {
                return Err(Problem::Parameter { number, components });
            }
            parts.push(FormatPart::Parameter(number));
        }
        parts.push(FormatPart::Text(text.to_owned()));
    }
    parts.retain(|part| !matches!(part, FormatPart::Text(text) if text.is_empty()));
    Ok(parts)
}

impl<'a> Parts<'a> {
    fn of(principal: &'a str) -> Result<Self, NoName> {
        let plain = |part: &str| !part.is_empty() && !part.contains(['/', '@']);
        let (name, realm) = match principal.split_once('@') {
            Some((name, realm)) => (name, Some(realm)),
            None => (principal, None),
        };
        let (service, host) = match name.split_once('/') {
            Some((service, host)) => (service, Some(host)),
            None => (name, None),
        };
        if plain(service) && host.is_none_or(plain) && realm.is_none_or(plain) {
            Ok(Self { service, host, realm })
        } else if realm.is_some() {
            Err(NoName::Malformed)
        } else {
            Ok(Self { service: principal, host: None, realm: None })
        }
    }
}

/// Java's regular expressions, and what it makes lower case, are the same here for these alone.
fn is_printable(text: &str) -> bool {
    text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

/// A rule that is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct InvalidRule {
    /// Which one; the first is 1.
    pub number: usize,
    /// The rule, or its beginning.
    pub rule: String,
    /// What is wrong with it.
    pub problem: Problem,
}

impl fmt::Display for InvalidRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {} ({:?}): {}", self.number, self.rule, self.problem)
    }
}

/// Why a rule is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// It is no rule.
    #[error(
        "it is neither DEFAULT nor RULE:[n:format](filter)s/from/to/g/L, of which what follows ']' may be left out"
    )]
    Form,
    /// `RULE:[:$1]`.
    #[error(
        "it has no usable number of components: write RULE:[1:…] for name@REALM or RULE:[2:…] for name/host@REALM"
    )]
    Components,
    /// `RULE:[1:a$]`.
    #[error(
        "its format has a '$' without a usable number: write $0 for the realm, $1 and $2 for the components"
    )]
    Dollar,
    /// `RULE:[1:$2]`.
    #[error("its format has ${number}, but it is for principals of {components} component(s)")]
    Parameter {
        /// Which parameter.
        number: usize,
        /// How many there are.
        components: usize,
    },
    /// A control character, or one beyond ASCII.
    #[error("it has a character other than printable ASCII, which no short name has: leave it out")]
    NotPrintable,
    /// `RULE:[1:$1]((a|b)c)`.
    #[error(
        "its filter has a '(', but ends at the first ')', so that it cannot have groups: write several rules"
    )]
    FilterGroup,
    /// The filter.
    #[error("its filter {0}")]
    Filter(#[source] Unsupported),
    /// Filters of enormous size.
    #[error("the filters of all rules together are too large: write fewer rules, or smaller ones")]
    Filters,
    /// What is replaced.
    #[error("the pattern that it replaces {0}")]
    From(#[source] Unsupported),
    /// What it is replaced by.
    #[error("its replacement {0}")]
    To(#[source] InvalidReplacement),
}

/// Why a principal has no short name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoName {
    /// It is longer than 1024 bytes or has a character other than printable ASCII.
    #[error("names that are mapped are at most {MAX_PRINCIPAL} printable ASCII characters")]
    Characters,
    /// It has an `@`, but is not `name@REALM` or `name/host@REALM`.
    #[error("it is neither name@REALM nor name/host@REALM")]
    Malformed,
    /// No rule applies.
    #[error("no rule applies to it")]
    NoRule,
    /// A rule applies, but leaves `/` or `@`.
    #[error("rule {number} makes it {name:?}, which is not a short name")]
    NotSimple {
        /// What the rule makes of it.
        name: String,
        /// Which rule; the first is 1.
        number: usize,
    },
}

#[cfg(test)]
mod tests;
