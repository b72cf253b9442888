//! Pointers: which files of a checkout are ones, and what they stand for. Nothing is fetched or written here.
//!
//! A pointer is a text of at most 1 KiB whose first line names version 1 of the specification, with an `oid` and a `size`. Whatever is not
//! exactly one is an ordinary file, and no link is followed on the way to one.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::prepare;
use crate::git::error::FetchError;

/// Largest pointer, as its specification says.
const MAX_POINTER_BYTES: u64 = 1024;

/// What an executable file is in a listing.
const EXECUTABLE: &str = "100755";

/// What a pointer stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Object {
    /// The SHA-256 of the content, in hexadecimal digits.
    pub(super) oid: String,
    /// Its length in bytes.
    pub(super) size: u64,
}

/// A file that is a pointer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) mode: u32,
}

/// Returns the pointers among the files of git's listing: `MODE OBJECT STAGE<TAB>PATH<NUL>`.
pub(super) fn pointers(
    location: &Path,
    listing: &[u8],
) -> Result<BTreeMap<Object, Vec<Place>>, FetchError> {
    let mut pointers: BTreeMap<Object, Vec<Place>> = BTreeMap::new();
    for entry in listing.split(|byte| *byte == 0) {
        let Some(at) = entry.iter().position(|byte| *byte == b'\t') else {
            continue;
        };
        let (head, path) = (entry.get(..at), entry.get(at + 1..));
        let (head, path) = (head.unwrap_or_default(), path.unwrap_or_default());
        if !head.starts_with(b"100") {
            continue;
        }
        let mode = if head.starts_with(EXECUTABLE.as_bytes()) {
            0o755
        } else {
            0o644
        };
        let path = location.join(OsStr::from_bytes(path));
        let read = read_pointer(location, &path);
        if let Some(object) = read.map_err(|source| prepare(&path, source))? {
            pointers
                .entry(object)
                .or_default()
                .push(Place { path, mode });
        }
    }
    Ok(pointers)
}

/// Reads a file if it is a pointer and no link leads to it.
fn read_pointer(location: &Path, path: &Path) -> io::Result<Option<Object>> {
    let below = path.strip_prefix(location).unwrap_or(path);
    let mut on_the_way = location.to_path_buf();
    for component in below.parent().into_iter().flat_map(Path::components) {
        on_the_way.push(component);
        if !fs::symlink_metadata(&on_the_way)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
    }
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_file() || metadata.len() > MAX_POINTER_BYTES {
        return Ok(None);
    }
    let mut text = Vec::new();
    File::open(path)?
        .take(MAX_POINTER_BYTES)
        .read_to_end(&mut text)?;
    Ok(std::str::from_utf8(&text).ok().and_then(parse))
}

/// Parses a pointer; whatever is not exactly one is an ordinary file.
fn parse(text: &str) -> Option<Object> {
    let mut lines = text.lines();
    if lines.next()? != "version https://git-lfs.github.com/spec/v1" {
        return None;
    }
    let (mut oid, mut size) = (None, None);
    for line in lines {
        match line.split_once(' ')? {
            ("oid", value) => oid = value.strip_prefix("sha256:"),
            ("size", value) => size = value.parse().ok(),
            _ => {}
        }
    }
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let oid = oid.filter(|oid| oid.len() == 64 && oid.bytes().all(is_digit))?;
    Some(Object {
        oid: oid.to_owned(),
        size: size?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_exactly_a_pointer_is_one() {
        let oid = "a".repeat(64);
        let head = "version https://git-lfs.github.com/spec/v1\n";
        let found = parse(&format!("{head}oid sha256:{oid}\nsize 12\n")).unwrap();
        assert_eq!((found.oid, found.size), (oid.clone(), 12));
        for text in [
            String::new(),
            "hello\n".to_owned(),
            format!("{head}oid sha256:{oid}\n"),
            format!("{head}size 12\n"),
            format!("{head}oid sha256:{}\nsize 12\n", oid.to_uppercase()),
            format!("{head}oid sha256:../../x\nsize 12\n"),
            format!("{head}oid md5:{oid}\nsize 12\n"),
            format!("{head}oid sha256:{oid}\nsize -1\n"),
            format!("version https://evil.test/v1\noid sha256:{oid}\nsize 12\n"),
        ] {
            assert_eq!(parse(&text), None, "{text}");
        }
    }
}
