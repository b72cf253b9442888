//! Digests of files that were hashed before: a file that the system says was not touched since need not be read again.
//!
//! A file counts as untouched when device, inode, size, and the times of its last change and of the last change of what is said about it
//! are the same; the last of these nobody sets who is not root. What was changed a moment before it was hashed may be changed once more
//! within the same tick of the clock, and is not remembered (as git does not trust such entries of its index).
//!
//! Everything about a file that is not its content (name, mode, owner, as they count) is part of the key under which it is kept.

use std::collections::HashMap;
use std::os::fd::AsFd;

use oci::Digest;
use rustix::fs::Stat;

/// Says what the bytes are; to be changed with them, and with what a digest is made of.
const FORMAT: &[u8; 16] = b"kiln.memory.v1\0\0";
/// Bytes of one file in a memory's written form.
const ENTRY_BYTES: usize = 96;
/// Most files that are remembered.
const FILES_MAX: usize = 160_000;
/// How much older than now the last change must be for a file to be remembered: more than any file system's clock is coarse, and than
/// clocks of machines that hold file systems of others are wont to be wrong.
const SETTLED_MS: i64 = 3000;
/// The same where the clock is this kernel's own, which is behind by a tick: a hundredth of a second where it is longest.
const SETTLED_HERE_MS: i64 = 500;
/// File systems that stamp files with this kernel's clock, to the nanosecond: ext4, XFS, Btrfs, tmpfs.
const STAMPED_HERE: [u32; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994];

/// Files of one place, and their digests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    files: HashMap<[u8; 16], ([u8; 48], [u8; 32])>,
}

/// What is known of the files that are about to be hashed.
#[derive(Debug, Clone, Copy)]
pub struct Recall<'a> {
    /// What was kept before.
    pub memory: &'a Memory,
    /// The time, in Unix milliseconds.
    pub now_ms: i64,
    /// How long a file must not have been changed to be remembered.
    pub settling: Settling,
}

/// How long it takes until a change of a file is told from the change before by its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settling {
    ms: i64,
}

impl Settling {
    /// Returns how long it takes where `folder` is.
    pub fn of(folder: impl AsFd) -> Self {
        let found = rustix::fs::fstatfs(folder);
        let is_here = found.is_ok_and(|found| {
            u32::try_from(found.f_type).is_ok_and(|kind| STAMPED_HERE.contains(&kind))
        });
        Self {
            ms: if is_here { SETTLED_HERE_MS } else { SETTLED_MS },
        }
    }
}

/// What the system says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    bytes: [u8; 48],
    changed_ms: i64,
}

impl Identity {
    pub(super) fn of(stat: &Stat) -> Self {
        let mut bytes = [0; 48];
        let nanoseconds = |n| u32::try_from(n).unwrap_or(0).to_le_bytes();
        let fields: [&[u8]; 7] = [
            &stat.st_dev.to_le_bytes(),
            &stat.st_ino.to_le_bytes(),
            &stat.st_size.to_le_bytes(),
            &stat.st_mtime.to_le_bytes(),
            &nanoseconds(stat.st_mtime_nsec),
            &stat.st_ctime.to_le_bytes(),
            &nanoseconds(stat.st_ctime_nsec),
        ];
        for (to, from) in bytes.iter_mut().zip(fields.concat()) {
            *to = from;
        }
        let ms = |seconds: i64, nanoseconds| {
            let rest = i64::try_from(nanoseconds).unwrap_or(0) / 1_000_000;
            seconds.saturating_mul(1000).saturating_add(rest)
        };
        let changed = ms(stat.st_ctime, stat.st_ctime_nsec);
        let modified = ms(stat.st_mtime, stat.st_mtime_nsec);
        Self {
            bytes,
            changed_ms: changed.max(modified),
        }
    }
}

