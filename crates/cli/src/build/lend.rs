//! Lends a folder of this machine to a worker that is somebody else, where it lies: as many files as there may be, none is copied, and
//! none is looked at that the build does not need.
//!
//! What cannot be lent is copied ([`super::import`]), which is always right: devices, and files of owners that a worker's user namespace
//! does not have, unless they are for everybody; file systems that cannot show a folder with other owners. Before a folder is lent, only
//! what lies right in it is looked at ([`Reach::Top`]): most often all files belong to the same. What is further in shows when the build
//! fails, and only then everything is looked at ([`Reach::All`]), to tell whether copying would help.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use worker::userns::{CONTAINER_IDS, UserNsOptions, lend};

use crate::tree::{EntryKind, Keep};

/// Folders within folders that are looked into.
const DEPTH_MAX: usize = 200;
const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// A folder that is lent as long as this lives, or until the worker has opened it.
#[derive(Debug)]
pub(crate) struct Lent {
    view: OwnedFd,
}

/// How far is looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// What lies right in the folder.
    Top,
    /// Everything.
    All,
}

impl Lent {
    /// Lends the folder at `path`, if that can be done.
    pub(crate) fn try_new(path: &Path, options: &UserNsOptions) -> Option<Self> {
        lend(path, options).ok().map(|view| Self { view })
    }

    /// Returns the path at which the worker finds it.
    pub(crate) fn path(&self) -> PathBuf {
        let (pid, fd) = (std::process::id(), self.view.as_raw_fd());
        PathBuf::from(format!("/proc/{pid}/fd/{fd}"))
    }
}

/// Tells whether a worker could read what is seen of the folder at `path`; `keep` says what of it the worker will look at.
pub(crate) fn is_lendable(
    path: &Path,
    keep: &dyn Fn(&Path, EntryKind) -> Keep,
    reach: Reach,
) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(path, flags, Mode::empty());
    let look = Look { keep, reach };
    root.and_then(|root| look.folder(&root, Path::new(""), 0))
        .unwrap_or(false)
}

struct Look<'a> {
    keep: &'a dyn Fn(&Path, EntryKind) -> Keep,
    reach: Reach,
}

impl Look<'_> {
    /// Tells whether everything that is kept of a folder can be lent.
    fn folder(&self, folder: &OwnedFd, path: &Path, depth: usize) -> rustix::io::Result<bool> {
        if depth > DEPTH_MAX || !fits(&rustix::fs::fstat(folder)?) {
            return Ok(false);
        }
        for entry in Dir::read_from(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let path = path.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
            let stat = rustix::fs::statat(folder.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW)?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            let kept = (self.keep)(
                &path,
                if kind == FileType::Directory {
                    EntryKind::Folder
                } else {
                    EntryKind::Other
                },
            );
            if kept == Keep::No {
                continue;
            }
            let is_lendable = match kind {
                FileType::Directory if self.reach == Reach::All => {
                    let below = rustix::fs::openat(folder, name, FOLDER, Mode::empty())?;
                    self.folder(&below, &path, depth + 1)?
                }
                // COPY leaves sockets out.
                FileType::Directory
                | FileType::RegularFile
                | FileType::Symlink
                | FileType::Fifo
                | FileType::Socket => fits(&stat),
                _ => false,
            };
            if !is_lendable {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Tells whether the owners are ones that a worker has.
fn fits(stat: &rustix::fs::Stat) -> bool {
    stat.st_uid < CONTAINER_IDS && stat.st_gid < CONTAINER_IDS
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{chown, symlink};
    use std::os::unix::net::UnixListener;

    use super::*;

    fn looked(root: &Path, reach: Reach) -> bool {
        let keep = |path: &Path, _: EntryKind| {
            if path.starts_with("ignored") {
                Keep::No
            } else {
                Keep::Yes
            }
        };
        is_lendable(root, &keep, reach)
    }

    #[test]
    fn files_folders_links_and_sockets_are_lent() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fs::write(root.path().join("a/b/file"), "x").unwrap();
        symlink("nowhere", root.path().join("a/link")).unwrap();
        let _socket = UnixListener::bind(root.path().join("a/socket")).unwrap();
        assert!(looked(root.path(), Reach::Top));
        assert!(looked(root.path(), Reach::All));
        assert!(!looked(&root.path().join("nowhere"), Reach::Top));
    }

    #[test]
    fn files_of_owners_that_no_worker_has_are_not_lent_unless_they_are_ignored() {
        let root = tempfile::tempdir().unwrap();
        let stranger = Some(CONTAINER_IDS);
        for name in ["ignored", "a"] {
            fs::create_dir(root.path().join(name)).unwrap();
            fs::write(root.path().join(name).join("file"), "x").unwrap();
        }
        let own = |path: &str| chown(root.path().join(path), stranger, None);
        if own("ignored/file").is_err() {
            // Only root gives files away.
            return;
        }
        assert!(looked(root.path(), Reach::All));
        own("a/file").unwrap();
        assert!(looked(root.path(), Reach::Top));
        assert!(!looked(root.path(), Reach::All));
        own("a").unwrap();
        assert!(!looked(root.path(), Reach::Top));
    }
}
