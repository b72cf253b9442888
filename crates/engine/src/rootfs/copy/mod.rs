//! COPY and ADD: files from one root into another, as docker does it.
//!
//! * A directory gives what it holds, not itself; a file goes into the destination if that is a directory, and becomes it otherwise.
//! * The destination, and links on the way to it, are resolved inside the target root. Directories that are missing are made, with the
//!   mode that is asked for (0755 without one) and of the given owner or root; the source's say nothing about them.
//! * Below the destination nothing is followed: a directory that meets a link or a file is an error, a file replaces a file or a
//!   link. A destination directory keeps its mode and owner; those below take the source's.
//! * Links are copied as links, hard links within a source stay hard links, sockets are left out, devices are an error, and so are names
//!   that a layer cannot hold.
//! * [`Archives::Unpack`] is ADD: tar archives, in any packing that we know, are unpacked into the destination.
//! * Sources are copied one after the other, each as if it were alone.

mod file;

#[cfg(test)]
mod flag_tests;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use dockerfile::chmod::{Chmod, Node};
use oci::layer::{self, decompress_any};
use rustix::fs::{FileType, Gid, Mode, Stat, Uid};
use tokio_util::sync::CancellationToken;

use super::filter::Source;
use super::overlay::times;
use super::root::{Metadata, Root, RootError};
use super::select::{self, Ignore, Role, SelectError, Selected, Visit};
use super::tree::{self, join};
use super::unpack::{self, ExtractOptions, UnpackError, UnpackLimits};

/// Mode of directories that are made on the way.
const DIRECTORY_MODE: u32 = 0o755;
const PERMISSIONS: u32 = 0o777;

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
    /// They are unpacked (ADD), and what is in them belongs to this user and group instead of its own.
    Unpack(Option<(u32, u32)>),
}

/// How files are copied.
#[derive(Clone, Copy)]
pub struct CopyOptions<'a> {
    /// Whom copies belong to.
    pub owner: Owner,
    /// Permissions of files and directories, instead of the source's. Nothing in archives that are unpacked.
    pub mode: Option<&'a Chmod>,
    /// When copies say they were modified.
    pub mtime: Mtime,
    /// How the destination is meant.
    pub destination: Destination,
    /// What happens to archives.
    pub archives: Archives,
    /// What is left out.
    pub ignore: Option<&'a Ignore<'a>>,
    /// How much an archive may hold, and all that is copied.
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopyReport {
    /// Files, links and directories, those in unpacked archives included.
    pub entries: u64,
    /// Bytes of all files.
    pub content_bytes: u64,
    /// Sockets that were left out.
    pub n_sockets_skipped: u64,
    /// Devices in archives that were left out.
    pub n_devices_skipped: u64,
    /// The first of their paths.
    pub devices_skipped: Vec<String>,
    /// Things that the sources meant; 0 when patterns matched nothing.
    pub n_sources: u64,
}

impl CopyReport {
    /// Adds what was copied besides.
    pub fn add(&mut self, other: Self) {
        self.entries += other.entries;
        self.content_bytes = self.content_bytes.saturating_add(other.content_bytes);
        self.n_sockets_skipped += other.n_sockets_skipped;
        self.n_devices_skipped += other.n_devices_skipped;
        self.devices_skipped.extend(other.devices_skipped);
        self.n_sources += other.n_sources;
    }
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
    /// A name that would be read as a deletion.
    #[error("cannot copy to {path:?}: names that start with .wh. mean deletions in a layer")]
    ReservedName {
        /// The copy.
        path: String,
    },
    /// More bytes than [`CopyOptions::limits`] allow.
    #[error("more than {max_bytes} bytes are to be copied")]
    TooLarge {
        /// The limit.
        max_bytes: u64,
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
    sources: &[Source],
    to: &Root,
    dest: &Path,
    options: &CopyOptions<'_>,
    cancel: &CancellationToken,
) -> Result<CopyReport, CopyError> {
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
    for source in sources {
        for selected in select::select(from, source, options.ignore)? {
            copier.report.n_sources += 1;
            copier.copy_one(source, &selected, dest)?;
            copier.set_times()?;
        }
    }
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
        source: &Source,
        selected: &Selected,
        dest: &Path,
    ) -> Result<(), CopyError> {
        self.links.clear();
        let in_dest = |error| CopyError::Destination(dest.display().to_string(), error);
        if let Archives::Unpack(owner) = self.options.archives
            && !selected.is_dir
            && self.unpack(selected, dest, owner)?
        {
            return Ok(());
        }
        let mode = self.directory_mode();
        match self.options.destination {
            Destination::Directory => self.make_dirs(dest, mode)?,
            Destination::Any => self.make_dirs(dest.parent().unwrap_or(Path::new("")), mode)?,
        }
        let resolved = self.to.resolve(dest).map_err(in_dest)?;
        let found = self.to.lstat(&resolved).map_err(in_dest)?;
        let resolved = resolved.as_os_str().as_bytes().to_vec();
        if selected.is_dir {
            return self.copy_contents(source, selected, &resolved);
        }
        let target = match found {
            Some(found) if found.kind == FileType::Directory => join(&resolved, &selected.name),
            _ => resolved,
        };
        let (parent, _) = select::split(&target);
        self.make_dirs(Path::new(OsStr::from_bytes(parent)), mode)?;
        let (from_parent, name) = select::split(&selected.path);
        let failed = |attempt| select_io_error(attempt, &selected.path);
        let dir = tree::open_below(self.from.as_fd(), from_parent, tree::directory_flags())
            .map_err(failed("open"))?;
        let name = tree::c_name(name).map_err(failed("open"))?;
        let stat = tree::look(&dir, &name).map_err(failed("look at"))?;
        let stat = stat.ok_or_else(|| SelectError::NotFound(tree::shown(&selected.path)))?;
        let visit = Visit {
            dir: &dir,
            name: &name,
            relative: &selected.path,
            stat: &stat,
            role: Role::Part,
        };
        self.visit(&visit, target)
    }

