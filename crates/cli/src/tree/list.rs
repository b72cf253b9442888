//! The lister: what the walk finds, with the hashes of all files, for a server that may know most of them.
//!
//! Contents are read once to be hashed and once more if they are asked for; what has changed in between is an error that names the file.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use oci::{Digest, Hasher};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::attributes::Attributes;
use super::walk::{self, Found, Sink};
use super::{Copied, CopyError, Rules, failed_read, open_root};

const READ_BYTES: usize = 256 << 10;
const MODES: u32 = 0o7777;

/// What is in a folder.
#[derive(Debug)]
pub(crate) struct Listing {
    /// In the order of an upload.
    pub(crate) entries: Vec<Listed>,
    /// How much there is, and what was left out.
    pub(crate) copied: Copied,
    source: Source,
}

/// Where contents are read from.
#[derive(Debug)]
enum Source {
    Nothing,
    Folder(OwnedFd),
    File(File),
}

/// An entry.
#[derive(Debug)]
pub(crate) struct Listed {
    /// Its path.
    pub(crate) path: Vec<u8>,
    /// Permissions with setuid, setgid and sticky bits.
    pub(crate) mode: u32,
    /// Time of the last change, in Unix seconds.
    pub(crate) modified_s: i64,
    /// Nanoseconds beyond.
    pub(crate) modified_ns: u32,
    /// Extended attributes.
    pub(crate) attributes: Attributes,
    /// What it is.
    pub(crate) content: Content,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// A folder.
    Folder,
    /// A file.
    File { size: u64, digest: Digest },
    /// A symbolic link, and where it leads.
    Symlink(Vec<u8>),
    /// Another name for what is at this path.
    HardLink(Vec<u8>),
    /// A pipe.
    Pipe,
}

/// Lists what is in `from`.
pub(crate) fn list(from: &Path, rules: &Rules<'_>) -> Result<Listing, CopyError> {
    let source = open_root(from)?;
    let mut lister = Lister {
        entries: Vec::new(),
        buffer: vec![0; READ_BYTES],
    };
    let copied = walk::walk(&source, rules, &mut lister)?;
    Ok(Listing {
        entries: lister.entries,
        copied,
        source: Source::Folder(source),
    })
}

impl Listing {
    /// Returns the listing of an empty folder.
    pub(crate) fn empty() -> Self {
        Self {
            entries: Vec::new(),
            copied: Copied::default(),
            source: Source::Nothing,
        }
    }

    /// Returns the listing of a folder in which there is one file, whose content is that of `file`.
    pub(crate) fn of_file(name: &str, file: File, size: u64, digest: Digest) -> Self {
        let entry = Listed {
            path: name.into(),
            mode: 0o600,
            modified_s: 0,
            modified_ns: 0,
            attributes: Attributes::new(),
            content: Content::File { size, digest },
        };
        let copied = Copied {
            n_files: 1,
            bytes: size,
            n_skipped: 0,
        };
        Self {
            entries: vec![entry],
            copied,
            source: Source::File(file),
        }
    }

    /// Returns how many bytes all files have.
    pub(crate) fn n_bytes(&self) -> u64 {
        self.copied.bytes
    }

    /// Opens the content of a file, as it is now.
    pub(crate) fn open(&self, listed: &Listed) -> io::Result<File> {
        match &self.source {
            Source::Nothing => Err(io::ErrorKind::NotFound.into()),
            Source::File(file) => {
                let mut file = file.try_clone()?;
                io::Seek::rewind(&mut file)?;
                Ok(file)
            }
            Source::Folder(folder) => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
                let path = &listed.path[..];
                Ok(rustix::fs::openat2(folder, path, flags, Mode::empty(), within)?.into())
            }
        }
    }
}

struct Lister {
    entries: Vec<Listed>,
    buffer: Vec<u8>,
}

impl Lister {
    fn push(&mut self, found: &Found, content: Content) {
        self.entries.push(Listed {
            path: found.path.as_os_str().as_bytes().to_vec(),
            mode: found.stat.st_mode & MODES,
            modified_s: found.stat.st_mtime,
            modified_ns: u32::try_from(found.stat.st_mtime_nsec).unwrap_or(0),
            attributes: found.attributes.clone(),
            content,
        });
    }

    fn hash(&mut self, content: File, room: u64) -> io::Result<(u64, Digest)> {
        let mut content = content.take(room.saturating_add(1));
        let mut hasher = Hasher::sha256();
        loop {
            match content.read(&mut self.buffer) {
                Ok(0) => return Ok((hasher.size_bytes(), hasher.finish())),
                Ok(n) => hasher.update(self.buffer.get(..n).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Sink for Lister {
    fn enter(&mut self, folder: &Found) -> Result<(), CopyError> {
        self.push(folder, Content::Folder);
        Ok(())
    }

    fn leave(&mut self, _folder: &Found) -> Result<(), CopyError> {
        Ok(())
    }

    fn file(&mut self, file: &Found, content: File, room: u64) -> Result<u64, CopyError> {
        let hashed = self.hash(content, room);
        let (size, digest) = hashed.map_err(|e| failed_read(&file.path, e))?;
        self.push(file, Content::File { size, digest });
        Ok(size)
    }

    fn symlink(&mut self, link: &Found, to: &CStr) -> Result<(), CopyError> {
        self.push(link, Content::Symlink(to.to_bytes().to_vec()));
        Ok(())
    }

    fn pipe(&mut self, pipe: &Found) -> Result<(), CopyError> {
        self.push(pipe, Content::Pipe);
        Ok(())
    }

    fn again(&mut self, name: &Found, first: &Path) -> Result<(), CopyError> {
        self.push(
            name,
            Content::HardLink(first.as_os_str().as_bytes().to_vec()),
        );
        Ok(())
    }
}
