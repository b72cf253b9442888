//! Snapshots and their notes, records and their seals, cache mounts.

use std::collections::HashSet;
use std::io::{self, Read as _};

use oci::Digest;
use rustix::fs::{FileType, FlockOperation};

use super::{CheckError, Checker, Problem, Remedy, Severity};
use crate::cache_mount::{DRAFT, LOCK, MOUNTS};
use crate::collect::NamedRecords;
use crate::collect::items::SIZE_SUFFIX;
use crate::dir::Dir;
use crate::record;
use crate::snapshot::SYNCED;
use crate::used::USED;

/// Length of the name of a snapshot: SHA-256 in hexadecimal digits.
const SNAPSHOT_NAME_BYTES: usize = 64;
/// Folders of keys of records: two hexadecimal digits.
const SPREAD_BYTES: usize = 2;

impl Checker<'_> {
    pub(super) fn snapshots(&mut self) -> Result<(), CheckError> {
        let snapshots = self.store.root().sub("snapshots")?;
        let mut there = HashSet::new();
        for name in snapshots.names()? {
            let is_folder = snapshots
                .stat(&name)?
                .is_none_or(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
            if is_folder && is_hex(&name, SNAPSHOT_NAME_BYTES) {
                self.report.counts.n_snapshots += 1;
                there.insert(name);
            } else {
                self.nobodys(format!("snapshots/{name}"));
            }
        }
        for folder in [SYNCED, USED] {
            let notes = self.store.root().sub(folder)?;
            for note in notes.names()? {
                let name = note.strip_suffix(SIZE_SUFFIX).unwrap_or(&note);
                if !is_hex(name, SNAPSHOT_NAME_BYTES) {
                    self.nobodys(format!("{folder}/{note}"));
                } else if !there.contains(name) {
                    self.note(&snapshots, (folder, &notes), &note, name)?;
                }
            }
        }
        Ok(())
    }

    /// A note about a snapshot that is not there: whoever was about to name one was interrupted, or removing one was.
    fn note(
        &mut self,
        snapshots: &Dir,
        (folder, notes): (&str, &Dir),
        note: &str,
        name: &str,
    ) -> Result<(), CheckError> {
        // Who names one has the lock, and notes first.
        let lock_name = format!("snapshot/sha256:{name}");
        let lock = self.store.lock(&lock_name)?;
        let is_on_its_way = snapshots.stat(name)?.is_some() || notes.stat(note)?.is_none();
        drop(lock);
        if is_on_its_way {
            return Ok(());
        }
        let problem = "the snapshot is not there";
        let problem = Problem::new(Severity::Leftover, format!("{folder}/{note}"), problem);
        let store = self.store;
        let remedy = Remedy::of("removes the note", move || {
            let _lock = store.lock(&lock_name).map_err(io::Error::other)?;
            if snapshots.stat(name)?.is_none() {
                notes.unlink(note)?;
            }
            Ok(())
        });
        self.add(problem, Some(remedy));
        Ok(())
    }

    pub(super) fn records(&mut self, named: NamedRecords<'_>) -> Result<(), CheckError> {
        let records = self.store.root().sub("records")?;
        for kind in records.names()? {
            let path = format!("records/{kind}");
            let Some(spread) = folder_of(&records, &kind)? else {
                self.nobodys(path);
                continue;
            };
            for part in spread.names()? {
                let path = format!("{path}/{part}");
                let Some(dir) = folder_of(&spread, &part)?.filter(|_| part.len() == SPREAD_BYTES)
                else {
                    self.nobodys(path);
                    continue;
                };
                for key in dir.names()? {
                    if record::check(&kind, &key).is_ok() && record::folder(&kind, &key) == path {
                        self.record(&dir, (&kind, &key), named)?;
                    } else {
                        self.nobodys(format!("{path}/{key}"));
                    }
                }
            }
        }
        Ok(())
    }

    fn record(
        &mut self,
        dir: &Dir,
        (kind, key): (&str, &str),
        named: NamedRecords<'_>,
    ) -> Result<(), CheckError> {
        let Some(file) = dir.open_file(key)? else {
            return Ok(());
        };
        self.report.counts.n_records += 1;
        let max_bytes = self.store.limits().record_max_bytes + record::HEADER_MAX_BYTES;
        let mut bytes = Vec::new();
        let read = file.take(max_bytes as u64).read_to_end(&mut bytes);
        let content = read.ok().and_then(|_| record::open(kind, key, &bytes));
        let is_named = named.contains(&kind);
        let subject = format!("record {kind}/{key}");
        let act = move || dir.unlink(key).map(drop);
        match content {
            None if is_named => {
                let problem =
                    "it is damaged: an image that was kept under a name is not found by it";
                let problem = Problem::new(Severity::Lost, subject, problem);
                let advice = "build the image again";
                self.add(
                    problem.advice(advice),
                    Some(Remedy::forgetting("removes it", act)),
                );
            }
            None => {
                let problem = "it is damaged, and as good as not there";
                let problem = Problem::new(Severity::Damaged, subject, problem);
                self.add(problem, Some(Remedy::of("removes it", act)));
            }
            Some(content) if is_named && !self.names_something(&content)? => {
                let problem = "the image that was kept under a name has been deleted";
                let problem = Problem::new(Severity::Leftover, subject, problem);
                self.add(problem, Some(Remedy::of("removes it", act)));
            }
            Some(_) => {}
        }
        Ok(())
    }

    fn names_something(&self, content: &[u8]) -> io::Result<bool> {
        let digest = std::str::from_utf8(content).ok();
        let digest = digest.and_then(|text| text.parse::<Digest>().ok());
        digest.map_or(Ok(false), |digest| Ok(self.size_of(&digest)?.is_some()))
    }

    /// First contents of cache mounts whose making was interrupted.
    pub(super) fn mounts(&mut self) -> Result<(), CheckError> {
        let mounts = self.store.root().sub(MOUNTS)?;
        for key in mounts.names()? {
            let Some(instances) = folder_of(&mounts, &key)? else {
                self.nobodys(format!("{MOUNTS}/{key}"));
                continue;
            };
            for number in instances.names()? {
                let path = format!("{MOUNTS}/{key}/{number}");
                match folder_of(&instances, &number)? {
                    Some(dir) if dir.stat(DRAFT)?.is_some() => self.draft(&dir, path)?,
                    Some(_) => {}
                    None => self.nobodys(path),
                }
            }
        }
        Ok(())
    }

    fn draft(&mut self, dir: &Dir, path: String) -> Result<(), CheckError> {
        let Some(lock) = dir.open_file(LOCK)? else {
            return Ok(());
        };
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_err() {
            return Ok(());
        }
        drop(lock);
        let problem = "making its first content was interrupted";
        let problem = Problem::new(Severity::Leftover, path, problem);
        let remedy = Remedy::of("removes the draft", move || {
            let Some(lock) = dir.open_file(LOCK)? else {
                return Ok(());
            };
            rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
            crate::tree::remove_at(dir, &std::ffi::CString::new(DRAFT)?)
        });
        self.add(problem, Some(remedy));
        Ok(())
    }
}

pub(super) fn is_hex(name: &str, n_bytes: usize) -> bool {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    name.len() == n_bytes && name.bytes().all(is_digit)
}

/// Opens the folder `name`; `None` when it is something else, or gone.
pub(super) fn folder_of(dir: &Dir, name: &str) -> io::Result<Option<Dir>> {
    let stat = dir.stat(name)?;
    let is_folder =
        stat.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
    if is_folder {
        dir.sub_if_there(name)
    } else {
        Ok(None)
    }
}
