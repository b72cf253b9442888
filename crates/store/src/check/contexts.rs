//! Uploaded folders and their contents.

use std::collections::HashSet;
use std::io::{self, BufReader};

use oci::digest::Algorithm;

use super::caches::{folder_of, is_hex};
use super::{CheckError, Checker, Depth, Problem, Remedy, Severity};
use crate::blob::hash_file;
use crate::context::{
    ContentId, ContextError, ContextId, Entries, EntryKind, FOLDER, Home, manifest,
};
use crate::dir::Dir;

/// Length of the name of a tenant's folder, and of a content.
const NAME_BYTES: usize = 64;

impl Checker<'_> {
    pub(super) fn contexts(&mut self) -> Result<(), CheckError> {
        let Some(all) = self.store.root().ours()?.sub_if_there(FOLDER)? else {
            return Ok(());
        };
        for tenant in all.names()? {
            let path = format!("{FOLDER}/{tenant}");
            let is_folder = folder_of(&all, &tenant)?.is_some();
            if !is_folder || !is_hex(&tenant, NAME_BYTES) {
                self.nobodys(path);
            } else if let Some(home) = Home::open(self.store, &tenant)? {
                let damaged = self.contents(&home, &path)?;
                self.manifests(&home, &path, &damaged)?;
            }
        }
        Ok(())
    }

    /// Checks the contents of a tenant and returns those that are not what their names say.
    fn contents(&mut self, home: &Home, path: &str) -> Result<HashSet<ContentId>, CheckError> {
        let mut damaged = HashSet::new();
        for shard in home.contents.names()? {
            let Some(dir) = folder_of(&home.contents, &shard)? else {
                self.nobodys(format!("{path}/contents/{shard}"));
                continue;
            };
            for name in dir.names()? {
                let subject = format!("{path}/contents/{shard}/{name}");
                let content = ContentId::from_hex(&name).filter(|_| name.starts_with(&shard));
                match content {
                    None => self.nobodys(subject),
                    Some(content) if !self.is_right(&dir, &name, content)? => {
                        damaged.insert(content);
                        self.wrong(&dir, name, subject);
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(damaged)
    }

    fn is_right(&mut self, dir: &Dir, name: &str, content: ContentId) -> io::Result<bool> {
        if self.how.depth == Depth::Names {
            return Ok(true);
        }
        let Some(file) = dir.open_file(name)? else {
            // Forgotten meanwhile.
            return Ok(true);
        };
        let hasher = hash_file(&file, Algorithm::Sha256)?;
        self.report.counts.n_bytes += hasher.size_bytes();
        Ok(ContentId::new(&hasher.finish()) == Some(content))
    }

    fn wrong(&mut self, dir: &Dir, name: String, subject: String) {
        let problem = "its bytes have another digest";
        let problem = Problem::new(Severity::Damaged, subject, problem);
        let remedy = Remedy::of("removes it", move || dir.unlink(&name).map(drop));
        self.add(
            problem.advice("look at the disk and its log; clients upload it again"),
            Some(remedy),
        );
    }

    fn manifests(
        &mut self,
        home: &Home,
        path: &str,
        damaged: &HashSet<ContentId>,
    ) -> Result<(), CheckError> {
        for name in home.manifests.names()? {
            let subject = format!("context {name} in {path}");
            if name.parse::<ContextId>().is_err() {
                self.nobodys(format!("{path}/manifests/{name}"));
                continue;
            }
            self.report.counts.n_contexts += 1;
            if problem(home, &name, damaged)?.is_none() {
                continue;
            }
            // Whoever forgets it, or something of it, has the lock.
            let lock = home.lock(self.store).map_err(|error| match error {
                ContextError::Lock(source) => CheckError::Lock(source),
                other => CheckError::Look(io::Error::other(other)),
            })?;
            let problem = problem(home, &name, damaged)?;
            drop(lock);
            let Some(problem) = problem else {
                continue;
            };
            let problem = Problem::new(Severity::Damaged, subject, problem);
            let remedy = Remedy::of("forgets it", move || home.manifests.unlink(&name).map(drop));
            self.add(problem.advice("clients upload it again"), Some(remedy));
        }
        Ok(())
    }
}

/// Returns what is wrong with a context.
fn problem(home: &Home, name: &str, damaged: &HashSet<ContentId>) -> io::Result<Option<String>> {
    let Some(mut file) = home.manifests.open_file(name)? else {
        return Ok(None);
    };
    let trailer = match manifest::verify(&mut file) {
        Ok(trailer) => trailer,
        Err(error) => return Ok(Some(error.to_string())),
    };
    io::Seek::rewind(&mut file)?;
    let entries = match Entries::begin(BufReader::new(&file), trailer) {
        Ok(entries) => entries,
        Err(error) => return Ok(Some(error.to_string())),
    };
    for entry in entries {
        let (size, content) = match entry {
            Ok(entry) => match entry.kind {
                EntryKind::File { size, content } if size > 0 => (size, content),
                _ => continue,
            },
            Err(error) => return Ok(Some(error.to_string())),
        };
        let stat = home.contents.stat(&content.place())?;
        let found = stat.and_then(|stat| u64::try_from(stat.st_size).ok());
        if found != Some(size) || damaged.contains(&content) {
            return Ok(Some(format!("its content {content} is gone or damaged")));
        }
    }
    Ok(None)
}
