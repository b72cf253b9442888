//! Folders of git repositories: which commit is meant, what it holds, and the files.
//!
//! What a commit holds never changes: told once, it need not be fetched again to know. Which commit a branch or a tag is, is asked
//! each time; only for an abbreviated commit nobody but a fetch can tell.

use std::path::{Path, PathBuf};

use dockerfile::GitFolder;
use source::git::{
    FetchOptions, GitAuth, GitDirectory, GitSource, RemoteUrl, Submodules, TargetMode,
};
use source::path::RelPath;

use super::super::{Execution, copy};
use super::{Kind, Remote};
use crate::event::{Failure, FailureKind};
use crate::failure::{
    chain, dockerfile as dockerfile_failure, failure, platform, source as source_failure,
};
use crate::rootfs::content::{self, ContentOptions};
use crate::rootfs::copy::Owner;
use crate::rootfs::filter::Source;
use crate::rootfs::root::Root;

/// Kind of the records about folders of repositories by their commit.
const FOLDERS: &str = "git-folder";
/// Digits of a commit that is named in full.
const COMMIT_DIGITS: usize = 40;

/// A fetched repository.
#[derive(Debug)]
pub(super) struct Repository {
    workspace: PathBuf,
    commit: String,
    pub(super) commit_time: i64,
}

/// Finds out what `git` holds; without fetching it if that is known of its commit.
pub(super) async fn resolve(
    execution: &Execution,
    index: usize,
    git: &GitFolder,
    exclude: &[String],
) -> Result<Remote, Failure> {
    let remote = |content, git, fetched| Remote {
        index,
        name: git_name(&git).to_owned(),
        content,
        kind: Kind::Git { git, fetched },
    };
    let key = |commit: &str| key(execution, git, commit, exclude);
    let named = named_commit(execution, git).await?;
    let is_right = |commit: &str| {
        let wanted = git
            .commit
            .as_ref()
            .map(|wanted| wanted.to_ascii_lowercase());
        wanted.is_none_or(|wanted| commit.starts_with(&wanted))
    };
    if let Some(commit) = named.filter(|commit| is_right(commit))
        && let Some(content) = execution.cache.recall(FOLDERS, &key(&commit))
    {
        return Ok(remote(content, pinned(git, commit), None));
    }
    let fetched = fetch(execution, git).await?;
    let root = open_folder(&fetched, git)?;
    let source = Source::literal(".", exclude);
    let source = source.map_err(|e| dockerfile_failure("choose what to copy", &e))?;
    let cancel = execution.cancel.clone();
    let digest = tokio::task::spawn_blocking(move || {
        let options = ContentOptions {
            owner: Owner::Fixed(0, 0),
            mode: None,
            ignore: None,
            n_threads: copy::HASH_THREADS,
        };
        content::digest_sources(&root, &[source], &options, &cancel)
    });
    let digest = digest
        .await
        .map_err(|e| platform("read a repository", &e))?;
    let digest = digest.map_err(|e| dockerfile_failure("read a repository", &e))?;
    execution
        .cache
        .keep_note(FOLDERS, &key(&fetched.commit), &digest.digest);
    Ok(remote(digest.digest, git.clone(), Some(fetched)))
}

fn git_name(git: &GitFolder) -> &str {
    git.remote.rsplit('/').next().unwrap_or_default()
}

/// Returns what decides the files of `commit`. The repository's own data, where they are wanted, say by which name it was fetched.
fn key(
    execution: &Execution,
    git: &GitFolder,
    commit: &str,
    exclude: &[String],
) -> impl serde::Serialize + use<> {
    let fetch = &execution.fetch;
    let by_name = has_directory(git).then(|| git.reference.clone());
    let place = (git.remote.clone(), commit.to_owned(), git.folder.clone());
    let more = (git.submodules, fetch.submodules, fetch.lfs);
    (place, by_name, more, exclude.to_vec())
}

fn has_directory(git: &GitFolder) -> bool {
    git.git_directory == Some(true)
}

/// Returns what is fetched later of a repository of which it is known what `commit` holds: this and nothing newer.
fn pinned(git: &GitFolder, commit: String) -> GitFolder {
    let reference = if has_directory(git) {
        git.reference.clone()
    } else {
        commit.clone()
    };
    GitFolder {
        reference,
        commit: Some(commit),
        ..git.clone()
    }
}

