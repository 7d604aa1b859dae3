//! Writes to all carriers of an object what was proven of whoever submitted it.

use std::collections::BTreeMap;

use super::{Kind, Role};
use crate::{
    admission::STAMPS,
    patch::{Edit, NotAMap},
};

impl Kind {
    /// Writes `stamps` to every carrier that is to have them, copies among them, and removes all others.
    pub(crate) fn stamp(&self, edit: &mut Edit, stamps: &BTreeMap<&str, String>) -> Result<(), NotAMap> {
        let carriers = self.carriers.iter().chain(&self.copies);
        let found = carriers.flat_map(|carrier| carrier.find(edit.object()));
        let places: Vec<_> = found.map(|found| (found.annotations, found.role)).collect();
        for (annotations, role) in places {
            let cleared = role == Role::Cleared;
            let is_other = |key: &str| STAMPS.contains(&key) && (cleared || !stamps.contains_key(key));
            edit.remove(&annotations, is_other)?;
            if !cleared {
                edit.annotate(&annotations, stamps)?;
            }
        }
        Ok(())
    }
}
