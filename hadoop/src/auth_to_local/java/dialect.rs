//! Which of Java's regular expressions mean the same to the `regex` crate: a walk over the crate's own syntax tree that
//! lets through what both read alike, and nothing else. Never matches anything.

use std::ops::Range;

use regex_syntax::ast::{
    self, AssertionKind, Ast, ClassBracketed, ClassSet, ClassSetItem, ClassUnicode, ClassUnicodeKind,
    ErrorKind, Flag, Flags, FlagsItemKind, GroupKind, HexLiteralKind, Literal, LiteralKind, RepetitionKind,
    RepetitionRange, SpecialLiteralKind, parse::ParserBuilder,
};

/// Deepest nesting of groups. Hadoop has no limit; recursion here has one.
const MAX_DEPTH: u32 = 50;

/// POSIX classes by their names in Java, with the lists of characters that they stand for.
const POSIX: [(&str, &str); 13] = [
    ("Lower", "[a-z]"),
    ("Upper", "[A-Z]"),
    ("ASCII", r"[\x00-\x7f]"),
    ("Alpha", "[A-Za-z]"),
    ("Digit", "[0-9]"),
    ("Alnum", "[0-9A-Za-z]"),
    ("Punct", r"[!-/:-@\[-`{-~]"),
    ("Graph", "[!-~]"),
    ("Print", "[ -~]"),
    ("Blank", r"[ \t]"),
    ("Cntrl", r"[\x00-\x1f\x7f]"),
    ("XDigit", "[0-9A-Fa-f]"),
    ("Space", r"[ \t\n\x0b\x0c\r]"),
];

/// Why a regular expression is not taken, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsupported {
    /// Neither Java nor we can read it, or we alone cannot.
    #[error("is not a regular expression that can be read here: {0}")]
    Syntax(String),
    /// `(?=`, `(?!`, `(?<=`, `(?<!`.
    #[error("looks ahead or behind: write a filter, or two rules, instead")]
    LookAround,
    /// `\1`, `\k<name>`.
    #[error("refers back to a group: write the alternatives out")]
    BackReference,
    /// `a*+`, `a**`, `^*`.
    #[error(
        "repeats a repetition, a position or nothing (`a*+` is possessive in Java): write a single repetition"
    )]
    Repetition,
    /// `(a*)*`.
    #[error("repeats what may be empty: write what is repeated so that it takes at least one character")]
    RepeatsEmpty,
    /// `{,3}`, `{ 2 }`.
    #[error(
        "has a number of repetitions that Java does not know: write {{n}}, {{n,}} or {{n,m}} without spaces"
    )]
    Count,
    /// `\Q`, `\h`, `\v`, `\R`, `\<`, `\b{start}` and others.
    #[error(
        "has the escape {0}: write the characters themselves, each of . [ ] ( ) {{ }} * + ? ^ $ | \\ after a '\\'"
    )]
    Escape(String),
    /// `[a&&b]`, `[a[b]]`, `[[:alpha:]]`, `[a--b]`.
    #[error(
        "has a class within a class, or '&&', '--' or '~~' in one: write one list of characters and ranges"
    )]
    ClassOperator,
    /// `[]a]`, `[a-c-e]`.
    #[error("has a bare ']' or '-' inside a class: write '\\]' or '\\-'")]
    ClassLiteral,
    /// `\p{L}`, `\p{IsLatin}`.
    #[error(
        "has the class {0}: write a list of characters such as [A-Za-z], or one of Java's POSIX classes such as \\p{{Alpha}}"
    )]
    Property(String),
    /// `\p{Lower}` under `(?i)`.
    #[error(
        "has \\p{{Lower}} or \\p{{Upper}} beside (?i), which depends on the version of Java: write [A-Za-z]"
    )]
    CaseProperty,
    /// `(?x)`, `(?u)`, `(?m)`, `(?>`.
    #[error("has (?> or a flag other than i and s: write it without")]
    Flag,
    /// `(?P<name>`, `(?<a_b>`.
    #[error("names a group in a way that Java does not know: write (?<name>…) with ASCII letters and digits")]
    GroupName,
    /// A literal above `\x7f`.
    #[error("has a character that is not ASCII, which no accepted name has: leave it out")]
    NotAscii,
    /// More states than are reasonable.
    #[error("is too large: write smaller numbers of repetitions, or fewer groups within groups")]
    TooLarge,
}

