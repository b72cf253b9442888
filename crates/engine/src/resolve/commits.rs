//! Commits that a tenant's builds have fetched before: what is read of one before the first step is remembered, and the rest is fetched when a
//! step needs files ([`Later`]). A build of which everything is in the cache asks the remote one question, which shows that its credentials are
//! good, and fetches nothing.
//!
//! A commit is remembered only when it alone decides the files: without submodules, with nothing that is kept with LFS. Where `.git` is among
//! them, it is the name that was asked for, too, and not with all history, which grows.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use oci::Digest;
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};
use source::git::{Checkout, Depth, FetchOptions, GitAuth, GitDirectory, GitSource, TargetMode};
use source::path::RelPath;
use store::Store;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::lookout::Lookout;
use crate::event::{Failure, FailureKind};
use crate::failure::{failure, platform, source as source_failure};
use crate::recorder::Recorder;
use crate::rootfs::root::Root;

/// Records of commits, and of repositories of which there is one.
const COMMITS: &str = "commit";
const REPOSITORIES: &str = "repository";
/// Version of what is remembered, part of every key.
const FORMAT: u32 = 1;
/// What is remembered of a commit is no longer than this.
const FILES_MAX_BYTES: u64 = 1 << 20;

/// What is remembered of a commit.
#[derive(Debug, Serialize, Deserialize)]
struct Known {
    commit_time_unix: i64,
    /// Those of the files that are looked for which are there.
    files: Vec<(String, String)>,
}

/// Where commits are looked for, and how they are fetched.
pub(super) struct Commits<'a> {
    pub(super) store: &'a Store,
    pub(super) tenant: &'a str,
    pub(super) git: &'a GitSource,
    pub(super) options: &'a FetchOptions,
    pub(super) wanted: &'a Lookout,
}

