//! The folder `tmp/<id>/` of one opened store, for everything unfinished that must have a name.
//!
//! Who opens the store holds an exclusive `flock` on its folder as long as it lives; the system lets go of it when the process
//! dies, however it dies. A folder whose lock can be had is hence nobody's. Between making a folder and locking it, and while
//! dead ones are looked for, everybody holds `locks/.session`, so that a folder just made is never taken for a dead one.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rustix::fs::FlockOperation;

use crate::dir::Dir;
use crate::{tree, used};

pub(crate) const GATE: &str = ".session";
/// Dead folders that one opening removes: each is a descriptor until it is gone.
const CLAIMS_MAX: usize = 128;

/// One opened store's own folder.
#[derive(Debug)]
pub(crate) struct Session {
    name: String,
    parent: Dir,
    /// Holds the lock: never shared with a child process, as it is closed on exec.
    dir: Dir,
    path: PathBuf,
    n_names: AtomicU64,
}

/// The opening of a store, which only one process at a time goes through.
#[derive(Debug)]
pub(crate) struct Opening {
    gate: File,
}

impl Session {
    /// Makes and locks a folder. Nobody else opens the store until [`Opening::finish`].
    pub(crate) fn begin(root: &Dir, root_path: &Path) -> io::Result<(Self, Opening)> {
        let gate = root.sub("locks")?.open_or_create(GATE)?;
        lock(&gate)?;
        let parent = root.sub("tmp")?;
        let name = new_id()?;
        // Nothing of a session is to outlive a crash of the machine.
        let dir = parent.make_for_now(&name)?;
        rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive)?;
        let session = Self {
            path: root_path.join("tmp").join(&name),
            name,
            parent,
            dir,
            n_names: AtomicU64::new(0),
        };
        Ok((session, Opening { gate }))
    }

    /// Returns the folder.
    pub(crate) fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Returns the folder's path, for callers outside the store.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns a name within the folder that was not used before.
    pub(crate) fn new_name(&self) -> String {
        self.n_names.fetch_add(1, Ordering::Relaxed).to_string()
    }

    /// Creates a file of a new name within the folder, readable by its owner only.
    pub(crate) fn create_file(&self) -> io::Result<(File, String)> {
        let name = self.new_name();
        Ok((self.dir.create_new(&name, 0o600)?, name))
    }

    /// Removes a file or tree within the folder.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        tree::remove_at(&self.dir, &CString::new(name)?)
    }

    /// Locks the folders of dead processes.
    pub(crate) fn claim_dead(&self) -> io::Result<Vec<(String, Dir)>> {
        let mut dead = Vec::new();
        for name in self.parent.names()? {
            if name == self.name || dead.len() >= CLAIMS_MAX {
                continue;
            }
            let Ok(dir) = self.parent.sub(&name) else {
                continue;
            };
            if rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok() {
                dead.push((name, dir));
            }
        }
        Ok(dead)
    }
}

/// Returns when the oldest lease of a living process began; `None` when there is none.
pub(crate) fn oldest_lease(root: &Dir) -> io::Result<Option<SystemTime>> {
    // Nobody begins a session meanwhile: a folder that is not locked yet would be taken for a dead one, and be locked by us.
    let gate = root.sub("locks")?.open_or_create(GATE)?;
    lock(&gate)?;
    let sessions = root.sub("tmp")?;
    let mut oldest = None;
    for name in sessions.names()? {
        let Some(dir) = sessions.sub_if_there(&name)? else {
            continue;
        };
        let Some(lease) = dir.stat(used::LEASE)? else {
            continue;
        };
        let is_dead = rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok();
        if !is_dead {
            let began = used::modified(&lease);
            oldest = Some(oldest.map_or(began, |oldest: SystemTime| oldest.min(began)));
        }
    }
    Ok(oldest)
}

impl Opening {
    /// Lets others open the store and removes what dead processes left.
    pub(crate) fn finish(self, session: &Session) -> io::Result<()> {
        let dead = session.claim_dead()?;
        // Removing may take long; what was claimed stays claimed without the gate.
        drop(self.gate);
        for (name, _lock) in dead {
            // Best effort: a tree of ids that this process has no rights over waits for a process that has.
            let _ = tree::remove_at(&session.parent, &CString::new(name)?);
        }
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Ok(name) = CString::new(self.name.as_str()) {
            // What cannot be removed now is removed by the next process that opens the store.
            let _ = tree::remove_at(&self.parent, &name);
        }
    }
}

/// Waits for an exclusive lock on `file`.
pub(crate) fn lock(file: &File) -> io::Result<()> {
    flock(file, FlockOperation::LockExclusive)
}

/// Carries out `operation` on `file`, whatever interrupts it.
pub(crate) fn flock(file: &File, operation: FlockOperation) -> io::Result<()> {
    loop {
        match rustix::fs::flock(file, operation) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Returns 26 random characters of `[a-z2-7]`.
pub(crate) fn new_id() -> io::Result<String> {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut random = [0_u8; 26];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    let letter = |byte: &u8| {
        ALPHABET
            .get(usize::from(byte & 31))
            .copied()
            .map(char::from)
    };
    Ok(random.iter().filter_map(letter).collect())
}
