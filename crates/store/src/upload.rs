//! Uploads: blobs that arrive over several requests, possibly over several lives of the server.
//!
//! An upload is the file `ingest/uploads/<id>-<hash of its scope>[-<hash of its owner>]`, so that an id is worth nothing under another
//! scope (for the registry: another repository), and each owner's are counted (for the registry: a tenant's): one that leaves many
//! unfinished does not keep others from beginning theirs. One writer at a time holds it by `flock`. The running hash stays in memory between requests
//! of the same process; otherwise the file is hashed again from its beginning.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use oci::digest::Algorithm;
use oci::{Digest, Hasher};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::blob::{cut, hash_file, verify};
use crate::commit::Place;
use crate::dir::Dir;
use crate::{CommitError, Store, session};

pub(crate) const FOLDER: &str = "ingest/uploads";
const ID_BYTES: usize = 26;

/// The name of an upload: 26 characters of `[a-z2-7]`, not to be guessed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UploadId(String);

/// Tells why a text is not the name of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("upload id is not made of {ID_BYTES} characters of a-z and 2-7")]
pub struct UploadIdError;

impl FromStr for UploadId {
    type Err = UploadIdError;

    fn from_str(text: &str) -> Result<Self, UploadIdError> {
        let is_ours = |b: u8| matches!(b, b'a'..=b'z' | b'2'..=b'7');
        if text.len() == ID_BYTES && text.bytes().all(is_ours) {
            Ok(Self(text.to_owned()))
        } else {
            Err(UploadIdError)
        }
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Under what an upload goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadScope<'a> {
    /// What has to be known beside the id.
    pub name: &'a str,
    /// Whose it is, where there are several; the same for a name, always.
    pub owner: Option<&'a str>,
}

impl<'a> From<&'a str> for UploadScope<'a> {
    fn from(name: &'a str) -> Self {
        Self { name, owner: None }
    }
}

impl UploadScope<'_> {
    fn file_name(self, id: &UploadId) -> String {
        let name = Digest::sha256(self.name.as_bytes());
        let owner = self.owner.map(owner_suffix).unwrap_or_default();
        format!("{id}-{}{owner}", name.hex())
    }
}

fn owner_suffix(owner: &str) -> String {
    format!("-{}", Digest::sha256(owner.as_bytes()).hex())
}