/// Checks that a pattern means the same in Java and here, and writes it for the `regex` crate.
pub(super) fn translate(pattern: &str) -> Result<String, Unsupported> {
    if !pattern.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(Unsupported::NotAscii);
    }
    let ast =
        ParserBuilder::new().nest_limit(MAX_DEPTH).build().parse(pattern).map_err(|error| refusal(&error))?;
    let mut check = Check { pattern, ignores_case: false, case_class: false, posix: Vec::new() };
    check.may_be_empty(&ast)?;
    if check.ignores_case && check.case_class {
        return Err(Unsupported::CaseProperty);
    }
    let (mut translated, mut copied) = (String::with_capacity(pattern.len()), 0);
    for (range, list) in check.posix {
        translated.push_str(pattern.get(copied..range.start).unwrap_or_default());
        translated.push_str(&list);
        copied = range.end;
    }
    translated.push_str(pattern.get(copied..).unwrap_or_default());
    Ok(translated)
}

fn refusal(error: &ast::Error) -> Unsupported {
    let span = error.span();
    let text = error.pattern().get(span.start.offset..span.end.offset).unwrap_or_default().to_owned();
    match error.kind() {
        ErrorKind::UnsupportedLookAround => Unsupported::LookAround,
        ErrorKind::UnsupportedBackreference => Unsupported::BackReference,
        ErrorKind::EscapeUnrecognized | ErrorKind::ClassEscapeInvalid => Unsupported::Escape(text),
        ErrorKind::SpecialWordBoundaryUnclosed
        | ErrorKind::SpecialWordBoundaryUnrecognized
        | ErrorKind::SpecialWordOrRepetitionUnexpectedEof => Unsupported::Escape(text),
        ErrorKind::FlagUnrecognized
        | ErrorKind::FlagDanglingNegation
        | ErrorKind::FlagDuplicate { .. }
        | ErrorKind::FlagRepeatedNegation { .. }
        | ErrorKind::FlagUnexpectedEof => Unsupported::Flag,
        ErrorKind::RepetitionMissing => Unsupported::Repetition,
        ErrorKind::RepetitionCountDecimalEmpty => Unsupported::Count,
        ErrorKind::NestLimitExceeded(_) | ErrorKind::CaptureLimitExceeded => Unsupported::TooLarge,
        kind => Unsupported::Syntax(kind.to_string()),
    }
}

/// One walk over a pattern.
struct Check<'a> {
    pattern: &'a str,
    ignores_case: bool,
    /// Whether there is `\p{Lower}` or `\p{Upper}`.
    case_class: bool,
    /// POSIX classes, in order, and what to write in their place.
    posix: Vec<(Range<usize>, String)>,
}

