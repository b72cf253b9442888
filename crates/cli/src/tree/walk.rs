//! The walk: which entries there are, in which order, and when a folder counts.
//!
//! Entries come in the order of their names as bytes, a folder before what is in it. A folder that is only taken for something below it is
//! announced when that comes, or never.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::attributes::{self, Attributes};
use super::{Copied, CopyError, DEPTH_MAX, EntryKind, FOLDER, Keep, Rules, Special, failed_read};

/// An entry that is taken.
#[derive(Debug)]
pub(super) struct Found {
    /// Where it is in the folder.
    pub(super) path: PathBuf,
    /// Its name.
    pub(super) name: CString,
    /// What the system says of it.
    pub(super) stat: Stat,
    /// Attributes, of files and folders.
    pub(super) attributes: Attributes,
}

/// What is done with entries.
pub(super) trait Sink {
    /// A folder; what comes until [`Sink::leave`] is in it.
    fn enter(&mut self, folder: &Found) -> Result<(), CopyError>;
    /// The end of a folder.
    fn leave(&mut self, folder: &Found) -> Result<(), CopyError>;
    /// A file; reads it to its end, or for one byte more than `room`, and returns how many there were.
    fn file(&mut self, file: &Found, content: File, room: u64) -> Result<u64, CopyError>;
    /// A symbolic link.
    fn symlink(&mut self, link: &Found, to: &CStr) -> Result<(), CopyError>;
    /// A pipe.
    fn pipe(&mut self, pipe: &Found) -> Result<(), CopyError>;
    /// Another name of the file or pipe that came as `first`.
    fn again(&mut self, name: &Found, first: &Path) -> Result<(), CopyError>;
}

/// Goes through `folder`, and gives `sink` what `rules` want.
pub(super) fn walk(
    folder: &OwnedFd,
    rules: &Rules<'_>,
    sink: &mut dyn Sink,
) -> Result<Copied, CopyError> {
    let mut walk = Walk {
        rules,
        sink,
        copied: Copied::default(),
        links: HashMap::new(),
        folders: Vec::new(),
        n_entered: 0,
    };
    walk.folder(folder, Path::new(""))?;
    Ok(walk.copied)
}

struct Walk<'a> {
    rules: &'a Rules<'a>,
    sink: &'a mut dyn Sink,
    copied: Copied,
    /// The first name of every file with several.
    links: HashMap<(u64, u64), PathBuf>,
    /// The folders that we are in.
    folders: Vec<Found>,
    /// How many of them the sink knows.
    n_entered: usize,
}

impl Walk<'_> {
    fn folder(&mut self, from: &OwnedFd, path: &Path) -> Result<(), CopyError> {
        if self.folders.len() > DEPTH_MAX {
            return Err(CopyError::Depth {
                path: path.to_owned(),
            });
        }
        for name in names(from).map_err(|e| failed_read(path, e))? {
            let path = path.join(OsStr::from_bytes(name.to_bytes()));
            let stat = rustix::fs::statat(from, &name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| failed_read(&path, e))?;
            let kind = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => EntryKind::Folder,
                _ => EntryKind::Other,
            };
            let keep = (self.rules.keep)(&path, kind);
            let found = Found {
                path,
                name,
                stat,
                attributes: Attributes::new(),
            };
            if kind == EntryKind::Folder && keep != Keep::No {
                self.subfolder(from, found, keep)?;
            } else if keep == Keep::Yes {
                self.entry(from, found)?;
            }
        }
        Ok(())
    }

    fn subfolder(
        &mut self,
        parent: &OwnedFd,
        mut found: Found,
        keep: Keep,
    ) -> Result<(), CopyError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |e: Errno| failed_read(&path, e)
        };
        let from = rustix::fs::openat(parent, &found.name, FOLDER, Mode::empty())
            .map_err(failed(&found.path))?;
        found.stat = rustix::fs::fstat(&from).map_err(failed(&found.path))?;
        found.attributes = self.attributes(&from, &found.path)?;
        let path = found.path.clone();
        self.folders.push(found);
        if keep == Keep::Yes {
            self.enter()?;
        }
        self.folder(&from, &path)?;
        let left = self.folders.pop();
        if let Some(left) = left.filter(|_| self.n_entered > self.folders.len()) {
            self.n_entered = self.folders.len();
            self.sink.leave(&left)?;
        }
        Ok(())
    }

    /// Lets the sink know every folder that we are in.
    fn enter(&mut self) -> Result<(), CopyError> {
        while let Some(folder) = self.folders.get(self.n_entered) {
            self.sink.enter(folder)?;
            self.n_entered += 1;
            self.count(0)?;
        }
        Ok(())
    }

    fn attributes(&self, file: &OwnedFd, path: &Path) -> Result<Attributes, CopyError> {
        match self.rules.special {
            Special::Keep => attributes::read(file).map_err(|e| failed_read(path, e)),
            Special::LeaveOut => Ok(Attributes::new()),
        }
    }

    fn entry(&mut self, from: &OwnedFd, found: Found) -> Result<(), CopyError> {
        let kind = FileType::from_raw_mode(found.stat.st_mode);
        let is_special = self.rules.special == Special::Keep;
        match kind {
            FileType::RegularFile | FileType::Symlink => {}
            FileType::Fifo if is_special => {}
            _ => {
                self.copied.n_skipped += 1;
                return Ok(());
            }
        }
        self.enter()?;
        if is_special && found.stat.st_nlink > 1 && kind != FileType::Symlink {
            let inode = (found.stat.st_dev, found.stat.st_ino);
            if let Some(first) = self.links.get(&inode) {
                self.sink.again(&found, first)?;
                return self.count(0);
            }
            self.links.insert(inode, found.path.clone());
        }
        match kind {
            FileType::RegularFile => return self.file(from, found),
            FileType::Symlink => {
                let to = rustix::fs::readlinkat(from, &found.name, Vec::new())
                    .map_err(|e| failed_read(&found.path, e))?;
                self.sink.symlink(&found, &to)?;
            }
            _ => self.sink.pipe(&found)?,
        }
        self.count(0)
    }

    fn file(&mut self, from: &OwnedFd, mut found: Found) -> Result<(), CopyError> {
        // Not blocking: a pipe may have taken the file's place meanwhile.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let content = rustix::fs::openat(from, &found.name, flags, Mode::empty())
            .map_err(|e| failed_read(&found.path, e))?;
        found.stat = rustix::fs::fstat(&content).map_err(|e| failed_read(&found.path, e))?;
        if FileType::from_raw_mode(found.stat.st_mode) != FileType::RegularFile {
            return Err(failed_read(&found.path, Errno::AGAIN));
        }
        found.attributes = self.attributes(&content, &found.path)?;
        let room = self.rules.bytes_max.saturating_sub(self.copied.bytes);
        let n = self.sink.file(&found, File::from(content), room)?;
        self.count(n)
    }

    fn count(&mut self, bytes: u64) -> Result<(), CopyError> {
        self.copied.n_files += 1;
        self.copied.bytes += bytes;
        if self.copied.n_files > self.rules.files_max {
            return Err(CopyError::Files(self.rules.files_max));
        }
        if self.copied.bytes > self.rules.bytes_max {
            return Err(CopyError::Bytes(self.rules.bytes_max));
        }
        Ok(())
    }
}

/// Returns the names in a folder, in the order of their bytes.
fn names(folder: &OwnedFd) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}
