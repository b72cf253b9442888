//! How much uploads may take: each tenant so much in all, and never what has to stay free on the disk.
//!
//! What a tenant's folder takes is counted once, and reckoned from then on: what is kept is added, what is removed here taken off. What
//! another process removes is not noticed, so the figure may be too large and is never too small; before anybody is refused, it is counted
//! again. Then contents go that no context names and no upload relies on, the oldest first: they are kept for who uploads them once more
//! and were promised to nobody. A context whose time is not over stays, as was said to who uploaded it.
//!
//! What uploads on their way will bring counts as if it were there, for their tenant and on the disk.
//!
//! Locks are taken in this order: the tenant's in the store, its account, what its uploads rely on.

use std::collections::HashMap;
use std::io;
use std::ops::AddAssign;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::content::ContentId;
use super::{ContextError, Home, Keeping, failed, sweep};
use crate::Store;
use crate::dir::Dir;

/// What disks give files room in.
const BLOCK_BYTES: u64 = 4096;
/// Most that a file counts for being one.
const SHARE_MAX_BYTES: u64 = 64 << 10;
/// Of all files that the disk can hold, this part is left to others.
const FILES_LEFT: u64 = 50;
/// How often a tenant that has too much is counted again.
const COUNT_AGAIN_MS: u64 = 10_000;

/// What uploads have to leave to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// What stays free on the disk.
    pub min_free_bytes: u64,
    /// What one tenant may have in all.
    pub max_bytes: u64,
}

impl Default for Allowance {
    /// Nothing, as long as there is room.
    fn default() -> Self {
        Self {
            min_free_bytes: 0,
            max_bytes: u64::MAX,
        }
    }
}

/// The contents that one upload relies on, and their sizes.
pub(super) type Known = Arc<Mutex<HashMap<ContentId, u64>>>;

/// What is known of the room that uploads take, for all of one store.
#[derive(Debug, Default)]
pub(crate) struct Rooms {
    accounts: Mutex<HashMap<String, Arc<Mutex<Account>>>>,
    to_come: Mutex<ToCome>,
}

/// What uploads on their way will write yet.
#[derive(Debug, Default)]
struct ToCome {
    bytes: u64,
    files: u64,
}

/// What one tenant has.
#[derive(Debug, Default)]
struct Account {
    /// What its folder takes; not known before somebody has counted.
    kept: Option<u64>,
    counted_ms: u64,
    /// What uploads on their way count.
    promised: u64,
    uploads: Vec<Weak<Mutex<HashMap<ContentId, u64>>>>,
}

/// What something takes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Need {
    /// Bytes on the disk.
    bytes: u64,
    /// Files on the disk.
    files: u64,
    /// What it counts for its tenant.
    counts: u64,
}

impl Need {
    /// What a part of a list of entries takes.
    pub(super) fn of_list(bytes: u64) -> Self {
        Self {
            bytes,
            files: 0,
            counts: bytes,
        }
    }

    /// What a content takes.
    pub(super) fn of_content(size: u64, share: u64) -> Self {
        Self {
            bytes: on_disk(size),
            files: 1,
            counts: counts(size, share),
        }
    }

    pub(super) fn counts(self) -> u64 {
        self.counts
    }

    pub(super) fn bytes(self) -> u64 {
        self.bytes
    }
}

impl AddAssign for Need {
    fn add_assign(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.files = self.files.saturating_add(other.files);
        self.counts = self.counts.saturating_add(other.counts);
    }
}

fn on_disk(size: u64) -> u64 {
    size.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES)
}

/// Returns what a content of this size counts: what it takes, and at least its share of the files that the disk can hold, so that who has
/// many small ones does not leave others without.
pub(super) fn counts(size: u64, share: u64) -> u64 {
    on_disk(size).max(share)
}

/// Returns how many bytes of the disk there are for each file that it can hold.
pub(super) fn share(on: &Dir) -> io::Result<u64> {
    let disk = rustix::fs::fstatvfs(on)?;
    let bytes = disk.f_blocks.saturating_mul(disk.f_frsize);
    // Some file systems do not count files.
    let share = bytes.checked_div(disk.f_files).unwrap_or(0);
    Ok(share.clamp(BLOCK_BYTES, SHARE_MAX_BYTES))
}

/// Nothing panics while one of these is held, and the worst that a wrong figure costs is counting again.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Rooms {
    fn account(&self, folder: &str) -> Arc<Mutex<Account>> {
        Arc::clone(lock(&self.accounts).entry(folder.to_owned()).or_default())
    }

    /// Takes off what was removed from a tenant's folder. Under the tenant's lock.
    pub(super) fn removed(&self, folder: &str, counts: u64) {
        let account = self.account(folder);
        let mut account = lock(&account);
        account.kept = account.kept.map(|kept| kept.saturating_sub(counts));
    }
}

impl Account {
    fn total(&self, more: u64) -> Option<u64> {
        let total = self.kept?.saturating_add(self.promised);
        Some(total.saturating_add(more))
    }

    fn has_room(&self, more: u64, max_bytes: u64) -> bool {
        max_bytes == u64::MAX || self.total(more).is_some_and(|total| total <= max_bytes)
    }

    /// Promises `more` if there is room.
    fn take(&mut self, more: u64, max_bytes: u64) -> bool {
        let has_room = self.has_room(more, max_bytes);
        if has_room {
            self.promised = self.promised.saturating_add(more);
        }
        has_room
    }

