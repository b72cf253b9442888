//! Extended attributes of a context: those that COPY keeps, `security.capability` and `user.*` without overlayfs' own.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// Largest value and largest list of names, as the kernel has it.
const MAX_BYTES: usize = 64 << 10;
const CAPABILITY: &[u8] = b"security.capability";
const REVISION_MASK: u32 = 0xff00_0000;
const REVISION_2: u32 = 0x0200_0000;
const REVISION_3: u32 = 0x0300_0000;

/// Attributes by name.
pub(super) type Attributes = BTreeMap<Vec<u8>, Vec<u8>>;

fn is_kept(name: &[u8]) -> bool {
    let is_users = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
    is_users || name == CAPABILITY
}

/// Returns those attributes of an open file that COPY keeps.
pub(super) fn read(file: impl AsFd) -> io::Result<Attributes> {
    let mut attributes = Attributes::new();
    // Most files have none: found out without a buffer.
    match rustix::fs::flistxattr_query(&file) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(attributes),
        Ok(_) => {}
        Err(error) => return Err(error.into()),
    }
    let mut names = vec![0_u8; MAX_BYTES];
    let n = rustix::fs::flistxattr(&file, &mut names[..])?;
    names.truncate(n);
    for name in names.split(|byte| *byte == 0).filter(|name| is_kept(name)) {
        let mut value = vec![0_u8; MAX_BYTES];
        match rustix::fs::fgetxattr(&file, name, &mut value[..]) {
            Ok(n) => value.truncate(n),
            Err(Errno::NODATA) => continue,
            Err(error) => return Err(error.into()),
        }
        attributes.insert(name.to_vec(), value);
    }
    Ok(attributes)
}

/// Sets attributes on an open file, which `root` sees when it is root of a user namespace.
pub(super) fn write(
    file: impl AsFd,
    attributes: &Attributes,
    root: Option<u32>,
) -> Result<(), Errno> {
    for (name, value) in attributes {
        let value = match root {
            Some(root) if name == CAPABILITY => for_namespace(value, root),
            _ => value.clone(),
        };
        rustix::fs::fsetxattr(&file, &name[..], &value, XattrFlags::empty())?;
    }
    Ok(())
}

/// Returns file capabilities in the revision that names whose namespace they are for: without it, nobody in there may read them.
fn for_namespace(value: &[u8], root: u32) -> Vec<u8> {
    let Some((magic, sets)) = value.split_first_chunk() else {
        return value.to_vec();
    };
    let magic = u32::from_le_bytes(*magic);
    let Some(sets) = sets.get(..16) else {
        return value.to_vec();
    };
    if !matches!(magic & REVISION_MASK, REVISION_2 | REVISION_3) {
        return value.to_vec();
    }
    let magic = REVISION_3 | (magic & 1);
    [&magic.to_le_bytes()[..], sets, &root.to_le_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_rewritten_for_a_namespace_and_keep_what_they_allow() {
        let sets: Vec<u8> = (0..16).collect();
        let second = [&[1, 0, 0, 2][..], &sets].concat();
        let third = [&[1, 0, 0, 3][..], &sets, &[0xa0, 0x86, 1, 0]].concat();
        assert_eq!(for_namespace(&second, 100_000), third);
        assert_eq!(for_namespace(&third, 100_000), third);
        for other in [&b""[..], b"x", &second[..19], &[0, 0, 0, 1, 5]] {
            assert_eq!(for_namespace(other, 1), other);
        }
    }
}