impl Commits<'_> {
    /// Tells whether what the commit does not cover stays out of the files.
    fn is_plain(&self) -> bool {
        let is_one = self.git.depth == Depth::Shallow && self.git.upstream.is_none();
        is_one || self.options.git_directory == GitDirectory::Remove
    }

    /// Tells whether anything may be known of this repository. A one-time secret is good for one question only.
    fn may_know(&self) -> bool {
        let may_ask = !matches!(self.git.auth, GitAuth::OneTimeSecret { .. });
        let is_known = || self.store.record(REPOSITORIES, self.repository().hex());
        self.is_plain() && may_ask && matches!(is_known(), Ok(Some(_)))
    }

    fn repository(&self) -> Digest {
        let covers = (FORMAT, self.tenant, &self.git.remote);
        Digest::sha256(&serde_json::to_vec(&covers).unwrap_or_default())
    }

    /// Returns what covers a commit, and everything in the request that decides what its files are, and who asks.
    fn commit(&self, commit: &str) -> Digest {
        let source = GitSource {
            auth: GitAuth::None,
            ..self.pinned(commit)
        };
        let kept = self.options.git_directory;
        let covers = (
            FORMAT,
            self.tenant,
            commit,
            source,
            kept,
            self.wanted.paths(),
        );
        Digest::sha256(&serde_json::to_vec(&covers).unwrap_or_default())
    }

    /// Returns what fetches `commit`; the name that was asked for is in `.git`.
    fn pinned(&self, commit: &str) -> GitSource {
        match self.options.git_directory {
            GitDirectory::Keep => self.git.clone(),
            GitDirectory::Remove => GitSource {
                target: commit.to_owned(),
                target_mode: TargetMode::RemoteCommit,
                ..self.git.clone()
            },
        }
    }

    /// Puts what is remembered of the commit that is asked for into the new folder `folder`. `None` when it has to be fetched.
    pub(super) async fn recall(
        &self,
        folder: &Path,
        say: &(dyn Fn(&str) + Send + Sync),
        cancel: &CancellationToken,
    ) -> Result<Option<(Checkout, Digest)>, Failure> {
        if !self.may_know() {
            return Ok(None);
        }
        let asking = folder.with_extension("asking");
        let failed = |e: &std::io::Error| platform("ask for the commit", e);
        std::fs::create_dir(&asking).map_err(|e| failed(&e))?;
        let asked = source::git::look_up(self.git, &asking, self.options, say, cancel).await;
        std::fs::remove_dir_all(&asking).map_err(|e| failed(&e))?;
        let Some(commit) = asked.map_err(|e| source_failure(&e))? else {
            return Ok(None);
        };
        let key = self.commit(&commit);
        // Whatever is wrong with a record, the commit can be fetched.
        let bytes = self.store.record(COMMITS, key.hex()).ok().flatten();
        let known = bytes.and_then(|bytes| serde_json::from_slice::<Known>(&bytes).ok());
        let Some(known) = known else {
            return Ok(None);
        };
        known
            .put_into(folder, self.wanted)
            .map_err(|e| failed(&e))?;
        say(&format!("commit {commit} was fetched before"));
        let checkout = Checkout {
            commit,
            commit_time_unix: known.commit_time_unix,
            is_all: true,
        };
        Ok(Some((checkout, key)))
    }

    /// Remembers a commit that was fetched into `folder`. Returns what covers it, if it is one that can be remembered.
    pub(super) fn remember(&self, folder: &Path, checkout: &Checkout) -> Option<Digest> {
        if !self.is_plain() || !checkout.is_all {
            return None;
        }
        let files = read_all(&Root::open(folder).ok()?, self.wanted)?;
        let key = self.commit(&checkout.commit);
        let known = Known {
            commit_time_unix: checkout.commit_time_unix,
            files,
        };
        let bytes = serde_json::to_vec(&known).ok()?;
        // What cannot be remembered is fetched again.
        self.store.note_record(COMMITS, key.hex(), &bytes).ok()?;
        let repository = self.repository();
        self.store
            .note_record(REPOSITORIES, repository.hex(), b"")
            .ok()?;
        Some(key)
    }

    /// Returns what fetches the files of `commit`, which `key` covers, when a step needs them.
    pub(super) fn later(
        &self,
        (commit, key): (&str, Digest),
        into: PathBuf,
        (recorder, cancel): (&Recorder, &CancellationToken),
    ) -> Later {
        Later {
            key,
            folder: self.wanted.folder.clone(),
            fetching: Some(Fetching {
                git: self.pinned(commit),
                commit: commit.to_owned(),
                options: self.options.clone(),
                into,
                recorder: recorder.clone(),
                cancel: cancel.clone(),
                runtime: Handle::current(),
            }),
            made: OnceLock::new(),
        }
    }

    /// Returns the same for files that are there.
    pub(super) fn there(&self, key: Digest) -> Later {
        Later {
            key,
            folder: self.wanted.folder.clone(),
            fetching: None,
            made: OnceLock::new(),
        }
    }
}

impl Known {
    fn put_into(&self, folder: &Path, wanted: &Lookout) -> std::io::Result<()> {
        std::fs::create_dir_all(folder.join(wanted.folder.as_str()))?;
        for (path, content) in &self.files {
            let path = folder.join(path);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::write(path, content)?;
        }
        Ok(())
    }
}

/// Reads every file that is looked for; `None` where it is not so simple: links have a say, something else than text is there, or much of it.
fn read_all(root: &Root, wanted: &Lookout) -> Option<Vec<(String, String)>> {
    let mut files = Vec::new();
    let mut n_bytes = 0;
    for path in wanted.paths() {
        match plain(root, &path)? {
            Plain::Absent => {}
            Plain::Folder if path == wanted.folder.as_str() => {}
            Plain::Folder => return None,
            Plain::File => {
                let content = root.read_file(Path::new(&path), FILES_MAX_BYTES).ok()?;
                n_bytes += content.len() as u64;
                files.push((path, String::from_utf8(content).ok()?));
            }
        }
    }
    (n_bytes <= FILES_MAX_BYTES).then_some(files)
}

