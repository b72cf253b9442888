//! Cache mounts: directories that commands of builds fill and find again, `mounts/<key>/<number>/`.
//!
//! Each holds `lock`, whose `flock` says who uses it, and `data`. A key has several directories only while somebody uses one alone and
//! somebody else does not want to wait. The lock belongs to whoever has its descriptor open: it is given to the process that
//! supervises the command, so that it is let go of when no process of the command is alive, whatever happens to the worker.
//!
//! Nothing in here is made durable, and nothing is hashed: it is what hostile commands left for each other. It is never part of an
//! image. `data` appears under its name with its first content whole, or not at all. The modification time of `lock` is when it
//! was last taken.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci::Digest;
use rustix::fs::{FlockOperation, Timespec, Timestamps, UTIME_NOW};
use rustix::io::Errno;

use crate::Store;
use crate::dir::Dir;

pub(crate) const MOUNTS: &str = "mounts";
pub(crate) const DATA: &str = "data";
pub(crate) const LOCK: &str = "lock";
/// Filled and not yet renamed.
pub(crate) const DRAFT: &str = "draft";
/// Most directories of one key: so many may be used alone at the same time.
const INSTANCES_MAX: usize = 256;
/// Between two looks at a lock that is held.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// How a cache mount is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheUse {
    /// Beside others.
    Shared,
    /// Alone: another directory is taken or made when this one is in use.
    Private,
    /// Alone: whoever comes waits.
    Locked,
}

/// A cache mount in use.
#[derive(Debug)]
pub struct CacheMountGuard {
    path: PathBuf,
    data: OwnedFd,
    lock: File,
}

impl CacheMountGuard {
    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the directory.
    pub fn directory(&self) -> impl AsFd {
        self.data.as_fd()
    }

    /// Returns another descriptor of the lock: it is held until this guard and all of those are gone.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn hold(&self) -> io::Result<OwnedFd> {
        Ok(self.lock.try_clone()?.into())
    }
}

