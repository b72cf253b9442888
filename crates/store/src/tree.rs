//! Removes directory trees that hostile programs have made.
//!
//! Such a tree may be deeper than any stack or path limit, hold directories without any permission, and names that are not
//! UTF-8. So nothing recurses and no path is built: each directory that is not empty is moved up to the root of the tree
//! under a name of ours, and at most two directories are open at a time. No link is followed, no mount is crossed on purpose:
//! who removes a tree has unmounted what was mounted in it (a mount point fails with `EBUSY`, its content stays).

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir as Entries, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::dir::is_dot;

/// Removes the file or directory tree at `path`. Nothing there is not an error.
///
/// # Errors
/// Whatever the system says about the first entry that could not be removed; the rest may be gone.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let Some(name) = path.file_name() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?,
        _ => File::open(".")?,
    };
    let name = CString::new(std::os::unix::ffi::OsStrExt::as_bytes(name))?;
    remove_at(&parent, &name)
}

/// Removes the file or tree `name` in the directory `parent`.
pub(crate) fn remove_at(parent: impl AsFd, name: &CStr) -> io::Result<()> {
    if remove_leaf(&parent, name)? {
        return Ok(());
    }
    let root = open_dir(&parent, name)?;
    let mut n_moved: u64 = 0;
    loop {
        let entries = entries(&root)?;
        if entries.is_empty() {
            break;
        }
        for entry in entries {
            if !remove_leaf(&root, &entry)? {
                empty_into(&root, &entry, &mut n_moved)?;
            }
        }
    }
    Ok(rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?)
}

/// Removes the directory `name` of `root` after moving its directories up into `root`.
fn empty_into(root: &OwnedFd, name: &CStr, n_moved: &mut u64) -> io::Result<()> {
    let dir = open_dir(root, name)?;
    loop {
        let children = entries(&dir)?;
        if children.is_empty() {
            return Ok(rustix::fs::unlinkat(root, name, AtFlags::REMOVEDIR)?);
        }
        for child in children {
            if !remove_leaf(&dir, &child)? {
                move_up(&dir, &child, root, n_moved)?;
            }
        }
    }
}

fn move_up(dir: &OwnedFd, child: &CStr, root: &OwnedFd, n_moved: &mut u64) -> io::Result<()> {
    let mut may_fix = true;
    loop {
        *n_moved += 1;
        let name = format!(".kiln-removed-{n_moved}");
        match rustix::fs::renameat_with(dir, child, root, &name, RenameFlags::NOREPLACE) {
            // The tree has such a name itself.
            Err(Errno::EXIST | Errno::NOTEMPTY) => {}
            // Moving a directory writes its "..", for which it must be writable.
            Err(Errno::ACCESS) if may_fix => {
                may_fix = false;
                allow_everything(dir, child)?;
            }
            other => return Ok(other?),
        }
    }
}

/// Removes a file or an empty directory; false when `name` is a directory with something in it.
fn remove_leaf(parent: impl AsFd, name: &CStr) -> io::Result<bool> {
    match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(error.into()),
    }
    match rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn open_dir(parent: impl AsFd, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = match rustix::fs::openat(&parent, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            allow_everything(&parent, name)?;
            rustix::fs::openat(&parent, name, flags, Mode::empty())?
        }
        other => other?,
    };
    let needed = Mode::RWXU.as_raw_mode();
    if rustix::fs::fstat(&dir)?.st_mode & needed != needed {
        // Root may do without, and the owner may always do it; anybody else fails below with better words.
        let _ = rustix::fs::fchmod(&dir, Mode::RWXU);
    }
    Ok(dir)
}

/// Gives us all rights on a directory that we own but may not even open.
fn allow_everything(parent: impl AsFd, name: &CStr) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    // A descriptor opened by path only has no fchmod; its magic link leads to the same inode whatever its name does now.
    let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
    Ok(rustix::fs::chmod(path, Mode::RWXU)?)
}

fn entries(dir: &OwnedFd) -> io::Result<Vec<CString>> {
    /// At most so many names are held at a time; the callers come back for the rest.
    const NAMES_MAX: usize = 4096;
    let mut names = Vec::new();
    for entry in Entries::read_from(dir)? {
        let entry = entry?;
        if !is_dot(entry.file_name()) {
            names.push(entry.file_name().to_owned());
        }
        if names.len() >= NAMES_MAX {
            break;
        }
    }
    Ok(names)
}