enum Plain {
    Absent,
    Folder,
    File,
}

/// Tells what is at `path` when no link leads there; `None` when one does, or it is something special.
fn plain(root: &Root, path: &str) -> Option<Plain> {
    let mut found = Plain::Folder;
    for (at, _) in path.match_indices('/').chain([(path.len(), "")]) {
        let part = path.get(..at)?;
        let Some(stat) = root.lstat(Path::new(part)).ok()? else {
            return Some(Plain::Absent);
        };
        found = match stat.kind {
            FileType::Directory => Plain::Folder,
            FileType::RegularFile => Plain::File,
            _ => return None,
        };
    }
    Some(found)
}

/// The files of a commit, which may not be there yet.
#[derive(Debug)]
pub(crate) struct Later {
    key: Digest,
    /// The folder of the repository that is built from. No link leads there.
    folder: RelPath,
    /// None when the files are there.
    fetching: Option<Fetching>,
    made: OnceLock<Result<Root, Failure>>,
}

/// What fetches them.
struct Fetching {
    git: GitSource,
    commit: String,
    options: FetchOptions,
    into: PathBuf,
    recorder: Recorder,
    cancel: CancellationToken,
    runtime: Handle,
}

impl std::fmt::Debug for Fetching {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetching")
            .field("remote", &self.git.remote)
            .finish_non_exhaustive()
    }
}

impl Later {
    /// Returns the folder that is built from: `there` when the files are there, else one for which whoever comes first fetches them, and
    /// others wait.
    pub(super) fn root<'a>(&'a self, there: &'a Root) -> Result<&'a Root, Failure> {
        let Some(fetching) = &self.fetching else {
            return Ok(there);
        };
        let made = self.made.get_or_init(|| fetching.root(&self.folder));
        made.as_ref().map_err(Clone::clone)
    }

    /// Returns the key of what decides what anything that is named in it means.
    pub(super) fn key(&self) -> &Digest {
        &self.key
    }
}

impl Fetching {
    fn root(&self, folder: &RelPath) -> Result<Root, Failure> {
        let name = "[internal] fetch build context";
        let step = self.recorder.begin(name, None);
        let fetched = self.fetch(folder, &|line| step.say(line));
        match &fetched {
            Ok(_) => step.finish(),
            Err(failure) => drop(step.fail(&failure.message)),
        }
        fetched
    }

    fn fetch(&self, folder: &RelPath, say: &(dyn Fn(&str) + Send + Sync)) -> Result<Root, Failure> {
        const OPEN: &str = "open the workspace";
        std::fs::create_dir(&self.into).map_err(|e| platform(OPEN, &e))?;
        let fetching = source::git::fetch(&self.git, &self.into, &self.options, say, &self.cancel);
        // Whoever waits for files may do so on a thread of the runtime, which cannot wait for itself.
        let fetched = std::thread::scope(|scope| {
            let thread = scope.spawn(|| self.runtime.block_on(fetching));
            thread.join()
        });
        let broken = |_| failure(FailureKind::Platform, "the fetch broke down");
        let fetched = fetched.map_err(broken)?;
        let checkout = fetched.map_err(|e| source_failure(&e))?;
        if checkout.commit != self.commit {
            let (now, then) = (&checkout.commit, &self.commit);
            let target = &self.git.target;
            let message = format!(
                "{target} was commit {then} when the build began, and is {now} now: build again"
            );
            return Err(failure(FailureKind::Dockerfile, message));
        }
        let whole = Root::open(&self.into).map_err(|e| platform(OPEN, &e))?;
        let folder = whole.subdirectory(Path::new(folder.as_str()));
        folder.map_err(|e| platform(OPEN, &e))
    }
}
