//! What is in the store, how much it takes, and removing what has not been used for longest.
//!
//! Content that a repository holds stays: somebody gave it a name. Everything else is a cache, and whoever looks for it and finds it gone
//! makes it again. What of that goes first is what was used longest ago; what goes never is described in `used`:
//! what a living lease may have found, and what was used a moment ago. So a collection runs beside builds, pushes and pulls, and
//! takes nothing out of anybody's hands.
//!
//! | file | what it holds |
//! |---|---|
//! | `items` | what is there |
//! | `weigh` | how much a tree takes on disk |
//! | `remove` | taking one thing away, unless somebody turns out to use it |
//!
//! Must run as whom everything belongs to: the data plane, or the host's root.

pub(crate) mod items;
mod remove;
mod weigh;

use std::io;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::used::GRACE;
use crate::{LockError, Store, session};

/// What was used within so many seconds does not go only because the disk is full.
const ROOM_UNUSED_S: u64 = 3600;
/// The lock that one collection at a time holds.
const LOCK: &str = "collect";

/// What a thing in the store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A blob that a repository holds, and is never collected.
    Image,
    /// Any other blob: a layer that was made or pulled, a configuration, a file made of an image.
    Layer,
    /// An unpacked layer.
    Snapshot,
    /// A cache mount.
    CacheMount,
    /// What the cache knows: a small document.
    Record,
    /// A blob that was found damaged.
    Quarantine,
    /// What a tenant has uploaded to build from: goes by its own lifetime ([`Store::sweep_contexts`]), and by no collection.
    Context,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::Image,
        Self::Layer,
        Self::Snapshot,
        Self::CacheMount,
        Self::Record,
        Self::Quarantine,
        Self::Context,
    ];

    /// Returns how it is called.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Layer => "layer",
            Self::Snapshot => "snapshot",
            Self::CacheMount => "cache-mount",
            Self::Record => "record",
            Self::Quarantine => "quarantine",
            Self::Context => "context",
        }
    }
}

/// A thing in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// What it is.
    pub kind: Kind,
    /// Its name among those of its kind.
    pub name: String,
    /// What it takes on disk.
    pub bytes: u64,
    /// When it was last used, in Unix seconds; not noted again within seconds, for records within an hour.
    pub used_at_s: u64,
    /// Whether it may go.
    pub hold: Hold,
}

/// Whether a thing may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    /// It may.
    Free,
    /// Somebody uses it, or has a moment ago.
    InUse,
    /// Somebody gave it a name.
    Named,
}

/// Everything in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// What there is, in no order.
    pub items: Vec<Item>,
    /// What the store's folder takes on disk in all: the items, unfinished ones, links and folders.
    pub total_bytes: u64,
}

/// What is to be collected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Which kinds may go.
    pub kinds: Vec<Kind>,
    /// Only what was not used for so long may go, for whatever reason.
    pub only_unused_for: Option<Duration>,
    /// What was not used for so long goes.
    pub unused_for: Option<Duration>,
    /// So much may stay of what could go, and what is in use counts.
    pub max_bytes: Option<u64>,
    /// So much of the disk is to be free, as far as that can be had without what was used within the last hour.
    pub min_free_bytes: Option<u64>,
}

/// What was collected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// What is gone.
    pub removed: Vec<Item>,
    /// What is left of what could be collected one day, in bytes.
    pub left_bytes: u64,
}

/// Tells why nothing, or not everything, was listed or collected.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The store could not be looked through.
    #[error("look through the store")]
    List(#[source] io::Error),
    /// Another collection could not be waited for.
    #[error("wait for another collection")]
    Lock(#[source] LockError),
    /// Something could not be removed.
    #[error("remove {} {name}", kind.as_str())]
    Remove {
        /// What it is.
        kind: Kind,
        /// Which one.
        name: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Which records stay, by kind: those that say what somebody gave a name.
pub type NamedRecords<'a> = &'a [&'a str];

impl Store {
    /// Returns everything that is in the store.
    ///
    /// # Errors
    /// See [`CollectError`].
    pub fn usage(&self, named: NamedRecords<'_>) -> Result<Usage, CollectError> {
        let list = || {
            let since = self.in_use_since()?;
            Ok(Usage {
                items: self.items(named, since)?,
                total_bytes: weigh::weigh(self.root())?,
            })
        };
        list().map_err(CollectError::List)
    }

    /// Removes what `policy` says, longest unused first. Waits for another collection that is running.
    ///
    /// # Errors
    /// See [`CollectError`]. What was removed until then is gone.
    pub fn collect(
        &self,
        policy: &Policy,
        named: NamedRecords<'_>,
    ) -> Result<Collected, CollectError> {
        let _alone = self.lock(LOCK).map_err(CollectError::Lock)?;
        let since = self.in_use_since().map_err(CollectError::List)?;
        let mut items = self.items(named, since).map_err(CollectError::List)?;
        items.retain(|item| item.hold != Hold::Named);
        let mut left_bytes: u64 = items.iter().map(|item| item.bytes).sum();
        let free_bytes = self.free_bytes().map_err(CollectError::List)?;
        let mut goal = Goal {
            policy,
            now_s: unix_seconds(SystemTime::now()),
            freed_bytes: 0,
            free_bytes,
        };
        items.retain(|item| item.hold == Hold::Free && policy.kinds.contains(&item.kind));
        items.sort_by(|a, b| (a.used_at_s, &a.name).cmp(&(b.used_at_s, &b.name)));
        let mut removed = Vec::new();
        for item in items {
            if !goal.wants(&item, left_bytes) {
                continue;
            }
            let gone = self
                .remove_item(&item, since)
                .map_err(|source| CollectError::Remove {
                    kind: item.kind,
                    name: item.name.clone(),
                    source,
                })?;
            if gone {
                left_bytes = left_bytes.saturating_sub(item.bytes);
                goal.freed_bytes += item.bytes;
                removed.push(item);
            }
        }
        Ok(Collected {
            removed,
            left_bytes,
        })
    }

    /// Returns since when everything that was used is in use.
    fn in_use_since(&self) -> io::Result<SystemTime> {
        let now = SystemTime::now();
        let began = session::oldest_lease(self.root())?;
        Ok(began.map_or(now, |began| began.min(now)) - GRACE)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let disk = rustix::fs::fstatvfs(self.root())?;
        Ok(disk.f_bavail * disk.f_frsize)
    }
}

/// How far a collection is.
struct Goal<'a> {
    policy: &'a Policy,
    now_s: u64,
    freed_bytes: u64,
    /// On the disk, at the beginning.
    free_bytes: u64,
}

impl Goal<'_> {
    /// Tells whether `item` is to go, while so much is left of what could.
    fn wants(&self, item: &Item, left_bytes: u64) -> bool {
        let age_s = self.now_s.saturating_sub(item.used_at_s);
        let is_old = |unused_for: Duration| age_s >= unused_for.as_secs();
        if self
            .policy
            .only_unused_for
            .is_some_and(|least| !is_old(least))
        {
            return false;
        }
        let is_too_much = |max_bytes| left_bytes > max_bytes;
        let is_too_full = |min_free_bytes| self.free_bytes + self.freed_bytes < min_free_bytes;
        // A disk that is full for other reasons must not cost every build what the one before has just left.
        let makes_room = age_s >= ROOM_UNUSED_S;
        self.policy.unused_for.is_some_and(is_old)
            || self.policy.max_bytes.is_some_and(is_too_much)
            || (makes_room && self.policy.min_free_bytes.is_some_and(is_too_full))
    }
}

fn unix_seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
