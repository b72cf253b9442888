//! Blobs: content under its own digest.
//!
//! The one way in: bytes are hashed while they are written to a file that has no name yet; the digest is compared; the file is
//! made durable; only then it is linked under its digest, and the folder made durable. When any of that fails nothing is visible.
//! A file system without nameless files gets a name in the session's folder and a rename that replaces nothing.
//!
//! The one way out that vouches for content is [`Store::read_blob`]. [`Store::open_blob`] does not read: who sends such a file
//! on either hashes it again or talks to somebody who does.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use oci::digest::Algorithm;
use oci::{Digest, Hasher};
use rustix::fs::FileType;

use crate::Store;
use crate::commit::{CommitError, Place};
use crate::dir::Dir;
use crate::growth::Growth;

/// How much is read at a time to hash a file.
const READ_BYTES: usize = 1 << 18;

/// Tells why a blob could not be read or begun.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The system refused to look.
    #[error("look for blob {digest}")]
    Look {
        /// The blob.
        digest: Digest,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The system refused to read.
    #[error("read blob {digest}")]
    Read {
        /// The blob.
        digest: Digest,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// More bytes than the caller wants.
    #[error("read blob {digest}: it has {size_bytes} bytes, at most {max_bytes} are wanted")]
    TooLarge {
        /// The blob.
        digest: Digest,
        /// Its size.
        size_bytes: u64,
        /// What the caller allows.
        max_bytes: usize,
    },
    /// The content is not what the digest says; it was moved to quarantine.
    #[error("verify blob {digest}: the stored bytes have digest {actual}")]
    Corrupt {
        /// The blob.
        digest: Digest,
        /// What its bytes hash to.
        actual: Digest,
    },
    /// No file could be created to write to.
    #[error("begin a blob")]
    Begin(#[source] io::Error),
    /// A damaged blob could not be moved away.
    #[error("move blob {digest} to quarantine")]
    Quarantine {
        /// The blob.
        digest: Digest,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A blob that is being written. Dropped without [`Ingest::commit`] it leaves nothing.
///
/// Every write goes to the file at once; wrap it in a `BufWriter` for many small ones.
#[derive(Debug)]
pub struct Ingest {
    store: Store,
    file: File,
    /// Its name in the session's folder, where nameless files do not exist.
    name: Option<String>,
    hasher: Hasher,
    failed: bool,
    /// Whoever reads along.
    growth: Option<Arc<Growth>>,
}

impl Store {
    /// Returns the size of a blob in bytes; `None` when it is not here.
    pub fn size_of(&self, digest: &Digest) -> Result<Option<u64>, BlobError> {
        let look = || {
            let stat = self.look_for(&self.blobs(digest)?, digest.hex())?;
            Ok(stat
                .filter(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
                .and_then(|stat| u64::try_from(stat.st_size).ok()))
        };
        look().map_err(|source| BlobError::Look {
            digest: digest.clone(),
            source,
        })
    }

    /// Opens a blob for reading; `None` when it is not here. The content is not verified again.
    pub fn open_blob(&self, digest: &Digest) -> Result<Option<File>, BlobError> {
        let open = || {
            let dir = self.blobs(digest)?;
            match self.look_for(&dir, digest.hex())? {
                Some(_) => dir.open_file(digest.hex()),
                None => Ok(None),
            }
        };
        open().map_err(|source| BlobError::Look {
            digest: digest.clone(),
            source,
        })
    }

    /// Returns the content of a blob of at most `max_bytes`, verified; `None` when it is not here.
    ///
    /// # Errors
    /// A blob found damaged is moved to quarantine, so that the next look finds nothing and fetches it again.
    pub fn read_blob(
        &self,
        digest: &Digest,
        max_bytes: usize,
    ) -> Result<Option<Vec<u8>>, BlobError> {
        let Some(file) = self.open_blob(digest)? else {
            return Ok(None);
        };
        let read = |source| BlobError::Read {
            digest: digest.clone(),
            source,
        };
        let size_bytes = file.metadata().map_err(read)?.len();
        if size_bytes > max_bytes as u64 {
            return Err(BlobError::TooLarge {
                digest: digest.clone(),
                size_bytes,
                max_bytes,
            });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size_bytes).unwrap_or(0));
        (&file)
            .take(max_bytes as u64)
            .read_to_end(&mut bytes)
            .map_err(read)?;
        let mut hasher = digest.hasher();
        hasher.update(&bytes);
        self.compare(digest, hasher.finish(), &file)?;
        Ok(Some(bytes))
    }

    /// Reads a blob through and compares its digest; false when it is not here.
    ///
    /// # Errors
    /// As [`Store::read_blob`].
    pub fn verify_blob(&self, digest: &Digest) -> Result<bool, BlobError> {
        let Some(file) = self.open_blob(digest)? else {
            return Ok(false);
        };
        let actual = hash_file(&file, digest.algorithm()).map_err(|source| BlobError::Read {
            digest: digest.clone(),
            source,
        })?;
        self.compare(digest, actual.finish(), &file)?;
        Ok(true)
    }

    fn compare(&self, digest: &Digest, actual: Digest, file: &File) -> Result<(), BlobError> {
        if actual == *digest {
            return Ok(());
        }
        self.quarantine_if(digest, Some(file))?;
        Err(BlobError::Corrupt {
            digest: digest.clone(),
            actual,
        })
    }

    /// Moves a blob that is known to be damaged out of the way, to `quarantine/`; false when it is not here.
    pub fn quarantine(&self, digest: &Digest) -> Result<bool, BlobError> {
        self.quarantine_if(digest, None)
    }

    /// Moves a blob away if it still is `seen`: it may have been replaced by a good one meanwhile.
    pub(crate) fn quarantine_if(
        &self,
        digest: &Digest,
        seen: Option<&File>,
    ) -> Result<bool, BlobError> {
        let act = || {
            let blobs = self.blobs(digest)?;
            let is_it = match seen {
                Some(file) => blobs.is_same(digest.hex(), file)?,
                None => blobs.stat(digest.hex())?.is_some(),
            };
            if !is_it {
                return Ok(false);
            }
            let name = format!("{}-{}", digest.hex(), crate::session::new_id()?);
            let moved = blobs.rename_new(digest.hex(), &self.root().sub("quarantine")?, &name)?;
            blobs.sync()?;
            Ok(moved)
        };
        act().map_err(|source| BlobError::Quarantine {
            digest: digest.clone(),
            source,
        })
    }

    /// Begins a blob.
    pub fn ingest(&self) -> Result<Ingest, BlobError> {
        self.ingest_as(Algorithm::Sha256)
    }

    /// Begins a blob that will be known by a digest of `algorithm`.
    pub fn ingest_as(&self, algorithm: Algorithm) -> Result<Ingest, BlobError> {
        let begin = || {
            let unnamed = self.root().sub("ingest")?.create_unnamed()?;
            if let Some(file) = unnamed {
                return Ok((file, None));
            }
            let (file, name) = self.session().create_file()?;
            Ok((file, Some(name)))
        };
        let (file, name) = begin().map_err(BlobError::Begin)?;
        Ok(Ingest {
            store: self.clone(),
            file,
            name,
            hasher: Hasher::new(algorithm),
            failed: false,
            growth: None,
        })
    }

    /// Stores `bytes` and returns their digest.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, CommitError> {
        self.put_as(bytes, &Digest::sha256(bytes))
    }

    /// Stores `bytes` under `expected`, which is verified.
    pub fn put_as(&self, bytes: &[u8], expected: &Digest) -> Result<Digest, CommitError> {
        let mut ingest = self.ingest_as(expected.algorithm()).map_err(|error| {
            CommitError::Begin(match error {
                BlobError::Begin(source) => source,
                other => io::Error::other(other),
            })
        })?;
        ingest.write_all(bytes).map_err(CommitError::Write)?;
        Ok(ingest.commit(Some(expected))?.0)
    }

    pub(crate) fn blobs(&self, digest: &Digest) -> io::Result<Dir> {
        self.root()
            .sub(&format!("blobs/{}", digest.algorithm().name()))
    }
}

impl Ingest {
    /// Returns how many bytes were written.
    pub fn size_bytes(&self) -> u64 {
        self.hasher.size_bytes()
    }

    /// Lets the readers of `growth` read what is written from now on; nothing may have been written before.
    pub fn read_along(&mut self, growth: &Arc<Growth>) -> Result<(), BlobError> {
        growth.begin(self.file.try_clone().map_err(BlobError::Begin)?);
        self.growth = Some(Arc::clone(growth));
        Ok(())
    }

    /// Says that this was all, and that nobody expects anything else of it: who reads along gets to the end.
    pub fn whole(&self) {
        if let Some(growth) = self.growth.as_ref().filter(|_| !self.failed) {
            growth.whole();
        }
    }

    /// Verifies the bytes against `expected`, if given, and makes them a blob. Returns its digest and size.
    pub fn commit(self, expected: Option<&Digest>) -> Result<(Digest, u64), CommitError> {
        let size_bytes = self.hasher.size_bytes();
        let digest = self.verified(expected)?;
        self.store.publish(&self.file, &self.place(), &digest)?;
        Ok((digest, size_bytes))
    }

    /// Returns the digest of what was written, if it is what is `expected`.
    pub(crate) fn verified(&self, expected: Option<&Digest>) -> Result<Digest, CommitError> {
        if self.failed {
            return Err(CommitError::Incomplete);
        }
        let digest = verify(&self.file, self.hasher.clone(), expected)?;
        if let Some(growth) = &self.growth {
            // Before the bytes are durable: that is a matter of the blob, and not of who reads along.
            growth.whole();
        }
        Ok(digest)
    }

    /// Returns what was written.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Returns where it is until it has its name.
    pub(crate) fn place(&self) -> Place<'_> {
        match &self.name {
            None => Place::Unnamed,
            Some(name) => Place::Named(self.store.session().dir(), name),
        }
    }
}

impl Write for Ingest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.hasher.size_bytes() + bytes.len() as u64 > self.store.limits().blob_max_bytes {
            self.failed = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        match self.file.write(bytes) {
            Ok(n_bytes) => {
                self.hasher.update(bytes.get(..n_bytes).unwrap_or(bytes));
                if let Some(growth) = &self.growth {
                    growth.grow(n_bytes as u64);
                }
                Ok(n_bytes)
            }
            Err(error) => {
                self.failed |= error.kind() != io::ErrorKind::Interrupted;
                Err(error)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if let Some(growth) = &self.growth {
            growth.give_up();
        }
        if let Some(name) = &self.name {
            // Already gone when it was committed.
            let _ = self.store.session().dir().unlink(name);
        }
    }
}

/// Returns the digest of the bytes in `file`, which `hasher` has seen, in the algorithm of `expected`; they must agree.
pub(crate) fn verify(
    file: &File,
    hasher: Hasher,
    expected: Option<&Digest>,
) -> Result<Digest, CommitError> {
    let Some(expected) = expected else {
        return Ok(hasher.finish());
    };
    let own = hasher.finish();
    let actual = if own.algorithm() == expected.algorithm() {
        own
    } else {
        hash_file(file, expected.algorithm())
            .map_err(CommitError::Rehash)?
            .finish()
    };
    if actual != *expected {
        return Err(CommitError::DigestMismatch {
            expected: expected.clone(),
            actual,
        });
    }
    Ok(actual)
}

/// Hashes a file from its beginning, wherever its position is.
pub(crate) fn hash_file(file: &File, algorithm: Algorithm) -> io::Result<Hasher> {
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let n_bytes = match file.read_at(&mut buffer, hasher.size_bytes()) {
            Ok(0) => return Ok(hasher),
            Ok(n_bytes) => n_bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(buffer.get(..n_bytes).unwrap_or(&buffer));
    }
}

/// Sets the position of `file` to `offset` and cuts off what follows.
pub(crate) fn cut(file: &mut File, offset: u64) -> io::Result<()> {
    file.set_len(offset)?;
    file.seek(io::SeekFrom::Start(offset))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_blobs_those_that_cannot_be_made_durable_are_not_there_and_the_others_are() {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open(&scratch.path().join("store"), None).unwrap();
        let content = |n: usize| format!("number {n}").into_bytes();
        let begin = |n| {
            let mut ingest = store.ingest().unwrap();
            ingest.write_all(&content(n)).unwrap();
            (ingest, Digest::sha256(&content(n)))
        };
        let mut all: Vec<_> = (0..20).map(begin).collect();
        for n in [3, 17] {
            // No disk makes a pipe durable: the system says so.
            let (reading, _writing) = std::io::pipe().unwrap();
            all[n].0.file = File::from(std::os::fd::OwnedFd::from(reading));
        }
        for (n, done) in store.commit_all(&all).into_iter().enumerate() {
            let is_there = store.size_of(&all[n].1).unwrap().is_some();
            if [3, 17].contains(&n) {
                assert!(matches!(done, Err(CommitError::Sync { .. })), "{n}");
                assert!(!is_there, "{n}");
            } else {
                done.unwrap();
                assert!(is_there, "{n}");
            }
        }
    }
}
