//! One layer's archive into its own directory, in overlayfs' own format, in one streaming pass.
//!
//! * `.wh.x` becomes a character device 0:0, `.wh..wh..opq` the attribute `user.overlay.opaque`. They speak of the layers below
//!   only: a whiteout of something in the same layer never deletes it, it makes a directory opaque.
//! * Names with `..`, whiteouts of nothing, and things in the way that cannot be parents are errors. What comes later under the
//!   same name replaces what came before.
//! * Symbolic links in paths are followed inside the layer's own directory. What they mean in the layers below is not known
//!   here, as with other builders: well-formed layers name every parent.
//! * Parents that the archive does not name are made as 0755, 0:0, time 0.
//! * A hard link to something that is not in this layer cannot be made and is an error.
//! * Device files cannot be made in a user namespace. Below `/dev`, which is mounted over in every container, they are left out
//!   and counted; elsewhere they are an error.
//! * Owners outside of the namespace's map are an error that says so.
//!
//! [`extract`] is the same for ADD: an archive into a directory of an image. There, a name with `.wh.` is an error, as it would
//! turn into a deletion when the step's layer is made, and what the archive says of its own root means nothing. As with docker, `a/../b`
//! is `b`, what a hard link says of owner, mode and time holds for the file, and what follows the archive's end is not looked at.

mod place;

#[cfg(test)]
mod tests;

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use oci::tar::{self, ReadError, Reader};
use oci::{Digest, Hasher};
use rustix::fs::{CWD, Mode};
use tokio_util::sync::CancellationToken;

use super::tree;
use place::{Placer, Policy};

/// The archive is read and hashed in pieces of this size, ahead of what is written.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces that are read ahead.
const PIECES_AHEAD: usize = 8;

/// How much an archive may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Limits of the archive's format.
    pub archive: tar::Limits,
    /// Bytes of all files.
    pub content_bytes: u64,
    /// Entries.
    pub entries: u64,
}

impl Default for UnpackLimits {
    fn default() -> Self {
        Self {
            archive: tar::Limits::default(),
            content_bytes: 64 << 30,
            entries: 4_000_000,
        }
    }
}

/// What was unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpackReport {
    /// Digest of everything that was read, the archive and what follows its end.
    pub diff_id: Digest,
    /// Bytes that were read.
    pub archive_bytes: u64,
    /// Bytes of all files.
    pub content_bytes: u64,
    /// Entries of the archive.
    pub entries: u64,
    /// Device files below `/dev` that were left out.
    pub n_devices_skipped: u64,
    /// The first of their paths.
    pub devices_skipped: Vec<String>,
}

/// Tells why an archive could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The stream failed: the compressed form is damaged or too large, or could not be fetched.
    #[error("failed to read the archive")]
    Read(#[source] io::Error),
    /// Not an archive, or one that is refused.
    #[error("failed to understand the archive")]
    Archive(#[source] ReadError),
    /// A path that leads out of the root.
    #[error("entry {path:?} leads out of the root")]
    Escapes {
        /// The entry.
        path: String,
    },
    /// The root itself as something else than a directory.
    #[error("entry {path:?} would replace the root directory")]
    ReplacesRoot {
        /// The entry.
        path: String,
    },
    /// A whiteout that whites out nothing, or one where none may be.
    #[error("entry {path:?} is not a valid whiteout")]
    Whiteout {
        /// The entry.
        path: String,
    },
    /// A name that would be read as a deletion.
    #[error(
        "entry {path:?} cannot be stored in a layer: names that start with .wh. mean deletions"
    )]
    ReservedName {
        /// The entry.
        path: String,
    },
    /// A device file outside of `/dev`.
    #[error("entry {path:?} is a device, which cannot be created without privileges")]
    Device {
        /// The entry.
        path: String,
    },
    /// A hard link to something that is not in this archive, or that has no links.
    #[error("entry {path:?} is a hard link to {target:?}, which is not a file in this layer")]
    HardLink {
        /// The entry.
        path: String,
        /// What it links to.
        target: String,
    },
    /// A parent that is not a directory.
    #[error("entry {path:?} lies below something that is not a directory")]
    NotADirectory {
        /// The entry.
        path: String,
    },
    /// An owner that the user namespace does not have.
    #[error("entry {path:?} belongs to {uid}:{gid}, which is outside of the ids that builds have")]
    Owner {
        /// The entry.
        path: String,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// More bytes in files than [`UnpackLimits::content_bytes`].
    #[error("archive holds more than {max_bytes} bytes of files")]
    TooLarge {
        /// The limit.
        max_bytes: u64,
    },
    /// More entries than [`UnpackLimits::entries`].
    #[error("archive holds more than {max} entries")]
    TooManyEntries {
        /// The limit.
        max: u64,
    },
    /// The system refused.
    #[error("failed to {attempt} {path:?}")]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// The entry.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The caller wanted no more of it.
    #[error("unpacking was cancelled")]
    Cancelled,
}

