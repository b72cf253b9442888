//! Folders that callers have uploaded to build from: their entries in a manifest each, their contents once for each tenant.
//!
//! ```text
//! contexts/TENANT/manifests/ID    the entries of one context: complete, verified when read
//! contexts/TENANT/contents/XX/…   contents under their SHA-256, hashed by us
//! ```
//!
//! TENANT is a hash of the tenant's name. An upload, in order ([`ContextDraft`]):
//!
//! 1. entries are checked one after the other and written to the manifest;
//! 2. contents that this tenant lacks are named, and written to a *tray* of the upload's own as they arrive, each hashed;
//! 3. one `syncfs` makes all of them durable, whatever their number; only then they get their names among the contents, and a second
//!    one makes the names durable;
//! 4. the manifest is made durable under an id that nobody can guess.
//!
//! # What always holds
//! * A content that has its name has been hashed by us and is durable; a manifest that has its name is, and so is all that it names.
//!   An upload that stops before its end leaves no manifest; what it brought whole may become contents ([`ContextDraft::abandon`]).
//!   A process that is killed leaves nothing.
//! * What one tenant has uploaded is never found on behalf of another: there is no way from one's folder to the other's.
//! * Nothing here is given to the store's owner: the data plane reads it and, where root serves, cannot change it.
//! * A content's time of change says how long it is needed: for twice the lifetime of a context. Whoever relies on one renews it
//!   when it is older than one lifetime, so that what a living context names is never removed. Lists are read only when a tenant would
//!   have more than it may (`room`): then contents that no list names go earlier.
//! * Uploads leave free what [`Allowance`] says, all of them together.
//! * A context is read under a shared lock on its manifest: while anybody reads or keeps it, it is not forgotten.

mod content;
mod draft;
mod entry;
pub(crate) mod manifest;
pub(crate) mod room;
mod sweep;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, BufReader};
use std::str::FromStr;
use std::time::Duration;

use oci::Digest;
use rustix::fs::FlockOperation;

pub use content::ContentId;
pub use draft::{Announced, ContextDraft, Created};
pub use entry::{Entry, EntryError, EntryKind, Sequence, components, parent_of};
pub use manifest::{Entries, ManifestError};
pub use room::Allowance;
pub use sweep::Swept;

use manifest::Trailer;

use crate::dir::Dir;
use crate::{LockError, LockGuard, Store, session};

/// Contexts of one tenant that live at the same time.
pub const CONTEXTS_MAX: usize = 4096;
const ID_CHARACTERS: usize = 26;
const READ_BYTES: usize = 1 << 18;

/// Which context: 130 random bits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ContextId(String);

/// Tells why a text is no id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not the id of a context")]
pub struct ParseContextIdError;

impl FromStr for ContextId {
    type Err = ParseContextIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_ours = |byte: u8| matches!(byte, b'a'..=b'z' | b'2'..=b'7');
        let is_id = text.len() == ID_CHARACTERS && text.bytes().all(is_ours);
        is_id
            .then(|| Self(text.to_owned()))
            .ok_or(ParseContextIdError)
    }
}

impl std::fmt::Display for ContextId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// How long things are kept, seen from now.
#[derive(Debug, Clone, Copy)]
pub struct Keeping {
    /// The time in Unix milliseconds.
    pub now_ms: u64,
    /// How long a context lives.
    pub lifetime: Duration,
}

impl Keeping {
    /// Tells whether a context made at `created_ms` has had its time.
    pub fn is_over(&self, created_ms: u64) -> bool {
        self.expires_at_ms(created_ms) <= self.now_ms
    }

    /// Returns when a context made at `created_ms` has had its time.
    pub fn expires_at_ms(&self, created_ms: u64) -> u64 {
        created_ms.saturating_add(self.lifetime_ms())
    }

    fn lifetime_ms(&self) -> u64 {
        u64::try_from(self.lifetime.as_millis()).unwrap_or(u64::MAX)
    }

