//! Writes to all carriers of an object what was proven of whoever submitted it.

use std::collections::BTreeMap;

use super::{Kind, Role};
use crate::{
    admission::STAMPS,
    patch::{Edit, NotAMap},
};

impl Kind {
    /// Writes `stamps` to every carrier that is to have them, and removes all others.
    pub(crate) fn stamp(&self, edit: &mut Edit, stamps: &BTreeMap<&str, String>) -> Result<(), NotAMap> {
        let object = edit.object().clone();
        for found in self.carriers(&object) {
            let cleared = found.role == Role::Cleared;
            let is_other = |key: &str| STAMPS.contains(&key) && (cleared || !stamps.contains_key(key));
            edit.remove(&found.annotations, is_other)?;
            if !cleared {
                edit.annotate(&found.annotations, stamps)?;
            }
        }
        Ok(())
    }
}
