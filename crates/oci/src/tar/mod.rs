//! Tar archives as layers use them: a strict streaming [`Reader`] and a canonical [`Writer`].
//!
//! The reader knows ustar, PAX (`x` and `g`), GNU long names (`L`, `K`) and base-256 numbers. Whatever two widespread readers
//! would understand differently is refused rather than guessed (see [`ReadError::Ambiguous`]): a layer must not hold one set of
//! files for the scanner and another for the runtime. Sparse files are refused with a clear message.
//!
//! The writer makes ustar, with a PAX header only where ustar cannot hold a value; times have whole seconds, there are no user
//! names. It writes what it is given in the order it is given: sorting is the caller's part.
//!
//! Nothing here touches a file system. Memory is bounded by [`Limits`], whatever an archive claims.

mod header;
mod pax;
mod reader;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use reader::{ReadError, Reader};
pub use writer::{WriteError, Writer};

/// Size of a tar block in bytes.
pub const BLOCK_BYTES: usize = 512;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A regular file; its content follows.
    File,
    /// Another name for the file that [`Entry::link`] names.
    HardLink,
    /// A symbolic link to [`Entry::link`].
    Symlink,
    /// A directory.
    Directory,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
}

/// One member of an archive, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path as it stands in the archive, without trailing slashes (a lone `/` aside); not necessarily UTF-8, never with NUL.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permissions with setuid, setgid and sticky bits; never more than `0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification, in seconds since 1970; fractions are rounded down.
    pub mtime: i64,
    /// Bytes of content; 0 unless a regular file.
    pub size: u64,
    /// Target of a link; empty otherwise.
    pub link: Vec<u8>,
    /// Extended attributes by name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Major number of a device.
    pub device_major: u32,
    /// Minor number of a device.
    pub device_minor: u32,
}

impl Entry {
    /// Returns an entry of `kind` at `path`, owned by 0:0, with mode 0, time 0 and nothing else.
    pub fn new(path: impl Into<Vec<u8>>, kind: Kind) -> Self {
        Self {
            path: path.into(),
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: 0,
            size: 0,
            link: Vec::new(),
            xattrs: BTreeMap::new(),
            device_major: 0,
            device_minor: 0,
        }
    }
}

/// What an archive may ask of its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of PAX and GNU headers in front of one entry.
    pub metadata_bytes: u64,
    /// Bytes of a path or of a link target.
    pub path_bytes: usize,
    /// Headers of any kind in the whole archive.
    pub headers: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            metadata_bytes: 1 << 20,
            path_bytes: 4096,
            headers: 8_000_000,
        }
    }
}

/// Tells whether `start`, the first bytes of something, begin an archive: a header whose checksum is right.
pub fn is_archive(start: &[u8]) -> bool {
    let Some(block) = start.first_chunk::<BLOCK_BYTES>() else {
        return false;
    };
    let block = header::Block(*block);
    let (unsigned, signed) = block.checksums();
    let stated = block.number(header::CHECKSUM);
    !block.is_zero() && (stated == Some(unsigned) || stated == Some(signed))
}