    fn age_ms(&self, modified_s: i64) -> u64 {
        let at_ms = u64::try_from(modified_s).unwrap_or(0).saturating_mul(1000);
        self.now_ms.saturating_sub(at_ms)
    }

    /// Tells whether a content changed at `modified_s` is to be renewed by whoever relies on it.
    fn is_to_be_renewed(&self, modified_s: i64) -> bool {
        self.age_ms(modified_s) >= self.lifetime_ms()
    }

    /// Tells whether nobody can rely any more on a content changed at `modified_s`.
    fn is_unneeded(&self, modified_s: i64) -> bool {
        self.age_ms(modified_s) > self.lifetime_ms().saturating_mul(2)
    }
}

/// Tells why something was not done with a context.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// An entry is refused.
    #[error("the entry {path:?} is refused")]
    Entry {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        source: EntryError,
    },
    /// There are more or fewer entries than were announced.
    #[error("{found} entries came where {announced} were announced")]
    NumberOfEntries {
        /// How many were announced.
        announced: u64,
        /// How many came, at least.
        found: u64,
    },
    /// The files are larger or smaller together than was announced.
    #[error("files of {found} bytes came where {announced} were announced")]
    NumberOfBytes {
        /// What was announced.
        announced: u64,
        /// What came.
        found: u64,
    },
    /// One content with two sizes.
    #[error("the entry {path:?} has {size} bytes, and its content has {actual}")]
    Size {
        /// The entry's path.
        path: String,
        /// The size that it says.
        size: u64,
        /// The size that the content has.
        actual: u64,
    },
    /// A content has another digest than its entry says.
    #[error("the content of the entry at position {entry} does not have the digest {expected}")]
    Digest {
        /// Which entry, from 0.
        entry: u64,
        /// The digest that it says.
        expected: ContentId,
    },
    /// More content than was asked for.
    #[error("content came that was not asked for")]
    Unwanted,
    /// Less content than was asked for.
    #[error("the upload ended before all content had come")]
    Incomplete,
    /// The tenant has too many.
    #[error("there are {CONTEXTS_MAX} contexts already")]
    TooMany,
    /// It would not fit.
    #[error("there is no room for {needed} bytes on the disk, of which {left} stay free")]
    NoSpace {
        /// What it would take.
        needed: u64,
        /// What has to stay free, bytes and a part of the files that the disk can hold.
        left: u64,
    },
    /// The tenant would have too much.
    #[error("uploads take {kept} bytes, for {more} more there is no room within {max_bytes}")]
    TooMuch {
        /// What the tenant has, and what its uploads on their way will bring.
        kept: u64,
        /// What was asked for.
        more: u64,
        /// What it may have.
        max_bytes: u64,
    },
    /// Content that was there at the beginning is there no longer.
    #[error("content that was known before is not any more")]
    Vanished,
    /// A context is damaged, or something that it names is missing.
    #[error("read a context")]
    Damaged(#[source] ManifestError),
    /// Nobody else may work on the tenant's contexts for a moment, and that could not be arranged.
    #[error("lock the contexts of a tenant")]
    Lock(#[source] LockError),
    /// The system refused.
    #[error("{attempt}")]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn failed(attempt: &'static str) -> impl Fn(io::Error) -> ContextError {
    move |source| ContextError::Io { attempt, source }
}

/// A tenant's folder.
#[derive(Debug)]
pub(crate) struct Home {
    folder: String,
    pub(crate) contents: Dir,
    pub(crate) manifests: Dir,
}

pub(crate) const FOLDER: &str = "contexts";
const CONTENTS: &str = "contents";
const MANIFESTS: &str = "manifests";

impl Home {
    /// Opens the folder of a tenant to write to it, and makes it if need be.
    fn make(store: &Store, tenant: &str) -> io::Result<Self> {
        let all = store.root().ours()?.make(FOLDER)?;
        let owner = rustix::fs::fstat(&all)?.st_uid;
        if owner != rustix::process::geteuid().as_raw() {
            // Whoever owns it could put anything in the place of what we have checked.
            return Err(io::Error::other(format!(
                "user {owner} owns the folder {FOLDER}"
            )));
        }
        let name = folder_of(tenant);
        let home = all.make(&name)?;
        Ok(Self {
            contents: home.make(CONTENTS)?,
            manifests: home.make(MANIFESTS)?,
            folder: name,
        })
    }

    /// Opens the folder called `name` as it is; `None` when it is not there, or not whole.
    pub(crate) fn open(store: &Store, name: &str) -> io::Result<Option<Self>> {
        let Some(home) = store
            .root()
            .ours()?
            .sub_if_there(&format!("{FOLDER}/{name}"))?
        else {
            return Ok(None);
        };
        let (contents, manifests) = (home.sub_if_there(CONTENTS)?, home.sub_if_there(MANIFESTS)?);
        Ok(contents.zip(manifests).map(|(contents, manifests)| Self {
            folder: name.to_owned(),
            contents,
            manifests,
        }))
    }

    pub(crate) fn lock(&self, store: &Store) -> Result<LockGuard, ContextError> {
        let name = format!("contexts/{}", self.folder);
        store.lock(&name).map_err(ContextError::Lock)
    }

    fn folder(&self) -> &str {
        &self.folder
    }
}

fn folder_of(tenant: &str) -> String {
    Digest::sha256(tenant.as_bytes()).hex().to_owned()
}

/// A context that is there, and stays as long as this is kept.
#[derive(Debug)]
pub struct Context {
    /// Locked.
    file: File,
    contents: Dir,
    trailer: Trailer,
}

impl Store {
    /// Finds a context of `tenant` and keeps it; `None` when there is none of this id.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub fn context(&self, tenant: &str, id: &ContextId) -> Result<Option<Context>, ContextError> {
        let look = failed("look for a context");
        let Some(home) = Home::open(self, &folder_of(tenant)).map_err(&look)? else {
            return Ok(None);
        };
        let Some(mut file) = home.manifests.open_file(&id.0).map_err(&look)? else {
            return Ok(None);
        };
        lock_shared(&file).map_err(&look)?;
        // It may have been forgotten before the lock was had.
        if !home.manifests.is_same(&id.0, &file).map_err(&look)? {
            return Ok(None);
        }
        let trailer = manifest::verify(&mut file).map_err(ContextError::Damaged)?;
        Ok(Some(Context {
            file,
            contents: home.contents,
            trailer,
        }))
    }
}