    fn is_stale(&self, now_ms: u64) -> bool {
        self.kept.is_none() || now_ms.saturating_sub(self.counted_ms) >= COUNT_AGAIN_MS
    }

    /// Counts what the tenant has, and lets go what it takes for `more` to be allowed.
    fn count(
        &mut self,
        home: &Home,
        keeping: Keeping,
        (more, max_bytes): (u64, u64),
    ) -> io::Result<()> {
        let uploads: Vec<Known> = self.uploads.iter().filter_map(Weak::upgrade).collect();
        let known: Vec<_> = uploads.iter().map(|known| lock(known)).collect();
        let is_known = |content: &ContentId| known.iter().any(|known| known.contains_key(content));
        let rest = max_bytes.saturating_sub(self.promised.saturating_add(more));
        self.kept = None;
        self.kept = Some(sweep::make_room(home, keeping, &is_known, rest)?);
        self.counted_ms = keeping.now_ms;
        Ok(())
    }
}

/// What one upload has been promised. What is not kept in the end is given back.
#[derive(Debug)]
pub(super) struct Claim {
    store: Store,
    account: Arc<Mutex<Account>>,
    keeping: Keeping,
    allowance: Allowance,
    /// What it counts for its tenant.
    counts: u64,
    to_come: ToCome,
}

impl Claim {
    pub(super) fn new(
        store: &Store,
        home: &Home,
        (keeping, allowance): (Keeping, Allowance),
        known: &Known,
    ) -> Self {
        let account = store.inner.rooms.account(home.folder());
        {
            let mut account = lock(&account);
            account.uploads.retain(|known| known.strong_count() > 0);
            account.uploads.push(Arc::downgrade(known));
        }
        Self {
            store: store.clone(),
            account,
            keeping,
            allowance,
            counts: 0,
            to_come: ToCome::default(),
        }
    }

    /// Asks for more; nothing has changed when it is refused.
    pub(super) fn extend(&mut self, home: &Home, need: Need) -> Result<(), ContextError> {
        self.charge(home, need.counts)?;
        let reserved = self.reserve(home, need);
        if reserved.is_err() {
            self.give_back(need.counts);
        }
        reserved
    }

    fn charge(&mut self, home: &Home, counts: u64) -> Result<(), ContextError> {
        let max_bytes = self.allowance.max_bytes;
        if !lock(&self.account).take(counts, max_bytes) {
            let _lock = home.lock(&self.store)?;
            let mut account = lock(&self.account);
            if account.is_stale(self.keeping.now_ms) && !account.has_room(counts, max_bytes) {
                let counted = account.count(home, self.keeping, (counts, max_bytes));
                counted.map_err(failed("count what a tenant has uploaded"))?;
            }
            if !account.take(counts, max_bytes) {
                return Err(ContextError::TooMuch {
                    kept: account.total(0).unwrap_or_default(),
                    more: counts,
                    max_bytes,
                });
            }
        }
        self.counts = self.counts.saturating_add(counts);
        Ok(())
    }

    fn reserve(&mut self, home: &Home, need: Need) -> Result<(), ContextError> {
        let rooms = &self.store.inner.rooms;
        let mut all = lock(&rooms.to_come);
        let disk = rustix::fs::fstatvfs(&home.contents).map_err(io::Error::from);
        let disk = disk.map_err(failed("look at the room on the disk"))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let bytes = all.bytes.saturating_add(need.bytes);
        let files = all.files.saturating_add(need.files);
        let files_left = disk.f_files / FILES_LEFT;
        let is_full = bytes.saturating_add(self.allowance.min_free_bytes) > free;
        let has_files = disk.f_files == 0 || files.saturating_add(files_left) <= disk.f_favail;
        if is_full || !has_files {
            return Err(ContextError::NoSpace {
                needed: need.bytes,
                left: self.allowance.min_free_bytes,
            });
        }
        (all.bytes, all.files) = (bytes, files);
        self.to_come.bytes = self.to_come.bytes.saturating_add(need.bytes);
        self.to_come.files = self.to_come.files.saturating_add(need.files);
        Ok(())
    }

    /// Notes that something of it is on the disk now, where everybody sees it.
    pub(super) fn wrote(&mut self, bytes: u64, files: u64) {
        let (bytes, files) = (bytes.min(self.to_come.bytes), files.min(self.to_come.files));
        self.to_come.bytes -= bytes;
        self.to_come.files -= files;
        let mut all = lock(&self.store.inner.rooms.to_come);
        all.bytes = all.bytes.saturating_sub(bytes);
        all.files = all.files.saturating_sub(files);
    }

    /// Notes that so much of it is among what the tenant has. Under the tenant's lock.
    pub(super) fn keep(&mut self, counts: u64) {
        {
            let mut account = lock(&self.account);
            account.kept = account.kept.map(|kept| kept.saturating_add(counts));
        }
        self.give_back(counts);
    }

    fn give_back(&mut self, counts: u64) {
        let counts = counts.min(self.counts);
        self.counts -= counts;
        let mut account = lock(&self.account);
        account.promised = account.promised.saturating_sub(counts);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.wrote(u64::MAX, u64::MAX);
        self.give_back(u64::MAX);
    }
}
