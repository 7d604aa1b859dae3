//! The manifests of all kinds that the webhook's own tests have, and what can be made of them.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../webhook/src/kinds/snapshots");
const OURS: &str = "hadoop-token.csi";
/// What nobody cares for.
const OTHERS: &str = "other.example";

/// An object of some kind.
pub(super) struct Manifest {
    pub(super) object: Value,
}

/// What makes a token involved.
enum Place {
    /// The name of a volume's driver is at this pointer.
    Driver(String),
    /// The map at this pointer has this key with this value.
    Key(String, String, Value),
}

pub(super) fn manifests() -> Result<Vec<Manifest>> {
    let files = fs::read_dir(FOLDER)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let mut files: Vec<_> =
        files.into_iter().filter(|path| path.extension().is_some_and(|end| end == "yaml")).collect();
    files.sort();
    let read = |path: std::path::PathBuf| {
        let object =
            serde_saphyr::from_str(&fs::read_to_string(&path)?).with_context(|| format!("{path:?}"))?;
        Ok(Manifest { object })
    };
    files.into_iter().map(read).collect()
}

impl Manifest {
    pub(super) fn api_version(&self) -> &str {
        self.object["apiVersion"].as_str().unwrap_or_default()
    }

    pub(super) fn kind(&self) -> &str {
        self.object["kind"].as_str().unwrap_or_default()
    }

    /// The kind's name in paths.
    pub(super) fn resource(&self) -> String {
        format!("{}s", self.kind().to_lowercase())
    }

    /// Whether Kubernetes itself has the kind, and knows what it looks like.
    pub(super) fn is_kubernetes(&self) -> bool {
        matches!(self.api_version(), "v1" | "apps/v1" | "batch/v1")
    }

    /// The same with another's names in the place of ours.
    pub(super) fn without_token(&self) -> Value {
        let text = self.object.to_string().replace(OURS, OTHERS);
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// For each place that makes a token involved, the object with that place only.
    pub(super) fn with_one_place(&self) -> Vec<Value> {
        let mut places = Vec::new();
        find_places(&self.object, "", &mut places);
        let only = |place: Place| {
            let mut object = self.without_token();
            match place {
                Place::Driver(at) => *object.pointer_mut(&at)? = json!(OURS),
                Place::Key(at, key, value) => {
                    object.pointer_mut(&at)?.as_object_mut()?.insert(key, value);
                }
            }
            Some(object)
        };
        places.into_iter().filter_map(only).collect()
    }

    /// For each value in it, the object without a token and with `odd` in the value's place.
    pub(super) fn with_odd(&self, odd: &Value) -> Vec<Value> {
        let object = self.without_token();
        let mut all = Vec::new();
        for top in ["spec", "data"] {
            if let Some(value) = object.get(top) {
                find_all(value, &format!("/{top}"), &mut all);
            }
        }
        let replaced = |at: String| {
            let mut object = object.clone();
            *object.pointer_mut(&at)? = odd.clone();
            Some(object)
        };
        all.into_iter().filter_map(replaced).collect()
    }
}

fn find_places(value: &Value, at: &str, found: &mut Vec<Place>) {
    if value.pointer("/csi/driver") == Some(&json!(OURS)) {
        found.push(Place::Driver(format!("{at}/csi/driver")));
    }
    for map in ["annotations", "labels"] {
        for (key, value) in value.get(map).and_then(Value::as_object).into_iter().flatten() {
            if key.starts_with(OURS) {
                found.push(Place::Key(format!("{at}/{map}"), key.clone(), value.clone()));
            }
        }
    }
    for (at, value) in children(value, at) {
        find_places(value, &at, found);
    }
}

fn find_all(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    for (at, value) in children(value, at) {
        find_all(value, &at, found);
    }
}

/// What is directly inside, with pointers.
fn children<'a>(value: &'a Value, at: &str) -> Vec<(String, &'a Value)> {
    let escaped = |key: &str| key.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Object(map) => {
            map.iter().map(|(key, value)| (format!("{at}/{}", escaped(key)), value)).collect()
        }
        Value::Array(items) => {
            (0..).zip(items).map(|(index, value): (usize, _)| (format!("{at}/{index}"), value)).collect()
        }
        _ => Vec::new(),
    }
}
