//! A pod while things are added to it, and the patch that adds them. Whatever is added goes to the end of its list, or
//! in front of the init containers, so that no index that somebody else remembers is wrong afterwards but for those.

use json_patch::{
    AddOperation, PatchOperation,
    jsonptr::{Pointer, PointerBuf},
};
use serde_json::{Value, json};

const VOLUMES: &Pointer = Pointer::from_static("/spec/volumes");
const CONTAINERS: &Pointer = Pointer::from_static("/spec/containers");
const INIT_CONTAINERS: &Pointer = Pointer::from_static("/spec/initContainers");

/// A pod and what was added to it so far.
pub(super) struct Draft {
    pod: Value,
    patch: Vec<PatchOperation>,
}

/// What became of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mounted {
    /// The whole volume is mounted here.
    At(String),
    /// The container mounts a part of the volume, by its own wish.
    InPart,
    /// The container has something else there.
    Taken,
}

impl Draft {
    pub(super) fn new(pod: Value) -> Self {
        Self { pod, patch: Vec::new() }
    }

    /// The pod as it is now, and all that was added, in order.
    pub(super) fn finish(self) -> (Value, Vec<PatchOperation>) {
        (self.pod, self.patch)
    }

    /// The name of the volume that `is_it`. If there is none, `volume` is added, called `name` or something like it.
    pub(super) fn volume(&mut self, name: &str, is_it: impl Fn(&Value) -> bool, mut volume: Value) -> String {
        let volumes = list(&self.pod, VOLUMES);
        if let Some(name) = volumes.iter().find(|volume| is_it(volume)).and_then(named) {
            return name.to_owned();
        }
        let taken = |name: &str| volumes.iter().any(|volume| named(volume) == Some(name));
        let name = free(name, taken);
        if let Some(volume) = volume.as_object_mut() {
            volume.insert("name".to_owned(), json!(name));
        }
        self.append(VOLUMES, volume);
        name
    }

    /// Whether two volumes have one name, so that nobody can tell what a mount of it is. The API server refuses that.
    pub(super) fn is_ambiguous(&self) -> bool {
        let mut names: Vec<_> = list(&self.pod, VOLUMES).iter().filter_map(named).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        names.len() < count
    }

    pub(super) fn has_init_container(&self, name: &str) -> bool {
        list(&self.pod, INIT_CONTAINERS).iter().any(|container| named(container) == Some(name))
    }

    /// Puts an init container before all others.
    pub(super) fn first_init_container(&mut self, container: Value) {
        self.make_list(INIT_CONTAINERS);
        self.add(INIT_CONTAINERS.with_trailing_token("0"), container);
    }

    /// Where the containers are that run in every life of the pod.
    pub(super) fn containers(&self) -> Vec<PointerBuf> {
        let all = [INIT_CONTAINERS, CONTAINERS].into_iter().flat_map(|at| {
            (0..list(&self.pod, at).len()).map(|index| at.with_trailing_token(index.to_string()))
        });
        all.collect()
    }

    pub(super) fn name(&self, container: &Pointer) -> String {
        container.resolve(&self.pod).ok().and_then(named).unwrap_or_default().to_owned()
    }

    /// Mounts `volume` read-only in the container, at `folder` unless it is mounted already.
    pub(super) fn mount(&mut self, container: &Pointer, volume: &str, folder: &str) -> Mounted {
        let at = container.with_trailing_token("volumeMounts");
        let mounts = list(&self.pod, &at);
        let mut existing = mounts.iter().filter(|mount| named(mount) == Some(volume)).peekable();
        if existing.peek().is_some() {
            let whole = existing.find(|mount| is_whole(mount)).and_then(|mount| text(mount, "mountPath"));
            return whole.map_or(Mounted::InPart, |path| Mounted::At(plain(path).to_owned()));
        }
        let devices = list(&self.pod, &container.with_trailing_token("volumeDevices"));
        let mut paths = mounts
            .iter()
            .filter_map(|mount| text(mount, "mountPath"))
            .chain(devices.iter().filter_map(|device| text(device, "devicePath")));
        if paths.any(|path| is_at_or_below(path, folder)) {
            return Mounted::Taken;
        }
        self.append(&at, json!({"name": volume, "mountPath": folder, "readOnly": true}));
        Mounted::At(folder.to_owned())
    }

    /// Sets an environment variable of the container, unless it has one of that name.
    pub(super) fn variable(&mut self, container: &Pointer, name: &str, value: &str) {
        let at = container.with_trailing_token("env");
        if !list(&self.pod, &at).iter().any(|variable| named(variable) == Some(name)) {
            self.append(&at, json!({"name": name, "value": value}));
        }
    }

    fn append(&mut self, list: &Pointer, value: Value) {
        self.make_list(list);
        self.add(list.with_trailing_token("-"), value);
    }

    fn make_list(&mut self, at: &Pointer) {
        if at.resolve(&self.pod).map_or(true, Value::is_null) {
            self.add(at.to_buf(), json!([]));
        }
    }

    /// What cannot be added here cannot be added at the API server either, and would make it refuse all of the patch.
    /// That is so only where a list of the pod's is no list, which the API server refuses by itself, with a better
    /// sentence.
    fn add(&mut self, path: PointerBuf, value: Value) {
        let operation = PatchOperation::Add(AddOperation { path, value });
        if json_patch::patch(&mut self.pod, std::slice::from_ref(&operation)).is_ok() {
            self.patch.push(operation);
        }
    }
}

/// A list in the pod; an empty one if there is none.
fn list<'a>(pod: &'a Value, at: &Pointer) -> &'a [Value] {
    at.resolve(pod).ok().and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn named(item: &Value) -> Option<&str> {
    text(item, "name")
}

fn text<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get(key)?.as_str().filter(|text| !text.is_empty())
}

fn is_whole(mount: &Value) -> bool {
    text(mount, "subPath").is_none() && text(mount, "subPathExpr").is_none()
}

/// A path without slashes at its end.
fn plain(path: &str) -> &str {
    path.trim_end_matches('/')
}

/// Whether `path` is `folder` or in it, where nothing could be mounted any more, as the volume is read-only.
fn is_at_or_below(path: &str, folder: &str) -> bool {
    let rest = path.strip_prefix(folder);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// `name`, or with a number that makes it one that nobody has.
fn free(name: &str, taken: impl Fn(&str) -> bool) -> String {
    let mut numbered = (2..).map(|number: u32| format!("{name}-{number}"));
    if taken(name) { numbered.find(|name| !taken(name)).unwrap_or_default() } else { name.to_owned() }
}
