//! Which files the sources of COPY and ADD mean, the same for copying and for cache keys.
//!
//! A source is a path or a pattern from the root of where it is taken from. Links in the path are followed inside that root, also
//! a link at its end; links further in are links. What the ignore file leaves out does not exist, by whatever path or link it
//! is named.

use std::collections::HashSet;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use dockerfile::glob::{Pattern, PatternError};
use rustix::fs::{FileType, OFlags, Stat};
use tokio_util::sync::CancellationToken;

use super::root::{Root, RootError, is_absent};
use super::tree::{self, join};

/// Most files that one COPY or ADD may mean.
pub const FILES_MAX: u64 = 10_000_000;

/// What an ignore file says about a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ignored {
    /// It is part of the context.
    Keep,
    /// It is not, and neither is anything below it.
    Skip,
    /// The directory is not, but something below it may be.
    Descend,
}

/// Asks an ignore file: path from the root of the context with `/`, and whether it is a directory.
pub type Ignore<'a> = dyn Fn(&Path, bool) -> Ignored + Sync + 'a;

/// Tells why sources could not be found or walked.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// The pattern is malformed.
    #[error("source {0:?} is a malformed pattern")]
    Pattern(String, #[source] PatternError),
    /// Nothing of that name.
    #[error("{0:?} does not exist")]
    NotFound(String),
    /// It is there, but the ignore file leaves it out.
    #[error("{0:?} is excluded by the ignore file")]
    Ignored(String),
    /// A link to something that is not there.
    #[error("{0:?} is a symbolic link to something that is not in this tree")]
    Dangling(String),
    /// Access failed.
    #[error("failed to look at the source {0:?}")]
    Root(String, #[source] RootError),
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
    /// More than [`FILES_MAX`].
    #[error("sources hold more than {FILES_MAX} files")]
    TooMany,
    /// The caller wanted no more of it.
    #[error("walking the sources was cancelled")]
    Cancelled,
}

/// One thing that a source means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Selected {
    /// Where it is, links followed.
    pub(super) path: Vec<u8>,
    /// The name it goes by when it is copied into a directory.
    pub(super) name: Vec<u8>,
    pub(super) is_dir: bool,
}

/// Something met on a walk.
pub(super) struct Visit<'a> {
    /// The directory it is in, and its name there.
    pub(super) dir: &'a OwnedFd,
    pub(super) name: &'a CString,
    /// Path from where the walk began.
    pub(super) relative: &'a [u8],
    pub(super) stat: &'a Stat,
}

/// Returns what `source` means in `root`, sorted by path. A pattern that matches nothing means nothing.
pub(super) fn select(
    root: &Root,
    source: &str,
    ignore: Option<&Ignore<'_>>,
) -> Result<Vec<Selected>, SelectError> {
    let pattern = Pattern::parse(source.trim_start_matches('/'))
        .map_err(|error| SelectError::Pattern(source.to_owned(), error))?;
    if let Some(literal) = pattern.literal() {
        return Ok(vec![select_one(root, literal.as_bytes(), ignore)?]);
    }
    let mut found = Vec::new();
    let mut pending = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        let names = match tree::open_in(root.as_fd(), &path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(dir) => tree::names(&dir).map_err(io_error("list", &path))?,
            Err(error) if is_absent(&error) => continue,
            Err(error) => return Err(io_error("open", &path)(error)),
        };
        for name in names {
            let path = join(&path, name.to_bytes());
            let Ok(text) = std::str::from_utf8(&path) else {
                continue;
            };
            if pattern.matches(text) {
                match select_one(root, &path, ignore) {
                    Ok(selected) => found.push(selected),
                    Err(SelectError::Ignored(_)) => {}
                    Err(error) => return Err(error),
                }
            } else if pattern.matches_below(text) {
                pending.push(path);
            }
        }
    }
    found.sort_by(|a, b| (&a.path, &a.name).cmp(&(&b.path, &b.name)));
    Ok(found)
}

fn select_one(
    root: &Root,
    path: &[u8],
    ignore: Option<&Ignore<'_>>,
) -> Result<Selected, SelectError> {
    let as_path = |bytes: &[u8]| Path::new(OsStr::from_bytes(bytes)).to_owned();
    let in_root = |error| SelectError::Root(tree::shown(path), error);
    let resolved = root.resolve(&as_path(path)).map_err(in_root)?;
    let Some(metadata) = root.lstat(&resolved).map_err(in_root)? else {
        let is_link = root.lstat(&as_path(path)).map_err(in_root)?.is_some();
        let path = tree::shown(path);
        return Err(if is_link {
            SelectError::Dangling(path)
        } else {
            SelectError::NotFound(path)
        });
    };
    let is_dir = metadata.kind == FileType::Directory;
    if is_ignored(&resolved, metadata.kind, ignore) {
        return Err(SelectError::Ignored(tree::shown(path)));
    }
    let names = tree::components(path).unwrap_or_default();
    let name = match names.last() {
        Some(name) => (*name).to_vec(),
        None => resolved.file_name().unwrap_or_default().as_bytes().to_vec(),
    };
    Ok(Selected {
        path: resolved.into_os_string().as_bytes().to_vec(),
        name,
        is_dir,
    })
}

