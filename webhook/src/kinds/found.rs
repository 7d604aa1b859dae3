//! Carriers as they are found in an object, and whether a token is involved there.

use identity::{ANNOTATION_PREFIX, DRIVER_NAME, INJECT_ANNOTATION};
use json_patch::jsonptr::PointerBuf;
use serde_json::{Map, Value};

use super::{Carrier, Role};
use crate::{
    admission::STAMPS,
    path::{Path, Step},
};

/// A carrier in an object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Found<'a> {
    /// Where the map of annotations is or would be.
    pub(crate) annotations: PointerBuf,
    /// That map.
    pub(crate) current: Option<&'a Map<String, Value>>,
    /// Labels that the pods get.
    pub(crate) labels: Option<&'a Map<String, Value>>,
    /// The pod spec.
    pub(crate) pod: Option<(PointerBuf, &'a Value)>,
    /// Lists of volumes that the pods get, that of the pod spec among them.
    pub(crate) volumes: Vec<(PointerBuf, &'a Value)>,
    /// What is written here.
    pub(crate) role: Role,
}

impl Carrier {
    pub(super) fn find<'a>(&self, object: &'a Value) -> Vec<Found<'a>> {
        let places = self.at.find(object).into_iter().filter(|(_, value)| value.is_object());
        places.map(|(at, value)| self.found(object, &at, value)).collect()
    }

    fn found<'a>(&self, object: &'a Value, at: &PointerBuf, value: &'a Value) -> Found<'a> {
        let inside = |path: &Path| {
            let found = path.find(value).into_iter().next();
            found.map(|(below, value)| (at.concat(&below), value))
        };
        let map = |path: &Path| inside(path).and_then(|(_, value)| value.as_object());
        let pod = self.pod.as_ref().and_then(inside).filter(|(_, pod)| pod.is_object());
        let in_pod =
            pod.as_ref().and_then(|(at, pod)| Some((at.with_trailing_token("volumes"), pod.get("volumes")?)));
        let elsewhere = self.volumes.iter().flat_map(|path| path.find(object));
        Found {
            annotations: self.annotations.steps().iter().fold(at.clone(), |at, step| match step {
                Step::Key(key) => at.with_trailing_token(key.as_str()),
                Step::EachValue | Step::EachItem => at,
            }),
            current: map(&self.annotations),
            labels: self.labels.as_ref().and_then(map),
            volumes: in_pod.into_iter().chain(elsewhere).filter(|(_, list)| list.is_array()).collect(),
            pod,
            role: self.role,
        }
    }
}

impl<'a> Found<'a> {
    /// `csi` of every volume of our driver.
    pub(crate) fn token_volumes(&self) -> impl Iterator<Item = &'a Value> {
        let volumes = self.volumes.iter().filter_map(|(_, list)| list.as_array()).flatten();
        let csi = volumes.filter_map(|volume| volume.get("csi"));
        csi.filter(|csi| csi.get("driver").and_then(Value::as_str) == Some(DRIVER_NAME))
    }

    /// The annotation called `key`, if it is a text.
    pub(crate) fn annotation(&self, key: &str) -> Option<&'a str> {
        self.current?.get(key)?.as_str()
    }

    /// Whether a token is involved: by a volume of ours, an annotation with our prefix, or the label by which injection
    /// is asked for. The expressions of `conditions` say the same in CEL.
    pub(crate) fn involves_token(&self) -> bool {
        self.is_annotated(|_| true) || self.asks_otherwise()
    }

    /// The same without stamps.
    pub(crate) fn involves_more_than_stamps(&self) -> bool {
        self.is_annotated(|key| !STAMPS.contains(&key)) || self.asks_otherwise()
    }

    /// Whether there is an annotation of ours that counts.
    fn is_annotated(&self, counts: impl Fn(&str) -> bool) -> bool {
        let ours = |key: &String| key.starts_with(ANNOTATION_PREFIX) && counts(key);
        self.current.is_some_and(|map| map.keys().any(ours))
    }

    /// Whether a token is asked for by label or volume.
    fn asks_otherwise(&self) -> bool {
        let labelled =
            self.labels.and_then(|map| map.get(INJECT_ANNOTATION)).and_then(Value::as_str) == Some("true");
        labelled || self.token_volumes().next().is_some()
    }
}
