//! Named locks across threads and processes, so that one layer is fetched or unpacked once.
//!
//! A lock is an exclusive `flock` on `locks/<hash of the name>`. It is let go when the guard is dropped or its process dies.
//! Whoever lets go removes the file while holding it; who waited for that file notices and opens the new one. Locks do not nest
//! in themselves: a thread that asks for a lock it holds waits for ever.

use std::fs::File;
use std::io;
use std::time::Duration;

use oci::Digest;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::{Store, session};

/// Between two looks at a lock that may be given up on.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// A lock that is held. Dropping it lets go.
#[derive(Debug)]
pub struct LockGuard {
    store: Store,
    file: File,
    name: String,
}

/// Tells why a lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Its file could not be opened or locked.
    #[error("lock {name:?} of the store")]
    Lock {
        /// The lock's name.
        name: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The caller did not want to wait any longer.
    #[error("give up waiting for lock {name:?} of the store")]
    GivenUp {
        /// The lock's name.
        name: String,
    },
}

enum Attempt {
    Locked(LockGuard),
    Held,
}

impl Store {
    /// Waits for the lock `name`, for as long as its holder lives. Any text is a name.
    pub fn lock(&self, name: &str) -> Result<LockGuard, LockError> {
        loop {
            match self.attempt(name, FlockOperation::LockExclusive)? {
                Attempt::Locked(guard) => return Ok(guard),
                Attempt::Held => {}
            }
        }
    }

    /// Takes the lock `name` if nobody holds it.
    pub fn try_lock(&self, name: &str) -> Result<Option<LockGuard>, LockError> {
        match self.attempt(name, FlockOperation::NonBlockingLockExclusive)? {
            Attempt::Locked(guard) => Ok(Some(guard)),
            Attempt::Held => Ok(None),
        }
    }

    /// Waits for the lock `name` until `give_up` returns true; it is asked a hundred times a second.
    pub fn lock_unless(
        &self,
        name: &str,
        give_up: &dyn Fn() -> bool,
    ) -> Result<LockGuard, LockError> {
        loop {
            if let Some(guard) = self.try_lock(name)? {
                return Ok(guard);
            }
            if give_up() {
                let name = name.to_owned();
                return Err(LockError::GivenUp { name });
            }
            std::thread::sleep(RETRY_INTERVAL);
        }
    }

    fn attempt(&self, name: &str, operation: FlockOperation) -> Result<Attempt, LockError> {
        self.attempt_io(name, operation)
            .map_err(|source| LockError::Lock {
                name: name.to_owned(),
                source,
            })
    }

    fn attempt_io(&self, name: &str, operation: FlockOperation) -> io::Result<Attempt> {
        let dir = self.root().sub("locks")?;
        let file_name = Digest::sha256(name.as_bytes()).hex().to_owned();
        loop {
            let file = dir.open_or_create(&file_name)?;
            if matches!(operation, FlockOperation::LockExclusive) {
                session::lock(&file)?;
            } else {
                match rustix::fs::flock(&file, operation) {
                    Ok(()) => {}
                    Err(Errno::WOULDBLOCK) => return Ok(Attempt::Held),
                    Err(error) => return Err(error.into()),
                }
            }
            if dir.is_same(&file_name, &file)? {
                return Ok(Attempt::Locked(LockGuard {
                    store: self.clone(),
                    file,
                    name: file_name,
                }));
            }
        }
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        // Unlinked while still held: whoever opened the old file sees that its name is gone. A file that stays is harmless.
        if let Ok(dir) = self.store.root().sub("locks") {
            let _ = dir.unlink(&self.name);
        }
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}
