//! Every blob is what its name says.

use std::collections::HashMap;
use std::io;

use oci::Digest;
use oci::digest::Algorithm;
use rustix::fs::FileType;

use super::{CheckError, Checker, Depth, Problem, Remedy, Severity};
use crate::Store;
use crate::blob::hash_file;
use crate::dir::Dir;

/// Repositories that are told of one blob.
const HOLDERS_TOLD_MAX: usize = 5;

/// Which repositories have a link to what.
pub(super) type Holders = HashMap<Digest, Vec<String>>;

impl Checker<'_> {
    pub(super) fn blobs(&mut self, holders: &Holders) -> Result<(), CheckError> {
        for algorithm in Algorithm::ALL {
            let folder = format!("blobs/{}", algorithm.name());
            let dir = self.store.root().sub(&folder)?;
            let mut names = dir.names()?;
            names.sort_unstable();
            for name in names {
                let digest = format!("{}:{name}", algorithm.name()).parse::<Digest>();
                let stat = dir.stat(&name)?;
                let is_file = stat.as_ref().is_some_and(|stat| {
                    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                });
                match (digest, stat) {
                    // Collected meanwhile.
                    (_, None) => {}
                    (Ok(digest), Some(_)) if is_file => self.blob(&dir, &digest, holders)?,
                    _ => self.no_blob(&dir, &format!("{folder}/{name}"), &name),
                }
            }
        }
        Ok(())
    }

    fn blob(&mut self, dir: &Dir, digest: &Digest, holders: &Holders) -> Result<(), CheckError> {
        self.report.counts.n_blobs += 1;
        if self.how.depth == Depth::Names {
            return Ok(());
        }
        let Some(file) = dir.open_file(digest.hex())? else {
            return Ok(());
        };
        let subject = format!("blob {digest}");
        let hasher = match hash_file(&file, digest.algorithm()) {
            Ok(hasher) => hasher,
            Err(error) => {
                let problem = format!("it cannot be read: {error}{}", held_by(holders.get(digest)));
                let problem = Problem::new(Severity::Damaged, subject, problem);
                self.add(problem.advice("look at the disk and its log"), None);
                return Ok(());
            }
        };
        self.report.counts.n_bytes += hasher.size_bytes();
        let actual = hasher.finish();
        if actual == *digest {
            return Ok(());
        }
        let held = holders.get(digest);
        let advice = match held {
            Some(_) => "push or build again what needs it; look at the disk and its log",
            None => "look at the disk and its log; what needs it makes it again",
        };
        let problem = format!("its bytes have digest {actual}{}", held_by(held));
        let problem = Problem::new(Severity::Damaged, subject, problem).advice(advice);
        let store = self.store;
        let remedy = Remedy::of("moves it to quarantine", move || {
            let moved = store.quarantine_if(digest, Some(&file));
            moved.map(drop).map_err(io::Error::other)
        });
        self.add(problem, Some(remedy));
        Ok(())
    }

    fn no_blob(&mut self, dir: &Dir, subject: &str, name: &str) {
        let problem = "it has no name of a blob, or is no file";
        let problem = Problem::new(Severity::Damaged, subject, problem);
        let store = self.store;
        let remedy = Remedy::of("moves it to quarantine", move || {
            to_quarantine(store, dir, name)
        });
        self.add(problem, Some(remedy));
    }
}

fn to_quarantine(store: &Store, dir: &Dir, name: &str) -> io::Result<()> {
    let to = store.root().sub("quarantine")?;
    dir.rename_new(name, &to, &format!("stray-{}", crate::session::new_id()?))?;
    dir.sync()
}

fn held_by(holders: Option<&Vec<String>>) -> String {
    let Some(holders) = holders else {
        return String::new();
    };
    let told: Vec<&str> = holders
        .iter()
        .take(HOLDERS_TOLD_MAX)
        .map(String::as_str)
        .collect();
    let more = match holders.len().saturating_sub(told.len()) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    format!("; it belongs to {}{more}", told.join(", "))
}