/// How [`extract`] treats what it unpacks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExtractOptions {
    /// Owner and group of everything, instead of the archive's.
    pub owner: Option<(u32, u32)>,
    /// What follows the end of the archive.
    pub rest: Rest,
}

/// What follows the end of an archive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Rest {
    /// Is nobody's business, as with docker.
    #[default]
    Ignored,
    /// Is read to its end, so that an archive which was cut off or damaged there is an error.
    Read,
}

/// Unpacks a layer into `dest`, an empty directory.
///
/// The archive is read on a thread of its own and hashed on another, to its very end, so that the digest covers every byte.
///
/// # Errors
/// See [`UnpackError`]. `dest` holds a part of the layer then, and is to be removed.
pub fn unpack(
    archive: impl Read + Send,
    dest: &Path,
    limits: &UnpackLimits,
    cancel: &CancellationToken,
) -> Result<UnpackReport, UnpackError> {
    let flags = tree::directory_flags();
    let root = rustix::fs::openat(
        CWD,
        dest,
        flags | rustix::fs::OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| UnpackError::Io {
        attempt: "open",
        path: dest.display().to_string(),
        source: error.into(),
    })?;
    run(archive, root, Policy::Layer, limits, cancel)
}

/// Unpacks an archive into the open directory `dest`, as ADD does.
///
/// # Errors
/// See [`UnpackError`]; `dest` holds a part of the archive then.
pub fn extract(
    archive: impl Read + Send,
    dest: OwnedFd,
    options: ExtractOptions,
    limits: &UnpackLimits,
    cancel: &CancellationToken,
) -> Result<UnpackReport, UnpackError> {
    run(archive, dest, Policy::Files(options), limits, cancel)
}

fn run(
    archive: impl Read + Send,
    root: OwnedFd,
    policy: Policy,
    limits: &UnpackLimits,
    cancel: &CancellationToken,
) -> Result<UnpackReport, UnpackError> {
    std::thread::scope(|scope| {
        let (pieces, received) = sync_channel(PIECES_AHEAD);
        let (seen, to_hash) = sync_channel(PIECES_AHEAD);
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        thread("unpack-read")
            .spawn_scoped(scope, move || read(archive, &pieces, &seen))
            .map_err(UnpackError::Read)?;
        let hashing = thread("unpack-hash")
            .spawn_scoped(scope, move || hash(&to_hash))
            .map_err(UnpackError::Read)?;
        let stream = Pieces {
            received,
            piece: Arc::default(),
            n_used: 0,
        };
        let placed = place_all(stream, root, policy, limits, cancel);
        // Ends once nothing is read any more: the stream must not be in use when we return.
        let hasher = hashing
            .join()
            .map_err(|_| UnpackError::Read(io::Error::other("the hashing thread died")))?;
        let mut report = placed?;
        report.archive_bytes = hasher.size_bytes();
        report.diff_id = hasher.finish();
        Ok(report)
    })
}