/// Tells whether a path, or a directory above it, is left out.
fn is_ignored(path: &Path, kind: FileType, ignore: Option<&Ignore<'_>>) -> bool {
    let is_dir = kind == FileType::Directory;
    let Some(ignore) = ignore else {
        return false;
    };
    let above = path.ancestors().skip(1);
    let above = above.filter(|path| !path.as_os_str().is_empty());
    let is_left_out = above
        .into_iter()
        .any(|path| ignore(path, true) == Ignored::Skip);
    if path.as_os_str().is_empty() {
        return false;
    }
    is_left_out
        || match ignore(path, is_dir) {
            Ignored::Keep => false,
            Ignored::Skip => true,
            Ignored::Descend => !is_dir,
        }
}

/// A directory still to be walked.
struct Pending {
    relative: Vec<u8>,
    /// Directories above, and itself, that are part of it only if something below is.
    left_out: Vec<Vec<u8>>,
}

/// Calls `each` with everything below the directory `start`: the contents of a directory that are not directories by name, then its
/// directories by name, each before what it holds. `start` itself is not visited.
pub(super) fn walk<E: From<SelectError>>(
    root: &Root,
    start: &[u8],
    ignore: Option<&Ignore<'_>>,
    cancel: &CancellationToken,
    each: &mut dyn FnMut(&Visit<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut made = HashSet::new();
    let mut n_files = 0;
    let mut pending = vec![Pending {
        relative: Vec::new(),
        left_out: Vec::new(),
    }];
    let top = tree::open_below(root.as_fd(), start, tree::directory_flags())
        .map_err(io_error("open", start))?;
    while let Some(Pending { relative, left_out }) = pending.pop() {
        let path = join(start, &relative);
        let dir = tree::open_below(&top, &relative, tree::directory_flags())
            .map_err(io_error("open", &path))?;
        let nodes = tree::list(&dir).map_err(io_error("list", &path))?;
        let mut dirs = Vec::new();
        for is_dir in [false, true] {
            for node in nodes.iter().filter(|node| node.is_dir() == is_dir) {
                if cancel.is_cancelled() {
                    return Err(SelectError::Cancelled.into());
                }
                n_files += 1;
                if n_files > FILES_MAX {
                    return Err(SelectError::TooMany.into());
                }
                let relative = join(&relative, node.name.to_bytes());
                let verdict = match ignore {
                    Some(ignore) => {
                        let path = join(start, &relative);
                        ignore(Path::new(OsStr::from_bytes(&path)), is_dir)
                    }
                    None => Ignored::Keep,
                };
                let mut left_out = left_out.clone();
                match verdict {
                    Ignored::Skip => continue,
                    Ignored::Descend if !is_dir => continue,
                    Ignored::Descend => left_out.push(relative.clone()),
                    Ignored::Keep => {
                        for above in left_out.drain(..) {
                            if made.insert(above.clone()) {
                                visit_directory(&top, &above, each)?;
                            }
                        }
                        each(&Visit {
                            dir: &dir,
                            name: &node.name,
                            relative: &relative,
                            stat: &node.stat,
                        })?;
                    }
                }
                if is_dir {
                    dirs.push(Pending { relative, left_out });
                }
            }
        }
        pending.extend(dirs.into_iter().rev());
    }
    Ok(())
}

fn visit_directory<E: From<SelectError>>(
    top: &OwnedFd,
    relative: &[u8],
    each: &mut dyn FnMut(&Visit<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let (parent, name) = split(relative);
    let failed = |error| SelectError::from_io("look at", relative, error);
    let dir = tree::open_below(top, parent, tree::directory_flags()).map_err(failed)?;
    let name = tree::c_name(name).map_err(failed)?;
    let stat = tree::look(dir.as_fd(), &name).map_err(failed)?;
    let stat = stat.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    each(&Visit {
        dir: &dir,
        name: &name,
        relative,
        stat: &stat,
    })
}

/// Returns what is before and what is behind the last slash.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (
            path.get(..slash).unwrap_or_default(),
            path.get(slash + 1..).unwrap_or_default(),
        ),
        None => (b"", path),
    }
}

impl SelectError {
    pub(super) fn from_io(attempt: &'static str, path: &[u8], source: io::Error) -> Self {
        Self::Io {
            attempt,
            path: tree::shown(path),
            source,
        }
    }
}

fn io_error(attempt: &'static str, path: &[u8]) -> impl FnOnce(io::Error) -> SelectError {
    let path = tree::shown(path);
    move |source| SelectError::Io {
        attempt,
        path,
        source,
    }
}
