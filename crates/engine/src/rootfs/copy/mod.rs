//! COPY and ADD: files from one root into another, as docker does it.
//!
//! * A directory gives what it holds, not itself; a file goes into the destination if that is a directory, and becomes it otherwise.
//! * The destination, and links on the way to it, are resolved inside the target root. Directories that are missing are made,
//!   0755, of the given owner or root.
//! * Below the destination nothing is followed: a directory that meets a link or a file is an error, a file replaces a file or a
//!   link. A destination directory that was there keeps its mode and owner; those below take the source's.
//! * Links are copied as links, hard links among the sources stay hard links, sockets are left out, devices are an error.
//! * [`Archives::Unpack`] is ADD: tar archives, plain or in gzip or zstd, are unpacked into the destination.

mod file;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use oci::layer::{self, Packing, decompress};
use rustix::fs::{FileType, Gid, Mode, Stat, Uid};
use tokio_util::sync::CancellationToken;

use super::overlay::times;
use super::root::{Metadata, Root, RootError};
use super::select::{self, Ignore, SelectError, Selected, Visit};
use super::tree::{self, join};
use super::unpack::{self, ExtractOptions, UnpackError, UnpackLimits};

/// Whom copies belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Whoever owns the source: `COPY --from` without `--chown`.
    FromSource,
    /// User and group: `--chown`, and 0:0 for what comes from the build context.
    Fixed(u32, u32),
}

/// When copies say they were modified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mtime {
    /// When the source was.
    FromSource,
    /// At this time, in seconds since 1970.
    Fixed(i64),
}

/// How the destination is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// A directory, to be made if it is not there: written with a slash at its end.
    Directory,
    /// A directory if it is one, or if a directory is copied; the name of the copy otherwise.
    Any,
}

/// What happens to archives among the sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Archives {
    /// They are copied as they are (COPY).
    Copy,
    /// They are unpacked (ADD).
    Unpack,
}

/// How files are copied.
#[derive(Clone, Copy)]
pub struct CopyOptions<'a> {
    /// Whom copies belong to. Archives that are unpacked keep their own owners under [`Owner::FromSource`] and under 0:0.
    pub owner: Owner,
    /// Permissions of files and directories, instead of the source's.
    pub mode: Option<u32>,
    /// When copies say they were modified.
    pub mtime: Mtime,
    /// How the destination is meant.
    pub destination: Destination,
    /// What happens to archives.
    pub archives: Archives,
    /// What is left out.
    pub ignore: Option<&'a Ignore<'a>>,
    /// How much an archive may hold.
    pub limits: UnpackLimits,
}

impl std::fmt::Debug for CopyOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CopyOptions")
            .field("owner", &self.owner)
            .field("mode", &self.mode)
            .field("mtime", &self.mtime)
            .field("destination", &self.destination)
            .field("archives", &self.archives)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// What was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyReport {
    /// Files, links and directories, those in unpacked archives included.
    pub entries: u64,
    /// Bytes of all files.
    pub content_bytes: u64,
    /// Sockets that were left out.
    pub n_sockets_skipped: u64,
    /// Things that the sources meant; 0 when patterns matched nothing.
    pub n_sources: u64,
}

/// Tells why files could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The sources could not be found or walked.
    #[error("failed to find the sources")]
    Select(#[from] SelectError),
    /// The destination could not be prepared.
    #[error("failed to prepare the destination {0:?}")]
    Destination(String, #[source] RootError),
    /// A directory, or several sources, to be copied over something that is not a directory.
    #[error("cannot copy to {path:?}: it is not a directory")]
    NotADirectory {
        /// The destination.
        path: String,
    },
    /// A file to be copied over a directory.
    #[error("cannot replace the directory {path:?} with a file")]
    IsADirectory {
        /// The destination.
        path: String,
    },
    /// A device among the sources.
    #[error("cannot copy the special file {path:?}")]
    Special {
        /// The source.
        path: String,
    },
    /// An archive in a packing that we do not know.
    #[error(
        "cannot unpack {path:?}: {packing} is not supported yet; use COPY, or repack it with gzip or zstd"
    )]
    Packing {
        /// The source.
        path: String,
        /// Its packing.
        packing: &'static str,
    },
    /// An archive could not be unpacked.
    #[error("failed to unpack {path:?}")]
    Unpack {
        /// The source.
        path: String,
        /// Why.
        #[source]
        source: UnpackError,
    },
    /// An owner that the user namespace does not have.
    #[error("{path:?} cannot belong to {uid}:{gid}, which is outside of the ids that builds have")]
    Owner {
        /// The copy.
        path: String,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
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
}

