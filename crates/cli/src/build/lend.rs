//! Lends a folder of this machine to a worker that is somebody else, where it lies: as many files as there may be, none is copied.
//!
//! What cannot be lent is copied ([`super::import`]), which is always right: files of owners that a worker's user namespace does not have,
//! sockets and devices, more than the limits allow, file systems that cannot show a folder with other owners.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use engine::spec::Limits;
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

impl Lent {
    /// Lends the folder at `path`, if that can be done; `keep` says what of it the worker will look at.
    pub(crate) fn try_new(
        path: &Path,
        keep: &dyn Fn(&Path, EntryKind) -> Keep,
        limits: &Limits,
        options: &UserNsOptions,
    ) -> Option<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).ok()?;
        let mut look = Look {
            keep,
            limits,
            n_files: 0,
            n_bytes: 0,
        };
        if !look.folder(&root, Path::new(""), 0).ok()? {
            return None;
        }
        lend(path, options).ok().map(|view| Self { view })
    }

    /// Returns the path at which the worker finds it.
    pub(crate) fn path(&self) -> PathBuf {
        let (pid, fd) = (std::process::id(), self.view.as_raw_fd());
        PathBuf::from(format!("/proc/{pid}/fd/{fd}"))
    }
}

struct Look<'a> {
    keep: &'a dyn Fn(&Path, EntryKind) -> Keep,
    limits: &'a Limits,
    n_files: u64,
    n_bytes: u64,
}

impl Look<'_> {
    /// Tells whether everything that is kept of a folder can be lent.
    fn folder(&mut self, folder: &OwnedFd, path: &Path, depth: usize) -> rustix::io::Result<bool> {
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
            self.n_files += 1;
            let is_lendable = match kind {
                FileType::Directory => {
                    let below = rustix::fs::openat(folder, name, FOLDER, Mode::empty())?;
                    self.folder(&below, &path, depth + 1)?
                }
                FileType::RegularFile => {
                    self.n_bytes += u64::try_from(stat.st_size).unwrap_or(u64::MAX);
                    fits(&stat)
                }
                FileType::Symlink | FileType::Fifo => fits(&stat),
                _ => false,
            };
            let is_within = self.n_files <= self.limits.context_files
                && self.n_bytes <= self.limits.context_bytes;
            if !is_lendable || !is_within {
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
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn looked(root: &Path, limits: &Limits) -> bool {
        let keep = |path: &Path, _: EntryKind| {
            if path.starts_with("ignored") {
                Keep::No
            } else {
                Keep::Yes
            }
        };
        let fd = rustix::fs::open(root, OFlags::RDONLY, Mode::empty()).unwrap();
        let mut look = Look {
            keep: &keep,
            limits,
            n_files: 0,
            n_bytes: 0,
        };
        look.folder(&fd, Path::new(""), 0).unwrap()
    }

    #[test]
    fn files_folders_and_links_are_lent_and_sockets_only_when_they_are_ignored() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fs::write(root.path().join("a/b/file"), "x").unwrap();
        symlink("nowhere", root.path().join("a/link")).unwrap();
        fs::create_dir(root.path().join("ignored")).unwrap();
        let _ignored = UnixListener::bind(root.path().join("ignored/socket")).unwrap();
        assert!(looked(root.path(), &Limits::default()));
        let _seen = UnixListener::bind(root.path().join("a/socket")).unwrap();
        assert!(!looked(root.path(), &Limits::default()));
    }

    #[test]
    fn more_than_the_limits_allow_is_not_lent() {
        let root = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            fs::write(root.path().join(name), "1234").unwrap();
        }
        let limits = |context_files, context_bytes| Limits {
            context_files,
            context_bytes,
            ..Limits::default()
        };
        assert!(looked(root.path(), &limits(3, 12)));
        assert!(!looked(root.path(), &limits(2, 12)));
        assert!(!looked(root.path(), &limits(3, 11)));
    }
}
