//! A step's upper directory into a canonical archive.
//!
//! Order: a directory, then what it holds that is not a directory, by name, then its directories, by name, each with what it
//! holds. So one directory is open at a time, however deep the tree, and the same files give the same bytes. Whiteouts become
//! `.wh.x`, opaque directories get a `.wh..wh..opq`. The upper's root itself is not part of the archive.
//!
//! Every directory that overlayfs copied up is written, changed or not, as other builders do. Sockets are left out. Of extended
//! attributes, those pass that `attributes` names; capabilities are written without the id of our namespace's owner.
//!
//! The upper must not change meanwhile: no process of the step is alive. A file that shrinks nevertheless is an error.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use oci::tar::{Entry, Kind, WriteError, Writer};
use rustix::fs::{CWD, FileType, Mode, OFlags, Stat};
use tokio_util::sync::CancellationToken;

use super::tree::{self, Node};
use super::{attributes, root};

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
/// Longest path of an archive that we make: what every reader takes.
const PATH_MAX_BYTES: usize = tree::PATH_MAX_BYTES;

/// How an archive is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiffOptions {
    /// Times later than this are written as this (`SOURCE_DATE_EPOCH`), in seconds since 1970.
    pub mtime_clamp: Option<i64>,
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiffReport {
    /// Entries; none means that the step changed nothing, and the archive is of no use.
    pub entries: u64,
    /// Bytes of the archive.
    pub archive_bytes: u64,
    /// Bytes of all files.
    pub content_bytes: u64,
    /// Sockets that were left out.
    pub n_sockets_skipped: u64,
}

/// Tells why a step's changes could not be archived.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// The archive could not be written, or a file not be read.
    #[error("failed to archive the changes")]
    Write(#[source] WriteError),
    /// The system refused.
    #[error("failed to {attempt} {path:?}")]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A name that would be read as a deletion.
    #[error("{path:?} cannot be stored in a layer: names that start with .wh. mean deletions")]
    ReservedName {
        /// The file.
        path: String,
    },
    /// A path that is too long for an archive.
    #[error("{path:?}… is longer than {PATH_MAX_BYTES} bytes and cannot be stored in a layer")]
    PathTooLong {
        /// The start of the path.
        path: String,
    },
    /// A device file.
    #[error("{path:?} is a device and cannot be stored in a layer")]
    Device {
        /// The file.
        path: String,
    },
    /// The caller wanted no more of it.
    #[error("archiving was cancelled")]
    Cancelled,
}

/// Writes what is in the upper directory `upper` to `out`, as a layer.
///
/// # Errors
/// See [`DiffError`]; what was written is of no use then.
pub fn diff(
    upper: &Path,
    out: &mut impl Write,
    options: DiffOptions,
    cancel: &CancellationToken,
) -> Result<DiffReport, DiffError> {
    let flags = tree::directory_flags() | OFlags::CLOEXEC;
    let top = rustix::fs::openat(CWD, upper, flags, Mode::empty()).map_err(|error| {
        let path = upper.display().to_string();
        DiffError::Io {
            attempt: "open",
            path,
            source: error.into(),
        }
    })?;
    let mut differ = Differ {
        archive: Writer::new(out),
        options,
        links: HashMap::new(),
        report: DiffReport::default(),
    };
    // Directories still to come, the next one last.
    let mut pending = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        if cancel.is_cancelled() {
            return Err(DiffError::Cancelled);
        }
        let dir = tree::open_below(&top, &path, tree::directory_flags())
            .map_err(io_error("open", &path))?;
        differ.directory(&path, &dir)?;
        let nodes = tree::list(&dir).map_err(io_error("list", &path))?;
        let (dirs, others): (Vec<_>, Vec<_>) = nodes.into_iter().partition(Node::is_dir);
        for node in others {
            if cancel.is_cancelled() {
                return Err(DiffError::Cancelled);
            }
            let path = differ.path_of(&path, &node)?;
            differ.node(path, &dir, &node)?;
        }
        for node in dirs.iter().rev() {
            pending.push(differ.path_of(&path, node)?);
        }
    }
    let Differ {
        archive,
        mut report,
        ..
    } = differ;
    report.entries = archive.n_entries();
    report.archive_bytes = archive.size_bytes() + 2 * oci::tar::BLOCK_BYTES as u64;
    archive.finish().map_err(DiffError::Write)?;
    Ok(report)
}

struct Differ<'a, W: Write> {
    archive: Writer<&'a mut W>,
    options: DiffOptions,
    /// First path of every file with several names.
    links: HashMap<(u64, u64), Vec<u8>>,
    report: DiffReport,
}