/// Tells why a cache mount could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CacheMountError {
    /// It could not be made or locked.
    #[error("take cache mount {key}")]
    Take {
        /// Which one.
        key: Digest,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Its first content could not be made.
    #[error("fill cache mount {key}")]
    Fill {
        /// Which one.
        key: Digest,
        /// What whoever fills it said.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// More are in use than there may be.
    #[error("take cache mount {key}: {INSTANCES_MAX} of it are in use")]
    TooMany {
        /// Which one.
        key: Digest,
    },
    /// The caller did not want to wait any longer.
    #[error("give up waiting for cache mount {key}")]
    GivenUp {
        /// Which one.
        key: Digest,
    },
}

/// Makes the first content of a cache mount in an empty directory.
pub type Fill<'a> = dyn Fn(&Path) -> Result<(), Box<dyn Error + Send + Sync>> + 'a;

/// What came of trying to take one directory.
enum Attempt {
    Taken(Dir, File),
    /// Somebody is making its first content.
    BeingFilled,
    Busy,
}

impl Store {
    /// Takes the cache mount `key`; when it is new, `fill` makes what is in it. Waits only where [`CacheUse::Locked`] is asked for, and
    /// for a mount that is just being filled, until `give_up` returns true.
    ///
    /// # Errors
    /// See [`CacheMountError`].
    pub fn cache_mount(
        &self,
        key: &Digest,
        how: CacheUse,
        fill: &Fill<'_>,
        give_up: &dyn Fn() -> bool,
    ) -> Result<CacheMountGuard, CacheMountError> {
        let failed = |source| CacheMountError::Take {
            key: key.clone(),
            source,
        };
        let n_instances = match how {
            CacheUse::Locked => 1,
            CacheUse::Shared | CacheUse::Private => INSTANCES_MAX,
        };
        loop {
            for number in 0..n_instances {
                let attempt = self.try_instance(key, number, how).map_err(failed)?;
                let (dir, lock) = match attempt {
                    Attempt::Taken(dir, lock) => (dir, lock),
                    // Who shares waits for the first one's content, or both would have one of their own.
                    Attempt::BeingFilled if how == CacheUse::Shared => break,
                    Attempt::BeingFilled | Attempt::Busy => continue,
                };
                let Some(guard) = self.open_instance(key, number, (&dir, lock), how, fill)? else {
                    break;
                };
                return Ok(guard);
            }
            if how == CacheUse::Private && !self.may_free(key).map_err(failed)? {
                return Err(CacheMountError::TooMany { key: key.clone() });
            }
            if give_up() {
                return Err(CacheMountError::GivenUp { key: key.clone() });
            }
            std::thread::sleep(RETRY_INTERVAL);
        }
    }

    /// Takes the lock of one directory if it can be had.
    fn try_instance(&self, key: &Digest, number: usize, how: CacheUse) -> io::Result<Attempt> {
        // A collector that has one in its hands is not somebody who uses it.
        let _settled = self.settled()?;
        let path = format!("{MOUNTS}/{}/{number}", key.hex());
        let dir = self.root().make(&path)?;
        let lock = dir.open_or_create(LOCK)?;
        let filled = dir.stat(DATA)?.is_some();
        // What is not filled yet is filled by one.
        let operation = match how {
            CacheUse::Shared if filled => FlockOperation::NonBlockingLockShared,
            _ => FlockOperation::NonBlockingLockExclusive,
        };
        match rustix::fs::flock(&lock, operation) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) if !filled => return Ok(Attempt::BeingFilled),
            Err(Errno::WOULDBLOCK) => return Ok(Attempt::Busy),
            Err(error) => return Err(error.into()),
        }
        // Whoever removes one holds its lock, so that a name that is gone shows.
        let is_there = dir.is_same(LOCK, &lock)?;
        Ok(if is_there {
            Attempt::Taken(dir, lock)
        } else {
            Attempt::Busy
        })
    }

    /// Opens a directory whose lock is held, and fills it first if it is new. `None` when somebody was faster.
    fn open_instance(
        &self,
        key: &Digest,
        number: usize,
        (dir, lock): (&Dir, File),
        how: CacheUse,
        fill: &Fill<'_>,
    ) -> Result<Option<CacheMountGuard>, CacheMountError> {
        let failed = |source: io::Error| CacheMountError::Take {
            key: key.clone(),
            source,
        };
        let path = self.path().join(MOUNTS).join(key.hex());
        let path = path.join(number.to_string());
        let is_new = dir.stat(DATA).map_err(failed)?.is_none();
        if is_new {
            let draft = path.join(DRAFT);
            crate::remove_tree(&draft).map_err(failed)?;
            let draft_dir = dir.make(DRAFT).map_err(failed)?;
            drop(draft_dir);
            fill(&draft).map_err(|source| CacheMountError::Fill {
                key: key.clone(),
                source,
            })?;
        }
        // Before the content shows: whoever sees it can share it at once.
        if how == CacheUse::Shared {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(failed(error.into())),
            }
        }
        if is_new {
            dir.replace(DRAFT, dir, DATA).map_err(failed)?;
        }
        let data = dir.sub(DATA).map_err(failed)?;
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        };
        let times = Timestamps {
            last_access: now,
            last_modification: now,
        };
        // Only tells which ones are not used any more.
        let _ = rustix::fs::futimens(&lock, &times);
        let data = data.as_fd().try_clone_to_owned().map_err(failed)?;
        Ok(Some(CacheMountGuard {
            path: path.join(DATA),
            data,
            lock,
        }))
    }

    /// Tells whether waiting may help: someone else was only faster.
    fn may_free(&self, key: &Digest) -> io::Result<bool> {
        let dir = self.root().sub(&format!("{MOUNTS}/{}", key.hex()))?;
        Ok(dir.names()?.len() < INSTANCES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_while_a_shared_one_is_filled_gets_the_same() {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open(&scratch.path().join("store"), None).unwrap();
        let key = Digest::sha256(b"key");
        let slow = |_: &Path| {
            std::thread::sleep(std::time::Duration::from_millis(300));
            Ok(())
        };
        let take = || store.cache_mount(&key, CacheUse::Shared, &slow, &|| false);
        let (one, other) = std::thread::scope(|scope| {
            let other = scope.spawn(take);
            (take().unwrap(), other.join().unwrap().unwrap())
        });
        assert_eq!(one.path(), other.path());
    }
}
