//! Names of the files of a build, and the lock that tells whether its worker lives.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use engine::id::BuildId;
use rustix::fs::FlockOperation;

/// What was asked, without secrets.
pub const RECORD: &str = "record.json";
/// Locked as long as the worker lives.
pub const LOCK: &str = "lock";
/// Scratch of the worker.
pub const WORK: &str = "work";
/// Exported files.
pub const OUTPUT: &str = "output";
/// What the worker says when it cannot write its journal.
pub const WORKER_LOG: &str = "worker.log";
/// The store, beside the builds.
pub const STORE: &str = "store";
/// All builds.
pub const BUILDS: &str = "builds";

/// Returns the folder of a build.
pub fn of(state: &Path, id: &BuildId) -> PathBuf {
    state.join(BUILDS).join(id.as_str())
}

/// The lock of a build that is held.
#[derive(Debug)]
pub struct Held {
    _file: File,
}

/// Takes the lock of the build in `folder`; `None` when somebody lives who holds it.
pub fn try_lock(folder: &Path) -> io::Result<Option<Held>> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(folder.join(LOCK))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(Held { _file: file })),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
