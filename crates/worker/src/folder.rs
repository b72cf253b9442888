//! Names of the files of a build, and the lock that tells whether its worker lives.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt};
use std::path::{Path, PathBuf};

use engine::id::BuildId;
use engine::journal::{self, JournalError};
use rustix::fs::{FlockOperation, OFlags};

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
/// A note for each build whose cgroups are to be removed, beside the builds.
pub const CGROUPS: &str = "cgroups";
/// All builds.
pub const BUILDS: &str = "builds";

/// Returns the folder of a build.
pub fn of(state: &Path, id: &BuildId) -> PathBuf {
    state.join(BUILDS).join(id.as_str())
}

/// What becomes of a journal in which something is damaged; its beginning goes on under the old name.
pub(crate) const DAMAGED: &str = "journal.damaged";

/// Keeps a copy of the whole journal in `folder`, which is damaged at `offset`, and cuts it off there.
pub(crate) fn put_damaged_aside(folder: &Path, offset: u64) -> Result<(), JournalError> {
    let path = folder.join(journal::FILE_NAME);
    let plainly = || {
        let mut options = OpenOptions::new();
        options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
        options
    };
    let cut = || {
        let mut whole = plainly().read(true).open(&path)?;
        let aside = folder.join(DAMAGED);
        let mut aside = plainly()
            .write(true)
            .create(true)
            .truncate(true)
            .open(aside)?;
        // What does not fit is not kept: the build must have its end also on a full disk.
        let _partly = io::copy(&mut whole, &mut aside);
        let journal = plainly().write(true).open(&path)?;
        journal.set_len(offset)?;
        journal.sync_all()
    };
    cut().map_err(JournalError::Append)
}

/// Longest small file that is read.
const SMALL_MAX_BYTES: u64 = 1 << 20;

/// Reads a small file of a build's folder: itself, never what a link leads to, for the folder belongs to the worker.
pub fn read_small(folder: &Path, name: &str) -> io::Result<String> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(folder.join(name))?;
    let mut text = String::new();
    file.take(SMALL_MAX_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// As many characters as a process id has at most.
const PID_CHARACTERS: usize = 10;

/// Returns what is in the file of a lock before its worker has come: as much as its process id takes, so that it can be written on a full
/// disk.
pub(crate) fn no_pid() -> String {
    " ".repeat(PID_CHARACTERS)
}

/// Says in the lock of the build in `folder` which process its worker is.
pub(crate) fn write_pid(folder: &Path) -> io::Result<()> {
    let file = OpenOptions::new()
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .write(true)
        .open(folder.join(LOCK))?;
    let text = format!("{:<PID_CHARACTERS$}", std::process::id());
    file.write_all_at(text.as_bytes(), 0)
}

/// The lock of a build that is held.
#[derive(Debug)]
pub struct Held {
    _file: File,
}

/// Takes the lock of the build in `folder`; `None` when somebody lives who holds it.
pub fn try_lock(folder: &Path) -> io::Result<Option<Held>> {
    let file = OpenOptions::new()
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
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