/// Places every entry, then drains the stream.
fn place_all(
    stream: Pieces,
    root: OwnedFd,
    policy: Policy,
    limits: &UnpackLimits,
    cancel: &CancellationToken,
) -> Result<UnpackReport, UnpackError> {
    let mut reader = Reader::new(stream, limits.archive);
    let mut placer = Placer::new(root, policy);
    let (mut entries, mut content_bytes) = (0, 0u64);
    while let Some(entry) = reader.next().map_err(read_error)? {
        if cancel.is_cancelled() {
            return Err(UnpackError::Cancelled);
        }
        entries += 1;
        if entries > limits.entries {
            return Err(UnpackError::TooManyEntries {
                max: limits.entries,
            });
        }
        content_bytes = content_bytes.saturating_add(entry.size);
        if content_bytes > limits.content_bytes {
            return Err(UnpackError::TooLarge {
                max_bytes: limits.content_bytes,
            });
        }
        placer.place(&entry, &mut reader, cancel)?;
    }
    placer.finish()?;
    let reads_rest = match policy {
        Policy::Layer => true,
        Policy::Files(options) => options.rest == Rest::Read,
    };
    if reads_rest {
        let mut stream = reader.into_inner();
        io::copy(&mut stream, &mut io::sink()).map_err(UnpackError::Read)?;
    }
    Ok(UnpackReport {
        diff_id: Digest::sha256(b""),
        archive_bytes: 0,
        content_bytes,
        entries,
        n_devices_skipped: placer.n_devices_skipped,
        devices_skipped: placer.devices_skipped,
    })
}

fn read_error(error: ReadError) -> UnpackError {
    match error {
        ReadError::Io(source) => UnpackError::Read(source),
        other => UnpackError::Archive(other),
    }
}

/// Reads until the end, an error, or until nobody takes the pieces any more. What is hashed is what was taken.
fn read(
    mut archive: impl Read,
    pieces: &SyncSender<io::Result<Arc<Vec<u8>>>>,
    seen: &SyncSender<Arc<Vec<u8>>>,
) {
    loop {
        let mut piece = vec![0; PIECE_BYTES];
        let (n, error) = fill(&mut archive, &mut piece);
        if n > 0 {
            piece.truncate(n);
            let piece = Arc::new(piece);
            // The hashing thread listens until we are gone.
            let _ = seen.send(Arc::clone(&piece));
            if pieces.send(Ok(piece)).is_err() {
                return;
            }
        }
        if let Some(error) = error {
            // Nobody listening means that all that was wanted has been read, or that another error came first.
            let _ = pieces.send(Err(error));
            return;
        }
        if n == 0 {
            return;
        }
    }
}

/// Hashes everything that comes.
fn hash(pieces: &Receiver<Arc<Vec<u8>>>) -> Hasher {
    let mut hasher = Hasher::sha256();
    while let Ok(piece) = pieces.recv() {
        hasher.update(&piece);
    }
    hasher
}

/// Reads until `piece` is full, the end, or an error; what came before an error counts.
fn fill(archive: &mut impl Read, piece: &mut [u8]) -> (usize, Option<io::Error>) {
    let mut n_filled = 0;
    while let Some(rest) = piece.get_mut(n_filled..).filter(|rest| !rest.is_empty()) {
        match archive.read(rest) {
            Ok(0) => break,
            Ok(n) => n_filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (n_filled, Some(error)),
        }
    }
    (n_filled, None)
}

/// The stream again, from its pieces.
struct Pieces {
    received: Receiver<io::Result<Arc<Vec<u8>>>>,
    piece: Arc<Vec<u8>>,
    n_used: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.n_used == self.piece.len() {
            match self.received.recv() {
                Ok(piece) => self.piece = piece?,
                Err(_) => return Ok(0),
            }
            self.n_used = 0;
        }
        let rest = self.piece.get(self.n_used..).unwrap_or_default();
        let n = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..n), rest.get(..n)) {
            to.copy_from_slice(from);
        }
        self.n_used += n;
        Ok(n)
    }
}
