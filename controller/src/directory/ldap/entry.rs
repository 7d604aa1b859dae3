//! An entry that the directory has sent, read without trust: ldap3's own reader panics over a malformed one.

use ldap3::{ResultEntry, asn1::StructureTag};

/// Name and attributes of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) dn: String,
    attributes: Vec<(String, Vec<String>)>,
}

impl Entry {
    /// Nothing when it is malformed.
    pub(super) fn read(entry: ResultEntry) -> Option<Self> {
        let mut parts = entry.0.expect_constructed()?.into_iter();
        let dn = text(parts.next()?)?;
        let attributes = parts.next()?.expect_constructed()?.into_iter().map(attribute);
        Some(Self { dn, attributes: attributes.collect::<Option<_>>()? })
    }

    /// The attribute's values; none when it has none, or we may not read them.
    pub(super) fn values(&self, attribute: &str) -> &[String] {
        let found = self.attributes.iter().find(|(name, _)| name.eq_ignore_ascii_case(attribute));
        found.map(|(_, values)| values.as_slice()).unwrap_or_default()
    }
}

fn attribute(tag: StructureTag) -> Option<(String, Vec<String>)> {
    let mut parts = tag.expect_constructed()?.into_iter();
    let name = text(parts.next()?)?;
    let values = parts.next()?.expect_constructed()?.into_iter().map(text);
    Some((name, values.collect::<Option<_>>()?))
}

fn text(tag: StructureTag) -> Option<String> {
    String::from_utf8(tag.expect_primitive()?).ok()
}

#[cfg(test)]
impl Entry {
    pub(super) fn new(dn: &str, attributes: &[(&str, &[&str])]) -> Self {
        let values = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
        let attributes = attributes.iter().map(|(name, found)| ((*name).to_owned(), values(found)));
        Self { dn: dn.to_owned(), attributes: attributes.collect() }
    }
}

#[cfg(test)]
mod tests {
    use ldap3::asn1::{PL, TagClass};

    use super::*;

    fn tag(payload: PL) -> StructureTag {
        StructureTag { class: TagClass::Universal, id: 4, payload }
    }

    fn string(bytes: &[u8]) -> StructureTag {
        tag(PL::P(bytes.to_vec()))
    }

    fn list(tags: Vec<StructureTag>) -> StructureTag {
        tag(PL::C(tags))
    }

    #[test]
    fn reads_name_and_attributes() {
        let attribute = list(vec![string(b"CN"), list(vec![string(b"batch"), string("été".as_bytes())])]);
        let entry = Entry::read(ResultEntry::new(list(vec![string(b"cn=batch"), list(vec![attribute])])));
        let entry = entry.unwrap();
        assert_eq!(entry.dn, "cn=batch");
        assert_eq!(entry.values("cn"), ["batch", "été"]);
        assert!(entry.values("c").is_empty());
    }

    #[test]
    fn a_malformed_entry_is_no_entry() {
        let no_text = string(b"\xff");
        for malformed in [
            no_text.clone(),
            list(vec![]),
            list(vec![no_text.clone(), list(vec![])]),
            list(vec![string(b"cn=batch")]),
            list(vec![string(b"cn=batch"), string(b"")]),
            list(vec![string(b"cn=batch"), list(vec![list(vec![])])]),
            list(vec![string(b"cn=batch"), list(vec![list(vec![string(b"cn"), list(vec![no_text])])])]),
        ] {
            assert_eq!(Entry::read(ResultEntry::new(malformed.clone())), None, "{malformed:?}");
        }
    }
}
