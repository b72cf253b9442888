//! Links lead to blobs, tags to manifests, manifests to everything they name.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};

use oci::Digest;
use oci::digest::Algorithm;
use oci::manifest::{Descriptor, Document};
use oci::reference::{is_repository, is_tag};

use super::blobs::Holders;
use super::{CheckError, Checker, Problem, Remedy, Severity};
use crate::dir::Dir;
use crate::repository::{
    TAG_FILE_MAX_BYTES, add_link, file_name, folder, links, remove_link, repository_path,
};

const BLOBS: &str = "_blobs";
const MANIFESTS: &str = "_manifests";
const TAGS: &str = "_tags";
const REFERRERS: &str = "_referrers";
/// Things that are told to be missing of one image.
const MISSING_TOLD_MAX: usize = 4;

/// What is known of a manifest.
#[derive(Default)]
struct Content {
    /// What it names.
    needed: Vec<Digest>,
    /// What is wrong with it.
    missing: Vec<String>,
}

impl Checker<'_> {
    /// Returns which repositories have a link to what.
    pub(super) fn holders(&mut self) -> Result<Holders, CheckError> {
        let mut holders = Holders::new();
        for name in self.names()? {
            for kind in [BLOBS, MANIFESTS] {
                for digest in self.links(&name, kind)?.0 {
                    let held_by = holders.entry(digest).or_default();
                    if !held_by.contains(&name) {
                        held_by.push(name.clone());
                    }
                }
            }
        }
        Ok(holders)
    }

    pub(super) fn repositories(&mut self) -> Result<(), CheckError> {
        for name in self.names()? {
            self.report.counts.n_repositories += 1;
            self.repository(&name)?;
        }
        for path in self.strays()? {
            self.nobodys(path);
        }
        Ok(())
    }

    fn repository(&mut self, name: &str) -> Result<(), CheckError> {
        let tags = self.tags(name)?;
        let (manifests, strays) = self.links(name, MANIFESTS)?;
        let (blobs, more) = self.links(name, BLOBS)?;
        for path in strays.into_iter().chain(more) {
            self.nobodys(path);
        }
        let mut needed = BTreeSet::new();
        for digest in &manifests {
            self.report.counts.n_manifests += 1;
            needed.extend(self.manifest(name, digest, &tags)?);
        }
        for digest in blobs {
            if self.size_of(&digest)?.is_none() && !needed.contains(&digest) {
                self.dangling(name, digest);
            }
        }
        for (tag, digest) in &tags {
            self.report.counts.n_tags += 1;
            self.tag(name, tag, digest.as_ref())?;
        }
        self.referrers(name)
    }

    /// Returns the names of all repositories.
    fn names(&self) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        self.walk(&mut |name, is_one| {
            if is_one {
                found.push(name.to_owned());
            }
        })?;
        found.sort_unstable();
        Ok(found)
    }

    /// Returns paths among the repositories that belong to none.
    fn strays(&self) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        self.walk(&mut |name, is_one| {
            if !is_one && !name.is_empty() && !is_repository(name) {
                found.push(repository_path(name));
            }
        })?;
        Ok(found)
    }

    /// Goes through all folders of repositories, and tells of each whether it is a repository itself.
    fn walk(&self, tell: &mut dyn FnMut(&str, bool)) -> io::Result<()> {
        let mut pending = vec![String::new()];
        while let Some(name) = pending.pop() {
            let Some(dir) = self.store.root().sub_if_there(&repository_path(&name))? else {
                continue;
            };
            let mut is_one = false;
            for child in dir.names()? {
                if [BLOBS, MANIFESTS, TAGS, REFERRERS].contains(&child.as_str()) {
                    is_one = true;
                    continue;
                }
                let path = match name.as_str() {
                    "" => child,
                    parent => format!("{parent}/{child}"),
                };
                if is_repository(&path) {
                    pending.push(path);
                } else {
                    tell(&path, false);
                }
            }
            tell(&name, is_one);
        }
        Ok(())
    }

    /// Returns what a repository has links to, and paths there that are no links.
    fn links(&self, name: &str, kind: &str) -> io::Result<(BTreeSet<Digest>, Vec<String>)> {
        let (mut digests, mut strays) = (BTreeSet::new(), Vec::new());
        for algorithm in Algorithm::ALL {
            let path = format!("{}/{}", folder(name, kind), algorithm.name());
            let Some(dir) = self.store.root().sub_if_there(&path)? else {
                continue;
            };
            for hex in dir.names()? {
                match format!("{}:{hex}", algorithm.name()).parse() {
                    Ok(digest) => drop(digests.insert(digest)),
                    Err(_) => strays.push(format!("{path}/{hex}")),
                }
            }
        }
        Ok((digests, strays))
    }

    fn is_linked(&self, name: &str, kind: &str, digest: &Digest) -> io::Result<bool> {
        let dir = self.store.root().sub_if_there(&links(name, kind, digest))?;
        dir.map_or(Ok(false), |dir| Ok(dir.stat(digest.hex())?.is_some()))
    }

    /// Returns the tags of a repository; those that hold no digest with none.
    fn tags(&self, name: &str) -> io::Result<BTreeMap<String, Option<Digest>>> {
        let mut tags = BTreeMap::new();
        if let Some(dir) = self.store.root().sub_if_there(&folder(name, TAGS))? {
            for tag in dir.names()? {
                // Deleted meanwhile when there is none.
                if let Some(text) = read_tag(&dir, &tag)? {
                    tags.insert(tag, text.parse().ok());
                }
            }
        }
        Ok(tags)
    }

    /// Checks a manifest and returns what it names.
    fn manifest(
        &mut self,
        name: &str,
        digest: &Digest,
        tags: &BTreeMap<String, Option<Digest>>,
    ) -> Result<Vec<Digest>, CheckError> {
        let seen = self.content(name, digest)?;
        if seen.missing.is_empty() {
            return Ok(seen.needed);
        }
        // Whoever puts or deletes it just now has the lock.
        let lock = self.store.lock_repository_plainly(name)?;
        let is_there = self.is_linked(name, MANIFESTS, digest)?;
        let seen = self.content(name, digest)?;
        drop(lock);
        if !is_there || seen.missing.is_empty() {
            return Ok(seen.needed);
        }
        let names = tags
            .iter()
            .filter(|(_, found)| found.as_ref() == Some(digest));
        let mut names: Vec<String> = names.map(|(tag, _)| format!("{name}:{tag}")).collect();
        names.push(format!("{name}@{digest}"));
        let mut missing = seen.missing;
        let n_more = missing.len().saturating_sub(MISSING_TOLD_MAX);
        missing.truncate(MISSING_TOLD_MAX);
        if n_more > 0 {
            missing.push(format!("and {n_more} more"));
        }
        let subject = format!("image {}", names.join(", "));
        let problem = Problem::new(Severity::Lost, subject, missing.join("; "));
        let store = self.store;
        let remedy = Remedy::forgetting("forgets these names", move || {
            let forgotten = store.delete_manifest(name, digest);
            forgotten.map(drop).map_err(io::Error::other)
        });
        let advice = "push or build it again, also where a build says that there is nothing to do (force it)";
        self.add(problem.advice(advice), Some(remedy));
        Ok(seen.needed)
    }

    /// Looks at a manifest and at everything that it names.
    fn content(&self, name: &str, digest: &Digest) -> io::Result<Content> {
        let mut content = Content::default();
        let dir = self
            .store
            .root()
            .sub(&format!("blobs/{}", digest.algorithm().name()))?;
        let Some(file) = dir.open_file(digest.hex())? else {
            content.missing.push("its manifest is gone".to_owned());
            return Ok(content);
        };
        let max_bytes = self.store.limits().manifest_max_bytes as u64;
        let mut bytes = Vec::new();
        file.take(max_bytes + 1).read_to_end(&mut bytes)?;
        let mut hasher = digest.hasher();
        hasher.update(&bytes);
        if hasher.finish() != *digest {
            content.missing.push("its manifest is damaged".to_owned());
            return Ok(content);
        }
        let document = match Document::parse(None, &bytes) {
            Ok(document) => document,
            Err(error) => {
                content
                    .missing
                    .push(format!("it cannot be understood: {error}"));
                return Ok(content);
            }
        };
        let (kind, what, needed) = needed(&document);
        for descriptor in needed {
            let digest = &descriptor.digest;
            content.needed.push(digest.clone());
            let problem = match self.size_of(digest)? {
                None => "is gone".to_owned(),
                Some(_) if !self.is_linked(name, kind, digest)? => {
                    "does not belong to the repository".to_owned()
                }
                Some(size) if size != descriptor.size => {
                    format!("has {size} bytes instead of {}", descriptor.size)
                }
                Some(_) => continue,
            };
            content
                .missing
                .push(format!("its {what} {digest} {problem}"));
        }
        Ok(content)
    }

    /// A link to a blob that is gone and that no manifest names: somebody who pushed was interrupted, or a collection was faster.
    fn dangling(&mut self, name: &str, digest: Digest) {
        let subject = format!("link {name}@{digest}");
        let problem = "the blob is gone, and no manifest of the repository names it";
        let problem = Problem::new(Severity::Leftover, subject, problem);
        let store = self.store;
        let remedy = Remedy::of("removes the link", move || {
            let folder = links(name, BLOBS, &digest);
            remove_link(store.root(), &folder, digest.hex())?;
            // Whoever has brought the blob meanwhile has found the link there.
            if store.size_of(&digest).map_err(io::Error::other)?.is_some() {
                add_link(store.root(), &folder, digest.hex())?;
            }
            Ok(())
        });
        self.add(problem, Some(remedy));
    }

    fn tag(&mut self, name: &str, tag: &str, seen: Option<&Digest>) -> Result<(), CheckError> {
        let is_there = |digest: &Digest| self.is_linked(name, MANIFESTS, digest);
        if is_tag(tag) && seen.map_or(Ok(false), is_there)? {
            return Ok(());
        }
        let lock = self.store.lock_repository_plainly(name)?;
        let now = self.tags(name)?.remove(tag);
        let is_fine = now.iter().flatten().next().map_or(Ok(false), is_there)?;
        drop(lock);
        let (severity, problem) = match now {
            // Deleted, or moved to something that is there.
            None => return Ok(()),
            Some(Some(_)) if is_fine && is_tag(tag) => return Ok(()),
            // What deleting a manifest leaves when it is interrupted: whoever deleted it wanted the tag gone.
            Some(Some(_)) => (
                Severity::Leftover,
                "the manifest that it pointed to was deleted",
            ),
            Some(None) => (
                Severity::Lost,
                "it does not say which manifest it points to",
            ),
        };
        let problem = Problem::new(severity, format!("tag {name}:{tag}"), problem);
        let store = self.store;
        let act = move || {
            let _lock = store
                .lock_repository_plainly(name)
                .map_err(io::Error::other)?;
            remove_link(store.root(), &folder(name, TAGS), tag).map(drop)
        };
        let (advice, remedy) = match severity {
            Severity::Leftover => ("", Remedy::of("removes it", act)),
            _ => (
                "push or build it again",
                Remedy::forgetting("removes it", act),
            ),
        };
        self.add(problem.advice(advice), Some(remedy));
        Ok(())
    }

    /// Notes of manifests that name another one, of which the one is gone.
    fn referrers(&mut self, name: &str) -> Result<(), CheckError> {
        let (manifests, _) = self.links(name, MANIFESTS)?;
        for algorithm in Algorithm::ALL {
            let path = format!("{}/{}", folder(name, REFERRERS), algorithm.name());
            let Some(subjects) = self.store.root().sub_if_there(&path)? else {
                continue;
            };
            for subject in subjects.names()? {
                let below = format!("{path}/{subject}");
                let Some(dir) = self.store.root().sub_if_there(&below)? else {
                    continue;
                };
                for note in dir.names()? {
                    self.referrer(name, &manifests, (&below, &dir, note))?;
                }
            }
        }
        Ok(())
    }

    fn referrer(
        &mut self,
        name: &str,
        manifests: &BTreeSet<Digest>,
        (path, dir, note): (&str, &Dir, String),
    ) -> Result<(), CheckError> {
        let digest = note.replacen('-', ":", 1).parse::<Digest>();
        let Ok(digest) = digest else {
            self.nobodys(format!("{path}/{note}"));
            return Ok(());
        };
        if manifests.contains(&digest) {
            return Ok(());
        }
        // It is noted before the manifest is there: it may be on its way.
        let lock = self.store.lock_repository_plainly(name)?;
        let is_there = self.is_linked(name, MANIFESTS, &digest)?;
        drop(lock);
        if is_there || !crate::used::is_settled(dir.stat(&file_name(&digest))?) {
            return Ok(());
        }
        let subject = format!("note of {name}@{digest}");
        let problem = "the manifest that names another one is gone";
        let problem = Problem::new(Severity::Leftover, subject, problem);
        let remedy = Remedy::of("removes the note", move || dir.unlink(&note).map(drop));
        self.add(problem, Some(remedy));
        Ok(())
    }
}

/// Reads what a tag holds; `None` when there is none.
fn read_tag(dir: &Dir, tag: &str) -> io::Result<Option<String>> {
    let Some(file) = dir.open_file(tag)? else {
        return Ok(None);
    };
    let mut text = Vec::new();
    file.take(TAG_FILE_MAX_BYTES).read_to_end(&mut text)?;
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}

/// Returns where links to what a document names are, what that is called, and all of it but what may stay elsewhere.
fn needed(document: &Document) -> (&'static str, &'static str, Vec<&Descriptor>) {
    match document {
        Document::Manifest(manifest) => {
            let ours = |layer: &&Descriptor| !oci::media_type::is_foreign(&layer.media_type);
            let layers = manifest.layers.iter().filter(ours);
            let all = std::iter::once(&manifest.config).chain(layers).collect();
            (BLOBS, "blob", all)
        }
        Document::Index(index) => (MANIFESTS, "manifest", index.manifests.iter().collect()),
    }
}
