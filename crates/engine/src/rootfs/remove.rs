//! Deletes trees, however deep and whatever their modes.
//!
//! Directories that are not empty are moved up beside the tree's top before their own turn comes, so that depth costs neither
//! stack nor file descriptors nor path length. Links are removed, never followed. An interrupted removal can simply be done again.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::tree;

/// Tells why a tree could not be removed.
#[derive(Debug, thiserror::Error)]
#[error("failed to remove {path:?}")]
pub struct RemoveError {
    /// The top of the tree.
    path: String,
    #[source]
    source: io::Error,
}

/// Removes `path` and everything below it. Something that is not there is no error.
///
/// # Errors
/// See [`RemoveError`]; some of the tree may be gone then.
pub fn remove_tree(path: &Path) -> Result<(), RemoveError> {
    let failed = |source| RemoveError {
        path: path.display().to_string(),
        source,
    };
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    };
    let parent = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match rustix::fs::openat(CWD, parent, flags, Mode::empty()) {
        Ok(parent) => parent,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(failed(error.into())),
    };
    let name = tree::c_name(name.as_encoded_bytes()).map_err(failed)?;
    remove_at(parent.as_fd(), &name).map_err(failed)
}

/// Removes `name` in `parent` and everything below it.
pub(super) fn remove_at(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    if try_remove(parent, name)? {
        return Ok(());
    }
    let top = open(parent, name)?;
    let mut n_moved = 0;
    loop {
        let names = tree::names(&top)?;
        if names.is_empty() {
            break;
        }
        for name in names {
            if !try_remove(top.as_fd(), &name)? {
                empty(&top, &name, &mut n_moved)?;
            }
        }
    }
    drop(top);
    Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// Removes directory `name` of `top`; what is in it and not empty is moved up into `top`.
fn empty(top: &OwnedFd, name: &CStr, n_moved: &mut u64) -> io::Result<()> {
    let directory = open(top.as_fd(), name)?;
    for child in tree::names(&directory)? {
        if try_remove(directory.as_fd(), &child)? {
            continue;
        }
        make_accessible(directory.as_fd(), &child);
        loop {
            *n_moved += 1;
            let to = CString::new(format!(".removed-{n_moved}")).unwrap_or_default();
            match rustix::fs::renameat_with(&directory, &child, top, &to, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                other => break other?,
            }
        }
    }
    drop(directory);
    Ok(rustix::fs::unlinkat(top, name, AtFlags::REMOVEDIR)?)
}

/// Removes a file or an empty directory; false for a directory that is not empty.
fn try_remove(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<bool> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn open(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    let flags = tree::directory_flags() | OFlags::CLOEXEC;
    make_accessible(parent, name);
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

/// Lets us look into a directory that forbids it, for those who are not root. What cannot be changed shows at the next call.
fn make_accessible(parent: BorrowedFd<'_>, name: &CStr) {
    if let Ok(Some(stat)) = tree::look(parent, name)
        && stat.st_mode & 0o700 != 0o700
        && tree::kind(&stat) == rustix::fs::FileType::Directory
    {
        let _ = rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty());
    }
}
