//! Taking one thing away, unless somebody turns out to use it.

use std::ffi::CString;
use std::io;
use std::time::SystemTime;

use rustix::fs::{FlockOperation, Stat};

use super::items::size_note;
use super::{Item, Kind};
use crate::Store;
use crate::cache_mount::{DATA, LOCK, MOUNTS};
use crate::dir::Dir;
use crate::snapshot::forget_sync;
use crate::used::{USED, modified};

impl Store {
    /// Removes `item`, unless it was used after `since` or is gone; tells whether it did.
    pub(super) fn remove_item(&self, item: &Item, since: SystemTime) -> io::Result<bool> {
        let name = item.name.as_str();
        match item.kind {
            Kind::Image | Kind::Context => Ok(false),
            Kind::Layer => {
                let (algorithm, hex) = halves(name, ':')?;
                let blobs = self.root().sub(&format!("blobs/{algorithm}"))?;
                self.remove_file(&blobs, hex, since)
            }
            Kind::Snapshot => self.remove_unused_snapshot(name, since),
            Kind::CacheMount => self.remove_mount(name, since),
            Kind::Record => {
                let (kind, key) = halves(name, '/')?;
                let removed = self.remove_record(kind, key);
                removed.map_err(io::Error::other)
            }
            Kind::Quarantine => self.root().sub("quarantine")?.unlink(name),
        }
    }

    fn remove_file(&self, dir: &Dir, name: &str, since: SystemTime) -> io::Result<bool> {
        let (session, trash) = (self.session().dir(), self.session().new_name());
        {
            let _alone = self.gate_alone()?;
            // Whoever has found it since it was listed has noted that on the file itself.
            if is_used(dir.stat(name)?, since) || !taken(dir.rename_new(name, session, &trash))? {
                return Ok(false);
            }
        }
        // Gone for everybody; giving back the room of a large one takes longer than anybody should wait for.
        session.unlink(&trash)
    }

    fn remove_unused_snapshot(&self, name: &str, since: SystemTime) -> io::Result<bool> {
        let (session, trash) = (self.session().dir(), self.session().new_name());
        let snapshots = self.root().sub("snapshots")?;
        let notes = self.root().sub(USED)?;
        {
            let _alone = self.gate_alone()?;
            if is_used(notes.stat(name)?, since) {
                return Ok(false);
            }
            forget_sync(self.root(), name)?;
            if !taken(snapshots.rename_new(name, session, &trash))? {
                return Ok(false);
            }
            for note in [name, &size_note(name)] {
                notes.unlink(note)?;
            }
        }
        crate::tree::remove_at(session, &CString::new(trash)?)?;
        Ok(true)
    }

    fn remove_mount(&self, name: &str, since: SystemTime) -> io::Result<bool> {
        let (session, trash) = (self.session().dir(), self.session().new_name());
        let (key, number) = halves(name, '/')?;
        let Some(instances) = self.root().sub_if_there(&format!("{MOUNTS}/{key}"))? else {
            return Ok(false);
        };
        {
            let _alone = self.gate_alone()?;
            let Some(dir) = instances.sub_if_there(number)? else {
                return Ok(false);
            };
            let (Some(lock), Some(stat)) = (dir.open_file(LOCK)?, dir.stat(LOCK)?) else {
                return Ok(false);
            };
            let is_held =
                rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err();
            if is_held || modified(&stat) >= since || !dir.is_same(LOCK, &lock)? {
                return Ok(false);
            }
            dir.rename_new(DATA, session, &trash)?;
            // Held until it is gone: whoever has it open already sees that its name is.
            dir.unlink(LOCK)?;
            instances.remove_empty(number)?;
            self.root().sub(MOUNTS)?.remove_empty(key)?;
        }
        crate::tree::remove_at(session, &CString::new(trash)?)?;
        Ok(true)
    }
}

/// Tells whether what carries the note was used; what carries none is as good as used.
fn is_used(note: Option<Stat>, since: SystemTime) -> bool {
    note.is_none_or(|note| modified(&note) >= since)
}

/// A thing that is gone already is not taken.
fn taken(renamed: io::Result<bool>) -> io::Result<bool> {
    match renamed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        renamed => renamed,
    }
}

fn halves(name: &str, between: char) -> io::Result<(&str, &str)> {
    name.split_once(between)
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}