    fn copy_contents(
        &mut self,
        source: &Source,
        selected: &Selected,
        dest: &[u8],
    ) -> Result<(), CopyError> {
        self.make_dirs(Path::new(OsStr::from_bytes(dest)), self.directory_mode())?;
        let dir = tree::open_below(self.from.as_fd(), &selected.path, tree::directory_flags())
            .map_err(select_io_error("open", &selected.path))?;
        let stat = rustix::fs::fstat(&dir)
            .map_err(|error| select_io_error("look at", &selected.path)(error.into()))?;
        // Of the source directory itself only its time passes, to whatever takes its place.
        self.times.push((dest.to_vec(), self.mtime_of(&stat)));
        let (from, ignore, cancel) = (self.from, self.options.ignore, self.cancel);
        let each = &mut |visit: &Visit<'_>| self.visit(visit, join(dest, visit.relative));
        select::walk(from, &selected.path, (source, ignore), cancel, each)
    }

    /// Returns the mode of directories on the way.
    fn directory_mode(&self) -> u32 {
        let mode = self.options.mode.and_then(Chmod::fixed);
        mode.map_or(DIRECTORY_MODE, |mode| mode & PERMISSIONS)
    }

    /// Makes a directory and those above it in the target, as far as they are missing.
    fn make_dirs(&mut self, path: &Path, mode: u32) -> Result<(), CopyError> {
        let owner = match self.options.owner {
            Owner::Fixed(uid, gid) => (uid, gid),
            Owner::FromSource => (0, 0),
        };
        let dirs = self.to.create_dirs(path, mode, owner);
        let dirs = dirs.map_err(|error| {
            let path = tree::shown(path.as_os_str().as_bytes());
            CopyError::Destination(path, error)
        })?;
        if let Some(reserved) = dirs.iter().find(|path| is_reserved(select::split(path).1)) {
            let path = tree::shown(reserved);
            return Err(CopyError::ReservedName { path });
        }
        if let Mtime::Fixed(mtime) = self.options.mtime {
            self.times
                .extend(dirs.into_iter().map(|path| (path, mtime)));
        }
        Ok(())
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
    fn unpack(
        &mut self,
        source: &Selected,
        dest: &Path,
        owner: Option<(u32, u32)>,
    ) -> Result<bool, CopyError> {
        let path = Path::new(OsStr::from_bytes(&source.path));
        let mut file = match self.from.open_regular(path) {
            Ok(file) => file,
            Err(RootError::WrongKind { .. }) => return Ok(false),
            Err(error) => {
                return Err(SelectError::Root(tree::shown(&source.path), error).into());
            }
        };
        let failed = |attempt| copy_io_error(attempt, &source.path);
        if !is_archive(&mut file).map_err(failed("read"))? {
            return Ok(false);
        }
        self.make_dirs(dest, DIRECTORY_MODE)?;
        let dest = self.to.resolve(dest);
        let dest =
            dest.map_err(|error| CopyError::Destination(tree::shown(&source.name), error))?;
        let dest = dest.as_os_str().as_bytes();
        let flags = tree::directory_flags();
        let dir =
            tree::open_below(self.to.as_fd(), dest, flags).map_err(copy_io_error("open", dest))?;
        let archive = decompress_any(file, layer::Limits::default()).map_err(failed("read"))?;
        let options = ExtractOptions {
            owner,
            ..ExtractOptions::default()
        };
        let report = unpack::extract(archive, dir, options, &self.options.limits, self.cancel);
        let report = report.map_err(|error| CopyError::Unpack {
            path: tree::shown(&source.path),
            source: error,
        })?;
        self.report.entries += report.entries;
        self.report.n_devices_skipped += report.n_devices_skipped;
        self.report.devices_skipped.extend(report.devices_skipped);
        self.count(report.content_bytes)?;
        Ok(true)
    }

    /// Counts what was copied.
    fn count(&mut self, n_bytes: u64) -> Result<(), CopyError> {
        self.report.content_bytes = self.report.content_bytes.saturating_add(n_bytes);
        let max_bytes = self.options.limits.content_bytes;
        if self.report.content_bytes > max_bytes {
            return Err(CopyError::TooLarge { max_bytes });
        }
        Ok(())
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
        let mode = stat.st_mode & 0o7777;
        let node = match tree::kind(stat) {
            FileType::Directory => Node::Directory,
            _ => Node::Other,
        };
        self.options
            .mode
            .map_or(mode, |chmod| chmod.apply(mode, node))
    }
}

/// Tells whether this is a tar archive, in any packing. The file is rewound.
fn is_archive(file: &mut std::fs::File) -> io::Result<bool> {
    let mut block = [0; oci::tar::BLOCK_BYTES];
    let n = match decompress_any(&*file, layer::Limits::default()) {
        // What cannot be unpacked is no archive, and is copied.
        Ok(mut unpacked) => read_start(&mut unpacked, &mut block).unwrap_or(0),
        Err(_) => 0,
    };
    file.rewind()?;
    Ok(oci::tar::is_archive(block.get(..n).unwrap_or_default()))
}

/// Tells whether a layer would take a name for a deletion.
fn is_reserved(name: &[u8]) -> bool {
    name.starts_with(b".wh.")
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
