//! Kinds of objects from which pods come, and where in them a pod's annotations, spec and volumes are written: the
//! built-in table ([`table`]) and what configuration adds ([`section`]). Only looks; what is written there, and who may
//! write it, is decided elsewhere.

mod content;
mod found;
mod section;
mod stamp;
mod table;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

pub(crate) use self::{found::Found, section::KindSection};
use crate::path::Path;

/// All kinds that are looked at, by group and kind.
#[derive(Clone, Debug)]
pub(crate) struct Kinds(BTreeMap<(String, String), Kind>);

/// A kind of objects that are pods or from which pods come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    /// API group; the core group has no name.
    pub(crate) group: String,
    /// Kind, such as `Deployment`.
    pub(crate) kind: String,
    /// The kind's name in paths, such as `deployments`.
    pub(crate) resource: String,
    /// Places from which pods get their annotations.
    pub(crate) carriers: Vec<Carrier>,
    /// Copies of carriers that the kind's controller keeps in the object, and makes pods of. They are stamped with the
    /// carriers, so that what somebody changes there carries his seal from that moment on, and say nothing themselves:
    /// it is the controller that writes them. Stamps in them are content like all else, so that nobody puts others there.
    pub(crate) copies: Vec<Carrier>,
    /// What somebody has written who submitted such an object, besides pod specs and volumes of carriers: whoever
    /// changes it is the submitter from then on. Pods get the annotations and labels of sealed carriers, so these are
    /// in here, but for those of pods themselves.
    pub(crate) content: Vec<Path>,
    /// What in `content` only scales, pauses or times, so that whoever changes it is not.
    pub(crate) scaling: Vec<Path>,
    /// Users that make pods or further objects of such an object in every cluster: controllers of Kubernetes itself.
    pub(crate) controllers: Vec<String>,
}

/// A place from which pods get their annotations. It is there when the map at `at` is; the map of annotations may be
/// missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Carrier {
    /// What is there or not.
    pub(crate) at: Path,
    /// From there to the map of annotations: keys only.
    pub(crate) annotations: Path,
    /// From there to the map of labels that pods get: keys only.
    pub(crate) labels: Option<Path>,
    /// From there to the pod spec: keys only.
    pub(crate) pod: Option<Path>,
    /// From the top of the object: lists of volumes that these pods get and that are in no pod spec.
    pub(crate) volumes: Vec<Path>,
    /// What is written here.
    pub(crate) role: Role,
}

/// What is written to a carrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Whatever the pods are to carry.
    Sealed,
    /// Whatever the pods are to carry, though the operator does not copy it to them: it says by whom this object was
    /// submitted, and whoever lets the operator make something of it has to write it there.
    Own,
    /// Nothing; what was proven is removed. These pods have the annotations of a sealed carrier too, and annotations
    /// here would go over those.
    Cleared,
}

impl Default for Kinds {
    fn default() -> Self {
        let kinds = table::kinds().into_iter().map(Kind::with_handed_down);
        Self(kinds.map(|kind| (kind.key(), kind)).collect())
    }
}

impl Kinds {
    /// The built-in kinds and `more`; or everything that is wrong with `more`, entry by entry.
    pub(crate) fn new(more: Vec<KindSection>) -> Result<Self, Vec<String>> {
        let (mut kinds, mut mistakes) = (Self::default(), Vec::new());
        for (number, section) in more.into_iter().enumerate() {
            let mut mistake = |problem| mistakes.push(format!("entry {}: {problem}", number + 1));
            match Kind::try_from(section) {
                Ok(kind) if kinds.of_resource(&kind.group, &kind.resource).is_some() => {
                    mistake(format!("{}/{} is there already", kind.group, kind.resource));
                }
                Ok(kind) if kinds.of_kind(&kind.group, &kind.kind).is_some() => {
                    mistake(format!("{} of {:?} is there already", kind.kind, kind.group));
                }
                Ok(kind) => {
                    kinds.0.insert(kind.key(), kind);
                }
                Err(problems) => problems.into_iter().for_each(mistake),
            }
        }
        if mistakes.is_empty() { Ok(kinds) } else { Err(mistakes) }
    }

    /// The kind whose objects are at this resource.
    pub(crate) fn of_resource(&self, group: &str, resource: &str) -> Option<&Kind> {
        self.iter().find(|kind| kind.group == group && kind.resource == resource)
    }

    pub(crate) fn of_kind(&self, group: &str, kind: &str) -> Option<&Kind> {
        self.0.get(&(group.to_owned(), kind.to_owned()))
    }

    /// All of them, ordered by group and kind.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Kind> {
        self.0.values()
    }
}

impl Kind {
    fn key(&self) -> (String, String) {
        (self.group.clone(), self.kind.clone())
    }

    /// With all that its objects' pods get from sealed carriers in `content`. Of a pod it is changed by whoever runs it.
    fn with_handed_down(mut self) -> Self {
        if !self.is_pod() {
            let missing = handed_down(&self.carriers, &self.content);
            self.content.extend(missing);
        }
        self
    }

    /// Whether it is the kind of pods themselves.
    pub(crate) fn is_pod(&self) -> bool {
        self.group.is_empty() && self.kind == "Pod"
    }

    /// Every carrier that is in `object`.
    pub(crate) fn carriers<'a>(&self, object: &'a Value) -> Vec<Found<'a>> {
        self.carriers.iter().flat_map(|carrier| carrier.find(object)).collect()
    }

    /// Whether a token is involved: pods of `object` would have a volume of ours, or have something to do with us by
    /// their annotations or labels.
    pub(crate) fn involves_token(&self, object: &Value) -> bool {
        self.carriers(object).iter().any(Found::involves_token)
    }

    /// The same without stamps, which say who submitted something and ask for nothing.
    pub(crate) fn involves_more_than_stamps(&self, object: &Value) -> bool {
        self.carriers(object).iter().any(Found::involves_more_than_stamps)
    }

    /// Whether whoever made `new` of `old` changed nothing that pods come from. What was proven (submitter, groups,
    /// seal) does not count, nor does what means the same: null, an empty map or an empty list, and nothing at all.
    pub(crate) fn same_content(&self, old: &Value, new: &Value) -> bool {
        content::of(self, old) == content::of(self, new)
    }
}

/// Places of annotations and labels that pods get from sealed carriers and that are in no `content`.
fn handed_down(carriers: &[Carrier], content: &[Path]) -> BTreeSet<Path> {
    let sealed = carriers.iter().filter(|carrier| carrier.role == Role::Sealed);
    let places = sealed.flat_map(|carrier| {
        let maps = std::iter::once(&carrier.annotations).chain(&carrier.labels);
        maps.map(|map| carrier.at.join(map))
    });
    places.filter(|place| !content.iter().any(|content| content.covers(place))).collect()
}

#[cfg(test)]
mod tests;
