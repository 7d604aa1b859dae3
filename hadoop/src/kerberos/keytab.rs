//! Reads which principals a keytab holds, so that a wrong one is refused at start in clear words: MIT's library says
//! the same of a missing file, an unreadable one and one without our principal. Keys are skipped, never kept.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use zeroize::Zeroizing;

use super::KerberosFailure;
use crate::principal::Principal;

/// Greatest keytab that is read; real ones have some hundred bytes.
const MAX_SIZE: u64 = 1 << 20;

/// Checks that the keytab can be read and holds a key of this principal.
pub(super) fn check(path: &Path, principal: &Principal) -> Result<(), KerberosFailure> {
    let unusable = |why: String| KerberosFailure::keytab(format!("keytab {}: {why}", path.display()));
    let principals = read(path).map_err(unusable)?;
    if principals.contains(&principal.to_string()) {
        return Ok(());
    }
    if principals.is_empty() {
        return Err(unusable("holds no key; export the keytab anew".to_owned()));
    }
    let shown: Vec<_> = principals.iter().take(5).map(String::as_str).collect();
    let more = if principals.len() > shown.len() { ", ..." } else { "" };
    Err(unusable(format!("holds no key of {principal}, only of {}{more}", shown.join(", "))))
}

fn read(path: &Path) -> Result<BTreeSet<String>, String> {
    let file = File::open(path).map_err(|error| format!("cannot be read: {error}"))?;
    let metadata = file.metadata().map_err(|error| format!("cannot be read: {error}"))?;
    if !metadata.is_file() {
        return Err("is not a file".to_owned());
    }
    if metadata.len() > MAX_SIZE {
        return Err(format!("has {} bytes, which no keytab has", metadata.len()));
    }
    // Allocated once: growing would leave unwiped copies of the keys.
    let mut bytes = Zeroizing::new(vec![0; usize::try_from(metadata.len()).unwrap_or_default()]);
    let length = read_up_to(file, &mut bytes).map_err(|error| format!("cannot be read: {error}"))?;
    parse(bytes.get(..length).unwrap_or_default()).map_err(str::to_owned)
}

fn read_up_to(mut file: File, bytes: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = bytes.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// The principals of all entries: after two bytes of version, each entry has its length before it; a negative length
/// is a hole left by a removed entry.
fn parse(bytes: &[u8]) -> Result<BTreeSet<String>, &'static str> {
    const DAMAGED: &str = "is damaged; export the keytab anew";
    let mut rest = match bytes {
        [] => return Err("is empty; export the keytab anew"),
        [5, 2, rest @ ..] => rest,
        [5, 1, ..] => return Err("has the old version 1; export the keytab anew"),
        _ => return Err("is not a keytab"),
    };
    let mut principals = BTreeSet::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = i32::from_be_bytes(*length);
        if length == 0 {
            break;
        }
        let (entry, after) = after.split_at_checked(length.unsigned_abs() as usize).ok_or(DAMAGED)?;
        if length > 0 {
            principals.insert(principal(entry).ok_or(DAMAGED)?);
        }
        rest = after;
    }
    Ok(principals)
}

/// An entry starts with the number of components, the realm, and the components.
fn principal(entry: &[u8]) -> Option<String> {
    let (count, mut rest) = entry.split_first_chunk::<2>()?;
    let realm = counted(&mut rest)?;
    let mut name = String::new();
    for number in 0..u16::from_be_bytes(*count) {
        if number > 0 {
            name.push('/');
        }
        name.push_str(counted(&mut rest)?);
    }
    // Name type, time, version, key type and an at least empty key must follow.
    (rest.len() >= 13).then(|| format!("{name}@{realm}"))
}

fn counted<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let (length, after) = rest.split_first_chunk::<2>()?;
    let (text, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    *rest = after;
    std::str::from_utf8(text).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(realm: &str, components: &[&str]) -> Vec<u8> {
        let counted =
            |text: &str| [&u16::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat();
        let mut body = u16::try_from(components.len()).unwrap().to_be_bytes().to_vec();
        body.extend(counted(realm));
        body.extend(components.iter().flat_map(|component| counted(component)));
        body.extend([0, 0, 0, 1, 0x65, 0, 0, 0, 2, 0, 18, 0, 2, 0xaa, 0xbb]);
        body.extend(2u32.to_be_bytes());
        [&i32::try_from(body.len()).unwrap().to_be_bytes()[..], &body].concat()
    }

    fn keytab() -> Vec<u8> {
        let hole = [&(-6i32).to_be_bytes()[..], &[0; 6]].concat();
        [&[5, 2][..], &entry("R", &["csi", "h"]), &hole, &entry("R", &["alice"])].concat()
    }

    #[test]
    fn lists_all_principals_and_skips_holes() {
        let found = parse(&keytab()).unwrap();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["alice@R", "csi/h@R"]);
    }

    #[track_caller]
    fn check_refusal(bytes: Option<&[u8]>, expected: &str) {
        let directory = std::env::temp_dir().join(format!("hadoop-keytab-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join(expected.replace([' ', '/', ';'], "-"));
        if let Some(bytes) = bytes {
            std::fs::write(&path, bytes).unwrap();
        }
        let failure = check(&path, &"csi/other@R".parse().unwrap()).unwrap_err();
        std::fs::remove_dir_all(&directory).unwrap();
        assert!(failure.to_string().contains(expected), "{failure}");
        assert_eq!(failure.reason(), "KEYTAB_UNUSABLE");
    }

    #[test]
    fn says_what_is_wrong_with_a_keytab() {
        check_refusal(None, "cannot be read: No such file");
        check_refusal(Some(b""), "is empty");
        check_refusal(Some(b"\x05\x02"), "holds no key;");
        check_refusal(Some(b"\x05\x01xx"), "old version");
        check_refusal(Some(b"[libdefaults]"), "is not a keytab");
        check_refusal(Some(&keytab()[..20]), "is damaged");
        check_refusal(Some(&keytab()), "holds no key of csi/other@R, only of alice@R, csi/h@R");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, at in 0..80usize, to: u8) {
            let _ = parse(&bytes);
            let _ = parse(&[&[5, 2][..], &bytes].concat());
            let mut near = keytab();
            let at = at % near.len();
            near[at] = to;
            let _ = parse(&near);
        }
    }
}