/// Tells why an upload could not be begun or gone on with.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// As many uploads as are allowed are unfinished.
    #[error("begin an upload: {uploads_max} are unfinished already")]
    TooMany {
        /// The limit.
        uploads_max: usize,
    },
    /// As many uploads of one owner as are allowed are unfinished.
    #[error("begin an upload: {uploads_max} of the same owner are unfinished already")]
    TooManyOfOwner {
        /// The limit.
        uploads_max: usize,
    },
    /// No file could be created.
    #[error("begin an upload")]
    Begin(#[source] io::Error),
    /// Somebody else is writing to it.
    #[error("open upload {id}: it is being written to")]
    Busy {
        /// The upload.
        id: UploadId,
    },
    /// Its file could not be opened or hashed.
    #[error("open upload {id}")]
    Open {
        /// The upload.
        id: UploadId,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Its file could not be removed.
    #[error("remove upload {id}")]
    Remove {
        /// The upload.
        id: UploadId,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Old uploads could not be looked for.
    #[error("look for old uploads")]
    List(#[source] io::Error),
}

/// The running hashes of uploads that nobody is writing to at the moment, by file name.
#[derive(Debug, Default)]
pub(crate) struct Hashers(Mutex<HashMap<String, Hasher>>);

impl Hashers {
    fn map(&self) -> MutexGuard<'_, HashMap<String, Hasher>> {
        // Nothing panics while it is held, and the worst a lost hash costs is hashing again.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An upload that is being written to, by nobody else. Dropping it keeps what was written for the next request.
#[derive(Debug)]
pub struct Upload {
    store: Store,
    id: UploadId,
    name: String,
    folder: Dir,
    file: File,
    hasher: Hasher,
    is_over: bool,
}

impl Store {
    /// Begins an upload that only `scope` can go on with.
    pub fn create_upload<'a>(
        &self,
        scope: impl Into<UploadScope<'a>>,
    ) -> Result<UploadId, UploadError> {
        let scope = scope.into();
        let folder = self.root().sub(FOLDER).map_err(UploadError::Begin)?;
        // Held while they are counted: of several that begin together, none is one too many.
        let mut hashers = self.inner.hashers.map();
        let names = folder.names().map_err(UploadError::Begin)?;
        self.admit_upload(&names, scope)?;
        let id = UploadId(session::new_id().map_err(UploadError::Begin)?);
        let name = scope.file_name(&id);
        folder
            .create_new(&name, 0o600)
            .map_err(UploadError::Begin)?;
        hashers.insert(name, Hasher::sha256());
        Ok(id)
    }

    fn admit_upload(&self, names: &[String], scope: UploadScope<'_>) -> Result<(), UploadError> {
        let limits = self.limits();
        if let Some(owner) = scope.owner {
            let suffix = owner_suffix(owner);
            let n_of_owner = names.iter().filter(|name| name.ends_with(&suffix)).count();
            // What others have left unfinished keeps nobody from these.
            if n_of_owner < limits.owner_uploads_min {
                return Ok(());
            }
            let uploads_max = limits.owner_uploads_max;
            if n_of_owner >= uploads_max {
                return Err(UploadError::TooManyOfOwner { uploads_max });
            }
        }
        let uploads_max = limits.uploads_max;
        if names.len() >= uploads_max {
            return Err(UploadError::TooMany { uploads_max });
        }
        Ok(())
    }

    /// Opens an upload to go on with it; `None` when `scope` has none of this name.
    pub fn upload<'a>(
        &self,
        scope: impl Into<UploadScope<'a>>,
        id: &UploadId,
    ) -> Result<Option<Upload>, UploadError> {
        let name = scope.into().file_name(id);
        let open = |source| UploadError::Open {
            id: id.clone(),
            source,
        };
        let folder = self.root().sub(FOLDER).map_err(open)?;
        let Some(mut file) = folder.open_file_rw(&name).map_err(open)? else {
            return Ok(None);
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(UploadError::Busy { id: id.clone() }),
            Err(error) => return Err(open(error.into())),
        }
        // It may have become a blob between opening and locking: such a file is never to be written to again.
        if !folder.is_same(&name, &file).map_err(open)? {
            return Ok(None);
        }
        let size_bytes = file.metadata().map_err(open)?.len();
        let known = self.inner.hashers.map().remove(&name);
        let hasher = match known.filter(|hasher| hasher.size_bytes() == size_bytes) {
            Some(hasher) => hasher,
            None => hash_file(&file, Algorithm::Sha256).map_err(open)?,
        };
        cut(&mut file, hasher.size_bytes()).map_err(open)?;
        Ok(Some(Upload {
            store: self.clone(),
            id: id.clone(),
            name,
            folder,
            file,
            hasher,
            is_over: false,
        }))
    }

    /// Returns how many bytes of an upload have arrived; `None` when `scope` has none of this name.
    pub fn upload_size<'a>(
        &self,
        scope: impl Into<UploadScope<'a>>,
        id: &UploadId,
    ) -> Result<Option<u64>, UploadError> {
        let name = scope.into().file_name(id);
        let look = || self.root().sub(FOLDER)?.stat(&name);
        let stat = look().map_err(|source| UploadError::Open {
            id: id.clone(),
            source,
        })?;
        Ok(stat.and_then(|stat| u64::try_from(stat.st_size).ok()))
    }

    /// Removes the uploads that nobody writes to and nobody has written to for [`crate::Limits::upload_max_age`] before `now`.
    /// Returns how many.
    pub fn expire_uploads(&self, now: SystemTime) -> Result<usize, UploadError> {
        let folder = self.root().sub(FOLDER).map_err(UploadError::List)?;
        let mut n_removed = 0;
        for name in folder.names().map_err(UploadError::List)? {
            // One that cannot be looked at or is busy is left for the next time.
            if self.expire(&folder, &name, now).unwrap_or(false) {
                n_removed += 1;
            }
        }
        Ok(n_removed)
    }

    fn expire(&self, folder: &Dir, name: &str, now: SystemTime) -> io::Result<bool> {
        let Some(file) = folder.open_file(name)? else {
            return Ok(false);
        };
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let age = now.duration_since(file.metadata()?.modified()?);
        let is_old = age.is_ok_and(|age| age >= self.limits().upload_max_age);
        if !is_old || !folder.is_same(name, &file)? {
            return Ok(false);
        }
        self.inner.hashers.map().remove(name);
        folder.unlink(name)
    }
}

impl Upload {
    /// Returns the upload's name.
    pub fn id(&self) -> &UploadId {
        &self.id
    }

    /// Returns how many bytes have arrived.
    pub fn size_bytes(&self) -> u64 {
        self.hasher.size_bytes()
    }

    /// Verifies the bytes against `expected` and makes them a blob. Returns its digest and size.
    ///
    /// # Errors
    /// After an error the upload is gone.
    pub fn commit(mut self, expected: &Digest) -> Result<(Digest, u64), CommitError> {
        self.is_over = true;
        let size_bytes = self.hasher.size_bytes();
        let digest = verify(&self.file, self.hasher.clone(), Some(expected))?;
        let place = Place::Named(&self.folder, &self.name);
        self.store.publish(&self.file, &place, &digest)?;
        Ok((digest, size_bytes))
    }

    /// Forgets everything that has arrived.
    pub fn cancel(mut self) -> Result<(), UploadError> {
        self.is_over = true;
        let removed = self.folder.unlink(&self.name);
        removed.map(|_| ()).map_err(|source| UploadError::Remove {
            id: self.id.clone(),
            source,
        })
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.hasher.size_bytes() + bytes.len() as u64 > self.store.limits().blob_max_bytes {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let n_bytes = self.file.write(bytes)?;
        self.hasher.update(bytes.get(..n_bytes).unwrap_or(bytes));
        Ok(n_bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.is_over {
            // Its name is gone when it became the blob; when the blob was there already or it failed, this copy goes.
            let _ = self.folder.unlink(&self.name);
            return;
        }
        // A write that failed half way may have left more than was hashed; the next to open it cuts that off if this fails.
        let size_bytes = self.hasher.size_bytes();
        if cut(&mut self.file, size_bytes).is_ok() {
            let name = std::mem::take(&mut self.name);
            let hasher = std::mem::replace(&mut self.hasher, Hasher::sha256());
            self.store.inner.hashers.map().insert(name, hasher);
        }
    }
}

/// Tells whether a file among the uploads can be one.
pub(crate) fn is_file_name(name: &str) -> bool {
    let is_hash = |text: &str| format!("sha256:{text}").parse::<Digest>().is_ok();
    let mut parts = name.split('-');
    parts
        .next()
        .is_some_and(|id| id.parse::<UploadId>().is_ok())
        && parts.next().is_some_and(is_hash)
        && parts.next().is_none_or(is_hash)
        && parts.next().is_none()
}
