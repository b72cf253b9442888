//! How written bytes become a blob: verify → fsync → link → fsync the directory, for one or for many at once.

use std::fs::File;
use std::io;
use std::time::SystemTime;

use oci::Digest;
use oci::digest::Algorithm;
use rustix::fs::Mode;

use crate::Store;
use crate::blob::Ingest;
use crate::dir::Dir;

/// How often a name is tried that turns out to be taken by something else.
const PUBLISH_ATTEMPTS_MAX: usize = 3;
/// Files that are waited for at the same time: a file system makes them durable together.
const SYNCED_AT_ONCE_MAX: usize = 16;

/// Tells why written bytes did not become a blob. Nothing is visible then, but after [`CommitError::Publish`] a name that may be gone when
/// the machine goes down.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The bytes are not what the caller expected.
    #[error("verify blob {expected}: the bytes have digest {actual}")]
    DigestMismatch {
        /// What the caller expected.
        expected: Digest,
        /// What was written.
        actual: Digest,
    },
    /// A write had failed before.
    #[error("commit a blob of which a write failed")]
    Incomplete,
    /// There is no file to write to.
    #[error("begin a blob")]
    Begin(#[source] io::Error),
    /// The bytes could not be written.
    #[error("write a blob")]
    Write(#[source] io::Error),
    /// The bytes could not be read back for another hash function.
    #[error("hash a blob again")]
    Rehash(#[source] io::Error),
    /// The bytes could not be made durable.
    #[error("make blob {digest} durable")]
    Sync {
        /// The blob.
        digest: Digest,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The blob could not be given its name.
    #[error("publish blob {digest}")]
    Publish {
        /// The blob.
        digest: Digest,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Where the bytes to publish are until they have their name.
pub(crate) enum Place<'a> {
    Unnamed,
    Named(&'a Dir, &'a str),
}

impl Store {
    /// Makes verified bytes durable and visible. When the blob is there already, the new copy is left to the caller to drop.
    pub(crate) fn publish(
        &self,
        file: &File,
        place: &Place<'_>,
        digest: &Digest,
    ) -> Result<(), CommitError> {
        make_durable(file, digest)?;
        let publish = || {
            // Opened first: a name that cannot be made durable must not be given.
            let blobs = self.blobs(digest)?;
            self.link(file, place, digest)?;
            blobs.sync()
        };
        publish().map_err(|source| CommitError::Publish {
            digest: digest.clone(),
            source,
        })
    }

    /// Makes many blobs of what was written, as [`Ingest::commit`] does with one, and waits for the disk for all of them together.
    /// Returns, in the same order, what became of each.
    pub fn commit_all(&self, all: &[(Ingest, Digest)]) -> Vec<Result<(), CommitError>> {
        let mut done = Vec::with_capacity(all.len());
        for some in all.chunks(SYNCED_AT_ONCE_MAX) {
            std::thread::scope(|scope| {
                let beside = |one| {
                    let thread = std::thread::Builder::new();
                    thread.spawn_scoped(scope, move || make_ready(one))
                };
                // Where there are no more threads to be had, this one waits itself.
                let syncing: Vec<_> = some
                    .iter()
                    .map(|one| beside(one).map_err(|_none| make_ready(one)))
                    .collect();
                done.extend(syncing.into_iter().map(|one| match one {
                    Ok(thread) => thread.join().unwrap_or(Err(CommitError::Incomplete)),
                    Err(done) => done,
                }));
            });
        }
        let mut name_all = || {
            // Opened first: names that cannot be made durable must not be given.
            let mut folders = Vec::new();
            for algorithm in Algorithm::ALL {
                if all
                    .iter()
                    .any(|(_, digest)| digest.algorithm() == algorithm)
                {
                    let folder = format!("blobs/{}", algorithm.name());
                    folders.push(self.root().sub(&folder)?);
                }
            }
            for (one, (ingest, digest)) in done.iter_mut().zip(all) {
                if one.is_err() {
                    continue;
                }
                if let Err(source) = self.link(ingest.file(), &ingest.place(), digest) {
                    let digest = digest.clone();
                    *one = Err(CommitError::Publish { digest, source });
                }
            }
            folders.iter().try_for_each(Dir::sync)
        };
        let synced: io::Result<()> = name_all();
        if let Err(error) = synced {
            for (one, (_, digest)) in done.iter_mut().zip(all).filter(|(one, _)| one.is_ok()) {
                let (digest, source) = (digest.clone(), io::Error::from(error.kind()));
                *one = Err(CommitError::Publish { digest, source });
            }
        }
        done
    }

    /// Gives durable bytes their name, which is not durable yet. Nothing happens when the blob is there.
    ///
    /// The name stays also when it could not be made durable: somebody else may have found it, waited for the disk with success, and been
    /// promised that the blob is there. Who was not promised anything writes the blob again, and what nobody refers to is collected.
    fn link(&self, file: &File, place: &Place<'_>, digest: &Digest) -> io::Result<()> {
        let blobs = self.blobs(digest)?;
        let size_bytes = file.metadata()?.len();
        // Making it durable may have taken so long that a collector would find it unused.
        file.set_modified(SystemTime::now())?;
        for _ in 0..PUBLISH_ATTEMPTS_MAX {
            let linked = match place {
                Place::Unnamed => blobs.link_unnamed(file, digest.hex())?,
                Place::Named(dir, name) => dir.rename_new(name, &blobs, digest.hex())?,
            };
            if linked {
                return Ok(());
            }
            // Somebody else was first. Their link may not be durable yet, and we are about to promise that it is.
            if self.size_of(digest).map_err(io::Error::other)? == Some(size_bytes) {
                return Ok(());
            }
            self.quarantine(digest).map_err(io::Error::other)?;
        }
        Err(io::Error::other("its place is taken by something else"))
    }
}

/// Makes the bytes of a blob durable.
fn make_durable(file: &File, digest: &Digest) -> Result<(), CommitError> {
    rustix::fs::fchmod(file, Mode::from_raw_mode(0o444))
        .map_err(io::Error::from)
        .and_then(|()| file.sync_all())
        .map_err(|source| CommitError::Sync {
            digest: digest.clone(),
            source,
        })
}

/// Verifies what was written and makes it durable.
fn make_ready((ingest, digest): &(Ingest, Digest)) -> Result<(), CommitError> {
    ingest.verified(Some(digest))?;
    make_durable(ingest.file(), digest)
}