impl<W: Write> Differ<'_, W> {
    #[expect(
        clippy::unused_self,
        reason = "reads as part of the methods that walk the upper directory"
    )]
    fn path_of(&self, dir: &[u8], node: &Node) -> Result<Vec<u8>, DiffError> {
        let name = node.name.to_bytes();
        let path = tree::join(dir, name);
        if name.starts_with(WHITEOUT_PREFIX) {
            let path = tree::shown(&path);
            return Err(DiffError::ReservedName { path });
        }
        if path.len() + WHITEOUT_PREFIX.len() > PATH_MAX_BYTES {
            let start = path.get(..200).unwrap_or_default();
            return Err(DiffError::PathTooLong {
                path: tree::shown(start),
            });
        }
        Ok(path)
    }

    fn directory(&mut self, path: &[u8], dir: &OwnedFd) -> Result<(), DiffError> {
        let failed = |attempt| io_error(attempt, path);
        if !path.is_empty() {
            let stat = rustix::fs::fstat(dir).map_err(|error| failed("look at")(error.into()))?;
            let mut entry = self.entry(path.to_vec(), Kind::Directory, &stat);
            entry.xattrs = attributes::read(dir).map_err(failed("read the attributes of"))?;
            self.append(&entry)?;
        }
        if attributes::is_opaque(dir).map_err(failed("read the attributes of"))? {
            self.append(&marker(tree::join(path, OPAQUE_MARKER)))?;
        }
        Ok(())
    }

    fn node(&mut self, path: Vec<u8>, dir: &OwnedFd, node: &Node) -> Result<(), DiffError> {
        let stat = &node.stat;
        match node.kind() {
            FileType::CharacterDevice if tree::is_whiteout(stat) => {
                let name = [WHITEOUT_PREFIX, node.name.to_bytes()].concat();
                let len = path.len() - node.name.to_bytes().len();
                let parent = path.get(..len).unwrap_or_default();
                self.append(&marker([parent, &name].concat()))
            }
            FileType::Socket => {
                self.report.n_sockets_skipped += 1;
                Ok(())
            }
            FileType::RegularFile => self.file(path, dir, node),
            FileType::Symlink | FileType::Fifo => {
                if self.append_link(&path, stat)? {
                    return Ok(());
                }
                let kind = match node.kind() {
                    FileType::Symlink => Kind::Symlink,
                    _ => Kind::Fifo,
                };
                let mut entry = self.entry(path, kind, stat);
                if kind == Kind::Symlink {
                    let target = rustix::fs::readlinkat(dir, &node.name, Vec::new());
                    let target = target
                        .map_err(|error| io_error("read the link", &entry.path)(error.into()))?;
                    entry.link = target.into_bytes();
                    entry.mode = 0o777;
                }
                self.append(&entry)
            }
            _ => Err(DiffError::Device {
                path: tree::shown(&path),
            }),
        }
    }

    fn file(&mut self, path: Vec<u8>, dir: &OwnedFd, node: &Node) -> Result<(), DiffError> {
        if self.append_link(&path, &node.stat)? {
            return Ok(());
        }
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, &node.name, flags, Mode::empty())
            .map_err(|error| io_error("open", &path)(error.into()))?;
        let mut entry = self.entry(path, Kind::File, &node.stat);
        entry.size = u64::try_from(node.stat.st_size).unwrap_or(0);
        entry.xattrs =
            attributes::read(&file).map_err(io_error("read the attributes of", &entry.path))?;
        self.report.content_bytes += entry.size;
        self.archive
            .append(&entry, &mut File::from(file))
            .map_err(DiffError::Write)
    }

    /// Writes a hard link if this file was written under another name before.
    fn append_link(&mut self, path: &[u8], stat: &Stat) -> Result<bool, DiffError> {
        if stat.st_nlink < 2 {
            return Ok(false);
        }
        let key = (stat.st_dev, stat.st_ino);
        let Some(first) = self.links.get(&key).cloned() else {
            self.links.insert(key, path.to_vec());
            return Ok(false);
        };
        let mut entry = self.entry(path.to_vec(), Kind::HardLink, stat);
        entry.link = first;
        self.append(&entry)?;
        Ok(true)
    }

    fn append(&mut self, entry: &Entry) -> Result<(), DiffError> {
        self.archive
            .append(entry, &mut io::empty())
            .map_err(DiffError::Write)
    }

    fn entry(&self, path: Vec<u8>, kind: Kind, stat: &Stat) -> Entry {
        let metadata = root::Metadata::from(*stat);
        let mut entry = Entry::new(path, kind);
        entry.mode = metadata.mode;
        entry.uid = metadata.uid;
        entry.gid = metadata.gid;
        entry.mtime = match self.options.mtime_clamp {
            Some(clamp) => metadata.mtime.min(clamp),
            None => metadata.mtime,
        };
        entry
    }
}

/// Returns an empty file that says something about the layers below: always the same, for it has no metadata of its own.
fn marker(path: Vec<u8>) -> Entry {
    let mut entry = Entry::new(path, Kind::File);
    entry.mode = 0o600;
    entry
}

fn io_error(attempt: &'static str, path: &[u8]) -> impl FnOnce(io::Error) -> DiffError {
    let path = tree::shown(path);
    move |source| DiffError::Io {
        attempt,
        path,
        source,
    }
}
