//! What of an uploaded folder's list decides what COPY and ADD would copy: a key that is had without making one file.
//!
//! Two lists with the same key give the same [`super::content::ContentDigest`] for the same sources, filters and ignore file, so that
//! the digest that was made of the files of one is that of the other. It is no digest of what is copied: lists with different keys may give
//! the same one.
//!
//! Of a source that is a path, what is at it and below it counts; of a pattern, what it matches and what is below that. Where a link has a say
//! in what is meant (one on the way to a source, or named by it, or a second name of a file), everything counts. Times never do.

use dockerfile::glob::Pattern;
use oci::{Digest, Hasher};
use store::context::{Entry, EntryKind, ManifestError};

use super::filter::{Source, SourcePath};
use super::select::characters;
use super::tree::join;

/// Says what a key is made of; to be changed with it.
const FORMAT: &[u8] = b"kiln.listed.v1\0";

/// Returns the key of what `sources` mean in the folder `folder` of an upload.
///
/// Neither `folder` nor anything above it may be a link.
pub(crate) fn key(
    entries: impl Iterator<Item = Result<Entry, ManifestError>>,
    folder: &[u8],
    sources: &[Source],
) -> Result<Digest, ManifestError> {
    let scopes: Vec<Scope> = sources.iter().map(Scope::of).collect();
    let mut is_whole = scopes.iter().any(|scope| matches!(scope, Scope::Whole));
    let (mut whole, mut part) = (Hasher::sha256(), Hasher::sha256());
    for (hasher, name) in [(&mut whole, b"whole"), (&mut part, b"part\0")] {
        hasher.update(FORMAT);
        hasher.update(name);
        hasher.update(&(folder.len() as u64).to_le_bytes());
        hasher.update(folder);
    }
    for entry in entries {
        let entry = entry?;
        let described = describe(&entry);
        whole.update(&described);
        let Some(path) = below(&entry.path, folder) else {
            continue;
        };
        for (index, scope) in scopes.iter().enumerate() {
            let role = scope.role(path);
            is_whole |= match entry.kind {
                EntryKind::Symlink(_) => role.is_named,
                EntryKind::HardLink(_) => role.is_part,
                EntryKind::Folder | EntryKind::File { .. } | EntryKind::Pipe => false,
            };
            if role.is_part {
                part.update(&(index as u64).to_le_bytes());
                part.update(&described);
            }
        }
    }
    Ok(if is_whole { whole } else { part }.finish())
}

/// Returns the entries at `paths`, and the folders that lead there; `None` when a link has a say in what is there.
pub(crate) fn only(
    entries: impl Iterator<Item = Result<Entry, ManifestError>>,
    paths: &[&[u8]],
) -> Result<Option<Vec<Entry>>, ManifestError> {
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if !paths.iter().any(|path| leads_to(&entry.path, path)) {
            continue;
        }
        if matches!(entry.kind, EntryKind::Symlink(_) | EntryKind::HardLink(_)) {
            return Ok(None);
        }
        found.push(entry);
    }
    Ok(Some(found))
}

/// Tells whether `path` is `to`, or a folder above it.
fn leads_to(path: &[u8], to: &[u8]) -> bool {
    to == path || below(to, path).is_some()
}

/// Returns the rest of `path` below `folder`.
fn below<'a>(path: &'a [u8], folder: &[u8]) -> Option<&'a [u8]> {
    if folder.is_empty() {
        return Some(path);
    }
    path.strip_prefix(folder)?.strip_prefix(b"/")
}

/// What of the list one source means.
enum Scope {
    /// Nobody can tell beforehand.
    Whole,
    /// What is at this path and below.
    Below(Vec<u8>),
    /// What the pattern matches below this path.
    Matching(Vec<u8>, Pattern),
}

/// What an entry is to a source.
#[derive(Default)]
struct Role {
    /// It is part of what is meant.
    is_part: bool,
    /// It is on the way to what the source names, or that itself: a link there is followed.
    is_named: bool,
}

impl Scope {
    fn of(source: &Source) -> Self {
        if source.required.is_some() {
            return Self::Whole;
        }
        let text = match &source.path {
            SourcePath::Literal(name) => return Self::fixed(name),
            SourcePath::Pattern(text) => text.trim_start_matches('/'),
        };
        Self::pattern(text).unwrap_or(Self::Whole)
    }

    fn pattern(text: &str) -> Option<Self> {
        let literal = |text: &str| Pattern::parse(text).ok()?.literal();
        if !Pattern::parse(text).ok()?.has_wildcards() {
            return Some(Self::fixed(&literal(text)?));
        }
        let components: Vec<&str> = text.split('/').collect();
        let is_fixed = |part: &&&str| Pattern::parse(part).is_ok_and(|part| !part.has_wildcards());
        let n_fixed = components.iter().take_while(is_fixed).count();
        let (start, rest) = components.split_at_checked(n_fixed)?;
        match Self::fixed(&literal(&start.join("/"))?) {
            Self::Below(start) => {
                Some(Self::Matching(start, Pattern::parse(&rest.join("/")).ok()?))
            }
            other => Some(other),
        }
    }

    fn fixed(path: &str) -> Self {
        let mut start = Vec::new();
        for name in path.split('/').filter(|name| !matches!(*name, "" | ".")) {
            if name == ".." {
                return Self::Whole;
            }
            start = join(&start, name.as_bytes());
        }
        Self::Below(start)
    }

    fn role(&self, path: &[u8]) -> Role {
        match self {
            Self::Whole => Role::default(),
            Self::Below(start) => Role {
                is_part: leads_to(start, path),
                is_named: leads_to(path, start),
            },
            Self::Matching(start, pattern) => match below(path, start) {
                Some(rest) => matched(rest, pattern),
                None => Role {
                    is_part: false,
                    is_named: leads_to(path, start),
                },
            },
        }
    }
}

/// Looks how far `pattern` follows `path`: as [`super::select`] does it, from the top.
fn matched(path: &[u8], pattern: &Pattern) -> Role {
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    let ends = slashes.map(|(at, _)| at).chain([path.len()]);
    for end in ends {
        let text = characters(path.get(..end).unwrap_or_default());
        if pattern.matches(&text) {
            return Role {
                is_part: true,
                is_named: end == path.len(),
            };
        }
        if !pattern.matches_below(&text) {
            break;
        }
    }
    Role::default()
}

fn describe(entry: &Entry) -> Vec<u8> {
    let mut fields = Vec::with_capacity(entry.path.len() + 128);
    let mut put = |field: &[u8]| {
        fields.extend_from_slice(&(field.len() as u64).to_le_bytes());
        fields.extend_from_slice(field);
    };
    put(&entry.path);
    put(&entry.mode.to_le_bytes());
    put(&(entry.xattrs.len() as u64).to_le_bytes());
    for (name, value) in &entry.xattrs {
        put(name);
        put(value);
    }
    match &entry.kind {
        EntryKind::Folder => put(b"folder"),
        EntryKind::Pipe => put(b"pipe"),
        EntryKind::File { size, content } => {
            put(b"file");
            put(&size.to_le_bytes());
            put(content.to_string().as_bytes());
        }
        EntryKind::Symlink(to) => {
            put(b"symbolic link");
            put(to);
        }
        EntryKind::HardLink(to) => {
            put(b"second name");
            put(to);
        }
    }
    fields
}

#[cfg(test)]
mod tests;
