//! Kinds as configuration adds them: an entry of `kinds`.

use serde::Deserialize;

use super::{Carrier, Kind, Role, handed_down};
use crate::path::{Path, Step};

/// A kind of objects from which pods come.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct KindSection {
    group: String,
    kind: String,
    /// The kind's name in paths: plural, lower-case.
    resource: String,
    /// Where pod templates are: maps with `metadata` and `spec`.
    #[serde(default)]
    templates: Vec<String>,
    /// Where annotations of pods are in another form.
    #[serde(default)]
    carriers: Vec<CarrierSection>,
    /// What makes its editor the submitter, besides annotations and labels of carriers.
    #[serde(default = "whole_spec")]
    content: Vec<String>,
    /// What does not, though it is in there.
    #[serde(default)]
    scaling: Vec<String>,
}

/// A place from which pods get their annotations.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct CarrierSection {
    /// The map without which there is no such place; the object itself by default.
    #[serde(default)]
    at: String,
    /// From there to the map of annotations.
    annotations: String,
    /// From there to the map of labels.
    labels: Option<String>,
    /// From there to the pod spec.
    pod: Option<String>,
    /// From the top: lists of volumes in no pod spec.
    #[serde(default)]
    volumes: Vec<String>,
}

fn whole_spec() -> Vec<String> {
    vec!["spec".to_owned()]
}

impl Carrier {
    /// A pod template: a map with `metadata` and `spec`.
    pub(super) fn template(at: Path) -> Self {
        let keys = |keys: &[&str]| keys.iter().copied().collect();
        Self {
            at,
            annotations: keys(&["metadata", "annotations"]),
            labels: Some(keys(&["metadata", "labels"])),
            pod: Some(keys(&["spec"])),
            volumes: Vec::new(),
            role: Role::Sealed,
        }
    }
}

impl TryFrom<KindSection> for Kind {
    type Error = Vec<String>;

    fn try_from(section: KindSection) -> Result<Self, Vec<String>> {
        let KindSection { group, kind, resource, templates, carriers, content, scaling } = section;
        let mut mistakes = Vec::new();
        if !is_group(&group) || !is_kind(&kind) || !is_label(&resource) {
            mistakes.push(format!(
                "group {group:?}, kind {kind:?} and resource {resource:?} are not like \"example.org\", \"Training\" and \
                 \"trainings\""
            ));
        }
        if templates.is_empty() && carriers.is_empty() {
            mistakes.push("it has neither templates nor carriers".to_owned());
        }
        let mut parse = Parse { mistakes: &mut mistakes };
        let templates: Vec<_> = templates.iter().map(|at| Carrier::template(parse.path(at))).collect();
        let carriers = carriers.into_iter().map(|carrier| parse.carrier(&carrier));
        let carriers: Vec<_> = templates.into_iter().chain(carriers.collect::<Vec<_>>()).collect();
        let mut content = content.iter().map(|path| parse.path(path)).collect::<Vec<_>>();
        // What is the object itself was no path.
        let handed_down = handed_down(&carriers, &content).into_iter();
        content.extend(handed_down.filter(|place| *place != Path::default()));
        let scaling: Vec<_> = scaling.iter().map(|path| parse.scaling(path, &content)).collect();
        if mistakes.is_empty() {
            Ok(Self {
                group,
                kind,
                resource,
                carriers,
                copies: Vec::new(),
                content,
                scaling,
                controllers: Vec::new(),
            })
        } else {
            Err(mistakes)
        }
    }
}

/// Reads paths, and keeps what is wrong with them.
struct Parse<'a> {
    mistakes: &'a mut Vec<String>,
}

impl Parse<'_> {
    fn path(&mut self, text: &str) -> Path {
        text.parse().unwrap_or_else(|error: crate::path::InvalidPath| {
            self.mistakes.push(error.to_string());
            Path::default()
        })
    }

    /// A path from a place to one other.
    fn plain(&mut self, text: &str) -> Path {
        let path = self.path(text);
        if !path.is_plain() || text.is_empty() {
            self.mistakes.push(format!("{text:?} has to be keys only, like metadata.annotations"));
        }
        path
    }

    fn carrier(&mut self, section: &CarrierSection) -> Carrier {
        Carrier {
            at: self.path(&section.at),
            annotations: self.plain(&section.annotations),
            labels: section.labels.as_ref().map(|path| self.plain(path)),
            pod: section.pod.as_ref().map(|path| self.plain(path)),
            volumes: section.volumes.iter().map(|path| self.path(path)).collect(),
            role: Role::Sealed,
        }
    }

    fn scaling(&mut self, text: &str, content: &[Path]) -> Path {
        let path = self.path(text);
        if !matches!(path.steps().last(), None | Some(Step::Key(_))) {
            self.mistakes.push(format!("{text:?} has to end with a key"));
        } else if !content.iter().any(|content| content.covers(&path) && *content != path) {
            self.mistakes.push(format!("{text:?} is inside no content"));
        }
        path
    }
}

fn is_label(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.len() <= 63
        && text.starts_with(plain)
        && text.ends_with(plain)
        && text.chars().all(|c| plain(c) || c == '-')
}

/// Groups of custom resources have a dot. Longer ones leave no room for the name of their entry in registrations.
fn is_group(text: &str) -> bool {
    text.len() <= 200 && text.contains('.') && text.split('.').all(is_label)
}

fn is_kind(text: &str) -> bool {
    text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_uppercase())
        && text.chars().all(|c| c.is_ascii_alphanumeric())
}
