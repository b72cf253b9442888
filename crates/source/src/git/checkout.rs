//! From an empty directory to a repository, and from a fetched commit to files.

use std::io;
use std::path::{Path, PathBuf};

use super::command::{Git, Reach};
use super::error::FetchError;
use super::limits::Limits;
use super::resolve::{Found, SMALL_OUTPUT_BYTES};
use super::submodules::Link;
use super::{GitDirectory, GitSource};
use crate::path::RelPath;

/// Most bytes of a commit object: one with more is no message but a bomb.
const MAX_COMMIT_BYTES: usize = 4 << 20;

/// The mode of a tree's entry that is a commit of another repository.
const SUBMODULE: &str = "160000";

/// What in `.git` tells when and how it was made, and nothing that git needs.
const VOLATILE: &[&str] = &[
    "FETCH_HEAD",
    "ORIG_HEAD",
    "logs",
    "hooks",
    "info",
    "description",
];

/// Makes the checkout location and returns it. It must be new or empty, and no link may lead to it.
pub(super) fn make_location(workspace: &Path, location: &RelPath) -> Result<PathBuf, FetchError> {
    let mut path = workspace.to_path_buf();
    let failed = |path: &Path, source| FetchError::Prepare {
        path: path.to_path_buf(),
        source,
    };
    for component in location.components() {
        path.push(component);
        match std::fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let metadata =
                    std::fs::symlink_metadata(&path).map_err(|source| failed(&path, source))?;
                if !metadata.is_dir() {
                    return Err(failed(&path, io::Error::from(io::ErrorKind::NotADirectory)));
                }
            }
            result => result.map_err(|source| failed(&path, source))?,
        }
    }
    let mut entries = std::fs::read_dir(&path).map_err(|source| failed(&path, source))?;
    match entries.next() {
        Some(_) => Err(failed(&path, io::Error::from(io::ErrorKind::AlreadyExists))),
        None => Ok(path),
    }
}

/// Makes an empty repository with the remotes and settings of `source`.
pub(super) async fn init(git: &Git<'_>, source: &GitSource) -> Result<(), FetchError> {
    let local = async |arguments: &[&str]| {
        git.expect(Reach::Local, arguments, SMALL_OUTPUT_BYTES)
            .await
            .map(|_| ())
    };
    local(&[
        "init",
        "--quiet",
        "--template=",
        "--object-format=sha1",
        "--initial-branch=main",
    ])
    .await?;
    local(&["remote", "add", "--", "origin", source.remote.as_str()]).await?;
    if let Some(upstream) = &source.upstream {
        local(&["remote", "add", "--", "upstream", upstream.as_str()]).await?;
    }
    for (key, value) in &source.custom_config {
        local(&["config", "--local", key, value]).await?;
    }
    Ok(())
}

/// Counts what `commit` would put on disk, from the trees alone, stops at the first limit, and returns the submodules.
pub(super) async fn count(
    git: &Git<'_>,
    commit: &str,
    limits: &Limits,
) -> Result<Vec<Link>, FetchError> {
    let mut tally = Tally {
        limits,
        entry: Vec::new(),
        size_bytes: 0,
        n_files: 0,
        links: Vec::new(),
    };
    let mut sink = |chunk: &[u8]| tally.take(chunk);
    let arguments = ["ls-tree", "-r", "-t", "-z", "--long", "--full-tree", commit];
    match git.stream(Reach::Local, &arguments, &mut sink).await? {
        None => Ok(tally.links),
        Some(failure) => Err(git.explain(&failure)),
    }
}

/// Sums of a tree listing, entry by entry.
struct Tally<'a> {
    limits: &'a Limits,
    entry: Vec<u8>,
    size_bytes: u64,
    n_files: u64,
    links: Vec<Link>,
}

