//! Goes through a folder once, to copy it ([`copy`]) or to list and hash it ([`list`](fn@list)): a build's context into the build or to a server,
//! an exported root filesystem out of it. What is taken, what is left out and in which order is the same for both, because one walk decides.
//!
//! Neither side is trusted to hold still or to be what it was: every step goes through a folder that is held open, and no symbolic
//! link is ever followed. Regular files, folders and symbolic links are taken with their modes and times; set-id bits, hard links,
//! pipes and extended attributes as [`Rules::special`] says. What else there is (sockets, devices) is left out and counted. What is in the
//! way at the destination of a copy is replaced, not followed.

mod attributes;
mod list;
mod walk;
mod write;

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

pub(crate) use list::{Content, Listed, Listing, list};

/// Folders within folders that are followed; two are held open for each.
const DEPTH_MAX: usize = 200;
const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// What an entry of a folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// A folder.
    Folder,
    /// Anything else.
    Other,
}

/// What to do with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Take it.
    Yes,
    /// Leave it out, and what is below it.
    No,
    /// Leave the folder out unless something below it is taken.
    PartsOnly,
}

/// What happens to what is not a plain file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Special {
    /// Set-id bits, pipes and the extended attributes that COPY keeps stay, and files with several names stay one file: for a folder that
    /// only the worker sees.
    Keep,
    /// Set-id bits and extended attributes go, pipes are left out, and every name is a file of its own.
    LeaveOut,
}

/// What to take, and how.
pub(crate) struct Rules<'a> {
    /// Decides about an entry, by its path within the folder and what it is.
    pub(crate) keep: &'a dyn Fn(&Path, EntryKind) -> Keep,
    /// Whom copies belong to; the caller when not given.
    pub(crate) owner: Option<(u32, u32)>,
    /// What happens to what is not a plain file.
    pub(crate) special: Special,
    /// Most files.
    pub(crate) files_max: u64,
    /// Most bytes.
    pub(crate) bytes_max: u64,
}

/// What was taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Copied {
    /// Files, folders and links.
    pub(crate) n_files: u64,
    /// Content of files.
    pub(crate) bytes: u64,
    /// Entries of kinds that are not taken.
    pub(crate) n_skipped: u64,
}

/// Tells why a folder was not copied or listed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("write a copy of {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} is more than {DEPTH_MAX} folders deep", path.display())]
    Depth { path: PathBuf },
    #[error("there are more than {0} files")]
    Files(u64),
    #[error("there are more than {0} bytes")]
    Bytes(u64),
}

/// Copies what is in `from` into the existing folder `into`.
pub(crate) fn copy(from: &Path, into: &Path, rules: &Rules<'_>) -> Result<Copied, CopyError> {
    let source = open_root(from)?;
    // The two roots are the user's own words: links in them are meant.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let target = rustix::fs::open(into, flags, Mode::empty()).map_err(|e| failed_write(into, e))?;
    let mut writer = write::Writer::new(target, rules);
    walk::walk(&source, rules, &mut writer)
}

fn open_root(from: &Path) -> Result<std::os::fd::OwnedFd, CopyError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(from, flags, Mode::empty()).map_err(|e| failed_read(from, e))
}

fn failed_read(path: &Path, source: impl Into<io::Error>) -> CopyError {
    CopyError::Read {
        path: path.to_owned(),
        source: source.into(),
    }
}

fn failed_write(path: &Path, source: Errno) -> CopyError {
    CopyError::Write {
        path: path.to_owned(),
        source: source.into(),
    }
}