impl Check<'_> {
    /// Whether this can match nothing at all, if it can be used.
    fn may_be_empty(&mut self, ast: &Ast) -> Result<bool, Unsupported> {
        Ok(match ast {
            Ast::Empty(_) => true,
            Ast::Flags(set) => {
                self.flags(&set.flags)?;
                true
            }
            Ast::Literal(literal) => {
                self.literal(literal)?;
                false
            }
            // Java's excludes more ends of lines, and Java's `$` stands before the last of them; the text has none.
            Ast::Dot(_) | Ast::ClassPerl(_) => false,
            Ast::Assertion(assertion) => match assertion.kind {
                AssertionKind::StartLine
                | AssertionKind::EndLine
                | AssertionKind::StartText
                | AssertionKind::EndText
                | AssertionKind::WordBoundary
                | AssertionKind::NotWordBoundary => true,
                _ => return Err(Unsupported::Escape(self.text(&assertion.span).to_owned())),
            },
            Ast::ClassUnicode(class) => {
                self.property(class)?;
                false
            }
            Ast::ClassBracketed(class) => {
                self.class(class)?;
                false
            }
            Ast::Repetition(repetition) => {
                if matches!(
                    *repetition.ast,
                    Ast::Empty(_) | Ast::Flags(_) | Ast::Assertion(_) | Ast::Repetition(_)
                ) {
                    return Err(Unsupported::Repetition);
                }
                let (least, once) = match &repetition.op.kind {
                    RepetitionKind::ZeroOrOne => (0, true),
                    RepetitionKind::ZeroOrMore => (0, false),
                    RepetitionKind::OneOrMore => (1, false),
                    RepetitionKind::Range(range) => {
                        let text = self.text(&repetition.op.span).trim_end_matches('?');
                        let plain = text.bytes().all(|byte| byte.is_ascii_digit() || b"{,}".contains(&byte));
                        if !plain || text.starts_with("{,") {
                            return Err(Unsupported::Count);
                        }
                        match *range {
                            RepetitionRange::Exactly(count) => (count, count <= 1),
                            RepetitionRange::AtLeast(least) => (least, false),
                            RepetitionRange::Bounded(least, most) => (least, most <= 1),
                        }
                    }
                };
                let empty = self.may_be_empty(&repetition.ast)?;
                if empty && !once {
                    return Err(Unsupported::RepeatsEmpty);
                }
                empty || least == 0
            }
            Ast::Group(group) => {
                match &group.kind {
                    GroupKind::CaptureIndex(_) => {}
                    GroupKind::CaptureName { starts_with_p, name } => {
                        let starts_well = name.name.starts_with(|c: char| c.is_ascii_alphabetic());
                        let inside = name.name.bytes().all(|byte| byte.is_ascii_alphanumeric());
                        if *starts_with_p || !starts_well || !inside {
                            return Err(Unsupported::GroupName);
                        }
                    }
                    GroupKind::NonCapturing(flags) => self.flags(flags)?,
                }
                self.may_be_empty(&group.ast)?
            }
            Ast::Alternation(alternation) => {
                let mut empty = false;
                for ast in &alternation.asts {
                    empty |= self.may_be_empty(ast)?;
                }
                empty
            }
            Ast::Concat(concat) => {
                let mut empty = true;
                for ast in &concat.asts {
                    empty &= self.may_be_empty(ast)?;
                }
                empty
            }
        })
    }

    fn text(&self, span: &ast::Span) -> &str {
        self.pattern.get(span.start.offset..span.end.offset).unwrap_or_default()
    }

    fn flags(&mut self, flags: &Flags) -> Result<(), Unsupported> {
        for item in &flags.items {
            match item.kind {
                FlagsItemKind::Flag(Flag::CaseInsensitive) => self.ignores_case = true,
                FlagsItemKind::Negation | FlagsItemKind::Flag(Flag::DotMatchesNewLine) => {}
                FlagsItemKind::Flag(_) => return Err(Unsupported::Flag),
            }
        }
        Ok(())
    }

    fn literal(&self, literal: &Literal) -> Result<(), Unsupported> {
        let known = match literal.kind {
            LiteralKind::Verbatim | LiteralKind::Meta | LiteralKind::Superfluous => true,
            LiteralKind::HexFixed(HexLiteralKind::X | HexLiteralKind::UnicodeShort)
            | LiteralKind::HexBrace(HexLiteralKind::X) => true,
            LiteralKind::Special(ref special) => matches!(
                special,
                SpecialLiteralKind::Bell
                    | SpecialLiteralKind::FormFeed
                    | SpecialLiteralKind::Tab
                    | SpecialLiteralKind::LineFeed
                    | SpecialLiteralKind::CarriageReturn
            ),
            LiteralKind::Octal | LiteralKind::HexFixed(_) | LiteralKind::HexBrace(_) => false,
        };
        if !known {
            return Err(Unsupported::Escape(self.text(&literal.span).to_owned()));
        }
        if literal.c.is_ascii() { Ok(()) } else { Err(Unsupported::NotAscii) }
    }

    fn property(&mut self, class: &ClassUnicode) -> Result<(), Unsupported> {
        let text = self.text(&class.span);
        let known = match &class.kind {
            ClassUnicodeKind::Named(name) => POSIX.iter().find(|(known, _)| known == name),
            ClassUnicodeKind::OneLetter(_) | ClassUnicodeKind::NamedValue { .. } => None,
        };
        let (name, list) = known.ok_or_else(|| Unsupported::Property(text.to_owned()))?;
        let list = if text == format!("\\p{{{name}}}") {
            (*list).to_owned()
        } else if text == format!("\\P{{{name}}}") {
            list.replacen('[', "[^", 1)
        } else {
            return Err(Unsupported::Property(text.to_owned()));
        };
        self.case_class |= matches!(*name, "Lower" | "Upper");
        self.posix.push((class.span.start.offset..class.span.end.offset, list));
        Ok(())
    }

    fn class(&mut self, class: &ClassBracketed) -> Result<(), Unsupported> {
        let ClassSet::Item(item) = &class.kind else { return Err(Unsupported::ClassOperator) };
        let items = match item {
            ClassSetItem::Union(union) => union.items.as_slice(),
            item => std::slice::from_ref(item),
        };
        let first = class.span.start.offset + 1 + usize::from(class.negated);
        let last = class.span.end.offset - 1;
        for item in items {
            match item {
                ClassSetItem::Literal(literal) => {
                    let at_an_end = literal.span.start.offset == first || literal.span.end.offset == last;
                    self.class_literal(literal, literal.c == '-' && at_an_end)?;
                }
                ClassSetItem::Range(range) => {
                    self.class_literal(&range.start, false)?;
                    self.class_literal(&range.end, false)?;
                }
                ClassSetItem::Perl(_) => {}
                ClassSetItem::Unicode(class) => self.property(class)?,
                ClassSetItem::Empty(_)
                | ClassSetItem::Ascii(_)
                | ClassSetItem::Bracketed(_)
                | ClassSetItem::Union(_) => return Err(Unsupported::ClassOperator),
            }
        }
        Ok(())
    }

    fn class_literal(&self, literal: &Literal, plain: bool) -> Result<(), Unsupported> {
        if !plain && literal.kind == LiteralKind::Verbatim && matches!(literal.c, '-' | '[' | ']') {
            return Err(Unsupported::ClassLiteral);
        }
        self.literal(literal)
    }
}
