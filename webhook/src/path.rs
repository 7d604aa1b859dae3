//! Places in an object, as configuration spells them: `spec.tfReplicaSpecs.*.template`, `spec.tasks[*].template`,
//! `metadata.annotations["a.b/c"]`. A path says where something may be; [`Path::find`] says where it is.

use std::{fmt, str::FromStr};

use json_patch::jsonptr::PointerBuf;
use serde_json::Value;

/// Most steps of a path. The deepest of ours has thirteen.
const MAX_STEPS: usize = 32;

/// One step from a value to those inside it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Step {
    /// The value of this key of a map.
    Key(String),
    /// Each value of a map.
    EachValue,
    /// Each item of a list.
    EachItem,
}

/// A way from the top of an object to places inside it. The empty path is the object itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Path(Vec<Step>);

/// Why a text is no path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no path like spec.tasks[*].template: {problem}")]
pub(crate) struct InvalidPath {
    text: String,
    problem: &'static str,
}

impl Path {
    pub(crate) fn steps(&self) -> &[Step] {
        &self.0
    }

    /// Whether it leads to one place at most: it has keys only.
    pub(crate) fn is_plain(&self) -> bool {
        self.0.iter().all(|step| matches!(step, Step::Key(_)))
    }

    /// This path, and from there `further`.
    pub(crate) fn join(&self, further: &Self) -> Self {
        Self(self.0.iter().chain(&further.0).cloned().collect())
    }

    /// Whether what `other` leads to is at or below a place that this one leads to.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        other.0.starts_with(&self.0)
    }

    /// Every place in `object` that it leads to, in the object's order. What is null is not there, as for the API
    /// server.
    pub(crate) fn find<'a>(&self, object: &'a Value) -> Vec<(PointerBuf, &'a Value)> {
        let mut found = Vec::new();
        if !object.is_null() {
            found.push((PointerBuf::new(), object));
        }
        for step in &self.0 {
            found = found.into_iter().flat_map(|(at, value)| step.find(&at, value)).collect();
        }
        found
    }
}

impl FromIterator<Step> for Path {
    fn from_iter<I: IntoIterator<Item = Step>>(steps: I) -> Self {
        Self(steps.into_iter().collect())
    }
}

/// A path of keys only.
impl<'a> FromIterator<&'a str> for Path {
    fn from_iter<I: IntoIterator<Item = &'a str>>(keys: I) -> Self {
        Self(keys.into_iter().map(|key| Step::Key(key.to_owned())).collect())
    }
}

impl Step {
    fn find<'a>(&self, at: &PointerBuf, value: &'a Value) -> Vec<(PointerBuf, &'a Value)> {
        let inside = |token: String, value: &'a Value| (at.with_trailing_token(token), value);
        let found: Vec<_> = match (self, value) {
            (Self::Key(key), Value::Object(map)) => {
                map.get(key).into_iter().map(|value| inside(key.clone(), value)).collect()
            }
            (Self::EachValue, Value::Object(map)) => {
                map.iter().map(|(key, value)| inside(key.clone(), value)).collect()
            }
            (Self::EachItem, Value::Array(items)) => {
                items.iter().enumerate().map(|(index, value)| inside(index.to_string(), value)).collect()
            }
            _ => Vec::new(),
        };
        found.into_iter().filter(|(_, value)| !value.is_null()).collect()
    }
}

impl FromStr for Path {
    type Err = InvalidPath;

    fn from_str(text: &str) -> Result<Self, InvalidPath> {
        let invalid = |problem| InvalidPath { text: text.to_owned(), problem };
        let (mut steps, mut rest) = (Vec::new(), text);
        while !rest.is_empty() {
            let (step, after) = match (rest.strip_prefix('['), steps.is_empty()) {
                (Some(bracket), _) => in_brackets(bracket).map_err(invalid)?,
                (None, true) => word(rest).map_err(invalid)?,
                (None, false) => {
                    let rest = rest.strip_prefix('.').ok_or_else(|| invalid("a dot is missing"))?;
                    word(rest).map_err(invalid)?
                }
            };
            if steps.len() == MAX_STEPS {
                return Err(invalid("it has too many steps"));
            }
            steps.push(step);
            rest = after;
        }
        Ok(Self(steps))
    }
}

/// What follows a dot, and the rest of the text.
fn word(text: &str) -> Result<(Step, &str), &'static str> {
    if let Some(rest) = text.strip_prefix('*') {
        return Ok((Step::EachValue, rest));
    }
    let end = text.find(|c| !is_plain(c)).unwrap_or(text.len());
    match text.split_at(end) {
        ("", _) => Err("a key is missing, or needs quoting like [\"a.b/c\"]"),
        (key, rest) => Ok((Step::Key(key.to_owned()), rest)),
    }
}

/// What follows an opening bracket, and the rest of the text.
fn in_brackets(text: &str) -> Result<(Step, &str), &'static str> {
    if let Some(rest) = text.strip_prefix("*]") {
        return Ok((Step::EachItem, rest));
    }
    let quoted = text.strip_prefix('"').ok_or("in brackets there is * or a key in double quotes")?;
    let (mut key, mut letters) = (String::new(), quoted.chars());
    loop {
        match letters.next() {
            Some('"') => break,
            Some('\\') => key.extend(letters.next()),
            Some(letter) => key.push(letter),
            None => return Err("a quote is not closed"),
        }
    }
    let rest = letters.as_str().strip_prefix(']').ok_or("a bracket is not closed")?;
    Ok((Step::Key(key), rest))
}

/// Whether a key may have this letter without being quoted.
fn is_plain(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || "_-".contains(letter)
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, step) in self.0.iter().enumerate() {
            let dot = if number == 0 { "" } else { "." };
            match step {
                Step::EachItem => f.write_str("[*]")?,
                Step::EachValue => write!(f, "{dot}*")?,
                Step::Key(key) if !key.is_empty() && key.chars().all(is_plain) => write!(f, "{dot}{key}")?,
                Step::Key(key) => write!(f, "[\"{}\"]", key.replace('\\', r"\\").replace('"', "\\\""))?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
