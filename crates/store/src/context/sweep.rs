//! Forgetting: contexts whose time is over, and contents that nobody can rely on any more.

use std::collections::HashMap;
use std::fs::File;
use std::io;

use rustix::fs::{AtFlags, FlockOperation, Timespec, Timestamps};

use super::content::ContentId;
use super::entry::EntryKind;
use super::manifest::{self, Entries, ManifestError, Trailer};
use super::room::{counts, share};
use super::{ContextError, FOLDER, Home, Keeping, failed};
use crate::Store;
use crate::dir::Dir;

/// Contents that are looked at together when some have to go: what is known of them is in memory.
const TOGETHER_MAX: u64 = 1 << 20;

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
            if let Some(counts) = forget_one(home, &name, keeping).map_err(&forget)? {
                swept.n_contexts += 1;
                self.inner.rooms.removed(home.folder(), counts);
            }
        }
        let remove = failed("remove contents");
        let per_file = share(&home.contents).map_err(&remove)?;
        for shard in home.contents.names().map_err(&remove)? {
            if !go_on() {
                return Ok(());
            }
            // For one folder at a time: whoever makes a context waits for it.
            let _lock = home.lock(self)?;
            let dir = home.contents.sub(&shard).map_err(&remove)?;
            let sizes = remove_unneeded(&dir, keeping).map_err(&remove)?;
            swept.n_contents += sizes.len() as u64;
            swept.n_bytes += sizes.iter().sum::<u64>();
            let removed = sizes.into_iter().map(|size| counts(size, per_file));
            self.inner.rooms.removed(home.folder(), removed.sum());
        }
        Ok(())
    }
}

/// Forgets a context if its time is over, and returns what its list took; what it names is renewed if somebody keeps it.
fn forget_one(home: &Home, name: &str, keeping: Keeping) -> io::Result<Option<u64>> {
    let Some(mut file) = home.manifests.open_file(name)? else {
        return Ok(None);
    };
    match Trailer::read(&mut file) {
        Ok(trailer) if !keeping.is_over(trailer.created_ms) => return Ok(None),
        // Over, or damaged: of no use to anybody.
        _ => {}
    }
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            let size = file.metadata()?.len();
            Ok(home.manifests.unlink(name)?.then_some(size))
        }
        Err(rustix::io::Errno::WOULDBLOCK) => {
            renew_all(home, &mut file, keeping)?;
            Ok(None)
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

/// Removes what nobody can rely on any more, and returns the sizes.
fn remove_unneeded(dir: &Dir, keeping: Keeping) -> io::Result<Vec<u64>> {
    let mut sizes = Vec::new();
    for (name, stat) in contents(dir)? {
        if keeping.is_unneeded(stat.modified_s) && dir.unlink(&name.hex())? {
            sizes.push(stat.size);
        }
    }
    Ok(sizes)
}

/// A content that is there.
#[derive(Clone, Copy)]
struct Found {
    modified_s: i64,
    size: u64,
}

fn contents(dir: &Dir) -> io::Result<Vec<(ContentId, Found)>> {
    let mut all = Vec::new();
    for name in dir.names()? {
        let (Some(content), Some(stat)) = (ContentId::from_hex(&name), dir.stat(&name)?) else {
            continue;
        };
        let found = Found {
            modified_s: stat.st_mtime,
            size: u64::try_from(stat.st_size).unwrap_or(0),
        };
        all.push((content, found));
    }
    Ok(all)
}

/// Counts what a tenant has. If that is more than `most`, contents go that no context names and of which `is_known` knows nothing, the
/// oldest first, until it is not. Returns what there is then. Under the tenant's lock.
pub(super) fn make_room(
    home: &Home,
    keeping: Keeping,
    is_known: &dyn Fn(&ContentId) -> bool,
    most: u64,
) -> io::Result<u64> {
    let per_file = share(&home.contents)?;
    let mut total = 0_u64;
    for name in home.manifests.names()? {
        if forget_one(home, &name, keeping)?.is_none()
            && let Some(stat) = home.manifests.stat(&name)?
        {
            total = total.saturating_add(u64::try_from(stat.st_size).unwrap_or(0));
        }
    }
    let (mut shards, mut n_contents) = (Vec::new(), 0_u64);
    for name in home.contents.names()? {
        let shard = home.contents.sub(&name)?;
        let sizes = contents(&shard)?;
        n_contents += sizes.len() as u64;
        total = sizes.iter().fold(total, |total, (_, found)| {
            total.saturating_add(counts(found.size, per_file))
        });
        shards.push(shard);
    }
    let n_passes = n_contents.div_ceil(TOGETHER_MAX).max(1);
    let together = shards
        .len()
        .div_ceil(usize::try_from(n_passes).unwrap_or(usize::MAX));
    for shards in shards.chunks(together.max(1)) {
        if total <= most {
            break;
        }
        for (content, found) in unnamed(home, shards, is_known)? {
            if total <= most {
                break;
            }
            if home.contents.unlink(&content.place())? {
                total = total.saturating_sub(counts(found.size, per_file));
            }
        }
    }
    Ok(total)
}

/// Returns the contents in some folders that nothing names and nobody knows, the oldest first.
fn unnamed(
    home: &Home,
    shards: &[Dir],
    is_known: &dyn Fn(&ContentId) -> bool,
) -> io::Result<Vec<(ContentId, Found)>> {
    let mut left: HashMap<ContentId, Found> = HashMap::new();
    for shard in shards {
        let found = contents(shard)?.into_iter();
        left.extend(found.filter(|(content, _)| !is_known(content)));
    }
    for name in home.manifests.names()? {
        let Some(file) = home.manifests.open_file(&name)? else {
            continue;
        };
        let mut see = |content| {
            left.remove(&content);
        };
        match named(file, &mut see) {
            // What is damaged nobody builds from.
            Ok(()) | Err(ManifestError::Damaged | ManifestError::Entry(_)) => {}
            Err(ManifestError::Read(error)) => return Err(error),
        }
    }
    let mut left: Vec<_> = left.into_iter().collect();
    left.sort_unstable_by_key(|(content, found)| (found.modified_s, *content));
    Ok(left)
}

fn named(mut file: File, see: &mut dyn FnMut(ContentId)) -> Result<(), ManifestError> {
    let trailer = manifest::verify(&mut file)?;
    io::Seek::rewind(&mut file).map_err(ManifestError::Read)?;
    for entry in Entries::begin(io::BufReader::new(file), trailer)? {
        if let EntryKind::File { content, .. } = entry?.kind {
            see(content);
        }
    }
    Ok(())
}

/// Says of a content that it is needed from now on; false when it has gone.
pub(super) fn renew(contents: &Dir, place: &str, now_ms: u64) -> io::Result<bool> {
    let now = Timespec {
        tv_sec: i64::try_from(now_ms / 1000).unwrap_or(i64::MAX),
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: now,
        last_modification: now,
    };
    match rustix::fs::utimensat(contents, place, &times, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