impl Memory {
    /// Reads what [`Self::to_bytes`] wrote. What is not that is an empty memory.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let entries = bytes.strip_prefix(FORMAT).unwrap_or_default();
        let entries = entries.as_chunks::<ENTRY_BYTES>().0;
        let parse = |entry: &[u8; ENTRY_BYTES]| {
            let (key, rest) = entry.split_first_chunk()?;
            let (identity, digest) = rest.split_first_chunk()?;
            Some((*key, (*identity, *digest.first_chunk()?)))
        };
        Self {
            files: entries.iter().filter_map(parse).collect(),
        }
    }

    /// Returns how many files it knows.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Tells whether it knows none.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Returns the written form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = FORMAT.to_vec();
        for (key, (identity, digest)) in self.files.iter().take(FILES_MAX) {
            bytes.extend_from_slice(key);
            bytes.extend_from_slice(identity);
            bytes.extend_from_slice(digest);
        }
        bytes
    }

    pub(super) fn recall(&self, header: &[u8], identity: &Identity) -> Option<Digest> {
        let (known, digest) = self.files.get(&key(header))?;
        (*known == identity.bytes).then(|| Digest::of_sha256(digest))
    }

    /// Keeps the digest of a file that was looked at before it was hashed, unless it is too young.
    pub(super) fn keep(
        &mut self,
        header: &[u8],
        identity: &Identity,
        digest: &Digest,
        (now_ms, settling): (i64, Settling),
    ) {
        let settled_ms = now_ms.saturating_sub(settling.ms);
        if identity.changed_ms > settled_ms || self.files.len() >= FILES_MAX {
            return;
        }
        if let Some(digest) = digest.to_sha256() {
            self.files.insert(key(header), (identity.bytes, digest));
        }
    }
}

fn key(header: &[u8]) -> [u8; 16] {
    let hash = Digest::sha256_hash(header);
    hash.first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat_of(path: &std::path::Path) -> Identity {
        Identity::of(&rustix::fs::stat(path).unwrap())
    }

    #[test]
    fn a_file_is_recalled_as_long_as_nothing_is_done_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "content").unwrap();
        let digest = Digest::sha256(b"whatever");
        let seen = stat_of(&path);
        let mut memory = Memory::default();
        let settling = Settling { ms: SETTLED_MS };
        let settled = (seen.changed_ms + SETTLED_MS, settling);
        memory.keep(b"file", &seen, &digest, settled);
        let memory = Memory::from_bytes(&memory.to_bytes());
        assert_eq!(memory.recall(b"file", &stat_of(&path)), Some(digest));
        assert_eq!(memory.recall(b"file2", &stat_of(&path)), None);
        // The same bytes, size and even time: only the change itself is left to be seen.
        let times = std::fs::metadata(&path).unwrap().modified().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(&path, "CONTENT").unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(times).unwrap();
        assert_eq!(memory.recall(b"file", &stat_of(&path)), None);
    }

    #[test]
    fn what_was_changed_a_moment_ago_is_not_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let seen = stat_of(folder.path());
        let mut memory = Memory::default();
        let digest = Digest::sha256(b"");
        for ms in [SETTLED_MS, SETTLED_HERE_MS] {
            let now = seen.changed_ms + ms - 1;
            memory.keep(b"", &seen, &digest, (now, Settling { ms }));
            assert_eq!(memory, Memory::default());
        }
    }

    #[test]
    fn only_this_kernels_own_clock_is_trusted_to_be_fine() {
        let here = ["/dev/shm", "/tmp", "/var/tmp"].map(|path| {
            let folder = std::fs::File::open(path).unwrap();
            Settling::of(&folder).ms
        });
        assert!(here.contains(&SETTLED_HERE_MS), "{here:?}");
        let other = std::fs::File::open("/proc/self").unwrap();
        assert_eq!(Settling::of(&other).ms, SETTLED_MS);
    }

    #[test]
    fn what_is_no_memory_is_an_empty_one() {
        for bytes in [&b""[..], b"kiln.memory.v0", &[7; 200]] {
            assert_eq!(Memory::from_bytes(bytes), Memory::default());
        }
        let cut = [&FORMAT[..], &[1; ENTRY_BYTES], &[2; 40]].concat();
        assert_eq!(Memory::from_bytes(&cut).files.len(), 1);
    }
}
