//! The writer: what the walk finds, made again in another folder.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::walk::{Found, Sink};
use super::{CopyError, FOLDER, Rules, Special, attributes, failed_write};

const PERMISSIONS: u32 = 0o777;
const MODES: u32 = 0o7777;

/// Makes copies.
pub(super) struct Writer {
    root: OwnedFd,
    /// The folders that are being filled.
    folders: Vec<OwnedFd>,
    owner: Option<(u32, u32)>,
    special: Special,
}

impl Writer {
    /// Returns a writer into the folder `root`.
    pub(super) fn new(root: OwnedFd, rules: &Rules<'_>) -> Self {
        Self {
            root,
            folders: Vec::new(),
            owner: rules.owner,
            special: rules.special,
        }
    }

    fn here(&self) -> &OwnedFd {
        self.folders.last().unwrap_or(&self.root)
    }

    /// Gives what has no descriptor to the owner, and its time to it.
    fn finish_at(&self, name: &CStr, stat: &Stat) -> Result<(), Errno> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        if let Some((uid, gid)) = self.owner {
            let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::chownat(self.here(), name, owner.0, owner.1, flags)?;
        }
        rustix::fs::utimensat(self.here(), name, &times(stat), flags)
    }

    fn finish(&self, fd: impl AsFd, found: &Found) -> Result<(), Errno> {
        if let Some((uid, gid)) = self.owner {
            rustix::fs::fchown(&fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        // After the owner, whose change takes capabilities away.
        attributes::write(&fd, &found.attributes, self.owner.map(|(uid, _)| uid))?;
        let kept = match self.special {
            Special::Keep => MODES,
            Special::LeaveOut => PERMISSIONS,
        };
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(found.stat.st_mode & kept))?;
        rustix::fs::futimens(&fd, &times(&found.stat))
    }
}

impl Sink for Writer {
    fn enter(&mut self, folder: &Found) -> Result<(), CopyError> {
        let made = open_or_make(self.here(), &folder.name);
        self.folders
            .push(made.map_err(|e| failed_write(&folder.path, e))?);
        Ok(())
    }

    fn leave(&mut self, folder: &Found) -> Result<(), CopyError> {
        let Some(made) = self.folders.pop() else {
            return Ok(());
        };
        self.finish(made, folder)
            .map_err(|e| failed_write(&folder.path, e))
    }

    fn file(&mut self, file: &Found, content: File, room: u64) -> Result<u64, CopyError> {
        let copy = || -> io::Result<u64> {
            make_room(self.here(), &file.name)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let made = rustix::fs::openat(self.here(), &file.name, flags, Mode::RUSR | Mode::WUSR)?;
            let mut made = File::from(made);
            // Within the kernel where it can: shared extents, or copy_file_range.
            let mut source = io::Read::take(content, room.saturating_add(1));
            let n = io::copy(&mut source, &mut made)?;
            self.finish(&made, file)?;
            Ok(n)
        };
        copy().map_err(|source| CopyError::Write {
            path: file.path.clone(),
            source,
        })
    }

    fn symlink(&mut self, link: &Found, to: &CStr) -> Result<(), CopyError> {
        make_room(self.here(), &link.name)
            .and_then(|()| rustix::fs::symlinkat(to, self.here(), &link.name))
            .and_then(|()| self.finish_at(&link.name, &link.stat))
            .map_err(|e| failed_write(&link.path, e))
    }

    fn pipe(&mut self, pipe: &Found) -> Result<(), CopyError> {
        let make = || {
            make_room(self.here(), &pipe.name)?;
            rustix::fs::mkfifoat(self.here(), &pipe.name, Mode::RUSR)?;
            let mode = Mode::from_raw_mode(pipe.stat.st_mode & PERMISSIONS);
            rustix::fs::chmodat(self.here(), &pipe.name, mode, AtFlags::empty())?;
            self.finish_at(&pipe.name, &pipe.stat)
        };
        make().map_err(|e| failed_write(&pipe.path, e))
    }

    fn again(&mut self, name: &Found, first: &Path) -> Result<(), CopyError> {
        let make = || {
            make_room(self.here(), &name.name)?;
            let first = CString::new(first.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
            rustix::fs::linkat(
                &self.root,
                &first,
                self.here(),
                &name.name,
                AtFlags::empty(),
            )
        };
        make().map_err(|e| failed_write(&name.path, e))
    }
}

fn open_or_make(parent: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    // Ours alone until it is complete; `finish` gives it the mode that it has at the source.
    let private = Mode::RWXU;
    match rustix::fs::mkdirat(parent, name, private) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            let there = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(there.st_mode) != FileType::Directory {
                rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
                rustix::fs::mkdirat(parent, name, private)?;
            }
        }
        Err(error) => return Err(error),
    }
    rustix::fs::openat(parent, name, FOLDER, Mode::empty())
}

fn make_room(folder: &OwnedFd, name: &CStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    Timestamps {
        last_access: time(
            stat.st_atime,
            i64::try_from(stat.st_atime_nsec).unwrap_or(0),
        ),
        last_modification: time(
            stat.st_mtime,
            i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
        ),
    }
}
