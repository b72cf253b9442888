//! Forgetting: contexts whose time is over, and contents that nobody can rely on any more.

use std::fs::File;
use std::io;

use rustix::fs::FlockOperation;

use super::content::ContentId;
use super::draft::renew;
use super::entry::EntryKind;
use super::manifest::{self, Entries, Trailer};
use super::{ContextError, FOLDER, Home, Keeping, failed};
use crate::Store;
use crate::dir::Dir;

/// What was forgotten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Contexts.
    pub n_contexts: u64,
    /// Contents.
    pub n_contents: u64,
    /// Bytes of those contents.
    pub n_bytes: u64,
}

impl Store {
    /// Forgets contexts whose time is over and that nobody keeps, and removes contents that no context needs. Asks `go_on` between
    /// one folder and the next.
    ///
    /// # Errors
    /// When the system refuses; what was removed by then stays so.
    pub fn sweep_contexts(
        &self,
        keeping: Keeping,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Swept, ContextError> {
        let mut swept = Swept::default();
        let list = failed("list contexts");
        let Some(all) = self.root().sub_if_there(FOLDER).map_err(&list)? else {
            return Ok(swept);
        };
        for tenant in all.names().map_err(&list)? {
            if let Some(home) = Home::open(self, &tenant).map_err(&list)? {
                self.sweep_home(&home, keeping, go_on, &mut swept)?;
            }
        }
        Ok(swept)
    }

    fn sweep_home(
        &self,
        home: &Home,
        keeping: Keeping,
        go_on: &dyn Fn() -> bool,
        swept: &mut Swept,
    ) -> Result<(), ContextError> {
        let forget = failed("forget a context");
        for name in home.manifests.names().map_err(&forget)? {
            if !go_on() {
                return Ok(());
            }
            let _lock = home.lock(self)?;
            swept.n_contexts += u64::from(forget_one(home, &name, keeping).map_err(&forget)?);
        }
        let remove = failed("remove contents");
        for shard in home.contents.names().map_err(&remove)? {
            if !go_on() {
                return Ok(());
            }
            // For one folder at a time: whoever makes a context waits for it.
            let _lock = home.lock(self)?;
            let dir = home.contents.sub(&shard).map_err(&remove)?;
            remove_unneeded(&dir, keeping, swept).map_err(&remove)?;
        }
        Ok(())
    }
}

/// Forgets a context if its time is over; what it names is renewed if somebody keeps it.
fn forget_one(home: &Home, name: &str, keeping: Keeping) -> io::Result<bool> {
    let Some(mut file) = home.manifests.open_file(name)? else {
        return Ok(false);
    };
    match Trailer::read(&mut file) {
        Ok(trailer) if !keeping.is_over(trailer.created_ms) => return Ok(false),
        // Over, or damaged: of no use to anybody.
        _ => {}
    }
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => home.manifests.unlink(name),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            renew_all(home, &mut file, keeping)?;
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

fn renew_all(home: &Home, file: &mut File, keeping: Keeping) -> io::Result<()> {
    let trailer = manifest::verify(file).map_err(io::Error::other)?;
    io::Seek::rewind(file)?;
    let entries = Entries::begin(io::BufReader::new(file), trailer).map_err(io::Error::other)?;
    for entry in entries {
        let EntryKind::File { content, .. } = entry.map_err(io::Error::other)?.kind else {
            continue;
        };
        let place = content.place();
        if let Some(stat) = home.contents.stat(&place)?
            && keeping.is_to_be_renewed(stat.st_mtime)
        {
            renew(&home.contents, &place, keeping.now_ms)?;
        }
    }
    Ok(())
}

fn remove_unneeded(dir: &Dir, keeping: Keeping, swept: &mut Swept) -> io::Result<()> {
    for name in dir.names()? {
        let Some(stat) = dir.stat(&name)? else {
            continue;
        };
        if ContentId::from_hex(&name).is_some()
            && keeping.is_unneeded(stat.st_mtime)
            && dir.unlink(&name)?
        {
            swept.n_contents += 1;
            swept.n_bytes += u64::try_from(stat.st_size).unwrap_or(0);
        }
    }
    Ok(())
}