/// Copies what `sources` mean in `from` to `dest` in `to`.
///
/// # Errors
/// See [`CopyError`]; some may have been copied then.
pub fn copy(
    from: &Root,
    sources: &[String],
    to: &Root,
    dest: &Path,
    options: &CopyOptions<'_>,
    cancel: &CancellationToken,
) -> Result<CopyReport, CopyError> {
    let mut selected = Vec::new();
    for source in sources {
        selected.extend(select::select(from, source, options.ignore)?);
    }
    let mut copier = Copier {
        from,
        to,
        options,
        cancel,
        links: HashMap::new(),
        times: Vec::new(),
        last_dir: None,
        buffer: Vec::new(),
        report: CopyReport::default(),
    };
    copier.report.n_sources = selected.len() as u64;
    let destination = if selected.len() > 1 {
        Destination::Directory
    } else {
        options.destination
    };
    for source in &selected {
        copier.copy_one(source, dest, destination)?;
    }
    copier.set_times()?;
    Ok(copier.report)
}

/// Sets owner, mode and time of an open file or directory.
pub(super) fn put_metadata(file: &OwnedFd, metadata: &Metadata) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid));
    rustix::fs::fchown(file, Some(uid), Some(gid))?;
    rustix::fs::fchmod(file, Mode::from_raw_mode(metadata.mode))?;
    rustix::fs::futimens(file, &times(metadata.mtime))?;
    Ok(())
}

struct Copier<'a> {
    from: &'a Root,
    to: &'a Root,
    options: &'a CopyOptions<'a>,
    cancel: &'a CancellationToken,
    /// First copy of every file with several names.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// Times of directories, set at the end.
    times: Vec<(Vec<u8>, i64)>,
    /// The last directory that something was copied into.
    last_dir: Option<(Vec<u8>, OwnedFd)>,
    buffer: Vec<u8>,
    report: CopyReport,
}

impl Copier<'_> {
    fn copy_one(
        &mut self,
        source: &Selected,
        dest: &Path,
        destination: Destination,
    ) -> Result<(), CopyError> {
        let in_dest = |error| CopyError::Destination(dest.display().to_string(), error);
        let resolved = self.to.resolve(dest).map_err(in_dest)?;
        let found = self.to.lstat(&resolved).map_err(in_dest)?;
        let resolved = resolved.as_os_str().as_bytes().to_vec();
        let is_dir = found.is_some_and(|found| found.kind == FileType::Directory);
        if source.is_dir {
            return self.copy_contents(source, &resolved);
        }
        if self.options.archives == Archives::Unpack && self.unpack(source, &resolved)? {
            return Ok(());
        }
        let target = if is_dir || destination == Destination::Directory {
            join(&resolved, &source.name)
        } else {
            resolved
        };
        let (parent, _) = select::split(&target);
        self.make_dirs(parent)?;
        let (from_parent, name) = select::split(&source.path);
        let failed = |attempt| select_io_error(attempt, &source.path);
        let dir = tree::open_below(self.from.as_fd(), from_parent, tree::directory_flags())
            .map_err(failed("open"))?;
        let name = tree::c_name(name).map_err(failed("open"))?;
        let stat = tree::look(&dir, &name).map_err(failed("look at"))?;
        let stat = stat.ok_or_else(|| SelectError::NotFound(tree::shown(&source.path)))?;
        let visit = Visit {
            dir: &dir,
            name: &name,
            relative: &source.path,
            stat: &stat,
        };
        self.visit(&visit, target)
    }

    fn copy_contents(&mut self, source: &Selected, dest: &[u8]) -> Result<(), CopyError> {
        let is_new = self.make_dirs(dest)?;
        if is_new {
            let dir = tree::open_below(self.from.as_fd(), &source.path, tree::directory_flags())
                .map_err(select_io_error("open", &source.path))?;
            let stat = rustix::fs::fstat(&dir)
                .map_err(|error| select_io_error("look at", &source.path)(error.into()))?;
            self.set_directory(&dir, &stat, dest.to_vec())?;
        }
        let (from, options, cancel) = (self.from, self.options, self.cancel);
        let each = &mut |visit: &Visit<'_>| self.visit(visit, join(dest, visit.relative));
        select::walk(from, &source.path, options.ignore, cancel, each)
    }

    /// Makes a directory and those above it in the target. Returns whether the last one was made.
    fn make_dirs(&mut self, path: &[u8]) -> Result<bool, CopyError> {
        let owner = match self.options.owner {
            Owner::Fixed(uid, gid) => (uid, gid),
            Owner::FromSource => (0, 0),
        };
        let as_path = Path::new(OsStr::from_bytes(path));
        let made = self.to.create_dirs(as_path, 0o755, owner);
        let made = made.map_err(|error| CopyError::Destination(tree::shown(path), error))?;
        let is_new = made.last().is_some_and(|last| last == path);
        if let Mtime::Fixed(mtime) = self.options.mtime {
            self.times
                .extend(made.into_iter().map(|path| (path, mtime)));
        }
        Ok(is_new)
    }

    fn visit(&mut self, visit: &Visit<'_>, target: Vec<u8>) -> Result<(), CopyError> {
        if self.cancel.is_cancelled() {
            return Err(SelectError::Cancelled.into());
        }
        match tree::kind(visit.stat) {
            FileType::Socket => {
                self.report.n_sockets_skipped += 1;
                return Ok(());
            }
            FileType::Directory => self.directory(visit, target)?,
            FileType::RegularFile => self.file(visit, &target)?,
            FileType::Symlink | FileType::Fifo => self.link_or_pipe(visit, &target)?,
            // Meant for overlayfs, and not there for anybody else.
            _ if tree::is_whiteout(visit.stat) => return Ok(()),
            _ => {
                return Err(CopyError::Special {
                    path: tree::shown(visit.relative),
                });
            }
        }
        self.report.entries += 1;
        Ok(())
    }

    /// Unpacks `source` into `dest` if it is an archive; false if it is not.
    fn unpack(&mut self, source: &Selected, dest: &[u8]) -> Result<bool, CopyError> {
        let path = Path::new(OsStr::from_bytes(&source.path));
        let file = match self.from.open_regular(path) {
            Ok(file) => file,
            Err(RootError::WrongKind { .. }) => return Ok(false),
            Err(error) => {
                return Err(SelectError::Root(tree::shown(&source.path), error).into());
            }
        };
        let failed = |attempt| copy_io_error(attempt, &source.path);
        let mut file = file;
        match packing_of_archive(&mut file).map_err(failed("read"))? {
            None => return Ok(false),
            Some(Packing::Bzip2) => return Err(unsupported(source, "bzip2")),
            Some(Packing::Xz) => return Err(unsupported(source, "xz")),
            Some(_) => {}
        }
        self.make_dirs(dest)?;
        let flags = tree::directory_flags();
        let dir =
            tree::open_below(self.to.as_fd(), dest, flags).map_err(copy_io_error("open", dest))?;
        let archive = decompress(file, layer::Limits::default()).map_err(failed("read"))?;
        let options = ExtractOptions {
            owner: match self.options.owner {
                Owner::FromSource | Owner::Fixed(0, 0) => None,
                Owner::Fixed(uid, gid) => Some((uid, gid)),
            },
            mode: self.options.mode,
        };
        let report = unpack::extract(archive, dir, options, &self.options.limits, self.cancel);
        let report = report.map_err(|error| CopyError::Unpack {
            path: tree::shown(&source.path),
            source: error,
        })?;
        self.report.entries += report.entries;
        self.report.content_bytes += report.content_bytes;
        Ok(true)
    }

    fn set_times(&mut self) -> Result<(), CopyError> {
        while let Some((path, mtime)) = self.times.pop() {
            let dir = tree::open_below(self.to.as_fd(), &path, tree::directory_flags())
                .map_err(copy_io_error("open", &path))?;
            rustix::fs::futimens(&dir, &times(mtime))
                .map_err(|error| copy_io_error("set the time of", &path)(error.into()))?;
        }
        Ok(())
    }

    fn mtime_of(&self, stat: &Stat) -> i64 {
        match self.options.mtime {
            Mtime::FromSource => Metadata::from(*stat).mtime,
            Mtime::Fixed(mtime) => mtime,
        }
    }

    fn owner_of(&self, stat: &Stat) -> (u32, u32) {
        match self.options.owner {
            Owner::FromSource => (stat.st_uid, stat.st_gid),
            Owner::Fixed(uid, gid) => (uid, gid),
        }
    }

    fn mode_of(&self, stat: &Stat) -> u32 {
        self.options.mode.unwrap_or(stat.st_mode & 0o7777)
    }
}

