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

use dockerfile::chmod::Node;
use dockerfile::glob::{Pattern, PatternError};
use dockerfile::ignore::IgnoreError;
use rustix::fs::{FileType, OFlags, Stat};
use tokio_util::sync::CancellationToken;

use super::filter::{Source, SourcePath};
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
    /// The patterns of `--exclude` or `--parents` could not be applied.
    #[error("failed to choose what to copy")]
    Filter(#[source] IgnoreError),
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
    pub(super) role: Role,
}

/// Why something is visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It is part of what is copied.
    Part,
    /// The directory only leads to such a part.
    Way,
}

/// Returns what `source` means in `root`, sorted by path. A pattern that matches nothing means nothing.
pub(super) fn select(
    root: &Root,
    source: &Source,
    ignore: Option<&Ignore<'_>>,
) -> Result<Vec<Selected>, SelectError> {
    if let Some((path, below)) = &source.required {
        require(root, &literal(path)?, &literal(below)?, ignore)?;
    }
    let text = match &source.path {
        SourcePath::Literal(name) => return Ok(vec![select_one(root, name.as_bytes(), ignore)?]),
        SourcePath::Pattern(text) => text.trim_start_matches('/'),
    };
    let parse = |text: &str| {
        Pattern::parse(text).map_err(|error| SelectError::Pattern(text.to_owned(), error))
    };
    if !parse(text)?.has_wildcards() {
        return Ok(vec![select_one(root, literal(text)?.as_bytes(), ignore)?]);
    }
    // Links are followed up to the first wildcard, and not behind it.
    let components: Vec<&str> = text.split('/').collect();
    let is_fixed = |part: &&&str| Pattern::parse(part).is_ok_and(|part| !part.has_wildcards());
    let n_fixed = components.iter().take_while(is_fixed).count();
    let (fixed, rest) = components.split_at_checked(n_fixed).unwrap_or_default();
    let fixed = literal(&fixed.join("/"))?;
    let pattern = parse(&rest.join("/"))?;
    let start = root.resolve(Path::new(&fixed));
    let start = start.map_err(|error| SelectError::Root(fixed.clone(), error))?;
    let mut found = Vec::new();
    for path in matches(root, start.as_os_str().as_bytes(), &pattern)? {
        match select_one(root, &path, ignore) {
            Ok(selected) => found.push(selected),
            Err(SelectError::Ignored(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Looks whether `below` is there, from the directory that `path` leads to on without links, for such are not followed on a walk.
fn require(
    root: &Root,
    path: &str,
    below: &str,
    ignore: Option<&Ignore<'_>>,
) -> Result<(), SelectError> {
    let start = root.resolve(Path::new(path));
    let start = start.map_err(|error| SelectError::Root(path.to_owned(), error))?;
    let full = join(start.as_os_str().as_bytes(), below.as_bytes());
    let missing = || SelectError::NotFound(tree::shown(&full));
    match tree::open_below(root.as_fd(), &full, OFlags::PATH | OFlags::NOFOLLOW) {
        Ok(found) => {
            let seen = rustix::fs::fstat(&found).map_err(io::Error::from);
            let kind = tree::kind(&seen.map_err(io_error("look at", &full))?);
            if is_ignored(Path::new(OsStr::from_bytes(&full)), kind, ignore) {
                return Err(SelectError::Ignored(tree::shown(&full)));
            }
            Ok(())
        }
        Err(error) if is_absent(&error) || tree::is_link(&error) => Err(missing()),
        Err(error) => Err(io_error("open", &full)(error)),
    }
}

fn literal(text: &str) -> Result<String, SelectError> {
    let pattern = Pattern::parse(text);
    let pattern = pattern.map_err(|error| SelectError::Pattern(text.to_owned(), error))?;
    Ok(pattern.literal().unwrap_or_default())
}

/// Returns the paths below `start` that `pattern` matches, in the order in which a walk by names meets them.
fn matches(root: &Root, start: &[u8], pattern: &Pattern) -> Result<Vec<Vec<u8>>, SelectError> {
    let mut found = Vec::new();
    let mut pending = vec![Vec::new()];
    while let Some(below) = pending.pop() {
        let here = join(start, &below);
        let names = match tree::open_below(root.as_fd(), &here, tree::directory_flags()) {
            Ok(dir) => tree::names(&dir).map_err(io_error("list", &here))?,
            // Not a directory, or a link.
            Err(error) if is_absent(&error) || tree::is_link(&error) => continue,
            Err(error) => return Err(io_error("open", &here)(error)),
        };
        for name in names {
            let below = join(&below, name.to_bytes());
            let text = characters(&below);
            if pattern.matches(&text) {
                found.push(below);
            } else if pattern.matches_below(&text) {
                pending.push(below);
            }
        }
        if found.len() as u64 > FILES_MAX {
            return Err(SelectError::TooMany);
        }
    }
    found.sort_by(|a, b| a.split(|b| *b == b'/').cmp(b.split(|b| *b == b'/')));
    Ok(found.iter().map(|below| join(start, below)).collect())
}

/// Returns a path as patterns see it: each byte that is part of no character is one that nobody writes.
pub(super) fn characters(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    text
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
    left_out: Vec<(Vec<u8>, Role)>,
}

/// Calls `each` with everything below the directory `start`: the contents of a directory that are not directories by name, then its
/// directories by name, each before what it holds. `start` itself is not visited.
pub(super) fn walk<E: From<SelectError>>(
    root: &Root,
    start: &[u8],
    (source, ignore): (&Source, Option<&Ignore<'_>>),
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
                let mut left_out = left_out.clone();
                match verdict(start, &relative, node, (source, ignore)) {
                    Verdict::Skip => continue,
                    Verdict::Later(role) => left_out.push((relative.clone(), role)),
                    Verdict::Visit => {
                        for (above, role) in left_out.drain(..) {
                            if made.insert(above.clone()) {
                                visit_directory(&top, &above, role, each)?;
                            }
                        }
                        each(&Visit {
                            dir: &dir,
                            name: &node.name,
                            relative: &relative,
                            stat: &node.stat,
                            role: Role::Part,
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
    match source.broken() {
        Some(error) => Err(SelectError::Filter(error).into()),
        None => Ok(()),
    }
}

/// What a walk does with something.
enum Verdict {
    Visit,
    Skip,
    /// Only when something below is visited.
    Later(Role),
}

fn verdict(
    start: &[u8],
    relative: &[u8],
    node: &tree::Node,
    (source, ignore): (&Source, Option<&Ignore<'_>>),
) -> Verdict {
    let is_dir = node.is_dir();
    let by_context = match ignore {
        Some(ignore) => {
            let path = join(start, relative);
            ignore(Path::new(OsStr::from_bytes(&path)), is_dir)
        }
        None => Ignored::Keep,
    };
    let kind = if is_dir { Node::Directory } else { Node::Other };
    let by_filter = match &source.filter {
        Some(filter) => filter.verdict(relative, kind),
        None => Ignored::Keep,
    };
    match (by_context, by_filter) {
        (Ignored::Skip, _) | (_, Ignored::Skip) => Verdict::Skip,
        (Ignored::Keep, Ignored::Keep) => Verdict::Visit,
        _ if !is_dir => Verdict::Skip,
        (_, Ignored::Descend) => Verdict::Later(Role::Way),
        (Ignored::Descend, Ignored::Keep) => Verdict::Later(Role::Part),
    }
}

fn visit_directory<E: From<SelectError>>(
    top: &OwnedFd,
    relative: &[u8],
    role: Role,
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
        role,
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
