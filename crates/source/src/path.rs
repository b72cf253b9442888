//! Paths that come from requests, made safe by parsing.
//!
//! A [`RelPath`] is lexically inside the directory it is joined to. It says nothing about symbolic links: whoever opens
//! it beneath a directory with hostile content has to resolve it there (`openat2` with `RESOLVE_BENEATH`).

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The directory that request paths may name as their root; it is stripped.
const WORKSPACE: &str = "/workspace";

/// Longest accepted path, as in `PATH_MAX`.
const MAX_BYTES: usize = 4096;

/// Longest accepted component, as in `NAME_MAX`.
const MAX_COMPONENT_BYTES: usize = 255;

/// A relative path without `..`, without NUL and without empty or `.` components.
///
/// The empty path stands for the directory itself and is displayed as `.`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RelPath(String);

/// Why a text is not a [`RelPath`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseRelPathError {
    /// The path begins at the root of the file system.
    #[error("path {0:?} is absolute")]
    Absolute(String),
    /// The path climbs out with `..`.
    #[error("path {0:?} contains `..`")]
    Parent(String),
    /// The path holds a NUL or another control character.
    #[error("path {0:?} contains a control character")]
    ControlCharacter(String),
    /// The path or one of its components is longer than a file system takes.
    #[error("path is too long ({0} bytes)")]
    TooLong(usize),
}

impl RelPath {
    /// Parses `text`; `a//b/./c/` becomes `a/b/c`, and an empty text or `.` becomes the directory itself.
    pub fn parse(text: &str) -> Result<Self, ParseRelPathError> {
        if text.len() > MAX_BYTES {
            return Err(ParseRelPathError::TooLong(text.len()));
        }
        if text.chars().any(char::is_control) {
            return Err(ParseRelPathError::ControlCharacter(text.to_owned()));
        }
        if text.starts_with('/') {
            return Err(ParseRelPathError::Absolute(text.to_owned()));
        }
        let mut path = String::with_capacity(text.len());
        for component in text.split('/') {
            match component {
                "" | "." => continue,
                ".." => return Err(ParseRelPathError::Parent(text.to_owned())),
                long if long.len() > MAX_COMPONENT_BYTES => {
                    return Err(ParseRelPathError::TooLong(long.len()));
                }
                _ => {}
            }
            if !path.is_empty() {
                path.push('/');
            }
            path.push_str(component);
        }
        Ok(Self(path))
    }

    /// Parses a path that may be written from the workspace's root: `/workspace` and `/workspace/a` are accepted as `.` and `a`.
    ///
    /// `/workspace-evil` is absolute like any other and is refused.
    pub fn parse_in_workspace(text: &str) -> Result<Self, ParseRelPathError> {
        match text.strip_prefix(WORKSPACE) {
            Some("") => Ok(Self::default()),
            Some(rest) if rest.starts_with('/') => Self::parse(rest.trim_start_matches('/')),
            _ => Self::parse(text),
        }
    }

    /// Returns the text of the path; empty for the directory itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether this is the directory itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the path below `directory`.
    pub fn under(&self, directory: &Path) -> PathBuf {
        if self.is_root() {
            directory.to_path_buf()
        } else {
            directory.join(&self.0)
        }
    }

    /// Returns this path with `other` below it.
    #[must_use]
    pub fn join(&self, other: &Self) -> Self {
        match (self.is_root(), other.is_root()) {
            (true, _) => other.clone(),
            (_, true) => self.clone(),
            (false, false) => Self(format!("{}/{}", self.0, other.0)),
        }
    }

    /// Returns the directory that holds this path; the root is its own parent.
    #[must_use]
    pub fn parent(&self) -> Self {
        self.0
            .rsplit_once('/')
            .map_or_else(Self::default, |(parent, _)| Self(parent.to_owned()))
    }

    /// Returns the components from the top down.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').filter(|component| !component.is_empty())
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_root() { "." } else { &self.0 })
    }
}

impl FromStr for RelPath {
    type Err = ParseRelPathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl TryFrom<String> for RelPath {
    type Error = ParseRelPathError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<RelPath> for String {
    fn from(path: RelPath) -> Self {
        path.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_and_double_slashes_vanish() {
        for (text, expected) in [
            ("", ""),
            (".", ""),
            ("./", ""),
            ("a//b/./c/", "a/b/c"),
            ("a\\b", "a\\b"),
            ("%2e%2e", "%2e%2e"),
        ] {
            assert_eq!(RelPath::parse(text).unwrap().as_str(), expected, "{text:?}");
        }
    }

    #[test]
    fn what_could_leave_the_directory_is_refused() {
        for text in [
            "..",
            "../..",
            "a/../../x",
            "a/..",
            "a/../b",
            "/etc/shadow",
            "//",
            "/workspace/x",
            "a\0b",
            "a\nb",
        ] {
            assert!(RelPath::parse(text).is_err(), "{text:?}");
        }
        assert!(RelPath::parse(&"a/".repeat(2500)).is_err());
        assert!(RelPath::parse(&"a".repeat(256)).is_err());
    }

    #[test]
    fn the_workspace_is_a_component_and_not_a_prefix() {
        assert_eq!(
            RelPath::parse_in_workspace("/workspace/a/b")
                .unwrap()
                .as_str(),
            "a/b"
        );
        assert_eq!(
            RelPath::parse_in_workspace("/workspace//a")
                .unwrap()
                .as_str(),
            "a"
        );
        assert!(RelPath::parse_in_workspace("/workspace").unwrap().is_root());
        assert_eq!(RelPath::parse_in_workspace("a").unwrap().as_str(), "a");
        for text in [
            "/workspace-evil",
            "/workspaces/a",
            "/workspace/../x",
            "/etc",
        ] {
            assert!(RelPath::parse_in_workspace(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn joining_and_parents_stay_inside() {
        let path = RelPath::parse("a/b").unwrap();
        assert_eq!(path.parent().as_str(), "a");
        assert!(path.parent().parent().parent().is_root());
        assert_eq!(
            RelPath::default().join(&path).under(Path::new("/w")),
            Path::new("/w/a/b")
        );
        assert_eq!(path.join(&RelPath::default()), path);
        assert_eq!(RelPath::default().under(Path::new("/w")), Path::new("/w"));
    }
}