/// Returns how an archive is packed; `None` for something that is no archive. The file is rewound.
fn packing_of_archive(file: &mut std::fs::File) -> io::Result<Option<Packing>> {
    let mut start = [0; 8];
    let n = read_start(file, &mut start)?;
    let packing = Packing::of_magic(start.get(..n).unwrap_or_default());
    if matches!(packing, Packing::Bzip2 | Packing::Xz) {
        return Ok(Some(packing));
    }
    let mut block = [0; oci::tar::BLOCK_BYTES];
    file.rewind()?;
    let n = match decompress(&*file, layer::Limits::default()) {
        Ok(mut unpacked) => read_start(&mut unpacked, &mut block).unwrap_or(0),
        Err(_) => 0,
    };
    file.rewind()?;
    let is_archive = oci::tar::is_archive(block.get(..n).unwrap_or_default());
    Ok(is_archive.then_some(packing))
}

fn read_start(from: &mut impl Read, start: &mut [u8]) -> io::Result<usize> {
    let mut n_filled = 0;
    while let Some(rest) = start.get_mut(n_filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(n) => n_filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(n_filled)
}

fn unsupported(source: &Selected, packing: &'static str) -> CopyError {
    CopyError::Packing {
        path: tree::shown(&source.path),
        packing,
    }
}

fn select_io_error(attempt: &'static str, path: &[u8]) -> impl FnOnce(io::Error) -> CopyError {
    let path = path.to_vec();
    move |source| SelectError::from_io(attempt, &path, source).into()
}

fn copy_io_error(attempt: &'static str, path: &[u8]) -> impl FnOnce(io::Error) -> CopyError {
    let path = tree::shown(path);
    move |source| CopyError::Io {
        attempt,
        path,
        source,
    }
}
