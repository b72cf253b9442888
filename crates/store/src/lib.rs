//! The content-addressed store on disk: blobs, unfinished uploads, repositories, snapshots, records and locks.
//!
//! | module | what it holds |
//! |---|---|
//! | [`blob`] | [`Ingest`]: write → verify → fsync → link → fsync the directory; reading with verification |
//! | [`commit`] | the same for many at once, and what both have in common |
//! | [`growth`] | [`Growth`]: a blob that is read while it is written |
//! | [`upload`] | [`Upload`]: a blob that arrives over several requests |
//! | [`repository`] | links from repositories to blobs and manifests, and tags |
//! | [`snapshot`] | unpacked layers |
//! | [`cache_mount`] | directories that commands find again |
//! | [`context`] | folders that callers have uploaded, for each tenant apart |
//! | [`record`] | small checksummed documents |
//! | [`lock`] | named locks across threads and processes |
//! | [`check`] | whether everything is as it has to be, and putting right what is not |
//! | [`collect`] | what is there, how much it takes, and removing what has not been used for longest |
//! | [`tree`] | [`remove_tree`], for trees that hostile programs have made |
//!
//! Plain blocking IO: callers that are async go through a blocking thread. Any number of processes share one store, of two
//! users at most: its owner (the data plane) and root (the server), who gives everything it creates to the owner.
//!
//! # Invariants
//! * What is visible under `blobs/` has been hashed by us, and its bytes are durable. It is never written to again. Its name is durable
//!   before anybody is told that it is there.
//! * A killed process leaves nothing visible that is half done; what it leaves under `tmp/` is removed by the next one that
//!   opens the store, and only when it is certain that its process is dead.
//! * After a failed `fsync` of its bytes an object is discarded: the system reports such an error once and forgets it.
//! * No caller's text becomes a path before it has been parsed.
//! * What a repository holds, what a living lease has used, and what was used a moment ago is never collected.

#![forbid(unsafe_code)]

pub mod blob;
pub mod cache_mount;
pub mod check;
pub mod collect;
pub mod commit;
pub mod context;
mod dir;
pub mod growth;
pub mod lock;
pub mod place;
pub mod record;
pub mod repository;
mod session;
pub mod snapshot;
pub mod tree;
pub mod upload;
mod used;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use blob::{BlobError, Ingest};
pub use cache_mount::{CacheMountError, CacheMountGuard, CacheUse};
pub use commit::CommitError;
pub use growth::{Growth, GrowthReader};
pub use lock::{LockError, LockGuard};
pub use place::{Place, PlaceError};
pub use record::RecordError;
pub use repository::RepositoryError;
pub use snapshot::{SnapshotDraft, SnapshotError};
pub use tree::remove_tree;
pub use upload::{Upload, UploadError, UploadId, UploadScope};

use dir::Dir;
use session::Session;

/// Who owns the store's files, in ids as this process sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What the store refuses to exceed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest blob in bytes.
    pub blob_max_bytes: u64,
    /// Largest manifest in bytes.
    pub manifest_max_bytes: usize,
    /// Largest record in bytes.
    pub record_max_bytes: usize,
    /// Unfinished uploads at a time.
    pub uploads_max: usize,
    /// Those of one owner, where there are several.
    pub owner_uploads_max: usize,
    /// Those that every owner may have, however many others have.
    pub owner_uploads_min: usize,
    /// How long an upload may lie untouched until [`Store::expire_uploads`] removes it.
    pub upload_max_age: Duration,
    /// Tags of one repository that are listed.
    pub tags_max: usize,
    /// Repositories that are listed.
    pub repositories_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            blob_max_bytes: 64 << 30,
            manifest_max_bytes: oci::manifest::DOCUMENT_MAX_BYTES,
            record_max_bytes: 16 << 20,
            uploads_max: 1024,
            owner_uploads_max: 512,
            owner_uploads_min: 16,
            upload_max_age: Duration::from_secs(24 * 60 * 60),
            tags_max: 100_000,
            repositories_max: 100_000,
        }
    }
}

