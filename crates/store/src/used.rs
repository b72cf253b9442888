//! When things were last used, and how a collector and everybody else keep out of each other's way.
//!
//! The time of last use of a blob or record is the modification time of its file, that of a snapshot the one of `used/<name>`, that of
//! a cache mount the one of its `lock`. Whoever finds a thing notes its use, at most every few seconds; so a look that finds costs
//! no lock. A collector takes a thing away under the gate `locks/.collect`, looks once more whether it was used meanwhile, and puts it
//! back if so. Whoever does not find a thing waits for the gate and looks again: it may only have been in the collector's hands.
//!
//! A process that relies on what it has found for longer than a moment (a worker, for the whole of its build) holds a lease: a file in
//! its session's folder, whose age says since when. Nothing that was used since the oldest lease began is collected.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, Stat};

use crate::Store;
use crate::dir::Dir;
use crate::session;

/// The file under whose lock a collector takes things away.
pub(crate) const GATE: &str = ".collect";
/// The file in a session's folder that makes it a lease.
pub(crate) const LEASE: &str = "lease";
/// Folder of the times when snapshots were used.
pub(crate) const USED: &str = "used";
/// A use is noted again when the note is older than this.
const NOTED_FOR: Duration = Duration::from_secs(5);
/// What was used as long before a lease began, or before now, is not collected: its use need not have been noted again.
pub(crate) const GRACE: Duration = Duration::from_secs(10);

/// Passed by whoever must not meet a collector at work.
#[derive(Debug)]
pub(crate) struct Gate {
    _file: File,
}

impl Store {
    /// Begins a lease that lasts as long as this store is open: what is found here from now on is not collected meanwhile.
    ///
    /// # Errors
    /// What the system says.
    pub fn lease(&self) -> io::Result<()> {
        match self.session().dir().create_new(LEASE, 0o644) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made.map(drop),
        }
    }

    /// Waits until no collector is in the middle of something; none begins as long as the result is there.
    pub(crate) fn settled(&self) -> io::Result<Gate> {
        self.gate(FlockOperation::LockShared)
    }

    /// Waits until nobody relies on the collector keeping still.
    pub(crate) fn gate_alone(&self) -> io::Result<Gate> {
        self.gate(FlockOperation::LockExclusive)
    }

    fn gate(&self, operation: FlockOperation) -> io::Result<Gate> {
        let file = self.root().sub("locks")?.open_or_create(GATE)?;
        session::flock(&file, operation)?;
        Ok(Gate { _file: file })
    }

    /// Looks for `name` in `dir` and notes its use.
    pub(crate) fn look_for(&self, dir: &Dir, name: &str) -> io::Result<Option<Stat>> {
        let Some(stat) = dir.stat(name)? else {
            return Ok(None);
        };
        if is_noted(&stat) {
            return Ok(Some(stat));
        }
        let _settled = self.settled()?;
        Ok(dir.touch(name)?.then_some(stat))
    }
}

/// Tells whether a use was noted a moment ago, so that no collector takes the thing soon.
pub(crate) fn is_noted(note: &Stat) -> bool {
    modified(note) + NOTED_FOR > SystemTime::now()
}

/// Returns when a file was last modified.
pub(crate) fn modified(stat: &Stat) -> SystemTime {
    let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    UNIX_EPOCH + Duration::new(seconds, nanoseconds)
}

/// Returns when an open file was last modified.
pub(crate) fn modified_of(file: impl AsFd) -> io::Result<SystemTime> {
    Ok(modified(&rustix::fs::fstat(file)?))
}

/// Tells whether something was written so long ago that whoever wrote it has come further, or never will.
pub(crate) fn is_settled(stat: Option<Stat>) -> bool {
    stat.is_some_and(|stat| modified(&stat) + GRACE < SystemTime::now())
}