impl Tally<'_> {
    /// Takes the next piece of the listing: `mode type name size<TAB>path<NUL>`, the size padded with blanks.
    fn take(&mut self, chunk: &[u8]) -> Result<(), FetchError> {
        for &byte in chunk {
            if byte != 0 {
                self.entry.push(byte);
                if self.entry.len() > self.limits.path_bytes + 128 {
                    return Err(self.path_too_long());
                }
                continue;
            }
            let mut halves = self.entry.splitn(2, |byte| *byte == b'\t');
            let head = String::from_utf8_lossy(halves.next().unwrap_or_default());
            let path = halves.next().unwrap_or_default();
            if path.len() > self.limits.path_bytes {
                return Err(self.path_too_long());
            }
            let mut fields = head.split_ascii_whitespace();
            if let (Some(SUBMODULE), _, Some(commit)) =
                (fields.next(), fields.next(), fields.next())
            {
                self.links.push(Link {
                    path: path.to_vec(),
                    commit: commit.to_owned(),
                });
            }
            // Directories and submodules have `-` for a size.
            let size = fields
                .next()
                .and_then(|size| size.parse::<u64>().ok())
                .unwrap_or(0);
            self.size_bytes = self.size_bytes.saturating_add(size);
            self.n_files += 1;
            self.entry.clear();
            if self.size_bytes > self.limits.size_bytes {
                return Err(self.limits.too_large());
            }
            if self.n_files > self.limits.n_files {
                return Err(self.limits.too_many());
            }
        }
        Ok(())
    }

    fn path_too_long(&self) -> FetchError {
        FetchError::Limit {
            limit: format!("{} bytes in a path", self.limits.path_bytes),
        }
    }
}

/// Checks out what was found and compares HEAD with it.
pub(super) async fn check_out(git: &Git<'_>, found: &Found) -> Result<(), FetchError> {
    let local = async |arguments: &[&str]| {
        git.expect(Reach::Local, arguments, SMALL_OUTPUT_BYTES)
            .await
    };
    // Plumbing with full names: `git checkout` would guess what a name means.
    if let Some(branch) = &found.branch {
        let reference = format!("refs/heads/{branch}");
        local(&["update-ref", &reference, &found.commit]).await?;
        local(&["symbolic-ref", "HEAD", &reference]).await?;
    } else {
        local(&["update-ref", "--no-deref", "HEAD", &found.commit]).await?;
    }
    local(&[
        "reset",
        "--quiet",
        "--hard",
        "--no-recurse-submodules",
        &found.commit,
    ])
    .await?;
    let head = local(&["rev-parse", "--verify", "--quiet", "HEAD"]).await?;
    if String::from_utf8_lossy(&head).trim() != found.commit {
        return Err(FetchError::Git {
            command: "reset".to_owned(),
            detail: "HEAD is not the commit that was fetched".to_owned(),
        });
    }
    Ok(())
}

/// Returns when `commit` was committed.
pub(super) async fn commit_time(git: &Git<'_>, commit: &str) -> Result<i64, FetchError> {
    let object = git
        .expect(
            Reach::Local,
            &["cat-file", "commit", commit],
            MAX_COMMIT_BYTES,
        )
        .await?;
    let text = String::from_utf8_lossy(&object);
    let header = text
        .lines()
        .take_while(|line| !line.is_empty())
        .find_map(|line| line.strip_prefix("committer "));
    // `Name <address> seconds zone`; a commit without a sensible time gets the epoch's.
    Ok(header
        .and_then(|line| line.rsplit(' ').nth(1))
        .and_then(|seconds| seconds.parse().ok())
        .unwrap_or(0))
}

/// Removes `.git`, or what in it differs between two fetches of one commit.
pub(super) async fn tidy(
    git: &Git<'_>,
    location: &Path,
    keep: GitDirectory,
) -> Result<(), FetchError> {
    let directory = location.join(".git");
    let failed = |path: &Path, source| FetchError::Prepare {
        path: path.to_path_buf(),
        source,
    };
    if keep == GitDirectory::Remove {
        return std::fs::remove_dir_all(&directory).map_err(|source| failed(&directory, source));
    }
    git.expect(
        Reach::Local,
        &["update-ref", "-d", "refs/kiln/target"],
        SMALL_OUTPUT_BYTES,
    )
    .await?;
    // Writes the index anew, without the times and inodes of the files; git looks at the files again when it is used.
    git.expect(Reach::Local, &["read-tree", "HEAD"], SMALL_OUTPUT_BYTES)
        .await?;
    for name in VOLATILE {
        let path = directory.join(name);
        let removed = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed(&path, error));
            }
            _ => {}
        }
    }
    Ok(())
}
