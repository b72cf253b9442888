//! What of a source is copied: `--parents` and `--exclude`, by paths from that source.
//!
//! A source that is a file, or that a pattern matched, is copied whatever the filter says of its name: only what is below it is looked
//! at, as in `BuildKit`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

use dockerfile::chmod::Node;
use dockerfile::ignore::{IgnoreError, IgnoreFile};

use super::select::Ignored;

/// Something to be copied, before it is looked for.
#[derive(Debug)]
pub struct Source {
    pub(super) path: SourcePath,
    /// What has to be there, as a path and a path below it.
    pub(super) required: Option<(String, String)>,
    pub(super) filter: Option<Filter>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum SourcePath {
    /// See [`dockerfile::glob`].
    Pattern(String),
    /// This name, whatever is in it.
    Literal(String),
}

impl Source {
    /// Returns what `path`, a path or pattern, means. With `below`, only what that pattern of an ignore file matches is part of it. What
    /// `exclude` matches is not.
    ///
    /// # Errors
    /// When a pattern is none.
    pub fn new(path: &str, below: Option<&str>, exclude: &[String]) -> Result<Self, IgnoreError> {
        let has_wildcards = |text: &str| {
            dockerfile::glob::Pattern::parse(text).is_ok_and(|pattern| pattern.has_wildcards())
        };
        let required = below.filter(|below| !has_wildcards(path) && !has_wildcards(below));
        let required = required.map(|below| (path.to_owned(), below.to_owned()));
        Ok(Self {
            path: SourcePath::Pattern(path.to_owned()),
            required,
            filter: Filter::new(below, exclude)?,
        })
    }

    /// Returns the file or directory of exactly this name.
    ///
    /// # Errors
    /// When a pattern of `exclude` is none.
    pub fn literal(name: &str, exclude: &[String]) -> Result<Self, IgnoreError> {
        Ok(Self {
            path: SourcePath::Literal(name.to_owned()),
            required: None,
            filter: Filter::new(None, exclude)?,
        })
    }

    /// Tells why the filter could not be applied, once it could not.
    pub(super) fn broken(&self) -> Option<IgnoreError> {
        self.filter
            .as_ref()
            .and_then(|filter| filter.broken.get().cloned())
    }
}

/// Patterns for what is below a source.
#[derive(Debug)]
pub(super) struct Filter {
    include: Option<IgnoreFile>,
    exclude: Option<IgnoreFile>,
    broken: OnceLock<IgnoreError>,
}

impl Filter {
    fn new(below: Option<&str>, exclude: &[String]) -> Result<Option<Self>, IgnoreError> {
        if below.is_none() && exclude.is_empty() {
            return Ok(None);
        }
        let exclude = (!exclude.is_empty()).then(|| IgnoreFile::of_patterns(exclude));
        Ok(Some(Self {
            include: below.map(IgnoreFile::only).transpose()?,
            exclude: exclude.transpose()?,
            broken: OnceLock::new(),
        }))
    }

    /// Decides about `path`, from the source on.
    pub(super) fn verdict(&self, path: &[u8], node: Node) -> Ignored {
        let path = Path::new(OsStr::from_bytes(path)).to_string_lossy();
        let mut verdict = Ignored::Keep;
        for file in [&self.include, &self.exclude].into_iter().flatten() {
            let next = ask(file, &path, node).unwrap_or_else(|error| {
                // Whoever walks looks at `Source::broken` before it uses what it found.
                let _first_counts = self.broken.set(error);
                Ignored::Skip
            });
            verdict = match (verdict, next) {
                (Ignored::Skip, _) | (_, Ignored::Skip) => Ignored::Skip,
                (Ignored::Descend, _) | (_, Ignored::Descend) => Ignored::Descend,
                (Ignored::Keep, Ignored::Keep) => Ignored::Keep,
            };
        }
        verdict
    }
}

/// Asks an ignore file about a path.
pub(crate) fn ask(file: &IgnoreFile, path: &str, node: Node) -> Result<Ignored, IgnoreError> {
    if !file.matches(path)? {
        return Ok(Ignored::Keep);
    }
    if node != Node::Directory {
        return Ok(Ignored::Skip);
    }
    Ok(if file.may_include_below(path)? {
        Ignored::Descend
    } else {
        Ignored::Skip
    })
}
