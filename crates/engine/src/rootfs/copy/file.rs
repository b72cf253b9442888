//! One file, link or directory at a time.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Uid};
use rustix::io::Errno;

use super::{Copier, CopyError, copy_io_error, is_reserved, select_io_error};
use crate::rootfs::overlay::times;
use crate::rootfs::select::{self, Role, Visit};
use crate::rootfs::{attributes, tree};

/// Up to this size, reading and writing is cheaper than asking the kernel to copy.
const SMALL_BYTES: u64 = 128 << 10;
/// The kernel is asked to copy at most this much at once, so that cancelling takes effect.
const CLONE_BYTES: usize = 64 << 20;

impl Copier<'_> {
    pub(super) fn directory(
        &mut self,
        visit: &Visit<'_>,
        target: Vec<u8>,
    ) -> Result<(), CopyError> {
        let name = self.enter(&target)?;
        let parent = self.parent()?;
        let is_new = match rustix::fs::mkdirat(parent, &name, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(copy_io_error("make", &target)(error.into())),
        };
        let flags = tree::directory_flags();
        let dir = tree::open_below(parent, name.to_bytes(), flags).map_err(|error| {
            match Errno::from_io_error(&error) {
                Some(Errno::LOOP | Errno::NOTDIR) => CopyError::NotADirectory {
                    path: tree::shown(&target),
                },
                _ => copy_io_error("open", &target)(error),
            }
        })?;
        if visit.role == Role::Way && !is_new {
            // It was there, and only leads to what is copied: BuildKit gives it the mode of the source and nothing else.
            let mode = Mode::from_raw_mode(visit.stat.st_mode & 0o7777);
            return rustix::fs::fchmod(&dir, mode)
                .map_err(|error| copy_io_error("set the mode of", &target)(error.into()));
        }
        let source = tree::open_below(visit.dir, visit.name.to_bytes(), flags)
            .map_err(select_io_error("open", visit.relative))?;
        self.set_open(&dir, &source, visit.stat, &target)?;
        // Its time comes at the end, for what is put into it changes it.
        self.times.push((target, self.mtime_of(visit.stat)));
        Ok(())
    }

    pub(super) fn file(&mut self, visit: &Visit<'_>, target: &[u8]) -> Result<(), CopyError> {
        let name = self.enter(target)?;
        self.clear(&name, target)?;
        if self.link_again(visit.stat, &name, target)? {
            return Ok(());
        }
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let source = rustix::fs::openat(visit.dir, visit.name, flags, Mode::empty())
            .map_err(|error| select_io_error("open", visit.relative)(error.into()))?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let copy = rustix::fs::openat(self.parent()?, &name, flags, mode)
            .map_err(|error| copy_io_error("make", target)(error.into()))?;
        let mut source = File::from(source);
        let mut copy = File::from(copy);
        // Before it is copied: a file may claim to be far larger than what it takes.
        self.count(u64::try_from(visit.stat.st_size).unwrap_or(0))?;
        self.content(&mut source, &mut copy, visit.stat)
            .map_err(copy_io_error("copy", target))?;
        let (source, copy) = (OwnedFd::from(source), OwnedFd::from(copy));
        self.set_open(&copy, &source, visit.stat, target)?;
        rustix::fs::futimens(&copy, &times(self.mtime_of(visit.stat)))
            .map_err(|error| copy_io_error("set the time of", target)(error.into()))
    }

    pub(super) fn link_or_pipe(
        &mut self,
        visit: &Visit<'_>,
        target: &[u8],
    ) -> Result<(), CopyError> {
        let name = self.enter(target)?;
        self.clear(&name, target)?;
        if self.link_again(visit.stat, &name, target)? {
            return Ok(());
        }
        let parent = self.parent()?;
        let is_link = tree::kind(visit.stat) == FileType::Symlink;
        let outcome = if is_link {
            rustix::fs::readlinkat(visit.dir, visit.name, Vec::new())
                .and_then(|link| rustix::fs::symlinkat(&link, parent, &name))
        } else {
            rustix::fs::mkfifoat(parent, &name, Mode::RUSR)
        };
        outcome.map_err(|error| copy_io_error("make", target)(error.into()))?;
        let (uid, gid) = self.owner_of(visit.stat);
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let (owner, group) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(parent, &name, owner, group, flags)
            .map_err(|error| owner_error(target, (uid, gid), error))?;
        if !is_link {
            let mode = Mode::from_raw_mode(self.mode_of(visit.stat));
            rustix::fs::chmodat(parent, &name, mode, AtFlags::empty())
                .map_err(|error| copy_io_error("set the mode of", target)(error.into()))?;
        }
        rustix::fs::utimensat(parent, &name, &times(self.mtime_of(visit.stat)), flags)
            .map_err(|error| copy_io_error("set the time of", target)(error.into()))
    }

    /// Opens the directory that `target` goes into, and returns the name it gets there.
    fn enter(&mut self, target: &[u8]) -> Result<CString, CopyError> {
        let (parent, name) = select::split(target);
        if is_reserved(name) {
            let path = tree::shown(target);
            return Err(CopyError::ReservedName { path });
        }
        let is_open = matches!(&self.last_dir, Some((path, _)) if path == parent);
        if !is_open {
            let dir = tree::open_below(self.to.as_fd(), parent, tree::directory_flags())
                .map_err(copy_io_error("open", parent))?;
            self.last_dir = Some((parent.to_vec(), dir));
        }
        tree::c_name(name).map_err(copy_io_error("make", target))
    }

    fn parent(&self) -> Result<&OwnedFd, CopyError> {
        match &self.last_dir {
            Some((_, dir)) => Ok(dir),
            None => Err(copy_io_error("open", b"")(io::ErrorKind::NotFound.into())),
        }
    }

    /// Removes what is in the way of a file.
    fn clear(&mut self, name: &CString, target: &[u8]) -> Result<(), CopyError> {
        match rustix::fs::unlinkat(self.parent()?, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => Err(CopyError::IsADirectory {
                path: tree::shown(target),
            }),
            Err(error) => Err(copy_io_error("replace", target)(error.into())),
        }
    }

    /// Makes a hard link if this file was copied under another name before.
    fn link_again(
        &mut self,
        stat: &Stat,
        name: &CString,
        target: &[u8],
    ) -> Result<bool, CopyError> {
        if stat.st_nlink < 2 {
            return Ok(false);
        }
        let key = (stat.st_dev, stat.st_ino);
        let Some(first) = self.links.get(&key) else {
            self.links.insert(key, target.to_vec());
            return Ok(false);
        };
        let (first_parent, first_name) = select::split(first);
        let failed = |error| copy_io_error("link", target)(error);
        let dir = tree::open_below(self.to.as_fd(), first_parent, tree::directory_flags())
            .map_err(failed)?;
        let flags = AtFlags::empty();
        match rustix::fs::linkat(&dir, first_name, self.parent()?, name, flags) {
            Ok(()) => Ok(true),
            // The first copy was replaced by another source since: this one is copied anew.
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(failed(error.into())),
        }
    }

    fn content(&mut self, source: &mut File, copy: &mut File, stat: &Stat) -> io::Result<()> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let on_disk = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        if size > SMALL_BYTES && on_disk < size {
            return self.sparse_content(source, copy, size);
        }
        if size > SMALL_BYTES {
            loop {
                if self.cancel.is_cancelled() {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                let clone = rustix::fs::copy_file_range(
                    source.as_fd(),
                    None,
                    copy.as_fd(),
                    None,
                    CLONE_BYTES,
                );
                match clone {
                    Ok(0) => return Ok(()),
                    Ok(_) => {}
                    // Not between these file systems: go on by hand from where it stands.
                    Err(_) => break,
                }
            }
        }
        self.buffer.resize(256 << 10, 0);
        loop {
            match source.read(&mut self.buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => copy.write_all(self.buffer.get(..n).unwrap_or_default())?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Copies what there is of a file with holes; the holes stay holes.
    fn sparse_content(&self, source: &mut File, copy: &mut File, size: u64) -> io::Result<()> {
        let mut at = 0;
        while at < size {
            if self.cancel.is_cancelled() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let data = match rustix::fs::seek(&*source, SeekFrom::Data(at)) {
                Ok(data) => data,
                Err(Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            let end = rustix::fs::seek(&*source, SeekFrom::Hole(data))?;
            rustix::fs::seek(&*source, SeekFrom::Start(data))?;
            rustix::fs::seek(&*copy, SeekFrom::Start(data))?;
            io::copy(&mut Read::by_ref(source).take(end - data), copy)?;
            at = end;
        }
        copy.set_len(size)
    }

    /// Sets owner, then mode, then attributes: a change of owner clears setuid bits and capabilities.
    fn set_open(
        &self,
        copy: &OwnedFd,
        source: &OwnedFd,
        stat: &Stat,
        target: &[u8],
    ) -> Result<(), CopyError> {
        let (uid, gid) = self.owner_of(stat);
        rustix::fs::fchown(copy, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .map_err(|error| owner_error(target, (uid, gid), error))?;
        rustix::fs::fchmod(copy, Mode::from_raw_mode(self.mode_of(stat)))
            .map_err(|error| copy_io_error("set the mode of", target)(error.into()))?;
        attributes::read(source)
            .and_then(|attributes| attributes::write(copy, &attributes))
            .map_err(copy_io_error("copy the attributes of", target))
    }
}

fn owner_error(target: &[u8], (uid, gid): (u32, u32), error: Errno) -> CopyError {
    let path = tree::shown(target);
    match error {
        Errno::INVAL => CopyError::Owner { path, uid, gid },
        error => CopyError::Io {
            attempt: "set the owner of",
            path,
            source: error.into(),
        },
    }
}
