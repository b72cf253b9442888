//! Directories held by descriptor, and the few operations the store does in them.
//!
//! The store's folders belong to the data plane, and the server that also writes there may be root. So no path is ever
//! resolved twice and no symbolic link is ever followed: every step goes through `openat2` beneath the store's own root, and
//! what is created is given away through its descriptor. Names given to the functions here are single components made of
//! characters that we chose; who calls them has parsed them first.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir as Entries, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat,
    Timespec, Timestamps, UTIME_NOW,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use crate::Owner;

/// How often `openat2` may ask to be called again because something was renamed meanwhile.
const OPEN_ATTEMPTS_MAX: usize = 16;

/// An open directory within the store.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    owner: Option<Owner>,
}

impl Dir {
    /// Opens the store's root, creating it (its parent must exist).
    pub(crate) fn open_root(path: &Path, owner: Option<Owner>) -> io::Result<Self> {
        match rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
        let dir = Self { fd, owner };
        dir.give_away(dir.fd.as_fd())?;
        Ok(dir)
    }

    /// Opens the directory at `path` below this one.
    pub(crate) fn sub(&self, path: &str) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = self.open_beneath(path, flags, Mode::empty())?;
        Ok(Self {
            fd,
            owner: self.owner,
        })
    }

    /// Returns the same directory, in which what is created stays ours: the data plane reads it and cannot change it.
    pub(crate) fn ours(&self) -> io::Result<Self> {
        Ok(Self {
            fd: rustix::io::fcntl_dupfd_cloexec(&self.fd, 0)?,
            owner: None,
        })
    }

    /// Opens the directory at `path` below this one; `None` when there is none.
    pub(crate) fn sub_if_there(&self, path: &str) -> io::Result<Option<Self>> {
        absent_as_none(self.sub(path))
    }

    /// Opens the directory at `path` below this one and creates what is missing of it, durably.
    pub(crate) fn make(&self, path: &str) -> io::Result<Self> {
        if let Some(dir) = self.sub_if_there(path)? {
            return Ok(dir);
        }
        let mut current = self.sub(".")?;
        for component in path.split('/') {
            current = current.make_one(component)?;
        }
        Ok(current)
    }

    /// The same for what may be gone after a crash of the machine: nothing is waited for.
    pub(crate) fn make_for_now(&self, path: &str) -> io::Result<Self> {
        if let Some(dir) = self.sub_if_there(path)? {
            return Ok(dir);
        }
        let mut current = self.sub(".")?;
        for component in path.split('/') {
            current.make_unsynced(component)?;
            current = current.sub(component)?;
        }
        Ok(current)
    }

    /// Creates what is missing of many directories, durably: each one that got something new is waited for once.
    pub(crate) fn make_all(&self, paths: &[&str]) -> io::Result<()> {
        let mut grown = BTreeSet::new();
        for path in paths {
            if self.sub_if_there(path)?.is_some() {
                continue;
            }
            let (mut current, mut above) = (self.sub(".")?, String::from("."));
            for component in path.split('/') {
                if current.make_unsynced(component)? {
                    grown.insert(above.clone());
                }
                current = current.sub(component)?;
                above = format!("{above}/{component}");
            }
        }
        grown.iter().try_for_each(|path| self.sub(path)?.sync())
    }

    /// Creates the directory `name` unless it is there, and leaves it to the caller to make that durable. Returns false when it was there.
    pub(crate) fn make_unsynced(&self, name: &str) -> io::Result<bool> {
        match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let dir = self.sub(name)?;
        rustix::fs::fchmod(&dir.fd, Mode::from_raw_mode(0o755))?;
        dir.give_away(dir.fd.as_fd())?;
        Ok(true)
    }

    fn make_one(&self, name: &str) -> io::Result<Self> {
        if self.make_unsynced(name)? {
            self.sync()?;
        }
        self.sub(name)
    }

    /// Opens a regular file for reading; `None` when there is none.
    pub(crate) fn open_file(&self, name: &str) -> io::Result<Option<File>> {
        // NONBLOCK: a FIFO put there by somebody else must not hold us.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        self.open_regular(name, flags)
    }

    /// Opens a regular file for reading and writing; `None` when there is none.
    pub(crate) fn open_file_rw(&self, name: &str) -> io::Result<Option<File>> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        self.open_regular(name, flags)
    }

    fn open_regular(&self, name: &str, flags: OFlags) -> io::Result<Option<File>> {
        let Some(fd) = absent_as_none(self.open_beneath(name, flags, Mode::empty()))? else {
            return Ok(None);
        };
        let stat = rustix::fs::fstat(&fd)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "not a regular file",
            ));
        }
        Ok(Some(File::from(fd)))
    }

    /// Creates a file that must not exist yet.
    pub(crate) fn create_new(&self, name: &str, mode: u32) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = self.open_beneath(name, flags, Mode::from_raw_mode(mode))?;
        self.give_away(fd.as_fd())?;
        Ok(File::from(fd))
    }

    /// Opens a file for locking, creating it if need be.
    pub(crate) fn open_or_create(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = self.open_beneath(name, flags, Mode::from_raw_mode(0o644))?;
        self.give_away(fd.as_fd())?;
        Ok(File::from(fd))
    }

    /// Creates a file without a name; `None` when the file system cannot.
    pub(crate) fn create_unnamed(&self) -> io::Result<Option<File>> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, ".", flags, Mode::from_raw_mode(0o600)) {
            Ok(fd) => {
                self.give_away(fd.as_fd())?;
                Ok(Some(File::from(fd)))
            }
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives a name to a file made by [`Dir::create_unnamed`]. Returns false when the name is taken.
    pub(crate) fn link_unnamed(&self, file: &File, name: &str) -> io::Result<bool> {
        let direct = rustix::fs::linkat(file, "", &self.fd, name, AtFlags::EMPTY_PATH);
        let linked = match direct {
            // Kernels before 6.10 want CAP_DAC_READ_SEARCH for the empty path; the magic link needs nothing.
            Err(Errno::NOENT | Errno::PERM) => {
                let path = format!(
                    "/proc/self/fd/{}",
                    std::os::fd::AsRawFd::as_raw_fd(&file.as_fd())
                );
                rustix::fs::linkat(CWD, path, &self.fd, name, AtFlags::SYMLINK_FOLLOW)
            }
            other => other,
        };
        exists_as_false(linked)
    }

    /// Moves `name` to `to`/`new_name`. Returns false when that name is taken.
    pub(crate) fn rename_new(&self, name: &str, to: &Self, new_name: &str) -> io::Result<bool> {
        let flags = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(&self.fd, name, &to.fd, new_name, flags) {
            Err(Errno::NOTEMPTY) => Ok(false),
            other => exists_as_false(other),
        }
    }

    /// Moves `name` to `to`/`new_name`, replacing what is there.
    pub(crate) fn replace(&self, name: &str, to: &Self, new_name: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.fd, name, &to.fd, new_name)?)
    }

    /// Removes a file. Returns false when there was none.
    pub(crate) fn unlink(&self, name: &str) -> io::Result<bool> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns what `name` is, links not followed; `None` when there is nothing.
    pub(crate) fn stat(&self, name: &str) -> io::Result<Option<Stat>> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Sets the times of `name` to now; false when there is none. Who may not is not told: whose files these are always may.
    pub(crate) fn touch(&self, name: &str) -> io::Result<bool> {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        };
        let times = Timestamps {
            last_access: now,
            last_modification: now,
        };
        match rustix::fs::utimensat(&self.fd, name, &times, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(()) | Err(Errno::PERM | Errno::ACCESS | Errno::ROFS) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes an empty directory; false when it is not empty or not there.
    pub(crate) fn remove_empty(&self, name: &str) -> io::Result<bool> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Tells whether `name` is the very file that `file` has open.
    pub(crate) fn is_same(&self, name: &str, file: &File) -> io::Result<bool> {
        let open = rustix::fs::fstat(file)?;
        let named = self.stat(name)?;
        Ok(named.is_some_and(|named| named.st_ino == open.st_ino && named.st_dev == open.st_dev))
    }

    /// Returns the names of all entries, in no order. Names that are not UTF-8 are not ours and left out.
    pub(crate) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Entries::read_from(&self.fd)? {
            let entry = entry?;
            if !is_dot(entry.file_name()) {
                names.extend(entry.file_name().to_str().ok().map(str::to_owned));
            }
        }
        Ok(names)
    }

    /// Makes the entries of this directory durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.fd)?)
    }

    /// Hands a file or directory over to the store's owner, when we are the ones who can.
    pub(crate) fn give_away(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let Some(owner) = self.owner else {
            return Ok(());
        };
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        Ok(rustix::fs::fchown(fd, Some(uid), Some(gid))?)
    }

    fn open_beneath(&self, path: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let mut attempt = 0;
        loop {
            match rustix::fs::openat2(&self.fd, path, flags, mode, resolve) {
                Err(Errno::AGAIN | Errno::INTR) if attempt < OPEN_ATTEMPTS_MAX => attempt += 1,
                other => return Ok(other?),
            }
        }
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Tells whether a directory entry is `.` or `..`.
pub(crate) fn is_dot(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

fn absent_as_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn exists_as_false(result: Result<(), Errno>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
