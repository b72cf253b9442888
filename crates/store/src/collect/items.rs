//! What is in the store.

use std::collections::HashSet;
use std::io::{self, Read as _, Write as _};
use std::time::SystemTime;

use oci::digest::Algorithm;
use rustix::fs::{FileType, FlockOperation, Stat};

use super::weigh::{bytes_of, weigh};
use super::{Hold, Item, Kind, NamedRecords, unix_seconds};
use crate::Store;
use crate::cache_mount::{DATA, LOCK, MOUNTS};
use crate::context::FOLDER as CONTEXTS;
use crate::dir::Dir;
use crate::used::{USED, modified};

/// What follows a snapshot's name in that of the file with its size.
pub(crate) const SIZE_SUFFIX: &str = ".size";
/// Longest content of such a file.
const SIZE_FILE_MAX_BYTES: u64 = 32;

/// Folders of a repository whose entries hold blobs.
const LINKS: [&str; 2] = ["_blobs", "_manifests"];

impl Store {
    /// Returns everything that is there; what was used after `since` is in use.
    pub(super) fn items(
        &self,
        named: NamedRecords<'_>,
        since: SystemTime,
    ) -> io::Result<Vec<Item>> {
        let mut items = Vec::new();
        self.blobs_into(&mut items, since)?;
        self.snapshots_into(&mut items, since)?;
        self.mounts_into(&mut items, since)?;
        self.records_into(&mut items, named, since)?;
        self.contexts_into(&mut items, since)?;
        let quarantine = self.root().sub("quarantine")?;
        for name in quarantine.names()? {
            if let Some(stat) = quarantine.stat(&name)? {
                items.push(item(Kind::Quarantine, name, &stat, since));
            }
        }
        Ok(items)
    }

    fn blobs_into(&self, items: &mut Vec<Item>, since: SystemTime) -> io::Result<()> {
        // The links first: what gets one later was looked at after `since`, or it could not have got one.
        let held = self.held()?;
        for algorithm in Algorithm::ALL {
            let blobs = self.root().sub(&format!("blobs/{}", algorithm.name()))?;
            for name in blobs.names()? {
                let Some(stat) = blobs.stat(&name)? else {
                    continue;
                };
                let full = format!("{}:{name}", algorithm.name());
                let is_held = held.contains(&full);
                let mut found = item(Kind::Layer, full, &stat, since);
                if is_held {
                    found.kind = Kind::Image;
                    found.hold = Hold::Named;
                }
                items.push(found);
            }
        }
        Ok(())
    }

    /// Returns every digest that some repository has a link to.
    fn held(&self) -> io::Result<HashSet<String>> {
        let mut held = HashSet::new();
        let mut pending = vec!["repositories".to_owned()];
        while let Some(path) = pending.pop() {
            let Some(dir) = self.root().sub_if_there(&path)? else {
                continue;
            };
            for links in LINKS {
                for algorithm in Algorithm::ALL {
                    let below = format!("{links}/{}", algorithm.name());
                    if let Some(links) = dir.sub_if_there(&below)? {
                        let full = |name| format!("{}:{name}", algorithm.name());
                        held.extend(links.names()?.into_iter().map(full));
                    }
                }
            }
            // No name of a repository begins so.
            let nested = dir
                .names()?
                .into_iter()
                .filter(|name| !name.starts_with('_'));
            pending.extend(nested.map(|name| format!("{path}/{name}")));
        }
        Ok(held)
    }

    fn snapshots_into(&self, items: &mut Vec<Item>, since: SystemTime) -> io::Result<()> {
        let (snapshots, notes) = (self.root().sub("snapshots")?, self.root().sub(USED)?);
        for name in snapshots.names()? {
            let Some(note) = notes.stat(&name)? else {
                // Of before notes were taken: used now, as far as anybody knows.
                notes.open_or_create(&name)?;
                continue;
            };
            let Some(bytes) = snapshot_bytes(&snapshots, &notes, &name)? else {
                continue;
            };
            let found = item(Kind::Snapshot, name, &note, since);
            items.push(Item { bytes, ..found });
        }
        Ok(())
    }