/// Returns the commit that is meant, as the Dockerfile or the server names it.
async fn named_commit(execution: &Execution, git: &GitFolder) -> Result<Option<String>, Failure> {
    let is_digits = git.reference.bytes().all(|byte| byte.is_ascii_hexdigit());
    if git.reference.len() == COMMIT_DIGITS && is_digits {
        return Ok(Some(git.reference.to_ascii_lowercase()));
    }
    let source = source_of(git)?;
    let options = options(execution, git)?;
    let folder = execution.scratch()?;
    let name = format!("[internal] look up {}", git.remote);
    let vertex = execution.recorder.begin(&name, None);
    let say = |line: &str| vertex.say(line);
    let asked = source::git::look_up(&source, &folder, &options, &say, &execution.cancel).await;
    match asked {
        Ok(commit) => {
            if let Some(commit) = &commit {
                vertex.say(&format!("commit {commit}"));
            }
            vertex.finish();
            Ok(commit)
        }
        Err(error) => {
            let failure = added(&error);
            drop(vertex.fail(&failure.message));
            Err(failure)
        }
    }
}

fn source_of(git: &GitFolder) -> Result<GitSource, Failure> {
    let remote = RemoteUrl::parse(&git.remote).map_err(|e| dockerfile_failure("ADD", &e))?;
    Ok(GitSource {
        remote,
        upstream: None,
        target_mode: match git.reference.as_str() {
            "" => TargetMode::RemoteHead,
            _ => TargetMode::RemoteCommit,
        },
        target: git.reference.clone(),
        depth: source::git::Depth::Shallow,
        checkout_location: RelPath::default(),
        custom_config: std::collections::BTreeMap::new(),
        auth: GitAuth::None,
    })
}

/// Returns how the repository is fetched: no larger than a context may be, and with the parts that the Dockerfile wants.
fn options(execution: &Execution, git: &GitFolder) -> Result<FetchOptions, Failure> {
    let mut options: FetchOptions = execution.fetch.clone();
    let limits = &execution.limits;
    options.limits.size_bytes = options.limits.size_bytes.min(limits.context_bytes);
    options.limits.n_files = options.limits.n_files.min(limits.context_files);
    options.git_directory = match git.git_directory {
        Some(true) => GitDirectory::Keep,
        Some(false) | None => GitDirectory::Remove,
    };
    match git.submodules {
        Some(false) => options.submodules = Submodules::Off,
        Some(true) if options.submodules == Submodules::Off => {
            let message = "submodules are not fetched here (the operator's setting git.submodules)";
            return Err(failure(FailureKind::Dockerfile, message));
        }
        Some(true) | None => {}
    }
    Ok(options)
}

/// Fetches a repository, and looks whether it is the right commit.
pub(super) async fn fetch(execution: &Execution, git: &GitFolder) -> Result<Repository, Failure> {
    let source = source_of(git)?;
    let options = options(execution, git)?;
    let workspace = execution.scratch()?;
    let name = format!("[internal] fetch {}", git.remote);
    let vertex = execution.recorder.begin(&name, None);
    let say = |line: &str| vertex.say(line);
    let fetched = source::git::fetch(&source, &workspace, &options, &say, &execution.cancel).await;
    let checked = fetched
        .map_err(|error| added(&error))
        .and_then(|checkout| match &git.commit {
            Some(commit) if !checkout.commit.starts_with(&commit.to_ascii_lowercase()) => {
                let message = format!(
                    "{} is at commit {}, not {commit}",
                    git.remote, checkout.commit
                );
                Err(failure(FailureKind::Dockerfile, message))
            }
            _ => Ok(checkout),
        });
    match checked {
        Ok(checkout) => {
            vertex.say(&format!("commit {}", checkout.commit));
            vertex.finish();
            Ok(Repository {
                workspace,
                commit: checkout.commit,
                commit_time: checkout.commit_time_unix,
            })
        }
        Err(failure) => {
            drop(vertex.fail(&failure.message));
            Err(failure)
        }
    }
}

fn added(error: &source::git::FetchError) -> Failure {
    let failed = source_failure(error);
    Failure {
        message: format!("ADD: {}", chain(error)),
        ..failed
    }
}

/// Opens what is wanted of a repository; links do not lead out of it.
pub(super) fn open_folder(fetched: &Repository, git: &GitFolder) -> Result<Root, Failure> {
    let failed = |e| dockerfile_failure(&format!("folder {:?} of {}", git.folder, git.remote), &e);
    let root = Root::open(&fetched.workspace).map_err(failed)?;
    match git.folder.as_str() {
        "" => Ok(root),
        folder => root.subdirectory(Path::new(folder)).map_err(failed),
    }
}
