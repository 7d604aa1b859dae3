//! Changes of an object's annotations as JSON patches (RFC 6902): missing maps are made, keys are escaped, and nothing
//! else is touched. Each change is made on a copy as well, so that several make one patch that fits together.

use std::collections::BTreeMap;

use json_patch::{
    AddOperation, PatchOperation, RemoveOperation,
    jsonptr::{Pointer, PointerBuf},
};
use serde_json::{Map, Value};

/// A place where a map should be holds something else, so that no patch can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no map")]
pub(crate) struct NotAMap(pub(crate) PointerBuf);

/// An object while it is changed, and the patch so far.
#[derive(Clone, Debug)]
pub(crate) struct Edit {
    object: Value,
    operations: Vec<PatchOperation>,
}

impl Edit {
    pub(crate) fn new(object: Value) -> Self {
        Self { object, operations: Vec::new() }
    }

    /// The object as it is after all changes so far.
    pub(crate) fn object(&self) -> &Value {
        &self.object
    }

    /// All changes so far, in order.
    pub(crate) fn into_patch(self) -> Vec<PatchOperation> {
        self.operations
    }

    /// Sets `annotations` in the map at `at`. The map, and those above it, are made if they are missing or null; what
    /// is set to that value already is left alone.
    pub(crate) fn annotate(
        &mut self,
        at: &Pointer,
        annotations: &BTreeMap<&str, String>,
    ) -> Result<(), NotAMap> {
        if annotations.is_empty() {
            return Ok(());
        }
        self.make_map(at)?;
        for (key, value) in annotations {
            if self.map(at)?.get(*key).and_then(Value::as_str) != Some(value) {
                self.set(at, key, Value::String(value.clone()))?;
            }
        }
        Ok(())
    }

    /// Removes from the map at `at` every key that `unwanted` picks. A missing map has none.
    pub(crate) fn remove(&mut self, at: &Pointer, unwanted: impl Fn(&str) -> bool) -> Result<(), NotAMap> {
        if at.resolve(&self.object).is_ok_and(|value| !value.is_null()) {
            let map = self.map(at)?;
            let unwanted: Vec<String> = map.keys().filter(|key| unwanted(key)).cloned().collect();
            for key in unwanted {
                self.map(at)?.remove(&key);
                let path = at.with_trailing_token(key);
                self.operations.push(PatchOperation::Remove(RemoveOperation { path }));
            }
        }
        Ok(())
    }

    /// Makes the map at `at` and those above it, from the top.
    fn make_map(&mut self, at: &Pointer) -> Result<(), NotAMap> {
        let mut above = PointerBuf::new();
        for token in at.tokens() {
            let next = above.with_trailing_token(token.decoded().into_owned());
            // Only a missing key of a map can be made: an item of a list is there or is not ours to add.
            if next.resolve(&self.object).map_or(true, Value::is_null) {
                self.set(&above, &token.decoded(), Value::Object(Map::new()))?;
            }
            above = next;
        }
        self.map(at).map(|_| ())
    }

    fn set(&mut self, at: &Pointer, key: &str, value: Value) -> Result<(), NotAMap> {
        self.map(at)?.insert(key.to_owned(), value.clone());
        // "add" replaces what is there.
        let path = at.with_trailing_token(key);
        self.operations.push(PatchOperation::Add(AddOperation { path, value }));
        Ok(())
    }

    fn map(&mut self, at: &Pointer) -> Result<&mut Map<String, Value>, NotAMap> {
        let value = at.resolve_mut(&mut self.object).ok();
        value.and_then(Value::as_object_mut).ok_or_else(|| NotAMap(at.to_buf()))
    }
}

#[cfg(test)]
mod tests;
