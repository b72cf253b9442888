//! Snapshots: unpacked layers, one directory each, named by the digest of the uncompressed layer.
//!
//! A snapshot is filled as a draft in the session's folder and renamed into its place, so it is there whole or not at all.
//! Making thousands of small files durable one by one would cost more than unpacking them, so a crash of the *machine* is
//! answered differently than for blobs: a snapshot counts as not durable until [`Store::sync_snapshots`] has synced all of them at once and
//! left `synced/<name>`. The file `boot` says in which boot the store was opened last; who opens it after another boot drops the
//! snapshots without that mark, which are made again from their blobs. So giving one its name waits for no disk.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use oci::Digest;
use rustix::fs::{FileType, Mode};

use crate::dir::Dir;
use crate::session::Session;
use crate::used::{self, USED};
use crate::{LockError, Store};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Folder of the marks of snapshots that are durable.
pub(crate) const SYNCED: &str = "synced";
/// The file that says in which boot the store was opened last.
pub(crate) const BOOT: &str = "boot";
/// Longest content of that file that is read.
const BOOT_ID_MAX_BYTES: u64 = 64;

/// Tells why a snapshot could not be made, named or removed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// No draft could be created.
    #[error("begin a snapshot")]
    Begin(#[source] io::Error),
    /// A finished draft could not be given its name.
    #[error("publish snapshot {diff_id}")]
    Publish {
        /// The snapshot.
        diff_id: Digest,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A snapshot could not be removed.
    #[error("remove snapshot {diff_id}")]
    Remove {
        /// The snapshot.
        diff_id: Digest,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Snapshots could not be made durable.
    #[error("make snapshots durable")]
    Sync(#[source] io::Error),
    /// The lock under which a snapshot gets its name could not be had.
    #[error("publish snapshot {diff_id}")]
    Lock {
        /// The snapshot.
        diff_id: Digest,
        /// Why not.
        #[source]
        source: LockError,
    },
}

/// A snapshot that is being filled. Dropped without [`SnapshotDraft::commit`] it is removed.
#[derive(Debug)]
pub struct SnapshotDraft {
    store: Store,
    name: String,
    path: PathBuf,
    is_over: bool,
}

impl Store {
    /// Returns where the snapshot of a layer is, or would be.
    pub fn snapshot_path(&self, diff_id: &Digest) -> PathBuf {
        self.path().join("snapshots").join(diff_id.hex())
    }

    /// Tells whether the snapshot of a layer is there, and notes its use.
    pub fn has_snapshot(&self, diff_id: &Digest) -> bool {
        // One that cannot be looked at is made again, which then fails with the reason.
        self.find_snapshot(diff_id.hex()).unwrap_or(false)
    }

    fn find_snapshot(&self, name: &str) -> io::Result<bool> {
        let snapshots = self.root().sub("snapshots")?;
        let is_there = || {
            let stat = snapshots.stat(name)?;
            let is_dir = |stat: &rustix::fs::Stat| {
                FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            };
            Ok::<_, io::Error>(stat.as_ref().is_some_and(is_dir))
        };
        if !is_there()? {
            return Ok(false);
        }
        let note = self.root().sub(USED)?.stat(name)?;
        if note.as_ref().is_some_and(used::is_noted) {
            return Ok(true);
        }
        let _settled = self.settled()?;
        let found = is_there()?;
        if found {
            self.note_snapshot(name)?;
        }
        Ok(found)
    }

    fn note_snapshot(&self, name: &str) -> io::Result<()> {
        let notes = self.root().sub(USED)?;
        if !notes.touch(name)? {
            notes.open_or_create(name)?;
        }
        Ok(())
    }

    /// Creates an empty directory to be filled with a layer.
    pub fn new_snapshot(&self) -> Result<SnapshotDraft, SnapshotError> {
        let session = self.session();
        let name = session.new_name();
        let made = session.dir().make_for_now(&name);
        made.map_err(SnapshotError::Begin)?;
        Ok(SnapshotDraft {
            path: session.path().join(&name),
            store: self.clone(),
            name,
            is_over: false,
        })
    }

    /// Removes the snapshot of a layer, which must not be mounted; false when there was none.
    pub fn remove_snapshot(&self, diff_id: &Digest) -> Result<bool, SnapshotError> {
        drop_snapshot(self.root(), self.session(), diff_id.hex()).map_err(|source| {
            SnapshotError::Remove {
                diff_id: diff_id.clone(),
                source,
            }
        })
    }

    /// Makes all snapshots durable, so that they survive a crash of the machine. Returns how many were not.
    pub fn sync_snapshots(&self) -> Result<usize, SnapshotError> {
        let sync = || {
            let marks = self.root().sub(SYNCED)?;
            let mut names = self.root().sub("snapshots")?.names()?;
            let mut n_left = 0;
            for name in &names {
                n_left += usize::from(marks.stat(name)?.is_none());
            }
            if n_left == 0 {
                return Ok(0);
            }
            // A snapshot is complete when it has its name, so this covers every one listed above.
            rustix::fs::syncfs(self.root())?;
            let snapshots = self.root().sub("snapshots")?;
            // One that was collected meanwhile may be made again, and that one is not synced.
            let _settled = self.settled()?;
            names.retain(|name| snapshots.stat(name).is_ok_and(|stat| stat.is_some()));
            for name in &names {
                marks.open_or_create(name)?;
            }
            marks.sync()?;
            Ok(n_left)
        };
        sync().map_err(SnapshotError::Sync)
    }
}

impl SnapshotDraft {
    /// Returns the directory to fill.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the filled directory its name. Returns false when there was one of this name already; ours is dropped then.
    pub fn commit(mut self, diff_id: &Digest) -> Result<bool, SnapshotError> {
        if self.store.has_snapshot(diff_id) {
            return Ok(false);
        }
        let name = format!("snapshot/{diff_id}");
        let lock = self
            .store
            .lock(&name)
            .map_err(|source| SnapshotError::Lock {
                diff_id: diff_id.clone(),
                source,
            })?;
        let moved = self.publish(diff_id.hex());
        drop(lock);
        let is_ours = moved.map_err(|source| SnapshotError::Publish {
            diff_id: diff_id.clone(),
            source,
        })?;
        self.is_over = is_ours;
        Ok(is_ours)
    }

    fn publish(&self, name: &str) -> io::Result<bool> {
        let root = self.store.root();
        let snapshots = root.sub("snapshots")?;
        self.store.note_snapshot(name)?;
        if snapshots.stat(name)?.is_some() {
            return Ok(false);
        }
        // Left by a removal that was interrupted; it must not speak for this one.
        forget_sync(root, name)?;
        let is_ours = self
            .store
            .session()
            .dir()
            .rename_new(&self.name, &snapshots, name)?;
        if boot_id().is_none() {
            // Without /proc nobody could tell later which boot this was.
            rustix::fs::syncfs(root)?;
            root.sub(SYNCED)?.open_or_create(name)?;
        }
        Ok(is_ours)
    }
}

impl Drop for SnapshotDraft {
    fn drop(&mut self) {
        if !self.is_over {
            // What cannot be removed now is removed with the session, or by the next process that opens the store.
            let _ = self.store.session().remove(&self.name);
        }
    }
}

/// Drops the snapshots that were not durable when the machine went down. Called while nobody else opens the store: whoever
/// has opened it since the machine came up has dropped them already.
pub(crate) fn drop_damaged(root: &Dir, session: &Session) -> io::Result<()> {
    let Some(boot_id) = boot_id() else {
        return Ok(());
    };
    let mut written = String::new();
    if let Some(file) = root.open_file(BOOT)? {
        // What cannot be read is another boot's.
        let _ = file.take(BOOT_ID_MAX_BYTES).read_to_string(&mut written);
    }
    if written == boot_id {
        return Ok(());
    }
    let marks = root.sub(SYNCED)?;
    for name in root.sub("snapshots")?.names()? {
        if marks.stat(&name)?.is_none() {
            drop_snapshot(root, session, &name)?;
        }
    }
    let (mut file, draft) = session.create_file()?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644))?;
    file.write_all(boot_id.as_bytes())?;
    file.sync_all()?;
    session.dir().replace(&draft, root, BOOT)?;
    root.sync()
}

/// Takes the mark of a snapshot away that is about to go or to be made. Durably: it must not speak for another one of this name.
pub(crate) fn forget_sync(root: &Dir, name: &str) -> io::Result<()> {
    let marks = root.sub(SYNCED)?;
    if marks.unlink(name)? {
        marks.sync()?;
    }
    Ok(())
}

/// Takes a snapshot's name away at once, then its content and its mark.
fn drop_snapshot(root: &Dir, session: &Session, name: &str) -> io::Result<bool> {
    let snapshots = root.sub("snapshots")?;
    let trash = session.new_name();
    forget_sync(root, name)?;
    let was_there = match snapshots.rename_new(name, session.dir(), &trash) {
        Ok(moved) => moved,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    snapshots.sync()?;
    root.sub(USED)?.unlink(name)?;
    if was_there {
        // Out of sight already; what is left of it goes with the session.
        let _ = session.remove(&trash);
    }
    Ok(was_there)
}

fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string(BOOT_ID).ok()?;
    Some(text.trim().to_owned())
}