impl Context {
    /// Returns when it was complete, in Unix milliseconds.
    pub fn created_ms(&self) -> u64 {
        self.trailer.created_ms
    }

    /// Returns how many entries it has.
    pub fn n_entries(&self) -> u64 {
        self.trailer.n_entries
    }

    /// Returns its entries from the first one on. One reader at a time: they share a place in the file.
    ///
    /// # Errors
    /// When the manifest cannot be read.
    pub fn entries(&self) -> Result<Entries<BufReader<&File>>, ContextError> {
        let mut file = &self.file;
        io::Seek::rewind(&mut file).map_err(failed("read a context"))?;
        let reader = BufReader::with_capacity(READ_BYTES, file);
        Entries::begin(reader, self.trailer).map_err(ContextError::Damaged)
    }

    /// Opens a content that an entry names. It was hashed when it came, and is not again.
    ///
    /// # Errors
    /// When it is not there, or cannot be opened.
    pub fn open_content(&self, content: ContentId) -> Result<File, ContextError> {
        let found = self.contents.open_file(&content.place());
        found
            .and_then(|file| file.ok_or_else(|| io::ErrorKind::NotFound.into()))
            .map_err(failed("open the content of an uploaded file"))
    }
}

fn lock_shared(file: &File) -> io::Result<()> {
    loop {
        match rustix::fs::flock(file, FlockOperation::LockShared) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

fn new_id() -> io::Result<ContextId> {
    Ok(ContextId(session::new_id()?))
}