/// A store on disk. Cheap to clone; all clones share one session.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    root: Dir,
    limits: Limits,
    session: Session,
    hashers: upload::Hashers,
    rooms: context::room::Rooms,
}

/// What a crash of the machine may do to what was just written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durability {
    /// Nothing.
    Durable,
    /// Make it disappear, or damage it so that it can be seen.
    Lost,
}

/// Tells why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder or one of those in it could not be created or opened.
    #[error("lay out the store at {path}")]
    Layout {
        /// The store's folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The folder of this session could not be made.
    #[error("begin a session of the store at {path}")]
    Session {
        /// The store's folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Snapshots that may have lost content in a crash of the machine could not be dropped.
    #[error("drop snapshots of the store at {path} that a crash may have damaged")]
    Recover {
        /// The store's folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

const LAYOUT: [&str; 13] = [
    "blobs/sha256",
    "blobs/sha512",
    "ingest/uploads",
    "locks",
    "mounts",
    "quarantine",
    "records",
    "repositories",
    "snapshots",
    "tmp",
    snapshot::SYNCED,
    used::USED,
    "ingest",
];

impl Store {
    /// Opens the store at `dir` with the usual limits, creating what is missing (the parent of `dir` must exist).
    ///
    /// When this process is root and `owner` is given, everything it creates is given to `owner`.
    pub fn open(dir: &Path, owner: Option<Owner>) -> Result<Self, OpenError> {
        Self::open_with(dir, owner, Limits::default())
    }

    /// Opens the store at `dir` with `limits`.
    pub fn open_with(dir: &Path, owner: Option<Owner>, limits: Limits) -> Result<Self, OpenError> {
        let owner = owner.filter(|_| rustix::process::geteuid().is_root());
        let lay_out = || {
            let root = Dir::open_root(dir, owner)?;
            root.make_all(&LAYOUT)?;
            Ok((root, std::path::absolute(dir)?))
        };
        let (root, path) = lay_out().map_err(|source| OpenError::Layout {
            path: dir.to_owned(),
            source,
        })?;
        let begin = |source| OpenError::Session {
            path: path.clone(),
            source,
        };
        let (session, opening) = Session::begin(&root, &path).map_err(begin)?;
        snapshot::drop_damaged(&root, &session).map_err(|source| OpenError::Recover {
            path: path.clone(),
            source,
        })?;
        opening.finish(&session).map_err(begin)?;
        Ok(Self {
            inner: Arc::new(Inner {
                path,
                root,
                limits,
                session,
                hashers: upload::Hashers::default(),
                rooms: context::room::Rooms::default(),
            }),
        })
    }

    /// Returns the store's folder.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Returns what this store refuses to exceed.
    pub fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    fn root(&self) -> &Dir {
        &self.inner.root
    }

    fn session(&self) -> &Session {
        &self.inner.session
    }

    /// Writes `bytes` as `name` in `dir`, whole or not at all, durably.
    fn write_whole(&self, dir: &Dir, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.write_as(dir, name, bytes, Durability::Durable)
    }

    fn write_as(
        &self,
        dir: &Dir,
        name: &str,
        bytes: &[u8],
        durability: Durability,
    ) -> io::Result<()> {
        use std::io::Write as _;
        let session = self.session();
        let (mut file, draft) = session.create_file()?;
        let written = file
            .write_all(bytes)
            .and_then(|()| {
                Ok(rustix::fs::fchmod(
                    &file,
                    rustix::fs::Mode::from_raw_mode(0o644),
                )?)
            })
            .and_then(|()| match durability {
                Durability::Durable => file.sync_all(),
                Durability::Lost => Ok(()),
            })
            .and_then(|()| session.dir().replace(&draft, dir, name));
        match (written, durability) {
            (Ok(()), Durability::Durable) => dir.sync(),
            (Ok(()), Durability::Lost) => Ok(()),
            (Err(error), _) => {
                // The first error is the one to tell; what stays goes with the session.
                let _ = session.dir().unlink(&draft);
                Err(error)
            }
        }
    }
}
