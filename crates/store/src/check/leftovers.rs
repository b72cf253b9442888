//! What dead processes have left, and what is nobody's.

use std::ffi::CString;
use std::io;

use rustix::fs::FlockOperation;

use super::caches::is_hex;
use super::{CheckError, Checker, Problem, Remedy, Severity};
use crate::dir::Dir;
use crate::{context, place, session, tree, upload, used};

/// Length of the name of a lock's file.
const LOCK_NAME_BYTES: usize = 64;

impl Checker<'_> {
    pub(super) fn leftovers(&mut self) -> Result<(), CheckError> {
        self.strangers()?;
        self.uploads()?;
        self.sessions()?;
        self.locks()?;
        let n = self.store.root().sub("quarantine")?.names()?.len();
        self.report.counts.n_quarantined = n as u64;
        Ok(())
    }

    /// What is beside the folders of the store.
    fn strangers(&mut self) -> Result<(), CheckError> {
        let is_ours = |name: &str| {
            let tops = crate::LAYOUT.iter().chain(&[crate::snapshot::BOOT]);
            let tops = tops.map(|path| path.split('/').next());
            name == context::FOLDER || tops.flatten().any(|top| top == name)
        };
        for name in self.store.root().names()? {
            if !is_ours(&name) {
                self.nobodys(name);
            }
        }
        for name in self.store.root().sub("ingest")?.names()? {
            if upload::FOLDER != format!("ingest/{name}") {
                self.nobodys(format!("ingest/{name}"));
            }
        }
        Ok(())
    }

    fn uploads(&mut self) -> Result<(), CheckError> {
        for name in self.store.root().sub(upload::FOLDER)?.names()? {
            if !upload::is_file_name(&name) {
                self.nobodys(format!("{}/{name}", upload::FOLDER));
            }
        }
        Ok(())
    }

    /// Folders of dead processes that those who have opened the store since could not remove: opening it has removed all others.
    fn sessions(&mut self) -> Result<(), CheckError> {
        let gate = self
            .store
            .root()
            .sub("locks")?
            .open_or_create(session::GATE)?;
        session::lock(&gate)?;
        let dead = self.store.session().claim_dead()?;
        drop(gate);
        for (name, lock) in dead {
            let problem = "a process that is dead has left it, and nobody could remove it yet";
            let problem = Problem::new(Severity::Leftover, format!("tmp/{name}"), problem);
            let advice = "run as root, or as the user whom it belongs to";
            let store = self.store;
            let remedy = Remedy::of("removes it", move || {
                // Held until it is gone.
                let _lock = lock;
                tree::remove_at(store.root().sub("tmp")?, &CString::new(name)?)
            });
            self.add(problem.advice(advice), Some(remedy));
        }
        Ok(())
    }

    /// Files of locks that nobody holds: whoever had them was killed.
    fn locks(&mut self) -> Result<(), CheckError> {
        let locks = self.store.root().sub("locks")?;
        let mut free = Vec::new();
        for name in locks.names()? {
            if name == session::GATE || name == used::GATE || name.starts_with(place::PREFIX) {
                continue;
            }
            if !is_hex(&name, LOCK_NAME_BYTES) {
                self.nobodys(format!("locks/{name}"));
            } else if is_free(&locks, &name)? {
                free.push(name);
            }
        }
        if free.is_empty() {
            return Ok(());
        }
        let problem = format!("{} of processes that are dead", free.len());
        let problem = Problem::new(Severity::Leftover, "files of locks", problem);
        let remedy = Remedy::of("removes them", move || {
            free.iter().try_for_each(|name| remove_free(&locks, name))
        });
        self.add(problem, Some(remedy));
        Ok(())
    }
}

fn is_free(locks: &Dir, name: &str) -> io::Result<bool> {
    let Some(file) = locks.open_file(name)? else {
        return Ok(false);
    };
    Ok(rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok())
}

/// Removes the file of a lock as whoever lets go of it does: while holding it.
fn remove_free(locks: &Dir, name: &str) -> io::Result<()> {
    let Some(file) = locks.open_file(name)? else {
        return Ok(());
    };
    let is_mine = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
    if is_mine && locks.is_same(name, &file)? {
        locks.unlink(name)?;
    }
    Ok(())
}