    fn mounts_into(&self, items: &mut Vec<Item>, since: SystemTime) -> io::Result<()> {
        let mounts = self.root().sub(MOUNTS)?;
        for key in mounts.names()? {
            let Some(instances) = mounts.sub_if_there(&key)? else {
                continue;
            };
            for number in instances.names()? {
                let Some(dir) = instances.sub_if_there(&number)? else {
                    continue;
                };
                let (Some(lock), Some(_)) = (dir.stat(LOCK)?, dir.stat(DATA)?) else {
                    continue;
                };
                let found = item(Kind::CacheMount, format!("{key}/{number}"), &lock, since);
                let is_used = self.is_mount_used(&dir)?;
                items.push(Item {
                    bytes: weigh(&dir)?,
                    hold: if is_used { Hold::InUse } else { found.hold },
                    ..found
                });
            }
        }
        Ok(())
    }

    /// One for each tenant: what it has uploaded belongs together.
    fn contexts_into(&self, items: &mut Vec<Item>, since: SystemTime) -> io::Result<()> {
        let Some(all) = self.root().sub_if_there(CONTEXTS)? else {
            return Ok(());
        };
        for tenant in all.names()? {
            let (Some(home), Some(stat)) = (all.sub_if_there(&tenant)?, all.stat(&tenant)?) else {
                continue;
            };
            let mut found = item(Kind::Context, tenant, &stat, since);
            // As new as the newest of what was uploaded.
            if let Some(manifests) = home.sub_if_there("manifests")? {
                for name in manifests.names()? {
                    let at = manifests.stat(&name)?.as_ref().map(modified);
                    found.used_at_s = found.used_at_s.max(at.map_or(0, unix_seconds));
                }
            }
            items.push(Item {
                bytes: weigh(&home)?,
                hold: Hold::Named,
                ..found
            });
        }
        Ok(())
    }

    fn is_mount_used(&self, dir: &Dir) -> io::Result<bool> {
        // Nobody tries to take it meanwhile, and would find it taken by us.
        let _alone = self.gate_alone()?;
        let Some(lock) = dir.open_file(LOCK)? else {
            return Ok(false);
        };
        Ok(rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err())
    }

    fn records_into(
        &self,
        items: &mut Vec<Item>,
        named: NamedRecords<'_>,
        since: SystemTime,
    ) -> io::Result<()> {
        let records = self.root().sub("records")?;
        for kind in records.names()? {
            let Some(spread) = records.sub_if_there(&kind)? else {
                continue;
            };
            for part in spread.names()? {
                let Some(dir) = spread.sub_if_there(&part)? else {
                    continue;
                };
                for key in dir.names()? {
                    let Some(stat) = dir.stat(&key)? else {
                        continue;
                    };
                    let mut found = item(Kind::Record, format!("{kind}/{key}"), &stat, since);
                    if named.contains(&kind.as_str()) {
                        found.hold = Hold::Named;
                    }
                    items.push(found);
                }
            }
        }
        Ok(())
    }
}

/// Returns what a snapshot takes, remembered from the first time: nothing in it ever changes. `None` when it is gone.
fn snapshot_bytes(snapshots: &Dir, notes: &Dir, name: &str) -> io::Result<Option<u64>> {
    let note = size_note(name);
    if let Some(file) = notes.open_file(&note)? {
        let mut text = String::new();
        file.take(SIZE_FILE_MAX_BYTES).read_to_string(&mut text)?;
        if let Some(bytes) = text.strip_suffix('\n').and_then(|text| text.parse().ok()) {
            return Ok(Some(bytes));
        }
        notes.unlink(&note)?;
    }
    let is_folder = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    if !snapshots.stat(name)?.as_ref().is_some_and(is_folder) {
        return Ok(None);
    }
    let bytes = weigh(snapshots.sub(name)?)?;
    match notes.create_new(&note, 0o644) {
        Ok(mut file) => file.write_all(format!("{bytes}\n").as_bytes())?,
        // Somebody else weighs it too.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    Ok(Some(bytes))
}

/// Returns the name of the file with a snapshot's size.
pub(super) fn size_note(name: &str) -> String {
    format!("{name}{SIZE_SUFFIX}")
}

fn item(kind: Kind, name: String, stat: &Stat, since: SystemTime) -> Item {
    let used_at = modified(stat);
    Item {
        kind,
        name,
        bytes: bytes_of(stat),
        used_at_s: unix_seconds(used_at),
        hold: if used_at < since {
            Hold::Free
        } else {
            Hold::InUse
        },
    }
}
