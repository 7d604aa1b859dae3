//! Writes to all carriers of an object what was proven of whoever submitted it.

use std::collections::BTreeMap;

use super::{Kind, Role};
use crate::{
    admission::STAMPS,
    patch::{Edit, NotAMap},
};

impl Kind {
    /// Writes `stamps` to every carrier that is to have them, and removes stamps from those that are not.
    pub(crate) fn stamp(&self, edit: &mut Edit, stamps: &BTreeMap<&str, String>) -> Result<(), NotAMap> {
        let object = edit.object().clone();
        for found in self.carriers(&object) {
            match found.role {
                Role::Sealed | Role::Own => edit.annotate(&found.annotations, stamps)?,
                Role::Cleared => edit.remove(&found.annotations, |key| STAMPS.contains(&key))?,
            }
        }
        Ok(())
    }
}
