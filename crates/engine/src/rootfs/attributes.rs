//! Extended attributes: which ones pass, in which form.
//!
//! From archives and from copied files: `security.capability` and `user.*`, except `user.overlay.*`, by which overlayfs would
//! be told what to show. Everything else (labels and measurements of security modules, `trusted.*`, POSIX access lists) has
//! a meaning on the machine it was written on only, and is left out.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// Largest value and largest list of names, as the kernel has it.
const VALUE_MAX_BYTES: usize = 64 << 10;
/// Most attributes of one file.
pub(super) const ATTRIBUTES_MAX: usize = 1000;

const CAPABILITY: &[u8] = b"security.capability";
const REVISION_MASK: u32 = 0xff00_0000;
const REVISION_1: u32 = 0x0100_0000;
const REVISION_2: u32 = 0x0200_0000;
const REVISION_3: u32 = 0x0300_0000;

/// Marks a directory that hides what is below.
const OPAQUE: &CStr = c"user.overlay.opaque";

/// Returns the value under which attribute `name` passes; `None` if it does not.
pub(crate) fn permitted(name: &[u8], value: &[u8]) -> Option<Vec<u8>> {
    if name == CAPABILITY {
        return plain_capability(value);
    }
    let is_user = name.starts_with(b"user.") && name.len() > b"user.".len();
    let is_overlay = name.starts_with(b"user.overlay.");
    let fits = name.len() <= 255 && value.len() <= VALUE_MAX_BYTES;
    (is_user && !is_overlay && fits).then(|| value.to_vec())
}

/// Returns file capabilities in their second revision, which names no user: the third one holds an id of the host's.
fn plain_capability(value: &[u8]) -> Option<Vec<u8>> {
    let magic = u32::from_le_bytes(*value.first_chunk()?);
    let sets = match (magic & REVISION_MASK, value.len()) {
        (REVISION_1, 12) => [value.get(4..12)?, &[0; 8]].concat(),
        (REVISION_2, 20) | (REVISION_3, 24) => value.get(4..20)?.to_vec(),
        _ => return None,
    };
    let magic = REVISION_2 | (magic & 1);
    Some([&magic.to_le_bytes()[..], &sets].concat())
}

/// Returns the attributes of an open file that may go into an archive or onto a copy.
pub(super) fn read(file: impl AsFd) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut attributes = BTreeMap::new();
    let n = match rustix::fs::flistxattr_query(&file) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(attributes),
        Ok(n) => n,
        Err(error) => return Err(error.into()),
    };
    let mut names = vec![0u8; n.max(VALUE_MAX_BYTES)];
    let n = rustix::fs::flistxattr(&file, &mut names[..])?;
    names.truncate(n);
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        // Saves reading what cannot pass.
        if name != CAPABILITY && permitted(name, b"").is_none() {
            continue;
        }
        let mut value = vec![0u8; VALUE_MAX_BYTES];
        let n = match rustix::fs::fgetxattr(&file, name, &mut value[..]) {
            Ok(n) => n,
            Err(Errno::NODATA) => continue,
            Err(error) => return Err(error.into()),
        };
        value.truncate(n);
        if let Some(value) = permitted(name, &value) {
            attributes.insert(name.to_vec(), value);
        }
    }
    Ok(attributes)
}

/// Sets those of `attributes` that pass on an open file.
pub(super) fn write<'a>(
    file: impl AsFd,
    attributes: impl IntoIterator<Item = (&'a Vec<u8>, &'a Vec<u8>)>,
) -> io::Result<()> {
    for (name, value) in attributes {
        if let Some(value) = permitted(name, value) {
            rustix::fs::fsetxattr(&file, &name[..], &value, XattrFlags::empty())?;
        }
    }
    Ok(())
}

/// Makes a directory hide what is below it in the stack.
pub(super) fn set_opaque(directory: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(
        directory,
        OPAQUE,
        b"y",
        XattrFlags::empty(),
    )?)
}

/// Tells whether a directory hides what is below it.
pub(super) fn is_opaque(directory: impl AsFd) -> io::Result<bool> {
    let mut value = [0u8; 8];
    match rustix::fs::fgetxattr(directory, OPAQUE, &mut value[..]) {
        Ok(n) => Ok(value.get(..n) == Some(b"y")),
        // Out of range: longer than any value that means something.
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_capabilities_and_user_attributes_pass() {
        for name in ["user.x", "user.mime_type", "user.overlay"] {
            assert!(permitted(name.as_bytes(), b"v").is_some(), "{name}");
        }
        for name in [
            "user.",
            "user.overlay.opaque",
            "user.overlay.redirect",
            "user.overlay.overlay.opaque",
            "trusted.overlay.opaque",
            "trusted.x",
            "security.selinux",
            "security.ima",
            "security.evm",
            "security.apparmor",
            "security.capability",
            "system.posix_acl_access",
            "",
        ] {
            assert!(permitted(name.as_bytes(), b"v").is_none(), "{name}");
        }
    }

    #[test]
    fn capabilities_lose_the_id_of_the_namespace_they_were_set_in() {
        let sets: [u8; 16] = std::array::from_fn(|at| u8::try_from(at).unwrap());
        let second = [&[1, 0, 0, 2][..], &sets].concat();
        let third = [&[1, 0, 0, 3][..], &sets, &[0xa0, 0x86, 1, 0]].concat();
        let first = [&[0, 0, 0, 1][..], &sets[..8]].concat();
        assert_eq!(plain_capability(&second).as_ref(), Some(&second));
        assert_eq!(plain_capability(&third).as_ref(), Some(&second));
        let from_first = [&[0, 0, 0, 2][..], &sets[..8], &[0; 8]].concat();
        assert_eq!(plain_capability(&first), Some(from_first));
        for bad in [&[][..], &second[..19], &third[..23], &[1, 0, 0, 9]] {
            assert_eq!(plain_capability(bad), None);
        }
    }
}
