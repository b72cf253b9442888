//! Records: small documents under a kind and a key, replaced whole.
//!
//! A record carries a checksum over its kind, its key and its content, so that one that was damaged, or put in another's place,
//! is as good as absent: records are caches, and what is lost is made again.

use std::io::{self, Read};
use std::time::{Duration, SystemTime};

use oci::{Digest, Hasher};

use crate::dir::Dir;
use crate::{Durability, Store, used};

/// Version of the format, first word of every record.
const HEADER: &str = "kiln-record-1";
/// Longest header line in bytes.
pub(crate) const HEADER_MAX_BYTES: usize = 128;
/// A use is noted again when the note is older than this: records go by age in days.
const NOTED_FOR: Duration = Duration::from_secs(3600);
/// Where records are.
const RECORDS: &str = "records";
/// Longest key in bytes.
const KEY_MAX_BYTES: usize = 200;

/// Tells why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Kind or key hold something that is no file name.
    #[error("record kind {kind:?} or key {key:?} is not made of a-z, A-Z, 0-9, '.', '_', '-'")]
    Name {
        /// The kind.
        kind: String,
        /// The key.
        key: String,
    },
    /// More bytes than a record may have.
    #[error("write a record of kind {kind}: {size_bytes} bytes are more than {max_bytes}")]
    TooLarge {
        /// The kind.
        kind: String,
        /// What was given.
        size_bytes: usize,
        /// The limit.
        max_bytes: usize,
    },
    /// The system refused to read.
    #[error("read record {kind}/{key}")]
    Read {
        /// The kind.
        kind: String,
        /// The key.
        key: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The system refused to write.
    #[error("write record {kind}/{key}")]
    Write {
        /// The kind.
        kind: String,
        /// The key.
        key: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The system refused to remove.
    #[error("remove record {kind}/{key}")]
    Remove {
        /// The kind.
        kind: String,
        /// The key.
        key: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Store {
    /// Returns the content of a record; `None` when there is none or it is damaged.
    pub fn record(&self, kind: &str, key: &str) -> Result<Option<Vec<u8>>, RecordError> {
        check(kind, key)?;
        let max_bytes = self.limits().record_max_bytes + HEADER_MAX_BYTES;
        let read = || {
            let Some(dir) = self.root().sub_if_there(&folder(kind, key))? else {
                return Ok(None);
            };
            let Some(file) = dir.open_file(key)? else {
                return Ok(None);
            };
            if used::modified_of(&file)? + NOTED_FOR < SystemTime::now() {
                // What is collected meanwhile is as good as never kept.
                dir.touch(key)?;
            }
            let mut bytes = Vec::new();
            file.take(max_bytes as u64).read_to_end(&mut bytes)?;
            Ok(Some(bytes))
        };
        let bytes = read().map_err(|source| RecordError::Read {
            kind: kind.to_owned(),
            key: key.to_owned(),
            source,
        })?;
        Ok(bytes.and_then(|bytes| open(kind, key, &bytes)))
    }

    /// Writes a record, replacing the one that is there. It is durable when this returns.
    pub fn put_record(&self, kind: &str, key: &str, content: &[u8]) -> Result<(), RecordError> {
        self.write_record(kind, key, content, Durability::Durable)
    }

    /// The same for what costs only time when it is lost: a crash of the machine may leave none, or one whose damage is noticed. Nothing is
    /// waited for.
    pub fn note_record(&self, kind: &str, key: &str, content: &[u8]) -> Result<(), RecordError> {
        self.write_record(kind, key, content, Durability::Lost)
    }

    fn write_record(
        &self,
        kind: &str,
        key: &str,
        content: &[u8],
        durability: Durability,
    ) -> Result<(), RecordError> {
        check(kind, key)?;
        let max_bytes = self.limits().record_max_bytes;
        if content.len() > max_bytes {
            return Err(RecordError::TooLarge {
                kind: kind.to_owned(),
                size_bytes: content.len(),
                max_bytes,
            });
        }
        let mut bytes = format!("{HEADER} {}\n", seal(kind, key, content)).into_bytes();
        bytes.extend_from_slice(content);
        let path = folder(kind, key);
        let write = || match durability {
            Durability::Durable => {
                let dir = self.root().make(&path)?;
                self.write_whole(&dir, key, &bytes)?;
                // The folders may be there since a note that has waited for nothing.
                let above = [format!("{RECORDS}/{kind}"), RECORDS.to_owned()];
                above
                    .iter()
                    .try_for_each(|dir| self.root().sub(dir)?.sync())
            }
            Durability::Lost => {
                let dir = self.root().make_for_now(&path)?;
                self.write_as(&dir, key, &bytes, durability)
            }
        };
        write().map_err(|source| RecordError::Write {
            kind: kind.to_owned(),
            key: key.to_owned(),
            source,
        })
    }

    /// Removes a record; false when there was none.
    pub fn remove_record(&self, kind: &str, key: &str) -> Result<bool, RecordError> {
        check(kind, key)?;
        let remove = || {
            let dir: Option<Dir> = self.root().sub_if_there(&folder(kind, key))?;
            dir.map_or(Ok(false), |dir| dir.unlink(key))
        };
        remove().map_err(|source| RecordError::Remove {
            kind: kind.to_owned(),
            key: key.to_owned(),
            source,
        })
    }
}

pub(crate) fn check(kind: &str, key: &str) -> Result<(), RecordError> {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let is_name = |text: &str| {
        (1..=KEY_MAX_BYTES).contains(&text.len())
            && !text.starts_with('.')
            && text.bytes().all(is_word)
    };
    if is_name(kind) && is_name(key) {
        return Ok(());
    }
    Err(RecordError::Name {
        kind: kind.to_owned(),
        key: key.to_owned(),
    })
}

/// Spreads keys of any shape evenly over 256 folders.
pub(crate) fn folder(kind: &str, key: &str) -> String {
    let hash = Digest::sha256(key.as_bytes());
    let spread: String = hash.hex().chars().take(2).collect();
    format!("{RECORDS}/{kind}/{spread}")
}

fn seal(kind: &str, key: &str, content: &[u8]) -> Digest {
    let mut hasher = Hasher::sha256();
    for part in [kind.as_bytes(), b"\0", key.as_bytes(), b"\0", content] {
        hasher.update(part);
    }
    hasher.finish()
}

pub(crate) fn open(kind: &str, key: &str, bytes: &[u8]) -> Option<Vec<u8>> {
    let end = bytes
        .iter()
        .take(HEADER_MAX_BYTES)
        .position(|b| *b == b'\n')?;
    let (header, content) = bytes.split_at_checked(end)?;
    let content = content.strip_prefix(b"\n")?;
    let (version, digest) = std::str::from_utf8(header).ok()?.split_once(' ')?;
    let is_whole = version == HEADER && digest.parse() == Ok(seal(kind, key, content));
    is_whole.then(|| content.to_vec())
}
